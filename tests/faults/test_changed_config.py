"""Starting again with another config: another run is refused by name, what may change is said aloud."""

from __future__ import annotations

import numpy as np
import pytest
from support.processes import run
from support.runs import assert_same_run, config, steps_saved, weights_files


@pytest.fixture
def stopped(tmp_path):
    """A run that stopped at step 10."""
    run({"config": config(tmp_path / "run"), "stop_at": {"step": 10}})
    return tmp_path / "run"


def warnings(result):
    return [title for kind, title in result["events"] if kind == "warning"]


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"config": {"seed": 3}}, "seed: 0 -> 3"),
        ({"config": {"global_batch_size": 9}}, "global_batch_size: 8 -> 9"),
        ({"task_args": {"items": 51}}, "items: 50 -> 51"),
        ({"task_args": {"dropout": 0.3}}, "dropout: 0.0 -> 0.3"),
        ({"task": "Ragged"}, "Ragged"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_another_run_is_refused(stopped, change, key):
    before = steps_saved(stopped)
    job = {"config": config(stopped, **change.get("config", {}))} | {k: v for k, v in change.items() if k != "config"}
    (result,) = run(job)
    kind, text = result["error"]
    assert kind == "UserError" and key in text and "another run" in text
    assert steps_saved(stopped) == before
    assert run({"config": config(stopped)})[0]["outcome"] == "completed", "refusing has broken the run"


def test_two_ranks_refuse_together(stopped):
    for result in run({"config": config(stopped, seed=3)}, 2):
        assert result["error"][0] == "UserError" and "seed: 0 -> 3" in result["error"][1]


def test_unless_one_insists(stopped):
    (result,) = run({"config": config(stopped, seed=3, allow_changed_config=True)})
    assert result["outcome"] == "completed" and min(result["samples"]) == 11
    assert any("seed: 0 -> 3" in text for text in warnings(result))


def test_what_may_change_is_said_aloud(stopped):
    settings = dict(max_steps=30, learning_rate=0.02, micro_batch_size=3, num_workers=1)
    (result,) = run({"config": config(stopped, **settings), "task_args": {"slow": 0.0001}})
    assert (result["outcome"], result["step"]) == ("completed", 30)
    for name in [*settings, "slow"]:
        assert any(f"{name}: " in text and "changed config" in text for text in warnings(result)), name


def test_an_unchanged_config_says_nothing(stopped):
    (event,) = run({"config": config(stopped)})[0]["events"]
    assert event[1].startswith("before: 1 evaluation, best loss")


def test_init_from_takes_the_weights_only(stopped, tmp_path):
    (result,) = run({"config": config(tmp_path / "new", init_from=str(stopped), max_steps=1, learning_rate=0.0)})
    assert result["samples"].keys() == {1} and result["error"] is None
    (old,) = run({"config": config(stopped, max_steps=10)})
    for name, value in result["weights"].items():
        assert (value == old["weights"][name]).all()
    # its own optimiser: the same as from an exported model of the same weights
    run({"config": config(stopped, max_steps=10)})
    (one,) = run({"config": config(tmp_path / "a", init_from=str(stopped / "model"))})
    (two,) = run({"config": config(tmp_path / "b", init_from=str(stopped / "checkpoints/step-000000010"))})
    assert one["samples"].keys() == set(range(1, 25))
    assert_same_run(tmp_path / "a", tmp_path / "b")
    assert not np.array_equal(one["weights"]["model.0.weight"], result["weights"]["model.0.weight"])
    assert two["outcome"] == "completed"


def test_resuming_comes_before_init_from(stopped, tmp_path):
    settings = config(tmp_path / "new", init_from=str(stopped))
    run({"config": settings, "stop_at": {"step": 5}})
    (result,) = run({"config": settings})
    assert min(result["samples"]) == 6
    assert any("init_from: not used" in str(event) for event in result["events"])
    run({"config": config(tmp_path / "whole", init_from=str(stopped))})
    assert_same_run(tmp_path / "new", tmp_path / "whole")


def test_never_sets_the_old_ones_aside(stopped, tmp_path):
    (result,) = run({"config": config(stopped, resume_from_checkpoint="never", save_steps=4)})
    assert min(result["samples"]) == 1 and result["outcome"] == "completed"
    aside = sorted(p.name for p in (stopped / "checkpoints").glob("set-aside-*"))
    assert "set-aside-step-000000010" in aside
    assert any("set aside" in text for text in warnings(result))
    run({"config": config(tmp_path / "fresh", save_steps=4)})
    assert_same_run(stopped, tmp_path / "fresh")


def test_going_on_from_an_older_one_sets_the_newer_ones_aside(tmp_path):
    settings = dict(save_steps=4, save_total_limit=None)
    run({"config": config(tmp_path / "whole", **settings)})
    run({"config": config(tmp_path / "run", **settings), "stop_at": {"step": 13}})
    older = str(tmp_path / "run/checkpoints/step-000000008")
    (result,) = run({"config": config(tmp_path / "run", resume_from_checkpoint=older, **settings)})
    assert min(result["samples"]) == 9
    assert any("step-000000013" in text for text in warnings(result))
    assert weights_files(tmp_path / "run") == weights_files(tmp_path / "whole")
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("ranks", [1, 2])
def test_another_optimizer_class_is_refused(stopped, ranks):
    for result in run({"config": config(stopped, optimizer={"class_path": "SGD"})}, ranks):
        kind, text = result["error"]
        assert kind == "UserError" and "optimizer state of AdamW" in text and "init_from" in text
    for result in run({"config": config(stopped, optimizer={"class_path": "torch.optim.AdamW"}, max_steps=11)}, ranks):
        assert result["error"] is None


def test_changed_options_of_the_optimizer_count_from_now_on(tmp_path):
    """After one step with a rate of 0, a first session leaves the weights of the beginning and empty averages."""
    decay = {"learning_rate": 0.0, "optimizer": {"init_args": {"betas": [0.0, 0.0]}}}
    run({"config": config(tmp_path / "run", max_steps=3, **decay)})
    (one,) = run({"config": config(tmp_path / "other", max_steps=4, **decay)})
    changed = {"learning_rate": 1.0, "optimizer": {"init_args": {"betas": [0.0, 0.0], "weight_decay": 0.5, "eps": 1e9}}}
    (two,) = run({"config": config(tmp_path / "run", max_steps=4, **changed)})
    for name, value in two["weights"].items():
        assert np.allclose(value, 0.5 * one["weights"][name], atol=1e-6), "decayed by half, hardly moved otherwise"


def test_parameters_do_not_change_groups_on_resume(stopped):
    (result,) = run({"config": config(stopped, optimizer={"no_weight_decay": ["*.bias"]})})
    kind, text = result["error"]
    assert kind == "UserError" and "with no_weight_decay [], which cannot change on resume" in text


def test_a_run_whose_biases_do_not_decay_goes_on_bit_for_bit(tmp_path):
    settings = {"optimizer": {"no_weight_decay": ["*.bias"], "init_args": {"weight_decay": 0.3}}}
    run({"config": config(tmp_path / "whole", **settings)})
    run({"config": config(tmp_path / "run", **settings), "stop_at": {"step": 13}})
    run({"config": config(tmp_path / "run", **settings)})
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_an_option_that_needs_more_state_is_refused(stopped):
    (result,) = run({"config": config(stopped, optimizer={"init_args": {"amsgrad": True}})})
    assert result["error"][0] == "UserError" and "amsgrad of AdamW cannot change on resume" in result["error"][1]


def test_a_checkpoint_of_another_version_is_refused_in_a_line(stopped, monkeypatch):
    before = steps_saved(stopped)
    with monkeypatch.context() as another:
        another.setattr("accel_train.run.checkpoint.VERSION", 99)
        (result,) = run({"config": config(stopped)})
    kind, text = result["error"]
    assert kind == "UserError" and "another version of accel_train wrote this checkpoint (format 2, this one" in text
    assert steps_saved(stopped) == before
    assert run({"config": config(stopped)})[0]["outcome"] == "completed", "refusing has broken the run"
