"""Training a task from Python; ``accel-train train`` does no more."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accel_train import contract
from accel_train.classes import being_imported
from accel_train.config.read import settings_for
from accel_train.config.schema import TrainConfig
from accel_train.data.source import described
from accel_train.errors import UserError
from accel_train.system.output import forgiving
from accel_train.system.signals import caught
from accel_train.system.writing import refuse_unwritable
from accel_train.task import Task
from accel_train.tracking.observer import Observer
from accel_train.train.launching import fit_launched
from accel_train.train.loop import Loop, Step
from accel_train.train.result import Result
from accel_train.train.session import Session, run_dir
from accel_train.train.world import telling_of_lost_ranks

if TYPE_CHECKING:
    from torch import nn

    from accel_train.train.looking import Moment


class Trainer:
    """Trains a task.

    Args:
        task: what to train.
        config: all settings; or give them as keyword arguments (the fields of ``TrainConfig``), over what the task
            recommends.
        observers: further observers (``accel_train.Observer``), beside those the config asks for.
        on_step: called with a ``Step`` after every step, on every rank, by whoever must see each of them; what only
            wants to know how the run stands is an observer. What it raises becomes a warning.

    Attributes:
        models: by name, once ``fit`` has built them. They have the weights that are trained; where averages are asked
            for (``ema_decay``), those are in the folders ``best`` and ``model``.
    """

    def __init__(
        self,
        task: Task,
        config: TrainConfig | None = None,
        *,
        observers: Iterable[Observer] = (),
        on_step: Callable[[Step], None] | None = None,
        **settings: Any,
    ) -> None:
        if config is not None and settings:
            raise TypeError("give a TrainConfig or its fields, not both")
        self.task: Task = contract.instance(task)
        self.config: TrainConfig = config or settings_for(type(task), settings)
        self.models: dict[str, nn.Module] = {}
        self._observers, self._on_step = list(observers), on_step
        for observer in self._observers:
            if not isinstance(observer, Observer):
                what = described(observer)
                raise UserError(f"observers: got {what}; give an instance of a class derived from accel_train.Observer")
        self._loop: Loop | None = None  # while there is a run
        self._asked_to_stop: str | None = None  # while there is none

    def request_stop(self, reason: str) -> None:
        """Ask, on any rank, that all ranks stop after the same step and save: at the next synchronisation point, which
        is at most about half a second away. Before ``fit``: as it begins."""
        if self._loop is not None:
            self._loop.control.stop(reason)
        else:
            self._asked_to_stop = self._asked_to_stop or reason

    def fit(self, num_processes: int = 1) -> Result:
        """Train to the end, or until someone stops it. Resumes by itself; see ``resume_from_checkpoint``.

        Args:
            num_processes: more than one: train on so many processes of this machine, each a fresh interpreter with the
                task's arguments and the config, and on a GPU of its own where there are any. That needs no
                ``accelerate launch``, so it is for notebooks. ``models`` stays empty, and nothing is observed here.

        Raises:
            UserError: something must be mended first, in one line.
            StoppedError: someone stopped it before it began.
            LostRankError: another process of this run is gone.
            LockLostError: another run has the folder by now.
            OtherRankError: data or an evaluation failed on another rank; this one saved as well.
        """
        if file := being_imported():
            raise UserError(f"{file} trains as soon as it is imported, which is done here to find its task: what is to "
                            'happen only when it is run belongs under `if __name__ == "__main__":`')  # fmt: skip
        if num_processes != 1:
            return self._fit_launched(num_processes)
        with contextlib.ExitStack() as held:
            held.enter_context(forgiving())
            signals = held.enter_context(caught())
            with telling_of_lost_ranks(), signals.preparing():
                refuse_unwritable("output_dir", run_dir(self.task, self.config))
                loop = Loop(Session(self.task, self.config), signals, self._observers, self._on_step)
                self.models = loop.session.models
                held.callback(self._leave)
                self._loop = loop
                if self._asked_to_stop is not None:
                    loop.control.stop(self._asked_to_stop)
                    self._asked_to_stop = None
                held.enter_context(loop.saver.folder_to_itself(loop.is_stopping))
            return loop.run()

    def _fit_launched(self, num_processes: int) -> Result:
        if num_processes < 1:
            raise UserError(f"num_processes: {num_processes} is out of range, must be at least 1")
        if self._observers or self._on_step is not None:
            raise UserError("num_processes: observers and on_step would hear nothing, since other processes train; "
                            "leave them out, or train on one process")  # fmt: skip
        try:
            return fit_launched(self.task, self.config, num_processes, lambda: self._asked_to_stop)
        finally:
            self._asked_to_stop = None

    @staticmethod
    def at(run: Path | str, step: int, trust: bool = False) -> Moment:
        """One step of a run as it was, replayed: models, batch, totals, and each item's share of the loss. What
        ``accel-train step`` prints.

        Args:
            run: its folder, in which nothing is changed.
            step: from 1, as in the log.
            trust: also import a task that is in no installed package, and not imported yet.

        Raises:
            UserError: there is no such step, or it cannot be replayed here.
        """
        from accel_train.train.looking import look

        return look(run, step, trust=trust)

    def _leave(self) -> None:
        self._loop = None
