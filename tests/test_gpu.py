"""What a GPU says is what the CPU says; without one the same tests are done on a device that isn't there (`as_cuda`).

`pytest -m gpu` on a GPU runs these and all others that say something about one.
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import BOT, ask, serve

import mlmamba
from mlmamba import UserError, backend
from mlmamba.__main__ import main
from mlmamba.config import MLMambaConfig
from mlmamba.decoding import Wish
from mlmamba.model import MLMamba
from mlmamba.weights import load_into
from visualize.trace import record

ROOT = Path(__file__).parents[1]
PUBLISHED = Path(__file__).parent / "data" / "published-tiny"
NO_GPU = not torch.cuda.is_available()
MEADOW = ROOT / "examples" / "meadow.jpg"
TALKS = {
    MEADOW: ("Is there a dog?", "What can you see?", "How many cats are there?"),
    ROOT / "examples" / "street.jpg": ("How many cars are there?", "Is there a bus?"),
}


def on_gpu(test):
    return pytest.mark.gpu(pytest.mark.skipif(NO_GPU, reason="needs a CUDA device")(test))


@pytest.fixture(scope="module")
def here() -> MLMamba:
    return mlmamba.load("tiny", device="cpu")


@pytest.fixture(scope="module")
def there() -> MLMamba:
    return mlmamba.load("tiny", device="cuda", dtype="float32")


@pytest.fixture(scope="module")
def seated() -> Iterator[MLMamba]:
    """With three seats: all that it does is recorded."""
    model = mlmamba.load("tiny", device="cuda", dtype="float32").serve(3)
    yield model
    model.stop_serving()


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    with np.load(PUBLISHED / "golden.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("converted")
    assert main(["convert", str(PUBLISHED / "latest-checkpoint.pt"), str(out)]) == 0
    return out


def published(folder: Path, dtype: str) -> MLMamba:
    model = MLMamba(MLMambaConfig.load(folder / "config.json"))
    load_into(model, folder / "model.safetensors")
    return model.run_on(backend.choose("cuda", dtype))


@on_gpu
@torch.inference_mode()
def test_every_stage_is_the_authors(converted, golden):
    model = published(converted, "float32")
    lm, on = model.language_model, {name: tensor.to("cuda") for name, tensor in golden.items()}

    def close(ours: torch.Tensor, name: str) -> None:
        torch.testing.assert_close(ours.cpu(), golden[name], atol=1e-4, rtol=0, msg=lambda m: f"{name}: {m}")

    close(model.connector.mlp(on["features"]), "mlp")
    features = model.connector(on["features"], grid=(3, 4)).features
    close(lm(torch.cat([features, lm.embed(on["ids"])], 1)).logits, "logits")
    first = lm(on["projected"])
    step, state, logits = lm.stepper(), lm.repeat(first.state, 1), [first.logits]
    for token in on["ids"].T:
        logits.append(step(token[:, None], state))
    close(torch.cat(logits, 1), "logits")


@on_gpu
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@torch.inference_mode()
def test_halves_say_what_float32_says_but_where_two_words_are_as_likely(converted, golden, dtype):
    """In the parallel pass and step by step, at each place of the golden case."""
    lm, like = published(converted, dtype).language_model, getattr(torch, dtype)
    projected, ids = golden["projected"].to("cuda", like), golden["ids"].to("cuda")
    first = lm(projected)
    step, state, logits = lm.stepper(), lm.repeat(first.state, 1), [first.logits]
    for token in ids.T:
        logits.append(step(token[:, None], state))
    exact = golden["logits"]
    for found in (lm(torch.cat([projected, lm.embed(ids)], 1)).logits, torch.cat(logits, 1)):
        said = found.argmax(-1).cpu()
        margin = exact.max(-1).values - exact.gather(-1, said[..., None])[..., 0]
        # what rounding takes away of the largest logit, in each of a few layers
        assert (margin <= 4 * exact.abs().amax(-1) * torch.finfo(like).eps).all()
        assert (said == exact.argmax(-1)).float().mean() > 0.8


def talks(model: MLMamba, kind: str) -> list[str]:
    said = []
    for picture, questions in TALKS.items():
        conversation = model.start(picture, kind)
        said += ["".join(conversation.ask(question)) for question in questions]
    return said


@on_gpu
@pytest.mark.parametrize("kind", ["bsm", "csm"])
def test_answers_are_those_of_a_cpu(here, there, seated, kind):
    """Alone, kernel by kernel, and in a seat, by the graph."""
    reader = seated.reader
    parts = [reader._see, *reader._connect.values(), reader._begin, reader._go_on]
    assert all(map(backend.recorded, (seated.decoder.steps.advance, *(part.run for part in parts))))
    expected = talks(here, kind)
    assert talks(there, kind) == expected and talks(seated, kind) == expected


@on_gpu
def test_a_graph_draws_from_each_ones_own_generator(there, seated):
    with torch.inference_mode():
        output = there.language_model(there.embed([5, 6, 7]), last_only=True)

    def drawn(model: MLMamba, seed: int) -> list[int]:
        draw = torch.Generator("cuda").manual_seed(seed)
        return list(model.decoder.start(output, Wish(12, -1, there.config.vocab_words, 2.0, draw)))

    alone = [drawn(there, seed) for seed in range(4)]
    assert len(set(map(tuple, alone))) > 1
    assert [drawn(seated, seed) for seed in range(4)] == alone


@on_gpu
def test_the_scan_is_seen_as_on_a_cpu(here, there):
    traces = []
    for model in (here, there):
        conversation = model.start(MEADOW, "csm")
        "".join(conversation.ask("Is there a dog?"))
        traces.append(record(conversation))
    one, other = traces
    assert one.answer.text == other.answer.text
    close = {"atol": 1e-3, "rtol": 1e-3}
    np.testing.assert_allclose(other.maps, one.maps, **close)
    for theirs, ours in zip(other.keys, one.keys, strict=True):
        np.testing.assert_allclose(theirs.reach(3, 100), ours.reach(3, 100), **close)
    for theirs, ours in zip(other.answer.words, one.answer.words, strict=True):
        np.testing.assert_allclose(theirs.maps, ours.maps, **close)


@on_gpu
def test_memory_that_runs_out_leaves_room_for_the_next(there, monkeypatch):
    expected = there.chat(MEADOW, "Is there a dog?")
    forward, held = type(there.language_model).forward, []

    def greedy(self, *args, **how):
        while True:
            held.append(torch.empty(1 << 32, dtype=torch.uint8, device="cuda"))
        return forward(self, *args, **how)

    with monkeypatch.context() as greedily:
        greedily.setattr(type(there.language_model), "forward", greedy)
        with pytest.raises(UserError, match="memory is full"):
            there.chat(MEADOW, "Is there a dog?")
    held.clear()
    torch.cuda.empty_cache()  # other processes will want it
    assert there.chat(MEADOW, "Is there a dog?") == expected


@pytest.mark.skipif(not NO_GPU, reason="there is a GPU")
def test_on_a_device_that_is_not_there():
    """All of this but kernels, which can't be launched, and full memory."""
    without = [f"--ignore=tests/test_{name}_kernels.py" for name in ("cuda", "triton")]
    without += ["--deselect", "tests/test_gpu.py::test_memory_that_runs_out_leaves_room_for_the_next"]
    command = [sys.executable, "-m", "tests.as_cuda", "-m", "gpu", "-p", "no:cacheprovider", *without]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0 and "passed" in done.stdout, done.stdout


