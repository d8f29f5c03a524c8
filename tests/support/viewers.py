"""Small scans and stimuli for the tests of sherlock, and a call of its ``preprocess``."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from accel_train.command import Command
from accel_train.tasks.sherlock.data import Prepared

PREPROCESS = Command("preprocess", "", "accel_train.tasks.sherlock.preprocess.command")
GRID = (3, 4, 2)


def preprocess(out: Path, *options: object) -> Prepared:
    assert PREPROCESS.run([f"--out={out}", *map(str, options)]) == 0
    return Prepared(out)


def of_synth(folder: Path, trs: tuple[int, ...], *options: object) -> list[str]:
    """Options for a folder of ``synth`` with its files concatenated."""
    runs = [f"part{1 + i}={count}" for i, count in enumerate(trs)]
    given = [
        "--fmri", folder / "fmri", "--runs", *runs, "--video", folder, "--audio", folder,
        "--annotations", folder / "annotations.xlsx", "--rois", folder / "rois.nii.gz", *options,
    ]  # fmt: skip
    return list(map(str, given))


def write_scan(path: Path, volumes: np.ndarray, tr_s: float = 1.5, affine: np.ndarray | None = None) -> Path:
    """``volumes``: [TRs, *grid]."""
    import nibabel

    path.parent.mkdir(parents=True, exist_ok=True)
    axes = np.moveaxis(volumes, 0, -1) if volumes.ndim == 4 else volumes
    image = nibabel.Nifti1Image(axes, np.eye(4) if affine is None else affine)
    if volumes.ndim == 4:
        image.header.set_zooms((1.0, 1.0, 1.0, tr_s))
        image.header.set_xyzt_units("mm", "sec")
    image.to_filename(path)
    return path


def small_study(folder: Path, subjects: int = 2, trs: int = 40, seed: int = 0) -> list[str]:
    """One run of some viewers and features of it; the options that preprocess them, but --out."""
    random = np.random.default_rng(seed)
    for subject in range(1, 1 + subjects):
        volumes = random.normal(5, 2, (trs, *GRID)).astype(np.float32)
        write_scan(folder / "fmri" / f"sub-{subject:02d}_bold.nii.gz", volumes)
    (folder / "clip").mkdir()
    np.save(folder / "clip" / "film.npy", random.normal(size=(trs, 5)).astype(np.float32))
    return ["--fmri", str(folder / "fmri"), "--features", f"clip={folder / 'clip'}", "--gap", "3"]
