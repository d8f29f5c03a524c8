"""FSDP2 gives what DDP gives: training, evaluation, checkpoints, export. accelerate offers it on GPUs only; here its
state is told that the two gloo ranks shard their parameters, and everything after that is the real thing."""

import json
import os
import subprocess
import sys

import pytest
import torch
from accelerate import debug_launcher
from safetensors.torch import load_file
from support import small_tasks
from support.memory import Peak
from support.processes import alone
from support.runs import assert_same_run
from torch import nn

from accel_train import IndexedSource, Loss, Objective, Task, Trainer
from accel_train.config.schema import TrainConfig
from accel_train.errors import UserError
from accel_train.run.weights import read_weights
from accel_train.system import process
from accel_train.task import Event
from accel_train.tracking.observer import Observer

GROUPS = {"class_path": "AdamW", "init_args": {"weight_decay": 5.0}, "no_weight_decay": ["*.bias"]}
"""Of parameters: a decay of 5 % a step for one, and none for the other."""


class Points:
    def __init__(self, n):
        generator = torch.Generator().manual_seed(n)
        self.x = torch.randn(n, 8, generator=generator, dtype=torch.float64)

    def __len__(self):
        return len(self.x)

    def read(self, indices):
        x = self.x[torch.from_numpy(indices)]
        return {"x": x, "y": x[:, :1] * x[:, 1:2]}


class Product(Task):
    def build_data(self, split, batch_size, seed):
        return IndexedSource(Points(96 if split == "train" else 30), batch_size, seed, shuffle=split == "train")

    def build_model(self):
        return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1)).double()

    def loss_step(self, models, batch, totals, objective):
        error = models["model"](batch["x"]) - batch["y"]
        return Loss(error.square().sum() / totals["items"])

    def eval_step(self, models, batch):
        error = models["model"](batch["x"]) - batch["y"]
        return {"square": error.square().sum(), "n": torch.tensor(float(len(error)))}

    def eval_metrics(self, sums):
        return {"loss": float(sums["square"] / sums["n"])}

    def monitor(self, models, batch):  # a forward pass on each rank by itself, as histograms are on one rank only
        assert models["model"](batch["x"]).shape == (len(batch["x"]), 1)
        return [Event("anomaly", "looked")]

    def histograms(self, models, batch):
        return {"fit": models["model"](batch["x"])}


class Eyes(Observer):
    """Writes what it was shown behind the name of the run folder."""

    def on_start(self, run):
        self.file = open(f"{run.output_dir}-seen", "a")

    def on_event(self, event):
        if event.kind == "anomaly":
            self.file.write("anomaly\n")

    def on_histograms(self, step, values):
        self.file.write(f"{step} {values['fit'].shape[0]}\n")

    def on_end(self, outcome, status):
        self.file.close()


class Taught(Product):
    """By a model that is only read, whose weights the first rank alone builds, too."""

    def objectives(self):
        return [Objective("loss", trains=("model",))]

    def build_model(self):
        return {"model": super().build_model(), "teacher": super().build_model()}

    def loss_step(self, models, batch, totals, objective):
        error = models["model"](batch["x"]) - models["teacher"](batch["x"])
        return Loss(error.square().sum() / totals["items"])


class Freezing(Product):
    def after_step(self, models, step):
        models["model"][0].requires_grad_(step < 2)


class Deep(Product):
    """64 MB of weights in 16 layers."""

    def build_model(self):
        model = nn.Sequential(*(nn.Linear(1024, 1024, bias=False) for _ in range(16)))
        model._no_split_modules = ["Linear"]
        return model


class Brains(small_tasks.Brains):
    """Sherlock with all of its parts, in float64."""

    def __init__(self, **options):
        super().__init__(
            float64=True, lag="fir", bottleneck="voxels", fusion_widths=[8, 8], voxel_widths=[8], time_layers=2,
            heads=2, subject_dropout=0.4, modality_dropout=0.4, **options,
        )  # fmt: skip


