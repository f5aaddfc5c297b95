"""The rules of the house, read off the sources: sizes, docstrings, and what a module must not do."""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.long import LONG, WHOLE
from tests.helpers.slow import FAST, SLOW

ROOT = Path(__file__).parents[1]
DP = sorted((ROOT / "dp").rglob("*.py"))
SCRIPTS = sorted((ROOT / "scripts").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
MODULE_LINES = 300
FUNCTION_LINES = 50
FETCHERS = ("getattr", "hasattr", "setattr", "getattr_static", "attrgetter")


def path(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


@functools.cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def is_net(file: Path) -> bool:
    return path(file).startswith("dp/nets/")


def definitions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def called(node: ast.AST) -> str:
    """The last part of the name that a call calls, `f` in `a.f(x)`; empty for what is no such call."""
    if not isinstance(node, ast.Call):
        return ""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


@functools.cache
def attack_classes() -> dict[str, ast.ClassDef]:
    """The attacks that dp/attacks defines, by name, and their base: what inherits from `Attack`."""
    classes = {
        node.name: node
        for file in DP
        if path(file).startswith("dp/attacks/")
        for node in parsed(file).body
        if isinstance(node, ast.ClassDef)
    }
    found = {"Attack": classes["Attack"]}
    while new := {
        name: node
        for name, node in classes.items()
        if name not in found and any(ast.unparse(base) in found for base in node.bases)
    }:
        found |= new
    return found


@functools.cache
def attack_members() -> set[str]:
    """The public fields, properties and methods of all attacks."""
    bodies = [node for attack in attack_classes().values() for node in attack.body]
    fields = {n.target.id for n in bodies if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}
    return fields | {n.name for n in bodies if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")}


def asks_for_an_attacks_class(tree: ast.AST) -> list[int]:
    """The lines where isinstance, issubclass or a case pattern names a class of dp/attacks, also under an alias."""
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    aliases = {alias.asname: alias.name for node in imports for alias in node.names if alias.asname}
    classes, lines = attack_classes(), []
    for node in ast.walk(tree):
        asked: list[ast.expr] = [node.cls] if isinstance(node, ast.MatchClass) else []
        if called(node) in ("isinstance", "issubclass"):
            assert isinstance(node, ast.Call)
            asked = node.args[1:]
        names = {last_name(n) for part in asked for n in ast.walk(part)}
        if any(aliases.get(name, name) in classes for name in names):
            lines.append(asked[0].lineno)
    return lines


def last_name(node: ast.AST) -> str:
    """`b` of the names `b` and `a.b`."""
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def fetches_a_member_by_name(tree: ast.AST) -> list[int]:
    """The lines where a member of an attack is fetched by a string: getattr(attack, "steps")."""
    members = attack_members()
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and called(node) in FETCHERS
        for given in node.args
        if isinstance(given, ast.Constant) and given.value in members
    ]


def patches_the_path(tree: ast.AST) -> list[int]:
    return [n.lineno for n in ast.walk(tree) if isinstance(n, ast.Attribute) and ast.unparse(n) == "sys.path"]


def imports_the_door(tree: ast.AST) -> list[int]:
    """The lines that import run.py, which is a command and no library."""
    return [
        node.lineno
        for node in ast.walk(tree)
        if (isinstance(node, ast.Import) and any(alias.name == "run" for alias in node.names))
        or (isinstance(node, ast.ImportFrom) and node.module == "run")
    ]


def long_functions(tree: ast.AST, spared: str = "") -> list[str]:
    long = [f for f in definitions(tree) if f.end_lineno and f.end_lineno - f.lineno >= FUNCTION_LINES]
    return [f.name for f in long if f.name != spared]


def undocumented(tree: ast.Module) -> list[str]:
    """The public functions and classes of a module that have no docstring."""
    defined = [n for n in tree.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]
    return [node.name for node in defined if not node.name.startswith("_") and not ast.get_docstring(node)]


def without_assertion(tree: ast.AST) -> list[str]:
    """The tests with neither `assert` nor `raises` nor a call of a helper whose name starts with `assert`."""

    def asserts(node: ast.AST) -> bool:
        return isinstance(node, ast.Assert) or called(node) == "raises" or called(node).startswith("assert")

    tests = [function for function in definitions(tree) if function.name.startswith("test_")]
    return [test.name for test in tests if not any(asserts(node) for node in ast.walk(test))]


def broken(rule, files) -> dict[str, list]:
    """{file: what the rule finds in it}, for the files in which it finds something."""
    found = {path(file): rule(parsed(file)) for file in files}
    return {name: lines for name, lines in found.items() if lines}


def test_nothing_outside_asks_for_an_attacks_class():
    outside = [file for file in (*DP, *SCRIPTS) if not path(file).startswith("dp/attacks/")]
    assert broken(asks_for_an_attacks_class, outside) == {}


def test_no_member_of_an_attack_is_fetched_by_a_string():
    assert broken(fetches_a_member_by_name, [*DP, *SCRIPTS]) == {}


def test_no_import_path_is_patched():
    assert broken(patches_the_path, [*SCRIPTS, *TESTS]) == {}


def test_scripts_and_tests_import_no_command():
    assert broken(imports_the_door, [*SCRIPTS, *TESTS]) == {}


def test_modules_are_short():
    lines = {path(file): len(file.read_text().splitlines()) for file in DP if not is_net(file)}
    assert {name: n for name, n in lines.items() if n > MODULE_LINES} == {}
    assert len((ROOT / "run.py").read_text().splitlines()) <= 170


def test_functions_are_short():
    """A network's constructor lists its layers, and may be longer."""
    assert broken(long_functions, [file for file in DP if not is_net(file)]) == {}
    assert broken(lambda tree: long_functions(tree, spared="__init__"), filter(is_net, DP)) == {}


def test_every_public_function_and_class_has_a_docstring():
    assert broken(undocumented, DP) == {}


def test_every_module_says_what_it_is():
    assert [path(file) for file in DP if not ast.get_docstring(parsed(file))] == []


def test_every_test_asserts_something():
    assert broken(without_assertion, TESTS) == {}


def test_tests_lie_where_the_code_lies():
    """A folder of tests has the name of a room of dp/, or of another part of the repository."""
    rooms = {file.parent.name for file in (ROOT / "dp").glob("*/__init__.py")}
    folders = {file.relative_to(ROOT / "tests").parts[0] for file in TESTS if file.parent != ROOT / "tests"}
    assert folders <= {*rooms, "docs", "scripts", "results", "helpers"}


def test_what_is_listed_as_slow_or_long_is_there():
    defined = set()
    for file in TESTS:
        defined |= {f"{path(file).removeprefix('tests/')}::{f.name}" for f in definitions(parsed(file))}
    listed = {f"{file}::{name}" for tier in (SLOW, LONG) for file, names in tier.items() for name in names.split()}
    listed -= {f"{file}::*" for file in SLOW}
    assert listed | WHOLE <= defined
    assert {case.partition("[")[0] for case in FAST} <= defined
    assert all((ROOT / "tests" / file).exists() for file in SLOW)


@pytest.mark.parametrize(
    ("rule", "bad", "good"),
    [
        (asks_for_an_attacks_class, "isinstance(a, PGD)", "isinstance(a, Part | Caveats)"),
        (asks_for_an_attacks_class, "isinstance(a, (int, apgd.Deviating))", "Deviating(a)"),
        (asks_for_an_attacks_class, "from dp.attacks.pgd_eot import PGD as P\nissubclass(a, P)", "issubclass(a, P)"),
        (asks_for_an_attacks_class, "match a:\n    case PGD(steps=n): pass", "match a:\n    case Other(): pass"),
        (fetches_a_member_by_name, "getattr(attack, 'steps')", "getattr(torch, 'float32')"),
        (fetches_a_member_by_name, "hasattr(attack, 'phase_ends')", "getattr(attack, field.name)"),
        (fetches_a_member_by_name, "operator.attrgetter('eot')(attack)", "attack.eot"),
        (patches_the_path, "sys.path.insert(0, root)", "sys.modules"),
        (imports_the_door, "import run", "from dp import runs"),
        (imports_the_door, "from run import main", "from dp.commands.run import main"),
        (long_functions, "def f():\n" + "    x = 1\n" * 50, "def f():\n" + "    x = 1\n" * 49),
        (undocumented, "class A:\n    x = 1", "class _A:\n    x = 1"),
        (undocumented, "def f(): pass", 'def f():\n    """It."""'),
        (
            without_assertion,
            "def test_a():\n    run()",
            "def test_a():\n    with pytest.raises(OSError):\n        run()",
        ),
        (without_assertion, "def test_a():\n    print(1)", "def test_a():\n    assert_same(1, 1)"),
    ],
)
def test_a_rule_finds_what_breaks_it(rule, bad, good):
    assert rule(ast.parse(bad))
    assert not rule(ast.parse(good))
