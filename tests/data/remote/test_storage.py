"""Wildcards, ranged reads and copies, against a federation that misbehaves in every way we know of."""

import io
import multiprocessing
import os
import re
import subprocess
import sys
import traceback
from fnmatch import fnmatchcase
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.federation import DATA, Federation

from accel_train.data.remote import requests as remote
from accel_train.data.remote import storage, wildcards
from accel_train.data.remote.requests import Access, MissingError
from accel_train.data.remote.tokens import Token
from accel_train.errors import DataError, UserError
from accel_train.tasks.muon.data import kind_of

FAST = Access(backoff_s=0.001, retries=5)
SECRET = "a-very-secret-token"


@pytest.fixture
def protected():
    """A federation that lets in whoever has a token of ``good``."""
    good = {SECRET}
    with Federation(accepts=good.__contains__) as started:
        started.good = good
        started.trust()
        started.objects["/ns/a.bin"] = DATA
        yield started
    remote._filesystems.clear()


def read(url, access=FAST):
    return storage.open_file(url, access).read()


# -- wildcards -------------------------------------------------------------------------------------------------------

NAMES = st.sampled_from(["a", "b", "ab", "a.x", "b.x", ".h", "[", "B"])
PARTS = st.sampled_from(["*", "?", "**", "a*", "*.x", "[ab]", "[!a]*", "a", ".*", "ab", "[[]"])


def listing(files):
    calls = []

    def ls(directory):
        calls.append(directory)
        inside = [f[len(directory) :] for f in files if f.startswith(directory)]
        return sorted({(rest.split("/")[0], "/" in rest) for rest in inside})

    return ls, calls


@given(st.lists(st.lists(NAMES, min_size=1, max_size=4).map("/".join), max_size=12), st.lists(PARTS, min_size=1))
def test_wildcards_match_what_they_should(files, parts):
    files = [f for f in files if not any(g.startswith(f + "/") for g in files)]  # none is a directory too
    ls, calls = listing(files)
    pattern = "/".join(parts)
    if wildcards.is_pattern(pattern):
        parts = [*parts, "*"] if parts[-1] == "**" else parts
        assert wildcards.expand(pattern, ls) == sorted({f for f in files if matches(f.split("/"), parts)})
        assert len(calls) == len(set(calls)), "listed twice"


def matches(names, parts):
    """What a pattern means, said of one file."""
    if not names or not parts:
        return not names and not parts
    if parts[0] == "**":
        return matches(names, parts[1:]) or (names[0][0] != "." and len(names) > 1 and matches(names[1:], parts))
    seen = parts[0][0] == "." or names[0][0] != "."
    return seen and fnmatchcase(names[0], parts[0]) and matches(names[1:], parts[1:])


