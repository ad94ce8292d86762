"""The second tab: the scan of the visitor's picture, or a recorded one before there is a picture or a model.

The view draws in the browser and asks for what it needs; everything it asks for is answered here.
"""

import base64
import json
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import cache
from pathlib import Path
from typing import Any

import gradio as gr
from anyio import to_thread

from mlmamba.backend import within_memory
from mlmamba.errors import UserError
from page import elsewhere
from page.chat import EXAMPLES, EXAMPLES_DIR, Chat
from page.sessions import Session
from visualize import View
from visualize.component import ScanView, asked, failure, reply
from visualize.figures import export
from visualize.payload import pack, pack_answer, part, unpack
from visualize.trace import Trace

RECORDED_DIR = Path(__file__).resolve().parent.parent / "visualize" / "recorded"
KINDS = ("bsm", "csm")
NAMES = [Path(example["file"]).stem for example in EXAMPLES]
FAILED = "The server failed at this; its log says why."
log = logging.getLogger("mlmamba.page")


@cache
def recorded(kind: str) -> Trace:
    """The trace that the page opens on, as `python -m visualize record` wrote it."""
    return unpack(json.loads((RECORDED_DIR / f"{kind}.json").read_text(encoding="utf-8")))


class See:
    """The view, its picture chooser, and the answers to what it asks."""

    def __init__(self, chat: Chat):
        self.chat = chat

    # what is shown

    def key(self, session: Session) -> str:
        """Another key means that another picture, model or answer is to be seen."""
        conversation = session.conversation
        return str(hash((id(session.image), session.model, session.connector, tuple(session.turns), id(conversation))))

    def trace(self, session: Session, kind: str) -> Trace:
        """The picture through one connector, with that connector's answer to the last question."""
        if kind not in KINDS:
            raise UserError("There is no such scan; choose BSM or CSM.")
        conversation = session.conversation
        if conversation is None:
            return recorded(kind)
        key = self.key(session)
        if kind not in session.traces or session.traces[kind][0] != key:
            speaker = conversation
            if (
                conversation.turns
                and kind != conversation.connector
                and kind in conversation.model.config.connector.kinds
            ):
                speaker = conversation.beside(kind)
            session.traces[kind] = key, elsewhere.trace(speaker, kind, session.example)
        return session.traces[kind][1]

    # what is asked

    async def look(self, event: gr.EventData, picture: dict | None, said: list, request: gr.Request) -> dict:
        """The trace of a kind; before it, the example that a link names, unless it is what is shown."""
        try:
            return await self.chat.speakers.line.once(lambda: self._look(event, picture, said, request))
        except UserError as problem:  # the line is too long
            return {self.view: failure(event, str(problem)) | self.changed(request)}

    def _look(self, event: gr.EventData, picture: dict | None, said: list, request: gr.Request) -> dict:
        _, args = asked(event)
        session, updates = self.chat.session(request), {}

        def content() -> dict:
            self.chat.recover(session, picture, said)
            shown = session.example if session.conversation else recorded(KINDS[0]).picture
            if args.get("picture") in NAMES and args["picture"] != shown:
                updates.update(self.chat.take_example(NAMES.index(args["picture"]), request))
            with session.lock:
                return pack(self.trace(session, str(args.get("kind"))))

        return updates | {self.view: self._reply(event, session, content)}

    async def ask(
        self, event: gr.EventData, picture: dict | None, said: list, request: gr.Request
    ) -> AsyncGenerator[dict, None]:
        """Ask in the chat, so that both tabs tell the same; then say what each word saw."""
        _, args = asked(event)
        question, kind = str(args.get("question") or ""), str(args.get("kind"))
        session, chat = self.chat.session(request), self.chat
        before = session.turns[:]

        def begin() -> list[dict]:
            updates = []
            chat.recover(session, picture, said)
            if session.conversation is None:  # about the recorded picture, then
                updates.append(chat.take_example(NAMES.index(recorded(KINDS[0]).picture or ""), request))
            conversation = session.conversation
            if conversation and kind in conversation.model.config.connector.kinds and kind != conversation.connector:
                updates.append(chat.choose_connector(kind, request) | {chat.connector: kind})
            chat.pose(session, question)
            return [*updates, chat.show(session, busy=True)]

        try:
            for update in await to_thread.run_sync(begin):
                yield update
            async with aclosing(chat.answer(0.0, 64, request)) as updates:
                async for update in updates:
                    yield update
        except UserError as problem:
            yield {self.view: failure(event, str(problem))}
            return

        def content() -> dict:
            if session.turns == before:
                raise UserError("There is no answer: it was stopped, or the model failed.")
            with session.lock:
                answers = {name: self.trace(session, name).answer for name in (KINDS if kind == "compare" else (kind,))}
            packed = {name: answer and pack_answer(answer) for name, answer in answers.items()}
            return {"answers": packed} if kind == "compare" else {"kind": kind, "answer": packed[kind]}

        try:
            seen = await chat.speakers.line.once(lambda: self._reply(event, session, content))
        except UserError as problem:
            seen = failure(event, str(problem)) | self.changed(request)
        yield {self.view: seen}

    async def request(self, event: gr.EventData, request: gr.Request) -> dict:
        """What is made from a trace: a "part" of it at once, an "export" in its turn."""
        kind, args = asked(event)
        session = self.chat.session(request)

        def content() -> dict:
            if kind == "part":
                return part(self.trace(session, str(args.get("kind"))), str(args.get("name")))
            if kind == "export":
                view = View.of(args.get("view") or {})
                kinds = KINDS if view.kind == "compare" else (view.kind,)
                name, mime, data = export(view, {k: self.trace(session, k) for k in kinds}, str(args.get("format")))
                return {"name": name, "type": mime, "data": base64.b64encode(data).decode()}
            raise UserError("The page asked for something unknown; reload it.")

        def replied() -> dict:
            return self._reply(event, session, content)

        if kind != "export":
            return await to_thread.run_sync(replied)
        try:
            return await self.chat.speakers.line.once(replied)
        except UserError as problem:  # the line is too long
            return failure(event, str(problem)) | self.changed(request)

    def _reply(self, event: gr.EventData, session: Session, content: Callable[[], dict]) -> dict:
        """The content, or one sentence on why there is none, and which picture and answer are current now."""
        try:
            with within_memory():
                value = reply(event, content())
        except UserError as problem:
            value = failure(event, str(problem))
        except Exception:
            log.exception("while looking")
            value = failure(event, FAILED)
        return value | {"key": self.key(session)}

    def changed(self, request: gr.Request) -> dict:
        """Tell the view which picture and answer are current; it asks again if they are new to it."""
        return {"key": self.key(self.chat.session(request))}

    def taken(self, updates: dict, request: gr.Request) -> dict:
        """The updates of a picture chosen here; what the chat has to say about it is said here too."""
        return updates | {self.notice: updates[self.chat.notice], self.view: self.changed(request)}

    def take(self, path: str, request: gr.Request) -> dict:
        return self.taken(self.chat.take(path, request), request)

    def take_example(self, number: int, request: gr.Request) -> dict:
        return self.taken(self.chat.take_example(number, request), request)

    # layout

    def lay_out(self) -> None:
        """The components, inside whatever block is open."""
        with gr.Row(elem_id="see-pictures", elem_classes=["pictures"]):
            self.upload = gr.UploadButton(
                "Choose a picture",
                file_types=["image", ".heic", ".heif"],
                elem_classes=["compact"],
                elem_id="see-upload",
            )
            self.examples = [
                gr.Button(e["title"], icon=EXAMPLES_DIR / e["file"], min_width=0, elem_classes=["example"])
                for e in EXAMPLES
            ]
        self.notice = gr.HTML("", elem_id="see-notice")
        self.view = ScanView()

    def wire(self, tabs: gr.Tabs, tab: gr.Tab) -> None:
        """Events; none of them is on the API page."""
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        now = quiet | {"queue": False}
        chat = self.chat
        everything = [*chat.seen, chat.connector, self.notice, self.view]
        # one may follow another before Gradio has noted that the first has ended
        several = quiet | {"trigger_mode": "multiple"}
        known = {"inputs": [chat.picture, chat.talk], "preprocess": False}
        self.view.look(self.look, outputs=everything, concurrency_limit=None, **known, **several)
        self.view.ask(self.ask, outputs=everything, concurrency_limit=None, **known, **several)
        self.view.request(self.request, None, self.view, concurrency_limit=None, **several)
        tab.select(self.changed, None, self.view, **now)
        chat.saw.click(lambda: gr.Tabs(selected=tab.id), None, tabs, **now).then(self.changed, None, self.view, **now)
        self.upload.upload(self.take, self.upload, everything, cancels=chat.answers, **now)
        for number, button in enumerate(self.examples):

            def take(request: gr.Request, number: int = number) -> dict:
                return self.take_example(number, request)

            button.click(take, None, everything, cancels=chat.answers, **now)
