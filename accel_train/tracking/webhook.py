"""Alerts to Discord, or to anything that takes the same JSON, from a thread that training never waits for."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

from accel_train.config.schema import AlertKind
from accel_train.errors import UserError
from accel_train.task import Event
from accel_train.tracking.delivery import ALERTS, Message, Sender, Url
from accel_train.tracking.observer import Observer, Record, Run
from accel_train.tracking.records import number, show_clock, show_terms

KINDS = get_args(AlertKind)
COLOURS = {
    "start": 3066993, "stop": 9807270, "crash": 16711680, "status": 3447003,
    "milestone": 3066993, "anomaly": 15158332, "cycle": 16711680, "warning": 15844367,
}  # fmt: skip


class Webhook(Observer):
    """Posts what happens to a run: start, stop, crash, status and milestones on its own account, and every event.

    Who knows a webhook's URL can post to it. So the URL is never an argument: it is read from the environment, or from
    a file, when the run starts, and shows up in no message, exception, repr or record.

    Args:
        kinds: which kinds are sent.
        status_steps: send losses and rates once per so many steps. 0: never.
        milestones: steps to celebrate, or one number for every so many steps.
        url_env: name of the environment variable with the URL.
        alert_url_env: name of one with another URL for anomalies, cycles and crashes; it may be unset.
        url_file: file with the URL, read instead of ``url_env``.
        username: whom the messages are from.
        per_minute: how many requests at most; what cannot be sent in time is dropped and counted, statuses first.
        timeout: seconds to wait for the server.
        retries: how often a message is tried again.
        backoff: seconds before the first retry, doubled for every further one.
        drain_s: seconds to wait at the end of the run for what is still to be sent.
    """

    _sender: Sender | None = None

    def __init__(
        self,
        kinds: Sequence[str] = KINDS,
        status_steps: int = 0,
        milestones: int | Sequence[int] = (),
        url_env: str = "ACCEL_TRAIN_WEBHOOK_URL",
        alert_url_env: str = "ACCEL_TRAIN_ALERT_WEBHOOK_URL",
        url_file: str | Path | None = None,
        username: str = "accel-train",
        per_minute: int = 20,
        timeout: float = 10.0,
        retries: int = 4,
        backoff: float = 1.0,
        drain_s: float = 5.0,
    ):
        unknown = sorted(set(kinds) - set(KINDS))
        if unknown:
            raise UserError(f"webhook kinds: unknown {', '.join(unknown)}; choose from {', '.join(KINDS)}")
        # A URL put here by mistake must not be repeated in a message.
        for name, value in (("url_env", url_env), ("alert_url_env", alert_url_env)):
            if not value.isidentifier():
                raise UserError(f"webhook {name}: this takes the name of an environment variable that holds the URL")
        if str(url_file).lower().startswith(("http:", "https:")) or "api/webhooks" in str(url_file):
            raise UserError("webhook url_file: this takes the name of a file that holds the URL")
        if per_minute < 1:
            raise UserError(f"webhook per_minute: {per_minute} would send nothing; leave the webhook out instead")
        self.kinds = frozenset(kinds)
        self.status_steps = status_steps
        self.milestones = milestones
        self.url_env, self.alert_url_env, self.url_file = url_env, alert_url_env, url_file
        self.username = username
        self.drain_s = drain_s
        self._settings = {"per_minute": per_minute, "timeout": timeout, "retries": retries, "backoff": backoff}

    def on_start(self, run: Run) -> None:
        main, alert = self._find_urls()
        self._run = run
        self._step = run.start_step
        self._urls = {kind: (alert if kind in ALERTS else main) or main for kind in KINDS}
        self._sender = Sender(**self._settings)
        steps = "until stopped" if run.total_steps is None else f"{number(run.start_step)} of {number(run.total_steps)}"
        fields = {"steps": steps, "device": run.device, "processes": run.world_size, "folder": run.output_dir.name}
        self._send("start", "resumed" if run.resumed_from is not None else "started", fields)

    def on_log(self, record: Record) -> None:
        if self._sender is None:
            return
        before, self._step = self._step, int(record["step"])
        reached = self._milestone(before, self._step)
        if reached is not None:
            self._send("milestone", f"step {number(reached)} reached", self._fields(record))
        if self.status_steps and self._step // self.status_steps > before // self.status_steps:
            self._send("status", f"step {number(self._step)}", self._fields(record))

    def on_event(self, event: Event) -> None:
        self._send(event.kind, event.title, event.fields)

    def on_end(self, outcome: str, status: Record) -> None:
        if self._sender is None:
            return
        kind = "crash" if outcome in ("crashed", "lost") else "stop"
        fields: dict[str, Any] = {"step": number(status.get("step", self._step))}
        fields |= show_terms({"loss": status.get("loss")})
        if status.get("reason"):
            fields["reason"] = status["reason"]
        if self._sender.dropped:
            fields["messages dropped"] = self._sender.dropped
        self._send(kind, outcome, fields, last=True)
        self._sender.close(self.drain_s)
        self._sender = None

    def _find_urls(self) -> tuple[Url | None, Url | None]:
        if self.url_file is not None:
            main, source = _read_url(Path(self.url_file).expanduser()), f"the file {self.url_file}"
        else:
            main, source = Url(os.environ.get(self.url_env, "").strip()), f"the environment variable {self.url_env}"
        alert = Url(os.environ.get(self.alert_url_env, "").strip())
        if not main and not alert:
            raise UserError(f"webhook: {source} is empty or not set, so no alerts will be sent")
        for url, origin in ((main, source), (alert, f"the environment variable {self.alert_url_env}")):
            if url and not url.valid():
                raise UserError(f"webhook: {origin} does not hold an http or https URL, so no alerts will be sent")
        return main or None, alert or None

    def _milestone(self, before: int, after: int) -> int | None:
        """The latest milestone after ``before``, up to and including ``after``."""
        if isinstance(self.milestones, int):
            every = self.milestones
            return after // every * every if every and after // every > before // every else None
        return max((m for m in self.milestones if before < m <= after), default=None)

    def _fields(self, record: Record) -> dict[str, str]:
        return dict(show_terms(record, self._run.baselines) + show_clock(record))

    def _send(self, kind: str, title: str, fields: Mapping[str, Any], last: bool = False) -> None:
        if self._sender is None or kind not in self.kinds:
            return
        url = self._urls[kind]
        if url is not None:
            message = body(kind, self._run.task.task_name(), title, fields, self.username)
            self._sender.put(Message(kind, message, url, last))


def _read_url(path: Path) -> Url:
    try:
        return Url(path.read_text(encoding="utf-8").strip())
    except (OSError, UnicodeDecodeError) as error:
        problem = type(error).__name__
    # Raised out here, since the error of a decoder carries what it could not decode.
    raise UserError(f"webhook url_file {path}: {problem}")


def body(kind: str, task: str, title: str, fields: Mapping[str, Any], username: str) -> dict[str, Any]:
    """The JSON of one message, within Discord's limits: it refuses long texts, empty ones, and more than 25 fields."""

    def text(value: object, limit: int) -> str:
        shown = number(value) if isinstance(value, float) else str(value)
        return (shown if len(shown) <= limit else shown[: limit - 1] + "…") or "-"

    # At most 6000 characters in all: a few long fields, or many short ones.
    shown = [(text(name, 50), text(value, 1000 if len(fields) <= 5 else 150)) for name, value in fields.items()]
    return {
        "content": text(f"{task}: {title}", 500),
        "username": username,
        "embeds": [
            {
                "title": text(title, 250),
                "color": COLOURS.get(kind, COLOURS["status"]),
                "fields": [{"name": name, "value": value, "inline": True} for name, value in shown[:25]],
                "timestamp": datetime.now(UTC).isoformat("T", "seconds"),
            }
        ],
    }
