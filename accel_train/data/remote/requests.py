"""Remote files through fsspec: which filesystem serves a URL, and how long what fails is tried again."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import random
import re
import ssl
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar
from urllib.parse import quote, unquote

from accel_train.data.remote.identity import Seen
from accel_train.data.remote.tokens import Token
from accel_train.data.remote.transfers import RATE, Answer, client_settings, noting
from accel_train.errors import AccessError, UserError
from accel_train.system import waiting

T = TypeVar("T")

_pauses = random.Random()  # of its own: a data set that draws from the global one is read otherwise

OSDF = "osg-htc.org"
STALL_S = 60.0
"""A server that sends nothing for so long has failed."""
SOON = 5
"""So often is repeated what does not look like an outage: broken answers, a host that has never answered."""
PATIENCE_S = 600.0
"""Requests that take long to fail are not repeated for longer, unless their pauses alone take longer."""
SAY_S, SAY_AGAIN_S = 10.0, 60.0
"""What a request waits for is said after so many seconds, and again."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Access:
    """How remote files are reached.

    Args:
        token: sent to federations (pelican://, osdf://) only.
        federation_url: the federation that serves all pelican:// URLs; None: the host of each URL.
        retries: how often a request is repeated during an outage (429, 5xx, a host that answered before and is gone
            now); 25 times take ten minutes. Other failures are repeated ``SOON`` times.
        backoff_s: the pause before the first repetition; it doubles up to 32 times that, and is longer where a server
            asks for it (Retry-After).
        seen: what is known of files; one that changes is refused.
        answered: hosts that have answered well.
    """

    token: Token | None = None
    federation_url: str | None = None
    retries: int = 25
    backoff_s: float = 0.8
    seen: Seen = field(default_factory=Seen, compare=False, repr=False)
    answered: set[str] = field(default_factory=set, compare=False, repr=False)

    def pause(self, trial: int) -> float:
        """Seconds after failure ``trial`` (from 1)."""
        return self.backoff_s * 2 ** min(trial - 1, 5)

    def patience_s(self) -> float:
        return sum(map(self.pause, range(1, self.retries + 1)))


class MissingError(AccessError):
    """There is no such file."""


_access = Access()


def use(access: Access) -> None:
    """From now on, this is how this process reaches remote files wherever no other is given."""
    global _access
    _access = access


def current(access: Access | None) -> Access:
    return access or _access


# -- URLs -----------------------------------------------------------------------------------------------------------


def is_remote(path: str) -> bool:
    return "://" in path and not path.startswith("file://")


def split(url: str) -> tuple[str, str, str]:
    """A remote URL as (scheme, host, path): ``("pelican", "osg-htc.org", "/icecube/a.parquet")``.

    osdf:// is a federation with a fixed host, so its URLs become pelican:// ones.
    """
    scheme, _, rest = url.partition("://")
    if scheme == "osdf":
        scheme, rest = "pelican", f"{OSDF}/{rest.lstrip('/')}"
    host, _, path = rest.partition("/")
    if scheme == "pelican":
        if not host:
            raise UserError(f"{url}: a host is missing: pelican://HOST/PATH")
        path = re.sub("/+", "/", path)
    return scheme, host, f"/{path}"


def path_of(path: str) -> tuple[str, str]:
    """A path or URL without its query, and the query, which only http(s) has: elsewhere ``?`` is part of a name."""
    if path.startswith(("http://", "https://")):
        path, _, query = path.partition("?")
        return path, query
    return path, ""


def _quoted(path: str) -> str:
    """Path and query of an http URL, quoted: what is quoted already stays, and a ``#`` is part of the name."""
    return re.sub(r"%(?![0-9A-Fa-f]{2})|[^\x21-\x7e]|[#\"<>\\^`{|}]", lambda found: quote(found[0], safe=""), path)


def shown(url: str) -> str:
    """The URL for a message: without a query or a password, which may be secrets."""
    return re.sub(r"//[^/@]*@", "//", url.partition("?")[0])


# -- filesystems ----------------------------------------------------------------------------------------------------


_filesystems: dict[tuple[int, str], tuple[Any, Any]] = {}


