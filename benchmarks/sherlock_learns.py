"""What the sherlock task finds in brains whose truth is known, and what it must not find.

    python benchmarks/sherlock_learns.py [--only film voxels preshift wrong late null] [--folder DIR]

By the commands that a user has: synth, preprocess, train with examples/sherlock_small.yaml, evaluate on the run that
nothing was chosen on, report. film: beside banded ridge, without each modality, with a shuffled stimulus. voxels: what
lesions do with the brain in the path. preshift: volumes that were moved by 3 TRs, as declared. wrong: by 10 TRs, as
declared but not true. late: a region whose blood is 3 TRs late. null: how many voxels without a signal are found, in
20 films with a network each. Every claim is printed with its figure; the exit code is 1 if one fails.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from accel_train.cli import main as accel_train
from accel_train.tasks.sherlock.data import Prepared
from accel_train.tasks.sherlock.synth import preprocess_line

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "sherlock_small.yaml"
HEARS = {"video": "visual", "audio": "auditory", "text": "semantic"}
"""The region that hears of a modality alone."""
SHORT = ["--max_steps=150", "--eval_steps=50"]
"""Enough where what is asked is when the brain answers, and not how well it is predicted in the end."""
SMALL = ["--frames=1", "--frame_size=16x9", "--mels=20", "--text_dim=64"]
"""Of the stimulus, for many networks; nothing of what was shown is lost."""
SEEDS = 20
COMMON = 0.15
"""A correlation that two unrelated smooth series may have."""


class Claim(NamedTuple):
    text: str
    figure: str
    holds: bool


# -- the commands ----------------------------------------------------------------------------------------------------


def command(*arguments: Any) -> None:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        code = accel_train(list(map(str, arguments)))
    if code:
        sys.exit(f"accel-train {shlex.join(map(str, arguments))}\n{said.getvalue()}")


def prepared(folder: Path, name: str, synth: list[str] | None = None, more: list[str] | None = None) -> Path:
    """Viewers, and the folder that preprocess makes of them as synth says it."""
    raw, out = folder / name, folder / f"{name}-prepared"
    if not out.exists():
        command("synth", "sherlock", "--out", raw, *(synth or []))
        line = preprocess_line(raw, json.loads((raw / "metadata.json").read_text()))
        command(*shlex.split(line)[1:], *(more or []))
    return out


def reported(data: Path, run: Path, *options: str) -> dict[str, Any]:
    """A network that is trained and evaluated; what report.json says of it."""
    given = [f"--task.init_args.data={data}", f"--output_dir={run}", "--report_to=[]", "--logging_steps=1"]
    command("train", "--config", EXAMPLE, *given, *options)
    command("evaluate", run, "--split=test")
    command("sherlock", "report", run)
    return json.loads((run / "report" / "report.json").read_text())


# -- the parts -------------------------------------------------------------------------------------------------------


def film(folder: Path) -> Iterator[Claim]:
    run = folder / "film-run"
    found = reported(prepared(folder, "film"), run)
    table(found["r"])
    r = {model: {roi: each["value"] for roi, each in rows.items()} for model, rows in found["r"].items()}
    network, ridge = found["r"]["network"], found["r"]["banded ridge"]
    first = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    terms = {name: first[name] for name in ("fmri", *HEARS)}
    share = max(terms.values()) / sum(terms.values())
    yield Claim("no term of the loss above 60 % at the start", f"{share:.0%}", share <= 0.6)
    for roi in HEARS.values():
        part = r["network"][roi] / r["banded ridge"][roi]
        yield Claim(f"{roi}: at least 0.9 of banded ridge", f"{part:.2f}", part >= 0.9)
    low, high = network["interaction"]["low"], ridge["interaction"]["high"]
    yield Claim("interaction: its interval is above that of ridge", f"{low:.2f} > {high:.2f}", low > high)
    most = max(abs(value) for value in r["shuffled stimulus"].values())
    yield Claim("shuffled stimulus: below 0.15 everywhere", f"{most:.2f}", most < COMMON)
    for name, own in HEARS.items():
        falls = {roi: r["network"][roi] - r[f"without {name}"][roi] for roi in HEARS.values()}
        yield _only(f"without {name}: r falls in its region alone", falls, own, r["network"][own] / 2)
    null = found["volumes"]["network"]["significant/null"]
    yield Claim("null: voxels above chance (this film alone)", f"{null:.1%}", True)
    yield _peaks(found, "stimulus", 0, [*HEARS.values()])
    yield _peaks(found, "network", 0, [*HEARS.values(), "interaction"])


def voxels(folder: Path) -> Iterator[Claim]:
    found = reported(prepared(folder, "film"), folder / "voxels-run", "--task.init_args.bottleneck=voxels")
    r = found["r"]["network"]
    yield Claim("voxels as the bottleneck: r", ", ".join(f"{roi} {r[roi]['value']:.2f}" for roi in regions(r)), True)
    rises = {
        name: {roi: error[f"lesion of {roi}"]["value"] - error["network"]["value"] for roi in ("null", *HEARS.values())}
        for name, error in found["reconstruction_error_over_mean"].items()
    }
    by_null = {name: rises[name].pop("null") for name in HEARS}
    for name, own in HEARS.items():
        yield _only(f"{name}: its error rises by a lesion of its region alone", rises[name], own, 0.15)
    figures = ", ".join(f"{name} {rise:.2f}" for name, rise in by_null.items())
    little = all(rise < rises[name][HEARS[name]] / 2 for name, rise in by_null.items())
    yield Claim("a lesion of the null region does less than half of that", figures, little)


def preshift(folder: Path) -> Iterator[Claim]:
    found = reported(prepared(folder, "moved", ["--preshift=3"], SMALL), folder / "moved-run", *SHORT)
    yield _peaks(found, "stimulus", 3, [*HEARS.values()])
    yield _peaks(found, "network", 0, [*HEARS.values(), "interaction"])
    least = min(found["r"]["network"][roi]["value"] for roi in HEARS.values())
    yield Claim("moved by 3 TRs, as declared: r above 0.4", f"{least:.2f}", least > 0.4)


def wrong(folder: Path) -> Iterator[Claim]:
    data = folder / "wrong-prepared"
    if not data.exists():
        prepared(folder, "film")
        line = preprocess_line(folder / "film", json.loads((folder / "film" / "metadata.json").read_text()))
        command(*shlex.split(line)[1:], *SMALL, "--preshift=10", "--out", data)
    found = reported(data, folder / "wrong-run", *SHORT)
    most = max(each["value"] for each in found["r"]["network"].values())
    yield Claim("wrong lag, 10 TRs: r below 0.15 everywhere", f"{most:.2f}", most < COMMON)
    said = [text for text in found["warnings"] if "peaks at +0 TRs and must at +10" in text]
    yield Claim("wrong lag, 10 TRs: the report says it", "; ".join(said) or "nothing", bool(said))


def late(folder: Path) -> Iterator[Claim]:
    from safetensors.numpy import load_file

    data, run = prepared(folder, "late", ["--late_trs=3"], SMALL), folder / "late-run"
    found = reported(data, run, "--task.init_args.lag=fir")
    rois = Prepared(data).rois
    with np.load(run / "report" / "maps.npz") as maps:
        scan = {roi: maps["lag stimulus"][columns] for roi, columns in rois.items()}
    as_it_is = {roi: float(np.mean(scan[roi] == (-3 if roi == "auditory" else 0))) for roi in HEARS.values()}
    figures = ", ".join(f"{roi} {np.nanmedian(scan[roi]):+.0f} ({as_it_is[roi]:.0%})" for roi in HEARS.values())
    right = all(np.nanmedian(scan[roi]) == (-3 if roi == "auditory" else 0) for roi in HEARS.values())
    yield Claim("late region: map of the lag scan, median and share of such voxels", figures, right)
    taps = load_file(run / "best" / "model.safetensors")["lag.taps"]
    peaks = {roi: int(taps[columns].mean(0).argmax()) for roi, columns in rois.items() if roi in HEARS.values()}
    others = max(peaks["visual"], peaks["semantic"])
    figures = ", ".join(f"{roi} {peak} TRs" for roi, peak in peaks.items())
    yield Claim("late region: the learned response peaks 2 TRs later or more", figures, peaks["auditory"] >= others + 2)
    yield _peaks(found, "network", 0, [*HEARS.values()])


def null(folder: Path) -> Iterator[Claim]:
    """The share of the voxels of the region without a signal that are called significant, and that of the others."""
    shares, others = [], []
    for seed in range(SEEDS):
        name = f"null-{seed}"
        data = prepared(folder, name, [f"--seed={seed}", "--size=2", "--trs=[150,120,150]"], SMALL)
        found = reported(data, folder / f"{name}-run", "--max_steps=60", f"--seed={seed}", "--eval_steps=60")
        numbers = found["volumes"]["network"]
        shares.append(numbers["significant/null"])
        others.append(np.mean([numbers[f"significant/{roi}"] for roi in HEARS.values()]))
    mean, worst, spread = np.mean(shares), np.max(shares), np.std(shares)
    count = Prepared(data).rois["null"].size
    chance = np.sqrt(mean * (1 - mean) / count)
    figure = f"mean {mean:.2%}, worst {worst:.1%}, deviation {spread:.1%} (independent voxels: {chance:.1%})"
    yield Claim(f"null: at most 5 % of the voxels significant, {SEEDS} films", figure, mean <= 0.05)
    yield Claim("of the regions of one modality", f"{np.mean(others):.0%}, least {np.min(others):.0%}", True)


# -- in words --------------------------------------------------------------------------------------------------------


def _only(text: str, changes: dict[str, float], own: str, least: float) -> Claim:
    """A change of at least ``least`` in one region, and of less than a quarter of it in the others."""
    figures = ", ".join(f"{roi} {change:.2f}" for roi, change in changes.items())
    holds = changes[own] >= least and all(each < changes[own] / 4 for roi, each in changes.items() if roi != own)
    return Claim(text, figures, holds)


def _peaks(found: dict[str, Any], scan: str, at: int, rois: list[str]) -> Claim:
    peaks = {roi: found["lag_scans"][scan]["peaks_at"][roi] for roi in rois}
    figures = ", ".join(f"{roi} {peak:+d}" for roi, peak in peaks.items())
    return Claim(f"lag scan of the {scan} peaks at {at:+d}", figures, set(peaks.values()) == {at})


def regions(r: dict[str, Any]) -> list[str]:
    return [roi for roi in r if roi != "all"]


def table(r: dict[str, dict[str, dict[str, float]]]) -> None:
    rois = regions(next(iter(r.values())))
    print(f"{'r over time, 95 % interval':26}" + "".join(f"{roi:>22}" for roi in rois))
    for model, of_roi in r.items():
        cells = [f"{of_roi[roi]['value']:.2f} ({of_roi[roi]['low']:.2f} to {of_roi[roi]['high']:.2f})" for roi in rois]
        print(f"{model:26}" + "".join(f"{cell:>22}" for cell in cells), flush=True)


def main() -> int:
    parts = {each.__name__: each for each in (film, voxels, preshift, wrong, late, null)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=parts, default=list(parts))
    parser.add_argument("--folder", type=Path, help="keep data and runs here")
    options = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as temporary:
        for name in options.only:
            start = time.process_time()
            for claim in parts[name](options.folder or Path(temporary)):
                failed += not claim.holds
                print(f"{'passed' if claim.holds else 'FAILED':8}{claim.text}: {claim.figure}", flush=True)
            print(f"        ({name}: {time.process_time() - start:.0f} s of a core)", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
