"""reduction: fixed: every bit is the same on any number of ranks."""

from __future__ import annotations

import hashlib

import pytest
import torch
from safetensors.torch import load_file
from support.processes import run
from support.runs import config, records, samples, weights_files

from accel_train.run.checkpoint import CheckpointFolder

WORLDS = (1, 2, 3)
TASKS = {
    "dropout, a short last batch": ("Toy", {"items": 50, "dropout": 0.2}, {}),
    "ragged totals, parts without items": ("Ragged", {"items": 49}, {"global_batch_size": 6}),
    "totals of outputs": ("Outputs", {"items": 49, "dropout": 0.2}, {}),
    "critic and generator": ("Gan", {"items": 49}, {"max_grad_norm": 0.5}),
    "what nobody reaches": ("Unreached", {}, {}),
    "running statistics": ("Normed", {"items": 49}, {}),
    "lanes": ("Grouped", {}, {}),
    "a data set that draws": ("Drawing", {}, {"num_workers": 1}),
}


def job(folder, name, **more):
    task, arguments, settings = TASKS[name]
    extra = more.pop("job", {})
    fixed = {"reduction": "fixed", "reduction_parts": 4, "save_steps": 6, "max_steps": 16}
    return {"task": task, "task_args": arguments, "config": config(folder, **(fixed | settings | more))} | extra


def digests(folder):
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


def assert_equal_bits(folders):
    first, *others = map(digests, folders)
    assert any(name.startswith("optimizer") for name in first)
    for other in others:
        assert other == first


@pytest.mark.parametrize("name", TASKS)
def test_any_number_of_ranks(tmp_path, name):
    folders = {ranks: tmp_path / str(ranks) for ranks in WORLDS}
    seen = []
    for ranks, folder in folders.items():
        results = run(job(folder, name), ranks)
        assert [r["error"] for r in results] == [None] * ranks
        seen.append(samples(results))
        assert len({r["micro_batch_size"] for r in results}) == 1
    assert seen[0] == seen[1] == seen[2]
    assert_equal_bits(folders.values())
    assert all(torch.isfinite(w).all() for w in load_file(next(folders[1].glob("model/*.safetensors"))).values())
