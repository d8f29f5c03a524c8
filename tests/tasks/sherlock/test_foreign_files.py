"""Files that nobody here made: test data of nibabel, nitime and scipy. Each is read as its own library reads it, or
refused in one line; and scans as other programs store them."""

from __future__ import annotations

import gzip
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.viewers import GRID, preprocess, small_study, write_scan

from accel_train.errors import DataError, UserError
from accel_train.tasks.sherlock.preprocess import movie, nifti

nibabel: Any = pytest.importorskip("nibabel")


def folder_of(module: str, *parts: str) -> Path:
    found = Path(pytest.importorskip(module).__file__).parent.joinpath(*parts)
    if not found.is_dir():
        pytest.skip(f"this {module} comes without its data")
    return found


# -- scans -------------------------------------------------------------------------------------------------------------


def test_scans_of_nibabel_are_read_or_refused():
    """4-D NIfTI of either version is read; volumes, MINC, AFNI, PAR/REC, MGH, CIFTI and Analyze are not."""
    endings = (".nii", ".nii.gz", ".hdr", ".mnc", ".mgz", ".PAR", ".HEAD")
    read, refused = [], []
    for path in sorted(folder_of("nibabel", "tests", "data").iterdir()):
        if not path.name.endswith(endings):
            continue
        try:
            with warnings.catch_warnings(action="ignore"):  # nibabel's, of what it finds odd
                header = nifti.header(path)
        except DataError as error:
            assert str(error).startswith(str(path)) and "\n" not in str(error)
            assert "not a NIfTI image" in str(error) or "volumes over time have four axes" in str(error)
            refused.append(path.name)
            continue
        volumes = nifti.read(path, 0, header.volumes)
        wanted = nibabel.load(path).get_fdata()
        np.testing.assert_allclose(volumes.T.reshape(wanted.shape), wanted, rtol=1e-6, atol=1e-6)
        read.append(path.name)
    assert read == ["example4d.nii.gz", "example_nifti2.nii.gz", "functional.nii"] and len(refused) > 20


def test_two_runs_of_nitime(tmp_path):
    files = sorted(folder_of("nitime", "data").glob("fmri?.nii.gz"))
    np.save(tmp_path / "fmri1.npy", np.random.default_rng(0).normal(size=(40, 2)))
    given = ["--runs", "fmri1", "fmri2", "--features", f"clip=fmri1={tmp_path / 'fmri1.npy'}", "--gap=2"]
    made = preprocess(tmp_path / "out", "--fmri", *files, *given)
    assert made.runs == {"fmri1": 40, "fmri2": 40} and made.tr_s == pytest.approx(1.35) and made.voxels == 1800


def test_a_header_in_the_wrong_unit(tmp_path):
    """2000 for milliseconds, called seconds, as in a file of nibabel."""
    given = small_study(tmp_path, subjects=1)
    write_scan(tmp_path / "fmri/sub-01_bold.nii.gz", np.random.default_rng(0).normal(size=(40, *GRID)), tr_s=2000)
    with pytest.raises(DataError, match="its header says a TR of 2000 s, which cannot be; give --tr"):
        preprocess(tmp_path / "out", *given)
    assert preprocess(tmp_path / "out", *given, "--tr=2").tr_s == 2


def as_big_endian_integers(path: Path, image: Any) -> Path:
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_dtype(">i2")  # scl_slope and scl_inter say what they stand for
    header.set_data_shape(image.shape)
    header.set_zooms(image.header.get_zooms())
    header.set_xyzt_units("mm", "sec")
    nibabel.Nifti1Image(image.get_fdata(), image.affine, header).to_filename(path.with_name("sub-02_bold.nii"))
    return path.with_name("sub-02_bold.nii")


def as_pair(path: Path, image: Any) -> Path:
    nibabel.Nifti1Pair(image.get_fdata(), image.affine, image.header).to_filename(path.with_name("sub-02_bold.hdr"))
    return path.with_name("sub-02_bold.hdr")


def as_nifti2(path: Path, image: Any) -> Path:
    nibabel.Nifti2Image(image.get_fdata(), image.affine, image.header).to_filename(path.with_name("sub-02_bold.nii"))
    return path.with_name("sub-02_bold.nii")


