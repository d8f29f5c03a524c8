"""A run that was stopped anywhere and started again is, bit for bit, the run that was never stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.processes import run
from support.runs import assert_same_run, config, records, samples, steps_saved, weights_files

DROPOUT = {"dropout": 0.2}
STOPS = {
    "inside a log interval": [3],
    "epoch end": [7],
    "log and evaluation": [10, 12],
    "many, twice the same epoch": [3, 5, 7, 16, 23],
}
LOADERS = {
    "in the loop": {"num_workers": 0},
    "threads": {"num_workers": 2, "worker_type": "thread"},
    "processes": {"num_workers": 2, "worker_type": "process"},
}


def in_pieces(folder, stops, ranks=1, more=(), **job):
    """Stop after each of these steps and start again; at last to the end."""
    seen = {}
    for stop in [*stops, None]:
        now = dict(job, config=config(folder, **dict(more)), stop_at=stop and {"step": stop})
        results = run(now, ranks)
        for result in results:
            assert result["error"] is None
        assert results[0]["outcome"] == ("stopped" if stop else "completed")
        assert stop in (None, results[0]["step"])
        assert not seen.keys() & samples(results).keys(), "a step was trained twice"
        seen |= samples(results)
    return seen, results


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Uninterrupted runs by (ranks, settings), made once."""
    made = {}

    def get(ranks=1, more=(), **job):
        name = json.dumps([ranks, dict(more), job])
        if name not in made:
            folder = tmp_path_factory.mktemp("whole")
            results = run(dict(job, config=config(folder, **dict(more))), ranks)
            assert results[0]["outcome"] == "completed"
            made[name] = folder, samples(results), results
        return made[name]

    return get


@pytest.mark.parametrize("loader", ["in the loop", "threads"])
@pytest.mark.parametrize("stops", STOPS.values(), ids=STOPS)
def test_one_process(tmp_path, whole, stops, loader):
    folder, expected, _ = whole(task_args=DROPOUT)
    # so slow to read that the threads are used, which a fast source would not need
    arguments = DROPOUT | ({"slow_read": 0.0004} if loader == "threads" else {})
    seen, _ = in_pieces(tmp_path, stops, more=LOADERS[loader].items(), task_args=arguments)
    assert seen == expected
    assert_same_run(tmp_path, folder)


def test_one_process_with_worker_processes(tmp_path, whole):
    folder, expected, _ = whole(more={"eval_steps": 0}.items(), task_args=DROPOUT)
    more = (LOADERS["processes"] | {"eval_steps": 0}).items()  # every evaluation would start its own processes
    seen, _ = in_pieces(tmp_path, [10], more=more, task_args=DROPOUT)
    assert seen == expected
    assert_same_run(tmp_path, folder)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("loader", LOADERS.values(), ids=LOADERS)
def test_every_step(tmp_path, whole, loader, ranks):
    stops, more = range(1, 24), loader.items()
    if loader.get("worker_type") == "process":  # every evaluation would start its own
        stops, more = [1, 7, 8, 23], (loader | {"eval_steps": 0}).items()
    folder, expected, _ = whole(ranks, more=[("eval_steps", dict(more).get("eval_steps", 6))], task_args=DROPOUT)
    for stop in stops:
        seen, _ = in_pieces(tmp_path / str(stop), [stop], ranks, more=more, task_args=DROPOUT)
        assert seen == expected
        assert_same_run(tmp_path / str(stop), folder)


@pytest.mark.parametrize("stops", STOPS.values(), ids=STOPS)
def test_two_ranks(tmp_path, whole, stops):
    folder, expected, _ = whole(2, task_args=DROPOUT)
    seen, _ = in_pieces(tmp_path, stops, 2, task_args=DROPOUT)
    assert seen == expected
    assert_same_run(tmp_path, folder)


def test_two_ranks_with_loader_threads_and_micro_batches(tmp_path, whole):
    more = dict(micro_batch_size=3, num_workers=2).items()
    job = {"task": "Ragged", "task_args": DROPOUT | {"items": 49, "slow_read": 0.0004}}
    folder, expected, _ = whole(2, more=more, **job)
    seen, _ = in_pieces(tmp_path, [6, 7], 2, more=more, **job)
    assert seen == expected
    assert_same_run(tmp_path, folder)


