"""Our Triton kernels of one token: on the GPU, or interpreted on the CPU, against plain PyTorch, against mamba-ssm's
state update where that is at hand, and as a whole against transformers' Mamba-2. Without a GPU they are compiled too.

Processes of their own, since Triton decides at its import whether to interpret.
"""

import pytest
import torch

from tests.test_cuda_kernels import BESIDE, ROOT, needs_kernels, run_check

pytest.importorskip("triton", reason="no Triton for this system")
pytestmark = pytest.mark.gpu

START = """
import torch
from mlmamba import triton_kernels as fast, ssd
on = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)

def case(b, h, p, n, d, dtype=torch.float32):
    channels = h * p + 2 * n
    sizes = (d,), (h * p + channels + h, d), (4, channels), (channels,), (h,), (h,), (h * p,), (h * p,), (d, h * p)
    weights = ssd.LayerWeights(*(torch.randn(*size).to(on) for size in sizes))  # everywhere the same
    products = (weights.in_proj / d**0.5).to(dtype), (weights.out_proj / (h * p) ** 0.5).to(dtype)
    weights = weights._replace(in_proj=products[0], out_proj=products[1], A=-weights.A.exp())
    x, conv, ssm = (torch.randn(b, *size).to(on) for size in ((d,), (3, channels), (h, p, n)))
    return x, weights, conv.to(dtype), ssm, 1e-5

def after(layer_step, x, weights, conv, ssm, eps):
    "What comes out, and both states."
    conv, ssm = conv.clone(), ssm.clone()
    return layer_step(x, weights, conv, ssm, eps), conv, ssm

SIZES = (1, 4, 32, 64, 160), (3, 5, 24, 20, 72), (20, 2, 16, 16, 64)
"""
PLAIN = """
def same(given, **close):
    for got, expected in zip(after(fast.layer_step, *given), after(ssd.layer_step, *given), strict=True):
        torch.testing.assert_close(got, expected, **close or {"atol": 1e-4, "rtol": 1e-4})

for sizes in SIZES[:2]:
    same(case(*sizes))
one, several = fast.ONE, fast.SEVERAL
for fast.ONE in ([config] for config in one):
    same(case(1, *SIZES[1][1:]))
for fast.SEVERAL in ([config] for config in several):
    same(case(*SIZES[1], torch.float16), atol=1e-2, rtol=1e-2)
fast.ONE, fast.SEVERAL = one, several

# a Δ that is nearly shut keeps its digits: all that a fresh state holds is Δ x B
given = case(*SIZES[1])
given[1].dt_bias.copy_(torch.tensor([-30.0, -16.0, -12.0, -8.0, 25.0]))
given[3].zero_()
got, expected = after(fast.layer_step, *given)[2], after(ssd.layer_step, *given)[2]
for head in range(5):
    most = expected[:, head].abs().max().item()
    torch.testing.assert_close(got[:, head], expected[:, head], atol=1e-5 * most, rtol=2e-4)

for b, n, k in ((1, 301, 96), (17, 40, 33)):
    given = torch.randn(b, k, device=on) * 9, torch.randn(k, device=on), 1e-5, torch.randn(n, k, device=on)
    torch.testing.assert_close(fast.product(*given), ssd.normed_product(*given), atol=1e-4, rtol=1e-4)
print("same as plain PyTorch")
"""
HALVES = """
# as far from float32 as plain PyTorch in that dtype is, whose rounding is no worse than it has to be
for dtype in (torch.bfloat16, torch.float16):
    cut = on == "cpu" and dtype == torch.bfloat16
    for sizes in SIZES[: 1 if cut else 3]:
        given = case(*sizes, dtype)
        x, weights, conv, *others = given
        full = x, weights._replace(in_proj=weights.in_proj.float(), out_proj=weights.out_proj.float()), conv.float()
        exact = after(ssd.layer_step, *full, *others)
        for got, plain, true in zip(after(fast.layer_step, *given), after(ssd.layer_step, *given), exact, strict=True):
            errors = [(each.float() - true).square().mean().sqrt() for each in (got, plain)]
            # Triton's interpreter cuts a bfloat16 off where a GPU rounds it, and multiplies no tiles of it
            assert got.dtype == plain.dtype and errors[0] <= (2.1 if cut else 1.5) * errors[1], (dtype, errors)
            assert (got.float() - true).abs().max() < 0.02 * max(5, true.abs().max())
print("as near as plain PyTorch")
"""
NORM = """
# a gate is a part of wider places; the places of several sequences follow each other
for b, l, d in ((1, 7, 72), (3, 5, 64)):
    x, wide, across = (torch.randn(b, *size, device=on) for size in ((l, d), (l, 3 * d), (d, l)))
    x, across, weight = 5 * x, across.mT, torch.randn(d, device=on)
    for dtype, close in ((torch.float32, 1e-5), (torch.float16, 2e-3)):
        for given in ((x, None), (x, wide[..., d : 2 * d]), (across, wide[..., :d]), (x.half(), across)):
            norm = given[0], weight.to(dtype), 1e-5, dtype, given[1]
            with torch.no_grad():
                found = fast.rms_norm(*norm)
            assert found.dtype == dtype and found.is_contiguous()
            torch.testing.assert_close(found, ssd.rms_norm(*norm), atol=close, rtol=close)
weight.requires_grad_()
fast.rms_norm(x, weight, 1e-5, torch.float32, x).sum().backward()
assert weight.grad is not None
print("normed as by plain PyTorch")
"""
TUNED = """
fast.TUNED_FROM, tried = 1, []
def bench(call, quantiles):
    call()
    tried.append(1)
    return [1.0 / len(tried)] * 3  # the last is the fastest
for tuner in fast._tuners:
    tuner._do_bench = bench
for b in (1, 3):
    given = case(b, 2, 16, 16, 32, torch.float16)
    for _ in range(2):
        for got, expected in zip(after(fast.layer_step, *given), after(ssd.layer_step, *given), strict=True):
            torch.testing.assert_close(got, expected, atol=1e-2, rtol=1e-2)
assert len(tried) == 2 * (len(fast.ONE) + len(fast.SEVERAL))  # in_proj and out_proj, once each
assert set(fast._best.values()) == {fast.ONE[-1], fast.SEVERAL[-1]}
print("tuned once, and no state moved by it")
"""
TRIED = """
fast.try_out(on)
for name in ("layer_step", "rms_norm"):
    sound = getattr(fast, name)
    setattr(fast, name, lambda x, *others: 1.2 * sound(x, *others))
    try:
        fast.try_out(on)
    except ArithmeticError as problem:
        print("refused:", problem)
    setattr(fast, name, sound)
"""
UPDATE = """
import contextlib, sys
sys.modules.setdefault("selective_scan_cuda", type(sys)("selective_scan_cuda"))
if on == "cpu":
    torch.cuda.device = lambda *_: contextlib.nullcontext()
from mamba_ssm.ops.triton.selective_state_update import selective_state_update
b, h, p, n, d = 2, 4, 16, 16, 32
x, w, conv, ssm, eps = given = case(b, h, p, n, d)
normed = lambda value, weight: value * (value.square().mean(-1, keepdim=True) + eps).rsqrt() * weight
z, xBC, dt = (normed(x, w.norm) @ w.in_proj.T).split([h * p, h * p + 2 * n, h], -1)
seen, state = torch.cat([conv, xBC[:, None]], 1), ssm.clone()
mixed = torch.nn.functional.silu((seen * w.conv_weight).sum(1) + w.conv_bias)
x_, B, C = mixed[:, : h * p].view(b, h, p), mixed[:, None, h * p : -n], mixed[:, None, -n:]
per_head = lambda t: t[..., None].expand(*t.shape, p)
y = selective_state_update(
    state, x_, per_head(dt), per_head(w.A)[..., None].expand(h, p, n), B, C, D=w.D.view(h, p), z=z.reshape(b, h, p),
    dt_bias=per_head(w.dt_bias), dt_softplus=True,
)
expected = x + normed(y.reshape(b, h * p), w.gated_norm) @ w.out_proj.T, seen[:, 1:], state
for got, true in zip(after(fast.layer_step, *given), expected, strict=True):
    torch.testing.assert_close(got, true, atol=1e-4, rtol=1e-4)
print("same as mamba-ssm's update")
"""
WHOLE = """
import sys  # a GPU's kernels, which transformers would take, do not take sizes as small as these
sys.modules["mamba_ssm"] = sys.modules["causal_conv1d"] = None
from mlmamba import backend, mamba2
from mlmamba.bench.peers import their_mamba2
from mlmamba.config import LanguageConfig
fast.ONE = fast.ONE[-1:]  # the fewest programs to interpret
normed = []
def norm(*given):
    normed.append(given)
    return fast.rms_norm(*given)
fused = backend.PLAIN._replace(layer_step=fast.layer_step, product=fast.product, norm=norm)
mamba2.kernels_for = lambda device_type: fused
lm = mamba2.LanguageModel(LanguageConfig(64, 2, 104, 16, 32)).to(on).eval().requires_grad_(False)
theirs = their_mamba2(lm).to(on)
ids = torch.randint(104, (2, 9), device=on)
with torch.inference_mode():
    expected = theirs(ids).logits
    output = lm(lm.embed(ids[:, :4]))
    assert len(normed) == 2 * 2 + 1
    torch.testing.assert_close(output.logits, expected[:, :4], atol=1e-4, rtol=1e-4)
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

def compile(kernel, half, numbers, options=None, **constants):
    kinds = dict.fromkeys(half, "*{half}") | dict.fromkeys(numbers, "i32") | {{"eps": "fp32"}}
    kinds |= dict.fromkeys(constants, "constexpr")
    signature = {{name: kinds.get(name, "*fp32") for name in kernel.arg_names}}
    # as a launch knows them: pointers and sizes of the 3B model are multiples of 16
    even = {{(i,): [["tt.divisibility", 16]] for i, name in enumerate(signature) if signature[name][0] in "*i"}}
    source = ASTSource(kernel, signature, constexprs=constants, attrs=even)
    made = triton.compile(source, target=GPUTarget("cuda", {capability}, 32), options=options or {{}})
    assert made.asm["cubin"] and made.metadata.shared <= {shared}, made.metadata
    return made

numbers = "x_step", "gate_step", "d"
for d, gated in ((2560, False), (5120, True)):
    half = ("weight", "y", *["x", "gate"] * gated)
    made = compile(kernels._rms_norm, half, numbers, {{"num_warps": 8}}, GATED=gated, BLOCK=triton.next_power_of_2(d))
    assert "v4" in made.asm["ptx"]
compile(kernels._ssd_step, (), ("h", "p", "n"), ROWS=kernels.ROWS, COLUMNS=128)
for configs, together in ((kernels.ONE, 1), (kernels.SEVERAL, kernels.TOGETHER)):
    for config in configs if {capability} == 90 else configs[:1]:
        for onto, width in ((False, 4), (True, 0)):  # in_proj, out_proj
            given = config.all_kwargs()
            options = {{name: given.pop(name) for name in ("num_warps", "num_stages")}}
            blocks = {{"BLOCK_N": given.pop("BLOCK_N"), "BLOCK_K": given.pop("BLOCK_K"), "BLOCK_B": together}}
            numbers = "b", "n", "k", "first", "channels"
            made = compile(kernels._product, ("weight", "conv"), numbers, options, ONTO=onto, WIDTH=width, **blocks)
            assert "v4" in made.asm["ptx"]  # 16 bytes of weights at a time
print("compiled")
"""


