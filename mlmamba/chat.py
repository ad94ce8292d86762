"""Talking about one picture: prompts, sampling, and the state that is carried from turn to turn."""

import re
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor

from mlmamba.backend import synchronize, within_memory
from mlmamba.connector import ConnectorOutput
from mlmamba.decoding import Wish
from mlmamba.errors import MemoryFull, UserError
from mlmamba.mamba2 import LanguageOutput, State
from mlmamba.ssd import Scan

if TYPE_CHECKING:
    from mlmamba.model import MLMamba

MAX_QUESTION = 2000  # characters
Found = TypeVar("Found")


class ChatTokenizer:
    """Text ↔ ids, and the prompt that the model was trained with."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        special = [t.content for t in tokenizer.get_added_tokens_decoder().values() if t.special]
        marks = {"<image>", "<|user|>", "<|assistant|>", "<|endoftext|>", *(mark.strip() for mark in special)}
        self._marks = re.compile("|".join(re.escape(mark) for mark in sorted(marks)))

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def plain(self, message: str) -> str:
        """The message without anything that would read as a mark of the prompt."""
        while (cleaned := self._marks.sub("", message)) != message:  # what is left may join to a new mark
            message = cleaned
        return message.strip()

    def prompt(self, message: str, first: bool) -> list[int]:
        """Ids of a user turn up to where the reply begins."""
        return self.encode(f"{'' if first else chr(10)}<|user|>\n{self.plain(message)}<|endoftext|>\n<|assistant|>\n")

    def reply(self, text: str) -> list[int]:
        """Ids of a reply with its end."""
        return self.encode(f"{self.plain(text)}<|endoftext|>")

    def words(self, text: str) -> tuple[list[tuple[str, list[int]]], list[int]]:
        """The words of a reply, each with the numbers of its tokens, and the tokens' ids."""
        text = self.plain(text)
        encoded = self.tokenizer.encode(text, add_special_tokens=False)
        words = []
        for match in re.finditer(r"\S+", text):
            tokens = [i for i, (a, b) in enumerate(encoded.offsets) if a < match.end() and b > match.start()]
            words.append((match[0], tokens))
        return words, encoded.ids


@dataclass(frozen=True)
class Word:
    """A word of an answer, and the steps of the sequence (patches first) whose outputs chose its tokens."""

    text: str
    steps: tuple[int, ...]


@dataclass(frozen=True)
class Reading:
    """One connector's look at the picture and, if there was an answer, the language model's reading of it.

    `language` holds one `Scan` a layer over patches, prompt and answer; empty where there was no answer.
    """

    connector: str
    grid: tuple[int, int]
    seen: ConnectorOutput
    question: str = ""
    answer: str = ""
    words: tuple[Word, ...] = ()
    language: tuple[Scan, ...] = ()


@dataclass
class Timings:
    """Where the time of one answer went; seconds, and tokens (a patch counts as one)."""

    vision_s: float = 0.0
    prefill_s: float = 0.0
    prefill_tokens: int = 0
    first_token_s: float = 0.0
    decode_s: float = 0.0
    decode_tokens: int = 0

    @property
    def tokens_per_s(self) -> float:
        """Decoding speed, the first token (which belongs to the prefill) not counted."""
        return self.decode_tokens / self.decode_s if self.decode_s else 0.0


_holding: "weakref.WeakValueDictionary[int, Conversation]" = weakref.WeakValueDictionary()  # who may hold memory
_making_room, _rooms = threading.Lock(), 0


def make_room() -> bool:
    """Conversations at rest, of all models, give up what they can read again. Returns whether there was any."""
    global _rooms
    with _making_room:
        others = [ref() for ref in _holding.valuerefs()]
        made = sum([other.rest() for other in others if other is not None]) > 0
        _rooms += made
        return made


def with_room(compute: Callable[[], Found]) -> Found:
    """What `compute` gives. Where the memory runs out, conversations at rest make room, and it is tried once more.

    Raises MemoryFull where that isn't enough.
    """
    before = _rooms
    try:
        with within_memory():
            return compute()
    except MemoryFull:
        if not make_room() and _rooms == before:  # nor was room made for somebody else meanwhile
            raise
    with within_memory():
        return compute()


