"""What the evaluations so far decide: which model is the best one, and whether to stop early."""

from __future__ import annotations

import math
from typing import Any

from accel_train.config.schema import TrainConfig
from accel_train.errors import UserError, suggest


class BestModel:
    """The list of evaluations and what follows from it. All ranks have the same metrics, so all decide the same."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.evaluations: list[dict[str, Any]] = []
        self.best: dict[str, float] | None = None  # {"step": ..., "value": ...}
        self.best_in_phase: dict[str, float] = {}  # number of the phase -> value
        self.improved_in_phase = False  # by the last evaluation
        self.not_improved = 0  # evaluations in a row
        self.history: list[float] = []  # of the deciding metric; what a plateau schedule replays

    def record(self, step: int, metrics: dict[str, float], phase: int = 0) -> bool:
        """Remember an evaluation; True if it is the best so far."""
        value = self.metric(metrics)
        self.evaluations.append({"step": step, **metrics})
        self.history.append(value)
        sign = -1.0 if self.config.greater_is_better else 1.0
        best = self.best["value"] if self.best else sign * math.inf
        improved = math.isfinite(value) and sign * value < sign * best - self.config.early_stopping_threshold
        if improved:
            self.best = {"step": step, "value": value}
        of_phase = self.best_in_phase.get(str(phase), sign * math.inf)
        self.improved_in_phase = math.isfinite(value) and sign * value < sign * of_phase
        if self.improved_in_phase:
            self.best_in_phase[str(phase)] = value
        self.not_improved = 0 if improved else self.not_improved + 1
        return improved

    def early_stop(self) -> str:
        """Why the run is over by now, with today's patience and target; "" if it is not."""
        config, name = self.config, self.config.metric_for_best_model
        if not self.history:
            return ""
        value, target = self.history[-1], config.early_stopping_target
        if target is not None and (value >= target if config.greater_is_better else value <= target):
            return f"early stopping: {name} {value:.6g} reached the target {target:g}"
        if config.early_stopping_patience is not None and self.not_improved >= config.early_stopping_patience:
            return f"early stopping: {name} did not improve in {self.not_improved} evaluations"
        return ""

    def last(self) -> dict[str, Any]:
        return self.evaluations[-1] if self.evaluations else {}

    def metric(self, metrics: dict[str, float]) -> float:
        """The one that decides; a ``UserError`` if the evaluation does not give it."""
        name = self.config.metric_for_best_model
        if name not in metrics:
            hint = suggest(name.removeprefix("eval_"), metrics)
            raise UserError(
                f"metric_for_best_model: the evaluation gives no {name!r}{hint}; it gives "
                f"{', '.join(metrics) or 'nothing'}"
            )
        return metrics[name]

    def state(self) -> dict[str, Any]:
        return {
            "evaluations": self.evaluations, "best": self.best, "not_improved": self.not_improved,
            "best_in_phase": self.best_in_phase,
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        self.evaluations, self.best, self.not_improved = state["evaluations"], state["best"], state["not_improved"]
        self.best_in_phase = state.get("best_in_phase", {})
        self.history = [self.metric(evaluation) for evaluation in self.evaluations]
