"""Pictures of brains that are predicted and of films that are made again, in colours (Okabe and Ito) that all can tell
apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from accel_train.run.figures import new_figure
from accel_train.tasks.sherlock.lagscan import LagScan
from accel_train.tasks.sherlock.scores import Estimate, Rois

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "0.55"
SLICES = 6
RARE = 0.02  # share of voxels at either end that no colours are made for
MOMENTS = 6  # of a film
POINTS = 5000  # of a scatter plot
BAND, NUMBERS = 200, 40  # TRs and rows of a picture of numbers over time


def slices_figure(
    maps: Mapping[str, np.ndarray], places: np.ndarray, label: str, limits: tuple[float, float], cmap: str | Colormap
) -> Figure:
    """Slices of the brain from bottom to top, a row for each map; what has no value is light grey.

    Args:
        maps: [V] by title. places: int [X, Y, Z], the column of each place, -1 outside.
        label: of the colours. limits: of their values; the bar of colours has a point where some lie beyond.
    """
    inside = places >= 0
    levels, rows, columns = (np.flatnonzero(inside.any(axes)) for axes in ((0, 1), (1, 2), (0, 2)))
    chosen = levels[np.unique(np.linspace(0, len(levels) - 1, SLICES + 2).round().astype(int)[1:-1])]
    figure = new_figure(1.5 * len(chosen) + 1.6, 1.75 * len(maps) + 0.5)
    panels = figure.subplots(len(maps), len(chosen), squeeze=False)
    colours: Any = None
    for line, (title, values) in zip(panels, maps.items(), strict=True):
        for axes, z in zip(line, chosen, strict=True):
            at = places[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1, z].T
            axes.imshow(np.where(at >= 0, 1.0, np.nan), cmap="Greys", vmin=0, vmax=12, origin="lower")
            shown = np.where(at >= 0, values[at], np.nan)
            colours = axes.imshow(shown, cmap=cmap, vmin=limits[0], vmax=limits[1], origin="lower")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            axes.set_title(f"z = {z}", fontsize="x-small", pad=2)
        line[0].set_ylabel(title)
    known = np.concatenate(list(maps.values()))
    beyond = bool((known < limits[0]).any()) + 2 * bool((known > limits[1]).any())
    figure.colorbar(colours, ax=panels, label=label, extend=("neither", "min", "max", "both")[beyond], shrink=0.85)
    return figure


def lag_slices_figure(scans: Mapping[str, tuple[np.ndarray, int]], places: np.ndarray) -> Figure:
    """Where the lag scan of each voxel peaks, a colour for each TR.

    Args:
        scans: the peak of each voxel [V], NaN for none, and the one that is expected.
    """
    from matplotlib import colormaps

    known = np.concatenate([np.append(peaks[~np.isnan(peaks)], must) for peaks, must in scans.values()])
    low = int(np.floor(min(np.quantile(known, RARE), *(must - 2 for _, must in scans.values()))))
    high = int(np.ceil(max(np.quantile(known, 1 - RARE), *(must + 2 for _, must in scans.values()))))
    colours = colormaps["viridis"].resampled(high - low + 1)
    maps = {name: peaks for name, (peaks, _) in scans.items()}
    return slices_figure(maps, places, "lag scan peaks at (TRs)", (low - 0.5, high + 0.5), colours)


def ceiling_figure(r: np.ndarray, ceiling: np.ndarray, rois: Rois, worth: float) -> Figure:
    """Each voxel's correlation against the best that is possible.

    Args:
        r, ceiling: [V]. worth: the ceiling below which a share of it says little.
    """
    figure = new_figure(5.6, 5.2)
    axes = figure.subplots()
    ends = np.array([0, max(float(np.nanmax(ceiling, initial=0.2)), float(np.nanmax(r, initial=0.2))) * 1.05])
    axes.axvspan(-0.03, worth, color="0.95", lw=0)
    axes.plot(ends, ends, color="0.35", lw=1, label="all that is possible")
    axes.plot(ends, ends / 2, color="0.35", lw=0.8, ls=(0, (4, 3)), label="half of it")
    draw = np.random.default_rng(0)
    for i, (name, columns) in enumerate(rois.items()):
        shown = columns if len(columns) <= POINTS else draw.choice(columns, POINTS, replace=False)
        axes.plot(ceiling[shown], r[shown], ls="", marker="o", ms=3, alpha=0.5, mew=0, color=_colour(i), label=name)
    axes.axhline(0, color=GREY, lw=0.8)
    axes.set(xlabel="ceiling, from what people have in common", ylabel="r over time", xlim=(-0.03, ends[1]))
    _finish(figure, axes)
    return figure


def lag_figure(scans: Mapping[str, tuple[LagScan, int]], rois: Rois, label: str) -> Figure:
    """The correlation of each region for every shift, and where it must peak.

    Args:
        scans: each with the shift that is expected.
        label: what the correlation is.
    """
    figure = new_figure(4.6 * len(scans) + 0.4, 3.9)
    panels = figure.subplots(1, len(scans), squeeze=False, sharey=True)[0]
    for axes, (name, (scan, expected)) in zip(panels, scans.items(), strict=True):
        axes.axvline(expected, color=GREY, lw=1, ls=(0, (4, 3)), label="where it must peak")
        axes.axhline(0, color=GREY, lw=0.8)
        for i, (roi, curve) in enumerate(scan.curves(rois).items()):
            axes.plot(scan.shifts, curve, marker="o", ms=3, lw=1.4, color=_colour(i), label=roi)
        axes.set(xlabel="shift (TRs)", title=f"lag scan of the {name}")
        axes.xaxis.get_major_locator().set_params(integer=True)
        _bare(axes)
    panels[0].set_ylabel(label)
    _finish(figure, panels[0])
    return figure


def models_figure(r: Mapping[str, Mapping[str, Estimate]], ceiling: Mapping[str, float]) -> Figure:
    """The correlation of every model in each region, with its interval, below the ceiling.

    Args:
        ceiling: by region; empty where it is not known.
    """
    rois = list(next(iter(r.values())))
    figure = new_figure(max(1.5 * len(rois) + 1.5, 5), 4.2)
    axes = figure.subplots()
    width = 0.7 / max(len(r) - 1, 1)
    for i, (name, of_roi) in enumerate(r.items()):
        at = np.arange(len(rois)) + (i - (len(r) - 1) / 2) * width
        value, low, high = np.array([of_roi[roi] for roi in rois]).T
        axes.vlines(at, low, high, color=_colour(i), lw=1.4)
        axes.plot(at, value, ls="", marker="o", ms=5, color=_colour(i), label=name)
    for i, roi in enumerate(rois):
        if roi in ceiling:
            label = "ceiling" if i == 0 else "_"  # once in the legend
            axes.hlines(ceiling[roi], i - 0.42, i + 0.42, color="0.2", lw=1, ls=(0, (4, 2)), label=label)
    axes.axhline(0, color=GREY, lw=0.8)
    axes.set_xticks(range(len(rois)), rois)
    axes.set_ylabel("r over time, 95 % interval")
    _finish(figure, axes)
    return figure


def frames_figure(true: np.ndarray, made: np.ndarray, names: Sequence[str]) -> Figure:
    """Frames of a film above those that were made again.

    Args:
        true, made: [n, H, W, 3], 0 to 255. names: of the n moments.
    """
    height = 1.9 * true.shape[1] / true.shape[2]
    figure = new_figure(1.9 * len(true) + 0.3, 2 * height + 0.45)
    panels = figure.subplots(2, len(true), squeeze=False)
    for line, frames, title in zip(panels, (true, made), ("presented", "made again"), strict=True):
        for axes, frame, name in zip(line, frames, names, strict=True):
            axes.imshow(np.clip(np.asarray(frame, np.float64), 0, 255).round().astype(np.uint8))
            axes.set(xticks=[], yticks=[])
            if title == "presented":
                axes.set_title(name, fontsize="small")
        line[0].set_ylabel(title)
    return figure


def numbers_figure(true: np.ndarray, made: np.ndarray, name: str, tr_s: float) -> Figure:
    """Numbers of a stimulus over time, such as mels, above those that were made again: the ones that vary most, less
    their mean, in one unit for all, as the loss has it: what hardly varies looks as little as it counts.

    Args:
        true, made: [T, numbers], of which the first minutes are shown.
    """
    true, made = true[:BAND].astype(np.float64), made[:BAND].astype(np.float64)
    mean, std = true.mean(0), true.std(0)
    most = np.sort(np.argsort(-std, kind="stable")[:NUMBERS])
    most = most[std[most] > 0]
    unit = float(np.sqrt((std[most] ** 2).mean())) if len(most) else 1.0
    figure = new_figure(8, 4.2)
    panels = figure.subplots(2, 1, sharex=True)
    colours: Any = None
    for axes, values, title in zip(panels, (true, made), ("presented", "made again"), strict=True):
        ends = (0, len(values) * tr_s, 0, len(most))
        look: Any = {"aspect": "auto", "origin": "lower", "extent": ends, "vmin": -2.5, "vmax": 2.5, "cmap": "magma"}
        colours = axes.imshow(((values[:, most] - mean[most]) / unit).T, interpolation="nearest", **look)
        axes.set(ylabel=f"{name}, {title}", yticks=[])
    panels[1].set_xlabel("time since the first of these TRs (s)")
    figure.colorbar(colours, ax=list(panels), label="deviations (of all together)", extend="both")
    return figure


def _colour(i: int) -> str:
    return COLOURS[i % len(COLOURS)]


def _bare(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)


def _finish(figure: Figure, axes: Axes) -> None:
    """A legend above the panels, where it hides nothing."""
    _bare(axes)
    handles: list[Any]
    handles, labels = axes.get_legend_handles_labels()
    room = int(figure.get_figwidth() / (0.5 + 0.085 * max(map(len, labels))))
    ncols = max(min(len(labels), room), 1)
    legend: Any = figure.legend(handles, labels, loc="outside upper center", ncols=ncols, frameon=False)
    for handle in legend.legend_handles:
        handle.set_alpha(1)
