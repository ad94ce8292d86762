"""Decoding on memory that stays where it is, so that CUDA can record a step as a graph, for both sides of the race.

    carried = FixedState(language_model, words)    # or FixedCache(read, config, cache, length)
    carried.begin(token, state)                    # of one sequence, after its prompt was read
    token = carried.step()                         # the likeliest next one

Without CUDA the same steps are launched one by one; the tests do them there by a graph's rules.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from mlmamba import backend
from mlmamba.decoding import Steps
from mlmamba.errors import UserError
from mlmamba.mamba2 import LanguageModel, State
from mlmamba.transformer import Cache, Transformer


class Fixed(Protocol):
    """What is carried from token to token, in one place for good."""

    recorded: bool  # as a graph

    def begin(self, token: int, state: Any) -> None: ...

    def step(self) -> int: ...

    def memory(self) -> int: ...


class FixedState:
    """A Mamba-2's: the state of one seat."""

    def __init__(self, language_model: LanguageModel, words: int):
        self.steps = Steps(language_model, 1, words)
        self.recorded = backend.recorded(self.steps.advance)

    def begin(self, token: int, state: State) -> None:
        self.steps.sit(0, state, token, temperature=0.0)

    def step(self) -> int:
        self.steps.advance()
        return int(self.steps.tokens)

    def memory(self) -> int:
        return LanguageModel.state_bytes(self.steps.state)


class FixedCache:
    """A Transformer's: `transformers`' StaticCache with room for `length` tokens, all of which each step attends to,
    most of them through a mask."""

    @torch.inference_mode()
    def __init__(self, read: Callable[[Tensor, Cache], Tensor], config: Any, like: Cache, length: int, batch: int = 1):
        """`read`: logits (b, 1, words) from ids (b, 1) and a static cache, which it writes to; config: of the decoder,
        in `transformers`; `like`: a cache of one sequence that was read; `batch`: of so many, all alike.

        Raises UserError for a cache that holds anything but keys and values of all tokens.
        """
        from transformers import StaticCache
        from transformers.cache_utils import StaticLayer

        self.read, self.length, self.held = read, length, 0
        self.cache: Cache = StaticCache(config=config, max_cache_len=length)
        if any(type(layer) is not StaticLayer for layer in self.cache.layers):
            raise UserError("This model keeps other things than keys and values of all tokens; race it eager.")
        for own, other in zip(self.cache.layers, like.layers, strict=True):
            own.lazy_initialization(*(each.expand(batch, -1, -1, -1) for each in (other.keys, other.values)))
        self.token = torch.zeros(batch, 1, dtype=torch.long, device=like.layers[0].keys.device)
        self.advance = backend.repeated(self._advance, self.token.device)
        self.recorded = backend.recorded(self.advance)

    @torch.inference_mode()
    def begin(self, token: int, state: Cache) -> None:
        self.held = state.get_seq_length()
        for own, read in zip(self.cache.layers, state.layers, strict=True):
            own.keys[:, :, : self.held], own.values[:, :, : self.held] = read.keys, read.values
            own.cumulative_length.fill_(self.held)
        self.token.fill_(token)

    @torch.inference_mode()
    def step(self) -> int:
        if self.held == self.length:
            raise ValueError(f"The cache is full: it has room for {self.length} tokens.")
        self.advance()
        self.held += 1
        return int(self.token[0])

    def memory(self) -> int:
        """Of the tokens that were read; the rest of the room is not needed yet."""
        return Transformer.state_bytes(self.cache) * self.held // self.length

    def _advance(self) -> None:
        self.token.copy_(self.read(self.token, self.cache).argmax(-1))
