"""Every term of a run's output has an entry in the glossary, to which the last line of a row leads."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from dp.output.report import GLOSSARY
from dp.output.row_table import ROWS, RULES

ROOT = Path(__file__).parents[2]
SOURCES = [ROOT / "dp" / "output" / name for name in ("report.py", "row_table.py", "progress.py", "declarations.py")]
PLAIN = """another beat billion comparable cover decided differs estimate failed figure goes halves ignores long million
    min move need ones order otherwise per percent raise side term thousand trillion trust weights yet"""


def glossary() -> str:
    page, _, anchor = GLOSSARY.partition("#")
    assert anchor == "glossary"
    return (ROOT / page).read_text().partition("\n## Glossary\n")[2]


def headings(page: str) -> list[str]:
    return [heading.lower() for heading in re.findall(r"^### (.+)$", page, re.MULTILINE)]


def words(text: str) -> set[str]:
    """Its words of three letters or more, each without a plural's s."""
    return {word.lower().removesuffix("s") for word in re.findall(r"[A-Za-z][a-z]{2,}|[A-Z]{2,}", text)}


def printed(source: str) -> Iterator[str]:
    """The texts of a source that are no documentation and no single names."""
    tree = ast.parse(source)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    bodies = [node.body[0] for node in ast.walk(tree) if isinstance(node, documented) and node.body]
    docstrings = {id(first.value) for first in bodies if isinstance(first, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield from [node.value] if " " in node.value else []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_every_word_of_the_output_is_plain_or_in_the_glossary(path):
    said = set().union(*map(words, printed(path.read_text())))
    assert len(said) > 10
    known = words(glossary()) | words(PLAIN) | {"mb"}
    stems = {word[:5] for word in known}  # `departs` is explained as `departure`
    assert not {word for word in said if word not in known and word[:5] not in stems}


def test_a_term_without_an_entry_would_be_found():
    text = " ".join(printed('"""Doc."""\nx = f"the zorkmid of {y} images"\nz = "name"'))
    assert words(text) == {"the", "zorkmid", "image"}
    assert "zorkmid" not in words(glossary())


@pytest.mark.parametrize("label", [*(label for _, label in ROWS), *RULES.values()])
def test_every_row_and_every_rule_has_an_entry(label):
    names = headings(glossary())
    first = re.sub(r"( of \{\}|[:,].*)$", "", label)
    found = [name for name in names if first in name or (first == "mean softmax" and name == "mean logits")]
    assert found, label
