"""What ``accel-train inspect`` says of shots and prebuilt windows, in every layout that the task reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from accel_train.config.convert import construct
from accel_train.errors import UserError
from accel_train.tasks.tcn.layouts import layout_of
from accel_train.tasks.tcn.prebuilt import Prebuilt
from accel_train.tasks.tcn.shots import SPLITS, Shot, Shots
from accel_train.tasks.tcn.windows import Windows

SHOWN = 5
"""Lines of a kind."""

HEAD = f"  {'split':<12}{'disruptive':>11}{'clear':>7}{'windows':>9}{'positive':>9}{'steps':>14}{'positive':>9}"


def describe(files: Sequence[str], task: type[Any], options: Mapping[str, Any]) -> str:
    """Shots, lengths, windows and positive shares of each split, and what was left out or looks wrong.

    Args:
        files: one folder or table.
        task: the class of tcn, whose arguments the options are.
        options: by name, ``raw.NAME`` for those of ``raw``; as a command line has them.

    Raises:
        UserError: more than one, a wrong option, or what training would raise for these data.
    """
    if len(files) > 1:
        raise UserError(f"inspect: {files[1]}: one folder or table at a time")
    tree: dict[str, Any] = {"data": files[0]}
    for name, value in options.items():
        group, dot, inner = name.partition(".")
        if dot:
            tree.setdefault(group, {})[inner] = value
        else:
            tree[name] = value
    made: Any = construct(task, tree, "")
    layout = layout_of(files[0], made.raw)
    splits: dict[str, Windows | Prebuilt] = {
        split: windows for split in SPLITS if (windows := made.windows(split)) is not None
    }
    if not splits:
        raise UserError(f"{files[0]}: has no shots")
    any_ = next(iter(splits.values()))
    labels = "as they were made" if layout == "prebuilt" else f"the last {made.labels.twarn_ms:g} ms"
    lines = [
        f"{Path(files[0])}: {layout}, {any_.channels:,} channels",
        f"  windows of {any_.nsub:,} samples, of which {any_.outputs:,} are scored (receptive field "
        f"{made.receptive_field:,}); positive: {labels}",
        HEAD,
        *(_row(split, windows) for split, windows in splits.items()),
    ]
    shown: Sequence[str] = ()
    if layout != "prebuilt":
        lines += _shots(made.store)
        shown = getattr(made.store, "warnings", ())
    warnings = [text for windows in splits.values() for text in windows.warnings if text not in shown]
    return "\n".join([*lines, *(f"  warning: {text}" for text in warnings)])


def _row(split: str, windows: Windows | Prebuilt) -> str:
    counted, positive = int(windows.counted.sum()), int(windows.positive.sum())
    disruptive = clear = "?"
    if isinstance(windows, Windows):
        number = sum(shot.disruptive for shot in windows.shots)
        disruptive, clear = f"{number:,}", f"{len(windows.shots) - number:,}"
    return (
        f"  {split:<12}{disruptive:>11}{clear:>7}{len(windows):>9,}{(windows.positive > 0).sum():>9,}{counted:>14,}"
        f"{positive / max(counted, 1):>9.1%}"
    )


def _shots(data: Shots) -> list[str]:
    lengths = np.array([shot.samples * shot.dt_ms for shot in data.shots])
    segments = np.array([(shot.stop - shot.start) * shot.dt_ms for shot in data.shots])
    steps = sorted({shot.dt_ms for shot in data.shots})
    lines = [
        f"  records {_span(lengths)} ms long, segments {_span(segments)} ms; {lengths.sum() / 1000:,.1f} s in all",
        f"  {data.dtype} samples every {', '.join(f'{step:g}' for step in steps[:3])} ms"
        + (f": {len(steps)} rates in one data set, which the model cannot tell apart" if len(steps) > 1 else ""),
    ]
    late = [(by, shot) for shot in data.shots if (by := _late_ms(shot)) > 0]
    if late:
        by, worst = max(late, key=lambda each: each[0])
        lines.append(
            f"  {len(late):,} disruptions come after the end of their record, at most {by:.3g} ms (shot {worst.number})"
        )
    for name, text in (("bad", "cannot be used"), ("left_out", "are left out")):
        said: Sequence[str] = getattr(data, name, ())
        if said:
            more = [f"    and {len(said) - SHOWN:,} more"] if len(said) > SHOWN else []
            lines += [f"  {len(said):,} shots {text}:", *(f"    {line}" for line in said[:SHOWN]), *more]
    return lines


def _late_ms(shot: Shot) -> float:
    return shot.t_disruption_ms - (shot.t0_ms + shot.samples * shot.dt_ms) if shot.disruptive else 0.0


def _span(values: np.ndarray) -> str:
    return f"{values.min():,.0f} to {values.max():,.0f} (median {np.median(values):,.0f})"
