"""Downloads from a server on this machine that misbehaves where a test wants it. No half file is ever visible."""

import errno
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from rich.console import Console

from dp.commands import fetch as script
from dp.files import archives, download, fetch
from dp.files.cache import ASSETS, Asset, verify
from dp.output.progress import Downloads
from dp.weights import needed

ROOT = Path(__file__).parents[2]
BODY = hashlib.shake_256(b"weights").digest(300_000)
OTHER = hashlib.shake_256(b"other").digest(250_000)
FILE = "deep/a.bin"


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, have = self.server.behavior, 0  # type: ignore[attr-defined]
        server.received.append(self.headers)
        if server.fails:
            self.send_error(server.fails.pop(0))
            return
        body, tag = server.body, f'"{sha(server.body)[:8]}"'
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if wanted and server.ranges and (not server.if_range or self.headers.get("If-Range") == tag):
            have = int(wanted.group(1))
        if have >= len(body):
            self.send_error(416)
            return
        self.send_response(206 if have else 200)
        if have:
            self.send_header("Content-Range", f"bytes {have}-{len(body) - 1}/{len(body)}")
        if server.tags:
            self.send_header("ETag", tag)
        if server.length is not None:
            self.send_header("Content-Length", str(len(body) - have + server.length))
        self.send_header("Content-Type", server.type)
        self.end_headers()
        end = server.cuts.pop(0) if server.cuts else len(body)
        self.wfile.write(body[have:end])
        server.sent += max(0, end - have)
        if end < len(body):
            server.on_cut()

    def log_message(self, *_):
        pass


class Behavior:
    """What the server does; `received`: the headers of its requests, `sent`: bytes."""

    def __init__(self):
        self.body, self.type, self.length = BODY, "application/octet-stream", 0
        self.ranges = self.if_range = self.tags = True
        self.fails: list[int] = []  # statuses to answer with first
        self.cuts: list[int] = []  # where in the file to break off, per answer
        self.on_cut = lambda: None
        self.received: list = []
        self.sent = 0


