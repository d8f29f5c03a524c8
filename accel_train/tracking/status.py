"""Where a run stands, as a small file that people, schedulers and ``accel-train status`` can read at any time."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from datetime import UTC, datetime
from pathlib import Path

from accel_train.errors import UserError
from accel_train.run import lock as run_lock
from accel_train.system.writing import write_atomic
from accel_train.tracking.observer import Observer, Record, Run
from accel_train.tracking.records import duration, is_number, number, plain, show_clock, show_terms

SILENCE_S = 120.0
"""A running run that has not reported for so long deserves a remark: it is evaluating, or it was killed."""

INTERVAL_S = 5.0
"""Between two writes while training. Evaluations, checkpoints and the end are written at once."""


class Status(Observer):
    """Keeps ``output_dir/status.json`` up to date."""

    def on_start(self, run: Run) -> None:
        self.path = run.output_dir / "status.json"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._tick: Record = {"step": run.start_step}
        self._fixed: Record = {
            "task": run.task.task_name(),
            "total_steps": run.total_steps,
            "state": "running",
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "last_checkpoint": run.resumed_from,
            "last_eval": None,
        }
        self._write()

    def on_tick(self, status: Record) -> None:
        self._tick = dict(status)
        if time.monotonic() - self._written >= INTERVAL_S:
            self._write()

    def on_evaluate(self, record: Record) -> None:
        self._fixed["last_eval"] = plain({k: v for k, v in record.items() if k != "kind"})
        self._write()

    def on_save(self, step: int, path: Path) -> None:
        self._fixed["last_checkpoint"] = str(path)
        self._write()

    def on_end(self, outcome: str, status: Record) -> None:
        if outcome == "lost":
            return
        self._tick |= status
        self._fixed["state"] = outcome
        self._write()

    def _write(self) -> None:
        # What this observer has heard itself wins over the tick, which fills in what it has not.
        known = {key: value for key, value in self._fixed.items() if value is not None}
        status = {**self._fixed, **self._tick, **known, "updated": datetime.now(UTC).isoformat("T", "milliseconds")}
        write_atomic(self.path, json.dumps(plain(status), indent=1, allow_nan=False) + "\n")
        self._written = time.monotonic()


def read(folder: Path) -> Record:
    """``status.json``; a run that says that it is running and is not, as its lock shows, is called killed.

    Raises:
        UserError: it is not there or damaged.
    """
    status = _read(folder)
    if status.get("state") == "running" and (why := why_over(folder)):
        state, _, reason = why.partition(": ")
        return status | {"state": state, "reason": reason}
    return status


def _read(folder: Path) -> Record:
    path = folder / "status.json"
    if not path.is_file():
        holds_runs = next(folder.glob("*/status.json"), None) is not None
        hint = f"there are runs in it: accel-train runs table {folder}" if holds_runs else f"is {folder} a run folder?"
        raise UserError(f"status: {path} does not exist; {hint}")
    try:
        status = json.loads(path.read_text())
        describe(status)
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        raise UserError(f"status: {path} is damaged; the run writes it anew when it goes on") from None
    return status


def why_over(folder: Path) -> str:
    """Empty while a run may be alive in this folder; else how the last one ended, a state and maybe more."""
    holder = run_lock.look(folder)
    if holder is not None:
        return f"killed: {holder} is gone" if holder.alive() is False else ""
    with contextlib.suppress(UserError):
        state = _read(folder).get("state")
        if state != "running":
            return str(state)
    return f"ended: without a word, but there is no {run_lock.NAME}"


def describe(status: Record, now: datetime | None = None) -> str:
    """A status in a few lines for a person. Fields that are missing are left out."""
    step, total = status.get("step"), status.get("total_steps")
    head = f"{status.get('task', 'run')}: {status.get('state', 'unknown')}"
    if step is not None:
        head += f", step {number(step)}" + (f" of {number(total)} ({step / total:.1%})" if total else "")
    head += "".join(f", {key} {status[key]}" for key in ("epoch", "phase") if status.get(key) is not None)
    if status.get("reason"):
        head += f" ({status['reason']})"

    loss = [f"loss {number(status['loss'])}"] if is_number(status.get("loss")) else []
    clock = [f"{text} items/s" if name == "items/s" else f"{name} {text}" for name, text in show_clock(status)]
    lines = [head, ", ".join(loss + clock)]
    if status.get("last_eval"):
        metrics = ", ".join(f"{name} {text}" for name, text in show_terms(status["last_eval"]))
        lines.append(f"last evaluation, step {number(status['last_eval'].get('step', 0))}: {metrics}")
    if status.get("last_checkpoint"):
        lines.append(f"last checkpoint: {status['last_checkpoint']}")
    lines.append(_freshness(status, now or datetime.now(UTC)))
    return "\n".join(line for line in lines if line)


def _freshness(status: Record, now: datetime) -> str:
    if not status.get("updated"):
        return ""
    age = (now - datetime.fromisoformat(status["updated"])).total_seconds()
    process = f" by process {status['pid']} on {status['host']}" if status.get("pid") and status.get("host") else ""
    doubt = status.get("state") == "running" and age > SILENCE_S
    return f"updated {duration(age)} ago{process}" + ("; since then it evaluates, or it was killed" if doubt else "")
