"""Home folders and environment variables in a config."""

import copy
import dataclasses
import shutil
from pathlib import Path

import pytest
from support.configurable import KindsTask, PlainTask, config

from accel_train import Trainer
from accel_train.config.plain import differences, to_dict
from accel_train.config.read import load, parse
from accel_train.config.schema import TrainConfig
from accel_train.config.yaml_text import loads
from accel_train.errors import UserError


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NUMBER", "3")
    return str(tmp_path / "home")


@pytest.mark.parametrize("text", ["~/x", "${HOME}/x", "$HOME/x", "~/../home/x"])
def test_a_home_folder_is_used_and_written_as_it_was_given(tmp_path, home, text):
    (tmp_path / "config.yaml").write_text(
        f"task: support.configurable.PlainTask\noutput_dir: {text}\ntb_sync_to: {text}\n"
    )
    task, found = load(tmp_path)
    Path(home).mkdir()
    shutil.copy(tmp_path / "config.yaml", home)
    ways = [
        ["--config=~/config.yaml"],
        ["--task=support.configurable.PlainTask", f"--output_dir={text}", f"--tb_sync_to={text}"],
    ]
    made = [found, TrainConfig(output_dir=text, tb_sync_to=text), *(parse(way)[1] for way in ways)]
    for settings_ in made:
        assert Path(settings_.output_dir).resolve() == Path(home, "x") == Path(settings_.tb_sync_to).resolve()
        assert (to_dict(task, settings_)["output_dir"], to_dict(task, settings_)["tb_sync_to"]) == (text, text)
        assert copy.deepcopy(settings_).output_dir.written == text
        assert to_dict(task, dataclasses.replace(settings_, seed=1))["output_dir"] == text


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("folder=~/x", "{home}/x"), ("text=a ${{NUMBER}}", "a 3"), ("text=${{NUMBER}}", "3"), ("note=~/x", "{home}/x"),
        ("note=~", None), ("anything=${{NUMBER}}", "3"), ("anything={{a: [~/x]}}", {"a": ["{home}/x"]}),
        ("names=[~/x]", {"{home}/x"}), ("text=a~/x", "a~/x"), ("text=~5", "~5"), ("text=$5", "$5"),
        ("text=$${{NO_SUCH}}", "${NO_SUCH}"),
    ],
)  # fmt: skip
def test_arguments_of_a_task_are_expanded(home, argument, value):
    task = parse(["--task=support.configurable.KindsTask", f"--task.init_args.{argument.format()}"])[0]
    name = argument.partition("=")[0]
    assert str(task.init_args[name]) == str(value).replace("{home}", home)
    if name in ("text", "note", "anything") and value is not None:
        given_ = loads(argument.format().partition("=")[2])
        assert to_dict(task, TrainConfig())["task"]["init_args"][name] == given_


def test_numbers_may_come_from_the_environment(home):
    found = config("--max_steps=${NUMBER}", "--learning_rate=${NUMBER}e-4", "--webhook.kinds=[start]")
    assert (found.max_steps, found.learning_rate) == (3, 3e-4)
    assert TrainConfig(seed="${NUMBER}").seed == 3  # type: ignore[arg-type]


def test_a_union_with_a_list_keeps_what_was_written(home):
    for given_ in ("~/x", ["~/x", "y"]):
        arguments = [f"--task.init_args.files={given_!s}", "--task.init_args.more=[~/x]"]
        task, _ = parse(["--task=support.configurable.FilesTask", *arguments])
        assert str(task.init_args["files"]) == str(given_).replace("~", home)
        assert to_dict(task, TrainConfig())["task"]["init_args"] == {"files": given_, "more": ["~/x"]}


@pytest.mark.parametrize(
    ("key", "text", "says"),
    [
        ("output_dir", "${NO_SUCH}/x", "output_dir: '${NO_SUCH}/x' needs the environment variable NO_SUCH, which"),
        ("output_dir", "$NO_SUCH/x", "output_dir: '$NO_SUCH/x' needs the environment variable NO_SUCH, which"),
        ("output_dir", "~no_such_user/x", "output_dir: '~no_such_user/x': there is no user 'no_such_user'"),
        ("tb_sync_to", "https://h/x?***", "tb_sync_to: a secret stood where 'https://h/x?***' has ***"),
    ],
)  # fmt: skip
def test_what_cannot_be_expanded_is_refused(tmp_path, monkeypatch, key, text, says):
    monkeypatch.chdir(tmp_path)
    for way in (lambda: config(f"--{key}={text}"), Trainer(PlainTask(), **{key: text}, max_steps=1).fit):
        with pytest.raises(UserError) as error:
            way()
        assert str(error.value).startswith(says)
    assert not list(tmp_path.iterdir())


def test_the_same_folder_in_other_words_is_no_other_run(home):
    old, new = (to_dict(KindsTask(text=t), TrainConfig()) for t in ("~/x", f"{home}/x"))
    assert differences(old, new) == ([], [])