APPEARS = """
from tests import as_cuda
as_cuda.appear()
as_cuda.Device().__enter__()
from mlmamba import backend
choose = backend.choose  # convolutions in bfloat16 would take a CPU many times as long
backend.choose = lambda device="auto", dtype="auto": choose(device, "float32")
"""


@pytest.fixture(scope="module")
def url(tmp_path_factory) -> Iterator[str]:
    with serve("tiny", tmp_path_factory.mktemp("page") / "log", APPEARS, "--device", "cuda") as address:
        yield address


@pytest.mark.skipif(not NO_GPU, reason="there is a GPU")
def test_the_page_answers_and_races_graph_against_graph(url, visit):
    """The whole page, on a device that is not there."""
    page = visit(url)
    shown = page.locator("#picture img")
    while not shown.count():  # the model may still be loading there, which takes long, and the page says so
        page.click("#examples button >> nth=0")
        page.wait_for_selector("#picture img, .notice.problem")
    ask(page, "Is there a dog?")
    assert "Yes" in page.locator(BOT).last.inner_text()
    page.wait_for_function("() => document.body.innerText.includes('cuda · float32')")
    page.click('[role=tab]:has-text("Race")')
    page.locator('.race-view [data-at="launches"] label').filter(has_text="graph").click()
    page.get_by_text("Race now").click()
    page.wait_for_function("() => document.body.innerText.includes('Raced here, live')")
    assert "CUDA graphs" in page.locator(".race-view").inner_text()
