"""accel-train step and Trainer.at: a step of a run once more, and the item that spoilt it by its name."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.movie_brain import movie, write_prepared
from support.processes import run
from support.runs import config
from support.shots import write_shots
from support.small_tasks import Brains, Disruptions, GDyNet, Muon
from support.stimuli import FilmItems
from support.toy_gans import Gan
from support.toys import Numbers, Toy

from accel_train import Task, Trainer
from accel_train.cli import main
from accel_train.commands.step import lines
from accel_train.tasks.collatz.data import Rows
from accel_train.tasks.collatz.task import CollatzTask
from accel_train.tasks.gdynet.data import FramePairs
from accel_train.tasks.gdynet.synth import synth
from accel_train.tasks.muon import synth as bundles
from accel_train.tasks.sherlock.task import SherlockTask
from accel_train.tasks.tcn.task import TCNTask
from accel_train.tasks.tcn.windows import Windows
from accel_train.train.looking import Moment

Alter = Callable[[dict[str, Any], int], None]


def trained(task: Task, folder: Path, **settings: Any) -> Path:
    """Three steps on all items that there are, so that each holds the one that is looked for."""
    usual = {"max_steps": 3, "global_batch_size": 8, "learning_rate": 1e-3, "eval_steps": 0, "save_steps": 2}
    Trainer(task, output_dir=str(folder), logging_steps=1, num_workers=0, report_to=[], **usual | settings).fit()
    return folder


def planted(patch: pytest.MonkeyPatch, data: type, item: int, alter: Alter) -> None:
    """The data set's ``read`` with one item altered."""
    read = data.read

    def altered(self, indices):
        batch = {name: np.array(values) for name, values in read(self, indices).items()}
        for row in np.flatnonzero(np.asarray(indices) == item):
            alter(batch, int(row))
        return batch

    patch.setattr(data, "read", altered)


def scaled(name: str, by: float) -> Alter:
    def alter(batch: dict[str, Any], row: int) -> None:
        batch[name][row] = batch[name][row] * by

    return alter


def logged(folder: Path, step: int, name: str = "loss") -> float:
    from accel_train.tracking.jsonl import histories

    found = histories(folder / "metrics.jsonl")
    return found[name][found["step"].index(step)]


# -- what is seen of a step ------------------------------------------------------------------------------------------


