"""What one visitor may have of the machine: turns, time, and being remembered."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from mlmamba.decoding import Seat
from mlmamba.errors import UserError
from page import chat as chatting
from page import limits, sessions
from page.chat import Chat
from page.limits import Late, in_time
from page.sessions import Sessions, Speakers

MEADOW = Path(__file__).resolve().parent.parent / "examples" / "meadow.jpg"
VISITOR = SimpleNamespace(session_hash="visitor")


def test_what_takes_too_long_is_ended_and_its_source_closed(monkeypatch):
    now, closed, got = [0.0], [], []
    monkeypatch.setattr(limits.time, "monotonic", lambda: now[0])

    def source():
        try:
            for number in range(10):
                now[0] += 1
                yield number
        finally:
            closed.append(True)

    with pytest.raises(Late, match="enough"):
        for piece in in_time(source(), 3, "enough"):
            got.append(piece)
    assert got == [0, 1, 2] and closed == [True]
    assert list(in_time(source(), 100, "enough")) == list(range(10))


@pytest.fixture(scope="module")
def chat() -> Chat:
    import gradio as gr

    chat = Chat(Speakers("tiny", "cpu"))
    with gr.Blocks(analytics_enabled=False):
        chat.lay_out()
    return chat


def answer(chat: Chat, length: int = 8) -> list[dict]:
    async def all_updates() -> list[dict]:
        return [update async for update in chat.answer(0.0, length, VISITOR)]

    return ThreadPoolExecutor(1).submit(asyncio.run, all_updates()).result()


def test_an_answer_that_takes_too_long_is_stopped_and_kept(chat, monkeypatch):
    chat.take(str(MEADOW), VISITOR)
    session = chat.sessions["visitor"]
    monkeypatch.setattr(chatting, "ANSWER_S", 0.5)
    say = Seat.say

    def slow(seat, token):
        time.sleep(0.2)
        say(seat, token)

    monkeypatch.setattr(Seat, "say", slow)
    chat.begin("Is there a dog?", None, [], VISITOR)
    last = answer(chat, 64)[-1]
    assert "stopped after" in last[chat.notice] and chat.box not in last
    ((question, said),) = session.turns
    whole = chat.speakers.get("tiny").chat(MEADOW, question)
    assert said and said != whole and whole.startswith(said)
    monkeypatch.undo()
    chat.begin("Is there a cat?", None, [], VISITOR)
    answer(chat)
    assert len(session.turns) == 2


def test_no_answer_is_longer_than_it_may_be(chat, monkeypatch):
    chat.take(str(MEADOW), VISITOR)
    asked = []

    def ask(question, *, max_new_tokens, **_):
        asked.append(max_new_tokens)
        yield from ()

    monkeypatch.setattr(chat.sessions["visitor"].conversation, "ask", ask)
    chat.begin("Is there a dog?", None, [], VISITOR)
    answer(chat, 10**9)
    assert asked == [256]


def test_a_conversation_has_so_many_turns_and_no_more(chat):
    said = [
        {"role": role, "content": [{"type": "text", "text": f"{role} {turn}"}]}
        for turn in range(60)
        for role in ("user", "assistant")
    ]
    picture = {"path": str(MEADOW)}
    chat.forget(VISITOR)
    refused = chat.begin("Is there a dog?", picture, said, VISITOR)
    assert "50 turns" in refused[chat.notice] and chat.talk not in refused
    turns = chat.sessions["visitor"].turns
    assert [turns[0][0], turns[-1][0]] == ["user 10", "user 59"]  # the last of those that the page had
    chat.undo(picture, said, VISITOR)
    assert chat.talk in chat.begin("Is there a dog?", picture, said, VISITOR)


def test_the_idle_are_forgotten_and_what_they_began_is_stopped(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(sessions, "time", SimpleNamespace(monotonic=lambda: now[0]))
    visitors = Sessions("tiny")
    first, race = visitors.of("first"), threading.Event()
    first.races["1"] = race
    now[0] = 3000
    second = visitors.of("second")
    now[0] = 3601
    assert visitors.of("second") is second and list(visitors) == ["second"]
    assert first.stop.is_set() and race.is_set() and not second.stop.is_set()


def test_of_too_many_the_longest_idle_is_forgotten(monkeypatch):
    monkeypatch.setattr(sessions, "VISITORS", 3)
    visitors = Sessions("tiny")
    for name in ("a", "b", "c", "a", "d"):
        visitors.of(name)
    assert list(visitors) == ["c", "a", "d"]


def test_visitors_who_come_at_once_have_one_session_each():
    visitors = Sessions("tiny")
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: (n % 5, visitors.of(str(n % 5))), range(500)))
    assert all(visitors[str(n)] is session for n, session in found)


def test_errors_are_sentences():
    for sentence in (limits.FULL, limits.LATE, limits.TOO_LONG):
        assert sentence.endswith(".") and isinstance(Late(sentence), UserError)
