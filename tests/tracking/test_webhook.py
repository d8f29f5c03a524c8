"""The webhook against a server on this machine: delivery, trouble of every kind, and a URL that nobody gets to see."""

import json
import logging
import pickle
import socket
import threading
import time
import traceback
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from accel_train.config.schema import WebhookConfig
from accel_train.errors import UserError
from accel_train.task import Event, Task
from accel_train.tracking import delivery
from accel_train.tracking.delivery import Message, Sender, Url
from accel_train.tracking.observer import Run
from accel_train.tracking.webhook import KINDS, Webhook, body

TOKEN = "sEcReT-tOkEn_0123456789"


class CollatzTask(Task):
    """Only its name is needed."""


class Server(ThreadingHTTPServer):
    """Answers from a list of (code, headers), then 204; the code 0 means to hang."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, answers=()):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers = list(answers)
        self.received: list[tuple[float, str, dict, dict]] = []
        self.released = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/api/webhooks/42/{TOKEN}"

    def wait_for(self, messages: int) -> None:
        end = time.monotonic() + 10
        while len(self.received) < messages:
            assert time.monotonic() < end, f"{len(self.received)} messages came, {messages} were expected"
            time.sleep(0.01)

    def titles(self) -> list[str]:
        return [message["embeds"][0]["title"] for _, _, _, message in self.received]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self):
        message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.received.append((time.monotonic(), self.path, dict(self.headers), message))
        code, headers = self.server.answers.pop(0) if self.server.answers else (204, {})
        if code == 0:
            self.server.released.wait(20)
            return
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format, *args):
        pass


@contextmanager
def serving(*answers):
    server = Server(answers)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for name in ("ACCEL_TRAIN_WEBHOOK_URL", "ACCEL_TRAIN_ALERT_WEBHOOK_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Start a webhook on a URL, with short times."""

    def start(url: str, alert_url: str = "", start_step=0, **settings) -> Webhook:
        monkeypatch.setenv("ACCEL_TRAIN_WEBHOOK_URL", url)
        monkeypatch.setenv("ACCEL_TRAIN_ALERT_WEBHOOK_URL", alert_url)
        monkeypatch.setattr(delivery, "BACKOFF_S", 0.02)
        webhook = Webhook(WebhookConfig(**({"kinds": list(KINDS)} | settings)))
        webhook.on_start(Run(tmp_path, CollatzTask(), {}, {}, 1000, start_step=start_step, baselines={"next": 0.4621}))
        return webhook

    return start


def message(title: str, kind="warning", url="http://127.0.0.1:9/x", last=False) -> Message:
    return Message(kind, body(kind, "toy", title, {}), Url(url), last)


# -- what is sent --------------------------------------------------------------------------------------------------


def test_a_message_is_what_discord_expects(start):
    with serving() as server:
        webhook = start(server.url, kinds=["anomaly"])
        webhook.on_event(Event("anomaly", "prediction far off", {"n": 2**68, "error": np.float32(3.25), "note": ""}))
        webhook.on_end("completed", {})
    ((_, path, headers, sent),) = server.received
    assert path == f"/api/webhooks/42/{TOKEN}"
    assert headers["Content-Type"] == "application/json" and "urllib" not in headers["User-Agent"]
    assert sent["embeds"][0].pop("timestamp").endswith("+00:00")
    assert sent == {
        "content": "collatz: prediction far off",
        "username": "accel-train",
        "embeds": [
            {
                "title": "prediction far off",
                "color": 15158332,
                "fields": [
                    {"name": "n", "value": "295147905179352825856", "inline": True},
                    {"name": "error", "value": "3.25", "inline": True},
                    {"name": "note", "value": "-", "inline": True},
                ],
            }
        ],
    }


