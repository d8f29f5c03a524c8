"""Training from a Pelican federation that misbehaves ends with the weights of training from local files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.federation import Federation
from support.runs import weights_files

from accel_train.tasks.muon import synth


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    folder = tmp_path_factory.mktemp("muons")
    synth.write(folder, seed=3, primaries=60, files=6, row_group=50, log10_energy=(5.0, 6.5))
    return folder


@pytest.fixture
def federation(local, tmp_path):
    objects = {f"/ns/run/{path.name}": path.read_bytes() for path in sorted(local.glob("*.parquet"))}
    with Federation(caches=3, dead=(0,), objects=objects) as started:
        started.authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        yield started


def train(folder: Path, files: str, *options: str, **environment: str) -> subprocess.CompletedProcess:
    command = [
        "--task=muon", f"--task.init_args.files={files}", "--task.init_args.shuffle=files",
        "--task.init_args.held_out=0.3", "--task.init_args.hidden_dim=16", "--task.init_args.critic_steps=1",
        "--task.init_args.lanes=2", "--num_train_epochs=2", "--global_batch_size=64", "--eval_steps=1ep",
        "--report_to=[]", f"--output_dir={folder}", *options,
    ]  # fmt: skip
    return subprocess.run(
        [sys.executable, "-m", "accel_train", "train", *command],
        capture_output=True, text=True, env=os.environ | environment, timeout=120,
    )  # fmt: skip


def misbehave(federation: Federation) -> None:
    federation.fail(500, times=4)
    federation.fail("drop", times=3)
    federation.fail("truncate", times=3)
    federation.fail(503, server="director", times=2)


@pytest.fixture(scope="module")
def reference(local, tmp_path_factory):
    folder = tmp_path_factory.mktemp("local") / "run"
    done = train(folder, f"{local}/*.parquet")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("staged", [False, True], ids=["by ranges", "staged"])
def test_the_same_weights(reference, federation, tmp_path, staged):
    misbehave(federation)
    stage = tmp_path / "stage"
    options = ["--task.init_args.remote.retries=8"]
    if staged:
        options += [f"--task.init_args.remote.staging_dir={stage}", "--task.init_args.remote.ahead=2",
                    "--task.init_args.remote.delete_after_use=true"]  # fmt: skip
    files = federation.url("/ns/run/*.parquet")
    done = train(tmp_path / "run", files, *options, SSL_CERT_FILE=str(tmp_path / "ca.pem"))
    assert done.returncode == 0, done.stderr
    assert weights_files(tmp_path / "run") == weights_files(reference)
    assert all(fault.times == 0 for fault in federation.faults), "all of them happened"
    assert not list(stage.rglob("*.parquet")), "deleted after use"


def test_an_outage_is_not_bad_data(federation, tmp_path):
    federation.fail(503, times=10**9, path="/ns/run/bundles-00002")
    options = ["--task.init_args.remote.retries=1", "--task.init_args.on_bad_file=skip"]
    files = federation.url("/ns/run/*.parquet")
    done = train(tmp_path / "run", files, *options, SSL_CERT_FILE=str(tmp_path / "ca.pem"))
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "bundles-00002.parquet: failed 2 times" in done.stderr and "skip" not in done.stderr


def test_a_token_is_sent_and_never_written(local, tmp_path, reference):
    objects = {f"/ns/run/{path.name}": path.read_bytes() for path in sorted(local.glob("*.parquet"))}
    secret = "very-secret-token"
    with Federation(objects=objects, accepts=lambda token: token == secret) as federation:
        federation.authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        trust = {"SSL_CERT_FILE": str(tmp_path / "ca.pem"), "MY_TOKEN": secret}
        files = federation.url("/ns/run/*.parquet")
        refused = train(tmp_path / "no", files, "--task.init_args.remote.retries=0", **trust)
        assert refused.returncode == 2 and refused.stderr.count("\n") == 1, refused.stderr
        done = train(tmp_path / "run", files, "--task.init_args.remote.token_env=MY_TOKEN", **trust)
    assert done.returncode == 0, done.stderr
    assert weights_files(tmp_path / "run") == weights_files(reference)
    written = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert not any(secret.encode() in path.read_bytes() for path in written)
    assert secret not in done.stdout + done.stderr + refused.stderr
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "completed"
