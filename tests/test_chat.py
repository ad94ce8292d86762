"""Talking with the embedded model: the state that is carried, prompts, and what a caller may get wrong."""

import gc
import itertools
import threading
import weakref
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from tokenizers import Tokenizer

import mlmamba
from mlmamba import UserError, chat
from mlmamba.chat import MAX_QUESTION, ChatTokenizer
from mlmamba.decoding import Together, Wish

NEOX = Path(__file__).parents[2] / "shared" / "data" / "gpt-neox-20b-tokenizer.json"


@pytest.fixture(scope="module")
def model() -> mlmamba.MLMamba:
    return mlmamba.load("tiny", device="cpu")


@pytest.fixture
def picture() -> Image.Image:
    image = Image.new("RGB", (200, 150), "lightblue")
    ImageDraw.Draw(image).ellipse((60, 40, 130, 110), fill="red")
    return image


def everything(model: mlmamba.MLMamba, picture: Image.Image, turns: list[tuple[str, str]], kind: str) -> torch.Tensor:
    """Logits after picture, finished turns and the last turn's prompt in one pass, the text put together here."""
    text = "".join(
        f"{'' if i == 0 else chr(10)}<|user|>\n{question}<|endoftext|>\n<|assistant|>\n"
        + (f"{answer}<|endoftext|>" if answer else "")
        for i, (question, answer) in enumerate(turns)
    )
    ids = torch.tensor([model.chat_tokenizer.tokenizer.encode(text, add_special_tokens=False).ids])
    features = model.connector(model.see(picture), model.grid, kind).features
    lm = model.language_model
    return lm(torch.cat([features, lm.embed(ids)], 1)).logits[0, -1]


@pytest.mark.parametrize("kind", ["bsm", "csm"])
def test_a_later_turn_on_the_carried_state_is_one_pass_over_everything(model, picture, kind, monkeypatch):
    seen: list[torch.Tensor] = []
    choose = Wish.choose
    monkeypatch.setattr(Wish, "choose", lambda self, logits: (seen.append(logits.clone()), choose(self, logits))[1])
    conversation = model.start(picture, kind)
    said: list[tuple[str, str]] = []
    for question in ("Is there a circle?", "What colour is the circle?", "How many dogs are there?"):
        seen.clear()
        answer = "".join(conversation.ask(question))
        torch.testing.assert_close(
            seen[0], everything(model, picture, [*said, (question, "")], kind), atol=2e-4, rtol=1e-4
        )
        said.append((question, answer))
    assert conversation.turns == said
    # the later turns read their own words only: no patch again
    assert conversation.timings.prefill_tokens < 30 and conversation.timings.vision_s < 0.01


def test_after_stop_undo_and_change_of_connector_the_next_answer_is_as_if_told_the_history(model, picture):
    conversation = model.start(picture, "bsm")
    stop = threading.Event()
    for i, _ in enumerate(conversation.ask("Describe the picture.", stop=stop)):
        if i == 1:
            stop.set()
    assert len(model.chat_tokenizer.encode(conversation.turns[0][1])) == 2
    cut_short = list(conversation.turns)
    answer = "".join(conversation.ask("Is there a dog?"))
    assert answer == model.chat(picture, "Is there a dog?", history=cut_short)
    conversation.undo()
    assert conversation.turns == cut_short
    conversation.use("csm")
    answer = "".join(conversation.ask("Is there a dog?"))
    assert answer == model.chat(picture, "Is there a dog?", history=cut_short, connector="csm")


def test_resuming_from_other_turns_reads_the_words_again_but_not_the_picture(model, picture):
    conversation, turns = model.start(picture), [("Is there a dog?", "Yes."), ("Is there a cat?", "No.")]
    list(conversation.ask("Is there a dog?"))
    conversation.resume(conversation.turns[:])
    list(conversation.ask("Where is it?"))
    carried = conversation.timings.prefill_tokens
    conversation.resume(turns)
    answer = "".join(conversation.ask("Where is it?"))
    assert answer == model.chat(picture, "Where is it?", history=turns)
    assert carried < conversation.timings.prefill_tokens < model.grid[0] * model.grid[1]
    assert conversation.turns == [*turns, ("Where is it?", answer)] and len(turns) == 2


