"""What an address of a file is, and which address serves its bytes."""

import re
from urllib.parse import parse_qs, urlsplit


def is_address(url: str) -> bool:
    """True for an http or https address, False for words."""
    return url.startswith(("http://", "https://"))


def direct(url: str) -> str | None:
    """The address that serves the bytes. None for words and for a Google Drive folder, which cannot be downloaded."""
    if not is_address(url):
        return None
    try:
        parts = urlsplit(url)
    except ValueError:  # requests says what is wrong with it
        return url
    if parts.hostname not in ("drive.google.com", "docs.google.com", "drive.usercontent.google.com"):
        return url
    named = re.search(r"/d/([\w-]+)", parts.path)
    name = named.group(1) if named else parse_qs(parts.query).get("id", [""])[0]
    if not name or "folder" in parts.path:
        return None
    return f"https://drive.usercontent.google.com/download?id={name}&export=download&confirm=t"
