"""What programs may ask: /ask, /scan and /race, on the page's API page, and as tools over MCP.

Each call stands alone: no conversation, the page's first model, temperature 0.
"""

import secrets
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr
from gradio.components import Component

import mlmamba
from mlmamba.bench import race as racing
from mlmamba.chat import check_question
from mlmamba.errors import UserError
from page import elsewhere
from page.chat import Chat
from page.limits import ANSWER_S, LATE, MEASURE_S, TOO_LONG, in_time
from page.race import CONTEXTS, TOKENS, Race, roomy
from page.see import KINDS
from visualize import Trace, View
from visualize.figures import TYPES, export
from visualize.trace import NAMES

Result = TypeVar("Result")
EXAMPLE_QUESTION = "Is there a dog?"
EXAMPLE_PICTURE = {"path": "photo.jpg", "url": "photo.jpg", "meta": {"_type": "gradio.FileData"}}
PATH = "path"  # the quantity that shows the order of the scan alone


def showing(component: Component, example: Any) -> Any:
    """The component, with this example on the API page: Gradio's own is no picture and no question."""
    component.example_payload = component.example_value = lambda: example  # type: ignore[method-assign]
    return component


class Api:
    """The endpoints; what they share with the page is the models and the line before them."""

    def __init__(self, chat: Chat, race: Race):
        self.chat, self.speakers, self.race_tab = chat, chat.speakers, race

    async def ask(self, picture: str, question: str, connector: str | None = None) -> str:
        """Answer a question about a picture.

        Args:
            picture: JPEG, PNG, WebP, GIF, HEIC, BMP or TIFF
            question: one question, in English, in at most 2,000 characters
            connector: how the picture is scanned, "bsm" or "csm"; left out, the model's first

        Returns:
            the answer
        """
        return await self.once(lambda: self.answered(picture, question, connector).turns[-1][1])

    async def scan(
        self,
        picture: str,
        connector: str = "bsm",
        question: str | None = None,
        quantity: str = "state",
        layer: int = 1,
        head: int | None = None,
        word: int | None = None,
        format: str = "png",
    ) -> str:
        """Show what a connector's scan did with a picture, or what a word of the answer saw of it.

        Args:
            picture: JPEG, PNG, WebP, GIF, HEIC, BMP or TIFF
            connector: "bsm" (two directions), "csm" (four), or "compare", which shows both
            question: asked first; what its words saw can be shown
            quantity: "path", "delta", "decay", "input", "state", "output" or "gate", at each patch
            layer: of the connector, from 1
            head: of the layer, from 1; left out, the mean over all
            word: of the answer, from 1: what it saw, instead of the quantity
            format: "png", "json" (the numbers), "gif" or "webp" (the scan as it goes)

        Returns:
            a file
        """

        def numbered(value: int | None, what: str) -> int | None:
            if value is not None and value < 1:
                raise UserError(f"The {what} is counted from 1.")
            return None if value is None else int(value) - 1

        def drawn() -> str:
            view = View(
                kind=connector,
                layer=numbered(layer, "layer") or 0,
                head=numbered(head, "head"),
                quantity=quantity,
                word=numbered(word, "word"),
            )
            kinds = KINDS if connector == "compare" else (connector,)
            name, _, data = export(view, {kind: self.trace(picture, kind, question) for kind in kinds}, format)
            folder = Path(self.file.GRADIO_CACHE) / secrets.token_hex(16)  # deleted in time, as pictures are
            folder.mkdir(parents=True)
            (folder / name).write_bytes(data)
            return str(folder / name)

        return await self.once(drawn)

    async def race(self, picture: str, question: str, tokens: int = 64, context: int | None = None) -> dict:
        """Race a Transformer of the model's size: both read one prompt and say as many tokens, by turns.

        Args:
            picture: JPEG, PNG, WebP, GIF, HEIC, BMP or TIFF
            question: the prompt
            tokens: that each says: 32, 64 or 128
            context: tokens that earlier turns fill the prompt to: 1024 or 4096; left out, the prompt as it is

        Returns:
            the race (times in seconds as least, median and most of five laps; memory in bytes), machine, versions
        """

        def raced() -> dict:
            if tokens not in TOKENS or context not in CONTEXTS:
                raise UserError("There is no such race: choose 32, 64 or 128 tokens, and a context of 1024 or 4096.")
            image, name = self.opened(picture), self.speakers.first
            how: dict[str, Any] = {"tokens": tokens, "context": context, "stop": threading.Event()}
            try:
                messages = roomy(lambda: racing.run(self.race_tab.pair(name, None), image, question, **how))
                with closing(in_time(messages, MEASURE_S, TOO_LONG)) as timely:
                    *_, result = timely
            finally:
                self.race_tab.let_go()
            return {"race": result["race"], **self.race_tab.where(name)}

        return await self.once(raced, alone=True)

    def answered(self, picture: str, question: str, connector: str | None) -> mlmamba.Conversation:
        """A conversation of one question."""
        check_question(question or "")
        conversation = self.speakers.get(self.speakers.first).start(self.opened(picture), connector or None)
        with closing(in_time(conversation.ask(question), ANSWER_S, LATE)) as pieces:
            for _ in pieces:
                pass
        return conversation

    def trace(self, picture: str, kind: str, question: str | None) -> Trace:
        """The trace of a picture through one connector, and of the answer to a question if there is one."""
        model = self.speakers.get(self.speakers.first)
        trained = kind in model.config.connector.kinds
        if question and trained:
            conversation = self.answered(picture, question, kind)
        else:
            conversation = model.start(self.opened(picture), kind if trained else None)
        return elsewhere.trace(conversation, kind, answered=bool(conversation.turns))

    @staticmethod
    def opened(picture: str | None) -> Any:
        if not picture:
            raise UserError("Please send a picture.")
        return mlmamba.open_image(picture)

    async def once(self, work: Callable[[], Result], *, alone: bool = False) -> Result:
        """The result of one piece of work, in its turn; what a user can mend is told as Gradio tells it."""
        try:
            return await self.speakers.line.once(work, alone=alone)
        except UserError as problem:
            raise gr.Error(str(problem), print_exception=False) from problem

    def lay_out(self) -> None:
        """The endpoints' components, never shown; their kinds and choices are on the API page."""
        with gr.Column(visible=False):
            picture = showing(gr.File(label="Picture"), EXAMPLE_PICTURE)
            question = showing(gr.Textbox(label="Question"), EXAMPLE_QUESTION)
            connector = gr.Dropdown([*KINDS], label="Connector")
            self.file = gr.File(label="File")
            shown = [
                picture,
                gr.Dropdown([*KINDS, "compare"], value="bsm", label="Connector"),
                question,
                gr.Dropdown([PATH, *NAMES], value="state", label="Quantity"),
                gr.Number(1, precision=0, label="Layer"),
                showing(gr.Number(None, precision=0, label="Head"), 1),
                showing(gr.Number(None, precision=0, label="Word"), 1),
                gr.Dropdown([*TYPES], value="png", label="Format"),
            ]
            raced = [
                picture,
                question,
                # numbers, where a list of choices would be shown as one of texts
                gr.Number(64, precision=0, label="Tokens"),
                showing(gr.Number(None, precision=0, label="Context"), 1024),
            ]
            for name, function, inputs, output in (
                ("ask", self.ask, [picture, question, connector], gr.Textbox(label="Answer")),
                ("scan", self.scan, shown, self.file),
                ("race", self.race, raced, gr.JSON(label="Race")),
            ):
                gr.Button().click(function, inputs, output, api_name=name, concurrency_limit=None)