def test_a_step_that_nobody_watched(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = trained(Toy(), tmp_path, max_steps=12, save_steps=5)
    at = Trainer.at(folder, step=9)
    assert (at.step, at.checkpoint, at.epoch) == (9, 5, 1)
    items = Toy().build_data("train", 8, 0).indices(1, 1)
    assert at.names == [f"item {item}" for item in items] == [share.name for share in at.shares]
    assert math.fsum(share.loss for share in at.shares) == pytest.approx(logged(folder, 9), rel=1e-6)
    assert at.updates[0].loss == logged(folder, 9)
    error = (at.models["model"](at.batch["x"])[..., 0] - at.batch["y"]).square() * at.batch["mask"]
    assert [share.loss for share in at.shares] == pytest.approx((error.sum(1) / at.totals["items"]).tolist(), rel=1e-5)
    assert set(at.updates[0].norms) == {"model.0", "model.3"}
    assert math.hypot(*at.updates[0].norms.values()) == pytest.approx(logged(folder, 9, "grad_norm"), rel=1e-5)
    assert main(["step", str(folder), "9", "--top", "2"]) == 0
    said = capsys.readouterr().out
    assert "step 9, epoch 1, replayed from the checkpoint of step 5" in said
    assert f"{at.updates[0].outstanding(1)[0].name}\n" in said
    assert not at.suspects and "no item stands out from the others" in said
    for number in ("0", "14"):
        assert main(["step", str(folder), number]) == 2
        assert "has steps 1 to 12" in capsys.readouterr().err


def test_every_update_of_several_objectives(tmp_path: Path):
    """Each with the weights that it met; afterwards the models are as they were before the step."""
    folder = trained(Gan(), tmp_path)
    at = Trainer.at(folder, step=3)
    names = [(update.objective.name, update.objective.repeat) for update in at.updates]
    assert names == [(o.name, r) for o in Gan().objectives() for r in range(o.repeats)]
    for update in at.updates:
        assert math.fsum(share.loss for share in update.shares) == pytest.approx(update.loss, rel=1e-6, abs=1e-6)
    again = at.task.loss_step(at.models, at.batch, at.totals, at.updates[0].objective)
    assert float(again.value.detach()) == pytest.approx(at.updates[0].loss, rel=1e-6)


def test_where_a_nan_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    planted(monkeypatch, Numbers, 3, scaled("x", math.nan))
    at = Trainer.at(trained(Toy(items=8), tmp_path), step=2)
    (update,) = at.updates
    assert update.outstanding(1)[0].name == "item 3" and [share.finite for share in at.shares].count(False) == 1
    assert update.first_non_finite == "model.0 (Linear), which it was given" and not math.isfinite(update.norm)


# -- one row of each task --------------------------------------------------------------------------------------------


def crystal(folder: Path) -> Task:
    synth(folder / "data", seed=3, size=30, clusters=3)
    return GDyNet(train_fnames=[str(folder / "data" / "train")], val_fnames=[], epochs=2)


def collatz(folder: Path) -> Task:
    return CollatzTask(d_model=16, num_layers=1, nhead=2, dim_feedforward=32, dropout=0.0, max_len=96, prefix=32)


def muons(folder: Path) -> Task:
    bundles.write(folder / "data", seed=3, primaries=10, files=1, row_group=100, log10_energy=(5.0, 6.0))
    return Muon(files=[str(folder / "data" / "*.parquet")])


TASKS: dict[str, tuple[Callable[[Path], Task], type, int]] = {
    "collatz": (collatz, Rows, 17),
    "gdynet": (crystal, FramePairs, 5),
    "tcn": (lambda folder: Disruptions(), Windows, 3),
    "sherlock": (lambda folder: Brains(modality_dropout=0.0, subject_dropout=0.0), FilmItems, 9),
}
POISON: dict[tuple[str, str], Alter] = {
    ("collatz", "NaN"): lambda batch, row: batch["steps"].__setitem__(row, -3),  # of its logarithm
    ("collatz", "times 1000"): scaled("steps", 1000),
    ("gdynet", "NaN"): scaled("distances", math.nan),
    ("tcn", "NaN"): scaled("scale", math.nan),
    ("tcn", "flipped"): lambda batch, row: batch["target"].__setitem__(row, ~batch["target"][row]),
    ("sherlock", "NaN"): scaled("fmri", math.nan),
    ("sherlock", "flipped"): scaled("fmri", -1),
}


def first(at: Moment, term: str = "") -> set[str]:
    return {update.outstanding(1, term)[0].name for update in at.updates}


FLIPPED_AT = {"tcn": 80, "sherlock": 300}
"""A wrong label stands out once a model has learned the right ones: after so many steps."""


@pytest.mark.parametrize(("name", "poison"), [
    pytest.param(*each, marks=[pytest.mark.slow] if each[1] == "flipped" else []) for each in POISON
])  # fmt: skip
def test_a_poisoned_row_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, poison: str):
    make, data, item = TASKS[name]
    planted(monkeypatch, data, item, POISON[name, poison])
    task = make(tmp_path)
    source = task.build_data("train", 100, 0)
    assert source is not None
    rows = len(source.data) if name != "collatz" else 24
    expected = source.item_names(source.data.read(np.array([item]))) or [f"item {item}"]
    step = FLIPPED_AT[name] if poison == "flipped" else 1 if name == "collatz" else 2
    settings = {"learning_rate": 1e-2, "save_steps": None} if poison == "flipped" else {}
    folder = trained(task, tmp_path / "run", global_batch_size=rows, max_steps=step, max_skipped_steps=5, **settings)
    term = "fmri" if (name, poison) == ("sherlock", "flipped") else ""  # one of several, and the least of them
    assert first(Trainer.at(folder, step=step), term) == set(expected)


