"""What a task gives and should not: one line that names the task, its method, what came and what is expected."""

import numpy as np
import pytest
import torch
from support.processes import run
from support.runs import config
from support.toy_gans import Gan
from support.toys import Toy
from torch import nn

from accel_train import IndexedSource, Loss, Objective, Task, Trainer, contract
from accel_train.errors import UserError
from accel_train.run import weights

VALUE = torch.tensor(2.0, requires_grad=True)
CPU = torch.device("cpu")


def refusal(task, **settings) -> str:
    """The one line with which a run of this task ends."""
    with pytest.raises(UserError) as caught:
        Trainer(task, **config("run", max_steps=3, eval_steps=2, **settings)).fit()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(autouse=True)
def _in_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        (VALUE, r"a tensor of type float32 and shape \(\); expected Loss\(value, terms\)"),
        (2.0, r"returned 2.0; expected Loss"),
        (3, "returned 3; expected Loss"),
        (None, "returned None; expected Loss"),
        ((VALUE, {}), "returned a tuple of length 2; expected Loss"),
        (Loss, "returned the class Loss; expected Loss"),
        (Loss(2.0), "returned a Loss with 2.0; expected a scalar tensor as the value"),  # type: ignore[arg-type]
        (Loss(np.float32(2)), "a Loss with a numpy float32; expected a scalar tensor"),  # type: ignore[arg-type]
        (Loss(torch.ones(5)), r"a Loss with a tensor of type float32 and shape \(5,\); expected a scalar tensor"),
        (Loss(torch.ones((), dtype=torch.int64)), "a Loss with a tensor of type int64"),
        (Loss(torch.ones((), dtype=torch.complex64)), "a Loss with a tensor of type complex64"),
        (Loss(VALUE, VALUE), "expected a dict of names to scalars as the terms"),  # type: ignore[arg-type]
        (Loss(VALUE, None), "a Loss with None; expected a dict of names"),  # type: ignore[arg-type]
        (Loss(VALUE, {"a": torch.ones(2)}), r"the term 'a' = a tensor of type float32 and shape \(2,\); expected a s"),
        (Loss(VALUE, {"a": "b"}), "the term 'a' = 'b'; expected a scalar"),  # type: ignore[dict-item]
        (Loss(VALUE, {"loss": VALUE}), "the name 'loss' is the value's"),
    ],
    ids=str,
)
def test_a_loss_that_is_none(returned, says):
    with pytest.raises(UserError, match=f"^Toy.loss_step.*{says}"):
        contract.loss_of(Toy(), returned)


@pytest.mark.parametrize("name", ["step", "lr", "grad_norm", "", "a\nb", 3])
def test_names_that_no_term_can_have(name):
    with pytest.raises(UserError, match=r"Toy.loss_step.* the name .*(trainer's own|text of one line)"):
        contract.loss_of(Toy(), Loss(VALUE, {name: VALUE.detach()}))


def test_numbers_are_taken_for_tensors():
    numbers = {"a": 2, "b": 2.0, "c": np.float32(2), "d": np.array(2), "e": torch.tensor([2.0], requires_grad=True)}
    value, terms = contract.loss_of(Toy(), Loss(VALUE[None], numbers | {"f": torch.tensor(True)}))  # type: ignore
    assert value.shape == () and value.requires_grad
    assert {name: float(term) for name, term in terms.items()} == dict.fromkeys("abcde", 2.0) | {"f": 1.0}
    assert not any(term.requires_grad or term.dim() for term in terms.values())
    sums = contract.sums_of(Toy(), "eval_step", numbers | {"g": np.arange(3), "h": torch.ones(2, dtype=bool)}, CPU)
    assert sums["g"].tolist() == [0, 1, 2] and sums["h"].dtype == torch.int64 and sums["a"].dtype == torch.float64


