"""The second tab: the scan of the visitor's picture, or a recorded one before there is a picture or a model.

The view draws in the browser and asks for what it needs; everything it asks for is answered here.
"""

import base64
import json
import logging
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import gradio as gr

from mlmamba.errors import UserError
from page.chat import EXAMPLES, EXAMPLES_DIR, Chat
from page.sessions import Session
from visualize import View, record
from visualize.component import ScanView, asked, failure, reply
from visualize.figures import export
from visualize.payload import pack, pack_answer, part, unpack
from visualize.trace import Trace

RECORDED_DIR = Path(__file__).resolve().parent.parent / "visualize" / "recorded"
KINDS = ("bsm", "csm")
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
            session.traces[kind] = key, record(speaker, kind, session.example)
        return session.traces[kind][1]

    # what is asked

    def look(self, event: gr.EventData, path: str | None, said: list, request: gr.Request) -> Iterator[dict]:
        """What runs the model: "trace" of a kind, or "ask" a question."""
        kind, args = asked(event)
        session = self.chat.session(request)
        try:
            self.chat.recover(session, path, said)
            if kind == "trace":
                yield from self._open(session, args.get("picture"), request)
                with session.lock:
                    content = pack(self.trace(session, str(args.get("kind"))))
            elif kind == "ask":
                yield from self._ask(session, args, request)
                content = self._answers(session, str(args.get("kind")))
            else:
                raise UserError("The page asked for something unknown; reload it.")
            value = reply(event, content)
        except UserError as problem:
            value = failure(event, str(problem))
        except Exception:
            log.exception("while looking")
            value = failure(event, FAILED)
        yield {self.view: value | {"key": self.key(session)}}

    def request(self, event: gr.EventData, request: gr.Request) -> dict:
        """What needs no model: a "part" of a trace, or an "export"."""
        kind, args = asked(event)
        session = self.chat.session(request)
        try:
            if kind == "part":
                return reply(event, part(self.trace(session, str(args.get("kind"))), str(args.get("name"))))
            if kind == "export":
                view = View.of(args.get("view") or {})
                kinds = KINDS if view.kind == "compare" else (view.kind,)
                traces = {kind: self.trace(session, kind) for kind in kinds}
                name, mime, data = export(view, traces, str(args.get("format")))
                return reply(event, {"name": name, "type": mime, "data": base64.b64encode(data).decode()})
            raise UserError("The page asked for something unknown; reload it.")
        except UserError as problem:
            return failure(event, str(problem))
        except Exception:
            log.exception("while exporting")
            return failure(event, FAILED)

    def _open(self, session: Session, picture: Any, request: gr.Request) -> Iterator[dict]:
        """Take the example that a link names, unless it is what is shown."""
        shown = session.example if session.conversation else recorded(KINDS[0]).picture
        names = [Path(example["file"]).stem for example in EXAMPLES]
        if picture in names and picture != shown:
            yield self.chat.take_example(names.index(picture), request)

    def _ask(self, session: Session, args: dict, request: gr.Request) -> Iterator[dict]:
        """Ask in the chat, so that both tabs tell the same."""
        question, kind = str(args.get("question") or ""), str(args.get("kind"))
        if session.conversation is None:  # about the recorded picture, then
            names = [Path(example["file"]).stem for example in EXAMPLES]
            yield self.chat.take_example(names.index(recorded(KINDS[0]).picture or ""), request)
        if session.conversation and kind in session.conversation.model.config.connector.kinds:
            if kind != session.conversation.connector:
                yield self.chat.choose_connector(kind, request) | {self.chat.connector: kind}
        before = len(session.turns)
        self.chat.pose(session, question)
        yield self.chat.show(session, busy=True)
        yield from self.chat.answer(0.0, 64, request)
        if len(session.turns) == before:
            raise UserError("There is no answer: it was stopped, or the model failed.")

    def _answers(self, session: Session, kind: str) -> dict[str, Any]:
        with session.lock:
            answers = {name: self.trace(session, name).answer for name in (KINDS if kind == "compare" else (kind,))}
        packed = {name: answer and pack_answer(answer) for name, answer in answers.items()}
        return {"answers": packed} if kind == "compare" else {"kind": kind, "answer": packed[kind]}

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
        self.view.look(self.look, [chat.picture, chat.talk], everything, concurrency_id="model", **quiet)
        self.view.request(self.request, None, self.view, concurrency_limit=2, **quiet)
        tab.select(self.changed, None, self.view, **now)
        chat.saw.click(lambda: gr.Tabs(selected=tab.id), None, tabs, **now).then(self.changed, None, self.view, **now)
        self.upload.upload(self.take, self.upload, everything, cancels=chat.answers, **now)
        for number, button in enumerate(self.examples):

            def take(request: gr.Request, number: int = number) -> dict:
                return self.take_example(number, request)

            button.click(take, None, everything, cancels=chat.answers, **now)
