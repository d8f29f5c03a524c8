"""A model that is spread over the ranks by FSDP2: rank 0 builds it, and hands out every parameter in pieces.

So its weights at the start are those of a run that is not sharded, whatever a task initialises them with, and no rank
but the first ever holds more than its own pieces and one parameter on its way.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from accel_train.data.draws import generators
from accel_train.train.world import Ranks

Models = dict[str, nn.Module]


def is_sharded(accelerator: Accelerator) -> bool:
    return accelerator.distributed_type.value == "FSDP"


def built_on_main(build: Callable[[], Models], ranks: Ranks, key: int) -> Models:
    """What ``build`` makes, on rank 0; elsewhere the same without the memory of its parameters (device meta), which
    ``shard`` or ``complete`` then give. All ranks must call it.

    Whatever else is drawn is everywhere the same. A task that reads its parameters while it builds, or draws as often
    as they tell it to, gets them on every rank.

    Args:
        key: for the generators.
    """
    models, state = _built(build, key) if ranks.is_main else _built_on_meta(build, key)
    if ranks.from_main(state) != state:
        models, _ = _built(build, key)
    return models


def _built(build: Callable[[], Models], key: int) -> tuple[Models, bytes]:
    """With where the generator of torch then stands."""
    with generators(key):
        return build(), torch.get_rng_state().numpy().tobytes()


def _built_on_meta(build: Callable[[], Models], key: int) -> tuple[Models, bytes]:
    """Nothing, and no state, where that cannot be done."""
    with contextlib.suppress(RuntimeError, NotImplementedError):  # there is nothing to be read on meta
        with _parameters_on_meta(), _DrawnInVain():
            models, state = _built(build, key)
        if not any(buffer.is_meta for model in models.values() for buffer in model.buffers()):
            return models, state
    return {}, b""


def shard(accelerator: Accelerator, module: nn.Module, ranks: Ranks) -> nn.Module:
    """Wrap the module as the launch config says, with rank 0's weights. All ranks must call it."""
    from accelerate.utils.fsdp_utils import fsdp2_apply_ac, fsdp2_prepare_model
    from torch.distributed.fsdp import CPUOffloadPolicy

    plugin: Any = accelerator.state.fsdp_plugin
    values: list[Tensor | None] = [p.detach() if ranks.is_main else None for p in module.parameters()]
    _replace(module, [_on_meta(param) for param in module.parameters()])
    plugin.set_auto_wrap_policy(module)
    if plugin.activation_checkpointing:
        module = fsdp2_apply_ac(accelerator, module)
    module = fsdp2_prepare_model(accelerator, module)
    accelerator._models.append(module)  # what save_state saves
    home = torch.device("cpu") if isinstance(plugin.cpu_offload, CPUOffloadPolicy) else accelerator.device
    pieces = []
    for i, param in enumerate(module.parameters()):
        piece = _piece(param, values[i], accelerator.device).to(home)
        pieces.append(nn.Parameter(piece, param.requires_grad))
        values[i] = None
    _replace(module, pieces)
    return module


def complete(models: Iterable[nn.Module], ranks: Ranks, device: torch.device) -> None:
    """Models that are not sharded, as rank 0 has them. All ranks must call it."""
    for model in models:
        params = list(model.parameters())
        whole = [torch.empty_like(p, device=device) if p.is_meta else p.detach().to(device) for p in params]
        ranks.broadcast_from_main(whole)
        _replace(model, [nn.Parameter(each, p.requires_grad) for each, p in zip(whole, params, strict=True)])
        model.to(device)


@contextlib.contextmanager
def whole(modules: Iterable[nn.Module], accelerator: Accelerator) -> Generator[None]:
    """Inside, every parameter of these is whole on every rank. All ranks must enter together; what they do inside needs
    no further agreement."""
    from torch.distributed.fsdp import FSDPModule

    roots: list[Any] = [each for each in modules if isinstance(each, FSDPModule)]
    for root in roots:  # before a part of it is called alone, or that would take itself for a root, for good
        root._get_fsdp_state()._lazy_init()
    shards = [m for root in roots for m in root.modules() if isinstance(m, FSDPModule)]
    for module in shards:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        forget_forwards(shards)
        plugin = accelerator.state.fsdp_plugin
        for module in shards:
            module.reshard()
            module.set_reshard_after_forward(plugin is None or bool(plugin.reshard_after_forward), recurse=False)


def forget_forwards(shards: Iterable[Any]) -> None:
    """FSDP2 gathers ahead, in the backward pass, in the order of all forward passes since the last one. An evaluation
    is not as long on every rank, and a look at a batch is one rank's own: then the ranks would wait for each other."""
    for shard in shards:
        state = shard._get_fsdp_state()
        state._comm_ctx.post_forward_order.clear()
        groups = getattr(state, "_fsdp_param_groups", None) or [state._fsdp_param_group]  # older torch has one, or None
        for group in filter(None, groups):
            group._post_forward_indices.clear()


def _piece(like: Any, value: Tensor | None, device: torch.device) -> Tensor:
    """This rank's piece, as a DTensor, of the value that rank 0 has."""
    from torch.distributed.tensor import distribute_tensor

    if value is None:  # memory that is never touched, on a CPU; on a GPU one parameter is there as a whole
        value = torch.empty(like.shape, dtype=like.dtype, device=device)
    return distribute_tensor(value.to(device, like.dtype), like.device_mesh, like.placements, src_data_rank=0)


def _replace(module: nn.Module, params: list[nn.Parameter]) -> None:
    """Other parameters, in the order of ``parameters()``; what was the same under two names still is."""
    new = dict(zip(module.parameters(), params, strict=True))
    for owner in module.modules():
        for name, param in owner._parameters.items():
            if param is not None:
                owner._parameters[name] = new[param]


_register = nn.Module.register_parameter


@contextlib.contextmanager
def _parameters_on_meta() -> Generator[None]:
    """As ``accelerate.init_empty_weights`` does, but what was tied stays tied."""
    nn.Module.register_parameter = _register_on_meta
    try:
        yield
    finally:
        nn.Module.register_parameter = _register


def _register_on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
    if param is not None and not param.is_meta:
        if not hasattr(param, "on_meta"):  # it may be registered under another name, too
            param.on_meta = _on_meta(param)  # pyright: ignore[reportAttributeAccessIssue]
        param = param.on_meta  # pyright: ignore[reportAttributeAccessIssue]
    _register(self, name, param)


def _on_meta(param: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(torch.empty_like(param, device="meta"), param.requires_grad)


class _DrawnInVain(TorchDispatchMode):
    """What is drawn on meta moves the generator on as it does in memory."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags and args and isinstance(args[0], Tensor) and args[0].is_meta:
            if func not in _DRAWS:
                raise NotImplementedError
            left, dtype = args[0].numel(), args[0].dtype
            while left:  # the last part has 16 numbers or more, if there are any: torch draws its last 16 twice
                part = left if left < 2 * _AT_ONCE else _AT_ONCE
                func(torch.empty(part, dtype=dtype), *args[1:], **(kwargs or {}))
                left -= part
            return args[0]
        return func(*args, **(kwargs or {}))


_AT_ONCE = 2**16
_DRAWS = (torch.ops.aten.normal_.default, torch.ops.aten.uniform_.default)
"""Of these, the numbers of two calls are those of one that draws as many."""
