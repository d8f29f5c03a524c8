"""Whole bundles from conditions, and how they compare with the held-out ones."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from accel_train import keyed
from accel_train.errors import NonFiniteError
from accel_train.tasks.muon.adversarial import draw
from accel_train.tasks.muon.metrics import Sample, report, table
from accel_train.tasks.muon.model import owners
from accel_train.tasks.muon.observables import muon_sums, set_features

if TYPE_CHECKING:
    from accel_train.task import Batch
    from accel_train.tasks.muon.data import HeldOut

MANY = 1_000_000
"""So many muons are evaluated in one batch, whatever the truth has."""

SHOWN = 6  # of the metrics that are left out


def generate(
    models: dict[str, Any], primary: Tensor, key: Tensor, max_count: int, counts: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Bundles for these conditions: counts int64 [B], and muons float32 [M, 3] = E [GeV], x [m], y [m].

    Args:
        primary: float32 [B, 4].
        key: int64 [B]; a bundle is a function of its conditions and its key.
        counts: how many muons; None samples them.
    """
    generator = models["generator"]
    dtype = next(generator.parameters()).dtype
    counts = (draw_counts(models, primary, key) if counts is None else counts).clamp(max=max_count)
    conditions = generator.normalise.encode_conditions(primary.to(dtype))
    features, of_muon = draw(generator, conditions, counts, owners(counts, int(counts.sum())), key)
    turn = keyed.tensor_uniform(keyed.tensor_keys(keyed.key("azimuth"), of_muon))[:, 0]
    return counts, generator.normalise.decode_muons(features.float(), turn.float())


def draw_counts(models: dict[str, Any], primary: Tensor, key: Tensor) -> Tensor:
    """How many muons each bundle has, int64 [B]: a function of its conditions and its key."""
    model = models["multiplicity"]
    conditions = model.normalise.encode_conditions(primary.to(next(model.parameters()).dtype))
    if not all(bool(part.isfinite().all()) for part in model(conditions)):
        raise NonFiniteError("the multiplicity network gives values that are not finite, so there is nothing to draw")
    return model.sample(conditions, keyed.tensor_uniform(keyed.tensor_keys(keyed.key("count"), key), 3))


# -- sums over a held-out split ----------------------------------------------------------------------------------------


def statistics(held_out: HeldOut, models: dict[str, Any], batch: Batch, max_count: int) -> dict[str, Tensor]:
    """For bundles generated under the conditions of these events ("made") and of others ("other"): a row per event in a
    table of the whole split, and sums over muons. Beside them the likelihood of the true counts."""
    multiplicity, primary = models["multiplicity"], batch["primary"]
    dtype = next(multiplicity.parameters()).dtype
    conditions = multiplicity.normalise.encode_conditions(primary.to(dtype))
    sums = {"nll": multiplicity.negative_log_likelihood(conditions, batch["counts"]).sum()}
    for name, given in (("made", primary), ("other", batch["other"])):
        counts = draw_counts(models, given, batch["key"]).clamp(max=max_count)
        _refuse_absurd(int(counts.sum()), int(batch["counts"].sum()))
        counts, muons = generate(models, given, batch["key"], max_count, counts)
        energy, x, y = muons.unbind(1)
        features = set_features(counts, energy, x, y)
        rows = torch.cat([counts[:, None].double(), features], 1)
        table = rows.new_zeros(len(held_out), rows.shape[1])
        sums[name] = table.index_copy(0, batch["slot"], rows)
        cells = muon_sums(held_out.cells, primary, batch["unit"], counts, energy, x, y)
        sums |= {f"{name}/{key}": value for key, value in cells.items()}
    return sums


def _refuse_absurd(made: int, true: int) -> None:
    """Before memory is asked for: a network that has diverged may want more muons than any machine can hold."""
    if made > 20 * true + MANY:
        raise NonFiniteError(
            f"the multiplicity network wants {made:,} muons where there are {true:,}: it has diverged, so there is "
            "nothing to compare (a lower learning_rate?)"
        )


def samples(held_out: HeldOut, sums: dict[str, Tensor]) -> dict[str, Sample]:
    """real, fake and shuffled, as ``report`` takes them."""
    real = held_out.real
    found = {"real": real}
    for name, key in (("fake", "made"), ("shuffled", "other")):
        table = sums[key].cpu().numpy()
        muons = {part: sums[f"{key}/{part}"].cpu().numpy() for part in real.muons}
        found[name] = Sample(real.conditions, table[:, 0].astype(np.int64), table[:, 1:], muons)
    return found


def _known(held_out: HeldOut) -> dict[str, float]:
    return {name: value for name, value in held_out.truth_against_truth.items() if name not in held_out.uncertain}


def floors(held_out: HeldOut) -> dict[str, float]:
    """Truth against other truth, for the metrics of all events."""
    found = _known(held_out)
    shown = [name for name, value in found.items() if "/" not in name and "error" not in name and math.isfinite(value)]
    return {f"{name}:truth": found[name] for name in shown}


def metrics(held_out: HeldOut, sums: dict[str, Tensor]) -> dict[str, float]:
    """``loss`` is the Frechet distance of bundles and conditions to truth; ``nll`` that of the counts, in nats."""
    of = samples(held_out, sums)
    floor = _known(held_out)
    found = report(of["real"], of["fake"], of["shuffled"], floor, held_out.cells)
    own = held_out.own_errors
    errors = {f"{name}/error": own[name] for name in own if name in found and "/" not in name}
    nll = float(sums["nll"]) / len(held_out)
    return {"loss": found["fpd"], "nll": nll, **found, **errors}


def summary(held_out: HeldOut, metrics: dict[str, float]) -> str:
    """The table of these metrics, and what is not in it and why."""
    lines = [
        "held-out bundles against: generated ones; other true ones; ones generated for other events' conditions",
        table(metrics),
    ]
    if held_out.uncertain:
        worst = [f"{name} ({error:.0%})" for name, error in held_out.uncertain.items()]
        named = ", ".join(worst[:SHOWN]) + (f" and {len(worst) - SHOWN} more" if len(worst) > SHOWN else "")
        lines.append(f"left out, since so few showers know the truth itself no better than to: {named}; held_out and "
                     "eval_events give more")  # fmt: skip
    return "\n".join(lines)
