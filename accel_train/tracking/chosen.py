"""The observers that a config asks for."""

from __future__ import annotations

import os
from collections.abc import Callable

from accelerate import Accelerator

from accel_train.config.schema import TrainConfig
from accel_train.errors import UserError, suggest
from accel_train.task import Event
from accel_train.tracking.observer import Observer
from accel_train.tracking.webhook import ALERT_URL_ENV, Webhook


def observers_of(config: TrainConfig, accelerator: Accelerator, emit: Callable[[Event], None]) -> list[Observer]:
    """What the config asks for, on rank 0. ``emit``: for those that have events of their own."""
    from accel_train.tracking.console import Console
    from accel_train.tracking.jsonl import DigestLog, EventLog, Jsonl
    from accel_train.tracking.status import Status

    observers: list[Observer] = [EventLog(), Console(), Jsonl(emit), DigestLog(), Status()]
    if "tensorboard" in config.report_to:
        from accel_train.tracking.tensorboard import TensorBoard

        observers.append(TensorBoard(emit))
    if other_trackers(config):
        from accel_train.tracking.accelerate import AccelerateTrackers

        observers.append(AccelerateTrackers(accelerator, emit))
    if os.environ.get(config.webhook.url_env) or os.environ.get(ALERT_URL_ENV) or config.webhook.url_file:
        observers.append(Webhook(config.webhook))
    if config.tb_sync_to:
        from accel_train.tracking.sync import TensorBoardSync

        if "tensorboard" not in config.report_to:
            emit(Event("warning", "tb_sync_to: there is nothing to copy, since report_to has no tensorboard"))
        # The last one: when it copies for the last time, TensorBoard has written everything.
        observers.append(TensorBoardSync(config.tb_sync_to, config.tb_sync_interval, emit))
    return observers


def other_trackers(config: TrainConfig) -> list[str]:
    from accelerate.tracking import get_available_trackers
    from accelerate.utils import LoggerType

    known = ["none", *LoggerType.list()]
    for name in config.report_to:
        if name not in known:
            meant = f" (write '[{name}]')" if "," in name else suggest(name, known)
            raise UserError(f"report_to: unknown {name!r}{meant}; there are {', '.join(known)}")
    others = [name for name in config.report_to if name not in ("tensorboard", "none")]
    there = ["all", *map(str, get_available_trackers())] if others else []
    for name in others:
        if name not in there:
            raise UserError(f"report_to: {name} is not installed here (pip install {name})")
    return others
