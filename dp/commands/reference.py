"""Write the lists in docs/ that come from the code and the yamls: options, run keys, decision rules, audit checks."""

import argparse
import functools
import re
from collections.abc import Callable, Iterator, Sequence

from dp.audit import battery
from dp.output.console import console
from dp.runs import defense_lists
from dp.runs.by_dataset import CONF, ROOT
from dp.runs.errors import DONE, command
from dp.runs.help import described
from dp.runs.words import GROUPS
from dp.statistics.metrics import RULES

DOCS = ROOT / "docs"
BLOCK = re.compile(r"(<!-- generated: ([\w ]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def lists() -> dict[str, Callable[[], str]]:
    """What makes the Markdown for every marker `<!-- generated: NAME -->` in docs/, by its name."""
    groups = (*GROUPS, "slurm", "experiment", "certificate", "sanitizer", "poison")
    tables: dict[str, Callable[[], str]] = {f"options {g}": functools.partial(_options, g) for g in groups}
    tables["options run"] = lambda: _table(("key", "default", "meaning"), _run_keys())
    tables["metrics"] = lambda: _table(
        ("rule", "score of one image", "what it says"), ((f"`{k}`", *v) for k, v in RULES.items())
    )
    tables["checks"] = lambda: _table(("check", "quick audit", "what it sees"), _checks())
    return tables | defense_lists.lists()


def filled(page: str) -> str:
    """The text of a page with new generated blocks."""
    tables = lists()
    return BLOCK.sub(lambda m: m[1] + tables[m[2]]() + m[3] if m[2] in tables else m[0], page)


def _options(group: str) -> str:
    rows = (
        (f"`{name}`", re.sub(r"\(deviation (\d+):[^)]*\)", r"(deviation \1)", words))
        for name, words in described(group).items()
    )
    return _table(("option", "what it is"), rows)


def _run_keys() -> Iterator[tuple[str, str, str]]:
    """The keys of conf/config.yaml that a user sets: name, default, comment."""
    for line in (CONF / "config.yaml").read_text().splitlines():
        key = re.fullmatch(r"(\w+): +(\S+) +# (.+)", line)
        if key:
            yield f"`{key[1]}`", f"`{key[2]}`", key[3]


def _checks() -> Iterator[tuple[str, str, str]]:
    """The checks of the audit: name, whether the quick audit has it, and what it sees."""
    quick = {check.name for check in battery.checks(quick=True)}
    for check in battery.checks(quick=False):
        anchor = check.name.lower().replace(" ", "-")
        yield f"[{check.name}](#{anchor})", "yes" if check.name in quick else "no", check.sees


def _table(columns: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    text = ["|" + "|".join(line) + "|" if k == 1 else "| " + " | ".join(line) + " |" for k, line in enumerate(lines)]
    return "\n".join(text) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Rewrite the generated blocks of all pages. Returns 0, or 2 if there is no checkout."""
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    return command(_rewrite)


def _rewrite() -> int:
    if not (ROOT / "mkdocs.yml").is_file():
        raise ValueError(
            f"need a checkout with docs/, got an installed package in {ROOT}: start dp reference in a checkout"
        )
    for path in sorted(DOCS.glob("*.md")):
        page = path.read_text()
        new = filled(page)
        if new != page:
            path.write_text(new)
            console.print(path.relative_to(ROOT))
    return DONE
