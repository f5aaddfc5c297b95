"""For mkdocs alone: the pictures of results/figures/, which lie outside docs/, are taken into the site, other links out
of docs/ become the file's name, and anchors are those of GitHub.
"""

import re
from pathlib import Path

from mkdocs.structure.files import File

FIGURES = Path(__file__).parents[1] / "results" / "figures"
OUTSIDE = re.compile(r"(?<!!)\[([^\]]+)\]\((?:\.\./)+((?:results/(?!figures/)|README)[^)]*)\)")


def on_config(config):
    config.mdx_configs.setdefault("toc", {})["slugify"] = slug
    return config


def on_files(files, config):
    for path in sorted(FIGURES.glob("*.png")):
        files.append(File.generated(config, f"figures/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    return OUTSIDE.sub(r"\1 (`\2`)", markdown.replace("](../results/figures/", "](figures/"))


def slug(text, separator):
    """The anchor that GitHub makes of a heading: lower case, signs left out, each space a hyphen."""
    return re.sub(r"[^\w\- ]", "", text).strip().lower().replace(" ", separator)
