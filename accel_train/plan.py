"""Where a run stands: durations, phases, and the position, which is a handful of integers."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from accel_train.arguments import Rule
from accel_train.errors import UserError
from accel_train.task import Objective

_UNITS = {"st": "st", "": "st", "ep": "ep", "s": "s", "min": "s", "h": "s", "d": "s"}
_SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True)
class Duration:
    """A length in steps ("1000st" or a bare number), epochs ("30ep") or wall time ("90s", "30min", "2h", "1d")."""

    amount: float
    unit: str

    @staticmethod
    def parse(text: int | str, field: str = "duration", units: str = "1000 or 1000st (steps), 30ep, 90s") -> Duration:
        match = re.fullmatch(r"\s*([0-9][0-9_]*(?:\.[0-9]+)?)\s*(st|ep|s|min|h|d|)\s*", str(text))
        if not match:
            raise UserError(f"{field}: {text!r} is not a length; write {units}")
        amount, unit = float(match[1].replace("_", "")), match[2]
        if _UNITS[unit] != "s" and (amount != int(amount) or amount < 1):
            raise UserError(f"{field}: {text!r} must be a whole number of steps or epochs, at least 1")
        return Duration(amount * _SECONDS.get(unit, 1.0), _UNITS[unit])

    @property
    def count(self) -> int:
        return int(self.amount)


@dataclass(frozen=True)
class Durations(Rule):
    """Which durations a setting may have: in steps and epochs, by the clock, or 0 for never. None is always allowed."""

    steps: bool = True
    clock: bool = False
    zero: bool = False

    def check(self, name: str, value: int | str | None) -> None:
        if value is None or (self.zero and value in (0, "0")):
            return
        units = ["1000 or 1000st (steps)", "30ep"] * self.steps + ["90s", "30min", "2h"] * self.clock
        by_clock = Duration.parse(value, name, ", ".join(units)).unit == "s"
        if by_clock and not self.clock:
            raise UserError(f"{name}: {value} is wall time, on which a run must not depend; give steps or epochs")
        if not by_clock and not self.steps:
            raise UserError(f"{name}: {value} is not wall time; write 90s, 30min, 2h or 1d")

    def __str__(self) -> str:
        units = ["steps", "epochs"] * self.steps + ["wall time"] * self.clock + ["0"] * self.zero
        return " or ".join([", ".join(units[:-1]), units[-1]] if units[1:] else units)


def parse_steps(text: str, field: str) -> tuple[int, int]:
    """The first and the last step of "A:B". Raises a UserError that begins with ``field``."""
    match = re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", text)
    if not match or int(match[1]) > int(match[2]):
        raise UserError(f"{field}: {text!r} are no steps; write FIRST:LAST, such as 10:15")
    return int(match[1]), int(match[2])


@dataclass(frozen=True)
class Steps(Rule):
    """Steps from one to another, counted from 1: "10:15"."""

    def check(self, name: str, value: str | None) -> None:
        if value is not None and parse_steps(value, name)[0] < 1:
            raise UserError(f"{name}: {value}: the first step is 1")

    def __str__(self) -> str:
        return "FIRST:LAST"


@dataclass(slots=True)
class Position:
    """Everything that says where a run is. ``step`` counts global batches since the start of the run."""

    step: int = 0
    epoch: int = 0
    batch: int = 0  # batches of this epoch already trained
    phase: int = 0
    phase_step: int = 0  # value of `step` at which the phase began
    phase_epoch: int = 0

    def copy(self) -> Position:
        return replace(self)


@dataclass(frozen=True)
class Phase:
    """A stretch of training with its own choice of objectives; ``length`` None means until the run ends."""

    objectives: tuple[Objective, ...]
    length: Duration | None
    name: str


class Plan:
    """The phases of a run and where each ends.

    Args:
        phases: in order; only the last may be without a length.
        max_steps, num_train_epochs: the end of the run, whichever comes first; None for no such limit.
        steps_in_epoch: epoch -> number of batches, or None where the data has no end (or does not know it).
    """

    def __init__(
        self,
        phases: Sequence[Phase],
        steps_in_epoch: Callable[[int], int | None],
        max_steps: int | None = None,
        num_train_epochs: int | None = None,
    ) -> None:
        self.phases = list(phases)
        self.steps_in_epoch = steps_in_epoch
        self.max_steps = max_steps
        self.num_train_epochs = num_train_epochs
        in_epochs = num_train_epochs is not None or any(p.length and p.length.unit == "ep" for p in phases)
        if in_epochs and steps_in_epoch(0) is None:
            raise UserError("this data has no epochs (it never ends): give max_steps, and phases in steps (1000st)")
        if max_steps is None and num_train_epochs is None and self.phases[-1].length is None:
            raise UserError("nothing says when to stop: give max_steps or num_train_epochs")
        self.total_steps = self._total_steps()

    def _total_steps(self) -> int | None:
        """Steps of the whole plan; None if nobody knows yet."""
        walked = self._walk(None)
        return walked.step if walked else None

    def _walk(self, steps: int | None) -> Position | None:
        """Where the plan stands after so many steps, or at its end; None if it has no end that can be known."""
        position = Position()
        while not self.finished(position) and (steps is None or position.step < steps):
            in_epoch = self.steps_in_epoch(position.epoch)
            if in_epoch is not None and in_epoch <= 0:
                raise UserError(f"epoch {position.epoch} has no batches: the data is empty")
            boundary = self.steps_to_boundary(position)
            if steps is not None:
                boundary = min(steps - position.step, boundary or steps)
            if boundary is None:
                return None
            self.advance(position, boundary)
        return position

    def advance(self, position: Position, steps: int = 1) -> None:
        """Move past ``steps`` batches of the current epoch (no further than its end)."""
        position.step += steps
        position.batch += steps
        if position.batch == self.steps_in_epoch(position.epoch):
            position.epoch, position.batch = position.epoch + 1, 0
        self._settle(position)

    def begin_epoch(self, position: Position, epoch: int) -> None:
        """Enter this epoch, for data that finds out at its end how long an epoch was."""
        if epoch != position.epoch:
            position.epoch, position.batch = epoch, 0
            self._settle(position)

    def locate(self, position: Position) -> None:
        """Enter the phase that this plan has at ``position.step``, whatever plan the position was reached under."""
        walked = self._walk(position.step)
        if walked is not None:
            position.phase, position.phase_step, position.phase_epoch = (
                walked.phase, walked.phase_step, walked.phase_epoch,
            )  # fmt: skip

    def _settle(self, position: Position) -> None:
        while position.phase < len(self.phases) and self._phase_over(position):
            position.phase += 1
            position.phase_step, position.phase_epoch = position.step, position.epoch

    def _phase_over(self, position: Position) -> bool:
        length = self.phases[position.phase].length
        if length is None:
            return False
        if length.unit == "st":
            return position.step - position.phase_step >= length.count
        return position.epoch - position.phase_epoch >= length.count

    def finished(self, position: Position) -> bool:
        return (
            position.phase >= len(self.phases)
            or (self.max_steps is not None and position.step >= self.max_steps)
            or (self.num_train_epochs is not None and position.epoch >= self.num_train_epochs)
        )

    def steps_to_boundary(self, position: Position) -> int | None:
        """Steps until the epoch, the phase or the run ends, whichever comes first; None if nobody knows."""
        ends: list[int] = []
        in_epoch = self.steps_in_epoch(position.epoch)
        if in_epoch is not None:
            ends.append(in_epoch - position.batch)
        length = self.phases[position.phase].length if position.phase < len(self.phases) else None
        if length is not None and length.unit == "st":
            ends.append(position.phase_step + length.count - position.step)
        if self.max_steps is not None:
            ends.append(self.max_steps - position.step)
        return min(ends, default=None)


class Every:
    """Something that happens every so many steps, epochs or seconds."""

    def __init__(self, text: int | str | None, field: str) -> None:
        self.duration = None if text in (None, 0, "0") else Duration.parse(text, field)
        self.last_time = 0.0

    def next_step(self, step: int) -> int | None:
        """The first step after ``step`` at which it is due, if it is counted in steps."""
        if self.duration is None or self.duration.unit != "st":
            return None
        return (step // self.duration.count + 1) * self.duration.count

    def due(self, position: Position) -> bool:
        """Is it due now that ``position`` has been reached? Pure; wall time is asked for with ``due_by_clock``."""
        if self.duration is None or position.step == 0:
            return False
        if self.duration.unit == "st":
            return position.step % self.duration.count == 0
        return self.duration.unit == "ep" and position.batch == 0 and position.epoch % self.duration.count == 0

    def due_by_clock(self, now: float) -> bool:
        return self.duration is not None and self.duration.unit == "s" and now - self.last_time >= self.duration.amount
