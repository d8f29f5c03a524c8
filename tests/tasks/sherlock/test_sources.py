"""Each modality as rows per TR: mel spectra against published values, movies, text by overlap, features at a rate."""

from __future__ import annotations

import importlib.util
import json
import sys
import wave
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from accel_train.errors import DataError, UserError
from accel_train.tasks.sherlock import render
from accel_train.tasks.sherlock.preprocess import mel, movie, tables, words
from accel_train.tasks.sherlock.preprocess.sources import Clock, Features, Sound, Text

SLANEY = (
    0.0, 85.317, 170.635, 255.952, 341.269, 426.586, 511.904, 597.221, 682.538, 767.855, 853.173, 938.49, 1024.856,
    1119.114, 1222.042, 1334.436, 1457.167, 1591.187, 1737.532, 1897.337, 2071.84, 2262.393, 2470.47, 2697.686,
    2945.799, 3216.731, 3512.582, 3835.643, 4188.417, 4573.636, 4994.285, 5453.621, 5955.205, 6502.92, 7101.009,
    7754.107, 8467.272, 9246.028, 10096.408, 11025.0,
)  # fmt: skip
"""40 mel frequencies up to 11,025 Hz, as librosa's documentation prints them for ``mel_frequencies``."""


def clock(trs: int, tr_s: float = 1.5, run: str = "r", train: int | None = None) -> Clock:
    return Clock(tr_s, {run: trs}, {run: np.arange(trs) < (trs if train is None else train)})


# -- mel ---------------------------------------------------------------------------------------------------------------


def test_mel_frequencies_are_the_published_ones():
    np.testing.assert_allclose(mel.mel_frequencies(40, 11025), SLANEY, atol=6e-4)


def test_filters_are_the_published_ones():
    """The first values of the filters of 22,050 Hz, 2048 samples and 128 bands, as mel_filter's documentation has them
    for librosa's."""
    bank = mel.filters(22050, 2048, 128)
    assert bank.shape == (128, 1025)
    first = [0, 0.016182853208219942, 0.032365706416439884, 0.028990088037379964, 0.012807234829160026, 0]
    second = [0, 0, 0, 0.009779235793639925, 0.025962089001859864, 0.035393705451959974, 0.01921085224374004,
              0.003027999035520103, 0]  # fmt: skip
    np.testing.assert_allclose(bank[0, :6], first, atol=1e-9)
    np.testing.assert_allclose(bank[1, :9], second, atol=1e-9)


def test_a_spectrum_is_that_of_numpy():
    sound = np.random.default_rng(0).normal(size=mel.HZ).astype(np.float32)
    found = mel.log_mel(sound, 0.064, 15, 1, 20)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(mel.WINDOW) / mel.WINDOW)
    padded = np.concatenate([np.zeros(mel.WINDOW), sound])
    bank = mel.filters(mel.HZ, mel.WINDOW, 20)
    for tr in (0, 1, 9):  # 0.064 s are four steps of 256 samples
        ends = [1024 * tr + mel.HOP * i for i in range(1, 5)]
        power = [np.abs(np.fft.rfft(padded[end : end + mel.WINDOW] * hann)) ** 2 for end in ends]
        np.testing.assert_allclose(found[tr, 0], np.log(np.mean(power, 0) @ bank.T), rtol=1e-4, atol=1e-4)


@given(st.integers(1, 7), st.sampled_from([0.8, 1.0, 1.35, 1.5, 2.0]), st.integers(1, 9))
def test_no_window_reaches_behind_its_tr(tr, tr_s, frames):
    sound = np.random.default_rng(tr).normal(size=int(8 * tr_s * mel.HZ)).astype(np.float32)
    other = sound.copy()
    other[int(np.ceil(tr * tr_s * mel.HZ)) :] = 0
    a, b = (mel.log_mel(each, tr_s, 8, frames, 8) for each in (sound, other))
    assert np.array_equal(a[:tr], b[:tr]) and not np.array_equal(a[tr], b[tr])


def test_sound_that_ends_is_followed_by_silence():
    found = mel.log_mel(np.ones(100, np.float32), 1.5, 3, 2, 4)
    np.testing.assert_allclose(found[1:], np.log(mel.FLOOR), rtol=1e-6)


