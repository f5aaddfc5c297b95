"""The files and commands that stand in a page's fenced blocks."""

import re
from pathlib import Path

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAMED = re.compile(r"(# @package \w+\n)?# ([\w./-]+\.(?:py|yaml))\n")


def files(page: str) -> dict[str, str]:
    """{path: content} of the blocks whose first line is a comment with a path, if need be after Hydra's `@package`."""
    found = {}
    for _, content in BLOCK.findall(page):
        name = NAMED.match(content)
        if name:
            package, path = name.groups(default="")
            assert path not in found, f"{path} stands twice"
            found[path] = package + content[name.end() :]
    return found


def commands(page: str) -> list[list[str]]:
    """The commands of the bash blocks, as words."""
    return [line.split() for kind, content in BLOCK.findall(page) if kind == "bash" for line in content.splitlines()]


def write(page: str, folder: Path) -> list[str]:
    """The files of a page below a folder; their paths."""
    for name, content in files(page).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return sorted(files(page))
