"""Pictures of an analysis, in colours (Okabe and Ito) that all can tell apart. Times in ns where a frame's is known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from accel_train.run.figures import new_figure
from accel_train.tasks.gdynet.analysis.history import Curves, curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from accel_train.tasks.gdynet.analysis.predictions import Loaded

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", ":")
GREY = "0.88"
POINTS = 400  # of a curve over time: means of as many frames as that takes
ROWS = 6  # trajectories in the figure of populations
SNAPSHOTS = 4  # frames in the maps


def figures(found: dict[str, Any], loaded: Loaded | None = None) -> dict[str, Figure]:
    """Figures by name.

    Args:
        found: of ``analyse``, or as in analysis.json.
        loaded: what was analysed, for the figures that need more: ``populations`` over time, ``maps`` in space where
            there are coordinates, ``training`` where there is a history.
    """
    drawn = {
        "implied_timescales": _timescales(found),
        "chapman_kolmogorov": _chapman_kolmogorov(found),
        **basic(found),
        "autocorrelation": _autocorrelation(found),
    }
    if loaded is None:
        return drawn
    drawn["populations"] = _populations(found, loaded.populations)
    if loaded.coords is not None:
        drawn["maps"] = _maps(found, *loaded.coords, loaded.predictions[0])
    if (learned := curves(loaded.history)).lines:
        drawn["training"] = _training(learned)
    return drawn


def basic(found: dict[str, Any]) -> dict[str, Figure]:
    """Those of ``at_one_lag``: transitions, populations and processes."""
    return {"koopman": _koopman(found), "stationary": _stationary(found), "eigenvectors": _eigenvectors(found)}


def _look(i: int) -> dict[str, Any]:
    """The colour and line of a state or a process."""
    return {"color": COLOURS[i % len(COLOURS)], "ls": STYLES[i // len(COLOURS) % len(STYLES)]}


def _unit(found: dict[str, Any]) -> tuple[str, float]:
    """The unit of times, and how long a frame is in it."""
    dt = found["dt_ns"]
    return ("frames", 1.0) if dt is None else ("ns", dt)


def _array(values: Any) -> np.ndarray:
    """From JSON; what was not finite is NaN, which leaves a gap."""
    return np.array(values, dtype=float)


def _bare(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)


def _legend(figure: Figure, axes: Axes) -> None:
    """A legend above the panels, where it hides nothing."""
    handles, labels = axes.get_legend_handles_labels()
    room = int(figure.get_figwidth() / (0.5 + 0.075 * max(map(len, labels))))
    columns = max(min(len(labels), room), 1)
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False)


# -- how slow --------------------------------------------------------------------------------------------------------


def _timescales(found: dict[str, Any]) -> Figure:
    """Timescales over the lag, with the bands of the splits and, where it is known, the truth; grey: below the lag,
    where nothing can be resolved."""
    unit, _ = _unit(found)
    implied = found["implied_timescales"]
    lags = _array(implied[f"lags_{unit}"])
    times, low, high = (_array(implied[f"{name}_{unit}"]) for name in ("timescales", "low", "high"))
    figure = new_figure(5.2, 4.2)
    axes = figure.subplots()
    resolved = times[times > lags[:, None]]
    bottom, top = resolved.min(initial=lags[-1]) / 5, max(resolved.max(initial=0), lags[-1]) * 2
    ends = np.array([lags[0] / 1.2, lags[-1] * 1.2])
    axes.fill_between(ends, bottom, ends, color=GREY, lw=0)
    axes.plot(ends, ends, color="0.35", lw=1)
    for i in range(times.shape[1]):
        axes.fill_between(lags, low[:, i], high[:, i], color=COLOURS[i % len(COLOURS)], alpha=0.25, lw=0)
        axes.plot(lags, times[:, i], marker="o", ms=3.5, lw=1.4, label=f"process {i + 1}", **_look(i))
    for i, known in enumerate(_array(implied[f"known_{unit}"])):
        axes.axhline(known, color="black", lw=0.9, ls=(0, (5, 3)), label="" if i else "known")
    axes.axvline(found[f"lag_{unit}"], color="0.35", lw=0.8, ls=(0, (2, 2)), label="lag used")
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=(bottom, top))
    axes.set(xlabel=f"lag ({unit})", ylabel=f"implied timescale ({unit})")
    _bare(axes)
    _legend(figure, axes)
    return figure


def _chapman_kolmogorov(found: dict[str, Any]) -> Figure:
    """A panel for each pair of states: powers of K(lag) as a line with its band, K(m lag) as points with bars."""
    unit, _ = _unit(found)
    test, k = found["chapman_kolmogorov"], found["states"]
    lags = _array(test[f"lags_{unit}"])
    predicted, estimated = _array(test["predicted"]), _array(test["estimated"])
    halves = [_array(test[f"{name}_half_width"]) for name in ("predicted", "estimated")]
    figure = new_figure(max(1.5 * k, 4.5) + 0.6, max(1.35 * k, 3.0) + 0.8)
    panels = figure.subplots(k, k, sharex=True, sharey=True, squeeze=False)
    for (i, j), axes in np.ndenumerate(panels):
        line, half = predicted[:, i, j], halves[0][:, i, j]
        axes.fill_between(lags, line - half, line + half, color=COLOURS[0], alpha=0.25, lw=0)
        axes.plot(lags, line, color=COLOURS[0], lw=1.4, label="predicted, $K(L)^m$")
        points = {"fmt": "o", "ms": 3, "lw": 1, "color": COLOURS[1], "label": "estimated, $K(mL)$"}
        axes.errorbar(lags, estimated[:, i, j], halves[1][:, i, j], **points)
        axes.set_title(f"{i} \N{RIGHTWARDS ARROW} {j}", fontsize="small", pad=3)
        axes.tick_params(labelsize="small")
        _bare(axes)
    top = np.nanmax(np.concatenate([predicted, estimated]), initial=1.0)
    bottom = np.nanmin(np.concatenate([predicted, estimated]), initial=0.0)
    panels[0, 0].set(xlim=(-0.05 * lags[-1], 1.05 * lags[-1]), ylim=(bottom - 0.08, top + 0.08))
    figure.supxlabel(f"time ({unit})", fontsize="medium")
    figure.supylabel("probability", fontsize="medium")
    _legend(figure, panels[0, 0])
    return figure


def _autocorrelation(found: dict[str, Any]) -> Figure:
    unit, _ = _unit(found)
    lags = _array(found["autocorrelation"][f"lags_{unit}"])
    figure = new_figure(5.2, 3.8)
    axes = figure.subplots()
    for i, values in enumerate(_array(found["autocorrelation"]["correlation"]).T):
        axes.plot(lags, values, marker="o", ms=3.5, lw=1.4, label=f"state {i}", **_look(i))
    axes.axhline(0, color="0.7", lw=0.8)
    axes.set(xscale="log", xlabel=f"lag ({unit})", ylabel="autocorrelation of the probability")
    _bare(axes)
    _legend(figure, axes)
    return figure


# -- between which states --------------------------------------------------------------------------------------------


def _koopman(found: dict[str, Any]) -> Figure:
    unit, _ = _unit(found)
    matrix, k = _array(found["koopman"]["matrix"]), found["states"]
    figure = new_figure(0.72 * k + 2.2, 0.68 * k + 1.5)
    axes = figure.subplots()
    image = axes.imshow(matrix, cmap="Blues", vmin=0, vmax=1)
    for (i, j), value in np.ndenumerate(matrix):
        colour = "white" if value > 0.6 else "black"
        axes.text(j, i, f"{value:.3f}", ha="center", va="center", color=colour, fontsize=8)
    title = f"Koopman matrix, lag {found[f'lag_{unit}']:.4g} {unit}"
    axes.set(xticks=range(k), yticks=range(k), xlabel="to state", ylabel="from state")
    axes.set_title(title, fontsize="medium")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    figure.colorbar(image, label="probability", shrink=0.9)
    return figure


def _stationary(found: dict[str, Any]) -> Figure:
    """What the matrix would settle at, beside what was seen: they agree where the data are in equilibrium."""
    k = found["states"]
    bars = {
        "mean probability": found["predictions"]["mean"],
        "likeliest state": found["predictions"].get("argmax_share"),
        "stationary": found["koopman"]["stationary"],
    }
    if found["constrained"]:
        bars["stationary, constrained"] = found["constrained"]["stationary"]
    bars = {name: values for name, values in bars.items() if values is not None}
    figure = new_figure(max(0.8 * k + 2.0, 5.2), 3.8)
    axes = figure.subplots()
    width = 0.8 / len(bars)
    for i, (name, values) in enumerate(bars.items()):
        where = np.arange(k) + (i - (len(bars) - 1) / 2) * width
        axes.bar(where, _array(values), width * 0.92, color=(*COLOURS[:2], COLOURS[2], COLOURS[4])[i], label=name)
    axes.axhline(0, color="0.35", lw=0.8)
    axes.set(xticks=range(k), xlabel="state", ylabel="population")
    _bare(axes)
    _legend(figure, axes)
    return figure


def _eigenvectors(found: dict[str, Any]) -> Figure:
    """Which states each process exchanges: probability flows between those above and those below zero."""
    unit, _ = _unit(found)
    vectors, k = _array(found["koopman"]["left_eigenvectors"]), found["states"]
    figure = new_figure(max(0.5 * k + 2.0, 4.2), 1.5 * (k - 1) + 0.8)
    panels = figure.subplots(k - 1, 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for i, (axes, vector, time) in enumerate(zip(panels, vectors, found["koopman"][f"timescales_{unit}"], strict=True)):
        axes.bar(range(k), vector, 0.7, color=[COLOURS[0] if v > 0 else COLOURS[1] for v in vector])
        axes.axhline(0, color="0.35", lw=0.8)
        text = "no finite timescale" if time is None else f"{time:.4g} {unit}"
        axes.set_title(f"process {i + 1}: {text}", fontsize="medium", loc="left")
        _bare(axes)
    panels[-1].set(xticks=range(k), xlabel="state", ylim=(-1.1, 1.1))
    figure.supylabel("left eigenvector", fontsize="medium")
    return figure


# -- when and where --------------------------------------------------------------------------------------------------


def _populations(found: dict[str, Any], per_frame: list[np.ndarray]) -> Figure:
    """Mean probability over the targets, of the first trajectories."""
    unit, dt = _unit(found)
    shown = list(zip(per_frame, found["trajectories"], strict=True))[:ROWS]
    figure = new_figure(7.2, 1.9 * len(shown) + 1.2)
    panels = figure.subplots(len(shown), 1, sharey=True, squeeze=False)[:, 0]
    for axes, (values, trajectory) in zip(panels, shown, strict=True):
        step = -(-len(values) // POINTS)
        starts = np.arange(0, len(values), step)
        sizes = np.diff(np.append(starts, len(values)))
        means = np.add.reduceat(values, starts) / sizes[:, None]
        for i in range(values.shape[1]):
            axes.plot((starts + (sizes - 1) / 2) * dt, means[:, i], lw=1.1, label=f"state {i}", **_look(i))
        each = "" if step == 1 else f", means of {step} frames"
        axes.set_title(f"{trajectory['name']}{each}", fontsize="medium", loc="left")
        axes.margins(x=0.01)
        _bare(axes)
    panels[-1].set_xlabel(f"time ({unit})")
    panels[0].set_ylim(bottom=0)
    figure.supylabel("population", fontsize="medium")
    _legend(figure, panels[0])
    return figure


def _maps(found: dict[str, Any], coords: np.ndarray, targets: np.ndarray, predictions: np.ndarray) -> Figure:
    """Targets in space, coloured by the probability of a state (rows) at a few frames (columns)."""
    unit, dt = _unit(found)
    frames = np.unique(np.linspace(0, len(predictions) - 1, SNAPSHOTS).round().astype(int))
    k = predictions.shape[2]
    figure = new_figure(3.0 * len(frames) + 1.0, 3.0 * k)
    panels = figure.subplots(k, len(frames), squeeze=False, subplot_kw={"projection": "3d"})
    image = None
    for (state, column), axes in np.ndenumerate(panels):
        frame = frames[column]
        points, colour = np.asarray(coords[frame][targets]), predictions[frame, :, state]
        look = {"s": max(400 / len(targets), 2), "vmin": 0, "vmax": 1, "cmap": "viridis", "rasterized": True}
        image = axes.scatter(*points.T, c=colour, depthshade=False, **look)
        time = f"frame {frame}" if unit == "frames" else f"{frame * dt:.4g} {unit}"
        axes.set_title(f"state {state}, {time}", fontsize="medium")
        for name in "xyz":
            getattr(axes, f"set_{name}label")(f"{name} (\N{ANGSTROM SIGN})", fontsize="small", labelpad=-4)
        size = np.ptp(points, 0)
        axes.set_box_aspect(size.clip(max(0.05 * size.max(), 1e-6)), zoom=0.82)
        axes.tick_params(labelsize=7, pad=-1)
        axes.locator_params(nbins=4)
    assert image is not None
    figure.colorbar(image, ax=panels, label="probability", shrink=min(1.5 / k, 0.8), aspect=15, pad=0.06)
    return figure


# -- how it was learned ----------------------------------------------------------------------------------------------


def _training(learned: Curves) -> Figure:
    """Loss and scores over time, a shade for every other phase."""
    titles = {"loss": "loss", "vamp1": "VAMP-1", "vamp2": "VAMP-2"}
    looks = {
        "training": {"color": COLOURS[0], "marker": ".", "ms": 3},
        "validation": {"color": COLOURS[1], "marker": "o", "ms": 3.5},
    }
    figure = new_figure(7.2, 2.2 * len(learned.lines) + 1.0)
    panels = figure.subplots(len(learned.lines), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, kinds) in zip(panels, learned.lines.items(), strict=True):
        for kind, (times, values) in kinds.items():
            axes.plot(times, _array(values), lw=1.2, label=kind, **looks[kind])
        for i, (_, begin, end) in enumerate(learned.phases):
            axes.axvspan(begin, end, color=GREY if i % 2 else "none", lw=0, zorder=0)
        axes.set_ylabel(titles[name])
        _bare(axes)
    for phase, begin, end in learned.phases:
        place = {"xytext": (0, 3), "textcoords": "offset points", "ha": "center", "va": "bottom"}
        panels[0].annotate(phase, ((begin + end) / 2, 1), xycoords=("data", "axes fraction"), **place)
    panels[-1].set_xlabel(learned.unit)
    panels[-1].locator_params("x", integer=True)
    _legend(figure, panels[0])
    return figure
