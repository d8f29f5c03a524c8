"""Is a stretch of a run what its config, seed and data give? It is trained once more and compared, down to the bit."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch

from accel_train.config.plain import differences
from accel_train.config.read import load
from accel_train.config.schema import TrainConfig
from accel_train.config.trust import imports_for
from accel_train.config.yaml_text import load_mapping
from accel_train.errors import NonFiniteError, UserError, brief
from accel_train.run import compare
from accel_train.run.checkpoint import PROGRESS, CheckpointFolder, read_progress, verify
from accel_train.run.compare import Difference
from accel_train.run.folder import machine
from accel_train.system.waiting import StoppedError
from accel_train.task import Task
from accel_train.train.replay import replayed
from accel_train.train.world import Ranks, start_accelerate

Topology = Literal["same", "any"]

ROUNDING = 0.01
"""With ``any``: weights may differ by so much of what the steps have moved them, and losses relatively. Rounding grows
from step to step; another row, rate or line of code is beyond this within a few."""
LEARNS = (
    "task", "seed", "phases", "global_batch_size", "per_device_batch_size", "learning_rate", "optimizer", "optimizers",
    "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "warmup_start_factor", "max_grad_norm", "ema_decay",
    "swa_start", "mixed_precision", "torch_compile", "non_finite",
)  # fmt: skip
"""Settings of which a run's config.yaml must say what its newest checkpoint was trained with."""


@dataclass(frozen=True)
class Interval:
    """Steps after ``start``, which is a checkpoint or the seed (0), to ``end``. Without a checkpoint there (``saved``),
    only logged values can be compared."""

    start: int
    end: int
    saved: bool = True

    def __str__(self) -> str:
        return f"steps {self.start:,} to {self.end:,}" + ("" if self.start else ", from the seed")


@dataclass(frozen=True)
class Verdict:
    """What came of an interval. ``found``: what differs, the first first; nothing: it is verified. ``rounding``: how
    far two topologies are apart, where they were allowed to be."""

    interval: Interval
    tensors: int = 0
    optimizers: int = 0
    records: int = 0
    found: Sequence[str] = ()
    rounding: str = ""
    notes: Sequence[str] = field(default=())

    def __str__(self) -> str:
        if self.found:
            more = f"; and {len(self.found) - 1} more differences" if len(self.found) > 1 else ""
            return f"REFUTED, {self.interval}: {self.found[0]}{more}" + "".join(f" ({note})" for note in self.notes)
        what = [counted(self.tensors, "tensor"), counted(self.optimizers, "optimiser")] if self.interval.saved else []
        only = "" if self.interval.saved else "; no checkpoint is kept there, so only logged values are compared"
        compared = ", ".join([*what, counted(self.records, "log record")]) + only
        equal = f"equal up to rounding ({self.rounding})" if self.rounding else "bitwise equal"
        return f"{equal}, {self.interval} ({compared})"


