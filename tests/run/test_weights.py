"""Models that anything can be rebuilt from: exported, read from wherever they are, refused where they do not fit."""

import sys

import pytest
import torch
from support.runs import config, weights_files
from support.toys import Toy
from torch import nn

from accel_train import IndexedSource, Loss, Task, Trainer, load_exported
from accel_train.config.plain import to_dict
from accel_train.config.schema import TrainConfig
from accel_train.errors import NonFiniteError, UserError
from accel_train.run.weights import export_models, load_weights, whole_state


class Tied(nn.Module):
    """Input and output share their weights; a buffer, an integer and an empty tensor go with them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, width)
        self.body = nn.Linear(width, width)
        self.head = nn.Linear(width, 7, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("nothing", torch.zeros(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count += 1
        return self.head(self.body(self.embed(x)))


class Letters:
    def __len__(self) -> int:
        return 12

    def read(self, indices) -> dict:
        return {"x": torch.as_tensor(indices) % 7}


class TiedTask(Task):
    """Two groups of models, so that a checkpoint holds two files."""

    def __init__(self, width: int = 5) -> None:
        self.width = width

    def build_data(self, split, batch_size, seed):
        return IndexedSource(Letters(), batch_size, seed) if split == "train" else None

    def build_model(self):
        return {"tied": Tied(self.width), "other": nn.Linear(2, 2)}

    def objectives(self):
        from accel_train import Objective

        return (Objective("letters", ("tied",)), Objective("other", ("other",)))

    def loss_step(self, models, batch, totals, objective):
        if objective.name == "other":
            return Loss(models["other"].weight.square().sum() * len(batch["x"]) / totals["items"])
        logits = models["tied"](batch["x"])
        return Loss(nn.functional.cross_entropy(logits, batch["x"], reduction="sum") / totals["items"])


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.setattr(TiedTask, "__module__", "run_folder_classes")
    monkeypatch.setitem(sys.modules, "run_folder_classes", sys.modules[__name__])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tied"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TiedTask, "__module__", "run_folder_classes")
        trainer = Trainer(TiedTask(), output_dir=str(folder), max_steps=3, global_batch_size=4, report_to=[])
        trainer.fit()
    return folder, {name: model.state_dict() for name, model in trainer.models.items()}


def same(models, states) -> bool:
    return all(torch.equal(model.state_dict()[k], v) for name, model in models.items() for k, v in states[name].items())


def test_a_model_folder_rebuilds_the_model(run):
    folder, states = run
    task, models, described = load_exported(folder / "model")
    assert isinstance(task, TiedTask) and task.width == 5 and described["step"] == 3
    assert same(models, states) and models["tied"].head.weight is models["tied"].embed.weight
    assert int(models["tied"].count) == 3


@pytest.mark.parametrize("where", ["model", "checkpoints/latest", "checkpoints/step-000000003", "."])
def test_weights_from_wherever_they_are(run, where):
    folder, states = run
    models = TiedTask().build_model()
    assert not same(models, states)
    load_weights(models, folder / where)
    assert same(models, states)
    assert models["tied"].head.weight is models["tied"].embed.weight, "still tied"


@pytest.mark.parametrize("where", ["model", "checkpoints/latest", "."])
def test_weights_of_another_model_are_refused_in_one_line(run, where):
    folder, _ = run
    path = folder / where
    models = TiedTask(width=6).build_model()
    before = {k: v.clone() for k, v in models["tied"].state_dict().items()}
    for build, says in (
        (lambda: models, r"tied.mean has another shape|tied.embed.weight has another shape"),
        (lambda: {"tied": Tied(5), "other": nn.Linear(2, 2, bias=False)}, "other.bias has no place in the model"),
        (lambda: {"tied": Tied(5), "other": nn.Sequential(nn.Linear(2, 2))}, r"other\.0\.weight has no value"),
        (lambda: {"tied": Tied(5), "third": nn.Linear(2, 2)}, r"no third.safetensors there|third.weight has no value"),
    ):
        with pytest.raises(UserError, match=says) as error:
            load_weights(build(), path)
        assert "\n" not in str(error.value) and str(folder) in str(error.value)
    assert all(torch.equal(v, before[k]) for k, v in models["tied"].state_dict().items()), "nothing half-loaded"


def test_what_is_no_model_folder(tmp_path, run):
    folder, _ = run
    with pytest.raises(UserError, match="neither a model folder .* a checkpoint .* nor a run folder"):
        load_weights({}, tmp_path)
    with pytest.raises(UserError, match="no config.json there; is it an exported model folder?"):
        load_exported(folder)
    with pytest.raises(UserError, match="neither a model folder"):
        load_weights({}, tmp_path / "nowhere")


def export(folder, models) -> None:
    states = {name: whole_state(model) for name, model in models.items()}
    export_models(folder, states, to_dict(TiedTask(), TrainConfig()), {"step": 1})


def test_damaged_model_folders(tmp_path):
    folder = tmp_path / "model"
    export(folder, TiedTask().build_model())
    file = folder / "tied.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(UserError, match="tied.safetensors"):
        load_exported(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json"):
        load_exported(folder)


def test_exporting_again_replaces_all_of_it(tmp_path):
    folder = tmp_path / "model"
    export(folder, {"tied": Tied(5), "old": nn.Linear(1, 1)})
    export(folder, TiedTask().build_model())
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "other.safetensors", "tied.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_tensors_of_any_layout(tmp_path):
    model = nn.Linear(3, 4)
    model.weight = nn.Parameter(torch.randn(3, 4).t())
    flat = torch.randn(6)
    model.register_buffer("left", flat[:3])
    model.register_buffer("right", flat[3:])
    export(tmp_path / "model", {"model": model})
    again = nn.Linear(3, 4)
    again.register_buffer("left", torch.zeros(3))
    again.register_buffer("right", torch.zeros(3))
    load_weights({"model": again}, tmp_path / "model")
    assert same({"model": again}, {"model": model.state_dict()})


def test_a_model_named_like_its_wrapper(tmp_path):
    """Names of parameters that look like the checkpoint's own prefixes."""
    model = nn.ModuleDict({"trained": nn.Linear(2, 2), "module": nn.Linear(2, 2)})
    export(tmp_path / "model", {"model": model})
    again = nn.ModuleDict({"trained": nn.Linear(2, 2), "module": nn.Linear(2, 2)})
    load_weights({"model": again}, tmp_path / "model")
    assert same({"model": again}, {"model": model.state_dict()})