def test_the_life_of_a_run(start):
    with serving() as server:
        webhook = start(server.url, status_steps=200, milestones=250)
        for step in range(100, 501, 100):
            webhook.on_log({"step": step, "loss": 0.5, "next": 0.47, "items_per_s": 1894.2, "eta_s": 60.0})
            server.wait_for(1 + step // 200 + (step >= 300) + (step >= 500))
        webhook.on_event(Event("cycle", "a cycle"))
        webhook.on_end("stopped", {"step": 500, "loss": 0.5, "reason": "SIGTERM"})
    assert server.titles() == [
        "started", "step 200", "step 250 reached", "step 400", "step 500 reached", "a cycle", "stopped"
    ]  # fmt: skip
    embeds = [sent["embeds"][0] for _, _, _, sent in server.received]
    assert [embed["color"] for embed in embeds] == [3066993, 3447003, 3066993, 3447003, 3066993, 16711680, 9807270]
    assert {f["name"]: f["value"] for f in embeds[1]["fields"]} == {
        "loss": "0.5000", "next": "0.4700 (floor 0.4621)", "items/s": "1,894", "ETA": "1m00s",
    }  # fmt: skip
    assert {f["name"]: f["value"] for f in embeds[-1]["fields"]} == {
        "step": "500",
        "loss": "0.5000",
        "reason": "SIGTERM",
    }


def test_milestones_every_so_many_steps_are_not_repeated_after_a_resume(start):
    with serving() as server:
        webhook = start(server.url, kinds=["milestone"], milestones=100, start_step=200)
        for step in (200, 250, 510):
            webhook.on_log({"step": step, "loss": 0.5})
        webhook.on_end("completed", {})
    assert server.titles() == ["step 500 reached"]


def test_alerts_have_their_own_url_and_a_crash_is_one(start):
    with serving() as server:
        webhook = start(server.url, alert_url=server.url + "/alert")
        webhook.on_event(Event("anomaly", "odd"))
        webhook.on_event(Event("warning", "slow"))
        webhook.on_end("crashed", {"reason": "out of memory"})
    to_alert = {sent["embeds"][0]["title"]: path.endswith("/alert") for _, path, _, sent in server.received}
    assert to_alert == {"started": False, "odd": True, "slow": False, "crashed": True}


def test_only_an_alert_url_means_only_alerts(start):
    with serving() as server:
        webhook = start("", alert_url=server.url)
        webhook.on_event(Event("cycle", "a cycle"))
        webhook.on_end("completed", {})
    assert server.titles() == ["a cycle"]


def test_a_body_stays_within_discords_limits():
    for n, size in ((30, 5000), (5, 5000), (1, 5000)):
        sent = body("status", "toy", "t" * 3000, {f"{i}" + "n" * 300: "v" * size for i in range(n)})
        (embed,) = sent["embeds"]
        assert len(sent["content"]) <= 2000 and len(embed["title"]) <= 256 and len(embed["fields"]) <= 25
        assert all(0 < len(f["name"]) <= 256 and 0 < len(f["value"]) <= 1024 for f in embed["fields"])
        assert len(embed["title"]) + sum(len(f["name"]) + len(f["value"]) for f in embed["fields"]) <= 6000


# -- trouble -------------------------------------------------------------------------------------------------------


def test_an_error_of_the_server_is_tried_again(start):
    with serving((500, {}), (503, {})) as server:
        webhook = start(server.url, kinds=["warning"])
        webhook.on_event(Event("warning", "slow"))
        webhook.on_event(Event("warning", "slower"))
        server.wait_for(4)
        sender = webhook._sender
        webhook.on_end("completed", {})
    assert server.titles() == ["slow", "slow", "slow", "slower"]
    assert sender is not None and (sender.sent, sender.dropped) == (2, 0)


def test_retry_after_is_honoured(start):
    with serving((429, {"Retry-After": "0.6"})) as server:
        webhook = start(server.url, kinds=["warning"])
        webhook.on_event(Event("warning", "slow"))
        server.wait_for(2)
        webhook.on_end("completed", {})
    first, second = (when for when, *_ in server.received)
    assert 0.6 <= second - first < 2


@pytest.mark.parametrize("answer", [(404, {}), (302, {"Location": "http://127.0.0.1:9/elsewhere"})])
def test_a_refusal_is_not_tried_again_and_said_once(start, caplog, answer):
    with serving(answer, answer) as server, caplog.at_level(logging.WARNING):
        webhook = start(server.url, kinds=["warning"])
        webhook.on_event(Event("warning", "slow"))
        webhook.on_event(Event("warning", "slower"))
        webhook.on_end("completed", {})
    assert server.titles() == ["slow", "slower"]
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == f"webhook: a warning message could not be sent (HTTP {answer[0]}); training goes on"


def test_a_hanging_server_does_not_hold_up_the_training(start, monkeypatch):
    monkeypatch.setattr(delivery, "TIMEOUT_S", 0.2)
    monkeypatch.setattr(delivery, "RETRIES", 50)
    monkeypatch.setattr("accel_train.tracking.webhook.DRAIN_S", 0.5)
    with serving(*[(0, {})] * 10) as server:
        webhook = start(server.url)
        begin = time.monotonic()
        for i in range(500):
            webhook.on_event(Event("anomaly", f"{i}"))
            webhook.on_log({"step": i, "loss": 0.5})
        assert time.monotonic() - begin < 0.5
        sender = webhook._sender
        begin = time.monotonic()
        webhook.on_end("completed", {})
        assert time.monotonic() - begin < 1.5
    assert sender is not None and sender.dropped >= 500 - 64


def test_a_dead_port_harms_nobody_and_its_url_stays_secret(start, caplog, capfd, monkeypatch):
    monkeypatch.setattr(delivery, "RETRIES", 1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with caplog.at_level(logging.DEBUG):
        webhook = start(f"http://127.0.0.1:{port}/api/webhooks/42/{TOKEN}")
        while not caplog.records:
            time.sleep(0.01)
        webhook.on_end("crashed", {"reason": "x"})
    assert "ConnectionRefusedError" in caplog.text and TOKEN not in caplog.text
    assert TOKEN not in "".join(capfd.readouterr())


def test_an_overflowing_queue_drops_statuses_first_and_counts(monkeypatch):
    monkeypatch.setattr(delivery, "CAPACITY", 4)
    monkeypatch.setattr(delivery, "PER_MINUTE", 2)
    sender = Sender()
    sender._requests.append(time.monotonic())  # so that nothing may be sent for a minute
    for title, kind in [("s1", "status"), ("w1", "warning"), ("s2", "status"), ("a1", "anomaly"), ("w2", "warning")]:
        sender.put(message(title, kind))
    queued = [m.body["embeds"][0]["title"] for m in sender._queue]
    assert (queued, sender.dropped) == (["w1", "s2", "a1", "w2"], 1), "a newer status replaces the older one"
    for title, kind in [("w3", "warning"), ("a2", "anomaly"), ("a3", "anomaly"), ("a4", "anomaly")]:
        sender.put(message(title, kind))
    queued = [m.body["embeds"][0]["title"] for m in sender._queue]
    assert (queued, sender.dropped) == (["a1", "a2", "a3", "a4"], 5), "then the others, alerts last"
    sender.put(message("a5", "anomaly"))
    assert sender._queue[0].body["embeds"][0]["title"] == "a2"
    begin = time.monotonic()
    sender.close(2.0)
    assert time.monotonic() - begin < 0.5, "what may not go now is not waited for"
    assert sender.dropped == 10
    sender._thread.join(2)
    assert not sender._thread.is_alive()


def test_the_rate_limit_keeps_a_place_for_the_last_message(start, monkeypatch):
    monkeypatch.setattr(delivery, "PER_MINUTE", 4)
    with serving() as server:
        webhook = start(server.url, kinds=["anomaly", "stop"])
        for i in range(10):
            webhook.on_event(Event("anomaly", f"{i}"))
        server.wait_for(3)
        time.sleep(0.2)
        assert server.titles() == ["0", "1", "2"]
        webhook.on_end("completed", {"step": 1})
    assert server.titles() == ["0", "1", "2", "completed"]


def test_the_end_interrupts_a_long_backoff_and_still_tells(start):
    with serving((500, {"Retry-After": "3000"})) as server:
        webhook = start(server.url, kinds=["warning", "stop"])
        webhook.on_event(Event("warning", "slow"))
        server.wait_for(1)
        time.sleep(0.1)
        begin = time.monotonic()
        webhook.on_end("completed", {})
        assert time.monotonic() - begin < 1
    assert server.titles() == ["slow", "completed"]


def test_nothing_raised_while_sending_ends_the_thread(monkeypatch, caplog):
    sender = Sender()
    url = f"http://127.0.0.1:9/{TOKEN}"

    def post(message):
        raise RuntimeError(f"cannot open {url!r} at /{TOKEN}?x")

    monkeypatch.setattr(sender, "_post", post)
    sender.put(message("a", url=url))
    sender.put(message("b", url=url))
    sender.close(2.0)
    assert sender.dropped == 2
    assert "RuntimeError: cannot open" in caplog.text and TOKEN not in caplog.text


# -- the URL -------------------------------------------------------------------------------------------------------


def test_the_url_may_come_from_a_file(tmp_path, start):
    with serving() as server:
        (tmp_path / "url").write_text(server.url + "\n")
        webhook = start("http://127.0.0.1:9/wrong", url_file=str(tmp_path / "url"))
        webhook.on_end("completed", {})
    assert server.titles() == ["started", "completed"]


def test_an_exception_with_the_url_is_scrubbed(monkeypatch, caplog):
    secret = f"http://127.0.0.1:9/api/webhooks/42/{TOKEN}?thread=abcdef123"
    monkeypatch.setattr(delivery, "RETRIES", 0)
    sender = Sender()

    def fail(*args, **kwargs):
        raise ValueError(f"{secret} and '/api/webhooks/42/{TOKEN}' and {TOKEN} and thread=abcdef123 failed")

    monkeypatch.setattr(sender._opener, "open", fail)
    sender.put(message("a", url=secret))
    sender.close(2.0)
    assert "ValueError" in caplog.text
    assert not [part for part in (TOKEN, "webhooks/42", "abcdef123", "127.0.0.1") if part in caplog.text]


def test_the_url_is_in_no_repr(start):
    with serving() as server:
        webhook = start(server.url)
        one = message("a", url=server.url)
        things = [webhook, vars(webhook), webhook._sender, vars(webhook._sender), one, vars(one), one.url]
        assert not [thing for thing in things if TOKEN in repr(thing) or TOKEN in str(thing)]
        with pytest.raises(TypeError):
            pickle.dumps(one.url)
        webhook.on_end("completed", {})


@pytest.mark.parametrize(
    "value",
    ["ftp://h/" + TOKEN, "file:///etc/" + TOKEN, TOKEN, f"http:///{TOKEN}", f"http://h:x/{TOKEN}", f"http://h/ {TOKEN}",
     f"http://[{TOKEN}/", f"http://h/{TOKEN}\x01", ""],
)  # fmt: skip
def test_a_bad_url_is_refused_without_showing_it(start, value):
    with pytest.raises(UserError) as caught:
        start(value)
    shown = "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=True).format())
    frames = shown[shown.index("accel_train/tracking/webhook.py") :]  # the test's own frames know the value, of course
    assert "ACCEL_TRAIN_WEBHOOK_URL" in str(caught.value)
    assert TOKEN not in str(caught.value) and TOKEN not in frames
    assert caught.value.__context__ is None


def test_no_url_says_where_it_belongs(start, tmp_path):
    with pytest.raises(UserError, match="environment variable ACCEL_TRAIN_WEBHOOK_URL is empty or not set"):
        start("")
    with pytest.raises(UserError, match="url_file .*missing: FileNotFoundError"):
        start("", url_file=str(tmp_path / "missing"))
    (tmp_path / "latin").write_bytes(TOKEN.encode() + b"\xe9")
    with pytest.raises(UserError, match="url_file .*latin: UnicodeDecodeError") as caught:
        start("", url_file=str(tmp_path / "latin"))
    assert caught.value.__context__ is None, "the error of the decoder carries the text"


def test_a_webhook_that_could_not_start_is_silent(start, tmp_path):
    webhook = Webhook(WebhookConfig())
    webhook.on_event(Event("anomaly", "odd"))
    webhook.on_log({"step": 5, "loss": 0.5})
    webhook.on_end("completed", {})


def test_arguments_are_checked_and_a_url_among_them_is_not_repeated():
    for settings in (
        {"url_env": f"https://h/{TOKEN}"},
        {"url_file": f"HTTPS://h/{TOKEN}"},
        {"url_env": f"discord.com/api/webhooks/42/{TOKEN}"},
        {"url_file": f"discord.com/api/webhooks/42/{TOKEN}"},
    ):
        with pytest.raises(UserError, match="takes the name of") as caught:
            Webhook(WebhookConfig(**settings))
        assert TOKEN not in str(caught.value)
    with pytest.raises(UserError, match="kinds.*expected start or stop.*nonsense"):
        WebhookConfig(kinds=["nonsense"])  # pyright: ignore[reportArgumentType]
    assert set(KINDS) == {"start", "stop", "crash", "hang", "status", "milestone", "anomaly", "cycle", "warning"}
