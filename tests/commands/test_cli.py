"""The console command `dp` forwards to the commands."""

import importlib
import re
import runpy
import sys
from pathlib import Path

import pytest

from dp import cli

ROOT = Path(__file__).parents[2]
MODULES = {path.stem for path in (ROOT / "dp" / "commands").glob("*.py")} - {"__init__", "options"}


def test_every_command_has_a_line_and_a_module(monkeypatch, capsys):
    assert set(cli.COMMANDS) == MODULES
    for given in (["dp"], ["dp", "--help"], ["dp", "-h"]):
        monkeypatch.setattr(sys, "argv", given)
        assert cli.main() == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in lines[2:]] == list(cli.COMMANDS)
        assert max(map(len, lines)) <= 120


@pytest.mark.parametrize("name", sorted(MODULES))
def test_it_forwards(name, monkeypatch):
    asked = []
    monkeypatch.setattr(importlib.import_module(f"dp.commands.{name}"), "main", lambda: asked.append(sys.argv) or 7)
    monkeypatch.setattr(sys, "argv", ["dp", name, "x=1", "--flag"])
    assert cli.main() == 7
    assert asked == [[f"dp {name}", "x=1", "--flag"]]


def test_python_m_dp_is_the_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dp", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("dp", run_name="__main__")
    assert ended.value.code == 0
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()[2:]} == set(cli.COMMANDS)


def test_an_unknown_command_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dp", "audti"])
    assert cli.main() == 2
    assert capsys.readouterr().err == "error: unknown command audti (did you mean audit?): dp --help lists them\n"


@pytest.mark.parametrize("name", sorted(MODULES - {"run"}))
def test_every_command_has_help(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dp", name, "--help"])
    try:
        code = cli.main()
    except SystemExit as ended:  # argparse's way
        code = ended.code
    out = capsys.readouterr().out
    assert code == 0
    assert f"dp {name}" in out
    assert out.splitlines()[0].strip()


@pytest.mark.parametrize("path", sorted((ROOT / "scripts").glob("*.py")), ids=lambda path: path.stem)
def test_scripts_are_doors(path):
    """At most a dozen lines around the command of the same name."""
    text = path.read_text()
    assert f"from dp.commands.{path.stem} import main" in text
    assert len(text.splitlines()) <= 12


def test_without_a_checkout_reference_says_so(monkeypatch, tmp_path, capsys):
    (tmp_path / "docs").mkdir()
    monkeypatch.setattr("dp.commands.reference.ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["dp", "reference"])
    assert cli.main() == 2
    assert re.fullmatch(r"error: need a checkout with docs/, got .*\n", capsys.readouterr().err)


def test_figures_without_their_data_say_what_is_missing(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["dp", "figures"])
    assert cli.main() == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "purifier=diffpure attack=pgd_eot protocol.images=128" in err
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"need results/measured/adjoint\.csv"):
        importlib.import_module("dp.commands.figures").adjoint_error()