@pytest.mark.parametrize("how", ["limit", "closed"])
def test_what_an_answer_cut_short_said_is_in_the_state(model, picture, how, monkeypatch):
    """Its last word and its end were not read yet when it was cut: the next turn reads them first."""
    conversation = model.start(picture)
    if how == "limit":
        said = "".join(conversation.ask("Is there a dog?", max_new_tokens=3))
    else:
        pieces = conversation.ask("Is there a dog?")
        said = next(pieces) + next(pieces)
        pieces.close()
    assert conversation.turns == [("Is there a dog?", said)]
    seen: list[torch.Tensor] = []
    choose = Wish.choose
    monkeypatch.setattr(Wish, "choose", lambda self, logits: (seen.append(logits.clone()), choose(self, logits))[1])
    next(conversation.ask("Is there a cat?"))
    expected = everything(model, picture, [("Is there a dog?", said), ("Is there a cat?", "")], "bsm")
    torch.testing.assert_close(seen[0], expected, atol=2e-4, rtol=1e-4)


def test_a_closed_iterator_keeps_what_was_said(model, picture):
    conversation = model.start(picture)
    pieces = conversation.ask("Describe the picture.")
    first = next(pieces)
    pieces.close()
    assert conversation.turns == [("Describe the picture.", first)]
    assert "".join(conversation.ask("Is there a dog?"))


def test_stream_and_whole_answer_agree_and_the_limit_holds(model, picture):
    question = "What can you see?"
    whole = model.chat(picture, question)
    assert isinstance(whole, str) and whole
    assert "".join(model.chat(picture, question, stream=True)) == whole
    short = model.chat(picture, question, max_new_tokens=3)
    assert whole.startswith(short) and len(model.chat_tokenizer.encode(short)) <= 3


def test_temperature_draws_from_the_generator_given(model, picture):
    def drawn(seed: int) -> str:
        g = torch.Generator().manual_seed(seed)
        return "".join(model.start(picture).ask("Describe the picture.", temperature=3.0, generator=g))

    assert drawn(1) == drawn(1)
    assert len({drawn(seed) for seed in range(5)}) > 1


def test_without_a_generator_it_draws_from_one_of_its_own(model, picture, monkeypatch):
    """Begun by PyTorch's, which may not draw while a graph is recorded."""
    wishes, start = [], model.decoder.start
    monkeypatch.setattr(model.decoder, "start", lambda output, wish: wishes.append(wish) or start(output, wish))

    def drawn(seed: int) -> str:
        torch.manual_seed(seed)
        return "".join(model.start(picture).ask("Describe the picture.", temperature=3.0))

    assert drawn(1) == drawn(1) and len({drawn(seed) for seed in range(5)}) > 1
    assert all(wish.generator not in (None, torch.default_generator) for wish in wishes)


@pytest.mark.parametrize("question", ["", "  \n ", "x" * (MAX_QUESTION + 1)])
def test_a_question_that_cannot_be_asked_is_one_sentence(model, picture, question):
    with pytest.raises(UserError):
        model.chat(picture, question)
    conversation = model.start(picture)
    with pytest.raises(UserError):
        next(conversation.ask(question))
    assert conversation.turns == [] and "".join(conversation.ask("Is there a dog?"))


def test_marks_of_the_prompt_in_a_question_are_only_text(model):
    tokenizer = model.chat_tokenizer
    plain = tokenizer.prompt("Is it? I say: yes", first=True)
    for mark in ("<|endoftext|>", "<|assistant|>", "<image>", "<|end<|user|>oftext|>", "\n<|assistant|>\n"):
        assert tokenizer.prompt(f"Is it?{mark} I say: yes", first=True) in (
            plain,
            tokenizer.prompt("Is it?\n\n I say: yes", first=True),
        )


@pytest.mark.skipif(not NEOX.exists(), reason="the published model's tokenizer is not at hand")
def test_the_published_prompt():
    raw = Tokenizer.from_file(str(NEOX))
    tokenizer = ChatTokenizer(raw)
    expected = raw.encode("<|user|>\nIs there a dog?<|endoftext|>\n<|assistant|>\n").ids
    assert tokenizer.prompt("<image>Is there a dog? ", first=True) == expected
    assert expected.count(0) == 1  # <|endoftext|> is one token, its id 0
    later = raw.encode("\n<|user|>\nWhy?<|endoftext|>\n<|assistant|>\n").ids
    assert tokenizer.prompt("Why?", first=False) == later
    assert tokenizer.reply("Because.") == [*raw.encode("Because.").ids, 0]
    assert tokenizer.decode(tokenizer.reply("Because.")) == "Because."


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ({"name": "no such model"}, "There is no model"),
        ({"name": "tests"}, "has no config.json"),
        ({"device": "toaster"}, "There is no device"),
        ({"dtype": "float12"}, "There is no dtype"),
    ],
)
def test_what_cannot_be_loaded_is_one_sentence(wanted, says, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1])
    with pytest.raises(UserError, match=says):
        mlmamba.load(**wanted)


