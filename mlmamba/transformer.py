"""The rival in the race: a decoder of `transformers` in Mamba-2's place, with its own cache and attention."""

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlmamba.config import TransformerConfig
from mlmamba.mamba2 import LanguageOutput

Cache = Any  # transformers' DynamicCache, which is slow to import: keys and values of all that was read


class Transformer(nn.Module):
    """Used as `LanguageModel` is. What it carries is a cache that grows with each token; none is ever changed."""

    def __init__(self, config: TransformerConfig, dtype: torch.dtype | None = None):
        from transformers import AutoConfig, AutoModel

        super().__init__()
        self.config = config
        sizes = AutoConfig.for_model(
            config.kind,
            hidden_size=config.d_model,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            intermediate_size=config.d_mlp,
            vocab_size=config.vocab_size,
            max_position_embeddings=config.max_positions,
            pad_token_id=None,
        )
        self.decoder: Any = AutoModel.from_config(sizes, attn_implementation="sdpa", dtype=dtype)

    @property
    def embedding(self) -> nn.Embedding:
        return self.decoder.get_input_embeddings()

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids (b, l) → (b, l, d_model)."""
        return self.embedding(ids)

    def forward(
        self, embeds: Tensor, state: Cache | None = None, *, scans: tuple[int, ...] = (), last_only: bool = False
    ) -> LanguageOutput:
        """Read embeds (b, l, d_model), going on from the cache `state`; there are no scans in a Transformer."""
        from transformers import DynamicCache

        cache = DynamicCache(config=self.decoder.config) if state is None else fork(state)
        hidden = self.decoder(inputs_embeds=embeds, past_key_values=cache, use_cache=True).last_hidden_state
        return LanguageOutput(hidden, self.head(hidden[:, -1:] if last_only else hidden), cache, {})

    def stepper(self) -> Callable[[Tensor, Cache], Tensor]:
        """What goes on from a cache, token by token."""
        return self.go_on

    def go_on(self, ids: Tensor, cache: Cache) -> Tensor:
        """Logits after ids (b, l), which are written to the cache itself; of `transformers`, of any kind."""
        hidden = self.decoder(inputs_embeds=self.embed(ids), past_key_values=cache, use_cache=True).last_hidden_state
        return self.head(hidden)

    def head(self, hidden: Tensor) -> Tensor:
        """Logits in float32 through the tied embedding: (..., d_model) → (..., vocab)."""
        weight = self.embedding.weight
        return F.linear(hidden.to(weight.dtype), weight).float()

    @staticmethod
    def state_bytes(state: Cache) -> int:
        """Memory of a cache: keys and values of every layer, for every token that was read."""
        return sum(t.numel() * t.element_size() for layer in state.layers for t in (layer.keys, layer.values))

    @staticmethod
    def repeat(state: Cache, k: int) -> Cache:
        """The cache of each sequence, k times: (b, …) → (b * k, …)."""
        repeated = fork(state)
        repeated.batch_repeat_interleave(k)
        return repeated


def fork(cache: Cache) -> Cache:
    """A cache that grows on its own: its layers put longer tensors in place of the old ones, which stay as they are."""
    other = copy.copy(cache)
    other.layers = [copy.copy(layer) for layer in cache.layers]
    return other
