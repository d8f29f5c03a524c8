"""A batch of bundles as critic and generator see it: true, generated, and in between."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from accel_train import keyed
from accel_train.task import Batch, Objective
from accel_train.tasks.muon.losses import between, penalty, slopes
from accel_train.tasks.muon.model import owners


def draw(
    generator: Any, conditions: Tensor, counts: Tensor, event: Tensor, key: Tensor, purpose: tuple[int | str, ...] = ()
) -> tuple[Tensor, Tensor]:
    """Generated muons, normalised, [M, F], and a key for each, int64 [M].

    Args:
        conditions: normalised, [B, C].
        counts, event: how many muons each event has, int64 [B], and the event of each, int64 [M].
        key: int64 [B]. All noise is a function of it, of the muon's number in its event, and of the purpose.
    """
    number = torch.arange(len(event), device=event.device) - (counts.cumsum(0) - counts)[event]
    of_event = keyed.tensor_keys(keyed.key("event", *purpose), key)
    of_muon = keyed.tensor_keys(keyed.key("muon", *purpose), key[event], number)
    per_event, per_muon = generator.latent_dims
    noise = keyed.tensor_normal(of_event, per_event), keyed.tensor_normal(of_muon, per_muon)
    return generator(conditions, counts, event, *(part.to(conditions.dtype) for part in noise)), of_muon


class Bundles:
    """One micro-batch, normalised.

    All noise is a function of the event's key, the muon's number, and which update it is for, so that it is the same
    however the batch was cut.

    Args:
        keep_empty: score events without muons too; otherwise they are left out, as nothing can be learned from them.
    """

    def __init__(self, models: dict[str, Any], batch: Batch, objective: Objective, keep_empty: bool = False) -> None:
        self.generator, self.critic = models["generator"], models["critic"]
        self.dtype = next(self.generator.parameters()).dtype
        self.update = (objective.name, objective.repeat)
        primary, counts, self.key = batch["primary"], batch["counts"], batch["key"]
        if not keep_empty:
            primary, counts, self.key = (values[batch["some"]] for values in (primary, counts, self.key))
        self.counts, self.muons = counts, batch["muons"].to(self.dtype)
        self.event = owners(counts, len(self.muons))
        self.conditions = self.generator.normalise.encode_conditions(primary.to(self.dtype))

    def fake(self) -> Tensor:
        """As many generated muons in every event as there are true ones, normalised, [M, F]."""
        return draw(self.generator, self.conditions, self.counts, self.event, self.key, self.update)[0]

    def score(self, muons: Tensor) -> Tensor:
        """[M, F] to [B]."""
        return self.critic(muons, self.conditions, self.counts, self.event).to(self.dtype)

    def gap_and_penalty(self, kind: str, paired: bool) -> tuple[Tensor, Tensor]:
        """Sum over events of the score of truth minus that of generated muons, and sum of the gradient penalty of this
        kind, where muons are ``paired`` as in ``between``."""
        with torch.no_grad():
            fake = self.fake().to(self.dtype)
        real = self.generator.normalise.encode_muons(self.muons)
        events = len(self.counts)
        both = self.critic(
            torch.cat([real, fake]), self.conditions.repeat(2, 1), self.counts.repeat(2),
            torch.cat([self.event, self.event + events]),
        ).to(self.dtype)  # fmt: skip
        gap = both[:events].sum() - both[events:].sum()
        if kind == "none":
            return gap, gap.new_zeros(())
        if kind == "r1":
            points = real.detach().requires_grad_()
        else:
            alpha = keyed.tensor_uniform(keyed.tensor_keys(keyed.key("alpha", *self.update), self.key))[:, 0]
            points = between(real, fake, self.event, alpha.to(self.dtype), paired=paired)
        slope = slopes(self.critic, points, self.conditions, self.counts, self.event)
        return gap, penalty(slope.to(self.dtype), self.event, self.counts, kind)
