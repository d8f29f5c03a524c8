"""The rank that the others wait for is in the log, and named if it stands out."""

from __future__ import annotations

import json

import pytest
import torch
from support.processes import run
from support.runs import config, records

from accel_train.tracking import records as shown
from accel_train.train.scalars import StepScalars, Votes
from accel_train.train.stragglers import Stragglers


def stragglers():
    events = []
    made = Stragglers(events.append)
    made.hosts = [f"node{rank}" for rank in range(4)]
    return made, events


def interval(made, *seconds, steps=10, step_s=0.1):
    made.add([[reading, computing] for reading, computing in seconds], steps)
    return made.take(step_s)


SAME = (0.1, 0.5)


def test_the_slowest_and_its_share():
    made, events = stragglers()
    slow = [SAME, SAME, (0.5, 0.58), SAME]
    assert interval(made, *slow) == {"slowest/rank": 2, "slowest/ratio": pytest.approx(1.8)}
    assert events == [], "once may be chance"
    interval(made, *slow)
    (event,) = events
    assert event.kind == "warning" and event.title == (
        "slowest rank 2 on node2: 1.8x in reading data (108.0 ms of its own in a step, the others 60.0 ms)"
    )
    interval(made, *slow)
    assert len(events) == 1, "said once"
    for _ in range(2):
        interval(made, SAME, SAME, SAME, SAME)
    for _ in range(2):
        interval(made, SAME, (0.1, 0.9), SAME, SAME)
    assert "rank 1 on node1: 1.7x in computing" in events[1].title
    for _ in range(2):
        interval(made, SAME, SAME, SAME, SAME)
    for _ in range(2):
        interval(made, *slow)
    assert len(events) == 3, "again, since it was as the others meanwhile"


@pytest.mark.parametrize(("scale", "step_s"), [(1.0, 1.0), (20.0, 0.02)], ids=["of long steps", "of few, short steps"])
def test_what_does_not_matter_is_not_said(scale, step_s):
    made, events = stragglers()
    for _ in range(5):
        found = interval(made, *((scale * own, 0.0) for own in (0.001, 0.01, 0.001, 0.001)), step_s=step_s)
    assert events == [] and found["slowest/ratio"] == pytest.approx(10)
    assert interval(made, SAME) == {} and made.take(0.1) == {}, "one rank waits for nobody"


def test_parts_of_an_interval_add_up():
    made, _ = stragglers()
    made.add([[0.1, 0.0], [0.0, 0.1]], 1)
    made.add([[0.1, 0.0], [0.0, 0.3]], 1)
    assert made.take(0.1) == {"slowest/rank": 1, "slowest/ratio": pytest.approx(2.0)}


def test_one_all_reduce_has_all_of_it():
    class Ranks:
        rank, world_size, is_main = 1, 3, False
        sent: list[list[float]] = []

        def host_sum(self, tensor):
            self.sent.append(tensor.tolist())
            others = torch.zeros_like(tensor)
            others[-6:] = torch.tensor([1.0, 2.0, 0.0, 0.0, 5.0, 6.0])
            return tensor + others

    ranks = Ranks()
    scalars = StepScalars(ranks)  # pyright: ignore[reportArgumentType]
    scalars.exchange(Votes(stop=1.0), (3.0, 4.0))
    assert scalars.everyone == [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
    assert len(ranks.sent) == 1 and ranks.sent[0][-6:] == [0.0, 0.0, 3.0, 4.0, 0.0, 0.0]


def test_a_slow_reader_of_two_ranks(tmp_path):
    """Found in the log of rank 0 without a further collective."""
    slow = {"slow data": {"rank": 1, "steps": list(range(25)), "seconds": 0.08}}
    run({"config": config(tmp_path, max_steps=20, eval_steps=0, logging_steps=5), "faults": slow}, 2)
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(record["slowest/rank"] == 1 and record["slowest/ratio"] > 1.3 for record in logged[1:])
    assert shown.scalars(logged[1])["slowest/ratio"] == logged[1]["slowest/ratio"]
    assert not any(name.startswith("slowest") for record in logged for name in shown.terms(record))
    assert not any(name.startswith("slowest") for record in records(tmp_path) for name in record)
    events = [json.loads(line)["title"] for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert len([title for title in events if title.startswith("slowest rank 1 on ")]) == 1
