"""Steps whose loss or gradient was not finite: no rank has applied them, and the question is whether to go on."""

from __future__ import annotations

from collections.abc import Callable

from accel_train.errors import NonFiniteError
from accel_train.task import BatchSource, Event
from accel_train.train.scalars import BadStep


class NonFiniteGuard:
    """Counts skipped updates in a row. Every rank sees the same ones, so every rank raises after the same step."""

    def __init__(self, policy: str, limit: int, source: BatchSource) -> None:
        self.policy, self.limit, self.source = policy, limit, source
        self.in_a_row = 0

    def check(
        self,
        batches_done: list[tuple[int, int]],
        last_step: int,
        bad: list[BadStep],
        excused: bool,
        emit: Callable[[Event], None],
    ) -> None:
        """Go through the steps since the last time.

        Args:
            batches_done: their (epoch, batch).
            last_step: the newest of them.
            excused: fp16, while its loss scale is still falling.

        Raises:
            NonFiniteError: under ``raise``, or after more than ``limit`` in a row, not counting ``excused`` ones.
        """
        for step, place in enumerate(batches_done, start=last_step - len(batches_done) + 1):
            found = [f"{' and '.join(b.names)} of objective {b.objective!r}" for b in bad if b.step == step]
            if not found:
                self.in_a_row = 0
                continue
            self.in_a_row += not excused
            message = f"step {step}: {', '.join(found)} not finite ({self.source.describe(*place)})"
            if self.policy == "raise":
                raise NonFiniteError(f"{message}; the weights are those before that step")
            if self.in_a_row > self.limit:
                raise NonFiniteError(f"{message}; {self.in_a_row} in a row. The weights are those before the first")
            emit(Event("warning", f"{message}: update skipped on all ranks"))
