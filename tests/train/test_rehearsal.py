"""A dry run does once what the run will do, and leaves nothing."""

from pathlib import Path

import pytest
from support.runs import config
from support.toys import Toy, TwoLosses

from accel_train.cli import main
from accel_train.config.schema import TrainConfig
from accel_train.errors import UserError
from accel_train.train.rehearsal import rehearsal, rehearse

PHASES = [{"objectives": ["square"], "length": "5ep", "repeat": 3}, {"objectives": ["absolute"]}]


class Broken(TwoLosses):
    """Fails in its second phase."""

    def loss_step(self, models, batch, totals, objective):
        if objective.name == "absolute":
            raise UserError("this loss needs what the data do not have")
        return super().loss_step(models, batch, totals, objective)


class Counted(Toy):
    """Says how many batches it evaluates, and how large a batch it trains on."""

    def __init__(self) -> None:
        super().__init__()
        self.evaluated, self.trained = 0, []

    def loss_step(self, models, batch, totals, objective):
        self.trained.append(len(batch["index"]))
        return super().loss_step(models, batch, totals, objective)

    def eval_step(self, models, batch):
        self.evaluated += 1
        return super().eval_step(models, batch)


def test_every_phase_takes_a_step(tmp_path):
    result = rehearse(TwoLosses(), TrainConfig(**config(tmp_path / "run", phases=PHASES, max_steps=1000)))
    assert (result.outcome, result.step) == ("completed", 2) and result.metrics
    assert list(tmp_path.iterdir()) == []


def test_it_costs_a_batch_of_the_real_size_and_one_of_the_held_out_data(tmp_path):
    task = Counted()
    rehearse(task, TrainConfig(**config(tmp_path / "run", global_batch_size=16, check_contract=False)))
    assert task.trained == [16] and task.evaluated == 2  # tried out before, evaluated after


def test_a_later_phase_that_cannot_run_is_found(tmp_path):
    with pytest.raises(UserError, match="this loss needs"):
        rehearse(Broken(), TrainConfig(**config(tmp_path / "run", phases=PHASES)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"metric_for_best_model": "los"}, "metric_for_best_model: the evaluation gives no 'los'"),
        ({"early_stopping_patience": 1, "eval_steps": None}, "early_stopping_patience"),
        ({"lr_scheduler_type": "cosin"}, "lr_scheduler_type: unknown 'cosin'"),
        ({"init_from": "nowhere"}, "nowhere"),
    ],
)
def test_what_would_end_the_run_ends_the_dry_run(tmp_path, settings, says):
    with pytest.raises(UserError, match=says):
        rehearse(Toy(), TrainConfig(**config(tmp_path / "run", **settings)))
    assert list(tmp_path.iterdir()) == []


def test_patience_does_not_hide_a_phase():
    given = TrainConfig(phases=PHASES, early_stopping_patience=1)  # type: ignore[arg-type]
    made = rehearsal(TwoLosses(), given, Path())
    assert made.early_stopping_patience == 3 and made.max_steps == 2


def test_the_run_itself_is_not_touched(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sizes = {"d_model": 8, "nhead": 2, "num_layers": 1, "eval_rows": 16}
    small = ["--task=collatz", *(f"--task.init_args.{name}={size}" for name, size in sizes.items())]
    small += ["--max_steps=3", "--global_batch_size=4", "--output_dir=runs/x"]
    assert main(["train", *small, "--dry_run"]) == 0
    out = capsys.readouterr().out
    assert "dry run: data, 1 step, an evaluation and a checkpoint are fine; nothing is kept" in out
    assert "go on" not in out and "train longer" not in out
    assert list(Path("runs").iterdir()) == []
    assert main(["train", *small, "--report_to=[]"]) == 0
    before = {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()}
    assert main(["train", *small, "--dry_run", "--seed=5"]) == 0
    assert {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()} == before
