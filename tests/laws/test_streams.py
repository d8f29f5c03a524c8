"""Streams that do not know their length: all ranks end an epoch together, and a resumed run is the same."""

from __future__ import annotations

import pytest
from support.processes import run
from support.runs import assert_same_run, config, samples

SLOW = 0.0004  # seconds a batch, so that it is read ahead where there are workers


def streams(folder, lengths, stop_at=None, announced=None, slow_read=0.0, **settings):
    job = {
        "task": "Streams",
        "task_args": {"lengths": lengths, "announced": announced, "dropout": 0.2, "slow_read": slow_read},
        "config": config(folder, **settings),
        "stop_at": stop_at and {"step": stop_at},
    }
    return run(job, len(lengths))


@pytest.mark.parametrize("reading", [{}, {"num_workers": 2, "slow_read": SLOW}], ids=["in the loop", "ahead"])
@pytest.mark.parametrize("lengths", [[10, 7], [6, 10]])
def test_ranks_of_unequal_length_enter_the_next_epoch_together(tmp_path, lengths, reading):
    results = streams(tmp_path / "whole", lengths)
    places = {}
    for rank, result in enumerate(results):
        assert result["error"] is None
        for step, indices in result["samples"].items():
            epoch, number = indices[0] // 1000, indices[0] % 1000 // 10
            assert step == 10 * epoch + number + 1, "every rank is in the same place"
            places[rank, epoch, number] = True
    assert len(places) == 24 + 2 * min(lengths) + 4, "each batch of each rank once: two epochs and four steps"
    seen = {}
    for stop in (8, 10, 14, 20, None):  # also where an epoch ends that does not know it yet
        pieces = streams(tmp_path / "pieces", lengths, stop, **reading)
        assert pieces[0]["error"] is None and not seen.keys() & samples(pieces).keys()
        seen |= samples(pieces)
    assert seen == samples(results)
    assert_same_run(tmp_path / "pieces", tmp_path / "whole")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_is_as_long_as_it_says(tmp_path, workers):
    (result,) = streams(tmp_path / "1", [7], announced=10, num_workers=workers)
    assert result["error"] == (
        "DataError",
        "the data end after 7 of the 10 batches that steps() announces (while reading epoch 0, batch 7)",
    )
    (result,) = streams(tmp_path / "2", [12], announced=10, num_workers=workers)
    assert result["error"] == (
        "DataError",
        "the data go on after the 10 batches that steps() announces (while reading epoch 0, batch 9)",
    )
    (result,) = streams(tmp_path / "3", [10], announced=10, num_workers=workers)
    assert result["outcome"] == "completed"


def test_a_stream_that_knows_its_first_epoch_only(tmp_path):
    result, *_ = streams(tmp_path, [7], announced=[7, None, None], num_train_epochs=2, max_steps=None)
    assert (result["error"], result["outcome"], result["step"]) == (None, "completed", 14)
