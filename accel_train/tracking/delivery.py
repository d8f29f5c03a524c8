"""How a webhook's messages get out: a queue, one thread, and a URL that nobody else gets to see."""

from __future__ import annotations

import json
import logging
import random
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from accel_train.system.http import NoRedirects, retry_after

ALERTS = ("anomaly", "cycle", "crash", "hang")
"""The kinds that must not get lost among the others."""

CAPACITY = 64
"""Messages that may wait to be sent."""
PER_MINUTE = 20
"""Requests at most; what cannot be sent in time is dropped and counted, statuses first."""
TIMEOUT_S = 10.0
"""How long a server is waited for."""
RETRIES, BACKOFF_S = 4, 1.0
"""How often a message is tried again, and the pause before the first time, doubled for every further one."""
RETRY_AFTER_S = 3600.0
"""Seconds to wait at most, whatever a server asks for."""

log = logging.getLogger(__name__)


class Url:
    """A URL that is a secret. It has no public attribute, and is given only to the request that needs it."""

    __slots__ = ("_url",)

    def __init__(self, url: str):
        self._url = url

    def __repr__(self) -> str:
        return "<webhook URL>" if self._url else "<no webhook URL>"

    def __bool__(self) -> bool:
        return bool(self._url)

    def __reduce__(self) -> Any:
        raise TypeError("a webhook URL is a secret: it is not copied into files or other processes")

    def reveal(self) -> str:
        return self._url

    def valid(self) -> bool:
        try:
            parts = urlsplit(self._url)
            known = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            return False
        return known and self._url.isascii() and self._url.isprintable() and " " not in self._url

    def scrub(self, text: str) -> str:
        """The text without the URL and without any part of it that could be the secret one."""
        parts = urlsplit(self._url)
        pieces = {self._url, parts.netloc, parts.path, parts.query, *parts.path.split("/"), *parts.query.split("&")}
        for piece in sorted(pieces, key=len, reverse=True):
            if len(piece) >= 6:
                text = text.replace(piece, "***")
        return text


@dataclass(frozen=True)
class Message:
    """One request to make. The ``last`` one of a run has a reserved place under the rate limit."""

    kind: str
    body: dict[str, Any]
    url: Url
    last: bool = False


class Sender:
    """A bounded queue and the thread that empties it: retries, honours Retry-After, keeps to the rate limit.

    Nothing here raises into the training; what could not be delivered is counted in ``dropped``.
    """

    def __init__(self) -> None:
        self.sent = self.dropped = 0
        self._queue: list[Message] = []
        self._requests: deque[float] = deque(maxlen=PER_MINUTE)  # when the latest ones were made
        self._changed = threading.Condition()
        self._closing = self._over = self._busy = self._failing = False
        self._random = random.Random()  # its own: drawing from the global one would change the training
        self._opener = urllib.request.build_opener(NoRedirects)
        self._thread = threading.Thread(target=self._work, name="webhook", daemon=True)
        self._thread.start()

    def put(self, message: Message) -> None:
        """Queue a message; where there is no room, the least important and oldest one goes."""
        with self._changed:
            if message.kind == "status":  # only the newest is worth sending
                self._discard(i for i, queued in enumerate(self._queue) if queued.kind == "status")
            self._queue.append(message)
            if len(self._queue) > CAPACITY:
                self._discard([min(range(len(self._queue)), key=lambda i: (_importance(self._queue[i]), i))])
            self._changed.notify_all()

    def close(self, wait_s: float) -> None:
        """Send what can be sent within ``wait_s`` seconds, then stop."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._queue and not self._busy, wait_s)
            self._over = True
            self._discard(range(len(self._queue)))
            self._changed.notify_all()

    def _discard(self, indices: Iterable[int]) -> None:
        for index in sorted(indices, reverse=True):
            del self._queue[index]
            self.dropped += 1

    def _work(self) -> None:
        while (message := self._next()) is not None:
            try:
                self._deliver(message)
            except Exception as error:  # a thread that dies would be silent
                self._give_up(message, message.url.scrub(f"{type(error).__name__}: {error}"))

    def _next(self) -> Message | None:
        """Wait for a message that may be sent now. Once closing, only the last one is worth waiting for."""
        with self._changed:
            self._busy = False
            self._changed.notify_all()
            while not self._over and not (self._closing and not self._queue):
                delay = self._delay(self._queue[0]) if self._queue else None
                if delay == 0:
                    self._busy = True
                    return self._queue.pop(0)
                if self._closing and not self._queue[0].last:
                    self._discard([0])
                else:
                    self._changed.wait(delay)
            self._changed.notify_all()
            return None

    def _delay(self, message: Message) -> float:
        """Seconds until the rate limit allows this message. One request a minute is kept for the last message."""
        allowed = PER_MINUTE if message.last else PER_MINUTE - 1
        if len(self._requests) < allowed:
            return 0.0
        return max(self._requests[-allowed] + 60.0 - time.monotonic(), 0.0)

    def _deliver(self, message: Message) -> None:
        problem = ""
        for attempt in range(RETRIES + 1):
            self._requests.append(time.monotonic())
            problem, pause = self._post(message)
            if not problem:
                self.sent += 1
                self._failing = False
                return
            if pause is None or attempt == RETRIES:
                break
            if not self._sleep(max(pause, BACKOFF_S * 2**attempt * self._random.uniform(0.5, 1.5)), message):
                break
        self._give_up(message, problem)

    def _post(self, message: Message) -> tuple[str, float | None]:
        """What went wrong, if anything, and in how many seconds to try again at the earliest, if that makes sense."""
        content = json.dumps(message.body).encode()
        headers = {"Content-Type": "application/json", "User-Agent": "accel-train"}  # Discord refuses urllib's own
        request = urllib.request.Request(message.url.reveal(), content, headers, method="POST")
        try:
            with self._opener.open(request, timeout=TIMEOUT_S):
                return "", None
        except urllib.error.HTTPError as error:
            with error:
                temporary = error.code in (408, 425, 429) or error.code >= 500
                wait = retry_after(error.headers.get("Retry-After"), RETRY_AFTER_S)
                return f"HTTP {error.code}", wait if temporary else None
        except Exception as error:
            cause = error.reason if isinstance(error, urllib.error.URLError) else error
            return message.url.scrub(f"{type(cause).__name__}: {cause}"), 0.0

    def _sleep(self, seconds: float, message: Message) -> bool:
        """Wait, unless the run ends. False: do not try again."""
        with self._changed:
            self._changed.wait_for(lambda: self._over or (self._closing and not message.last), seconds)
            return not self._over and not (self._closing and not message.last)

    def _give_up(self, message: Message, problem: str) -> None:
        self.dropped += 1
        if not self._failing:
            log.warning("webhook: a %s message could not be sent (%s); training goes on", message.kind, problem)
        self._failing = True  # one warning an outage


def _importance(message: Message) -> int:
    if message.kind == "status":
        return 0
    return 2 if message.kind in ALERTS or message.last else 1
