"""Who speaks and who listens: the loaded models, and one `Session` a visitor."""

import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as StillLoading
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

import mlmamba
from mlmamba import backend
from mlmamba.chat import with_room
from mlmamba.errors import MemoryFull, UserError
from page.limits import KEPT_S, VISITORS
from page.line import Line

FULL = "There is not enough memory for this model beside what has been loaded; choose another."
PATIENCE_S = 20  # how long a visitor's click waits for a model that is being loaded


def load_here(name: str, device: str, seats: int) -> mlmamba.MLMamba:
    """A model in this process that writes the answers of all visitors who are served as one batch."""
    try:
        return with_room(lambda: mlmamba.load(name, device=device).serve(seats))
    except MemoryFull:
        raise MemoryFull(FULL) from None
    except Exception as problem:
        traceback.clear_frames(problem.__traceback__)  # it is kept, and they hold what was loaded
        raise


class Speakers:
    """The models, shared by all visitors: the first is loaded while the page opens, others at first need.

    `load` gives a model, or what stands for as many `replicas` of it elsewhere, of `seats` each.
    """

    def __init__(
        self,
        first: str,
        device: str,
        seats: int | None = None,
        replicas: int = 1,
        load: Callable[[str, str, int], Any] = load_here,
    ):
        self.first, self.device, self.load = first, device, load
        self.seats = seats or (4 if backend.choose(device).device.type == "cpu" else 8)
        self.line = Line(self.seats * replicas)
        self.names = list(dict.fromkeys([first, "tiny", "3b"]))
        self._lock = threading.Lock()
        self._loader = ThreadPoolExecutor(1, "loader")
        self._models: dict[str, Future[mlmamba.MLMamba]] = {}
        self._load(first)

    def _load(self, name: str) -> "Future[mlmamba.MLMamba]":
        with self._lock:
            if name not in self._models or (self._models[name].done() and self._models[name].exception()):
                self._models[name] = self._loader.submit(self.load, name, self.device, self.seats)
            return self._models[name]

    @property
    def ready(self) -> bool:
        """Whether the first model has been loaded."""
        return self._models[self.first].done()

    def wait(self) -> None:
        """Until the first model has been loaded. Raises UserError when it can't be."""
        self._models[self.first].result()

    def get(self, name: str) -> mlmamba.MLMamba:
        """Raises UserError when the model can't be had here, or not yet."""
        if name not in self.names:
            raise UserError(f"Please choose one of {', '.join(self.names)}.")
        if name == "3b" != self.first and backend.choose(self.device).device.type == "cpu":
            raise UserError("The 3B model needs a GPU, and this page runs on a CPU; choose another.")
        try:
            return self._load(name).result(PATIENCE_S)
        except StillLoading:
            raise UserError("The model is still being loaded; try again in a moment.") from None


@dataclass
class Session:
    """One visitor. `lock` is held while an answer is written; `pending` is a question not yet answered."""

    model: str
    connector: str | None = None
    image: Image.Image | None = None
    example: str | None = None  # its name, if the picture is one
    conversation: mlmamba.Conversation | None = None
    pending: str | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    traces: dict[str, tuple[str, Any]] = field(default_factory=dict)  # by connector: of what, and what was seen
    races: dict[str, threading.Event] = field(default_factory=dict)  # what stops each, by request
    used: float = 0.0  # when last, on the monotonic clock

    def halt(self) -> str | None:
        """End the running answer and wait until it has ended. Returns a question not begun."""
        waiting = None if self.lock.locked() else self.pending
        self.stop.set()
        self.pending = None
        if self.lock.acquire(timeout=60):
            self.lock.release()
        return waiting

    def leave(self) -> None:
        """The visitor is gone: end all that goes on."""
        for running in (self.stop, *self.races.values()):
            running.set()

    @property
    def turns(self) -> list[tuple[str, str]]:
        return self.conversation.turns if self.conversation else []


class Sessions(dict[str, Session]):
    """The visitors. Whoever does nothing for an hour is forgotten, and of too many the longest idle.

    Gradio tells of those who leave only where a browser kept a connection open for it.
    """

    def __init__(self, first: str):
        self.first = first  # the model that speaks at first
        self._lock = threading.Lock()

    def of(self, visitor: str) -> Session:
        """A visitor's session, a new one for somebody new."""
        with self._lock:
            session = self.pop(visitor, None) or Session(self.first)
            self[visitor] = session  # the last in order
            session.used = time.monotonic()
            while len(self) > VISITORS or next(iter(self.values())).used < session.used - KEPT_S:
                self.pop(next(iter(self))).leave()
            return session

    def end(self, visitor: str) -> None:
        with self._lock:
            session = self.pop(visitor, None)
        if session:
            session.leave()
            del session
            backend.give_back()
