"""What a person hears of a run while it does not train, and of a launch that is not what it seems."""

import json

import pytest
from accelerate.state import AcceleratorState
from support.runs import config
from support.toys import Toy

from accel_train import Observer, Trainer
from accel_train.errors import UserError


class Listener(Observer):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def on_busy(self, what):
        self.heard.append(what)

    def on_evaluate(self, record):
        self.heard.append(f"step {record['step']}")


def test_it_says_how_far_an_evaluation_is(tmp_path):
    listener = Listener()
    Trainer(Toy(), observers=[listener], **config(tmp_path, max_steps=6)).fit()
    evaluating = ["evaluating 1/3", "evaluating 2/3", "evaluating 3/3", "step 6"]  # 21 items in batches of 8
    assert listener.heard == ["trying out the evaluation", *evaluating, "saving"]


@pytest.mark.parametrize(
    ("environment", "warned"),
    [
        ({}, False),  # not by accelerate launch
        ({"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_USE_CPU": "False"}, True),  # single_gpu.yaml
        ({"ACCELERATE_MIXED_PRECISION": "no"}, True),  # multi_gpu.yaml
        ({"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_USE_CPU": "true"}, False),  # cpu.yaml
        ({"ACCELERATE_MIXED_PRECISION": "no", "CUDA_VISIBLE_DEVICES": "-1,-1"}, False),  # cpu_2proc.yaml
    ],
)
def test_gpus_that_are_not_there(tmp_path, monkeypatch, environment, warned):
    for name in ("ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_CPU", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    Trainer(Toy(), **config(tmp_path, max_steps=1)).fit()
    path = tmp_path / "events.jsonl"
    said = [json.loads(line)["title"] for line in path.read_text().splitlines()] if path.is_file() else []
    assert any("launched for GPUs" in title for title in said) == warned


def test_the_gpu_of_a_mac_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.delenv("ACCELERATE_TORCH_DEVICE", raising=False)
    result = Trainer(Toy(), **config(tmp_path / "run", max_steps=1)).fit()
    said = [json.loads(line)["title"] for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert result.step == 1 and any("the GPU of a Mac (mps) has no float64" in title for title in said)
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "mps")
    with pytest.raises(UserError, match="ACCELERATE_TORCH_DEVICE=mps: the GPU of a Mac has no float64"):
        Trainer(Toy(), **config(tmp_path / "other", max_steps=1)).fit()
    AcceleratorState._reset_state(reset_partial_state=True)