def with_padding(path: Path, image: Any) -> Path:
    other = path.with_name("sub-02_bold.nii.gz")
    other.write_bytes(path.read_bytes() + bytes(512))  # as tapes and some archives leave it
    return other


@pytest.mark.parametrize("stored", [as_big_endian_integers, as_pair, as_nifti2, with_padding])
def test_the_same_volumes_stored_otherwise(tmp_path, stored: Callable[[Path, Any], Path]):
    given = small_study(tmp_path, subjects=1)
    first = tmp_path / "fmri/sub-01_bold.nii.gz"
    made = preprocess(tmp_path / "out", "--fmri", first, stored(first, nibabel.load(first)), *given[2:])
    one, two = (made.fmri(name, "run1") for name in ("sub-01", "sub-02"))
    np.testing.assert_allclose(one, two, atol=2e-4)


def test_an_image_behind_its_header_that_changed_is_noticed(tmp_path):
    given = small_study(tmp_path, subjects=1)
    first = tmp_path / "fmri/sub-01_bold.nii.gz"
    call = ["--fmri", as_pair(first, nibabel.load(first)), *given[2:]]
    preprocess(tmp_path / "out", *call)
    (tmp_path / "fmri/sub-02_bold.img").touch()
    with pytest.raises(UserError, match="made otherwise"):
        preprocess(tmp_path / "out", *call)


def flipped(packed: bytes) -> bytes:
    middle = len(packed) // 2
    return packed[:middle] + bytes([packed[middle] ^ 255]) + packed[middle + 1 :]


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (flipped, "is damaged (BadGzipFile: CRC check failed"),
        (lambda packed: packed + b"more", "is damaged (BadGzipFile: Not a gzipped file"),
        (lambda packed: packed[:-4], "is damaged (EOFError"),
        (lambda packed: b"", "not a NIfTI image: ImageFileError: Empty file"),
        (gzip.decompress, "is not a gzip file"),
    ],
    ids=["a byte", "more behind", "cut", "empty", "not packed"],
)
def test_packed_files_that_are_damaged(tmp_path, spoil: Callable[[bytes], bytes], text: str):
    given = small_study(tmp_path, subjects=1)
    path = tmp_path / "fmri/sub-01_bold.nii.gz"
    # of numbers that do not pack, a changed byte is a changed number, which only the check sum shows
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(DataError) as caught:
        preprocess(tmp_path / "out", *given)
    assert str(path) in str(caught.value) and text in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", [np.complex64, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])])
def test_voxels_that_are_no_numbers(tmp_path, dtype: Any):
    given = small_study(tmp_path, subjects=1)
    image = nibabel.Nifti1Image(np.zeros((*GRID, 40), dtype), np.eye(4))
    image.to_filename(tmp_path / "fmri/sub-01_bold.nii.gz")
    with pytest.raises(DataError, match="sub-01_bold.nii.gz: holds .*, voxels must be real numbers"):
        preprocess(tmp_path / "out", *given)


# -- sounds ------------------------------------------------------------------------------------------------------------


def test_sounds_of_scipy_are_read_as_scipy_does_or_refused():
    """8-bit, 32-bit, float and RF64, one channel and two; RIFX, 36 to 53 bits and files that are cut are refused."""
    wavfile: Any = pytest.importorskip("scipy.io.wavfile")
    signal: Any = pytest.importorskip("scipy.signal")
    read = []
    for path in sorted(folder_of("scipy", "io", "tests", "data").glob("*.wav")):
        try:
            found = movie.samples(path, 16_000)
        except DataError as error:
            assert str(error).startswith(str(path)) and "\n" not in str(error)
            continue
        with warnings.catch_warnings(action="ignore"):
            hz, wanted = wavfile.read(path)
        if wanted.dtype.kind != "f":
            wanted = (wanted - (128.0 if wanted.dtype == np.uint8 else 0)) / 2.0 ** (8 * wanted.dtype.itemsize - 1)
        wanted = wanted.reshape(len(wanted), -1).mean(1)
        assert abs(len(found) - len(wanted) * 16_000 / hz) <= 1
        if len(found) > 1000:
            assert np.corrcoef(found, signal.resample(wanted, len(found)))[0, 1] > 0.98
            assert np.std(found) == pytest.approx(np.std(wanted), rel=0.05)
        read.append(path.name)
    assert len(read) >= 6
