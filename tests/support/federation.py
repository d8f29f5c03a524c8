"""A Pelican federation on the loopback interface: discovery (TLS), director, caches and origin, which can misbehave.

``Federation().objects`` are the files. Every request is recorded, and ``fail`` makes the next ones go wrong.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import aiohttp.connector
import trustme

DATA = bytes(range(256)) * 40
"""What a file may hold."""


@dataclass(frozen=True)
class Request:
    server: str  # "discovery", "director", "cache0", ..., "origin"
    method: str
    path: str
    range: str | None
    token: str | None
    query: str = ""


@dataclass
class Fault:
    """``kind``: an HTTP status, or "truncate" (half of the body), "slow" (a pause before the head), "drop" (closes the
    connection), "drip" (a byte of the body at a time, with pauses), "hang" (no answer until ``Federation.heal``)."""

    kind: int | str
    server: str
    method: str
    times: int
    seconds: float
    path: str
    headers: dict[str, str]


@dataclass
class Federation:
    """Use as a context manager. Namespaces are the first component of the paths."""

    caches: int = 2
    dead: tuple[int, ...] = ()  # caches that the director names, and where nobody listens
    collections: bool = True
    accepts: Callable[[str | None], bool] | None = None  # is this token good? None: nothing is protected
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    etags: bool = False  # caches and origin tell one, from the content
    times: dict[str, str] = field(default_factory=dict)  # Last-Modified by path
    heal: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Federation:
        self._stack = contextlib.ExitStack()
        self._lock = threading.Lock()
        self.authority = trustme.CA()
        names = ["discovery", "director", "origin", *(f"cache{i}" for i in range(self.caches) if i not in self.dead)]
        self.ports = {name: self._stack.enter_context(self._serve(name)) for name in names}
        for i in self.dead:
            with socket.socket() as unused:
                unused.bind(("127.0.0.1", 0))
                self.ports[f"cache{i}"] = unused.getsockname()[1]
        return self

    def __exit__(self, *error: object) -> None:
        self.heal.set()
        self._stack.close()

    @contextlib.contextmanager
    def _serve(self, name: str) -> Generator[int]:
        server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"name": name, "federation": self}))
        if name == "discovery":
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    # -- for the tests --

    def host(self, name: str = "127.0.0.1") -> str:
        return f"{name}:{self.ports['discovery']}"

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"pelican://{self.host(host)}{path}"

    def address(self, server: str) -> str:
        return f"http://127.0.0.1:{self.ports[server]}"

    def fail(
        self,
        kind: int | str,
        server: str = "cache",
        method: str = "GET",
        times: int = 1,
        seconds: float = 0.0,
        path: str = "",
        headers: dict[str, str] | None = None,
    ) -> None:
        """The next so many requests to servers whose names begin so, for paths that begin so. ``headers``: of an
        answer with a status."""
        self.faults.append(Fault(kind, server, method, times, seconds, path, headers or {}))

    def fault(self, server: str, method: str, path: str) -> Fault | None:
        with self._lock:
            for fault in self.faults:
                hit = server.startswith(fault.server) and fault.method == method and path.startswith(fault.path)
                if hit and fault.times > 0:
                    fault.times -= 1
                    return fault
        return None

    def count(self, server: str = "", method: str = "", path: str = "") -> int:
        """Requests so far."""
        return sum(
            r.server.startswith(server) and r.method.startswith(method) and r.path.startswith(path)
            for r in self.requests
        )

    def trust(self) -> None:
        """In this process: aiohttp reads SSL_CERT_FILE only when it is imported, which was long ago."""
        self.authority.configure_trust(aiohttp.connector._SSL_CONTEXT_VERIFIED)

    def write_certificate(self, path: Path) -> Path:
        """What SSL_CERT_FILE is to name."""
        self.authority.cert_pem.write_to_path(str(path))
        return path


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet
    federation: Federation
    name: str

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _serve(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.query = urlsplit(self.path).query
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        body = self._body()
        self.federation.requests.append(
            Request(self.name, self.command, path, self.headers.get("Range"), token, self.query)
        )
        fault = self.federation.fault(self.name, self.command, path)
        if fault is not None and fault.kind == "drop":
            self.close_connection = True
        elif fault is not None and isinstance(fault.kind, int):
            self._send(fault.kind, b"injected", fault.headers)
        elif self.name == "discovery":
            self._send(200, json.dumps({"director_endpoint": self.federation.address("director")}).encode())
        elif self.name == "director":
            self._direct(path)
        elif self.federation.accepts is not None and not self.federation.accepts(token):
            self._send(403, b"the token is not good for this")
        elif self.command == "PUT":
            self.federation.objects[path] = body
            self._send(201, b"")
        elif self.command == "PROPFIND":
            self._list(path)
        else:
            self._read(path, fault)

    do_GET = do_HEAD = do_PUT = do_PROPFIND = _serve

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _direct(self, path: str) -> None:
        origin = "/api/v1.0/director/origin/"
        if path.startswith(origin):
            target = f"{self.federation.address('origin')}/{quote(path.removeprefix(origin))}"
            self._send(307, b"", {"Location": target})
            return
        links = [
            f'<{self.federation.address(f"cache{i}")}{quote(path)}>; rel="duplicate"; pri={i + 1}; depth=1'
            for i in range(self.federation.caches)
        ]
        protected = str(self.federation.accepts is not None).lower()
        namespace = f"namespace=/{path.split('/')[1]}, require-token={protected}"
        if self.federation.collections:
            namespace += f", collections-url={self.federation.address('origin')}"
        self._send(307, b"", {"Link": ", ".join(links), "X-Pelican-Namespace": namespace})

    def _read(self, path: str, fault: Fault | None) -> None:
        data = self.federation.objects.get(path)
        if data is None:
            self._send(404, b"")
            return
        status, headers = 200, {"Accept-Ranges": "bytes"}
        if self.federation.etags:
            headers["ETag"] = f'"{hashlib.md5(data).hexdigest()}"'
        if path in self.federation.times:
            headers["Last-Modified"] = self.federation.times[path]
        if asked := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or ""):
            start, end = int(asked[1]), min(int(asked[2]) + 1, len(data))
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
            status, data = 206, data[start:end]
        if fault is not None and fault.kind == "slow":
            time.sleep(fault.seconds)
        if fault is not None and fault.kind == "hang":
            self.federation.heal.wait(30.0)
        if fault is not None and fault.kind == "drip":
            self._send(status, data, headers, pause=fault.seconds)
        else:
            self._send(status, data, headers, half=fault is not None and fault.kind == "truncate")

    def _list(self, path: str) -> None:
        """WebDAV: the resource and, at depth 1, what is in it. A file with a slash at its end is answered with 500."""
        objects = self.federation.objects
        directory = path.rstrip("/") + "/"
        inside: dict[str, int | None] = {}  # bytes; None: a collection
        for name, data in list(objects.items()):
            if name.startswith(directory):
                first, slash, _ = name.removeprefix(directory).partition("/")
                inside[first] = None if slash else len(data)
        if path in objects:
            found: dict[str, int | None] = {path: len(objects[path])}
        elif inside:
            found = {directory: None}
            if self.headers.get("Depth") != "0":
                found.update({directory + name + ("/" if size is None else ""): size for name, size in inside.items()})
        else:
            self._send(500 if path.rstrip("/") in objects else 404, b"")
            return
        entries = "".join(
            f"<D:response><D:href>{quote(name)}</D:href><D:propstat><D:prop>"
            f"<D:getlastmodified>{formatdate(0, usegmt=True)}</D:getlastmodified>"
            f"<D:getcontentlength>{size or 0}</D:getcontentlength>"
            f"<D:resourcetype>{'<D:collection/>' if size is None else ''}</D:resourcetype>"
            f"</D:prop><D:status>HTTP/1.1 200 OK</D:status></D:propstat></D:response>"
            for name, size in found.items()
        )
        xml = f'<?xml version="1.0"?><D:multistatus xmlns:D="DAV:">{entries}</D:multistatus>'
        self._send(207, xml.encode(), {"Content-Type": "application/xml"})

    def _send(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, half: bool = False, pause: float = 0.0
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD" and pause:
            for i in range(len(body)):
                self.wfile.write(body[i : i + 1])
                self.wfile.flush()
                if self.federation.heal.wait(pause):
                    break
        elif self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if half else body)
        self.close_connection = self.close_connection or half
