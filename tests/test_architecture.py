"""The house is as docs/design.md draws it: each file in its room, imports only downwards, no circles, short files."""

from __future__ import annotations

import ast
import functools
import re
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "accel_train"
LONGEST = 500
"""Lines of a file. Most have fewer than 300; one that reaches this has a second subject."""
FOR_THE_LOOP = {"train", "commands", "cli"}
"""What no task imports."""


def drawn() -> dict[str, int]:
    """Rooms and files of the map, as module names without the package's, with their floors from the roof down."""
    text = (ROOT / "docs" / "design.md").read_text().split("## The house")[1].split("```")[1]
    floors, room = {}, ""
    for number, line in enumerate(text.splitlines()[2:]):
        indent, rest = len(line) - len(line.lstrip()), line.strip()
        if indent == 2:
            room = rest.split()[0].rstrip("/") if rest.split()[0].endswith("/") else ""
            if room and room != "tasks/NAME":
                floors[room.replace("/", ".")] = number
        names = re.findall(r"(\w+)\.py", rest) if room and indent != 4 else re.findall(r"^(\w+)\.py", rest)
        if room != "tasks/NAME":
            floors |= {f"{room}/{name}".strip("/").replace("/", "."): number for name in names}
        else:
            floors["tasks"] = number
    return floors


def modules() -> dict[str, Path]:
    found = {path.relative_to(PACKAGE).with_suffix(""): path for path in PACKAGE.rglob("*.py")}
    named = {".".join(name.parts).removesuffix("__init__").rstrip("."): path for name, path in found.items()}
    return {name: path for name, path in named.items() if name not in ("", "__main__")}


def imports(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """Modules of the package that a file imports: at its head, late, or for types only."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: imports are absolute"
            base = (node.module or "").split(".")
            for alias in node.names:
                full = ".".join([*base, alias.name])
                found.add(full if full.removeprefix("accel_train.") in known else ".".join(base))
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {each.removeprefix("accel_train.") for each in found if each.startswith("accel_train.")}


def room_of(module: str) -> str:
    parts = module.split(".")
    if parts[0] == "tasks":
        return "tasks"
    return ".".join(parts[:-1]) or parts[0]


MODULES = modules()


@functools.cache
def arrows() -> dict[str, set[str]]:
    return {name: imports(name, path, MODULES) for name, path in MODULES.items()}


def test_every_file_is_on_the_map():
    files = {name for name, path in MODULES.items() if path.name != "__init__.py" and not name.startswith("tasks.")}
    rooms = {room_of(name) for name in files} - files
    assert set(drawn()) - {"tasks"} - rooms == files


def test_imports_point_down():
    floors = drawn()
    wrong = [
        f"{name} -> {other}"
        for name, others in arrows().items()
        for other in others
        if room_of(name) != room_of(other) and floors[room_of(other)] <= floors[room_of(name)]
    ]
    assert wrong == []


def test_tasks_stand_alone():
    """The core does not know them, they do not know the loop, nor each other."""
    wrong = [f"{name} -> {other}" for name, others in arrows().items() for other in others if _is_foreign(name, other)]
    assert wrong == []


def _is_foreign(name: str, other: str) -> bool:
    if not name.startswith("tasks."):
        return other.startswith("tasks.")
    if other.startswith("tasks."):
        return other.split(".")[1] != name.split(".")[1]
    return room_of(other) in FOR_THE_LOOP


def test_no_circle():
    TopologicalSorter(arrows()).prepare()  # raises a CycleError that names one


def test_files_are_short():
    assert {name: n for name, path in MODULES.items() if (n := len(path.read_text().splitlines())) > LONGEST} == {}
