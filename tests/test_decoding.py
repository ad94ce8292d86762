"""Several answers decoded as one batch are what each would be alone, to the bit whoever else is there."""

import copy
import dataclasses
import random
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from PIL import Image

import mlmamba
from mlmamba import backend
from mlmamba.config import ConnectorConfig, LanguageConfig, MLMambaConfig, VisionConfig
from mlmamba.decoding import Alone, Seat, Together, Wish
from mlmamba.mamba2 import LanguageModel
from mlmamba.model import MLMamba
from mlmamba.vision import Vision
from tests import as_graph

ROOT = Path(__file__).parents[1]
END = -1  # no token: answers here end by their length, or by whoever stops them
QUESTIONS = ("Is there a dog?", "What can you see?", "How many cats are there?", "What is this?", "Where is it?")


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    torch.manual_seed(0)
    model = LanguageModel(LanguageConfig(64, 2, 97, 16, 32)).eval().requires_grad_(False)
    for layer in model.layers:  # answers that depend on what was read, and don't repeat themselves
        layer.out_proj.weight *= 30
    return model


def prompts(lm: LanguageModel, n: int) -> list:
    """Outputs after n different prompts of different lengths."""
    draw = torch.Generator().manual_seed(1)
    with torch.inference_mode():
        ids = [torch.randint(1, 97, (1, 5 + i), generator=draw).to(lm.embedding.weight.device) for i in range(n)]
        return [lm(lm.embed(some), last_only=True) for some in ids]


def wish(length: int, **options) -> Wish:
    return Wish(length, END, 97, **options)


@pytest.fixture(params=["one by one", "recorded"])
def together(lm, request, monkeypatch):
    if request.param == "recorded":
        monkeypatch.setattr(backend, "repeated", as_graph.repeated)
    decoder = Together(lm, seats=3, words=97)
    yield decoder
    decoder.close()
    assert not decoder.thread.is_alive()