def test_a_gap_in_the_values_that_the_loss_does_not_notice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Beyond the reach of gdynet's filters an edge is as good as none; without a gap nothing is said."""

    def far_away(batch: dict[str, Any], row: int) -> None:
        batch["distances"][row, 0, 4, 0] *= 1000

    planted(monkeypatch, FramePairs, 5, far_away)
    at = Trainer.at(trained(crystal(tmp_path), tmp_path / "run", global_batch_size=20, max_steps=1), step=1)
    (suspect,) = at.suspects
    assert suspect.name.endswith("frames 5 and 8")
    assert "distances reaches" in suspect.reasons[0] and suspect.reasons[0].endswith("times the median item")


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TASKS, "muon"])
def test_shares_of_each_task_add_up_to_what_was_logged(tmp_path: Path, name: str):
    task = muons(tmp_path) if name == "muon" else TASKS[name][0](tmp_path)
    folder = trained(task, tmp_path / "run", global_batch_size=32)
    for update in Trainer.at(folder, step=3).updates:
        assert math.fsum(share.loss for share in update.shares) == pytest.approx(update.loss, rel=1e-6, abs=1e-6)


# -- in files, as a scientist has them -------------------------------------------------------------------------------


def in_parquet(file: Path, column: str, row: int, alter: Callable[[Any], Any]) -> None:
    """One row of a column, which is a list in each row; the rest as it was, in row groups of 40."""
    table = pq.read_table(file)
    rows = table[column].to_pylist()
    rows[row] = np.asarray(alter(np.array(rows[row]))).tolist()
    place = table.column_names.index(column)
    table = table.set_column(place, column, pa.array(rows, table[column].type))
    pq.write_table(table, file, row_group_size=40, write_page_checksum=True)


def in_array(file: Path, where: Any, factor: float) -> None:
    values = np.load(file, mmap_mode="r+", allow_pickle=False)
    values[where] *= factor


def shower(folder: Path) -> tuple[Task, str]:
    bundles.write(folder / "data", seed=3, primaries=10, files=1, row_group=100, log10_energy=(5.0, 6.0))
    file = folder / "data" / "bundles-00000.parquet"
    row = int(np.argmax([len(muons) for muons in pq.read_table(file)["muons"].to_pylist()]))
    in_parquet(file, "muons", row, lambda muons: muons * 1000)
    return Muon(files=[str(file)]), f"{file}, row group {row // 40}, row {row % 40}"


def frame(folder: Path) -> tuple[Task, str]:
    task = crystal(folder)
    in_array(folder / "data" / "train" / "nbr_dists.npy", 20, 1000)
    return task, f"{folder}/data/train, frames 17 and 20"  # the other pair with it is validation data


def scan(folder: Path) -> tuple[Task, str]:
    data = write_prepared(folder / "data", movie())
    in_array(data / "fmri" / "s1" / "part1.npy", 31, 1000)
    small: dict[str, Any] = dict(window_trs=3, latent=6, encoder_widths=[6], fusion_widths=[8], decoder_widths=[8])
    return SherlockTask(str(data), **small, dropout=0.0), "s1, part1, TRs 30 to 32"


def discharge(folder: Path) -> tuple[Task, str]:
    raw, out = write_shots(folder / "raw", count=8), folder / "shots"
    preprocess = ["tcn", "preprocess", f"--disrupt={raw}/disrupt", f"--clear={raw}/clear", f"--out={out}"]
    assert main([*preprocess, "--dt_ms=1", "--dtype=float32"]) == 0
    in_array(out / "shots" / "104.npy", np.s_[:, 300:310], 1000)
    small: dict[str, Any] = dict(nsub=40, twarn_ms=30.0, levels=2, nhid=4, kernel_size=3, dilation_base=3)
    return TCNTask(str(out), **small, nrecept_target=13, negatives=None, dropout=0.0), "shot 104, samples "


@pytest.mark.parametrize("make", [shower, frame, scan, discharge])
def test_a_value_times_1000_in_a_file(tmp_path: Path, make: Callable[[Path], tuple[Task, str]]):
    """Named at the first step, by what no trained model is needed for."""
    task, name = make(tmp_path)
    at = Trainer.at(trained(task, tmp_path / "run", global_batch_size=400, max_steps=1), step=1)
    assert at.suspects[0].name.startswith(name) and at.suspects[0].reasons[0].endswith("times the median item")
    said = "\n".join(lines(at, tmp_path, 5))
    assert f"look at these items first:\n  {name}" in said and f".parts[{at.names.index(at.suspects[0].name)}]" in said


