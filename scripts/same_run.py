"""Are two runs the same? ``python scripts/same_run.py RUN OTHER`` compares every logged number and every weight.

For changes that should change nothing: train with the code before and after, same config and seed, then compare. Times
and rates are left out. Exit code 0: all equal, bit for bit; 1: not, with the first differences.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file

CLOCK = ("wall_time", "items_per_s", "step_s", "wait_s", "eta_s")
SHOWN = 10


def differences(one: Path, other: Path) -> Iterator[str]:
    records, others = (
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (one, other)
    )
    if len(records) != len(others):
        yield f"metrics.jsonl: {len(records)} and {len(others)} records"
    for a, b in zip(records, others, strict=False):
        for key in sorted((a.keys() | b.keys()) - set(CLOCK)):
            if repr(a.get(key)) != repr(b.get(key)):
                yield f"metrics.jsonl: {a.get('kind')} at step {a.get('step')}: {key} is {a.get(key)} and {b.get(key)}"
    files, theirs = (
        {path.relative_to(run): path for path in sorted(run.glob("[!c]*/**/*.safetensors"))} for run in (one, other)
    )  # those of checkpoints are the same weights again
    if files.keys() != theirs.keys():
        yield f"files with weights: {', '.join(map(str, files.keys() ^ theirs.keys()))} is in one run only"
    for name in sorted(files.keys() & theirs.keys()):
        weights, others = load_file(files[name]), load_file(theirs[name])
        if weights.keys() != others.keys():
            yield f"{name}: {', '.join(weights.keys() ^ others.keys())} is in one run only"
        for key in sorted(weights.keys() & others.keys()):
            if not torch.equal(weights[key], others[key]):
                yield f"{name}: {key} differs, by at most {(weights[key] - others[key]).abs().max().item():.3g}"
    if not files:
        yield "no weights to compare"


def main() -> int:
    if len(sys.argv) != 3 or not all((Path(run) / "metrics.jsonl").is_file() for run in sys.argv[1:]):
        print("usage: python scripts/same_run.py RUN OTHER, two run folders with metrics.jsonl", file=sys.stderr)
        return 2
    found = list(differences(Path(sys.argv[1]), Path(sys.argv[2])))
    print(*found[:SHOWN], sep="\n", end="\n" if found else "")
    print("the same" if not found else f"{len(found)} differences")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
