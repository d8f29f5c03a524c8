"""evaluate, export, inspect and plot, on one small Collatz run made once for this file."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from accel_train import Task, Trainer, load_exported
from accel_train.cli import main
from accel_train.commands.export import export_run
from accel_train.commands.inspect import _preview, _shape, inspect, look_at
from accel_train.config.schema import TrainConfig
from accel_train.data.source import IndexedSource
from accel_train.errors import UserError
from accel_train.run.checkpoint import verify
from accel_train.tasks.collatz.task import CollatzTask
from accel_train.tracking.plot import plot_history
from accel_train.train.measuring import evaluate_run
from accel_train.train.result import Result

SIZES = {
    "d_model": 8, "num_layers": 1, "nhead": 2, "dim_feedforward": 16, "dropout": 0.1, "max_len": 40, "prefix": 16,
    "eval_rows": 100,
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve steps, evaluated at 4, 8 and 12; the rate rises so far that the best model is not the last one."""
    folder = tmp_path_factory.mktemp("inspection") / "run"
    config = TrainConfig(
        output_dir=str(folder), seed=3, max_steps=12, global_batch_size=16, micro_batch_size=8, learning_rate=1.0,
        lr_scheduler_type="step", lr_scheduler_kwargs={"step_size": 8, "gamma": 30.0}, logging_steps=2, eval_steps=4,
        save_steps=4, report_to=[],
    )  # fmt: skip
    result = Trainer(CollatzTask(**SIZES), config).fit()
    assert result.best is not None and result.best["step"] < 12
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(made, tmp_path / "run", symlinks=True))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take longer than all the rest of an evaluation."""
    monkeypatch.setattr(CollatzTask, "figures", Task.figures)


def logged(run: Path) -> dict[int, dict[str, float]]:
    """Metrics of each evaluation in training, by step."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    extra = ("kind", "step", "epoch", "phase", "wall_time")
    return {r["step"]: {k: v for k, v in r.items() if k not in extra} for r in records if r["kind"] == "eval"}


def best_step(run: Path) -> int:
    return json.loads((run / "best" / "config.json").read_text())["step"]


# -- evaluate --------------------------------------------------------------------------------------------------------


def test_latest_evaluates_to_the_metrics_that_training_logged(run: Path, capsys: pytest.CaptureFixture[str]):
    assert evaluate_run(run, checkpoint="latest").metrics == logged(run)[12]
    record = json.loads((run / "evaluation" / "evaluation.json").read_text())
    assert record["metrics"] == logged(run)[12] and record["step"] == 12 and record["split"] == "validation"
    assert (run / "evaluation" / "figures" / "evaluation.png").stat().st_size > 10_000
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("undrawn")
def test_the_best_model_is_the_default(run: Path):
    expected = logged(run)[best_step(run)]
    assert evaluate_run(run).metrics == expected
    assert evaluate_run(run, checkpoint="best").metrics == expected
    assert evaluate_run(run / "best", out=run / "elsewhere").metrics == expected
    assert (run / "elsewhere" / "evaluation.json").is_file()
    shutil.rmtree(run / "best")  # the link in checkpoints/ then names it
    assert evaluate_run(run, checkpoint="best").metrics == expected
    assert evaluate_run(run).metrics == logged(run)[12]


@pytest.mark.usefixtures("undrawn")
def test_a_checkpoint_by_step_or_path_and_it_stays_whole(run: Path):
    checkpoint = run / "checkpoints" / "step-000000004"
    assert evaluate_run(run, checkpoint="4").metrics == logged(run)[4]
    assert evaluate_run(run, checkpoint=str(checkpoint)).metrics == logged(run)[4]
    assert evaluate_run(checkpoint).metrics == logged(run)[4]
    assert verify(checkpoint) is None
    alone = Path(shutil.copytree(checkpoint, run.parent / "alone"))
    assert evaluate_run(alone).metrics == logged(run)[4]
    assert verify(alone) is None and (run.parent / "alone.evaluated" / "evaluation").is_dir()


def test_a_result_is_evaluated_with_its_figures(run: Path):
    result = Result.of(run)
    assert (result.outcome, result.step, result.metrics) == ("completed", 12, logged(run)[12])
    found = result.evaluate(checkpoint="4", out=run / "here")
    assert found.metrics == logged(run)[4] and found.folder == run / "here"
    assert found.figures["evaluation"].path == run / "here" / "figures" / "evaluation.png"
    assert set(result.figures) == {"evaluation"}


@pytest.mark.usefixtures("undrawn")
def test_the_batch_size_changes_rounding_only(run: Path):
    metrics = evaluate_run(run, checkpoint="latest", batch_size=7).metrics
    assert metrics == pytest.approx(logged(run)[12], rel=1e-5)


