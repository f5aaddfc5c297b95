"""Two hundred bad command lines, drawn by a seeded generator: each is one line on standard error, and exit code 2."""

import copy
import functools
import json
import sys
from pathlib import Path

import pytest
from hydra._internal.hydra import Hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode

from dp import cli
from dp.files import fetch
from dp.runs import compose
from tests.helpers.bad_commands import MISTAKES, Line, drawn
from tests.helpers.processes import forked, wait

LINES, FORKED = 200, 10
LONGEST = 900  # characters of an error; the longest lists all options of a group


@pytest.fixture
def empty(tmp_path, monkeypatch) -> Path:
    """An empty working folder, without a file in the cache and without a way to fetch one."""

    def nothing_is_fetched(asset, *_, **__):
        raise AssertionError(f"a bad command fetches {asset}")

    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("DP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetch, "fetch", nothing_is_fetched)
    return tmp_path / "work"


@pytest.fixture
def quick(monkeypatch) -> None:
    """Options without changes are composed once and not for every line, each line once and not twice, and a word that
    many lines have is parsed once.
    """
    plain = compose.defaults_of

    @functools.cache
    def by_choices(choices: str) -> dict:
        return plain(json.loads(choices))

    def defaults_of(config: dict) -> dict:
        return copy.deepcopy(by_choices(json.dumps({k: config[k] for k in ("choices", "plugins")}, sort_keys=True)))

    monkeypatch.setattr(compose, "defaults_of", defaults_of)
    parse = functools.cache(OverridesParser.create().parse_rule)
    monkeypatch.setattr(OverridesParser, "parse_rule", lambda _, word, rule: copy.copy(parse(word, rule)))
    monkeypatch.setattr(Hydra, "get_mode", lambda *_, **__: RunMode.RUN)  # it composes all to learn of hydra.mode


def ran(line: Line, monkeypatch, capsys) -> tuple[int, str]:
    """The exit code and the standard error of a command, in this process."""
    monkeypatch.setattr(sys, "argv", ["dp", "run", *line.words])
    code = cli.main()
    return code, capsys.readouterr().err


@pytest.mark.parametrize("quarter", range(4))
def test_two_hundred_bad_command_lines(quarter, empty, quick, monkeypatch, capsys):
    lines = drawn(seed=15, count=LINES)
    assert {line.kind for line in lines} == {mistake.__name__ for mistake in MISTAKES}
    assert len({line.words[-1] for line in lines}) > 0.9 * LINES
    for line in lines[quarter::4]:
        try:
            code, err = ran(line, monkeypatch, capsys)
            assert code == 2
            assert err.startswith("error: ")
            assert err.count("\n") == 1
            assert len(err) < LONGEST
            assert not list(empty.rglob("*"))
        except BaseException as error:
            raise AssertionError(f"{line.kind}: dp run {' '.join(line.words)}: {error!r}") from error


def test_ten_of_them_in_processes_of_their_own(empty):
    """As a user sees them, with all that libraries print."""
    for k, line in enumerate(drawn(seed=16, count=FORKED)):
        out = empty.parent / f"out{k}"

        def run(words=line.words) -> int:
            sys.argv = ["dp", "run", *words]
            return cli.main()

        assert wait(forked(run, out, empty)) == 2, line
        said = out.read_text()
        assert "Traceback" not in said, line
        assert said.count("error: ") == 1, line
        assert said.splitlines()[-1].startswith("error: "), line
    assert not list(empty.rglob("*"))
