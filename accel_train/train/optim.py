"""Optimisers by name, and groups of parameters with options of their own."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, NamedTuple

from accel_train import keyed
from accel_train.config.convert import imported
from accel_train.errors import UserError, suggest

if TYPE_CHECKING:
    import torch


def optimizer_class(class_path: str) -> type[torch.optim.Optimizer]:
    """``AdamW``, ``adamw``, ``torch.optim.AdamW`` or any importable optimiser class."""
    import torch

    optimizer = torch.optim.Optimizer
    classes = [c for c in vars(torch.optim).values() if inspect.isclass(c) and issubclass(c, optimizer)]
    short = {cls.__name__.lower(): cls for cls in classes if cls is not optimizer}
    if "." not in class_path:
        if class_path.lower() in short:
            return short[class_path.lower()]
        names = sorted(cls.__name__ for cls in short.values())
        raise UserError(f"optimizer.class_path: unknown {class_path!r}{suggest(class_path, names)}; give a name in "
                        "torch.optim, or module.Class")  # fmt: skip
    found = imported(class_path, "optimizer.class_path")
    if not inspect.isclass(found) or not issubclass(found, optimizer) or found is optimizer:
        raise UserError(
            f"optimizer.class_path: {class_path} is no optimizer class (one derived from torch.optim.Optimizer)"
        )
    return found


class Built(NamedTuple):
    """An optimiser, and for each of its groups of parameters one with the same options and small parameters of every
    kind that has made a step: what a step needs is known before there is one."""

    optimizer: torch.optim.Optimizer
    rehearsed: list[torch.optim.Optimizer]


def build_optimizer(
    named: Mapping[str, torch.nn.Parameter],
    class_path: str,
    learning_rate: float,
    init_args: dict[str, Any],
    groups: Sequence[ParameterGroup] = (),
) -> Built:
    """The fused kernels are chosen where they exist. On CUDA they can skip a non-finite update without a host sync; on
    a CPU they take a third of the time. Those of the CPU walk through memory whatever the strides say, so parameters
    must be contiguous there; autograd then gives gradients that are, too.

    Args:
        named: parameters by name.
        groups: those of ``parameter_groups``; empty: all alike.

    Raises UserError if the class needs a closure or refuses its arguments, be it at its first step.
    """
    cls: Any = optimizer_class(class_path)
    _refuse_closure(cls)
    params = list(named.values())
    arguments = {"lr": learning_rate, **_arguments(cls, init_args, params)}
    for group in groups:
        for name in group.options:
            _refuse_unknown(cls, name, f"optimizer: {group.names[0]} is to have {name!r}, but ")
    given = arguments
    try:
        parts = [{"params": [named[n] for n in group.names], **group.settings} for group in groups]
        optimizer = cls(parts or params, **arguments)  # first, so that what it says of a parameter is of a real one
        rehearsed: list[torch.optim.Optimizer] = []
        for options in [group.options for group in groups] or [{}]:
            given = arguments | options
            rehearsed.append(_rehearse(cls, params, given))
        return Built(optimizer, rehearsed)
    except Exception as error:  # whatever a class makes of arguments that it does not check
        checked = isinstance(error, (ValueError, TypeError))
        why = (str(error) if checked else f"{type(error).__name__}: {error}").splitlines()[0]
        shown = ", ".join(f"{name}={value!r}" for name, value in given.items())
        raise UserError(f"optimizer: {cls.__name__} refuses its arguments: {why} (given: {shown})") from None


def _arguments(cls: type, init_args: dict[str, Any], params: list[torch.nn.Parameter]) -> dict[str, Any]:
    """Those of the config, checked, and the fused kernel where there is one."""
    parameters = inspect.signature(cls).parameters
    for name, value in init_args.items():
        if name in ("lr", "params"):
            raise UserError(f"optimizer.init_args.{name}: give the rate as learning_rate" if name == "lr" else
                            "optimizer.init_args.params: the parameters are those of the models")  # fmt: skip
        _refuse_unknown(cls, name, "optimizer.init_args: ")
        if isinstance(value, str) and name in parameters and "bool" in str(parameters[name].annotation):
            raise UserError(f"optimizer.init_args.{name}: expected true or false, got {value!r}")
    arguments = {n: tuple(v) if isinstance(v, list) else v for n, v in init_args.items()}  # YAML has no tuples
    if "fused" in parameters and "fused" not in arguments and "foreach" not in arguments:
        if all(p.is_floating_point() and (p.is_cuda or (p.is_cpu and p.is_contiguous())) for p in params):
            arguments["fused"] = True
    return arguments


def _refuse_unknown(cls: type, option: str, before: str) -> None:
    parameters = inspect.signature(cls).parameters
    known = [name for name in parameters if name not in ("params", "lr")]
    if option not in known and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        raise UserError(f"{before}{cls.__name__} has no option {option!r}{suggest(option, known)}")


def _refuse_closure(cls: type[torch.optim.Optimizer]) -> None:
    closure = inspect.signature(cls.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise UserError(
            f"optimizer: {cls.__name__} evaluates the loss several times in a step (a closure), which is not "
            "supported; take another, such as AdamW"
        )


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that the optimiser treats alike.

    Args:
        names: of the parameters.
        options: of the optimiser, where theirs are not those of the config.
        lr_factor: what their learning rate is multiplied by.
    """

    names: list[str]
    options: dict[str, Any]
    lr_factor: float = 1.0

    @property
    def settings(self) -> dict[str, Any]:
        """What is kept with the group in the optimiser; a checkpoint has it, and so shows whose state it holds."""
        return {**self.options, "lr_factor": self.lr_factor, "members": keyed.key(*self.names) >> 1}


