"""A config is written and reads back as itself."""

import copy
import pickle
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from support.configurable import Colour, Encoder, EncoderTask, KindsTask, OpenTask, PlainTask, WiderTask

from accel_train.config.convert import Typed, build
from accel_train.config.plain import to_dict
from accel_train.config.read import load
from accel_train.config.schema import OptimizerConfig, PhaseConfig, TrainConfig
from accel_train.config.yaml_text import dumps, loads

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
