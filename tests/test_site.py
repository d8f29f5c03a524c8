"""The pages of the site: their Python runs, their commands exist, the reference is whole, and Sphinx builds it."""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import accel_train
from accel_train.cli import main
from accel_train.command import find_command
from accel_train.commands import COMMANDS
from accel_train.config.read import parse
from accel_train.registry import TASKS, commands_of

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
HOWTO = sorted((DOCS / "howto").glob("*.md"))
PAGES = [DOCS / "tutorial.md", DOCS / "faq.md", DOCS / "gallery.md", DOCS / "cluster.md", *HOWTO]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.S)


def run_blocks(found: list[str], name: str) -> dict[str, Any]:
    space: dict[str, Any] = {"__name__": "page"}
    for block in found:
        exec(compile(block, name, "exec"), space)
    return space


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder with the file that the tutorial tells its reader to save."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "curve.py").write_text(*blocks(DOCS / "tutorial.md", "python"))
    yield
    sys.modules.pop("curve", None)


# -- Python ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [page for page in HOWTO if blocks(page, "python")], ids=lambda page: page.stem)
@pytest.mark.usefixtures("workplace")
def test_the_python_of_a_how_to_runs(page: Path):
    run_blocks(blocks(page, "python"), page.name)


@pytest.mark.usefixtures("workplace")
def test_the_task_of_the_tutorial_is_trained_evaluated_and_trained_again(capsys: pytest.CaptureFixture[str]):
    """As the page has it, but fewer epochs of the run from the command line."""
    assert runpy.run_path("curve.py", run_name="__main__")["trainer"].config.num_train_epochs == 30
    after = blocks(DOCS / "tutorial.md", "bash")[-1].replace("num_train_epochs=30", "num_train_epochs=1")
    for command in commands(after):
        assert main(command) == 0
    assert float(re.findall(r"'loss': ([\d.]+)", capsys.readouterr().out)[0]) < 0.02, "near the variance of the noise"


# -- commands ----------------------------------------------------------------------------------------------------------

MADE_UP = re.compile(r"\$|FILE|RUN|runs/|=\w+\.py:|\.width=|--dry_run")
"""What a page leaves to its reader, or a run of the page has made."""


def commands(text: str) -> Iterator[list[str]]:
    """The arguments of each ``accel-train`` or ``accelerate launch ... -m accel_train`` in lines of a shell."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        for i, word in enumerate(words):
            if Path(word).name in ("accel-train", "accel_train") and words[i + 1 :]:
                yield words[i + 1 :]


def try_options(name: str, arguments: list[str]) -> None:
    """Raises a UserError for a command, a setting or a file that does not exist."""
    if name == "train":
        known = [word for word in arguments if not MADE_UP.search(word)]
        if not any(word.endswith(".yaml") for word in known):
            known = ["--task=collatz", "--max_steps=1", *(word for word in known if word != "--config")]
        parse(known)
    elif name in TASKS:
        find_command(commands_of(name), arguments[0], name)
    elif not find_command(COMMANDS, name).raw:
        COMMANDS[name].parser().options(arguments)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_of_a_page_exist(page: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    for name, *arguments in commands("\n".join(blocks(page, "bash"))):
        try_options(name, arguments)
    for name in re.findall(r"`accel-train ([a-z]\w*)", page.read_text()):
        assert name in TASKS or find_command(COMMANDS, name)


# -- reference and site ------------------------------------------------------------------------------------------------


def test_the_reference_of_python_has_every_public_name():
    named = set(re.findall(r"^\.\. auto\w+:: (?:[\w.]+\.)?(\w+)$", (DOCS / "api.md").read_text(), re.M))
    assert set(accel_train.__all__) <= named


def test_every_page_is_in_the_contents():
    listed = {line for block in re.findall(r"```{toctree}\n(.*?)```", (DOCS / "index.md").read_text(), re.S)
              for line in block.splitlines() if line and not line.startswith(":")}  # fmt: skip
    pages = {str(page.relative_to(DOCS).with_suffix("")) for page in DOCS.rglob("*.md")}
    assert pages - {"index"} == listed


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path):
    pytest.importorskip("sphinx")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "-d", str(tmp_path / "trees")]
    done = subprocess.run([*command, str(DOCS), str(tmp_path / "site")], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    text = (tmp_path / "site" / "cli.html").read_text()
    assert all(f'id="accel-train-{name}"' in text for name in COMMANDS) and 'id="accel-train-muon-generate"' in text
    assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(?:https?:)?//', text), (
        "it loads nothing from elsewhere"
    )


# -- coming from other trainers ----------------------------------------------------------------------------------------


def conversions() -> dict[tuple[str, str], str]:
    """The blocks that begin with ``# before: NAME`` or ``# after: NAME``."""
    found = blocks(DOCS / "coming_from.md", "python")
    heads = [re.match(r"# (before|after): (.*)\n", block) for block in found]
    return {(head[2], head[1]): block for head, block in zip(heads, found, strict=True) if head}


def code_lines(block: str) -> int:
    return sum(1 for line in block.splitlines() if line.strip() and not line.strip().startswith(("#", '"""')))


def test_the_table_of_lines_is_counted():
    table = re.findall(
        r"^\| (plain accelerate|HF Trainer) \| (\d+) \| (\d+) \|$", (DOCS / "coming_from.md").read_text(), re.M
    )
    counted = {key: str(code_lines(block)) for key, block in conversions().items()}
    assert [row[1:] for row in table] == [
        (counted[name, "before"], counted[name, "after"]) for name in ("accelerate", "HF Trainer")
    ]


def test_settings_that_the_page_gives_exist():
    fields = set(accel_train.TrainConfig.__dataclass_fields__)
    text = (DOCS / "coming_from.md").read_text()
    same = text.split("have the same names:")[1].split("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", same)) <= fields


@pytest.mark.slow
def test_both_sides_of_a_conversion_learn_the_same(tmp_path: Path):
    """In a process of its own: the other trainers keep a state for the whole process."""
    pytest.importorskip("transformers")
    calls = "for each in (train, train_corners, train_bert, train_bert_here): print('FOUND', each.__name__, each())"
    (tmp_path / "both.py").write_text("\n".join([*blocks(DOCS / "coming_from.md", "python"), calls]))
    done = subprocess.run([sys.executable, "both.py"], cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    found = re.findall(r"^FOUND (\w+) .*accuracy': ([\d.]+)", done.stdout, re.M)
    accuracy = {name: float(value) for name, value in found}
    assert accuracy["train"] == pytest.approx(accuracy["train_corners"], abs=0.05) and accuracy["train"] > 0.8
    assert accuracy["train_bert"] == pytest.approx(accuracy["train_bert_here"], abs=0.05)
    assert accuracy["train_bert"] > 0.8


def test_pictures_are_small_and_shown():
    pictures = sorted((DOCS / "images").iterdir())
    shown = (DOCS / "gallery.md").read_text()
    assert all(picture.stat().st_size < 150_000 and f"(images/{picture.name})" in shown for picture in pictures)
