"""Are two runs the same? ``python scripts/same_run.py RUN OTHER`` compares every logged number and every weight.

For changes that should change nothing: train with the code before and after, same config and seed, then compare. Times,
rates and the memory of a GPU are left out. Exit code 0: all equal, bit for bit; 1: not, with the first differences.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from accel_train.run.compare import in_records, in_tensors, records
from accel_train.run.weights import load_tensors

SHOWN = 10


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
    yield from map(str, in_records(records(one), records(other)))
    files, others = weights_files(one), weights_files(other)
    if not files:
        yield "no weights to compare"
    if files.keys() != others.keys():
        yield f"files with weights: {', '.join(sorted(files.keys() ^ others.keys()))} is in one run only"
    for name in sorted(files.keys() & others.keys()):
        if files[name] != others[name]:
            found = [str(each) for each in in_tensors(name, load_tensors(one / name), load_tensors(other / name))]
            yield from found or [f"{name}: the same tensors, in other bytes"]


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
