"""Toy tasks, a trainer that can be watched and hurt, and processes to run it in; shared by tests/laws and tests/faults.

``train(job)`` runs one training described by a plain dict and returns plain data, so the same job can run in this
process, on every member of a ``Team`` of ranks that stays alive between jobs, or in a ``Child`` that may be killed.
The processes are forked from a server that has imported torch already, which makes a start cost a few milliseconds.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import Future
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from accelerate.state import AcceleratorState
from torch import nn

from accel_train import BatchSource, IndexedSource, Loss, Objective, Task, Trainer, keyed
from accel_train.errors import DataError
from accel_train.run.checkpoint import CheckpointFolder, verify
from accel_train.system import waiting
from accel_train.task import Event
from accel_train.tasks.gdynet.task import GDyNetTask
from accel_train.tasks.muon.task import MuonTask
from accel_train.tracking.observer import Observer

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
IMPORTED_LATE = [
    "torch._dynamo",
    "torch.distributed",
    *(f"accel_train.tracking.{n}" for n in ("console", "jsonl", "status")),
]
"""What a run imports on its way, a second or two; the server has it already."""
ON_CPU = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
CLOCK = ("wall_time", "items_per_s", "step_s", "wait_s", "eta_s")
FAULTS: dict[str, Any] = {}
"""What goes wrong in this process during the current job; read by the toy tasks."""


# -- toy tasks -------------------------------------------------------------------------------------------------------


class Numbers:
    """Items that are a pure function of their index; lengths from 1 to 7 if ``ragged``."""

    def __init__(self, items: int, purpose: str, float64: bool, ragged: bool = False, slow: float = 0.0) -> None:
        self.items, self.key, self.ragged, self.slow = items, keyed.key(7, purpose), ragged, slow
        self.purpose = purpose
        self.dtype = np.float64 if float64 else np.float32

    def __len__(self) -> int:
        return self.items

    def read(self, indices: np.ndarray) -> dict[str, Any]:
        if self.slow:
            time.sleep(self.slow)
        unread(self.purpose)
        lengths = 1 + keyed.bits(self.key, indices)[:, 0] % 7 if self.ragged else np.ones(len(indices), np.uint64)
        longest = int(lengths.max())
        x = keyed.normal(self.key, indices, 7 * 4).reshape(-1, 7, 4)[:, :longest]
        mask = np.arange(longest) < lengths.astype(np.int64)[:, None]
        y = np.sin(x.sum(-1)) + 0.5 * keyed.normal(self.key + 1, indices, 7)[:, :longest]
        return {
            "index": indices, "x": x.astype(self.dtype), "y": y.astype(self.dtype), "mask": mask.astype(self.dtype)
        }  # fmt: skip


class Toy(Task):
    """Regression by a small network. ``slow`` seconds per loss, ``slow_read`` per batch read."""

    movable = ("slow", "slow_read")
    ragged = False

    def __init__(
        self,
        items: int = 50,
        dropout: float = 0.0,
        float64: bool = False,
        slow: float = 0.0,
        slow_read: float = 0.0,
        width: int = 8,
    ) -> None:
        self.items, self.dropout, self.float64, self.width = items, dropout, float64, width
        self.slow, self.slow_read = slow, slow_read

    def build_data(self, split: str, batch_size: int, seed: int) -> IndexedSource | None:
        if split == "test":
            return None
        training = split == "train"
        data = Numbers(self.items if training else 21, split, self.float64, self.ragged, self.slow_read)
        return IndexedSource(data, batch_size, seed, shuffle=training)

    def build_model(self) -> nn.Module:
        model = nn.Sequential(nn.Linear(4, self.width), nn.Tanh(), nn.Dropout(self.dropout), nn.Linear(self.width, 1))
        return model.double() if self.float64 else model

    def _error(self, models, batch, power: int = 2):
        return ((models["model"](batch["x"])[..., 0] - batch["y"]).abs() ** power * batch["mask"]).sum()

    def loss_step(self, models, batch, totals, objective):
        fault(batch)
        if self.slow >= 1.0:
            print("asleep", flush=True)
        time.sleep(self.slow)
        value = self._error(models, batch) / totals["items"]
        return Loss(spoil(value), {"mse": value.detach()})

    def eval_step(self, models, batch):
        torch.rand(3), np.random.rand(3), random.random()  # training must not notice
        return {"error": self._error(models, batch).double(), "count": batch["mask"].sum()}

    def eval_metrics(self, sums):
        return {"loss": float(sums["error"] / sums["count"])}

    def baselines(self):
        unread("baselines")
        return {}

    def monitor(self, models, batch):
        torch.rand(3), np.random.rand(3), random.random()
        self._error(models, batch)
        return [Event("anomaly", "looked", {"items": len(batch["index"])})]

    def histograms(self, models, batch):
        torch.rand(3), np.random.rand(3), random.random()
        assert not torch.is_grad_enabled() and not models["model"].training
        return {"data/y": batch["y"], "data/error": models["model"](batch["x"])[..., 0] - batch["y"]}


class SlowToPrepare(Toy):
    """Looks through its data for a minute. ``mark``: a file that is there from then on."""

    def __init__(self, mark: str = "") -> None:
        super().__init__()
        self.mark = mark

    def build_data(self, split, batch_size, seed):
        Path(self.mark).touch()
        time.sleep(60)


class WrongOnOneRank(Toy):
    def build_data(self, split, batch_size, seed):
        if os.environ.get("RANK") == "1":
            raise DataError("only rank 1 cannot read this")
        return super().build_data(split, batch_size, seed)


class Endless(BatchSource):
    """A stream that does not know its length."""

    def __init__(self, data: Numbers) -> None:
        self.data = data

    def steps(self, epoch):
        return None

    def iterate(self, epoch, step, rank, world_size, num_workers):
        for number in range(step, 1000):
            yield self.data.read(np.arange(4) + 8 * number + 4 * rank)


class Unending(Toy):
    def build_data(self, split, batch_size, seed):
        return Endless(Numbers(50, split, False)) if split == "train" else None


class OneRankFails(Toy):
    """A hook that raises on rank 1, once that has trained."""

    def __init__(self, hook: str, **options: Any) -> None:
        super().__init__(**options)
        self.hook, self.trained = hook, False

    def loss_step(self, models, batch, totals, objective):
        self.trained = True
        return super().loss_step(models, batch, totals, objective)

    def monitor(self, models, batch):
        self._fail("monitor")
        return []

    def eval_step(self, models, batch):
        self._fail("eval_step")
        return super().eval_step(models, batch)

    def _fail(self, hook: str) -> None:
        if hook == self.hook and self.trained and _rank() == 1:
            raise ValueError("only here")


class Ragged(Toy):
    """Items of several lengths: the loss is a mean over all valid elements of the global batch."""

    ragged = True

    def totals(self, models, batch, objective):
        return {"valid": batch["mask"].sum(), "items": torch.tensor(len(batch["index"]))}

    def loss_step(self, models, batch, totals, objective):
        fault(batch)
        value = self._error(models, batch) / totals["valid"]
        return Loss(spoil(value), {"valid": batch["mask"].sum(), "share": len(batch["index"]) / totals["items"]})


class Checkpointed(Toy):
    """Reentrant checkpointing, whose graph is made in the backward pass only."""

    def _error(self, models, batch, power: int = 2):
        first, *rest = models["model"]
        hidden = torch.utils.checkpoint.checkpoint(nn.Sequential(*rest), first(batch["x"]), use_reentrant=True)
        return ((hidden[..., 0] - batch["y"]).abs() ** power * batch["mask"]).sum()


class Mean(Toy):
    """The mistake of beginners: a mean over whatever is at hand."""

    def loss_step(self, models, batch, totals, objective):
        return Loss(((models["model"](batch["x"])[..., 0] - batch["y"]) ** 2).mean())


class RaggedMean(Ragged):
    def loss_step(self, models, batch, totals, objective):
        return Loss(self._error(models, batch) / batch["mask"].sum())


class Detached(Toy):
    def loss_step(self, models, batch, totals, objective):
        return Loss(super().loss_step(models, batch, totals, objective).value.detach())


class Mindful(Toy):
    """Every call of its loss leaves something behind: in a buffer, in a weight, in a new buffer, in itself."""

    calls = 0

    def build_model(self):
        model = super().build_model()
        model.register_buffer("calls", torch.zeros(()))
        model.register_buffer("last", torch.zeros(()))
        return model

    def loss_step(self, models, batch, totals, objective):
        model = models["model"]
        self.calls += 1
        model[0].bias.requires_grad_(self.calls > 1)
        with torch.no_grad():
            model.calls += 1
            model.last = model.calls * 2
            model[3].bias += 0.01 * self.calls
        return super().loss_step(models, batch, totals, objective)


class Statistics(Ragged):
    """With frozen statistics in the model: buffers, which DDP sends around."""

    def build_model(self):
        model = super().build_model()
        model.register_buffer("mean", torch.full((1,), 0.25, dtype=model[0].weight.dtype))
        return model

    def _error(self, models, batch, power: int = 2):
        mean = next(models["model"].buffers())
        return super()._error(models, batch | {"y": batch["y"] - mean}, power)


class Drawing(Toy):
    """A data set that draws from a global generator, and adds it to the targets if ``used``; also in validation."""

    def __init__(self, draws: str = "torch", used: bool = True, **options: Any) -> None:
        super().__init__(**options)
        self.draws, self.used = draws, used

    def build_data(self, split: str, batch_size: int, seed: int) -> IndexedSource | None:
        source = super().build_data(split, batch_size, seed)
        if source is not None and self.draws:
            source.data = Augmented(source.data, self.draws, self.used)
        return source


class Augmented:
    def __init__(self, data: Numbers, draws: str, used: bool) -> None:
        self.data, self.draws, self.used = data, draws, used

    def __len__(self) -> int:
        return len(self.data)

    def read(self, indices: np.ndarray) -> dict[str, Any]:
        batch, shape = self.data.read(indices), (len(indices), 1)
        if self.draws == "torch":
            drawn = torch.randn(shape).numpy()
        elif self.draws == "numpy":
            drawn = np.random.normal(size=shape)
        else:
            drawn = np.array([[random.gauss(0, 1)] for _ in indices])
        return batch | {"y": (batch["y"] + drawn * self.used).astype(self.data.dtype)}


class Divided(Toy):
    """Draws which items are for training and which for validation, and the first weights, with numpy."""

    def build_data(self, split: str, batch_size: int, seed: int) -> IndexedSource | None:
        order = np.random.permutation(70)
        items = order[:50] if split == "train" else order[50:]
        source = super().build_data("train", batch_size, seed)
        source.data = Chosen(source.data, items)
        return source if split != "test" else None

    def build_model(self) -> nn.Module:
        model = super().build_model()
        with torch.no_grad():
            model[0].weight += torch.from_numpy(np.random.normal(size=(self.width, 4)))
        return model

    def eval_step(self, models, batch):
        FAULTS.setdefault("evaluated", set()).update(batch["index"].tolist())
        return super().eval_step(models, batch)


class Chosen:
    def __init__(self, data: Numbers, items: np.ndarray) -> None:
        self.data, self.items = data, items

    def __len__(self) -> int:
        return len(self.items)

    def read(self, indices: np.ndarray) -> dict[str, Any]:
        return self.data.read(self.items[indices])


class Streams(Toy):
    """Every rank has a stream of its own, of ``lengths[rank]`` batches in each epoch; they know it (``announced``
    batches, or a number for each epoch) or not."""

    def __init__(self, lengths: list[int], announced: int | list[int | None] | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.lengths, self.announced = lengths, announced

    def build_data(self, split: str, batch_size: int, seed: int) -> BatchSource | None:
        source = super().build_data(split, batch_size, seed)
        return Stream(source.data, self.lengths, self.announced) if source and split == "train" else source


class Stream(BatchSource):
    def __init__(self, data: Numbers, lengths: list[int], announced: int | list[int | None] | None) -> None:
        self.data, self.lengths, self.announced = data, lengths, announced

    def steps(self, epoch: int) -> int | None:
        return self.announced[epoch] if isinstance(self.announced, list) else self.announced

    def iterate(
        self, epoch: int, step: int, rank: int, world_size: int, num_workers: int
    ) -> Iterator[dict[str, Any] | None]:
        for number in range(step, self.lengths[rank]):
            yield self.data.read(np.arange(4) + 1000 * epoch + 10 * number + 4 * rank)


class TwoLosses(Toy):
    """Two objectives on the same model, for phases that keep the optimiser."""

    def objectives(self):
        return (Objective("square"), Objective("absolute"))

    def loss_step(self, models, batch, totals, objective):
        fault(batch)
        value = self._error(models, batch, 2 if objective.name == "square" else 1) / totals["items"]
        return Loss(spoil(value), {})


class Unreached(Toy):
    """Layers that no loss reaches: never (``spare``), in some steps (``body``), and for some items (``expert``)."""

    def build_model(self):
        model = nn.ModuleDict({name: nn.Linear(4, 4) for name in ("body", "expert", "spare")})
        model["head"] = nn.Linear(4, 1)
        return model.double() if self.float64 else model

    def loss_step(self, models, batch, totals, objective):
        model, x = models["model"], batch["x"][:, 0]
        model["body"].requires_grad_(FAULTS["this_step"] % 3 != 1)
        x = x + (model["body"](x).detach() if FAULTS["this_step"] % 4 == 2 else model["body"](x))
        mine = batch["index"] % 10 == 3
        if mine.any():
            x = torch.where(mine[:, None], model["expert"](x), x)
        error = model["head"](x)[:, 0] - batch["y"][:, 0]
        return Loss(spoil(error.square().sum() / totals["items"]), {"squares": error.square().sum()})

    def eval_step(self, models, batch):
        return {"error": models["model"]["spare"](batch["x"][:, 0]).sum(), "count": batch["mask"].sum()}


class Gan(Task):
    """Two networks, written as one writes a GAN: a critic with a gradient penalty, and a generator."""

    def __init__(self, items: int = 50, float64: bool = False, repeats: int = 2) -> None:
        self.items, self.float64, self.repeats = items, float64, repeats

    def objectives(self):
        return (Objective("critic", ("critic",), self.repeats), Objective("generator", ("generator",)))

    def build_data(self, split: str, batch_size: int, seed: int) -> IndexedSource | None:
        return IndexedSource(Pairs(self.items, self.float64), batch_size, seed) if split == "train" else None

    def build_model(self):
        models = {
            "generator": nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)),
            "critic": nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)),
        }
        return {name: model.double() if self.float64 else model for name, model in models.items()}

    def loss_step(self, models, batch, totals, objective):
        fault(batch)
        generator, critic, items = models["generator"], models["critic"], totals["items"]
        if objective.name == "generator":
            return Loss(spoil(-critic(generator(batch["z"])).sum() / items), {})
        with torch.no_grad():
            made = generator(batch["z"])
        between = (0.3 * batch["x"] + 0.7 * made).requires_grad_()
        slope = torch.autograd.grad(critic(between).sum(), between, create_graph=True)[0]
        penalty = ((slope.square().sum(1).add(1e-12).sqrt() - 1) ** 2).sum() / items
        gap = (critic(made) - critic(batch["x"])).sum() / items
        return Loss(spoil(gap + 2 * penalty), {"gap": gap, "penalty": penalty})


class Silent(Gan):
    """The generator's loss reaches nothing where a job says so."""

    def loss_step(self, models, batch, totals, objective):
        loss = super().loss_step(models, batch, totals, objective)
        return Loss(loss.value.detach()) if objective.name == "generator" and _here("detached") else loss


