"""Ordinary trainings as a user writes them (tests/trainings): each goes on bit for bit, two ranks train the same."""

from __future__ import annotations

import itertools
import json
import re
import runpy
import sys
import tokenize
from pathlib import Path

import pytest
from support.processes import run
from support.runs import assert_same_run, config, distance, records

from accel_train.cli import main

FOLDER = Path(__file__).parent / "trainings"
ROOT = FOLDER.parents[1]
TRAININGS = {
    "bars": "bars.py:BarsTask",
    "datasets": "sines.py:SinesTask",
    "stream": "sines.py:SinesTask",
    "finetuned": "finetuned.py:FineTunedTask",
    "watched": "watched.py:ScoredTask",
    "vae": "vae.py:VAETask",
    "gan": "gan.py:RingTask",
    "converted": "converted.py:ConvertedTask",
}
ARGUMENTS = {"finetuned": {"frozen_steps": 4}, "vae": {"warmup_steps": 8}}


@pytest.fixture(autouse=True)
def own_modules(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])


@pytest.fixture(scope="module")
def waves(tmp_path_factory):
    folder = tmp_path_factory.mktemp("waves")
    sys.path.insert(0, str(FOLDER))
    try:
        import sines

        sines.write_waves(folder)
    finally:
        sys.path.remove(str(FOLDER))
    return str(folder)


@pytest.fixture(params=TRAININGS)
def job(request, waves):
    """Makes the job of this training, in a folder, with further settings."""
    name = request.param
    arguments = {"datasets": {"folder": waves}, "stream": {"folder": waves, "stream": True}} | ARGUMENTS

    def make(folder, dropout=None, **settings):
        given = {"max_steps": 14, "global_batch_size": 24, "eval_steps": 7, "learning_rate": 3e-3}
        more = {} if dropout is None or name not in ("bars", "watched") else {"dropout": dropout}
        described = {"task": f"{FOLDER}/{TRAININGS[name]}", "task_args": arguments.get(name, {}) | more}
        return described | {"config": config(folder, **given | settings)}

    return make


def test_a_training_goes_on_bit_for_bit(job, tmp_path):
    whole = run(job(tmp_path / "whole"))
    for stop in (3, 9, None):
        (piece,) = run(job(tmp_path / "pieces") | {"stop_at": stop and {"step": stop}})
        assert piece["error"] is None
    assert whole[0]["error"] is None and whole[0]["step"] == 14
    assert_same_run(tmp_path / "pieces", tmp_path / "whole")


def test_two_ranks_train_the_same(job, tmp_path):
    whole = job(tmp_path / "one", dropout=0.0)  # masks depend on the cut
    (alone,), (first, second) = run(whole), run(job(tmp_path / "two", dropout=0.0), ranks=2)
    assert [each["error"] for each in (alone, first, second)] == [None] * 3
    assert distance(first["weights"], alone["weights"]) < 1e-3
    for one, other in zip(records(tmp_path / "one"), records(tmp_path / "two"), strict=True):
        for name in ("loss", "critic_loss", "generator_loss", "auc"):
            assert one.get(name, 0.0) == pytest.approx(other.get(name, 0.0), rel=1e-3), name


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Runs a script in an empty folder, as ``python FILE`` does, and returns its names."""
    monkeypatch.chdir(tmp_path)
    return lambda name: runpy.run_path(str(FOLDER / name), run_name="__main__")


def test_early_stopping_fires_and_the_log_has_what_was_added(script):
    script("watched.py")
    status = json.loads(Path("runs/watched/status.json").read_text())
    assert status["state"] == "completed" and "early stopping" in status["reason"], status
    history = json.loads(Path("runs/watched/metrics.json").read_text())
    assert max(history["eval_auc"]) > 0.95 and status["step"] < 400
    assert len([norm for norm in history["own_filters/norm"] if norm is not None]) == len(history["eval_auc"])


def test_a_session_goes_on_in_the_same_interpreter(script):
    cells = script("session.py")
    assert (cells["first"].outcome, cells["first"].reason, cells["first"].step) == ("stopped", "enough", 10)
    assert (cells["second"].step, cells["third"].step) == (40, 60) and cells["scores"].shape == (5, 2)
    assert [step for step in cells["third"].history["step"] if step] == list(range(4, 61, 4))


def test_a_sweep_from_python_and_by_commands(script, capsys):
    rates = script("sweep.py")["RATES"]
    table = capsys.readouterr().out
    assert all(f"{rate:g}" in table.rpartition("accuracy")[2] for rate in rates)
    command = ["train", f"--task={FOLDER}/bars.py:BarsTask", "--max_steps=20", "--global_batch_size=32"]
    assert main([*command, "--eval_steps=10", f"--learning_rate={rates[-1]}", "--output_dir=runs/typed"]) == 0
    assert_same_run("runs/typed", f"runs/sweep/{rates[-1]}")


@pytest.mark.slow
def test_the_converted_training_learns_what_the_plain_one_did(script):
    plain = script("plain_accelerate.py")["best"]
    script("converted.py")
    converted = min(json.loads(Path("runs/converted/metrics.json").read_text())["eval_loss"])
    assert converted == pytest.approx(plain, abs=0.05) and converted < 0.5


# -- how long they are -----------------------------------------------------------------------------------------------


def lines_of_code(path: Path) -> int:
    """Lines with code: no blank ones, comments or docstrings."""
    lines: set[int] = set()
    with path.open("rb") as file:
        tokens = [t for t in tokenize.tokenize(file.readline) if t.type not in (tokenize.COMMENT, tokenize.NL)]
    for before, token in itertools.pairwise(tokens):
        begins = before.type in (tokenize.ENCODING, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
        if not (token.type == tokenize.STRING and begins) and token.string.strip():
            lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines)


def test_the_lines_in_the_recipes_are_those_of_the_files():
    page = (ROOT / "docs/task_recipes.md").read_text()
    rows = re.findall(r"\| \[.*?\]\(\.\./tests/trainings/(\w+\.py)\).*\| (\d+) \|$", page, re.M)
    listed = {name: int(lines) for name, lines in rows}
    assert listed == {path.name: lines_of_code(path) for path in FOLDER.glob("*.py")}
