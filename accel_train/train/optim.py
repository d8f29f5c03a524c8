"""Optimisers by name, and learning rates as pure functions of the step."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from accel_train.errors import UserError, suggest

if TYPE_CHECKING:
    import torch

# -- schedules: (fraction of the way from the end of warm-up to the end of the run, base rate) -> rate ---------------


def constant(done: float, base: float) -> float:
    return base


def cosine(done: float, base: float, min_lr: float = 0.0) -> float:
    """Half a cosine from ``base`` to ``min_lr`` (Loshchilov and Hutter, 2017, without restarts)."""
    return min_lr + (base - min_lr) * 0.5 * (1.0 + math.cos(math.pi * done))


def linear(done: float, base: float, min_lr: float = 0.0) -> float:
    return base + (min_lr - base) * done


def step(done: float, base: float, *, steps_done: int = 0, step_size: int = 1000, gamma: float = 0.1) -> float:
    """Times ``gamma`` after every ``step_size`` steps."""
    if step_size < 1 or gamma < 0:
        raise ValueError("step_size must be at least 1, and gamma at least 0")
    return base * gamma ** (steps_done // step_size)


def plateau(
    done: float,
    base: float,
    *,
    history: Sequence[float] = (),
    factor: float = 0.5,
    patience: int = 10,
    threshold: float = 1e-4,
    min_lr: float = 0.0,
    mode: str = "min",
) -> float:
    """Times ``factor`` whenever ``patience`` evaluations in a row brought no improvement of more than ``threshold``
    (relative), replayed from the whole list of metric values, so there is no state to restore."""
    if mode not in ("min", "max"):
        raise ValueError(f"mode must be min or max, not {mode}")
    if not 0 <= factor < 1 or patience < 0:
        raise ValueError("factor must be less than 1, and neither it nor patience negative")
    sign = 1.0 if mode == "min" else -1.0
    best, bad, rate = math.inf, 0, base
    for value in history:
        if sign * value < best - threshold * abs(best if math.isfinite(best) else 0.0):
            best, bad = sign * value, 0
        else:
            bad += 1
        if bad > patience:
            rate, bad = max(rate * factor, min_lr), 0
    return rate


SCHEDULES: dict[str, Callable[..., float]] = {f.__name__: f for f in (constant, cosine, linear, step, plateau)}


class Schedule:
    """The learning rate at a step.

    During warm-up the rate is ``base * (f + (1 - f) * step / warmup_steps)`` with f = ``warmup_start_factor``; after
    it the named schedule runs from 0 at the end of warm-up to 1 at ``total_steps``.
    """

    def __init__(
        self,
        kind: str,
        base: float,
        total_steps: int | None,
        warmup_steps: int = 0,
        warmup_start_factor: float = 0.0,
        **kwargs: Any,
    ) -> None:
        if kind not in SCHEDULES:
            raise UserError(
                f"lr_scheduler_type: unknown {kind!r}{suggest(kind, SCHEDULES)}; there are {', '.join(SCHEDULES)}"
            )
        known = [p for p in inspect.signature(SCHEDULES[kind]).parameters if p not in _FROM_THE_LOOP]
        for name in kwargs:
            if name not in known:
                raise UserError(f"lr_scheduler_kwargs: {kind} has no option {name!r}{suggest(name, known)}")
        if total_steps is None and kind in ("cosine", "linear"):
            raise UserError(f"lr_scheduler_type: {kind} needs to know the length of the run: give max_steps")
        self.kind, self.base, self.total_steps, self.kwargs = kind, base, total_steps, kwargs
        self.warmup_steps, self.warmup_start_factor = warmup_steps, warmup_start_factor
        try:
            for at in (warmup_steps, warmup_steps + (total_steps or 1) // 2):
                self(at, [1.0, 1.0])
        except (TypeError, ValueError, ZeroDivisionError) as error:
            raise UserError(f"lr_scheduler_kwargs: {kind} cannot take {kwargs}: {error}") from None

    def __call__(self, at: int, history: Sequence[float] = ()) -> float:
        if at < self.warmup_steps:
            f = self.warmup_start_factor
            return self.base * (f + (1.0 - f) * at / self.warmup_steps)
        after = at - self.warmup_steps
        done = min(after / max(self.total_steps - self.warmup_steps, 1), 1.0) if self.total_steps else 0.0
        extra: dict[str, Any] = {}
        if self.kind == "plateau":
            extra["history"] = history
        elif self.kind == "step":
            extra["steps_done"] = after
        return SCHEDULES[self.kind](done, self.base, **extra, **self.kwargs)


_FROM_THE_LOOP = ("done", "base", "steps_done", "history")


# -- optimisers ------------------------------------------------------------------------------------------------------


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
    module, _, name = class_path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"optimizer.class_path: cannot import {class_path!r}: {error}") from None
    if not inspect.isclass(found) or not issubclass(found, optimizer) or found is optimizer:
        raise UserError(
            f"optimizer.class_path: {class_path} is no optimizer class (one derived from torch.optim.Optimizer)"
        )
    return found


def same_class(one: str, other: str) -> bool:
    """Whether two class paths mean the same class, without importing anything."""
    return _short(one) == _short(other)


def _short(class_path: str) -> str:
    module, _, name = class_path.rpartition(".")
    return name.lower() if module in ("", "torch.optim") else class_path


def build_optimizer(
    named: Mapping[str, torch.nn.Parameter],
    class_path: str,
    learning_rate: float,
    init_args: dict[str, Any],
    no_weight_decay: Sequence[str] = (),
) -> torch.optim.Optimizer:
    """The fused kernels are chosen where they exist. On CUDA they can skip a non-finite update without a host sync; on
    a CPU they take a third of the time. Those of the CPU walk through memory whatever the strides say, so parameters
    must be contiguous there; autograd then gives gradients that are, too.

    Args:
        named: parameters by name.
        no_weight_decay: patterns of the names of those that do not decay; they form a second group of parameters.

    Raises UserError if the class needs a closure or refuses its arguments, be it at its first step, or if a pattern
    matches nothing.
    """
    params = list(named.values())
    cls = optimizer_class(class_path)
    closure = inspect.signature(cls.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise UserError(
            f"optimizer: {cls.__name__} evaluates the loss several times in a step (a closure), which is not "
            "supported; take another, such as AdamW"
        )
    parameters = inspect.signature(cls).parameters
    known = [p for p in parameters if p not in ("params", "lr")]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for name in init_args:
        if name in ("lr", "params"):
            raise UserError(f"optimizer.init_args.{name}: give the rate as learning_rate" if name == "lr" else
                            "optimizer.init_args.params: the parameters are those of the models")  # fmt: skip
        if name not in known and not takes_any:
            raise UserError(f"optimizer.init_args: {cls.__name__} has no option {name!r}{suggest(name, known)}")
        if isinstance(init_args[name], str) and name in known and "bool" in str(parameters[name].annotation):
            raise UserError(f"optimizer.init_args.{name}: expected true or false, got {init_args[name]!r}")
    arguments: dict[str, Any] = dict(init_args)
    if "fused" in known and "fused" not in arguments and "foreach" not in arguments:
        if all(p.is_floating_point() and (p.is_cuda or (p.is_cpu and p.is_contiguous())) for p in params):
            arguments["fused"] = True
    for name, value in arguments.items():  # YAML has no tuples
        if isinstance(value, list):
            arguments[name] = tuple(value)
    arguments = {"lr": learning_rate, **arguments}
    groups = _decaying_or_not(named, no_weight_decay, cls.__name__ if "weight_decay" not in known else "")
    try:
        optimizer = cls(groups, **arguments)  # first, so that what it says of a parameter is of a real one
        _rehearse(cls, params, arguments)
        return optimizer
    except Exception as error:  # whatever a class makes of arguments that it does not check
        checked = isinstance(error, (ValueError, TypeError))
        why = (str(error) if checked else f"{type(error).__name__}: {error}").splitlines()[0]
        given = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        raise UserError(f"optimizer: {cls.__name__} refuses its arguments: {why} (given: {given})") from None


def _decaying_or_not(named: Mapping[str, torch.nn.Parameter], patterns: Sequence[str], without: str) -> list[Any]:
    """The parameters, in two groups if some of them do not decay."""
    if not patterns:
        return list(named.values())
    if without:
        raise UserError(f"optimizer.no_weight_decay: {without} has no option weight_decay")
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in named):
            raise UserError(f"optimizer.no_weight_decay: {pattern!r} matches none of {', '.join(list(named)[:8])}, ...")
    still = {name for name in named if any(fnmatchcase(name, pattern) for pattern in patterns)}
    return [
        {"params": [p for name, p in named.items() if name not in still]},
        {"params": [p for name, p in named.items() if name in still], "weight_decay": 0.0, "no_weight_decay": True},
    ]


def renew_options(optimizer: torch.optim.Optimizer, names: set[str]) -> None:
    """Give these options the values that the optimiser was built with; torch restores them together with the state.

    Raises UserError if the restored state lacks what they need.
    """
    names = {n for n in names if n in optimizer.defaults and n not in ("fused", "foreach", "capturable")}
    if not names:
        return
    for group in optimizer.param_groups:
        kept = {"weight_decay"} if group.get("no_weight_decay") else set[str]()
        group.update({name: optimizer.defaults[name] for name in names - kept})
    cls = type(optimizer)
    needed = {name for state in _small_copy(optimizer).state.values() for name in state}
    missing = needed - {name for state in optimizer.state.values() for name in state}
    if missing and optimizer.state and cls.__name__ != "SGD":  # which begins its momentum at any step
        raise UserError(f"optimizer.init_args: {', '.join(sorted(names))} of {cls.__name__} cannot change on resume: "
                        f"the checkpoint has no {', '.join(sorted(missing))}")  # fmt: skip


def memory_of(optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """Bytes that this process needs for what an optimiser trains, before any step: ``weights``, ``gradients``, which
    are as many, and ``optimizer``, its state."""
    small = _small_copy(optimizer)
    state_of = {
        (p.dtype, p.dim()): sum(s.element_size() for s in small.state[p].values() if getattr(s, "shape", 0) == p.shape)
        for p in _params(small)
    }
    local = [p.to_local() if hasattr(p, "to_local") else p for p in _params(optimizer)]  # pyright: ignore
    weights = sum(p.nbytes for p in local)
    state = sum(p.numel() * state_of[p.dtype, p.dim()] for p in local)
    return {"weights": weights, "gradients": weights, "optimizer": state}


def _params(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _small_copy(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """One with the same options that has made a step with small parameters."""
    cls = type(optimizer)
    options = {
        name: optimizer.defaults[name] for name in inspect.signature(cls).parameters if name in optimizer.defaults
    }
    return _rehearse(cls, _params(optimizer), options)


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
