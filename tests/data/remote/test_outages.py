"""What remote files do to a run when their servers are slow, away or change: waited for, said, stopped, refused."""

import io
import logging
import shutil
import threading
import time
from email.utils import formatdate

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.federation import DATA

from accel_train.data.bad import BadDataPolicy
from accel_train.data.formats.parquet import Parquet
from accel_train.data.remote import requests as remote
from accel_train.data.remote import storage, transfers
from accel_train.data.remote.identity import ChangedError
from accel_train.data.remote.requests import Access
from accel_train.data.remote.staging import Staging
from accel_train.errors import AccessError, UserError
from accel_train.system import waiting

OTHER = DATA[:5000] + b"x" + DATA[5001:]


def fast(**settings):
    return Access(**{"backoff_s": 0.001, "retries": 5, **settings})


@pytest.fixture(params=["pelican", "http"])
def url(request, federation):
    return federation.url("/ns/a.bin") if request.param == "pelican" else f"{federation.address('cache0')}/ns/a.bin"


# -- a stop ----------------------------------------------------------------------------------------------------------


def stopped_at_once(do):
    """The error of ``do()``, which waits, once the run is to stop; it comes within a fraction of a second."""
    caught = []

    def work():
        try:
            do()
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(0.3)
    assert thread.is_alive(), "did not wait"
    waiting.give_up()
    thread.join(5.0)
    assert not thread.is_alive(), "did not stop"
    return caught[0]


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_a_read_that_hangs_obeys_a_stop(federation, url, method):
    access = fast()
    storage.size(url, access)
    federation.fail("hang", "cache", method, times=10**9)
    error = stopped_at_once(lambda: storage.open_file(url, access).read(10))
    assert isinstance(error, waiting.StoppedError)


def test_rows_that_hang_obey_a_stop_whatever_is_to_be_done_about_bad_data(federation, url):
    buffer = io.BytesIO()
    pq.write_table(pa.table({"x": range(1000)}), buffer)
    federation.objects["/ns/a.bin"] = buffer.getvalue()
    access, bad = fast(), BadDataPolicy("skip")
    format = Parquet(["x"], decode=lambda batch: None, bad=bad, open=lambda path: storage.open_file(path, access))
    assert format.groups(url) == [1000]
    federation.fail("hang", "cache", times=10**9)
    assert isinstance(stopped_at_once(lambda: next(format.blocks(url, 0, 100))), waiting.StoppedError)
    assert not bad.left_out


def test_the_pause_between_two_requests_obeys_a_stop(federation, url):
    federation.fail(503, times=10**9)
    access = Access(backoff_s=100.0)
    assert isinstance(stopped_at_once(lambda: storage.open_file(url, access).read(10)), waiting.StoppedError)


@pytest.mark.parametrize("ahead", [0, 2])
def test_a_staged_file_that_hangs_obeys_a_stop(federation, url, tmp_path, ahead):
    federation.fail("hang", times=10**9)
    stage = Staging(tmp_path, ahead, access=fast())
    assert isinstance(stopped_at_once(lambda: stage.acquire(url)), waiting.StoppedError)
    began = time.monotonic()
    stage.close()
    assert time.monotonic() - began < 5.0


def test_a_copy_that_another_process_makes_obeys_a_stop(federation, url, tmp_path, monkeypatch):
    monkeypatch.setattr("accel_train.data.remote.copies._is_locked", lambda path: True)
    with Staging(tmp_path, access=fast()) as stage:
        assert isinstance(stopped_at_once(lambda: stage.acquire(url)), waiting.StoppedError)


