"""reduction: fixed: every bit is the same on any number of ranks."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from support.digests import assert_equal_bits
from support.processes import kill_at_checkpoints, run
from support.runs import config, distance, records, samples

from accel_train import evaluate_run
from accel_train.config.plain import differences
from accel_train.config.schema import TrainConfig
from accel_train.errors import UserError

WORLDS = (1, 2, 3)
TASKS = {
    "dropout, a short last batch": ("Toy", {"items": 50, "dropout": 0.2}, {}),
    "ragged totals, parts without items": ("Ragged", {"items": 49}, {"global_batch_size": 6}),
    "totals of outputs": ("Outputs", {"items": 49, "dropout": 0.2, "float64": True}, {}),
    "critic and generator": ("Gan", {"items": 49}, {"max_grad_norm": 0.5}),
    "what nobody reaches": ("Unreached", {}, {}),
    "running statistics": ("Normed", {"items": 48}, {"global_batch_size": 16}),
    "a share that is not finite": ("Sore", {}, {}),
    "one that is not finite and reaches nothing": ("Sore", {"detached": True}, {}),
    "gradients that one backward adds to twice": ("Checkpointed", {"items": 49, "twice": True}, {}),
    "a data set that draws": ("Drawing", {}, {"num_workers": 1}),
}


def job(folder, name, **more):
    task, arguments, settings = TASKS[name]
    extra = more.pop("job", {})
    fixed = {"reduction": "fixed", "reduction_parts": 4, "save_steps": 6, "max_steps": 16}
    return {"task": task, "task_args": arguments, "config": config(folder, **(fixed | settings | more))} | extra


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


def test_killed_and_resumed_on_other_numbers_of_ranks(tmp_path):
    name = "dropout, a short last batch"
    run(job(tmp_path / "whole", name))
    killed = job(tmp_path / "pieces", name)
    kill_at_checkpoints(killed, times=1)
    for ranks, stop in ((3, 8), (2, 11), (1, 13), (3, None)):
        results = run(killed | {"stop_at": stop and {"step": stop}}, ranks)
        assert [r["error"] for r in results] == [None] * ranks
    assert_equal_bits([tmp_path / "whole", tmp_path / "pieces"])


def test_a_larger_micro_batch_and_workers_change_nothing(tmp_path):
    name = "ragged totals, parts without items"
    settings = [{}, {"micro_batch_size": 2}, {"micro_batch_size": 5, "num_workers": 3}]
    for i, more in enumerate(settings):
        run(job(tmp_path / str(i), name, **more))
    assert_equal_bits([tmp_path / str(i) for i in range(len(settings))])


def test_the_saved_model_has_the_metrics_of_training(tmp_path):
    run(job(tmp_path, "ragged totals, parts without items"))
    last = [record for record in records(tmp_path) if record["kind"] == "eval"][-1]
    assert evaluate_run(tmp_path, checkpoint="latest").metrics == {"loss": last["loss"]}


def test_nearly_what_the_ordinary_reduction_gives(tmp_path):
    name = "ragged totals, parts without items"
    double = {"task_args": {"items": 49, "float64": True}}
    (fixed,) = run(job(tmp_path / "fixed", name, job=double))
    (ordinary,) = run(job(tmp_path / "ordinary", name, job=double, reduction="ordinary"))
    assert distance(fixed["weights"], ordinary["weights"]) < 1e-9


def test_an_item_too_large_ends_all_ranks_in_one_line(tmp_path):
    name = "dropout, a short last batch"
    for place in ({"rank": 1, "steps": [3]}, {}):
        results = run(job(tmp_path, name, job={"faults": {"oom": {"above": 1, **place}}}), 2)
        for result in results:
            kind, text = result["error"]
            assert kind == "UserError" and "raise reduction_parts" in text


@pytest.mark.parametrize(
    ("task", "settings", "ranks", "line"),
    [
        ({"task": "Toy"}, {"reduction_parts": 1}, 2, "at most 1 process"),
        ({"task": "Communicating"}, {}, 1, "take another norm"),
        ({"task": "Streams", "task_args": {"lengths": [10]}}, {}, 1, "know their length"),
    ],
)
def test_what_cannot_have_it_is_refused(tmp_path, task, settings, ranks, line):
    made = task | {"config": config(tmp_path, **({"reduction": "fixed", "reduction_parts": 4} | settings))}
    for result in run(made, ranks):
        kind, text = result["error"]
        assert kind == "UserError" and line in text and "\n" not in text


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"micro_batch_size": 1}, "a part of 8 / 4 = 2 items"),
        ({"per_device_batch_size": 4}, "give global_batch_size"),
    ],
)
def test_settings_that_contradict_it(settings, line):
    with pytest.raises(UserError, match=line):
        TrainConfig(global_batch_size=8, reduction="fixed", reduction_parts=4, **settings)


def test_older_checkpoints_had_the_ordinary_one():
    assert differences({"seed": 1}, {"seed": 1, "reduction": "ordinary", "reduction_parts": 8}) == ([], [])
    assert differences({"seed": 1}, {"seed": 1, "reduction": "fixed"})[1] == ["reduction: ordinary -> fixed"]
