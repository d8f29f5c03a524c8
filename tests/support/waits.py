"""Counts where a host would wait for a device, on a machine that has none."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

TO_THE_HOST = {
    getattr(torch.Tensor, name)
    for name in ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__")
}
OF_UNKNOWN_SIZE = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal")


class _Calls(TorchFunctionMode):
    """Of methods that copy a tensor to the host."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in TO_THE_HOST:
            self.found.append(getattr(func, "__name__", str(func)))
        return func(*args, **(kwargs or {}))


class _Kernels(TorchDispatchMode):
    """Whose result has a size that only the device knows, also in a backward pass."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = [i for i in args[1] if i is not None and i.dtype == torch.bool] if name == "index" else []
        repeats = name == "repeat_interleave" and (kwargs or {}).get("output_size") is None
        if name in OF_UNKNOWN_SIZE or masks or repeats:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


class Waits:
    """Inside, all tensors count as a device's. ``found``: what would have waited."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self._modes = (_Calls(self.found), _Kernels(self.found))

    def __enter__(self) -> Waits:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)
