"""Standard output and error on which printing never fails: their reader may leave, their disk may be full, and their
terminal may lack a character."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Generator
from typing import Any, TextIO


class Forgiving:
    """A text stream on which writing never fails.

    ``lost`` is the last error that kept a text from being written. Characters that the stream's encoding lacks are
    written as escapes.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.lost: Exception | None = None

    def write(self, text: str) -> int:
        self._try(lambda: self.stream.write(_encodable(text, self.stream.encoding)))
        return len(text)

    def writelines(self, lines: Any) -> None:
        self.write("".join(lines))

    def flush(self) -> None:
        self._try(self.stream.flush)

    def _try(self, do: Any) -> None:
        try:
            do()
        except (OSError, ValueError) as error:  # ValueError: it is closed
            self.lost = error

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _encodable(text: str, encoding: str | None) -> str:
    try:
        text.encode(encoding or "utf-8")
    except UnicodeEncodeError:
        return text.encode(encoding or "utf-8", "backslashreplace").decode(encoding or "utf-8")
    return text


def forgive() -> None:
    """Make standard output and error of this process forgiving, from now on."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, Forgiving):
            # Without a stream (it was closed before the program began), what is opened next would take its number.
            setattr(sys, name, Forgiving(stream or open(os.devnull, "w")))


@contextlib.contextmanager
def forgiving() -> Generator[None]:
    """Standard output and error are forgiving inside; a stream that somebody else has put there meanwhile stays."""
    before = sys.stdout, sys.stderr
    forgive()
    mine: tuple[Any, Any] = sys.stdout, sys.stderr
    try:
        yield
    finally:
        for name, old, new in zip(("stdout", "stderr"), before, mine, strict=True):
            if getattr(sys, name) is new:
                setattr(sys, name, old)
            if old is None:
                new.stream.close()
