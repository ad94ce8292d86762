"""On ZeroGPU: a GPU is lent for one call at a time, to a process that is forked for it and may serve another call.

Import this before anything touches CUDA, load the models before the page is launched, and both in the main thread:
`spaces` keeps their weights aside and moves them to the GPU of each new process. Nothing else is sure to stay: a call
brings picture, connector and turns, and all of it is read again; on such a GPU that takes a fraction of a second.
"""

import threading
from collections.abc import Generator, Sequence
from contextlib import closing
from typing import Any

import gradio as gr
import spaces
import torch
from PIL import Image

import mlmamba
from mlmamba.chat import Conversation
from mlmamba.errors import UserError
from mlmamba.images import ImageSource, open_image
from page.elsewhere import Answered, ConversationElsewhere, Wanted, answer, trace
from page.limits import ANSWER_S
from page.sessions import Speakers, load_here
from visualize import Trace

LOOK_S = 30  # seconds that a look at the scan may take of the GPU
SEATS = 2  # answers at once: each has a process with the whole model on its GPU
LENT: dict[str, mlmamba.MLMamba] = {}  # the models, as a forked process finds them
READ: set[str] = set()  # of a forked process: models that have been warmed up in it

Turns = tuple[tuple[str, str], ...]


class Refused(str):
    """A sentence for the user. Of an exception, only the name of its class would come back."""


def told(problem: gr.Error) -> Exception:
    """What `spaces` says: no GPU to be had, or the visitor's share is used up; of a fault of ours only its class."""
    if problem.title == "ZeroGPU worker error":
        return RuntimeError(f"in a lent process: {problem.message}")
    return UserError(str(problem.message))


def conversation(name: str, picture: Image.Image, connector: str, turns: Turns) -> Conversation:
    """Within a lent process. Kernels are tuned when they first run, which is no part of an answer's time."""
    model = LENT[name]
    if name not in READ:
        READ.add(name)
        torch.set_num_threads(1)  # OpenMP's others stayed behind in the process that was forked
        for _ in model.start(picture, connector).ask("Hello", max_new_tokens=2):
            pass
    return model.start(picture, connector, turns)


@spaces.GPU(duration=ANSWER_S)
def lent_answer(
    name: str, picture: Image.Image, connector: str, turns: Turns, wanted: Wanted
) -> Generator[str | Answered, None, None]:
    """An answer piece by piece, and its end. Closing it stops the model at its next token."""
    try:
        yield from answer(conversation(name, picture, connector, turns), wanted, "ZeroGPU")
    except UserError as problem:
        yield Refused(problem)


@spaces.GPU(duration=LOOK_S)
def lent_trace(
    name: str, image: Image.Image, connector: str, turns: Turns, kind: str, picture: str | None, answered: bool
) -> Trace | Refused:
    try:
        return trace(conversation(name, image, connector, turns), kind, picture, answered)
    except UserError as problem:
        return Refused(problem)


class LentModel:
    """What the page uses of `MLMamba`, for a model whose GPU is lent call by call."""

    check_connector: Any = mlmamba.MLMamba.check_connector
    chat: Any = mlmamba.MLMamba.chat

    def __init__(self, name: str, device: str):
        model = LENT[name] = mlmamba.load(name, device=device)
        self.name, self.config, self.n_parameters = name, model.config, model.n_parameters
        self.backend = f"{model.backend} · ZeroGPU"

    def start(
        self, image: ImageSource, connector: str | None = None, history: Sequence[tuple[str, str]] = ()
    ) -> "LentConversation":
        return LentConversation(self, open_image(image), connector, history)  # type: ignore[arg-type]


class LentConversation(ConversationElsewhere):
    """A conversation that takes the GPU for each answer. Raises UserError where none can be had."""

    model: Any  # a LentModel

    def _call(self) -> tuple[str, Image.Image, str, Turns]:
        return self.model.name, self.image, self.connector, tuple(self.turns)

    def trace(self, kind: str, picture: str | None, answered: bool) -> Trace:
        try:
            made = lent_trace(*self._call(), kind, picture, answered)
        except gr.Error as problem:
            raise told(problem) from problem
        if isinstance(made, Refused):
            raise UserError(made)
        return made

    def answered(self, wanted: Wanted, stop: threading.Event) -> Generator[str | Answered, None, None]:
        try:
            with closing(lent_answer(*self._call(), wanted)) as steps:
                for step in steps:
                    if isinstance(step, Refused):
                        raise UserError(step)
                    yield step
                    if stop.is_set():
                        return
        except gr.Error as problem:
            raise told(problem) from problem


def speakers(first: str, device: str, seats: int | None) -> Speakers:
    """The models of a page on ZeroGPU: the first has the GPU, others the CPU."""
    lent = LentModel(first, device)

    def load(name: str, device: str, seats: int) -> Any:
        return lent if name == first else load_here(name, device, seats)

    return Speakers(first, "cpu", seats or SEATS, load=load)
