"""What fails on the machine: the next visitor is served, and the log says what happened."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import TIMEOUT_MS, serve
from test_hosting import BOT, ask, give, padded

MEADOW = Path(__file__).resolve().parent.parent / "examples" / "meadow.jpg"
# a disk with room for no file above 500 kB, as far as the page can tell
FULL = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
"""


@pytest.fixture
def expect():
    return pytest.importorskip("playwright.sync_api").expect


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    log = tmp_path_factory.mktemp("full") / "log"
    with serve("tiny", log, FULL) as url:
        yield url, log


def test_a_full_disk(browser, full, expect, tmp_path):
    url, log = full
    page = browser.new_page()
    page.set_default_timeout(TIMEOUT_MS)
    page.goto(url)
    give(page, MEADOW)
    ask(page, "Is there a dog?")
    page.fill("#question textarea", "And a cat?")
    page.set_input_files("#left input[type=file]", padded(tmp_path / "large.jpg", 5_000_000))
    expect(page.locator("#notice .problem")).to_have_text(re.compile(r"^[^.]* could not take this file[^.]*\.$"))
    expect(page.locator("#question textarea")).to_have_value("And a cat?")
    assert "File too large" in log.read_text()

    ask(page, "And a cat?")  # the picture from before is still there
    expect(page.locator("#notice .problem")).to_have_count(0)
    assert page.locator(BOT).count() == 2
    other = browser.new_page()
    other.set_default_timeout(TIMEOUT_MS)
    other.goto(url)
    give(other, MEADOW)
    ask(other, "Is there a dog?")
    for open_page in (page, other):
        open_page.close()
