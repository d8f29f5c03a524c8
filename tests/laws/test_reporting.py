"""What only tells of a run costs it nothing: hooks may raise what they like, evaluations may fail, and the steps are
saved."""

from __future__ import annotations

import json

import pytest
import torch
from support.processes import run
from support.runs import config, records, steps_saved, weights_files
from support.toys import Numbers, Toy

from accel_train import IndexedSource, Task, Trainer, load_exported
from accel_train.cli import main
from accel_train.errors import EvaluationError, NonFiniteError, UserError
from accel_train.run.checkpoint import CheckpointFolder, read_progress
from accel_train.run.reports import Reports
from accel_train.tracking.observer import Observer

HOOKS = ["figures", "histories", "monitor", "histograms", "baselines"]
SETTINGS = dict(eval_steps=6, save_steps=6, monitor_steps=4, histogram_steps=4, report_to=["tensorboard"])


def failing(hook: str, error: BaseException, base: type = Toy) -> type:
    def fail(self, *arguments):
        raise error

    return type("FailingTask", (base,), {hook: fail, "name": "toy"})


def warnings_of(folder) -> list[str]:
    path = folder / "events.jsonl"
    events = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [event["title"] for event in events if event["kind"] == "warning"]


def one_rank_fails(hook, folder, **settings):
    return {"task": "OneRankFails", "task_args": {"hook": hook}, "config": config(folder, **settings)}


def fit(folder, task, **settings):
    return Trainer(task, **config(folder, **(SETTINGS | settings))).fit()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    fit(folder, type("PlainTask", (Toy,), {"name": "toy"})())
    return folder


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of TensorBoard
@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), MemoryError()], ids=lambda e: type(e).__name__)
def test_a_hook_that_raises(tmp_path, whole, hook, error):
    result = fit(tmp_path, failing(hook, error)())
    assert (result.outcome, result.saved) == ("completed", True)
    assert weights_files(tmp_path) == weights_files(whole)
    assert (tmp_path / "model" / "model.safetensors").exists() and steps_saved(tmp_path)[-1] == 24
    (warning,) = warnings_of(tmp_path)
    assert warning.startswith(f"{hook} failed and is left out: {type(error).__name__}")
    assert type(error).__name__ in (tmp_path / "errors" / f"{hook}.txt").read_text()
    assert len(records(tmp_path)) == len(records(whole)), "the history is whole"


def test_the_other_rank_raises(tmp_path):
    results = run(one_rank_fails("monitor", tmp_path, monitor_steps=4), 2)
    assert [result["error"] for result in results] == [None, None]
    (warning,) = warnings_of(tmp_path)
    assert "monitor failed" in warning and (tmp_path / "errors" / "monitor-rank1.txt").exists()


def test_an_interrupt_is_a_person(tmp_path):
    with pytest.raises(KeyboardInterrupt), Reports(tmp_path)("figures", print):
        raise KeyboardInterrupt


def test_a_failure_is_reported_once_and_its_file_may_not_fit(tmp_path):
    (tmp_path / "errors").write_text("a file")
    events: list = []
    reports = Reports(tmp_path)
    for _ in range(3):
        with reports("figures", events.append):
            raise ValueError("first line\nsecond line")
    assert [event.title for event in events] == ["figures failed and is left out: ValueError: first line"]


def test_figures_come_after_everything_is_saved(tmp_path):
    class Looking(Toy):
        name = "toy"

        def figures(self, metrics, sums):
            seen.append((steps_saved(tmp_path)[-1], (tmp_path / "best").is_dir(), len(records(tmp_path))))
            return {}

    seen: list = []
    fit(tmp_path, Looking())
    assert seen == [(24, True, len(records(tmp_path)))]


def test_figures_are_drawn_at_every_evaluation_if_that_takes_little_of_the_time(tmp_path, monkeypatch):
    class Drawing(Toy):
        name = "toy"

        def figures(self, metrics, sums):
            asked.append(steps_saved(folder)[-1])
            return dict(drawn)

    matplotlib = pytest.importorskip("matplotlib.figure")
    some, nothing = {"mine": matplotlib.Figure()}, {}
    for rest, drawn, steps in ((50.0, some, [24]), (0.0, some, [6, 12, 18, 24]), (0.0, nothing, [6])):
        monkeypatch.setattr("accel_train.train.reporter.REST", rest)
        asked, folder = [], tmp_path / f"{rest:g}-{len(drawn)}"
        fit(folder, Drawing(), report_to=["tensorboard"], save_in_background=False)
        assert asked == steps
    curves = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = curves.EventAccumulator(str(tmp_path / "0-1" / "tensorboard"), {"images": 0}).Reload()
    assert [each.step for each in found.Images("figures/mine")] == [6, 12, 18, 24]


