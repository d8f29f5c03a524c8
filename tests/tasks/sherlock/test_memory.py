"""One copy of the stimulus, however many viewers and ranks, and none of it in memory of a process's own; nor of the
brains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.processes import Team
from support.runs import config

TRS = 2000
SMALL, LARGE = (20, 10), (10_000, 1000)
"""Numbers of a TR of the stimulus, voxels. LARGE: 80 MB of film, and 8 MB of each viewer."""
BOUND = 35
"""MB of a process's own for batches on their way, weights, and all that they go through; less than half the film."""


def prepared(folder: Path, viewers: int, features: int, voxels: int) -> Path:
    """As preprocess leaves it: one run, which says the same again and again."""
    draw = np.random.default_rng(0)
    people = [f"s{i}" for i in range(viewers)]
    for name, columns in [("stimulus/part1/clip", features), *((f"fmri/{person}/part1", voxels) for person in people)]:
        path = folder / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.tile(draw.normal(size=(50, columns)).astype(np.float32), (TRS // 50, 1)))
    np.savez(folder / "stimulus_stats.npz", clip_mean=np.zeros(features, np.float32), clip_var=np.ones(()))
    about = {
        "version": 1, "tr_s": 1.5, "preshift_trs": 0, "hash": "0", "voxels": voxels, "targets": "voxels", "found": [],
        "runs": [{"name": "part1", "trs": TRS, "modalities": ["clip"]}],
        "modalities": {"clip": {"kind": "vectors", "shape": [features], "dtype": "float32"}},
        "subjects": people, "held_out_subjects": [], "fmri_variance": {"per_subject": 1.0, "average": 0.5},
        "missing": {person: {"part1": []} for person in people}, "rois": None,
        "split": {
            "train": [{"run": "part1", "first": 0, "last": 1700}],
            "validation": [{"run": "part1", "first": 1721, "last": TRS}], "test": [],
        },
    }  # fmt: skip
    (folder / "meta.json").write_text(json.dumps(about))
    return folder


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("films")
    sizes = {"small": (2, *SMALL), "one viewer": (1, *LARGE), "17 viewers": (17, *LARGE)}
    return {name: prepared(folder / name, *size) for name, size in sizes.items()}


def job(folder: Path, film: Path, workers: str) -> dict[str, Any]:
    small: dict[str, Any] = dict(
        window_trs=5, lags=2, latent=4, encoder_widths=[2], fusion_widths=[4], decoder_widths=[4], subject_rank=1
    )
    settings = config(
        folder, global_batch_size=4, max_steps=30, eval_steps=30, warmup_steps=0, num_workers=2, worker_type=workers
    )
    return {"task": "SherlockTask", "task_args": {"data": str(film), **small}, "config": settings, "memory": True}


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "workers"), [(1, "thread"), (2, "thread"), (1, "process")])
def test_film_and_brains_are_in_no_process(tmp_path, films, ranks, workers):
    """A run on a small film comes first: what is imported on the way takes memory, too."""
    team = Team(ranks)
    took = {}
    try:
        for name, film in films.items():
            results = team.run(job(tmp_path / name, film, workers), timeout=120)
            assert [result["error"] for result in results] == [None] * ranks
            took[name] = [result["memory"] for result in results]
    finally:
        team.close()
    for name in ("one viewer", "17 viewers"):
        for before, here in zip(took["small"], took[name], strict=True):
            assert here["anonymous"] < BOUND
            assert here["worker"] - before["worker"] < BOUND
            if workers == "thread":  # it was read, from the pages that all share
                assert here["files"] - before["files"] > BOUND
            else:
                assert before["worker"] > 0
