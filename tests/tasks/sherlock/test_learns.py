"""What a training finds in brains whose truth is known; benchmarks/sherlock_learns.py shows more, and takes longer."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.small_tasks import Brains
from support.viewers import of_synth, preprocess

from accel_train import Trainer
from accel_train.cli import main
from accel_train.config.read import parse
from accel_train.tasks.sherlock.synth import TAIL, preprocess_line, synth
from accel_train.tasks.sherlock.task import SherlockTask
from accel_train.tasks.sherlock.truth import CARTOON

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "sherlock_small.yaml"
SMALL = ("--frames=1", "--frame_size=16x9", "--mels=20", "--text_dim=64")
TRAPS = ("header_tr", "constant_tail", "odd_rows", "long_stimulus", "unpacked", "bad_voxels", "cartoon")


def terms_at_the_start(task: SherlockTask) -> tuple[Any, dict[str, float]]:
    """Models, and the terms of the loss over all items of the training, before its first step."""
    source: Any = task.build_data("train", 1, 0)
    torch.manual_seed(0)
    models = {"model": task.build_model(source)}
    batch = {name: torch.as_tensor(a) for name, a in source.data.read(np.arange(len(source.data))).items()}
    objective = task.objectives()[0]
    with torch.no_grad():
        loss = task.loss_step(models, batch, task.totals(models, batch, objective), objective)
    return (models, batch), {name: float(term) for name, term in loss.terms.items()}


# -- balance of the loss ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder, trs = tmp_path_factory.mktemp("balance"), (60, 40, 30)
    synth(folder / "raw", size=2, trs=trs)
    return preprocess(folder / "out", *of_synth(folder / "raw", trs, "--gap=5")).folder


@pytest.mark.parametrize("options", [(), ("bottleneck=voxels", "lag=fir"), ("fmri_loss_type=correlation",),
                                     ("target=average",), ("fmri_loss_type=mae", "time_layers=1")])  # fmt: skip
def test_no_term_has_more_than_60_percent_of_the_loss_at_the_start(data, options):
    """Of pixels, spectra, words and voxels, whose numbers and units have nothing in common."""
    more = [f"--task.init_args.{option}" for option in options]
    task, _ = parse(["--config", str(EXAMPLE), f"--task.init_args.data={data}", *more])
    assert isinstance(task, SherlockTask)
    _, terms = terms_at_the_start(task)
    assert set(terms) == {"fmri", "video", "audio", "text"}
    assert max(terms.values()) / sum(terms.values()) <= 0.6, terms
    assert all(0.7 <= term <= 1.3 for term in terms.values()), terms


@settings(max_examples=20, deadline=None)
@given(share=st.floats(0.5, 0.99), term=st.sampled_from(["fmri", "video", "audio", "text"]))
def test_the_warning_comes_above_90_percent(share, term):
    _, terms = terms_at_the_start(Brains())
    weight = share / (1 - share) * (sum(terms.values()) / terms[term] - 1)
    task = Brains(**{f"{term}_weight": weight})
    (models, batch), _ = terms_at_the_start(task)
    with torch.no_grad():
        said = [event.title for event in task.monitor(models, batch)]
    if abs(share - 0.9) > 1e-4:
        assert len(said) == (share > 0.9)
    assert all(text.startswith(f"loss: {term} is {share:.0%} of it") for text in said)


def test_the_warning_comes_once_in_a_training(tmp_path):
    assert SherlockTask.recommended["monitor_steps"] > 0
    Trainer(
        Brains(fmri_weight=100.0), output_dir=str(tmp_path / "run"), max_steps=3, monitor_steps=1, warmup_steps=0,
        global_batch_size=8, eval_steps=3, report_to=[],
    ).fit()  # fmt: skip
    events = (tmp_path / "run" / "events.jsonl").read_text()
    assert events.count("hides the others") == 1 and "loss: fmri is 9" in events


# -- traps -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_all_traps_together_are_told_of_and_change_nothing(tmp_path, capsys):
    """From files that lie in every way to a report: each lie is said, and what is found is right."""
    raw, run, trs = tmp_path / "raw", tmp_path / "run", (170, 150, 150)
    synth(raw, seed=2, size=3, trs=trs, preshift=3, sound="movie", traps=TRAPS)
    line = shlex.split(preprocess_line(raw, json.loads((raw / "metadata.json").read_text())))[1:]
    assert {"--tr", "--preshift", "--drop_start"} <= set(line)
    without = [line[at] for at in range(len(line)) if "--tr" not in (line[at], line[at - 1])]
    assert main([*without, *SMALL]) == 2
    assert "by its header's TR of 1 s" in capsys.readouterr().err

    kept = [line[at] for at in range(len(line)) if "--drop_start" not in (line[at], line[at - 1])]
    assert main([*kept, *SMALL, f"--out={tmp_path / 'kept'}"]) == 0
    assert f"part1 and part3 begin with the same {CARTOON} TRs of video" in capsys.readouterr().err

    assert main([*line, *SMALL]) == 0
    found = capsys.readouterr().err
    for text in (
        "headers say 1 s a volume; --tr 1.5 is taken",
        "part1: 170 TRs are common to all; cut off at the end: video 4, audio 4",
        "1 row of zero length, left out",
        "2 rows without a TR, left out",
        f"s2, part3: the last {TAIL + 1} volumes are equal, and count as missing",
        "that some viewers lack are left out",
    ):
        assert text in found

    options = [f"--task.init_args.data={raw}-prepared", f"--output_dir={run}", "--report_to=[]"]
    assert main(["train", "--config", str(EXAMPLE), *options, "--max_steps=250", "--eval_steps=50"]) == 0
    assert main(["evaluate", str(run), "--split=test"]) == 0
    assert main(["sherlock", "report", str(run)]) == 0
    assert "must be +3, as declared" in capsys.readouterr().out
    report = json.loads((run / "report" / "report.json").read_text())
    assert report["warnings"] == []
    r = {roi: each["value"] for roi, each in report["r"]["network"].items()}
    assert abs(r["null"]) < 0.05
    assert all(0.45 < r[roi] < 0.65 for roi in ("visual", "auditory", "semantic")), r  # 0.6 is all that is possible
    scans = report["lag_scans"]
    assert (scans["stimulus"]["must_peak_at"], scans["network"]["must_peak_at"]) == (3, 0)
    peaks = {
        name: [each["peaks_at"][roi] for roi in ("visual", "auditory", "semantic")] for name, each in scans.items()
    }
    assert peaks["stimulus"] == [3, 3, 3] and max(map(abs, peaks["network"])) <= 1, peaks
