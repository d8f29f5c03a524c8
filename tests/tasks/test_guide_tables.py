"""The tables of what a guide's options are here: every option that a row names is there, with the default it says."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from accel_train.arguments import arguments_of
from accel_train.config.schema import TrainConfig
from accel_train.registry import find

DOCS = Path(__file__).parents[2] / "docs" / "tasks"
PAGES = {"muon": "its option", "gdynet": "its key"}
COMMANDS = {"dst", "src-root", "mode", "since", "match", "glob", "events", "config", "split", "model_type"}
"""Options of commands."""


def rows(task: str) -> list[list[str]]:
    """The cells of the table that begins with this word, without its head."""
    text = (DOCS / f"{task}.md").read_text()
    table = re.search(rf"^\| {PAGES[task]} \|.*?(?=\n\n)", text, flags=re.S | re.M)
    assert table
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table[0].splitlines()[2:]]


def defaults(task: str) -> dict[str, Any]:
    """Of every setting of a run and every argument of the task, by the name that a table uses."""
    found: dict[str, Any] = {field.name: None for field in dataclasses.fields(TrainConfig)}
    config = TrainConfig()
    found |= {name: getattr(config, name) for name in found}
    found |= getattr(find(task), "recommended", {})
    for name, argument in arguments_of(find(task))[0].items():
        found[name] = argument.default
        if dataclasses.is_dataclass(argument.default):
            found |= {f"{name}.{inner}": value for inner, value in dataclasses.asdict(argument.default).items()}  # type: ignore
    return found


def named(cell: str) -> list[str]:
    """The options that a cell names: `--name=...`, and bare names before any explanation."""
    first = cell.split(": ")[0].split(";")[0].split("(")[0]
    options = [name.split(".")[0] for name in re.findall(r"`--([\w.-]+)", first)]
    return [name for name in options if name not in COMMANDS] + re.findall(r"`([a-z_]+(?:\.[a-z_]+)?)`", first)


@pytest.mark.parametrize("task", PAGES)
def test_every_option_of_a_row_is_there(task):
    known = defaults(task)
    words = {"null", "auto", "model", "best", "latest"}
    unknown = {name: row[0] for row in rows(task) for name in named(row[1]) if name not in known and name not in words}
    assert not unknown


@pytest.mark.parametrize("task", PAGES)
def test_defaults_are_those_of_the_table(task):
    known, wrong, compared = defaults(task), [], 0
    for row in rows(task):
        names, said = named(row[1]), row[2] if len(row) > 2 else ""
        if len(names) == 1 and re.fullmatch(r"[\d,.e-]+|null|false|true", said):
            compared += 1
            meant = {"null": None, "false": False, "true": True}.get(said, said.replace(",", ""))
            if known[names[0]] != (float(meant) if isinstance(meant, str) else meant):
                wrong.append((names[0], said, known[names[0]]))
    assert not wrong and compared > 3