class Muon(MuonTask):
    """The task itself, small, in either precision."""

    def __init__(self, float64: bool = False, **options: Any) -> None:
        super().__init__(**dict(hidden_dim=16, critic_steps=2, held_out=0.0, lanes=4) | options)
        self.float64 = float64

    def build_model(self):
        return {name: model.double() if self.float64 else model for name, model in super().build_model().items()}


class GDyNet(GDyNetTask):
    """The task itself, small, in either precision."""

    def __init__(self, float64: bool = False, twice: bool = False, **options: Any) -> None:
        super().__init__(**dict(atom_fea_len=6, n_conv=2, state_len=3, num_gaussians=8, tau=3, epochs=2) | options)
        self.float64, self.one_forward = float64, not twice

    def build_model(self):
        return {name: model.double() if self.float64 else model for name, model in super().build_model().items()}


class Pairs(Numbers):
    def __init__(self, items: int, float64: bool) -> None:
        super().__init__(items, "pairs", float64)

    def read(self, indices: np.ndarray) -> dict[str, Any]:
        unread("train")
        drawn = keyed.normal(self.key, indices, 5).astype(self.dtype)
        return {"index": indices, "x": drawn[:, :2] + 1, "z": drawn[:, 2:]}


# -- faults inside a loss --------------------------------------------------------------------------------------------


