"""Where files are on disk, and whether they are the right ones."""

import errno
import hashlib
import json
import os
import re
import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from dp.files.addresses import direct, is_address

ASSETS = Path(__file__).parents[1] / "assets"  # embedded files
READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)  # what a disk without file locks answers


@dataclass(frozen=True)
class Asset:
    """A file or folder that is embedded in the package or belongs into the cache folder."""

    file: str  # path below the embedded files or the cache folder
    url: str | Sequence[str] | None = None  # http(s), a Google Drive address, or words; or several, tried in turn
    megabytes: float | None = None  # of what an address serves
    sha256: str | None = None  # of what an address serves; None if unknown
    unpack: bool = False  # an address serves a .tar, .tar.gz or .zip that holds `file`

    def __post_init__(self) -> None:
        if isinstance(self.url, list):  # from a yaml; a tuple can be hashed
            object.__setattr__(self, "url", tuple(self.url))
        if not all(isinstance(url, str) for url in self.urls):
            raise ValueError(f"need url as a text or a list of texts for {self.file}, got {self.url!r}")

    @property
    def urls(self) -> tuple[str, ...]:
        """All that `url` names, in order."""
        if self.url is None:
            return ()
        return self.url if isinstance(self.url, tuple) else (self.url,)  # pyright: ignore[reportReturnType]

    @property
    def fetchable(self) -> bool:
        """True if a download can use one of `urls`."""
        return any(direct(url) for url in self.urls)

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
    origin = f", published at {' and '.join(asset.urls)}" if asset.urls else ""
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
    """One line for an error: the asset, its addresses and folder, what was found (`got`), and what to do (`todo`)."""
    addresses = [url for url in asset.urls if is_address(url)]
    origin = f" from {' or '.join(addresses)}" if addresses else ""
    return f"need {asset}{origin} in {cache_folder()}, got {got}: {todo}"


def verify(path: Path, asset: Asset) -> str:
    """Check the SHA-256 of the file or folder at `path` and return it; for folders see `digest`.

    It must be the asset's own hash or, if that is unknown, the one that hashes.json in the cache recorded at first use.
    Embedded files are not recorded, and a read-only cache records nothing. Raises ValueError for any other hash.
    """
    if path.is_dir() and _is_pinned(asset):
        raise ValueError(f"need the file {path}, got a directory: move it away and put the file there")
    actual, pinned = digest(path), expected(asset)
    if pinned is None and not path.is_relative_to(ASSETS) and path.absolute().is_relative_to(cache_folder().absolute()):
        pinned = note(asset, actual)
    if pinned not in (None, actual):
        noted = "" if _is_pinned(asset) else f", as noted in {_notes().name} on first use"
        got = f"got {'a directory with ' if path.is_dir() else ''}{actual[:12]}..."
        raise ValueError(f"need {path} with SHA-256 {pinned[:12]}...{noted}, {got}: {_todo(asset, path)}")
    return actual


def _is_pinned(asset: Asset) -> bool:
    """True if the asset's own hash is that of what is on disk. An archive's hash says nothing about its content."""
    return asset.sha256 is not None and not asset.unpack


def _todo(asset: Asset, path: Path) -> str:
    """What to do about a wrong hash. Only what can be fetched again is to be deleted."""
    if path.is_relative_to(ASSETS):
        return "it comes with the package, install that again or restore it with git"
    if asset.fetchable:
        return "delete it and fetch it again"
    right = "set its sha256" if _is_pinned(asset) else f"take its line out of {_notes()}"
    return f"it cannot be fetched, put the earlier one back, or {right} if this one is right"


def digest(path: Path) -> str:
    """The SHA-256 of a file, or of the names and hashes of all files in a folder."""
    if path.is_dir():
        files = {p.relative_to(path).as_posix(): p for p in path.rglob("*") if p.is_file()}
        lines = "".join(f"{digest(files[name])} {name}\n" for name in sorted(files))
        return hashlib.sha256(lines.encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def expected(asset: Asset) -> str | None:
    """The hash that the asset must have on disk: its own, the one recorded at first use, or None."""
    if asset.sha256 is not None and _is_pinned(asset):
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
        if error.errno not in (*READ_ONLY, *NO_LOCKS):
            raise
        return sha256


def forget(path: Path) -> None:
    """Take the hash of a file that was written anew out of hashes.json, if the file lies in the cache folder."""
    root = cache_folder().absolute()
    name = path.absolute().relative_to(root).as_posix() if path.absolute().is_relative_to(root) else None
    if name not in _noted():
        return
    try:
        with FileLock(_notes().with_suffix(".lock")):
            noted = {file: sha256 for file, sha256 in _noted().items() if file != name}
            write_whole(_notes(), json.dumps(noted, indent=1, sort_keys=True) + "\n")
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise


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
    new = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}.new")
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
