"""Mamba-2: the selective scan of one direction, the block around it, the language model, and its steps."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlmamba.backend import kernels_for
from mlmamba.config import ConnectorConfig, LanguageConfig
from mlmamba.ssd import LayerWeights, Scan


class LayerState(NamedTuple):
    """What one layer carries from token to token: conv (b, d_conv-1, d_inner + 2n), ssm (b, h, p, n) in float32."""

    conv: Tensor
    ssm: Tensor


State = tuple[LayerState, ...]


def layered(tensors: Sequence[Tensor]) -> State:
    """The state whose tensors these are, in a row; `[*chain(*state)]` puts them there."""
    return tuple(LayerState(*pair) for pair in zip(tensors[::2], tensors[1::2], strict=True))


class RMSNorm(nn.Module):
    """x / rms(x) * weight, computed in float32; with a gate, of x * silu(gate)."""

    def __init__(self, d: int, eps: float = 1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d))
        self.eps = eps

    def forward(self, x: Tensor, gate: Tensor | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        return kernels_for(x.device.type).norm(x, self.weight, self.eps, dtype, gate)


class SelectiveScan(nn.Module):
    """One direction: convolution, Δ, A and D of its own, over a sequence that was projected to (z, x, B, C, Δ)."""

    def __init__(self, config: ConnectorConfig | LanguageConfig):
        super().__init__()
        self.heads, self.head_dim, self.d_state = config.n_heads, config.head_dim, config.d_state
        d_conv = config.d_inner + 2 * config.d_state
        self.conv_weight = nn.Parameter(torch.empty(d_conv, config.d_conv).uniform_(-0.5, 0.5))
        self.conv_bias = nn.Parameter(torch.zeros(d_conv))
        # Δ starts log-uniform in [0.001, 0.1] and A in [1, 16], as in the Mamba-2 paper's code
        dt = torch.exp(torch.empty(self.heads).uniform_(math.log(1e-3), math.log(1e-1)))
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus
        self.A_log = nn.Parameter(torch.empty(self.heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(self.heads))

    @property
    def A(self) -> Tensor:
        """Decay rates (h,), negative, in float32."""
        return -torch.exp(self.A_log.float())

    def forward(
        self, projected: Tensor, state: LayerState | None = None, length: Tensor | None = None
    ) -> tuple[Tensor, LayerState, Scan]:
        """projected: (b, l, d_projected) in scan order → y (b, l, d_inner) before gate and norm, state, scan.

        With `length`, a number that the device holds, no step from there on enters the state.
        """
        h, p, n = self.heads, self.head_dim, self.d_state
        kernels = kernels_for(projected.device.type)
        gate, xBC, dt = projected.split_with_sizes([h * p, h * p + 2 * n, h], dim=-1)
        xBC, conv = kernels.conv(xBC, self.conv_weight, self.conv_bias, state.conv if state else None, length)
        x, B, C = xBC.split_with_sizes([h * p, n, n], dim=-1)
        x, gate = x.unflatten(-1, (h, p)), gate.unflatten(-1, (h, p))
        dt, A, D = F.softplus(dt.float() + self.dt_bias.float()), self.A, self.D.float()
        if length is not None:  # a step with Δ = 0 neither decays nor feeds the state
            dt = dt * (torch.arange(dt.shape[1], device=dt.device) < length)[:, None]
        y, ssm = kernels.scan(x, dt, A, B, C, D, state.ssm if state else None)
        return y.flatten(-2), LayerState(conv, ssm), Scan(x, dt, A, B, C, D, gate)


def projected_size(config: ConnectorConfig | LanguageConfig) -> int:
    """Channels of `in_proj`: z and x (d_inner each), B and C (n each), Δ (one a head)."""
    return 2 * config.d_inner + 2 * config.d_state + config.n_heads


class Mamba2Layer(nn.Module):
    """x + mixer(rmsnorm(x)), with the residual in float32."""

    def __init__(self, config: LanguageConfig):
        super().__init__()
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.in_proj = nn.Linear(config.d_model, projected_size(config), bias=False)
        self.scan = SelectiveScan(config)
        self.gated_norm = RMSNorm(config.d_inner, config.norm_eps)
        self.out_proj = nn.Linear(config.d_inner, config.d_model, bias=False)

    def forward(
        self, x: Tensor, state: LayerState | None = None, length: Tensor | None = None
    ) -> tuple[Tensor, LayerState, Scan]:
        """x: (b, l, d_model) → the same shape, state, scan; `length` as above."""
        dtype = self.in_proj.weight.dtype
        projected = self.in_proj(self.norm(x, dtype=dtype))  # (b, l, d_projected)
        y, state, scan = self.scan(projected, state, length)
        y = self.gated_norm(y, projected[..., : y.shape[-1]], dtype)
        return x + self.out_proj(y), state, scan


@dataclass(frozen=True)
class LanguageOutput:
    """hidden: (b, l, d_model) after the last norm; logits: (b, l or 1, vocab); scans of the layers asked for.

    `state` is what to go on from: a `State`, or a Transformer's cache.
    """

    hidden: Tensor
    logits: Tensor
    state: Any
    scans: dict[int, Scan]


class LanguageModel(nn.Module):
    """Mamba-2 with the embedding tied to the head."""

    def __init__(self, config: LanguageConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        layers = [Mamba2Layer(config) for _ in range(config.n_layers)]
        self.layers = nn.ModuleList(layers)
        self.norm_f = RMSNorm(config.d_model, config.norm_eps)
        nn.init.normal_(self.embedding.weight, std=0.02)
        for layer in layers:  # keep the residual's variance independent of depth
            layer.out_proj.weight.data /= math.sqrt(config.n_layers)

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids (b, l) → (b, l, d_model)."""
        return self.embedding(ids)

    def forward(
        self,
        embeds: Tensor,
        state: State | None = None,
        *,
        scans: tuple[int, ...] = (),
        last_only: bool = False,
        length: Tensor | None = None,
    ) -> LanguageOutput:
        """Read embeds (b, l, d_model), going on from `state`; `last_only` gives logits of the last position alone.

        `length`, a number that the device holds: of embeds only so many count, the rest fills a fixed size.
        """
        x, states, kept = embeds.float(), [], {}
        for i, layer in enumerate(self.layers):
            x, layer_state, scan = layer(x, state[i] if state else None, length)
            states.append(layer_state)
            if i in scans:
                kept[i] = replace(scan, gate=scan.gate.clone())  # a view would keep all that was projected
        hidden = self.norm_f(x)
        last = hidden[:, -1:] if length is None else hidden.index_select(1, length.view(1) - 1)
        logits = self.head(last if last_only else hidden)
        return LanguageOutput(hidden, logits, tuple(states), kept)

    def head(self, hidden: Tensor) -> Tensor:
        """Logits in float32 through the tied embedding: (..., d_model) → (..., vocab)."""
        weight = self.embedding.weight
        return F.linear(hidden.to(weight.dtype), weight).float()

    def stepper(self) -> "Stepper":
        """What goes on from a state, token by token."""
        return Stepper(self)

    def empty(self, b: int) -> State:
        """The states of `b` sequences of which nothing was read yet."""
        c, weight = self.config, self.embedding.weight
        conv, ssm = (c.d_conv - 1, c.d_inner + 2 * c.d_state), (c.n_heads, c.head_dim, c.d_state)
        return tuple(
            LayerState(weight.new_zeros(b, *conv), weight.new_zeros(b, *ssm, dtype=torch.float32)) for _ in self.layers
        )

    @staticmethod
    def state_bytes(state: State) -> int:
        """Memory of a carried state; it does not grow with what was read."""
        return sum(t.numel() * t.element_size() for layer in state for t in (layer.conv, layer.ssm))

    @staticmethod
    def repeat(state: State, k: int) -> State:
        """The state of each sequence, k times: (b, …) → (b * k, …)."""
        return tuple(LayerState(s.conv.repeat_interleave(k, 0), s.ssm.repeat_interleave(k, 0)) for s in state)


