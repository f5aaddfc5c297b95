"""Bring files into the cache folder: resumable, verified, by one process at a time."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from dp.files import archives
from dp.files.cache import READ_ONLY, Asset, complaint, digest, expected, is_there, locate, note, place, sync, verify
from dp.files.download import OnBytes, direct, download, drop, no_room, size, state_of


def fetch(asset: Asset, on_bytes: OnBytes = lambda done, total: None, *, timeout: float = 30.0, tries: int = 5) -> Path:
    """Download the asset into the cache folder unless it is there, and return its path.

    An incomplete file is kept beside it as `<file>.part` until it is whole and its hash is right. The next call
    continues it if the server still has the same file. Two processes at once download one time.
    `on_bytes(done, total)` is called with bytes so far and in all, None if the server does not say it. `timeout`:
    seconds without a byte. `tries`: how many tries in a row may bring nothing. Raises OSError (network, server, disk)
    and ValueError (wrong file, no address), in one line.
    """
    if is_there(asset):
        verify(locate(asset), asset)
        return locate(asset)
    address, target = direct(asset), place(asset)
    part = target.with_name(target.name + ".part")
    with _plain_words(asset, part):
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f".{target.name}.lock")):
            if not target.exists():
                download(asset, address, part, on_bytes, timeout, tries)
                _install(asset, part, target)
                return target
    verify(target, asset)  # another process has downloaded it
    return target


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
        raise ValueError(complaint(asset, f"a file with SHA-256 {actual} instead of {want}", todo))
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
        raise ValueError(complaint(asset, f"an archive with {error}", "nothing is kept; correct its url")) from None


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
