"""Reading by functions of fixed size, by a graph's rules, says what reading operation by operation does."""

from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import pytest
import torch
from PIL import Image

import mlmamba
from mlmamba import backend
from mlmamba.config import LanguageConfig
from mlmamba.mamba2 import LanguageModel
from mlmamba.reading import BLOCK, FixedReader, Reader
from tests import as_graph

CLOSE = {"atol": 1e-4, "rtol": 1e-4}
PICTURES = [Image.linear_gradient("L"), Image.radial_gradient("L"), Image.new("RGB", (30, 50), "red")]


@pytest.fixture(scope="module")
def model() -> mlmamba.MLMamba:
    return mlmamba.load("tiny", device="cpu")


@pytest.fixture(scope="module", params=["one by one", "recorded"])
def reader(model, request):
    with pytest.MonkeyPatch.context() as patched:
        if request.param == "recorded":
            patched.setattr(backend, "repeated", as_graph.repeated)
        return FixedReader(model)


def words(n: int, seed: int) -> list[int]:
    return torch.randint(1, 900, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def same(found, expected) -> None:
    for one, other in zip(chain(*found), chain(*expected), strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


@pytest.mark.parametrize("read", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("carried", [False, True])
@torch.inference_mode()
def test_what_fills_a_block_leaves_no_trace(read, carried):
    """Nor do the places where nothing is said in what is said before them."""
    torch.manual_seed(0)
    lm = LanguageModel(LanguageConfig(64, 2, 97, 16, 32)).eval()
    ids = torch.randint(97, (2, 20))
    before = lm(lm.embed(torch.randint(97, (2, 5)))).state if carried else None
    expected = lm(lm.embed(ids[:, :read]), before, last_only=True)
    found = lm(lm.embed(ids), before, last_only=True, length=torch.tensor(read))
    torch.testing.assert_close(found.logits, expected.logits, **CLOSE)
    torch.testing.assert_close(found.hidden[:, :read], expected.hidden, **CLOSE)
    same(found.state, expected.state)


@torch.inference_mode()
def test_a_picture_and_words_are_read_as_one_by_one(model, reader):
    plain = Reader(model)
    for picture in PICTURES:
        patches = plain.see(picture)
        torch.testing.assert_close(reader.see(picture), patches, **CLOSE)
        for kind in model.config.connector.kinds:
            features = plain.connect(patches, kind)
            torch.testing.assert_close(reader.connect(patches, kind), features, **CLOSE)
        state = plain.begin(features)
        same(reader.begin(features), state)
        for n in (1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 30):
            found, expected = (each.go_on(words(n, seed=n), state) for each in (reader, plain))
            torch.testing.assert_close(found.logits, expected.logits, atol=1e-3, rtol=1e-3)
            same(found.state, expected.state)


@torch.inference_mode()
def test_what_was_read_stays_as_it_was(model, reader):
    """Whatever is read later, and by several at once."""
    plain, kind = Reader(model), model.config.connector.kinds[0]

    def read(by: Reader, user: int):
        state = by.begin(by.connect(by.see(PICTURES[user % 3]), kind))
        return state, by.go_on(words(9 + user, user), state)

    with ThreadPoolExecutor(4) as users:
        found = list(users.map(lambda user: torch.inference_mode()(read)(reader, user), range(8)))
    for user, (state, output) in enumerate(found):
        expected_state, expected = read(plain, user)
        same(state, expected_state)
        same(output.state, expected.state)
        torch.testing.assert_close(output.logits, expected.logits, **CLOSE)


def test_a_served_model_reads_so_where_there_are_graphs(model, monkeypatch):
    questions = "Is there a dog?", "What can you see?", " ".join(["Is there a cat, or a dog, or a bird?"] * 12)

    def talk() -> list[str]:
        said = []
        for kind in model.config.connector.kinds:
            conversation = model.start("examples/meadow.jpg", kind)
            said += ["".join(conversation.ask(question)) for question in questions]
            assert conversation.timings.prefill_tokens > BLOCK  # the last question alone is more than a block
            conversation.undo()
            said.append("".join(conversation.ask("What is this?")))
        return said

    alone = talk()
    assert type(model.serve(2).reader) is Reader
    monkeypatch.setattr(backend.Backend, "graphs", True)
    monkeypatch.setattr(backend, "repeated", as_graph.repeated)
    try:
        model.stop_serving()
        assert type(model.serve(2).reader) is FixedReader and talk() == alone
    finally:
        model.stop_serving()
    assert type(model.reader) is Reader and talk() == alone
