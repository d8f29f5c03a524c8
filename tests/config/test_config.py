"""The typed config: the same values from YAML, from the command line and from Python, and back."""

import copy
import dataclasses
import enum
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from accel_train import Task, Trainer
from accel_train.config.convert import Typed, build
from accel_train.config.help import help_text
from accel_train.config.plain import differences, to_dict
from accel_train.config.read import load, parse, read, settings_for
from accel_train.config.schema import OptimizerConfig, PhaseConfig, TrainConfig, WebhookConfig
from accel_train.config.setting import about
from accel_train.config.yaml_text import dumps, loads
from accel_train.data.remote.settings import RemoteFiles
from accel_train.errors import UserError
from accel_train.tasks.collatz.task import CollatzTask

ROOT = Path(__file__).parents[2]


class Colour(enum.Enum):
    red = 1
    blue = 2


class Encoder:
    def __init__(self, width: int = 4) -> None:
        self.width = width


class DeepEncoder(Encoder):
    def __init__(self, width: int = 4, depth: int = 2) -> None:
        super().__init__(width)
        self.depth = depth


class PlainTask(Task):
    """Takes nothing."""


class KindsTask(Task):
    """Every kind of argument."""

    def __init__(
        self,
        folder: Path = Path("."),
        colour: Colour = Colour.red,
        sizes: tuple[int, ...] = (1, 2),
        pair: tuple[float, str] = (0.5, "x"),
        shares: dict[str, float] | None = None,
        names: set[str] = frozenset(),  # type: ignore[assignment]
        mode: Literal["a", 3, None] = "a",
        text: str = "",
        note: str | None = None,
        anything: Any = None,
        bare=1,
    ) -> None:
        self.sizes = sizes


class EncoderTask(Task):
    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder


class WiderTask(KindsTask):
    def __init__(self, extra: float = 1.0, **others: Any) -> None:
        super().__init__(**others)


class OpenTask(Task):
    def __init__(self, width: int = 1, **model_options: Any) -> None:
        self.model_options = model_options


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """The classes of this file, by the name under which a config can find them."""
    for cls in (Encoder, DeepEncoder, PlainTask, KindsTask, EncoderTask, WiderTask, OpenTask, Colour):
        monkeypatch.setattr(cls, "__module__", "config_classes")
    monkeypatch.setitem(sys.modules, "config_classes", sys.modules[__name__])


def kinds(*arguments: str) -> dict[str, Any]:
    return parse(["--task=config_classes.KindsTask", *(f"--task.init_args.{a}" for a in arguments)])[0].init_args


def config(*arguments: str) -> TrainConfig:
    return parse(["--task=config_classes.PlainTask", *arguments])[1]


# -- values ----------------------------------------------------------------------------------------------------------


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
    (tmp_path / "a.yaml").write_text(f"task: config_classes.PlainTask\n{key}: {quoted}\n")
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
    task, _ = parse(["--task=config_classes.EncoderTask", "--task.init_args.encoder=config_classes.DeepEncoder",
                     "--task.init_args.encoder.init_args.depth=3"])  # fmt: skip
    assert isinstance(task.encoder, DeepEncoder) and (task.encoder.depth, task.encoder.width) == (3, 4)
    again, _ = parse(
        ["--task=config_classes.EncoderTask", f"--task.init_args={to_dict(task, TrainConfig())['task']['init_args']}"]
    )
    assert isinstance(again.encoder, DeepEncoder) and again.encoder.depth == 3, "its config has what it was made of"


@pytest.mark.parametrize(
    ("given_", "says"),
    [
        ("{class_path: config_classes.DeepEncoder, init_args: {dept: 3}}",
         "encoder.init_args.dept: no such option (did you mean task.init_args.encoder.init_args.depth?)"),
        ("{class_path: config_classes.DeepEncoder, init_args: {depth: x}}",
         "encoder.init_args.depth: expected int, got 'x'"),
        ("config_classes.Colour", "encoder: config_classes.Colour is no Encoder"),
        ("config_classes.nothing", "encoder: cannot import 'config_classes.nothing': "),
        ("config_classes.kinds", "encoder: config_classes.kinds is no class"),
        ("x", "encoder: expected Encoder, got 'x'"),
    ],
)  # fmt: skip
def test_a_nested_class_that_is_refused(given_, says):
    with pytest.raises(UserError) as error:
        parse(["--task=config_classes.EncoderTask", f"--task.init_args.encoder={given_}"])
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
    name = "--task=config_classes.WiderTask"
    task, _ = parse([name, "--task.init_args.extra=1e-1", "--task.init_args.sizes=[4]"])
    assert task.sizes == (4,) and (task.init_args["extra"], task.init_args["sizes"]) == (0.1, (4,))
    with pytest.raises(UserError, match=r"task.init_args.size: no such option \(did you mean task.init_args.sizes\?\)"):
        parse([name, "--task.init_args.size=[4]"])
    assert "--task.init_args.sizes" in help_text([name])
    task, _ = parse(["--task=config_classes.OpenTask", "--task.init_args.depth=1e-1"])
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
            "webhook.kinds[0]: expected start or stop or crash or status or milestone or anomaly or cycle or warning, "
            "got 'stopp' (did you mean stop?)",
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
    other = ["--config", collatz, "--task.init_args.sizes=[9]", "--task=config_classes.KindsTask"]
    assert read(other)["task"] == {"class_path": "config_classes.KindsTask", "init_args": {"sizes": [9]}}
    assert parse(other)[0].sizes == (9,)
    assert read([other[3], "--config", collatz])["task"] == {"class_path": "config_classes.KindsTask"}
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


# -- home folders and environment variables ---------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NUMBER", "3")
    return str(tmp_path / "home")


