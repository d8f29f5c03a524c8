"""Frames and sound of a movie, by PyAV."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from accel_train.errors import DataError
from accel_train.tasks.sherlock.libraries import library

LATE_S = 1.0
"""What is decoded may end so much earlier than the header says."""


def duration_s(path: Path, kind: str) -> float:
    """Of the first stream of ``kind``, "video" or "audio". Raises ``DataError``."""
    with _open(path, kind) as (file, stream):
        if stream.duration is not None:
            return float(stream.duration * stream.time_base)
        if file.duration is None:
            raise DataError(f"{path}: does not say how long its {kind} is; write it anew with a full header")
        return file.duration / 1e6


def frames(path: Path, tr_s: float, trs: int, per_tr: int, height: int, width: int) -> np.ndarray:
    """uint8 [trs, per_tr, height, width, 3], RGB: what is on the screen in the middle of each of ``per_tr`` parts of
    each TR, shrunk by averaging over areas.

    Raises:
        DataError: the file cannot be decoded that far.
    """
    wanted = (np.arange(trs * per_tr) + 0.5) * (tr_s / per_tr)
    out = np.empty((trs * per_tr, height, width, 3), np.uint8)
    done, now, pixels = 0, 0.0, None
    with _open(path, "video") as (file, stream):
        stream.thread_type = "AUTO"
        shown = None
        for frame in _decoded(path, file, stream):
            now = float(frame.time or 0.0) - _begin_s(file)
            pixels = None
            while shown is not None and done < len(wanted) and wanted[done] < now:
                if pixels is None:
                    pixels = shown.to_ndarray(format="rgb24", width=width, height=height, interpolation="AREA")
                out[done], done = pixels, done + 1
            if done == len(wanted):
                break
            shown = frame
        if shown is not None and done < len(wanted) and wanted[-1] <= now + LATE_S:
            out[done:] = shown.to_ndarray(format="rgb24", width=width, height=height, interpolation="AREA")
            done = len(wanted)
    if done < len(wanted):
        raise DataError(f"{path}: its frames end at {now:.1f} s, {wanted[-1]:.1f} s are needed; is the file complete?")
    return out.reshape(trs, per_tr, height, width, 3)


def samples(path: Path, hz: int) -> np.ndarray:
    """float32 [n] in -1 to 1, the sound from time 0 on, the mean of all channels. Raises ``DataError``."""
    av, parts = library("av"), []
    with _open(path, "audio") as (file, stream):
        resampler, start_s = av.AudioResampler(format="fltp", rate=hz), None
        for frame in _decoded(path, file, stream):
            if start_s is None:
                start_s = float(frame.time or 0.0) - _begin_s(file)
            parts += [made.to_ndarray().mean(0) for made in resampler.resample(frame)]
        parts += [made.to_ndarray().mean(0) for made in resampler.resample(None)]
    if not parts:
        raise DataError(f"{path}: its sound is empty")
    sound, lead = np.concatenate(parts), round((start_s or 0.0) * hz)
    return np.concatenate([np.zeros(lead, np.float32), sound]) if lead > 0 else sound[-lead:]


def _begin_s(file: Any) -> float:
    """When the first frame is shown: time 0 of the run, for its sound, too."""
    streams = file.streams.video
    return float((streams[0].start_time or 0) * streams[0].time_base) if streams else 0.0


@contextlib.contextmanager
def _open(path: Path, kind: str) -> Generator[tuple[Any, Any]]:
    av = library("av")
    try:
        file = av.open(str(path))
    except (av.FFmpegError, OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as {kind}: {_brief(error)}; is the file complete?") from None
    with file:
        streams = getattr(file.streams, kind)
        if not streams:
            raise DataError(f"{path}: holds no {kind}")
        yield file, streams[0]


def _decoded(path: Path, file: Any, stream: Any) -> Iterator[Any]:
    now, av = 0.0, library("av")
    try:
        for frame in file.decode(stream):
            now = float(frame.time or now)
            yield frame
    except (av.FFmpegError, OSError, ValueError) as error:
        raise DataError(
            f"{path}: cannot be decoded after {now:.1f} s: {_brief(error)}; is the file complete?"
        ) from None


def _brief(error: Exception) -> str:
    """What FFmpeg says, without its number."""
    return " ".join(str(getattr(error, "strerror", None) or error).split())