def parameter_groups(
    options: Mapping[str, Mapping[str, Any]],
    no_weight_decay: Sequence[str] = (),
    lr_factors: Mapping[str, float] | None = None,
) -> list[ParameterGroup]:
    """The parameters in groups of equal options; none if all are as the config says.

    Args:
        options: for every parameter by name, what the task says of it; ``lr_factor`` may be among it.
        no_weight_decay: patterns of the names of those that do not decay.
        lr_factors: pattern -> factor of the learning rate; the first pattern that matches counts. Both come before
            what the task says.

    Raises:
        UserError: a pattern matches nothing, or a factor is no number from 0 on.
    """
    factors = lr_factors or {}
    for setting, patterns in (("no_weight_decay", no_weight_decay), ("lr_factors", factors)):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in options):
                names = ", ".join(list(options)[:8])
                raise UserError(f"optimizer.{setting}: {pattern!r} matches none of {names}, ...")
    groups: dict[str, ParameterGroup] = {}
    for name, given in options.items():
        own = dict(given)
        if any(fnmatchcase(name, pattern) for pattern in no_weight_decay):
            own["weight_decay"] = 0.0
        factor = next((f for pattern, f in factors.items() if fnmatchcase(name, pattern)), own.pop("lr_factor", 1.0))
        own.pop("lr_factor", None)
        if not isinstance(factor, (int, float)) or not 0 <= factor < math.inf:
            raise UserError(f"optimizer: the lr_factor of {name} is {factor!r}; expected a number from 0 on")
        key = repr((sorted(own.items()), float(factor)))
        groups.setdefault(key, ParameterGroup([], own, float(factor))).names.append(name)
    found = sorted(groups.values(), key=lambda group: bool(group.options) or group.lr_factor != 1.0)
    return found if len(found) > 1 or any(group.options or group.lr_factor != 1.0 for group in found) else []


def renew_groups(optimizer: torch.optim.Optimizer, groups: Sequence[ParameterGroup]) -> None:
    """Give every group of a restored optimiser the options that it has now.

    Raises:
        UserError: it was saved with other parameters in its groups, and the state of one would be that of another.
    """
    settings = [group.settings for group in groups] or [{}]  # one group of parameters that are all alike
    for saved, now in zip(optimizer.param_groups, settings, strict=True):
        if saved.get("members", now.get("members")) != now.get("members"):
            raise UserError(
                "the checkpoint has the parameters in other groups. Take parameter_options, no_weight_decay and "
                "lr_factors as they were, or only the weights (init_from and another output_dir)"
            )
        saved.update(now)


def renew_options(built: Built, names: set[str], groups: Sequence[ParameterGroup] = ()) -> None:
    """Give these options the values that the optimiser was built with; torch restores them together with the state.

    Raises UserError if the restored state lacks what they need.
    """
    optimizer = built.optimizer
    names = {n for n in names if n in optimizer.defaults and n not in ("fused", "foreach", "capturable")}
    if not names:
        return
    kept = [group.options for group in groups] or [{}]
    for group, own in zip(optimizer.param_groups, kept, strict=True):
        group.update({name: optimizer.defaults[name] for name in names if name not in own})
    cls = type(optimizer)
    needed = {name for small in built.rehearsed for state in small.state.values() for name in state}
    missing = needed - {name for state in optimizer.state.values() for name in state}
    if missing and optimizer.state and cls.__name__ != "SGD":  # which begins its momentum at any step
        raise UserError(f"optimizer.init_args: {', '.join(sorted(names))} of {cls.__name__} cannot change on resume: "
                        f"the checkpoint has no {', '.join(sorted(missing))}")  # fmt: skip


def memory_of(built: Built) -> dict[str, int]:
    """Bytes that this process needs for what an optimiser trains, before any step: ``weights``, ``gradients``, which
    are as many, and ``optimizer``, its state."""
    weights = state = 0
    for group, small in zip(built.optimizer.param_groups, built.rehearsed, strict=True):
        state_of = {
            (p.dtype, p.dim()): sum(s.element_size() for s in kept.values() if getattr(s, "shape", 0) == p.shape)
            for p, kept in ((p, small.state[p]) for p in small.param_groups[0]["params"])
        }
        for param in group["params"]:
            local = param.to_local() if hasattr(param, "to_local") else param
            weights += local.nbytes
            state += local.numel() * state_of[local.dtype, local.dim()]
    return {"weights": weights, "gradients": weights, "optimizer": state}


def _rehearse(cls: Any, params: list[torch.nn.Parameter], arguments: dict[str, Any]) -> torch.optim.Optimizer:
    """A step of small parameters, one of each kind: some arguments are wrong only there."""
    import torch

    kinds = {(p.dtype, p.device, p.dim()): p for p in params}
    small = [torch.nn.Parameter(torch.zeros((2,) * p.dim(), dtype=p.dtype, device=p.device)) for p in kinds.values()]
    for param in small:
        param.grad = torch.zeros_like(param)
    optimizer = cls(small, **arguments)
    optimizer.step()
    return optimizer
