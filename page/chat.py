"""The chat about one picture: its components and what happens on them.

A question takes two steps: `begin` (at once, outside the queue) checks it and shows it, then `answer` streams the
answer when it is the visitor's turn.
"""

import asyncio
import json
import logging
import threading
import time
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import aclosing, closing
from pathlib import Path
from typing import Any

import gradio as gr

import mlmamba
from mlmamba.chat import check_question
from mlmamba.errors import UserError
from page.limits import ANSWER_S, ANSWER_TOKENS, FULL, LATE, TURNS, Late, in_time
from page.sessions import Session, Sessions, Speakers
from page.texts import CONNECTORS, LOADING, MODEL_LABELS, about, line, messages, status, turns_of

EXAMPLES_DIR = Path(__file__).resolve().parent.parent / "examples"
EXAMPLES: list[dict[str, Any]] = json.loads((EXAMPLES_DIR / "examples.json").read_text(encoding="utf-8"))
QUESTIONS = ["What can you see?", "Is there a person?", "Describe the picture."]  # for pictures of one's own
PREVIEW = 1280  # pixels: longest side that is kept of a picture
FRAME_S = 0.04  # seconds between two updates of a streamed answer
BUSY = "One answer at a time: your text is kept; wait for this answer, or stop it."
FAILED = "The model failed at this question; it is back in the box, and the server's log says why."
log = logging.getLogger("mlmamba.page")