@contextmanager
def served(monkeypatch):
    """How a server on this machine behaves, while it runs."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listening.behavior = behavior = Behavior()  # type: ignore[attr-defined]
    behavior.url = f"http://127.0.0.1:{listening.server_port}/a.bin"
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield behavior
    finally:
        listening.shutdown()
        listening.server_close()
        thread.join()


@pytest.fixture
def server(monkeypatch):
    with served(monkeypatch) as behavior:
        yield behavior


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DP_CACHE", str(tmp_path))
    monkeypatch.setattr(download, "WAIT", 0.001)
    return tmp_path


@contextmanager
def never_half(cache: Path, want: str, file: str = FILE):
    """While this lasts, a file of the final name must be whole whenever it is there."""
    odd, over = [], threading.Event()

    def watch():
        while not over.is_set():
            if (cache / file).exists() and (found := sha((cache / file).read_bytes())) != want:
                odd.append(found)
            time.sleep(0.001)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert not odd, "there was a file that is not whole"


def get(cache, server, body=BODY, pin=True, **keywords):
    asset = Asset(FILE, server.url, 0.3, sha(body) if pin else None)
    with never_half(cache, sha(body)):
        return fetch.fetch(asset, **keywords)


def refused(cache, server, match: str, error=ValueError, **keywords) -> str:
    """One line that names file, size, address and folder; no file."""
    with pytest.raises(error, match=match) as caught:
        get(cache, server, **keywords)
    line = str(caught.value)
    assert "\n" not in line
    for part in (f"{FILE} (0.3 MB)", server.url, str(cache)):
        assert part in line
    assert not (cache / FILE).exists()
    return line


def names(cache: Path) -> set[str]:
    return {p.relative_to(cache).as_posix() for p in cache.rglob("*") if p.is_file() and not p.name.endswith(".lock")}


def test_a_download(cache, server):
    seen = []
    assert get(cache, server, pin=False, on_bytes=lambda done, total: seen.append((done, total))) == cache / FILE
    assert (cache / FILE).read_bytes() == BODY
    assert seen[0] == (0, len(BODY))
    assert seen[-1] == (len(BODY), len(BODY))
    assert names(cache) == {FILE, "hashes.json"}
    assert json.loads((cache / "hashes.json").read_text()) == {FILE: sha(BODY)}
    get(cache, server)  # there already
    assert len(server.received) == 1


def test_embedded_files_are_not_fetched(server):
    name = "digits_classifier.safetensors"
    assert fetch.fetch(Asset(name, server.url)) == ASSETS / name
    assert server.received == []


def test_a_cut_connection_goes_on_where_it_was(cache, server):
    server.cuts = [100_000, 200_000]
    get(cache, server)
    assert [headers.get("Range") for headers in server.received] == [None, "bytes=100000-", "bytes=200000-"]
    assert server.received[1]["If-Range"] == f'"{sha(BODY)[:8]}"'
    assert server.sent == len(BODY)


@pytest.mark.parametrize("switch", ["ranges", "tags"])
def test_without_ranges_or_a_validator_it_begins_anew(cache, server, switch):
    setattr(server, switch, False)
    server.cuts = [100_000]
    get(cache, server)
    assert server.sent == 100_000 + len(BODY)


@pytest.mark.parametrize("if_range", [True, False])
@pytest.mark.parametrize("body", [OTHER, OTHER[:90_000]], ids=["longer", "shorter"])  # than what has come
def test_a_file_that_changes_between_tries(cache, server, if_range, body):
    server.cuts, server.if_range = [100_000], if_range
    server.on_cut = lambda: setattr(server, "body", body)
    get(cache, server, body=body)
    assert (cache / FILE).read_bytes() == body


def test_a_part_from_another_address(cache, server):
    server.cuts = [100_000] * 2
    refused(cache, server, "no whole answer", OSError, tries=1)
    server.url, server.cuts = server.url + "?other", []
    get(cache, server)
    assert server.received[-1].get("Range") is None


def test_refusals_are_not_tried_again(cache, server):
    server.fails = [404]
    refused(cache, server, "got 404 Not Found: correct its url", OSError)
    assert len(server.received) == 1


def test_a_server_that_recovers(cache, server):
    server.fails = [500, 503]
    get(cache, server)
    assert len(server.received) == 3


def test_a_server_that_does_not(cache, server):
    server.fails = [500] * 9
    refused(cache, server, r"no whole answer in 4 tries \(500 Internal", OSError, tries=4)
    assert len(server.received) == 4


def test_progress_renews_the_tries(cache, server):
    server.cuts = [n * 30_000 for n in range(1, 10)]
    get(cache, server, tries=2)
    assert len(server.received) == 10


def test_nobody_listens(cache, server):
    server.url = "http://127.0.0.1:9/a.bin"
    refused(cache, server, r"no whole answer in 2 tries \(Connection refused\): try again later$", OSError, tries=2)
    assert (server.received, names(cache)) == ([], set())


@pytest.mark.parametrize("url", ["http://", "http://[oops/a.bin"])
def test_an_address_that_is_none(cache, server, url):
    server.url = url
    with pytest.raises((ValueError, OSError)) as caught:
        get(cache, server, tries=1)
    assert "\n" not in str(caught.value)


def test_a_silent_server(cache, server):
    server.cuts, server.on_cut = [100_000], lambda: time.sleep(0.6)
    get(cache, server, timeout=0.2)
    assert server.received[1]["Range"] == "bytes=100000-"
    server.cuts = [0, 0]
    (cache / FILE).unlink()
    refused(cache, server, r"in 2 tries \(nothing for 0.2 s\)", OSError, timeout=0.2, tries=2)


@pytest.mark.parametrize(
    ("kind", "page"),
    [
        ("text/html; charset=utf-8", b"<html><title>Quota\n exceeded</title>"),
        ("application/octet-stream", b"\n <!doctype html><TITLE>Quota exceeded</TITLE>"),
    ],
)
def test_a_web_page_is_no_file(cache, server, kind, page):
    server.type, server.body = kind, page
    match = r"got not the file: the address answered with a web page \(Quota exceeded\): open it"
    refused(cache, server, match)
    assert names(cache) == set()


def test_a_length_that_is_too_long(cache, server):
    server.length = 1000
    refused(cache, server, "no whole answer in 3 tries .*the 0.3 MB that came are kept", OSError, tries=3)
    assert BODY in [(cache / name).read_bytes() for name in names(cache)]


def test_a_length_that_is_too_short(cache, server):
    server.length = -1000
    refused(cache, server, "instead of")
    assert names(cache) == set()


def test_no_length_at_all(cache, server):
    server.length = None
    seen = []
    get(cache, server, on_bytes=lambda done, total: seen.append(total))
    assert set(seen) == {None}


def test_a_wrong_hash(cache, server):
    server.body = OTHER
    line = refused(cache, server, "nothing is kept")
    assert sha(BODY) in line
    assert sha(OTHER) in line
    assert names(cache) == set()
    server.body = BODY
    get(cache, server)


def test_a_file_other_than_the_one_first_used(cache, server):
    get(cache, server, pin=False)
    (cache / FILE).unlink()
    server.body = OTHER
    refused(cache, server, "hashes.json if the new file is right", pin=False)
    assert names(cache) == {"hashes.json"}


def test_a_wrong_file_that_is_there_already(cache, server):
    (cache / FILE).parent.mkdir()
    (cache / FILE).write_bytes(OTHER)
    with pytest.raises(ValueError, match="delete it and fetch it again"):
        fetch.fetch(Asset(FILE, server.url, sha256=sha(BODY)))


@pytest.fixture
def mirror(monkeypatch):
    """A second server."""
    with served(monkeypatch) as server:
        yield server


def either(server, mirror, body=BODY, pin=True) -> Asset:
    return Asset(FILE, [server.url, mirror.url], 0.3, sha(body) if pin else None)


@pytest.mark.parametrize("status", [403, 404, 500])
@pytest.mark.parametrize("pin", [True, False])
def test_a_refusal_leads_to_the_next_address(cache, server, mirror, status, pin):
    server.fails = [status] * 9
    with never_half(cache, sha(BODY)):
        assert fetch.fetch(either(server, mirror, pin=pin), tries=2) == cache / FILE
    assert (cache / FILE).read_bytes() == BODY
    assert (len(server.received), len(mirror.received)) == (2 if status == 500 else 1, 1)
    assert names(cache) == ({FILE} if pin else {FILE, "hashes.json"})


def test_the_first_address_that_serves_is_the_only_one(cache, server, mirror):
    fetch.fetch(either(server, mirror))
    assert (len(server.received), len(mirror.received)) == (1, 0)


def test_a_denial_as_a_page_a_wrong_file_and_a_silent_host_lead_on(cache, server, mirror):
    server.type, server.body = "text/html", b"<html><title>AccessDenied</title>"
    assert fetch.fetch(either(server, mirror)).read_bytes() == BODY
    (cache / FILE).unlink()
    server.type, server.body = "application/octet-stream", OTHER
    assert fetch.fetch(either(server, mirror)).read_bytes() == BODY
    (cache / FILE).unlink()
    server.url = "http://127.0.0.1:9/a.bin"
    assert fetch.fetch(either(server, mirror), tries=2).read_bytes() == BODY


def test_a_broken_archive_leads_to_the_next_address(cache, server, mirror):
    mirror.body = tar({"a.bin": BODY})
    server.body = mirror.body[:100_000]
    assert fetch.fetch(Asset(FILE, (server.url, mirror.url), unpack=True)).read_bytes() == BODY


def test_a_full_disk_is_no_reason_for_another_address(cache, server, mirror, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6 - 10, 10))  # type: ignore[attr-defined]
    with pytest.raises(OSError, match="make room"):
        fetch.fetch(either(server, mirror))
    assert mirror.received == []


def test_a_folder_in_google_drive_beside_an_address(server):
    folder = "https://drive.google.com/drive/folders/1aB-c_9"
    assert fetch.fetch(Asset(FILE, [folder, server.url])).read_bytes() == BODY


def test_one_line_names_what_every_address_answered(cache, server, mirror):
    server.fails, mirror.fails = [403], [404]
    with pytest.raises(OSError, match="correct its url, or put it there by hand") as caught:
        fetch.fetch(either(server, mirror))
    line = str(caught.value)
    assert "\n" not in line
    assert f"need {FILE} (0.3 MB) from {server.url} or {mirror.url} in {cache}, got " in line
    assert f"got 403 Forbidden from {server.url}; 404 Not Found from {mirror.url}: try" in line
    assert not (cache / FILE).exists()


@pytest.mark.parametrize("first", [0, 1])
def test_a_part_goes_on_at_the_address_that_it_came_from(cache, server, mirror, first):
    begins, other = (server, mirror)[first], (mirror, server)[first]
    other.fails, begins.cuts = [404], [100_000]
    with pytest.raises(OSError, match=r"no whole answer in 1 tries .* 404 Not Found|404 .*no whole answer") as caught:
        fetch.fetch(either(server, mirror), tries=1)
    assert str(caught.value).endswith("what came is kept")
    other.received.clear()
    other.body, begins.cuts = OTHER, []
    assert fetch.fetch(either(server, mirror)).read_bytes() == BODY
    assert begins.received[-1]["Range"] == "bytes=100000-"
    assert other.received == []
    assert begins.sent == len(BODY)


def test_a_part_whose_address_died_begins_anew_elsewhere(cache, server, mirror):
    server.cuts, mirror.fails = [100_000], [404]
    with pytest.raises(OSError, match="no whole answer"):
        fetch.fetch(either(server, mirror), tries=1)
    server.fails, mirror.received = [404], []
    assert fetch.fetch(either(server, mirror)).read_bytes() == BODY
    assert [asked.get("Range") for asked in mirror.received] == [None]


@pytest.mark.parametrize("url", [5, ["http://a", None], {"a": 1}])
def test_an_url_that_is_neither_text_nor_texts(url):
    with pytest.raises(ValueError, match=rf"^need url as a text or a list of texts for {FILE}, got "):
        Asset(FILE, url)


def another(server, **environment) -> subprocess.Popen:
    """A process that fetches; torch is not imported."""
    code = (
        "import sys; from dp.files.cache import Asset; from dp.files.fetch import fetch; fetch(Asset(*sys.argv[1:3]))"
    )
    return subprocess.Popen([sys.executable, "-c", code, FILE, server.url], cwd=ROOT, env=os.environ | environment)


def wait_for(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_two_processes_download_once(cache, server):
    go = threading.Event()
    server.cuts, server.on_cut = [100_000], go.wait
    with never_half(cache, sha(BODY)):
        both = [another(server), another(server)]
        wait_for(lambda: server.received)
        time.sleep(0.6)  # the second comes to the lock
        go.set()
        assert [process.wait(30) for process in both] == [0, 0]
    assert server.sent == len(BODY)
    assert (cache / FILE).read_bytes() == BODY


def test_a_killed_process_and_the_next(cache, server):
    go, part = threading.Event(), cache / (FILE + ".part")
    server.cuts, server.on_cut = [200_000], go.wait
    with never_half(cache, sha(BODY)):
        process = another(server)
        wait_for(lambda: part.exists() and part.stat().st_size == 200_000)
        process.send_signal(signal.SIGKILL)
        process.wait()
        go.set()
        assert not (cache / FILE).exists()
        get(cache, server)
    assert server.received[1]["Range"] == "bytes=200000-"
    assert names(cache) == {FILE}


def test_a_whole_part_of_a_killed_process_needs_no_request(cache, server, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(fetch, "_install", killed)
    with pytest.raises(KeyboardInterrupt):
        get(cache, server)
    monkeypatch.undo()
    monkeypatch.setenv("DP_CACHE", str(cache))
    get(cache, server)
    assert len(server.received) == 1


def test_a_disk_that_fills_while_writing(cache, server, monkeypatch):
    whole = download._write

    def full(file, data):
        if file.tell() + len(data) > 150_000:
            whole(file, data[: 150_000 - file.tell()])
            raise OSError(errno.ENOSPC, "No space left on device")
        whole(file, data)

    monkeypatch.setattr(download, "_write", full)
    refused(cache, server, r"MB free where 0\.1 MB more are needed: make room", OSError)
    assert (cache / (FILE + ".part")).read_bytes() == BODY[:150_000]
    monkeypatch.setattr(download, "_write", whole)
    get(cache, server)
    assert server.received[1]["Range"] == "bytes=150000-"


def test_a_disk_too_small_is_seen_before(cache, server, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6 - 10, 10))  # type: ignore[attr-defined]
    refused(cache, server, r"got 0\.0 MB free where 0\.3 MB more are needed", OSError)
    assert names(cache) == set()


def test_a_part_that_cannot_be_made_sure_of_is_not_kept(cache, server, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    def stop(*_):
        monkeypatch.setattr(os, "fsync", full)

    refused(cache, server, "make room", OSError, on_bytes=stop)
    assert names(cache) == set()


@pytest.fixture
def small_disk(cache):
    """The cache, on 200 kB."""
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", cache], capture_output=True)
    if made.returncode:
        pytest.skip("no right to mount")
    yield cache
    subprocess.run(["umount", cache], check=True)


@pytest.mark.parametrize("length", [0, None])
def test_a_small_disk(small_disk, server, length):
    server.length = length
    refused(small_disk, server, r"MB free.*: make room", OSError)
    part = small_disk / (FILE + ".part")
    assert part.exists() == (length is None)
    if part.exists():
        assert BODY.startswith(part.read_bytes())
    server.body = BODY[:50_000]
    part.unlink(missing_ok=True)
    get(small_disk, server, body=server.body)


def tar(members: dict[str, bytes], *others: tarfile.TarInfo) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as opened:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            opened.addfile(info, io.BytesIO(data))
        for info in others:
            opened.addfile(info)
    return packed.getvalue()


def odd(name: str, kind: bytes, to: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, to
    return info


def zipped(members: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, data in members.items():
            opened.writestr(name, data)
    return packed.getvalue()


@pytest.mark.parametrize("pack", [tar, zipped])
@pytest.mark.parametrize("pin", [True, False])
def test_an_archive_of_a_folder(cache, server, pack, pin):
    server.body = pack({"set/a": b"aaa", "set/sub/b": b"bb", "readme": b"r"})
    asset = Asset("set", server.url, 0.3, sha(server.body) if pin else None, unpack=True)
    path = fetch.fetch(asset)
    assert path == cache / "set"
    assert names(cache) == {"set/a", "set/sub/b", "hashes.json"}
    assert (path / "sub" / "b").read_bytes() == b"bb"
    verify(path, asset)
    fetch.fetch(asset)
    assert len(server.received) == 1


@pytest.mark.parametrize("inside", ["a.bin", FILE, "elsewhere/a.bin"])
def test_an_archive_of_a_file(cache, server, inside):
    server.body = tar({inside: BODY, "elsewhere/deeper/still/a.bin": b"no"})
    with never_half(cache, sha(BODY)):
        fetch.fetch(Asset(FILE, server.url, unpack=True))
    assert (cache / FILE).read_bytes() == BODY


@pytest.mark.parametrize(
    ("packed", "match"),
    [
        (tar({"a.bin": b"a", "../evil": b"e"}), "'../evil' in it, which leads out"),
        (tar({"a.bin": b"a", "/tmp/evil": b"e"}), "'/tmp/evil' in it, which leads out"),
        (tar({"a.bin": b"a"}, odd("out", tarfile.SYMTYPE, "/etc")), "'out' in it, which is neither"),
        (tar({"a.bin": b"a"}, odd("out", tarfile.LNKTYPE, "../../evil")), "'out' in it, which is neither"),
        (tar({"a.bin": b"a"}, odd("out", tarfile.CHRTYPE)), "'out' in it, which is neither"),
        (zipped({"a.bin": b"a", "x/../../evil": b"e"}), "evil' in it, which leads out"),
        (zipped({"a.bin": b"a", "..\\evil": b"e"}), "evil' in it, which leads out"),
        (tar({"a.bin": bytes(5_000_000)}), "over 2 MB in its 0.0 MB"),
        (zipped({"a.bin": bytes(5_000_000)}), "over 2 MB in its 0.0 MB"),
        (tar({"a.bin": BODY})[:100_000], "something torn in it"),
        (zipped({"a.bin": BODY})[:100_000], "something torn in it"),
        (BODY, "something torn in it"),
        (tar({"b.bin": b"b"}), "0 things of that name in it, beside b.bin"),
        (tar({"x/a.bin": b"a", "y/a.bin": b"a"}), "2 things of that name"),
    ],
    ids=lambda value: "archive" if isinstance(value, bytes) else None,  # its bytes hold the time
)
def test_archives_that_are_refused(cache, server, packed, match, monkeypatch):
    server.body = packed
    monkeypatch.setenv("DP_CACHE", str(cache / "inner"))  # what leads out of it is seen below
    with pytest.raises(ValueError, match=f"got an archive with .*{match}") as caught:
        fetch.fetch(Asset(FILE, server.url, unpack=True))
    assert "\n" not in str(caught.value)
    assert names(cache) == set()
    assert not Path("/tmp/evil").exists()


def test_an_archive_with_a_damaged_member(cache, server):
    packed = bytearray(zipped({"a.bin": BODY}))
    packed[1000] ^= 1
    server.body = bytes(packed)
    with pytest.raises(ValueError, match="something torn in it"):
        fetch.fetch(Asset(FILE, server.url, unpack=True))
    assert names(cache) == set()


def test_a_disk_that_fills_while_unpacking(cache, server, monkeypatch):
    server.body = tar({"set/a": BODY, "set/b": BODY})

    def full(self, *_, **__):
        (cache / ".set.unpacking" / "half").write_bytes(b"h")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "extractall", full)
    asset = Asset("set", server.url, unpack=True)
    with pytest.raises(OSError, match="make room"):
        fetch.fetch(asset)
    assert names(cache) == {"set.part", "set.part.json"}
    assert not (cache / ".set.unpacking").exists()
    monkeypatch.undo()
    monkeypatch.setenv("DP_CACHE", str(cache))
    (cache / ".set.unpacking").mkdir()  # as a killed process leaves it
    (cache / ".set.unpacking" / "half").write_bytes(b"h")
    fetch.fetch(asset)
    assert names(cache) == {"set/a", "set/b", "hashes.json"}
    assert len(server.received) == 1


def test_no_room_to_unpack(cache, server, monkeypatch):
    server.body = tar({"a.bin": b"a"})
    monkeypatch.setattr(archives, "inspect", lambda archive: 10**18)
    refused_asset = Asset(FILE, server.url, unpack=True)
    with pytest.raises(OSError, match=r"where 1000000000000\.0 MB more are needed"):
        fetch.fetch(refused_asset)


def test_an_archive_with_another_hash(cache, server):
    server.body = tar({"a.bin": b"a"})
    with pytest.raises(ValueError, match="instead of 0000"):
        fetch.fetch(Asset(FILE, server.url, sha256="0" * 64, unpack=True))
    assert names(cache) == set()


def test_a_cache_that_is_no_folder(cache, server):
    (cache / "deep").write_bytes(b"")
    refused_line = "set DP_CACHE to a folder that can be written"
    with pytest.raises(OSError, match=refused_line):
        fetch.fetch(Asset(FILE, server.url))


DRIVE = "https://drive.usercontent.google.com/download?id=1aB-c_9&export=download&confirm=t"


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("https://example.org/a.bin?x=1", "https://example.org/a.bin?x=1"),
        ("https://drive.google.com/uc?id=1aB-c_9", DRIVE),
        ("https://drive.google.com/uc?export=download&id=1aB-c_9", DRIVE),
        ("https://drive.google.com/open?id=1aB-c_9", DRIVE),
        ("https://drive.google.com/file/d/1aB-c_9/view?usp=sharing", DRIVE),
    ],
)
def test_addresses(url, address):
    assert download.sources(Asset(FILE, url)) == [(url, address)]


@pytest.mark.parametrize(
    ("url", "match"),
    [
        (
            "https://drive.google.com/drive/folders/1aB-c_9",
            "got a Google Drive folder, .* put it there as .*deep/a.bin$",
        ),
        ("https://drive.google.com/drive/u/0/folders/1aB-c_9?usp=sharing", "got a Google Drive folder"),
        ("nowhere, it must be trained", r"got no address to fetch it from \(nowhere, it must be trained\): put it"),
        (None, "got no address to fetch it from: put it there by hand"),
        ("ftp://example.org/a", "got no address"),
    ],
)
def test_what_cannot_be_fetched(cache, url, match):
    with pytest.raises(ValueError, match=match) as caught:
        fetch.fetch(Asset(FILE, url, 12))
    assert f"need {FILE} (12 MB)" in str(caught.value)
    assert str(cache) in str(caught.value)


def spoken(capsys, *arguments) -> tuple[int, str, str]:
    code = script.main(arguments)
    said = capsys.readouterr()
    return code, said.out, said.err


def extra(server, **more) -> list[str]:
    """Overrides that add a file to what the embedded benchmark needs."""
    return [
        f"+extra.{key}={value}" for key, value in {"file": "a.bin", "url": server.url, "megabytes": 0.3, **more}.items()
    ]


def test_the_command(cache, server):
    command = [sys.executable, "scripts/fetch.py", *extra(server)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert (cache / "a.bin").read_bytes() == BODY
    assert re.search(r"a\.bin +0\.3 +missing +http://127", done.stdout)
    assert re.search(r"digits_classifier\.safetensors +[\d.]+ +embedded", done.stdout)
    assert done.stdout.index("to download: 1 files, 0.3 MB, into") < done.stdout.index(f"there: {cache / 'a.bin'}")


def test_the_command_when_something_fails(cache, server, capsys):
    server.fails = [404]
    two = ["+second.file=b.bin", f"+second.url={server.url}"]
    hand = ["+third.file=c.bin", "+third.url=by hand"]
    code, out, err = spoken(capsys, *extra(server), *two, *hand)
    assert code == 2
    assert len(err.splitlines()) == 2
    for part in ("a.bin (0.3 MB)", server.url, str(cache), "404"):
        assert part in err.splitlines()[0]
    assert "c.bin" in err.splitlines()[1]
    assert "to download: 2 files, 0.3 MB and 1 of unknown size" in out
    assert "1 more cannot be fetched" in out
    assert (cache / "b.bin").read_bytes() == BODY  # the others are fetched


def test_a_dry_run(cache, server, capsys):
    code, out, _ = spoken(capsys, *extra(server), "--dry-run", "+second.file=b.bin")
    assert code == 0
    assert "to download: 1 files, 0.3 MB" in out
    assert server.received == []


def test_an_interrupted_command(server, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "fetch", interrupted)
    code, out, err = spoken(capsys, *extra(server))
    assert (code, err) == (130, "")
    assert out.endswith("the same command goes on where it stopped\n")


def test_a_mistake_in_the_command(capsys):
    code, _, err = spoken(capsys, "dataset=cifar")
    assert code == 2
    assert err.startswith("error: unknown option dataset=cifar")
    assert len(err.splitlines()) == 1


def test_the_list(cache, monkeypatch, capsys):
    monkeypatch.setattr(script, "LISTED", ("denoiser", "purifier"))
    monkeypatch.setattr(
        script, "options", lambda group, folders: {"denoiser": ["digits", "edm_cifar10"]}.get(group, ["gone"])
    )
    monkeypatch.setitem(needed.ZOO, "dp.diffusion.denoisers.EDM", lambda **_: Asset("named/by/a/library"))
    code, out, _ = spoken(capsys, "--list")
    assert code == 0
    assert "purifier=gone: not known (unknown option" in out
    assert re.search(r"named/by/a/library +\? +missing +denoiser=digits, denoiser=edm_cifar10", out)
    assert re.search(r"digits_denoiser\.safetensors +0\.\d +embedded +denoiser=digits", out)
    assert "edm-cifar10" in out


def test_the_list_has_the_files_of_purifiers_and_recipes(cache, monkeypatch, capsys):
    shown = {"purifier": ["langevin"], "training": ["svhn_classifier"], "dataset": ["svhn", "cifar10"]}
    listed = script.LISTED
    monkeypatch.setattr(script, "LISTED", [group for group in listed if group in ("purifier", "training")])
    monkeypatch.setattr(script, "options", lambda group, folders: shown[group])
    code, out, _ = spoken(capsys, "--list")
    assert code == 0
    assert "not known" not in out
    assert re.search(r"ebm\.pth +\? +missing", out)
    assert re.search(r"train_32x32\.mat +182 +missing", out)


def test_the_list_has_plugins(cache, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script, "LISTED", ("classifier",))
    (tmp_path / "yamls" / "classifier").mkdir(parents=True)
    node = "{_target_: dp.classifiers.Classifier, net: {file: mine.bin, url: 'https://example.org/mine.bin'}}"
    (tmp_path / "yamls" / "classifier" / "mine.yaml").write_text(node)
    code, out, _ = spoken(capsys, "--list", "--config-dir", str(tmp_path / "yamls"))
    assert code == 0
    assert re.search(r"mine\.bin +\? +missing +https://example\.org/mine\.bin +classifier=mine", out)


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_of_downloads(terminal, monkeypatch):
    clock = iter(range(0, 1000, 11))
    monkeypatch.setattr(
        "dp.output.progress.time.monotonic", lambda: next(clock) if not terminal else time.perf_counter()
    )
    text = io.StringIO()
    with Downloads(Console(file=text, force_terminal=terminal, width=100)) as downloads:
        report = downloads.file("a.bin", 2)
        report(1_000_000, 4_000_000)
        report(2_000_000, 4_000_000)
        report(2_000_000, None)
    assert "a.bin" in text.getvalue()
    if not terminal:
        assert "a.bin: 2.0 of 4.0 MB, 0.0 MB/s, 44 s to go\n" in text.getvalue()
