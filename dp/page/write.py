"""Write the page: its files, a chunk of data for each run, and chunks of pictures, which are read when looked at."""

import importlib.resources
import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from dp.output import pictures
from dp.output.pictures import Shown
from dp.output.record import write_atomic
from dp.page.facts import columns, curves, text
from dp.page.source import Run
from dp.runs.keys import digest_of
from dp.runs.repeat import command_of, same_key
from dp.runs.shown import shown

LIBRARY = ("bokeh.min.js", "bokeh-api.min.js", "bokeh-widgets.min.js", "bokeh-tables.min.js")
OWN = ("page.js", "charts.js", "page.css")
BLOCK = 64  # images in a chunk of pictures
MARK = ".dp-page"  # the file by which a folder is known as a page
Say = Callable[[str], None]


def begin(out: Path) -> None:
    """Make the folder of the page anew. Raises ValueError for a folder with other content, which stays as it is."""
    if out.exists() and not (out.is_dir() and ((out / MARK).exists() or not any(out.iterdir()))):
        raise ValueError(f"need a new folder or a page's folder for --out, got {out} with other content: name another")
    shutil.rmtree(out, ignore_errors=True)
    (out / "data").mkdir(parents=True)
    (out / MARK).touch()


def write_files(out: Path, lines: list[dict[str, Any]]) -> None:
    """Write the page itself, the library's scripts from the installed package, and the table of runs."""
    library = importlib.resources.files("bokeh") / "server" / "static" / "js"
    for name in LIBRARY:
        (out / name).write_bytes((library / name).read_bytes())
    for name in OWN:
        (out / name).write_bytes((importlib.resources.files("dp.page") / "assets" / name).read_bytes())
    _chunk(out, "data/runs.js", "runs", lines)
    (out / ".nojekyll").touch()  # a static host must serve every file as it is
    write_atomic(out / "index.html", _templates().get_template("index.html").render(library=LIBRARY).encode())


def write_run(out: Path, run: Run, purify: int | None, say: Say) -> None:
    """Write the data and pictures of a run. `purify`: how many images are purified again; None: what is quick."""
    config, ids = run.summary["config"], sorted({row["id"] for row in run.rows})
    material = shown(run.summary)
    data = {
        "html": _templates().get_template("run.html").render(text(run, command_of(config), same_key(config))),
        "rows": columns(run.rows),
        "curves": curves(run),
        "ids": ids,
        "block": BLOCK,
        "archived": not run.groups,
        "note": material if isinstance(material, str) else "",
        "clean": None,
        "mask": "",
        "purified": 0,
        "unequal": 0,
    }
    if isinstance(material, Shown):
        data["clean"] = _write_clean(out, run, material)
        data["mask"] = _mask_note(material)
        if material.has_mask:
            _blocks(out, run.key, "clean", ids, pictures.clean_masks(material))
        data["purified"], data["unequal"] = _write_attacked(out, run, material, ids, purify, say)
    _chunk(out, f"data/{run.key}.js", run.key, data)


def _mask_note(material: Shown) -> str:
    """Why there is no mask, in a sentence; empty if there is one."""
    if material.has_mask:
        return ""
    if material.purifier.get("random_mask", False):
        return "The mask is random, another one for every sample."
    return "This purifier has no mask that the page knows."


def _write_clean(out: Path, run: Run, material: Shown) -> str:
    """Write the clean images, once for all runs on the same images. Returns the name of their chunks."""
    dataset = run.summary["config"]["dataset"]
    name = f"images-{dataset['name']}-{digest_of(dataset['loader'])}"
    if not (out / "data" / name).exists():
        _blocks(out, name, "clean", sorted(material.ids), pictures.clean_pictures(material))
    return name


def _write_attacked(
    out: Path, run: Run, material: Shown, ids: list[int], purify: int | None, say: Say
) -> tuple[int, int]:
    """Write the attacked images. Returns how many images of the first seed were purified again, and how many of their
    samples have another class than the run has.
    """
    seed = min((group.seed for group in run.groups), default=0)
    images = unequal = 0
    for group in run.groups:
        its = pictures.attacked_pictures(material, group, material.has_mask and group.arm == "defended")
        if group.arm == "defended" and group.seed == seed and material.nfe:
            images = min(len(ids), material.affordable() if purify is None else purify)
            if images:
                say(f"purifying {images} images again: {images * material.work:,} network evaluations")
                purified, unequal = pictures.purified_pictures(material, group, images)
                for i, more in purified.items():
                    its[i] |= more
        _blocks(out, run.key, f"{group.arm}-{group.seed}", ids, its)
    return images, unequal


def _blocks(out: Path, folder: str, name: str, ids: list[int], content: dict[int, dict]) -> None:
    for first in range(0, len(ids), BLOCK):
        chosen = {i: content[i] for i in ids[first : first + BLOCK] if i in content}
        place = f"{folder}/{name}-{first // BLOCK}"
        _chunk(out, f"data/{place}.js", place, chosen)


def _chunk(out: Path, path: str, name: str, content: Any) -> None:
    """Write a script that hands data to the page. A page that is opened from disk may load scripts, no other data."""
    (out / path).parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    (out / path).write_text(f"dp.receive({json.dumps(name)},{text})\n")


def _templates() -> Environment:
    loader = PackageLoader("dp.page")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def size_of(out: Path) -> int:
    """The bytes of all files of a page."""
    return sum(path.stat().st_size for path in files_of(out))


def files_of(out: Path) -> Iterable[Path]:
    """All files of a page, sorted."""
    return sorted(path for path in out.rglob("*") if path.is_file())
