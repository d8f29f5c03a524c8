"""The shell is offered what may come next, and only that."""

import shutil
import subprocess

import pytest

from accel_train.cli import COMMANDS, main
from accel_train.registry import TASKS

TYPED = [
    ("", {"init ", "train ", "muon ", "--help "}, {"merge "}),
    ("stat", {"status "}, {"stop "}),
    ("train --mixed_precision=b", {"--mixed_precision=bf16 "}, {"--mixed_precision=no "}),
    ("train --task=co", {"--task=collatz "}, {"--task=muon "}),
    ("train --task mu", {"muon "}, {"collatz "}),
    ("train --task=collatz --task.init_args.d", {"--task.init_args.d_model="}, {"--seed="}),
    ("train --task collatz --optimizer.", {"--optimizer.class_path="}, {"--task.init_args.d_model="}),
    ("train --task=colatz --se", set(), {"--seed="}),
    ("train --config nowhere.yaml --se", set(), {"--seed="}),
    ("train --config ", set(), {"--seed="}),
    ("synth c", {"collatz "}, {"muon "}),
    ("synth collatz --o", {"--out "}, {"collatz "}),
    ("runs ", {"merge ", "spread "}, {"--mode "}),
    ("runs merge --", {"--mode ", "--dst "}, {"--details "}),
    ("runs merge --mode ", {"symlink ", "copy "}, {"--mode "}),
    ("muon ", {"generate "}, {"train "}),
    ("muon generate --", {"--out "}, {"generate "}),
    ("nonsense --", set(), {"--help "}),
]


def offered(monkeypatch, capsys, typed: str, word: str) -> set[str]:
    line = f"accel-train {typed}"
    monkeypatch.setenv("COMP_LINE", line + " and more behind")
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    assert main(["completion", "accel-train", word, "before"]) == 0
    return set(capsys.readouterr().out.splitlines())


@pytest.mark.parametrize(("typed", "there", "not_there"), TYPED)
def test_what_is_offered(monkeypatch, capsys, typed, there, not_there):
    found = offered(monkeypatch, capsys, typed, typed.split(" ")[-1])
    assert there <= found and not (not_there & found) and (there or not found)


def test_behind_an_equals_sign_only_the_rest_is_wanted(monkeypatch, capsys):
    assert offered(monkeypatch, capsys, "train --task=mu", "mu") == {"muon "}
    assert offered(monkeypatch, capsys, "train --task=", "") == {f"{name} " for name in TASKS}


@pytest.mark.parametrize("command", [name for name, command in COMMANDS.items() if not command.raw])
def test_every_command_offers_its_options(monkeypatch, capsys, command):
    assert "--help " in offered(monkeypatch, capsys, f"{command} --", "--")


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_the_printed_line_works_in_bash(capsys):
    assert main(["completion"]) == 0
    line = next(each.strip() for each in capsys.readouterr().out.splitlines() if each.strip().startswith("complete "))
    done = subprocess.run(["bash", "-c", f"{line}; complete -p accel-train"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == line, done.stderr
