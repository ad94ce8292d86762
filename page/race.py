"""The third tab: ML-Mamba beside a Transformer, one picture and one question, and how both scale.

It opens on recorded runs, before any model has loaded; what is measured here comes from `mlmamba.bench`, the code that
`python -m mlmamba bench` runs too.
"""

import base64
import gc
import io
import logging
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterable
from contextlib import aclosing, closing
from functools import cache
from typing import Any

import gradio as gr
from PIL import Image

import mlmamba
from mlmamba.backend import within_memory
from mlmamba.bench import machine, results, rivals, scaling
from mlmamba.bench import race as racing
from mlmamba.bench.runners import OurRunner, Runner
from mlmamba.chat import make_room
from mlmamba.errors import MemoryFull, UserError
from page.chat import EXAMPLES, EXAMPLES_DIR, PREVIEW, QUESTIONS, Chat
from page.limits import MEASURE_S, TOO_LONG, in_time
from page.sessions import Session
from visualize.component import RaceView, asked, failure, news, number_of, reply

TOKENS = (32, 64, 128)
CONTEXTS = (None, 1024, 4096)  # None: the picture and the question alone
THUMB = 320  # pixels: longest side of the picture beside a verdict
FULL = "The memory is too small for both sides at once; race after fewer tokens, or see a recorded run."
FAILED = "The server failed at measuring this; its log says why."
FILES = {(EXAMPLES_DIR / example["file"]).stem: example for example in EXAMPLES}
log = logging.getLogger("mlmamba.page")


