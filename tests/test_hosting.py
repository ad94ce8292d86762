"""The page as others host it: as a Space, from the files of the Docker image, behind a proxy, with a login; what is
kept of visitors, what is logged. Nothing here asserts a time."""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import SourceFileLoader
from importlib.metadata import requires
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import httpx
import pytest
import uvicorn
import yaml
from conftest import BOT, TIMEOUT_MS, USER, ask, serve
from gradio_client import Client, handle_file
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

ROOT = Path(__file__).resolve().parent.parent
MEADOW = ROOT / "examples" / "meadow.jpg"
PREFIX = "/demo"
LOGIN = "ada", "love:lace ü"
LOADER = SourceFileLoader("space", str(ROOT / ".ci" / "space"))
LOADER.exec_module(space := module_from_spec(spec_from_loader("space", LOADER)))


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def hosted(folder: Path, place: Path, *arguments: str, **env: str) -> Iterator[SimpleNamespace]:
    """The page in a process of its own, with a Space's environment; its address, its log and where its files lie."""
    files, log = place / "files", place / "log"
    files.mkdir()
    more = {"GRADIO_TEMP_DIR": str(files), "OMP_NUM_THREADS": "1", **env}
    with space.running([sys.executable, *arguments], folder, log, free_port(), more) as url:
        own = kept(files)  # what the page itself is made of
        yield SimpleNamespace(url=url, log=log, files=lambda: kept(files) - own)


def kept(folder: Path) -> set[Path]:
    """All files; Gradio leaves an empty one for each upload besides."""
    return {path for path in folder.rglob("*") if path.is_file() and path.stat().st_size}


def until(condition: Callable[[], object], what: str) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.2)
    raise AssertionError(f"in vain: {what}")


@pytest.fixture(scope="module")
def image_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the Dockerfile copies, and nothing else of the repository."""
    folder = tmp_path_factory.mktemp("image")
    for line in re.findall(r"^COPY (.+)$", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE):
        source, target = (Path(name) for name in shlex.split(line))
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, folder / target, ignore=shutil.ignore_patterns("__pycache__", "*.pyi"))
        else:
            shutil.copy(ROOT / source, folder / target)
    return folder


@pytest.fixture(scope="module")
def page(image_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """As a Space starts it."""
    with hosted(image_files, tmp_path_factory.mktemp("space"), "app.py") as running:
        yield running


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """On a server of one's own: a login, and a reverse proxy that takes the prefix away."""
    arguments, login = ("app.py", "--root-path", PREFIX), ":".join(LOGIN)
    place = tmp_path_factory.mktemp("own")
    with hosted(ROOT, place, *arguments, MLMAMBA_LOGIN=login) as running, proxied(running.url) as url:
        yield SimpleNamespace(url=url, direct=running.url, log=running.log, files=running.files)


@contextmanager
def proxied(upstream: str) -> Iterator[str]:
    """A reverse proxy: PREFIX/x here is x there."""
    client = httpx.AsyncClient(base_url=upstream, timeout=None)
    hop_by_hop = {b"connection", b"transfer-encoding", b"keep-alive"}

    async def forward(request: Request) -> Response:
        headers = [(name, value) for name, value in request.headers.raw if name not in hop_by_hop]
        asked = client.build_request(
            request.method,
            httpx.URL(path="/" + request.path_params["path"], query=request.url.query.encode()),
            headers=headers,
            content=request.stream() if request.method == "POST" else None,
        )
        answer = await client.send(asked, stream=True)

        async def body():
            try:
                async for piece in answer.aiter_raw():
                    yield piece
            finally:
                await answer.aclose()

        passed = StreamingResponse(body(), answer.status_code)
        passed.raw_headers = [(n.lower(), v) for n, v in answer.headers.raw if n.lower() not in hop_by_hop]
        return passed

    async def elsewhere(request: Request) -> Response:
        return PlainTextResponse("not the page's", 404)

    methods = ["GET", "HEAD", "POST"]
    routes = [
        Route(PREFIX + "/{path:path}", forward, methods=methods),
        Route("/{path:path}", elsewhere, methods=methods),
    ]
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(Starlette(routes=routes), port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started, "the proxy")
        yield f"http://127.0.0.1:{port}{PREFIX}/"
    finally:
        server.force_exit = server.should_exit = True
        thread.join()