def _here(name: str) -> Any:
    """The fault's setting, if it is meant for this rank and step. ``{name: {...}, rank: 1, steps: [4]}``."""
    setting = FAULTS.get(name)
    if setting is None or setting.get("rank", FAULTS["this_rank"]) != FAULTS["this_rank"]:
        return None
    if setting.get("objective", FAULTS.get("this_objective")) != FAULTS.get("this_objective"):
        return None
    return setting if "steps" not in setting or FAULTS["this_step"] in setting["steps"] else None


def fault(batch: dict[str, Any]) -> None:
    """Out of memory, an ordinary exception, or a death, as the job says."""
    if (oom := _here("oom")) is not None and len(batch["index"]) > oom["above"]:
        FAULTS["ooms"] = FAULTS.get("ooms", 0) + 1
        raise torch.OutOfMemoryError(f"injected: {len(batch['index'])} items")
    if _here("crash") is not None:
        raise RuntimeError("injected crash")
    if _here("die") is not None:
        os.kill(os.getpid(), signal.SIGKILL)


def unread(purpose: str) -> None:
    """Data that never come, or cannot be read; ``steps``: after which. ``split``: of which data."""
    if (stall := _here("stall")) is not None and stall.get("split", "train") == purpose:
        Path(stall["mark"]).touch()
        waiting.result(Future())
    if (bad := _here("bad data")) is not None and bad.get("split", "train") == purpose:
        raise DataError("injected: nothing to read")


