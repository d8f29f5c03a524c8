"""Evaluating, logging, saving, monitoring and reading ahead do not change what is learned, not by a bit."""

from __future__ import annotations

import pytest
from support.processes import run
from support.runs import config, records, samples, steps_saved

PLAIN = dict(eval_steps=0, save_steps=None, logging_steps=12, num_workers=0)
BYSTANDERS = {
    "evaluation": (dict(eval_steps=3), {}),
    "evaluation at the end": (dict(eval_steps=None), {}),
    "evaluation by epochs": (dict(eval_steps="1ep"), {}),
    "logging": (dict(logging_steps=1), {}),
    "digests": (dict(digest_steps=1), {}),
    "no digests": (dict(digest_steps=0), {}),
    "saving": (dict(save_steps=2, save_total_limit=1), {}),
    "saving by the clock": (dict(save_steps="0.001s"), {}),
    "histograms": (dict(report_to=["tensorboard"], histogram_steps=5), {}),
    "the first batch": (dict(report_first_batch=True), {}),
    "monitoring": (dict(monitor_steps=3), {}),
    "a thread": (dict(num_workers=1), {"task_args": {"dropout": 0.2, "slow_read": 0.0004}}),
    "threads": (dict(num_workers=3), {"task_args": {"dropout": 0.2, "slow_read": 0.0004}}),
    "worker processes": (dict(num_workers=2, worker_type="process"), {}),
    "reading far ahead": (dict(num_workers=1), {"prefetch": 40, "task_args": {"dropout": 0.2, "slow_read": 0.0004}}),
    "not reading ahead": (dict(num_workers=1), {"prefetch": 0, "task_args": {"dropout": 0.2, "slow_read": 0.0004}}),
    "all at once": (dict(eval_steps=2, logging_steps=1, save_steps=3, monitor_steps=2, num_workers=2), {}),
}


def exported(folder):
    return (folder / "model" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def quiet(tmp_path_factory):
    made = {}

    def get(ranks):
        if ranks not in made:
            folder = tmp_path_factory.mktemp("quiet")
            results = run({"task_args": {"dropout": 0.2}, "config": config(folder, **PLAIN)}, ranks)
            made[ranks] = exported(folder), samples(results), records(folder)
        return made[ranks]

    return get


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of TensorBoard
@pytest.mark.parametrize("name", BYSTANDERS)
def test_one_process(tmp_path, quiet, name):
    settings, job = BYSTANDERS[name]
    results = run({"task_args": {"dropout": 0.2}} | job | {"config": config(tmp_path, **(PLAIN | settings))})
    weights, seen, history = quiet(1)
    assert results[0]["error"] is None
    assert samples(results) == seen
    assert exported(tmp_path) == weights
    if settings.get("logging_steps", 12) == 12:
        assert [r for r in records(tmp_path) if r["kind"] == "train"] == history
    if "monitor_steps" in settings:
        assert [kind for kind, _ in results[0]["events"]].count("anomaly") == 24 // settings["monitor_steps"]
    if settings.get("save_steps") in (2, "0.001s"):
        assert steps_saved(tmp_path)[-1] == 24


@pytest.mark.parametrize("name", ["evaluation", "saving", "monitoring", "histograms", "all at once"])
def test_two_ranks(tmp_path, quiet, name):
    settings, job = BYSTANDERS[name]
    results = run({"task_args": {"dropout": 0.2}} | job | {"config": config(tmp_path, **(PLAIN | settings))}, 2)
    weights, seen, _ = quiet(2)
    assert samples(results) == seen
    assert exported(tmp_path) == weights
