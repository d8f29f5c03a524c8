"""Long steps: exact arithmetic, rows by index, numbers that are held out, exact shares, and that it learns."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from accel_train import Trainer
from accel_train.errors import UserError
from accel_train.task import Objective
from accel_train.tasks.collatz.cycles import step
from accel_train.tasks.collatz.step.arithmetic import LARGEST, digits_of, long_step, value_of, width_of
from accel_train.tasks.collatz.step.data import Steps, is_held_out
from accel_train.tasks.collatz.step.evaluation import counts, shares
from accel_train.tasks.collatz.step.task import LongStepTask

TINY = dict(base=8, digits=6, d_model=16, num_layers=1, nhead=2, dim_feedforward=32, eval_rows=200)

odd = st.integers(0, LARGEST // 2 - 1).map(lambda i: 2 * i + 1)


def batch_of(task, size=48, split="train", at=0):
    raw = task.build_data(split, size, seed=0).batch(0, at, 0, 1)
    return {name: torch.from_numpy(value) for name, value in raw.items()}


# -- arithmetic ----------------------------------------------------------------------------------------------------


def walked(n):
    """One standard step after the other: up as long as the number stays odd, then down until it is odd again."""
    ups, halvings = 0, 0
    while n & 1:
        n, ups = step(n) >> 1, ups + 1
    while not n & 1:
        n, halvings = n >> 1, halvings + 1
    return n, ups, halvings


@settings(max_examples=100, deadline=None)
@given(st.lists(odd, min_size=1, max_size=50))
def test_a_long_step_is_what_single_steps_give(numbers):
    found = long_step(np.array(numbers, np.uint64))
    assert list(zip(*(each.tolist() for each in found), strict=True)) == [walked(n) for n in numbers]


def test_the_longest_loops():
    ends = [2**k - 1 for k in range(1, 41)] + [(2**k - 1) // 3 for k in range(4, 41, 2)]
    found = long_step(np.array(ends, np.uint64))
    assert list(zip(*(each.tolist() for each in found), strict=True)) == [walked(n) for n in ends]
    assert found.ups.max() == 40 and found.halvings.max() > 30


@settings(max_examples=60, deadline=None)
@given(odd, st.integers(1, 2**20))
def test_the_loops_follow_from_the_lowest_bits_and_no_others(n, other):
    _, k, h = walked(n)
    bits = 2 ** (k + h + 1)
    assert walked(n % bits + bits * other)[1:] == (k, h)
    assert walked(n % bits + bits // 2)[1:] != (k, h)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 64), st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20))
def test_digits_are_the_number(base, numbers):
    assert value_of(digits_of(np.array(numbers, np.uint64), base, 64), base) == numbers


@pytest.mark.parametrize(("base", "last"), [(2, 2**8), (3, 3**6 - 1), (10, 1000), (16, 16**3), (24, 24**2)])
def test_the_width_is_that_of_the_largest_result(base, last):
    largest = max(walked(n)[0] for n in range(1, last, 2))
    assert base ** (width_of(base, last) - 1) <= largest * 2  # the bound is the largest value before any halving
    assert largest < base ** width_of(base, last)


# -- rows ----------------------------------------------------------------------------------------------------------


def rows(held_out=False, seed=3, last=2**20):
    return Steps(seed, last, base=16, width=8, held_out=held_out, length=100)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=40), st.booleans())
def test_a_row_depends_on_its_index_alone(indices, held_out):
    together, one = rows(held_out).read(np.array(indices)), rows(held_out)
    for i, index in enumerate(indices[:5]):
        alone = one.read(np.array([index]))
        assert all((alone[name][0] == together[name][i]).all() for name in alone)


@pytest.mark.parametrize("held_out", [False, True])
def test_rows_are_odd_numbers_of_their_kind_from_the_whole_range(held_out):
    read = rows(held_out).read(np.arange(4000))
    n = read["n"]
    assert (n % 2 == 1).all() and n.min() > 0 and n.max() < 2**20
    assert (is_held_out(n.view(np.uint64)) == held_out).all()
    tenths = np.histogram(n, 10, (0, 2**20))[0] / len(n)
    assert np.abs(tenths - 0.1).max() < 0.03
    assert abs((read["ups"] == 1).mean() - 0.5) < 0.04 and abs((read["halvings"] == 1).mean() - 0.5) < 0.04
    values = value_of(read["result"], 16)
    assert values == long_step(n.view(np.uint64)).result.tolist()
    assert value_of(read["digits"], 16) == n.tolist()
    assert set(rows(held_out, seed=4).draw(np.arange(50)).tolist()) != set(n[:50].tolist())


def test_one_number_in_sixty_four_is_held_out_and_no_digits_give_it_away():
    n = np.arange(1, 2**20, 2, dtype=np.uint64)
    held = is_held_out(n)
    assert abs(held.mean() * 64 - 1) < 0.05
    for place in range(5):
        digit = n >> np.uint64(4 * place) & np.uint64(15)
        share = [held[digit == d].mean() * 64 for d in range(16) if (digit == d).any()]
        assert min(share) > 0.8 and max(share) < 1.2


def test_validation_and_test_have_other_rows():
    task = LongStepTask(**TINY)
    assert not torch.equal(batch_of(task, split="validation")["n"], batch_of(task, split="test")["n"])


# -- the task ------------------------------------------------------------------------------------------------------


def test_shares_of_micro_batches_add_up():
    torch.manual_seed(0)
    task = LongStepTask(**TINY)
    model = task.build_model(None).double()
    batch = batch_of(task)
    totals = {"items": torch.tensor(48)}

    def gradient(batches):
        model.zero_grad()
        losses = [task.loss_step({"model": model}, part, totals, Objective()) for part in batches]
        sum(loss.value for loss in losses).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    whole, cut = gradient([batch]), gradient(task.split(batch, 7))
    assert (whole - cut).norm() < 1e-12 * whole.norm()


def test_metrics_are_those_of_the_rows():
    torch.manual_seed(0)
    task = LongStepTask(**TINY)
    model = task.build_model(None).eval()
    batch = batch_of(task, 200, "validation")
    with torch.no_grad():
        parts = [task.eval_step({"model": model}, part) for part in task.split(batch, 64)]
        logits = model(batch["digits"])
    found = task.eval_metrics({name: sum(part[name] for part in parts) for name in parts[0]})
    right = logits.argmax(-1) == batch["result"]
    assert found["digit"] == pytest.approx(right.double().mean().item(), rel=1e-12)
    assert found["exact"] == right.all(1).double().mean().item()
    loss = task.loss_step({"model": model}, batch, {"items": torch.tensor(200)}, Objective())
    assert found["loss"] == pytest.approx(loss.value.item(), rel=1e-5)
    assert found["exact"] == loss.terms["exact"].item()
    assert found["exact/low"] <= found["exact"] <= found["exact/high"]


def test_a_model_that_knows_some_classes():
    task = LongStepTask(**TINY)
    batch = batch_of(task, 200, "validation")
    knows = (batch["ups"] == 1) & (batch["halvings"] <= 2)
    guess = torch.where(knows[:, None], batch["result"], 7 - batch["result"])
    found = shares(counts(guess, batch))
    assert found["exact/k1_h1"] == found["exact/k1_h2"] == 1.0
    assert all(found[name] == 0 for name in ("exact/k1_h3", "exact/k2_h1", "exact/k2_h2"))
    assert found["exact"] == knows.double().mean().item()


def test_trivial_models_are_judged_on_the_rows_of_the_evaluation():
    task = LongStepTask(**TINY)
    batch = batch_of(task, 200, "validation")
    found = task.baselines()
    assert found["exact:commonest"] < 0.05 < found["exact:table"] < 0.6  # 6 digits of base 8: carries reach few places
    assert found["digit:commonest"] < found["digit:table"]
    train = task._steps(False).read(np.arange(1 << 18))["result"]
    most = torch.tensor([np.bincount(column).argmax() for column in train.T])
    assert found["digit:commonest"] == pytest.approx((batch["result"] == most).double().mean().item(), rel=1e-12)
    batch_of(task, 200, "test")
    assert task.baselines()["digit:table"] != found["digit:table"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"digits": 9}, "digits: 32^9"), ({"digits": 2}, "digits: 32^2"), ({"nhead": 3}, "d_model: 256 must be a mult"),
     ({"base": 65}, "base"), ({"eval_rows": 0}, "eval_rows")],
)  # fmt: skip
def test_bad_arguments_are_refused_by_name(arguments, words):
    with pytest.raises(UserError, match=words.replace("^", r"\^")):
        LongStepTask(**arguments)


def test_a_run_says_what_it_learned(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    task = LongStepTask(**TINY)
    result = Trainer(
        task, output_dir=str(tmp_path / "run"), max_steps=3, global_batch_size=16, learning_rate=1e-3,
        logging_steps=1, report_to=[],
    ).fit()  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert any("(table 0." in line for line in lines) and max(map(len, lines[5:8])) < 150
    assert "of 200 held-out numbers; table" in task.summary(result.metrics)
    assert (tmp_path / "run/figures/evaluation.png").exists()


def test_the_preview_shows_numbers_and_digits():
    task = LongStepTask(**TINY)
    batch = batch_of(task, 4)
    lines = task.preview(batch).splitlines()
    assert len(lines) == 5
    for line, n in zip(lines[1:], batch["n"].tolist(), strict=True):
        result, ups, halvings = walked(n)
        assert line.split()[:4] == [str(n), str(ups), str(halvings), str(result)]


@pytest.mark.slow
def test_the_small_preset_learns_classes_and_beats_the_table(tmp_path):
    from accel_train.config.read import parse

    task, config = parse(["--config", "examples/collatz_step_small.yaml", "--output_dir", str(tmp_path / "run")])
    metrics = Trainer(task, config).fit().metrics
    assert metrics["exact/low"] > task.baselines()["exact:table"] + 0.2
    assert metrics["exact/k1_h1"] > 0.9 and metrics["exact/k1_h2"] > 0.9
    assert metrics["exact/k4_h1"] < 0.2  # not learned yet: classes come one after the other