def test_what_all_say_is_what_each_says_alone(lm, together):
    outputs, lengths = prompts(lm, 8), [3, 40, 17, 1, 29, 8, 33, 2]  # more users than seats
    expected, states = [], []
    for output, length in zip(outputs, lengths, strict=True):
        alone = Alone(lm).start(output, wish(length))
        expected.append(list(alone))
        states.append(alone.state)

    def answer(i: int):
        decoding = together.start(outputs[i], wish(lengths[i]))
        return list(decoding), decoding.state

    with ThreadPoolExecutor(8) as users:
        found = list(users.map(answer, range(8)))
    assert [tokens for tokens, _ in found] == expected
    assert len(set(expected[1])) > 5  # no answer that any state would give
    for (_, state), alone in zip(found, states, strict=True):
        for one, other in zip(state, alone, strict=True):
            torch.testing.assert_close(one.ssm, other.ssm, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(one.conv, other.conv, atol=1e-4, rtol=1e-4)


def test_nobody_else_changes_a_bit(lm, together, monkeypatch):
    """The logits of one user, to the bit: alone in the batch, and among others who come and go."""
    mine = wish(30)
    seen: list[torch.Tensor] = []
    say = Seat.say

    def listened(seat, token):
        if seat.wish is mine:
            sits = seat in together.seats  # the first token comes from the prompt's own reading
            logits = together.steps.logits[together.seats.index(seat)] if sits else seat.output.logits[0, -1]
            assert token == logits.argmax()
            seen.append(logits.clone())
        say(seat, token)

    monkeypatch.setattr(Seat, "say", listened)
    first, *others = prompts(lm, 6)
    list(together.start(first, mine))
    quiet = [*seen]
    seen.clear()
    with ThreadPoolExecutor(6) as users:
        crowd = [users.submit(lambda o=o, i=i: list(together.start(o, wish(4 + 3 * i)))) for i, o in enumerate(others)]
        list(together.start(first, mine))
    assert all(len(user.result()) >= 1 for user in crowd) and len(quiet) == len(seen) == 30
    assert all(torch.equal(one, other) for one, other in zip(quiet, seen, strict=True))


def test_whoever_stops_leaves_at_once_and_the_next_sits_down(lm, together):
    outputs = prompts(lm, 5)
    endless = [together.start(output, wish(10**9)) for output in outputs[:3]]
    stop = threading.Event()
    waited = threading.Thread(target=lambda: got.append(list(together.start(outputs[3], wish(9, stop=stop)))))
    got: list = []
    waited.start()
    heard = [next(iter(decoding)) for decoding in endless]
    assert len(heard) == 3 and not got  # all seats are taken
    late = endless[1].end()
    taken = [heard[1], *late]
    alone = Alone(lm).start(outputs[1], wish(len(taken)))
    assert list(alone) == taken  # nothing was lost: what was said before it ended is told
    torch.testing.assert_close(endless[1].state[0].ssm, alone.state[0].ssm, atol=1e-4, rtol=1e-4)
    waited.join(10)
    assert got == [list(Alone(lm).start(outputs[3], wish(9)))]
    impatient = threading.Event()
    full = together.start(outputs[4], wish(10**9))
    impatient.set()
    nothing = together.start(outputs[3], wish(9, stop=impatient))
    assert list(nothing) == [] and nothing.state is outputs[3].state
    for decoding in (endless[0], endless[2], full):
        decoding.end()


def test_a_fault_ends_those_who_are_there_and_the_next_is_served(lm, together, monkeypatch):
    outputs = prompts(lm, 2)
    advance = together.steps.advance
    broken = threading.Event()

    def fails():
        if broken.is_set():
            raise RuntimeError("out of memory")
        advance()

    monkeypatch.setattr(together.steps, "advance", fails)
    decoding = together.start(outputs[0], wish(10**9))
    assert isinstance(next(iter(decoding)), int)
    broken.set()
    with pytest.raises(RuntimeError, match="out of memory"):
        list(decoding)
    broken.clear()
    assert list(together.start(outputs[1], wish(7))) == list(Alone(lm).start(outputs[1], wish(7)))


def test_temperature_draws_from_each_ones_own_generator(lm, together):
    def drawn(seed: int) -> list[int]:
        draw = torch.Generator().manual_seed(seed)
        return list(together.start(prompts(lm, 1)[0], wish(12, temperature=2.0, generator=draw)))

    assert drawn(1) == drawn(1) and len({tuple(drawn(seed)) for seed in range(4)}) > 1
    alone = wish(12, temperature=2.0, generator=torch.Generator().manual_seed(1))
    assert list(Alone(lm).start(prompts(lm, 1)[0], alone)) == drawn(1)


def test_words_are_drawn_as_often_as_their_probability_says():
    logits = torch.tensor([0.1, 2.0, -1.0, 1.3])
    drawing = Wish(1, END, 4, temperature=0.7, generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(torch.tensor([drawing.choose(logits) for _ in range(20_000)]), minlength=4)
    torch.testing.assert_close(counts / 20_000, torch.softmax(logits / 0.7, 0), atol=0.015, rtol=0)


def test_an_answer_leaves_the_state_that_it_began_at(lm):
    output = prompts(lm, 1)[0]
    before = [(layer.conv.clone(), layer.ssm.clone()) for layer in output.state]
    first = Alone(lm).start(output, wish(9))
    said = list(first)
    for (conv, ssm), layer, after in zip(before, output.state, first.state, strict=True):
        assert torch.equal(conv, layer.conv) and torch.equal(ssm, layer.ssm) and not torch.equal(ssm, after.ssm)
    assert list(Alone(lm).start(output, wish(9))) == said


@pytest.mark.skipif(torch.cuda.is_available(), reason="a graph can be recorded here")
def test_where_no_graph_can_be_recorded_steps_are_done_one_by_one(caplog, monkeypatch):
    def step() -> None: ...

    assert backend.repeated(step, torch.device("cpu")) is step and not caplog.text
    assert backend.repeated(step, torch.device("cuda")) is step and "No CUDA graph" in caplog.text

    def too_large() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: too_large())
    with pytest.raises(torch.OutOfMemoryError):
        backend.repeated(step, torch.device("cuda"))


def test_what_a_graph_would_lose_shows():
    """The stand-in for a graph: what lies in a tensor is read anew, a number of Python's is not, asking is refused."""
    place, results, count = torch.zeros(2), torch.zeros(2), 0

    def step() -> None:
        nonlocal count
        count += 1
        place[0] += 1
        results.copy_(place[:1] * 2 + torch.stack([place[0], place[0].new_full((), count)]))

    replay = as_graph.repeated(step, torch.device("cpu"))
    place[0] = 10
    replay(), replay()
    assert place[0] == 12 and results.tolist() == [36, 24 + 4]  # one by one it would be 24 + 6
    for asks in (
        lambda: place[0].item(),
        lambda: place[place > 0],
        lambda: torch.tensor([1.0]),
        lambda: bool(place[0]),
    ):
        with pytest.raises(RuntimeError, match="can't be recorded"), as_graph.Recording():
            asks()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_graph_says_what_steps_one_by_one_say(lm):
    on_gpu = copy.deepcopy(lm).to("cuda")
    outputs = prompts(on_gpu, 3)
    together = Together(on_gpu, seats=3, words=97)
    try:
        answers = [together.start(output, wish(20)) for output in outputs]
        found = [list(answer) for answer in answers]
    finally:
        together.close()
    assert found == [list(Alone(on_gpu).start(output, wish(20))) for output in outputs]


@pytest.fixture(scope="module")
def model() -> MLMamba:
    from tokenizers import Tokenizer

    torch.manual_seed(5)
    config = MLMambaConfig(
        "small", ConnectorConfig(1450, 64, n_layers=1, d_state=8, head_dim=32, d_projector=32),
        LanguageConfig(64, 2, 4096, 16, 32), VisionConfig(("efficientnet-lite0",), 64), 4096,
    )  # fmt: skip
    tokenizer = Tokenizer.from_file(str(mlmamba.hub.CHECKPOINTS / "tiny" / "tokenizer.json"))
    return MLMamba(config, tokenizer, Vision(config.vision)).run_on(mlmamba.backend.choose("cpu"))


def test_conversations_at_once_are_as_each_alone(model):
    """Three turns each, on carried states, with an undo, a stop and a listener who leaves."""

    def talk(user: int) -> list[tuple[str, str]]:
        picture = Image.new("RGB", (50, 50), (40 * user, 90, 200 - 30 * user))
        conversation, draw = model.start(picture), random.Random(user)
        for question in draw.sample(QUESTIONS, 3):
            "".join(conversation.ask(question, max_new_tokens=draw.randint(3, 12)))
        conversation.undo()
        "".join(conversation.ask(QUESTIONS[user % 5], max_new_tokens=6))
        return conversation.turns

    alone = [talk(user) for user in range(6)]
    model.serve(3)
    try:
        with ThreadPoolExecutor(6) as users:
            assert list(users.map(talk, range(6))) == alone
        conversation = model.start(Image.new("RGB", (50, 50), "red"))
        pieces = conversation.ask("What can you see?", max_new_tokens=500)
        first = next(pieces)
        pieces.close()
        (question, answer), state = conversation.turns[0], conversation._state
        assert answer.startswith(first) and question == "What can you see?" and state is not None
        told = model.start(Image.new("RGB", (50, 50), "red"), history=conversation.turns)
        after = "".join(conversation.ask("Is there a dog?", max_new_tokens=5))
        assert after == "".join(told.ask("Is there a dog?", max_new_tokens=5))
    finally:
        model.stop_serving()


def test_warming_up_does_whatever_an_answer_does(monkeypatch):
    """Reads with each connector, from nothing and from a state, and steps: all kernels that there are to tune."""
    model = mlmamba.load("tiny", device="cpu")
    lm, forward, done = model.language_model, LanguageModel.forward, []
    step = lm.stepper()

    def noted(embeds, state=None, **how):
        done.append("goes on" if state else "reads")
        return forward(lm, embeds, state, **how)

    def stepped(*given):
        done.append("steps")
        return step(*given)

    scanned, scan = [], type(model.connector).forward

    def seen(patches, grid, kind):
        scanned.append(kind)
        return scan(model.connector, patches, grid, kind)

    monkeypatch.setattr(lm, "forward", noted)
    monkeypatch.setattr(lm, "stepper", lambda: stepped)
    monkeypatch.setattr(model.connector, "forward", seen)
    model.warm_up()
    assert scanned == ["bsm", "csm"] and set(done) == {"reads", "goes on", "steps"}
    on_gpu = dataclasses.replace(model.backend, device=torch.device("meta"))
    monkeypatch.setattr(model, "backend", on_gpu)
    monkeypatch.setattr(model, "warm_up", lambda: done.append("warm"))
    try:
        assert model.serve(1) is model and done[-1] == "warm"
    finally:
        model.stop_serving()


def test_a_process_that_served_ends_in_peace():
    code = "import mlmamba; print(mlmamba.load('tiny', device='cpu').serve(2).chat('examples/meadow.jpg', 'A dog?'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout.strip() and not done.stderr, done.stderr


def test_a_state_that_cannot_be_kept_is_given_up(lm, together, monkeypatch, caplog):
    """The answer is whole, and the next one too."""
    (output,) = prompts(lm, 1)

    def full(seat: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    expected = list(Alone(lm).start(output, wish(9)))
    with monkeypatch.context() as small:
        small.setattr(together.steps, "taken", full)
        decoding = together.start(output, wish(9))
        assert list(decoding) == expected and decoding.end() == [] and decoding.state is None
    assert "given up" in caplog.text
    again = together.start(output, wish(9))
    assert list(again) == expected and again.end() == [] and again.state is not None


def test_a_seat_that_cannot_be_cleared_keeps_nobody_waiting(lm, together, monkeypatch):
    outputs = prompts(lm, 2)

    def broken(*_) -> None:
        raise RuntimeError("an illegal memory access")

    with monkeypatch.context() as faulty:
        faulty.setattr(together.steps, "clear", broken)
        faulty.setattr(together.steps, "advance", broken)
        for _ in range(5):  # more than there are seats
            with pytest.raises(RuntimeError, match="illegal"):
                list(together.start(outputs[0], wish(9)))
    assert list(together.start(outputs[1], wish(9))) == list(Alone(lm).start(outputs[1], wish(9)))


def test_who_still_sits_there_is_told_of_the_end(lm):
    decoder = Together(lm, seats=2, words=97)
    decoding = iter(decoder.start(prompts(lm, 1)[0], wish(10**6)))
    next(decoding)
    decoder.close()
    with pytest.raises(RuntimeError, match="closed"):
        list(decoding)
    assert not decoder.thread.is_alive()
    with pytest.raises(RuntimeError, match="closed"):
        list(decoder.start(prompts(lm, 1)[0], wish(9)))


def test_a_model_that_cannot_be_made_ready_leaves_no_thread(model, monkeypatch):
    monkeypatch.setattr(model, "backend", dataclasses.replace(model.backend, device=torch.device("meta")))
    threads = []

    def full() -> None:
        threads.append(model.decoder.thread)
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(model, "warm_up", full)
    with pytest.raises(torch.OutOfMemoryError):
        model.serve(2)
    assert isinstance(model.decoder, Alone) and not threads[0].is_alive()


def test_nothing_of_a_visitor_stays_in_a_seat(lm, together):
    (output,) = prompts(lm, 1)
    assert len(list(together.start(output, wish(4)))) == 4
    together.close()  # so that its thread has done all
    steps = together.steps
    for layer in steps.state:
        assert not layer.conv[0].any() and not layer.ssm[0].any()
    assert not steps.tokens[0].any() and not steps.logits[0].any()