# -- changes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("told_by", ["tag", "time", "size"])
def test_a_file_that_changes_between_two_reads_is_refused(federation, url, told_by):
    federation.etags = told_by == "tag"
    if told_by == "time":
        federation.times["/ns/a.bin"] = formatdate(1e9, usegmt=True)
    file = storage.open_file(url, fast())
    assert file.read(10) == DATA[:10]
    federation.objects["/ns/a.bin"] = OTHER + (b"more" if told_by == "size" else b"")
    federation.times["/ns/a.bin"] = formatdate(2e9, usegmt=True)
    with pytest.raises(ChangedError, match=r"/ns/a.bin: changed while it is in use: it") as caught:
        file.read(10)
    assert "\n" not in str(caught.value)


def test_a_file_that_becomes_shorter_is_refused_as_changed(federation, url):
    file = storage.open_file(url, fast())
    file.seek(9000)
    federation.objects["/ns/a.bin"] = DATA[:100]
    with pytest.raises(ChangedError, match="had 10,240 bytes and has 100 now"):
        file.read(10)


def test_the_memory_of_files_is_that_of_the_access(federation, url):
    federation.etags = True
    access = fast()
    storage.open_file(url, access).read(10)
    federation.objects["/ns/a.bin"] = OTHER
    with pytest.raises(ChangedError):
        storage.open_file(url, access)
    assert storage.open_file(url, fast()).read() == OTHER, "another run"


def test_caches_with_tags_of_their_own_are_one_file(federation):
    """Each server is compared with itself; what all of them must agree on is the size."""
    federation.etags = True
    access = fast()
    file = storage.open_file(federation.url("/ns/a.bin"), access)
    file.read(10)
    known = access.seen.get(federation.url("/ns/a.bin"))
    assert known.server == federation.address("cache0").partition("//")[2] and known.tag
    federation.objects["/ns/a.bin"] = OTHER
    federation.fail(500, "cache0", times=10**9)
    assert len(file.read(10)) == 10 and federation.count("cache1", "GET") == 1


def test_a_copy_of_another_version_is_brought_anew(federation, url, tmp_path):
    federation.etags = True
    with Staging(tmp_path, access=fast()) as stage:
        path = stage.acquire(url)
    federation.objects["/ns/a.bin"] = OTHER
    with Staging(tmp_path, access=fast()) as stage:
        with open(stage.acquire(url), "rb") as file:
            assert file.read() == OTHER
        assert stage.counters()["files"] == 1
        federation.objects["/ns/a.bin"] = DATA
        with Staging(tmp_path, access=fast()) as other, pytest.raises(AccessError, match="another run uses the copy"):
            other.acquire(url)
    with Staging(tmp_path, access=fast()) as stage:
        assert stage.acquire(url) == path and stage.counters()["files"] == 1


def test_a_file_that_changes_under_way_to_the_staging_folder_is_refused(federation, url, tmp_path):
    federation.etags = True
    access = fast()
    storage.size(url, access)
    federation.objects["/ns/a.bin"] = OTHER
    with Staging(tmp_path, access=access) as stage, pytest.raises(ChangedError, match="its tag was"):
        stage.acquire(url)


# -- outages ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_an_outage_is_waited_for(federation, url, status):
    federation.fail(status, "", "HEAD", times=8)
    federation.fail(status, "cache", "GET", times=12)
    assert storage.open_file(url, fast(retries=30)).read() == DATA


def test_the_default_patience_is_minutes():
    assert 300 < Access().patience_s() < 900
    assert Access().pause(100) < 30


def test_requests_that_take_long_to_fail_are_not_repeated_for_ever(federation, monkeypatch):
    monkeypatch.setattr(remote, "PATIENCE_S", 0.0)
    url, access = f"{federation.address('cache0')}/ns/a.bin", fast(backoff_s=1e-9, retries=10**3)
    storage.size(url, access)
    remote._filesystems.clear()
    monkeypatch.setattr(remote, "STALL_S", 0.1)
    federation.fail("hang", "cache", times=10**9)
    with pytest.raises(AccessError, match="failed 1 times: .*[Tt]imeout"):
        remote.attempt(lambda fs, path: fs.cat_file(path), url, access)


