"""Values by the hints of what takes them: the same from YAML, from the command line and from Python."""

import copy
import pickle
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Literal

import pytest
from support.configurable import Colour, DeepEncoder, PlainTask, config, kinds

from accel_train import Trainer
from accel_train.config.convert import Typed, build
from accel_train.config.help import help_text
from accel_train.config.plain import to_dict
from accel_train.config.read import parse
from accel_train.config.schema import OptimizerConfig, PhaseConfig, TrainConfig, WebhookConfig
from accel_train.errors import UserError


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("max_steps", "1e5", 100_000),
        ("max_steps", "1_000", 1000),
        ("max_steps", "3.0", 3),
        ("max_steps", "null", None),
        ("seed", "0", 0),
        ("learning_rate", "1e-3", 0.001),
        ("learning_rate", "1", 1.0),
        ("learning_rate", ".5", 0.5),
        ("save_steps", "1e5", 100_000),
        ("save_steps", "30min", "30min"),
        ("save_steps", "null", None),
        ("eval_steps", "1ep", "1ep"),
        ("warmup_steps", "5ep", "5ep"),
        ("max_time", "24h", "24h"),
        ("output_dir", "1e5", "1e5"),
        ("output_dir", "007", "007"),
        ("output_dir", "null", "null"),
        ("output_dir", "a: b: [", "a: b: ["),
        ("output_dir", "runs/x=y", "runs/x=y"),
        ("init_from", "123", "123"),
        ("init_from", "null", None),
        ("mixed_precision", "no", "no"),
        ("mixed_precision", "null", None),
        ("deterministic", "true", True),
        ("deterministic", "yes", True),
        ("deterministic", "False", False),
        ("report_to", "[]", []),
        ("report_to", "[tensorboard, wandb]", ["tensorboard", "wandb"]),
        ("lr_scheduler_kwargs", "{min_lr: 1e-6}", {"min_lr": 1e-6}),
        ("optimizer", "{class_path: SGD}", OptimizerConfig("SGD")),
        ("optimizers", "{critic: {learning_rate: 1e-4}}", {"critic": OptimizerConfig(learning_rate=1e-4)}),
        ("phases", "[{length: 1e2, repeat: 2}, {objectives: [a]}]", [PhaseConfig([], 100, 2), PhaseConfig(["a"])]),
        ("webhook", "{kinds: [stop]}", WebhookConfig(["stop"])),
    ],
)
def test_the_same_value_from_the_command_line_and_from_yaml(tmp_path, key, text, value):
    assert getattr(config(f"--{key}={text}"), key) == value
    assert getattr(config(f"--{key}", text), key) == value
    quoted = f"'{text}'" if isinstance(value, str) else text  # YAML is typed: 007 and null are text only in quotes
    (tmp_path / "a.yaml").write_text(f"task: support.configurable.PlainTask\n{key}: {quoted}\n")
    found = getattr(config("--config", str(tmp_path / "a.yaml")), key)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("folder=/data", Path("/data")),
        ("colour=blue", Colour.blue),
        ("sizes=[3, 1e2]", (3, 100)),
        ("pair=[1, y]", (1.0, "y")),
        ("shares={a: 1}", {"a": 1.0}),
        ("shares.a=1e-1", {"a": 0.1}),
        ("shares=null", None),
        ("names=[x]", {"x"}),
        ("mode=3", 3),
        ("mode=null", None),
        ("text=3", "3"),
        ("note=3", "3"),
        ("note=null", None),
        ("anything=1e-3", 0.001),
        ("anything.deep.er=1e-3", {"deep": {"er": 0.001}}),
        ("bare=[1]", [1]),
    ],
)
def test_arguments_of_a_task_have_the_types_of_their_hints(argument, value):
    found = kinds(argument)[argument.partition("=")[0].partition(".")[0]]
    assert found == value and type(found) is type(value)


