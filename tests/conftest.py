"""A running page on a free port, and a real browser on it.

    pytest tests/test_page.py --model checkpoints/tiny

Each browser test leaves a picture of its last state in `.pytest_cache/d/screenshots/`.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("MAMBA_DETERMINISTIC", "1")  # on a GPU its kernels would be tuned for minutes
CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
BOT, USER = '#chat [data-testid="bot"]', '#chat [data-testid="user"]'
TIMEOUT_MS = 120_000  # for what takes a moment, on machines that are busy
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
# some virtual machines announce matrix units (AMX) that they don't have: bfloat16 would end a process there
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
# The real model, but slow and talkative: it may not end its answer, and thinks a while before each token.
SLOW = """
import time
from mlmamba import decoding
choose, say = decoding.choose, decoding.Seat.say
def endless(logits, temperature, noise):
    logits = logits.clone()
    logits[:, 0] = float("-inf")  # the end of a turn
    return choose(logits, temperature, noise)
def slow(self, token):
    time.sleep(0.1)
    say(self, token)
decoding.choose, decoding.Seat.say = endless, slow
"""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--model", default="tiny", help="the model that the page's tests talk with")


@contextmanager
def serve(model: str, log: Path, patch: str = "", *options: str) -> Iterator[str]:
    """`python app.py` in a process of its own, after `patch`, with more `options`; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = f"{patch}\nimport app\napp.main()"
    command = [sys.executable, "-c", code, "--model", model, "--device", "cpu", "--port", str(port), *options]
    url = f"http://127.0.0.1:{port}/"
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}  # threads that wait for each other crawl on a busy machine
    with log.open("w") as out, subprocess.Popen(command, cwd=ROOT, env=alone, stdout=out, stderr=out) as process:
        try:
            for _ in range(900):
                assert process.poll() is None, log.read_text()
                try:
                    urlopen(url, timeout=5).close()
                    break
                except (URLError, OSError):
                    time.sleep(0.2)
            else:
                raise AssertionError(f"no page at {url}: {log.read_text()}")
            yield url
        finally:
            process.terminate()


def ask(page, question: str) -> None:
    """Ask and wait for the whole answer."""
    answers = page.locator(BOT).count()
    page.fill("#question textarea", question)
    page.click("#ask")
    page.wait_for_function(
        f"""n => {{
            const said = [...document.querySelectorAll('{BOT}')].map(bot => bot.innerText.trim());
            return said.length > n && said.at(-1) != '…' && !document.querySelector('#stop');
        }}""",
        arg=answers,
    )


@pytest.fixture(scope="session")
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serve(request.config.getoption("--model"), tmp_path_factory.mktemp("page") / "log") as address:
        yield address


@pytest.fixture(scope="session")
def slow_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The same page with a slow, long-winded model, time enough to stop it, and two seats."""
    log = tmp_path_factory.mktemp("slow") / "log"
    with serve(request.config.getoption("--model"), log, SLOW, "--seats", "2") as address:
        yield address


@pytest.fixture(scope="session")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    if not Path(CHROMIUM).exists():
        pytest.skip("needs Chromium; Debian's package is `chromium`")
    playwright.expect.set_options(timeout=TIMEOUT_MS)
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def screenshots(request: pytest.FixtureRequest) -> Path:
    return request.config.cache.mkdir("screenshots")


@pytest.fixture
def visit(browser, screenshots: Path, request: pytest.FixtureRequest) -> Iterator[Callable]:
    """visit(url, width, height, theme) → a page. A console error or a request to elsewhere fails the test."""
    pages, wrong = [], []

    def heard(message) -> None:
        url = message.location["url"]
        missing = url.endswith("/mcp/schema")  # Gradio's API page asks for it in vain
        # Gradio may cancel an event before it knows its number; the session's own stop has ended the answer by then
        early = url.endswith(("/cancel", "/reset")) and "422" in message.text
        if message.type == "error" and not missing and not early:
            wrong.append(f"console: {message.text} {url}")

    def watch(page, url: str) -> None:
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        page.on("console", heard)
        local = (url, "data:", "blob:")
        page.on("request", lambda r: None if r.url.startswith(local) else wrong.append(f"request: {r.url}"))

    def open_page(url: str, width: int = 1280, height: int = 900, theme: str = "light", fragment: str = ""):
        page = browser.new_context(viewport={"width": width, "height": height}).new_page()
        page.set_default_timeout(TIMEOUT_MS)
        pages.append(page)
        watch(page, url)
        page.goto(f"{url}?__theme={theme}{fragment}")
        page.wait_for_selector("#examples img", state="attached")
        return page

    yield open_page
    for number, page in enumerate(pages):
        name = request.node.name.replace("/", "-") + (f"-{number}" if number else "")
        page.screenshot(path=screenshots / f"{name}.png", full_page=True)
        page.context.close()
    assert not wrong, "\n".join(wrong)
