"""Shares that do not add up are found at the first batch, and looking for them leaves no trace."""

import pytest
import torch
from support.processes import run
from support.runs import assert_same_run, config
from support.toys import Toy
from torch import nn

from accel_train import Loss


def warnings(result) -> list[str]:
    return [title for kind, title in result["events"] if kind == "warning"]


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("task", ["Mean", "RaggedMean"])
def test_a_mean_over_the_local_batch(tmp_path, task, ranks):
    for result in run({"task": task, "config": config(tmp_path / "run")}, ranks):
        kind, text = result["error"]
        assert kind == "UserError" and text.startswith(f"{task}.loss_step: the loss of ") and "\n" not in text
        assert "it seems to be a mean over the local batch" in text and "check_contract: false" in text
        assert result["updates"] == []
    assert run({"task": task, "config": config(tmp_path / "run", check_contract=False)}, ranks)[0]["error"] is None


@pytest.fixture
def train_with(tmp_path, monkeypatch):
    def train(batch=8, **methods):
        for name, method in methods.items():
            monkeypatch.setattr(Toy, name, method)
        return run({"config": config(tmp_path / "run", max_steps=2, global_batch_size=batch)})[0]

    return train


def error_per_item(models, batch):
    return ((models["model"](batch["x"])[..., 0] - batch["y"]) ** 2 * batch["mask"]).sum(1)


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        (lambda e, items: e.mean(), "mean over the local batch"),
        (lambda e, items: e.sum() / items + 1.0, "each share must be a sum over its items"),
        (lambda e, items: (e - e.mean()).square().sum() / items, "each share must be a sum over its items"),
        (lambda e, items: torch.logsumexp(e, 0), "each share must be a sum over its items"),
        (lambda e, items: e.max() / items, "each share must be a sum"),
        (lambda e, items: 1e4 * e.mean(), "mean over the local batch"),
        (lambda e, items: 1e-3 * e.mean(), "mean over the local batch"),
    ],
)
def test_losses_that_are_no_shares(train_with, loss, says):
    def loss_step(self, models, batch, totals, objective):
        return Loss(loss(error_per_item(models, batch), totals["items"]))

    kind, text = train_with(loss_step=loss_step)["error"]
    assert kind == "UserError"
    with pytest.raises(AssertionError, match=says):
        raise AssertionError(text)


@pytest.mark.parametrize(
    "loss",
    [
        lambda e, items: e.sum() / items,
        lambda e, items: (e - e.detach()).sum() / items,  # zero, but for its gradient
        lambda e, items: 1e-12 * e.sum() / items,
        lambda e, items: (1e8 + e - 1e8).sum() / items,  # nothing but rounding
        lambda e, items: e.sum() * float("nan"),
    ],
)
def test_losses_that_are_shares(train_with, loss):
    def loss_step(self, models, batch, totals, objective):
        return Loss(loss(error_per_item(models, batch), totals["items"]))

    result = train_with(loss_step=loss_step)
    assert result["error"] is None and not any("halves" in line for line in warnings(result))


def test_totals_that_are_no_sums(train_with):
    kind, text = train_with(totals=lambda self, m, batch, o: {"items": 8, "largest": batch["y"].max()})["error"]
    assert kind == "UserError" and text.startswith(
        "Toy.totals: 'items' is 8 of a batch, but the sum over its halves is 16"
    )


def test_a_split_that_loses_items(train_with):
    def split(self, batch, limit):
        return [batch] if len(batch["x"]) <= limit else [{k: v[:2] for k, v in batch.items()}] * 2

    kind, text = train_with(split=split)["error"]
    assert kind == "UserError" and text == "Toy.split made 2 + 2 items of 8: it must lose and double nothing"


def test_terms_that_are_no_shares_are_a_warning(train_with):
    def loss_step(self, models, batch, totals, objective):
        error = error_per_item(models, batch)
        return Loss(error.sum() / totals["items"], {"mean": error.mean(), "share": error.sum() / totals["items"]})

    result = train_with(loss_step=loss_step)
    assert result["error"] is None
    (line,) = warnings(result)
    assert line.startswith("Toy.loss_step: the term 'mean' is ") and "depend on the cut" in line


@pytest.mark.parametrize("mean", [False, True])
def test_a_loss_that_draws(train_with, mean):
    """It is said; and a mean is found behind the noise."""

    def loss_step(self, models, batch, totals, objective):
        error = error_per_item(models, batch | {"x": batch["x"] + 0.1 * torch.randn_like(batch["x"])})
        return Loss(error.mean() if mean else error.sum() / totals["items"])

    result = train_with(loss_step=loss_step, batch=50)
    if mean:
        assert result["error"][0] == "UserError" and "add up to" in result["error"][1]
    else:
        assert result["error"] is None
        assert [line for line in warnings(result) if "draws random numbers" in line] == warnings(result) != []


def test_dropout_is_no_mistake(tmp_path):
    (result,) = run({"task_args": {"dropout": 0.5}, "config": config(tmp_path / "run", max_steps=2)})
    assert result["error"] is None and result["events"] == []


def test_batch_norm_is_a_warning(train_with):
    def build_model(self):
        return nn.Sequential(nn.Linear(4, 8), nn.Flatten(), nn.BatchNorm1d(8), nn.Linear(8, 1), nn.Unflatten(1, (1, 1)))

    result = train_with(build_model=build_model)
    assert result["error"] is None
    (line,) = warnings(result)
    assert line.startswith("model.2: BatchNorm looks at what a rank has at once")


def test_what_fails_in_eval_mode_only_is_a_warning(train_with):
    def loss_step(self, models, batch, totals, objective):
        if not models["model"].training:
            raise KeyError("losses are for training")
        return Loss(error_per_item(models, batch).sum() / totals["items"])

    result = train_with(loss_step=loss_step)
    assert result["error"] is None
    (line,) = warnings(result)
    assert "could not be seen: KeyError: 'losses are for training'" in line


def test_one_item_cannot_be_cut(train_with):
    result = train_with(batch=1, loss_step=lambda self, m, b, t, o: Loss(error_per_item(m, b).mean()))
    assert result["error"] is None and result["events"] == []


@pytest.mark.parametrize(
    ("task", "arguments", "ranks"),
    [
        ("Toy", {"dropout": 0.3}, 1),
        ("Toy", {"dropout": 0.3}, 2),
        ("Gan", {}, 2),
        ("Mindful", {}, 1),
        ("Mindful", {}, 3),
    ],
    ids=str,
)
def test_bit_for_bit_the_same_run_without_it(tmp_path, task, arguments, ranks):
    for on in (True, False):
        job = {"task": task, "task_args": arguments, "config": config(tmp_path / str(on), check_contract=on)}
        assert [r["error"] for r in run(job, ranks)] == [None] * ranks
    assert_same_run(tmp_path / "True", tmp_path / "False")


@pytest.mark.parametrize("task", ["Toy", "Ragged", "Gan", "Mean"])
def test_in_half_precision(tmp_path, task):
    (result,) = run({"task": task, "config": config(tmp_path / "run", mixed_precision="bf16", max_steps=2)})
    assert bool(result["error"]) == (task == "Mean") and warnings(result) == []