def test_a_nested_class():
    named = "--task=support.configurable.EncoderTask"
    task, _ = parse([named, "--task.init_args.encoder=support.configurable.DeepEncoder",
                     "--task.init_args.encoder.init_args.depth=3"])  # fmt: skip
    assert isinstance(task.encoder, DeepEncoder) and (task.encoder.depth, task.encoder.width) == (3, 4)
    again, _ = parse([named, f"--task.init_args={to_dict(task, TrainConfig())['task']['init_args']}"])
    assert isinstance(again.encoder, DeepEncoder) and again.encoder.depth == 3, "its config has what it was made of"


@pytest.mark.parametrize(
    ("given_", "says"),
    [
        ("{class_path: support.configurable.DeepEncoder, init_args: {dept: 3}}",
         "encoder.init_args.dept: no such option (did you mean task.init_args.encoder.init_args.depth?)"),
        ("{class_path: support.configurable.DeepEncoder, init_args: {depth: x}}",
         "encoder.init_args.depth: expected int, got 'x'"),
        ("support.configurable.Colour", "encoder: support.configurable.Colour is no Encoder"),
        ("support.configurable.nothing", "encoder: cannot import 'support.configurable.nothing': "),
        ("support.configurable.kinds", "encoder: support.configurable.kinds is no class"),
        ("x", "encoder: expected Encoder, got 'x'"),
    ],
)  # fmt: skip
def test_a_nested_class_that_is_refused(given_, says):
    with pytest.raises(UserError) as error:
        parse(["--task=support.configurable.EncoderTask", f"--task.init_args.encoder={given_}"])
    assert str(error.value).startswith(f"task.init_args.{says}")


@pytest.mark.parametrize(
    ("hint", "value", "says"),
    [
        (Callable[[int], int], "math.sqrt", "a config cannot hold a collections.abc.Callable[[int], int]; "),
        (Callable | None, "math.sqrt", "a config cannot hold a "),
        (type[int], "builtins.int", "a config cannot hold a "),
        (Iterable[int], [1], "a config cannot hold a "),
        (complex, 1, "a config cannot hold a complex; it can hold numbers, text, "),
        (timedelta, "3s", "expected timedelta, got '3s'"),
    ],
)
def test_a_hint_that_no_config_can_fill_is_refused_in_a_line(hint, value, says):
    with pytest.raises(UserError, match=rf"^task.init_args.when: {re.escape(says)}[^\n]*$"):
        build(hint, value, "task.init_args.when")


@pytest.mark.parametrize(
    ("hint", "value", "made"),
    [
        (Sequence[int], (1, 2), [1, 2]),
        (Mapping[str, float], {"a": 1}, {"a": 1.0}),
        (dict[int, str], {1: "x", "2": "y"}, {1: "x", 2: "y"}),
        (frozenset[int], [1, 1], frozenset({1})),
        (list[Path] | None, ["a"], [Path("a")]),
        (OptimizerConfig | None, {"class_path": "SGD"}, OptimizerConfig("SGD")),
        (list[int] | list[str], ["a"], ["a"]),
        (list[int] | str, Typed("[a]"), "[a]"),
        (float | int, 3, 3),
        (bool, "Yes", True),
        (int, "3", 3),
        (dict, {"a": {"b": Typed("1")}}, {"a": {"b": 1}}),
    ],
)
def test_other_hints(hint, value, made):
    found = build(hint, value, "x")
    assert found == made and type(found) is type(made)


def test_keyword_arguments_are_those_of_the_base_class():
    name = "--task=support.configurable.WiderTask"
    task, _ = parse([name, "--task.init_args.extra=1e-1", "--task.init_args.sizes=[4]"])
    assert task.sizes == (4,) and (task.init_args["extra"], task.init_args["sizes"]) == (0.1, (4,))
    with pytest.raises(UserError, match=r"task.init_args.size: no such option \(did you mean task.init_args.sizes\?\)"):
        parse([name, "--task.init_args.size=[4]"])
    assert "--task.init_args.sizes" in help_text([name])
    task, _ = parse(["--task=support.configurable.OpenTask", "--task.init_args.depth=1e-1"])
    assert task.model_options == {"depth": 0.1}


