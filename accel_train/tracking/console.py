"""What a person at a terminal, or the log file of a cluster job, sees of a run."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

import rich.console
from rich.text import Text

from accel_train.task import Event
from accel_train.tracking.bar import Bar, NotebookBar, TerminalBar, in_notebook
from accel_train.tracking.observer import Observer, Record, Run
from accel_train.tracking.records import duration, is_number, number, show_clock, show_terms

STYLES = {"warning": "yellow", "anomaly": "bold yellow", "cycle": "bold red", "hang": "bold red", "crash": "bold red"}


REDRAW_S = 0.1
NOTEBOOK_WIDTH = 110
"""Characters of a line in a cell's output, which does not say how wide it is."""

IN_THE_BAR = ("items/s", "wait", "ETA")


class Console(Observer):
    """Log lines on standard output; on a terminal, a progress bar stays below them, in a notebook above. There a line
    is as wide as the place at most: metrics.jsonl has everything.

    Args:
        file: where to write. Default: standard output as it is when the run starts.
        terminal: draw the bar and use colours. Default: if ``file`` is a terminal. Without, there are only plain lines.
    """

    _bar: Bar | None = None
    _drawn = 0.0

    def __init__(self, file: TextIO | None = None, terminal: bool | None = None):
        self.file = file
        self.terminal = terminal

    def on_start(self, run: Run) -> None:
        file = self._file = self.file or sys.stdout
        terminal = file.isatty() if self.terminal is None else self.terminal
        self._in_notebook = self.file is None and not terminal and in_notebook()
        # Colour is our decision, not that of variables such as FORCE_COLOR: a log file must stay free of escapes.
        self._console = rich.console.Console(
            file=file,
            force_terminal=terminal,
            force_jupyter=False,
            no_color=None if terminal else True,
            highlight=False,
            width=NOTEBOOK_WIDTH if self._in_notebook else None,
        )
        self._run = run
        self._started = time.monotonic()
        self._widths = {(kind, "step"): len(number(run.total_steps or 0)) for kind in ("train", "eval")}
        self._print(_introduction(run))
        self._bar = self._start_bar(run) if terminal or self._in_notebook else None

    def on_tick(self, status: Record) -> None:
        if self._bar is None:
            return
        step, total = status.get("step", 0), self._run.total_steps
        parts = [f"step {number(step)}" + (f"/{number(total)}" if total else "")]
        if is_number(status.get("loss")):
            parts.append(f"loss {number(status['loss'])}")
        wanted = [(name, text) for name, text in show_clock(status) if name in IN_THE_BAR]
        parts += [_cell(name, text) for name, text in wanted]
        phase = status.get("phase")
        label = f"phase {phase}" if isinstance(phase, int) else str(phase or "")
        self._bar.show("  ".join(parts), step, label)

    def on_busy(self, what: str) -> None:
        if self._bar is not None and time.monotonic() - self._drawn >= REDRAW_S:
            self._drawn = time.monotonic()
            self._bar.show(what)

    def on_log(self, record: Record) -> None:
        self._print(self._line(record))

    def on_evaluate(self, record: Record) -> None:
        self._print("eval " + self._line({**record, "kind": "eval"}), style="cyan")

    def on_event(self, event: Event) -> None:
        fields = "".join(f"  {name} {_one_line(value)}" for name, value in event.fields.items())
        self._print(f"{event.kind}: {_one_line(event.title)}{fields}", style=STYLES.get(event.kind, ""))

    def on_end(self, outcome: str, status: Record) -> None:
        if self._bar is not None:
            self._bar.stop()
        where = f" at step {number(status['step'])}" if "step" in status else ""
        reason = f" ({_one_line(status['reason'])})" if status.get("reason") else ""
        took = duration(time.monotonic() - self._started)
        style = {"crashed": "bold red", "lost": "bold red", "stopped": "yellow"}.get(outcome, "green")
        self._print(f"{outcome}{where}{reason} after {took}; the run is in {self._run.output_dir}", style=style)

    def _print(self, text: str, style: str = "") -> None:
        self._console.print(Text(text, style), soft_wrap=True)
        if lost := getattr(self._file, "lost", None):
            raise lost

    def _line(self, record: Record) -> str:
        kind = record.get("kind", "train")
        terms, clock = show_terms(record, self._run.baselines), show_clock(record)
        if self._bar is None:
            cells = [("step", number(record["step"])), *terms, *clock]
            return "  ".join(_cell(name, text, self._width(kind, name, text)) for name, text in cells)
        decides = self._run.config.get("metric_for_best_model") if kind == "eval" else None
        terms.sort(key=lambda term: term[0] != decides)
        cells = [("step", number(record["step"])), *terms, *(each for each in clock if each[0] not in IN_THE_BAR)]
        return self._fitting([_cell(name, text, self._width(kind, name, text)) for name, text in cells])

    def _fitting(self, cells: list[str]) -> str:
        """As many of the first cells as the terminal is wide, and how many are left out."""
        room = self._console.width - len("eval ")
        if len(whole := "  ".join(cells)) <= room:
            return whole
        kept = [n for n in range(1, len(cells)) if len("  ".join([*cells[:n], f"+{len(cells) - n}"])) <= room]
        n = max(kept, default=1)
        return "  ".join([*cells[:n], f"+{len(cells) - n}"])

    def _width(self, kind: str, name: str, text: str) -> int:
        """The largest width of this column so far: lines stay aligned without knowing the columns beforehand."""
        width = self._widths[kind, name] = max(self._widths.get((kind, name), 0), len(text))
        return width

    def _start_bar(self, run: Run) -> Bar:
        if self._in_notebook:
            return NotebookBar(run.total_steps, run.start_step)
        return TerminalBar(self._console, run.total_steps, run.start_step, redirect=self.file is None)


def _cell(name: str, text: str, width: int = 0) -> str:
    return f"{text:>{width}} {name}" if name == "items/s" else f"{name} {text:>{width}}"


def _one_line(value: object) -> str:
    text = number(value) if isinstance(value, float) else str(value)
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _introduction(run: Run) -> str:
    origin = "new run"
    if run.resumed_from is not None:
        origin = f"resumed at step {number(run.start_step)} from {Path(run.resumed_from)}"
    steps = "until stopped" if run.total_steps is None else f"{number(run.start_step)} of {number(run.total_steps)}"
    processes = "1 process" if run.world_size == 1 else f"{run.world_size} processes"
    processes += f" ({run.parallel})" if run.parallel else ""
    return "\n".join(
        [
            f"{run.task.task_name()}: {origin}",
            f"  parameters  {_parameters(run)}",
            *([f"  memory      {memory_text(run.memory)}"] if sum(run.memory.values()) > WORTH_SAYING else []),
            f"  device      {run.device}, precision {run.precision}, {processes}",
            f"  steps       {steps}",
            f"  folder      {run.output_dir}",
        ]
    )


WORTH_SAYING = 10**9
"""Bytes of memory from which on the beginning of a run says how much it needs."""


def memory_text(memory: Mapping[str, int]) -> str:
    """Bytes on each rank, by what they are for, as a person reads them."""
    parts = ", ".join(f"{what} {size / 1e9:,.2f} GB" for what, size in memory.items())
    return f"{parts} on each rank; activations come on top"


def _parameters(run: Run) -> str:
    shown = []
    for name, model in run.models.items():
        sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
        total, trained = sum(n for n, _ in sizes), sum(n for n, learns in sizes if learns)
        shown.append(f"{name} {number(total)}" + (f" ({number(trained)} trained)" if trained != total else ""))
    return "  ".join(shown) or "none"
