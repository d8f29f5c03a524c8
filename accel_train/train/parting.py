"""Where do two runs part, and why? What they have written narrows the steps down; then both are replayed."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from accel_train.config.plain import differences, flatten
from accel_train.config.schema import TrainConfig
from accel_train.config.yaml_text import load_mapping
from accel_train.data.fingerprint import changed
from accel_train.errors import UserError
from accel_train.run import compare
from accel_train.run.checkpoint import PROGRESS
from accel_train.run.folder import machine
from accel_train.task import Task
from accel_train.train.loop import Loop
from accel_train.train.replay import replayed
from accel_train.train.sharding import is_sharded
from accel_train.train.verifying import Recorded, counted
from accel_train.train.witness import Parting, StepSeen, first_difference, witness
from accel_train.train.world import Ranks, start_accelerate

WHERE = ("output_dir", "resume_from_checkpoint", "allow_changed_config", "allow_changed_data")
"""Settings by which two runs always differ, or which say nothing of them."""
ENVIRONMENT = ("versions", "python", "platform", "world_size", "device", "gpus", "cuda", "threads", "git")
MADE_ON = ("ranks", "device")
"""What a replay must have in common with the run."""

OF_CHECKPOINTS = "weights in the checkpoints"


@dataclass(frozen=True)
class Stretch:
    """What two runs have written of their steps, compared.

    Args:
        equal: the last step, before they part, of which it is known that the weights are equal to the bit; 0: none is.
        apart: the first step of which it is known that they differ; None: nothing differs.
        shown_by: what shows that.
        begin: the newest checkpoint of both at or before ``equal``; 0: the seed.
        until: the last step that both have reached.
        compared: how much was.
    """

    equal: int
    apart: int | None
    shown_by: str
    begin: int
    until: int
    compared: str


def about(a: Recorded, b: Recorded) -> Iterator[str]:
    """In which settings, data, versions and machines two runs differ; no task is imported."""
    configs = [load_mapping(each.folder / "config.yaml", "diff") for each in (a, b)]
    may, identity = differences(configs[0], configs[1])
    yield from (f"config: {line}" for line in [*identity, *may] if not line.startswith(WHERE))
    saved = [_said(each, max(each.steps, default=0)) for each in (a, b)]
    code = [found.get("code") or {} for found in saved]
    for name, what in (("data", "data"), ("validation", "validation data")):
        if differs := changed(*(found.get(name) or {} for found in saved)):
            yield f"{what}: {differs} (was: A, now: B)"
    if all(code) and code[0] != code[1]:
        yield "code: the source of the task"
    old, new = (_environment(each) for each in (a, b))
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            yield f"environment: {name}: {old.get(name)} -> {new.get(name)}"


def _environment(recorded: Recorded) -> dict[str, Any]:
    found = _read(recorded.folder / "environment.json")
    found["device"] = str(found.get("device")).partition(":")[0]  # cpu, where a rank has written cpu:0
    return flatten({name: found.get(name) for name in ENVIRONMENT})


def _said(recorded: Recorded, step: int) -> dict[str, Any]:
    """What a checkpoint says of its data, its machine and, where it does, its code."""
    folder = recorded.checkpoints.path(step)
    return _read(folder / "identity.json") | _read(folder / PROGRESS)


def _read(file: Path) -> dict[str, Any]:
    """Nothing where it is not there or cannot be read; what rests on it is checked once more before a replay."""
    with contextlib.suppress(OSError, ValueError):
        return dict(json.loads(file.read_text()))
    return {}


# -- what is written -------------------------------------------------------------------------------------------------


def stretch(a: Recorded, b: Recorded) -> Stretch:
    """Raises a UserError where they have nothing in common that could be compared."""
    until = min(max([*each.steps, each.logged]) for each in (a, b))
    ours, theirs = (compare.digests(each.folder, until) for each in (a, b))
    # step, are the weights equal, by what
    found = [(step, ours[step] == theirs[step], "digests") for step in sorted(ours.keys() & theirs.keys())]
    logs = [_means(each.folder, until) for each in (a, b)]
    both = sorted(logs[0].keys() & logs[1].keys())
    found += [(end, False, "values in metrics.jsonl") for begin, end in both
              if _unequal(logs[0][begin, end], logs[1][begin, end])]  # fmt: skip
    saved = [step for step in a.steps if step in b.steps]
    found += [(step, _same_weights(a.checkpoints.path(step), b.checkpoints.path(step)), OF_CHECKPOINTS)
              for step in saved]  # fmt: skip
    if not found and not both:
        raise UserError(f"{a.folder} and {b.folder} have no step in common with a digest, a log line or a checkpoint")
    apart, shown_by = min(((step, by) for step, equal, by in found if not equal), default=(None, ""))
    equal = max((step for step, same, _ in found if same and (apart is None or step < apart)), default=0)
    begin = max((step for step in saved if step <= equal), default=0)
    there = {"digest": ours.keys() & theirs.keys(), "log record": both, "checkpoint": saved}
    return Stretch(
        equal, apart, shown_by, begin, until, ", ".join(counted(len(each), name) for name, each in there.items())
    )


def _means(run: Path, until: int) -> dict[tuple[int, int], dict[str, Any]]:
    """Train records, by the steps that they are the means of."""
    found, before = {}, 0
    for record in compare.records(run, 0, until):
        if record.get("kind") == "train":
            found[before, record["step"]] = record
            before = record["step"]
    return found


def _unequal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    names = one.keys() & other.keys()
    return any(True for _ in compare.in_records([{n: one[n] for n in names}], [{n: other[n] for n in names}]))


def _same_weights(ours: Path, theirs: Path) -> bool:
    names = {name for folder in (ours, theirs) for name in compare.tensor_files(folder) if name.startswith("model")}
    read = ([compare.tensors_of(folder / name) if (folder / name).is_file() else {} for folder in (ours, theirs)]
            for name in sorted(names))  # fmt: skip
    return not any(True for one, other in read for _ in compare.in_tensors("", one, other))


# -- once more -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """What the replays showed. ``step``: the first that differs; None where they do not show it."""

    step: int | None
    parting: Parting
    notes: tuple[str, ...] = ()


def found_by_replay(a: Recorded, b: Recorded, known: Stretch) -> Found:
    """Replay both sides to where they part, with the config, and the number of threads, of each. Every rank must call
    it; nothing in the run folders is changed."""
    assert known.apart is not None
    if why := _cannot(a, b):
        return Found(None, Parting("environment", why))
    sides = (a, b)
    # a checkpoint may have been altered later: then it is the step after it that differs
    begin, end = known.begin, min(known.apart + (known.shown_by == OF_CHECKPOINTS), known.until)
    logs = [_digests(each, begin, end) for each in sides]
    notes = tuple(
        note for name, each, log in zip("AB", sides, logs, strict=True) for note in _unrepeated(name, each, log)
    )
    step = next((step for step in range(begin + 1, end + 1) if logs[0].get(step) != logs[1].get(step)), None)
    if step is None:
        text = "replayed here, with the code and the libraries of here, both sides are equal"
        return Found(None, Parting("unrepeated", text), notes or ("a log or a checkpoint was altered, or the code, the "
                     "libraries or the machine were others then",))  # fmt: skip
    seen = [_seen(each, step) for each in sides]
    unseen = Parting("unknown", "the digests of gradients or weights differ, and nothing that was looked at")
    return Found(step, first_difference(seen[0], seen[1]) or unseen, notes)


def _cannot(a: Recorded, b: Recorded) -> str:
    """Why they cannot be replayed here; "" if they can. With ``reduction: fixed`` any number of ranks will do."""
    accelerator = start_accelerate(TrainConfig(report_to=[]))
    if is_sharded(accelerator):
        raise UserError("diff: under FSDP there are no digests, so only what is written can be compared")
    here = machine(Ranks(accelerator).world_size, accelerator.device)
    for name in MADE_ON:
        bound = {side: _made_on(each).get(name, here[name]) for side, each in (("A", a), ("B", b))
                 if name != "ranks" or not _is_fixed(each)}  # fmt: skip
        if len(set(bound.values())) > 1:
            return f"A was made with {name} {bound['A']} and B with {name} {bound['B']}, which round in another way"
        for side, made in bound.items():
            if made != here[name]:
                who = "both were" if len(bound) == 2 else f"{side} was"
                return f"{who} made with {name} {made}, and here it is {here[name]}: start diff as the run was started"
    return ""


def _is_fixed(recorded: Recorded) -> bool:
    return load_mapping(recorded.folder / "config.yaml", "diff").get("reduction") == "fixed"


def _made_on(recorded: Recorded, step: int | None = None) -> dict[str, Any]:
    """Ranks, device and threads, as the next checkpoint says, else the newest one, else environment.json."""
    later = min((each for each in recorded.steps if step is not None and each >= step), default=None)
    progress = _said(recorded, later if later is not None else max(recorded.steps, default=0))
    if progress:
        return {"ranks": progress["world_size"], **progress.get("made_on", {})}
    about = _read(recorded.folder / "environment.json")
    return {"ranks": about["world_size"], "threads": about["threads"]} if about else {}


@contextlib.contextmanager
def _once_more(recorded: Recorded, begin: int, end: int, at: int, digest_steps: int) -> Generator[Loop]:
    """Replayed as step ``at`` was made."""
    task, config = recorded.config_at(at)
    threads = torch.get_num_threads()
    torch.set_num_threads(_made_on(recorded, at).get("threads", threads))
    try:
        with _opened(recorded, task, replace(config, digest_steps=digest_steps), begin, end) as loop:
            yield loop
    finally:
        torch.set_num_threads(threads)


def _opened(
    recorded: Recorded, task: Task, config: TrainConfig, begin: int, end: int
) -> contextlib.AbstractContextManager[Loop]:
    if begin and not recorded.checkpoints.path(begin).is_dir():
        raise UserError(f"{recorded.checkpoints.path(begin)} is gone; a run that goes on keeps only its newest ones")
    return replayed(task, config, recorded.checkpoints.path(begin) if begin else None, end)


def _digests(recorded: Recorded, begin: int, end: int) -> dict[int, dict[str, Any]]:
    """Of every step after ``begin``; from each of its own checkpoints on the way, as the run went on from them."""
    found: dict[int, dict[str, Any]] = {}
    for interval in recorded.intervals(begin, end):
        with _once_more(recorded, interval.start, interval.end, interval.end, 1) as loop:
            log = compare.digests(loop.session.output_dir) if loop.ranks.is_main else {}
            found |= loop.ranks.from_main(log)
    return found


def _unrepeated(name: str, recorded: Recorded, log: dict[int, dict[str, Any]]) -> Iterator[str]:
    """Where a replay is not what the run has written down."""
    written = compare.digests(recorded.folder)
    step = next((step for step in sorted(log) if step in written and written[step] != log[step]), None)
    if step is not None:
        yield f"{name} itself is not repeated from step {step:,} on: its code, libraries or machine were others then"


def _seen(recorded: Recorded, step: int) -> StepSeen:
    begin = max((each for each in recorded.steps if each < step), default=0)
    with _once_more(recorded, begin, step - 1, step, 0) as loop:
        return witness(loop)
