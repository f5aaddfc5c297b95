"""Bring files into the cache folder: resumable, verified, by one process at a time."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from dp.files import archives
from dp.files.cache import READ_ONLY, Asset, complaint, digest, expected, is_there, locate, note, place, sync, verify
from dp.files.download import NotServed, OnBytes, Source, download, drop, no_room, size, size_from, sources, state_of


def fetch(asset: Asset, on_bytes: OnBytes = lambda done, total: None, *, timeout: float = 30.0, tries: int = 5) -> Path:
    """Download the asset into the cache folder unless it is there, and return its path.

    An incomplete file is kept beside it as `<file>.part` until it is whole and its hash is right. The next call
    continues it if the server still has the same file. Two processes at once download one time. If an asset has several
    addresses, the next one is tried where one does not serve the file, first the one that an incomplete file came from.
    `on_bytes(done, total)` is called with bytes so far and in all, None if the server does not say it. `timeout`:
    seconds without a byte. `tries`: how many tries in a row may bring nothing. Raises OSError (network, server, disk)
    and ValueError (wrong file, no address), in one line that says what every address answered.
    """
    if is_there(asset):
        verify(locate(asset), asset)
        return locate(asset)
    offered, target = sources(asset), place(asset)
    part = target.with_name(target.name + ".part")
    with _plain_words(asset, part):
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f".{target.name}.lock")):
            if not target.exists():
                _from_any(asset, offered, part, target, on_bytes, timeout, tries)
                return target
    verify(target, asset)  # another process has downloaded it
    return target


def _from_any(
    asset: Asset, offered: list[Source], part: Path, target: Path, on_bytes: OnBytes, timeout: float, tries: int
) -> None:
    """Download and install the file from the first address that serves it."""
    failed: dict[str, NotServed] = {}
    for url, address in sorted(offered, key=lambda source: not size_from(source.address, part)):
        try:
            download(asset, address, part, on_bytes, timeout, tries)
            return _install(asset, part, target)
        except NotServed as error:
            failed[url] = error
    errors = list(failed.values())
    if len(errors) == 1:
        raise errors[0].kind(complaint(asset, errors[0].got, errors[0].todo))
    got = "; ".join(f"{failed[url].got} from {url}" for url, _ in offered)
    kept = "; what came is kept" if size(part) else ""
    raise errors[0].kind(complaint(asset, got, f"try again later, correct its url, or put it there by hand{kept}"))


def _install(asset: Asset, part: Path, target: Path) -> None:
    """Check a complete part, unpack it if it is an archive, and give it its name last."""
    if not asset.unpack:
        actual = _insist(asset, part, part, expected(asset))
        sync(part)
        part.replace(target)
    else:
        if asset.sha256 is not None:
            _insist(asset, part, part, asset.sha256.lower())
        folder = target.with_name(f".{target.name}.unpacking")
        shutil.rmtree(folder, ignore_errors=True)  # left by a killed process
        try:
            whole = _unpacked(asset, part, folder)
            actual = _insist(asset, part, whole, expected(asset))
            for path in (whole, *whole.rglob("*")):
                sync(path)
            whole.replace(target)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    sync(target.parent)
    drop(part)
    if expected(asset) is None:
        note(asset, actual)


def _insist(asset: Asset, part: Path, path: Path, want: str | None) -> str:
    actual = digest(path)
    if want not in (None, actual):
        drop(part)
        todo = "nothing is kept; try again, or correct its sha256 or its line in hashes.json if the new file is right"
        raise NotServed(f"a file with SHA-256 {actual} instead of {want}", todo, ValueError)
    return actual


def _unpacked(asset: Asset, part: Path, folder: Path) -> Path:
    try:
        need, free = archives.inspect(part), shutil.disk_usage(part.parent).free
        if need > free:
            raise OSError(no_room(asset, need, free))
        archives.unpack(part, folder)
        return archives.find(folder, asset.file)
    except ValueError as error:
        drop(part)
        raise NotServed(f"an archive with {error}", "nothing is kept; correct its url", ValueError) from None


@contextmanager
def _plain_words(asset: Asset, part: Path) -> Iterator[None]:
    """Turn errors of the disk into one line that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            total = state_of(part).get("total")
            need = total - size(part) or None if total else None
            raise OSError(no_room(asset, need, shutil.disk_usage(part.parent).free)) from None
        if error.errno in (*READ_ONLY, errno.ENOTDIR, errno.EEXIST):
            todo = "set DP_CACHE to a folder that can be written"
            raise OSError(complaint(asset, (error.strerror or "no access").lower(), todo)) from None
        raise
