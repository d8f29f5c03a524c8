"""Synthetic viewers of synthetic movies, in the formats of real ones, with their truth and, where wanted, their traps.

stim_partN.mp4, stim_partN.wav   two grey halves, two tones, whose strength changes from TR to TR
annotations.xlsx                 seconds that begin again with every part, TRs that do not
fmri/synth_movie_sN.nii.gz       float32 [14, 16, 12, TRs of all parts], about 1000 + 20 y in the brain, 0 outside
rois.nii.gz, rois.tsv            labels of five regions, and their names
truth.npz, metadata.json         latents, weights, signal, what a perfect model would reach
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np

from accel_train import keyed
from accel_train.arguments import Count, Range
from accel_train.data.synthetic import write_data_set
from accel_train.errors import UserError
from accel_train.tasks.sherlock import render, truth
from accel_train.tasks.sherlock.libraries import library
from accel_train.tasks.sherlock.truth import CARTOON, ROIS, TR_S

Traps = Literal["header_tr", "constant_tail", "odd_rows", "long_stimulus", "unpacked", "bad_voxels", "cartoon"]
TAIL, LONGER = 50, 4
"""TRs: how many of the second viewer are missing at the end, and by how many the stimulus is longer than the scan."""


class Recipe(NamedTuple):
    """What ``synth`` is asked for; ``later_trs`` of regions whose blood is late."""

    trs: tuple[int, ...]
    reliability: float
    preshift: int
    later_trs: dict[str, int]
    sound: str
    concatenated: bool
    traps: tuple[str, ...]


def synth(
    out: str | Path,
    seed: int = 0,
    size: int | None = None,
    trs: tuple[Count, ...] = (300, 300, 260),
    reliability: Annotated[float, Range(0, below=1)] = 0.6,
    preshift: Annotated[int, Range(0, 20)] = 0,
    late_trs: Annotated[int, Range(0, 10)] = 0,
    sound: Literal["wav", "movie"] = "wav",
    concatenated: bool = True,
    traps: tuple[Traps, ...] = (),
) -> str:
    """Write movies, annotations and the brains of some viewers; what to say about them.

    Args:
        out: an empty or new folder; see ``write_data_set``.
        size: viewers (default: 3).
        trs: volumes of 1.5 s of each part of the movie, which is a run of the scanner.
        reliability: correlation of a voxel with what all viewers share; 0 in the null region.
        preshift: TRs by which the volumes were moved earlier.
        late_trs: TRs by which the auditory region is later than the others.
        sound: beside the movie, or in it.
        concatenated: one NIfTI file a viewer with all parts one behind the other, or one for each part.
        traps: "header_tr" (headers say 1 s), "constant_tail" (viewer 2 lacks the last 50 TRs: the last one goes on),
            "odd_rows" (one of zero length, two without TR behind the first part), "long_stimulus" (4 TRs longer than
            the scan), "unpacked" (viewer 1 is .nii), "bad_voxels" (some NaN, some constant), "cartoon" (all parts
            begin with the same 30 s).

    Raises:
        UserError: a value out of range, parts too short for the traps, or data that are there already.
    """
    size = 3 if size is None else size
    Range(1).check("size", size)
    least = 2 + max([TAIL * ("constant_tail" in traps), CARTOON * ("cartoon" in traps), 10])
    if min(trs) < least:
        raise UserError(f"trs: a part of {min(trs)} TRs is too short, {least} are needed")
    later = {"auditory": late_trs} if late_trs else {}
    recipe = Recipe(trs, reliability, preshift, later, sound, concatenated, traps)
    return _report(Path(out), write_data_set(out, seed, size, lambda folder: _fill(folder, seed, size, recipe)))


def _fill(folder: Path, seed: int, size: int, recipe: Recipe) -> dict[str, Any]:
    grid = truth.brain()
    labels = grid[grid > 0]
    taken = truth.weights(_random(seed, "weights"), labels)
    kept: dict[str, np.ndarray] = {"labels": grid, **{f"weights_{roi}": w for roi, w in taken.items()}}
    shared: dict[str, np.ndarray] = {}
    lines: list[list[Any]] = []
    for part, count in enumerate(recipe.trs, 1):
        name = f"part{part}"
        longer = LONGER if "long_stimulus" in recipe.traps else 0
        z, segments = _stimulus(seed, name, count + longer, "cartoon" in recipe.traps)
        render.write_movie(folder / f"stim_{name}.mp4", z, recipe.sound == "movie")
        if recipe.sound == "wav":
            render.write_sound(folder / f"stim_{name}.wav", z)
        lines += render.rows(_random(seed, name, "rows"), segments, sum(recipe.trs[: part - 1]), 1 + len(lines))
        if part == 1 and "odd_rows" in recipe.traps:
            _make_odd(lines)
        shared[name] = truth.signal(z, labels, taken, recipe.later_trs, recipe.preshift)[:count]
        kept |= {f"latents_{name}": z[:count], f"signal_{name}": shared[name]}
    render.write_annotations(folder / "annotations.xlsx", lines)
    _write_brains(folder, seed, size, shared, grid, recipe)
    np.savez_compressed(folder / "truth.npz", **kept)  # type: ignore[arg-type]
    return {
        **recipe._asdict(),
        "truth": {
            "ceilings": truth.ceilings(recipe.reliability, size), "loads": truth.LOADS, "product": truth.PRODUCT,
            "latents": truth.LATENTS, "voxels": {roi: int((labels == 1 + i).sum()) for i, roi in enumerate(ROIS)},
        },
    }  # fmt: skip


def _stimulus(seed: int, name: str, trs: int, cartoon: bool) -> tuple[np.ndarray, list[truth.Segment]]:
    if not cartoon:
        return truth.latents(_random(seed, name, "latents"), trs)
    first, same = truth.latents(_random(seed, "cartoon"), CARTOON)
    then, own = truth.latents(_random(seed, name, "latents"), trs - CARTOON)
    moved = [truth.Segment(s.first + CARTOON, s.last + CARTOON, s.face, s.house) for s in own]
    return np.concatenate([first, then]), same + moved


def _make_odd(lines: list[list[Any]]) -> None:
    odd = lines[len(lines) // 2]
    odd[2] = odd[1]
    end = lines[-1][2]
    for i in range(2):
        lines.append([len(lines) + 1, end + 3 * i, end + 3 * (i + 1), *[None] * 3, "break", *[None] * 4])


def _write_brains(
    folder: Path, seed: int, size: int, shared: dict[str, np.ndarray], grid: np.ndarray, recipe: Recipe
) -> None:
    nibabel, inside = library("nibabel"), grid > 0
    affine = np.diag([truth.VOXEL_MM] * 3 + [1.0])
    nibabel.Nifti1Image(grid, affine).to_filename(folder / "rois.nii.gz")
    (folder / "rois.tsv").write_text("\n".join(["index\tname", *(f"{1 + i}\t{r}" for i, r in enumerate(ROIS))]) + "\n")
    (folder / "fmri").mkdir()
    for subject in range(1, size + 1):
        files: dict[str, list[np.ndarray]] = {}
        for run, signal in shared.items():
            y = truth.measured(_random(seed, run, "viewer", subject), signal, grid[inside], recipe.reliability)
            volumes = np.zeros((*grid.shape, len(y)), np.float32)
            volumes[inside] = (1000 + 20 * y).T
            files.setdefault("" if recipe.concatenated else f"_{run}", []).append(volumes)
        for name, parts in files.items():
            volumes = np.concatenate(parts, -1)
            last = recipe.concatenated or name == f"_{list(shared)[-1]}"
            _set_traps(volumes, inside, subject, last, recipe.traps)
            image = nibabel.Nifti1Image(volumes, affine)
            image.header.set_zooms((truth.VOXEL_MM,) * 3 + (1.0 if "header_tr" in recipe.traps else TR_S,))
            image.header.set_xyzt_units("mm", "sec")
            ending = ".nii" if subject == 1 and "unpacked" in recipe.traps else ".nii.gz"
            image.to_filename(folder / "fmri" / f"synth_movie_s{subject}{name}{ending}")


def _set_traps(volumes: np.ndarray, inside: np.ndarray, subject: int, last: bool, traps: tuple[str, ...]) -> None:
    if subject == 2 and last and "constant_tail" in traps:
        volumes[..., -TAIL:] = volumes[..., -TAIL - 1 : -TAIL]
    if "bad_voxels" in traps:  # other ones in every viewer
        bad = np.argwhere(inside)[subject::97]
        volumes[tuple(bad[::2].T)] = np.nan
        volumes[tuple(bad[1::2].T)] = 1000


def _random(seed: int, *what: int | str) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=keyed.key(seed, "sherlock", *what)))


def _report(out: Path, about: dict[str, Any]) -> str:
    found = about["truth"]
    regions = ", ".join(f"{roi} {count}" for roi, count in found["voxels"].items())
    top = found["ceilings"]
    traps = f"; traps: {', '.join(about['traps'])}" if about["traps"] else ""
    return "\n".join([
        f"{out}: {about['size']} viewers, {len(about['trs'])} parts of {', '.join(map(str, about['trs']))} TRs{traps}",
        f"  voxels: {regions}",
        f"  a perfect model correlates with one viewer by {top['single']:.2f}, with the mean of all by "
        f"{top['average']:.3f}",
        f"  {preprocess_line(out, about)}",
    ])  # fmt: skip


def preprocess_line(out: Path, about: dict[str, Any]) -> str:
    """The command that makes arrays of it, as a shell reads it. ``about``: what metadata.json says."""
    runs = [f"part{1 + i}" + (f"={count}" if about["concatenated"] else "") for i, count in enumerate(about["trs"])]
    words = ["--fmri", out / "fmri", "--runs", *runs, "--video", out, "--audio"]
    words += ["movie" if about["sound"] == "movie" else out, "--annotations", out / "annotations.xlsx"]
    words += ["--rois", out / "rois.nii.gz"]
    words += ["--tr", f"{TR_S:g}"] if "header_tr" in about["traps"] else []
    words += ["--preshift", about["preshift"]] if about["preshift"] else []
    words += ["--drop_start", CARTOON] if "cartoon" in about["traps"] else []
    return shlex.join(["accel-train", "sherlock", "preprocess", "--out", f"{out}-prepared", *map(str, words)])
