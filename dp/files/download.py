"""Download one address into one file: resumed, retried, and never a web page in its place.

Other addresses of the same file are `dp.files.fetch`'s business.
"""

import http.client
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import requests
import urllib3

from dp.files.addresses import direct, is_address
from dp.files.cache import Asset, complaint, place, write_whole

CHUNK = 1 << 18  # bytes
WAIT = 0.5  # seconds before the second try, doubled before each further one
TEXT = (".html", ".htm", ".xml", ".svg")  # files that may begin with "<"
BROKEN = (
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,
    urllib3.exceptions.HTTPError,
    http.client.HTTPException,
)
OnBytes = Callable[[int, int | None], object]


class _Again(Exception):
    """The answer broke off, or the server cannot serve it now: try again."""


class NotServed(Exception):
    """An address does not serve the file. Another one may.

    `got`, `todo`: see `complaint`. `kind`: the error to raise if no address serves it.
    """

    def __init__(self, got: str, todo: str, kind: type[OSError | ValueError] = OSError):
        super().__init__(got)
        self.got, self.todo, self.kind = got, todo, kind


class Source(NamedTuple):
    """An address of an asset: as it is published, and as it serves the bytes."""

    url: str
    address: str


def sources(asset: Asset) -> list[Source]:
    """The addresses of an asset that a download can use, in order. Raises ValueError if there is none.

    A Google Drive folder cannot be downloaded.
    """
    addresses = [url for url in asset.urls if is_address(url)]
    found = [Source(url, address) for url in addresses if (address := direct(url)) is not None]
    if found:
        return found
    if addresses:
        got = "a Google Drive folder, which cannot be fetched"
        raise ValueError(complaint(asset, got, f"download it in a browser and put it there as {place(asset)}"))
    said = f" ({', '.join(asset.urls)})" if asset.urls else ""
    raise ValueError(complaint(asset, f"no address to fetch it from{said}", "put it there by hand"))


def download(asset: Asset, address: str, part: Path, on_bytes: OnBytes, timeout: float, tries: int) -> None:
    """Download the rest of `part`. The count of tries starts again whenever more of the file has come than before.

    `on_bytes(done, total)` is called with bytes so far and in all. `timeout`: seconds without a byte. Raises NotServed
    if the address does not serve the file, and OSError for an error of the disk.
    """
    furthest, failed = size_from(address, part), 0
    while True:
        try:
            return _attempt(asset, address, part, on_bytes, timeout)
        except (_Again, *BROKEN) as error:
            came = size_from(address, part)
            failed = 0 if came > furthest else failed
            furthest, failed = max(furthest, came), failed + 1
            if failed >= tries:
                partial = f", the {came / 1e6:.1f} MB that came are kept" if came else ""
                got = f"no whole answer in {tries} tries ({_reason(error, timeout)})"
                raise NotServed(got, f"try again later{partial}") from None
            time.sleep(min(30.0, WAIT * 2 ** (failed - 1)))
        except requests.RequestException as error:
            raise NotServed(_reason(error, timeout), "correct its url") from None


def _reason(error: Exception, timeout: float) -> str:
    if isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError) or "timed out" in str(error):
        return f"nothing for {timeout:g} s"
    said = re.findall(r"\[Errno -?\d+\] ([^'\")]+)", str(error))
    return said[-1] if said else " ".join(str(error).split())[:200] or type(error).__name__


def _attempt(asset: Asset, address: str, part: Path, on_bytes: OnBytes, timeout: float) -> None:
    """One request for the file or for its rest. What has come is on the disk when this returns or raises."""
    have, state = size_from(address, part), state_of(part)
    if have and have == state["total"]:
        return
    if not state.get("validator") or have > (state["total"] or have):
        have = 0
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": state["validator"]}
    with requests.get(address, headers=headers, stream=True, timeout=timeout) as answer:
        have, total = _judged(asset, answer, part, have, state)
        free = shutil.disk_usage(part.parent).free + size(part) - have
        if total is not None and total - have > free:
            raise OSError(no_room(asset, total - have, free))
        if not have:
            part.unlink(missing_ok=True)
            state = {"address": address, "validator": _validator(answer), "total": total}
            write_whole(_sidecar(part), json.dumps(state))
        _stream(asset, answer, part, on_bytes, have, total)
    if total is not None and size(part) != total:
        raise _Again(f"{size(part)} of {total} bytes")