def test_what_comes_well_and_breaks_off_is_tried_again_however_long_it_took(federation, url, monkeypatch):
    monkeypatch.setattr(remote, "PATIENCE_S", 0.0)
    monkeypatch.setattr(remote, "RATE", 0)
    federation.fail("truncate", "cache", times=3)
    assert storage.open_file(url, fast(backoff_s=1e-9)).read() == DATA


def test_what_does_not_look_like_an_outage_ends_soon(federation, url):
    federation.fail("truncate", times=10**9)
    with pytest.raises(AccessError, match="failed 6 times"):
        storage.open_file(url, fast(retries=30)).read()


def test_a_host_that_never_answered_ends_soon_and_one_that_did_is_waited_for(federation):
    calls = []

    def refuse(fs, path):
        calls.append(path)
        raise ConnectionRefusedError("nobody listens")

    url, access = f"{federation.address('cache0')}/ns/a.bin", fast(retries=9)
    with pytest.raises(AccessError, match="failed 6 times"):
        remote.attempt(refuse, url, access)
    storage.size(url, access)
    with pytest.raises(AccessError, match="failed 10 times"):
        remote.attempt(refuse, url, access, pause=lambda seconds: None)


@pytest.mark.parametrize("kind", ["seconds", "date", "nonsense", "years"])
def test_a_server_that_asks_for_a_pause_gets_it(federation, url, kind):
    asked = {"seconds": "50", "date": formatdate(time.time() + 50, usegmt=True), "nonsense": "soon", "years": "9" * 9}
    federation.fail(503, "cache", "GET", headers={"Retry-After": asked[kind]})
    pauses = []
    assert remote.attempt(lambda fs, path: fs.cat_file(path), url, fast(), pauses.append) == DATA
    expected = {"seconds": 50.0, "date": 50.0, "nonsense": 0.0, "years": transfers.RETRY_AFTER_S}[kind]
    assert pauses == [pytest.approx(expected, abs=5.0)]


def test_what_is_waited_for_is_said_once(federation, url, caplog, monkeypatch):
    monkeypatch.setattr(remote, "SAY_S", 0.0)
    monkeypatch.setattr(remote, "_say_if_slow", lambda *_: None)
    federation.fail(503, times=4)
    with caplog.at_level(logging.WARNING):
        assert storage.open_file(url, fast(retries=30)).read() == DATA
    (line,) = [record.getMessage() for record in caplog.records]
    assert "waiting for 127.0.0.1" in line and "503" in line and "trying again until" in line


def test_a_crawling_transfer_is_given_up(federation, url, monkeypatch, caplog):
    monkeypatch.setattr(transfers, "RATE_S", 0.1)
    monkeypatch.setattr(remote, "SAY_S", 0.05)
    federation.fail("drip", times=2, seconds=0.02)
    access = fast()
    with caplog.at_level(logging.WARNING):
        assert storage.open_file(url, access).read() == DATA
    assert any("too slow" in r.getMessage() or "bytes of" in r.getMessage() for r in caplog.records)
    federation.fail("drip", times=10**9, seconds=0.02)
    with pytest.raises(AccessError, match=r"failed 2 times: SlowError: too slow: \d+ bytes in 0.1 s"):
        storage.open_file(url, fast(retries=1)).read()


def test_a_long_transfer_has_no_limit_of_its_own(federation, url):
    for fs in (remote.filesystem(url)[0], remote.filesystem(f"{federation.address('cache0')}/x")[0]):
        timeout = getattr(fs, "http_file_system", fs).client_kwargs["timeout"]
        assert (timeout.total, timeout.sock_connect, timeout.sock_read) == (None, 30.0, 60.0)


def test_a_part_that_another_process_holds_is_said(federation, url, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("accel_train.data.remote.copies._is_locked", lambda path: True)
    monkeypatch.setattr("accel_train.data.remote.copies.SAY_S", 0.0)
    monkeypatch.setattr("accel_train.data.remote.copies.WAIT_S", 0.5)
    with Staging(tmp_path, access=fast()) as stage, pytest.raises(AccessError, match="within 0.5 s"):
        stage.acquire(url)
    lines = [r.getMessage() for r in caplog.records]
    assert any("waiting for another process, which has been bringing" in line for line in lines)


# -- a staging folder in trouble -------------------------------------------------------------------------------------


def test_a_staging_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="staging_dir: .* cannot be used"):
            Staging(folder)


