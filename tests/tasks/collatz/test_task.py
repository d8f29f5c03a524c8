"""The Collatz task: what the model can see, exact shares, metrics from sums, alerts, and that it learns."""

import itertools
import json
import math

import numpy as np
import pytest
import torch

from accel_train import Trainer, load_exported
from accel_train.errors import UserError
from accel_train.task import Objective
from accel_train.tasks.collatz import data as collatz_data
from accel_train.tasks.collatz.cycles import ClosedOrbit, find_cycle
from accel_train.tasks.collatz.numbers import is_held_out, to_int
from accel_train.tasks.collatz.task import CollatzTask
from accel_train.tasks.collatz.trajectory import exact_trajectory
from accel_train.tasks.collatz.trivial import Trivial

NEXT_PARITY_LIMIT = 2 / 3 * math.log(2)
"""Entropy of the next parity given the last one, far along a trajectory."""
TINY = dict(d_model=16, num_layers=1, nhead=2, dim_feedforward=32, dropout=0.0, max_len=96, prefix=32, eval_rows=256)


def batch_of(task, size=48, split="train", step=0):
    raw = task.build_data(split, size, seed=0).batch(0, step, 0, 1)
    return {name: value if name.startswith("host_") else torch.from_numpy(value) for name, value in raw.items()}


def test_parameter_counts():
    count = lambda task: sum(p.numel() for p in task.build_model(None).parameters())  # noqa: E731
    assert count(CollatzTask(objective="denoising")) == 802_180  # of the guide's model
    assert count(CollatzTask()) == 802_180 - 129  # without the class that is never a target


def test_no_position_sees_what_it_has_to_predict():
    task = CollatzTask(**TINY)
    model = task.build_model(None)
    tokens = batch_of(task)["tokens"][:, :-1]
    changed = tokens.clone()
    changed[:, 60:] = 1 - changed[:, 60:].clamp(max=1)
    (stop, logits), (stop_changed, logits_changed) = model(tokens), model(changed)
    torch.testing.assert_close(logits[:, :60], logits_changed[:, :60])
    torch.testing.assert_close(stop, stop_changed)  # it reads the first 32 tokens only
    assert not torch.allclose(logits[:, 60:], logits_changed[:, 60:])


def test_the_known_formulation_sees_both_targets():
    model = CollatzTask(**TINY, objective="denoising").build_model(None)
    tokens = batch_of(CollatzTask(**TINY))["tokens"][:, :-1]
    changed = tokens.clone()
    changed[:, 61] = 1 - changed[:, 61].clamp(max=1)
    assert not torch.allclose(model(tokens)[1][:, 60], model(changed)[1][:, 60])  # position 60 predicts token 61
    longer = tokens.clone()
    longer[:, 40:] = 2  # only the length differs
    assert not torch.allclose(model(tokens)[0], model(longer)[0])


@pytest.mark.parametrize("objective", ["causal", "denoising"])
def test_the_same_function_in_training_and_evaluation_and_with_less_padding(objective):
    task = CollatzTask(**TINY | {"hard_ratio": 0.0, "normal_range": (10, 2000)}, objective=objective)
    model = task.build_model(None)
    batch = batch_of(task)
    longest = int(batch["steps"].clamp(max=95).sort().values[20])
    short = batch["steps"] <= longest
    assert short.sum() >= 20
    trained = model.train()(batch["tokens"][short, :-1])
    with torch.no_grad():
        evaluated = model.eval()(batch["tokens"][short, :-1])
        cropped = model(batch["tokens"][short, :longest])
    valid = batch["tokens"][short, :-1] != 2
    for other in (evaluated, cropped):
        torch.testing.assert_close(trained[0], other[0], atol=1e-5, rtol=1e-5)
        seen = valid[:, : other[1].shape[1]]
        torch.testing.assert_close(trained[1][:, : seen.shape[1]][seen], other[1][seen], atol=1e-5, rtol=1e-5)


def test_rows_that_end_within_the_prefix_do_not_count_for_the_stopping_time():
    task = CollatzTask(**TINY | {"hard_ratio": 0.0, "normal_range": (10, 200)})
    batch = batch_of(task)
    short = batch["steps"] <= 32
    assert 0 < short.sum() < len(short)
    totals = task.totals({}, batch, Objective())
    assert totals["rows"].tolist() == [(~short).sum(), 0]  # normal, hard
    model = task.build_model(None)
    other = {**batch, "steps": torch.where(short, batch["steps"] + 0, batch["steps"])}
    other["steps"] = torch.where(short, torch.ones_like(batch["steps"]), batch["steps"])
    one = task.loss_step({"model": model}, batch, totals, Objective())
    two = task.loss_step({"model": model}, other, totals, Objective())
    torch.testing.assert_close(one.terms["stop"], two.terms["stop"])