class Conversation:
    """One picture, what was said about it, and the model's state after it.

    The state is carried: a later question reads its own tokens only. The state after the picture alone is kept
    too, so that undo and retry read the words again but never the picture; only another connector does that. Where the
    memory runs out, conversations at rest give both up, and read all again when they go on.
    """

    def __init__(
        self,
        model: "MLMamba",
        image: Image.Image,
        connector: str | None = None,
        history: Sequence[tuple[str, str]] = (),
    ):
        self.model = model
        self.image = image
        self.connector = model.check_connector(connector)
        self.turns: list[tuple[str, str]] = [(question, answer) for question, answer in history]
        self.timings: Timings | None = None
        self._patches: Tensor | None = None  # what the vision towers saw
        self._seen: State | None = None  # after the picture
        self._state: State | None = None  # after the turns
        self._unread: list[int] = []  # ids that were said but not yet read into the state
        self._works, self._lock = 0, threading.Lock()

    def use(self, connector: str) -> None:
        """Go on with another connector."""
        if self.model.check_connector(connector) != self.connector:
            self.connector, self._seen, self._state = connector, None, None

    def resume(self, turns: Sequence[tuple[str, str]]) -> None:
        """Go on after these turns; where they are not what was said here, the words are read again."""
        if self.turns != list(turns):
            self.turns, self._state = list(turns), None

    @torch.inference_mode()
    def look(self, connector: str | None = None, answered: bool = True) -> Reading:
        """Read picture and last turn again, keeping every scan.

        With answered=False, before any turn, or for a connector without weights, of the picture alone. Raises UserError
        where the memory runs out.
        """
        with self._at_work():
            return with_room(lambda: self._look(connector, answered))

    def _look(self, connector: str | None, answered: bool) -> Reading:
        model, kind = self.model, connector or self.connector
        if self._patches is None:
            self._patches = model.reader.see(self.image)
        seen = model.connector.explore(self._patches, model.grid, kind)
        if not (answered and self.turns and seen.trained):
            return Reading(kind, model.grid, seen)
        tokenizer, (question, answer) = model.chat_tokenizer, self.turns[-1]
        before: list[int] = []
        for i, (asked, said) in enumerate(self.turns):
            before += tokenizer.prompt(asked, first=i == 0)
            before += tokenizer.reply(said) if i < len(self.turns) - 1 else []
        words, reply = tokenizer.words(answer)
        embeds = [seen.features, model.embed(before + reply)]
        layers = tuple(range(model.config.language.n_layers))
        read = model.language_model(torch.cat(embeds, dim=1), scans=layers, last_only=True)
        start = seen.features.shape[1] + len(before) - 1  # the step that chose the reply's first token
        chosen = tuple(Word(text, tuple(start + i for i in tokens)) for text, tokens in words)
        return Reading(kind, model.grid, seen, question, answer, chosen, tuple(read.scans[i] for i in layers))

    def beside(self, connector: str, max_new_tokens: int = 64) -> "Conversation":
        """The same picture and turns, with the last question answered by another connector, at temperature 0."""
        question, _ = self.turns[-1]
        other = type(self)(self.model, self.image, connector, self.turns[:-1])
        other._patches = self._patches
        for _ in other.ask(question, max_new_tokens=max_new_tokens):
            pass
        return other

    def rest(self) -> bool:
        """Give up what can be read again, unless at work: states, and what was seen. Returns whether there was any."""
        with self._lock:
            held = self._patches is not None or self._seen is not None or self._state is not None
            if self._works or not held:
                return False
            self._patches = self._seen = self._state = None
            return True

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """In here this conversation may hold memory, and gives nothing up."""
        _holding[id(self)] = self
        with self._lock:
            self._works += 1
        try:
            yield
        finally:
            with self._lock:
                self._works -= 1

    def undo(self) -> None:
        """Forget the last turn."""
        if self.turns:
            self.turns.pop()
            self._state = None

    @torch.inference_mode()
    def ask(
        self,
        question: str,
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        stop: threading.Event | None = None,
        generator: torch.Generator | None = None,
    ) -> Iterator[str]:
        """Answer piece by piece. Closing the iterator or setting `stop` ends it; what was said is kept.

        Raises UserError for a question that can't be asked, and where the memory runs out: then nothing was said.
        """
        check_question(question)
        with self._at_work(), within_memory():
            yield from self._ask(question, max_new_tokens, temperature, stop, generator)

    def _ask(
        self,
        question: str,
        max_new_tokens: int,
        temperature: float,
        stop: threading.Event | None,
        generator: torch.Generator | None,
    ) -> Iterator[str]:
        model, tokenizer = self.model, self.model.chat_tokenizer
        timings, start = Timings(), time.perf_counter()
        prompt = tokenizer.prompt(question, first=not self.turns)
        output = with_room(lambda: self._read(prompt, timings))
        if temperature > 0 and generator is None:  # PyTorch's own is of no use while a graph is recorded elsewhere
            seed = int(torch.randint(2**62, ()))
            generator = torch.Generator(model.backend.device).manual_seed(seed)
        wish = Wish(max_new_tokens, model.config.end_of_turn, model.config.vocab_words, temperature, generator, stop)
        decoding = model.decoder.start(output, wish)
        del output  # its state would be held beside the seat's
        answer: list[int] = []
        text, before = "", 0.0
        try:
            for token in decoding:
                now = time.perf_counter()
                if not answer:
                    timings.first_token_s = now - start
                else:
                    timings.decode_tokens, timings.decode_s = timings.decode_tokens + 1, now - before
                before = before or now
                answer.append(token)
                longer = tokenizer.decode(said(answer, wish.end))
                if len(longer) > len(text) and not longer.endswith("\ufffd"):  # half a character waits for its rest
                    piece, text = longer[len(text) :], longer  # kept before it is yielded: the listener may leave there
                    yield piece
        except GeneratorExit:
            pass  # the listener left; what was said is kept below
        answer += decoding.end()
        text = tokenizer.decode(said(answer, wish.end)).rstrip("\ufffd")
        self._state = decoding.state
        # the state has read all but the last token; a turn that was cut short ends here too
        self._unread = [*answer[-1:], wish.end] if answer[-1:] != [wish.end] else [wish.end]
        self.turns.append((question, text))
        self.timings = timings

    def _read(self, prompt: list[int], timings: Timings) -> LanguageOutput:
        """Read all that the state has not seen: the picture at first, turns where need be, the prompt."""
        model, tokenizer = self.model, self.model.chat_tokenizer
        start = time.perf_counter()
        features = None
        if self._seen is None:
            if self._patches is None:
                self._patches = model.reader.see(self.image)
            features = model.reader.connect(self._patches, self.connector)
            synchronize(model.backend.device)
        timings.vision_s, start = time.perf_counter() - start, time.perf_counter()
        if features is not None:
            self._seen = model.reader.begin(features)
            timings.prefill_tokens += features.shape[1]
        if self._state is None:
            turns = enumerate(self.turns)
            said = [
                tokenizer.prompt(question, first=i == 0) + tokenizer.reply(answer) for i, (question, answer) in turns
            ]
            self._state, self._unread = self._seen, [token for ids in said for token in ids]
        ids = self._unread + prompt
        output = model.reader.go_on(ids, self._state)
        synchronize(model.backend.device)
        timings.prefill_tokens += len(ids)
        timings.prefill_s = time.perf_counter() - start
        return output


def said(tokens: list[int], end: int) -> list[int]:
    """Tokens without the end of turn."""
    return tokens[:-1] if tokens[-1:] == [end] else tokens


def check_question(question: str) -> None:
    """Raise UserError for a question that can't be asked."""
    if not question.strip():
        raise UserError("Please type a question about the picture.")
    if len(question) > MAX_QUESTION:
        raise UserError(f"Please ask in at most {MAX_QUESTION:,} characters; this question has {len(question):,}.")
