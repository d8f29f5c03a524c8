"""Tokens: where they come from, when they are renewed, which rights they have, and that nobody sees them."""

import base64
import contextlib
import fcntl
import json
import multiprocessing
import os
import pickle
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel_train.data.remote import tokens
from accel_train.data.remote.device_flow import DeviceFlow
from accel_train.data.remote.tokens import Token, auto_token, expiry, scope_path, scopes
from accel_train.errors import UserError
from accel_train.system import waiting


def jwt(**claims):
    part = lambda value: base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")  # noqa: E731
    return f"{part({'alg': 'none'})}.{part(claims)}.signature"


# -- Token -----------------------------------------------------------------------------------------------------------


@given(st.floats(0, 1e12), st.text())
def test_the_expiry_of_a_jwt(exp, other):
    assert expiry(jwt(exp=exp, sub=other)) == exp


@given(st.text() | st.binary().map(lambda b: f"a.{base64.urlsafe_b64encode(b).decode()}.c"))
def test_what_is_no_jwt_has_no_expiry(text):
    assert expiry(text) is None or isinstance(expiry(text), float)
    assert expiry(jwt(exp="soon")) is None and expiry(jwt(exp=None)) is None


def test_a_function_is_asked_again_before_expiry_and_after_a_refusal(monkeypatch):
    monkeypatch.setattr(tokens, "PATIENCE_S", 0.0)
    now = time.time()
    issued = [jwt(exp=now + 30), jwt(exp=now + 3600), jwt(exp=now + 7200)]
    asked = iter(issued)
    token = Token(lambda: next(asked))
    assert token.value() == issued[0]
    assert token.value() == issued[1] == token.value()  # half a minute was too little
    assert token.renew(refused=issued[0])  # another thread had renewed it already
    assert token.value() == issued[1]
    assert token.renew(refused=issued[1])
    assert token.value() == issued[2]
    with pytest.raises(StopIteration):
        token.renew(refused=issued[2])


def test_an_issuer_that_fails_does_not_matter_while_the_token_is_good(monkeypatch):
    monkeypatch.setattr(tokens, "PATIENCE_S", 0.0)
    answers = iter([jwt(exp=time.time() + 0.3)])

    def source():
        for answer in answers:
            return answer
        raise ConnectionError("the issuer is down")

    token = Token(source)
    assert token.value() == token.value()
    time.sleep(0.4)
    with pytest.raises(ConnectionError):
        token.value()


def test_a_function_is_not_asked_all_the_time():
    asked = []
    token = Token(lambda: asked.append(1) or jwt(exp=time.time() + len(asked)))
    assert len({token.value() for _ in range(50)}) == 1 and len(asked) == 1


def test_files_and_variables_are_read_again(tmp_path, monkeypatch):
    path = tmp_path / "token"
    path.write_text("first\n")
    monkeypatch.setenv("MY_TOKEN", "first")
    for token, change in (
        (Token.from_file(path), lambda: path.write_text("second\n")),
        (Token.from_environment("MY_TOKEN"), lambda: monkeypatch.setenv("MY_TOKEN", "second")),
    ):
        assert token.value() == "first"
        assert not token.renew("first")
        change()
        assert token.value() == "first" and token.renew("first") and token.value() == "second"
        assert pickle.loads(pickle.dumps(token)).value() == "second"
    fixed = Token("given")
    assert fixed.value() == "given" and not fixed.renew("given")


@pytest.mark.parametrize("content", ["", " \n", "two words", "line\nline", "ä", "\x00"])
def test_what_is_no_token(tmp_path, content):
    path = tmp_path / "token"
    path.write_text(content)
    for token, named in ((Token.from_file(path), str(path)), (Token(content), "given")):
        with pytest.raises(UserError, match=named) as caught:
            token.value()
        assert not content.strip() or content.strip() not in str(caught.value)
    with pytest.raises(UserError, match="none: FileNotFoundError"):
        Token.from_file(tmp_path / "none").value()
    with pytest.raises(UserError, match="NO_SUCH_VARIABLE.*not set"):
        Token.from_environment("NO_SUCH_VARIABLE").value()


def test_a_token_is_not_shown():
    token = Token("secret")
    assert "secret" not in f"{token} {token!r} {[token]}"


# -- rights ----------------------------------------------------------------------------------------------------------

BASE = "pelican://osg-htc.org/icecube/wipac"


@pytest.mark.parametrize(
    ("url", "path"),
    [
        (f"{BASE}/sim/a.parquet", "/sim"),
        (f"{BASE}/sim/*.parquet", "/sim"),
        (f"{BASE}/sim/00000*/part-?/x.parquet", "/sim"),
        (f"{BASE}/sim/[ab]/x.parquet", "/sim"),
        (f"{BASE}/sim/**", "/sim"),
        (f"{BASE}/sim/0000000-0000999", "/sim/0000000-0000999"),
        (f"{BASE}/sim/out/", "/sim/out"),
        (f"{BASE}/*", "/"),
        ("pelican://osg-htc.org/icecube/wipacific/a/b.x", "/icecube/wipacific/a"),
        ("pelican://localhost:8443/other/a/b.x", "/other/a"),
        ("osdf:///icecube/wipac/sim/a.x", "/sim"),
        ("osdf://icecube/wipac/sim/a.x", "/sim"),
    ],
)
def test_the_path_of_a_right(url, path):
    assert scope_path(url) == path


