"""What the HTTP requests that we make ourselves have in common; fsspec makes those for files."""

from __future__ import annotations

import email.utils
import time
import urllib.request
from typing import Any


class NoRedirects(urllib.request.HTTPRedirectHandler):
    """A secret goes only where it was sent, and a POST stays one."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def retry_after(text: str | None, most: float) -> float:
    """Seconds that a server asks to wait, at most ``most``; 0 if it does not say.

    Args:
        text: the header Retry-After (RFC 9110, 10.2.3), a number of seconds or a date.
    """
    text = (text or "").strip()
    try:
        seconds = (
            float(text) if text[:1].isdecimal() else email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        )
    except (ValueError, OverflowError):
        return 0.0
    return min(max(seconds, 0.0), most)