def test_stereo_at_another_rate_is_resampled(tmp_path):
    hz, t = 44100, np.arange(44100 * 3) / 44100
    tone = (8000 * np.sin(2 * np.pi * 440 * t)).astype(np.int16)
    with wave.open(str(tmp_path / "r.wav"), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(hz)
        file.writeframes(np.repeat(tone[:, None], 2, 1).tobytes())
    sound = movie.samples(tmp_path / "r.wav", mel.HZ)
    assert abs(len(sound) - 3 * mel.HZ) < 10
    expected = 8000 / 32768 * np.sin(2 * np.pi * 440 * np.arange(len(sound)) / mel.HZ)
    assert np.abs(sound - expected)[500:-500].max() < 0.01
    assert Sound({"r": tmp_path / "r.wav"}, 3, 10).at_trs("r", clock(2)).shape == (2, 3, 10)


# -- movies ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tr_s", [1.0, 1.5, 2.0])
def test_frames_are_those_of_their_time(tmp_path, tr_s):
    """Brightness is a staircase of 1.5 s a step."""
    z = np.full((8, 6), 0.5)
    z[:, 0] = np.linspace(0.1, 0.9, 8)
    render.write_movie(tmp_path / "m.mp4", z, False)
    assert movie.duration_s(tmp_path / "m.mp4", "video") == pytest.approx(12)
    trs, per_tr = int(12 / tr_s), 4
    found = movie.frames(tmp_path / "m.mp4", tr_s, trs, per_tr, 9, 16)
    assert found.shape == (trs, per_tr, 9, 16, 3) and found.dtype == np.uint8
    times = (np.arange(trs * per_tr) + 0.5) * tr_s / per_tr
    level = z[(times / 1.5).astype(int), 0]
    assert np.abs(found[..., :7, :].reshape(trs * per_tr, -1).mean(1) / 255 - level).max() < 0.02


def test_sound_in_a_movie_begins_with_it(tmp_path):
    z = np.full((6, 6), 0.1)
    z[3:, 2] = 0.9
    render.write_movie(tmp_path / "m.mp4", z, True)
    loud = np.abs(movie.samples(tmp_path / "m.mp4", 8000)).reshape(-1)[: 6 * 12000].reshape(-1, 400).max(1)
    assert abs(int(np.argmax(loud > 0.3)) * 0.05 - 4.5) <= 0.1, "no delay by the encoder"


# -- tables and text ---------------------------------------------------------------------------------------------------


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def test_runs_are_where_the_clock_begins_again(tmp_path):
    path = write(tmp_path / "a.csv", "Start (s) ,End (s),Text", "0,3,one", "3,3,nothing", "4,9,two", "0,2,three", ",,")
    table = tables.read(path)
    assert [[row.text for row in rows] for rows in table.runs] == [["one", "two"], ["three"]]
    assert (table.zero_length, table.without_tr) == (1, 0)
    bids = write(tmp_path / "b.tsv", "onset\tduration\ttrial_type\tdescription", "0\t3\tx\tone", "3.5\t1\ty\ttwo")
    rows = tables.read(bids, ["trial_type", "Description"]).runs[0]
    assert [(row.start_s, row.end_s, row.text) for row in rows] == [(0, 3, "x one"), (3.5, 4.5, "y two")]


@given(st.lists(st.tuples(st.floats(0, 40), st.floats(0.01, 20)), min_size=1, max_size=8), st.floats(0.5, 3))
def test_overlaps_are_shares_of_a_tr(spans, tr_s):
    rows = [tables.Row(2, start, start + length, "") for start, length in spans]
    trs = 1 + int(61 / tr_s)
    shares = tables.overlap(rows, tr_s, trs)
    assert ((shares >= 0) & (shares <= 1 + 1e-9)).all()
    np.testing.assert_allclose(shares.sum(0) * tr_s, [length for _, length in spans], atol=1e-9)


def test_text_is_there_where_its_row_is(tmp_path):
    path = write(tmp_path / "a.csv", "start,end,text", "0,3,a face", "3,6,the house", "9,12,a face")
    text = Text({"r": path}, 512).at_trs("r", clock(9))
    assert text.shape == (9, 512) and text.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(text, axis=1), [1, 1, 1, 1, 0, 0, 1, 1, 0], atol=1e-6)
    assert np.array_equal(text[0], text[6]) and abs(text[0] @ text[2]) < 0.5
    found = Text({"r": path}, 512).found(clock(9))
    assert "text of r: 3 of 9 TRs have none, and are zeros" in found
    assert any("hashed words" in line for line in found)


