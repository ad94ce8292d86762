"""In Triton: the norm of a sequence by one launch, and one token through a Mamba-2 layer by three.

The three are two products of what was normed, and the recurrence:

    projected = rms_norm(x) in_projᵀ, of which x, B and C go through the convolution's step on the way out
    y = (H C + D x) · silu(z), with H = exp(Δ A) H + Δ x Bᵀ
    x + rms_norm(y) out_projᵀ

As operations of PyTorch it is 26 launches in bfloat16. The weights of a layer of the 3B model take an H200's memory
less than 20 microseconds (81 MB at 4.3 TB/s), beside which so many launches would not be small. And where a sequence is
read, a norm with its gate would go over float32 seven times. All is summed in float32, whatever dtype the weights have;
nothing is differentiable.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mlmamba import ssd
from mlmamba.backend import undisturbed
from mlmamba.ssd import LayerWeights

NAME = "Triton norms and steps"
ROWS = 16  # of a head's state (p, n), in one program
TOGETHER = 16  # sequences in one program: as many as a product on tensor cores takes at least
# Large weights are read as fast as the memory gives them by the best of these, found out at the first product of a
# size; small ones take the first. One sequence is summed by plain arithmetic, several by tensor cores, which don't
# have float32 as it is: of that, each sequence is summed alone.
ONE = [
    triton.Config({"BLOCK_N": n, "BLOCK_K": k}, num_warps=warps)
    for n, k, warps in ((4, 512, 4), (4, 1024, 4), (8, 512, 4), (8, 1024, 8), (2, 1024, 4), (16, 512, 8))
]
SEVERAL = [
    triton.Config({"BLOCK_N": n, "BLOCK_K": k}, num_warps=4, num_stages=stages)
    for n, k, stages in ((16, 128, 3), (16, 256, 4), (32, 128, 4), (32, 256, 3), (64, 64, 5), (64, 128, 3))
]
TUNED_FROM = 1 << 20  # weights


@triton.jit
def _product(
    x, norm, weight, y, onto, conv_weight, conv_bias, conv, b, n, k, first, channels, eps,
    ONTO: tl.constexpr, WIDTH: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_N channels of rms_norm(x) weightᵀ, of BLOCK_B sequences.

    ONTO: added to `onto`. WIDTH: of the convolution that `channels` of them go through, from the channel `first` on;
    their inputs move up by one place in its state `conv`. 0: none do.
    """
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    at = tl.program_id(1) * BLOCK_B + tl.arange(0, BLOCK_B)
    is_row, is_there = row < n, at < b
    squares = tl.zeros((BLOCK_B, BLOCK_K), tl.float32)
    for start in range(0, k, BLOCK_K):
        column = start + tl.arange(0, BLOCK_K)
        value = tl.load(x + at[:, None] * k + column[None, :], is_there[:, None] & (column < k)[None, :], 0.0)
        squares += value * value
    scale = tl.rsqrt(tl.sum(squares, 1) / k + eps)
    if BLOCK_B == 1:
        products = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    else:
        total = tl.zeros((BLOCK_N, BLOCK_B), tl.float32)
    for start in range(0, k, BLOCK_K):
        column = start + tl.arange(0, BLOCK_K)
        inside = column < k
        weights = tl.load(weight + row[:, None] * k + column[None, :], is_row[:, None] & inside[None, :], 0.0)
        value = tl.load(x + at[:, None] * k + column[None, :], is_there[:, None] & inside[None, :], 0.0)
        value *= scale[:, None] * tl.load(norm + column, inside, 0.0)[None, :]
        if BLOCK_B == 1:
            products += weights.to(tl.float32) * value
        else:
            total = tl.dot(weights, tl.trans(value.to(weights.dtype)), total)
    if BLOCK_B == 1:
        total = tl.sum(products, 1)[:, None]
    inside = is_row[:, None] & is_there[None, :]
    if ONTO:
        total += tl.load(onto + at[None, :] * n + row[:, None], inside, 0.0)
    if WIDTH > 0:
        channel = row - first
        convolved = (channel >= 0) & (channel < channels)
        here = convolved[:, None] & is_there[None, :]
        tap = tl.arange(0, triton.next_power_of_2(WIDTH - 1))
        is_tap = tap < WIDTH - 1
        place = conv + (at[None, None, :] * (WIDTH - 1) + tap[None, :, None]) * channels + channel[:, None, None]
        held = tl.load(place, here[:, None, :] & is_tap[None, :, None], 0.0)  # (BLOCK_N, taps, BLOCK_B)
        taps = tl.load(
            conv_weight + tap[None, :] * channels + channel[:, None], convolved[:, None] & is_tap[None, :], 0.0
        )
        last = tl.load(conv_weight + (WIDTH - 1) * channels + channel, convolved, 0.0)
        mixed = tl.sum(taps[:, :, None] * held.to(tl.float32), 1) + last[:, None] * total
        mixed += tl.load(conv_bias + channel, convolved, 0.0)[:, None]
        tl.debug_barrier()  # several threads may have loaded what one of them writes over
        tl.store(place - channels, held, here[:, None, :] & (is_tap & (tap > 0))[None, :, None])
        newest = conv + (at[None, :] * (WIDTH - 1) + WIDTH - 2) * channels + channel[:, None]
        tl.store(newest, total, here)
        total = tl.where(convolved[:, None], mixed / (1 + tl.exp(-mixed)), total)
    tl.store(y + at[None, :] * n + row[:, None], total, inside)


