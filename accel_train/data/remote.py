"""Remote files through fsspec: which filesystem serves a URL, and what happens when a request fails."""

from __future__ import annotations

import errno
import json
import logging
import os
import random
import re
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from accel_train.data.tokens import Token
from accel_train.errors import DataError, UserError

T = TypeVar("T")

OSDF = "osg-htc.org"
STALL_S = 60.0
"""A server that sends nothing for so long has failed."""


@dataclass(frozen=True)
class Access:
    """How remote files are reached.

    Args:
        token: sent to federations (pelican://, osdf://) only.
        federation_url: the federation that serves all pelican:// URLs; None: the host of each URL.
        retries: how often a failed request is repeated.
        backoff_s: the pause before the first repetition; it doubles from one to the next, up to 20 s.
    """

    token: Token | None = None
    federation_url: str | None = None
    retries: int = 5
    backoff_s: float = 0.8


class MissingError(DataError):
    """There is no such file."""


_access = Access()


def use(access: Access) -> None:
    """From now on, this is how this process reaches remote files wherever it is not told otherwise."""
    global _access
    _access = access


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


def shown(url: str) -> str:
    """For a message: without a query or a password, which may be secrets."""
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
    return fs, path if federated else fs._strip_protocol(url)


def _generic(url: str) -> Any:
    import fsspec

    try:
        return fsspec.core.url_to_fs(url, skip_instance_cache=True)[0]
    except (ImportError, ValueError) as error:
        raise UserError(f"{shown(url)}: cannot be reached: {error}") from None


def _pelican(federation: str, token: str | None) -> Any:
    import aiohttp

    try:
        from pelicanfs.core import PelicanFileSystem
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

    # aiohttp would end any transfer after five minutes, however well it goes.
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=STALL_S)
    client = {"timeout": timeout, "middlewares": (fall_through,)}
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    federation = f"pelican://{federation.partition('://')[2] or federation}".rstrip("/")
    return PelicanFileSystem(federation, skip_instance_cache=True, client_kwargs=client, headers=headers)


def attempt(
    do: Callable[[Any, str], T],
    url: str,
    access: Access | None = None,
    pause: Callable[[float], Any] = time.sleep,
) -> T:
    """``do(filesystem, path)``, repeated after failures that may pass, with a pause that grows and is never the same.

    Raises ``MissingError`` or ``DataError`` in one line. The errors of aiohttp are not handed on: they hold the headers
    of the request, and so the token.
    """
    access = access or _access
    scheme, host, _ = split(url)
    holder = access.token if scheme == "pelican" else None
    reason, hint = "", ""
    for trial in range(access.retries + 1):
        token = ""
        try:
            token = holder.value() if holder else ""
            return do(*filesystem(url, access))
        except UserError:
            raise
        except Exception as error:
            error = _cause(error)
            reason = _judge(error, url)
            if not reason:
                raise
            refused = _status(error) in (401, 403)
            # A cache that refuses the first contact is, to pelicanfs, one that is not there.
            unreachable = type(error).__module__.startswith("pelicanfs")
        hint = "" if holder or not (refused or unreachable) else "; is a token needed?"
        if (refused or unreachable) and holder:
            try:
                refused = not holder.renew(token) and refused
            except OSError as error:  # the issuer may be back in a moment
                reason, refused = f"{reason}; {error}", False
        if refused:
            raise DataError(f"{shown(url)}: {'the token' if holder else 'access'} was refused: {reason}{hint}")
        if unreachable:
            _filesystems.pop((os.getpid(), f"{scheme}://{host}"), None)
        if trial < access.retries:
            pause(min(20.0, access.backoff_s * 2**trial) * random.uniform(0.7, 1.3))
    raise DataError(f"{shown(url)}: failed {access.retries + 1} times: {reason}{hint}")


_REMOTE_LIBRARIES = ("aiohttp", "aiowebdav2", "pelicanfs", "fsspec", "s3fs", "botocore", "gcsfs")
_LOCAL_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


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
        raise DataError(f"{shown(url)}: a server's certificate is not trusted; {where} ({reason})") from None
    if type(error).__name__ == "NoCollectionsUrl":
        raise UserError(f"{shown(url)}: the federation cannot list this; name the files without wildcards") from None
    if isinstance(error, OSError) and error.errno in _LOCAL_TROUBLE:
        raise DataError(f"{shown(url)}: {reason}") from None
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
