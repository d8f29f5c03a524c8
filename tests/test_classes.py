"""A task of a script is found again: by its file, from anywhere, and only where its code is trusted."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from support.probe import TASKS
from support.processes import program, run
from support.runs import config
from support.toys import Toy

from accel_train import Task, load_exported
from accel_train.classes import path_of, same_class, unfindable
from accel_train.cli import main
from accel_train.errors import UserError
from accel_train.registry import find

SCRIPT = """
import sys
import torch
import own_rows
from accel_train import Loss, Task, Trainer, from_dataset

class OwnTask(Task):
    def __init__(self, width: int = 2):
        self.width = width
    def build_data(self, split, batch_size, seed): return from_dataset(own_rows.Rows(), batch_size, seed)
    def build_model(self): return torch.nn.Linear(self.width, 1)
    def loss_step(self, models, batch, totals, objective):
        return Loss(models["model"](batch["x"]).sum() / totals["items"])
    def eval_step(self, models, batch): return {"loss": models["model"](batch["x"]).sum()}
    def eval_metrics(self, sums): return {"loss": float(sums["loss"])}
"""
ROWS = """
import torch
class Rows:
    def __len__(self): return 8
    def __getitem__(self, i): return {"x": torch.full((2,), float(i))}
"""
GUARD, NO_GUARD = "\nif __name__ == '__main__':\n    ", "\n"
TRAIN = (
    "Trainer(OwnTask(), output_dir=sys.argv[1], max_steps=int(sys.argv[2]), report_to=[], "
    "worker_type='process', num_workers=1).fit()\n"
)


def finished(*command, cwd):
    process = program([sys.executable, *map(str, command)], cwd=cwd)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 0, said
    return said


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of a script, which imports another file beside it and reads data in worker processes."""
    folder = tmp_path_factory.mktemp("scripts")
    (folder / "own_script.py").write_text(SCRIPT + GUARD + TRAIN)
    (folder / "own_rows.py").write_text(ROWS)
    said = finished("own_script.py", "run", 2, cwd=folder)
    assert "cannot find it" not in said
    return folder


@pytest.fixture
def forgotten(tmp_path, monkeypatch):
    """In another folder, and nothing of the scripts imported, before or after."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield
    for name in [name for name in sys.modules if name.startswith("own_")]:
        del sys.modules[name]


def test_a_run_of_a_script_is_a_run_like_any_other(made, forgotten, capsys):
    folder = made / "run"
    path = f"{made / 'own_script.py'}:OwnTask"
    assert yaml.safe_load((folder / "config.yaml").read_text())["task"]["class_path"] == path
    assert main(["evaluate", str(folder)]) == 2
    assert "own_script" in (said := capsys.readouterr().err) and "add --trust" in said and said.count("\n") == 1
    with pytest.raises(UserError, match="own_script.*--trust"):
        load_exported(folder / "model")
    assert (
        main(["evaluate", str(folder), "--trust"]) == 0 and main(["export", str(folder), "--out=out", "--trust"]) == 0
    )
    task, models, _ = load_exported(folder / "model")  # imported by now
    assert type(task).__name__ == "OwnTask" and path_of(type(task)) == path and list(models) == ["model"]
    again = ["--config", str(folder / "config.yaml"), f"--output_dir={folder}", "--worker_type=thread", "--max_steps=3"]
    assert main(["train", *again]) == 0
    assert "resumed at step 2" in capsys.readouterr().out


def test_by_its_file_on_the_command_line(made, forgotten):
    """In another process, whose readers must find the data set's class too."""
    command = ["-m", "accel_train", "train", "--task=own_script.py:OwnTask", "--task.init_args.width=2"]
    settings = ["--max_steps=3", "--worker_type=process", "--report_to=[]"]
    said = finished(*command, f"--output_dir={made / 'run'}", *settings, cwd=made)
    assert "step 3" in said and "belongs to another run" not in said, "it is the run of the script"


def test_a_file_that_was_moved(made, forgotten, capsys):
    shutil.copytree(made, "moved/scripts")
    for path in map(Path, ("moved/scripts/run/best/config.json", "moved/scripts/run/config.yaml")):
        path.write_text(path.read_text().replace(str(made), "/gone"))
    assert main(["evaluate", "moved/scripts/run", "--trust"]) == 2
    assert "there is no file /gone/own_script.py" in capsys.readouterr().err
    assert main(["evaluate", "moved/scripts/run", "--trust", "--task=moved/scripts/own_script.py:OwnTask"]) == 0


