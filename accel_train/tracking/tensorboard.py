"""Curves, histograms and figures for TensorBoard."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accel_train.errors import brief
from accel_train.task import Event
from accel_train.tracking.accelerate import flatten
from accel_train.tracking.observer import Observer, Record, Run
from accel_train.tracking.records import scalars, tag_of, terms

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.tensorboard import SummaryWriter


class TensorBoard(Observer):
    """Writes ``output_dir/tensorboard``.

    Args:
        emit: takes the note on histograms that TensorBoard cannot draw.
    """

    shows_images = True
    _writer: SummaryWriter | None = None

    def __init__(self, emit: Callable[[Event], None] = lambda event: None):
        self.emit = emit
        self._left_out: set[str] = set()

    def on_start(self, run: Run) -> None:
        from torch.utils.tensorboard import SummaryWriter

        resumed = run.start_step > 0 or run.resumed_from is not None
        self._run = run
        # Events behind the checkpoint will be written again, so the old ones are declared void. The queue is long: a
        # network disk that stalls for a while must not stall the training.
        writer = self._writer = SummaryWriter(
            str(run.output_dir / "tensorboard"),
            purge_step=run.start_step + 1 if resumed else 0,
            max_queue=1000,
            flush_secs=30,
        )
        writer.add_text("config", f"```yaml\n{_yaml(run.config)}```", run.start_step)
        self._metric = f"best/{run.config.get('metric_for_best_model', 'loss')}"
        self._best: Any = None
        self._has_charts = False
        self._ends_session = self._begin_hparams(writer, run.config)

    def on_log(self, record: Record) -> None:
        self._write(record)

    def on_evaluate(self, record: Record) -> None:
        assert self._writer is not None
        self._write({**record, "kind": "eval"})
        for name, value in self._run.baselines.items():
            self._writer.add_scalar(f"baseline/{name}", value, record["step"])
        if not self._has_charts:
            self._has_charts = True
            if charts := comparisons(terms(record), self._run.baselines):
                self._writer.add_custom_scalars({"value, truth and control": charts})
        self._writer.flush()

    def on_tick(self, status: Record) -> None:
        """The best value so far is what the table of hyperparameters shows."""
        if self._writer is not None and (best := status.get("best")) and best != self._best:
            self._best = best
            if best["step"] > self._run.start_step:  # else an earlier session has written it
                self._writer.add_scalar(self._metric, best["value"], best["step"])

    def on_figures(self, step: int, figures: dict[str, Any]) -> None:
        assert self._writer is not None
        for name, figure in figures.items():
            try:
                self._writer.add_figure(f"figures/{name}", figure, step, close=False)
            except (ValueError, TypeError, RuntimeError, AttributeError) as error:
                self.emit(Event("note", f"TensorBoard cannot draw the figure {name}, it is left out: {brief(error)}"))
        self._writer.flush()

    def on_add(self, step: int, name: str, value: Any) -> None:
        assert self._writer is not None
        if isinstance(value, float):
            self._writer.add_scalar(name, value, step)
        elif isinstance(value, str):
            self._writer.add_text(name, value, step)
        elif hasattr(value, "savefig"):
            self._writer.add_figure(name, value, step, close=False)
        else:
            self._writer.add_image(name, value, step, dataformats="HW" if value.ndim == 2 else "HWC")

    def on_histograms(self, step: int, values: dict[str, Tensor]) -> None:
        """These, and every parameter, copied to the CPU; of a sharded model only the part that rank 0 holds."""
        assert self._writer is not None
        shown = dict(values)
        for model_name, model in self._run.models.items():
            prefix = "weights/" if len(self._run.models) == 1 else f"weights/{model_name}."
            shown |= {prefix + name: parameter for name, parameter in model.named_parameters()}
        for name, tensor in shown.items():
            try:
                finite = _finite(tensor)
                if finite.numel():
                    self._writer.add_histogram(name, finite, step)
            except (ValueError, TypeError, OverflowError, RuntimeError, AttributeError) as error:
                self._leave_out(name, error)

    def on_save(self, step: int, path: Path) -> None:
        if self._writer is not None:
            self._writer.flush()

    def on_end(self, outcome: str, status: Record) -> None:
        if self._writer is not None:
            self.on_tick(status)
            self._file(self._writer).add_summary(self._ends_session)
            self._writer.close()
            self._writer = None

    def _begin_hparams(self, writer: SummaryWriter, config: dict[str, Any]) -> Any:
        """The settings as hyperparameters of this very log; ``add_hparams`` would make another run of them."""
        from torch.utils.tensorboard.summary import hparams

        settings = {k: v for k, v in flatten(config).items() if not k.startswith(("output_dir", "webhook."))}
        *begin, end = hparams(settings, {self._metric: 0.0})
        for summary in begin:
            self._file(writer).add_summary(summary)
        return end

    @staticmethod
    def _file(writer: SummaryWriter) -> Any:
        assert writer.file_writer is not None
        return writer.file_writer

    def _leave_out(self, name: str, error: Exception) -> None:
        if name not in self._left_out:
            self._left_out.add(name)
            too_large = "histogram is empty" in str(error)
            why = "no value is within its largest bin, 1e20" if too_large else brief(error)
            self.emit(Event("note", f"TensorBoard cannot draw the histogram of {name}, it is left out: {why}"))

    def _write(self, record: Record) -> None:
        assert self._writer is not None
        for tag, value in scalars(record).items():
            self._writer.add_scalar(tag, value, record["step"])


CONTROLS = ("floor", "shuffled", "truth", "control")
"""Details of a metric that it is to be seen against."""


def comparisons(metrics: Iterable[str], baselines: Iterable[str]) -> dict[str, list[Any]]:
    """Charts of custom scalars, a metric each, with what it is to be compared with: its controls, or else its details,
    and its baselines. Tags are regular expressions there."""
    names, known = list(metrics), list(baselines)
    charts: dict[str, list[Any]] = {}
    for name in (name for name in names if "/" not in name):
        details = [each for each in names if each.startswith(f"{name}/") and each.count("/") == 1]
        controls = [each for each in details if each.partition("/")[2] in CONTROLS]
        tags = [tag_of("eval", each) for each in [name, *(controls or details)]]
        tags += [f"baseline/{each}" for each in known if each.partition(":")[0] == name]
        if len(tags) > 1:
            charts[name] = ["Multiline", [f"^{re.escape(tag)}$" for tag in tags]]
    return charts


def _finite(tensor: Tensor) -> Tensor:
    """The finite values on the CPU, of complex ones the size: a diverged model must not cost its own curves."""
    local = tensor.detach()
    if hasattr(local, "to_local"):  # sharded; gathering it would need every rank
        local = local.to_local()  # pyright: ignore[reportAttributeAccessIssue]
    values = (local.abs() if local.is_complex() else local).float().cpu()
    return values[values.isfinite()]


def _yaml(config: dict[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(json.loads(json.dumps(config, default=str)), sort_keys=False)