@pytest.mark.parametrize("where", ["mkdir", "open", "get_file", "replace", "write"])
def test_a_full_disk_is_one_line_with_its_cause(federation, url, tmp_path, monkeypatch, where):
    full = OSError(28, "No space left on device")

    def fail(*_, **__):
        raise full

    stage = Staging(tmp_path / "s", access=fast(backoff_s=50.0))
    fs = remote.filesystem(url)[0]
    if where == "mkdir":
        monkeypatch.setattr("pathlib.Path.mkdir", fail)
    elif where == "open":
        monkeypatch.setattr("accel_train.data.remote.copies._lock", fail)
    elif where == "get_file":
        monkeypatch.setattr(fs, "get_file", fail)
        monkeypatch.setattr("accel_train.data.remote.copies.write_atomic", fail)  # the marker does not fit either
    elif where == "replace":
        monkeypatch.setattr("os.replace", fail)
    else:
        monkeypatch.setattr("accel_train.data.remote.copies.write_atomic", fail)
    with stage, pytest.raises(AccessError, match="No space left on device") as caught:
        stage.acquire(url)
    assert "\n" not in str(caught.value) and "cannot be staged to" in str(caught.value)


def test_a_staging_folder_that_is_removed_under_way(federation, url, tmp_path):
    with Staging(tmp_path / "s", access=fast()) as stage:
        stage.release(stage.acquire(url))
        shutil.rmtree(tmp_path / "s")
        (tmp_path / "s").touch()
        other = url.replace("a.bin", "b.bin")
        federation.objects["/ns/b.bin"] = DATA
        with pytest.raises(AccessError, match="b.bin: cannot be staged to"):
            stage.acquire(other)


# -- names -----------------------------------------------------------------------------------------------------------

NAMES = ["a b", "a#b", "50%", "a%20b", "Mürz", "雪", "a?b", "a+b", "a&b=c", "a;b", "a'b", "[x]", "~a", "a:b", "a@b"]


@pytest.mark.parametrize("name", NAMES)
def test_names_in_a_federation(federation, tmp_path, name):
    federation.objects = {f"/ns/d ü/{name}.parquet": DATA, "/ns/d ü/other.txt": b""}
    (url,) = storage.expand([federation.url("/ns/d ?/*.parquet")], fast())
    assert url == federation.url(f"/ns/d ü/{name}.parquet")
    for access in (fast(), fast()):
        assert storage.open_file(url, access).read() == DATA
    with Staging(tmp_path, access=fast()) as stage, open(stage.acquire(url), "rb") as file:
        assert file.read() == DATA
    storage.put(__file__, federation.url(f"/ns/{name}"), fast())
    assert f"/ns/{name}" in federation.objects


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("a%20b", "a?b")])
def test_names_over_http(federation, name):
    federation.objects[f"/ns/{name}.parquet"] = DATA
    url = f"{federation.address('cache0')}/ns/{name}.parquet"
    assert storage.open_file(url, fast()).read() == DATA


def test_what_is_quoted_in_an_http_url_stays(federation):
    federation.objects |= {"/ns/a b?c": DATA, "/ns/a%20b": OTHER}
    base = f"{federation.address('cache0')}/ns/"
    assert storage.open_file(f"{base}a%20b%3Fc", fast()).read() == DATA
    assert storage.open_file(f"{base}a%2520b?sig=a%2Bb%2F%20c+d&x=ü", fast()).read() == OTHER
    assert {r.query for r in federation.requests[-2:]} == {"sig=a%2Bb%2F%20c+d&x=%C3%BC"}
