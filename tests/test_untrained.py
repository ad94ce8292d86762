"""A model of random weights in the authors' layout goes the whole way of the release: file, conversion, chat."""

import dataclasses
import gc
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import mlmamba
from mlmamba import UserError, hub, untrained, weights
from mlmamba.config import ConnectorConfig, LanguageConfig, MLMambaConfig, VisionConfig
from mlmamba.reading import BLOCK
from mlmamba.vision import Vision

ROOT = Path(__file__).parents[1]
PUBLISHED = Path(__file__).parent / "data" / "published-tiny" / "latest-checkpoint.pt"
SMALL = MLMambaConfig(
    "small",
    ConnectorConfig(1450, 64, n_layers=2, d_state=16, head_dim=32, d_projector=96),
    LanguageConfig(64, n_layers=3, vocab_size=5008, d_state=16, head_dim=32),
    VisionConfig(("efficientnet-lite0",), 320),
    vocab_words=5000,
)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("untrained")
    SMALL.save(out / "sizes.json")
    done = subprocess.run(
        [sys.executable, "-m", "mlmamba", "init", out / "sizes.json", out / "model", "--seed", "3"],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out / "model"


def test_the_names_are_those_of_the_authors_file():
    parts = torch.load(PUBLISHED, weights_only=True)["model"]
    config, ours = weights.from_published(parts, "golden")
    again = weights.to_published(config, ours)
    assert {part: set(tensors) for part, tensors in again.items()} == {p: set(tensors) for p, tensors in parts.items()}
    for part, tensors in parts.items():
        for key, tensor in tensors.items():
            assert torch.equal(again[part][key], tensor), key


def test_the_sizes_are_the_published_ones():
    """As `PUBLISHED-CHECKPOINT` has them; counted without making the weights."""
    config = untrained.PUBLISHED
    with torch.device("meta"):
        model = mlmamba.MLMamba(config)
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    assert shapes["connector.mlp.0.weight"] == (2560, 2176)
    assert shapes["connector.projector.0.weight"] == (10240, 2560)
    assert shapes["language_model.embedding.weight"] == (50288, 2560)
    assert shapes["language_model.layers.63.scan.A_log"] == (80,)
    assert shapes["language_model.layers.63.scan.conv_weight"] == (5120 + 2 * 128, 4)
    assert 2.69e9 < sum(p.numel() for p in model.language_model.parameters()) < 2.71e9
    assert config.vision.towers == ("dinov2-l14", "siglip-so400m-14") and config.vision.image_size == 384


class Held(TorchDispatchMode):
    """Bytes of all tensors that are there at once, now and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.there: set[int] = set()
        self.now = self.most = 0

    def add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self.there:
            self.there.add(key)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self.drop, key, size)

    def drop(self, key: int, size: int) -> None:
        self.there.discard(key)
        self.now -= size

    def __torch_dispatch__(self, operation, kinds, args=(), kwargs=None):
        results = operation(*args, **(kwargs or {}))
        for each in tree_leaves(results):
            if isinstance(each, torch.Tensor):
                self.add(each)
        return results


def test_tensors_of_the_full_size_fit_a_card_of_12_gb():
    """In bfloat16, with towers and eight seats: counted on tensors without numbers. CUDA itself takes more.

    Four graphs that read keep what they need while they run, and then somebody looks at what an answer saw.
    """
    config = untrained.PUBLISHED
    with torch.device("meta"), torch.no_grad(), Held() as held:
        model = mlmamba.MLMamba(config).bfloat16()
        towers = Vision(config.vision, pretrained=False).bfloat16()
        gc.collect()
        weights = held.now
        reader = model.language_model
        steps = reader.empty(8), torch.zeros(2, 8, config.vocab_words), reader.stepper()
        given = reader.empty(1)  # where the words' graph takes a state from
        words, length = reader.embed(torch.zeros(1, BLOCK, dtype=torch.long)), torch.tensor(20)
        kept = []

        def most(compute):
            held.most = before = held.now
            result = compute()
            kept.append(held.most - before)
            return result

        patches = most(lambda: towers(torch.zeros(1, 3, 384, 384)))
        features = most(lambda: model.connector(patches, towers.grid).features)
        state = most(lambda: reader(features, last_only=True)).state
        answered = most(lambda: reader(words, state, last_only=True, length=length)).state
        both, layers = torch.cat([features, words], 1), tuple(range(config.language.n_layers))
        most(lambda: reader(both, scans=layers, last_only=True))
    assert steps and given and answered and 7.1e9 < weights < 7.2e9
    assert weights + 1.3e9 < held.now < weights + 2e9  # seats, and a conversation
    assert held.now + sum(kept) < 12 * 2**30 - 1e9


def test_it_is_converted_once_and_answers(written, monkeypatch):
    model = mlmamba.load(written, device="cpu", dtype="bfloat16")
    # the authors' file tells neither a name nor how many of the words are padding
    assert dataclasses.replace(model.config, name="small", vocab_words=5000) == SMALL
    before = (written / weights.WEIGHTS).stat().st_mtime_ns
    monkeypatch.setattr(weights, "convert", None)  # the pickle is not touched again
    again = mlmamba.load(written, device="cpu", dtype="bfloat16", vision=False)
    assert (written / weights.WEIGHTS).stat().st_mtime_ns == before
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_a_seed_is_a_model(written, tmp_path):
    untrained.write(SMALL, tmp_path / "same", 3)
    untrained.write(SMALL, tmp_path / "other", 4)
    same, other, first = (
        torch.load(folder / hub.PUBLISHED_FILE, weights_only=True)["model"]["mlp"]["0.weight"]
        for folder in (tmp_path / "same", tmp_path / "other", written)
    )
    assert torch.equal(same, first) and not torch.equal(other, first)


def test_a_damaged_conversion_is_made_again_and_a_damaged_model_is_told(written, tmp_path):
    good = (written / weights.WEIGHTS).read_bytes() if (written / weights.WEIGHTS).exists() else b""
    hub.find(written)
    good = good or (written / weights.WEIGHTS).read_bytes()
    spoilt = bytearray(good)
    spoilt[-1] ^= 1
    (written / weights.WEIGHTS).write_bytes(spoilt)
    hub.find(written)
    assert (written / weights.WEIGHTS).read_bytes() == good
    for name in (weights.CONFIG, weights.CHECKSUM):
        (tmp_path / name).write_bytes((written / name).read_bytes())
    (tmp_path / weights.WEIGHTS).write_bytes(spoilt)
    with pytest.raises(UserError, match="damaged"):
        hub.find(tmp_path)


def test_layouts_without_a_name_are_refused(tmp_path):
    both = dataclasses.replace(SMALL, connector=dataclasses.replace(SMALL.connector, kinds=("bsm", "csm")))
    with pytest.raises(UserError, match="BSM and Mamba-2 alone"):
        untrained.write(both, tmp_path, 0)


def test_it_talks(written):
    model = mlmamba.load(written, device="cpu")
    answer = model.chat(Image.new("RGB", (40, 30), "red"), "What is this?", max_new_tokens=8)
    assert isinstance(answer, str) and answer
