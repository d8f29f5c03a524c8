"""Figures as files. Matplotlib is an extra: where it is missing there are no figures, and a line that says so."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accel_train.run.reports import warn
from accel_train.system.writing import replacing
from accel_train.task import Event

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOOTER_INCH = 0.16
SHOWN_DPI = 72
"""Dots per inch in a notebook, which keeps them."""


class Picture:
    """A picture in a file, which Jupyter shows."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __repr__(self) -> str:
        return f"Picture({self.path.name!r})"

    def _repr_png_(self) -> bytes:
        return self.path.read_bytes()


def pictures(folder: Path) -> dict[str, Picture]:
    """The figures that were saved as PNG in a folder, by name; none where there is no folder."""
    return {path.stem: Picture(path) for path in sorted(folder.glob("*.png"))}


def new_figure(width: float, height: float, **options: Any) -> Figure:
    """A matplotlib figure of so many inches, which Jupyter shows also where nobody has asked for ``%matplotlib
    inline``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", **options)

    def png() -> bytes:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=SHOWN_DPI)
        return buffer.getvalue()

    figure._repr_png_ = png  # pyright: ignore[reportAttributeAccessIssue]
    return figure


def pixels(figure: Any) -> Any:
    """A drawn figure as an array uint8 [height, width, 4]."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())


def save_figures(
    folder: Path,
    draw: Callable[[], Mapping[str, Any]],
    emit: Callable[[Event], None] = warn,
    show: Callable[[dict[str, Any]], None] | None = None,
    suffixes: Sequence[str] = ("png",),
    dpi: int = 120,
    footer: str = "",
) -> list[str]:
    """Draw figures and save each as NAME.SUFFIX, with a dash for a slash; returns their names.

    Args:
        draw: makes matplotlib figures, by name. They are closed when they are saved.
        emit: is given a warning where matplotlib is missing.
        show: is given the figures, too.
        dpi: dots per inch, of png.
        footer: of what these are figures, in small print below each: a picture travels without its folder.
    """
    try:
        figures = dict(draw())
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        emit(Event("warning", f"no figures: {error} (pip install 'accel_train[plots]')"))
        return []
    try:
        if figures and show:
            show(figures)
        for name, figure in figures.items():
            if footer:
                _sign(figure, footer)
            _save(folder, name.replace("/", "-"), figure.savefig, suffixes, dpi)
    finally:
        _close(figures)
    return list(figures)


def _sign(figure: Any, footer: str) -> None:
    """Below everything else; a constrained layout leaves room for it."""
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    room = FOOTER_INCH / figure.get_figheight()
    engine = figure.get_layout_engine()
    if isinstance(engine, ConstrainedLayoutEngine):
        engine.set(rect=(0, room, 1, 1 - room))
    figure.text(0.01, 0.3 * room, footer, fontsize=6, color="0.45", va="bottom")


def _save(folder: Path, name: str, save: Callable[..., None], suffixes: Sequence[str], dpi: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for suffix in suffixes:
        with replacing(folder / f"{name}.{suffix}") as path:
            save(path, dpi=dpi, format=suffix)


def _close(figures: dict[str, Any]) -> None:
    """Close those that a task made with pyplot, which would keep them."""
    if (pyplot := sys.modules.get("matplotlib.pyplot")) is not None:
        for figure in figures.values():
            if isinstance(figure, pyplot.Figure):
                pyplot.close(figure)