def test_an_old_run_of_a_script(made, forgotten, capsys):
    """Which says only that it was the main program."""
    shutil.copytree(made / "run", "run", symlinks=True)
    path = Path("run/best/config.json")
    described = json.loads(path.read_text())
    described["task"]["class_path"] = "__main__.OwnTask"
    path.write_text(json.dumps(described))
    assert main(["evaluate", "run/best"]) == 2
    assert "'__main__.OwnTask' was defined in a notebook" in capsys.readouterr().err
    assert main(["evaluate", "run/best", "--trust", f"--task={made / 'own_script.py'}:OwnTask"]) == 0


def test_a_script_that_trains_when_imported(forgotten):
    Path("own_script.py").write_text(SCRIPT + NO_GUARD + TRAIN)
    Path("own_rows.py").write_text(ROWS)
    sys.argv[1:], before = ["run", "1"], sys.argv[1:]
    try:
        with pytest.raises(UserError, match=r"own_script.py trains as soon as it is imported.*__name__"):
            find("own_script.py:OwnTask")
    finally:
        sys.argv[1:] = before
    assert not Path("run").exists()


def test_files_that_cannot_be(forgotten):
    for name in ("own.v2.py", "own_script.py", "math.py", "yaml.py"):
        Path(name).write_text("class Other: pass\n")
    Path("own_end.py").write_text("import argparse\nargparse.ArgumentParser().parse_args(['--no'])\n")
    for path, says in (
        ("own_script.py", r"task: own_script.py is a file; give own_script.py:Class"),
        ("own_other.py:OwnTask", r"cannot import 'own_other.py:OwnTask': there is no file .*own_other.py"),
        ("own.v2.py:OwnTask", "no module can be called 'own.v2'"),
        ("own_script.py:OwnTask", "'own_script.py:OwnTask' does not exist"),
        ("own_script.py:Other", "'own_script.py:Other' is not a Task"),
        ("own_end.py:OwnTask", "own_end.py ends as soon as it is imported.*__name__"),
        ("math.py:Other", "'math' is also the name of .*math"),
        ("yaml.py:Other", r"'yaml' is also the name of .*yaml/__init__.py"),
    ):
        with pytest.raises(UserError, match=says):
            find(path)


def test_classes_that_nobody_else_can_find(tmp_path, monkeypatch):
    class Inner(Task):
        pass

    assert unfindable(Inner) == "is not at the top level of its file"
    cell = type("Cell", (Task,), {"__module__": "__main__"})
    assert unfindable(cell) == "was made in a notebook or by typing" and path_of(cell) == "__main__.Cell"
    monkeypatch.setattr(sys.modules["__main__"], "Cell", cell, raising=False)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(tmp_path / "gone.py"), raising=False)
    assert path_of(cell) == "__main__.Cell", "a file that is not there"
    monkeypatch.setattr(sys.modules["__main__"], "__file__", __file__)
    assert path_of(cell) == f"{Path(__file__).resolve()}:Cell" and not unfindable(cell)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("a.B", "a.B", True),
        ("a.B", "c.B", False),
        ("/x/a.py:B", "y/a.py:B", True),
        ("/x/a.py:B", "/x/c.py:B", False),
        ("/x/a.py:B", "/x/a.py:C", False),
        ("__main__.B", "/x/a.py:B", True),
        ("__main__.B", "a.B", False),
        ("a.B", "a.py:B", False),
    ],
)
def test_the_same_class(one, other, same):
    assert same_class(one, other) == same == same_class(other, one)


def test_a_notebook_is_told_at_the_start(tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, "Cell", type("Cell", (Toy,), {"__module__": "__main__"}))
    (result,) = run({"task": "Cell", "config": config(tmp_path, max_steps=1)})
    assert result["error"] is None
    told = [title for kind, title in result["events"] if kind == "note" and "notebook" in title]
    assert len(told) == 1 and "put it into a file" in told[0]
    (result,) = run({"config": config(tmp_path / "toy", max_steps=1)})
    assert not [title for _, title in result["events"] if "put it into a file" in title]
