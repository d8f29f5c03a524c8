"""What an installation brings along comes to where one works, and every path that is printed is there then."""

import re
import shutil
import tomllib
from pathlib import Path

import pytest
import yaml

import accel_train
from accel_train.cli import main
from accel_train.commands import init
from accel_train.data.synthetic import training_line
from accel_train.registry import TASKS

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["clone", "wheel"])
def installed(request, tmp_path, monkeypatch):
    """A folder to work in, beside an installation of either kind."""
    if request.param == "wheel":
        wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
        for source, target in wheel["force-include"].items():
            shutil.copytree(ROOT / source, tmp_path / "site" / target)
        monkeypatch.setattr(init, "__file__", str(tmp_path / "site/accel_train/commands/init.py"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def copied(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def tracked(*places: str) -> set[str]:
    return {f"{place}/{path.name}" for place in places for path in (ROOT / place).iterdir() if path.is_file()}


def test_everything_comes(installed, capsys):
    assert main(["init"]) == 0
    assert copied(installed) == tracked("examples", "accelerate_configs")
    for name in copied(installed):
        assert (installed / name).read_bytes() == (ROOT / name).read_bytes()
    assert "accel-train train --config examples/collatz_small.yaml" in capsys.readouterr().out


@pytest.mark.parametrize("task", TASKS)
def test_one_task_comes_with_what_it_needs(installed, task, capsys):
    assert main(["init", task, "there"]) == 0
    names = copied(installed / "there")
    assert {f"examples/{task}_small.yaml", "examples/slurm.sh"} <= names
    assert (f"examples/{task}.yaml" in names) == (ROOT / f"examples/{task}.yaml").is_file()
    assert not any(other in name for other in TASKS for name in names if other not in task)
    assert not any(name.startswith("examples/collatz_step") for name in names if task == "collatz")
    assert tracked("accelerate_configs") <= names
    out = capsys.readouterr().out
    *_, last = out.splitlines()
    assert last.strip() == f"accel-train train --config examples/{task}_small.yaml" and "next, in there:" in out
    for path in re.findall(r"(?:examples|accelerate_configs)/[\w.]+", out):
        assert (installed / "there" / path).is_file()


def test_what_is_there_stays(installed, capsys):
    Path("examples").mkdir()
    Path("examples/muon_small.yaml").write_text("mine")
    Path("examples/muon.yaml").symlink_to("nowhere")
    assert main(["init", "muon"]) == 0
    assert Path("examples/muon_small.yaml").read_text() == "mine" and Path("examples/muon.yaml").is_symlink()
    assert capsys.readouterr().out.count("yours, kept") == 2
    assert main(["init", "muon"]) == 0
    assert "copied" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["moun"], "init: no task 'moun' (did you mean muon?); there are collatz"),
     (["work"], "a folder comes second: accel-train init all work"),
     (["all", "file"], "file"), (["all", "file/x"], "init: file/x cannot be made")],
)  # fmt: skip
def test_refused(installed, capsys, arguments, says):
    Path("file").write_text("")
    assert main(["init", *arguments]) == 2
    assert says in capsys.readouterr().err and copied(installed) == {"file"}


def test_a_printed_training_command_works_from_here(installed):
    line = training_line("examples/tcn_small.yaml", {})
    assert line == "accel-train init tcn && accel-train train --config examples/tcn_small.yaml"
    assert main(["init", "tcn"]) == 0
    assert training_line("examples/tcn_small.yaml", {}) == "accel-train train --config examples/tcn_small.yaml"


def test_heads_of_examples_name_files_that_are_there():
    for path in [*(ROOT / "examples").glob("*.yaml"), *(ROOT / "accelerate_configs").glob("*.yaml")]:
        head = path.read_text()
        assert isinstance(yaml.safe_load(head), dict)
        for name in re.findall(r"(?:examples|accelerate_configs|docs)/[\w/.]+\.\w+", head):
            assert (ROOT / name).is_file(), f"{path}: {name}"
        assert "make train" not in head  # which a wheel does not bring


def test_the_package_says_what_it_has():
    assert {"Task", "Trainer", "load_exported", "__version__"} <= set(dir(accel_train))
    assert accel_train.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert all(getattr(accel_train, name) is not None for name in accel_train.__all__)
    assert (ROOT / "accel_train/py.typed").is_file()
