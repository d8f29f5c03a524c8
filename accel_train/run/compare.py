"""What differs between two runs: records of their logs, tensors of their files, what their checkpoints say besides."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accel_train.config.plain import flatten
from accel_train.run import identity
from accel_train.run.checkpoint import CONTENTS, CONTENTS_VALIDATION, MANIFEST, PROGRESS
from accel_train.system.writing import files_in

if TYPE_CHECKING:
    from torch import Tensor

CLOCK = ("wall_time", "items_per_s", "step_s", "wait_s", "eta_s")
"""What differs between two runs that are the same."""
MACHINE = ("gpu/", "host/", "slowest/")
"""And how the names begin of what is measured of machines."""
MEMORY = "cuda/"
"""How the names of a GPU's memory begin: what was used before in the same process is part of it."""
LEARNED = ("position", "scalars", "best_model", "skipped_in_row", "stepper", "phases")
"""What a checkpoint's progress says of training; the rest says where it was trained."""


@dataclass(frozen=True)
class Difference:
    """One value that is not the same.

    Args:
        place: the step of a record, or the file of a tensor.
        relative: the largest difference, of the largest value there; infinite where the two cannot be compared.
    """

    place: str
    name: str
    ours: str
    theirs: str
    relative: float = math.inf

    def __str__(self) -> str:
        return f"{self.place}: {self.name} is {self.ours} and {self.theirs}"


def records(run: Path, after: int = -1, until: int | None = None) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl`` of these steps, without what the clock says. One torn by a kill is left out."""
    found = []
    for line in (run / "metrics.jsonl").read_text(errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if after < record.get("step", 0) and (until is None or record.get("step", 0) <= until):
            found.append({k: v for k, v in record.items() if k not in CLOCK and not k.startswith(MACHINE)})
    return found


def digests(run: Path, until: int | None = None) -> dict[int, dict[str, Any]]:
    """The lines of ``digests.jsonl`` by step, where there are any."""
    if not (run / "digests.jsonl").is_file():
        return {}
    found = {}
    for line in (run / "digests.jsonl").read_text(errors="replace").splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            record = json.loads(line)
            found[int(record.pop("step"))] = record
    return {step: record for step, record in found.items() if until is None or step <= until}


def in_records(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> Iterator[Difference]:
    """In the order of the records."""
    for a, b in zip(ours, theirs, strict=False):
        for key in sorted(a.keys() | b.keys()):
            one, other = a.get(key), b.get(key)
            if not key.startswith(MEMORY) and repr(one) != repr(other):
                place = f"metrics.jsonl: {a.get('kind')} at step {a.get('step')}"
                yield Difference(place, key, str(one), str(other), _apart(one, other))
    if len(ours) != len(theirs):
        yield Difference("metrics.jsonl", "the number of records", str(len(ours)), str(len(theirs)))


def in_progress(ours: dict[str, Any], theirs: dict[str, Any]) -> Iterator[Difference]:
    """In what two checkpoints hold besides tensors: position, scalars that are not logged yet, evaluations, loss
    scales. An evaluation that one of them still owes is no difference."""
    owed = any(each.get("evaluation_owed_after") is not None for each in (ours, theirs))
    names = [name for name in LEARNED if not (owed and name == "best_model")]
    one, other = (flatten({name: _by_number(each.get(name)) for name in names}) for each in (ours, theirs))
    for key in sorted(one.keys() | other.keys()):
        a, b = one.get(key), other.get(key)
        if repr(a) != repr(b):
            yield Difference(PROGRESS, key, str(a), str(b), _apart(a, b))


def _by_number(tree: Any) -> Any:
    """Lists as dicts, so that what differs in them has a name; as it is after JSON."""
    if isinstance(tree, dict):
        return {name: _by_number(sub) for name, sub in tree.items()}
    return {str(i): _by_number(sub) for i, sub in enumerate(tree)} if isinstance(tree, (list, tuple)) else tree


def _apart(one: Any, other: Any) -> float:
    if not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in (one, other)):
        return math.inf
    return abs(one - other) / (max(abs(one), abs(other)) or 1.0)


# -- tensors ---------------------------------------------------------------------------------------------------------


def tensor_files(folder: Path) -> dict[str, Path]:
    """The files of a checkpoint that hold tensors, by name: models, optimisers, averages. The states of generators are
    not among them, since no step depends on these; nor is what says where the weights and the data come from."""
    names = {str(path.relative_to(folder)): path for path in files_in(folder)}
    others = (MANIFEST, PROGRESS, identity.FILE, CONTENTS, CONTENTS_VALIDATION, "config.yaml")
    return {n: path for n, path in sorted(names.items()) if n not in others and not n.startswith("random_states")}


def tensors_of(file: Path) -> dict[str, Tensor]:
    """By name. Of a file that is neither safetensors nor torch's, its bytes."""
    import torch

    from accel_train.run.weights import load_tensors

    if file.suffix == ".safetensors":
        return {name.removeprefix("trained."): tensor for name, tensor in load_tensors(file).items()}
    if file.suffix in (".bin", ".pt"):
        flat = flatten(_by_number(torch.load(file, map_location="cpu", weights_only=True, mmap=True)))
        values = {key: value for key, value in flat.items() if isinstance(value, (bool, int, float, torch.Tensor))}
        return {name: torch.as_tensor(value) for name, value in values.items()}
    return {"": torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8)}


def in_tensors(place: str, ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> Iterator[Difference]:
    """Down to the bit: zeros of different sign differ, and NaNs are equal to themselves."""
    for name in sorted(ours.keys() | theirs.keys()):
        a, b = ours.get(name), theirs.get(name)
        if a is None or b is None or (a.shape, a.dtype) != (b.shape, b.dtype):
            yield Difference(place, name, _kind(a), _kind(b))
        elif not _same_bits(a, b):
            yield Difference(place, name, *_furthest(a, b))


def _kind(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else f"{tensor.dtype} {tuple(tensor.shape)}"


def _same_bits(a: Tensor, b: Tensor) -> bool:
    import torch

    return torch.equal(*(each.detach().cpu().contiguous().flatten().view(torch.uint8) for each in (a, b)))


def _furthest(a: Tensor, b: Tensor) -> tuple[str, str, float]:
    """The two values where they are furthest apart, and how far that is of the largest value."""
    import torch

    wide = torch.complex128 if a.is_complex() else torch.float64
    one, other = a.detach().to(wide).flatten(), b.detach().to(wide).flatten()
    apart = torch.nan_to_num((one - other).abs(), nan=math.inf)
    at = int(apart.argmax())
    size = float(torch.nan_to_num(torch.maximum(one.abs(), other.abs())).max()) or 1.0
    where = f" in element {at}" if a.numel() > 1 else ""
    return f"{one[at].item()!r}{where}", repr(other[at].item()), float(apart[at]) / size
