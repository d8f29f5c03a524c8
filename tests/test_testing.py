"""assert_exact passes what keeps the laws, and names the law that a task breaks."""

from __future__ import annotations

import pytest
import torch
from support.toys import Toy

from accel_train import Loss
from accel_train.errors import UserError
from accel_train.testing import assert_exact


class Forgetful(Toy):
    """Keeps in the task what an interruption loses."""

    seen = 0

    def loss_step(self, models, batch, totals, objective):
        self.seen += 1
        loss = super().loss_step(models, batch, totals, objective)
        return Loss(loss.value * (1 + 0.01 * self.seen), loss.terms)


class Noisy(Toy):
    """Draws noise that depends on the cut."""

    def loss_step(self, models, batch, totals, objective):
        noisy = {**batch, "x": batch["x"] + torch.randn_like(batch["x"])}
        return Loss(self._error(models, noisy) / totals["items"])


def test_what_keeps_the_laws():
    assert_exact(Toy())


@pytest.mark.parametrize(("task", "says"), [
    (Forgetful, "trained again, it is not the same: REFUTED, steps 2 to 3: metrics.jsonl: train at step 3"),
    (Noisy, "in micro-batches it is not the same .*: REFUTED, .*: beyond rounding: weights differ by"),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_the_law_that_is_broken_is_named(task: type[Toy], says: str):
    with pytest.raises(AssertionError, match=says):
        assert_exact(task(), check_contract=False)


def test_a_task_that_no_other_process_finds():
    class Hidden(Toy):
        pass

    with pytest.raises(UserError, match="Hidden is defined where no other process can import it"):
        assert_exact(Hidden())