def test_a_frame_from_elsewhere_is_nothing_that_could_be_named(tmp_path: Path):
    """It is a state like others; where nothing can be seen, nothing is claimed."""
    task = crystal(tmp_path)
    for name in ("nbr_lists", "nbr_dists", "atom_directions"):
        values = np.load(tmp_path / "data" / "train" / f"{name}.npy", mmap_mode="r+", allow_pickle=False)
        values[20] = values[5]
    assert not Trainer.at(trained(task, tmp_path / "run", global_batch_size=400, max_steps=1), step=1).suspects


# -- labels: wrong ones stand out under weights that know the right ones ----------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("tokens_flipped", [96, 1])
def test_inverted_parities_are_named_by_later_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokens_flipped: int
):
    """Of a row of the first step, which the model cannot judge yet. One token is too little to claim anything."""

    def flipped(batch: dict[str, Any], row: int) -> None:
        tokens = batch["tokens"][row, 20 : 20 + tokens_flipped] if tokens_flipped == 1 else batch["tokens"][row]
        tokens[tokens < 2] ^= 1

    planted(monkeypatch, Rows, 17, flipped)
    task = collatz(tmp_path)
    source: Any = task.build_data("train", 32, 0)
    (name,) = source.item_names(source.data.read(np.array([17])))
    at = Trainer.at(trained(task, tmp_path / "run", max_steps=150, global_batch_size=32, save_steps=None), step=1)
    assert at.later == 150
    named = [suspect.name for suspect in at.suspects if "share of next" in suspect.reasons[0]]
    assert named == ([] if tokens_flipped == 1 else [name])
    assert tokens_flipped == 1 or first(at, "next") == {name}


@pytest.mark.slow
def test_the_energy_of_another_shower_is_named_by_the_multiplicity(tmp_path: Path):
    """A faint shower with 18 muons. One without muons would be nothing unusual, with whatever energy."""
    bundles.write(tmp_path / "data", seed=3, primaries=40, files=1, row_group=100)
    file = tmp_path / "data" / "bundles-00000.parquet"
    energies = np.array(pq.read_table(file)["primary"].to_pylist())[:, 0]
    in_parquet(file, "primary", 220, lambda primary: [energies.min(), *primary[1:]])
    only = [{"objectives": ["multiplicity"]}]
    folder = trained(Muon(files=[str(file)]), tmp_path / "run", global_batch_size=400, max_steps=60, phases=only,
                     learning_rate=5e-3, save_steps=30)  # fmt: skip
    at = Trainer.at(folder, step=31)
    assert first(at) == {f"{file}, row group 5, row 20"}


# -- reduction: fixed ------------------------------------------------------------------------------------------------


def test_a_step_in_parts(tmp_path: Path):
    """The same items with the same shares, and the loss that was logged, to the bit."""
    folder = trained(Toy(), tmp_path / "fixed", reduction="fixed", reduction_parts=3)
    at, whole = Trainer.at(folder, step=2), Trainer.at(trained(Toy(), tmp_path / "whole"), step=2)
    assert at.updates[0].loss == logged(folder, 2) and isinstance(at.batch, list)
    assert at.names == whole.names and all(name.startswith("item ") for name in at.names)
    assert [share.loss for share in at.shares] == pytest.approx([share.loss for share in whole.shares], rel=1e-5)
    assert math.fsum(share.loss for share in at.shares) == pytest.approx(at.updates[0].loss, rel=1e-6)


@pytest.mark.slow
def test_a_step_in_parts_of_two_ranks_on_one(tmp_path: Path):
    settings = config(tmp_path, reduction="fixed", reduction_parts=4, max_steps=8, save_steps=4, logging_steps=1)
    run({"task": "Toy", "task_args": {"items": 50, "dropout": 0.2}, "config": settings}, 2)
    assert Trainer.at(tmp_path, step=6).updates[0].loss == logged(tmp_path, 6)