@pytest.mark.parametrize("text", ["~/x", "${HOME}/x", "$HOME/x", "~/../home/x"])
def test_a_home_folder_is_used_and_written_as_it_was_given(tmp_path, home, text):
    (tmp_path / "config.yaml").write_text(f"task: config_classes.PlainTask\noutput_dir: {text}\ntb_sync_to: {text}\n")
    task, found = load(tmp_path)
    Path(home).mkdir()
    shutil.copy(tmp_path / "config.yaml", home)
    ways = [
        ["--config=~/config.yaml"],
        ["--task=config_classes.PlainTask", f"--output_dir={text}", f"--tb_sync_to={text}"],
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
    task = parse(["--task=config_classes.KindsTask", f"--task.init_args.{argument.format()}"])[0]
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
    class FilesTask(Task):
        def __init__(self, files: list[str] | str, more: list[str] | None = None):
            self.files = files

    sys.modules["config_classes"].FilesTask = FilesTask  # type: ignore[attr-defined]
    try:
        for given_ in ("~/x", ["~/x", "y"]):
            arguments = [f"--task.init_args.files={given_!s}", "--task.init_args.more=[~/x]"]
            task, _ = parse(["--task=config_classes.FilesTask", *arguments])
            assert str(task.init_args["files"]) == str(given_).replace("~", home)
            assert to_dict(task, TrainConfig())["task"]["init_args"] == {"files": given_, "more": ["~/x"]}
    finally:
        del sys.modules["config_classes"].FilesTask  # type: ignore[attr-defined]


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


# -- and back --------------------------------------------------------------------------------------------------------

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()


@given(st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)))
@settings(max_examples=300, deadline=None)
def test_yaml_reads_back_what_it_wrote(tree):
    assert loads(dumps(tree)) == tree
    text = dumps({"k": tree})
    assert type(loads(text)["k"]) is type(tree)


@given(st.from_regex(r"[-+0-9._eE:xno~]{1,8}", fullmatch=True))
@settings(max_examples=300, deadline=None)
def test_text_that_looks_like_something_else_stays_text(text):
    assert loads(dumps({"k": text})) == {"k": text} == yaml.safe_load(dumps({"k": text}))
    assert build(str, Typed(text)) == text


lengths = st.integers(1, 10**9) | st.builds("{}{}".format, st.integers(1, 999), st.sampled_from(["", "ep", "st"]))
names = st.text(max_size=4)
phases = st.builds(PhaseConfig, st.lists(names, max_size=2), lengths, st.integers(1, 9))
configs = st.builds(
    TrainConfig,
    output_dir=st.text(max_size=8),
    seed=st.integers(0, 2**63),
    max_steps=st.none() | st.integers(1),
    phases=st.lists(phases, max_size=3),
    learning_rate=st.floats(0, 1e300),
    optimizer=st.builds(OptimizerConfig, init_args=st.dictionaries(names, scalars, max_size=3)),
    optimizers=st.dictionaries(names, st.builds(OptimizerConfig, learning_rate=st.floats(0, 1)), max_size=2),
    warmup_steps=lengths,
    eval_steps=st.none() | lengths,
    mixed_precision=st.sampled_from(["no", "bf16", "fp16", None]),
    torch_compile=st.none() | st.text(max_size=5),
    deterministic=st.booleans(),
    report_to=st.lists(names, max_size=3),
    early_stopping_target=st.none() | st.floats(allow_nan=False),
)


@given(configs)
@settings(max_examples=100, deadline=None)
def test_a_config_reads_back_as_itself(tmp_path_factory, made):
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    tree = to_dict(PlainTask(), made)
    path.write_text(dumps(tree), encoding="utf-8")
    task, found = load(path.parent)
    assert found == made
    assert to_dict(task, found) == tree


@pytest.mark.parametrize(
    "made",
    [
        PlainTask(),
        KindsTask(Path("a"), Colour.blue, (3,), (1.0, "1e5"), {"x": 0.1}, {"b", "a"}, None, "no", "1", [1, {}]),
        OpenTask(3, depth=4),
        WiderTask(2.0, sizes=(5,)),
    ],
    ids=lambda task: type(task).__name__,
)
def test_a_task_is_rebuilt_from_its_config(tmp_path, made):
    (tmp_path / "config.yaml").write_text(dumps(to_dict(made, TrainConfig())))
    task, _ = load(tmp_path)
    assert type(task) is type(made) and task.init_args == made.init_args
    assert copy.deepcopy(task).init_args == pickle.loads(pickle.dumps(task)).init_args == made.init_args


def test_a_task_with_required_arguments_can_be_copied():
    made = EncoderTask(Encoder(3))
    assert pickle.loads(pickle.dumps(made)).encoder.width == copy.copy(made).encoder.width == 3


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
    assert another_run == ["seed", "global_batch_size", "per_device_batch_size"]
    with pytest.raises(UserError, match="^status_steps: -1 is out of range, must be at least 0$"):
        WebhookConfig(status_steps=-1)
    with pytest.raises(UserError, match="^retries: expected int, got 'x'$"):
        RemoteFiles(retries="x")  # type: ignore[arg-type]


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


@pytest.mark.parametrize("task", ["tcn", "gdynet", "sherlock", "muon", "collatz"])
def test_synth_shows_the_options_of_the_task(task, capsys):
    from accel_train.cli import main

    with pytest.raises(SystemExit):
        main(["synth", task, "--help"])
    out = " ".join(capsys.readouterr().out.split())
    assert f"options of {task}: " in out and "--seed int" not in out
    assert "--kind easy|hard" in out or task != "tcn"
    assert ("--system ferro|prinz|ellipsoids|markov" in out and "--NAME" in out) or task != "gdynet"
