"""What a checkpoint holds besides JSON: written now, or copied to host memory and written while training goes on."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from accel_train.run.weights import AVERAGES, whole_state
from accel_train.train.averages import Average, whole_averages

States = dict[str, Any]
"""By the name of the file that is to hold it."""


class Snapshots:
    """States as they are at a step.

    Args:
        copies: in host memory, whatever training does to the originals afterwards. The next snapshot uses that memory
            again, so that this one must have been written by then. Else nobody may change anything until it is written.
    """

    def __init__(self, copies: bool) -> None:
        self.copies = copies
        self._buffers: list[Tensor] = []
        self._used: dict[int, tuple[torch.UntypedStorage, Tensor]] = {}  # by address: the original and its bytes

    def take(self, accelerator: Accelerator, averages: Sequence[Average]) -> States:
        """Of models that are not spread over ranks; the names are those that ``load_state`` looks for."""
        states: States = {}
        for i, model in enumerate(accelerator._models):
            states[f"model_{i}.safetensors" if i else "model.safetensors"] = whole_state(model)
        for i, optimizer in enumerate(accelerator._optimizers):
            states[f"optimizer_{i}.bin" if i else "optimizer.bin"] = optimizer.state_dict()
        if averaged := whole_averages(averages):
            states[AVERAGES] = averaged
        if not self.copies:
            return states
        self._used = {}
        taken = self._taken(states)
        del self._buffers[len(self._used) :]
        if any(original.device.type != "cpu" for original, _ in self._used.values()):
            torch.accelerator.synchronize()
        self._used = {}
        return taken

    def _taken(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, dict | list):
            new: Any = copy.copy(value)
            for key in list(new) if isinstance(new, dict) else range(len(new)):
                new[key] = self._taken(new[key])
            return new
        return copy.deepcopy(value)

    @torch.no_grad()
    def _tensor(self, tensor: Tensor) -> Tensor:
        """What shares memory goes on sharing it, so that files are those of the originals."""
        if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided:
            return tensor.detach().clone().cpu()
        tensor = tensor.detach().resolve_conj().resolve_neg()
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._used:
            self._used[storage.data_ptr()] = storage, self._copy(storage)
        held = self._used[storage.data_ptr()][1].untyped_storage()
        empty = torch.empty(0, dtype=tensor.dtype)
        return empty.set_(held, tensor.storage_offset(), tensor.size(), tensor.stride())

    def _copy(self, storage: torch.UntypedStorage) -> Tensor:
        at, size, on_gpu = len(self._used), storage.nbytes(), storage.device.type == "cuda"
        if at == len(self._buffers):
            self._buffers.append(torch.empty(0, dtype=torch.uint8))
        if self._buffers[at].nbytes != size:
            self._buffers[at] = _buffer(size, pinned=on_gpu)
        source = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
        return self._buffers[at].copy_(source, non_blocking=on_gpu)


def _buffer(size: int, pinned: bool) -> Tensor:
    """Host memory; pinned, it is written to three times as fast from a GPU, but there may be none left."""
    try:
        return torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
    except RuntimeError:
        return torch.empty(size, dtype=torch.uint8)


def write(folder: Path, states: States) -> None:
    """Into a checkpoint; rank 0 has all that is to be written."""
    from accelerate.utils import save

    for name, state in states.items():
        save(state, folder / name, safe_serialization=name.endswith(".safetensors"))


def write_rest(accelerator: Accelerator, folder: Path) -> None:
    """The few kilobytes of this rank that ``load_state`` looks for: generators, the scaler."""
    from accelerate.checkpointing import save_accelerator_state

    rank, scaler = accelerator.process_index, accelerator.scaler
    save_accelerator_state(str(folder), [], [], [], [], rank, accelerator.step, scaler)
