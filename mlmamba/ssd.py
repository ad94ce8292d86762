"""The state space of Mamba-2, three ways: chunked (prefill), one step (decode), and what a scan was (`Scan`).

With the convolution before it and the norm after it, all in plain PyTorch; `mlmamba.backend` may pick faster forms.

Glossary, here and in every file that follows (paper's sign in brackets):

    b  batch          l  length            h  heads           p  head_dim
    n  d_state        q  chunk             c  chunks          dt time step (Δ, after softplus)
    A  decay rate, negative, one a head    B  what enters the state    C  what is read from it
    D  skip from x to y

The recurrence that all of them compute (Mamba-2, arXiv 2405.21060, with one group of B and C):

    H_t = exp(Δ_t A) H_{t-1} + Δ_t x_t B_tᵀ        H: (p, n), kept in float32
    y_t = H_t C_t + D x_t
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 64  # on CPUs a smaller chunk than the published 256 is faster; the result is the same


@dataclass(frozen=True)
class Scan:
    """What one direction of one layer scanned: enough to replay every state it went through.

    x: (b, l, h, p), dt: (b, l, h), A: (h,), B and C: (b, l, n), D: (h,), gate (z before SiLU): (b, l, h, p),
    all in scan order; `order` (l,) holds the position in the sequence of each step, None for left to right.
    """

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    gate: Tensor
    order: Tensor | None = None


def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    state: Tensor | None = None,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """Scan a whole sequence at once, chunk by chunk.

    x: (b, l, h, p), dt: (b, l, h), A: (h,), B and C: (b, l, n), D: (h,), state: (b, h, p, n) or None for zeros.
    Returns y (b, l, h, p) and the state after the last step (b, h, p, n), both float32.
    """
    b, length, h, p = x.shape
    n = B.shape[-1]
    c = -(-length // chunk)
    q = -(-length // c)  # equal chunks need the least padding
    pad = c * q - length
    x, dt, B, C = (t.float() for t in (x, dt, B, C))
    skip = x * D[:, None]
    if pad:  # a step with Δ = 0 neither decays nor feeds the state
        x, dt, B, C = (F.pad(t, (0,) * (2 * t.ndim - 4) + (0, pad)) for t in (x, dt, B, C))
    dt = dt.view(b, c, q, h).permute(0, 1, 3, 2)  # (b, c, h, q)
    x = x.view(b, c, q, h, p).permute(0, 1, 3, 2, 4) * dt[..., None]  # Δ x: (b, c, h, q, p)
    B, C = B.view(b, c, q, n), C.view(b, c, q, n)
    decay = torch.cumsum(dt * A[:, None], dim=-1)  # log of the decay since the chunk's start: (b, c, h, q)

    # 1. within a chunk: y_t = Σ_s≤t (C_t·B_s) exp(decay_t - decay_s) Δ_s x_s
    later = torch.ones(q, q, dtype=torch.bool, device=x.device).triu(1)
    paths = (decay[..., :, None] - decay[..., None, :]).masked_fill(later, -torch.inf).exp()  # (b, c, h, q, q)
    y = (paths * (C @ B.mT)[:, :, None]) @ x  # (b, c, h, q, p)
    # 2. what each chunk alone leaves in the state
    fed = (x * (decay[..., -1:] - decay).exp()[..., None]).mT @ B[:, :, None]  # (b, c, h, p, n)
    # 3. the state at each chunk's start, chunk after chunk
    state = x.new_zeros(b, h, p, n) if state is None else state.float()
    starts = []
    for i in range(c):
        starts.append(state)
        state = state * decay[:, i, :, -1].exp()[..., None, None] + fed[:, i].float()
    # 4. what earlier chunks give to this one's outputs
    carried = C[:, :, None] @ torch.stack(starts, dim=1).mT  # (b, c, h, q, p)
    y = y + carried * decay.exp()[..., None]
    y = y.permute(0, 1, 3, 2, 4).reshape(b, c * q, h, p)[:, :length]
    return y + skip, state


def ssd_recurrence(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same as `ssd`, step by step: slow, plain, the reference that faster paths are tested against.

    Returns y (b, l, h, p) and every state, (b, l, h, p, n).
    """
    x, dt, B, C = (t.float() for t in (x, dt, B, C))
    b, length, h, p = x.shape
    state = x.new_zeros(b, h, p, B.shape[-1]) if state is None else state
    ys, states = [], []
    for t in range(length):
        decay = (dt[:, t] * A).exp()[..., None, None]
        state = decay * state + (dt[:, t, :, None] * x[:, t])[..., None] * B[:, t, None, None]
        ys.append((state * C[:, t, None, None]).sum(-1) + D[:, None] * x[:, t])
        states.append(state)
    return torch.stack(ys, dim=1), torch.stack(states, dim=1)