class _NanGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("nan")


def spoil(value: torch.Tensor) -> torch.Tensor:
    """Make the loss NaN, or infinite with a finite gradient, or its gradient NaN with a finite loss."""
    if (bad := _here("non_finite")) is None:
        return value
    if bad["kind"] == "nan loss":
        return value * float("nan")
    if bad["kind"] == "inf loss":
        return value + float("inf")
    return _NanGradient.apply(value)


# -- a trainer to watch and to hurt ----------------------------------------------------------------------------------


class Ears(Observer):
    """Remembers the events."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []

    def on_event(self, event: Event) -> None:
        self.events.append((event.kind, event.title))


class Probe(Trainer):
    """Records samples, gradients, norms and updates of every step, and does what ``job`` asks at a step."""

    def __init__(self, job: dict[str, Any], ears: Ears) -> None:
        task = globals()[job.get("task", "Toy")](**job.get("task_args", {}))
        super().__init__(task, observers=[ears], **job["config"])
        self.job = job
        self.samples: dict[int, list[int]] = {}
        self.gradients: list[np.ndarray] = []
        self.norms: list[float] = []
        self.updates: list[tuple[int, str]] = []

    def _prepare(self) -> None:
        super()._prepare()
        job, stepper, rank = self.job, self.session.stepper, self.ranks.rank
        FAULTS.clear()
        FAULTS.update(job.get("faults", {}), this_rank=rank, this_step=0)
        if "prefetch" in job:
            self.session.loader.prefetch = job["prefetch"]
        if "loss_scale" in job:
            for group in stepper.groups.values():
                group.scaler = group.scaler or torch.amp.GradScaler("cpu", init_scale=job["loss_scale"])
        if (die := job.get("die_in")) is not None:  # killed at this method of the session, at this step
            real = getattr(self.session, die["method"])

            def killed(step, *arguments):
                if step == die["step"]:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(step, *arguments)

            setattr(self.session, die["method"], killed)
        stepper.step = self._watch_step(stepper.step)
        stepper._clip = self._watch_clip(stepper._clip)
        for optimizer in {id(group): group.optimizer for group in stepper.groups.values()}.values():
            optimizer.register_step_post_hook(
                lambda *_: self.updates.append((FAULTS["this_step"], FAULTS["this_objective"]))
            )
        advance = self.plan.advance

        def advance_and_act(position, *steps):
            advance(position, *steps)
            if position is self.state.position:
                self._act(position.step)

        self.plan.advance = advance_and_act

    def _act(self, step: int) -> None:
        stop = self.job.get("stop_at")
        if stop is not None and step == stop["step"]:
            if stop.get("rank", self.ranks.rank) == self.ranks.rank:
                self.request_stop("test")
            if stop.get("at_once", True):
                self.agenda.sync_at = step
        if self.job.get("poison_at") == step:  # what an update with a bad optimiser would do
            with torch.no_grad():
                next(iter(self.models["model"].parameters())).view(-1)[0] = float("inf")

    def _watch_step(self, step):
        def watched(objective, batch, number, repeat=0, **more):
            FAULTS.update(this_step=number + 1, this_objective=objective.name)  # steps as people count
            if batch is not None:
                name = next(name for name in ("event", "pair", "index") if name in batch)
                self.samples[number + 1] = batch[name].tolist()
            return step(objective, batch, number, repeat, **more)

        return watched

    def _watch_clip(self, clip):
        def watched(group):
            if self.job.get("gradients"):
                self.gradients.append(torch.cat([p.grad.flatten() for p in group.params]).double().numpy().copy())
            norm = clip(group)
            self.norms.append(float(norm))
            return norm

        return watched


def train(job: dict[str, Any]) -> dict[str, Any]:
    """One run on this rank. Keys of a job: task, task_args, config, faults, disk, stop_at, signal_at, gradients, ..."""
    torch.set_num_threads(1)
    ears = Ears()
    FAULTS.clear()
    probe = Probe(job, ears)
    result: dict[str, Any] = {"error": None, "outcome": None, "reason": "", "step": None, "by_signal": None}
    # a full collection takes as long as the rest of a toy run
    patience = mock.patch.multiple("accel_train.train.control", GRACE_S=0.3, TELL_S=0.1)
    with disk_faults(job.get("disk")), mock.patch("gc.collect"), mock.patch.dict(os.environ, ON_CPU), patience:
        try:
            done = probe.fit()
            result.update(outcome=done.outcome, reason=done.reason, step=done.step, by_signal=done.by_signal,
                          best=done.best, metrics=done.metrics)  # fmt: skip
        except KeyboardInterrupt as error:
            result["error"] = ("KeyboardInterrupt", str(error))
        except Exception as error:
            if job.get("raise"):
                raise
            result["error"] = (type(error).__name__, str(error))
    if hasattr(probe, "session"):
        weights = {f"{n}.{k}": v for n, m in probe.models.items() for k, v in m.state_dict().items()}
        result.update(
            weights={name: value.double().numpy().copy() for name, value in weights.items()},
            micro_batch_size=probe.session.stepper.micro_batch_size,
            progress=probe.state.progress(),
            scales=[g.scaler.get_scale() for g in probe.session.stepper.groups.values() if g.scaler is not None],
        )
    result.update(
        samples=probe.samples, gradients=probe.gradients, norms=probe.norms, updates=probe.updates,
        events=ears.events, ooms=FAULTS.get("ooms", 0),
    )  # fmt: skip
    return result


def kill_at_checkpoints(job: dict[str, Any], times: int = 3) -> None:
    """Start the job and kill it as soon as it has another checkpoint, again and again."""
    folder = Path(job["config"]["output_dir"])
    for _ in range(times):
        child = Child(job)
        before = steps_saved(folder)
        wait_for(lambda b=before, c=child: steps_saved(folder) != b or not c.alive(), what="a checkpoint")
        child.kill()


# -- faults of the disk ----------------------------------------------------------------------------------------------


def _full(real, steps: list[int]):
    """Raises "no space left" at these steps, having left half a file where there is a path to one."""

    def call(*arguments, **named):
        if FAULTS.get("this_step") not in steps:
            return real(*arguments, **named)
        for argument in arguments:
            if isinstance(argument, str | Path):
                with contextlib.suppress(OSError):
                    Path(argument).write_bytes(b"half a fi")
        raise OSError(errno.ENOSPC, "No space left on device (injected)")

    return call


DISK_PLACES = {
    "weights": "accelerate.utils.other.safe_save_file",
    "optimizer": "torch.save",
    "progress": "accel_train.run.folder.write_json",
    "manifest": "accel_train.run.checkpoint.write_manifest",
    "flush": "accel_train.system.writing.flush",
    "folder": "accel_train.run.checkpoint.CheckpointFolder.begin",
    "best model": "accel_train.run.weights.replace_folder",
}


@contextlib.contextmanager
def disk_faults(setting: dict[str, Any] | None) -> Iterator[None]:
    """``place``: where; ``steps``: when; ``rank``: only there. ``slow``: seconds a save takes longer."""
    if setting is None or setting.get("rank", _rank()) != _rank():
        yield
        return
    with contextlib.ExitStack() as patches:
        if (place := setting.get("place")) == "size limit":
            patches.enter_context(_file_size_limit(setting["steps"]))
        elif place is not None:
            owner, _, name = DISK_PLACES[place].rpartition(".")
            real = getattr(_resolve(owner), name)
            patches.enter_context(mock.patch(DISK_PLACES[place], _full(real, setting["steps"])))
        if slow := setting.get("slow"):
            for target in (
                "accel_train.system.writing.flush",
                "accel_train.run.checkpoint.write_manifest",
                "torch.save",
            ):
                patches.enter_context(_slowed(target, slow))
        yield


def _rank() -> int:
    return int(os.environ.get("RANK", 0))


def _resolve(path: str) -> Any:
    module, rest = sys.modules.get(path), []
    while module is None:
        path, _, last = path.rpartition(".")
        rest.insert(0, last)
        module = sys.modules.get(path)
    for name in rest:
        module = getattr(module, name)
    return module


@contextlib.contextmanager
def _slowed(target: str, seconds: float) -> Iterator[None]:
    owner, _, name = target.rpartition(".")
    real = getattr(_resolve(owner), name)

    def slowly(*arguments, **named):
        time.sleep(seconds * random.SystemRandom().random())
        return real(*arguments, **named)

    with mock.patch(target, slowly):
        yield


@contextlib.contextmanager
def _file_size_limit(steps: list[int]) -> Iterator[None]:
    """The real thing: during ``save_state`` no file may grow beyond 600 bytes."""
    from accelerate import Accelerator

    real = Accelerator.save_state

    def limited(self, *arguments, **named):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        if FAULTS["this_step"] in steps:
            resource.setrlimit(resource.RLIMIT_FSIZE, (600, hard))
        try:
            return real(self, *arguments, **named)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    with mock.patch.object(Accelerator, "save_state", limited):
        yield


# -- processes -------------------------------------------------------------------------------------------------------


def _python_path() -> str:
    return os.pathsep.join([str(HERE), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def _context():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["support", *IMPORTED_LATE])
    with mock.patch.dict(os.environ, ON_CPU | {"PYTHONPATH": _python_path()}):
        forkserver.ensure_running()
    return context


class Child:
    """One training in a process of its own, which may be signalled or killed. Several make a world of ranks."""

    def __init__(self, job: dict[str, Any], rank: int = 0, world_size: int = 1, meeting: str = "") -> None:
        context = _context()
        self._mine, theirs = context.Pipe()
        arguments = (theirs, rank, world_size, meeting)
        self.process = context.Process(target=_serve, args=arguments)
        self.process.start()  # not a daemon: those may have no loader processes of their own
        atexit.register(self.process.kill)
        theirs.close()
        self._mine.send(job)

    @property
    def pid(self) -> int:
        return self.process.pid

    def send(self, job: dict[str, Any] | None) -> None:
        self._mine.send(job)

    def ready(self, timeout: float = 0.0) -> bool:
        return self._mine.poll(timeout)

    def result(self, timeout: float = 60.0) -> dict[str, Any]:
        if not self._mine.poll(timeout):
            self.kill()
            raise TimeoutError("the run hangs")
        answer = self._mine.recv()
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return answer

    def kill(self) -> None:
        self.process.kill()
        self.process.join(10)

    def alive(self) -> bool:
        return self.process.is_alive()


def _serve(pipe, rank: int, world_size: int, meeting: str) -> None:
    """Run jobs until None comes."""
    os.environ.update(ON_CPU)
    if world_size > 1:
        import datetime

        import torch.distributed as dist

        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), MASTER_ADDR="127.0.0.1",
                          MASTER_PORT="29500")  # fmt: skip
        dist.init_process_group(
            "gloo", init_method=f"file://{meeting}", rank=rank, world_size=world_size,
            timeout=datetime.timedelta(seconds=40),
        )  # fmt: skip
    with open(os.devnull, "w") as quiet, contextlib.suppress(EOFError):
        while (job := pipe.recv()) is not None:
            with contextlib.redirect_stdout(None if job.get("loud") else quiet):
                try:
                    answer = train(job)
                except BaseException:
                    answer = traceback.format_exc()
            pipe.send(answer)
            if job.get("leave"):  # as a program does after an error
                os._exit(1 if isinstance(answer, str) or answer["error"] else 0)


class Team:
    """Ranks that talk through gloo and run one job after the other."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.members: list[Child] = []
        self._folder = ""

    def start(self, *jobs: dict[str, Any]) -> list[Child]:
        """Give every rank its job (or all the same one), without waiting."""
        jobs = jobs * self.size if len(jobs) == 1 else jobs
        if not self.members:
            self._folder = tempfile.mkdtemp()
            meeting = os.path.join(self._folder, "meeting")
            self.members = [Child(job, rank, self.size, meeting) for rank, job in enumerate(jobs)]
        else:
            for member, job in zip(self.members, jobs, strict=True):
                member.send(job)
        return self.members

    def run(self, *jobs: dict[str, Any], timeout: float = 60.0) -> list[dict[str, Any]]:
        results = []
        try:
            results = [member.result(timeout) for member in self.start(*jobs)]
        finally:
            if not results or any(result["error"] for result in results):
                self.close()  # who knows whether they still understand each other
        return results

    def close(self) -> None:
        for member in self.members:
            member.kill()
        self.members = []
        shutil.rmtree(self._folder, ignore_errors=True)


