"""``accel-train gdynet analyze``: populations, Koopman matrix, timescales and their tests from predictions on disk."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from accel_train.command import Parser
from accel_train.run.figures import save_figures
from accel_train.run.folder import write_json
from accel_train.system.writing import refuse_unwritable, writing
from accel_train.tasks.gdynet.analysis.analyse import analyse, figures, load, summary
from accel_train.tasks.gdynet.analysis.moments import SPLIT_BY
from accel_train.tasks.gdynet.analysis.predictions import Loaded, known_timescales


def run(options: argparse.Namespace) -> int:
    """A table on the terminal, analysis.json and figures in a folder."""
    out = options.out or _beside(options.what[0])
    refuse_unwritable("--out", out)
    loaded = load(options.what, options.states, options.coords)
    known = () if options.truth is None else known_timescales(options.truth, loaded.predictions[0].shape[2])
    found = analyse(
        loaded, options.lag, options.lags, options.steps, options.splits, options.split_by, options.dt_ns, known
    )
    print(summary(found))
    with writing("--out", out):
        write(out, found, loaded)
    return 0


def add_arguments(parser: Parser) -> None:
    parser.add_argument("what", type=Path, nargs="+", help="a run folder with predictions, or predictions as .npy")
    parser.add_argument("--lag", type=int, help="frames, of the Koopman matrix (default: tau of the model)")
    parser.add_argument("--lags", type=int, nargs="+", default=(), help="frames, of the curves of timescales")
    parser.add_argument("--steps", type=int, default=5, help="of the Chapman-Kolmogorov test, at least 3 (default: 5)")
    parser.add_argument("--splits", type=int, default=5, help="of the data, for error bands (default: 5)")
    parser.add_argument("--split_by", choices=SPLIT_BY, help="default: targets where there are enough")
    parser.add_argument("--dt_ns", type=float, help="ns per frame (default: as predictions.json says)")
    parser.add_argument("--states", type=Path, nargs="+", default=(), help="true_states.npy of each trajectory, where "
                        "they are known, to compare with")  # fmt: skip
    parser.add_argument("--truth", type=Path, help="metadata.json of synthetic data, whose timescales are known")
    parser.add_argument("--coords", type=Path, help="traj_coords.npy of the one trajectory, for maps in space")
    parser.add_argument("--out", type=Path, help="folder for the results (default: analysis beside the predictions)")


def _beside(what: Path) -> Path:
    folder = what if what.is_dir() else what.parent
    return folder / "evaluation" / "analysis" if (folder / "config.yaml").is_file() else folder / "analysis"


def write(out: Path, found: dict[str, Any], loaded: Loaded) -> None:
    """analysis.json, populations.npz (float32 [F, k] as arr_0, arr_1, ... in order), and figures as PNG and PDF."""
    write_json(out / "analysis.json", found)
    np.savez_compressed(out / "populations.npz", *(p.astype(np.float32) for p in loaded.populations))
    print(f"wrote {out / 'analysis.json'} and {out / 'populations.npz'}")
    rows, lag = found["predictions"]["rows"], found["lag_frames"]
    footer = f"{', '.join(loaded.names)}: {rows:,} frames x targets, lag {lag:,} frames; bands and bars: 95 % over "
    footer += f"{found['splits']} splits by {found['split_by']}"
    draw = lambda: figures(found, loaded)  # noqa: E731
    if drawn := save_figures(out, draw, suffixes=("png", "pdf"), dpi=200, footer=footer):
        print(f"figures in {out}, as PNG and PDF: {', '.join(drawn)}")