@pytest.fixture
def tab(browser) -> Iterator[Callable]:
    """tab(url) → a page in a browser of its own. A console error or a request to elsewhere fails the test."""
    tabs, wrong = [], []
    hub = ("https://huggingface.co/", "https://fonts.googleapis.com/")  # a Space's header, which Gradio adds

    def watch(page, url: str) -> None:
        def heard(message) -> None:
            at = message.location["url"]
            ours = not at.startswith(hub) and message.text != "Space not found"
            # a browser asks for an icon there by itself on Gradio's login page, which names none
            if message.type == "error" and ours and urlsplit(at).path != "/favicon.ico":
                wrong.append(f"console: {message.text} {at}")

        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        page.on("console", heard)
        local = (url, "data:", "blob:", *(hub if PREFIX not in url else ()))
        page.on("request", lambda r: None if r.url.startswith(local) else wrong.append(f"request: {r.url}"))

    def open_tab(url: str):
        page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
        page.set_default_timeout(TIMEOUT_MS)
        tabs.append(page)
        watch(page, url)
        page.goto(url)
        return page

    yield open_tab
    for page in tabs:
        page.context.close()
    assert not wrong, "\n".join(wrong)


@pytest.fixture
def expect():
    return pytest.importorskip("playwright.sync_api").expect


def give(page, path: Path) -> None:
    page.wait_for_selector("#examples img")
    page.set_input_files("#left input[type=file]", path)
    page.wait_for_selector("#picture img")


def padded(path: Path, size: int) -> Path:
    """A picture whose file has a given size."""
    data = MEADOW.read_bytes()
    path.write_bytes(data + bytes(size - len(data)))
    return path


def test_a_space_answers(page):
    import mlmamba

    answer = Client(page.url, verbose=False).predict(handle_file(MEADOW), "Is there a dog?", api_name="/ask")
    assert answer == mlmamba.load("tiny").chat(MEADOW, "Is there a dog?")


def test_nothing_is_logged_of_what_visitors_send(page, tab, expect, tmp_path):
    name, word = "zanzibar", "quokka"
    picture = padded(tmp_path / f"{name}.jpg", 300_000)
    one = tab(page.url)
    give(one, picture)
    ask(one, f"Is there a {word}?")
    broken = tmp_path / f"{name}-broken.jpg"
    broken.write_bytes(picture.read_bytes()[:5000])
    one.set_input_files("#left input[type=file]", broken)
    expect(one.locator("#notice .problem")).to_be_visible()
    assert any(path.name == picture.name for path in page.files())  # so that it was sent
    log = page.log.read_text()
    assert "Running on" in log
    assert name not in log and word not in log


def test_a_file_over_the_limit_is_refused_in_one_sentence(page, tab, expect, tmp_path):
    from mlmamba.images import MAX_FILE_BYTES

    large = padded(tmp_path / "large.jpg", MAX_FILE_BYTES + 3 * 1024**2)
    one = tab(page.url)
    one.wait_for_selector("#examples img")
    one.set_input_files("#left input[type=file]", large)
    expect(one.locator("#notice .problem")).to_have_text(re.compile(r"^[^.]* 30 MB[^.]*\.$"))
    give(one, MEADOW)
    expect(one.locator("#notice .problem")).to_have_count(0)
    ask(one, "Is there a dog?")
    one.fill("#question textarea", "And a cat?")
    shown, before = one.get_attribute("#picture img", "src"), page.files()
    one.set_input_files("#left input[type=file]", large)
    expect(one.locator("#notice .problem")).to_have_text(re.compile(r"^[^.]* 30 MB[^.]*\.$"))
    assert one.get_attribute("#picture img", "src") == shown
    expect(one.locator(USER)).to_have_text("Is there a dog?")
    expect(one.locator("#question textarea")).to_have_value("And a cat?")

    # past the browser, the server refuses it as well
    with large.open("rb") as file:
        assert httpx.post(f"{page.url}gradio_api/upload", files={"files": file}, timeout=None).status_code == 413
    assert page.files() == before