def step_weights(layer: Mamba2Layer) -> LayerWeights:
    """A layer's weights made ready for steps."""
    scan = layer.scan
    return LayerWeights(
        norm=layer.norm.weight.float(),
        in_proj=layer.in_proj.weight,
        conv_weight=scan.conv_weight.T.float().contiguous(),
        conv_bias=scan.conv_bias.float(),
        dt_bias=scan.dt_bias.float(),
        A=scan.A,
        D=scan.D.float().repeat_interleave(scan.head_dim),
        gated_norm=layer.gated_norm.weight.float(),
        out_proj=layer.out_proj.weight,
    )


class Stepper:
    """A language model one token at a time, by the recurrence: what `forward` computes, on weights made ready once.

    It does not see what becomes of the model's weights later. To be used without gradients.
    """

    @torch.no_grad()
    def __init__(self, lm: LanguageModel):
        self.embedding, self.eps = lm.embedding.weight, lm.config.norm_eps
        kernels = kernels_for(self.embedding.device.type)
        self.layer_step, self.product = kernels.layer_step, kernels.product
        layers: Any = lm.layers
        self.layers = [step_weights(layer) for layer in layers]
        self.last_norm = lm.norm_f.weight.float()

    def __call__(self, ids: Tensor, state: State) -> Tensor:
        """ids (b, 1) → logits (b, 1, vocab) in float32; `state` is written over."""
        x = F.embedding(ids[:, 0], self.embedding).float()
        for layer, carried in zip(self.layers, state, strict=True):
            x = self.layer_step(x, layer, carried.conv, carried.ssm, self.eps)
        return self.product(x, self.last_norm, self.eps, self.embedding).float()[:, None]
