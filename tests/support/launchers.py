"""One training on several hosts, as launchers start it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from support.lab import Host
from support.long_run import arguments
from support.processes import ROOT

PORT = "29500"
PROGRAM, IMPATIENT = "accel_train", "support.impatient"
SETTINGS: dict[str, Any] = dict(max_steps=60, save_steps=10, eval_steps=20, logging_steps=5, reduction="fixed",
                                reduction_parts=4)  # fmt: skip
"""Of a run whose bits depend on neither hosts nor ranks."""


def train(folder: Path, slow: float = 0.0, **more: Any) -> list[str]:
    return arguments(folder, slow, **SETTINGS | more)


def with_config(folder: Path, command: list[str]) -> list[str]:
    """The same for a script, which wants a config first."""
    (folder / "config.yaml").write_text("seed: 0\n")
    return [str(folder / "config.yaml"), *command[1:]]


def plain(hosts: Sequence[Host], command: list[str], program: str = PROGRAM) -> list[subprocess.Popen[str]]:
    """A rank on each, told by variables who it is, as many schedulers do."""
    meeting = {"WORLD_SIZE": str(len(hosts)), "MASTER_ADDR": hosts[0].name, "MASTER_PORT": PORT, "LOCAL_RANK": "0"}
    return [
        host.start(sys.executable, "-m", program, *command, RANK=str(rank), **meeting)
        for rank, host in enumerate(hosts)
    ]


def torchrun(
    hosts: Sequence[Host], command: list[str], ranks: int = 1, program: str = PROGRAM
) -> list[subprocess.Popen[str]]:
    meeting = [f"--nnodes={len(hosts)}", f"--master-addr={hosts[0].name}", f"--master-port={PORT}"]
    launch = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}", *meeting]
    return [host.start(*launch, f"--node-rank={i}", "-m", program, *command) for i, host in enumerate(hosts)]


def elastic(hosts: Sequence[Host], folder: Path, command: list[str], nodes: str) -> list[subprocess.Popen[str]]:
    """By the script of the examples, on so many machines, which meet on node0; soon, and with a trainer that is soon
    impatient. ``folder``: for the script."""
    script = (ROOT / "examples" / "torchrun.sh").read_text()
    assert "-m accel_train train" in script
    (folder / "torchrun.sh").write_text(script.replace("-m accel_train train", f"-m {IMPATIENT} train"))
    told = {"MAIN": "node0", "NODES": nodes, "VENV": sys.prefix, "PROCESSES": "1", "LAST_CALL": "2"}
    return [host.start("bash", str(folder / "torchrun.sh"), *command, **told) for host in hosts]


def accelerate(
    hosts: Sequence[Host], command: list[str], ranks: int = 1, folder: Path | None = None
) -> list[subprocess.Popen[str]]:
    """``folder``: for a YAML file of each host that says what options say otherwise."""
    started = []
    for i, host in enumerate(hosts):
        options: dict[str, Any] = {
            "num_machines": len(hosts), "machine_rank": i, "num_processes": len(hosts) * ranks,
            "main_process_ip": hosts[0].name, "main_process_port": int(PORT),
        }  # fmt: skip
        config, given = ROOT / "accelerate_configs" / "multi_node.yaml", []
        if folder is not None:
            config = folder / f"{host.name}.yaml"
            written = yaml.safe_load((ROOT / "accelerate_configs" / "multi_node.yaml").read_text())
            config.write_text(yaml.safe_dump(written | options))
        else:
            given = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--config_file", str(config), *given]
        started.append(host.start(*launch, "-m", PROGRAM, *command))
    return started


def outputs(started: Sequence[subprocess.Popen[str]], seconds: float = 120.0) -> list[str]:
    """What each has said, once all have ended. Raises TimeoutExpired if one does not."""
    return [process.communicate(timeout=seconds)[0] for process in started]