def test_rights_are_the_least_that_cover_everything():
    read = [f"{BASE}/sim/a/1.x", f"{BASE}/sim/a/2.x", f"{BASE}/sim/a/deep/*.x", f"{BASE}/sim/ab/*.x", "/local/file"]
    assert scopes(read) == ("storage.read:/sim/a", "storage.read:/sim/ab")
    assert scopes(read[:1], [f"{BASE}/out/model.pt"]) == (
        "storage.read:/out", "storage.read:/sim/a", "storage.modify:/out",
    )  # fmt: skip
    assert scopes(["pelican://h/data/x.y"], prefix="/data/") == ("storage.read:/",)
    with pytest.raises(UserError, match="no input or output is a pelican"):
        scopes(["/local/file", "s3://bucket/x"])


# -- the device flow -------------------------------------------------------------------------------------------------


class Issuer(BaseHTTPRequestHandler):
    """Registers clients, gives device codes, and refresh tokens that are good once."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format, *args):
        pass

    def do_GET(self):
        names = ("token", "device_authorization", *(("registration",) if self.server.announces else ()))
        self.answer(200, {f"{name}_endpoint": f"{self.server.url}/{name}" for name in names})

    def do_POST(self):
        state, body = self.server, self.rfile.read(int(self.headers["Content-Length"])).decode()
        name = self.path.removeprefix("/")
        if name in ("registration", "client"):
            state.calls.append(name)
            state.meta = json.loads(body)
            self.answer(201, {"client_id": "client-1", "client_secret": "s/cret"})
            return
        form = dict(urllib.parse.parse_qsl(body))
        state.calls.append(form.get("grant_type", name).rpartition(":")[2])
        basic = base64.b64encode(b"client-1:s%2Fcret").decode()
        if self.headers["Authorization"] != f"Basic {basic}" or form["client_id"] != "client-1":
            self.answer(401, {"error": "invalid_client"})
        elif state.broken:
            self.answer(503, None)
        elif name == "device_authorization":
            state.scope = form["scope"]
            device = {"device_code": "dev", "user_code": "ABCD", "interval": 0.01, "expires_in": state.patience}
            self.answer(200, {**device, "verification_uri": f"{state.url}/device"})
        elif form["grant_type"] == "refresh_token":
            if form["refresh_token"] == f"refresh-{state.issued}" and not state.revoked:
                self.give()
            else:
                self.answer(400, {"error": "invalid_grant"})
        elif state.pending:
            self.answer(400, {"error": state.pending.pop(0), "error_description": "not\nyet"})
        else:
            self.give()

    def give(self):
        state = self.server
        state.issued += 1
        self.answer(200, {"access_token": f"access-{state.issued}", "refresh_token": f"refresh-{state.issued}"})

    def answer(self, status, value):
        body = b"busy" if value is None else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def issuer():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Issuer)
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    server.calls, server.pending, server.issued, server.patience = [], [], 0, 5.0
    server.announces, server.revoked, server.broken = True, False, False
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


FIRST = ["registration", "device_authorization", "device_code"]


def test_a_person_is_asked_once(issuer, tmp_path, capsys):
    cache = tmp_path / "new" / "auth"
    issuer.pending = ["authorization_pending", "authorization_pending"]
    make = lambda *more: auto_token([f"{BASE}/sim/*.x", *more], issuer=issuer.url + "/", cache=cache)  # noqa: E731
    token = make()
    assert token.value() == "access-1"
    assert issuer.calls == [*FIRST, "device_code", "device_code"]
    assert issuer.scope == "offline_access storage.read:/sim" == issuer.meta["scope"]
    said = capsys.readouterr().err
    assert f"{issuer.url}/device" in said and "ABCD" in said and "access" not in said and "refresh" not in said
    assert os.stat(cache).st_mode & 0o777 == 0o600
    saved = json.loads(cache.read_text())
    assert saved == {
        "oidc_url": issuer.url, "client_id": "client-1", "client_secret": "s/cret", "scopes": ["storage.read:/sim"],
        "refresh_token": "refresh-1",
    }  # fmt: skip

    # The next run, and a renewal in this one, are silent; the refresh token that was used up is replaced.
    issuer.calls.clear()
    assert make().value() == "access-2"
    assert token.renew("access-1") and token.value() == "access-3"
    assert issuer.calls == ["refresh_token", "refresh_token"] and not capsys.readouterr().err
    assert json.loads(cache.read_text())["refresh_token"] == "refresh-3"

    # Other rights, or a refresh token that is not good any more: asked anew.
    issuer.calls.clear()
    assert make(f"{BASE}/other/*.x").value() == "access-4"
    issuer.revoked = True
    assert make(f"{BASE}/other/*.x").value() == "access-5"
    assert issuer.calls == [*FIRST, "refresh_token", *FIRST]
    assert [p.name for p in cache.parent.iterdir() if p.name.startswith(".")] == []


def test_writing_needs_a_right_of_its_own(issuer, tmp_path):
    ask = lambda **more: auto_token(  # noqa: E731
        [f"{BASE}/sim/*.x"], [f"{BASE}/out/m.pt"], issuer=issuer.url, cache=tmp_path / "auth", **more
    ).value()
    ask()
    assert issuer.scope.split() == ["offline_access", "storage.modify:/out", "storage.read:/out", "storage.read:/sim"]
    ask(scope="/all")
    assert issuer.scope.split() == ["offline_access", "storage.modify:/all", "storage.read:/all"]


def test_an_issuer_that_does_not_announce_registration(issuer, tmp_path):
    issuer.announces = False
    assert DeviceFlow(["s"], issuer.url, tmp_path / "auth")() == "access-1"
    assert issuer.calls[0] == "client"


def test_why_there_is_no_token(issuer, tmp_path):
    flow = DeviceFlow(["s"], issuer.url, tmp_path / "auth")
    issuer.pending = ["access_denied"]
    with pytest.raises(UserError, match="gave no token: access_denied") as caught:
        flow()
    assert "\n" not in str(caught.value)
    issuer.pending, issuer.patience = ["authorization_pending"] * 1000, 0.1
    with pytest.raises(UserError, match="nobody confirmed it in time"):
        flow()
    assert not (tmp_path / "auth").exists()


def test_an_outage_is_not_a_refusal(issuer, tmp_path, capsys):
    """Nobody is asked in the middle of the night because the issuer had a hiccup."""
    flow = DeviceFlow(["s"], issuer.url, tmp_path / "auth")
    flow()
    capsys.readouterr()
    issuer.broken = True
    with pytest.raises(ConnectionError, match="did not renew the token: HTTP status 503"):
        flow()
    issuer.broken = False
    assert flow() == "access-2" and not capsys.readouterr().err


@pytest.mark.parametrize("url", ["http://issuer.example", "ftp://localhost", "file:///etc", "http://127.0.0.1.evil.x"])
def test_a_token_is_asked_for_over_https_only(url, tmp_path):
    with pytest.raises(UserError, match="over https only"):
        DeviceFlow(["s"], url, tmp_path / "auth")()


def test_an_issuer_that_is_not_there(tmp_path):
    with pytest.raises(ConnectionError, match="cannot be reached"):
        DeviceFlow(["s"], "http://127.0.0.1:9", tmp_path / "auth")()


def _ask(url, cache, answer):
    with contextlib.redirect_stderr(None):
        answer.put(DeviceFlow(["s"], url, cache)())


def test_several_ranks_ask_once(issuer, tmp_path):
    issuer.pending = ["authorization_pending"] * 5
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    ranks = [context.Process(target=_ask, args=(issuer.url, tmp_path / "auth", answers)) for _ in range(3)]
    for rank in ranks:
        rank.start()
    assert sorted(answers.get(timeout=20) for _ in ranks) == ["access-1", "access-2", "access-3"]
    for rank in ranks:
        rank.join()
    assert issuer.calls.count("device_authorization") == 1 and issuer.calls.count("refresh_token") == 2


@pytest.mark.parametrize("what", ["a person", "another process", "the issuer"])
def test_asking_for_a_token_obeys_a_stop(issuer, tmp_path, monkeypatch, what):
    flow, caught, released = DeviceFlow(["s"], issuer.url, tmp_path / "auth"), [], threading.Event()
    if what == "a person":
        issuer.pending, issuer.patience = ["authorization_pending"] * 10**6, 600.0
    elif what == "another process":
        lock = open(tmp_path / "auth.lock", "w")
        fcntl.flock(lock, fcntl.LOCK_EX)
    else:
        monkeypatch.setattr("accel_train.data.remote.device_flow._OPENER.open", lambda *_, **__: released.wait(30.0))

    def ask():
        try:
            flow()
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    try:
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        waiting.give_up()
        thread.join(5.0)
        assert isinstance(caught[0], waiting.StoppedError)
    finally:
        waiting.begin()
        released.set()
        if what == "another process":
            lock.close()


def test_a_token_for_the_last_copy(issuer, tmp_path):
    """A run that was stopped still brings its last words away."""
    waiting.give_up()
    try:
        with waiting.to_the_end():
            assert DeviceFlow(["s"], issuer.url, tmp_path / "auth")() == "access-1"
    finally:
        waiting.begin()