def test_commands_report_too(tmp_path, capsys, monkeypatch):
    """After training: a summary, figures, descriptions and programs that fail leave numbers and weights."""
    for hook in ("summary", "figures", "describe_predictions", "export_programs"):
        monkeypatch.setattr(Toy, hook, failing(hook, ValueError("no")).__dict__[hook], raising=False)
    fit(tmp_path / "run", Toy(), report_to=["none"])
    assert main(["evaluate", str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 0
    out, err = capsys.readouterr()
    assert "loss" in out and "figures failed" in err and "summary failed" in err
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["metrics"]["loss"] > 0
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "model")]) == 0
    assert "export_programs failed" in capsys.readouterr().err
    assert load_exported(tmp_path / "model")[1]


# -- observers -------------------------------------------------------------------------------------------------------


class Raising(Observer):
    def __init__(self, hook: str, error: BaseException):
        def fail(*arguments):
            self.calls += 1
            raise error

        self.calls = 0
        setattr(self, hook, fail)


@pytest.mark.parametrize("hook", ["on_start", "on_log", "on_evaluate", "on_save", "on_tick", "on_end"])
@pytest.mark.parametrize(
    "error", [SystemExit(1), ValueError("no"), OSError(28, "No space left")], ids=lambda e: type(e).__name__
)
def test_an_observer_that_raises(tmp_path, hook, error):
    observer = Raising(hook, error)
    result = Trainer(Toy(), observers=[observer], **config(tmp_path, eval_steps=6)).fit()
    assert (result.outcome, result.saved, result.step) == ("completed", True, 24)
    (warning,) = warnings_of(tmp_path)
    again = isinstance(error, OSError)
    assert warning.startswith("Raising failed and is " + ("tried again" if again else "switched off"))
    assert again or observer.calls == 1


def test_only_a_mistake_of_the_config_ends_a_run_before_it_begins(tmp_path):
    with pytest.raises(UserError, match="no such place"):
        Trainer(Toy(), observers=[Raising("on_start", UserError("no such place"))], **config(tmp_path)).fit()
    assert steps_saved(tmp_path) == []


# -- evaluations that fail -------------------------------------------------------------------------------------------


class Late(Toy):
    """Its evaluation fails once the model has learned something."""

    name = "toy"
    error: Exception = ValueError("no such column")

    def eval_step(self, models, batch):
        if type(self).broken:
            raise self.error
        return super().eval_step(models, batch)

    def loss_step(self, models, batch, totals, objective):
        type(self).broken = type(self).failing
        return super().loss_step(models, batch, totals, objective)


@pytest.mark.parametrize(
    ("error", "kind"),
    [(ValueError("no such column"), EvaluationError), (UserError("a file is gone"), UserError),
     (NonFiniteError("nothing to draw"), NonFiniteError), (MemoryError("32 GB"), EvaluationError)],
)  # fmt: skip
def test_a_failed_evaluation_loses_no_step_and_is_made_up_for(tmp_path, error, kind):
    task = type("LateTask", (Late,), {"broken": False, "failing": True, "error": error, "name": "toy"})
    with pytest.raises(kind, match=r"step 24 is saved, but its evaluation on the validation data failed: .*") as caught:
        fit(tmp_path, task(), eval_steps=None)
    assert str(error) in str(caught.value)
    assert steps_saved(tmp_path)[-1] == 24
    task.broken = task.failing = False
    result = fit(tmp_path, task(), eval_steps=None)
    assert (result.outcome, result.step) == ("completed", 24) and result.metrics["loss"] > 0
    assert read_progress(CheckpointFolder(tmp_path / "checkpoints").path(24))["best_model"]["evaluations"]


def test_a_failed_evaluation_on_one_of_two_ranks(tmp_path):
    results = run(one_rank_fails("eval_step", tmp_path, eval_steps=8), 2)
    for result in results:
        assert "step 8 is saved" in result["error"][1] and "only here" in result["error"][1]
    assert [result["error"][0] for result in results] == ["OtherRankError", "EvaluationError"], "one traceback"
    assert steps_saved(tmp_path) == [8]


class Empty(Toy):
    name = "toy"

    def build_data(self, split, batch_size, seed):
        if split == "train":
            return super().build_data(split, batch_size, seed)
        return IndexedSource(Numbers(0, "validation", False), batch_size, shuffle=False)


def test_no_validation_data_is_said_before_the_first_step(tmp_path):
    with pytest.raises(UserError, match="the held-out data are empty"):
        fit(tmp_path, Empty())
    assert steps_saved(tmp_path) == []


