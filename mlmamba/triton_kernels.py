"""One token through a Mamba-2 layer, in Triton: norm, the convolution's step, the recurrence's step, gated norm.

With its two products and the residual's sum that is 7 launches a layer; as operations of PyTorch it is 26 in bfloat16,
and each costs a GPU its microseconds. All compute in float32, whatever dtype comes in. Nothing is tuned at the first
call, and nothing is differentiable.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

NAME = "Triton steps"
CHANNELS = 256  # of a convolution, in one program
ROWS = 16  # of a head's state (p, n), in one program


@triton.jit
def _conv_step(x, weight, bias, state, y, channels, x_stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """One program: BLOCK channels of a sequence. Its inputs move up by one place in `state`."""
    b = tl.program_id(0)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = channel < channels
    new = tl.load(x + b * x_stride + channel, inside, 0.0)
    total = tl.load(bias + channel, inside, 0.0)
    total += tl.load(weight + (WIDTH - 1) * channels + channel, inside, 0.0) * new.to(tl.float32)
    place = state + b * (WIDTH - 1) * channels + channel
    for k in tl.static_range(WIDTH - 1):
        held = tl.load(place + k * channels, inside, 0.0)
        total += tl.load(weight + k * channels + channel, inside, 0.0) * held.to(tl.float32)
        if k > 0:
            tl.store(place + (k - 1) * channels, held, inside)
    tl.store(place + (WIDTH - 2) * channels, new, inside)
    tl.store(y + b * channels + channel, total / (1 + tl.exp(-total)), inside)


@triton.jit
def _ssd_step(
    xBC, dt, dt_bias, A, D, state, y, dt_stride, h, p, n, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """One program: ROWS of the state (p, n) of one head of a sequence."""
    b, head = tl.program_id(0), tl.program_id(1)
    row = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    is_row, is_column = row < p, column < n
    inside = is_row[:, None] & is_column[None, :]
    # Δ = softplus; log(1 + e) as Kahan has it, since 1 + e loses digits of a small e
    raw = tl.load(dt + b * dt_stride + head).to(tl.float32) + tl.load(dt_bias + head)
    e = tl.exp(tl.minimum(raw, 20.0))
    u = 1 + e
    delta = tl.where(raw > 20, raw, tl.where(u == 1, e, tl.log(u) * (e / tl.where(u == 1, 1.0, u - 1))))
    decay = tl.exp(delta * tl.load(A + head))
    start = xBC + b * (h * p + 2 * n)
    x = tl.load(start + head * p + row, is_row, 0.0)
    B = tl.load(start + h * p + column, is_column, 0.0)
    C = tl.load(start + h * p + n + column, is_column, 0.0)
    place = state + ((b * h + head) * p + row)[:, None] * n + column[None, :]
    H = tl.load(place, inside, 0.0) * decay + (x * delta)[:, None] * B[None, :]
    tl.store(place, H, inside)
    read = tl.sum(H * C[None, :], axis=1) + tl.load(D + head * p + row, is_row, 0.0) * x
    tl.store(y + (b * h + head) * p + row, read, is_row)


@triton.jit
def _rms_norm(
    x, weight, gate, y, d, gate_stride, eps, GATED: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """One program: one row."""
    row = tl.program_id(0)
    channel = tl.arange(0, BLOCK)
    inside = channel < d
    value = tl.load(x + row * d + channel, inside, 0.0)
    if GATED:
        z = tl.load(gate + row * gate_stride + channel, inside, 0.0).to(tl.float32)
        value *= z / (1 + tl.exp(-z))
    value *= tl.rsqrt(tl.sum(value * value) / d + eps)
    tl.store(y + row * d + channel, value * tl.load(weight + channel, inside, 0.0), inside)


def step(
    projected: Tensor, conv_weight: Tensor, conv_bias: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor,
    conv: Tensor, ssm: Tensor,
) -> Tensor:  # fmt: skip
    """`ssd.selective_step` in two launches; `projected` may have any dtype."""
    if not (conv.is_contiguous() and ssm.is_contiguous()):
        raise ValueError("A step writes over its states; they have to be contiguous.")
    b, h, p, n = ssm.shape
    width, channels = conv_weight.shape
    xBC, dt = projected[:, h * p :], projected[:, h * p + channels :]
    convolved, y, stride = ssm.new_empty(b, channels), ssm.new_empty(b, h * p), projected.stride(0)
    with torch.accelerator.device_index(ssm.device.index):
        _conv_step[b, triton.cdiv(channels, CHANNELS)](
            xBC, conv_weight, conv_bias, conv, convolved, channels, stride, WIDTH=width, BLOCK=CHANNELS
        )
        _ssd_step[b, h, triton.cdiv(p, ROWS)](
            convolved, dt, dt_bias, A, D, ssm, y, stride, h, p, n, ROWS=ROWS, COLUMNS=triton.next_power_of_2(n)
        )
    return y


def norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype, gate: Tensor | None = None) -> Tensor:
    """`ssd.rms_norm` of x (b, d), in one launch; x and weight are float32, the gate may have any dtype."""
    b, d = x.shape
    y = torch.empty_like(x, dtype=dtype)
    stride = 0 if gate is None else gate.stride(0)
    with torch.accelerator.device_index(x.device.index):
        _rms_norm[b,](
            x, weight, gate, y, d, stride, eps, GATED=gate is not None, BLOCK=triton.next_power_of_2(d), num_warps=8
        )
    return y


def try_out(device_type: str) -> None:
    """Launch a kernel. Raises what Triton raises where it can't: it wants a C compiler, for instance."""
    one = torch.ones(1, 1, device=device_type)
    norm(one, one[0], 1e-5, one.dtype)
