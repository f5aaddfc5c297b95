"""Where files are on disk, and whether they are the right ones."""

import errno
import hashlib
import json
import os
import re
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

ASSETS = Path(__file__).parents[1] / "assets"  # embedded files
READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)


class Asset(NamedTuple):
    """A file or folder that is embedded in the package or belongs into the cache folder."""

    file: str  # path below the embedded files or the cache folder
    url: str | None = None  # http(s), a Google Drive address, or words where it cannot be fetched
    megabytes: float | None = None  # of what the address serves
    sha256: str | None = None  # of what the address serves; None if unknown
    unpack: bool = False  # the address serves a .tar, .tar.gz or .zip that holds `file`

    @property
    def fetchable(self) -> bool:
        """True if `url` is an address and not words."""
        return (self.url or "").startswith(("http://", "https://"))

    def __str__(self) -> str:
        return self.file if self.megabytes is None else f"{self.file} ({self.megabytes:g} MB)"


def cache_folder() -> Path:
    """The folder `DP_CACHE`, or `dp` in the user's cache folder."""
    if "DP_CACHE" in os.environ:
        return Path(os.environ["DP_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "dp"


def locate(asset: Asset) -> Path:
    """The path of the asset among the embedded files or in the cache folder.

    If it is in neither, raises FileNotFoundError, in one line with the file, its size, its address, the folder and the
    command that fetches it.
    """
    for folder in (ASSETS, cache_folder()):
        if (folder / asset.file).exists():
            return folder / asset.file
    origin = "" if asset.url is None else f", published at {asset.url}"
    command = "fetch it with `dp fetch` and the same options, or " if asset.fetchable else ""
    raise FileNotFoundError(
        f"missing file: need {asset}{origin}; {command}put it into {cache_folder()} (or set DP_CACHE)"
    )


def is_there(asset: Asset) -> bool:
    """True if the asset is embedded or lies in the cache folder."""
    try:
        locate(asset)
    except FileNotFoundError:
        return False
    return True


def place(asset: Asset) -> Path:
    """The path in the cache folder where it belongs. Raises ValueError for a name that leads out of that folder."""
    root = cache_folder()
    if root.absolute() not in Path(os.path.normpath(root.absolute() / asset.file)).parents:
        raise ValueError(complaint(asset, "a file name that leads out of that folder", "give a path below it"))
    return root / asset.file


def complaint(asset: Asset, got: str, todo: str) -> str:
    """One line for an error: the asset, its address and folder, what was found (`got`), and what to do (`todo`)."""
    origin = f" from {asset.url}" if asset.fetchable else ""
    return f"need {asset}{origin} in {cache_folder()}, got {got}: {todo}"


def verify(path: Path, asset: Asset) -> str:
    """Check the SHA-256 of the file or folder at `path` and return it; for folders see `digest`.

    It must be the asset's own hash or, if that is unknown, the one that hashes.json in the cache recorded at first use.
    Embedded files are not recorded, and a read-only cache records nothing. Raises ValueError for any other hash.
    """
    actual, pinned = digest(path), expected(asset)
    if pinned is None and not path.is_relative_to(ASSETS) and path.absolute().is_relative_to(cache_folder().absolute()):
        pinned = note(asset, actual)
    if pinned not in (None, actual):
        noted = "" if asset.sha256 and not asset.unpack else f", as noted in {_notes().name} on first use"
        raise ValueError(
            f"need {path} with SHA-256 {pinned[:12]}...{noted}, got {actual[:12]}...: delete it and fetch it again"
        )
    return actual


def digest(path: Path) -> str:
    """The SHA-256 of a file, or of the names and hashes of all files in a folder."""
    if path.is_dir():
        files = {p.relative_to(path).as_posix(): p for p in path.rglob("*") if p.is_file()}
        lines = "".join(f"{digest(files[name])} {name}\n" for name in sorted(files))
        return hashlib.sha256(lines.encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def expected(asset: Asset) -> str | None:
    """The hash that the asset must have on disk: its own, the one recorded at first use, or None.

    The hash of an archive says nothing about what it unpacks to.
    """
    if asset.sha256 is not None and not asset.unpack:
        return asset.sha256.lower()
    return _noted().get(asset.file)


def note(asset: Asset, sha256: str) -> str:
    """Record a hash in hashes.json unless one is recorded, and return the recorded one."""
    try:
        with FileLock(_notes().with_suffix(".lock")):
            noted = _noted()
            if asset.file not in noted:
                noted[asset.file] = sha256
                write_whole(_notes(), json.dumps(noted, indent=1, sort_keys=True) + "\n")
            return noted[asset.file]
    except OSError as error:
        if error.errno not in READ_ONLY:
            raise
        return sha256


def _notes() -> Path:
    return cache_folder() / "hashes.json"


def _noted() -> dict[str, str]:
    try:
        noted = json.loads(_notes().read_text())
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError):
        noted = None
    if not isinstance(noted, dict) or not all(re.fullmatch("[0-9a-f]{64}", str(v)) for v in noted.values()):
        raise ValueError(f"need a JSON mapping to hashes in {_notes()}, got something else: delete it to start anew")
    return noted


def write_whole(path: Path, text: str) -> None:
    """Replace a small file atomically. Callers hold a lock, so that there is one writer at a time."""
    new = path.with_name(path.name + ".new")
    try:
        new.write_text(text)
        sync(new)
        new.replace(path)
    except OSError:
        new.unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
