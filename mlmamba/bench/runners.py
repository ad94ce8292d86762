"""Who takes part: ML-Mamba, a Transformer of the same build, or any image-text-to-text model of `transformers`.

A runner's methods do one thing each, so that each can be timed: `see` a picture, `read` a prompt after it and choose
the first token, `step` from one token to the next. All choose the likeliest token. "graph": see `graphs`.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import torch
from PIL import Image
from torch import Tensor

from mlmamba.backend import Backend, synchronize
from mlmamba.bench.graphs import Fixed, FixedCache, FixedState
from mlmamba.errors import UserError
from mlmamba.mamba2 import LanguageModel
from mlmamba.model import MLMamba

FILLER = ("Is there a dog?", "Yes, there is a dog.")  # said again and again, it fills a context


Self = TypeVar("Self", bound="Launching")


class Runner(Protocol):
    """One side of the race."""

    name: str
    kind: str  # "mamba" or "transformer"
    parameters: int  # that are trained, of what takes part
    kernels: str
    trained: bool  # what random weights say is not shown
    sees_apart: bool  # whether seeing can be timed apart from reading
    n_patches: int

    @property
    def mode(self) -> str: ...  # how kernels are launched: "eager", or as a "graph"

    def launched(self, graph: bool) -> "Runner": ...  # the same runner, decoding by CUDA graphs or eager

    def prompt(self, question: str, context: int | None) -> list[int]: ...

    def see(self, image: Image.Image) -> Any: ...

    def read(self, sight: Any, prompt: Sequence[int], room: int) -> tuple[int, Any]: ...  # `room`: tokens to be said

    def step(self, token: int, state: Any) -> tuple[int, Any]: ...

    def memory(self, state: Any) -> int: ...

    def text(self, tokens: Sequence[int]) -> list[str]: ...

    def ends(self, token: int) -> bool: ...


class Launching:
    """What a runner decodes with: kernel by kernel, or as a CUDA graph, on memory that stays where it is."""

    backend: Backend
    graph = False
    fixed: Fixed | None = None  # where a graph decodes; made in the warm-up

    def launched(self: Self, graph: bool) -> Self:
        if graph and not self.backend.graphs:
            raise UserError("CUDA graphs need a CUDA GPU; race eager here.")
        other = copy.copy(self)
        other.graph, other.fixed = graph, None
        return other

    @property
    def mode(self) -> str:
        """ "graph" once one was recorded; where that can't be, the same steps are launched one by one."""
        return "graph" if self.fixed and self.fixed.recorded else "eager"

    def fixed_cache(self, read: Callable[[Tensor, Any], Tensor], config: Any, cache: Any, room: int) -> FixedCache:
        """A Transformer's static cache with `room` beyond what `cache` holds; made anew only for another length."""
        length = cache.get_seq_length() + room
        if isinstance(self.fixed, FixedCache) and self.fixed.length == length:
            return self.fixed
        self.fixed = None  # two caches at once would be twice the memory
        return FixedCache(read, config, cache, length)


class OurRunner(Launching):
    """ML-Mamba, or its twin: both are an `MLMamba`, with another reader."""

    sees_apart = True
    go_on: Any = None  # a step of the reader

    def __init__(self, model: MLMamba, name: str, connector: str | None = None, *, trained: bool = True):
        self.model, self.name, self.trained, self.backend = model, name, trained, model.backend
        self.connector = model.check_connector(connector)
        self.kind = "mamba" if isinstance(model.language_model, LanguageModel) else "transformer"
        self.kernels = model.backend.kernels if self.kind == "mamba" else "scaled dot-product attention"
        idle = [p for kind, scan in model.connector.scan.items() if kind != self.connector for p in scan.parameters()]
        self.parameters = model.n_parameters - sum(p.numel() for p in idle)
        self.n_patches = model.grid[0] * model.grid[1]

    def prompt(self, question: str, context: int | None) -> list[int]:
        """Ids of a question; with earlier turns before it, so that patches and ids are `context` tokens together."""
        tokenizer = self.model.chat_tokenizer
        first = tokenizer.prompt(question, first=True)
        if context is None:
            return first
        asked = tokenizer.prompt(question, first=False)
        room = context - self.n_patches - len(asked)
        if room < 0:
            least = self.n_patches + len(first)
            raise UserError(f"Picture and question are {least} tokens; choose a context of at least {least + 1}.")
        turn = tokenizer.prompt(FILLER[0], first=False) + tokenizer.reply(FILLER[1])
        return (turn * (room // len(turn) + 1))[:room] + asked

    @torch.inference_mode()
    def see(self, image: Image.Image) -> Tensor:
        model = self.model
        features = model.connector(model.see(image), model.grid, self.connector).features
        synchronize(self.backend.device)
        return features

    @torch.inference_mode()
    def read(self, sight: Tensor, prompt: Sequence[int], room: int) -> tuple[int, Any]:
        embeds = torch.cat([sight, self.model.embed(prompt)], dim=1)
        output = self.model.language_model(embeds, last_only=True)
        token, state = self._choose(output.logits), output.state
        if not self.graph:
            self.go_on = self.go_on or self.model.language_model.stepper()  # in the warm-up
            return token, state
        self.fixed = self._fixed(state, room)
        self.fixed.begin(token, state)
        return token, self.fixed

    @torch.inference_mode()
    def step(self, token: int, state: Any) -> tuple[int, Any]:
        if self.graph:
            return state.step(), state
        ids = torch.tensor([[token]], device=self.backend.device)
        return self._choose(self.go_on(ids, state)), state

    def _choose(self, logits: Tensor) -> int:
        return int(logits[0, -1, : self.model.config.vocab_words].argmax())

    def _fixed(self, state: Any, room: int) -> Fixed:
        lm, words = self.model.language_model, self.model.config.vocab_words
        if isinstance(lm, LanguageModel):
            return self.fixed or FixedState(lm, words)
        return self.fixed_cache(lambda ids, cache: lm.go_on(ids, cache)[:, :, :words], lm.decoder.config, state, room)

    def memory(self, state: Any) -> int:
        return state.memory() if self.graph else self.model.language_model.state_bytes(state)

    def text(self, tokens: Sequence[int]) -> list[str]:
        """What each token adds to the text."""
        decode, pieces, before = self.model.chat_tokenizer.decode, [], ""
        for n in range(1, len(tokens) + 1):
            text = decode(list(tokens[:n]))
            pieces.append(text[len(before) :])
            before = text
        return pieces

    def ends(self, token: int) -> bool:
        return token == self.model.config.end_of_turn
