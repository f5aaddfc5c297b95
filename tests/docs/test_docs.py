"""The documentation: its links lead somewhere, its citations exist, its figures are those of the data."""

import re
from pathlib import Path

import pytest

from tests.docs import figures

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]
CODE = re.compile(r"^```.*?^```|`[^`\n]*`|<!--.*?-->", re.MULTILINE | re.DOTALL)
CITING = ("dp", "conf", "docs", "scripts")


def anchors(page: str) -> set[str]:
    """The anchors that GitHub makes of a page's headings, and those that it writes itself."""
    found: dict[str, int] = {}
    for heading in re.findall(
        r"^#{1,6} (.+)$", re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL), re.MULTILINE
    ):
        slug = re.sub(r"[^\w\- ]", "", re.sub(r"`|\[|\]\([^)]*\)", "", heading).strip().lower()).replace(" ", "-")
        found[slug] = found.get(slug, -1) + 1
        if found[slug]:
            found[f"{slug}-{found[slug]}"] = 0
    return {*found, *re.findall(r'<a (?:id|name)="([^"]+)"', page)}


def links(page: str) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", CODE.sub("", page))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_relative_link_leads_to_a_file_and_an_anchor(path):
    broken = []
    for link in links(path.read_text()):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        if not target.exists():
            broken.append(f"{link}: no such file")
        elif anchor and anchor not in anchors(target.read_text()):
            broken.append(f"{link}: no such heading")
    assert not broken


def test_the_index_leads_to_every_page():
    there = {link.partition("#")[0] for link in links((DOCS / "index.md").read_text())}
    assert {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")} - {"index.md"} <= there


def sources() -> list[Path]:
    files = [path for folder in CITING for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".yaml", ".md")]
    return [*files, ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "run.py"]


def cited(text: str) -> set[int]:
    """The numbers in `deviation 31`, `deviations 34, 35 and 36` and `deviations 1 to 3` or `1-3`."""
    found: set[int] = set()
    for listed in re.findall(r"\b[Dd]eviations? (\d+(?:(?:, | and | to |-)\d+)*)", text):
        numbers = [int(n) for n in re.findall(r"\d+", listed)]
        found |= {*numbers}
        found |= {n for a, b in re.findall(r"(\d+)(?: to |-)(\d+)", listed) for n in range(int(a), int(b) + 1)}
    return found


def test_every_cited_deviation_has_an_anchor():
    there = anchors((DOCS / "deviations.md").read_text())
    unknown = {
        f"{path.relative_to(ROOT)}: deviation {n}"
        for path in sources()
        for n in cited(path.read_text())
        if f"deviation-{n}" not in there
    }
    assert not unknown
    assert cited("deviations 34, 35 and 40; deviation 1-3") == {34, 35, 40, 1, 2, 3}


def test_every_deviation_has_its_four_lines():
    page = (DOCS / "deviations.md").read_text()
    entries = re.split(r"^### Deviation (\d+)$", page.partition("## Readings of other methods")[0], flags=re.MULTILINE)[
        1:
    ]
    numbers = [int(n) for n in entries[::2]]
    assert numbers[:61] == list(range(1, 62))  # of the main paper; other defenses follow
    assert numbers == sorted(set(numbers))
    for number, text in zip(entries[::2], entries[1::2], strict=True):
        assert re.findall(r"^- (\w+):", text, re.MULTILINE) == ["Paper", "Code", "Here", "Effect"], number


def test_nothing_cites_a_note_that_is_not_in_the_repository():
    """Another repository's issue, `item` of a list in prose and docs/evaluation.md are something else."""
    note = re.compile(
        r"methods\.md|(?<!docs/)\bevaluation\.md|design\.md|\bitems? \d|checkpoints\.md"
        r"|(?<!docs/)(?<!tables/)\bdefenses\.md"
    )
    files = [
        p for folder in ("dp", "conf", "scripts") for p in (ROOT / folder).rglob("*") if p.suffix in (".py", ".yaml")
    ]
    left = [
        f"{path.relative_to(ROOT)}:{k}"
        for path in [*files, ROOT / "run.py"]
        for k, line in enumerate(path.read_text().splitlines(), 1)
        if note.search(line)
    ]
    assert not left


FINDINGS = {
    path.relative_to(DOCS).as_posix(): path.read_text()
    for path in (DOCS / "findings.md", DOCS / "findings" / "claims.md")
}
QUOTED = [(name, *line) for name, page in FINDINGS.items() for _, lines in figures.blocks(page) for line in lines]


@pytest.mark.parametrize("name", FINDINGS)
def test_every_figure_of_the_findings_names_its_source(name):
    for text, lines in figures.blocks(FINDINGS[name]):
        unsaid = figures.quoted(text) - {figure for figure, _ in lines}
        assert not unsaid, f"{unsaid} in {text.strip()[-200:]!r}"
    assert figures.quoted("about 5.2 points (+1.6 to 9 %), `x=.5`, 32/255, t = .1") == {"5.2", "+1.6", "9", ".1"}


@pytest.mark.parametrize(("name", "figure", "source"), QUOTED, ids=[f"{line[0]}: {line[2]}"[:70] for line in QUOTED])
def test_a_figure_of_the_findings_is_what_its_source_says(name, figure, source):
    found = figures.value(source, figures.runs(FINDINGS[name]))
    assert found is None or figures.agrees(figure, found), f"quoted {figure}, found {found}"


def test_a_wrong_figure_would_be_found():
    named = figures.runs(FINDINGS["findings.md"])
    assert not figures.agrees("5.3", figures.value("official-released - official-uniform robust.vote", named) or 0)
    assert figures.agrees("-.5", -0.52)
    assert not figures.agrees("-.5", -0.56)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120
