"""What a linear model finds in preprocessed synthetic viewers: what theory says it can, where, and at the right lag."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from support.viewers import of_synth, preprocess

from accel_train.tasks.sherlock import truth
from accel_train.tasks.sherlock.data import Prepared
from accel_train.tasks.sherlock.synth import synth

pytestmark = pytest.mark.slow
TRS = (300, 300, 260)
ALL = ("video", "audio", "text")
HEARS = {"video": "visual", "audio": "auditory", "text": "semantic"}

Lag = Callable[[np.ndarray], np.ndarray]


def ridge(made: Prepared, names: Sequence[str], lag: Lag) -> dict[str, float]:
    """Mean correlation over the voxels of each region between the prediction of test and the mean over viewers."""
    stats = made.statistics("stimulus_stats")

    def features(run: str) -> np.ndarray:
        parts = []
        for name in names:
            rows = made.stimulus(run, name).reshape(made.runs[run], -1) - stats[f"{name}_mean"].ravel()
            parts.append(rows / np.sqrt(stats[f"{name}_var"] * rows.shape[1]))
        return lag(np.concatenate(parts, 1))

    def both(split: str) -> tuple[np.ndarray, np.ndarray]:
        stretches = made.stretches(split)
        x = np.concatenate([features(run)[a:b] for run, a, b in stretches])
        y = np.concatenate([
            np.mean([made.fmri(name, run)[a:b] for name in made.subjects], 0) for run, a, b in stretches
        ])  # fmt: skip
        return x, y

    (x, y), (x_test, y_test) = both("train"), both("test")
    mean = x.mean(0)
    dual = np.linalg.solve((x - mean) @ (x - mean).T + 0.3 * np.eye(len(x)), y)
    predicted = (x_test - mean) @ ((x - mean).T @ dual)
    r = (truth.standard(predicted) * truth.standard(y_test)).mean(0)
    return {roi: float(r[columns].mean()) for roi, columns in made.rois.items()}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Prepared:
    folder = tmp_path_factory.mktemp("worth")
    synth(folder / "raw", trs=TRS)
    return preprocess(folder / "out", *of_synth(folder / "raw", TRS, "--frames=1", "--frame_size=8x4"))


def test_each_region_is_found_by_its_modality_alone(made):
    ceiling = truth.ceilings(0.6, 3)["average"]
    for name, roi in HEARS.items():
        r = ridge(made, [name], truth.blurred)
        assert 0.85 * ceiling < r[roi] < ceiling + 0.02
        assert all(abs(r[other]) < 0.15 for other in r if other != roi)


def test_no_linear_model_finds_the_interaction(made):
    r = ridge(made, ALL, truth.blurred)
    assert abs(r["interaction"]) < 0.15 and abs(r["null"]) < 0.03
    assert all(r[roi] > 0.6 for roi in HEARS.values())


def test_a_wrong_lag_finds_little(made):
    for lag in (lambda x: x, lambda x: np.roll(truth.blurred(x), -6, 0)):
        r = ridge(made, ALL, lag)
        assert max(r.values()) < 0.3 and np.mean(list(r.values())) < 0.15
