"""mamba-ssm's kernels behind our signatures, against plain PyTorch: on the GPU, or interpreted on the CPU.

Skipped where mamba-ssm is neither installed (`requirements-cuda.txt`) nor beside the environment (`make kernels`). A
process of its own, since Triton decides at its import whether to interpret, and since transformers' Mamba-2 takes
these kernels on a CPU where it sees them.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

CHECK = """
import contextlib, torch
on = "cuda" if torch.cuda.is_available() else "cpu"
if on == "cpu":
    torch.cuda.device = lambda *_: contextlib.nullcontext()
from mlmamba import cuda_kernels as fast, ssd
torch.manual_seed(0)
b, l, h, p, n = 2, 70, 4, 16, 16
x, B, C = torch.randn(b, l, h, p), torch.randn(b, l, n), torch.randn(b, l, n)
dt, A, D = torch.rand(b, l, h), -torch.rand(h), torch.randn(h)
state = torch.randn(b, h, p, n)
to = lambda *tensors: [None if t is None else t.to(on) for t in tensors]
for start in (None, state):
    for got, expected in zip(fast.scan(*to(x, dt, A, B, C, D, start)), ssd.ssd(x, dt, A, B, C, D, start)):
        torch.testing.assert_close(got.cpu(), expected, atol=1e-3, rtol=1e-3)
one = x[:, 0], dt[:, 0], A, B[:, 0], C[:, 0], D, state
before = state.clone()
for got, expected in zip(fast.step(*to(*one)), ssd.ssd_step(*one)):
    torch.testing.assert_close(got.cpu(), expected, atol=1e-4, rtol=1e-4)
assert torch.equal(state, before)
u, weight, bias = torch.randn(b, l, 24), torch.randn(24, 4), torch.randn(24)
for got, expected in zip(fast.conv(*to(u, weight, bias)), ssd.causal_conv(u, weight, bias)):
    torch.testing.assert_close(got.cpu(), expected, atol=1e-4, rtol=1e-4)
print("same as plain PyTorch on", on)
"""


ROOT = Path(__file__).parents[1]
BESIDE = ROOT / ".venv" / "kernels" / "site"


@pytest.mark.skipif(
    importlib.util.find_spec("mamba_ssm") is None and not BESIDE.exists(), reason="no mamba-ssm here: `make kernels`"
)
def test_the_kernels_compute_what_plain_pytorch_does():
    settings = {"MAMBA_DETERMINISTIC": "1", "PYTHONPATH": f"{ROOT}:{BESIDE}"}
    settings |= {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CHECK],
        env=os.environ | settings,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert "same as plain PyTorch" in done.stdout, done.stderr
