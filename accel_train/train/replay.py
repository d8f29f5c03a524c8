"""A stretch of a run once more: from one of its checkpoints, or from the seed, to a later step.

It is trained in a folder of its own, which is gone afterwards. Nothing of the run folder is changed: its checkpoint is
only read, there is no lock, no log line, no tracker and no alert. Device and ranks are those of this process.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Generator, Iterable
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from accel_train.config.schema import TrainConfig, WebhookConfig
from accel_train.system.output import forgiving
from accel_train.system.signals import caught
from accel_train.system.waiting import StoppedError
from accel_train.task import Task
from accel_train.tracking.jsonl import DigestLog, Jsonl
from accel_train.tracking.observer import Observer
from accel_train.train.loop import Loop
from accel_train.train.session import Session
from accel_train.train.world import Ranks, start_accelerate, telling_of_lost_ranks


@contextmanager
def replayed(
    task: Task,
    config: TrainConfig,
    checkpoint: Path | None,
    until: int,
    observers: Iterable[Observer] = (),
    towards: Path | None = None,
) -> Generator[Loop]:
    """The loop of a run after step ``until``, as it was then; its folder is there while this is open. Every rank must
    call it. It stands earlier only where early stopping has ended it before.

    Args:
        config: of the run at that time, on which its length, its log and its evaluations depend.
        checkpoint: where it begins, of a step that is not later; None: at the seed.
        observers: beside the one that writes ``metrics.jsonl`` into that folder.
        towards: a checkpoint of the run that knows which data these steps had.

    Raises:
        StoppedError: somebody stopped it before.
        UserError: this checkpoint does not fit, or the data are others.
    """
    ranks = Ranks(start_accelerate(replace(config, output_dir="", report_to=[])))
    # rank 0 makes and removes it; on several machines TMPDIR must be where all of them see it
    folder = Path(ranks.from_main(tempfile.mkdtemp(prefix="accel_train-replay-") if ranks.is_main else ""))
    try:
        with ExitStack() as held:
            held.enter_context(forgiving())
            signals = held.enter_context(caught())
            with telling_of_lost_ranks(), signals.preparing():
                session = Session(task, _in_folder(config, folder, checkpoint))
                further = [Jsonl(session.emit), DigestLog(), *observers]
                loop = Loop(session, signals, further, until=until)
                held.enter_context(loop.saver.folder_to_itself(loop.is_stopping))
                if towards is not None:
                    loop.saver.lineage.expect(towards)
            result = loop.run()
            if result.step != until and result.outcome != "completed":
                raise StoppedError(f"stopped at step {result.step:,} of a replay to step {until:,}: {result.reason}")
            yield loop
    finally:
        if ranks.is_main:
            shutil.rmtree(folder, ignore_errors=True)


def _in_folder(config: TrainConfig, folder: Path, checkpoint: Path | None) -> TrainConfig:
    """The same training, in another folder, which nobody hears of and of which nothing is kept on the way."""
    by_rank = config.per_device_batch_size is not None  # on other ranks, too, the batches are those of the run
    return replace(
        config, output_dir=str(folder), resume_from_checkpoint=str(checkpoint) if checkpoint else "never",
        per_device_batch_size=None, allow_changed_config=config.allow_changed_config or by_rank,
        report_to=[], webhook=WebhookConfig(kinds=[]), tb_sync_to=None, checkpoint_mirror=None, save_steps=None,
        save_total_limit=1, save_keep_every=None, max_time=None, profile_steps=None, histogram_steps=0, monitor_steps=0,
        report_first_batch=False, hang_warning=None,
    )  # fmt: skip
