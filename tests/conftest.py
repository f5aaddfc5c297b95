"""Fixtures that all tests share, and the option that shows them plug-ins: pytest tests --config-dir=mine -k smooth."""

import functools
import pickle
from pathlib import Path

import pytest
import torch
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource

from dp.runs import compose as product
from dp.runs.build import build
from dp.subset import Subset
from tests.helpers import compose
from tests.helpers.compose import TINY, composed
from tests.helpers.contract import declared_in
from tests.helpers.long import L2, LONG, WHOLE
from tests.helpers.slow import FAST, SLOW


def _composed_once(compose):
    """Hydra's composition, at most once for the same words: it takes .3 s, and tests ask for the same ones often.

    A folder of plug-ins may change within a test, so it is read each time.
    """

    @functools.cache
    def once(overrides: tuple[str, ...]):
        return compose(overrides, ())

    return lambda overrides, folders: compose(overrides, folders) if folders else once(tuple(overrides))


def _read_once(load):
    """Hydra's reading of a yaml, once for each state of the file: parsing it is a third of a composition."""
    known = dict[tuple, bytes]()

    def read(source: ConfigSource, config_path: str) -> ConfigResult:
        file = Path(source.path, source._normalize_file_name(config_path))
        if not file.is_file():
            return load(source, config_path)
        key = (file, source.provider, file.stat().st_mtime_ns, file.stat().st_size)
        known[key] = known.get(key) or pickle.dumps(load(source, config_path))
        return pickle.loads(known[key])

    return read


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--config-dir", help="folder of plug-ins, as for run.py: the contract tests find what is in it")


def pytest_configure(config: pytest.Config) -> None:
    folder = config.getoption("--config-dir")
    compose.CONFIG_DIRS[:] = [str(Path(folder).absolute())] if folder else []
    torch.set_num_threads(1)  # before any fixture: several workers with several threads each get in each other's way
    product._composed = _composed_once(product._composed)
    Plugins.instance()  # Hydra makes a class of its own for each kind of source
    source = SourcesRegistry.instance().resolve("file")
    source.load_config = _read_once(source.load_config)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks as `slow` what tests/helpers/slow.py lists, and as `long` what tests/helpers/long.py lists."""
    seen = set()
    for item in items:
        file, _, name = item.nodeid.removeprefix("tests/").partition("::")
        function, bracket, _ = name.partition("[")
        whole = f"{file}::{function}"
        first = bool(bracket) and whole not in seen | WHOLE  # of several cases
        seen.add(whole)
        if f"{file}::{name}".startswith(FAST):
            continue
        listed = SLOW.get(file, "").split()
        if listed == ["*"] or function in listed:
            item.add_marker(pytest.mark.slow)
        under_l2 = f"{file}::{name}".startswith(L2) and name.endswith("-l2]")
        if under_l2 or (function in LONG.get(file, "").split() and not first):
            item.add_marker(pytest.mark.long)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints the declared exceptions of what the contract tests have tested."""
    outcomes = ("passed", "failed", "skipped")
    declared = declared_in([report for name in outcomes for report in terminalreporter.getreports(name)])
    if declared:
        terminalreporter.section("declared exceptions")
        for line in declared:
            terminalreporter.line(line)


@pytest.fixture(scope="session")
def config() -> dict:
    return composed(*TINY)


@pytest.fixture(scope="session")
def images() -> Subset:
    """Six test images, in the memory format that runs use."""
    return build(composed("protocol.images=6")).subset


@pytest.fixture(autouse=True)
def _one_thread():
    """Sums in the last bit depend on the number of threads. Runs use one; so do tests, whatever a test before set."""
    torch.set_num_threads(1)
