"""The text of `dp run --help`: examples, the options of every group, and exit codes. Options come from the yamls."""

import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import yaml

from dp.runs.compose import CONF, GROUPS

WIDTH = 120  # columns
LABEL = 14  # columns for the name of a group
EXAMPLES = (
    ("", "the embedded benchmark, two minutes on two cores"),
    ("purifier=diffpure purifier.t=0.15", "another defense, with one value changed"),
    ("purifier=hetero protocol=strict audit=true", "our recommended evaluation, audited"),
    ("+experiment=table1/hetero", "a row of a published table, with weights that are fetched"),
    ("+experiment=table7/hetero dataset=digits", "table 7 on digits; other rows: purifier=NAME dataset=digits"),
    ("-m purifier.tau=0.8,0.9 attack=pgd_eot,spsa", "a sweep: one run for each combination, and a table"),
    ("-m +slurm=h200 purifier=hetero,diffpure", "its runs as jobs of a SLURM cluster (docs/cluster.md)"),
    ("--config-dir mine purifier=my_method", "a method of your own, from yamls in the folder mine"),
)
HEAD = """\
Attack a diffusion-based purification defense, score it on fresh samples, and print the table row.

usage: {program} [GROUP=OPTION ...] [KEY=VALUE ...]
"""
TAIL = """\
All values of a command, with their keys: add --cfg job. +KEY=VALUE sets a key that the yaml leaves out.
The same command goes on after an interruption. Results: results/runs/<key>/. Hydra's own flags: --hydra-help.

exit codes: 0 done; 2 a mistake in the command, said in one line, or a failed cell of a sweep; 130 interrupted
"""


def text(folders: Sequence[str | Path] = ()) -> str:
    """The help text. `folders`: further folders of yamls, from --config-dir."""
    program = "python run.py" if Path(sys.argv[0]).name == "run.py" else "dp run"
    wide = max(len(given) for given, _ in EXAMPLES)
    lines = [HEAD.format(program=program), "examples"]
    lines += [f"  {program} {given:{wide}}  {words}" for given, words in EXAMPLES]
    lines += ["", "options of each group"]
    default = _defaults()
    for group in GROUPS:
        names = [f"{name} (default)" if name == default.get(group) else name for name in described(group, folders)]
        own = "; default: the dataset's own" if default.get(group) == "${dataset}" else ""
        lines += _entry(group, ", ".join(names) + own)
    lines += ["", "presets, +experiment=NAME"]
    lines += [line for folder, names in _presets(folders).items() for line in _entry(folder, ", ".join(names))]
    return "\n".join([*lines, "", TAIL])


def options(group: str, folders: Sequence[str | Path] = ()) -> dict[str, Path]:
    """Every option of a group with its yaml, sorted by name. An option in `folders` replaces one of conf/."""
    paths = {}
    for root in (CONF, *map(Path, folders)):
        for path in (root / group).rglob("*.yaml"):
            paths[path.relative_to(root / group).with_suffix("").as_posix()] = path
    return dict(sorted(paths.items()))


def described(group: str, folders: Sequence[str | Path] = ()) -> dict[str, str]:
    """The description of every option of a group: the first comment line of its yaml, "" if there is none.

    Aliases, which only name another option, are left out.
    """
    texts = {name: path.read_text() for name, path in options(group, folders).items()}
    return {name: description(text) for name, text in texts.items() if not is_alias(text)}


def description(text: str) -> str:
    """The first comment line of a yaml that is neither a directive for Hydra nor a command."""
    comments = [line.lstrip("# ").rstrip() for line in text.splitlines() if line.startswith("#")]
    return next((line for line in comments if not line.startswith(("@", "python "))), "")


def is_alias(text: str) -> bool:
    """True for a yaml that has one defaults list with one entry, and no comment."""
    content = yaml.safe_load(text)
    return (
        "#" not in text
        and isinstance(content, dict)
        and list(content) == ["defaults"]
        and len(content["defaults"]) == 1
    )


def _defaults() -> dict[str, str]:
    """The options that config.yaml chooses."""
    entries = yaml.safe_load((CONF / "config.yaml").read_text())["defaults"]
    return {g.removeprefix("optional "): option for e in entries if isinstance(e, dict) for g, option in e.items()}


def _presets(folders: Sequence[str | Path]) -> dict[str, list[str]]:
    """The names of all presets, by folder."""
    presets: dict[str, list[str]] = {}
    for name in options("experiment", folders):
        folder, slash, preset = name.rpartition("/")
        presets.setdefault(folder + slash, []).append(preset)
    return presets


def _entry(name: str, words: str) -> list[str]:
    """Lines with a name and the words that belong to it, wrapped."""
    indent = " " * (LABEL + 2)
    return textwrap.wrap(f"  {name:{LABEL}}{words}", WIDTH, subsequent_indent=indent, break_on_hyphens=False)
