"""Learning rates as pure functions of the step."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from accel_train.config.convert import imported
from accel_train.errors import UserError, brief, suggest

# -- what a schedule may ask for by name; its other arguments are options ---------------------------------------------
#
# base            the learning rate of the config
# done            the fraction of the way from the end of warm-up to the end of the run
# steps_done      steps since the end of warm-up
# total_steps     steps from the end of warm-up to the end of the run
# warmup_steps    steps of warm-up
# history         the values of the deciding metric so far

_FROM_THE_LOOP = ("base", "done", "steps_done", "total_steps", "warmup_steps", "history")
_OF_THE_LENGTH = ("done", "total_steps")


def constant(base: float) -> float:
    return base


def cosine(done: float, base: float, min_lr: float = 0.0) -> float:
    """Half a cosine from ``base`` to ``min_lr`` (Loshchilov and Hutter, 2017, without restarts)."""
    return min_lr + (base - min_lr) * 0.5 * (1.0 + math.cos(math.pi * done))


def cosine_with_restarts(done: float, base: float, num_cycles: int = 1) -> float:
    """``num_cycles`` half cosines of equal length, each from ``base`` to 0 (Loshchilov and Hutter, 2017)."""
    if num_cycles < 1:
        raise ValueError("num_cycles must be at least 1")
    return 0.0 if done >= 1.0 else base * 0.5 * (1.0 + math.cos(math.pi * (num_cycles * done % 1.0)))


def linear(done: float, base: float, min_lr: float = 0.0) -> float:
    return base + (min_lr - base) * done


def polynomial(done: float, base: float, lr_end: float = 1e-7, power: float = 1.0) -> float:
    """From ``base`` to ``lr_end`` as the ``power`` of what is left of the way."""
    return (base - lr_end) * (1.0 - done) ** power + lr_end


def inverse_sqrt(steps_done: int, base: float, warmup_steps: int = 0, *, timescale: int | None = None) -> float:
    """``base / sqrt(1 + steps_done / timescale)`` (Vaswani et al., 2017). ``timescale``: steps; None: those of warm-up,
    or 10,000."""
    timescale = timescale or warmup_steps or 10_000
    return base / math.sqrt(1.0 + steps_done / timescale)


def step(base: float, *, steps_done: int = 0, step_size: int = 1000, gamma: float = 0.1) -> float:
    """Times ``gamma`` after every ``step_size`` steps."""
    if step_size < 1 or gamma < 0:
        raise ValueError("step_size must be at least 1, and gamma at least 0")
    return base * gamma ** (steps_done // step_size)


def plateau(
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


SCHEDULES: dict[str, Callable[..., float]] = {
    f.__name__: f
    for f in (constant, cosine, cosine_with_restarts, linear, polynomial, inverse_sqrt, step, plateau)
} | {"constant_with_warmup": constant}  # fmt: skip
"""By name; those that the HF Trainer has too are called and computed as there."""


class Schedule:
    """The learning rate at a step.

    During warm-up the rate is ``base * (f + (1 - f) * step / warmup_steps)`` with f = ``warmup_start_factor``; after
    it the schedule begins.

    Args:
        kind: a name in ``SCHEDULES``; the path of a function, which may have the arguments listed above and options;
            or of a scheduler class of torch, which is replayed step by step from the end of warm-up.
        options: its own arguments.

    Raises:
        UserError: it is unknown, lacks what it needs, or gives no rate.
    """

    def __init__(
        self,
        kind: str,
        base: float,
        total_steps: int | None,
        warmup_steps: int = 0,
        warmup_start_factor: float = 0.0,
        options: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self.kind, self.base, self.total_steps, self.options = kind, base, total_steps, dict(options)
        self.warmup_steps, self.warmup_start_factor = warmup_steps, warmup_start_factor
        self._function = _function(kind, base, self.options)
        parameters = inspect.signature(self._function).parameters
        known = [name for name in parameters if name not in _FROM_THE_LOOP]
        self._asks = [name for name in parameters if name in _FROM_THE_LOOP]
        self._options = {} if isinstance(self._function, _Replayed) else self.options
        for name in self._options:
            if name not in known and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
                raise UserError(f"lr_scheduler_kwargs: {kind} has no option {name!r}{suggest(name, known)}")
        if total_steps is None and set(_OF_THE_LENGTH) & set(self._asks):
            raise UserError(f"lr_scheduler_type: {kind} needs to know the length of the run: give max_steps")
        for at in (warmup_steps, warmup_steps + (total_steps or 1) // 2):
            self(at, [1.0, 1.0])

    def __call__(self, at: int, history: Sequence[float] = ()) -> float:
        if at < self.warmup_steps:
            f = self.warmup_start_factor
            return self.base * (f + (1.0 - f) * at / self.warmup_steps)
        after, length = at - self.warmup_steps, max((self.total_steps or 0) - self.warmup_steps, 1)
        values = {
            "base": self.base,
            "done": min(after / length, 1.0) if self.total_steps else 0.0,
            "steps_done": after,
            "total_steps": length,
            "warmup_steps": self.warmup_steps,
            "history": history,
        }
        try:
            rate = float(self._function(**{name: values[name] for name in self._asks}, **self._options))
            if not 0 <= rate < math.inf:
                raise ValueError(f"the rate at step {at} would be {rate}")
            return rate
        except (TypeError, ValueError, ArithmeticError) as error:
            raise UserError(f"lr_scheduler_kwargs: {self.kind} cannot take {self.options}: {error}") from None


def _function(kind: str, base: float, options: dict[str, Any]) -> Callable[..., Any]:
    """What ``lr_scheduler_type`` means, and for a class of torch's what it gives with these arguments."""
    if kind in SCHEDULES:
        return SCHEDULES[kind]
    if "." not in kind:
        raise UserError(f"lr_scheduler_type: unknown {kind!r}{suggest(kind, SCHEDULES)}; there are "
                        f"{', '.join(SCHEDULES)}, or give module.function")  # fmt: skip
    from torch.optim.lr_scheduler import LRScheduler

    found = imported(kind, "lr_scheduler_type")
    if not callable(found):
        raise UserError(f"lr_scheduler_type: {kind} is no function")
    if not isinstance(found, type):
        return found
    if not issubclass(found, LRScheduler):
        raise UserError(f"lr_scheduler_type: {kind} is neither a function nor a scheduler class of torch")
    try:
        return _Replayed(found, base, options)
    except Exception as error:  # whatever a class makes of arguments that it does not check
        raise UserError(f"lr_scheduler_kwargs: {kind} refuses {options}: {brief(error)}") from None


class _Replayed:
    """The rates of one of torch's schedulers. It has a state, so all steps up to the one in question are gone through
    once, at some 10 us each."""

    def __init__(self, cls: Any, base: float, options: dict[str, Any]) -> None:
        import torch

        self._optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=base)
        self._scheduler = cls(self._optimizer, **options)
        self._optimizer.step()  # it warns of an order in which nothing is lost here
        self._rates = [self._rate()]

    def __call__(self, steps_done: int) -> float:
        while len(self._rates) <= steps_done:
            self._scheduler.step()
            self._rates.append(self._rate())
        return self._rates[steps_done]

    def _rate(self) -> float:
        return float(self._optimizer.param_groups[0]["lr"])
