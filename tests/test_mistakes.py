"""What newcomers type, tried command by command: exit code 2, one line, and in it what to do instead."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from accel_train.cli import main

TRAIN = ["train", "--task=collatz", "--max_steps=2", "--output_dir=run"]
MUON = ["train", "--task=muon", "--max_steps=2"]

MISTAKES = [
    # after "train --task=collatz --max_steps=2"; words of the line
    ("--lr=1e-3", "lr: no such option", "--learning_rate=..."),
    ("--batch_size=8", "--global_batch_size=..."),
    ("--epochs=3", "--num_train_epochs=..."),
    ("--learning_rate=fast", "learning_rate: expected number, got 'fast'"),
    ("--learning_rate=-1", "out of range, must be at least 0"),
    ("--max_steps=-5", "must be at least 1"),
    ("--global_batch_size=0", "must be at least 1"),
    ("--max_steps=ten", "expected int or null, got 'ten'"),
    ("--max-steps=3", "did you mean max_steps?"),
    ("--task=colatz", "did you mean collatz?"),
    ("--task=nomod.Task", "cannot import 'nomod.Task'"),
    ("--task=json.JSONDecoder", "is not a Task"),
    ("--task.init_args.dmodel=3", "did you mean task.init_args.d_model?"),
    ("--task.init_args.nhead=3", "a multiple of nhead (3)"),
    ("--task.init_args.hard_shares=0.3,0.3,0.4", "(write '[0.3,0.3,0.4]')"),
    ("--config nofile.yaml", "--config nofile.yaml: No such file"),
    ("--config typo.yaml", "max_step: no such option (did you mean max_steps?)"),
    ("--config tab.yaml", "--config tab.yaml: line 2: found character"),
    ("--config omega.yaml", "${oc.env:USER} is not understood", "${NAME}"),
    ("--config https://example.org/x.yaml", "https://example.org/x.yaml: a URL; copy the file first"),
    ("typo.yaml", "(a YAML file is given as --config FILE)"),
    ("--report_to=wandb,tensorboard", "(write '[wandb,tensorboard]')"),
    ("--report_to=[wandb, tensorboard]", "if it belongs to --report_to='[wandb, tensorboard]', put that in quotes"),
    ("--task.init_args.files a b.parquet", "b.parquet: expected --KEY=VALUE", "--task.init_args.files='a b.parquet'"),
    ("--report_to=wanbd", "did you mean wandb?"),
    ("--mixed_precision=bf32", "expected no or bf16 or fp16 or null"),
    ("--mixed_precision=fp16", "fp16 does nothing on a CPU; use bf16 or no"),
    ("--fp16", "--mixed_precision=bf16"),
    ("--bf16=true", "--mixed_precision=bf16"),
    ("--optimizer=adamw", "did you mean optimizer.class_path=adamw?"),
    ("--optimizer.class_path=LBFGS", "a closure", "such as AdamW"),
    ("--weight_decay=0.1", "optimizer.init_args.weight_decay"),
    ("--lr_scheduler_type=cosin", "did you mean cosine?"),
    ("--lr_scheduler_type=cosine --lr_scheduler_kwargs.minlr=1", "did you mean min_lr?"),
    ("--warmup_ratio=0.1", "--warmup_steps=..."),
    ("--resume", "resume: no such option; the same command goes on where its run stopped"),
    ("--resume --max_steps=3", "the same command goes on where its run stopped"),
    ("--resume_from_checkpoint=true", "checkpoint true does not exist", "auto, never or a path"),
    ("--resume_from_checkpoint=https://a.b/x", "resume_from_checkpoint: https://a.b/x is a URL"),
    ("--init_from=hf://a/b", "init_from: hf://a/b is a URL"),
    ("--output_dir=s3://bucket/run", "output_dir: s3://bucket/run is a URL"),
    ("--output_dir=typo.yaml", "output_dir: typo.yaml cannot be made", "is a file"),
    ("--output_dir=/proc/x", "output_dir: /proc/x cannot be made"),
    ("--logging_dir=x", "--output_dir=..."),
    ("--device=cuda", "CUDA_VISIBLE_DEVICES=0", "accelerate launch --num_processes 2 -m accel_train train"),
    ("--device mps", "a GPU is used where there is one"),
    ("--num_processes=2", "accelerate launch --num_processes 2 -m accel_train train"),
    ("--eval_steps=often", "write 1000 or 1000st (steps), 30ep"),
    ("--eval_steps=2h", "2h is wall time", "give steps or epochs"),
    ("--dry_run=true", "the switch --dry_run, without a value"),
    ("--print_config=", "the switch --print_config, without a value"),
    ("--dryrun", "did you mean dry_run?"),
    ("--gradient_accumulation_steps=2", "--micro_batch_size=..."),
    ("--seed=", "seed: expected int"),
]
"""Each as one would type it; the words that its one line must have."""

COMMANDS = [
    (["--config", "typo.yaml"], "--config comes after a command: accel-train train --config"),
    (["typo.yaml"], "accel-train train --config typo.yaml"),
    (["--task=collatz"], "accel-train train --task=collatz"),
    (["trian"], "did you mean train?"),
    (["train", "--task=collatz"], "nothing says when to stop: give max_steps or num_train_epochs"),
    (MUON, "task.init_args.files: missing", "accel-train synth muon --out FOLDER"),
    ([*MUON, "--task.init_args.files=a/*.parquet"], "a/*.parquet: no file matches (relative to {here})"),
    ([*MUON, "--task.init_args.files=a.parquet"], "a.parquet: no such file (relative to {here})"),
    (["train", "--task=gdynet", "--max_steps=2", "--task.init_args.train_fnames=a"], "(relative to {here})",
     "accel-train synth gdynet"),
    (["train", "--task=tcn", "--max_steps=2", "--task.init_args.data=a"], "a: no such folder (relative to {here})",
     "accel-train synth tcn"),
    (["train", "--task=tcn", "--max_steps=2"], "accel-train synth tcn --out FOLDER"),
    (["train", "--task=sherlock", "--max_steps=2", "--task.init_args.data=a"], "accel-train sherlock preprocess",
     "accel-train synth sherlock"),
    (["status", "runs"], "there are runs in it: accel-train runs table runs"),
    (["stop", "runs"], "there are runs in it: one, two"),
    (["evaluate", "runs"], "there are runs in it: one, two"),
    (["evaluate", "nowhere"], "nowhere: no such folder (relative to {here})"),
    (["inspect", "data"], "accel-train inspect TASK --task.init_args.NAME=..."),
    (["inspect", "data/notes.txt"], "neither a config (.yaml) nor a file that a task knows"),
    (["inspect", "colatz"], "'colatz': there is no such file or folder", "did you mean collatz?"),
    (["inspect", "runs/one", "runs/two"], "accel-train runs table FOLDER compares runs"),
    (["evaluate", "runs/one", "--checkpoint=last"], "--checkpoint last: no such folder; it is best, latest, a step"),
    (["export", "runs/one"], "--out"),
    (["runs", "table", "nowhere"], "nowhere: no such folder"),
    (["init", "colatz"], "no task 'colatz'"),
]  # fmt: skip


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("newcomer")
    (folder / "typo.yaml").write_text("task: collatz\nmax_step: 3\n")
    (folder / "tab.yaml").write_text("task: collatz\n\tmax_steps: 3\n")
    (folder / "omega.yaml").write_text("task: collatz\nlr_scheduler_type: ${oc.env:USER}_x\n")
    for name in ("runs/one", "runs/two", "data"):
        (folder / name).mkdir(parents=True)
    for name in ("one", "two"):
        (folder / "runs" / name / "config.yaml").write_text("task: {class_path: collatz}\nmax_steps: 2\n")
        (folder / "runs" / name / "status.json").write_text(json.dumps({"state": "completed", "step": 2}))
    (folder / "data" / "notes.txt").write_text("of a shot\n")
    return folder


def said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    code, printed = main(arguments), capsys.readouterr()
    assert (code, printed.out) == (2, "") and printed.err.count("\n") == 1, printed
    return printed.err


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda each: each[0][:40])
def test_a_mistake_in_an_option(here, monkeypatch, capsys, mistake):
    monkeypatch.chdir(here)
    before = sorted(here.rglob("*"))
    line = said([*TRAIN, *mistake[0].split(" ")], capsys)
    assert all(words in line for words in mistake[1:]), line
    assert sorted(here.rglob("*")) == before, "nothing half-written"


@pytest.mark.parametrize("mistake", COMMANDS, ids=lambda each: " ".join(each[0])[:50])
def test_a_mistake_in_a_command(here, monkeypatch, capsys, mistake):
    monkeypatch.chdir(here)
    line = said(mistake[0], capsys)
    assert all(words.format(here=here) in line for words in mistake[1:]), line


def test_help_is_also_a_command(capsys):
    assert main(["help"]) == 0
    assert capsys.readouterr().out.startswith("usage: accel-train COMMAND")


def test_the_report_of_a_launcher_ends_with_what_was_wrong(here, monkeypatch, capsys):
    """torchrun and accelerate end with a report on each rank, made of this file."""
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(here / "error.json"))
    said([*TRAIN, "--max_step=3"], capsys)
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

    failure = ProcessFailure(local_rank=0, pid=1, exitcode=2, error_file=str(here / "error.json"))
    assert failure.message == "max_step: no such option (did you mean max_steps?)"