class Chat:
    """The components of the chat and what happens on them."""

    def __init__(self, speakers: Speakers):
        self.speakers = speakers
        self.sessions = Sessions(speakers.first)

    def session(self, request: gr.Request) -> Session:
        return self.sessions.of(request.session_hash or "")

    def forget(self, request: gr.Request) -> None:
        """The visitor has left: end the answer, free the memory."""
        self.sessions.end(request.session_hash or "")

    def show(self, session: Session, notice: str = "", kind: str = "problem", busy: bool = False) -> dict:
        """Everything that follows from the state of a session, at rest or (busy) while it answers."""
        timings = session.conversation.timings if session.conversation and not busy else None
        return {
            self.talk: messages(session.turns, session.pending),
            self.notice: line(notice, kind),
            self.status: self.state(session, timings, "under way …" if busy else ""),
            self.ask: gr.update(visible=not busy),
            self.stop: gr.update(visible=busy),
        }

    def state(self, session: Session, timings: mlmamba.Timings | None = None, note: str = "") -> str:
        """The status line."""
        if not self.speakers.ready:
            return LOADING
        model = self.speakers.get(session.model)
        return status(model, session.connector or model.check_connector(None), timings, note)

    def converse(self, session: Session, turns: list[tuple[str, str]] | None = None) -> None:
        """A new conversation about the session's picture."""
        model = self.speakers.get(session.model)
        session.connector = session.connector if session.connector in model.config.connector.kinds else None
        session.conversation = None
        if session.image:
            session.conversation = model.start(session.image, session.connector, turns or ())

    def recover(self, session: Session, picture: dict | None, said: Sequence[dict]) -> None:
        """Take picture and turns from the page if the server lost them (a restart, a browser asleep).

        `picture` is Gradio's own account of a file, which it has found to be one of the page's.
        """
        if session.conversation is None and picture:
            path = Path(picture["path"])
            if not (session.image or path.is_file()):
                raise UserError("This picture has been deleted, as all are after an hour; please choose it again.")
            session.image = session.image or mlmamba.open_image(path)
            self.converse(session, turns_of(said))

    def pose(self, session: Session, question: str, picture: dict | None = None, said: Sequence[dict] = ()) -> None:
        """Make a question the one to be answered next. Raises UserError for one that can't be asked now."""
        if session.pending is not None:
            raise UserError(BUSY)
        self.recover(session, picture, said)
        if session.conversation is None:
            raise UserError("Please choose a picture first: drop one on the page or take an example.")
        if len(session.turns) >= TURNS:
            raise UserError(FULL)
        check_question(question or "")
        session.pending, session.stop = question.strip(), threading.Event()

    def begin(self, question: str, picture: dict | None, said: list, request: gr.Request) -> dict:
        """Check a question and show it; `answer` follows in the queue. What is refused stays in the box."""
        session = self.session(request)
        try:
            self.pose(session, question, picture, said)
        except UserError as problem:
            return {self.notice: line(str(problem))}
        return self.show(session, busy=True)

    def begin_box(self, question: str, picture: dict | None, said: list, request: gr.Request) -> dict:
        begun = self.begin(question, picture, said, request)
        return begun | {self.box: ""} if self.talk in begun else begun

    async def answer(self, temperature: float, length: int, request: gr.Request) -> AsyncGenerator[dict, None]:
        """Stream the answer to the pending question, after the visitor's place in line where there is one."""
        session = self.session(request)
        question, stop = session.pending, session.stop

        def waiting(place: int) -> dict:
            return {self.notice: line(f"Busy: you are number {place} in line.", "info")}

        try:
            async with aclosing(
                self.speakers.line.serve(lambda: self.speak(session, temperature, length), waiting)
            ) as updates:
                async for update in updates:
                    yield update
        except UserError as problem:  # the line is too long
            if session.stop is stop:
                session.pending = None
            yield self.show(session, str(problem)) | ({self.box: question} if question else {})

    def speak(self, session: Session, temperature: float, length: int) -> Generator[dict, None, None]:
        """The answer to the pending question, piece by piece."""
        with session.lock:
            question, stop, failure, note = session.pending, session.stop, "", ""
            if question is None or session.conversation is None:
                yield {self.notice: gr.skip()}
                return
            try:
                turns, text, shown = list(session.turns), "", time.monotonic()
                yield {self.notice: ""}  # no longer in line
                pieces = session.conversation.ask(
                    question,
                    max_new_tokens=min(int(length or 64), ANSWER_TOKENS),
                    temperature=temperature or 0.0,
                    stop=stop,
                )
                with closing(in_time(pieces, ANSWER_S, LATE)) as timely:
                    for piece in timely:
                        text += piece
                        if time.monotonic() - shown >= FRAME_S:
                            shown = time.monotonic()
                            yield {self.talk: messages(turns, question, text)}
            except Late as problem:  # what was said is kept
                note = str(problem)
            except UserError as problem:
                failure = str(problem)
            except Exception:
                log.exception("while answering")
                failure = FAILED
            finally:  # also when the visitor stops or leaves: closes the pieces, which frees the model
                halted = stop.is_set()
                stop.set()
                if session.stop is stop:
                    session.pending = None
        if halted:  # whoever halted it shows what comes of it
            yield {self.notice: gr.skip()}
        else:
            yield self.show(session, failure or note) | ({self.box: question} if failure else {})

    def halt(self, request: gr.Request) -> dict:
        session = self.session(request)
        waiting = session.halt()
        return self.show(session, "Stopped.", "info") | ({self.box: waiting} if waiting else {})

    def retry(self, picture: dict | None, said: list, request: gr.Request) -> dict:
        session = self.session(request)
        session.halt()
        try:
            self.recover(session, picture, said)
        except UserError as problem:
            return self.show(session, str(problem))
        if not session.conversation or not session.turns:
            return self.show(session, "There is no answer to try again yet.", "info")
        question = session.turns[-1][0]
        session.conversation.undo()
        session.pending, session.stop = question, threading.Event()
        return self.show(session, busy=True)

    def undo(self, picture: dict | None, said: list, request: gr.Request) -> dict:
        session = self.session(request)
        session.halt()
        try:
            self.recover(session, picture, said)
        except UserError as problem:
            return self.show(session, str(problem))
        if not session.conversation or not session.turns:
            return self.show(session, "There is nothing to undo.", "info")
        question = session.turns[-1][0]
        session.conversation.undo()
        return self.show(session) | {self.box: question}

    def clear(self, request: gr.Request) -> dict:
        session = self.session(request)
        session.halt()
        # undone, not started anew: what was seen of the picture is kept
        while session.conversation and session.turns:
            session.conversation.undo()
        return self.show(session)

    def take(
        self, path: str, request: gr.Request, questions: list[str] | None = None, example: str | None = None
    ) -> dict:
        """A new picture, and with it a new conversation. One that can't be opened changes nothing."""
        session = self.session(request)
        try:
            image = mlmamba.open_image(path)
            self.speakers.get(session.model)
        except UserError as problem:
            return {self.notice: line(str(problem))}
        session.halt()
        image.thumbnail((PREVIEW, PREVIEW))  # all that is ever shown or seen of it
        session.image, session.example = image, example
        self.converse(session)
        chips = dict(zip(self.chips, questions or QUESTIONS, strict=True))
        return (
            self.show(session)
            | chips
            | {
                self.picture: gr.update(value=image, visible=True),
                self.upload: gr.update(value=None, label="Choose another picture", elem_classes=["compact"]),
                self.suggestions: gr.update(visible=True),
            }
        )

    def take_example(self, number: int, request: gr.Request) -> dict:
        example = EXAMPLES[number]
        return self.take(str(EXAMPLES_DIR / example["file"]), request, example["questions"], Path(example["file"]).stem)

    def choose_model(self, name: str, request: gr.Request) -> dict:
        session = self.session(request)
        try:
            model = self.speakers.get(name)
        except UserError as problem:
            return {self.notice: line(str(problem)), self.model: session.model}
        if name == session.model:
            return {self.notice: gr.skip()}
        session.halt()
        session.model = name
        self.converse(session)
        kinds = self.kinds(model)
        note = "Another model speaks now; the conversation starts anew." if session.image else ""
        return self.show(session, note, "info") | {
            self.about: about(model),
            self.connector: gr.update(choices=kinds, value=session.connector or kinds[0][1]),
        }

    def choose_connector(self, kind: str, request: gr.Request) -> dict:
        session = self.session(request)
        session.halt()
        try:
            session.connector = self.speakers.get(session.model).check_connector(kind)
        except UserError as problem:
            return self.show(session, str(problem))
        if session.conversation:
            session.conversation.use(kind)
        note = f"{kind.upper()} reads the picture from the next question on." if session.turns else ""
        return self.show(session, note, "info")

    @staticmethod
    def kinds(model: mlmamba.MLMamba) -> list[tuple[str, str]]:
        """What the connector can be set to, as label and value."""
        return [(f"{kind.upper()}: {CONNECTORS[kind]}", kind) for kind in model.config.connector.kinds]

    async def arrive(self, request: gr.Request) -> AsyncGenerator[dict, None]:
        """The page has opened: say which model speaks as soon as it is there."""
        while not self.speakers.ready:
            yield {self.status: LOADING}
            await asyncio.sleep(0.3)
        session = self.session(request)
        try:
            model = self.speakers.get(session.model)
        except UserError as problem:
            yield {self.notice: line(str(problem))}
            return
        kinds = self.kinds(model)
        yield {
            self.status: self.state(session),
            self.about: about(model),
            self.connector: gr.update(choices=kinds, value=session.connector or kinds[0][1]),
        }

    def lay_out(self) -> None:
        """The components, inside whatever block is open."""
        with gr.Row(elem_id="desk", equal_height=False):
            with gr.Column(scale=5, min_width=320, elem_id="left"):
                self.picture = gr.Image(
                    label="Picture",
                    show_label=False,
                    interactive=False,
                    visible=False,
                    type="filepath",
                    image_mode=None,
                    buttons=["fullscreen"],
                    elem_id="picture",
                    alt_text="The picture in question",
                )
                self.upload = gr.UploadButton(
                    "Choose a picture",
                    file_types=["image", ".heic", ".heif"],
                    elem_id="upload",
                    elem_classes=["roomy"],
                )
                gr.HTML('<h2 class="label">Or take one of these</h2>')
                with gr.Row(elem_id="examples"):
                    self.examples = [
                        gr.Button(e["title"], icon=EXAMPLES_DIR / e["file"], min_width=0, elem_classes=["example"])
                        for e in EXAMPLES
                    ]
                self.about = gr.HTML("", elem_id="about")
            with gr.Column(scale=6, min_width=320, elem_id="right"):
                self.talk = gr.Chatbot(
                    label="Conversation",
                    show_label=False,
                    elem_id="chat",
                    height=510,
                    buttons=[],
                    render_markdown=False,
                    sanitize_html=True,
                    allow_tags=False,
                    latex_delimiters=[],
                    feedback_options=None,
                    layout="bubble",
                    placeholder="Choose a picture, then ask what is in it.",
                )
                with gr.Row(elem_id="suggestions", visible=False) as self.suggestions:
                    self.chips = [gr.Button(q, size="sm", min_width=0, elem_classes=["chip"]) for q in QUESTIONS]
                with gr.Row(elem_id="asking", equal_height=False):
                    self.box = gr.Textbox(
                        label="Question",
                        show_label=False,
                        container=False,
                        placeholder="Your question …",
                        lines=1,
                        max_lines=4,
                        scale=5,
                        min_width=160,
                        elem_id="question",
                        autofocus=False,
                    )
                    self.ask = gr.Button("Ask", variant="primary", scale=1, min_width=92, elem_id="ask")
                    self.stop = gr.Button("Stop", variant="stop", scale=1, min_width=92, visible=False, elem_id="stop")
                self.notice = gr.HTML("", elem_id="notice")
                with gr.Row(elem_id="tools"):
                    again = gr.Button("Try again", size="sm", min_width=0, elem_id="retry")
                    undo = gr.Button("Undo", size="sm", min_width=0, elem_id="undo")
                    clear = gr.Button("Clear chat", size="sm", min_width=0, elem_id="clear")
                    self.saw = gr.Button("What did each word see?", size="sm", min_width=0, elem_id="saw")
        self.status = gr.HTML(LOADING, elem_id="status")
        with gr.Row(elem_id="settings", equal_height=False):
            with gr.Column(min_width=280):
                self.model = gr.Radio(
                    [(MODEL_LABELS.get(n, Path(n).name), n) for n in self.speakers.names],
                    value=self.speakers.first,
                    label="Model",
                    elem_id="model",
                )
            with gr.Column(min_width=280):
                self.connector = gr.Radio(
                    [],  # filled in by `arrive`
                    label="Connector: how the picture is scanned",
                    elem_id="connector",
                )
            with gr.Column(min_width=280):
                temperature = gr.Slider(
                    0,
                    1.5,
                    0.0,
                    step=0.1,
                    label="Temperature",
                    info="0 gives the same answer every time",
                    elem_id="temperature",
                )
                length = gr.Slider(
                    8,
                    ANSWER_TOKENS,
                    64,
                    step=8,
                    label="Answer length",
                    info="at most, in tokens",
                    elem_id="length",
                )
        self.wire(again, undo, clear, temperature, length)

    def wire(
        self, again: gr.Button, undo: gr.Button, clear: gr.Button, temperature: gr.Slider, length: gr.Slider
    ) -> None:
        """Events. All but /ask stay off the API page; only answers and a model's loading are queued."""
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        now = quiet | {"queue": False}
        shown = [self.talk, self.notice, self.status, self.ask, self.stop, self.box]
        self.seen = [*shown, self.picture, self.upload, self.suggestions, *self.chips]

        known = [self.picture, self.talk]
        # as they came: Gradio would open the picture each time, and fail where it has been deleted
        raw = now | {"preprocess": False}
        begun = [gr.on([self.ask.click, self.box.submit], self.begin_box, [self.box, *known], shown, **raw)]
        begun += [chip.click(self.begin, [chip, *known], shown, **raw) for chip in self.chips]
        begun += [again.click(self.retry, known, shown, **raw)]
        self.answers = answers = [
            event.then(
                self.answer,
                [temperature, length],
                shown,
                concurrency_limit=None,  # the line is ours
                **quiet,
            )
            for event in begun
        ]
        self.stop.click(self.halt, None, shown, cancels=answers, **now)
        undo.click(self.undo, known, shown, cancels=answers, **raw)
        clear.click(self.clear, None, shown, cancels=answers, **now)
        self.upload.upload(self.take, self.upload, self.seen, cancels=answers, **now)
        for number, button in enumerate(self.examples):
            # a default argument binds this turn's number
            def take(request: gr.Request, number: int = number) -> dict:
                return self.take_example(number, request)

            button.click(take, None, self.seen, cancels=answers, **now)
        # raw: a visitor whom Gradio has forgotten has other choices than it knows of; both are checked by the models
        loads = quiet | {"preprocess": False}
        self.model.input(self.choose_model, self.model, [*shown, self.model, self.about, self.connector], **loads)
        self.connector.input(self.choose_connector, self.connector, shown, **raw)