@triton.jit
def _ssd_step(projected, dt_bias, A, D, state, y, h, p, n, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """One program: ROWS of the state (p, n) of one head of a sequence."""
    b, head = tl.program_id(0), tl.program_id(1)
    row = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    is_row, is_column = row < p, column < n
    inside = is_row[:, None] & is_column[None, :]
    z = projected + b * (2 * h * p + 2 * n + h)
    x = z + h * p
    # Δ = softplus; log(1 + e) as Kahan has it, since 1 + e loses digits of a small e
    raw = tl.load(x + h * p + 2 * n + head) + tl.load(dt_bias + head)
    e = tl.exp(tl.minimum(raw, 20.0))
    u = 1 + e
    delta = tl.where(raw > 20, raw, tl.where(u == 1, e, tl.log(u) * (e / tl.where(u == 1, 1.0, u - 1))))
    decay = tl.exp(delta * tl.load(A + head))
    B = tl.load(x + h * p + column, is_column, 0.0)
    C = tl.load(x + h * p + n + column, is_column, 0.0)
    channel = head * p + row
    fed = tl.load(x + channel, is_row, 0.0)
    place = state + ((b * h + head) * p + row)[:, None] * n + column[None, :]
    H = tl.load(place, inside, 0.0) * decay + (fed * delta)[:, None] * B[None, :]
    tl.debug_barrier()  # as above
    tl.store(place, H, inside)
    read = tl.sum(H * C[None, :], axis=1) + tl.load(D + channel, is_row, 0.0) * fed
    gate = tl.load(z + channel, is_row, 0.0)
    tl.store(y + b * h * p + channel, read * gate / (1 + tl.exp(-gate)), is_row)


@triton.jit
def _rms_norm(x, weight, gate, y, x_step, gate_step, d, eps, GATED: tl.constexpr, BLOCK: tl.constexpr):
    """One program: the d channels of one place. From place to place it is x_step in x, gate_step in the gate."""
    place = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < d
    value = tl.load(x + place * x_step + column, inside, 0.0).to(tl.float32)
    if GATED:
        z = tl.load(gate + place * gate_step + column, inside, 0.0).to(tl.float32)
        value *= z / (1 + tl.exp(-z))
    scale = tl.rsqrt(tl.sum(value * value, 0) / d + eps)
    tl.store(y + place * d + column, value * scale * tl.load(weight + column, inside, 0.0).to(tl.float32), inside)


_tuners = [
    triton.autotune(configs, key=["n", "k", "ONTO", "WIDTH"], cache_results=True)(_product)
    for configs in (ONE, SEVERAL)
]
_best: dict[tuple, triton.Config] = {}


def product(
    x: Tensor, norm: Tensor, eps: float, weight: Tensor, onto: Tensor | None = None,
    convolution: tuple[int, Tensor, Tensor, Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """`ssd.normed_product` in one launch, (b, n) in float32, added to `onto` if given.

    convolution: the first channel that goes through it, and its weight, bias and state, which is written over.
    """
    b, k = x.shape
    n = weight.shape[0]
    y = x.new_empty(b, n)
    first, conv_weight, conv_bias, conv = convolution or (0, x, x, x)
    width, channels = conv_weight.shape if convolution else (0, 0)
    several = b > 1 and weight.dtype != torch.float32
    kinds = {"ONTO": onto is not None, "WIDTH": width, "BLOCK_B": TOGETHER if several else 1}

    def grid(sizes: dict[str, int]) -> tuple[int, int]:
        return triton.cdiv(n, sizes["BLOCK_N"]), triton.cdiv(b, sizes["BLOCK_B"])

    def launch(kernel: Any, state: Tensor, **sizes: Any) -> None:
        kernel[grid](
            x, norm, weight, y, x if onto is None else onto, conv_weight, conv_bias, state, b, n, k, first, channels,
            eps, **kinds, **sizes,
        )  # fmt: skip

    key = n, k, weight.dtype, x.device, *kinds.values()
    config = _best.get(key) if weight.numel() >= TUNED_FROM else (SEVERAL if several else ONE)[0]
    with torch.accelerator.device_index(x.device.index):
        if config is None:
            with undisturbed:
                launch(_tuners[several], conv.clone())  # a copy, over which all that are tried may write
                config = _best[key] = _tuners[several].best_config
        launch(_product, conv, **config.all_kwargs())
    return y


def by_place(x: Tensor) -> Tensor:
    """(…, d) → (places, d) with channels side by side: a view, also of what is a part of wider places."""
    flat = x.reshape(-1, x.shape[-1])
    return flat if flat.stride(1) == 1 else flat.contiguous()


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype, gate: Tensor | None = None) -> Tensor:
    """`ssd.rms_norm` in one launch; where gradients are wanted, that itself."""
    if torch.is_grad_enabled():
        return ssd.rms_norm(x, weight, eps, dtype, gate)
    d = x.shape[-1]
    y = torch.empty(x.shape, dtype=dtype, device=x.device)
    places, gates = by_place(x), by_place(x if gate is None else gate)
    with torch.accelerator.device_index(x.device.index):
        _rms_norm[(len(places),)](
            places, weight, gates, y, places.stride(0), gates.stride(0), d, eps,
            GATED=gate is not None, BLOCK=triton.next_power_of_2(d), num_warps=8,
        )  # fmt: skip
    return y


def layer_step(x: Tensor, weights: LayerWeights, conv: Tensor, ssm: Tensor, eps: float) -> Tensor:
    """`ssd.layer_step` in three launches."""
    if not (conv.is_contiguous() and ssm.is_contiguous()):
        raise ValueError("A step writes over its states; they have to be contiguous.")
    b, h, p, n = ssm.shape
    convolution = h * p, weights.conv_weight, weights.conv_bias, conv
    projected = product(x, weights.norm, eps, weights.in_proj, convolution=convolution)
    y = x.new_empty(b, h * p)
    with torch.accelerator.device_index(x.device.index):
        _ssd_step[b, h, triton.cdiv(p, ROWS)](
            projected, weights.dt_bias, weights.A, weights.D, ssm, y, h, p, n,
            ROWS=ROWS, COLUMNS=triton.next_power_of_2(n),
        )  # fmt: skip
    return product(y, weights.gated_norm, eps, weights.out_proj, onto=x)


@torch.no_grad()
def try_out(device_type: str) -> None:
    """Take a norm, and a step of a small layer, alone and with another. Raises what Triton raises where it can't (it
    wants a C compiler, for instance), and ArithmeticError where plain PyTorch computes something else: compilers have
    erred.
    """
    h, p, n, d, eps = 2, 16, 16, 64, 1e-5
    channels = h * p + 2 * n
    draw = torch.Generator().manual_seed(0)
    sizes = (d,), (h * p + channels + h, d), (4, channels), (channels,), (h,), (h,), (h * p,), (h * p,), (d, h * p)
    drawn = LayerWeights(*(torch.randn(*size, generator=draw).to(device_type) for size in sizes))
    weights = drawn._replace(in_proj=drawn.in_proj.half(), out_proj=drawn.out_proj.half(), A=-drawn.A.exp())
    for b in (1, 2):
        x, conv, ssm = (
            torch.randn(b, *size, generator=draw).to(device_type) for size in ((d,), (3, channels), (h, p, n))
        )
        here, there = [(weights, conv.half(), ssm.clone(), eps) for _ in range(2)]
        normed = x, weights.norm, eps, torch.float16, x
        ours = rms_norm(*normed), layer_step(x, *here), *here[1:3]
        results = zip(ours, (ssd.rms_norm(*normed), ssd.layer_step(x, *there), *there[1:3]), strict=True)
        if not all(torch.allclose(one.float(), other.float(), atol=0.05, rtol=0.05) for one, other in results):
            raise ArithmeticError("Triton's kernels compute something else here than plain PyTorch does.")
