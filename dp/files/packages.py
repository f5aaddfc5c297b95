"""Data files that installed packages bring along, found without importing the package."""

import importlib.util
from pathlib import Path

from dp.files.cache import digest


def package_file(package: str, name: str, sha256: str, advice: str) -> Path:
    """The file `name` in an installed package, which is not imported, since that takes up to seconds.

    `advice`: what to install, for the error. Raises FileNotFoundError where the package or the file is missing, and
    ValueError for other content.
    """
    found = importlib.util.find_spec(package)
    path = None if found is None or found.origin is None else Path(found.origin).parent / name
    if path is None or not path.is_file():
        raise FileNotFoundError(f"missing data: need {name} of the package {package}: {advice}")
    if (actual := digest(path)) != sha256:
        raise ValueError(f"need {path} with SHA-256 {sha256[:12]}..., got {actual[:12]}...: install the pinned version")
    return path