def test_local_files_are_expanded_sorted_and_named_once(tmp_path):
    for name in ("b.parquet", "a.parquet", ".hidden.parquet", "deep/er/c.parquet", "x[1].parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "deep" / "up").symlink_to(tmp_path)  # `**` does not go round in circles
    expand = lambda *patterns: [  # noqa: E731
        os.path.relpath(f, tmp_path) for f in storage.expand([str(tmp_path / p) for p in patterns])
    ]
    assert expand("*.parquet", "a.parquet", "./b.parquet") == ["a.parquet", "b.parquet", "x[1].parquet"]
    assert expand("**/*.parquet") == ["a.parquet", "b.parquet", "deep/er/c.parquet", "x[1].parquet"]
    assert expand("deep/**") == ["deep/er/c.parquet"]
    assert expand("x[1].parquet") == ["x[1].parquet"]
    assert storage.expand([f"file://{tmp_path}/a.parquet"]) == [str(tmp_path / "a.parquet")]


@pytest.mark.parametrize("name", ["none.parquet", "*.none", "missing/**/x"])
def test_a_local_pattern_without_a_file_says_where_else_to_look(tmp_path, name):
    with pytest.raises(UserError, match="mounted there.*pelican://"):
        storage.expand([str(tmp_path / name)])
    with pytest.raises(UserError, match="is a directory: name the files in it"):
        storage.expand([str(tmp_path)])


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize("matches", [0, 1, 1000])
def test_a_federation_is_listed_once_per_directory(federation, host, matches):
    federation.objects |= {f"/ns/sim/{i % 3}/f{i:04}.parquet": b"" for i in range(matches)}
    federation.objects["/ns/sim/0/other.txt"] = b""
    patterns = [federation.url(f"/ns/sim/{p}.parquet", host) for p in ("*/f????", "**/*", "[0-2]/f*")]
    if matches == 0:
        with pytest.raises(UserError, match=r"\*/f\?\?\?\?\.parquet: no file matches"):
            storage.expand(patterns)
        return
    found = storage.expand(patterns)
    assert found == sorted(federation.url(f"/ns/sim/{i % 3}/f{i:04}.parquet", host) for i in range(matches))
    listed = [r.path for r in federation.requests if r.server == "origin"]
    assert len(listed) == len(set(listed)) == 1 + len({i % 3 for i in range(max(matches, 1))})


def test_a_federation_that_cannot_list_is_named_as_such():
    with Federation(collections=False) as federation:
        federation.trust()
        with pytest.raises(UserError, match="cannot list this; name the files without wildcards"):
            storage.expand([federation.url("/ns/*")], FAST)
        # Names without wildcards ask nobody.
        assert storage.expand([federation.url("/ns//a")]) == [federation.url("/ns/a")]


def test_other_filesystems():
    memory = fsspec.filesystem("memory")
    memory.pipe({"/box/a/1.x": b"one", "/box/a/2.x": b"two", "/box/b/3.x": b"three"})
    try:
        assert storage.expand(["memory://box/*/[12].x"]) == ["memory://box/a/1.x", "memory://box/a/2.x"]
        assert storage.expand(["memory://box/*/3.x"]) == ["memory://box/b/3.x"]
        assert read("memory://box/b/3.x") == b"three"
        with pytest.raises(UserError, match="no file matches"):
            storage.expand(["memory://box/a/1.x/*"])
        with pytest.raises(MissingError, match="no such file"):
            storage.size("memory://box/none")
    finally:
        memory.rm("/box", recursive=True)
    with pytest.raises(UserError, match="nonsense://a/b: cannot be reached"):
        storage.size("nonsense://a/b")


def test_osdf_is_a_federation():
    for url in ("osdf:///icecube/a", "osdf://icecube/a", "pelican://osg-htc.org/icecube//a"):
        assert storage.expand([url]) == ["pelican://osg-htc.org/icecube/a"]


# -- reading ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(-50, 50), st.integers(-1, 60)), max_size=8))
def test_a_remote_file_reads_like_a_local_one(steps):
    content = bytes(range(50))
    fsspec.filesystem("memory").pipe("/like", content)
    local, far = io.BytesIO(content), storage.open_file("memory://like")
    for whence, offset, n in steps:
        if whence == 0:
            offset = abs(offset)
        assert far.seek(offset, whence) == local.seek(offset, whence)
        assert far.read(n) == local.read(n)
        assert far.tell() == local.tell()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_parquet_is_read_by_ranges(federation, host):
    table = pa.table({"x": range(10_000), "y": [float(i) for i in range(10_000)]})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=1000)
    federation.objects["/ns/t.parquet"] = buffer.getvalue()
    with pq.ParquetFile(storage.open_file(federation.url("/ns/t.parquet", host), FAST)) as file:
        assert file.read_row_group(7, ["x"]).equals(table.select(["x"]).slice(7000, 1000))
    ranges = [r.range for r in federation.requests if r.method == "GET" and r.server == "cache0"]
    assert len(ranges) == 2 and all(ranges)  # the footer and a column
    (path := Path("t.parquet"))
    assert storage.open_file(str(path)) == "t.parquet"


def test_what_is_not_there(federation):
    with pytest.raises(MissingError, match="/ns/none: no such file"):
        read(federation.url("/ns/none"))
    with pytest.raises(MissingError):
        storage.size(federation.url("/ns/none"), FAST)
    assert storage.size(federation.url("/ns/a.bin"), FAST) == len(DATA)
    # To find a cache, and then twice by HEAD and GET: it is not asked for again.
    assert federation.count("cache", "", "/ns/none") == 5


def test_a_cache_that_is_not_there_is_passed_over():
    with Federation(dead=(0,)) as federation:
        federation.trust()
        federation.objects["/ns/a.bin"] = DATA
        assert read(federation.url("/ns/a.bin")) == DATA


@pytest.mark.parametrize("kind", [500, 503, "drop", "truncate"])
def test_a_cache_that_fails_is_asked_once(federation, kind):
    """It answers HEAD well, and fails whatever else it is asked: the other one serves all reads."""
    federation.fail(kind, "cache0", times=10**9)
    file = storage.open_file(federation.url("/ns/a.bin"), FAST)
    for i in range(20):
        file.seek(i)
        assert file.read(10) == DATA[i : i + 10]
    assert federation.count("cache0", "GET") <= 2  # aiohttp itself repeats once on a connection that was closed


@pytest.mark.parametrize("kind", [500, "drop", "truncate"])
@pytest.mark.parametrize("times", [1, 3, 5])
def test_failures_that_pass_are_survived(federation, kind, times):
    federation.fail(kind, times=times)
    assert read(federation.url("/ns/a.bin")) == DATA
    assert federation.count("cache", "GET") == times + 1