@pytest.mark.parametrize("limit", [1, 7, 20, 48])
def test_shares_of_micro_batches_add_up(limit):
    torch.manual_seed(0)
    task = CollatzTask(**TINY)
    model = task.build_model(None).double()
    batch = batch_of(task)
    parts = task.split(batch, limit)
    assert sum(len(p["steps"]) for p in parts) == 48 and max(len(p["steps"]) for p in parts) <= limit
    assert sorted(n for p in parts for n in p["low"].tolist()) == sorted(batch["low"].tolist())
    totals = task.totals({}, batch, Objective())
    split_totals = [task.totals({}, p, Objective()) for p in parts]
    assert all(sum(t[k] for t in split_totals).equal(totals[k]) for k in totals)

    def gradient(batches):
        model.zero_grad()
        losses = [task.loss_step({"model": model}, b, totals, Objective()) for b in batches]
        sum(loss.value for loss in losses).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()]), sum(loss.value for loss in losses).item()

    terms = task.loss_step({"model": model}, batch, totals, Objective()).terms
    for name, counted in (("stop", totals["rows"]), ("next", totals["tokens"])):
        by_mode = torch.stack([terms[f"{name}/normal"], terms[f"{name}/hard"]])
        assert ((by_mode * counted).sum() / counted.sum()).item() == pytest.approx(terms[name].item(), rel=1e-12)
    (whole, value), (cut, cut_value) = gradient([batch]), gradient(parts)
    assert abs(value - cut_value) < 1e-12 * abs(value)
    assert (whole - cut).norm() < 1e-12 * whole.norm()


def test_split_cuts_padding_but_no_tokens():
    task = CollatzTask(**TINY | {"hard_ratio": 0.5})
    batch = batch_of(task)
    parts = task.split(batch, 12)
    assert parts[0]["tokens"].shape[1] <= parts[-1]["tokens"].shape[1] <= 96
    tokens = sum(int((p["tokens"] != 2).sum()) for p in parts)
    assert tokens == int((batch["tokens"] != 2).sum())


def test_training_and_evaluation_share_no_number():
    task = CollatzTask(**TINY)
    seen = {}
    for split, held in (("train", False), ("validation", True), ("test", True)):
        batch = batch_of(task, 256, split)
        high, low = (batch[k].numpy().view(np.uint64) for k in ("high", "low"))
        assert (is_held_out(high, low) == held).all()
        seen[split] = set(to_int(high, low))
    assert len(seen["validation"] & seen["test"]) < 5  # a number may be drawn twice, rows are not shared


def test_metrics_are_those_of_the_rows():
    torch.manual_seed(0)
    task = CollatzTask(**TINY)
    model = task.build_model(None).double().eval()
    batch = batch_of(task, 256, "validation")
    with torch.no_grad():
        parts = [task.eval_step({"model": model}, p) for p in task.split(batch, 50)]
        predicted, logits = model(batch["tokens"][:, :-1])
    found = task.eval_metrics({k: sum(p[k].double() for p in parts) for k in parts[0]})
    counts = batch["steps"] > 32
    error = (predicted.expm1() - batch["steps"])[counts].abs().numpy()
    target = batch["tokens"][:, 1:].long()
    valid = target != 2
    assert found["mae"] == pytest.approx(error.mean(), rel=1e-9)
    assert found["median"] == np.sort(np.round(error))[math.ceil(0.5 * len(error)) - 1]
    assert found["p99"] == np.sort(np.round(error))[math.ceil(0.99 * len(error)) - 1]
    assert found["accuracy"] == pytest.approx(((logits.argmax(-1) == target)[valid]).double().mean().item(), rel=1e-12)
    cross = torch.nn.functional.cross_entropy(logits[valid], target[valid]).item()
    assert found["next"] == pytest.approx(cross, rel=1e-6)  # logits are summed up in float32
    totals = task.totals({}, batch, Objective())
    loss = task.loss_step({"model": model}, batch, totals, Objective()).value.item()
    assert found["loss"] == pytest.approx(loss, rel=1e-6)
    near = (batch["mode"] == 1) & counts
    one = (predicted.expm1() - batch["steps"])[near].abs().mean().item()
    assert found["mae/near"] == pytest.approx(one, rel=1e-9)
    assert found["rows/counted"] + found["rows/short"] == 256


