"""Synthetic shots in the layout of the real ones, with their truth.

disrupt/SHOT.h5 and clear/SHOT.h5 have LFS float32 (20, 8, T), the first sample at -50 ms, one every 0.1 ms. For the
one source of labels there is a meta.csv beside them (shot, split, and of those that disrupt t_disruption and t_last in
ms), for the other shots/disrupt.txt and shots/clear.txt with the nine ``COLUMNS``. metadata.json has the recipe, all
constants, and what is true of each shot.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np

from accel_train import keyed
from accel_train.arguments import Range
from accel_train.data.synthetic import training_line, write_data_set
from accel_train.errors import UserError
from accel_train.tasks.tcn import discharge as discharges
from accel_train.tasks.tcn.discharge import DT_MS, RECIPES, T0_MS, TWARN_MS, Discharge, Recipe, draw, signals, trapped

FIRST = {"train": 100_001, "val": 200_001, "test": 300_001}
"""The number of the first shot of each split; neither it nor the others tell which shots disrupt."""

COLUMNS = "shot segments t_start_ms t_last_ms dt_ms snr_min t_flat_start_ms flat_duration_ms t_disrupt_ms"
NO_DISRUPTION_MS = -1000.0

Traps = Literal["no_flattop", "late_disruption", "short", "corrupt", "no_positives", "tone"]
IN_A_SHOT: tuple[Traps, ...] = ("no_flattop", "late_disruption", "short", "corrupt")
"""Traps of single shots. Each wanted one takes a pair of shots of every split, the first one the first, and is set in
the one that disrupts, or for ``short`` in the other."""


class Shot(NamedTuple):
    number: int
    split: str
    truth: Discharge
    corrupt: bool


def synth(
    out: str | Path,
    seed: int = 0,
    size: int | None = None,
    kind: Literal["easy", "hard"] = "easy",
    val: Annotated[int, Range(0)] | None = None,
    test: Annotated[int, Range(0)] | None = None,
    dead_channels: Annotated[int, Range(0, 80)] = 0,
    frozen_channels: Annotated[int, Range(0, 80)] = 0,
    digitised: bool = False,
    traps: tuple[Traps, ...] = (),
) -> str:
    """Write shots, half of which disrupt, and metadata.json; what to say about them.

    A shot takes 6 MB, and depends on (seed, split, its place in the split) and the options alone.

    Args:
        out: an empty or new folder; see ``write_data_set``.
        size: shots of train (default: 64).
        kind: "hard" has bursts that are harmless, precursors of which a part comes before the label, and more noise.
        val, test: shots of these splits (default: half of ``size``).
        dead_channels, frozen_channels: so many in each shot see nothing, or stick from some moment on.
        digitised: values on a grid of 2^-10, which int16 holds without loss.
        traps: in one shot of each split: "no_flattop" (NaN in the list), "late_disruption" (2 to 20 ms after the
            record), "short" (350 ms), "corrupt" (half of the file is missing). In all: "no_positives" (val has no
            disruption), "tone" (of 2.1 kHz, above half of 10 kHz / 5).

    Raises:
        UserError: too few shots for the traps, a value out of range, or data that are there already.
    """
    size = 64 if size is None else size
    Range(2).check("size", size)
    sizes = {"train": size, "val": size // 2 if val is None else val, "test": size // 2 if test is None else test}
    recipe = replace(
        RECIPES[kind], dead_channels=dead_channels, frozen_channels=frozen_channels, digitised=digitised,
        tone="tone" in traps,
    )  # fmt: skip
    _check(sizes, traps)

    def fill(folder: Path) -> dict[str, Any]:
        shots = [shot for split in sizes for shot in plan(seed, split, sizes[split], recipe, traps)]
        for shot in shots:
            _write(folder, shot, partial(_generator, seed, shot.split, shot.number - FIRST[shot.split]), recipe)
        for disruptive in (True, False):
            _write_tables(folder, [shot for shot in shots if shot.truth.disruptive == disruptive], disruptive)
        return {
            "kind": kind, "shots": sizes, "traps": list(traps), "recipe": asdict(recipe), "constants": _constants(),
            "truth": {str(shot.number): {"split": shot.split, "corrupt": shot.corrupt, **asdict(shot.truth)}
                      for shot in shots},
        }  # fmt: skip

    return _report(Path(out), write_data_set(out, seed, size, fill))


def plan(seed: int, split: str, size: int, recipe: Recipe, traps: tuple[Traps, ...] = ()) -> Iterator[Shot]:
    """The shots of a split, without their signals: shots 2j and 2j + 1 are one that disrupts and one that does not."""
    wanted = [trap for trap in IN_A_SHOT if trap in traps]
    swapped = keyed.uniform(keyed.key(seed, "tcn order", split), np.arange(-(-size // 2)))[:, 0] < 0.5
    for i in range(size):
        first = bool(i % 2) == bool(swapped[i // 2])
        disruptive = first and not (split == "val" and "no_positives" in traps)
        random = partial(_generator, seed, split, i)
        truth = draw(random, disruptive, recipe)
        trap = wanted[i // 2] if i // 2 < len(wanted) else None
        trap = trap if first != (trap == "short") else None
        if trap in ("no_flattop", "late_disruption", "short"):
            truth = trapped(truth, trap, random)
        yield Shot(FIRST[split] + i, split, truth, trap == "corrupt")


def _check(sizes: dict[str, int], traps: tuple[Traps, ...]) -> None:
    need = 2 * sum(trap in IN_A_SHOT for trap in traps)
    for split, size in sizes.items():
        if size and size < need:
            raise UserError(f"traps: {', '.join(traps)} take {need} shots of each split, but {split} has {size}")


def _generator(seed: int, split: str, place: int, purpose: str) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=keyed.key(seed, "tcn", split, place, purpose)))


# -- files -----------------------------------------------------------------------------------------------------------


def _write(folder: Path, shot: Shot, random: discharges.Random, recipe: Recipe) -> None:
    import h5py

    path = folder / _home(shot.truth.disruptive) / f"{shot.number}.h5"
    path.parent.mkdir(exist_ok=True)
    with h5py.File(path, "w") as file:
        values = signals(shot.truth, random, recipe)
        file["LFS"] = values.reshape(discharges.ROWS, discharges.COLUMNS, -1)
    if shot.corrupt:
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size // 2)


def _write_tables(folder: Path, shots: list[Shot], disruptive: bool) -> None:
    home = folder / _home(disruptive)
    for each in (home, folder / "shots"):
        each.mkdir(exist_ok=True)
    head = "shot,split,t_disruption,t_last" if disruptive else "shot,split"
    rows = [f"{s.number},{s.split}" + (f",{s.truth.end_ms},{s.truth.last_ms}" if disruptive else "") for s in shots]
    (home / "meta.csv").write_text("\n".join([head, *rows]) + "\n")
    (folder / "shots" / f"{home.name}.txt").write_text("\n".join([f"# {COLUMNS}", *map(_listed, shots)]) + "\n")


def _listed(shot: Shot) -> str:
    truth = shot.truth
    start = truth.flat_start_ms
    flat = "nan nan" if start is None else f"{start} {truth.flat_stop_ms - start:.3f}"
    disruption = truth.end_ms if truth.disruptive else NO_DISRUPTION_MS
    return f"{shot.number} 1 {T0_MS} {truth.last_ms} {DT_MS} {truth.snr} {flat} {disruption}"


def _home(disruptive: bool) -> str:
    return "disrupt" if disruptive else "clear"


def _constants() -> dict[str, Any]:
    constants = vars(discharges) | globals()
    return {name.lower(): value for name, value in constants.items()
            if name.isupper() and name[0] != "_" and name not in ("RECIPES", "RHO")}  # fmt: skip


def _report(out: Path, about: dict[str, Any]) -> str:
    truths = about["truth"].values()
    plasma = sum(each["end_ms"] for each in truths)
    positive = sum(TWARN_MS for each in truths if each["disruptive"])
    sizes = ", ".join(f"{split} {number}" for split, number in about["shots"].items())
    traps = f"; traps: {', '.join(about['traps'])}" if about["traps"] else ""
    shots = out.with_name(f"{out.name}_shots")
    options = [f"--{name}={shlex.quote(str(path))}" for name, path in
               (("disrupt", out / "disrupt"), ("clear", out / "clear"), ("out", shots))]  # fmt: skip
    return "\n".join([
        f"{out}: {about['kind']}, shots: {sizes}; {sum(each['disruptive'] for each in truths)} disrupt{traps}",
        f"  {plasma / 1000:.1f} s of plasma, of which {positive / plasma:.1%} are the last {TWARN_MS:g} ms before one",
        f"  samples every {DT_MS:g} ms from {T0_MS:g} ms; every fifth of them, windows of 768 steps and a receptive "
        "field of 253 go with it",
        f"  accel-train tcn preprocess {' '.join(options)} --dt_ms={DT_MS:g} --step=5 --antialias",
        f"  {training_line('examples/tcn_small.yaml', {'data': str(shots)})}",
    ])  # fmt: skip
