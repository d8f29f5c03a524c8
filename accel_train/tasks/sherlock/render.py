"""Synthetic movies, sounds and annotations as files of the formats that a laboratory has."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any

import numpy as np

from accel_train.tasks.sherlock.libraries import library
from accel_train.tasks.sherlock.truth import TR_S, Segment

FPS, WIDTH, HEIGHT, HZ = 8, 32, 18, 8000
TONES_HZ = 300.0, 1500.0
HEADER = (
    "Segment Number", "Start Time (s) ", "End Time (s) ", "Start Time (TRs, 1.5s)", "End Time (TRs, 1.5s)",
    "Scene Segments", "Scene Details - A Level ", "Space-In/Outdoor", "Name - All", "Name - Focus", "Location",
)  # fmt: skip
"""Of the published annotations of the film, with the blanks at the end of some."""
PLACES = ("street", "flat", "taxi", "station", "park", "hospital", "office", "bridge")


def sound(z: np.ndarray) -> np.ndarray:
    """int16 [samples] of a run: two tones whose loudness changes from TR to TR. ``z``: [trs, 6]."""
    t = np.arange(round(len(z) * TR_S * HZ)) / HZ
    loud = z[np.minimum((t / TR_S).astype(int), len(z) - 1), 2:4]
    tones = np.sin(2 * np.pi * t[:, None] * np.array(TONES_HZ))
    return (0.45 * 32767 * (loud * tones).sum(1)).astype(np.int16)


def write_sound(path: Path, z: np.ndarray) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(HZ)
        file.writeframes(sound(z).tobytes())


def write_movie(path: Path, z: np.ndarray, with_sound: bool) -> None:
    """Left and right half as bright as the first two latents of the TR; with its sound, or silent."""
    av = library("av")
    with av.open(str(path), "w") as file:
        video = file.add_stream("mpeg4", rate=FPS)
        video.width, video.height, video.pix_fmt, video.bit_rate = WIDTH, HEIGHT, "yuv420p", 400_000
        audio = file.add_stream("aac", rate=HZ, layout="mono") if with_sound else None
        pixels = np.empty((HEIGHT, WIDTH, 3), np.uint8)
        for i in range(round(len(z) * TR_S * FPS)):
            left, right = z[int(i / FPS / TR_S), :2]
            pixels[:, : WIDTH // 2], pixels[:, WIDTH // 2 :] = round(255 * left), round(255 * right)
            file.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(video.encode())
        if audio is not None:
            _encode(av, file, audio, sound(z))


def _encode(av: Any, file: Any, audio: Any, samples: np.ndarray) -> None:
    for first in range(0, len(samples), 1024):
        frame = av.AudioFrame.from_ndarray(samples[None, first : first + 1024], format="s16", layout="mono")
        frame.sample_rate, frame.pts = HZ, first
        file.mux(audio.encode(frame))
    file.mux(audio.encode())


def rows(random: np.random.Generator, segments: list[Segment], first_tr: int, number: int) -> list[list[Any]]:
    """Lines under ``HEADER`` for a run: seconds count within it, TRs (from 1) through all."""
    made = []
    for i, each in enumerate(segments):
        place, other = random.choice(PLACES, 2, replace=False)
        words = [str(place), *["face"] * each.face, *["house"] * each.house]
        made.append([
            number + i, each.first * TR_S, each.last * TR_S, first_tr + each.first + 1, first_tr + each.last,
            f"Scene {number}" if i == 0 else None, " ".join(words), "Outdoor" if place == "street" else "Indoor",
            None, None, str(other).title(),
        ])  # fmt: skip
    return made


def write_annotations(path: Path, lines: list[list[Any]]) -> None:
    book = library("openpyxl").Workbook()
    sheet = book.active
    for line in [HEADER, *lines]:
        sheet.append(line)
    book.save(path)