def test_baselines_are_measured():
    task = CollatzTask(**TINY)
    tokens = batch_of(task, 256, "validation")["tokens"].long()
    train = task._rows(False).read(np.arange(4096))["tokens"].astype(int)
    found = task.baselines()
    odd = {last: (train[:, 1:][train[:, :-1] == last] == 1).sum() for last in (0, 1)}
    even = {last: (train[:, 1:][train[:, :-1] == last] == 0).sum() for last in (0, 1)}
    costs = [
        -math.log(((odd if now else even)[last] + 0.5) / (odd[last] + even[last] + 1))
        for row in tokens.tolist()
        for last, now in itertools.pairwise(row)
        if now < 2
    ]
    assert found["next:bigram"] == pytest.approx(sum(costs) / len(costs), rel=1e-6)
    assert 0.43 < found["next/dense:bigram"] < found["next:bigram"] < NEXT_PARITY_LIMIT
    assert found["next:last8"] < found["next:bigram"]
    assert 0.01 < found["stop:count"] < 0.5 and found["mae/normal:count"] < found["mae:count"]
    batch_of(task, 256, "test")
    assert task.baselines()["next:bigram"] != found["next:bigram"]  # of the rows that are judged
    assert CollatzTask(**TINY, objective="denoising").baselines()["next:leaks, floor"] == 0.0


def test_gains_over_trivial_models_are_paired_by_row():
    torch.manual_seed(0)
    task = CollatzTask(**TINY)
    model = task.build_model(None).eval()
    batch = batch_of(task, 256, "validation")
    with torch.no_grad():
        parts = [task.eval_step({"model": model}, part) for part in task.split(batch, 100)]
    found = task.eval_metrics({name: sum(part[name].double() for part in parts) for name in parts[0]})
    known = task.baselines()
    for term, name in (("next", "bigram"), ("next", "last8"), ("stop", "count")):
        for mode in ("", "/normal", "/dense"):
            gain = found[f"gain/{term}/{name}{mode}"]
            assert gain == pytest.approx(known[f"{term}{mode}:{name}"] - found[f"{term}{mode}"], abs=1e-6)
            assert found[f"gain/{term}/{name}{mode}/low"] < gain < found[f"gain/{term}/{name}{mode}/high"]
    lines = task.summary(found).splitlines()
    assert len(lines) == 11 and "bigram" in lines[1] and "count" in lines[2] and max(map(len, lines)) < 120
    assert CollatzTask(**TINY, objective="denoising").summary({}) == ""


def test_a_trivial_model_looks_only_back():
    tokens = batch_of(CollatzTask(**TINY))["tokens"]
    model = Trivial(tokens, torch.full((48,), 40), order=3, prefix=32)
    changed = tokens.clone()
    changed[:, 40:] = 1 - changed[:, 40:].clamp(max=1)
    (stop, logits), (stop_changed, logits_changed) = model(tokens[:, :-1]), model(changed[:, :-1])
    assert torch.equal(stop, stop_changed) and torch.equal(logits[:, :40], logits_changed[:, :40])
    assert torch.allclose(logits.exp().sum(-1), torch.ones(48, 95, dtype=torch.float64))


def alerts(task, models, batch):
    with torch.no_grad():  # as the loop does
        return list(task.monitor(models, batch))


class Oracle(torch.nn.Module):
    """Knows log(1 + T) of every row of one batch, give or take a little noise."""

    def __init__(self, steps):
        super().__init__()
        self.answers = torch.log1p(steps.double()) + 0.05 * torch.randn(
            len(steps), generator=torch.Generator().manual_seed(0)
        )

    def forward(self, tokens):
        return self.answers, torch.zeros(*tokens.shape, 2)


def test_an_alert_names_the_number_exactly_and_a_wrong_label_is_told_apart():
    task = CollatzTask(**TINY)
    batch = batch_of(task)
    model = Oracle(batch["steps"])
    assert alerts(task, {"model": model}, batch) == []
    row = int(torch.where(batch["mode"] == 1)[0][0])
    n = (int(batch["high"][row]) << 64) + int(batch["low"][row]) % 2**64
    model.answers[row] += 3.0
    (event,) = alerts(task, {"model": model}, batch)
    assert event.kind == "anomaly" and "WRONG" not in event.title
    assert event.fields["n"] == str(n) and event.fields["T"] == exact_trajectory(n)[1]
    model.answers[row] -= 3.0
    batch["steps"][row] *= 20  # as if the generator had lost a carry
    (event,) = alerts(task, {"model": model}, batch)
    assert "WRONG LABEL" in event.title and event.fields["T"] == exact_trajectory(n)[1] != event.fields["label"]


