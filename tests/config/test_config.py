"""The typed config: files and options, what makes another run, and what it says of itself."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from support.configurable import KindsTask, PlainTask

from accel_train import Task
from accel_train.config.convert import Typed
from accel_train.config.help import help_text
from accel_train.config.plain import differences, to_dict
from accel_train.config.read import load, parse, read, settings_for
from accel_train.config.schema import OptimizerConfig, PhaseConfig, TrainConfig, WebhookConfig
from accel_train.config.setting import about
from accel_train.data.remote.settings import RemoteFiles
from accel_train.errors import UserError
from accel_train.tasks.collatz.task import CollatzTask

ROOT = Path(__file__).parents[2]


# -- files and options -----------------------------------------------------------------------------------------------


@pytest.fixture
def collatz(tmp_path):
    path = tmp_path / "collatz.yaml"
    path.write_text("task: {class_path: collatz, init_args: {d_model: 32, nhead: 2}}\nmax_steps: 7\nseed: 3\n")
    return str(path)


def test_options_override_files_and_later_ones_earlier_ones(tmp_path, collatz):
    (tmp_path / "more.yaml").write_text("seed: 4\ntask: {init_args: {nhead: 8}}\nwebhook: {milestones: 5}\n")
    more = str(tmp_path / "more.yaml")
    task, found = parse(["--max_steps=9", "--config", collatz, f"--config={more}", "--max_steps=8"])
    assert (found.max_steps, found.seed, found.webhook.milestones, task.nhead, task.d_model) == (8, 4, 5, 8, 32)
    task, found = parse(["--config", more, "--config", collatz, "--task.init_args.d_model=64"])
    assert (found.seed, task.nhead, task.d_model) == (3, 2, 64)
    _, found = parse(["--config", more, "--task=collatz", "--webhook={status_steps: 1}"])
    assert found.webhook == WebhookConfig(status_steps=1), "a whole mapping on the command line replaces"


@pytest.mark.parametrize("name", ["collatz", "accel_train.tasks.collatz.task.CollatzTask"])
def test_every_way_to_name_a_task(tmp_path, name):
    for i, text in enumerate((f"task: {name}", f"task: {{class_path: {name}}}")):
        (tmp_path / f"{i}.yaml").write_text(text)
        assert type(parse(["--config", str(tmp_path / f"{i}.yaml")])[0]) is CollatzTask
    for way in (
        ["--task", name],
        [f"--task={name}"],
        [f"--task.class_path={name}"],
        [f"--task={{class_path: {name}}}"],
    ):
        assert type(parse([*way, "--task.init_args.d_model=16"])[0]) is CollatzTask


def test_the_same_task_keeps_its_arguments_and_another_drops_them(collatz):
    same = parse(["--config", collatz, "--task=collatz"])[0]
    assert same.d_model == 32
    other = ["--config", collatz, "--task.init_args.sizes=[9]", "--task=support.configurable.KindsTask"]
    assert read(other)["task"] == {"class_path": "support.configurable.KindsTask", "init_args": {"sizes": [9]}}
    assert parse(other)[0].sizes == (9,)
    assert read([other[3], "--config", collatz])["task"] == {"class_path": "support.configurable.KindsTask"}
    assert read(["--optimizer.init_args.momentum=0.9", "--optimizer.class_path=SGD"])["optimizer"] == {
        "init_args": {"momentum": "0.9"}, "class_path": "SGD"
    }  # fmt: skip


def test_a_rate_is_recommended_for_an_optimiser():
    """With another one it must be given, anywhere that counts."""

    class RatedTask(Task):
        recommended = {"learning_rate": 5e-4, "optimizer": {"class_path": "AdamW", "init_args": {"weight_decay": 0.1}}}

    for same in ({}, {"class_path": "adamw"}, {"class_path": "torch.optim.AdamW"}):
        assert settings_for(RatedTask, {"optimizer": same}).learning_rate == 5e-4
    with pytest.raises(UserError, match="learning_rate: 0.0005 is what rated recommends for AdamW; with SGD, give one"):
        settings_for(RatedTask, {"optimizer": {"class_path": "SGD"}})
    found = settings_for(RatedTask, {"optimizer": {"class_path": "SGD"}, "learning_rate": 0.5})
    assert found.learning_rate == 0.5 and found.optimizer.init_args == {}
    assert settings_for(RatedTask, {"optimizer": {"class_path": "SGD", "learning_rate": 0.5}}).learning_rate == 5e-4
    assert settings_for(PlainTask, {"optimizer": {"class_path": "SGD"}}) == TrainConfig(
        optimizer=OptimizerConfig("SGD")
    )


def test_options_of_a_schedule_are_recommended_for_that_schedule():
    class ScheduledTask(Task):
        recommended = {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"min_lr": 1e-6}}

    for same in ({}, {"lr_scheduler_type": "cosine"}):
        assert settings_for(ScheduledTask, same).lr_scheduler_kwargs == {"min_lr": 1e-6}
    assert settings_for(ScheduledTask, {"lr_scheduler_type": Typed("constant")}).lr_scheduler_kwargs == {}


def test_load_says_where_there_is_no_run(tmp_path):
    with pytest.raises(UserError, match="no config.yaml there; is it a run folder?"):
        load(tmp_path)


# -- resuming with another config ------------------------------------------------------------------------------------


def test_differences_tell_what_makes_another_run():
    old = to_dict(PlainTask(), TrainConfig(max_steps=5))
    assert differences(old, old) == ([], [])
    new = to_dict(PlainTask(), TrainConfig(max_steps=9, seed=1, webhook={"milestones": 3}))  # type: ignore[arg-type]
    assert differences(old, new) == (["max_steps: 5 -> 9", "webhook.milestones: 0 -> 3"], ["seed: 0 -> 1"])
    old, new = (to_dict(KindsTask(folder=Path(p), text=t), TrainConfig()) for p, t in (("a", "x"), ("b", "y")))
    free, identity = differences(old, new, movable=("folder",))
    assert free == ["task.init_args.folder: a -> b"] and identity == ["task.init_args.text: x -> y"]
    old, new = (
        {"optimizer": {"class_path": one}, "optimizers": {"loss": {"class_path": other}}}
        for one, other in (("Adamw", "torch.optim.sgd.SGD"), ("torch.optim.AdamW", "SGD"))
    )
    assert differences(old, new)[0] == ["optimizers.loss.class_path: torch.optim.sgd.SGD -> SGD"]


# -- help ------------------------------------------------------------------------------------------------------------


def test_help_tells_of_every_option_in_the_words_of_its_declaration():
    text = " ".join(help_text([]).split())
    for f in dataclasses.fields(TrainConfig):
        assert f" --{f.name}" in text, f.name
    for part in ("--optimizer.class_path text any importable optimiser class", "--webhook.url_env text name of the",
                 "--max_steps int|null length of the run in steps (global batches). (default: null; at least 1)",
                 "--mixed_precision no|bf16|fp16|null", "Each has objectives, length, repeat."):  # fmt: skip
        assert part in text, part
    assert "%%" not in text


def test_the_reference_page_is_what_the_declarations_say():
    """python scripts/config_reference.py > docs/config.md"""
    made = subprocess.run([sys.executable, ROOT / "scripts" / "config_reference.py"], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    assert made.stdout == (ROOT / "docs" / "config.md").read_text()
    for f in dataclasses.fields(TrainConfig):
        assert f"| `{f.name}` |" in made.stdout


def test_every_setting_is_one_declaration():
    for cls in (TrainConfig, OptimizerConfig, PhaseConfig, WebhookConfig, RemoteFiles):
        assert all(declared["text"].endswith(".") for declared in about(cls).values()), cls
    another_run = [name for name, declared in about(TrainConfig).items() if declared["identity"]]
    assert another_run == ["seed", "global_batch_size", "per_device_batch_size", "reduction", "reduction_parts"]
    with pytest.raises(UserError, match="^status_steps: -1 is out of range, must be at least 0$"):
        WebhookConfig(status_steps=-1)
    with pytest.raises(UserError, match="^retries: expected int, got 'x'$"):
        RemoteFiles(retries="x")  # type: ignore[arg-type]


@pytest.mark.parametrize("task", ["tcn", "gdynet", "sherlock", "muon", "collatz"])
def test_synth_shows_the_options_of_the_task(task, capsys):
    from accel_train.cli import main

    with pytest.raises(SystemExit):
        main(["synth", task, "--help"])
    out = " ".join(capsys.readouterr().out.split())
    assert f"options of {task}: " in out and "--seed int" not in out
    assert "--kind easy|hard" in out or task != "tcn"
    assert ("--system ferro|prinz|ellipsoids|markov" in out and "--NAME" in out) or task != "gdynet"