def test_two_ranks_give_the_same_metrics(run: Path):
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "accel_train",
        "evaluate", str(run), "--checkpoint", "latest", "--out", str(run / "two"),
    ]  # fmt: skip
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    record = json.loads((run / "two" / "evaluation.json").read_text())
    assert record["metrics"] == pytest.approx(logged(run)[12], rel=1e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"split": "tset"}, "did you mean test"),
        ({"split": "train"}, "must have an end"),
        ({"batch_size": 0}, "--batch_size"),
        ({"checkpoint": "5"}, "there are steps 4, 8, 12"),
        ({"run": "nowhere"}, "no such folder"),
    ],
)
def test_what_cannot_be_evaluated_is_said_in_a_line(run: Path, change: dict, said: str):
    arguments = {"run": run, "checkpoint": None, "split": "validation", "batch_size": None, "out": None} | change
    arguments["run"] = run.parent / arguments["run"]
    with pytest.raises(UserError, match=said) as caught:
        evaluate_run(**arguments)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_a_checkpoint_and_a_damaged_one(run: Path):
    with pytest.raises(UserError, match="is a model itself"):
        evaluate_run(run / "best", checkpoint="latest")
    newest = run / "checkpoints" / "step-000000012" / "model.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    with pytest.raises(UserError, match="model.safetensors has .* bytes"):
        evaluate_run(run, checkpoint="12")
    assert evaluate_run(run, checkpoint="latest").metrics == logged(run)[8]  # the newest that is whole


class WithoutTest(CollatzTask):
    def build_data(self, split, batch_size, seed):
        return None if split == "test" else super().build_data(split, batch_size, seed)


def test_a_task_without_that_split(run: Path):
    text = (run / "config.yaml").read_text()
    name = f"{WithoutTest.__module__}.{WithoutTest.__qualname__}"
    (run / "config.yaml").write_text(text.replace("accel_train.tasks.collatz.task.CollatzTask", name))
    shutil.rmtree(run / "best")
    checkpoint = run / "checkpoints" / "step-000000012"
    (checkpoint / "config.yaml").write_text((run / "config.yaml").read_text())
    from accel_train.run.checkpoint import write_manifest

    write_manifest(checkpoint, {"step": 12})
    with pytest.raises(UserError, match="there is no test data"):
        evaluate_run(run, "test", checkpoint="12")


# -- export ----------------------------------------------------------------------------------------------------------


def test_export_gives_a_folder_that_needs_nothing_else(run: Path, tmp_path: Path):
    out = export_run(run, "4", tmp_path / "exported")
    task, models, described = load_exported(out)
    assert isinstance(task, CollatzTask) and described["step"] == 4 and described["seed"] == 3
    assert described["metrics"]["loss"] == logged(run)[4]["loss"]
    with torch.no_grad():
        assert models["model"](torch.zeros(2, 20, dtype=torch.uint8))[1].shape == (2, 20, 2)
    shutil.rmtree(run)
    found = evaluate_run(out, batch_size=16).metrics
    assert {**found, "step": 4} == pytest.approx(described["metrics"], rel=1e-5)
    assert (out / "evaluation" / "evaluation.json").is_file()


def test_export_refuses_a_folder_with_something_in_it(run: Path, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    assert (export_run(run, None, tmp_path / "empty") / "model.safetensors").is_file()
    with pytest.raises(UserError, match="empty or new folder"):
        export_run(run, None, tmp_path / "empty")
    with pytest.raises(UserError, match="empty or new folder"):
        export_run(run, None, run)


# -- inspect ---------------------------------------------------------------------------------------------------------


def test_inspect_a_run(run: Path):
    (run / "checkpoints" / "step-000000004" / "progress.json").write_text("{}")
    text = look_at(str(run), [])
    assert "collatz: completed, step 12 of 12" in text and "last evaluation, step 12: loss" in text
    lines = {line.split()[1]: line for line in text.splitlines() if line.startswith("  step")}
    assert set(lines) == {"4", "8", "12"}
    assert "DAMAGED: progress.json has 2 bytes" in lines["4"] or "DAMAGED: progress.json has 3 bytes" in lines["4"]
    assert "verified" in lines["8"] and "verified" in lines["12"] and "kB" in lines["12"]
    assert f"step {best_step(run)}" in text.partition("the best weights")[2]


def test_inspect_a_run_that_never_began(run: Path):
    (run / "status.json").unlink()
    shutil.rmtree(run / "checkpoints")
    text = look_at(str(run), [])
    assert "no status.json" in text and "checkpoints" in text and ": none" in text


def test_inspect_a_checkpoint_and_a_model(run: Path):
    text = look_at(str(run / "checkpoints" / "latest"), [])
    assert "verified" in text and "step 12" in text and "optimizer.bin" in text and "1 process" in text
    (run / "checkpoints" / "latest" / "stray").write_text("")
    assert "DAMAGED: stray is not in MANIFEST.json" in look_at(str(run / "checkpoints" / "latest"), [])
    text = look_at(str(run / "best"), [])
    assert f"step {best_step(run)}" in text and "d_model = 8" in text and "model.safetensors" in text


def test_inspect_a_config(tmp_path: Path):
    path = tmp_path / "plan.yaml"
    path.write_text(
        "task: {class_path: collatz, init_args: {d_model: 8, nhead: 2, num_layers: 1, dim_feedforward: 16}}\n"
        "max_steps: 100\nglobal_batch_size: 32\nlearning_rate: 0.5\nmixed_precision: fp16\nreport_to: [wandb]\n"
        "lr_scheduler_type: linear\nphases: [{objectives: [loss], length: 40}, {length: 60st}]\n"
        f"output_dir: {tmp_path}/never\n"
    )
    text = look_at(str(path), [])
    assert "steps        100" in text and "32 items a step" in text and "about 3,200 in all" in text
    assert "  40 steps     loss" in text and "  60 steps     loss" in text and "fp16" in text
    assert "0.5  0.375  0.25  0.125  0 " in text and "AdamW, linear" in text
    model = CollatzTask(d_model=8, nhead=2, num_layers=1, dim_feedforward=16).build_model(None)
    count = sum(p.numel() for p in model.parameters())
    assert f"model        {count:,}" in text
    assert "steps        40," not in text and "steps        40\n" in look_at(str(path), ["--max_steps=40"])
    priced = look_at(str(path), ["--reduction=fixed", "--reduction_parts=5"])
    assert "reduction" not in text and "partial sums" not in text
    assert "partial sums" in priced and "5 passes of 7 items, the same bits on 1 to 5 processes" in priced
    assert not (tmp_path / "never").exists()
    with pytest.raises(UserError):
        look_at(str(path), ["--max_stepz=5"])


def test_inspect_a_task_shows_its_first_batch():
    text = look_at("collatz", ["--task.init_args.max_len=70", "--global_batch_size=8"])
    assert inspect(CollatzTask(max_len=70), global_batch_size=8) == text
    assert "uint8 [8, 70]  0 to 2" in text and "int32 [8]" in text and "without an end" in text


class Previewed(Task):
    """Counts."""

    def build_data(self, split, batch_size, seed):
        class Rows:
            def __len__(self):
                return 5

            def read(self, indices):
                return {"x": indices.astype(np.float32), "name": [str(i) for i in indices]}

        return IndexedSource(Rows(), batch_size, shuffle=False)

    def preview(self, batch):
        return f"numbers up to {batch['x'].max():g}"


def test_a_task_may_say_itself_how_a_batch_looks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "previewed_task", sys.modules[__name__])
    text = look_at("previewed_task.Previewed", ["--global_batch_size=4"])
    assert text.endswith("numbers up to 3") and "2 batches in the first epoch" in text
    assert "float32 [4]  0 to 3" in text and "list" in text


