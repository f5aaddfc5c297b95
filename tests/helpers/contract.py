"""Contracts under pytest: a failure is a sentence without a traceback, and declared exceptions are noted."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

from dp.contracts.declared import exceptions
from dp.contracts.failure import RAISED, Failure, undeclared
from dp.runs.errors import USER_ERRORS, sentence
from dp.weights.needed import missing

DECLARED = "declared exception"  # the property of a test report that holds one


@contextmanager
def in_one_line(what: str) -> Iterator[None]:
    """What a plug-in raises while it is built fails the test in one line. `what`: its group and name."""
    try:
        yield
    except (*USER_ERRORS, *RAISED) as error:
        raise pytest.fail.Exception(f"{what}: {sentence(error)}", pytrace=False) from None


def skip_without_weights(config: Mapping[str, Any]) -> None:
    """Skips a test of a purifier whose weights are not here and do not come with the package."""
    absent = [asset for asset in missing(config["purifier"]) if asset.urls]
    if absent:
        pytest.skip(f"{config['choices']['purifier']}: {absent[0]} is not here")


def assert_held(
    found: list[Failure], group: str, config: Mapping[str, Any], record: Callable[[str, object], None]
) -> None:
    """Fail with a line for each failure that the yaml of the group does not declare, and note what it declares."""
    choice, reasons = config["choices"][group], exceptions(config[group])
    for name, reason in reasons.items():
        seen = [failure.what for failure in found if failure.name == name]
        record(DECLARED, [group, choice, f"{name}: {reason}", seen])
    lines = [f"{group} {choice}: {failure.sentence}" for failure in undeclared(found, reasons)]
    if lines:
        pytest.fail("\n".join(lines), pytrace=False)


def declared_in(reports: list[Any]) -> list[str]:
    """The declared exceptions that the reports of tests have noted, each once, with the names of all yamls that share
    it and a failure that it excuses.
    """
    names: dict[tuple[str, str], set[str]] = {}
    excused: dict[tuple[str, str], list[str]] = {}
    for report in reports:
        for key, value in report.user_properties:
            if key == DECLARED:
                group, choice, reason, seen = value
                names.setdefault((group, reason), set()).add(choice)
                excused.setdefault((group, reason), []).extend(seen)
    lines = {key: f"{key[0]} {', '.join(sorted(choices))}: {key[1]}" for key, choices in names.items()}
    return [f"{line} [{excused[key][0]}]" if excused[key] else line for key, line in sorted(lines.items())]


def assert_sentence(found: list[Failure], name: str, *words: str) -> None:
    """One failure, of this property, whose sentence has these words, in one line and without a tensor."""
    (failure,) = found
    assert failure.name == name
    assert failure.sentence.startswith(f"{name}: ")
    for word in words:
        assert word in failure.sentence
    assert "tensor(" not in failure.sentence
    assert "\n" not in failure.sentence