@pytest.mark.parametrize("ranks", [1, 2])
def test_two_networks_with_an_optimiser_each(tmp_path, whole, ranks):
    """Nothing may hide between two steps: no gradient left in a network that another objective only read."""
    folder, expected, _ = whole(ranks, task="Gan")
    seen, _ = in_pieces(tmp_path, [3, 7, 16], ranks, task="Gan")
    assert seen == expected
    assert_same_run(tmp_path, folder)


def test_phase_switch_keeps_the_optimiser_also_when_stopped_exactly_there(tmp_path, whole):
    phases = [{"objectives": ["square"], "length": "9st"}, {"objectives": ["absolute"], "length": 6}, {}]
    more = dict(phases=phases, logging_steps=4).items()
    folder, _, (result,) = whole(more=more, task="TwoLosses", task_args=DROPOUT)
    wanted = [(s, n) for s in range(1, 25) for n in ("square", "absolute") if s > 15 or (s <= 9) == (n == "square")]
    assert result["updates"] == wanted
    _seen, _ = in_pieces(tmp_path, [9, 15], more=more, task="TwoLosses", task_args=DROPOUT)
    assert_same_run(tmp_path, folder)
    progress = json.loads((Path(tmp_path) / "checkpoints" / "step-000000024" / "progress.json").read_text())
    assert progress["position"]["phase"] == 2 and progress["position"]["phase_step"] == 15


@pytest.mark.parametrize("ranks", [1, 2])
def test_early_stopping_and_best_model(tmp_path, whole, ranks):
    """The counter and the best value are restored: the same end, at the same step, with the same best model."""
    # a rate at which the validation loss jumps about
    more = dict(max_steps=200, eval_steps=3, early_stopping_patience=4, learning_rate=0.3).items()
    folder, _, (result, *_) = whole(ranks, more=more)
    assert result["step"] < 200 and "did not improve in 4" in result["reason"]
    best = result["best"]["step"]
    assert best < result["step"] - 6
    stops = [best + 1, best + 4, best + 7]
    _, (again, *_) = in_pieces(tmp_path, stops, ranks, more=more)
    for name in ("step", "best", "reason", "progress"):
        assert again[name] == result[name], name
    assert "best/model.safetensors" in weights_files(tmp_path)
    assert_same_run(tmp_path, folder)
    run({"config": config(tmp_path, **dict(more))}, ranks)  # and a scheduler that starts it once more trains no further
    assert_same_run(tmp_path, folder)


def test_plateau_schedule(tmp_path, whole):
    more = dict(max_steps=60, eval_steps=3, learning_rate=0.3, lr_scheduler_type="plateau",
                lr_scheduler_kwargs={"patience": 1, "factor": 0.5}, warmup_steps=4).items()  # fmt: skip
    folder, _, _ = whole(more=more)
    rates = {record["lr"] for record in records(folder) if record["kind"] == "train"}
    assert len(rates) >= 3, "the schedule did nothing"
    in_pieces(tmp_path, [11, 30, 31], more=more)
    assert_same_run(tmp_path, folder)


@pytest.mark.parametrize("kind", ["cosine", "linear", "step"])
def test_schedules(tmp_path, whole, kind):
    options = {"step_size": 5} if kind == "step" else {}
    more = dict(lr_scheduler_type=kind, lr_scheduler_kwargs=options, warmup_steps="1ep").items()
    folder, _, _ = whole(more=more)
    assert len({record["lr"] for record in records(folder) if record["kind"] == "train"}) >= 4
    in_pieces(tmp_path, [4, 19], more=more)
    assert_same_run(tmp_path, folder)


def test_a_finished_run_started_again_changes_nothing(tmp_path):
    job = {"config": config(tmp_path)}
    run(job)
    before, history = weights_files(tmp_path), records(tmp_path)
    (result,) = run(job)
    assert (result["outcome"], result["step"], result["samples"]) == ("completed", 24, {})
    assert weights_files(tmp_path) == before and records(tmp_path) == history


def test_a_longer_run_is_the_same_as_one_that_was_long_from_the_start(tmp_path, whole):
    folder, _, _ = whole(task_args=DROPOUT)
    # at step 18 an evaluation is due anyway; the end of the short run adds none
    run({"config": config(tmp_path, max_steps=18), "task_args": DROPOUT})
    run({"config": config(tmp_path), "task_args": DROPOUT})
    assert weights_files(tmp_path) == weights_files(folder)
    assert steps_saved(tmp_path)[-1] == 24