def causal_conv(
    x: Tensor, weight: Tensor, bias: Tensor, state: Tensor | None = None, length: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Depthwise causal convolution, then SiLU: x (b, l, d), weight (d, width) → (b, l, d), the last width-1 inputs.

    The state that is returned is that after the first `length` inputs, a number that the device holds; None: after all.
    """
    width = weight.shape[-1]
    before = x.new_zeros(x.shape[0], width - 1, x.shape[2]) if state is None else state.to(x.dtype)
    seen = torch.cat([before, x], dim=1)
    y = F.conv1d(seen.mT, weight[:, None], bias, groups=weight.shape[0]).mT
    return F.silu(y), last_inputs(seen, width - 1, length)


def last_inputs(seen: Tensor, n: int, length: Tensor | None) -> Tensor:
    """The last n of inputs (b, n + l, d), or of the first n + `length` of them; a copy, for a view would keep all."""
    if length is None:
        return seen[:, -n:].clone()
    return seen.index_select(1, length + torch.arange(n, device=seen.device))


def selective_step(
    projected: Tensor, conv_weight: Tensor, conv_bias: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor,
    conv: Tensor, ssm: Tensor,
) -> Tensor:  # fmt: skip
    """One token of a whole selective scan: the convolution's step, Δ, and the recurrence's step, in float32.

    projected (b, d_projected) to (z, x, B, C, Δ) → y (b, d_inner) before gate and norm. The states conv (b, width-1,
    d_inner + 2n) and ssm (b, h, p, n) are written over. conv_weight (width, d_inner + 2n) and D (d_inner) are laid out
    so that few operations do: on a CPU, too, their number is what a token costs.
    """
    b, h, p, n = ssm.shape
    _, xBC, dt = projected.float().split_with_sizes([h * p, h * p + 2 * n, h], dim=-1)
    seen = torch.cat([conv, xBC[:, None]], dim=1)
    conv.copy_(seen[:, 1:])
    xBC = F.silu((seen * conv_weight).sum(1).add_(conv_bias), inplace=True)
    x, B, C = xBC.split_with_sizes([h * p, n, n], dim=-1)
    dt = F.softplus(dt + dt_bias)
    ssm.mul_((dt * A).exp_()[..., None, None])
    fed = x.view(b, h, p) * dt[..., None]
    state = ssm.view(b, h * p, n).baddbmm_(fed.view(b, h * p, 1), B[:, None])
    y = torch.bmm(state, C[..., None]).view(b, h * p)
    return torch.addcmul(y, x, D)


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype, gate: Tensor | None = None) -> Tensor:
    """x / rms(x) * weight over the last dimension, computed in float32; with a gate, of x * silu(gate)."""
    x = x.float()
    if gate is not None:
        x = x * F.silu(gate.float())
    return F.rms_norm(x, (x.shape[-1],), weight.float(), eps).to(dtype)


class LayerWeights(NamedTuple):
    """A layer's weights as a step takes them: its two projections in their dtype, the others in float32.

    norm (d_model), in_proj (d_projected, d_model), conv_weight (width, d_inner + 2n), conv_bias (d_inner + 2n),
    dt_bias (h), A (h), D (d_inner), gated_norm (d_inner), out_proj (d_model, d_inner).
    """

    norm: Tensor
    in_proj: Tensor
    conv_weight: Tensor
    conv_bias: Tensor
    dt_bias: Tensor
    A: Tensor
    D: Tensor
    gated_norm: Tensor
    out_proj: Tensor


def layer_step(x: Tensor, weights: LayerWeights, conv: Tensor, ssm: Tensor, eps: float) -> Tensor:
    """One token through a Mamba-2 layer: x (b, d_model), the residual in float32, → the same; states as above."""
    w = weights
    projected = normed_product(x, w.norm, eps, w.in_proj)  # (b, d_projected)
    y = selective_step(projected, w.conv_weight, w.conv_bias, w.dt_bias, w.A, w.D, conv, ssm)
    return x + normed_product(y, w.gated_norm, eps, w.out_proj, projected[:, : y.shape[1]])


def normed_product(x: Tensor, norm: Tensor, eps: float, weight: Tensor, gate: Tensor | None = None) -> Tensor:
    """rms_norm(x) weightᵀ: x (b, k), weight (n, k) → (b, n) in the weight's dtype."""
    return F.linear(rms_norm(x, norm, eps, weight.dtype, gate), weight)
