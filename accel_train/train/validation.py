"""The validation data of a run: measured, and tried out before its first step."""

from __future__ import annotations

import warnings
from collections.abc import Callable

from torch import Tensor

from accel_train.errors import EvaluationError, NonFiniteError
from accel_train.system.waiting import StoppedError
from accel_train.task import Event
from accel_train.train.best import BestModel
from accel_train.train.evaluation import Evaluator
from accel_train.train.session import Session

FIRST_SEEN = "metric_for_best_model is first looked at after training"


def measure(
    session: Session, batches: int | None = None, busy: Callable[[str], None] = lambda what: None
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Metrics of the validation data, or only of so many of its first batches, and the sums behind them. ``busy`` hears
    how far it is."""
    assert session.eval_loader is not None
    batches = session.config.limit_eval_batches if batches is None else batches
    with session.stepper.final_weights():
        limit = session.stepper.micro_batch_size
        evaluator = Evaluator(
            session.task, session.models, session.accelerator, session.ranks, limit, session.output_dir, session.parts
        )
        return evaluator.evaluate(session.eval_loader, batches, busy)


def try_out(session: Session, best_model: BestModel) -> None:
    """One batch of validation data before the first step shows whether the deciding metric is there at all. Where a
    part of the data does not give it, all of it is evaluated. Only what a person can mend is an error at this point: an
    untrained model may well be beyond evaluating.

    Raises:
        UserError: the metric is missing, or the data cannot be read.
    """
    if session.eval_loader is None:
        return
    for batches in (1, None):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of cells without items, and the like
                metrics, _ = measure(session, batches)
        except StoppedError:  # on all ranks; the loop ends before its first step
            return
        except (NonFiniteError, EvaluationError) as error:
            if batches is None:
                session.emit(Event("warning", f"the untrained model cannot be evaluated, so {FIRST_SEEN}: {error}"))
            continue
        if batches is None or session.config.metric_for_best_model in metrics:
            best_model.metric(metrics)
            return