def test_a_run_with_python_numbers():
    class Numbers(Toy):
        def totals(self, models, batch, objective):
            return {"items": len(batch["index"])}

        def loss_step(self, models, batch, totals, objective):
            loss = super().loss_step(models, batch, totals, objective)
            return Loss(loss.value, {"count": len(batch["index"]), "half": 0.5 * len(batch["index"])})

        def eval_step(self, models, batch):
            return {name: float(value) for name, value in super().eval_step(models, batch).items()}

    result = Trainer(Numbers(), **config("run", max_steps=3, logging_steps=1, micro_batch_size=3)).fit()
    assert result.history["count"] == [8, 8, 8] and result.history["half"] == [4, 4, 4]
    assert result.metrics == pytest.approx(Trainer(Toy(), **config("other", max_steps=3)).fit().metrics, rel=1e-6)


@pytest.mark.parametrize(
    ("method", "returned", "says"),
    [
        ("eval_step", torch.ones(2), r"Toy.eval_step returned a tensor of .* expected a dict of names to sums"),
        ("eval_step", {"a": "b"}, r"Toy.eval_step returned 'a' = 'b'; expected a number or a tensor"),
        ("eval_metrics", 0.5, "Toy.eval_metrics returned 0.5; expected a dict of names to numbers"),
        ("eval_metrics", {"loss": torch.ones(2)}, "Toy.eval_metrics returned 'loss' = a tensor .* expected a number"),
        ("eval_metrics", {"loss": 10**400}, "Toy.eval_metrics returned 'loss' = 1.*; expected a number"),
        ("eval_metrics", {"loss": 1.0, 3: 1.0}, "Toy.eval_metrics returned the name 3; a name is a text of one line"),
        ("eval_metrics", {"loss": 1.0, "": 1.0}, "Toy.eval_metrics returned the name ''; a name is"),
        ("eval_metrics", {"loss": 1.0, "a\nb": 1.0}, r"Toy.eval_metrics returned the name 'a\\nb'; a name is"),
        ("eval_metrics", {"loss": 1.0, "step": 7}, "Toy.eval_metrics: the name 'step' is the trainer's own"),
        ("eval_metrics", {}, "metric_for_best_model: the evaluation gives no 'loss'; it gives nothing"),
        ("totals", 5, "Toy.totals returned 5; expected a dict of names to sums"),
        ("build_model", None, "Toy.build_model returned None; expected a torch.nn.Module"),
        ("build_model", nn.Linear, "Toy.build_model returned the class Linear; expected a torch.nn.Module"),
        ("build_model", {}, "Toy.build_model returned a dict; expected at least one model"),
        ("build_model", {"a": 3}, "Toy.build_model returned a dict with 'a': 3; expected"),
        ("build_model", {"a.b": nn.Linear(1, 1)}, "Toy.build_model: 'a.b' cannot be the name of a model"),
        ("build_model", {"forward": nn.Linear(1, 1)}, "Toy.build_model: 'forward' cannot be the name of a model"),
        ("objectives", Objective(), r"Toy.objectives returned an accel_train Objective; expected a list"),
        ("objectives", ["loss"], "Toy.objectives returned a list of length 1; expected a list of Objective"),
        ("objectives", [Objective(), Objective()], r"Toy.objectives: two have the same name \(loss, loss\)"),
        ("build_data", 3, r"Toy.build_data\('train'\) returned 3; expected a BatchSource"),
    ],
    ids=str,
)
def test_other_methods(monkeypatch, method, returned, says):
    monkeypatch.setattr(Toy, method, lambda *_: returned)
    (result,) = run({"config": config("run", max_steps=2)})
    assert result["error"][0] == "UserError"
    with pytest.raises(UserError, match=f"^{says}"):
        raise UserError(result["error"][1])


