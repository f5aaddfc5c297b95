"""Unpack archives of files and folders into one folder and nowhere else."""

import itertools
import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

EXPANSION = 100  # limit of the unpacked size, in sizes of the archive; weights and images stay far below it
ALLOWANCE = 1 << 20  # bytes that are allowed beyond that
BROKEN = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, NotImplementedError)


def inspect(archive: Path) -> int:
    """The unpacked size of a .tar, .tar.gz or .zip in bytes.

    Raises ValueError, with words that follow "an archive with", if the archive holds anything but files and folders
    below its own folder, if it unpacks to more than `EXPANSION` times its size, and if it is damaged.
    """
    limit, total = EXPANSION * archive.stat().st_size + ALLOWANCE, 0
    with _torn():
        for name, size, plain in _members(archive):
            if not plain:
                raise ValueError(f"{name!r} in it, which is neither a file nor a folder")
            path = PurePosixPath(name.replace("\\", "/"))
            if path.is_absolute() or ".." in path.parts or (path.parts[:1] and path.parts[0].endswith(":")):
                raise ValueError(f"{name!r} in it, which leads out of its folder")
            total += size
            if total > limit:
                raise ValueError(f"over {limit / 1e6:.0f} MB in its {archive.stat().st_size / 1e6:.1f} MB")
    return total


def unpack(archive: Path, folder: Path) -> None:
    """Unpack an inspected archive into a new folder. If that fails, the folder is removed."""
    try:
        folder.mkdir()
        with _torn():
            if _is_zip(archive):
                with zipfile.ZipFile(archive) as opened:
                    opened.extractall(folder)
            elif not hasattr(tarfile, "data_filter"):
                raise ValueError("what this Python cannot unpack safely: need 3.11.4 or newer")
            else:
                with tarfile.open(archive) as opened:
                    opened.extractall(folder, filter="data")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def find(folder: Path, file: str) -> Path:
    """The path `file` in an unpacked archive, or else the topmost entry with its name. Raises ValueError."""
    if (folder / file).exists():
        return folder / file
    matches = sorted(p.relative_to(folder).parts for p in folder.rglob("*") if p.name == Path(file).name)
    matches.sort(key=len)
    if not matches or (len(matches) > 1 and len(matches[0]) == len(matches[1])):
        entries = ", ".join(sorted(p.name for p in itertools.islice(folder.iterdir(), 5)))
        raise ValueError(f"{len(matches)} things of that name in it, beside {entries or 'nothing'}")
    return folder.joinpath(*matches[0])


def _members(archive: Path) -> Iterator[tuple[str, int, bool]]:
    """Name, unpacked bytes, and True for a plain file or folder, of each member. A tar is read lazily."""
    if _is_zip(archive):
        with zipfile.ZipFile(archive) as opened:
            for info in opened.infolist():
                yield info.filename, info.file_size, stat.S_IFMT(info.external_attr >> 16) in _PLAIN
    else:
        with tarfile.open(archive) as opened:
            for member in opened:
                yield member.name, member.size, member.isreg() or member.isdir()


def _is_zip(archive: Path) -> bool:
    return not tarfile.is_tarfile(archive) and zipfile.is_zipfile(archive)  # a tar may end with a zip


_PLAIN = (0, stat.S_IFREG, stat.S_IFDIR)


@contextmanager
def _torn() -> Iterator[None]:
    try:
        yield
    except BROKEN as error:
        raise ValueError(f"something torn in it ({' '.join(str(error).split()) or type(error).__name__})") from None
    except OSError as error:  # gzip's own
        if error.errno is not None:
            raise
        raise ValueError(f"something torn in it ({error})") from None
