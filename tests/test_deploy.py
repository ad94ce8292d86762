"""Two replicas on Ray Serve, here and now: who answers what, and what a visitor sees when one is killed.

Skipped where Ray is not: `pip install -r deploy/requirements.txt`, then `pytest tests/test_deploy.py`.
"""

import asyncio
import html
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import numpy as np
import psutil
import pytest
import torch
from conftest import ROOT, serve
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

import mlmamba
from mlmamba.decoding import Seat
from mlmamba.errors import UserError
from page import elsewhere
from page.chat import Chat
from page.race import Race
from page.sessions import Session, Speakers
from visualize import record

ray = pytest.importorskip("ray", reason="needs Ray: pip install -r deploy/requirements.txt")
from deploy.remote import TRIES, RemoteModel, start  # noqa: E402
from deploy.replica import Replica  # noqa: E402

MEADOW = ROOT / "examples" / "meadow.jpg"
QUESTIONS = ("Is there a dog?", "How many cats are there?", "What can you see?")
LONG = QUESTIONS[-1]
SEATS = 2


class Slow(Replica):
    """The real one, that can be told to think a while before each token."""

    def __init__(self, *args):
        super().__init__(*args)
        self.pace, self.tokens, say = 0.0, 0, Seat.say

        def slow(seat: Seat, token: int) -> None:
            self.tokens += 1
            time.sleep(self.pace)
            say(seat, token)

        Seat.say = slow

    def take(self, pace: float) -> int:
        """Take so many seconds for a token; returns the number of the process."""
        self.pace, self.tokens = pace, 0
        return os.getpid()

    def busy(self) -> bool:
        return bool(self.line.served)

    def said(self) -> int:
        """Tokens since it was told."""
        return self.tokens


@pytest.fixture(scope="module")
def replicas() -> Iterator[RemoteModel]:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # a replica can't import this file
    start()
    yield RemoteModel("tiny", "cpu", SEATS, 2, Slow)
    ray.shutdown()


@pytest.fixture
def model(replicas: RemoteModel) -> RemoteModel:
    """With two replicas, both fast."""
    until(lambda: len(told(replicas, "take", 0.0)) == 2, "a second replica")
    return replicas


@pytest.fixture(scope="module")
def local() -> mlmamba.MLMamba:
    return mlmamba.load("tiny", device="cpu")


def until(condition: Callable[[], object], what: str) -> None:
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError(f"in vain: {what}")


def told(model: RemoteModel, method: str, *args) -> list:
    """What the replicas say to it that are alive."""
    said = model.handle.broadcast(method, *args).results(return_exceptions=True)
    return [one for one in said if not isinstance(one, Exception)]


def slow(model: RemoteModel, conversation) -> int:
    """Slow the replica of a conversation down; returns its process."""
    return model.handle.options(session_id=conversation._id).take.remote(0.2).result()


def test_a_conversation_stays_with_its_replica(model, local):
    """Both replicas answer, each conversation is one's alone, and what was read is not read again."""
    wrote = set()
    for _ in range(8):
        here, there, who = local.start(MEADOW), model.start(MEADOW), set()
        for question in QUESTIONS:
            assert list(there.ask(question)) == list(here.ask(question))
            assert there.timings.prefill_tokens == here.timings.prefill_tokens
            who.add(there.by)
        for conversation in (here, there):
            conversation.undo()
        assert list(there.ask(LONG)) == list(here.ask(LONG))
        assert there.timings.prefill_tokens == here.timings.prefill_tokens  # the words again, not the picture
        assert there.turns == here.turns and len(who) == 1
        wrote |= who
    assert len(wrote) == 2


def visitor_of(chat: Chat, picture: Path = MEADOW) -> tuple[gr.Request, Session]:
    request: gr.Request = SimpleNamespace(session_hash=os.urandom(8).hex())
    chat.take(str(picture), request)
    return request, chat.session(request)


@pytest.fixture
def chat(model: RemoteModel) -> Chat:
    chat = Chat(Speakers("tiny", "cpu", SEATS, 2, lambda *_: model))
    with gr.Blocks(analytics_enabled=False):
        chat.lay_out()
    return chat


def answer(
    chat: Chat, request: gr.Request, question: str, between: Callable[[int], None] = lambda n: None
) -> list[str]:
    """The answer as the page shows it, one time after the other."""
    shown: list[str] = []

    async def listen() -> None:
        async for update in chat.answer(0.0, 64, request):
            if chat.talk in update:
                shown.append(html.unescape(update[chat.talk][-1]["content"]))
                between(len(shown))

    chat.begin(question, None, [], request)
    asyncio.run(listen())
    return shown


