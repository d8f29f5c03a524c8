"""What a task does between two steps, and a loss that changes with the step: on any cut, and through interruptions."""

from __future__ import annotations

import itertools

import pytest
import torch
from support.processes import run
from support.runs import assert_same_run, config, distance, records
from support.toy_gans import Gan
from support.toys import Scheduled, Toy
from torch import nn
from torch._dynamo.testing import CompileCounter

from accel_train import Loss, Trainer
from accel_train.errors import UserError

SETTINGS = {"optimizer": {"init_args": {"weight_decay": 0.3}}, "ema_decay": 0.8}


def job(folder, **settings):
    arguments = {"items": 49, "float64": True}
    return {"task": "Scheduled", "task_args": arguments, "config": config(folder, **SETTINGS | settings)}


def test_what_the_loss_and_the_hook_see(tmp_path):
    seen = []

    def note(step):
        seen.append({name: value.clone() for name, value in trainer.models["model"].state_dict().items()})

    trainer = Trainer(Scheduled(), on_step=note, **config(tmp_path, logging_steps=1, eval_steps=0, **SETTINGS))
    trainer.fit()
    logged = [(r["at"], r["of"]) for r in records(tmp_path)]
    assert logged == [(pytest.approx(step), pytest.approx(step // 7)) for step in range(24)]  # 7 in an epoch
    same = {"0.weight": range(6, 13), "0.bias": range(15, 25)}  # as steps are counted in logs
    for name, numbers in same.items():
        still = [i + 1 for i in range(1, 24) if torch.equal(seen[i][name], seen[i - 1][name])]
        assert still == list(numbers)
    for before, after in itertools.pairwise(seen):
        torch.testing.assert_close(after["follower"], before["follower"].lerp(after["0.weight"], 0.1))


CUTS = [(1, {"micro_batch_size": 3}), (2, {}), (2, {"micro_batch_size": 2}), (3, {})]


def test_cuts_change_nothing(tmp_path):
    (whole,) = run(job(tmp_path / "whole"))
    for i, (ranks, settings) in enumerate(CUTS):
        results = run(job(tmp_path / str(i), **settings), ranks)
        assert [r["error"] for r in results] == [None] * ranks
        assert distance(results[0]["weights"], whole["weights"]) < 1e-8
        assert all(distance(r["weights"], results[0]["weights"]) == 0 for r in results)
        for one, other in zip(records(tmp_path / str(i)), records(tmp_path / "whole"), strict=True):
            assert one.keys() == other.keys() and one["loss"] == pytest.approx(other["loss"], rel=1e-8)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, ranks):
    run(job(tmp_path / "whole"), ranks)
    for stop in (3, 5, 8, 14, 17, None):
        results = run(job(tmp_path / "pieces") | {"stop_at": stop and {"step": stop}}, ranks)
        assert [r["error"] for r in results] == [None] * ranks
    assert_same_run(tmp_path / "pieces", tmp_path / "whole")


def test_a_frozen_model_that_another_objective_reads_stays_frozen(tmp_path):
    class Frozen(Gan):
        def after_step(self, models, step):
            models["critic"].requires_grad_(step < 4)

    seen = []
    trainer = Trainer(
        Frozen(), on_step=lambda step: seen.append(trainer.models["critic"].state_dict()["0.weight"].clone()),
        **config(tmp_path, max_steps=8, eval_steps=0),
    )  # fmt: skip
    trainer.fit()
    assert not torch.equal(seen[3], seen[2])
    assert all(torch.equal(each, seen[3]) for each in seen[4:])


def test_what_no_optimizer_has_cannot_be_freed(tmp_path):
    class Freed(Toy):
        def build_model(self):
            return super().build_model().requires_grad_(False).append(nn.Linear(1, 1))

        def after_step(self, models, step):
            models["model"].requires_grad_(True)

    trainer = Trainer(Freed(), **config(tmp_path))
    with pytest.raises(UserError, match=r"Freed.after_step \(step 1\): model.0.weight was frozen when the models"):
        trainer.fit()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def forward(self, x):
        return self.layer(x).tanh()


class Compiled(Toy):
    def build_model(self):
        return Net()


class WarmUp(Compiled):
    def loss_step(self, models, batch, totals, objective):
        loss = super().loss_step(models, batch, totals, objective)
        return Loss(loss.value * min(1.0, (1 + objective.step) / 10), loss.terms)


def test_a_compiled_model_is_not_compiled_again_for_every_step(tmp_path, monkeypatch):
    counts, real = [], nn.Module.compile
    for task in (Compiled(items=48), WarmUp(items=48)):
        torch._dynamo.reset()
        counter = CompileCounter()
        monkeypatch.setattr(nn.Module, "compile", lambda self, mode=None, c=counter: real(self, backend=c))
        settings = config(tmp_path / type(task).__name__, max_steps=9, eval_steps=0, torch_compile="default")
        Trainer(task, **settings).fit()
        counts.append(counter.frame_count)
    assert counts[0] == counts[1] > 0