def test_a_model_that_keeps_statistics_of_the_training_data(tmp_path):
    """They come from the data in a run, and from the weights afterwards: nobody opens the data for an export."""

    class Scaled(Toy):
        name = "toy"

        def build_model(self, train):
            seen.append(train)
            model = super().build_model()
            model.register_buffer("mean", torch.zeros(4))
            if train is not None:
                model.mean += (
                    torch.from_numpy(train.data.read(np.arange(len(train.data)))["x"]).float().flatten(0, -2).mean(0)
                )
            return model

    seen: list = []
    trainer = Trainer(Scaled(), **config(tmp_path, max_steps=2))
    trainer.fit()
    mean = trainer.models["model"].mean
    assert mean.abs().min() > 0
    trained = contract.models_of(Scaled(), None)
    weights.load_weights(trained, tmp_path / "model")
    assert torch.equal(trained["model"].mean, mean)
    assert isinstance(seen[0], IndexedSource) and seen[1] is None


class Forwards(Toy):
    """What it divides by needs the model's outputs."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.calls: list[tuple[int, bool]] = []  # items, with gradients
        self.cuts = 0

    def objectives(self):
        return Objective("one", repeats=2), Objective("two")

    def split(self, batch, limit):
        self.cuts += 1
        return super().split(batch, limit)

    def forward_step(self, models, batch, objective):
        self.calls.append((len(batch["index"]), torch.is_grad_enabled()))
        return {"out": models["model"](batch["x"])}

    def totals(self, models, batch, objective):
        return {"size": batch["out"].square().sum()}

    def loss_step(self, models, batch, totals, objective):
        return Loss((batch["out"][..., 0] - batch["y"]).square().sum() / totals["size"])


def test_a_whole_batch_goes_through_the_models_once_and_is_cut_once(tmp_path):
    settings = dict(max_steps=2, max_grad_norm=None, optimizer={"class_path": "SGD"}, check_contract=False)
    found = {}
    for limit in (8, 4):
        task = Forwards(float64=True)
        trainer = Trainer(task, **config(tmp_path / str(limit), micro_batch_size=limit, eval_steps=0, **settings))
        trainer.fit()
        found[limit] = torch.cat([p.detach().flatten() for p in trainer.models["model"].parameters()])
        assert task.cuts == 2, "once for all objectives of a batch"
        twice = [(4, False)] * 2 + [(4, True)] * 2
        assert task.calls == ([(8, True)] if limit == 8 else twice) * 6
    torch.testing.assert_close(found[4], found[8], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        (VALUE, "Forwards.forward_step returned a tensor of .* expected a dict of names to tensors"),
        ({"x": VALUE}, "Forwards.forward_step: the batch has a 'x' already; take another name"),
    ],
    ids=str,
)
def test_a_wrong_forward_step(monkeypatch, returned, says):
    monkeypatch.setattr(Forwards, "forward_step", lambda *_: returned)
    with pytest.raises(UserError, match=f"^{says}"):
        raise UserError(refusal(Forwards(), check_contract=False))


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 50

    def __getitem__(self, i):
        return torch.ones(4)


def test_torch_s_own_data(monkeypatch):
    loader = torch.utils.data.DataLoader(Rows())
    for returned, says in (
        (loader, r"Toy.build_data\('train'\) returned a torch DataLoader; expected a BatchSource: from_dataset"),
        (Rows(), r"Toy.build_data\('train'\) returned a \w+ Rows; expected a BatchSource"),
        (IndexedSource(Rows(), 8), r"Toy.build_data\('train'\): a \w+ Rows has no method read\(indices\)"),
    ):
        monkeypatch.setattr(Toy, "build_data", lambda *_, returned=returned: returned)
        with pytest.raises(UserError, match=says):
            raise UserError(refusal(Toy()))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_that_is_no_dict(monkeypatch, workers):
    class Tuples:
        def __len__(self):
            return 50

        def read(self, indices):
            return np.ones((len(indices), 4)), indices

    monkeypatch.setattr(Toy, "build_data", lambda *_: IndexedSource(Tuples(), 8))
    text = refusal(Toy(), num_workers=workers)
    assert "a batch must be a dict of names to arrays or tensors, not a tuple of length 2" in text and "batch 0" in text


@pytest.mark.parametrize("method", ["build_data", "build_model", "loss_step", "eval_step", "eval_metrics"])
def test_a_method_that_is_missing(monkeypatch, method):
    monkeypatch.setattr(Toy, method, getattr(Task, method))
    assert refusal(Toy()).startswith(f"Toy has no method {method}, which is needed here: ")


def test_what_is_no_task():
    with pytest.raises(UserError, match=r"the class Toy was given for a task; give an instance: Toy\(...\)"):
        Trainer(Toy, max_steps=3)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="a trainer needs an instance of accel_train.Task, got a torch Linear"):
        Trainer(nn.Linear(1, 1), max_steps=3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (nn.LazyLinear(1), r"Toy.build_model: '1' of model 'model' \(LazyLinear\) has no shape yet"),
        (nn.LazyBatchNorm1d(affine=False), r"Toy.build_model: '1' of model 'model' \(LazyBatchNorm1d\) has no shape"),
        (nn.Embedding(3, 3, sparse=True), r"'1' of model 'model' \(Embedding\) has sparse=True"),
        (nn.EmbeddingBag(3, 3, sparse=True, mode="sum"), r"'1' of model 'model' \(EmbeddingBag\) has sparse=True"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_modules_that_cannot_be_trained(monkeypatch, module, says):
    monkeypatch.setattr(Toy, "build_model", lambda self: nn.Sequential(nn.Linear(4, 1), module))
    with pytest.raises(UserError, match=says):
        raise UserError(refusal(Toy()))


def test_an_expanded_buffer_can_be_restored(monkeypatch):
    def build(self):
        model = nn.Linear(4, 1)
        model.register_buffer("same", torch.ones(1, 3).expand(5, 3))
        return model

    monkeypatch.setattr(Toy, "build_model", build)
    for steps in (2, 4):
        assert Trainer(Toy(), **config("run", max_steps=steps)).fit().outcome == "completed"


def test_an_expanded_parameter(monkeypatch):
    module = nn.Linear(4, 1)
    module.bias = nn.Parameter(torch.ones(1).expand(3))
    monkeypatch.setattr(Toy, "build_model", lambda self: module)
    assert "model 'model' has an expanded parameter" in refusal(Toy())


def test_sparse_gradients_of_a_function(monkeypatch):
    def loss_step(self, models, batch, totals, objective):
        rows = nn.functional.embedding(batch["index"] % 4, models["model"].weight, sparse=True)
        return Loss(rows.sum() / totals["items"])

    monkeypatch.setattr(Toy, "build_model", lambda self: nn.Linear(3, 4))
    monkeypatch.setattr(Toy, "loss_step", loss_step)
    assert "model has sparse gradients, which are not supported" in refusal(Toy())


def test_nothing_to_train(monkeypatch):
    monkeypatch.setattr(Toy, "build_model", lambda self: nn.Linear(4, 1).requires_grad_(False))
    assert "model has no trainable parameters" in refusal(Toy())
    monkeypatch.undo()


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_loss_without_gradient(tmp_path, ranks):
    job = {"task": "Detached", "config": config(tmp_path / "run")}
    for result in run(job, ranks):
        assert result["error"][0] == "UserError"
        assert "Detached.loss_step: the loss of objective 'loss' has no gradient by any parameter" in result["error"][1]
    (result, *_) = run(job | {"config": config(tmp_path / "run", check_contract=False)}, ranks)
    assert result["error"] is None and result["updates"] == []


def test_a_parameter_of_two_groups(monkeypatch):
    def build_model(self):
        models = real(self)
        models["critic"][0].bias = models["generator"][0].bias
        return models

    real = Gan.build_model
    monkeypatch.setattr(Gan, "build_model", build_model)
    assert "generator has a parameter that another objective's models have too" in refusal(Gan())
