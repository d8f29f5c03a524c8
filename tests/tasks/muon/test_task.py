"""The muon task as its users meet it: what it reads, what it refuses, what it trains, what it makes."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support.processes import run
from support.runs import config

from accel_train.cli import main
from accel_train.config.read import parse
from accel_train.data.loader import Loader
from accel_train.errors import DataError, NonFiniteError, UserError
from accel_train.plan import Position
from accel_train.tasks.muon import generate, synth
from accel_train.tasks.muon.showers import in_split, shower_number
from accel_train.tasks.muon.task import MuonTask

CPU = torch.device("cpu")
SHOWERS = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("muons")
    synth.write(folder, seed=3, primaries=SHOWERS, files=2, row_group=100, log10_energy=(5.0, 6.5))
    return folder


def batches(task: MuonTask, epoch=0, batch_size=64, **named):
    return read(task.build_data("train", batch_size, seed=1), epoch, **named)


def read(source, epoch=0, **named):
    loader = Loader(source, CPU, **named)
    return [share for _, _, share in loader.batches(Position(epoch=epoch), last_epoch=epoch + 1)]


def test_no_files_and_an_outliers_folder_that_cannot_be_made(folder, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"task.init_args.files: \[\] names no files"):
        MuonTask([]).build_data("train", 64, 1)
    (tmp_path / "file").write_text("")
    few = {"max_muons_per_event": 1, "files": f"{folder}/*.parquet"}
    with pytest.raises(UserError, match=r"task.init_args.outliers_dir: .*file is a file"):
        MuonTask(**few, outliers_dir=str(tmp_path / "file")).build_data("train", 64, 1)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("accel_train.tasks.muon.data.pq.write_table", full)
    with pytest.raises(UserError, match=r"task.init_args.outliers_dir: .*out cannot be written to: No space left"):
        batches(MuonTask(**few, outliers_dir=str(tmp_path / "out")))


# -- readers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["fixed", "large_list", "hdf5", "jsonl"])
def test_every_reader_gives_the_same_batches(tmp_path, kind):
    made = dict(seed=3, primaries=SHOWERS, files=2, log10_energy=(5.0, 6.5))
    synth.write(tmp_path / "list", **made)
    other = tmp_path / "other"
    if kind == "jsonl":
        other.mkdir()
        for path in sorted((tmp_path / "list").glob("*.parquet")):
            rows = pq.read_table(path, columns=["primary", "muons"]).to_pylist()
            (other / f"{path.stem}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        synth.write(other, layout=kind, **made)
    ending = {"hdf5": "h5", "jsonl": "jsonl"}.get(kind, "parquet")
    ours = batches(MuonTask(f"{tmp_path}/list/*.parquet"))
    theirs = batches(MuonTask(f"{other}/*.{ending}"))
    assert len(ours) == len(theirs) > 5
    for one, two in zip(ours, theirs, strict=True):
        assert one.keys() == two.keys()
        assert all(np.array_equal(one[name], two[name]) for name in one)


def test_the_datasets_library_reads_parquet_too(folder):
    plain = batches(MuonTask(f"{folder}/*.parquet", shuffle="none", lanes=1))
    streamed = batches(MuonTask(f"{folder}/*.parquet", shuffle="none", lanes=1, reader="hf"))
    assert all(np.array_equal(a[k], b[k]) for a, b in zip(plain, streamed, strict=True) for k in a)


def test_a_flat_cache_gives_every_event_once_and_is_built_once(folder, tmp_path):
    files, cache = f"{folder}/*.parquet", tmp_path / "cache"
    plain = torch.cat([batch["event"] for batch in batches(MuonTask(files))])
    for _ in range(2):
        task = MuonTask(files, cache_dir=str(cache))
        source = task.build_data("train", 64, seed=1)
        found = [share for _, _, share in Loader(source, CPU).batches(Position(), last_epoch=1)]
        assert sorted(torch.cat([batch["event"] for batch in found]).tolist()) == sorted(plain.tolist())
        assert {len(batch["counts"]) for batch in found[:-1]} == {64}
        assert found[0].keys() == batches(MuonTask(files))[0].keys()
        titles = [event.title for event in source.events()]
    assert titles == [], "the second time, it is there"


def test_each_file_is_read_by_its_own_kind(tmp_path):
    made = dict(seed=3, primaries=SHOWERS, log10_energy=(5.0, 6.5))
    for layout in ("list", "hdf5"):
        synth.write(tmp_path / layout, layout=layout, **made)
    both = batches(MuonTask([f"{tmp_path}/list/*.parquet", f"{tmp_path}/hdf5/*.h5"], held_out=0.0))
    primary = torch.cat([batch["primary"] for batch in both])
    assert len(primary) == 2 * 10 * SHOWERS
    assert set(torch.unique(primary, dim=0, return_counts=True)[1].tolist()) == {2}, "every row from either"
    assert main(["inspect", f"{tmp_path}/list/bundles-00000.parquet", f"{tmp_path}/hdf5/bundles-00000.h5"]) == 0


def test_batches_are_filled_for_what_is_held_out(tmp_path):
    """On average, in mixed batches: 3 deviations of a mean over showers."""
    synth.write(tmp_path / "data", seed=3, primaries=2000, files=4, row_group=500)
    for held_out in (0.0, 0.2, 0.5):
        sizes = [
            len(batch["counts"])
            for batch in batches(MuonTask(f"{tmp_path}/data/*.parquet", held_out=held_out), batch_size=256)
        ]
        assert np.mean(sizes[:-1]) == pytest.approx(256, rel=0.08) and max(sizes) < 400
    cached = MuonTask(f"{tmp_path}/data/*.parquet", held_out=0.2, cache_dir=str(tmp_path / "cache"))
    assert {len(batch["counts"]) for batch in batches(cached, batch_size=256)[:-1]} == {256}


def test_held_out_showers_are_held_out_at_all_depths(folder):
    task = MuonTask(f"{folder}/*.parquet", held_out=0.4)
    trained = torch.cat([batch["primary"] for batch in batches(task)])
    seen = {"train": trained.numpy()}
    for split in ("validation", "test"):
        task.build_data(split, 64, 1)
        seen[split] = np.concatenate([part.rows["primary"] for part in (task.evaluated.events, task.evaluated.floor)])
    showers = {split: set(shower_number(primary)) for split, primary in seen.items()}
    assert sum(map(len, showers.values())) == SHOWERS == len(set().union(*showers.values()))
    assert sum(map(len, seen.values())) == 10 * SHOWERS
    floor = set(shower_number(task.evaluated.floor.rows["primary"]))
    assert floor and floor < showers["test"]


def test_shares_of_showers():
    primary = np.random.default_rng(0).normal(size=(20_000, 4)).astype(np.float32)
    for split, share in (("train", 0.7), ("validation", 0.15), ("test", 0.15)):
        assert in_split(primary, split, 0.3).mean() == pytest.approx(share, abs=0.02)


# -- bad data --------------------------------------------------------------------------------------------------------


def rewritten(folder: Path, target: Path, change) -> str:
    target.mkdir()
    for path in sorted(folder.glob("*.parquet")):
        table = pq.read_table(path)
        pq.write_table(change(table) if path.stem.endswith("1") else table, target / path.name, row_group_size=100)
    return f"{target}/*.parquet"


def with_row(name: str, row: int, value):
    def change(table: pa.Table) -> pa.Table:
        rows = table.column(name).to_pylist()
        rows[row] = value
        at = table.schema.get_field_index(name)
        return table.set_column(at, name, pa.array(rows, table.schema.field(name).type))

    return change


NAN = float("nan")
BAD = {
    "energy not a number": (with_row("muons", 130, [[NAN, 0.0, 1.0]]), "row group 1, row 30: a muon is not finite"),
    "negative energy": (with_row("muons", 3, [[-1.0, 0.0, 1.0]]), "row group 0, row 3: a muon is of negative energy"),
    "primary": (with_row("primary", 5, [0.0, 0.1, 1.0, 9.0]), "row group 0, row 5: primary needs a positive energy"),
    "width": (with_row("muons", 299, [[1.0, 0.0]]), "row group 2, row 99: muons: 2 numbers, not 3"),
    "short primary": (with_row("primary", 0, [1.0]), "row group 0, row 0: primary: 1 numbers, not 4"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_bad_rows_are_named_or_left_out(folder, tmp_path, what):
    change, says = BAD[what]
    files = rewritten(folder, tmp_path / "bad", change)
    with pytest.raises(DataError, match=f"bundles-00001.parquet, {says}.*; mend it, or set on_bad_file=skip"):
        batches(MuonTask(files, held_out=0.0))
    source = MuonTask(files, held_out=0.0, on_bad_file="skip").build_data("train", 64, seed=1)
    assert sum(len(batch["counts"]) for batch in read(source)) == 10 * SHOWERS - 1
    (event,) = source.events()
    assert event.title.startswith(f"{tmp_path}/bad/bundles-00001.parquet, {says}")


def test_bad_files_are_named_or_left_out(folder, tmp_path):
    good = sorted(folder.glob("*.parquet"))[0]
    cases = {
        "torn.parquet": (good.read_bytes()[:-100], "cannot be read: "),
        "empty.parquet": (b"", "cannot be read: "),
    }
    for name, (content, says) in cases.items():
        (tmp_path / name).write_bytes(content)
        files = [str(good), str(tmp_path / name)]
        with pytest.raises(DataError, match=f"{name}: {says}"):
            batches(MuonTask(files))
        source = MuonTask(files, held_out=0.0, on_bad_file="skip").build_data("train", 64, seed=1)
        assert sum(len(batch["counts"]) for batch in read(source)) == 10 * SHOWERS // 2
        assert len(source.events()) == 1
    pq.write_table(pa.table({"primaries": [1]}), tmp_path / "column.parquet")
    with pytest.raises(DataError, match="column.parquet: no column 'primary'; there are primaries"):
        batches(MuonTask(str(tmp_path / "column.parquet")))
    pq.write_table(pa.table({"primary": ["a"], "muons": ["b"]}), tmp_path / "type.parquet")
    with pytest.raises(DataError, match="type.parquet, row group 0: column 'primary' must be a list of numbers"):
        batches(MuonTask(str(tmp_path / "type.parquet")))
    with h5py.File(tmp_path / "odd.h5", "w") as file:
        file["primaries"] = np.zeros((2, 4), "f4")
    with pytest.raises(DataError, match="odd.h5: "):
        batches(MuonTask(str(tmp_path / "odd.h5")))


def test_an_unreadable_file_is_one_line_and_exit_code_2(folder, tmp_path, capsys):
    (tmp_path / "torn.parquet").write_bytes(b"PAR1")
    arguments = ["train", "--task=muon", f"--task.init_args.files={tmp_path}/torn.parquet", "--max_steps=1",
                 f"--output_dir={tmp_path}/run"]  # fmt: skip
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "torn.parquet: cannot be read" in said
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("held_out=1.5", "task.init_args.held_out: 1.5 is out of range"),
        ("critic_steps=0", "task.init_args.critic_steps: 0 is out of range"),
        ("lambda_gp=-1", "task.init_args.lambda_gp: -1.0 is out of range"),
        ("preset=sead", "task.init_args.preset: "),
        ("remote.token=abc", "task.init_args.remote.token: no such option"),
    ],
)
def test_refused_settings(option, says):
    with pytest.raises(UserError, match=says):
        parse(["--task=muon", "--task.init_args.files=x.parquet", f"--task.init_args.{option}"])


# -- outliers --------------------------------------------------------------------------------------------------------


def test_outliers_are_moved_counted_and_can_be_trained_on(tmp_path):
    synth.write(tmp_path / "data", seed=3, primaries=30, files=2, row_group=50, log10_energy=(5.0, 6.0), outlier=11)
    files, kept = f"{tmp_path}/data/*.parquet", tmp_path / "outliers"
    source = MuonTask(files, held_out=0.0, max_muons_per_event=1000, outliers_dir=str(kept)).build_data("train", 64, 1)
    for epoch in (0, 1):
        normal = read(source, epoch=epoch, num_workers=2)
        assert max(int(batch["counts"].max()) for batch in normal) <= 1000
    missing = 300 - sum(len(batch["counts"]) for batch in normal)
    assert missing == 10, "all depths of one shower"
    (event,) = [e for e in source.events() if "1,000 muons" in e.title][:1]
    assert f"moved to {kept}" in event.title
    moved = pa.concat_tables([pq.read_table(path) for path in kept.glob("*.parquet")])
    assert moved.num_rows == missing, "two epochs, each event once"
    assert {"primary", "muons", "source_file", "source_row_group", "source_row"} == set(moved.column_names)
    again = torch.cat([batch["counts"] for batch in batches(MuonTask(f"{kept}/*.parquet", held_out=0.0))])
    assert len(again) == missing and int(again.min()) > 1000


# -- models and runs -------------------------------------------------------------------------------------------------


def test_the_legacy_networks_have_the_sizes_of_the_guide():
    models = MuonTask("x.parquet", preset="legacy").build_model(None)
    assert sum(p.numel() for p in models["generator"].parameters()) == 82_051
    assert sum(p.numel() for p in models["critic"].parameters()) == 25_985


def test_the_legacy_critic_scores_events_without_muons_by_the_hundred_million():
    models = MuonTask("x.parquet", preset="legacy").build_model(None)
    event = torch.zeros(0, dtype=torch.int64)
    score = models["critic"](torch.zeros(0, 3), torch.zeros(1, 4), torch.zeros(1, dtype=torch.int64), event)
    assert abs(float(score.detach())) > 1e6
    ours = MuonTask("x.parquet").build_model(None)
    score = ours["critic"](torch.zeros(0, 2), torch.zeros(1, 5), torch.zeros(1, dtype=torch.int64), event)
    assert abs(float(score.detach())) < 10


def small(files, folder, **more):
    arguments = dict(files=files, held_out=0.9, hidden_dim=32, critic_steps=2)
    return {"task": "Muon", "task_args": arguments, "config": config(folder, global_batch_size=64, **more)}


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    where = tmp_path_factory.mktemp("trained") / "run"
    command = ["--task=muon", f"--task.init_args.files={folder}/*.parquet", "--task.init_args.held_out=0.9",
               "--task.init_args.hidden_dim=32", "--max_steps=12", "--global_batch_size=128", "--eval_steps=6",
               f"--output_dir={where}", "--histogram_steps=4", "--report_first_batch=true"]  # fmt: skip
    done = subprocess.run([sys.executable, "-m", "accel_train", "train", *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return where


def test_a_run_ends_with_figures_and_metrics(trained):
    assert {path.stem for path in (trained / "figures").glob("*.png")} >= {"distributions", "multiplicity"}
    last = json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])
    for name in ("fpd", "kpd", "auc", "w1_energy", "w1_radius", "p_zero", "ks_count", "corr", "azimuth"):
        assert f"{name}/floor" in last and f"{name}/shuffled" in last
    assert any("first batch" in line for line in (trained / "events.jsonl").read_text().splitlines())


def test_evaluation_is_the_same_on_two_ranks(folder, tmp_path):
    """In double precision: of a gradient that is nothing but rounding, Adam makes a whole step."""
    jobs = [small(f"{folder}/*.parquet", tmp_path / str(ranks), max_steps=3) for ranks in (1, 2)]
    for job in jobs:
        job["task_args"]["float64"] = True
    (alone,), pair = run(jobs[0]), run(jobs[1], 2)
    assert alone["error"] is None and pair[0]["error"] is None
    for name in ("nll", "p_zero", "w1_energy", "w1_radius", "fpd"):
        assert pair[0]["metrics"][name] == pytest.approx(alone["metrics"][name], rel=1e-4, abs=1e-6), name


def generated(trained, tmp_path, name, *options) -> pa.Table:
    conditions = tmp_path / f"{name}.parquet"
    n = 40
    rng = np.random.default_rng(1)
    flat = {"E": rng.uniform(1e5, 1e7, n), "zenith": rng.uniform(0, 1, n), "mass": [0.938] * n, "depth": [1500.0] * n}
    pq.write_table(pa.table(flat | {"n": np.arange(n)}), conditions)
    arguments = ["muon", "generate", str(trained), "--conditions", str(conditions), "--out", str(tmp_path / "out")]
    assert main([*arguments, *options]) == 0
    return pq.read_table(tmp_path / "out" / f"{name}.generated.parquet")


def test_generated_bundles_can_be_read_by_training(trained, tmp_path, capsys):
    table = generated(trained, tmp_path, "a")
    assert table.num_rows == 40 and table.column_names == ["primary", "muons"]
    assert "a.generated.parquet  40 events, " in capsys.readouterr().out
    read = batches(MuonTask(f"{tmp_path}/out/*.parquet", held_out=0.0, shuffle="none", lanes=1))
    assert sum(len(batch["counts"]) for batch in read) == 40
    assert generated(trained, tmp_path, "b").equals(table), "the same seed, the same bundles"
    assert not generated(trained, tmp_path, "c", "--seed=1").equals(table)
    counts = generated(trained, tmp_path, "d", "--counts_mode=column", "--counts_column=n").column("muons")
    assert [len(muons) for muons in counts.to_pylist()] == list(range(40))
    constant = generated(trained, tmp_path, "e", "--counts_mode=constant", "--count_constant=3").column("muons")
    assert {len(muons) for muons in constant.to_pylist()} == {3}
    capped = generated(trained, tmp_path, "f", "--counts_mode=column", "--counts_column=n", "--max_muons_per_event=7")
    assert max(len(muons) for muons in capped.column("muons").to_pylist()) == 7


def test_a_bundle_does_not_depend_on_its_neighbours(trained, tmp_path, monkeypatch):
    whole = generated(trained, tmp_path, "whole")
    monkeypatch.setattr(generate, "ROWS", 7)
    monkeypatch.setattr(generate, "MUONS", 3)
    pieces = generated(trained, tmp_path, "pieces")
    assert pieces.num_rows == 40
    for one, two in zip(whole.column("muons").to_pylist(), pieces.column("muons").to_pylist(), strict=True):
        np.testing.assert_allclose(np.array(one), np.array(two), rtol=1e-4, atol=1e-4)


def test_generate_names_the_row_of_conditions_that_cannot_be(trained, tmp_path, capsys):
    flat = {"E": [1e6, 1e6], "zenith": [0.3, 40.0], "mass": [0.938] * 2, "depth": [1500.0] * 2}
    pq.write_table(pa.table(flat), tmp_path / "degrees.parquet")
    typed = [[7.0, *row] for row in zip(*flat.values(), strict=True)][:1]
    pq.write_table(pa.table({"primary": typed}), tmp_path / "typed.parquet")
    out = ["--out", str(tmp_path / "out"), "--conditions"]
    assert main(["muon", "generate", str(trained), *out, f"{tmp_path}/degrees.parquet"]) == 2
    assert "degrees.parquet, row 1: primary has a zenith outside of 0 to pi rad" in capsys.readouterr().err
    assert main(["muon", "generate", str(trained), *out, f"{tmp_path}/typed.parquet"]) == 2
    layout = "--primary_layout=type,E,zenith,mass,depth"
    assert main(["muon", "generate", str(trained), *out, f"{tmp_path}/typed.parquet", layout]) == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--counts_mode=constant"], "needs --count_constant=N"),
        (["--counts_mode=column"], "needs --counts_column=NAME"),
        (["--counts_mode=column", "--counts_column=E"], "column 'E' must hold integers"),
        (["--counts_mode=column", "--counts_column=m"], "needs one column 'm'; there are 'E', 'zenith'"),
    ],
)
def test_what_generate_refuses(trained, tmp_path, capsys, options, says):
    with pytest.raises(AssertionError):
        generated(trained, tmp_path, "x", *options)
    assert says in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else True


def test_inspect_shows_files(folder, capsys):
    assert main(["inspect", f"{folder}/*.parquet", "--events=2"]) == 0
    said = capsys.readouterr().out
    for text in ("300 rows in 3 row groups", "list<element: list<element: float>>", "have no muons", "99.9%"):
        assert text in said
    assert main(["inspect", f"{folder}/*.parquet", "--evens=2"]) == 2
    assert "did you mean events?" in capsys.readouterr().err


def test_inspect_shows_a_folder_of_files_and_says_whose_they_are(folder, tmp_path, capsys):
    assert main(["inspect", str(folder), "--events=2"]) == 0
    said = capsys.readouterr().out
    assert "bundles-00000.parquet: parquet" in said and "bundles-00001.parquet: parquet" in said
    pq.write_table(pa.table({"time": [1.0]}), tmp_path / "other.parquet")
    for what in (tmp_path, tmp_path / "other.parquet"):
        assert main(["inspect", str(what)]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "no column 'primary'; there are time" in said
        assert "read as data of muon; accel-train inspect TASK" in said


def test_a_compiled_critic_is_refused_while_it_needs_a_second_backward_pass(folder, tmp_path):
    job = small(f"{folder}/*.parquet", tmp_path, max_steps=1, torch_compile={"critic": "default"})
    (result,) = run(job)
    assert result["error"][0] == "UserError"
    assert "torch_compile.critic: its gradient penalty needs a second backward pass" in result["error"][1]


def test_the_command_lists_its_own(capsys):
    assert main(["muon"]) == 0
    assert "generate" in capsys.readouterr().out
    assert main(["muon", "genrate"]) == 2


def test_epochs_see_other_noise(folder):
    task = MuonTask(f"{folder}/*.parquet", held_out=0.0)
    keys = [torch.cat([batch["key"] for batch in batches(task, epoch=epoch)]) for epoch in (0, 1)]
    assert len(set(itertools.chain(*(key.tolist() for key in keys)))) == 2 * 10 * SHOWERS


# -- what is written and what is said --------------------------------------------------------------------------------


def flip(path: Path) -> None:
    """One bit of the last page of the first column."""
    column = pq.ParquetFile(path).metadata.row_group(0).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    content = bytearray(path.read_bytes())
    content[start + column.total_compressed_size - 1] ^= 1
    path.write_bytes(content)


def test_what_is_written_has_checksums(folder, tmp_path):
    written = tmp_path / "synth.parquet"
    written.write_bytes(sorted(folder.glob("*.parquet"))[0].read_bytes())
    batches(MuonTask(f"{folder}/*.parquet", held_out=0.0, max_muons_per_event=5, outliers_dir=str(tmp_path / "large")))
    for path in (written, next((tmp_path / "large").glob("*.parquet"))):
        flip(path)
        with pytest.raises(OSError, match="CRC checksum"):
            pq.read_table(path, page_checksum_verification=True)


def test_a_flipped_bit_is_noticed_by_every_reader(folder, tmp_path):
    path = tmp_path / "a.parquet"
    table = pq.read_table(sorted(folder.glob("*.parquet"))[0], columns=["primary", "muons"])
    pq.write_table(table, path, compression="none", write_page_checksum=True)
    flip(path)
    for reader in ("auto", "hf"):
        with pytest.raises(DataError, match="a.parquet.*CRC checksum") as caught:
            batches(MuonTask(str(path), reader=reader))
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="a.parquet: cannot be read: .*CRC checksum"):
        list(generate._rows(str(path)))


def test_odd_lists_of_files_are_said(folder, tmp_path):
    one, two = sorted(folder.glob("*.parquet"))
    (tmp_path / "link.parquet").symlink_to(one)
    pq.write_table(pq.read_table(one).slice(0, 0), tmp_path / "none.parquet")
    files = [str(one), str(tmp_path / "link.parquet"), str(tmp_path / "none.parquet")]
    task = MuonTask(files, validation_files=[str(one), str(two)])
    source = task.build_data("train", 64, seed=1)
    for _ in range(2):
        task.build_data("validation", 64, seed=1)
    said = [event.title for event in source.events()]
    assert len(said) == 3
    assert any("link.parquet" in line and "are one file" in line for line in said)
    assert any("none.parquet: there are no rows in it" in line for line in said)
    assert any(f"validation_files: {one} is also trained on" in line for line in said)


@pytest.mark.parametrize(("value", "says"), [(15.0, "wants .* muons where there are"), (float("nan"), "not finite")])
def test_a_network_that_has_diverged_is_refused_before_memory_is_asked_for(folder, value, says):
    task = MuonTask(files=[str(folder / "*.parquet")], held_out=0.3)
    models = task.build_model(None)
    with torch.no_grad():
        last = models["multiplicity"].net[-1]
        last.weight.zero_()
        last.bias[0] = value
    source = task.build_data("validation", 64, seed=1)
    _, _, share = next(iter(Loader(source, CPU).batches(Position(), last_epoch=1)))
    with torch.no_grad(), pytest.raises(NonFiniteError, match=says):
        task.eval_step(models, share)
