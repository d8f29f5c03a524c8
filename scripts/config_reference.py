"""``python scripts/config_reference.py > docs/config.md``: every setting of a run, from its declaration."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any, get_args

from accel_train.arguments import bare, hints_of, rules_of
from accel_train.config.convert import kind
from accel_train.config.plain import plain
from accel_train.config.schema import TrainConfig
from accel_train.config.setting import about

BEGINNING = """\
# The settings of a run

Made by `python scripts/config_reference.py > docs/config.md`; `accel-train train --help` says the same. The arguments
of a task, `task.init_args.NAME`, are listed by `accel-train train --task=NAME --help`.

A dot in a name is a level in YAML; `phases[]` is each phase, `optimizers.NAME` each optimiser. Text in the place of a
number is a duration: `1000st` (steps), `30ep` (epochs), `90s`, `30min`, `2h`, `1d`. A setting that makes another run
must be the same when a run is resumed, unless `allow_changed_config` is set; the others may change, and the run notes
it.
"""
COLUMNS = ("name", "type", "default", "range", "meaning", "another run?")


def page() -> str:
    return BEGINNING + "\n".join(lines(TrainConfig(), "", None)) + "\n"


def lines(config: Any, prefix: str, identity: bool | None) -> Iterator[str]:
    """A row for each field and for those of dataclasses in it; a new table where a heading begins.

    Args:
        config: a dataclass with its defaults.
        prefix: of the names.
        identity: whether all of them make another run; None: as each declares.
    """
    for name, hint in hints_of(type(config)).items():
        declared, default = about(type(config))[name], getattr(config, name)
        another = declared["identity"] if identity is None else identity
        if declared["heading"]:
            yield f"\n## {declared['heading'].capitalize()}\n"
            yield row(COLUMNS)
            yield "|---" * len(COLUMNS) + "|"
        ranges = "; ".join(map(str, rules_of(hint)))
        value = "" if dataclasses.is_dataclass(default) else f"`{json.dumps(plain(default))}`"
        yield row((f"`{prefix}{name}`", kind(hint), value, ranges, declared["text"], "yes" if another else "no"))
        if dataclasses.is_dataclass(default):
            yield from lines(default, f"{prefix}{name}.", another)
        elif dataclasses.is_dataclass(inner := (get_args(bare(hint)) or (None,))[-1]):
            each = ".NAME." if isinstance(default, dict) else "[]."
            yield from lines(inner(), f"{prefix}{name}{each}", another)  # pyright: ignore[reportCallIssue]


def row(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


if __name__ == "__main__":
    print(page(), end="")
