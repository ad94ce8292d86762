"""A replica: one model, and the conversations whose states it carries. Runs in a process of Ray Serve."""

import threading
from collections import OrderedDict
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any

import ray
import torch
from PIL import Image
from ray import serve

import mlmamba
from mlmamba.chat import Conversation
from page.elsewhere import Answered, Wanted, answer, trace
from page.line import Line
from visualize import Trace

KEPT = 4  # conversations a seat: whoever comes back after more others is read again from the history


@dataclass(frozen=True)
class Talk:
    """Where a conversation stands; enough for any replica to go on with it.

    The picture, (rows, columns, 3), stays in Ray's object store until a replica wants it.
    """

    id: str
    picture: Any
    connector: str
    turns: tuple[tuple[str, str], ...]


class Replica:
    """Answers as many at once as it has seats, on carried states where it has them."""

    def __init__(self, folder: str, device: str, seats: int, threads: int):
        torch.set_num_threads(threads)
        self.id = serve.get_replica_context().replica_id.unique_id
        self.model = mlmamba.load(folder, device=device).serve(seats)
        self.line = Line(seats)
        self.most = KEPT * seats
        self.kept: OrderedDict[tuple[str, str], tuple[Conversation, threading.Lock]] = OrderedDict()
        self._lock = threading.Lock()

    def describe(self) -> tuple[int, str]:
        """How many parameters the model has, and what it runs on."""
        return self.model.n_parameters, str(self.model.backend)

    async def answer(self, talk: Talk, wanted: Wanted) -> AsyncGenerator[str | Answered, None]:
        """The answer piece by piece, and its end. Cancelling it stops the model at the next token."""
        async with aclosing(self.line.serve(lambda: self._answer(talk, wanted), lambda place: "")) as steps:
            async for step in steps:
                yield step

    def _answer(self, talk: Talk, wanted: Wanted) -> Generator[str | Answered, None, None]:
        with self._conversation(talk) as conversation:
            yield from answer(conversation, wanted, self.id)

    def trace(self, talk: Talk, kind: str, picture: str | None, answered: bool) -> Trace:
        with self._conversation(talk) as conversation:
            return trace(conversation, kind, picture, answered)

    @contextmanager
    def _conversation(self, talk: Talk) -> Generator[Conversation, None, None]:
        """The conversation where it stands, for one at a time: an answer that was cancelled may still be ending."""
        key = talk.id, talk.connector
        with self._lock:
            if key not in self.kept:
                image = Image.fromarray(ray.get(talk.picture))
                self.kept[key] = Conversation(self.model, image, talk.connector), threading.Lock()
            self.kept.move_to_end(key)
            if len(self.kept) > self.most:
                self.kept.popitem(last=False)
            conversation, lock = self.kept[key]
        with lock:
            conversation.resume(talk.turns)
            yield conversation