def shard_from_now_on(parts):
    """Each module of a class that is named in ``parts``, or by the model, by itself, and the rest together."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    import accel_train.train.session as session

    real = session.start_accelerate

    def start(config):
        accelerator = real(config)
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="TRANSFORMER_BASED_WRAP",
            transformer_cls_names_to_wrap=parts or None, state_dict_type="SHARDED_STATE_DICT",
            reshard_after_forward=True,
        )  # fmt: skip
        accelerator.state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        return accelerator

    session.start_accelerate = start


def train(folder, steps, sharded, batch=16, parts=(), task="Product", init_from=None, **more):
    assert "RANK" not in os.environ and process.world_size() > 0  # this launcher only tells torch
    if sharded:
        shard_from_now_on(list(parts))
    try:
        Trainer(
            globals()[task](), observers=[Eyes()],
            output_dir=folder, max_steps=steps, global_batch_size=batch, logging_steps=5, eval_steps=10,
            save_steps=10, learning_rate=1e-2, max_grad_norm=0.5, report_to=[],
            monitor_steps=8, histogram_steps=12, optimizer=GROUPS, init_from=init_from, **more,
        ).fit()  # fmt: skip
    except UserError as error:
        with open(f"{folder}-error", "a") as file:
            file.write(f"{error}\n")


def train_averaged(folder, steps, sharded):
    train(folder, steps, sharded, parts=["Linear"], ema_decay=0.8)


def train_brains(folder, steps, sharded, options):
    if sharded:
        shard_from_now_on([])
    Trainer(
        Brains(**options), output_dir=folder, max_steps=steps, global_batch_size=6, logging_steps=5, eval_steps=5,
        save_steps=5, learning_rate=1e-2, max_grad_norm=0.5, report_to=[], warmup_steps=0, lr_scheduler_type="constant",
    ).fit()  # fmt: skip


def build_deep(folder, sharded):
    """Writes how much memory that took on each rank, MB."""
    from accel_train.train.session import Session

    if sharded:
        shard_from_now_on([])
    config = TrainConfig(output_dir=folder, max_steps=1, report_to=[])
    Session(Product(), config)  # imports take memory, too
    with Peak() as peak:
        session = Session(Deep(), config)
    with open(f"{folder}-{session.ranks.rank}", "w") as file:
        file.write(str(peak.growth["anonymous"]))


def on_ranks(*arguments, function="train", ranks=2):
    """In a process of its own: a launcher forks, and may not find an accelerator that another test has left."""
    alone(debug_launcher, globals()[function], arguments, ranks)


def on_two_ranks_that_free_memory(*arguments, function):
    """What they free goes back to the system at once."""
    done = subprocess.run(
        [sys.executable, __file__, function, json.dumps(arguments)], capture_output=True, text=True, timeout=200,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "MALLOC_MMAP_THRESHOLD_": "1000000"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_sharded_equals_replicated_also_after_a_resume(tmp_path):
    sharded, replicated = tmp_path / "sharded", tmp_path / "replicated"
    on_ranks(str(replicated), 30, False)
    on_ranks(str(sharded), 20, True)
    on_ranks(str(sharded), 30, True)
    wanted, found = losses(replicated), losses(sharded)
    assert found == pytest.approx(wanted, rel=1e-9) and len(wanted) == 9
    for name in ("model", "best"):
        one, other = (load_file(folder / name / "model.safetensors") for folder in (replicated, sharded))
        for key in one:
            torch.testing.assert_close(one[key], other[key], rtol=1e-9, atol=1e-12)
    seen = [(tmp_path / f"{name}-seen").read_text().splitlines() for name in ("sharded", "replicated")]
    assert seen[0] == seen[1] == [*["anomaly"] * 2, "12 8", *["anomaly"] * 4, "24 8"]
    assert any((sharded / "checkpoints" / "latest").glob("*/*.distcp"))  # it really was sharded


@pytest.mark.slow
def test_pieces_go_on_on_another_number_of_ranks(tmp_path):
    """And neither without FSDP nor from what it has not written."""
    sharded, replicated = tmp_path / "sharded", tmp_path / "replicated"
    on_ranks(str(replicated), 30, False, 12)
    for ranks, steps in ((2, 10), (3, 20), (1, 30)):
        on_ranks(str(sharded), steps, True, 12, ranks=ranks)
    assert losses(sharded) == pytest.approx(losses(replicated), rel=1e-9)
    one, other = (load_file(folder / "model" / "model.safetensors") for folder in (replicated, sharded))
    for key in one:
        torch.testing.assert_close(one[key], other[key], rtol=1e-9, atol=1e-12)
    with pytest.raises(UserError, match="in the pieces of FSDP"):
        read_weights(sharded / "checkpoints" / "latest", ["model"])
    for folder, now in ((sharded, False), (replicated, True)):
        on_ranks(str(folder), 40, now, 12)
        said = (tmp_path / f"{folder.name}-error").read_text().splitlines()
        assert len(said) == 2 and all("take the launch config of before" in line for line in said)


@pytest.mark.slow
def test_averages_of_pieces_are_those_of_whole_weights(tmp_path):
    """Also after a resume; and what is trained does not notice."""
    for name, sharded, lengths in (("replicated", False, [30]), ("whole", True, [30]), ("pieces", True, [20, 30])):
        for steps in lengths:
            on_ranks(str(tmp_path / name), steps, sharded, function="train_averaged")
    assert losses(tmp_path / "whole") == pytest.approx(losses(tmp_path / "replicated"), rel=1e-9)
    for file in ("model/model.safetensors", "checkpoints/latest/averages.safetensors"):
        one, other = (load_file(tmp_path / name / file) for name in ("replicated", "whole"))
        assert one.keys() == other.keys()
        for key in one:
            torch.testing.assert_close(one[key], other[key], rtol=1e-9, atol=1e-12)
    assert_same_run(tmp_path / "pieces", tmp_path / "whole")


def test_parts_that_are_sharded_by_themselves_change_nothing(tmp_path):
    """A run begins with an evaluation, which calls the models without what was wrapped around them; and one rank alone
    looks at a batch after step 12."""
    on_ranks(str(tmp_path / "replicated"), 15, False)
    on_ranks(str(tmp_path / "sharded"), 15, True, 16, ["Linear"])
    wanted = losses(tmp_path / "replicated")
    assert losses(tmp_path / "sharded") == pytest.approx(wanted, rel=1e-9) and len(wanted) == 5


@pytest.mark.slow
def test_a_model_that_is_only_read_and_weights_from_elsewhere(tmp_path):
    for name, sharded in (("replicated", False), ("sharded", True)):
        folder = str(tmp_path / name)
        on_ranks(folder, 5, sharded, 16, [], "Taught")
        on_ranks(f"{folder}-2", 5, sharded, 16, [], "Taught", f"{folder}/model")
    for more in ("", "-2"):
        wanted = losses(tmp_path / f"replicated{more}")
        assert losses(tmp_path / f"sharded{more}") == pytest.approx(wanted, rel=1e-9)


def test_unequal_shares_are_refused_on_every_rank(tmp_path):
    on_ranks(str(tmp_path / "run"), 30, True, 95)  # the last batch of an epoch has one item
    said = (tmp_path / "run-error").read_text().splitlines()
    assert len(said) == 2 and all("FSDP: the ranks have [0, 1]" in line for line in said)


def test_freezing_on_the_way_is_refused(tmp_path):
    on_ranks(str(tmp_path / "run"), 3, True, 16, [], "Freezing")
    said = (tmp_path / "run-error").read_text().splitlines()
    assert len(said) == 2 and all("FSDP cannot freeze model.0" in line and "detach" in line for line in said)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"checkpointing": True}], ids=["", "checkpointing"])
def test_sherlock(tmp_path, options):
    """Parts that the model names are gathered one by one, also those within others; a stop changes no bit."""
    for name, sharded in (("replicated", False), ("sharded", True)):
        on_ranks(str(tmp_path / name), 10, sharded, options, function="train_brains")
    wanted = losses(tmp_path / "replicated")
    assert losses(tmp_path / "sharded") == pytest.approx(wanted, rel=1e-9) and len(wanted) == 4
    one, other = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("replicated", "sharded"))
    assert one.keys() == other.keys()
    for key in one:
        torch.testing.assert_close(one[key], other[key], rtol=1e-9, atol=1e-12)
    for steps in (5, 10):
        on_ranks(str(tmp_path / "stopped"), steps, True, options, function="train_brains")
    assert_same_run(tmp_path / "stopped", tmp_path / "sharded")


@pytest.mark.slow
def test_no_rank_but_the_first_builds_the_whole_model(tmp_path):
    """Of 64 MB: rank 0 has them all, and less and less while it hands them out; rank 1 its half."""
    on_two_ranks_that_free_memory(str(tmp_path / "run"), True, function="build_deep")
    first, second = (float((tmp_path / f"run-{rank}").read_text()) for rank in (0, 1))
    print(f"MB on the ranks: {first:.0f}, {second:.0f}")
    assert 60 < first < 64 + 15 and 30 < second < 32 + 15


if __name__ == "__main__":
    debug_launcher(globals()[sys.argv[1]], tuple(json.loads(sys.argv[2])), 2)
