"""Our Triton kernels of one token: on the GPU, or interpreted on the CPU, against plain PyTorch, against mamba-ssm's
state update where that is at hand, and as a whole against transformers' Mamba-2. Without a GPU they are compiled too.

Processes of their own, since Triton decides at its import whether to interpret.
"""

import pytest
import torch

from tests.test_cuda_kernels import BESIDE, ROOT, needs_kernels, run_check

pytest.importorskip("triton", reason="no Triton for this system")

START = """
import torch
from mlmamba import triton_kernels as fast, ssd
on = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)

def case(b, h, p, n, dtype=torch.float32):
    channels = h * p + 2 * n
    sizes = (b, h * p + channels + h), (4, channels), (channels,), (h,), (h,), (h * p,), (b, 3, channels), (b, h, p, n)
    projected, weight, bias, dt_bias, A, D, conv, ssm = (torch.randn(*size, device=on) for size in sizes)
    return projected.to(dtype), weight, bias, dt_bias, -A.exp(), D, conv.to(dtype), ssm
"""
PLAIN = """
for b, h, p, n in ((1, 8, 64, 128), (3, 5, 24, 20)):
    for dtype in (torch.float32, torch.bfloat16):
        given = case(b, h, p, n, dtype)
        again = [tensor.clone() for tensor in given]
        y, expected = fast.step(*given), ssd.selective_step(*again)
        torch.testing.assert_close(y, expected, atol=1e-4, rtol=1e-5)
        for got, expected in zip(given, again, strict=True):
            torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-5)

    # a Δ that is nearly shut keeps its digits: all that a fresh state holds is Δ x B
    for closed in (-30.0, -16.0, -12.0, -8.0, 25.0):
        given = case(b, h, p, n)
        given[3].fill_(closed)
        given[-1].zero_()
        again = [tensor.clone() for tensor in given]
        fast.step(*given), ssd.selective_step(*again)
        torch.testing.assert_close(given[-1], again[-1], atol=0, rtol=2e-4)

    x, weight, wide = torch.randn(b, h * p), torch.randn(h * p), torch.randn(b, 3 * h * p)
    x, weight, gate = x.to(on), weight.to(on), wide.to(on)[:, p : p + h * p]
    for gated in (None, gate, gate.bfloat16()):
        given = x, weight, 1e-5, torch.float32, gated
        torch.testing.assert_close(fast.norm(*given), ssd.rms_norm(*given))
        given = x, weight, 1e-5, torch.bfloat16, gated
        torch.testing.assert_close(fast.norm(*given), ssd.rms_norm(*given), atol=0, rtol=1e-2)
print("same as plain PyTorch")
"""
UPDATE = """
import contextlib, sys
sys.modules.setdefault("selective_scan_cuda", type(sys)("selective_scan_cuda"))
if on == "cpu":
    torch.cuda.device = lambda *_: contextlib.nullcontext()
from mamba_ssm.ops.triton.selective_state_update import selective_state_update
b, h, p, n = 2, 4, 16, 16
projected, weight, bias, dt_bias, A, D, conv, ssm = case(b, h, p, n)
seen, state = torch.cat([conv, projected[:, None, h * p : -h]], 1), ssm.clone()
y = fast.step(projected, weight, bias, dt_bias, A, D, conv, state)
mixed = torch.nn.functional.silu((seen * weight).sum(1) + bias)
x, B, C = mixed[:, : h * p].view(b, h, p), mixed[:, None, h * p : -n], mixed[:, None, -n:]
per_head = lambda t: t[..., None].expand(*t.shape, p)
expected = selective_state_update(
    ssm, x, per_head(projected[:, -h:]), per_head(A)[..., None].expand(h, p, n), B, C, D=D.view(h, p),
    dt_bias=per_head(dt_bias), dt_softplus=True,
)
torch.testing.assert_close(y.view(b, h, p), expected, atol=1e-4, rtol=1e-4)
torch.testing.assert_close(state, ssm, atol=1e-4, rtol=1e-4)
print("same as mamba-ssm's update")
"""
WHOLE = """
from mlmamba import backend, mamba2
from mlmamba.bench.peers import their_mamba2
from mlmamba.config import LanguageConfig
fused = backend.PLAIN._replace(step=fast.step, norm=fast.norm)
mamba2.kernels_for = lambda device_type: fused
lm = mamba2.LanguageModel(LanguageConfig(64, 2, 104, 16, 32)).to(on).eval().requires_grad_(False)
theirs = their_mamba2(lm).to(on)
ids = torch.randint(104, (2, 9), device=on)
with torch.inference_mode():
    expected = theirs(ids).logits
    output = lm(lm.embed(ids[:, :4]))
    step = lm.stepper()
    for i in range(4, 9):
        logits = step(ids[:, i : i + 1], output.state)
        torch.testing.assert_close(logits[:, 0], expected[:, i], atol=1e-4, rtol=1e-4)
print("same as transformers")
"""
COMPILED = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from mlmamba import triton_kernels as kernels

def compile(kernel, half, full, numbers, options=None, real=(), **constants):
    signature = dict.fromkeys(half, "*{half}") | dict.fromkeys(full, "*fp32") | dict.fromkeys(numbers, "i32")
    signature |= dict.fromkeys(real, "fp32") | dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernel, {{name: signature[name] for name in kernel.arg_names}}, constexprs=constants)
    assert triton.compile(source, target=GPUTarget("cuda", {capability}, 32), options=options or {{}}).asm["cubin"]

ours = ["dt"], ["xBC", "dt_bias", "A", "D", "state", "y"], ["dt_stride", "h", "p", "n"]
compile(kernels._ssd_step, *ours, ROWS=kernels.ROWS, COLUMNS=128)
ours = ["x", "state"], ["weight", "bias", "y"], ["channels", "x_stride"]
compile(kernels._conv_step, *ours, WIDTH=4, BLOCK=kernels.CHANNELS)
for gated in (False, True):
    ours = ["gate", "y"], ["x", "weight"], ["d", "gate_stride"]
    compile(kernels._rms_norm, *ours, {{"num_warps": 8}}, ["eps"], GATED=gated, BLOCK=8192)
print("compiled")
"""


def test_a_token_by_kernels_is_a_token_by_plain_pytorch():
    done = run_check(START + PLAIN)
    assert "same as plain PyTorch" in done.stdout, done.stderr


@needs_kernels
def test_the_recurrence_is_that_of_mamba_ssms_update():
    done = run_check(START + UPDATE, PYTHONPATH=f"{ROOT}:{BESIDE}")
    assert "same as mamba-ssm's update" in done.stdout, done.stderr


def test_decoding_by_kernels_says_what_transformers_mamba2_says():
    done = run_check(START + WHOLE)
    assert "same as transformers" in done.stdout, done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU compiles what it runs")
@pytest.mark.parametrize(("capability", "half"), [(75, "fp16"), (80, "bf16"), (90, "bf16"), (120, "bf16")])
def test_the_kernels_compile_for_gpus_that_are_not_here(capability, half, tmp_path):
    code = COMPILED.format(capability=capability, half=half)
    done = run_check(code, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))
    assert "compiled" in done.stdout, done.stderr