@pytest.mark.parametrize(
    ("settings_", "says"),
    [
        ({"max_steps": "x"}, "max_steps: expected int or null, got 'x'"),
        ({"max_steps": 2.5}, "max_steps: expected int or null, got 2.5"),
        ({"seed": None}, "seed: expected int, got None"),
        ({"global_batch_size": True}, "global_batch_size: expected int, got True"),
        ({"max_step": 5}, "max_step: no such option (did you mean max_steps?)"),
        (
            {"webhook": {"kinds": ["stopp"]}},
            "webhook.kinds[0]: expected start or stop or crash or hang or status or milestone or anomaly or cycle or "
            "warning, got 'stopp' (did you mean stop?)",
        ),
        ({"webhook": {"kind": []}}, "webhook.kind: no such option (did you mean webhook.kinds?)"),
        ({"optimizer": "SGD"}, "optimizer: expected {...}, got 'SGD' (did you mean optimizer.class_path=SGD?)"),
        ({"worker_type": "threads"}, "worker_type: expected thread or process, got 'threads' (did you mean thread?)"),
        ({"max_steps": 0}, "max_steps: 0 is out of range, must be at least 1"),
        ({"report_to": 3}, "report_to: expected [text, ...], got 3"),
        (
            {"report_to": Typed("[a?b]")},
            "report_to: [a?b]: this is no list (line 1: expected ',' or ']', but got '?'); "
            "quote what is in it, as in ['a', 'b']",
        ),
    ],
)
def test_a_notebook_gets_the_same_words(settings_, says):
    with pytest.raises(UserError) as error:
        Trainer(PlainTask(), **settings_)
    assert str(error.value) == says


def test_a_notebook_may_write_plain_values():
    found = TrainConfig(max_steps=1e5, optimizer={"class_path": "SGD"}, phases=[{"length": 5}], report_to=())  # type: ignore
    assert found.max_steps == 100_000 and type(found.max_steps) is int
    assert (found.optimizer, found.phases) == (
        OptimizerConfig("SGD"),
        [PhaseConfig(length=5)],
    ) and found.report_to == []
    with pytest.raises(UserError, match="learning_rate: expected number or null, got 'x'"):
        OptimizerConfig(learning_rate="x")  # type: ignore[arg-type]
    assert TrainConfig() == TrainConfig() and copy.deepcopy(found) == pickle.loads(pickle.dumps(found)) == found


@pytest.mark.parametrize(
    ("hint", "given", "made"),
    [
        (list[str], "wandb", ["wandb"]),
        (list[str], Typed("wandb"), ["wandb"]),
        (list[str], Typed("[a, b]"), ["a", "b"]),
        (tuple[str, ...] | None, "a", ("a",)),
        (Sequence[Literal["a", "b"]], "a", ["a"]),
        (list[Path], "x/*.npy", [Path("x/*.npy")]),
        (str | list[str], "a", "a"),
    ],
)
def test_one_text_stands_for_a_list_of_it(hint, given, made):
    assert build(hint, given, "key") == made


@pytest.mark.parametrize(
    ("hint", "given", "says"),
    [
        (list[int], "3", "key: expected [int, ...], got '3'"),
        (tuple[str, str], "a", "key: expected [text, text], got 'a'"),
        (tuple[float, float], Typed("0.3,0.7"), "key: expected [number, number], got '0.3,0.7' (write '[0.3,0.7]')"),
        (list[Literal["a", "b"]], "c", "key[0]: expected a or b, got 'c'"),
        (list[str], "", "key: expected [text, ...], got ''"),
    ],
)
def test_what_is_no_list_is_told_how_one_is_written(hint, given, says):
    with pytest.raises(UserError) as error:
        build(hint, given, "key")
    assert str(error.value) == says
