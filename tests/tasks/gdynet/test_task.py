"""The gdynet task: its phases, splits, batches and scores, and what it says about its data."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.gdynet_runs import BATCH, SPLITS, TAU, changed, command, job, one_line, task_of, train, with_nan
from support.processes import run

from accel_train.config.read import parse
from accel_train.errors import DataError, UserError
from accel_train.tasks.gdynet import choices, splits, vamp
from accel_train.tasks.gdynet.choices import LOSSES
from accel_train.tasks.gdynet.files import Trajectory
from accel_train.tasks.gdynet.task import GDyNetTask

# -- phases ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from([*LOSSES, "vamp_sym"]), min_size=1, max_size=5), st.integers(1, 99), st.integers(1, 4))
def test_phases_are_the_schedule(schedule, epochs, repeat):
    phases = GDyNetTask([], loss_schedule=schedule, epochs=epochs, repeat=repeat).phases()
    names = ["vamp1" if name == "vamp_sym" else name for name in schedule] * repeat
    assert [phase["objectives"] for phase in phases] == [[name] for name in names]
    assert {phase["length"] for phase in phases} == {f"{epochs}ep"}


def test_the_known_schedule_is_the_default():
    phases = GDyNetTask([]).phases()
    assert [(*phase["objectives"], phase["length"]) for phase in phases] == [
        ("vamp2", "30ep"), ("vamp1", "30ep"), ("vamp2", "30ep")
    ]  # fmt: skip


def test_phases_of_the_config_win(data, tmp_path):
    phases = [{"objectives": ["vampe"], "length": "2st"}, {"objectives": ["vamp1_true"], "length": "1ep"}]
    assert train(tmp_path / "run", data, f"--phases={json.dumps(phases)}", "--logging_steps=1") == 0
    lists = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert lists["phase"] == ["vampe"] * 2 + ["vamp1_true"] * 3, "a phase of an epoch ends with the epoch it is in"


@pytest.mark.parametrize(
    ("schedule", "says"),
    [
        ("[vamp3]", r"unknown 'vamp3' \(did you mean vampe\?\); there are vamp2, vamp1, vamp1_true, vampe, vamp_sym$"),
        ("[vamp2, vamp_sim]", r"unknown 'vamp_sim' \(did you mean vamp_sym\?\)"),
        ("[vamp2, colour]", "unknown 'colour'; there are"),
        ("[]", "at least one loss is needed"),
        ("vamp", "unknown 'vamp'"),
    ],
)
def test_losses_that_are_refused(schedule, says):
    with pytest.raises(UserError, match=rf"^task.init_args.loss_schedule: {says}"):
        parse(["--task=gdynet", "--task.init_args.train_fnames=[x]", f"--task.init_args.loss_schedule={schedule}"])


# -- options ---------------------------------------------------------------------------------------------------------

RANGES = [
    ("atom_fea_len", 0), ("n_conv", -1), ("state_len", 1), ("tau", 0), ("num_gaussians", 1), ("epochs", 0),
    ("repeat", 0), ("cutoff", 0), ("cutoff", -6), ("cutoff", "inf"), ("dt_ns", 0), ("dt_ns", -1), ("val_share", -0.1),
    ("val_share", 0.95), ("epsilon", -1), ("epsilon", 0), ("epsilon", 2),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), RANGES)
def test_numbers_out_of_range(name, value):
    value = ".inf" if value == "inf" else value
    with pytest.raises(UserError, match=rf"^task.init_args.{name}: \S+ is out of range, must be [^\n]*$"):
        parse(["--task=gdynet", "--task.init_args.train_fnames=[x]", f"--task.init_args.{name}={value}"])


@pytest.mark.parametrize("option", ["mode=trunk", "norm=bach", "lobes=shard", "model_type=gdynet_fero", "tau=ten"])
def test_words_that_are_refused(option):
    name, _, value = option.partition("=")
    with pytest.raises(UserError, match=rf"^task.init_args.{name}: expected [^\n]*, got '{value}'[^\n]*$"):
        parse(["--task=gdynet", "--task.init_args.train_fnames=[x]", f"--task.init_args.{option}"])


# -- splits ----------------------------------------------------------------------------------------------------------


@given(frames=st.integers(1, 400), tau=st.integers(1, 30), share=st.floats(0.001, 0.9))
@settings(deadline=None)
def test_the_end_is_held_out_behind_a_gap(frames, tau, share):
    lists = np.arange(frames, dtype=np.int32)[:, None, None]
    whole = Trajectory({"nbr_lists": Path("a/nbr_lists.npy")}, {"nbr_lists": lists}, {})
    held_out = max(round(frames * share), tau + 1)
    if frames < held_out + 2 * tau + 1:
        with pytest.raises(DataError, match=rf"^a: {frames} frames are too few to keep val_share [^\n]*val_share: 0"):
            splits.Splits({}, True, tau, 6.0, share)._cut(whole)
        return
    train, validation = (part.nbr_lists.ravel() for part in splits.Splits({}, True, tau, 6.0, share)._cut(whole))
    np.testing.assert_array_equal(train, np.arange(len(train)))
    np.testing.assert_array_equal(validation, np.arange(frames - held_out, frames))
    assert validation[0] - train[-1] == tau + 1, "so many frames are in neither"
    assert len(train) > tau and len(validation) > tau, "each has a pair"


def test_every_trajectory_gives_its_end(data):
    task = task_of(data, train_fnames=[str(data / "train"), str(data / "test")], val_fnames=[], test_fnames=[])
    spans = {split: [part.span for part in task.splits[split]] for split in ("train", "validation", "test")}
    assert spans == {"train": [(0, 39), (0, 82)], "validation": [(42, 47), (85, 94)], "test": []}
    sources = {split: task.build_data(split, BATCH, 0) for split in spans}
    assert len(sources["train"].data) == 36 + 79 and len(sources["validation"].data) == 2 + 6
    assert sources["test"] is None and task.predict_data("test", BATCH) is None
    frames = np.load(data / "test" / "nbr_dists.npy")
    np.testing.assert_array_equal(sources["validation"].data.read(np.array([7]))["distances"][0], frames[[90, 93]])


def test_given_splits_are_taken_whole(data):
    task = task_of(data)
    for split, frames in (("train", 47), ("validation", 17), ("test", 94)):
        (trajectory,) = task.splits[split]
        assert trajectory.frames == frames and trajectory.span is None
    assert task_of(data, val_fnames=[], val_share=0).build_data("validation", BATCH, 0) is None


def test_too_short_for_a_validation(data, tmp_path, capsys):
    assert train(tmp_path / "run", data, val_fnames=[], tau=16) == 2
    assert f"{data}/train: 47 frames are too few to keep val_share 0.1 of them" in one_line(capsys)


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("atom_types", lambda a: np.where(a == 22, 23, a), "entry 0 is 23 and not 22"),
        ("target_index", lambda a: a[:2], "2 entries and not 3"),
    ],
)
@pytest.mark.parametrize("split", SPLITS)
def test_all_splits_must_be_of_one_system(data, tmp_path, split, name, change, says):
    other = changed(tmp_path / "other", data / split, **{name: change})
    fnames = [str(data / split), str(other)] if split == "train" else [str(other)]
    with pytest.raises(
        DataError, match=rf"^{tmp_path}/other/{name}.npy: another system than .*: {says}; all trajectories must agree$"
    ):
        task_of(data, **{f"{split}_fnames": fnames}).build_data("train", BATCH, 0)


def test_other_numbers_of_neighbours_are_refused(data, tmp_path):
    fewer = {name: lambda a: a[:, :, :4] for name in ("nbr_lists", "nbr_dists")}
    other = changed(tmp_path / "other", data / "test", **fewer)
    with pytest.raises(DataError, match=r"nbr_lists.npy: M=4 neighbours, but .* has M=6; .* \(pad with index -1\)$"):
        task_of(data, test_fnames=[str(other)]).build_data("train", BATCH, 0)


# -- batches ---------------------------------------------------------------------------------------------------------


def test_batches_of_several_trajectories(data):
    """Every pair once, each two frames of one file, tau apart."""
    names = ["val", "train", "val"]
    task = task_of(data, train_fnames=[str(data / name) for name in names])
    source = task.build_data("train", BATCH, seed=1)
    assert source.steps(0) == 8 and len(source.data) == 14 + 44 + 14
    arrays = [np.load(data / name / "nbr_dists.npy") for name in names]
    pairs = [(array[t], array[t + TAU]) for array in arrays for t in range(len(array) - TAU)]
    seen = []
    for step in range(8):
        batch = source.batch(0, step, 0, 1)
        seen += batch["pair"].tolist()
        np.testing.assert_array_equal(batch["distances"], [pairs[i] for i in batch["pair"]])
    assert sorted(seen) == list(range(72)) != seen


@pytest.mark.parametrize("lobes", ["shared", "separate"])
def test_features_are_frames_then_targets(data, lobes):
    task = task_of(data, lobes=lobes, float64=True)
    models = task.build_model(None)
    for parameter in models["lobe_0"].parameters() if lobes == "separate" else ():
        parameter.data *= 1.1
    batch = {name: torch.from_numpy(a) for name, a in task.build_data("train", 4, 0).batch(0, 0, 0, 1).items()}
    both = task.features(models, batch)
    (train,) = task.splits["train"]
    for time, found in enumerate(both):
        lobe = models.get("lobe_t" if time else "lobe_0", models["lobe_0"])
        inputs = [batch[name][:, time] for name in ("neighbours", "distances", "directions")]
        expected = lobe(torch.from_numpy(train.atom_types), torch.from_numpy(train.target_index), *inputs)
        torch.testing.assert_close(found, expected.reshape(4 * 3, 3), rtol=1e-12, atol=1e-14)


# -- scores of a whole split -----------------------------------------------------------------------------------------


@given(size=st.integers(1, 20), mode=st.sampled_from(choices.MODES), epsilon=st.sampled_from([1e-10, 1e-6, 1e-2]))
@settings(deadline=None, max_examples=15)
def test_one_score_of_all_pairs_whatever_the_batches(data, size, mode, epsilon):
    task = task_of(data, float64=True, mode=mode, epsilon=epsilon)
    torch.manual_seed(1)  # states of which no combination varies so little that rounding counts
    models = task.build_model(None)
    source = task.build_data("validation", size, 0)
    batches = [source.batch(0, step, 0, 1) for step in range(source.steps(0))]
    batches = [{name: torch.from_numpy(array) for name, array in batch.items()} for batch in batches]
    with torch.no_grad():
        parts = [task.eval_step(models, batch) for batch in batches]
        rows = [torch.cat(x) for x in zip(*(task.features(models, batch) for batch in batches), strict=True)]
    metrics = task.eval_metrics({name: sum(part[name] for part in parts) for name in parts[0]})
    together = vamp.covariances(vamp.moments(*rows))
    assert together.rows == 14 * 3
    scores = vamp.scores(together, epsilon, mode)
    for name in ("vamp1", "vamp2"):
        assert metrics[name] == pytest.approx(scores[name], rel=1e-7)
    assert metrics["loss"] == -metrics["vamp2"]
    assert metrics["crispness"] == pytest.approx(float(rows[0].max(1).values.mean()), rel=1e-9)
    for i, s in enumerate(vamp.singular_values(together, epsilon, mode).tolist(), 1):
        assert s > 1e-3 and metrics[f"t{i}_frames"] == pytest.approx(-TAU / math.log(s), rel=1e-7)


def test_the_floor_is_that_of_a_training_batch(data):
    task = task_of(data)
    assert task.baselines() == {}, "nobody has asked for data yet"
    task.build_data("train", BATCH, 0)
    assert task.baselines() == {"vamp2": 4 / (3 * BATCH - 1)}


# -- what the data say -----------------------------------------------------------------------------------------------


def test_what_is_odd_in_the_data_is_said(data, tmp_path):
    names = {"train": [], "val": []}
    for split in names:
        folder = changed(tmp_path / split, data / split, target_index=lambda a: a[[0, 1, 1]])
        names[split] = [str(folder)]
    fnames = {f"{split}_fnames": fnames for split, fnames in names.items()} | {"test_fnames": []}
    (result,) = run(job(tmp_path / "run", data, {**fnames, "cutoff": 3.5, "epochs": 1}))
    assert result["error"] is None
    warnings = [title for kind, title in result["events"] if kind == "warning"]
    for split in names:
        for text in ("target_index.npy: target_index contains 1 duplicate entries", "nbr_dists.npy: "):
            assert sum(f"{tmp_path}/{split}/{text}" in title for title in warnings) == 1
    assert sum("beyond the cutoff of 3.5 A" in title for title in warnings) == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_frame_in_the_middle_stops_the_run_after_the_last_whole_step(data, tmp_path, capsys, workers):
    bad = changed(tmp_path / "bad", data / "train", nbr_dists=with_nan)
    assert train(tmp_path / "run", data, f"--num_workers={workers}", train_fnames=[str(bad)]) == 2
    said = one_line(capsys)
    assert f"{bad}/nbr_dists.npy: frame 23, atom 4, neighbour 2: nan is no distance" in said
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*")] == ["step-000000001"]


@pytest.mark.parametrize("where", ["last batch of an epoch", "every batch", "validation"])
def test_a_single_row_has_no_covariance(data, tmp_path, capsys, where):
    one = {split: changed(tmp_path / split, data / split, target_index=lambda a: a[:1]) for split in SPLITS}
    if where == "validation":
        files = ("nbr_lists", "nbr_dists", "atom_directions")
        one["val"] = changed(tmp_path / "short", one["val"], **{name: lambda a: a[: TAU + 1] for name in files})
    fnames = {f"{split}_fnames": [str(folder)] for split, folder in one.items()}
    batch = {"last batch of an epoch": 43, "every batch": 1, "validation": BATCH}[where]
    assert train(tmp_path / "run", data, f"--global_batch_size={batch}", **fnames) == 2
    says = {"every batch": "a batch"}.get(where, f"the {where}")
    assert f"{says} has 1 pair of frames x targets, and a covariance needs 2" in one_line(capsys)
    assert not list((tmp_path / "run").glob("checkpoints/step-*"))


def test_few_rows_are_warned_of(data, tmp_path):
    task = task_of(data, state_len=10)
    said = [event.title for event in task.build_data("train", 2, 0).events() if "noise" in event.title]
    assert said[0] == "a batch has 6 pairs of frames x targets, of which pure noise scores VAMP-2 9: use more"


def test_a_folder_in_two_splits_is_warned_of(data):
    task = task_of(data, test_fnames=[str(data / "train")])
    assert any("trained on and held out at once" in e.title for e in task.build_data("train", 10, 0).events())


def test_predictions_fit_into_memory(trained, monkeypatch):
    """As evaluations do: after an out-of-memory error, half as many at once."""
    assert command("evaluate", trained, "--split=test") == 0
    file = trained / "evaluation" / "predictions" / "probabilities.npy"
    whole, real, sizes = np.load(file), GDyNetTask.predict_step, []

    def small(self, models, batch):
        sizes.append(len(batch["frame"]))
        if sizes[-1] > 3:
            raise torch.OutOfMemoryError("injected")
        return real(self, models, batch)

    monkeypatch.setattr(GDyNetTask, "predict_step", small)
    assert command("evaluate", trained, "--split=test") == 0
    assert max(sizes) > 3
    np.testing.assert_allclose(np.load(file), whole, atol=1e-6)


def test_a_run_is_evaluated_without_its_training_data(data, tmp_path):
    folders = {split: shutil.copytree(data / split, tmp_path / split) for split in SPLITS}
    fnames = {f"{split}_fnames": [str(folder)] for split, folder in folders.items()}
    assert train(tmp_path / "run", data, epochs=1, **fnames) == 0
    for split in ("train", "val"):
        shutil.rmtree(folders[split])
    assert command("evaluate", tmp_path / "run", "--split=test") == 0


def test_a_test_needs_no_training_data(data):
    task = task_of(data, train_fnames=["nowhere"], val_fnames=[], test_fnames=[str(data / "test")])
    assert len(task.build_data("test", 10, 0).data) > 0
    assert task.frame_ns() == 0.001


def test_time_is_in_the_units_that_somebody_has_said(data, tmp_path):
    metrics = {"vamp2": 1.5, "vamp1": 1.7, "crispness": 0.9, "t1_frames": 40.0, "t2_frames": 8.0}
    assert task_of(data).describe_predictions("validation")["dt_ns"] == 0.001
    said = task_of(data).summary(metrics)
    assert "at most 2 at tau 3 frames = 0.003 ns" in said and "40 = 0.04 ns, 8 = 0.008 ns" in said
    said = task_of(data, dt_ns=0.5).summary(metrics)
    assert "tau 3 frames = 1.5 ns" in said and "40 = 20 ns, 8 = 4 ns" in said
    silent = changed(tmp_path / "silent", data / "train")
    (silent / "meta.json").unlink()
    said = task_of(data, train_fnames=[str(silent)]).summary(metrics)
    assert "tau 3 frames\n" in said and "ns" not in said
    assert "crispness 0.900" in said


def test_without_a_validation(data, tmp_path):
    assert train(tmp_path / "run", data, val_fnames=[], val_share=0, epochs=1) == 0
    assert not (tmp_path / "run" / "best").exists()