@pytest.mark.parametrize("server", ["discovery", "director", "cache"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "PROPFIND"])
@pytest.mark.parametrize("kind", [503, "drop"])
def test_any_single_failure_is_survived(federation, server, method, kind):
    federation.fail(kind, server, method)
    assert read(federation.url("/ns/a.bin")) == DATA
    federation.fail(kind, "origin", "PROPFIND")
    assert storage.expand([federation.url("/ns/*")], FAST) == [federation.url("/ns/a.bin")]


def test_a_failure_that_stays_is_reported_in_one_line(federation):
    federation.fail(500, times=10**9)
    with pytest.raises(DataError, match="/ns/a.bin: failed 6 times: ClientResponseError: 500") as caught:
        read(federation.url("/ns/a.bin"))
    assert "\n" not in str(caught.value)
    assert federation.count("cache", "GET") == 6


def test_a_server_that_stalls_is_left(federation, monkeypatch):
    monkeypatch.setattr(remote, "STALL_S", 0.2)
    federation.fail("slow", "cache0", seconds=1.0, times=10**9)
    assert read(federation.url("/ns/a.bin")) == DATA


def test_an_error_in_the_program_is_not_repeated(federation):
    calls = []

    def do(fs, path):
        calls.append(path)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        remote.attempt(do, federation.url("/ns/a.bin"), FAST)
    assert calls == ["/ns/a.bin"]


def test_pauses_grow_and_are_bounded(federation):
    pauses = []
    federation.fail(500, times=10**9)
    with pytest.raises(DataError):
        do = lambda fs, path: fs.cat_file(path)  # noqa: E731
        remote.attempt(do, federation.url("/ns/a.bin"), Access(retries=8), pauses.append)
    expected = [0.8 * 2 ** min(i, 5) for i in range(8)]
    assert all(0.7 * e <= p <= 1.3 * e for p, e in zip(pauses, expected, strict=True))


def _read_in_child(url, answer):
    answer.send(storage.open_file(url, FAST).read(3))


def test_a_fork_makes_its_own_connection(federation):
    url = federation.url("/ns/a.bin")
    read(url)
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=_read_in_child, args=(url, theirs))
    child.start()
    assert ours.poll(20) and ours.recv() == DATA[:3]
    child.join()


def test_one_federation_can_serve_all_urls(federation):
    access = Access(federation_url=f"https://{federation.host()}", backoff_s=0.001)
    assert read("pelican://elsewhere.example/ns/a.bin", access) == DATA


# -- plain HTTP ------------------------------------------------------------------------------------------------------


def test_http(federation):
    url = f"{federation.address('cache0')}/ns/a.bin"
    access = Access(token=Token(SECRET), backoff_s=0.001)
    federation.fail(503, method="HEAD", times=2)  # which fsspec calls a missing file
    federation.fail(503, method="GET", times=2)
    assert read(url, access) == DATA
    assert storage.expand([f"{url}?a=1"]) == [f"{url}?a=1"]
    with pytest.raises(MissingError):
        storage.size(f"{url}x?signature={SECRET}", access)
    assert all(r.token is None for r in federation.requests), "a token went to a server that is in no federation"


# -- tokens ----------------------------------------------------------------------------------------------------------


def secretless(caught):
    text = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert SECRET not in text and "stale" not in text
    return str(caught.value)


def test_a_good_token(protected):
    access = Access(token=Token(SECRET), backoff_s=0.001)
    assert read(protected.url("/ns/a.bin"), access) == DATA
    assert storage.expand([protected.url("/ns/*")], access) == [protected.url("/ns/a.bin")]
    storage.put(__file__, protected.url("/ns/b"), access)
    assert protected.objects["/ns/b"] == Path(__file__).read_bytes()
    assert SECRET not in repr(access)


def test_a_wrong_token(protected):
    access = Access(token=Token("stale"), backoff_s=0.001)
    for do in (read, lambda url, access: storage.expand([url + "*"], access), lambda u, a: storage.put(__file__, u, a)):
        with pytest.raises(DataError) as caught:
            do(protected.url("/ns/a.bin"), access)
        assert re.search("refused|NoAvailableSource", secretless(caught))


