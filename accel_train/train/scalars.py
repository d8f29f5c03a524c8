"""What the loop remembers between two synchronisation points, and the all-reduce that makes it known to all ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import Tensor

from accel_train.train.world import Ranks

GRAD_NORM = "grad_norm"


@dataclass(frozen=True)
class BadStep:
    """A step that no rank applied, because a value or the gradient was not finite."""

    step: int
    objective: str
    names: tuple[str, ...]  # which values; only "grad_norm" if the loss itself was finite


@dataclass
class Votes:
    """What a rank has to say at a synchronisation point; and, summed over the ranks, what they say together."""

    events: float = 0.0  # there is something that observers should hear of
    stop: float = 0.0
    by_signal: float = 0.0
    save: float = 0.0  # somebody asked for it
    save_by_clock: float = 0.0  # rank 0 knows
    written: float = 0.0  # a checkpoint that was begun before; rank 0 knows
    items: float = 0.0  # since the last time
    waited: float = 0.0  # s for data, of rank 0
    step_seconds: float = 0.0  # of rank 0
    lost_folder: float = 0.0  # another run has it; only rank 0 looks


class StepScalars:
    """Scalars of every step since the last log line.

    ``add`` only appends unread device tensors. ``exchange`` reads them, sums them over ranks together with the votes,
    and keeps them as plain floats until ``means`` turns them into one log record.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.names: dict[str, list[str]] = {}
        self._unread: dict[str, list[tuple[int, dict[str, Tensor], Tensor]]] = {}
        self._rows: dict[str, list[list[float]]] = {}
        self.skipped = 0  # since the last log line
        self.everyone: list[list[float]] = []  # what each rank said of itself in the last exchange

    def add(self, objective: str, step: int, values: dict[str, Tensor], norm: Tensor) -> None:
        self._unread.setdefault(objective, []).append((step, values, norm))

    def exchange(self, votes: Votes, own: Sequence[float] = ()) -> tuple[Votes, list[BadStep]]:
        """Sum the votes and every unread row over all ranks. Every rank must have stepped the same objectives.

        Args:
            own: what all ranks should know of each; equally many of every rank.
        """
        flat, layout = [float(vote) for vote in astuple(votes)], []
        at = len(flat)
        flat += self._in_its_place(own)
        end = len(flat)
        for objective, rows in self._unread.items():
            names = self._agree_on_names(objective, rows)
            layout.append((objective, names, [step for step, _, _ in rows]))
            flat.extend(self._read(rows, names))
        self._unread = {}
        if self.ranks.world_size > 1:
            flat = self.ranks.host_sum(torch.tensor(flat, dtype=torch.float64)).tolist()
        summed = Votes(*flat[:at])
        self.everyone = [flat[i : i + len(own)] for i in range(at, end, max(len(own), 1))]
        at = end
        bad: list[BadStep] = []
        for objective, names, steps in layout:
            kept = self._rows.setdefault(objective, [])
            for step in steps:
                row = flat[at : at + len(names)]
                at += len(names)
                wrong = tuple(name for name, value in zip(names, row, strict=True) if not math.isfinite(value))
                if wrong:
                    bad.append(BadStep(step, objective, wrong))
                else:
                    kept.append(row)
        self.skipped += len(bad)
        return summed, sorted(bad, key=lambda b: b.step)

    def _in_its_place(self, own: Sequence[float]) -> list[float]:
        """Zeros for the other ranks, so that a sum over all ranks has what is known of each."""
        before, after = self.ranks.rank, self.ranks.world_size - self.ranks.rank - 1
        return [*[0.0] * (before * len(own)), *own, *[0.0] * (after * len(own))]

    def _agree_on_names(self, objective: str, rows: list[tuple[int, dict[str, Tensor], Tensor]]) -> list[str]:
        """Column names; a rank that had no items learns them from the others the first time."""
        if objective not in self.names:
            mine = next((list(values) for _, values, _ in rows if values), [])
            known = next((names for names in self.ranks.gather(mine) if names), [])
            self.names[objective] = [*known, GRAD_NORM]
        return self.names[objective]

    def _read(self, rows: list[tuple[int, dict[str, Tensor], Tensor]], names: list[str]) -> list[float]:
        device = rows[0][2].device
        zero = torch.zeros((), device=device)
        tensors = []
        for _, values, norm in rows:
            tensors += [values.get(name, zero) for name in names[:-1]]
            tensors.append(norm if self.ranks.is_main else zero)  # the same on every rank: summed once
        if device.type == "cpu":
            return [t.item() for t in tensors]
        if len({t.dtype for t in tensors}) > 1:
            tensors = [t.double() for t in tensors]
        return torch.stack(tensors).tolist()  # one copy to the host for the whole interval

    def means(self, with_last: bool = False) -> dict[str, float]:
        """Means over the steps since the last call; a loss is ``loss``, or ``NAME_loss`` if several objectives ran.

        ``with_last`` adds the values of the last step, as ``last/NAME``.
        """
        logged = [name for objective, rows in self._rows.items() if rows for name in self.names[objective]]
        several = len([rows for rows in self._rows.values() if rows]) > 1
        record: dict[str, float] = {}
        for objective, rows in self._rows.items():
            if not rows:
                continue
            columns = zip(*rows, strict=True)
            for name, column in zip(self.names[objective], columns, strict=True):
                if several and name == "loss":
                    name = f"{objective}_loss"
                elif several and logged.count(name) > 1:
                    name = f"{name}/{objective}"
                record[name] = math.fsum(column) / len(column)
                if with_last:
                    record[f"last/{name}"] = column[-1]
        if self.skipped:
            record["skipped"] = self.skipped
        self._rows, self.skipped = {}, 0
        return record

    def state(self) -> dict[str, Any]:
        """JSON of what has been read but not yet logged (floats survive JSON exactly)."""
        return {"names": self.names, "rows": self._rows, "skipped": self.skipped}

    def restore(self, state: dict[str, Any]) -> None:
        self.names, self._rows, self.skipped = state["names"], state["rows"], state["skipped"]
