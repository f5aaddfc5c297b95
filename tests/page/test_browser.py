"""The page in a browser: it opens from disk with an empty console and without a request to a network."""

from pathlib import Path

import pytest

from dp.commands import view
from tests.helpers.browser import CHROMIUM, Browser, browser

RUN = sorted(Path("results/measured").glob("digits-hetero-pgd_eot-*"))[:2]
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium"),
]
LINES = "[...document.querySelectorAll('*')].flatMap(inside).length"
INSIDE = """window.inside = (node) => node.shadowRoot
  ? [...node.shadowRoot.querySelectorAll('.slick-row'), ...[...node.shadowRoot.querySelectorAll('*')].flatMap(inside)]
  : []"""


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("view") / "page"
    assert view.main([*map(str, RUN), "--out", str(out), "--no-open"]) == 0
    return out


@pytest.fixture(scope="module")
def tab(page, tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        opened.size(1280, 900)
        opened.open((page / "index.html").as_uri())
        opened.until("document.readyState === 'complete' && document.body.dataset.ready === '#'")
        opened.value(f"{INSIDE}; 0")
        yield opened


def lines(tab: Browser) -> int:
    """The lines of tables that are drawn."""
    return tab.value(LINES)


def test_every_view_is_quiet_and_asks_no_network(tab, page):
    key = RUN[0].name
    tab.until(f"{LINES} === {len(RUN)}")
    tab.go(f"run/{key}")
    tab.until("document.querySelectorAll('figure canvas').length + document.querySelectorAll('figure *').length > 0")
    assert "dp run" in tab.value("document.querySelector('pre.command').textContent")
    held = tab.value(f"dp.held.get('{key}').rows.id.length")
    tab.until(f"{LINES} > 0")
    assert lines(tab) < min(60, held)  # only what is visible is drawn
    image = tab.value(f"dp.held.get('{key}').ids[1]")
    seed = tab.value(f"dp.held.get('{key}').rows.seed[0]")
    tab.go(f"image/{key}/defended/{seed}/{image}")
    assert tab.value("[...document.images].length >= 2 && [...document.images].every((i) => i.naturalWidth === 16)")
    assert tab.console == []
    assert [a for a in tab.requests if not a.startswith((page.as_uri(), "data:", "about:"))] == []


def test_the_filter_leaves_what_has_the_words(tab):
    tab.go("")
    search = "document.getElementById('search')"
    for words, left in ((RUN[1].name[-10:], 1), ("no such run", 0), ("hetero", len(RUN))):
        tab.value(f"{search}.value = '{words}'; {search}.dispatchEvent(new Event('input')); 0")
        tab.until(f"{LINES} === {left}")
        assert f"{left} of {len(RUN)} runs" in tab.value("document.querySelector('main').textContent")


@pytest.mark.parametrize("place", ["", "run", "image"])
def test_nothing_is_wider_than_a_phone(tab, place):
    key = RUN[0].name
    tab.size(390, 844, dark=True)
    image = f"image/{key}/defended/{{}}/{{}}"
    if place == "image":
        tab.go(f"run/{key}")
        rows = tab.value(f"[dp.held.get('{key}').rows.seed[0], dp.held.get('{key}').rows.id[0]]")
        tab.go(image.format(*rows))
    else:
        tab.go(f"run/{key}" if place else "")
    assert tab.value("document.documentElement.scrollWidth <= innerWidth")
    assert tab.value("getComputedStyle(document.body).backgroundColor") == "rgb(22, 24, 27)"