def test_no_token(protected, monkeypatch):
    monkeypatch.setenv("PATH", "")  # pelicanfs would ask the ``pelican`` command
    for name in ("BEARER_TOKEN", "BEARER_TOKEN_FILE", "TOKEN", "_CONDOR_CREDS"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(DataError, match="is a token needed"):
        read(protected.url("/ns/a.bin"))
    with pytest.raises(DataError, match="is a token needed"):
        storage.expand([protected.url("/ns/*")], FAST)


@pytest.mark.parametrize("when", ["before", "while reading"])
def test_a_token_that_expires_is_renewed(protected, when):
    issued = iter(["stale", SECRET, "third"])
    access = Access(token=Token(lambda: next(issued)), backoff_s=0.001)
    if when == "while reading":
        protected.good.add("stale")
    file = storage.open_file(protected.url("/ns/a.bin"), access)
    assert file.read(2) == DATA[:2]
    protected.good.discard("stale")
    assert file.read(2) == DATA[2:4]
    assert next(issued) == "third"


def test_an_issuer_that_is_away_for_a_moment(protected):
    answers = [lambda: "stale", ConnectionError, ConnectionError, lambda: SECRET]

    def source():
        answer = answers.pop(0)
        if answer is ConnectionError:
            raise ConnectionError("the issuer is down")
        return answer()

    assert read(protected.url("/ns/a.bin"), Access(token=Token(source), backoff_s=0.001)) == DATA


def test_the_default_of_the_process(protected):
    try:
        remote.use(Access(token=Token(SECRET), backoff_s=0.001))
        assert read(protected.url("/ns/a.bin"), None) == DATA
    finally:
        remote.use(Access())


# -- writing ---------------------------------------------------------------------------------------------------------


def test_put(federation, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(DATA)
    federation.fail(500, "origin", "PUT", times=2)
    federation.fail("drop", "director", "GET")
    storage.put(str(source), federation.url("/ns/out/copy"), FAST)
    assert federation.objects["/ns/out/copy"] == DATA


# -- trust -----------------------------------------------------------------------------------------------------------

SCRIPT = """
import sys
from accel_train.data.remote import storage
print(storage.size(sys.argv[1]))
"""


def test_a_certificate_authority_of_its_own(tmp_path):
    with Federation() as federation:
        federation.objects["/ns/a.bin"] = DATA
        with pytest.raises(DataError, match="set SSL_CERT_FILE"):
            read(federation.url("/ns/a.bin"))
        assert federation.count() == 0
        environment = os.environ | {"SSL_CERT_FILE": str(federation.write_certificate(tmp_path / "ca.pem"))}
        command = [sys.executable, "-c", SCRIPT, federation.url("/ns/a.bin")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert done.stdout.strip() == str(len(DATA)), done.stderr


# -- what is no file -------------------------------------------------------------------------------------------------


def test_a_name_that_looks_like_a_pattern_is_a_name_if_it_is_there(tmp_path):
    for name in ("f?1.parquet", "fx1.parquet", "g[1].parquet", "g1.parquet"):
        (tmp_path / name).touch()
    for name in ("f?1.parquet", "g[1].parquet"):
        assert storage.expand([str(tmp_path / name)]) == [str(tmp_path / name)]
        assert kind_of(str(tmp_path / name)) == "parquet"
    assert kind_of("https://host/a.h5?x=.parquet") == "hdf5"


def test_what_would_be_waited_for_is_refused_unopened(tmp_path):
    os.mkfifo(tmp_path / "pipe.parquet")
    (tmp_path / "a.parquet").touch()
    for name in (tmp_path / "pipe.parquet", tmp_path / "*.parquet", "/dev/zero"):
        with pytest.raises(UserError, match="(pipe.parquet|/dev/zero): not a file but a pipe, a socket or a device"):
            storage.expand([str(name)])


def test_links_that_lead_nowhere(tmp_path):
    (tmp_path / "a.parquet").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "to-nothing").symlink_to(tmp_path / "nothing")
    assert storage.expand([f"{tmp_path}/*.parquet", f"{tmp_path}/**/*.parquet"]) == [f"{tmp_path}/a.parquet"]
    for name in ("loop", "to-nothing", "lo*", "to-*"):
        with pytest.raises(UserError, match="(loop|to-nothing): a link that leads nowhere"):
            storage.expand([str(tmp_path / name)])


def test_a_page_of_links_over_http(federation):
    """Names in patterns are as a person writes them, those in URLs stay quoted."""
    links = ["a%20b.parquet", "50%25.parquet", "c%3Fd.parquet", "?C=N;O=D", "../", "deep/"]
    page = "".join(f'<a href="{link}">x</a>' for link in links)
    federation.objects |= {"/ns/dir/": page.encode(), "/ns/dir/a b.parquet": DATA, "/ns/dir/50%.parquet": DATA}
    base = f"{federation.address('cache0')}/ns/dir/"
    assert storage.expand([f"{base}*.parquet"], FAST) == [f"{base}{n}.parquet" for n in ("50%25", "a b", "c%3Fd")]
    for pattern in ("a *.parquet", "50*.parquet"):
        (url,) = storage.expand([f"{base}{pattern}"], FAST)
        assert read(url) == DATA