def test_a_closed_orbit_is_reported_and_its_row_counts_for_nothing(monkeypatch):
    task = CollatzTask(**TINY)
    source = task.build_data("train", 16, seed=0)
    victim = to_int(*task._train_rows.numbers.draw(np.arange(16))[:2])[3]
    real = collatz_data.trajectories

    def trajectories(high, low, max_len):
        if victim in to_int(high, low):
            cycle = find_cycle(5, 3, -1)
            object.__setattr__(cycle, "start", victim)
            raise ClosedOrbit(cycle)
        return real(high, low, max_len)

    monkeypatch.setattr(collatz_data, "trajectories", trajectories)
    batch = {k: torch.from_numpy(v) for k, v in source.batch(0, 0, 0, 1).items()}
    assert batch["steps"][3] == 0 and (batch["tokens"][3] == 2).all()
    events = alerts(task, {"model": task.build_model(None)}, batch)
    assert [e.kind for e in events] == ["cycle"] and events[0].fields["start"] == str(victim)
    assert alerts(task, {"model": task.build_model(None)}, batch) == []  # told once


@pytest.mark.parametrize(
    "arguments, word",
    [({"nhead": 3}, "nhead"), ({"prefix": 500}, "prefix"), ({"dropout": 1.0}, "dropout"),
     ({"hard_ratio": 2}, "hard_ratio"), ({"num_layers": 0}, "num_layers")],
)  # fmt: skip
def test_bad_arguments_are_refused_by_name(arguments, word):
    with pytest.raises(UserError, match=word):
        CollatzTask(**arguments)


def test_synth_writes_exact_rows(tmp_path):
    import pyarrow.parquet as pq

    CollatzTask.synth(tmp_path, seed=3, size=50)
    table = pq.read_table(tmp_path / "collatz.parquet").to_pylist()
    assert len(table) == 50
    for row in table[:20]:
        tokens, steps = exact_trajectory(int(row["n"]))
        assert row["T"] == steps and row["tokens"] == tokens[:500]
    about = json.loads((tmp_path / "metadata.json").read_text())
    steps = [row["T"] for row in table]
    assert (about["seed"], about["size"]) == (3, 50)
    assert about["truth"] == {"mean_T": sum(steps) / 50, "largest_T": max(steps)}
    with pytest.raises(UserError, match="size: 0 is out of range"):
        CollatzTask.synth(tmp_path / "none", size=0)


def test_a_short_run_reaches_the_floor_and_not_below(tmp_path, capsys):
    task = CollatzTask(**TINY | {"d_model": 32, "prefix": 32, "max_len": 64, "eval_rows": 512})
    result = Trainer(
        task, output_dir=str(tmp_path / "run"), max_steps=150, global_batch_size=64, learning_rate=4e-3,
        lr_scheduler_type="cosine", logging_steps=50, monitor_steps=50, report_to=[],
    ).fit()  # fmt: skip
    assert 0.44 < result.metrics["next"] < NEXT_PARITY_LIMIT + 0.015
    assert "(bigram 0.4" in capsys.readouterr().out
    _, models, about = load_exported(tmp_path / "run" / "model")
    assert about["step"] == 150 and not models["model"].bidirectional


@pytest.mark.slow
def test_the_small_preset_gains_a_little_on_trivial_models(tmp_path):
    from accel_train.config.read import parse

    task, config = parse(["--config", "examples/collatz_small.yaml", "--output_dir", str(tmp_path / "run")])
    result = Trainer(task, config).fit()
    assert abs(result.metrics["next"] - NEXT_PARITY_LIMIT) < 0.01  # far above 0.40, where copying would begin
    assert result.metrics["gain/stop/count/low"] > 0 and result.metrics["gain/next/bigram/low"] > 0
    waits = [w / s for w, s in zip(result.history["wait_s"], result.history["step_s"], strict=True)]
    assert sum(waits) / len(waits) < 0.05


@pytest.mark.parametrize("rows", [0, 1])
def test_figures_of_next_to_nothing(rows):
    pytest.importorskip("matplotlib")
    from accel_train.tasks.collatz.figures import ERRORS, GRID, MODES, figures

    sums = {
        "grid": torch.zeros(GRID, GRID),
        "errors": torch.zeros(len(MODES), len(ERRORS)),
        "confusion": torch.zeros(2, 2),
    }
    for values in sums.values():
        values.view(-1)[0] = rows
    metrics = {"mae": 0.0, "median": 0.0, "p99": 0.0, "next": float("nan"), "stop": 0.0}
    figures(metrics, sums, {"next:leaks, floor": 0.0})["evaluation"].canvas.draw()