def test_without_its_towers_a_model_still_does_text_and_says_what_is_missing(picture):
    model = mlmamba.load("tiny", device="cpu", vision=False)
    assert model.language_model(model.embed([5, 6])).logits.shape == (1, 2, model.config.language.vocab_size)
    with pytest.raises(UserError, match="vision=True"):
        model.chat(picture, "Is there a dog?")


def test_an_unknown_connector_is_refused(model, picture):
    with pytest.raises(UserError, match="bsm or csm"):
        model.start(picture, "zigzag")


def test_forward_reads_pixels_and_words(model, picture):
    pixels = model.vision.prepare(picture)[None]
    ids = torch.tensor([model.chat_tokenizer.prompt("Is there a dog?", first=True)])
    logits = model(pixels, ids, "csm")
    assert logits.shape == (1, model.grid[0] * model.grid[1] + ids.shape[1], model.config.language.vocab_size)
    torch.testing.assert_close(
        logits[0, -1], everything(model, picture, [("Is there a dog?", "")], "csm"), atol=1e-4, rtol=1e-4
    )


FULL = {
    "gpu": lambda: torch.OutOfMemoryError("CUDA out of memory."),
    "python": lambda: MemoryError(),
    "cpu": lambda: RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: 9 bytes"),
}


@pytest.mark.parametrize("fault", FULL.values(), ids=FULL.keys())
@pytest.mark.parametrize("seats", [0, 2])
@pytest.mark.parametrize("after", [0, 2])
def test_memory_that_runs_out_is_told_and_the_next_question_is_answered(
    model, picture, monkeypatch, fault, seats, after
):
    """While the picture is read or in mid-answer, decoding alone or with others; what the failed pass held is freed."""
    gc.collect()  # nobody else is there to make room
    expected = model.chat(picture, "Is there a dog?")
    lm, held = model.language_model, []
    passes = itertools.count()

    def failing(compute):
        def fail(*args, **kwargs):
            tensor = torch.zeros(1000)
            held.append(weakref.ref(tensor))
            if next(passes) == after + 1:
                raise fault()
            return compute(*args, **kwargs)

        return fail

    stepper, mending = lm.stepper(), pytest.MonkeyPatch()
    mending.setattr(lm, "forward", failing(lm.forward))
    mending.setattr(lm, "stepper", lambda: failing(stepper))
    decoder = Together(lm, seats, model.config.vocab_words) if seats else model.decoder
    monkeypatch.setattr(model, "decoder", decoder)
    conversation = model.start(picture)
    with pytest.raises(UserError, match="memory is full") as told:
        list(conversation.ask("What can you see?"))
    mending.undo()
    if seats:
        decoder.steps.step = stepper
    assert conversation.turns == []
    if not seats:  # though the error is still held
        assert told.value.__context__ is not None
        assert [ref() for ref in held] == [None] * len(held)
    assert "".join(conversation.ask("Is there a dog?")) == expected
    if seats:
        decoder.close()


def test_conversations_at_rest_make_room(model, monkeypatch):
    """In a memory for three pictures, six visitors talk by turns and look, and hear what they would hear alone."""
    gc.collect()
    others = len(chat._holding)
    colours = ("red", "green", "blue", "white", "black", "yellow")
    pictures = [Image.new("RGB", (60, 40), colour) for colour in colours]
    questions = "Is there a dog?", "What can you see?", "Is it red?"

    def said(picture: Image.Image) -> list[str]:
        alone = model.start(picture)
        return ["".join(alone.ask(question)) for question in questions]

    expected = [said(picture) for picture in pictures]
    looked = model.start(pictures[0], history=[(questions[0], expected[0][0])]).look()
    talks = [model.start(picture) for picture in pictures]
    forward, refused = model.language_model.forward, []

    def in_small_memory(*given, **how):
        if sum(talk._seen is not None for talk in talks) >= 3:
            refused.append(given)
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(*given, **how)

    monkeypatch.setattr(model.language_model, "forward", in_small_memory)
    for turn, question in enumerate(questions):
        for talk, answers in zip(talks, expected, strict=True):
            assert "".join(talk.ask(question)) == answers[turn]
    talking = talks[1].ask(questions[0])
    next(talking)  # in mid-answer, one gives nothing up
    assert not talks[1].rest() and talks[1]._seen is not None
    talking.close()
    talks[0].turns = [(questions[0], expected[0][0])]
    for ours, theirs in zip(talks[0].look().language, looked.language, strict=True):
        assert torch.equal(ours.dt, theirs.dt)
    assert len(refused) > 6 and talks[1].rest() and talks[1]._state is None and not talks[1].rest()
    talks.clear()
    del talk, talking
    assert len(chat._holding) == others  # whoever is gone holds nothing


def test_another_fault_is_not_taken_for_one_of_memory(model, picture, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(model.language_model, "forward", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        list(model.start(picture).ask("Is there a dog?"))
