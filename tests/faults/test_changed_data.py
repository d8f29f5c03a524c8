"""Files that are added, removed, cut or reordered between two sessions: the position would mean other rows."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.processes import run
from support.runs import config, steps_saved, weights_files

from accel_train.tasks.muon import synth


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("muons")
    synth.write(folder, seed=3, primaries=60, files=3, row_group=100, log10_energy=(5.0, 6.5))
    return sorted(folder.glob("*.parquet"))


@pytest.fixture
def data(made, tmp_path):
    """Two of three files."""
    (tmp_path / "data").mkdir()
    for i, path in enumerate(made[:2]):
        shutil.copy(path, tmp_path / "data" / f"{i}.parquet")
    return tmp_path / "data"


def job(data, folder, **settings):
    options = {"files": f"{data}/*.parquet", "lanes": 2}
    return {"task": "Muon", "task_args": options, "config": config(folder, max_steps=4, eval_steps=0, **settings)}


def test_a_change_is_refused_unless_one_insists(data, made, tmp_path):
    folder = tmp_path / "run"
    run(job(data, folder) | {"stop_at": {"step": 2}})
    shutil.move(data / "1.parquet", tmp_path / "1.parquet")
    shutil.copy(made[2], data / "00.parquet")
    (result,) = run(job(data, folder))
    kind, text = result["error"]
    assert kind == "UserError" and "1.parquet is gone; 00.parquet is new" in text and "allow_changed_data" in text
    assert steps_saved(folder) == [2]
    (result,) = run(job(data, folder, allow_changed_data=True))
    assert (result["outcome"], result["step"]) == ("completed", 4)
    assert any("changed data: 1.parquet is gone" in title for _, title in result["events"])


def test_data_that_were_moved_are_the_same(data, tmp_path):
    run(job(data, tmp_path / "whole"))
    run(job(data, tmp_path / "run") | {"stop_at": {"step": 2}})
    shutil.copytree(data, tmp_path / "other" / "place")
    shutil.rmtree(data)
    (result,) = run(job(tmp_path / "other" / "place", tmp_path / "run"))
    assert (result["outcome"], result["step"]) == ("completed", 4)
    assert weights_files(tmp_path / "run") == weights_files(tmp_path / "whole")


def write(path, table):
    pq.write_table(table, path, compression="none", write_statistics=False, row_group_size=20)


def test_what_both_ranks_have_read_is_known_to_both(tmp_path):
    """Another value under the same name, size and time is refused when it is read, and the last whole step is kept."""
    data, folder = tmp_path / "data", tmp_path / "run"
    synth.write(data, seed=3, primaries=10, files=2, log10_energy=(5.0, 6.0))
    for path in data.glob("*.parquet"):
        write(path, pq.read_table(path))
    whole = dict(global_batch_size=40)
    run(job(data, folder, **whole) | {"config": config(folder, max_steps=3, eval_steps=0, **whole)}, 2)
    (checkpoint,) = (folder / "checkpoints").glob("step-*")
    assert np.load(checkpoint / "contents.npz")["hashes"].all()
    content = json.loads((checkpoint / "identity.json").read_text())["content"]
    assert content["read"] == content["blocks"] == 6 and content["digest"]
    path = data / "bundles-00001.parquet"
    table, before = pq.read_table(path), path.stat()
    primary = table["primary"].to_pylist()
    primary[45][3] += 1
    write(path, table.set_column(table.column_names.index("primary"), "primary",
                                 pa.array(primary, table["primary"].type)))  # fmt: skip
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    results = run(job(data, folder, **whole) | {"config": config(folder, max_steps=6, eval_steps=0, **whole)}, 2)
    assert any(
        "00001.parquet, row group 2: content differs from what this run read" in str(r["error"]) for r in results
    )
    assert steps_saved(folder)[0] == 3
