"""Volumes of a scanner: 4-D NIfTI, read a stretch at a time."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from accel_train.errors import DataError
from accel_train.tasks.sherlock.libraries import library

BLOCK, CHUNK = 32, 2**20
"""Volumes, and bytes, that are read at once."""
SECONDS = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6}
SAME_MM = 1e-3


@dataclass(frozen=True)
class Header:
    """What a file says of itself. ``grid``: voxels along each axis. ``affine``: [4, 4], voxels to mm. ``tr_s`` may be
    a lie, and is 0 where nothing is said."""

    path: Path
    grid: tuple[int, int, int]
    volumes: int
    affine: np.ndarray
    tr_s: float


def header(path: Path) -> Header:
    """Raises ``DataError`` unless it is a readable image of 4 axes."""
    image = _load(path)
    if len(image.shape) != 4:
        raise DataError(f"{path}: is {_times(image.shape)}, volumes over time have four axes")
    unit = image.header.get_xyzt_units()[1]
    tr_s = float(image.header.get_zooms()[3]) * SECONDS.get(unit, 1.0)
    return Header(path, image.shape[:3], image.shape[3], np.asarray(image.affine), tr_s)


def shape_of(path: Path) -> tuple[int, ...]:
    """Along all axes. Raises ``DataError``."""
    return _load(path).shape


def refuse_other_grid(known: Header, path: Path, grid: tuple[int, ...], affine: np.ndarray) -> None:
    """A ``DataError`` unless an image has the voxels of another, at the same places."""
    if grid != known.grid:
        raise DataError(f"{path}: has {_times(grid)} voxels, {known.path.name} has {_times(known.grid)}; "
                        "bring all to one space first")  # fmt: skip
    if (off := float(np.abs(affine - known.affine).max())) > SAME_MM:
        raise DataError(f"{path}: its affine differs from that of {known.path.name} by up to {off:.3g} mm; bring all "
                        "to one space first")  # fmt: skip


def refuse_damaged(path: Path) -> None:
    """A ``DataError`` if a packed file is not as it was packed: its check sum, which stands at its end, says so."""
    if path.suffix.lower() != ".gz":
        return
    try:
        with gzip.open(path) as file:
            while file.read(CHUNK):
                pass
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: is damaged ({_brief(error)}); copy it again, or pack it again if what it holds is "
                        "right") from None  # fmt: skip


def read(path: Path, first: int, last: int) -> np.ndarray:
    """float32 [last - first, voxels of the grid] of these volumes. Raises ``DataError`` for a damaged file."""
    image = _load(path)
    out = np.empty((last - first, int(np.prod(image.shape[:3]))), np.float32)
    for start in range(first, last, BLOCK):
        stop = min(start + BLOCK, last)
        try:
            block = np.asarray(image.dataobj[..., start:stop])
        except Exception as error:  # gzip, zlib and nibabel have errors of their own
            raise DataError(f"{path}: volume {start} and on cannot be read: {_brief(error)}") from None
        with np.errstate(over="ignore"):  # what is too large is infinite, and no voxel
            out[start - first : stop - first] = block.reshape(-1, stop - start).T
    return out


def read_labels(path: Path, known: Header) -> np.ndarray:
    """int64 [voxels of the grid] of a label image on the same grid, 0 for none. Raises ``DataError``."""
    image = _load(path)
    refuse_other_grid(known, path, image.shape, np.asarray(image.affine))
    values = grid_of(path).ravel()
    if not np.array_equal(values, np.round(values)) or values.min() < 0:
        raise DataError(f"{path}: labels are whole numbers from 0 on; is it a map of probabilities?")
    return values.astype(np.int64)


def grid_of(path: Path) -> np.ndarray:
    """The values of an image of 3 axes, [X, Y, Z]. Raises ``DataError``."""
    image = _load(path)
    try:
        return np.asarray(image.dataobj)
    except Exception as error:
        raise DataError(f"{path}: cannot be read: {_brief(error)}") from None


def write(path: Path, values: np.ndarray, known: Header) -> None:
    """An image on the grid of ``known``; the same values give the same bytes. ``values``: [voxels of the grid]."""
    nibabel = library("nibabel")
    image = nibabel.Nifti1Image(values.reshape(known.grid), known.affine)
    with open(path, "wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as file:
        file.write(image.to_bytes())


def _load(path: Path) -> Any:
    nibabel, image = library("nibabel"), cast(Any, None)
    try:
        image = nibabel.load(path, keep_file_open=True)  # a packed file is then read on, not from its beginning
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except TypeError:
        pass  # a format that knows no keep_file_open
    except Exception as error:
        raise DataError(f"{path}: not a NIfTI image: {_brief(error)}") from None
    if not isinstance(image, nibabel.Nifti1Pair):  # MINC, AFNI, Analyze, ...: axes and units have other meanings
        raise DataError(f"{path}: not a NIfTI image, but one of another format; convert it to .nii.gz first")
    if image.get_data_dtype().kind not in "iuf":
        raise DataError(f"{path}: holds {image.get_data_dtype()}, voxels must be real numbers")
    return image


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _brief(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:160]
