"""What a run has made, as SHA-256."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import torch

from accel_train.run.checkpoint import CheckpointFolder
from support.runs import records, weights_files


def digests(folder: Path) -> dict[str, str]:
    """Of weights, optimiser state, running statistics and logged values."""
    found = {name: hashlib.sha256(data).hexdigest() for name, data in weights_files(folder).items()}
    checkpoints = CheckpointFolder(folder / "checkpoints")
    last = checkpoints.path(checkpoints.steps()[-1])
    for path in sorted(last.glob("optimizer*")):
        state = torch.load(path, weights_only=True)["state"]
        tensors = [(i, key, value) for i, each in state.items() for key, value in sorted(each.items())]
        text = "".join(f"{i} {key} {torch.as_tensor(value).numpy().tobytes().hex()}" for i, key, value in tensors)
        found[path.name] = hashlib.sha256(text.encode()).hexdigest()
    found["metrics.jsonl"] = hashlib.sha256(repr(records(folder)).encode()).hexdigest()
    return found


def assert_equal_bits(folders: Iterable[Path]) -> None:
    first, *others = map(digests, folders)
    assert any(name.startswith("optimizer") for name in first)
    for other in others:
        assert other == first
