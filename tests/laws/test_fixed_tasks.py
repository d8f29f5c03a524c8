"""reduction: fixed, with the real tasks: many steps, any number of ranks, killed again and again."""

from __future__ import annotations

import itertools

import pytest
from support.digests import assert_equal_bits
from support.processes import Team, run, team, wait_for
from support.runs import config, steps_saved

from accel_train.tasks.gdynet import synth as crystals
from accel_train.tasks.muon import synth as muons

STEPS, RESTARTS = 200, 20
TASKS = {  # arguments, settings
    "Collatz": ({"dropout": 0.1}, {"global_batch_size": 12}),
    "Muon": ({"critic_steps": 1}, {"global_batch_size": 32, "num_workers": 2, "eval_steps": 0}),
    "GDyNet": ({"epochs": 100}, {"global_batch_size": 10, "eval_steps": "10ep"}),
    "Disruptions": ({"dropout": 0.1, "channel_dropout": 0.5}, {"global_batch_size": 12}),
    "Brains": ({"dropout": 0.1}, {"global_batch_size": 12}),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Arguments that say where data are, by task."""
    folder = tmp_path_factory.mktemp("data")
    muons.write(folder / "muon", seed=3, primaries=40, files=3, row_group=30, log10_energy=(5.0, 6.0))
    crystals.synth(folder / "gdynet", seed=3, size=47, clusters=2)
    fnames = {f"{split}_fnames": [str(folder / "gdynet" / split)] for split in ("train", "val")}
    return {"Muon": {"files": f"{folder}/muon/*.parquet"}, "GDyNet": fnames}


def job(folder, task, data, **more):
    arguments, settings = TASKS[task]
    common = {"reduction": "fixed", "reduction_parts": 4, "max_steps": STEPS, "save_steps": STEPS // RESTARTS}
    made = config(folder, **(common | {"eval_steps": 50, "learning_rate": 1e-3} | settings | more))
    return {"task": task, "task_args": arguments | data.get(task, {}), "config": made}


def finished(made, ranks):
    results = team(ranks).run(made, timeout=900) if ranks > 1 else run(made)
    assert [(r["error"], r["outcome"]) for r in results] == [(None, "completed")] * ranks


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("task", TASKS)
def test_every_bit_is_the_same(tmp_path, task, data):
    limits = {1: None, 2: None, 3: 8, 4: 8}  # of micro-batches; a part has at most 8 items
    folders = [tmp_path / f"{ranks}" for ranks in limits]
    for (ranks, limit), folder in zip(limits.items(), folders, strict=True):
        finished(job(folder, task, data, micro_batch_size=limit), ranks)
    killed = job(tmp_path / "killed", task, data)
    worlds = itertools.cycle((2, 1, 4, 3))
    kills = 0
    for ranks in itertools.islice(worlds, RESTARTS):
        several = Team(ranks)
        before = steps_saved(tmp_path / "killed")
        members = several.start(killed)
        wait_for(
            lambda b=before, m=members: steps_saved(tmp_path / "killed") != b or not m[0].alive() or m[0].ready(),
            300,
            "a checkpoint",
        )
        kills += not members[0].ready()
        several.close()
    print(f"{task}: {kills} kills, the last one after step {steps_saved(tmp_path / 'killed')[-1]}")
    finished(killed, next(worlds))
    assert kills >= RESTARTS // 2
    assert_equal_bits([*folders, tmp_path / "killed"])
