"""Toy tasks: small, exact, each with one property or one mistake; and small versions of two real ones."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from accel_train import BatchSource, IndexedSource, Loss, Objective, Task, from_dataset, from_iterable, keyed
from accel_train.errors import DataError
from accel_train.task import Event, Gathers
from accel_train.tasks.collatz.task import CollatzTask
from accel_train.tasks.gdynet.task import GDyNetTask
from accel_train.tasks.muon.task import MuonTask
from accel_train.tasks.sherlock.task import SherlockTask
from accel_train.tasks.tcn.task import TCNTask
from support.faults import FAULTS, NeedsMemory, fault, here, no_memory, rank, spoil, unread
from support.shots import InMemory, shot
from support.stimuli import Film, FilmItems


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
    """Reentrant checkpointing, whose graph is made in the backward pass only."""

    def _error(self, models, batch, power: int = 2):
        first, *rest = models["model"]
        hidden = checkpoint(nn.Sequential(*rest), first(batch["x"]), use_reentrant=True)
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
        assert source is not None
        source.data = Chosen(source.data, items)
        return source if split != "test" else None

    def build_model(self) -> nn.Sequential:
        model = super().build_model()
        with torch.no_grad():
            next(model.parameters()).add_(torch.from_numpy(np.random.normal(size=(self.width, 4))))
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


class Brought(Toy):
    """On data as people have them: a list of dicts, or the same as ``streams`` of uneven length; with noise."""

    def __init__(self, streams: int = 0, held_out: int = 21, **options: Any) -> None:
        super().__init__(**options)
        self.streams, self.held_out = streams, held_out

    def build_data(self, split: str, batch_size: int, seed: int) -> BatchSource | None:
        source = super().build_data(split, batch_size, seed)
        if source is None:
            return None
        items = [{name: v[0] for name, v in source.data.read(np.array([i])).items()} for i in range(len(source.data))]
        items = items if split == "train" else items[: self.held_out]
        augment = noisy if split == "train" else None
        if not self.streams:
            return from_dataset(items, batch_size, seed, shuffle=split == "train", augment=augment)
        cuts = np.linspace(0, 1, self.streams + 1) ** 2 * len(items)
        streams = [items[int(a) : int(b)] for a, b in pairwise(cuts)]
        return from_iterable([Shuffled(each) for each in streams], batch_size, seed, augment=augment)


def noisy(item: dict[str, Any], generator: np.random.Generator) -> dict[str, Any]:
    return item | {"y": (item["y"] + generator.normal()).astype(item["y"].dtype)}


class Shuffled:
    """Items in another order in every epoch."""

    def __init__(self, items: list[Any]) -> None:
        self.items, self.epoch = items, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[Any]:
        return (self.items[i] for i in np.random.default_rng((3, self.epoch)).permutation(len(self.items)))


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


class Silent(Gan):
    """The generator's loss reaches nothing where a job says so."""

    def loss_step(self, models, batch, totals, objective):
        loss = super().loss_step(models, batch, totals, objective)
        return Loss(loss.value.detach()) if objective.name == "generator" and here("detached") else loss


class EitherPrecision:
    """For a task: its models in float64 if its attribute of that name says so."""

    float64: bool

    def build_model(self, train):
        models: Any = super().build_model(train)  # pyright: ignore[reportAttributeAccessIssue]
        if not self.float64:
            return models
        return {name: model.double() for name, model in models.items()} if isinstance(models, dict) else models.double()


class Muon(EitherPrecision, MuonTask):
    """The task itself, small, in either precision."""

    def __init__(self, float64: bool = False, **options: Any) -> None:
        small: dict[str, Any] = dict(hidden_dim=16, critic_steps=2, held_out=0.0, lanes=4)
        super().__init__(**small | options)
        self.float64 = float64


class Collatz(EitherPrecision, CollatzTask):
    """The task itself, small, in either precision."""

    def __init__(self, float64: bool = False, **options: Any) -> None:
        small: dict[str, Any] = dict(
            d_model=8, num_layers=1, nhead=2, dim_feedforward=8, max_len=48, prefix=16, eval_rows=16
        )
        super().__init__(**small | options)
        self.float64 = float64


class GDyNet(EitherPrecision, GDyNetTask):
    """The task itself, small, in either precision."""

    def __init__(self, float64: bool = False, **options: Any) -> None:
        small: dict[str, Any] = dict(atom_fea_len=6, n_conv=2, state_len=3, num_gaussians=8, tau=3, epochs=2)
        super().__init__(**small | options)
        self.float64 = float64


class Disruptions(EitherPrecision, TCNTask):
    """The tcn task, small, on shots in memory, in either precision."""

    def __init__(self, float64: bool = False, **options: Any) -> None:
        small: dict[str, Any] = dict(
            nsub=40, twarn_ms=30.0, levels=2, nhid=4, kernel_size=3, dilation_base=3, nrecept_target=13, dropout=0.0
        )
        super().__init__("in memory", **small | options)
        self.float64 = float64
        self.memory = InMemory(
            [shot(i, 30.0 + i if i % 2 else None, samples=120, stop=80 + i if i % 2 else 110,
                  split="train" if i < 8 else "validation") for i in range(12)]
        )  # fmt: skip

    @property
    def store(self) -> Any:
        return self.memory


class Brains(EitherPrecision, SherlockTask):
    """The sherlock task, small, on a film in memory, in either precision."""

    def __init__(self, float64: bool = False, **options: Any) -> None:
        small: dict[str, Any] = dict(
            window_trs=3, lags=4, latent=6, encoder_widths=[6], fusion_widths=[8], decoder_widths=[8], subject_rank=2,
            dropout=0.0,
        )  # fmt: skip
        super().__init__("in memory", **small | options)
        self.float64, self.film = float64, Film()

    @property
    def prepared(self) -> Any:
        return self.film

    def items(self, split: str) -> Any:
        names = [modality.name for modality in self.modalities]
        items = FilmItems(self.film, split, self.window_trs, self.lags, names, self.target == "average")
        return items if len(items) else None


class Pairs(Numbers):
    def __init__(self, items: int, float64: bool) -> None:
        super().__init__(items, "pairs", float64)

    def read(self, indices: np.ndarray) -> dict[str, Any]:
        unread("train")
        drawn = keyed.normal(self.key, indices, 5).astype(self.dtype)
        return {"index": indices, "x": drawn[:, :2] + 1, "z": drawn[:, 2:]}