@pytest.mark.parametrize("name", ["eval_loss", "losss"])
def test_the_deciding_metric_is_looked_at_before_the_first_step(tmp_path, name):
    with pytest.raises(UserError, match=rf"metric_for_best_model: .* no '{name}' \(did you mean loss\?\)"):
        fit(tmp_path, Toy(), metric_for_best_model=name, eval_steps=None)
    assert records(tmp_path) == [] and steps_saved(tmp_path) == []


def test_a_run_without_a_best_model_says_so(tmp_path):
    class Vague(Toy):
        name = "toy"

        def eval_metrics(self, sums):
            return super().eval_metrics(sums) | {"loss": float("nan")}

    fit(tmp_path, Vague(), max_steps=4)
    assert warnings_of(tmp_path) == ["no evaluation gave a finite loss, so there is no best model"]


@pytest.mark.parametrize("how", ["fails", "is silent"])
def test_a_metric_that_a_part_of_the_data_does_not_give(tmp_path, how):
    class Whole(Toy):
        name = "toy"

        def eval_metrics(self, sums):
            enough = float(sums["n"]) > 8
            if not enough and how == "fails":
                raise ZeroDivisionError
            return super().eval_metrics(sums) | ({"late": 1.0} if enough else {})

        def eval_step(self, models, batch):
            return super().eval_step(models, batch) | {"n": torch.tensor(float(self.size(batch)))}

    result = fit(tmp_path, Whole(), metric_for_best_model="late", eval_steps=None)
    assert result.metrics["late"] == 1 and warnings_of(tmp_path) == []


def test_an_evaluation_that_is_not_there(tmp_path):
    class Without(Toy):
        eval_step = Task.eval_step

    with pytest.raises(UserError, match="Without has no method eval_step"):
        fit(tmp_path, Without())


def test_a_stop_may_be_asked_for_before_there_is_a_run(tmp_path):
    trainer = Trainer(Toy(), **config(tmp_path))
    trainer.request_stop("second thoughts")
    result = trainer.fit()
    assert (result.outcome, result.reason, result.saved) == ("stopped", "second thoughts", True)
    assert result.step <= 1  # it is heard before the first batch or after the first step


def test_a_run_that_owed_an_evaluation_is_the_run_it_would_have_been(tmp_path, whole):
    task = type("LateTask", (Late,), {"broken": False, "failing": True, "name": "toy"})
    with pytest.raises(EvaluationError, match="step 6 is saved"):
        fit(tmp_path, task())
    task.broken = task.failing = False
    fit(tmp_path, task(), allow_changed_config=True)
    assert records(tmp_path) == records(whole) and weights_files(tmp_path) == weights_files(whole)


# -- on_step ---------------------------------------------------------------------------------------------------------


def test_on_step_sees_every_step_and_changes_nothing(tmp_path):
    seen = []
    watched = Trainer(Toy(), on_step=seen.append, **config(tmp_path / "watched", max_steps=9, eval_steps=0))
    watched.fit()
    plain = Trainer(Toy(), **config(tmp_path / "plain", max_steps=9, eval_steps=0))
    plain.fit()
    assert [step.number for step in seen] == list(range(1, 10))
    assert [step.epoch for step in seen] == [0] * 7 + [1] * 2, "50 items in batches of 8"
    assert all(name == "loss" and norm > 0 and "mse" in values for step in seen for name, values, norm in step.updates)
    assert all(len(step.batch["index"]) == 8 for step in seen[:6])
    for a, b in zip(watched.models["model"].parameters(), plain.models["model"].parameters(), strict=True):
        assert torch.equal(a, b)


def test_an_on_step_that_raises_costs_no_run(tmp_path):
    def fails(step):
        raise ValueError("no")

    assert Trainer(Toy(), on_step=fails, **config(tmp_path, max_steps=3)).fit().outcome == "completed"
    (told,) = [line for line in (tmp_path / "events.jsonl").read_text().splitlines() if "on_step failed" in line]
    assert "ValueError: no" in told


def test_a_stop_may_be_asked_for_at_any_time(tmp_path):
    """Before there is a run, in it, and after it: the next one stops as soon as it has begun."""
    settings = config(tmp_path, max_steps=20)
    trainer = Trainer(Toy(), on_step=lambda step: step.number == 5 and trainer.request_stop("in it"), **settings)
    trainer.request_stop("before it")
    before = trainer.fit()
    assert (before.outcome, before.reason) == ("stopped", "before it") and before.step <= 1
    within = trainer.fit()
    assert (within.outcome, within.reason, within.step) == ("stopped", "in it", 5)
    trainer.request_stop("after it")
    assert trainer.fit().reason == "after it"
    assert trainer.fit().outcome == "completed"
