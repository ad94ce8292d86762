"""What programs ask: the examples of docs/api.md as they stand there, tools over MCP, and what is refused."""

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client
from PIL import Image

import mlmamba

ROOT = Path(__file__).resolve().parent.parent
MEADOW = ROOT / "examples" / "meadow.jpg"
QUESTION = "Is there a dog?"


@pytest.fixture(scope="module")
def client(url: str) -> Client:
    return Client(url, verbose=False)


@pytest.fixture(scope="module")
def model() -> mlmamba.MLMamba:
    return mlmamba.load("tiny", device="cpu")


def test_the_examples_run(url, model, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    told: dict[str, Any] = {}
    for block in blocks:
        exec(block.replace("http://127.0.0.1:7860/", url), told)
    said = capsys.readouterr().out.splitlines()
    assert [model.start(MEADOW, kind).model.chat(MEADOW, QUESTION, connector=kind) for kind in ("bsm", "csm")] == [
        line for line in said if line.startswith(("Yes", "No"))
    ][:2]
    figure, word = Image.open(told["figure"]), Image.open(told["word"])
    assert (figure.format == word.format == "PNG" and figure.size != word.size) or figure.tobytes() != word.tobytes()
    assert "exp(ΔA)" in said
    race = told["told"]["race"]
    assert race["tokens"] == 32 and [len(runner["memory"]) for runner in race["runners"]] == [32, 32]
    assert race["verdict"] and told["told"]["machine"]


def test_the_examples_of_the_page_run(visit, url, model, tmp_path, monkeypatch, capsys):
    """What the page's own list of endpoints shows for Python, copied and run beside a photo.jpg."""
    page = visit(url)
    page.click("#api-link")
    shown = page.locator("pre", has_text="client.predict(").filter(has_text="import Client, handle_file\n")
    page.wait_for_function("[...document.querySelectorAll('pre')].some(e => e.innerText.includes('/race'))")
    snippets = [text for text in shown.all_inner_texts() if text.startswith("from gradio_client")]
    assert [re.search(r'api_name="(/\w+)"', text)[1] for text in snippets] == ["/ask", "/scan", "/race"]
    (tmp_path / "photo.jpg").write_bytes(MEADOW.read_bytes())
    monkeypatch.chdir(tmp_path)
    results = []
    for snippet in snippets:
        told: dict[str, Any] = {}
        exec(snippet, told)
        results.append(told["result"])
    answer, figure, race = results
    assert answer == model.chat(MEADOW, QUESTION, connector="bsm")
    assert Image.open(figure).format == "PNG"
    assert race["race"]["tokens"] == 64


def test_the_numbers_are_those_of_the_scan(client, model):
    """exp(Δ A) of the connector's first direction, from the model's own scan."""
    file = client.predict(handle_file(MEADOW), quantity="decay", layer=2, head=3, format="json", api_name="/scan")
    found = json.loads(Path(file).read_text(encoding="utf-8"))
    assert found["view"]["layer"] == 1 and found["view"]["head"] == 2
    output = model.connector(model.see(mlmamba.open_image(MEADOW)), grid=model.grid, kind="bsm")
    scan = output.scans[1][0]
    expected = (scan.dt[0, :, 2] * scan.A[2]).exp()
    along = found["connectors"][0]["directions"][0]["along"]
    assert along == pytest.approx(expected.tolist(), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(
    ("endpoint", "arguments", "sentence"),
    [
        ("/ask", {"question": " "}, "type a question"),
        ("/ask", {"picture": None, "question": QUESTION}, "send a picture"),
        ("/ask", {"question": "?" * 2001}, "at most 2,000 characters"),
        ("/scan", {"layer": 0}, "counted from 1"),
        ("/scan", {"layer": 9}, "layer"),
        ("/scan", {"head": 10**9}, "."),
        ("/scan", {"word": 2}, "word"),
        ("/race", {"question": ""}, "type a question"),
        ("/race", {"picture": None, "question": QUESTION}, "send a picture"),
    ],
)
def test_what_can_not_be_done_is_told_in_a_sentence(client, endpoint, arguments, sentence):
    with pytest.raises(AppError, match=sentence) as told:
        client.predict(**({"picture": handle_file(MEADOW)} | arguments), api_name=endpoint)
    assert str(told.value).strip().endswith(".")


@pytest.mark.parametrize(
    ("endpoint", "arguments"),
    [
        ("/ask", {"question": QUESTION, "connector": "mlp"}),
        ("/scan", {"connector": "../bsm"}),
        ("/scan", {"quantity": "__class__"}),
        ("/scan", {"format": "../../png"}),
        ("/race", {"question": QUESTION, "tokens": 10**6}),
        ("/race", {"question": QUESTION, "context": 10**9}),
    ],
)
def test_other_values_than_those_offered_are_refused(client, endpoint, arguments):
    with pytest.raises(AppError):
        client.predict(handle_file(MEADOW), **arguments, api_name=endpoint)


def mcp(url: str, use) -> Any:
    """The result of `use` of a session, in a thread: a browser's client may have a loop of its own in this one."""

    async def talk() -> Any:
        async with (
            streamable_http_client(f"{url}gradio_api/mcp/") as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            return await use(session)

    return ThreadPoolExecutor(1).submit(asyncio.run, talk()).result()


def test_tools_over_mcp(url):
    async def use(session: ClientSession) -> Any:
        return (await session.list_tools()).tools

    tools = {tool.name: tool for tool in mcp(url, use)}
    (ask,) = [tool for name, tool in tools.items() if name.endswith("ask")]
    assert len(tools) == 3
    assert "Answer a question about a picture" in (ask.description or "")
    assert set(ask.inputSchema["properties"]) >= {"picture", "question", "connector"}


# what a page's files must not be taken for


@pytest.fixture(scope="module")
def inner() -> Iterator[Any]:
    """A server within the network, which counts who asks it for a picture."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(MEADOW.read_bytes())

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/secret.jpg", asked
    server.shutdown()


def call(url: str, endpoint: str, path: str, meta: bool = True) -> str:
    """What the server says to a picture of that path, past the client, which would not send it."""
    file = {"path": path, "orig_name": "x.jpg"} | ({"meta": {"_type": "gradio.FileData"}} if meta else {})
    more = {"/ask": [None], "/race": [32, None]}[endpoint]
    begun = httpx.post(f"{url}gradio_api/call{endpoint}", json={"data": [file, QUESTION, *more]}, timeout=60)
    if begun.status_code != 200:
        return f"event: error {begun.status_code}"
    with httpx.stream("GET", f"{url}gradio_api/call{endpoint}/{begun.json()['event_id']}", timeout=120) as answer:
        return answer.read().decode()


def test_an_uploaded_file_is_a_picture(url):
    """Else the refusals below would say nothing."""
    with MEADOW.open("rb") as file:
        (path,) = httpx.post(f"{url}gradio_api/upload", files={"files": file}, timeout=60).json()
    for endpoint in ("/ask", "/race"):
        assert "event: complete" in call(url, endpoint, path), endpoint


@pytest.mark.parametrize("endpoint", ["/ask", "/race"])
@pytest.mark.parametrize("meta", [True, False])
@pytest.mark.parametrize(
    "path",
    [
        str(MEADOW.with_name("examples.json")),
        "/etc/passwd",
        str(ROOT / "docs" / "page.png"),
        f"{ROOT}/examples/../docs/page.png",
        "../docs/page.png",
        "docs/page.png",
        "file:///etc/passwd",
    ],
)
def test_no_file_of_the_server_is_a_picture(url, endpoint, meta, path):
    told = call(url, endpoint, path, meta)
    assert "event: error" in told and "event: complete" not in told
    assert "root:" not in told


def test_no_address_within_the_network_is_fetched(url, inner):
    address, asked = inner
    names = [address, address.replace("127.0.0.1", "localhost"), address.replace("127.0.0.1", "[::ffff:127.0.0.1]")]
    for name in [*names, address.replace("127.0.0.1", "2130706433")]:
        assert "event: error" in call(url, "/ask", name), name
    assert not asked