def filesystem(url: str, access: Access | None = None) -> tuple[Any, str]:
    """The fsspec filesystem for this URL, and the path to give it: the one place that makes them.

    They are shared by the threads of a process, and made anew after a fork and for another token. fsspec's own cache
    of instances is not used: it would keep one with an old token.
    """
    access = access or _access
    scheme, host, path = split(url)
    federated = scheme == "pelican"
    token = access.token.value() if federated and access.token else None
    key, made_for = (os.getpid(), f"{scheme}://{host}"), (token, access.federation_url)
    known = _filesystems.get(key)
    if known is None or known[0] != made_for:
        made = _pelican(access.federation_url or f"pelican://{host}", token) if federated else _generic(url)
        known = _filesystems[key] = (made_for, made)
    fs = known[1]
    # A federation gets the bare path: pelicanfs takes HOST:PORT/PATH for a URL with the scheme HOST.
    if federated:
        return fs, quote(path)
    return fs, f"{scheme}://{host}{_quoted(path)}" if scheme in ("http", "https") else fs._strip_protocol(url)


def _generic(url: str) -> Any:
    import fsspec

    try:
        if url.startswith(("http://", "https://")):
            from fsspec.implementations.http import HTTPFileSystem

            return HTTPFileSystem(skip_instance_cache=True, encoded=True, client_kwargs=client_settings(STALL_S))
        return fsspec.core.url_to_fs(url, skip_instance_cache=True)[0]
    except (ImportError, ValueError) as error:
        raise UserError(f"{shown(url)}: cannot be reached: {error}") from None


def _pelican(federation: str, token: str | None) -> Any:
    import aiohttp

    try:
        from pelicanfs.core import PelicanFileSystem, get_webdav_client
    except ImportError:
        raise UserError("pelican:// needs another package: pip install 'accel_train[pelican]'") from None
    # It writes to the screen, line by line, what its error says once more.
    logging.getLogger("fsspec.pelican").setLevel(logging.CRITICAL + 1)

    async def fall_through(request: Any, handler: Any) -> Any:
        # pelicanfs asks the caches one by one by HEAD, and goes on to the next after a time-out, but not after a
        # connection that was closed.
        try:
            return await handler(request)
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
            if request.method == "HEAD":
                raise TimeoutError(str(error)) from None
            raise

    class Pelican(PelicanFileSystem):
        @PelicanFileSystem._cache_dec
        async def _info(self, path: str, **_: Any) -> dict[str, Any]:
            """Ask by HEAD, since what comes by WebDAV has no ETag."""
            try:
                return await self.http_file_system._info(path)
            except FileNotFoundError as error:
                cause = _cause(error)
                raise cause if _status(cause) != 404 else error from None

    @contextlib.asynccontextmanager
    async def webdav(options: dict[str, Any]) -> AsyncGenerator[Any]:
        async with get_webdav_client(options) as client:
            yield _Unquoting(client)

    client = client_settings(STALL_S)
    client["middlewares"] = (fall_through, *client["middlewares"])
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    federation = f"pelican://{federation.partition('://')[2] or federation}".rstrip("/")
    return Pelican(
        federation, skip_instance_cache=True, client_kwargs=client, headers=headers, get_webdav_client=webdav
    )


