"""VAMP losses are no means over items; still any cut, any number of ranks, any interruption gives the same run."""

from __future__ import annotations

import pytest
from support.processes import kill_at_checkpoints, run
from support.runs import assert_same_run, config, samples

from accel_train.tasks.gdynet.synth import synth

TAU, FRAMES, BATCH = 3, 47, 10
IN_EPOCH = 5  # of 44 pairs: the last batch has 4
LOSSES = ["vamp2", "vamp1", "vamp1_true", "vampe"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gdynet") / "data"
    synth(folder, seed=3, size=FRAMES, clusters=3)
    return folder


def job(folder, data, task_args=None, **settings):
    arguments = {"train_fnames": [str(data / "train")], "val_fnames": [str(data / "val")], "epochs": 2}
    arguments |= task_args or {}
    settings = dict(global_batch_size=BATCH, learning_rate=3e-3, max_grad_norm=None, seed=5, max_steps=None) | settings
    return {"task": "GDyNet", "task_args": arguments, "config": config(folder, **settings)}


def furthest(one, other):
    """Absolute: one bias has no effect at all (the softmax over neighbours), so its size says nothing."""
    return max(abs(one["weights"][name] - other["weights"][name]).max() for name in other["weights"])


@pytest.mark.parametrize("lobes", ["shared", "separate"])
def test_ranks_and_cuts_change_nothing(tmp_path, data, lobes):
    arguments = {"float64": True, "lobes": lobes, "loss_schedule": LOSSES, "epochs": 1}
    # Adam makes much of gradients that are zero but for rounding, and large steps of any difference.
    plain = {"optimizer": {"class_path": "SGD"}, "learning_rate": 1e-5}
    (whole,) = run(job(tmp_path / "1", data, arguments, **plain) | {"gradients": True})
    for ranks, settings in (
        (1, {"micro_batch_size": 3}),
        (2, {}),
        (3, {}),
        (3, {"micro_batch_size": 2}),
    ):
        folder = tmp_path / f"{ranks}-{len(settings)}"
        results = run(job(folder, data, arguments, **plain, **settings) | {"gradients": True}, ranks)
        assert [r["error"] for r in results] == [None] * ranks
        assert samples(results) == samples([whole])
        for mine, its in zip(results[0]["gradients"], whole["gradients"], strict=True):
            assert abs(mine - its).max() <= 1e-9 * abs(its).max()
        assert furthest(results[0], whole) < 1e-9
        assert results[0]["metrics"]["vamp2"] == pytest.approx(whole["metrics"]["vamp2"], rel=1e-9)


def test_the_loss_of_a_batch_is_that_of_all_its_rows(tmp_path, data):
    """A mean over ranks of their own scores is another number: what this task must not do."""
    runs = [run(job(tmp_path / str(n), data, {"float64": True, "epochs": 1}), n)[0] for n in (1, 3)]
    assert runs[0]["norms"] == pytest.approx(runs[1]["norms"], rel=1e-9)


def test_statistics_of_all_ranks(tmp_path, data):
    """With sync_batch batch normalisation is exact on any ranks, if they have equally many micro-batches."""
    arguments = {"float64": True, "norm": "sync_batch", "epochs": 1, "train_fnames": [str(data / "test")]}
    settings = {"global_batch_size": 7, "optimizer": {"class_path": "SGD"}}  # of 91 pairs
    (whole,) = run(job(tmp_path / "1", data, arguments, **settings))
    results = run(job(tmp_path / "2", data, arguments, **settings), 2)
    assert [r["error"] for r in results] == [None] * 2
    assert furthest(results[0], whole) < 1e-9  # running statistics among them
    kind, text = run(job(tmp_path / "3", data, arguments, global_batch_size=90), 2)[0]["error"]
    assert kind == "UserError" and "equally many" in text


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("stop", [3, 2 * IN_EPOCH, 2 * IN_EPOCH + 2, 4 * IN_EPOCH], ids="step {}".format)
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, data, ranks, stop):
    """In the middle of a phase, and exactly where one ends (every two epochs)."""
    run(job(tmp_path / "whole", data), ranks)
    run(job(tmp_path / "pieces", data) | {"stop_at": {"step": stop}}, ranks)
    run(job(tmp_path / "pieces", data), ranks)
    assert_same_run(tmp_path / "pieces", tmp_path / "whole")


def test_killed(tmp_path, data):
    settings = dict(save_steps=2)
    run(job(tmp_path / "whole", data, {"epochs": 8}, **settings))
    kill_at_checkpoints(job(tmp_path / "killed", data, {"epochs": 8}, **settings))
    run(job(tmp_path / "killed", data, {"epochs": 8}, **settings))
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


def test_a_longer_schedule_goes_on(tmp_path, data):
    """As if it had been meant from the beginning."""
    longer = {"loss_schedule": ["vamp2", "vamp1", "vamp2", "vamp1"]}
    run(job(tmp_path / "whole", data, longer))
    run(job(tmp_path / "pieces", data))
    (result,) = run(job(tmp_path / "pieces", data, longer))
    assert result["step"] == 4 * 2 * IN_EPOCH
    assert any("phase 4 of 4: vamp1, 2 epochs" in title for _, title in result["events"])
    assert_same_run(tmp_path / "pieces", tmp_path / "whole")


def test_a_schedule_that_changed_what_is_done_is_said(tmp_path, data):
    run(job(tmp_path / "run", data) | {"stop_at": {"step": 2 * IN_EPOCH + 1}})
    (result,) = run(job(tmp_path / "run", data, {"loss_schedule": ["vamp1_true", "vamp1", "vamp2"]}))
    expected = "phase 0 is vamp1_true for 2 ep now, but what has been trained of it was vamp2 for 2 ep"
    assert ("warning", expected) in result["events"]


def test_other_epochs_per_phase_are_refused(tmp_path, data):
    run(job(tmp_path / "run", data) | {"stop_at": {"step": 3}})
    kind, text = run(job(tmp_path / "run", data, {"epochs": 3}))[0]["error"]
    assert kind == "UserError" and "epochs: 2 -> 3" in text and "allow_changed_config" in text