def test_how_rare_a_word_is_follows_from_training_alone(tmp_path):
    rows = [f"{3 * i},{3 * i + 3},{'face' if i % 2 else 'face house'}" for i in range(8)]
    one = write(tmp_path / "a.csv", "start,end,text", *rows)
    two = write(tmp_path / "b.csv", "start,end,text", *rows[:5], *(row.replace("face", "cat") for row in rows[5:]))
    a, b = (Text({"r": path}, 64).at_trs("r", clock(16, train=10)) for path in (one, two))
    assert np.array_equal(a[:10], b[:10]) and not np.array_equal(a[10:], b[10:])


def test_trs_that_do_not_fit_their_seconds_are_told_of(tmp_path):
    lines = [f"{3 * i},{3 * i + 3},{1 + 2 * i},word" for i in range(10)]
    path = write(tmp_path / "a.csv", "start,end,Start Time (TRs),text", *lines)
    assert not any("is the TR right" in text for text in Text({"r": path}, 8).found(clock(20)))
    assert any("of 10 rows name a TR" in text for text in Text({"r": path}, 8).found(clock(30, tr_s=1.0)))


def test_real_vectors_that_a_package_ships():
    """A clinic is nearer to a hospital than a beach is."""
    ships = importlib.util.find_spec("wordllama")  # only its files are needed
    if ships is None or ships.origin is None:
        pytest.skip("wordllama is not installed")
    vectors = words.unit(words.embedded(["hospital", "clinic", "beach"], Path(ships.origin).parent))
    assert vectors[0] @ vectors[1] > 0.2 and vectors[0] @ vectors[2] < 0


def static_folder(folder: Path, model: dict[str, object], rows: int) -> Path:
    folder.mkdir()
    save_file({"embedding": np.eye(rows, dtype=np.float32)}, folder / "model.safetensors")
    (folder / "tokenizer.json").write_text(json.dumps({"model": model}))
    (folder / "config.json").write_text("{}")
    return folder


def test_word_pieces(tmp_path):
    vocabulary = {"[UNK]": 0, "house": 1, "##boat": 2, "boat": 3, ".": 4}
    folder = static_folder(tmp_path / "m", {"type": "WordPiece", "vocab": vocabulary}, 5)
    found = words.embedded(["Houseboat.", "boat boat", "zebra", ""], folder)
    third = 1 / 3
    np.testing.assert_allclose(found, [[0, third, third, 0, third], [0, 0, 0, 1, 0], [0] * 5, [0] * 5])


def test_byte_pairs_merge_in_their_order(tmp_path):
    vocabulary = {"\u2581": 0, "a": 1, "b": 2, "ab": 3, "\u2581a": 4, "\u2581ab": 5}
    merges = ["a b", "\u2581 ab", "\u2581 a"]
    folder = static_folder(tmp_path / "m", {"type": "BPE", "vocab": vocabulary, "merges": merges}, 6)
    assert words.embedded(["ab", "a", "ba"], folder).argmax(1).tolist() == [5, 4, 0]
    rows = [f"{3 * i},{3 * i + 3},{'ab' if i % 2 else 'a'}" for i in range(4)]
    text = Text({"r": write(tmp_path / "a.csv", "start,end,text", *rows)}, 256, model=folder)
    assert text.at_trs("r", clock(8)).argmax(1).tolist() == [4, 4, 5, 5] * 2
    assert text.found(clock(8)) == []


def test_other_tokens_are_not_guessed(tmp_path):
    folder = static_folder(tmp_path / "m", {"type": "Unigram", "vocab": [["a", -1.0]]}, 5)
    with pytest.raises(DataError, match=r"its tokens are Unigram; .* give them by --features"):
        words.embedded(["a"], folder)
    folder = static_folder(tmp_path / "n", {"type": "WordPiece", "vocab": {"a": 0, "b": 1}}, 1)
    with pytest.raises(DataError, match="a row for each token"):
        words.embedded(["a"], folder)


def test_a_folder_without_vectors(tmp_path):
    with pytest.raises(DataError, match=r"holds 0 \.safetensors"):
        words.embedded(["a"], tmp_path)


# -- features ----------------------------------------------------------------------------------------------------------


