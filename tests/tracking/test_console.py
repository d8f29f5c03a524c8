"""The console: exact lines without a terminal, a bar with one."""

import io
import re
from pathlib import Path

import pytest
from torch import nn

from accel_train.task import Event, Task
from accel_train.tracking.console import Console
from accel_train.tracking.observer import Run


class CollatzTask(Task):
    """Only its name is needed."""


RECORD = {
    "kind": "train", "step": 12_000, "epoch": 0, "phase": "main", "loss": 0.47118, "next": 0.46894, "time": 0.00213,
    "grad_norm": 0.4211, "lr": 9.758e-5, "items_per_s": 1894.3, "step_s": 0.27, "wait_s": 0.0027, "eta_s": 11530.0,
}  # fmt: skip


def start(tmp_path, terminal=None, **changes) -> tuple[Console, io.StringIO, Run]:
    file = io.StringIO()
    console = Console(file, terminal)
    models: dict[str, nn.Module] = {"model": nn.Linear(40, 25)}
    settings = {"output_dir": tmp_path, "task": CollatzTask(), "config": {}, "models": models, "total_steps": 50_000}
    run = Run(**(settings | {"baselines": {"next": 0.4621, "time:count": 0.01}} | changes))
    console.on_start(run)
    return console, file, run


def lines(file: io.StringIO) -> list[str]:
    text = file.getvalue()
    assert text.endswith("\n")
    assert all(c.isprintable() for c in text.replace("\n", "")), "control characters in a plain log"
    return text.splitlines()


def test_start_block(tmp_path):
    _, file, _ = start(tmp_path)
    assert lines(file) == [
        "collatz: new run",
        "  parameters  model 1,025",
        "  device      cpu, precision no, 1 process",
        "  steps       0 of 50,000",
        f"  folder      {tmp_path}",
    ]


def test_start_block_of_a_resumed_run_with_frozen_and_several_models(tmp_path):
    models = {"generator": nn.Linear(1, 1), "critic": nn.Linear(1, 3)}
    models["critic"].bias.requires_grad_(False)
    where = "checkpoints/step-000012000"
    _, file, _ = start(
        tmp_path,
        models=models,
        total_steps=None,
        start_step=12_000,
        resumed_from=where,
        world_size=4,
        parallel="FSDP2",
        precision="bf16",
    )
    assert lines(file)[:4] == [
        f"collatz: resumed at step 12,000 from {Path(where)}",
        "  parameters  generator 2  critic 6 (3 trained)",
        "  device      cpu, precision bf16, 4 processes (FSDP2)",
        "  steps       until stopped",
    ]


def test_log_line(tmp_path):
    console, file, _ = start(tmp_path)
    console.on_tick({"step": 11_999})
    console.on_log(RECORD)
    assert lines(file)[-1] == (
        "step 12,000  loss 0.4712  next 0.4689 (floor 0.4621)  time 0.0021 (count 0.0100)"
        "  grad 0.42  lr 9.76e-05  1,894 items/s  wait 1%  ETA 3h12m"
    )


def test_lines_stay_aligned_and_name_what_there_are_several_of(tmp_path):
    console, file, _ = start(tmp_path, total_steps=None, baselines={})
    console.on_log(
        {"step": 900, "loss": 123.5, "lr": 1e-3, "lr/critic": 2e-3, "lr/generator": 1e-3, "items_per_s": 87.5}
    )
    console.on_log(
        {"step": 1000, "loss": -0.5, "lr/critic": 2e-3, "lr/generator": 1e-3, "items_per_s": 9.25, "skipped": 2}
    )
    assert lines(file)[-2:] == [
        "step 900  loss 123.5  lr critic 2.00e-03  lr generator 1.00e-03  87.5 items/s",
        "step 1,000  loss -0.5000  lr critic 2.00e-03  lr generator 1.00e-03  skipped 2  9.25 items/s",
    ]


def test_evaluation_line(tmp_path):
    console, file, _ = start(tmp_path, baselines={"accuracy:majority": 0.6})
    console.on_evaluate({"kind": "eval", "step": 500, "loss": float("nan"), "accuracy": 0.91, "items": 100})
    assert lines(file)[-1] == "eval step    500  loss nan  accuracy 0.9100 (majority 0.6000)"


def test_events_are_one_line_without_control_characters(tmp_path):
    console, file, _ = start(tmp_path)
    console.on_event(Event("anomaly", "far [red]off[/]\n\x1b[31m", {"n": 2**68, "error": 3.25}))
    assert lines(file)[-1] == "anomaly: far [red]off[/] [31m  n 295147905179352825856  error 3.2500"


