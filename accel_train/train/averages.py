"""Averages of the weights over the steps, which are evaluated and exported in the place of the last ones.

The weights that are trained never notice. Averages are kept in float32 at least, and of a model that is spread over the
ranks every rank keeps those of its pieces.
"""

# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from accel_train.errors import UserError
from accel_train.run.weights import AVERAGES, as_kept, load_tensors


@dataclass(frozen=True)
class Averaging:
    """How weights are averaged.

    Args:
        decay: of an exponential moving average; 1 gives all steps the same weight.
        start: the step (from 0) whose weights are the first.
    """

    decay: float
    start: int = 0


class Average:
    """The averages of what one optimiser trains. After the n-th update, n = 0, 1, ..., they move towards the weights
    by the fraction

        max(1 - decay, 9 / (9 + n))        of an exponential moving average: in the beginning it forgets faster, so
                                           that the first weights do not stay in it (as TensorFlow's
                                           ExponentialMovingAverage does if it is given the number of updates)
        1 / (1 + n)                        of a plain mean (Izmailov et al., 2018, stochastic weight averaging)

    Args:
        name: of the group of models.
        params: what is trained, by name.
    """

    def __init__(self, name: str, params: dict[str, nn.Parameter], averaging: Averaging) -> None:
        self.name, self.params, self.averaging = name, params, averaging
        self.values = [
            torch.zeros_like(_local(p), dtype=torch.promote_types(p.dtype, torch.float32)) for p in params.values()
        ]
        self.updates = torch.zeros((), device=self.values[0].device)
        self._made: Tensor | None = None  # an update of the weights, since the last one of the averages

    def note(self, made: Tensor) -> None:
        """The optimiser has been called; ``made`` says whether it was to update anything. It is not read."""
        self._made = made if self._made is None else self._made | made

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After ``step`` (from 0), for a step that has updated something. On a GPU only the device knows of that."""
        made, self._made = self._made, None
        if made is None or step < self.averaging.start:
            return
        made = made.to(self.updates.device)
        pace = 1.0 if self.averaging.decay == 1.0 else 9.0
        fraction = (pace / (pace + self.updates)).clamp(min=1.0 - self.averaging.decay) * made
        self.updates += made
        new = self._weights()
        if fraction.device.type == "cpu":
            torch._foreach_lerp_(self.values, new, fraction.item())
        else:  # foreach has no kernel for a lerp by a number on the device; gradients, as large, are gone by now
            change = torch._foreach_sub(new, self.values)
            torch._foreach_mul_(change, fraction)
            torch._foreach_add_(self.values, change)

    def nbytes(self) -> int:
        return sum(value.nbytes for value in self.values)

    def exists(self) -> bool:
        """Waits for the device."""
        return bool(self.updates > 0)

    @contextlib.contextmanager
    def in_place(self) -> Generator[None]:
        """Inside, the models have the averages, if there are any."""
        if not self.exists():
            yield
            return
        params = [_local(p) for p in self.params.values()]
        kept = [p.clone() for p in params]
        _copy(params, self.values)
        try:
            yield
        finally:
            _copy(params, kept)

    def state(self) -> dict[str, Tensor]:
        """Whole averages by name. All ranks must call it."""
        values = [_whole(value, p) for value, p in zip(self.values, self.params.values(), strict=True)]
        return {self._updates: self.updates} | dict(zip(self.params, values, strict=True))

    def restore(self, state: dict[str, Tensor]) -> None:
        """Without averages in ``state``, they begin with the next step."""
        if self._updates not in state:
            return
        missing = [name for name in self.params if name not in state]
        if missing:
            raise UserError(f"the checkpoint has no average of {missing[0]} ({len(missing)} such)")
        _copy(self.values, [_local(as_kept(p, state[name])) for name, p in self.params.items()])
        self.updates.copy_(state[self._updates])

    @property
    def _updates(self) -> str:
        return f"updates/{self.name}"

    def _weights(self) -> list[Tensor]:
        return [_local(p).to(value.dtype) for p, value in zip(self.params.values(), self.values, strict=True)]


# -- those of all groups ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def in_place(averages: Sequence[Average]) -> Generator[None]:
    """Inside, the models have the averages; afterwards they are, bit for bit, what they were."""
    with contextlib.ExitStack() as swapped:
        for average in averages:
            swapped.enter_context(average.in_place())
        yield


def whole_averages(averages: Sequence[Average]) -> dict[str, Tensor]:
    """What a checkpoint keeps of them, if there is anything. All ranks must call it where models are spread."""
    return {name: value for average in averages if average.exists() for name, value in average.state().items()}


def load(averages: Sequence[Average], folder: Path) -> None:
    if averages and (folder / AVERAGES).is_file():
        state = load_tensors(folder / AVERAGES)
        for average in averages:
            average.restore(state)


@torch.no_grad()
def _copy(to: list[Tensor], values: list[Tensor]) -> None:
    torch._foreach_copy_(to, values)


def _local(tensor: Any) -> Tensor:
    """This rank's piece, in the memory where the parameter has it."""
    tensor = tensor.detach()
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _whole(value: Tensor, param: Any) -> Tensor:
    if not hasattr(param, "full_tensor"):
        return value.contiguous()
    from torch.distributed.tensor import DTensor

    shape = {"shape": param.shape, "stride": param.stride()}
    return DTensor.from_local(value, param.device_mesh, param.placements, run_check=False, **shape).full_tensor().cpu()