_teams: dict[int, Team] = {}


def team(size: int) -> Team:
    """The team of this size that lives as long as the tests."""
    return _teams.setdefault(size, Team(size))


def run(job: dict[str, Any], ranks: int = 1) -> list[dict[str, Any]]:
    """The results of all ranks; one rank runs in this process."""
    if ranks > 1:
        return team(ranks).run(job)
    try:
        return [train(job)]
    finally:  # other tests fork this process to make ranks of it, which must not take themselves for single
        AcceleratorState._reset_state(reset_partial_state=True)


def launch(processes: int, *arguments: str, **named: Any) -> subprocess.Popen:
    """``accelerate launch -m accel_train ...`` in a session of its own."""
    config = ROOT / "accelerate_configs" / ("cpu.yaml" if processes == 1 else f"cpu_{processes}proc.yaml")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), "-m", "accel_train"]
    return program([*command, *arguments], **named)


def program(command: list[str], **named: Any) -> subprocess.Popen:
    environment = os.environ | ON_CPU | {"PYTHONPATH": _python_path()}
    named = {"stdin": subprocess.DEVNULL, "start_new_session": True} | named
    return subprocess.Popen(
        command, env=environment | named.pop("env", {}), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        **named,
    )  # fmt: skip


def wait_for(condition, seconds: float = 60.0, what: str = "") -> Any:
    """The first true value of ``condition()``."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.01)
    raise TimeoutError(f"waited in vain for {what or condition}")


# -- looking at runs -------------------------------------------------------------------------------------------------


def config(folder: Path | str, **settings: Any) -> dict[str, Any]:
    """Settings that fit the toys: 7 steps per epoch of 50 items, the last with two items."""
    defaults = dict(output_dir=str(folder), max_steps=24, global_batch_size=8, learning_rate=0.01, logging_steps=5,
                    eval_steps=6, save_steps=None, num_workers=0, report_to=[])  # fmt: skip
    return defaults | settings


def records(folder: Path | str, clock: bool = False) -> list[dict[str, Any]]:
    lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if clock or k not in CLOCK} for line in lines]


def weights_files(folder: Path | str) -> dict[str, bytes]:
    """The bytes of every exported tensor file, last and best."""
    found = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).glob("*/*.safetensors"))}
    assert "model" in {name.split("/")[0] for name in found}, f"nothing was exported to {folder}"
    return found


def assert_same_run(one: Path | str, other: Path | str) -> None:
    """Bit for bit the same weights, and the same history."""
    assert records(one) == records(other)
    assert weights_files(one) == weights_files(other)


def distance(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    """Largest difference of a tensor relative to its largest element."""
    assert one.keys() == other.keys()
    return max(float(np.abs(one[k] - other[k]).max() / max(np.abs(other[k]).max(), 1e-12)) for k in one)


def samples(results: list[dict[str, Any]]) -> dict[int, list[int]]:
    """Items of every step over all ranks, in rank order."""
    steps = sorted({step for result in results for step in result["samples"]})
    return {step: [i for result in results for i in result["samples"].get(step, [])] for step in steps}


def damaged(folder: Path | str) -> list[str]:
    """What is wrong with checkpoints under a good name: must be nothing at any moment."""
    checkpoints = CheckpointFolder(Path(folder) / "checkpoints")
    return [f"{step}: {reason}" for step in checkpoints.steps() if (reason := verify(checkpoints.path(step)))]


def steps_saved(folder: Path | str) -> list[int]:
    return CheckpointFolder(Path(folder) / "checkpoints").steps()