def test_features_per_tr_and_at_a_rate(tmp_path):
    rows = np.arange(90, dtype=np.float32)[:, None] * [1, -1]
    np.save(tmp_path / "r.npy", rows)
    per_tr = Features("f", {"r": tmp_path / "r.npy"})
    assert per_tr.length("r", 1.5) == 90 and np.array_equal(per_tr.at_trs("r", clock(40)), rows[:40])
    fast = Features("f", {"r": tmp_path / "r.npy"}, rate_hz=2)
    assert fast.length("r", 1.5) == 30
    assert np.array_equal(fast.at_trs("r", clock(30))[:, 0], rows[1::3, 0]), "the mean of three rows"
    odd = Features("f", {"r": tmp_path / "r.npy"}, rate_hz=1)  # rows at 0, 1, 2, ...: one or two in 1.5 s
    assert odd.at_trs("r", clock(4))[:, 0].tolist() == [0.5, 2, 3.5, 5]


@given(st.floats(1.3, 90), st.floats(0.8, 2.5), st.integers(2, 30))
def test_rows_of_a_tr_lie_within_it(tmp_path_factory, rate, tr_s, trs):
    """Whatever the rate, there is no drift: of rows that say when they are, the mean is a time within the TR."""
    path = tmp_path_factory.getbasetemp() / "times.npy"
    np.save(path, np.arange(int(np.ceil(trs * tr_s * rate)) + 2)[:, None] / rate)
    times = Features("f", {"r": path}, rate_hz=rate).at_trs("r", clock(trs, tr_s))[:, 0]
    first = np.arange(trs) * tr_s
    assert (times >= first - 1e-4).all() and (times < first + tr_s + 1e-4).all()


def test_hdf5_says_its_rate_and_its_layers(tmp_path):
    with h5py.File(tmp_path / "r.h5", "w") as file:
        file["deep/layer1"], file["deep/layer2"] = np.zeros((20, 3)), np.ones((40, 2, 2))
        file["deep/layer2"].attrs["rate_hz"] = 2.0
    files = {"r": tmp_path / "r.h5"}
    with pytest.raises(DataError, match=r"2 data sets; name one by --layer: deep/layer1, deep/layer2"):
        Features("f", files).length("r", 1.0)
    layer = Features("f", files, layer="deep/layer2")
    assert layer.length("r", 1.0) == 20 and layer.at_trs("r", clock(20, 1.0)).shape == (20, 4)


def test_whole_numbers_are_codes(tmp_path):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).integers(0, 1024, (20, 4, 7)))
    source = Features("codec", {"r": tmp_path / "a.npy"})
    assert source.kind == "codes" and source.at_trs("r", clock(20)).shape == (20, 4, 7)
    rows = np.repeat(np.arange(1125)[:, None], 2, 1)  # 75 a second: 112.5 in a TR
    np.save(tmp_path / "b.npy", rows)
    codes = Features("codec", {"r": tmp_path / "b.npy"}, rate_hz=75).at_trs("r", clock(10))
    assert codes.shape == (10, 2, 112) and codes.dtype == np.int16
    assert codes[:, 0, 0].tolist() == [int(np.ceil(112.5 * i)) for i in range(10)], "no drift"


def test_what_is_no_feature(tmp_path):
    np.save(tmp_path / "a.npy", np.full((5, 2), np.nan))
    with pytest.raises(DataError, match=r"number 0 of TR 0 is nan"):
        Features("f", {"r": tmp_path / "a.npy"}).at_trs("r", clock(5))
    np.save(tmp_path / "b.npy", np.zeros(5))
    with pytest.raises(DataError, match="row per time"):
        Features("f", {"r": tmp_path / "b.npy"}).length("r", 1.5)
    np.save(tmp_path / "c.npy", np.zeros((5, 2), int) - 1)
    with pytest.raises(DataError, match="codes are whole numbers from 0"):
        Features("f", {"r": tmp_path / "c.npy"}).at_trs("r", clock(5))
    (tmp_path / "d.npy").write_text("no array")
    with pytest.raises(DataError, match="cannot be read"):
        Features("f", {"r": tmp_path / "d.npy"}).length("r", 1.5)


def test_a_missing_library_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match=r"sherlock needs av: pip install -e '\.\[sherlock\]'"):
        movie.duration_s(tmp_path / "m.mp4", "video")