def _judged(asset: Asset, answer: requests.Response, part: Path, have: int, state: dict) -> tuple[int, int | None]:
    """The byte at which the answer begins and the size of the whole file, None if the server does not say it."""
    status, said = answer.status_code, f"{answer.status_code} {answer.reason}"
    length = answer.headers.get("Content-Length", "")
    if status == 206 and have:
        begins = re.fullmatch(rf"bytes {have}-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
        total = begins.group(1) if begins else ""
        same = state["total"] is None or total in ("*", str(state["total"]))
        if begins and same and _validator(answer) in ("", state["validator"]):
            return have, int(total) if total.isdigit() else state["total"]
    if status in (206, 416) and have:
        drop(part)
        raise _Again(f"{said} for another file than before")
    if status >= 500:
        raise _Again(said)
    if status != 200:
        raise NotServed(said, "correct its url, or put it there by hand")
    if answer.headers.get("Content-Type", "").startswith("text/html") and not asset.file.endswith(TEXT):
        raise _web_page(answer.raw.read(1 << 14, decode_content=False))
    return 0, int(length) if length.isdigit() else None


def _stream(
    asset: Asset, answer: requests.Response, part: Path, on_bytes: OnBytes, done: int, total: int | None
) -> None:
    with part.open("ab", buffering=0) as file:
        try:
            on_bytes(done, total)
            while chunk := answer.raw.read1(CHUNK, decode_content=False):
                if not done and chunk.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"<" and not asset.file.endswith(TEXT):
                    drop(part)
                    raise _web_page(chunk)
                _write(file, chunk)
                done += len(chunk)
                on_bytes(done, total)
        finally:
            _settle(file, part)


def _write(file: Any, data: bytes) -> None:
    """Write all of it; one write to an unbuffered file may take only a part."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _settle(file: Any, part: Path) -> None:
    """Flush the part to the disk, since otherwise the rest could be appended behind a gap."""
    try:
        os.fsync(file.fileno())
    except OSError:
        drop(part)
        raise


def _web_page(page: bytes) -> NotServed:
    title = re.search(r"<title[^>]*>([^<]{1,80})", page.decode(errors="replace"), re.IGNORECASE)
    named = f" ({' '.join(title.group(1).split())})" if title else ""
    got = f"not the file: the address answered with a web page{named}"
    return NotServed(got, "open it in a browser and put the file there by hand", ValueError)


def no_room(asset: Asset, need: float | None, free: float) -> str:
    """One line about a full disk. `need`, `free`: in bytes; `need` is None if unknown."""
    wanted = "" if need is None else f" where {need / 1e6:.1f} MB more are needed"
    return complaint(
        asset, f"{free / 1e6:.1f} MB free{wanted}", "make room, or set DP_CACHE to another disk; what came is kept"
    )


def size(path: Path) -> int:
    """Size of a file in bytes, 0 if there is none."""
    return path.stat().st_size if path.exists() else 0


def size_from(address: str, part: Path) -> int:
    """Bytes of a part that came from this address."""
    return size(part) if state_of(part).get("address") == address else 0


def state_of(part: Path) -> dict:
    """What the server said of the file of this part: address, validator and total, or nothing."""
    with suppress(OSError, ValueError):
        state = json.loads(_sidecar(part).read_text())
        if isinstance(state, dict) and {"address", "validator", "total"} <= set(state):
            return state
    return {}


def _sidecar(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _validator(answer: requests.Response) -> str:
    """A strong ETag or the date of the last change, as If-Range needs it."""
    tag = answer.headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else answer.headers.get("Last-Modified", "")


def drop(part: Path) -> None:
    """Delete a part and what is recorded of it."""
    part.unlink(missing_ok=True)
    _sidecar(part).unlink(missing_ok=True)
