"""What is written beside the weights: the environment without secrets, and the config."""

import json
import sys

from accel_train.config.yaml_text import loads
from accel_train.run.folder import environment, write_config, write_json


def test_no_secret_in_the_environment(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["accel-train", "train", "--hub_token=abc123", "https://u:abc123@host"])
    monkeypatch.setenv("ACCEL_TRAIN_WEBHOOK_URL", "https://discord.com/api/webhooks/99/abc123")
    about = environment(3, 2, "cpu")
    write_json(tmp_path / "deep" / "environment.json", about)
    text = (tmp_path / "deep" / "environment.json").read_text()
    assert "abc123" not in text and "accel-train train" in text
    assert json.loads(text) == about and (about["seed"], about["world_size"]) == (3, 2)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["environment.json"]


def test_a_config_is_written_as_it_is_read(tmp_path):
    tree = {"output_dir": "1e5", "mixed_precision": "no", "rate": 1e-5, "none": None, "list": [1, "2"]}
    write_config(tmp_path / "config.yaml", tree)
    assert loads((tmp_path / "config.yaml").read_text()) == tree
