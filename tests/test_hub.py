"""Where a model's files come from, with a Hub of small files of the same layout in place of the real one."""

import hashlib
import itertools
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import huggingface_hub.constants
import pytest
import torch

import mlmamba
from mlmamba import UserError, hub, weights

PUBLISHED = Path(__file__).parent / "data" / "published-tiny" / "latest-checkpoint.pt"
TINY = hub.CHECKPOINTS / "tiny"


@pytest.fixture
def fetched(monkeypatch, tmp_path) -> list[tuple[str, str]]:
    """Serve the published layout, the tokenizer and one model of ours; returns what was asked for."""
    asked: list[tuple[str, str]] = []
    files = {
        (hub.PUBLISHED_REPO, hub.PUBLISHED_FILE): PUBLISHED,
        (hub.NEOX_REPO, weights.TOKENIZER): TINY / weights.TOKENIZER,
        **{("someone/tiny", name): TINY / name for name in (weights.CONFIG, weights.WEIGHTS, weights.TOKENIZER)},
    }

    def fetch(repo: str, file: str) -> Path:
        asked.append((repo, file))
        return files[repo, file]

    monkeypatch.setattr(hub, "_fetch", fetch)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return asked


def test_the_authors_release_is_converted_once(fetched):
    first = mlmamba.load("3b", device="cpu", vision=False)
    assert first.config.name == "3b" and first.config.connector.kinds == ("bsm",)
    again = mlmamba.load("3b", device="cpu", vision=False)
    assert fetched == [(hub.PUBLISHED_REPO, hub.PUBLISHED_FILE), (hub.NEOX_REPO, weights.TOKENIZER)]
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_a_hub_id(fetched):
    model = mlmamba.load("someone/tiny", device="cpu", vision=False)
    assert model.config.connector.kinds == ("bsm", "csm") and len(fetched) == 3


def test_a_folder_of_ones_own_without_a_tokenizer_gets_the_published_one(fetched, tmp_path):
    for name in (weights.CONFIG, weights.WEIGHTS):
        shutil.copy(TINY / name, tmp_path)
    mlmamba.load(tmp_path, device="cpu", vision=False)
    assert fetched == [(hub.NEOX_REPO, weights.TOKENIZER)] and (tmp_path / weights.TOKENIZER).exists()


def test_without_a_network_the_sentence_says_what_to_do(monkeypatch):
    class Unplugged:
        def head(self, *_: object, **__: object) -> None:
            raise httpx.ConnectError("Name or service not known")

    monkeypatch.setattr(huggingface_hub, "get_session", Unplugged)
    with pytest.raises(UserError, match='take the model "tiny"') as caught:
        mlmamba.load("nobody/nothing", device="cpu")
    assert "\n" not in str(caught.value)


class SmallHub(ThreadingHTTPServer):
    """A Hub on this machine that has two files, and breaks a download off after `most` bytes."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), SmallHubHandler)
        self.files = {
            f"/{hub.PUBLISHED_REPO}/resolve/main/{hub.PUBLISHED_FILE}": PUBLISHED.read_bytes(),
            f"/{hub.NEOX_REPO}/resolve/main/{weights.TOKENIZER}": (TINY / weights.TOKENIZER).read_bytes(),
        }
        self.most: int | None = None
        self.sent: list[tuple[str, int, int]] = []  # file, first byte, how many


class SmallHubHandler(BaseHTTPRequestHandler):
    server: SmallHub

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        whole = self.server.files.get(self.path.split("?")[0])
        if whole is None:
            self.send_response(200 if self.path == "/" else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        first = int(asked[1]) if asked else 0
        part = whole[first : int(asked[2]) + 1 if asked and asked[2] else None]
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(whole)}")
        self.send_header("Content-Length", str(len(part)))
        self.send_header("ETag", f'"{hashlib.sha256(whole).hexdigest()}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()
        if not body:
            return
        most = self.server.most
        self.wfile.write(part[:most])
        self.server.sent.append((Path(self.path).name, first, len(part[:most])))
        if most is not None and len(part) > most:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def small_hub() -> Iterator[SmallHub]:
    with SmallHub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_a_broken_download_goes_on_where_it_broke(small_hub, tmp_path):
    """By the Hub's own client, in a process of its own, with a connection that never carries the whole file."""
    whole = len(PUBLISHED.read_bytes())
    small_hub.most = whole // 3
    settings = {
        "HF_ENDPOINT": f"http://127.0.0.1:{small_hub.server_port}", "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1",
    }  # fmt: skip
    # the client keeps whole chunks of what came, as small here as the file is
    small_chunks = "from huggingface_hub import constants; constants.DOWNLOAD_CHUNK_SIZE = 1000"
    code = f"{small_chunks}; import mlmamba; print(mlmamba.load('3b', device='cpu', vision=False).config.name)"

    def load() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code], cwd=hub.CHECKPOINTS.parent, env=os.environ | settings, capture_output=True,
            text=True, timeout=300,
        )  # fmt: skip

    done = load()
    assert done.returncode == 0 and done.stdout.strip() == "3b", done.stderr
    parts = [(first, n) for name, first, n in small_hub.sent if name == hub.PUBLISHED_FILE]
    assert len(parts) == 4 and parts[0][0] == 0 and sum(parts[-1]) == whole
    for (first, n), (then, _) in itertools.pairwise(parts):
        assert first < then <= first + n and first + n - then < 1000

    small_hub.sent.clear()  # a second time nothing is fetched, and the pickle may be gone
    for pickle in tmp_path.rglob(hub.PUBLISHED_FILE):
        pickle.unlink()
    assert load().stdout.strip() == "3b" and small_hub.sent == []
