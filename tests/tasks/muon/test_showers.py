"""Errors are those of independent showers: as large as what other showers would have changed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from accel_train.tasks.muon import synth
from accel_train.tasks.muon.data import HeldOut
from accel_train.tasks.muon.evaluation import floors, metrics, summary
from accel_train.tasks.muon.figures import _empty, _mean, _of_events, _powers, numbers
from accel_train.tasks.muon.metrics import RELATIVE, Sample, correlation, own_errors, sample
from accel_train.tasks.muon.observables import Cells, muon_sums, set_features
from accel_train.tasks.muon.showers import UNITS, units

EDGES = np.array([4.0, 5.5])


def thrown(showers: int, seed: int) -> tuple[Sample, Cells]:
    events = synth.simulate(showers, seed, log10_energy=EDGES)
    cells = Cells.of(events.rows["primary"].astype(np.float64))
    return sample(events, cells), cells


def test_rows_of_a_shower_are_in_one_unit():
    primary = synth.simulate(500, 1).rows["primary"]
    found = units(primary)
    assert set(found) == set(range(UNITS))
    assert (found.reshape(500, 10) == found.reshape(500, 10)[:, :1]).all()


def test_bars_are_as_long_as_what_other_showers_change():
    """Over 30 sets of 300 showers at ten depths; bars from independent rows would be less than half as long."""
    few = np.array([-0.5, 0.5, 1.5, 5.5])
    shown = {
        "mean N": lambda s: numbers(lambda sums: _mean(sums["powers"]), {"powers": _powers(s, EDGES)}),
        "P(N = 0)": lambda s: numbers(lambda sums: _empty(sums["powers"]), {"powers": _powers(s, EDGES)}),
        "share of N = 1": lambda s: numbers(
            lambda sums: sums["entries"][2:3] / sums["entries"].sum(), {"entries": _of_events(s, s.counts, few)}
        ),
        "correlation": lambda s: numbers(
            lambda sums: correlation(sums["moments"][:1]), {"moments": s.muons["unit_moments"]}
        ),
    }
    sets = [thrown(300, seed)[0] for seed in range(30)]
    for name, of in shown.items():
        found = [of(one) for one in sets]
        real = np.std([float(values[0]) for values, _ in found], ddof=1)
        drawn = np.mean([float(bars.mean()) for _, bars in found])
        assert drawn == pytest.approx(real, rel=0.35), name
    by_rows = np.mean([one.counts.std() / np.sqrt(len(one.counts)) for one in sets])
    assert np.std([one.counts.mean() for one in sets], ddof=1) > 1.9 * by_rows


def test_errors_of_the_truth():
    found = [own_errors(*thrown(300, seed)) for seed in range(12)]
    numbers = [thrown(300, seed)[0].counts for seed in range(12)]
    means = np.array([counts.mean() for counts in numbers])
    zeros = np.array([(counts == 0).mean() for counts in numbers])
    assert np.mean([one["mean_n"] for one in found]) == pytest.approx(means.std(ddof=1) / means.mean(), rel=0.4)
    assert np.mean([one["p_zero"] for one in found]) == pytest.approx(zeros.std(ddof=1), rel=0.4)


def evaluated(showers: int) -> tuple[HeldOut, dict[str, float]]:
    """The metrics of a generator that gives the truth."""
    held_out = HeldOut(synth.simulate(showers, 7))
    events = held_out.events
    primary, counts = torch.from_numpy(events.rows["primary"]), torch.from_numpy(events.counts)
    flat = torch.from_numpy(events.flat["muons"]).unbind(1)
    rows = torch.cat([counts[:, None].double(), set_features(counts, *flat)], 1)
    sums = muon_sums(held_out.cells, primary, torch.from_numpy(held_out.unit), counts, *flat)
    perfect = {"nll": torch.zeros(()), "made": rows, "other": rows}
    perfect |= {f"{name}/{key}": values for name in ("made", "other") for key, values in sums.items()}
    return held_out, metrics(held_out, perfect)


def test_what_so_few_showers_cannot_judge_is_left_out_and_said():
    held_out, found = evaluated(120)
    assert set(held_out.uncertain) & set(RELATIVE) and not set(held_out.uncertain) & set(found)
    said = summary(held_out, found).splitlines()[-1]
    worst = next(iter(held_out.uncertain))
    assert said.startswith("left out, since so few showers know") and worst in said and "eval_events" in said
    assert not {name.split(":")[0] for name in floors(held_out)} & set(held_out.uncertain)
    assert {f"{name}/error" for name in ("mean_n", "p_zero") if name in found} <= set(found)


def test_no_floor_is_as_large_as_what_it_should_judge():
    """With as many showers as ``make train TASK=muon`` evaluates."""
    held_out = HeldOut(synth.simulate(4000, 7))
    floor = {name: abs(value) for name, value in held_out.truth_against_truth.items() if name not in held_out.uncertain}
    assert all(value < 0.36 for name, value in floor.items() if name.split("/")[0] in RELATIVE)
    assert floor["mean_n"] < 0.2 and floor["fpd"] < 0.2 and floor["w1_sum_energy"] < 0.05 and floor["p_zero"] < 0.03
