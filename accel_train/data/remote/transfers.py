"""HTTP, of http(s):// and of federations: limits of time and rate, and what answers say beside their content."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from accel_train.data.remote.identity import Identity, of_info
from accel_train.system import http

T = TypeVar("T")

CONNECT_S = 30.0
RATE, RATE_S = 1000, 60.0
"""A transfer of fewer bytes a second, over so many seconds, counts as failed."""
RETRY_AFTER_S = 120.0
"""Seconds to wait at most, whatever a server asks for."""


class SlowError(OSError):
    """Bytes come, but too slowly to wait for them."""


@dataclass
class Answer:
    """The last answer of a server, as far as it has come."""

    status: int = 0
    server: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    content: Any = None
    requests: int = 0

    def received(self) -> int:
        """Bytes of the content."""
        return getattr(self.content, "total_bytes", 0)

    def identity(self) -> Identity | None:
        """What it says of the whole file, if it is one that gives (a range of) a file."""
        if self.status not in (200, 206, 416):
            return None
        size = self.headers.get("Content-Range", "").rpartition("/")[2]
        if self.status == 200 and "Content-Encoding" not in self.headers:
            size = self.headers.get("Content-Length", "")
        known = {**self.headers, "size": size if size.isdecimal() else None}
        return of_info(known if self.status != 416 else {"size": known["size"]}, self.server)

    def retry_after(self) -> float:
        """Seconds after which the server wants to be asked again; 0 if it does not say."""
        return http.retry_after(self.headers.get("Retry-After") if self.status >= 400 else None, RETRY_AFTER_S)


_answer: contextvars.ContextVar[Answer | None] = contextvars.ContextVar("answer", default=None)


def noting(answer: Answer, do: Callable[[], T]) -> T:
    """``do()``, with what servers answer meanwhile noted; fsspec hands the context on to its own thread."""
    token = _answer.set(answer)
    try:
        return do()
    finally:
        _answer.reset(token)


def last_answer() -> Answer:
    """The last answer to what is done inside ``noting``."""
    return _answer.get() or Answer()


def client_settings(stall_s: float) -> dict[str, Any]:
    """Settings of aiohttp's session."""
    import aiohttp

    # aiohttp would end any transfer after five minutes, however well it goes.
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=stall_s)

    async def watched(request: Any, handler: Any) -> Any:
        answer = _answer.get()
        if answer is not None:
            answer.requests, answer.content = answer.requests + 1, None
        waiting = handler(request)
        # A head may come byte by byte for ever; a body that is sent may take its time.
        response = await (waiting if request.method in ("PUT", "POST") else asyncio.wait_for(waiting, 2 * stall_s))
        if answer is not None:
            answer.status, answer.headers, answer.content = response.status, response.headers, response.content
            answer.server = response.url.authority.rpartition("@")[2]
        if response.status in (200, 206) and request.method == "GET":
            asyncio.get_running_loop().call_later(RATE_S, _watch, response, 0)
        return response

    # A compressed range is of no use.
    return {"timeout": timeout, "middlewares": (watched,), "headers": {"Accept-Encoding": "identity"}}


def _watch(response: Any, before: int) -> None:
    content = response.content
    if response.closed or content.is_eof() or content.exception() is not None:
        return
    if content.total_bytes - before < RATE * RATE_S:
        slow = SlowError(f"too slow: {content.total_bytes - before:,} bytes in {RATE_S:g} s")
        content.set_exception(slow)
        response.close()
        return
    asyncio.get_running_loop().call_later(RATE_S, _watch, response, content.total_bytes)
