"""What a remote file is known by: its bytes, and the tag and the time that its server gives it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from accel_train.errors import AccessError


class ChangedError(AccessError):
    """A file is not what it was."""


@dataclass(frozen=True)
class Identity:
    """What was said of a file. None: nothing was.

    Args:
        size: bytes.
        server: who said it. Servers of one federation may give the same file tags and times of their own.
        tag: an ETag or a checksum; where there is one, the time does not matter.
        time: of the last change.
    """

    size: int | None = None
    server: str = ""
    tag: str | None = None
    time: str | None = None

    def differs(self, now: Identity) -> str:
        """What another look at the file shows to be different, in words; "" for nothing."""
        if self.size is not None and now.size is not None and self.size != now.size:
            return f"it had {self.size:,} bytes and has {now.size:,} now"
        if self.server != now.server:
            return ""
        if self.tag and now.tag:
            return f"its tag was {self.tag} and is {now.tag} now" if self.tag != now.tag else ""
        if self.time and now.time and self.time != now.time:
            return f"it was last changed {self.time} and {now.time} now"
        return ""

    def as_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value}

    @classmethod
    def from_json(cls, known: Mapping[str, Any]) -> Identity:
        return cls(**{name: known[name] for name in ("size", "server", "tag", "time") if name in known})


_TAGS = ("etag", "md5hash", "checksum")
_TIMES = ("last-modified", "lastmodified", "last_modified", "mtime", "updated", "modified")


def of_info(info: Mapping[str, Any], server: str = "") -> Identity:
    """From what a filesystem of fsspec, or the head of an answer, says of a file."""
    said = {name.lower(): value for name, value in info.items() if value}
    tag = next((str(said[name]).removeprefix("W/") for name in _TAGS if name in said), None)
    time = next((str(said[name]) for name in _TIMES if name in said), None)
    size = info.get("size")
    return Identity(None if size is None else int(size), server, tag, time)


class Seen:
    """What was said of the files so far. A later look that says something else is refused."""

    def __init__(self) -> None:
        self._of: dict[str, dict[str, Identity]] = {}

    def get(self, url: str) -> Identity | None:
        return next(iter(self._of.get(url, {}).values()), None)

    def check(self, url: str, now: Identity, shown: str) -> None:
        """Raises ``ChangedError``. ``shown``: the URL for a message."""
        by_server = self._of.setdefault(url, {})
        for before in tuple(by_server.values()):
            if what := before.differs(now):
                raise ChangedError(f"{shown}: changed while it is in use: {what}; start again once it stays as it is")
        by_server.setdefault(now.server, now)