def test_a_visitor_does_not_notice_that_a_replica_is_killed_in_mid_answer(chat, model, local):
    request, session = visitor_of(chat)
    here, there = local.start(MEADOW), None
    for question in QUESTIONS[:-1]:
        assert answer(chat, request, question)[-1] == "".join(here.ask(question))
    there = session.conversation
    first, pid = there.by, slow(model, there)
    shown = answer(chat, request, LONG, lambda n: os.kill(pid, signal.SIGKILL) if n == 3 else None)
    assert shown[-1] == "".join(here.ask(LONG)) and there.turns == here.turns
    assert len(shown[2]) < len(shown[-1]) and all(b.startswith(a) for a, b in pairwise(shown))
    assert there.by != first
    assert there.timings.prefill_tokens > here.timings.prefill_tokens  # the history was read again

    # the next visitor is served at once, by who is left; then there are two again, and the conversation goes on
    assert answer(chat, visitor_of(chat)[0], LONG)[-1] == local.chat(MEADOW, LONG)
    until(lambda: len(told(model, "busy")) == 2, "a second replica")
    for question in QUESTIONS:
        assert answer(chat, request, question)[-1] == "".join(here.ask(question))


def test_what_is_sampled_goes_on_too(model):
    def sampled(conversation) -> Iterator[str]:
        return conversation.ask(LONG, temperature=1.5, generator=torch.Generator().manual_seed(8))

    undisturbed, conversation = list(sampled(model.start(MEADOW))), model.start(MEADOW)
    assert len(undisturbed) > 6 and undisturbed != list(conversation.ask(LONG))
    conversation.undo()
    pid, pieces = slow(model, conversation), sampled(conversation)
    begun = [next(pieces) for _ in range(3)]
    os.kill(pid, signal.SIGKILL)
    assert begun + list(pieces) == undisturbed


def test_stop_reaches_the_replica(chat, model, local):
    request, session = visitor_of(chat)
    slow(model, session.conversation)
    stopping = threading.Thread(target=chat.halt, args=[request])
    shown = answer(chat, request, LONG, lambda n: stopping.start() if n == 2 else None)
    until(lambda: not any(told(model, "busy")), "an end of the answer")
    stopping.join()
    assert sum(told(model, "said")) < len(list(local.chat(MEADOW, LONG, stream=True)))
    ((_, said),) = session.turns
    assert said.startswith(shown[-1]) and local.chat(MEADOW, LONG).startswith(said)
    assert answer(chat, request, QUESTIONS[0])[-1] == local.chat(MEADOW, QUESTIONS[0], history=session.turns[:1])


def test_other_ends(model, monkeypatch):
    """What a replica refuses is the page's sentence; so is a replay that differs, and a question that kills all."""
    conversation = model.start(MEADOW)
    wanted = conversation.ask(LONG)
    slow(model, conversation)
    stream, deaths = model.stream, []

    def dying(talk, wanted, stop):
        for number, step in enumerate(stream(talk, wanted, stop)):
            if number == 3 and len(deaths) < most:
                deaths.append(number)
                raise ray.exceptions.ActorDiedError()
            yield other if other and deaths else step

    monkeypatch.setattr(model, "stream", dying)
    most, other = TRIES, ""
    with pytest.raises(UserError, match=r"^3 replicas were lost[^.]*\.$"):
        list(wanted)
    deaths.clear()
    most, other = 1, "Zanzibar"
    with pytest.raises(UserError, match=r"^A replica was lost[^.]*\.$"):
        list(conversation.ask(LONG))
    assert conversation.turns == []


def test_the_scan_is_seen_from_replicas_and_a_race_is_not_run(chat, model, local):
    _, session = visitor_of(chat)
    here, there = local.start(session.image), session.conversation
    for conversation in (here, there):
        list(conversation.ask(LONG))
    for ours, theirs in ((here, there), (here.beside("csm"), there.beside("csm"))):
        expected, seen = record(ours), elsewhere.trace(theirs, theirs.connector)
        assert seen.kind == expected.kind and seen.answer and expected.answer
        assert [word.text for word in seen.answer.words] == [word.text for word in expected.answer.words]
        np.testing.assert_allclose(seen.maps, expected.maps, rtol=1e-3, atol=1e-4)
    with pytest.raises(UserError, match=r"^A race needs[^.]*\.$"):
        Race(chat).pair("tiny", None)


def test_the_command(tmp_path, local):
    """The page, an answer, a replica killed, an answer; in the end no process is left."""
    command = "import app, deploy.__main__\napp.main = deploy.__main__.main"
    with serve("tiny", tmp_path / "log", command, "--replicas", "2") as url:
        client = Client(url, verbose=False)

        def answered() -> bool:
            try:
                return client.predict(handle_file(MEADOW), LONG, api_name="/ask") == local.chat(MEADOW, LONG)
            except AppError as problem:
                assert "still being loaded" in str(problem)
                return False

        until(answered, "an answer")
        (page,) = (child for child in psutil.Process().children() if command in child.cmdline()[2:3][0])
        family = page.children(recursive=True)
        replicas = [process for process in family if "ServeReplica" in " ".join(process.cmdline())]
        assert len(replicas) == 2
        replicas[0].kill()
        assert answered() and answered()
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive
