"""Old habits get one line with the right option or command."""

import pytest

from accel_train.cli import main

TAKEN = {
    "--resume=x.pth": "resume: no such option; the same command goes on where its run stopped",
    "--mode=train": "mode: no such option; training and evaluation are commands: accel-train train",
    "--lr=1e-3": "lr: no such option; it is --learning_rate=...",
    "--batch_size=32": "batch_size: no such option; --global_batch_size=... is that of all processes",
    "--epochs=3": "epochs: no such option; the length of a run is --num_train_epochs=...",
    "--gradient_accumulation_steps=2": "gradient_accumulation_steps: no such option; --global_batch_size=...",
}


def refused(arguments, capsys) -> str:
    assert main(["train", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    return said


@pytest.mark.parametrize("option", TAKEN)
def test_options_of_other_trainers(capsys, option):
    assert TAKEN[option] in refused(["--task=collatz", option], capsys)


def test_what_a_task_calls_so_itself_is_named_first(capsys):
    gdynet = ["--task=gdynet", "--task.init_args.train_fnames=x"]
    assert "did you mean task.init_args.epochs?" in refused([*gdynet, "--epochs=3"], capsys)
    assert "accel-train evaluate RUN" in refused([*gdynet, "--mode=train"], capsys)


def test_a_config_of_the_old_trainer(capsys, tmp_path):
    old = tmp_path / "old.yaml"
    old.write_text("model: {tau: 10}\ndata: {train_fnames: [a]}\ntraining: {epochs: 3}\n")
    for arguments in ([f"--config={old}"], ["--task=gdynet", f"--config={old}"]):
        assert f"accel-train gdynet convert {old} --out OURS.yaml" in refused(arguments, capsys)


@pytest.mark.parametrize("option", ["init_from", "resume_from_checkpoint"])
def test_weights_of_another_program(capsys, tmp_path, option):
    (tmp_path / "old.pth").write_bytes(b"PK")
    arguments = ["--task=collatz", "--max_steps=1", f"--output_dir={tmp_path}/run", f"--{option}={tmp_path}/old.pth"]
    said = refused(arguments, capsys)
    assert "old.pth" in said and "(.pth, .pt) are not read; --init_from=RUN begins with those of a run" in said
