"""A run that is watched and hurt: ``train(job)``."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist

from accel_train import Trainer
from accel_train.registry import find
from accel_train.task import Event
from accel_train.tracking.observer import Observer
from accel_train.train.loop import Loop
from support import small_tasks, toy_gans, toy_sources, toys
from support.faults import FAULTS, disk_faults
from support.memory import Peak
from support.runs import ON_CPU

TASKS = {name: found for module in (toys, toy_sources, toy_gans, small_tasks) for name, found in vars(module).items()}
"""What a job may name as its task."""


class EventRecorder(Observer):
    """Remembers the events."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []

    def on_event(self, event: Event) -> None:
        self.events.append((event.kind, event.title))


def items_of(batch: dict[str, Any]) -> list[int]:
    """Numbers by which the items of a batch are known."""
    if "first" in batch:  # windows of shots
        return (batch["shot"] * 10_000 + batch["first"]).tolist()
    known = ("event", "pair", "index", "item", "low", "input_ids")
    return next((batch[name] for name in known if name in batch), torch.zeros(0)).tolist()


def _collectives() -> int:
    """How many the ranks have had so far."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0
    group: Any = dist.distributed_c10d._get_default_group()
    return group._get_sequence_number_for_group()


class Watched(Loop):
    """Records samples, gradients, norms and updates of every step, and does what ``job`` asks at a step."""

    def __init__(self, job: dict[str, Any], *arguments: Any) -> None:
        super().__init__(*arguments)
        self.job = job
        self.samples: dict[int, list[int]] = {}
        self.collectives: dict[int, int] = {}  # of the step alone
        self.gradients: list[np.ndarray] = []
        self.norms: list[float] = []
        self.updates: list[tuple[int, str]] = []
        stepper, rank = self.session.stepper, self.ranks.rank
        FAULTS.clear()
        FAULTS.update(job.get("faults", {}), this_rank=rank, this_step=0)
        if "prefetch" in job:
            self.session.loader.prefetch = job["prefetch"]
        if "loss_scale" in job:
            for group in stepper.groups.values():
                group.scaler = group.scaler or torch.amp.GradScaler("cpu", init_scale=job["loss_scale"])
        if (die := job.get("die_in")) is not None:  # killed at this method of the saver, at this step
            real = getattr(self.saver, die["method"])

            def killed(step, *arguments):
                if step == die["step"]:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(step, *arguments)

            setattr(self.saver, die["method"], killed)
        stepper.step = self._watch_step(stepper.step)
        stepper._clip = self._watch_clip(stepper._clip)
        for optimizer in {id(group): group.optimizer for group in stepper.groups.values()}.values():
            optimizer.register_step_post_hook(self._note_update)

    def _note_update(self, optimizer, *_) -> None:
        if not getattr(optimizer, "found_inf", 0):  # a fused kernel is called all the same, and does nothing
            self.updates.append((FAULTS["this_step"], FAULTS["this_objective"]))

    def act(self, step: int) -> None:
        stop = self.job.get("stop_at")
        if stop is not None and step == stop["step"]:
            if stop.get("rank", self.ranks.rank) == self.ranks.rank:
                self.control.stop("test")
            if stop.get("at_once", True):
                self.agenda.sync_at = step
        if self.job.get("poison_at") == step:  # what an update with a bad optimiser would do
            with torch.no_grad():
                next(iter(self.session.models["model"].parameters())).view(-1)[0] = float("inf")

    def _watch_step(self, real):
        def watched(objective, batch, abandon=False):
            step = objective.step
            FAULTS.update(this_step=step + 1, this_objective=objective.name)  # steps as people count
            if batch is not None:
                self.samples[step + 1] = items_of(batch)
            before = _collectives()
            made = real(objective, batch, abandon)
            self.collectives[step + 1] = _collectives() - before
            return made

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
    """One run on this rank. Keys of a job: task, task_args, config, faults, disk, stop_at, gradients, memory, ..."""
    torch.set_num_threads(1)
    recorder = EventRecorder()
    FAULTS.clear()
    loops: list[Watched] = []

    def watched(*arguments: Any) -> Watched:
        loops.append(Watched(job, *arguments))
        return loops[0]

    name = job.get("task", "Toy")
    task = (find(name) if ":" in name else TASKS[name])(**job.get("task_args", {}))
    trainer = Trainer(task, observers=[recorder], on_step=lambda step: loops[0].act(step.number), **job["config"])
    result: dict[str, Any] = {"error": None, "outcome": None, "reason": "", "step": None, "by_signal": None}
    result |= {"samples": {}, "gradients": [], "norms": [], "updates": []}
    peak = Peak() if job.get("memory") else contextlib.nullcontext()
    # a full collection takes as long as the rest of a toy run
    patience = mock.patch.multiple("accel_train.train.control", GRACE_S=0.3, RELAY_S=0.1)
    watching = mock.patch("accel_train.train.trainer.Loop", watched)
    with (
        disk_faults(job.get("disk")),
        mock.patch("gc.collect"),
        mock.patch.dict(os.environ, ON_CPU),
        patience,
        watching,
        peak,
    ):
        try:
            done = trainer.fit()
            result.update(outcome=done.outcome, reason=done.reason, step=done.step, by_signal=done.by_signal,
                          best=done.best, metrics=done.metrics)  # fmt: skip
        except KeyboardInterrupt as error:
            result["error"] = ("KeyboardInterrupt", str(error))
        except Exception as error:
            if job.get("raise"):
                raise
            result["error"] = (type(error).__name__, str(error))
    if isinstance(peak, Peak):
        result["memory"] = peak.growth
    for loop in loops:
        stepper = loop.session.stepper
        weights = {f"{n}.{k}": v for n, m in trainer.models.items() for k, v in m.state_dict().items()}
        result.update(
            weights={name: value.double().numpy().copy() for name, value in weights.items()},
            micro_batch_size=stepper.micro_batch_size,
            progress=loop.state.progress(),
            scales=[g.scaler.get_scale() for g in stepper.groups.values() if g.scaler is not None],
            samples=loop.samples, gradients=loop.gradients, norms=loop.norms, updates=loop.updates,
            collectives=loop.collectives,
        )  # fmt: skip
    return result | {"events": recorder.events, "ooms": FAULTS.get("ooms", 0)}
