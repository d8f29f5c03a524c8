"""Toy tasks: small, exact, each with one property or one mistake."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from accel_train import IndexedSource, Loss, Objective, Task, keyed
from accel_train.errors import DataError
from accel_train.task import Event, Gathers
from support.faults import FAULTS, NeedsMemory, fault, no_memory, rank, spoil, unread


class Numbers:
    """Items that are a pure function of their index; lengths from 1 to 7 if ``ragged``."""

    def __init__(self, items: int, purpose: str, float64: bool, ragged: bool = False, slow: float = 0.0) -> None:
        self.items, self.key, self.ragged, self.slow = items, keyed.key(7, purpose), ragged, slow
        self.purpose = purpose
        self.dtype = np.float64 if float64 else np.float32

    def __len__(self) -> int:
        return self.items

    def fingerprint(self) -> dict[str, Any]:
        return {"numbers": [self.purpose, self.ragged]}

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


def draw() -> None:
    """From every global generator; training must not notice."""
    torch.rand(3)
    np.random.rand(3)
    random.random()


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

    def build_model(self) -> nn.Sequential:
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
        draw()
        return {"error": self._error(models, batch).double(), "count": batch["mask"].sum()}

    def eval_metrics(self, sums):
        return {"loss": float(sums["error"] / sums["count"])}

    def baselines(self):
        unread("baselines")
        return {}

    def monitor(self, models, batch):
        draw()
        self._error(models, batch)
        return [Event("anomaly", "looked", {"items": len(batch["index"])})]

    def histograms(self, models, batch):
        draw()
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
        if hook == self.hook and self.trained and rank() == 1:
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
    """Reentrant checkpointing, whose graph is made in the backward pass only; if ``twice``, two of the same layers."""

    def __init__(self, twice: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.twice = twice

    def _error(self, models, batch, power: int = 2):
        if not torch.is_grad_enabled():
            return super()._error(models, batch, power)
        first, *rest = models["model"]
        last = nn.Sequential(*rest)
        hidden = checkpoint(last, first(batch["x"]), use_reentrant=True)
        if self.twice:
            hidden = hidden + checkpoint(last, first(batch["x"].square()), use_reentrant=True)
        return ((hidden[..., 0] - batch["y"]).abs() ** power * batch["mask"]).sum()


class Scheduled(Toy):
    """A penalty grows with the step; the hook freezes and frees layers, shakes a bias, and a buffer follows."""

    def build_model(self):
        model: Any = super().build_model()
        model.register_buffer("follower", model[0].weight.detach().clone())
        return model

    def loss_step(self, models, batch, totals, objective):
        loss, share = super().loss_step(models, batch, totals, objective), len(batch["index"]) / totals["items"]
        penalty = objective.step * share * models["model"][0].weight.square().mean()
        return Loss(loss.value + 0.01 * penalty, {"at": objective.step * share, "of": objective.epoch * share})

    def after_step(self, models: Any, step: int) -> None:
        first, _, _, last = model = models["model"]
        first.weight.requires_grad_(not 5 <= step < 12)
        if step == 14:  # only once: a resume must know
            first.bias.requires_grad_(False)
        last.bias.add_(0.01 * torch.randn(1))
        model.follower.lerp_(first.weight, 0.1)


class Ranked(Toy, Gathers):
    """An AUC by scikit-learn. ``fails``: on the first rank, which has all rows."""

    def __init__(self, fails: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.fails = fails

    def eval_gather(self, models, batch):
        score = models["model"](batch["x"])[:, 0, 0]
        return {"score": score, "is/high": batch["y"][:, 0] > 0, "index": batch["index"], "pair": batch["x"][:, 0, :2]}

    def eval_step(self, models, batch):
        return {"n": len(batch["score"]), "high": batch["is/high"].sum(), **super().eval_step(models, batch)}

    def eval_gathered(self, arrays):
        from sklearn.metrics import roc_auc_score

        if self.fails and FAULTS.get("this_step"):
            raise ValueError("rank 0 cannot")
        draw()
        assert all(isinstance(array, np.memmap) for array in arrays.values())
        assert arrays["index"].tolist() == list(range(len(arrays["index"]))) and arrays["pair"].shape[1:] == (2,)
        return {"auc": roc_auc_score(arrays["is/high"], arrays["score"]), "rows": len(arrays["index"])}


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


class Outputs(Ragged):
    """Runs the model before the totals, which are of its outputs. In two buckets of gradients, for DDP."""

    def build_model(self):
        model = nn.Sequential(nn.Linear(4, 512), nn.Tanh(), nn.Linear(512, 512), nn.Tanh(), nn.Linear(512, 1))
        return model.double()

    def split(self, batch, limit):
        no_memory("split", min(limit, len(batch["index"])))
        return super().split(batch, limit)

    def forward_step(self, models: dict[str, Any], batch, objective):
        no_memory("forward", len(batch["index"]))
        hidden = NeedsMemory.apply(models["model"][0](batch["x"]))
        return {"made": models["model"][1:](hidden)[..., 0]}

    def totals(self, models, batch, objective):
        return {"large": (1 + batch["made"].square() * batch["mask"]).sum()}

    def loss_step(self, models, batch, totals, objective):
        no_memory("loss", len(batch["index"]))
        return Loss(((batch["made"] - batch["y"]).square() * batch["mask"]).sum() / totals["large"])


class Communicating(Toy):
    """Ranks may wait for each other in a forward pass."""

    def build_model(self):
        model = super().build_model()
        model.communicates = True  # pyright: ignore[reportArgumentType]
        return model


class Statistics(Ragged):
    """With frozen statistics in the model: buffers, which DDP sends around."""

    def build_model(self):
        model = super().build_model()
        model.register_buffer("mean", torch.full((1,), 0.25, dtype=next(model.parameters()).dtype))
        return model

    def _error(self, models, batch, power: int = 2):
        mean = next(models["model"].buffers())
        return super()._error(models, batch | {"y": batch["y"] - mean}, power)


class Normed(Ragged):
    """With BatchNorm, whose running statistics are those of what went through."""

    def build_model(self):
        model = super().build_model()
        model[1] = nn.Sequential(nn.Flatten(0, -2), nn.BatchNorm1d(self.width), nn.Tanh())
        return model

    def _error(self, models, batch, power: int = 2):
        made = models["model"](batch["x"]).view_as(batch["y"])
        return ((made - batch["y"]).abs() ** power * batch["mask"]).sum()


class Sore(Toy):
    """Items whose share is not finite, and reaches no parameter if ``detached``; wherever they are computed."""

    def __init__(self, detached: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.detached = detached

    def loss_step(self, models, batch, totals, objective):
        value, terms = super().loss_step(models, batch, totals, objective)
        if (batch["index"] % 17 == 5).any():
            value = (value.detach() if self.detached else value) * float("nan")
        return Loss(value, terms)


class Grouped(Toy):
    """The first layer learns at ``factor`` of the rate, biases have an option of their own."""

    def __init__(self, factor: float = 0.1, **options: Any) -> None:
        super().__init__(**options)
        self.factor = factor

    def parameter_options(self, name, parameter):
        slow = {"lr_factor": self.factor} if name.startswith("model.0.") else {}
        return slow | ({"weight_decay": 0.0} if parameter.ndim < 2 else {})


def sawtooth(steps_done: int, base: float, *, period: int = 5) -> float:
    return base * (1 - steps_done % period / period)


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