def test_a_login_is_asked_for(own):
    for page in (own.direct, own.url):
        assert httpx.get(f"{page}config").status_code == 401
        assert httpx.post(f"{page}gradio_api/queue/join", json={"fn_index": 0, "data": []}).status_code == 401
        wrong = {"username": LOGIN[0], "password": LOGIN[1] + "x"}
        assert httpx.post(f"{page}login", data=wrong).status_code == 400
        client = Client(page, auth=LOGIN, verbose=False)
        assert client.predict(handle_file(MEADOW), "Is there a dog?", api_name="/ask").strip()
    assert LOGIN[1] not in own.log.read_text()


def test_in_a_browser_behind_a_proxy(tab, expect, tmp_path):
    """Every request of the page goes to the prefix: `tab` fails on any other."""
    with serve("tiny", tmp_path / "log", "", "--root-path", PREFIX) as direct, proxied(direct) as url:
        page = tab(url)
        give(page, MEADOW)
        ask(page, "Is there a dog?")
        expect(page.locator(BOT)).to_have_count(1)
        page.get_by_role("tab", name="See the scan").click()
        expect(page.locator("#see-pictures")).to_be_visible()
        page.click("#see-pictures button >> nth=1")
        page.get_by_role("tab", name="Ask").click()
        expect(page.locator(BOT)).to_have_count(0)  # a new picture, a new conversation
        ask(page, "What can you see?")
        expect(page.locator(BOT)).to_have_count(1)
        page.close()  # before the proxy


@pytest.mark.parametrize("value", ["", "ada", "ada:", ":secret", " :secret"])
def test_a_login_of_a_wrong_form_opens_nothing(monkeypatch, value):
    import app

    monkeypatch.setenv(app.LOGIN, value)
    monkeypatch.setattr(sys, "argv", ["app.py"])
    monkeypatch.setattr(app.signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit, match=r"^Set MLMAMBA_LOGIN to user:password[^.]*\.$"):
        app.main()


def test_the_health_check(own):
    """The Dockerfile's, with a login and without a page."""
    dockerfile = (ROOT / "Dockerfile").read_text().replace("\\\n", "")
    _, *command = json.loads(re.search(r"^HEALTHCHECK .* CMD (\[.*\])$", dockerfile, flags=re.MULTILINE)[1])
    for port, healthy in ((urlsplit(own.direct).port, True), (free_port(), False)):
        env = {**os.environ, "GRADIO_SERVER_PORT": str(port)}
        done = subprocess.run([sys.executable, *command], env=env, capture_output=True)
        assert (done.returncode == 0) == healthy, done.stderr


def test_the_pins_go_with_what_a_space_installs():
    """A Space installs gradio[oauth,mcp] in one command with requirements.txt."""
    pins = {}
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        pin = Requirement(line.split("#")[0]) if line.split("#")[0].strip() else None
        if pin and (not pin.marker or pin.marker.evaluate()):
            pins[canonicalize_name(pin.name)] = re.sub("^==", "", str(pin.specifier))
    for needed in map(Requirement, requires("gradio") or []):
        wanted = not needed.marker or any(needed.marker.evaluate({"extra": extra}) for extra in ("oauth", "mcp"))
        pin = pins.get(canonicalize_name(needed.name))
        if wanted and pin:
            assert needed.specifier.contains(pin), f"{needed}, and requirements.txt has {pin}"


def test_the_readme_says_what_a_space_needs():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(readme.split("---\n")[1])
    assert front["sdk"] == "gradio" and front["app_file"] == "app.py"
    assert f"gradio=={front['sdk_version']}\n" in (ROOT / "requirements.txt").read_text()
    assert len(front["short_description"]) <= 60  # the Hub refuses a longer one
