"""Looks at training batches beside the losses: a task's alerts and histograms, and the first batch of a session."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from accel_train.task import Batch, Event, Watches, hook
from accel_train.train.evaluation import quietly
from accel_train.train.session import Session

T = TypeVar("T")
DIGEST_ROWS = 8
"""Enough to tell batches apart."""


class Probes:
    """What is looked at, and when. Training does not notice: no gradient; models and generators stay the same."""

    def __init__(self, session: Session) -> None:
        self.session, self.task, self.config = session, session.task, session.config
        self._monitor, self._histograms = (hook(self.task, Watches, name) for name in ("monitor", "histograms"))
        self._first_is_due = self.config.report_first_batch
        self._last_step = -1

    def next_steps(self, step: int) -> list[int]:
        """The steps after ``step`` at which there is something to look at."""
        return [(step // n + 1) * n for n in (self.config.monitor_steps, self.config.histogram_steps) if n]

    def run(self, step: int, batches: list[Batch]) -> None:
        """After ``step``, at this rank's share of its batch, if it has one, or parts. Every rank must call it."""
        if step == self._last_step:
            return
        self._last_step = step
        ranks = self.session.ranks
        if self._first_is_due and batches:
            self._first_is_due = False
            if ranks.is_main:
                self.session.emit(describe(step, batches[0]))
        found: list[Event] = []
        if self._is_due(step, self.config.monitor_steps):
            for batch in batches or [None]:
                seen = self._ask("monitor", lambda models, batch: list(self._monitor(models, batch)), batch, found)
                found += seen or []
            for event in (event for events in ranks.gather(found) for event in events):
                self.session.emit(event)
        if self._is_due(step, self.config.histogram_steps):
            found = []
            shown = batches[0] if batches and ranks.is_main else None
            values = self._ask("histograms", self._histograms, shown, found)
            for event in found:
                self.session.emit(event)
            self.session.observers.call("on_histograms", step, values or {})

    @staticmethod
    def _is_due(step: int, every: int) -> bool:
        return every > 0 and step % every == 0

    def _ask(
        self, name: str, question: Callable[[Any, Batch], T], share: Batch | None, failed: list[Event]
    ) -> T | None:
        with self.session.stepper.whole_weights():  # or a rank without a share would keep the others waiting
            if share is None:
                return None
            with self.session.reports(name, failed.append), quietly(self.session.models), torch.no_grad():
                with self.session.accelerator.autocast():
                    return question(self.session.models, share)
        return None


def describe(step: int, batch: Batch) -> Event:
    """A note of what is in a batch, so that a person sees if data differ or repeat: type, shape, min / mean / max, and
    12 digits of the SHA-1 of the first rows of each tensor."""
    fields = {k: _summary(v) if isinstance(v, Tensor) else type(v).__name__ for k, v in batch.items()}
    return Event("note", f"first batch of this session, step {step}", fields)


def _summary(value: Tensor) -> str:
    value = value.detach().cpu()
    text = f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if value.numel() == 0:
        return text
    first = (value[:DIGEST_ROWS] if value.dim() else value).contiguous().reshape(-1)
    digest = hashlib.sha1(first.view(torch.uint8).numpy().tobytes(), usedforsecurity=False).hexdigest()
    numbers = (value.abs() if value.is_complex() else value).double()
    return f"{text} {numbers.min():.6g} / {numbers.mean():.6g} / {numbers.max():.6g} sha1 {digest[:12]}"
