"""Tasks and other classes with every kind of argument, for configs to name."""

import enum
from pathlib import Path
from typing import Any, Literal

from accel_train import Task
from accel_train.config.read import parse
from accel_train.config.schema import TrainConfig


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


class FilesTask(Task):
    def __init__(self, files: list[str] | str, more: list[str] | None = None) -> None:
        self.files = files


def kinds(*arguments: str) -> dict[str, Any]:
    return parse(["--task=support.configurable.KindsTask", *(f"--task.init_args.{a}" for a in arguments)])[0].init_args


def config(*arguments: str) -> TrainConfig:
    return parse(["--task=support.configurable.PlainTask", *arguments])[1]
