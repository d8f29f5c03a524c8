"""Are two runs the same? ``python scripts/same_run.py RUN OTHER`` compares every logged number and every weight.

For changes that should change nothing: train with the code before and after, same config and seed, then compare. Times,
rates and the memory of a GPU are left out. Exit code 0: all equal, bit for bit; 1: not, with the first differences.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

CLOCK = ("wall_time", "items_per_s", "step_s", "wait_s", "eta_s")
"""What differs between two runs that are the same."""
MEMORY = "cuda/"
"""How the names of a GPU's memory begin: what was used before in the same process is part of it."""
SHOWN = 10


def records(run: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl`` without what the clock says."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in CLOCK} for line in lines]


def weights_files(run: Path) -> dict[str, bytes]:
    """What the tensor files that a run exported hold, but for the identity in their headers, which also follows from
    the code; those of its checkpoints are the same weights again."""
    found = {path.relative_to(run).as_posix(): path for path in sorted(run.glob("*/**/*.safetensors"))}
    return {name: tensors_in(path) for name, path in found.items() if not name.startswith("checkpoints/")}


def tensors_in(path: Path) -> bytes:
    """A safetensors file without the free text of its header."""
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header.pop("__metadata__", None)
    return json.dumps(header).encode() + content[end:]


def differences(one: Path, other: Path) -> Iterator[str]:
    """A line for each; none: the same."""
    yield from _in_records(records(one), records(other))
    files, others = weights_files(one), weights_files(other)
    if not files:
        yield "no weights to compare"
    if files.keys() != others.keys():
        yield f"files with weights: {', '.join(sorted(files.keys() ^ others.keys()))} is in one run only"
    for name in sorted(files.keys() & others.keys()):
        if files[name] != others[name]:
            found = [f"{name}: {line}" for line in _in_weights(one / name, other / name)]
            yield from found or [f"{name}: the same tensors, in other bytes"]


def _in_records(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> Iterator[str]:
    if len(ours) != len(theirs):
        yield f"metrics.jsonl: {len(ours)} and {len(theirs)} records"
    for a, b in zip(ours, theirs, strict=False):
        for key in sorted(a.keys() | b.keys()):
            if not key.startswith(MEMORY) and repr(a.get(key)) != repr(b.get(key)):
                yield f"metrics.jsonl: {a.get('kind')} at step {a.get('step')}: {key} is {a.get(key)} and {b.get(key)}"


def _in_weights(ours: Path, theirs: Path) -> Iterator[str]:
    weights, others = load_file(ours), load_file(theirs)
    if weights.keys() != others.keys():
        yield f"{', '.join(sorted(weights.keys() ^ others.keys()))} is in one run only"
    for key in sorted(weights.keys() & others.keys()):
        a, b = weights[key], others[key]
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            yield f"{key} is {a.dtype} {tuple(a.shape)} and {b.dtype} {tuple(b.shape)}"
        elif not torch.equal(a, b):
            yield f"{key} differs, by at most {(a.double() - b.double()).abs().max().item():.3g}"


def main() -> int:
    if len(sys.argv) != 3 or not all((Path(run) / "metrics.jsonl").is_file() for run in sys.argv[1:]):
        print("usage: python scripts/same_run.py RUN OTHER, two run folders with metrics.jsonl", file=sys.stderr)
        return 2
    found = list(differences(Path(sys.argv[1]), Path(sys.argv[2])))
    print(*found[:SHOWN], sep="\n", end="\n" if found else "")
    print("the same" if not found else f"{len(found)} difference{'s' if len(found) > 1 else ''}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
