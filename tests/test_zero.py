"""The page on ZeroGPU, as `spaces` runs it: calls in forked processes, a GPU that has to be asked for each time.

There is no GPU here. The service that lends them is played by a server of our own, and a forked process computes on
the CPU; the processes, what is sent between them, and stopping are those of `spaces`.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import pytest
from conftest import BOT, ROOT, ask, serve
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

import mlmamba
from page.chat import FAILED
from page.limits import ANSWER_S
from visualize import View, record
from visualize.figures import export

spaces = pytest.importorskip("spaces", reason="needs spaces: pip install -r requirements-dev.txt")
MEADOW = ROOT / "examples" / "meadow.jpg"
WITHOUT_GPU = """
import spaces.zero.torch as cuda
cuda.init = cuda.move = lambda *args, **options: None
"""
SLOW = """
import time
from mlmamba.decoding import Wish
choose = Wish.choose
def slow_choose(wish, logits):
    time.sleep(0.3)
    return choose(wish, logits)
Wish.choose = slow_choose
"""
FULL = """
from mlmamba.mamba2 import LanguageModel
head = LanguageModel.head
def no_memory(self, hidden):
    raise MemoryError
LanguageModel.head = no_memory
"""


@pytest.fixture
def lender(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The service that lends GPUs: what it was asked, and whether it has any left."""
    told = SimpleNamespace(calls=[], left=True)

    class Lender(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            address = urlsplit(self.path)
            told.calls.append((address.path.strip("/"), {k: v[0] for k, v in parse_qs(address.query).items()}))
            if address.path == "/schedule" and not told.left:
                self.answer(429, {"left": 3, "wait": "PT1H"})
            else:
                self.answer(200, {"idle": True, "nvidiaIndex": 0, "nvidiaUUID": "GPU-0", "allowToken": "ada"})

        def answer(self, status: int, body: dict) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Lender)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    monkeypatch.setenv("SPACES_ZERO_DEVICE_API_URL", f"http://127.0.0.1:{server.server_port}")
    yield told
    server.shutdown()


@pytest.fixture
def host(lender: SimpleNamespace, tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """The page after a patch; its address. Goes on until the browser has left it."""
    with ExitStack() as pages:
        yield lambda patch="": pages.enter_context(serve("tiny", tmp_path / "log", WITHOUT_GPU + patch))


def calls(lender: SimpleNamespace) -> list[str]:
    return [name for name, _ in lender.calls]


def test_weights_are_kept_aside_for_the_gpu(lender, tmp_path):
    """Under the emulation of CUDA, where no GPU is: loaded as on one, every weight laid aside once."""
    code = """
import json
from page import zero
model = zero.LentModel("tiny", "auto")
own = zero.LENT["tiny"]
from spaces.zero import torch as cuda
weights = [*own.parameters(), *own.vision.parameters(), *own.vision.buffers()]
devices = {w.device.type for w in weights}
size = sum({w.data_ptr() or id(w): w.numel() * w.element_size() for w in weights}.values())
print(json.dumps([model.backend, sorted(devices), size, cuda.pack()]))
"""
    env = {**os.environ, "ZEROGPU_OFFLOAD_DIR": str(tmp_path / "aside")}
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    backend, devices, size, packed = json.loads(run.stdout.splitlines()[-1])
    assert devices == ["cuda"]
    assert backend.startswith("cuda") and backend.endswith("ZeroGPU")
    assert packed == pytest.approx(size, rel=0.01)
    n = mlmamba.load("tiny", device="cpu").n_parameters
    assert packed > 2 * n  # bfloat16


def test_the_page_answers_with_a_lent_gpu(lender, host, visit):
    """Two questions in one conversation, what the scan shows, and both programs' calls: as where the model is here."""
    local = mlmamba.load("tiny", device="cpu").start(MEADOW)
    url = host()
    assert "startup-report" in calls(lender)
    client = Client(url, verbose=False)
    before = len(lender.calls)
    question = "What can you see?"
    assert client.predict(handle_file(MEADOW), question, api_name="/ask") == "".join(local.ask(question))
    assert calls(lender)[before:] == ["schedule", "allow", "release"]
    assert lender.calls[before][1]["durationSeconds"] == str(ANSWER_S)
    shown = client.predict(handle_file(MEADOW), "csm", question, word=2, format="json", api_name="/scan")
    looked = local.model.start(MEADOW, "csm")
    list(looked.ask(question))
    _, _, expected = export(View(kind="csm", word=1), {"csm": record(looked)}, "json")
    (seen,), (true,) = (json.loads(each)["connectors"] for each in (Path(shown).read_text(), expected))
    assert (seen["answer"], seen["word"]) == (true["answer"], true["word"])
    assert seen["merged"] == pytest.approx(true["merged"], rel=1e-3)
    page = visit(url)
    page.click("#examples button >> nth=0")
    page.wait_for_selector("#picture img")
    ask(page, question)
    ask(page, "Is there a dog?")
    said = page.locator(BOT).all_inner_texts()
    assert len(said) == 2 and said[1].startswith(("Yes", "No"))
    assert calls(lender).count("schedule") == calls(lender).count("release")


def test_stop_gives_the_gpu_back(lender, host, visit):
    url = host(SLOW)
    page = visit(url)
    page.click("#examples button >> nth=0")
    page.wait_for_selector("#picture img")
    page.fill("#question textarea", "What can you see?")
    page.click("#ask")
    page.wait_for_function(f"[...document.querySelectorAll('{BOT}')].some(bot => bot.innerText.includes('I'))")
    assert "release" not in calls(lender)
    page.click("#stop")
    page.wait_for_selector("#ask")
    assert calls(lender)[-1] == "release"
    said = page.locator(BOT).last.inner_text()
    assert "I see".startswith(said[:5]) and not said.endswith(".")


def test_no_gpu_left_is_told(lender, host):
    url = host()
    client = Client(url, verbose=False)
    lender.left = False
    with pytest.raises(AppError, match="GPU"):
        client.predict(handle_file(MEADOW), "Is there a dog?", api_name="/ask")
    lender.left = True
    assert client.predict(handle_file(MEADOW), "Is there a dog?", api_name="/ask").startswith(("Yes", "No"))


def test_what_a_user_can_mend_comes_back(host):
    """Of an exception in a forked process, `spaces` tells the class alone."""
    url = host(FULL)
    with pytest.raises(AppError, match="The memory is full"):
        Client(url, verbose=False).predict(handle_file(MEADOW), "Is there a dog?", api_name="/ask")
    with pytest.raises(AppError, match="runs elsewhere"):
        Client(url, verbose=False).predict(handle_file(MEADOW), "Is there a dog?", api_name="/race")


def test_a_fault_of_ours_is_no_sentence_for_the_user(host, visit, tmp_path):
    url = host(FULL.replace("raise MemoryError", "raise KeyError(1)"))
    page = visit(url)
    page.click("#examples button >> nth=0")
    page.wait_for_selector("#picture img")
    page.fill("#question textarea", "Is there a dog?")
    page.click("#ask")
    page.wait_for_selector(".notice.problem")
    assert FAILED in page.inner_text("#notice")
    assert page.input_value("#question textarea") == "Is there a dog?"
    assert "in a lent process: KeyError" in (tmp_path / "log").read_text()
