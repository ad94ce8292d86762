"""Where a model's files come from, with a Hub of small files of the same layout in place of the real one."""

import shutil
from pathlib import Path

import httpx
import huggingface_hub
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
