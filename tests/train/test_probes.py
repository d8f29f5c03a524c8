"""Looks at training batches: when, at what, and the words for a first batch."""

import hashlib
import json
import re
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.processes import run
from support.runs import config
from support.toys import Toy

from accel_train import Trainer
from accel_train.tracking.observer import Observer
from accel_train.train.probes import Probes, describe


def test_the_words_for_a_batch():
    x = torch.arange(24, dtype=torch.float64).reshape(12, 2)
    event = describe(7, {"x": x, "n": torch.tensor(3), "none": torch.zeros(0, 4), "names": ["a"], "ok": x > 20})
    digest = hashlib.sha1(x[:8].numpy().tobytes()).hexdigest()[:12]
    assert (event.kind, event.title) == ("note", "first batch of this session, step 7")
    assert event.fields["x"] == f"float64 [12, 2] 0 / 11.5 / 23 sha1 {digest}"
    assert re.fullmatch(r"int64 \[\] 3 / 3 / 3 sha1 [0-9a-f]{12}", event.fields["n"])
    assert event.fields["none"] == "float32 [0, 4]"
    assert event.fields["names"] == "list"
    assert event.fields["ok"].startswith("bool [12, 2] 0 / 0.125 / 1 sha1 ")


def words(value) -> str:
    return describe(1, {"x": value}).fields["x"]


@given(st.lists(st.integers(-1000, 1000), min_size=1, max_size=24), st.integers(0, 7), st.integers(1, 9))
@settings(max_examples=50, deadline=None)
def test_a_digest_tells_batches_apart_and_repeats(values, row, change):
    value = torch.tensor(values, dtype=torch.float32).reshape(-1, 1)
    assert words(value) == words(value.clone()) == words(value.repeat(1, 2)[:, :1])  # strides do not matter
    other = value.clone()
    other[min(row, len(value) - 1)] += change
    assert words(other)[-12:] != words(value)[-12:]


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.uint8, torch.int32, torch.complex64, torch.bool]
)
def test_every_type_has_words(dtype):
    text = words(torch.ones(3, 2).to(dtype))
    assert text.startswith(f"{str(dtype)[6:]} [3, 2] 1 / 1 / 1 sha1 ")


def test_what_is_not_finite_shows():
    assert words(torch.tensor([1.0, float("nan")])).startswith("float32 [2] nan / nan / nan")


# -- in a run --------------------------------------------------------------------------------------------------------


class Eyes(Observer):
    def __init__(self):
        self.seen = []

    def on_histograms(self, step, values):
        self.seen.append((step, {name: value.clone() for name, value in values.items()}))


def events(folder) -> list[dict]:
    path = folder / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_every_session_says_its_first_batch(tmp_path, capsys):
    for resume in ("auto", "auto", "never"):
        job = {"config": config(tmp_path, report_first_batch=True, resume_from_checkpoint=resume)}
        (result,) = run(job | {"stop_at": {"step": 5, "at_once": True}})
    found = [event for event in events(tmp_path) if event["title"].startswith("first batch")]
    assert [event["title"] for event in found] == [f"first batch of this session, step {n}" for n in (1, 6, 1)]
    first, second, again = (event["fields"] for event in found)
    assert first == again != second
    assert list(first) == ["index", "x", "y", "mask"] and first["x"].startswith("float32 [8, 1, 4] ")
    assert "note: first batch of this session, step 6  index int64 [8] " in capsys.readouterr().out
    assert result["error"] is None


def test_only_rank_0_speaks_of_its_batch(tmp_path):
    results = run({"config": config(tmp_path, max_steps=3, report_first_batch=True)}, 2)
    (found,) = [event for event in events(tmp_path) if event["title"].startswith("first batch")]
    assert found["fields"]["index"].startswith("int64 [4] ")
    assert all(result["error"] is None for result in results)


def test_histograms_are_of_the_very_batch_and_at_the_very_step(tmp_path):
    eyes = Eyes()
    settings = config(tmp_path, max_steps=12, eval_steps=0, logging_steps=100, histogram_steps=5)
    trainer = Trainer(Toy(), observers=[eyes], **settings)
    trainer.fit()
    assert [step for step, _ in eyes.seen] == [5, 10]
    source = Toy().build_data("train", 8, 0)
    for step, values in eyes.seen:
        epoch, number = divmod(step - 1, 7)  # 50 items in batches of 8
        assert np.array_equal(values["data/y"].numpy(), source.batch(epoch, number, 0, 1)["y"])


def test_a_look_comes_once_a_step_and_needs_no_share():
    """A synchronisation point may come twice after a step; a rank may have no items."""
    calls = []

    class Ranks:
        is_main = True

        def gather(self, value):
            return [value]

    class Task:
        def monitor(self, models, batch):
            raise AssertionError

        histograms = monitor

    session = SimpleNamespace(
        task=Task(), ranks=Ranks(), observers=SimpleNamespace(call=lambda *what: calls.append(what)),
        stepper=SimpleNamespace(whole_weights=nullcontext),
        config=SimpleNamespace(monitor_steps=2, histogram_steps=3, report_first_batch=True),
    )  # fmt: skip
    look = Probes(session)  # type: ignore[arg-type]
    for step in (1, 3, 3, 6, 6):
        look.run(step, [])
    assert calls == [("on_histograms", 3, {}), ("on_histograms", 6, {})]
    assert look.next_steps(6) == [8, 9] and look.next_steps(0) == [2, 3]
    look.config.monitor_steps = look.config.histogram_steps = 0
    assert look.next_steps(6) == []