def counted(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")


class Recorded:
    """A run folder that is only read.

    Args:
        given: options over its configs, as for ``train``: data that have moved.
        trust: also import a task that is in no installed package.

    Raises:
        UserError: this is no run folder, or there is nothing in it to compare with.
    """

    def __init__(self, folder: Path, given: Sequence[str] = (), trust: bool = False) -> None:
        self.folder, self.given, self.trust = Path(folder), given, trust
        if not (self.folder / "config.yaml").is_file() or not (self.folder / "metrics.jsonl").is_file():
            raise UserError(f"{folder}: no run folder (it has no config.yaml and metrics.jsonl)")
        self.checkpoints = CheckpointFolder(self.folder / "checkpoints")
        self.steps = self.checkpoints.steps()
        self.logged = max((record.get("step", 0) for record in compare.records(self.folder)), default=0)
        if not self.steps and not self.logged:
            raise UserError(f"{folder}: no checkpoint and no log line there, so nothing to compare with")

    def intervals(self, first: int = 0, last: int | None = None) -> list[Interval]:
        """All that hold steps ``first`` + 1 to ``last``, from the newest checkpoint at or before ``first``."""
        end = max([*self.steps, self.logged]) if last is None else last
        if not 0 <= first < end or end > max([*self.steps, self.logged]):
            most = max([*self.steps, self.logged])
            raise UserError(f"--steps {first}:{end}: the steps of {self.folder} are 0:{most}")
        start = max((step for step in self.steps if step <= first), default=0)
        points = [start, *(step for step in self.steps if start < step < end), end]
        return [Interval(a, b, b in self.steps) for a, b in pairwise(points)]

    def newest(self) -> list[Interval]:
        """The steps before the newest checkpoint; where none is kept, all that is logged."""
        if not self.steps:
            return self.intervals()
        return [Interval(([0, *self.steps])[-2], self.steps[-1])]

    def trained_with(self, interval: Interval) -> tuple[Task, TrainConfig]:
        """Task and config of these steps: those of the checkpoint at their end, which a session wrote that made them
        with it; for steps after the newest one, those of the run."""
        return self.config_of(interval.end if interval.saved else None)

    def config_of(self, step: int | None) -> tuple[Task, TrainConfig]:
        """Task and config of the checkpoint of this step; None: of the run."""
        folder = self.checkpoints.path(step) if step is not None else self.folder
        with imports_for(folder, self.trust):
            return load(folder, self.given)

    def config_at(self, step: int) -> tuple[Task, TrainConfig]:
        """Task and config of the session that made this step: those of the next checkpoint, else of the run."""
        return self.config_of(min((each for each in self.steps if each >= step), default=None))

    def progress(self, interval: Interval) -> dict[str, Any]:
        """Of the checkpoint at the end; without one there, of the one at the beginning; else nothing is known."""
        step = interval.end if interval.saved else interval.start
        return read_progress(self.checkpoints.path(step)) if step else {}

    def contradictions(self, interval: Interval, task: Task, config: TrainConfig) -> Iterator[str]:
        """What is wrong before anything is trained: damaged files, and configs that contradict each other."""
        for step in (interval.start, interval.end if interval.saved else 0):
            if step and (reason := verify(self.checkpoints.path(step))):
                yield f"{self.checkpoints.path(step).name} is damaged: {reason}"
        paths = [self.checkpoints.path(interval.start)] if interval.start else []
        if interval.saved:
            paths.append(self.checkpoints.path(interval.end))
        configs = [load_mapping(path / "config.yaml", "verify") for path in paths if (path / "config.yaml").is_file()]
        if len(configs) > 1 and not config.allow_changed_config:
            _, identity = differences(configs[0], configs[1], task.movable)
            yield from (f"config.yaml, at step {interval.start:,} and then: {line}" for line in identity)
        if interval.saved and interval.end == max(self.steps):
            said = load_mapping(self.folder / "config.yaml", "verify")
            lines = [line for found in differences(said, configs[-1], task.movable) for line in found]
            learns = [line for line in lines if line.split(":")[0].split(".")[0] in LEARNS]
            movable = tuple(f"task.init_args.{name}" for name in task.movable)
            yield from (f"config.yaml of the run, and of its newest checkpoint: {line}" for line in learns
                        if not line.startswith(movable or ("\0",)))  # fmt: skip


def check(recorded: Recorded, interval: Interval, topology: Topology = "same") -> Verdict:
    """Train these steps again, and compare. Every rank must call it.

    Args:
        topology: "same" wants equal bits, and the ranks and the device of the run; "any" allows rounding.

    Raises:
        UserError: it cannot be done here, and how it can; or somebody stopped it.
    """
    try:
        return _check(recorded, interval, topology)
    except StoppedError as error:  # that is neither yes nor no
        raise UserError(f"{interval}: {error}") from None
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is gone; a run that goes on keeps only its newest checkpoints") from None


def _check(recorded: Recorded, interval: Interval, topology: Topology) -> Verdict:
    task, config = recorded.trained_with(interval)
    if found := list(recorded.contradictions(interval, task, config)):
        return Verdict(interval, found=found)
    progress = recorded.progress(interval)
    made_on = {"ranks": progress["world_size"], **progress.get("made_on", {})} if progress else {}
    accelerator = start_accelerate(replace(config, output_dir="", report_to=[]))
    ranks = Ranks(accelerator)
    here = machine(ranks.world_size, accelerator.device)
    if config.reduction == "fixed":
        made_on["ranks"] = ranks.world_size  # any number gives the same bits
    if topology == "same":
        _refuse_another(recorded, interval, made_on, here)
    notes = _reasons(made_on, here, config, accelerator.device)
    threads = torch.get_num_threads()
    torch.set_num_threads(made_on.get("threads", threads))
    start = recorded.checkpoints.path(interval.start) if interval.start else None
    end = recorded.checkpoints.path(interval.end) if interval.saved else None
    try:
        with replayed(task, config, start, interval.end, towards=end) as loop:
            if loop.state.position.step != interval.end:
                ended = f"ended at step {loop.state.position.step:,} ({loop.state.ended}), where the run went on"
                return Verdict(interval, found=[ended], notes=notes)
            if interval.saved:
                loop.saver.save(interval.end, loop.state.progress())
                loop.saver.settle()
            other = loop.session.output_dir
            verdict = compared(recorded.folder, other, interval, topology) if loop.ranks.is_main else None
            verdict = loop.ranks.from_main(verdict)
            assert verdict is not None
            return replace(verdict, notes=notes)
    except NonFiniteError as error:
        return Verdict(interval, found=[f"not finite, where the run was: {brief(error)}"], notes=notes)
    finally:
        torch.set_num_threads(threads)


def _refuse_another(recorded: Recorded, interval: Interval, made_on: dict[str, Any], here: dict[str, Any]) -> None:
    on_cpu = str(made_on.get("device", here["device"])).startswith("cpu")
    command = f"verify {recorded.folder} --steps {interval.start}:{interval.end}"
    loosely = "or compare up to rounding: --topology any"
    ranks = made_on.get("ranks", here["ranks"])
    if ranks != here["ranks"]:
        alone = f"{'ACCELERATE_USE_CPU=true ' if on_cpu else ''}accel-train {command}"
        kind = "cpu_2proc" if on_cpu else "multi_gpu"
        several = f"accelerate launch --config_file accelerate_configs/{kind}.yaml --num_processes {ranks}"
        several = f"ACCELERATE_USE_CPU=true {several}" if on_cpu else several
        how = alone if ranks == 1 else f"{several} -m accel_train {command}"
        raise UserError(f"{interval} were made by {ranks} ranks, and there are {here['ranks']} here: {how}; {loosely}")
    if made_on.get("device", here["device"]) != here["device"]:
        how = f"ACCELERATE_USE_CPU=true accel-train {command}; " if on_cpu and "cpu" not in here["device"] else ""
        raise UserError(f"{interval} were made on {made_on['device']}, and this is {here['device']}, which rounds in "
                        f"another way: {how}{loosely}")  # fmt: skip


def _reasons(made_on: dict[str, Any], here: dict[str, Any], config: TrainConfig, device: torch.device) -> list[str]:
    """Why bits may differ though nothing is wrong."""
    found = []
    if made_on.get("torch", here["torch"]) != here["torch"]:
        found.append(f"made with torch {made_on['torch']}, and this is {here['torch']}")
    if device.type == "cuda" and not config.deterministic:
        found.append("without deterministic: true some kernels of a GPU add in another order each time")
    return found


# -- comparing -------------------------------------------------------------------------------------------------------


def compared(run: Path, other: Path, interval: Interval, topology: Topology = "same") -> Verdict:
    """These steps of a run, and those of another one that should be the same."""
    logs = [_of_the_loop(compare.records(folder, interval.start, interval.end)) for folder in (run, other)]
    found = list(compare.in_records(*logs))
    verdict = Verdict(interval, records=len(logs[0]))
    if not interval.saved:
        return _judged(verdict, found, topology, 0.0)
    theirs, mine = (CheckpointFolder(folder / "checkpoints").path(interval.end) for folder in (run, other))
    start = CheckpointFolder(run / "checkpoints").path(interval.start)
    tensors, drift = 0, 0.0
    for name in sorted(compare.tensor_files(theirs).keys() | compare.tensor_files(mine).keys()):
        its, my, before = (
            compare.tensors_of(folder / name) if (folder / name).is_file() else {} for folder in (theirs, mine, start)
        )
        tensors += sum("param_groups" not in tensor for tensor in its)
        found += compare.in_tensors(f"step {interval.end:,}: {name}", its, my)
        if name.startswith("model"):
            drift = max(drift, _drift(its, my, before))
    found += compare.in_progress(*(json.loads((folder / PROGRESS).read_text()) for folder in (theirs, mine)))
    optimizers = len(list(theirs.glob("optimizer*")))
    return _judged(replace(verdict, tensors=tensors, optimizers=optimizers), found, topology, drift)


def _of_the_loop(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without what observers of the run's own have added."""
    return [record for record in records if record.get("kind") != "own"]


def _judged(verdict: Verdict, found: list[Difference], topology: Topology, drift: float) -> Verdict:
    if topology == "same" or not found:
        return replace(verdict, found=[_said(each) for each in found])
    losses = [each for each in found if each.name == "loss" or each.name.endswith("_loss")]
    apart = max((each.relative for each in losses), default=0.0)
    rounding = f"losses by at most {apart:.1g}"
    if verdict.interval.saved:
        rounding = f"weights differ by {drift:.1g} of what these steps moved them, {rounding}"
    if drift <= ROUNDING and apart <= ROUNDING:
        return replace(verdict, rounding=rounding)
    return replace(verdict, found=[f"beyond rounding: {rounding}", *map(_said, found)])


def _said(each: Difference) -> str:
    apart = f", apart by {each.relative:.1g} of the largest value" if math.isfinite(each.relative) else ""
    return f"{each.place}: {each.name} is {each.ours} in the run and {each.theirs} here{apart}"


def _drift(theirs: dict[str, Any], mine: dict[str, Any], before: dict[str, Any]) -> float:
    """How far two sets of weights are apart, of how far they have come (all of them together, L2)."""
    apart = moved = 0.0
    for name, tensor in theirs.items():
        if name not in mine or mine[name].shape != tensor.shape or not tensor.is_floating_point():
            continue
        last = tensor.double()
        apart += float((mine[name].double() - last).square().sum())
        moved += float((last - before[name].double()).square().sum() if name in before else last.square().sum())
    return math.sqrt(apart / moved) if moved else math.sqrt(apart)
