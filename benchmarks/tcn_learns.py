"""What the tcn task foresees in shots whose disruptions are known, beside models that are trivial.

    python benchmarks/tcn_learns.py [--only easy hard] [--steps 600] [--train 128] [--test 200] [--folder DIR]

A small network (receptive field 127 ms) learns from synthetic shots in a minute on two cores. Thresholds are chosen on
validation shots, and numbers are of test shots, with 95 % intervals over shots. Beside it: logistic regression (and
boosted trees where scikit-learn is installed) on statistics of windows as long as the receptive field, a disruption at
every step, and the leak detectors, which see no signal and whose AUC over shots must be that of chance, 0.5. (Over
steps the place in the file says much, since records end with the disruption; no causal network knows it.)
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from accel_train import Trainer
from accel_train.config.read import parse
from accel_train.run.saved import find_saved
from accel_train.tasks.tcn import baselines
from accel_train.tasks.tcn.alarms import ShotScores
from accel_train.tasks.tcn.labels import label
from accel_train.tasks.tcn.metrics import ShotTable
from accel_train.tasks.tcn.model import TCN
from accel_train.tasks.tcn.operating import OperatingPoint
from accel_train.tasks.tcn.shots import Shot
from accel_train.tasks.tcn.steps import step_intervals, step_sums
from accel_train.tasks.tcn.streaming import overlap_save
from accel_train.tasks.tcn.task import TCNTask

Scorer = Callable[[Shot], NDArray[np.floating]]
"""Scores of the steps of a shot that see a whole receptive field: [stop - start - R + 1]."""

NETWORK = dict(nsub=768, twarn_ms=150, levels=3, nhid=16, kernel_size=7, dilation_base=4, nrecept_target=253)
RUN = dict(global_batch_size=16, learning_rate=3e-3, lr_scheduler_type="cosine", warmup_steps=50, logging_steps=50)
EVERY = 10  # samples from one moment that the trivial models see to the next: 5 ms
COLUMNS = ("step_f1", "step_pr_auc", "tpr_at_fpr_5", "fpr_at_tpr_95", "auc")


def command(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "accel_train", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def prepared(folder: Path, kind: str, train: int, test: int) -> Path:
    """Shots of this kind at 2 kHz; made once."""
    raw, stored = folder / kind, folder / f"{kind}-2kHz"
    if not stored.exists():
        sizes = [f"--size={train}", f"--val={max(2, train // 2)}", f"--test={test}"]
        command("synth", "tcn", "--out", raw, f"--kind={kind}", *sizes)
        where = ["--disrupt", raw / "disrupt", "--clear", raw / "clear"]
        command("tcn", "preprocess", "--out", stored, *where, "--dt_ms=0.1", "--step=5", "--antialias")
    return stored


def learn(folder: Path, data: Path, steps: int) -> tuple[TCNTask, TCN]:
    """The best network by its validation."""
    options = [f"--task.init_args.{name}={value}" for name, value in (NETWORK | {"data": data}).items()]
    options += [f"--{name}={value}" for name, value in RUN.items()]
    options += [f"--max_steps={steps}", f"--eval_steps={max(1, steps // 10)}", f"--output_dir={folder}"]
    task, config = parse(["--task=tcn", *options, "--report_to=[]", "--resume_from_checkpoint=never"])
    Trainer(task, config).fit()
    model = find_saved(folder).load_models()["model"].eval()
    assert isinstance(model, TCN)
    return task, model


def judged(task: TCNTask, score: Scorer) -> dict[str, float]:
    """Numbers of test data at thresholds that validation data chose, with intervals."""
    tables, histograms = {}, {}
    for split in ("validation", "test"):
        shots = [shot for shot in task.store.split(split) if shot.stop - shot.start >= task.receptive_field]
        tables[split] = [scored(task, shot, score) for shot in shots]
        histograms[split] = torch.stack([steps(task, *pair) for pair in zip(shots, tables[split], strict=True)])
    point = OperatingPoint.choose(tables["validation"], histograms["validation"].sum(0))
    return {
        **step_intervals(histograms["test"], point.threshold, 0.0, seed=0, resamples=200),
        **ShotTable.of(tables["test"], point.rule).intervals(seed=0),
    }


def scored(task: TCNTask, shot: Shot, score: Scorer) -> ShotScores:
    first = shot.start + task.receptive_field - 1
    scores = np.zeros(shot.stop, np.float32)
    scores[first:] = score(shot)
    return ShotScores(shot.number, scores, shot.t0_ms, shot.dt_ms, shot.disruptive, shot.t_disruption_ms, first)


def steps(task: TCNTask, shot: Shot, scores: ShotScores) -> torch.Tensor:
    """The histograms of one shot, [2, bins + 1]."""
    target, counts = (torch.from_numpy(each)[None] for each in label(shot, scores.first, shot.stop, task.labels))
    unknown = torch.full(target.shape, torch.nan)
    return step_sums(torch.from_numpy(scores.scored)[None], target, counts, unknown)["by_distance"].sum(0)


def by_network(task: TCNTask, model: TCN, shot: Shot) -> NDArray[np.floating]:
    store = task.store
    scale, offset = (torch.from_numpy(of(shot.number)) for of in (store.scale, store.offset))
    return overlap_save(model, partial(store.read, shot.number), shot.start, shot.stop, task.nsub, scale, offset)


def trivial(task: TCNTask) -> dict[str, Scorer]:
    """Fitted to the training split."""
    store = task.store

    def read(number: int, first: int, last: int) -> NDArray[np.floating]:
        scale, offset = store.scale(number)[:, None], store.offset(number)[:, None]
        return (store.read(number, first, last) * scale + offset - store.mean[:, None]) / store.std[:, None]

    def shown(split: str) -> baselines.Examples:
        shots = {shot.number: shot for shot in store.split(split)}

        def labels(number: int, first: int, last: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
            return label(shots[number], first, last, task.labels)

        return baselines.examples(shots.values(), read, labels, task.receptive_field, EVERY)

    train, held_out = shown("train"), [shown(split) for split in ("validation", "test")]

    def score(name: str) -> Scorer:
        model = baselines.fit(name, train)
        found: dict[int, tuple[NDArray[np.int64], NDArray[np.floating]]] = {}
        for each in held_out:
            logits = model.logit(each)
            for number in np.unique(each.shot):
                found[number] = each.sample[each.shot == number], logits[each.shot == number]

        def scores(shot: Shot) -> NDArray[np.floating]:
            sample, logit = found[shot.number]
            return baselines.track(sample, logit, shot.start + task.receptive_field - 1, shot.stop)

        return scores

    return {name: score(name) for name in baselines.names()} | {"all ones": lambda shot: np.zeros(1)}


def row(name: str, found: dict[str, float]) -> str:
    numbers = [f"{found[key]:.3f} ({found[f'{key}/low']:.2f}-{found[f'{key}/high']:.2f})" for key in COLUMNS]
    warning = f"{found['warning_median_ms_at_fpr_5']:.0f} ms"
    return f"  {name:18}" + "".join(f"{number:>21}" for number in numbers) + f"{warning:>12}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=("easy", "hard"), default=["easy", "hard"])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--train", type=int, default=128, help="shots")
    parser.add_argument("--test", type=int, default=200, help="shots")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        for kind in options.only:
            data, start = prepared(folder, kind, options.train, options.test), time.perf_counter()
            task, model = learn(folder / f"{kind}-run", data, options.steps)
            print(f"{kind}: {options.train} shots, {options.steps} steps in {time.perf_counter() - start:.0f} s")
            print(" " * 20 + "".join(f"{name:>21}" for name in (*COLUMNS, "warning")))
            for name, score in ({"network": partial(by_network, task, model)} | trivial(task)).items():
                print(row(name, judged(task, score)), flush=True)


if __name__ == "__main__":
    main()
