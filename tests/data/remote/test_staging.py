"""Remote files on local disk: the right bytes, in time, once per node, and never more than allowed."""

import contextlib
import fcntl
import multiprocessing
import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest

from accel_train.data.remote import copies, staging, storage
from accel_train.data.remote import requests as remote
from accel_train.data.remote.copies import MARK, StagingFolder
from accel_train.data.remote.requests import Access, MissingError
from accel_train.data.remote.staging import Staging
from accel_train.errors import DataError, UserError

FAST = Access(backoff_s=0.001, retries=2)


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch):
    monkeypatch.setattr(copies, "WAIT_S", 20.0)


def content(i, size=1000):
    return bytes([i % 256]) * size


@pytest.fixture
def urls(federation):
    federation.objects = {f"/ns/d{i % 2}/f{i}.parquet": content(i) for i in range(12)}
    return [federation.url(f"/ns/d{i % 2}/f{i}.parquet") for i in range(12)]


def open_staging(tmp_path, **settings):
    return Staging(tmp_path / "stage", **{"access": FAST, **settings})


def eventually(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen"
        time.sleep(0.01)


def staged(folder):
    """Names of the whole copies."""
    return sorted(p.name for p in Path(folder).rglob("*") if p.is_file() and not p.name.startswith("."))


def hidden(folder):
    """What is not done yet, or went wrong."""
    return sorted(p.name for p in Path(folder).rglob(".*") if p.name != MARK and p.suffix != ".about")


# -- one process -----------------------------------------------------------------------------------------------------


def test_files_are_there_in_the_order_they_are_needed(tmp_path, federation, urls):
    with open_staging(tmp_path, ahead=2) as stage:
        stage.schedule(urls)
        for i, url in enumerate(urls):
            path = stage.acquire(url)
            assert path == str(tmp_path / "stage" / "pelican" / federation.host() / f"ns/d{i % 2}/f{i}.parquet")
            assert Path(path).read_bytes() == content(i)
            eventually(lambda i=i: len(staged(tmp_path)) == min(i + 3, 12))
            time.sleep(0.02)
            assert len(staged(tmp_path)) == min(i + 3, 12), "too far ahead"
            stage.release(url)
        counters = stage.counters()
    assert (counters["files"], counters["bytes"], counters["found"], counters["retries"]) == (12, 12_000, 0, 0)
    assert counters["waited_s"] > 0 and hidden(tmp_path) == []
    assert federation.count("cache", "GET") == 12


def test_shares_that_one_process_reads_at_once_keep_their_own_order(tmp_path, federation, urls):
    with open_staging(tmp_path, ahead=2, delete_after_use=True) as stage:
        stage.schedule(urls)  # a sample, as a whole
        for share in range(2):
            stage.schedule(urls[6 * share : 6 * share + 6], share, 2)
        assert stage._needed() == [url for pair in zip(urls[:6], urls[6:], strict=True) for url in pair]
        for url in (urls[0], urls[6]):
            stage.acquire(url)
        stage.schedule(urls[8:], 1, 2)
        assert stage._needed() == [urls[1], urls[8], urls[2], urls[9], urls[3], urls[10], urls[4], urls[11], urls[5]]
        for url in (urls[0], urls[6]):
            stage.release(url)


def test_what_is_there_is_trusted_by_its_size(tmp_path, federation, urls):
    with open_staging(tmp_path) as stage:
        paths = [Path(stage.acquire(url)) for url in urls[:3]]
    paths[1].write_bytes(b"half")
    with open_staging(tmp_path) as stage:
        assert [Path(stage.acquire(url)).read_bytes() for url in urls[:3]] == [content(i) for i in range(3)]
        assert (stage.counters()["files"], stage.counters()["found"]) == (1, 2)


def test_local_files_and_those_beyond_the_first_few_are_left_where_they_are(tmp_path, federation, urls):
    with open_staging(tmp_path, max_files=2) as stage:
        stage.schedule(["local", *urls])
        stage.schedule(urls[::-1])  # the next epoch: still the same files
        assert stage.acquire("./local") == "local" and stage.acquire("file:///x/y") == "/x/y"
        found = [stage.acquire(url) for url in urls]
        assert found[2:] == urls[2:] and all(path.startswith(str(tmp_path)) for path in found[:2])
        for url in ["local", *urls]:
            stage.release(url)


def test_a_file_that_is_not_scheduled_is_brought_when_asked_for(tmp_path, federation, urls):
    with open_staging(tmp_path, ahead=0) as stage:
        stage.schedule(urls)
        time.sleep(0.05)
        assert staged(tmp_path) == []
        assert Path(stage.acquire(urls[5])).read_bytes() == content(5)


@pytest.mark.parametrize("kind", [500, "drop", "truncate"])
def test_failures_that_pass_are_survived_and_counted(tmp_path, federation, urls, kind):
    federation.fail(kind, times=2)
    with open_staging(tmp_path, ahead=1) as stage:
        assert Path(stage.acquire(urls[0])).read_bytes() == content(0)
        assert stage.counters()["retries"] in (1, 2)  # aiohttp itself may repeat once after a drop


def test_an_answer_that_is_shorter_than_it_should_be_is_no_copy(tmp_path):
    """A server that ends a chunked answer early gives no error: only the size tells."""

    class Short:
        def info(self, path):
            return {"size": 10}

        def get_file(self, path, target, callback):
            Path(target).write_bytes(b"short")

    remote._filesystems[os.getpid(), "memory://short"] = ((None, None), Short())
    Short._strip_protocol = staticmethod(lambda url: url)
    try:
        with open_staging(tmp_path) as stage, pytest.raises(DataError, match="5 bytes came instead of 10"):
            stage.acquire("memory://short/x")
        assert staged(tmp_path) == [] and hidden(tmp_path) == [".x.failed"]
    finally:
        remote._filesystems.clear()


def test_an_error_is_raised_where_the_file_is_needed_and_tried_again_then(tmp_path, federation, urls):
    federation.fail(500, times=3, path="/ns/d0/f0")
    none = federation.url("/ns/none.parquet")
    with open_staging(tmp_path, ahead=3) as stage:
        stage.schedule([urls[0], none, urls[1]])
        eventually(lambda: staged(tmp_path) == ["f1.parquet"])
        with pytest.raises(DataError, match="f0.parquet: failed 3 times: ClientResponseError: 500"):
            stage.acquire(urls[0])
        with pytest.raises(MissingError, match="none.parquet: no such file"):
            stage.acquire(none)
        assert Path(stage.acquire(urls[0])).read_bytes() == content(0)  # by now it works
        assert hidden(tmp_path) == []


def test_a_wait_has_a_bound(tmp_path, federation, urls, monkeypatch):
    monkeypatch.setattr(copies, "WAIT_S", 0.2)
    federation.fail("slow", seconds=1.0)
    with open_staging(tmp_path) as stage:
        with pytest.raises(DataError, match="not staged to .* within 0.2 s"):
            stage.acquire(urls[0])


def test_closing_is_prompt(tmp_path, federation, urls):
    federation.fail(500, times=10**9)
    stage = open_staging(tmp_path, access=Access(backoff_s=100.0))
    stage.schedule(urls)
    failures = []

    def wait():
        try:
            stage.acquire(urls[0])
        except RuntimeError as error:
            failures.append(str(error))

    waiter = threading.Thread(target=wait)
    waiter.start()
    eventually(lambda: stage.counters()["retries"] >= 4)
    began = time.monotonic()
    stage.close()
    waiter.join()
    assert time.monotonic() - began < 10.0 and failures == ["the staging folder was closed"]  # not the 100 s of a wait
    eventually(lambda: not any(thread.name.startswith("staging") for thread in threading.enumerate()))
    assert hidden(tmp_path) == [] == staged(tmp_path)
    with pytest.raises(RuntimeError, match="closed"):
        stage.acquire(urls[1])


def test_a_new_schedule_replaces_the_old_one(tmp_path, federation, urls):
    with open_staging(tmp_path, ahead=2, max_bytes=2000) as stage:
        stage.schedule(urls[:6])
        eventually(lambda: len(staged(tmp_path)) == 2)
        stage.schedule(urls[6:])
        eventually(lambda: staged(tmp_path) == ["f6.parquet", "f7.parquet"])


# -- deletion --------------------------------------------------------------------------------------------------------


def test_deleted_after_the_last_use(tmp_path, federation, urls):
    with open_staging(tmp_path, delete_after_use=True) as stage, open_staging(tmp_path, delete_after_use=True) as other:
        first, again, theirs = stage.acquire(urls[0]), stage.acquire(urls[0]), other.acquire(urls[0])
        assert first == again == theirs
        for holder in (stage, stage, other):
            assert Path(first).exists()
            holder.release(urls[0])
        assert not Path(first).exists()
        stage.release(urls[0])  # once too often is no harm
        assert stage.counters()["deleted"] + other.counters()["deleted"] == 1
        assert Path(stage.acquire(urls[0])).read_bytes() == content(0)


def test_what_was_only_sampled_or_came_too_early_is_not_left(tmp_path, federation, urls):
    with open_staging(tmp_path, ahead=2, delete_after_use=True) as stage:
        with stage.sampling():
            for url in urls[:2]:
                stage.acquire(url)
                stage.release(url)
        assert staged(tmp_path) == ["f0.parquet", "f1.parquet"], "they will be needed again"
        stage.acquire(urls[0])
        stage.release(urls[0])
        assert staged(tmp_path) == ["f1.parquet"]
        assert stage.counters()["files"] == 2 and stage.counters()["found"] == 1
        stage.schedule(urls[2:])
        eventually(lambda: len(staged(tmp_path)) == 3)
    assert staged(tmp_path) == []


def test_what_is_longest_unused_makes_room(tmp_path, federation, urls):
    with open_staging(tmp_path, ahead=0, max_bytes=3500) as stage:
        for i in (0, 1, 2, 0, 3, 4):
            stage.acquire(urls[i])
            stage.release(urls[i])
            time.sleep(0.01)  # a file's time has a grain
            assert len(staged(tmp_path)) <= 3
        assert staged(tmp_path) == ["f0.parquet", "f3.parquet", "f4.parquet"]
        assert stage.counters()["deleted"] == 2 and stage.counters()["over_max_bytes"] == 0


def test_files_in_use_are_not_deleted_and_one_that_is_waited_for_comes_anyway(tmp_path, federation, urls, caplog):
    with open_staging(tmp_path, ahead=4, max_bytes=2500) as stage:
        stage.schedule(urls)
        held = [stage.acquire(url) for url in urls[:5]]
        assert all(Path(path).exists() for path in held)
        assert stage.counters()["over_max_bytes"] >= 3
        assert sum("more bytes are in use" in record.message for record in caplog.records) == 1
        # Also one that is not at all next, though all threads wait for room.
        assert Path(stage.acquire(urls[11])).exists()


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="has other files in it.*give an empty one"):
        Staging(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("path", ["/../../etc/passwd", "/a/../../b", "/", "/./x"])
def test_no_name_leads_out_of_the_folder(tmp_path, path):
    with open_staging(tmp_path) as stage, pytest.raises(UserError, match="not a name that can be staged"):
        stage.acquire(f"https://host.example{path}")


def test_names_keep_their_host_and_hide_a_query(tmp_path):
    copies = StagingFolder(tmp_path / "c", None, None, threading.Event(), lambda what, n: None)
    paths = [
        copies.path(url)
        for url in ("pelican://a/x/y.q", "pelican://b/x/y.q", "https://a/x/y.q", "https://u:secret@a/x/y.q?sig=secret")
    ]
    assert len(set(paths)) == 4 and not any("secret" in str(path) for path in paths)


def test_readers_in_many_threads(tmp_path, federation, urls):
    """Random readers, a tight cap, deletion after use, and servers that fail now and then: always the right bytes."""
    for kind in (500, "drop", "truncate"):
        federation.fail(kind, times=4)
    wrong = []
    access = Access(backoff_s=0.001, retries=20)
    with open_staging(tmp_path, ahead=3, max_bytes=4000, delete_after_use=True, access=access) as stage:

        def read(seed):
            order = random.Random(seed).choices(range(12), k=25)
            for i in order:
                path = stage.acquire(urls[i])
                if Path(path).read_bytes() != content(i):
                    wrong.append(i)
                stage.release(urls[i])

        stage.schedule(urls)
        readers = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(60)
            assert not reader.is_alive()
    assert not wrong and hidden(tmp_path) == []


# -- several processes -----------------------------------------------------------------------------------------------


def _rank(folder, urls, start, answers, settings):
    start.wait(20)
    with Staging(folder, **{"access": FAST, **settings}) as stage:
        stage.schedule(urls)
        found = []
        for url in urls:
            try:
                path = stage.acquire(url)
                found.append(Path(path).read_bytes())
                stage.release(url)
            except DataError as error:
                found.append(str(error))
        answers.put((found, stage.counters()["files"]))


@contextlib.contextmanager
def ranks(n, folder, urls, **settings):
    """What each of n processes found, and how many files it downloaded."""
    context = multiprocessing.get_context("fork")
    start, answers = context.Event(), context.Queue()
    processes = [context.Process(target=_rank, args=(folder, urls, start, answers, settings)) for _ in range(n)]
    for process in processes:
        process.start()
    start.set()
    yield lambda: [answers.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(20)
        assert process.exitcode == 0


def test_ranks_download_each_file_once(tmp_path, federation, urls):
    federation.fail("slow", times=12, seconds=0.05)
    with ranks(3, tmp_path / "stage", urls) as answers:
        results = answers()
    assert all(found == [content(i) for i in range(12)] for found, _ in results)
    assert sum(files for _, files in results) == 12 == federation.count("cache", "GET")


def test_a_failure_is_handed_to_the_ranks_that_wait(tmp_path, federation, urls):
    federation.fail(500, times=10**9)
    access = Access(backoff_s=1.0, retries=1)
    with ranks(3, tmp_path / "stage", urls[:1], access=access) as answers:
        reasons = [found[0] for found, _ in answers()]
    assert all("ClientResponseError: 500" in text for text in reasons)
    waited = sum("another process could not stage it" in text for text in reasons)
    assert waited >= 1 and federation.count("cache", "GET") == 2 * (3 - waited)


def test_ranks_with_little_room_do_not_wait_for_each_other(tmp_path, federation, urls):
    with ranks(3, tmp_path / "stage", urls, max_bytes=2000, delete_after_use=True) as answers:
        assert all(found == [content(i) for i in range(12)] for found, _ in answers())
    assert hidden(tmp_path) == []


def _die_while_downloading(folder, url):
    stage = Staging(folder, access=FAST)
    stage.schedule([url])
    time.sleep(60)


def test_what_a_killed_process_left_behind_is_taken_over(tmp_path, federation, urls, monkeypatch):
    federation.fail("slow", seconds=30.0)
    process = multiprocessing.get_context("fork").Process(target=_die_while_downloading, args=(tmp_path / "s", urls[0]))
    process.start()
    eventually(lambda: federation.count("cache", "GET") == 1)
    with monkeypatch.context() as impatient, Staging(tmp_path / "s", access=FAST) as stage:
        impatient.setattr(copies, "WAIT_S", 0.5)
        with pytest.raises(DataError, match="within 0.5 s"):
            stage.acquire(urls[0])
    assert hidden(tmp_path / "s") == [".f0.parquet.part"]
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with Staging(tmp_path / "s", access=FAST) as stage:
        began = time.monotonic()
        assert Path(stage.acquire(urls[0])).read_bytes() == content(0)
        assert time.monotonic() - began < 5.0
    assert hidden(tmp_path / "s") == []


def test_a_file_that_another_process_reads_is_not_deleted(tmp_path, federation, urls):
    with open_staging(tmp_path, ahead=0, max_bytes=1500) as stage:
        path = Path(stage.acquire(urls[0]))
        stage.release(urls[0])
        with open(path) as theirs:
            fcntl.flock(theirs, fcntl.LOCK_SH)
            stage.acquire(urls[1])
            assert path.exists()
        stage.release(urls[1])
        stage.acquire(urls[2])
        assert staged(tmp_path) == ["f2.parquet"]


def test_parquet_from_a_staged_file_is_local(tmp_path, federation, urls):
    with open_staging(tmp_path) as stage:
        path = stage.acquire(urls[3])
        assert storage.open_file(path) == path and staging.is_remote(urls[3])
