"""Conversations whose model is elsewhere: in replicas (`deploy/`), or on a GPU that is lent (`page/zero.py`)."""

import threading
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass

import torch

from mlmamba import Timings
from mlmamba.chat import Conversation, check_question, with_room
from visualize import Trace, record


@dataclass(frozen=True)
class Wanted:
    """A question and how it is to be answered. The seed makes sampling the same wherever it happens."""

    question: str
    length: int
    temperature: float
    seed: int


@dataclass(frozen=True)
class Answered:
    """The end of an answer: all of it, where its time went, and who wrote it."""

    text: str
    timings: Timings
    by: str


def answer(conversation: Conversation, wanted: Wanted, by: str) -> Generator[str | Answered, None, None]:
    """Where the model is: the answer piece by piece, and its end."""
    yield from conversation.ask(
        wanted.question,
        max_new_tokens=wanted.length,
        temperature=wanted.temperature,
        generator=torch.Generator(conversation.model.backend.device).manual_seed(wanted.seed),
    )
    assert conversation.timings
    yield Answered(conversation.turns[-1][1], conversation.timings, by)


def trace(conversation: Conversation, kind: str, picture: str | None = None, answered: bool = True) -> Trace:
    """The trace of a conversation, made where its model is: it is far smaller than the scans it is made of.

    Raises UserError where the memory runs out, or where it can't be had from there.
    """
    if isinstance(conversation, ConversationElsewhere):
        return conversation.trace(kind, picture, answered)
    return with_room(lambda: record(conversation, kind, picture, answered))


class ConversationElsewhere(Conversation):
    """Picture and turns are here, the model and its state are not; `trace` is there in place of `look`."""

    by: str | None = None  # who wrote the last answer

    def answered(self, wanted: Wanted, stop: threading.Event) -> Generator[str | Answered, None, None]:
        """What is said there, and its end unless `stop` came first."""
        raise NotImplementedError

    def trace(self, kind: str, picture: str | None, answered: bool) -> Trace:
        """What the function of this name returns there."""
        raise NotImplementedError

    def ask(
        self,
        question: str,
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        stop: threading.Event | None = None,
        generator: torch.Generator | None = None,
    ) -> Iterator[str]:
        """As of `Conversation`. Raises UserError also where it can't be answered there."""
        check_question(question)
        seed = int(torch.randint(2**62, (), generator=generator))
        wanted = Wanted(question, max_new_tokens, temperature, seed)
        text, end = "", None
        try:
            with closing(self.answered(wanted, stop or threading.Event())) as steps:
                for step in steps:
                    if isinstance(step, Answered):
                        end = step
                    else:
                        text += step
                        yield step
        except GeneratorExit:
            pass  # the listener left; what was said is kept
        self.turns.append((question, end.text if end else text))
        self.timings = end.timings if end else None
        self.by = end.by if end else None
