"""What the examples give to torchrun and to Kubernetes: options that exist, and parts that fit together."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.processes import ROOT

from accel_train.config.read import parse


def launched(arguments: list[str]) -> Any:
    """What torchrun makes of its arguments; those of the trainer are tried, too, with a config that is there."""
    from torch.distributed.run import get_args_parser

    options = get_args_parser().parse_args(arguments)
    assert options.module and options.training_script == "accel_train" and options.training_script_args[0] == "train"
    given = [each for each in options.training_script_args[1:] if each.startswith("--") and "--config" not in each]
    _, config = parse([f"--config={ROOT}/examples/collatz_small.yaml", *given])
    assert config.requeue_exit_code == 85
    return options, config


def test_kubernetes():
    service, job = yaml.safe_load_all((ROOT / "examples" / "kubernetes.yml").read_text())
    spec = job["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    options, config = launched(container["args"])
    assert container["command"] == ["torchrun"] and spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] == int(options.nnodes)
    assert service["spec"]["clusterIP"] == "None" and service["spec"]["selector"] == {
        "job-name": job["metadata"]["name"]
    }
    assert pod["subdomain"] == service["metadata"]["name"]
    host, port = options.rdzv_endpoint.split(":")
    assert host == f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert int(port) in [each["containerPort"] for each in container["ports"]]
    claims = {volume["name"] for volume in pod["volumes"] if "persistentVolumeClaim" in volume}
    shared = [mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] in claims]
    assert any(Path(config.output_dir).is_relative_to(path) for path in shared)


@pytest.mark.parametrize("arguments", [["FILE.yaml", "--output_dir=runs/x"], []], ids=["", "nothing given"])
def test_torchrun(tmp_path: Path, arguments: list[str]):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "torchrun").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "bin" / "torchrun").chmod(0o755)
    done = subprocess.run(
        ["bash", str(ROOT / "examples" / "torchrun.sh"), *arguments], capture_output=True, text=True,
        env=os.environ | {"VENV": str(tmp_path), "MAIN": "node01", "NODES": "1:4"},
    )  # fmt: skip
    if not arguments:
        assert done.returncode == 2 and done.stderr.startswith("usage:")
        return
    options, config = launched(done.stdout.splitlines())
    assert options.nnodes == "1:4" and options.rdzv_endpoint == "node01:29400" and config.output_dir == "runs/x"