def test_shapes_and_previews_of_odd_tensors():
    assert _shape(torch.tensor([1.0, float("inf")])).endswith("NOT FINITE")
    assert _shape(torch.zeros(0, 3)) == "float32 [0, 3]" and _shape("text") == "str"
    assert _preview({"x": torch.arange(40).reshape(2, 20), "s": "text"}).count("...") == 2


@pytest.mark.parametrize("what", ["colatz", "nowhere.yaml", "no/such/run"])
def test_inspect_says_what_it_does_not_know(what: str):
    with pytest.raises(UserError):
        look_at(what, [])


def test_the_commands(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["evaluate", str(run), "--checkpoint", "latest"]) == 0
    assert "what the model gains on trivial ones" in capsys.readouterr().out
    assert json.loads((run / "evaluation/evaluation.json").read_text())["metrics"] == logged(run)[12]
    assert main(["export", str(run), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert (
        "out: config.json, identity.json, model.safetensors\n" in said
        and f"load_exported('{tmp_path / 'out'}')" in said
    )
    assert main(["inspect", str(run)]) == 0
    assert main(["inspect", str(run), "--max_steps=3"]) == 2
    assert main(["inspect", str(tmp_path)]) == 2


# -- plot ------------------------------------------------------------------------------------------------------------


def test_plot_of_a_run(made: Path):
    from accel_train.tracking.jsonl import histories

    history = histories(made / "metrics.jsonl")
    figure = plot_history(history, ())
    panels = [axes for axes in figure.axes if axes.get_title(loc="left")]
    assert [axes.get_title(loc="left") for axes in panels] == ["loss", "stop", "next"]
    training, evaluation = panels[0].lines
    assert list(training.get_xdata()) == [2, 4, 6, 8, 10, 12] and list(evaluation.get_xdata()) == [4, 8, 12]
    assert list(evaluation.get_ydata()) == history["eval_loss"]
    assert len(plot_history(history, ("eval_mae", "grad_norm")).axes) == 2
    with pytest.raises(UserError, match="did you mean loss"):
        plot_history(history, ("los",))


def test_plot_of_little_or_odd_history(tmp_path: Path):
    plot_history({}, ()).savefig(tmp_path / "empty.png")
    figure = plot_history({"step": [1, 2, 3], "loss": [900.0, None, 1.0]}, ())
    assert figure.axes[0].get_yscale() == "log" and np.isnan(figure.axes[0].lines[0].get_ydata()[1])
    figure.savefig(tmp_path / "gap.png")
    figure = plot_history({"eval_step": [1, 2], "eval_loss": [2.0, 1.0]}, ())
    assert len(figure.axes[0].lines) == 1
    names = {name: [1.0] for name in ("a", "b", "c", "d")}
    plot_history({"step": [1], **names, "lr": [1.0], "lr/x": [1.0]}, ()).savefig(tmp_path / "four.png")