def thumb(image: Image.Image) -> str:
    """A small copy of a picture as a data: address, so that the view fetches nothing."""
    small, file = image.convert("RGB"), io.BytesIO()
    small.thumbnail((THUMB, THUMB))
    small.save(file, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


@cache
def example(name: str) -> Image.Image:
    """One of the example pictures by its name."""
    image = mlmamba.open_image(EXAMPLES_DIR / FILES[name]["file"])
    image.thumbnail((PREVIEW, PREVIEW))
    return image


def recorded() -> list[dict[str, Any]]:
    """The runs that ship with the project, one a race, each with its picture if that is an example."""
    shown = []
    for run in results.recorded():
        race, scaled = run.get("race"), {"scaling": run["scaling"]} if "scaling" in run else {}
        told = {part: run[part] for part in results.PARTS}
        name = race and race.get("picture")
        pictured = {"thumb": thumb(example(name))} if name in FILES else {}
        for again in run.get("races") or [race or {}]:
            shown.append(told | scaled | ({"race": {"picture": name} | again} | pictured if again else {}))
            scaled = {}  # told once
    return shown


def roomy(run: Callable[[], Iterable[dict]]) -> Generator[dict, None, None]:
    """What a run tells. Where the memory runs out, conversations at rest make room, and it is begun once more."""
    try:
        with within_memory(FULL):
            yield from run()
        return
    except MemoryFull:
        if not make_room():
            raise
    with within_memory(FULL):  # not in the handler, where another fault would be taken for one of memory
        yield from run()


class Race:
    """The view, what would be raced, and the measuring that it asks for."""

    def __init__(self, chat: Chat):
        self.chat = chat
        self.recorded = recorded()
        self.rivals: dict[str, Runner] = {}  # by model, once one has been asked for

    # what is raced

    def subject(self, session: Session) -> tuple[Image.Image, str | None, str, str]:
        """Picture, its name if it is an example, question, and in words where both are from."""
        if session.image is None:
            first: dict[str, Any] = next((run["race"] for run in self.recorded if "thumb" in run), {})
            name = first.get("picture") or next(iter(FILES))
            question = first.get("question") or FILES[name]["questions"][0]
            return example(name), name, question, "an example; choose a picture of yours under “Ask”"
        if session.turns:
            return session.image, session.example, session.turns[-1][0], "your picture and last question"
        questions = FILES[session.example]["questions"] if session.example in FILES else QUESTIONS
        return session.image, session.example, questions[0], "your picture; ask something else under “Ask”"

    def changed(self, request: gr.Request) -> dict:
        """Tell the view what would be raced now."""
        session = self.chat.session(request)
        image, _, question, whose = self.subject(session)
        model = self.chat.speakers.get(session.model)
        graphs = isinstance(model, mlmamba.MLMamba) and model.backend.graphs
        return {"subject": {"thumb": thumb(image), "question": question, "whose": whose, "graphs": graphs}}

    def pair(self, name: str, connector: str | None, graph: bool = False) -> tuple[Runner, Runner]:
        """A model with one of its connectors, and its rival. Raises UserError where one of them can't be had."""
        model = self.chat.speakers.get(name)
        if not isinstance(model, mlmamba.MLMamba):  # it is in replicas, or its GPU is lent
            raise UserError("A race needs the model beside the page, and here it runs elsewhere; see a recorded run.")
        if name not in self.rivals:
            self.rivals[name] = rivals.find(model)
        ours = OurRunner(model, f"ML-Mamba {model.config.name}", connector)
        return ours.launched(graph), self.rivals[name].launched(graph)

    def let_go(self) -> None:
        """Of rivals that are as large as their models, and as soon made again: those with random weights."""
        self.rivals = {name: rival for name, rival in self.rivals.items() if rival.trained}
        gc.collect()

    # what is asked

    async def race(
        self, event: gr.EventData, picture: dict | None, said: list, request: gr.Request
    ) -> AsyncGenerator[dict, None]:
        """One race; its progress, then its result."""
        _, args = asked(event)
        session = self.chat.session(request)

        def run(stop: threading.Event) -> Generator[dict, None, None]:
            tokens, context = args.get("tokens"), args.get("context")
            if tokens not in TOKENS or context not in CONTEXTS:
                raise UserError("There is no such race; choose tokens and context again.")
            self.chat.recover(session, picture, said)
            image, name, question, _ = self.subject(session)
            pair = self.pair(session.model, session.connector, args.get("graph") is True)
            messages: Any = racing.run(pair, image, question, tokens=tokens, context=context, stop=stop)
            with closing(messages):
                for message in messages:
                    if message["type"] == "result":
                        message |= {"race": message["race"] | {"picture": name}, "thumb": thumb(image)}
                    yield message

        async with aclosing(self._alone(event, session, run)) as messages:
            async for message in messages:
                yield message

    async def scale(self, event: gr.EventData, request: gr.Request) -> AsyncGenerator[dict, None]:
        """How both grow with context and batch; a point at a time, then all of it."""
        session = self.chat.session(request)

        def run(stop: threading.Event) -> Generator[dict, None, None]:
            ours, rival = self.pair(session.model, session.connector)
            assert isinstance(ours, OurRunner) and isinstance(rival, OurRunner)  # the twin, or one of the same shape
            messages: Any = scaling.run((ours, rival), stop=stop)
            with closing(messages):
                yield from messages

        async with aclosing(self._alone(event, session, run)) as messages:
            async for message in messages:
                yield message

    async def _alone(
        self, event: gr.EventData, session: Session, run: Callable[[threading.Event], Generator[dict, None, None]]
    ) -> AsyncGenerator[dict, None]:
        """What a run tells, once nobody else is served, and nobody is meanwhile."""

        def waiting(place: int) -> dict:
            return news(event, {"type": "progress", "what": f"Waiting for others: number {place} in line …"})

        try:
            line = self.chat.speakers.line
            async with aclosing(line.serve(lambda: self._measure(event, session, run), waiting, alone=True)) as told:
                async for message in told:
                    yield message
        except UserError as problem:  # the line is too long
            yield failure(event, str(problem))
        finally:
            session.races.pop(str(number_of(event)), None)

    def _measure(
        self, event: gr.EventData, session: Session, run: Callable[[threading.Event], Generator[dict, None, None]]
    ) -> Generator[dict, None, None]:
        """What a run tells, as values of the view, its result last; nothing more once it has been stopped."""
        stop, finished = self._stop(event, session), False
        try:
            with closing(in_time(roomy(lambda: run(stop)), MEASURE_S, TOO_LONG)) as messages:
                for message in messages:
                    if stop.is_set():
                        return
                    finished = message["type"] == "result"
                    if finished or message["type"] == "point":
                        message |= self.where(session.model)
                    yield (reply if finished else news)(event, message)
            if not finished and not stop.is_set():
                raise RuntimeError("the measuring ended without a result")
        except UserError as problem:
            yield failure(event, str(problem))
        except Exception:
            log.exception("while measuring")
            yield failure(event, FAILED)
        finally:  # also when the visitor leaves
            stop.set()
            self.let_go()

    def where(self, name: str) -> dict[str, Any]:
        """What a model is measured on, as recorded runs have it."""
        return {
            "machine": machine.describe(self.chat.speakers.get(name).backend),
            "versions": machine.versions(),
        }

    def _stop(self, event: gr.EventData, session: Session) -> threading.Event:
        """What stops a request; it may be set before the request's turn has come."""
        return session.races.setdefault(str(number_of(event)), threading.Event())

    def halt(self, event: gr.EventData, request: gr.Request) -> None:
        """Stop a run, or one that still waits for its turn. The view has already stopped listening to it."""
        self._stop(event, self.chat.session(request)).set()

    # layout

    def lay_out(self) -> None:
        """The component, inside whatever block is open."""
        self.view = RaceView(self.recorded)

    def wire(self, tab: gr.Tab) -> None:
        """Events; none of them is on the API page."""
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        now = quiet | {"queue": False}
        # one may follow another before Gradio has noted that the first has ended
        several = quiet | {"trigger_mode": "multiple", "concurrency_limit": None}
        known = [self.chat.picture, self.chat.talk]
        runs = [
            self.view.race(self.race, known, self.view, preprocess=False, **several),
            self.view.scaling(self.scale, None, self.view, **several),
        ]
        self.view.halt(self.halt, None, None, cancels=runs, **now)
        tab.select(self.changed, None, self.view, **now)
        self.chat.picture.change(self.changed, None, self.view, **now)  # dropped on this tab, for one