@pytest.mark.parametrize(
    ("outcome", "status", "text"),
    [
        ("completed", {"step": 50_000}, "completed at step 50,000 after 0s; the run is in "),
        ("stopped", {"step": 7, "reason": "SIGTERM"}, "stopped at step 7 (SIGTERM) after 0s; the run is in "),
        ("crashed", {}, "crashed after 0s; the run is in "),
    ],
)
def test_end(tmp_path, outcome, status, text):
    console, file, _ = start(tmp_path)
    console.on_end(outcome, status)
    assert lines(file)[-1] == text + str(tmp_path)


def test_plain_although_colours_are_forced_and_long_lines_are_not_wrapped(tmp_path, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "20")
    console, file, _ = start(tmp_path)
    console.on_event(Event("warning", "x" * 300))
    assert lines(file)[-1] == "warning: " + "x" * 300


def test_standard_output_is_the_default(tmp_path, capsys):
    console = Console()
    console.on_start(Run(tmp_path, CollatzTask(), {}, {}, 10))
    assert capsys.readouterr().out.startswith("collatz: new run\n  parameters  none\n")


@pytest.mark.parametrize("total", [50_000, None])
def test_a_terminal_has_a_bar_below_the_lines(tmp_path, monkeypatch, total):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "150")
    console, file, _ = start(tmp_path, terminal=True, total_steps=total)
    console.on_tick({**RECORD, "phase": "[warm]"})
    console.on_log(RECORD)
    console.on_event(Event("warning", "slow disk"))
    console.on_end("stopped", {"step": 12_000, "reason": "typed"})
    text = file.getvalue()
    of = "/50,000" if total else ""
    assert f"step 12,000{of}  loss 0.4712  1,894 items/s  wait 1%  ETA 3h12m" in text
    assert "[warm]" in text and "step 12,000  loss 0.4712  next" in text
    assert "\x1b[33mwarning: slow disk" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "the cursor must come back"


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_a_line_is_no_wider_than_the_terminal(tmp_path, monkeypatch, width):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", str(width))
    config = {"metric_for_best_model": "auc"}
    console, file, _ = start(tmp_path, terminal=True, config=config, baselines={})
    console.on_evaluate({"kind": "eval", "step": 20, **{f"metric{i}": 0.5 for i in range(20)}, "auc": 0.75})
    console.on_log(RECORD)
    console.on_end("completed", {"step": 20})
    shown = [re.sub("\x1b\\[[0-9;?]*[a-zA-Z]", "", line).strip() for line in file.getvalue().splitlines()]
    (evaluated,) = [line[line.index("eval step") :] for line in shown if "eval step" in line]
    assert len(evaluated) <= width
    assert re.match("eval step +20  auc 0.7500", evaluated)  # what decides comes first
    kept, left_out = evaluated.count("metric"), int(evaluated.rpartition("+")[2]) if "+" in evaluated else 0
    assert kept + left_out == 20
    (logged,) = [line for line in shown if line.startswith("step 12,000  loss 0.4712")]
    assert len(logged) <= width and "items/s" not in logged  # the bar has it


def test_the_bar_says_what_keeps_the_run_from_training(tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    console, file, _ = start(tmp_path, terminal=True)
    console.on_busy("evaluating 3/16")
    console.on_end("completed", {"step": 20})
    assert "evaluating 3/16" in file.getvalue()
    console, file, _ = start(tmp_path)
    console.on_busy("evaluating 3/16")
    assert "evaluating" not in file.getvalue()


def test_a_notebook_has_a_line_that_moves_and_lines_that_fit(tmp_path, monkeypatch, capsys):
    """In the output of the cell, without widgets; nothing of it stays."""
    display = pytest.importorskip("IPython.display")
    shown = []

    class Handle:
        def update(self, data, raw):
            shown.append(data)

    monkeypatch.setattr(display, "display", lambda data, raw, display_id: shown.append(data) or Handle())
    monkeypatch.setattr("accel_train.tracking.console.in_notebook", lambda: True)
    console = Console()
    console.on_start(Run(tmp_path, CollatzTask(), {}, {"model": nn.Linear(1, 1)}, 500, start_step=20))
    console.on_tick({"step": 30, "loss": 0.25, "phase": "a<b", "eta_s": 60.0})
    console.on_busy("evaluating 3/16")
    console.on_log(RECORD | {f"term{i}": 0.5 for i in range(20)})
    console.on_end("completed", {"step": 500})
    assert [each["text/plain"] for each in shown] == [
        "starting", "a<b  step 30/500  loss 0.2500  ETA 1m00s", "a<b  evaluating 3/16", "",
    ]  # fmt: skip
    assert shown[0]["text/html"].startswith("<progress value=20 max=500>")
    assert shown[1]["text/html"].startswith("<progress value=30 max=500></progress> <code>a&lt;b  step")
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 110 for line in lines if line.startswith("step")) and re.search(r"\+\d+$", lines[-2])
