"""What an editor is told of configs is what they may hold."""

import dataclasses
import enum
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from accel_train.arguments import Range
from accel_train.cli import main
from accel_train.config.convert import build
from accel_train.config.json_schema import _of, config_schema
from accel_train.config.plain import to_dict
from accel_train.config.schema import OptimizerConfig, TrainConfig
from accel_train.errors import UserError
from accel_train.registry import TASKS
from accel_train.tasks.collatz.task import CollatzTask

ROOT = Path(__file__).parents[2]
SCHEMA = config_schema()


KNOWN = set(
    "$schema title description examples default type enum pattern anyOf allOf if then properties required items "
    "additionalProperties prefixItems minItems maxItems minimum maximum exclusiveMaximum".split()
)


class Colour(enum.Enum):
    red = 1
    blue = 2


def is_type(name: str, value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return {
        "string": isinstance(value, str), "null": value is None, "boolean": isinstance(value, bool),
        "array": isinstance(value, list), "object": isinstance(value, dict), "number": number,
        "integer": number and float(value).is_integer(),
    }[name]  # fmt: skip


def fits(schema: dict, value: Any) -> bool:
    """The part of JSON schema that is used here."""
    assert set(schema) <= KNOWN
    types = schema.get("type", [])
    number = isinstance(value, int | float) and not isinstance(value, bool)
    checks = [
        not types or any(is_type(name, value) for name in ([types] if isinstance(types, str) else types)),
        "enum" not in schema or any(value == each and type(value) is type(each) for each in schema["enum"]),
        "anyOf" not in schema or any(fits(each, value) for each in schema["anyOf"]),
        all(fits(each, value) for each in schema.get("allOf", [])),
        "if" not in schema or not fits(schema["if"], value) or fits(schema["then"], value),
        not isinstance(value, str) or bool(re.search(schema.get("pattern", ""), value)),
        not number or schema.get("minimum", value) <= value <= schema.get("maximum", value),
        not number or "exclusiveMaximum" not in schema or value < schema["exclusiveMaximum"],
    ]
    if isinstance(value, list):
        first = schema.get("prefixItems", [])
        checks += [fits(each, item) for each, item in zip(first, value, strict=False)]
        checks += [fits(schema.get("items", {}), item) for item in value[len(first) :]]
        checks.append(schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", math.inf))
    if isinstance(value, dict):
        properties, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        checks += [fits(properties[name], value[name]) for name in value if name in properties]
        if isinstance(others, bool):
            checks.append(others or set(value) <= set(properties))
        else:
            checks += [fits(others, value[name]) for name in value if name not in properties]
        checks.append(set(schema.get("required", [])) <= set(value))
    return all(checks)


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_every_example_fits(path):
    assert fits(SCHEMA, yaml.safe_load(path.read_text()))


def test_a_written_config_fits():
    assert fits(SCHEMA, to_dict(CollatzTask(), TrainConfig(max_steps=3)))


@pytest.mark.parametrize(
    "text",
    [
        "task: collatz\nseed: 1", "task: {class_path: my.Own, init_args: {anything: 1}}", "seed: ${SEED}",
        "report_to: wandb", "save_steps: 30min", "eval_steps: null", "torch_compile: {model: default}",
        "task: {class_path: collatz}\nphases: [{length: 5ep}]", "optimizers: {loss: {class_path: SGD}}",
    ],
)  # fmt: skip
def test_right(text):
    assert fits(SCHEMA, yaml.safe_load(text))


@pytest.mark.parametrize(
    "text",
    [
        "sed: 1", "seed: x", "seed: -1", "max_steps: 1.5", "worker_type: threads", "task: {init_args: {}}",
        "task: {class_path: collatz, init_args: {dmodel: 3}}", "phases: [{lenght: 3}]", "optimizer: SGD",
        "task: {class_path: collatz, init_args: {d_model: wide}}", "optimizer: {learning_rate: fast}",
        "webhook: {kinds: [stopp]}", "optimizers: {loss: {lr: 1}}", "memory_guard: 3",
    ],
)  # fmt: skip
def test_wrong(text):
    assert not fits(SCHEMA, yaml.safe_load(text))


HINTS = [
    int, float, bool, str, Path, None | int, int | str, list[int], list[str], tuple[float, float], tuple[int, ...],
    dict[str, int], dict[str, list[float]], Literal["a", "b"], Colour, Annotated[int, Range(1, 9)] | None, Any,
    Sequence[Literal["a", 1]], set[int], Annotated[float, Range(0, below=1)], OptimizerConfig,
    str | dict[str, str] | None,
]  # fmt: skip
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 12),
    st.sampled_from([0.5, 2.0, -1.5]),
    st.sampled_from(["a", "red", "x/y"]),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "learning_rate", "init_args"]), inner, max_size=2)
    ),
    max_leaves=5,
)


@given(st.sampled_from(HINTS), VALUES)
def test_what_a_config_takes_an_editor_takes(hint, value):
    try:
        build(hint, value, "key")
    except UserError:
        return
    assert fits(_of(hint), value)


@given(st.sampled_from([hint for hint in HINTS if hint is not Any]), VALUES)
def test_what_an_editor_takes_a_config_takes(hint, value):
    if fits(_of(hint), value):
        build(hint, value, "key")


def test_the_command_prints_it(capsys):
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(SCHEMA))
    names = {f.name for f in dataclasses.fields(TrainConfig)}
    assert set(SCHEMA["properties"]) == {"task", *names}
    assert len(SCHEMA["properties"]["task"]["anyOf"][1]["allOf"]) == len(TASKS)
