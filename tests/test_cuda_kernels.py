"""mamba-ssm's kernels behind our signatures, against plain PyTorch: on the GPU, or interpreted on the CPU.

Skipped where mamba-ssm is neither installed (`requirements-cuda.txt`) nor beside the environment (`make kernels`). A
process of its own, since Triton decides at its import whether to interpret, and since transformers' Mamba-2 takes
these kernels on a CPU where it sees them.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mlmamba import backend, ssd

triton_kernels = pytest.importorskip("mlmamba.triton_kernels", reason="no Triton for this system")
pytestmark = pytest.mark.gpu

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
    assert fast.scan(*to(x, dt, A, B, C, D, start))[1].is_contiguous()  # steps write over it
    for got, expected in zip(fast.scan(*to(x, dt, A, B, C, D, start)), ssd.ssd(x, dt, A, B, C, D, start)):
        torch.testing.assert_close(got.cpu(), expected, atol=1e-3, rtol=1e-3)
wide = torch.randn(b, l, 61)  # causal-conv1d takes steps from place to place, and channels, of eights
for d, u in ((24, wide[..., 3:27]), (24, wide[..., :24].contiguous()), (20, wide[..., :20])):
    weight, bias, before = torch.randn(d, 4), torch.randn(d), torch.randn(b, 3, d)
    for start, length in ((None, None), (before, None), (before, torch.tensor(2))):
        given = u, weight, bias, start, length
        for got, expected in zip(fast.conv(*to(*given)), ssd.causal_conv(*given)):
            torch.testing.assert_close(got.cpu(), expected, atol=1e-4, rtol=1e-4)
print("same as plain PyTorch on", on)
"""


ROOT = Path(__file__).parents[1]
BESIDE = ROOT / ".venv" / "kernels" / "site"
needs_kernels = pytest.mark.skipif(
    importlib.util.find_spec("mamba_ssm") is None and not BESIDE.exists(), reason="no mamba-ssm here: `make kernels`"
)


PEER = """
import contextlib, torch
on = "cuda" if torch.cuda.is_available() else "cpu"
if on == "cpu":
    torch.cuda.device = lambda *_: contextlib.nullcontext()
from mlmamba import cuda_kernels
from mlmamba.bench.gpu import mamba_ssm_model, traffic
from mlmamba.config import LanguageConfig
from mlmamba.mamba2 import LanguageModel
torch.manual_seed(0)
ours = LanguageModel(LanguageConfig(64, 2, 104, 16, 16)).to(on).eval().requires_grad_(False)
theirs = mamba_ssm_model(ours)
for block in theirs.backbone.layers:
    block.mixer.use_mem_eff_path = False  # it wants causal-conv1d
ids = torch.randint(104, (2, 9), device=on)
with torch.inference_mode():
    torch.testing.assert_close(theirs(ids).logits, ours(ours.embed(ids)).logits, atol=1e-3, rtol=1e-3)
# of a state that they hold with one place of the convolution more
more = 2 * 2 * 2 * (128 + 2 * 16) * 4
assert traffic(theirs, 2, 9) == traffic(ours, 2, 9) + more
print("same as mamba_ssm's model")
"""
FETCHED = """
import sys, torch
sys.path.append({beside!r})
sys.modules["selective_scan_cuda"] = type(sys)("selective_scan_cuda")
from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined
"""
# what causal-conv1d promises, written out
CONV = """
import torch
def causal_conv1d_fn(x, weight, bias, initial_states, activation):
    assert not any(size % 8 for size in (x.shape[1], x.stride(0), x.stride(2))) and x.stride(1) == 1
    assert activation == "silu" and weight.shape == (x.shape[1], 4) and initial_states.shape == (*x.shape[:2], 3)
    seen, out = torch.cat([initial_states, x], 2), torch.zeros_like(x)
    for t in range(x.shape[2]):
        out[:, :, t] = (seen[:, :, t : t + 4] * weight).sum(2) + bias
    return out * out.sigmoid()
"""


def run_check(code: str, **settings: str) -> subprocess.CompletedProcess[str]:
    interpret = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    settings = {"MAMBA_DETERMINISTIC": "1"} | interpret | settings
    return subprocess.run(
        [sys.executable, "-c", code], env=os.environ | settings, cwd=ROOT, capture_output=True, text=True, timeout=600
    )


@needs_kernels
def test_the_kernels_compute_what_plain_pytorch_does():
    done = run_check(CHECK, PYTHONPATH=f"{ROOT}:{BESIDE}")
    assert "same as plain PyTorch" in done.stdout, done.stderr


@needs_kernels
def test_mamba_ssms_own_model_says_what_ours_says():
    done = run_check(PEER, PYTHONPATH=f"{ROOT}:{BESIDE}")
    assert "same as mamba_ssm's model" in done.stdout, done.stderr


@needs_kernels
@pytest.mark.skipif(importlib.util.find_spec("mamba_ssm") is not None, reason="what is installed is taken first")
def test_prebuilt_kernels_are_taken_where_none_are_installed(tmp_path):
    local = []  # as the `kernels` package lays out what it has fetched
    for name, code in (("mamba-ssm", FETCHED.format(beside=str(BESIDE))), ("causal-conv1d", CONV)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "__init__.py").write_text(code)
        backend = {"type": "cpu"}
        about = {"name": name, "id": f"built_{len(local)}", "version": 2, "license": "Apache-2.0", "backend": backend}
        (folder / "metadata.json").write_text(json.dumps(about | {"python-depends": []}))
        local.append(f"kernels-community/{name}={folder}")
    done = run_check(CHECK + "print(fast.NAME)", PYTHONPATH=str(ROOT), LOCAL_KERNELS=":".join(local))
    assert "same as plain PyTorch" in done.stdout, done.stderr
    assert done.stdout.splitlines()[-1] == "mamba-ssm + causal-conv1d, prebuilt"


def test_where_no_kernels_can_be_had_plain_pytorch_computes(monkeypatch, caplog):
    def nowhere(*_: object, **__: object) -> None:
        raise FileNotFoundError("no build for this machine")

    if importlib.util.find_spec("mamba_ssm") is not None:
        pytest.skip("mamba-ssm is installed")
    import kernels

    monkeypatch.setattr(kernels, "get_kernel", nowhere)
    monkeypatch.setattr(triton_kernels, "try_out", lambda device_type: None)  # as on a GPU
    backend.kernels_for.cache_clear()
    chosen = backend.kernels_for("cuda")
    assert (
        chosen.scan is ssd.ssd
        and chosen.layer_step is triton_kernels.layer_step
        and "plain PyTorch computes" in caplog.text
    )
    backend.kernels_for.cache_clear()


def test_where_triton_cannot_launch_plain_pytorch_computes(monkeypatch, caplog):
    def no_compiler(device_type: str) -> None:
        raise RuntimeError("Failed to find C compiler.")

    monkeypatch.setattr(triton_kernels, "try_out", no_compiler)
    backend.kernels_for.cache_clear()
    assert backend.kernels_for("cuda") is backend.PLAIN and "plain PyTorch computes" in caplog.text
    backend.kernels_for.cache_clear()