def test_a_token_by_kernels_is_a_token_by_plain_pytorch():
    done = run_check(START + PLAIN)
    assert "same as plain PyTorch" in done.stdout, done.stderr


def test_kernels_round_no_more_than_plain_pytorch():
    done = run_check(START + HALVES)
    assert "as near as plain PyTorch" in done.stdout, done.stderr


def test_kernels_that_compute_something_else_are_refused():
    done = run_check(START + TRIED)
    assert done.stdout.count("refused: Triton's kernels compute something else") == 2, done.stderr


def test_a_norm_by_a_kernel_is_that_of_plain_pytorch():
    done = run_check(START + NORM)
    assert "normed as by plain PyTorch" in done.stdout, done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU tunes for itself")
def test_tuning_is_done_once_and_moves_no_state():
    done = run_check(START + TUNED)
    assert "tuned once" in done.stdout, done.stderr


@needs_kernels
def test_the_recurrence_is_that_of_mamba_ssms_update():
    done = run_check(START + UPDATE, PYTHONPATH=f"{ROOT}:{BESIDE}")
    assert "same as mamba-ssm's update" in done.stdout, done.stderr


def test_decoding_by_kernels_says_what_transformers_mamba2_says():
    done = run_check(START + WHOLE)
    assert "same as transformers" in done.stdout, done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU compiles what it runs")
@pytest.mark.parametrize(
    ("capability", "half", "shared"),  # bytes that a program may share
    [(75, "fp16", 65_536), (80, "bf16", 166_912), (90, "bf16", 232_448), (120, "bf16", 101_376)],
)
def test_the_kernels_compile_for_gpus_that_are_not_here(capability, half, shared, tmp_path):
    code = COMPILED.format(capability=capability, half=half, shared=shared)
    done = run_check(code, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))
    assert "compiled" in done.stdout, done.stderr