# -- buffers ---------------------------------------------------------------------------------------------------------


def part_view(model):
    model.register_buffer("tail", model.weight.detach()[1:])


def from_its_start(model):
    model.register_buffer("head", model.weight.detach()[:2])


def the_same(model):
    model.register_buffer("twin", model.weight.detach())


def masks(model):
    model.register_buffer("mask", torch.full((4, 4), float("-inf")).triu(1))
    model.register_buffer("lowest", torch.tensor(float("inf")))
    model.register_buffer("fitted_at", torch.tensor(float("nan")))
    model.register_buffer("late", torch.full((3,), float("-inf")), persistent=False)


def transposed(model):
    model.weight = nn.Parameter(torch.randn(4, 4).t())


def odd(model):
    model.none = nn.Parameter(torch.zeros(0, 3))
    model.c = nn.Parameter(torch.ones(4, dtype=torch.complex64))
    model.b16 = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))


@pytest.mark.parametrize("change", [part_view, from_its_start, the_same, masks, transposed, odd])
def test_a_run_of_a_model_with_odd_tensors(tmp_path, capsys, change):
    """It saves, resumes bit for bit, exports, and is evaluated, without a word."""

    class OddTask(Toy):
        name = "odd"

        def build_model(self):
            model = nn.Linear(4, 4)
            change(model)
            return model

        def _error(self, models, batch, power=2):
            out = models["model"](batch["x"]).sum(-1)
            return ((out - batch["y"]).abs() ** power * batch["mask"]).sum()

    def fit(folder, steps):
        return Trainer(OddTask(), **config(folder, max_steps=steps, eval_steps=3)).fit()

    fit(tmp_path / "whole", 6)
    assert "warning" not in (out := capsys.readouterr().out) and "shared" not in out
    fit(tmp_path / "halves", 3)
    assert fit(tmp_path / "halves", 6).saved
    assert weights_files(tmp_path / "halves") == weights_files(tmp_path / "whole")
    model = OddTask().build_model()
    load_weights({"model": model}, tmp_path / "halves" / "best")
    load_weights({"model": model}, tmp_path / "halves")
    own = whole_state(model)
    states = [tensor.untyped_storage().data_ptr() for tensor in own.values() if tensor.numel()]
    assert len(set(states)) == len(states), "what is stored shares no memory"
    assert ("tail" in own and own["tail"].equal(own["weight"][1:])) == (change is part_view)


def test_a_parameter_that_is_not_finite_is_named(tmp_path):
    class NanTask(Toy):
        def build_model(self):
            model = super().build_model()
            model.unused = nn.Parameter(torch.tensor([1.0, float("nan")]), requires_grad=False)
            return model

    with pytest.raises(NonFiniteError, match="step 24: the weights model.unused are not finite"):
        Trainer(NanTask(), **config(tmp_path, eval_steps=0)).fit()
