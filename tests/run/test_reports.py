"""What a task says of its metrics."""

from __future__ import annotations

import pytest
from support.toys import Toy

from accel_train.run.reports import summary_of


class Says(Toy):
    def summary(self, metrics):
        return f"loss {metrics['loss']}"


@pytest.mark.parametrize(("metrics", "said"), [({"loss": 2}, "loss 2"), ({}, "")])
def test_a_run_without_evaluations_has_nothing_to_sum_up(tmp_path, metrics, said):
    assert summary_of(Says(), metrics, tmp_path) == said
    assert not (tmp_path / "errors").exists()
