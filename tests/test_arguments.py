"""Ranges that a constructor declares, and other rules of its arguments."""

import copy
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import pytest

from accel_train import Range, Task
from accel_train.arguments import Count, arguments_of, check, hints_of, rules_of
from accel_train.cli import main
from accel_train.config.read import parse
from accel_train.errors import UserError
from accel_train.plan import Durations

if TYPE_CHECKING:
    from nowhere import Unknown  # pyright: ignore[reportMissingImports]


class RangesTask(Task):
    """Declares ranges.

    Args:
        share: of the whole.
    """

    def __init__(
        self,
        width: Count = 4,
        share: Annotated[float, Range(0, below=1)] = 0.5,
        limit: Annotated[int, Range(2, 9)] | None = None,
        sizes: tuple[Count, ...] = (1,),
        pair: tuple[float, Count] = (0.0, 1),
    ) -> None:
        assert width and sizes, "a range is looked at before this"


class WiderTask(RangesTask):
    def __init__(self, depth: Annotated[int, Range(1)] = 1, **others: Any) -> None:
        super().__init__(**others)


@dataclass
class DataTask(Task):
    width: Annotated[int, Range(1)] = 4


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    for cls in (RangesTask, WiderTask):
        monkeypatch.setattr(cls, "__module__", "range_classes")
    monkeypatch.setitem(sys.modules, "range_classes", sys.modules[__name__])


WRONG = [
    ("width", 0, "width: 0 is out of range, must be at least 1"),
    ("share", 1.0, "share: 1.0 is out of range, must be from 0 to below 1"),
    ("share", -0.5, "share: -0.5 is out of range, must be from 0 to below 1"),
    ("share", float("nan"), "share: nan is out of range, must be from 0 to below 1"),
    ("limit", 10, "limit: 10 is out of range, must be from 2 to 9"),
    ("sizes", (1, 0), "sizes[1]: 0 is out of range, must be at least 1"),
    ("pair", (-1.0, 0), "pair[1]: 0 is out of range, must be at least 1"),
]


@pytest.mark.parametrize(("name", "value", "says"), WRONG)
def test_a_range_holds_however_a_task_is_made(tmp_path, name, value, says):
    text = {"nan": ".nan"}.get(str(value), str(list(value) if isinstance(value, tuple) else value))
    (tmp_path / "a.yaml").write_text(f"task: {{class_path: range_classes.RangesTask, init_args: {{{name}: {text}}}}}\n")
    for make in (
        lambda: RangesTask(**{name: value}),
        lambda: WiderTask(**{name: value}),
        lambda: parse(["--task=range_classes.RangesTask", f"--task.init_args.{name}={text}"]),
        lambda: parse(["--task=range_classes.WiderTask", f"--task.init_args.{name}={text}"]),
        lambda: parse(["--config", str(tmp_path / "a.yaml")]),
    ):
        with pytest.raises(UserError) as error:
            make()
        assert str(error.value) == f"task.init_args.{says}"


def test_what_is_in_range_passes():
    made = RangesTask(1, 0, 2, (1, 5))
    assert copy.deepcopy(made).init_args == made.init_args
    assert RangesTask(limit=None).init_args["limit"] is None
    with pytest.raises(UserError, match="^task.init_args.depth: 0 is out of range, must be at least 1$"):
        WiderTask(0)
    with pytest.raises(UserError, match="^task.init_args.width: 0 is out of range"):
        DataTask(0)


def test_help_shows_the_range(capsys):
    assert main(["train", "--task=range_classes.RangesTask", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--task.init_args.share number of the whole. (default: 0.5; from 0 to below 1)" in text
    assert "--task.init_args.limit int|null (default: null; from 2 to 9)" in text
    assert "--task.init_args.sizes [int, ...] (default: [1])" in text


def test_a_hint_for_type_checkers_alone_hides_no_other():
    def function(a: "Unknown", b: "Annotated[int, Range(3)]" = 3) -> None: ...

    assert [str(rule) for rule in rules_of(hints_of(function)["b"])] == ["at least 3"]
    assert "a" not in hints_of(function)
    assert arguments_of(WiderTask)[0]["width"].annotation == Count


@pytest.mark.parametrize(
    ("rule", "good", "bad", "says"),
    [
        (Range(1), [1, 1e300, None, "text"], [0, 0.5, float("inf"), float("nan")], "must be at least 1"),
        (Range(0.1, 2), [0.1, 2], [0, 2.1], "must be from 0.1 to 2"),
        (Range(0, below=1), [0, 0.999], [1, -1], "must be from 0 to below 1"),
        (Durations(), [1, "5ep", "3st", None], ["2h"], "a run must not depend; give steps or epochs"),
        (Durations(), [7], [0, "0"], "must be a whole number of steps or epochs, at least 1"),
        (Durations(zero=True), [0, "0", "1ep"], ["1min"], "a run must not depend; give steps or epochs"),
        (Durations(clock=True, zero=True), ["90s", "1ep", 0], ["soon"], "is not a length"),
        (Durations(steps=False, clock=True), ["2h", None], ["2ep", 5], "is not wall time; write 90s, 30min, 2h or 1d"),
    ],
)
def test_rules(rule, good, bad, says):
    for value in good:
        check(Annotated[Any, rule], value, "x")
    for value in bad:
        with pytest.raises(UserError, match=f"^x: .*{says}"):
            check(Annotated[Any, rule], value, "x")
