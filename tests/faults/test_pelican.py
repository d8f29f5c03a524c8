"""Training from a Pelican federation that misbehaves ends with the weights of training from local files."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from support.federation import Federation
from support.runs import weights_files

from accel_train import cli
from accel_train.data.remote import requests
from accel_train.tasks.muon import synth


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    folder = tmp_path_factory.mktemp("muons")
    synth.write(folder, seed=3, primaries=60, files=6, row_group=50, log10_energy=(5.0, 6.5))
    return folder


@contextlib.contextmanager
def serving(local: Path, **options) -> Generator[Federation]:
    objects = {f"/ns/run/{path.name}": path.read_bytes() for path in sorted(local.glob("*.parquet"))}
    with Federation(objects=objects, **options) as started:
        started.trust()
        yield started
    requests._filesystems.clear()
    requests._said.clear()


@pytest.fixture
def federation(local):
    with serving(local, caches=3, dead=(0,)) as started:
        yield started


def command(folder: Path, files: str, *options: str) -> list[str]:
    return [
        "train", "--task=muon", f"--task.init_args.files={files}", "--task.init_args.shuffle=files",
        "--task.init_args.held_out=0.3", "--task.init_args.hidden_dim=16", "--task.init_args.critic_steps=1",
        "--task.init_args.lanes=2", "--num_train_epochs=2", "--global_batch_size=64", "--eval_steps=1ep",
        "--report_to=[]", f"--output_dir={folder}", *options,
    ]  # fmt: skip


def train(*arguments: Any) -> tuple[int, str]:
    """In this process: the exit code, and what was said of errors."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as errors:
        return cli.main(command(*arguments)), errors.getvalue()


def misbehave(federation: Federation) -> None:
    federation.fail(500, times=4)
    federation.fail("drop", times=3)
    federation.fail("truncate", times=3)
    federation.fail(503, server="director", times=2)


@pytest.fixture(scope="module")
def reference(local, tmp_path_factory):
    folder = tmp_path_factory.mktemp("local") / "run"
    assert train(folder, f"{local}/*.parquet") == (0, "")
    return folder


@pytest.mark.parametrize("staged", [False, True], ids=["by ranges", "staged"])
def test_the_same_weights(reference, federation, tmp_path, staged):
    misbehave(federation)
    stage = tmp_path / "stage"
    options = ["--task.init_args.remote.retries=8"]
    if staged:
        options += [f"--task.init_args.remote.staging_dir={stage}", "--task.init_args.remote.ahead=2",
                    "--task.init_args.remote.delete_after_use=true"]  # fmt: skip
    code, said = train(tmp_path / "run", federation.url("/ns/run/*.parquet"), *options)
    assert code == 0, said
    assert weights_files(tmp_path / "run") == weights_files(reference)
    assert all(fault.times == 0 for fault in federation.faults), "all of them happened"
    assert not list(stage.rglob("*.parquet")), "deleted after use"


def test_an_outage_is_not_bad_data(federation, tmp_path):
    federation.fail(503, times=10**9, path="/ns/run/bundles-00002")
    options = ["--task.init_args.remote.retries=1", "--task.init_args.on_bad_file=skip"]
    code, said = train(tmp_path / "run", federation.url("/ns/run/*.parquet"), *options)
    assert code == 2 and said.count("\n") == 1, said
    assert "bundles-00002.parquet: failed 2 times" in said and "skip" not in said


def test_a_token_is_sent_and_never_written(local, tmp_path, reference):
    """By the program, so that all that is said is seen, and the certificate is found as by a user."""
    secret = "very-secret-token"
    with serving(local, accepts=lambda token: token == secret) as federation:
        files = federation.url("/ns/run/*.parquet")
        code, refused = train(tmp_path / "no", files, "--task.init_args.remote.retries=0")
        assert code == 2 and refused.count("\n") == 1, refused
        certificate = str(federation.write_certificate(tmp_path / "ca.pem"))
        arguments = command(tmp_path / "run", files, "--task.init_args.remote.token_env=MY_TOKEN")
        done = subprocess.run(
            [sys.executable, "-m", "accel_train", *arguments], capture_output=True, text=True, timeout=120,
            env=os.environ | {"SSL_CERT_FILE": certificate, "MY_TOKEN": secret},
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert weights_files(tmp_path / "run") == weights_files(reference)
    written = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert not any(secret.encode() in path.read_bytes() for path in written)
    assert secret not in done.stdout + done.stderr + refused
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "completed"
