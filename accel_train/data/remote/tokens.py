"""Bearer tokens: where they come from, when they are renewed, and which rights to ask for.

A token is never in a log, an exception, a ``repr`` or a config: there only the file or the variable that holds it is
named.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from accel_train.data.remote.device_flow import CACHE, ISSUER, DeviceFlow
from accel_train.errors import UserError

STORAGE_PREFIX = "/icecube/wipac"
MARGIN_S = 60.0
"""A token is renewed so long before it expires: one sent at the last moment arrives too late."""
PATIENCE_S = 10.0
"""A source whose tokens expire at once is asked no more often."""


class Token:
    """A bearer token that renews itself. Used from several threads.

    Args:
        source: the token, or a function that returns one and is asked again before the old one expires (its JWT claim
            ``exp``, if it is a JWT) and when it was refused.
    """

    def __init__(self, source: str | Callable[[], str]) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._value: str | None = None
        self._asked = 0.0

    @classmethod
    def from_file(cls, path: str | Path) -> Token:
        """Read again whenever it is renewed, as a credential daemon may replace the file."""
        return cls(partial(_of_file, Path(path)))

    @classmethod
    def from_environment(cls, name: str) -> Token:
        return cls(partial(_of_variable, name))

    def value(self) -> str:
        """The token to send now. Raises ``UserError`` if there is none, or what the source raises."""
        with self._lock:
            if self._value is None:
                return self._ask()
            expires = expiry(self._value) or float("inf")
            if time.time() > expires - MARGIN_S and time.monotonic() > self._asked + PATIENCE_S:
                try:
                    return self._ask()
                except (OSError, UserError):  # the old one still serves
                    if time.time() > expires:
                        raise
            return self._value

    def renew(self, refused: str) -> bool:
        """After a server refused this token: is there another one to try?"""
        with self._lock:
            return (self._ask() if self._value == refused else self._value) != refused

    def _ask(self) -> str:
        self._asked = time.monotonic()
        given = self._source() if callable(self._source) else self._source
        self._value = _clean(given, "the token that was given")
        return self._value

    def __repr__(self) -> str:
        return "Token(***)"

    def __reduce__(self) -> tuple[Any, ...]:
        return Token, (self._source,)


def _of_file(path: Path) -> str:
    try:
        return _clean(path.read_text(), f"the token in {path}")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"no token can be read from {path}: {type(error).__name__}") from None


def _of_variable(name: str) -> str:
    if name not in os.environ:
        raise UserError(f"the environment variable {name}, which is to hold the token, is not set")
    return _clean(os.environ[name], f"the token in ${name}")


def _clean(text: str, what: str) -> str:
    text = text.strip()
    if not re.fullmatch(r"[\x21-\x7e]+", text):
        raise UserError(f"{what} is {'empty' if not text else 'no token: there are blanks or odd characters in it'}")
    return text


def expiry(token: str) -> float | None:
    """When a JWT expires (seconds since 1970; RFC 7519, 4.1.4); None if it does not say or is none. Not verified."""
    parts = token.split(".")
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        return float(claims["exp"])
    except (IndexError, KeyError, TypeError, ValueError, binascii.Error, OverflowError):
        return None


# -- which rights to ask for -----------------------------------------------------------------------------------------


def scopes(read: Sequence[str], write: Sequence[str] = (), prefix: str = STORAGE_PREFIX) -> tuple[str, ...]:
    """The least rights that cover these URLs and patterns: ``storage.read:PATH``, ``storage.modify:PATH``.

    Only pelican:// and osdf:// count. ``write``: what will be written, with all that is in the same directory.
    """
    remote = lambda urls: [url for url in urls if url.startswith(("pelican://", "osdf://"))]  # noqa: E731
    wanted = [f"storage.read:{path}" for path in _roots([scope_path(url, prefix) for url in remote([*read, *write])])]
    wanted += [f"storage.modify:{path}" for path in _roots([scope_path(url, prefix) for url in remote(write)])]
    if not wanted:
        raise UserError("a token was asked for, but no input or output is a pelican:// URL")
    return tuple(wanted)


def scope_path(url: str, prefix: str = STORAGE_PREFIX) -> str:
    """The directory of a URL or pattern as the issuer knows it: without ``prefix``, up to the first wildcard, and the
    parent of what looks like a file (has a dot in its name)."""
    rest = url.partition("://")[2]
    path = "/" + (rest.partition("/")[2] if url.startswith("pelican://") else rest.lstrip("/"))
    prefix = "/" + prefix.strip("/")
    if (path + "/").startswith(prefix + "/"):
        path = path.removeprefix(prefix)
    parts = [part for part in path.split("/") if part]
    wild = next((i for i, part in enumerate(parts) if re.search(r"[*?\[]", part)), None)
    if wild is not None:
        parts = parts[:wild]
    elif parts and "." in parts[-1]:
        parts = parts[:-1]
    return "/" + "/".join(parts)


def _roots(paths: Sequence[str]) -> list[str]:
    """The paths that lie in no other one."""
    kept: list[str] = []
    for path in sorted(set(paths)):
        if not any(path.startswith(root.rstrip("/") + "/") for root in kept):
            kept.append(path)
    return kept


def auto_token(
    read: Sequence[str],
    write: Sequence[str] = (),
    issuer: str = ISSUER,
    prefix: str = STORAGE_PREFIX,
    scope: str | None = None,
    cache: str | Path = CACHE,
) -> Token:
    """A token for these URLs, from the issuer: a person confirms it in a browser once; the file ``cache`` remembers.

    ``scope``: the path of the rights, if it does not follow from the URLs.
    """
    if scope is None:
        rights = scopes(read, write, prefix)
    else:
        rights = (f"storage.read:{scope}", *([f"storage.modify:{scope}"] if write else []))
    return Token(DeviceFlow(rights, issuer, cache))
