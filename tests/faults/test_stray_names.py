"""Things in a run folder that no run put there, or that are not what their name says: ignored, or one line."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from support.processes import run
from support.runs import config, damaged, steps_saved

from accel_train import cli

JOB = {"max_steps": 12, "save_steps": 6, "eval_steps": 6}
STAY = "is not a file but a run writes one there; move it away"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "run"
    run({"config": config(folder, **JOB)})
    return folder


@pytest.fixture
def folder(made, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    shutil.copytree(made, tmp_path / "run", symlinks=True)
    return tmp_path / "run"


def call(capsys, *arguments):
    capsys.readouterr()
    code = cli.main([*map(str, arguments)])
    printed = capsys.readouterr()
    assert code in (0, 2) and printed.err.count("\n") == (code == 2), printed.err
    return code, printed.out + printed.err


def put(path: Path, content: str | bytes | None) -> None:
    """A file, or a folder for None, in place of whatever is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("step-000000018", "x"), ("step-00000000x", "x"), ("step-abc", None), ("step-", None), ("step-7", None),
        ("step-٣", None), (".writing-000000018", "x"), (".writing-latest", None), (".writing-best", None),
        (".writing-x", "x"), (".writing-old-x", "x"), (".writing-old-9", "x"), (".writing-old-x", None), ("notes", "x"),
    ],
)  # fmt: skip
def test_beside_the_checkpoints_it_is_ignored(folder, capsys, name, content):
    put(folder / "checkpoints" / name, content)
    for command in ("inspect", "status", "stop", "evaluate"):
        assert call(capsys, command, folder)[0] == 0
    (result,) = run({"config": config(folder, **JOB | {"max_steps": 24})})
    assert (result["outcome"], min(result["samples"])) == ("completed", 13)
    assert steps_saved(folder) == [6, 12, 18, 24] and damaged(folder) == []
    assert [kind for kind, title in result["events"] if "NOT SAVED" in title] == []


@pytest.mark.parametrize(
    "name",
    [
        "config.yaml", "environment.json", "status.json", "metrics.jsonl", "metrics.json", "events.jsonl",
        "digests.jsonl", "control/stop", "control/save", "control/status",
    ],
)  # fmt: skip
def test_a_folder_in_place_of_a_file(folder, capsys, name):
    put(folder / name, None)
    (result,) = run({"config": config(folder, **JOB | {"max_steps": 24})})
    assert result["error"] == ("UserError", f"{folder / name} {STAY}")
    assert not (folder / "run.lock").exists() and steps_saved(folder) == [6, 12]
    for command in ("inspect", "status", "stop", "evaluate"):
        call(capsys, command, folder)


@pytest.mark.parametrize("name", ["checkpoints", "control", "figures", "tensorboard", "phases"])
def test_a_file_in_place_of_a_folder(folder, capsys, name):
    put(folder / name, "x")
    (result,) = run({"config": config(folder, **JOB | {"max_steps": 24})})
    assert result["error"] == ("UserError", f"{folder / name} is not a folder but a run writes one there; move it away")
    for command in ("inspect", "status", "stop", "evaluate"):
        assert call(capsys, command, folder)[0] == 0


def test_a_pipe_stops_nobody(folder, capsys):
    for name in ("status.json", "metrics.jsonl"):
        (folder / name).unlink()
        os.mkfifo(folder / name)
    (result,) = run({"config": config(folder, **JOB | {"max_steps": 24})})
    assert result["error"] == ("UserError", f"{folder / 'status.json'} {STAY}")
    for command in ("inspect", "status", "stop"):
        call(capsys, command, folder)


@pytest.mark.parametrize(
    "text",
    ["", "garbage", b"\xff\xfe", "[1, 2]", "null", json.dumps({"step": "x", "state": 3, "updated": "never"}),
     json.dumps({"state": "running", "last_eval": "x", "total_steps": [1]})],
)  # fmt: skip
def test_a_status_that_is_none(folder, capsys, text):
    put(folder / "status.json", text)
    code, said = call(capsys, "status", folder)
    assert code == 2 and "status.json is damaged" in said
    code, said = call(capsys, "inspect", folder)
    assert code == 0 and "status.json is damaged" in said and "step" in said
    code, said = call(capsys, "stop", folder)
    assert code == 0 and "is not running" in said
    (result,) = run({"config": config(folder, **JOB | {"max_steps": 24})})
    assert result["outcome"] == "completed"
    assert ": completed" in call(capsys, "status", folder)[1]


@pytest.mark.parametrize("text", ["", "- 1", b"\t{{{ : - x\xff", "seed: 1", "task: 3"])
def test_a_config_that_is_none(folder, capsys, text):
    put(folder / "config.yaml", text)
    assert call(capsys, "evaluate", folder)[0] == 2
    for command in ("status", "stop", "inspect"):
        assert call(capsys, command, folder)[0] == 0
    (folder / "status.json").unlink()
    assert "config.yaml is damaged" in call(capsys, "inspect", folder)[1]
    (result,) = run({"config": config(folder, **JOB | {"max_steps": 24})})
    assert result["outcome"] == "completed"


@pytest.mark.parametrize("text", ["", "garbage", "[1]", "{}"])
def test_a_model_that_is_none(folder, capsys, text):
    put(folder / "best" / "config.json", text)
    assert "best/config.json" in call(capsys, "evaluate", folder)[1]
    assert call(capsys, "inspect", folder)[0] == 2
    (result,) = run({"config": config(folder, **JOB | {"max_steps": 24})})
    assert result["outcome"] == "completed"
