"""Alerts to Discord, or to anything that takes the same JSON, from a thread that training never waits for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

from accel_train.config.schema import AlertKind, WebhookConfig
from accel_train.errors import UserError
from accel_train.task import Event
from accel_train.tracking.delivery import ALERTS, Message, Sender, Url
from accel_train.tracking.observer import Observer, Record, Run
from accel_train.tracking.records import number, show_clock, show_terms

KINDS = get_args(AlertKind)
ALERT_URL_ENV = "ACCEL_TRAIN_ALERT_WEBHOOK_URL"
"""The environment variable with another URL for anomalies, cycles and crashes; it may be unset."""
DRAIN_S = 5.0
"""The end of a run waits so long for what is still to be sent."""
COLOURS = {
    "start": 3066993, "stop": 9807270, "crash": 16711680, "hang": 15158332, "status": 3447003,
    "milestone": 3066993, "anomaly": 15158332, "cycle": 16711680, "warning": 15844367,
}  # fmt: skip


class Webhook(Observer):
    """Posts what happens to a run: start, stop, crash, status and milestones on its own account, and every event.

    Who knows a webhook's URL can post to it. So the URL is never an argument: it is read from the environment, or from
    a file, when the run starts, and shows up in no message, exception, repr or record.
    """

    _sender: Sender | None = None

    def __init__(self, settings: WebhookConfig) -> None:
        # A URL put here by mistake must not be repeated in a message.
        if not settings.url_env.isidentifier():
            raise UserError("webhook url_env: this takes the name of an environment variable that holds the URL")
        file = str(settings.url_file)
        if file.lower().startswith(("http:", "https:")) or "api/webhooks" in file:
            raise UserError("webhook url_file: this takes the name of a file that holds the URL")
        self.settings = settings

    def on_start(self, run: Run) -> None:
        main, alert = self._find_urls()
        self._run = run
        self._step = run.start_step
        self._urls = {kind: (alert if kind in ALERTS else main) or main for kind in KINDS}
        self._sender = Sender()
        steps = "until stopped" if run.total_steps is None else f"{number(run.start_step)} of {number(run.total_steps)}"
        fields = {"steps": steps, "device": run.device, "processes": run.world_size, "folder": run.output_dir.name}
        self._send("start", "resumed" if run.resumed_from is not None else "started", fields)

    def on_log(self, record: Record) -> None:
        if self._sender is None:
            return
        before, self._step = self._step, int(record["step"])
        if (every := self.settings.milestones) and self._step // every > before // every:
            self._send("milestone", f"step {number(self._step // every * every)} reached", self._fields(record))
        if (every := self.settings.status_steps) and self._step // every > before // every:
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
        self._sender.close(DRAIN_S)
        self._sender = None

    def _find_urls(self) -> tuple[Url | None, Url | None]:
        file, name = self.settings.url_file, self.settings.url_env
        if file is not None:
            main, source = _read_url(Path(file).expanduser()), f"the file {file}"
        else:
            main, source = Url(os.environ.get(name, "").strip()), f"the environment variable {name}"
        alert = Url(os.environ.get(ALERT_URL_ENV, "").strip())
        if not main and not alert:
            raise UserError(f"webhook: {source} is empty or not set, so no alerts will be sent")
        for url, origin in ((main, source), (alert, f"the environment variable {ALERT_URL_ENV}")):
            if url and not url.valid():
                raise UserError(f"webhook: {origin} does not hold an http or https URL, so no alerts will be sent")
        return main or None, alert or None

    def _fields(self, record: Record) -> dict[str, str]:
        return dict(show_terms(record, self._run.baselines) + show_clock(record))

    def _send(self, kind: str, title: str, fields: Mapping[str, Any], last: bool = False) -> None:
        if self._sender is None or kind not in self.settings.kinds:
            return
        url = self._urls[kind]
        if url is not None:
            message = body(kind, self._run.task.task_name(), title, fields)
            self._sender.put(Message(kind, message, url, last))


def _read_url(path: Path) -> Url:
    try:
        return Url(path.read_text(encoding="utf-8").strip())
    except (OSError, UnicodeDecodeError) as error:
        problem = type(error).__name__
    # Raised out here, since the error of a decoder carries what it could not decode.
    raise UserError(f"webhook url_file {path}: {problem}")


def body(kind: str, task: str, title: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON of one message, within Discord's limits: it refuses long texts, empty ones, and more than 25 fields."""

    def text(value: object, limit: int) -> str:
        shown = number(value) if isinstance(value, float) else str(value)
        return (shown if len(shown) <= limit else shown[: limit - 1] + "…") or "-"

    # At most 6000 characters in all: a few long fields, or many short ones.
    shown = [(text(name, 50), text(value, 1000 if len(fields) <= 5 else 150)) for name, value in fields.items()]
    return {
        "content": text(f"{task}: {title}", 500),
        "username": "accel-train",
        "embeds": [
            {
                "title": text(title, 250),
                "color": COLOURS.get(kind, COLOURS["status"]),
                "fields": [{"name": name, "value": value, "inline": True} for name, value in shown[:25]],
                "timestamp": datetime.now(UTC).isoformat("T", "seconds"),
            }
        ],
    }
