"""Everything that ``accel-train tcn report`` finds: chosen on validation shots, judged on test shots."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from accel_train.tasks.tcn import baselines
from accel_train.tasks.tcn.labels import LabelSettings
from accel_train.tasks.tcn.metrics import ShotTable
from accel_train.tasks.tcn.model import TCN
from accel_train.tasks.tcn.operating import OperatingPoint
from accel_train.tasks.tcn.report.scores import Logits, Scores, moment_spacing, moments, of_network, of_trivial
from accel_train.tasks.tcn.robustness import FAILURES
from accel_train.tasks.tcn.shots import Shots
from accel_train.tasks.tcn.steps import diagnostics, prior_shift, reliability, step_intervals
from accel_train.tasks.tcn.windows import Windows

RESAMPLES = 2000  # of the shots, for intervals
NETWORK = "network"
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Data:
    """The three splits of a folder, cut as the network is trained."""

    folder: str
    store: Shots
    train: Windows
    validation: Windows
    test: Windows
    balance: str
    negatives: float | None

    @property
    def labels(self) -> LabelSettings:
        return self.test.settings

    @property
    def receptive_field(self) -> int:
        return self.test.receptive_field

    def shift(self, share: float) -> float:
        """What makes logits of the network probabilities where a ``share`` of the steps is positive, that of the
        training split: its loss has seen another one."""
        seen = {"batch": 1.0, "none": self._odds, "dataset": self._odds * (1 - share) / share}[self.balance]
        return prior_shift(share, seen / (1 + seen))

    @property
    def _odds(self) -> float:
        """Of a positive step in the batches of training."""
        counted, positive = self.train.counted, self.train.positive
        weight = np.ones(len(positive))
        if self.negatives is not None:
            has = positive > 0
            weight = np.where(has, 1 / has.sum(), self.negatives / (~has).sum())
        return float(weight @ positive / (weight @ (counted - positive)))


@dataclass(frozen=True, eq=False)
class Row:
    """One model, judged.

    kind: ``network``, ``trivial`` or ``failure``.
    metrics: of shots and steps, each with ``NAME/low`` and ``NAME/high``.
    """

    kind: str
    point: OperatingPoint
    table: ShotTable
    metrics: dict[str, float]


@dataclass(frozen=True, eq=False)
class Found:
    """What is known in the end. ``scores``: of the network on the test split."""

    data: Data
    rows: dict[str, Row]
    scores: Scores
    shift: float
    seed: int
    warnings: list[str]

    @property
    def network(self) -> Row:
        return self.rows[NETWORK]

    @property
    def moments_every_ms(self) -> float:
        """How often trivial models look at a test shot."""
        shots = self.data.test.shots
        return moment_spacing(shots, self.data.labels) * shots[0].dt_ms

    def diagnostics(self) -> dict[str, float]:
        parts = self.scores.by_distance.sum(0), self.scores.by_position.sum(0)
        return diagnostics(*parts, self.network.point.threshold)

    def reliability(self) -> dict[str, np.ndarray]:
        return reliability(self.scores.steps, self.shift, self.seed)


def find(data: Data, model: TCN, nsub: int, seed: int, say: Callable[[str], None]) -> Found:
    """All rows. The operating point of each model is chosen on validation shots; only then does it see the test.

    Args:
        model: in evaluation mode, on the device to use.
        nsub: samples that go through it at once.
        say: is told what is being done.

    Raises:
        UserError: no threshold can be chosen, for want of a disruption. DataError: a score that is not finite.
    """
    rows: dict[str, Row] = {}
    of_test: dict[str, Scores] = {}
    for each in _candidates(data, model, nsub, seed):
        say(each.name)
        point = rows[NETWORK].point if each.validation is None else _choose(data.validation, each.validation)
        scores = of_test[each.kind] = Scores.of(data.test, each.test)
        table = ShotTable.of(scores.shots, point.rule)
        metrics = step_intervals(scores.steps, point.threshold, each.shift, seed, RESAMPLES)
        rows[each.name] = Row(each.kind, point, table, metrics | table.intervals(seed, RESAMPLES))
    shift = data.shift(float(model.get_buffer("positive_share")))
    return Found(data, rows, of_test[NETWORK], shift, seed, _cautions(data, model, rows))


@dataclass(frozen=True)
class _Candidate:
    """A model to judge. ``validation`` is None where sensors fail: nobody chooses a rule for that."""

    kind: str
    name: str
    validation: Logits | None
    test: Logits
    shift: float


def _candidates(data: Data, model: TCN, nsub: int, seed: int) -> Iterator[_Candidate]:
    share = float(model.get_buffer("positive_share"))
    network, shift = of_network(model, data.store, nsub), data.shift(share)
    yield _Candidate(NETWORK, NETWORK, network, network, shift)
    splits = (data.train, data.validation, data.test)
    train, *others = (moments(data.store, each.shots, data.receptive_field, data.labels) for each in splits)
    for name in baselines.names():
        fitted = baselines.fit(name, train)
        logits = [of_trivial(fitted, shown, data.receptive_field) for shown in others]
        yield _Candidate("trivial", name, logits[0], logits[1], prior_shift(share))  # both classes weigh the same
    for name, failure in FAILURES.items():
        if failure.channels < data.store.channels:
            failing = of_network(model, data.store, nsub, failure, seed)
            yield _Candidate("failure", name, None, failing, shift)


def _choose(validation: Windows, logits: Logits) -> OperatingPoint:
    scores = Scores.of(validation, logits)
    return OperatingPoint.choose(scores.shots, scores.steps.sum(0))


# -- what speaks against believing it --------------------------------------------------------------------------------


def _cautions(data: Data, model: TCN, rows: dict[str, Row]) -> list[str]:
    network = rows[NETWORK]
    sizes = network.table.sizes()
    found: list[str] = []
    if not np.array_equal(model.mean.cpu().numpy(), data.store.mean.astype(np.float32)):
        found.append(
            f"the network was trained on other data than those of {data.folder} (other means of channels): make "
            "sure that it has not seen these test shots"
        )
    for kind, what in (("disruptive", "a disruption: nothing is known of true alarms"),
                       ("clear", "a clear end: nothing is known of false alarms")):  # fmt: skip
        if not sizes[f"shots_{kind}"]:
            found.append(f"no test shot has {what}")
        elif sizes[f"shots_{kind}"] < 20:
            found.append(f"only {sizes[f'shots_{kind}']:g} test shots are {kind}: look at the intervals")
    if sizes["shots_unscored"]:
        found.append(
            f"{sizes['shots_unscored']:g} test shots are shorter than the receptive field, so that no alarm can sound "
            f"in them; the first is {data.test.too_short[0].number}"
        )
    found += [
        f"{name!r} alone, without any signal, tells disruptions from clear shots, and the network may have learned "
        f"that (AUC {rows[name].metrics['auc']:.2f})"
        for name in baselines.LEAKS
        if name in rows and rows[name].metrics["auc/low"] > 0.5
    ]
    return found + [
        f"{name} is as good as the network by AUC ({row.metrics['auc']:.3f})"
        for name, row in rows.items()
        if row.kind == "trivial" and row.metrics["auc"] >= network.metrics["auc"]
    ]