class _Unquoting:
    """A WebDAV client for paths that are quoted already: it quotes them itself."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Callable[[str], Any]:
        return lambda path: getattr(self._client, name)(unquote(path))


# -- requests --------------------------------------------------------------------------------------------------------


def attempt(
    do: Callable[[Any, str], T],
    url: str,
    access: Access | None = None,
    pause: Callable[[float], Any] = waiting.sleep,
) -> T:
    """``do(filesystem, path)``, repeated after failures that may pass, with a pause that grows and is never the same.

    When the run is to stop it is left behind (``StoppedError``).

    Raises ``MissingError`` or ``AccessError`` in one line. The errors of aiohttp are not handed on: they hold the
    headers of the request, and so the token.
    """
    access = current(access)
    scheme, host, _ = split(url)
    holder = access.token if scheme == "pelican" else None
    waited, hint = 0.0, ""  # for nothing: a long download that breaks off has not been waited for
    trial = 0
    while True:
        trial += 1
        token, answer, began = "", Answer(), time.monotonic()
        work = partial(noting, answer, lambda: do(*filesystem(url, access)))
        try:
            token = holder.value() if holder else ""
            say = partial(_say_if_slow, url, answer, began)
            done = waiting.call(work, meanwhile=say)
            access.answered.add(host)
            return done
        except (UserError, waiting.StoppedError):
            raise
        except Exception as error:
            error = _cause(error)
            reason = _judge(error, url)
            if not reason:
                raise
            refused = _status(error) in (401, 403)
            # A cache that refuses the first contact is, to pelicanfs, one that is not there.
            unreachable = type(error).__module__.startswith("pelicanfs")
            outage = _is_outage(error, answer, host in access.answered)
        hint = "" if holder or not (refused or unreachable) else "; is a token needed?"
        if (refused or unreachable) and holder:
            try:
                refused = not holder.renew(token) and refused
            except OSError as error:  # the issuer may be back in a moment
                reason, refused = f"{reason}; {error}", False
        if refused:
            raise AccessError(f"{shown(url)}: {'the token' if holder else 'access'} was refused: {reason}{hint}")
        if unreachable:
            _filesystems.pop((os.getpid(), f"{scheme}://{host}"), None)
        if answer.requests and answer.received() < RATE * (time.monotonic() - began):
            waited += time.monotonic() - began
        often = access.retries if outage else min(access.retries, SOON)
        if trial > often or waited > max(access.patience_s(), PATIENCE_S):
            raise AccessError(f"{shown(url)}: failed {trial} times: {reason}{hint}")
        seconds = max(access.pause(trial) * _pauses.uniform(0.7, 1.3), answer.retry_after())
        if waited + seconds > SAY_S:
            until = time.strftime("%H:%M:%S", time.localtime(time.time() + max(access.patience_s() - waited, seconds)))
            _say(url, f"{reason} (trying again until {until})")
        pause(seconds)
        waited += seconds


_said: dict[str, float] = {}


def _say(url: str, text: str) -> None:
    """Once a minute for each host, however many threads wait for it."""
    host, now = shown(url).split("/")[2], time.monotonic()
    if now - _said.get(host, -SAY_AGAIN_S) >= SAY_AGAIN_S:
        _said[host] = now
        log.warning("waiting for %s: %s", host, text)


def _say_if_slow(url: str, answer: Answer, began: float) -> None:
    seconds, received = time.monotonic() - began, answer.received()
    if seconds > SAY_S and answer.requests and received < RATE * seconds:
        _say(url, f"{received:,} bytes of {shown(url)} in {seconds:.0f} s")


def _is_outage(error: Exception, answer: Answer, known: bool) -> bool:
    """Something that may last for minutes, and then passes. ``known``: the host has answered before."""
    status = _status(error) or answer.status
    if status == 429 or status >= 500:
        return True
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return known and bool(kinds & {"ConnectionError", "TimeoutError", "ClientConnectionError", "NoAvailableSource"})


_REMOTE_LIBRARIES = ("aiohttp", "aiowebdav2", "pelicanfs", "fsspec", "s3fs", "botocore", "gcsfs")
LOCAL_TROUBLE = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE,
    errno.ENOMEM, errno.EIO, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP,
)  # fmt: skip


def _cause(error: Exception) -> Exception:
    """fsspec calls everything that happens to a HEAD a missing file."""
    inner = error.__cause__
    return inner if isinstance(error, FileNotFoundError) and isinstance(inner, Exception) else error


def _judge(error: Exception, url: str) -> str:
    """Why it failed, if it may go better the next time; "" for an error in the program. Raises what is final."""
    reason = f"{type(error).__name__}: {shown(str(error))}".rstrip(": ").splitlines()[0][:300]
    if isinstance(error, FileNotFoundError) or _status(error) == 404:
        raise MissingError(f"{shown(url)}: no such file") from None
    if isinstance(error, ssl.SSLCertVerificationError):
        where = "set SSL_CERT_FILE if the servers have a certificate authority of their own"
        raise AccessError(f"{shown(url)}: a server's certificate is not trusted; {where} ({reason})") from None
    if type(error).__name__ == "NoCollectionsUrl":
        raise UserError(f"{shown(url)}: the federation cannot list this; name the files without wildcards") from None
    if isinstance(error, OSError) and error.errno in LOCAL_TROUBLE:  # of this machine: it does not pass
        raise AccessError(f"{shown(url)}: {reason}") from None
    if (
        isinstance(error, OSError | EOFError | json.JSONDecodeError)
        or type(error).__module__.partition(".")[0] in _REMOTE_LIBRARIES
    ):
        return reason
    return ""


def _status(error: BaseException) -> int | None:
    """The HTTP status that an error of aiohttp or WebDAV stands for."""
    names = {"UnauthorizedError": 401, "AccessDeniedError": 403, "RemoteResourceNotFoundError": 404}
    return getattr(error, "status", None) or getattr(error, "code", None) or names.get(type(error).__name__)
