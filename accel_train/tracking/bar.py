"""What moves while a run trains: the last line of a terminal, or a line in the output of a notebook's cell."""

from __future__ import annotations

import atexit
import html
import sys
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn


class Bar(Protocol):
    """Drawn when it is told to: a refreshing thread would compete with the training for the interpreter."""

    def show(self, text: str, step: int | None = None, label: str = "") -> None:
        """Another text; with ``step``, also where the run stands and in which phase."""
        ...

    def stop(self) -> None: ...


class TerminalBar:
    """Args:
    total: steps of the run, None if nobody knows.
    redirect: what others print goes above the bar, too.
    """

    def __init__(self, console: Console, total: int | None, step: int, redirect: bool) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[text]}", markup=False),
            console=console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=redirect,
            redirect_stderr=redirect,
        )
        self._id = self._progress.add_task("", total=total, completed=step, text="starting")
        self._progress.start()
        atexit.register(self._progress.stop)  # or the terminal would be left without its cursor

    def show(self, text: str, step: int | None = None, label: str = "") -> None:
        moved: dict[str, Any] = {} if step is None else {"completed": step, "description": label}
        self._progress.update(self._id, text=text, refresh=True, **moved)

    def stop(self) -> None:
        self._progress.stop()
        atexit.unregister(self._progress.stop)


class NotebookBar:
    """In any front end of Jupyter, since it needs no widgets."""

    def __init__(self, total: int | None, step: int) -> None:
        from IPython.display import display

        self._total, self._step, self._label = total, step, ""
        self._line: Any = display(self._drawn("starting"), raw=True, display_id=True)

    def show(self, text: str, step: int | None = None, label: str = "") -> None:
        if step is not None:
            self._step, self._label = step, label
        self._line.update(self._drawn(text), raw=True)

    def stop(self) -> None:
        self._line.update({"text/plain": "", "text/html": ""}, raw=True)

    def _drawn(self, text: str) -> dict[str, str]:
        text = f"{self._label}  {text}" if self._label else text
        bar = f"<progress value={self._step} max={self._total}></progress> " if self._total else ""
        return {"text/plain": text, "text/html": f"{bar}<code>{html.escape(text)}</code>"}


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    shell = ipython.get_ipython() if (ipython := sys.modules.get("IPython")) is not None else None
    return getattr(shell, "kernel", None) is not None
