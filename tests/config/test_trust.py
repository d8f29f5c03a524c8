"""Looking at somebody's run runs nobody's code but that of installed packages, unless it is asked for."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from accel_train import Task, load_exported, tasks
from accel_train.cli import main
from accel_train.commands.export import export_run
from accel_train.commands.inspect import look_at
from accel_train.config.trust import imports_for, is_own
from accel_train.errors import UserError
from accel_train.run.saved import find_saved
from accel_train.tasks import gdynet
from accel_train.tasks.collatz.task import CollatzTask
from accel_train.train.measuring import evaluate_run

OWN = """
open("it_ran", "w").close()
import torch
from accel_train import IndexedSource, Loss, Task

class Rows:
    def __len__(self): return 8
    def read(self, indices): return {"x": torch.ones(len(indices), 2)}

class OwnTask(Task):
    def build_data(self, split, batch_size, seed): return IndexedSource(Rows(), batch_size, seed)
    def build_model(self): return torch.nn.Linear(2, 1)
    def loss_step(self, models, batch, totals, objective):
        return Loss(models["model"](batch["x"]).sum() / totals["items"])
    def eval_step(self, models, batch): return {"loss": models["model"](batch["x"]).sum()}
    def eval_metrics(self, sums): return {"loss": float(sums["loss"])}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of a task that lies in the working directory."""
    folder = tmp_path_factory.mktemp("trust")
    (folder / "own_trust.py").write_text(OWN)
    command = [sys.executable, "-m", "accel_train", "train", "--task=own_trust.OwnTask", "--max_steps=2"]
    done = subprocess.run([*command, "--output_dir=run", "--report_to=[]"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (folder / "it_ran").unlink()
    (folder / "said").write_text(done.stdout)
    return folder


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    """In a process that has not imported that task."""
    folder = Path(shutil.copytree(made, tmp_path / "here", symlinks=True))
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield folder
    for name in [name for name in sys.modules if name.startswith("own_")]:
        del sys.modules[name]


LOOKS = {
    "evaluate": lambda trust: evaluate_run(Path("run"), out=Path("out"), trust=trust),
    "evaluate a checkpoint": lambda trust: (
        evaluate_run(Path("run"), checkpoint="2", out=Path("out"), trust=trust).metrics
    ),
    "evaluate a model": lambda trust: evaluate_run(Path("run/best"), trust=trust).metrics,
    "export": lambda trust: export_run(Path("run"), "latest", Path("out"), trust=trust),
    "load_exported": lambda trust: load_exported(Path("run/model"), trust=trust),
    "inspect a config": lambda trust: look_at("run/config.yaml", [], trust=trust),
}


@pytest.mark.parametrize("look", LOOKS)
def test_code_of_the_working_directory_is_run_only_if_trusted(here, look):
    with pytest.raises(UserError) as error:
        LOOKS[look](False)
    said = str(error.value)
    assert said.startswith("run") and "own_trust" in said and str(here / "own_trust.py") in said and "--trust" in said
    assert "\n" not in said and not Path("it_ran").exists() and "own_trust" not in sys.modules
    LOOKS[look](True)
    assert Path("it_ran").exists()
    LOOKS[look if look != "export" else "evaluate"](False)  # imported by now


def test_the_commands(here, capsys):
    assert main(["evaluate", "run"]) == 2 and main(["export", "run", "--out=out"]) == 2
    assert main(["inspect", "run/config.yaml"]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 3 == printed.err.count("if you trust it, add --trust")
    for what in ("run", "run/checkpoints/latest", "run/model"):  # to read what is there needs no code
        assert main(["inspect", what]) == 0
    assert not Path("it_ran").exists()
    assert main(["evaluate", "run", "--trust"]) == 0
    assert Path("it_ran").exists()


def test_the_last_lines_of_a_run_name_a_command_that_works(made, capsys):
    assert "accel-train evaluate run --trust\n" in (made / "said").read_text()
    assert not is_own(CollatzTask) and is_own(type("Mine", (), {}))


def test_what_the_user_names_is_trusted(here):
    assert main(["train", "--config=run/config.yaml", "--max_steps=3"]) == 0
    Path("it_ran").unlink()
    sys.modules.pop("own_trust")
    assert main(["inspect", "own_trust.OwnTask"]) == 0 and Path("it_ran").exists()


@pytest.mark.parametrize("name", ["own_evil", "own_package.inner.module", "own_namespace.module"])
def test_no_way_to_name_a_module_runs_it(here, name):
    parts = name.split(".")
    for i in range(1, len(parts)):
        Path(*parts[:i]).mkdir()
        if "namespace" not in name:
            Path(*parts[:i], "__init__.py").write_text(OWN)
    Path(*parts).with_suffix(".py").write_text(OWN)
    path = Path("run/model/config.json")
    described = json.loads(path.read_text())
    described["task"] = {"class_path": f"{name}.OwnTask", "init_args": {}}
    path.write_text(json.dumps(described))
    shutil.move("run/model", "model")
    with pytest.raises(UserError, match="--trust"):
        load_exported(Path("model"))
    with pytest.raises(UserError, match="--trust"):
        find_saved(Path("model"))
    assert not Path("it_ran").exists()
    load_exported(Path("model"), trust=True)
    assert Path("it_ran").exists()


class Encoder:
    pass


class EncoderTask(Task):
    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder


def test_a_class_among_the_arguments_of_a_task_is_looked_at_too(here, monkeypatch):
    """A task that was imported, whose argument names a class of the working directory."""
    for cls in (Encoder, EncoderTask):
        monkeypatch.setattr(cls, "__module__", "config_classes")
    monkeypatch.setitem(sys.modules, "config_classes", sys.modules[__name__])
    Path("own_deep.py").write_text(f"{OWN}\nfrom config_classes import Encoder\nclass Deep(Encoder): pass\n")
    node = {"class_path": "config_classes.EncoderTask", "init_args": {"encoder": {"class_path": "own_deep.Deep"}}}
    from accel_train.config.read import build_task

    monkeypatch.syspath_prepend(str(here))
    with pytest.raises(UserError, match="own_deep.*--trust"), imports_for("run", trust=False):
        build_task(node)
    assert not Path("it_ran").exists()
    assert type(build_task(node).encoder).__name__ == "Deep"


def test_an_optimizer_that_a_config_names_is_looked_at_too(here):
    Path("own_optimizer.py").write_text(OWN)
    Path("plan.yaml").write_text("task: collatz\nmax_steps: 2\noptimizer: {class_path: own_optimizer.Best}\n")
    assert main(["inspect", "plan.yaml"]) == 2 and not Path("it_ran").exists()


def test_built_in_tasks_and_installed_packages_need_no_trust(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    monkeypatch.setattr(tasks, "gdynet", gdynet)  # the import below puts another module there
    with imports_for("run", trust=False):
        for name in [n for n in sys.modules if n.startswith(("xml.dom", "accel_train.tasks.gdynet"))]:
            monkeypatch.delitem(sys.modules, name)
        import xml.dom.minidom  # noqa: F401

        from accel_train.registry import find

        find("gdynet")
        monkeypatch.delitem(sys.modules, "typing_extensions", raising=False)
        import typing_extensions  # noqa: F401
    assert sys.path == before, "the working directory is not left in it either"


def test_another_error_stays_itself(here):
    with pytest.raises(ZeroDivisionError), imports_for("run", trust=False):
        1 / 0  # noqa: B018
    with imports_for("run", trust=False), pytest.raises(ImportError):  # who can do without it goes on
        import own_trust  # noqa: F401


def test_what_pythonpath_names_is_as_good_as_installed(here, tmp_path, monkeypatch):
    """Somebody meant that; not so if it is the working directory, where a config may have brought its code along."""
    meant = tmp_path / "meant"
    meant.mkdir()
    (here / "own_trust.py").rename(meant / "own_trust.py")
    monkeypatch.setenv("PYTHONPATH", f"{meant}:")
    monkeypatch.syspath_prepend(str(meant))
    assert main(["evaluate", "run"]) == 0 and Path("it_ran").exists()
    Path("it_ran").unlink()
    sys.modules.pop("own_trust")
    monkeypatch.chdir(meant)
    assert main(["evaluate", str(here / "run")]) == 2 and not Path("it_ran").exists()
