"""mamba-ssm's and causal-conv1d's kernels for whole sequences, as in `mlmamba.ssd`; imported on CUDA alone.

Those that are installed (`requirements-cuda.txt`), else builds that the `kernels` package fetches from the Hub, since
on a Space nothing can be compiled. Without either the import fails.
"""

import importlib.util
import logging
import os
import sys
from types import ModuleType

import torch
from torch import Tensor

from mlmamba import ssd
from mlmamba.backend import undisturbed

PREBUILT = {"mamba-ssm": ("kernels-community/mamba-ssm", 2), "causal-conv1d": ("kernels-community/causal-conv1d", 1)}
log = logging.getLogger(__name__)
os.environ.setdefault("TRITON_F32_DEFAULT", "ieee")  # else products of float32 would have 10 bits of it


def fetched(name: str) -> ModuleType:
    """A package's kernels as built for this PyTorch and GPU, from the Hub or its cache."""
    from kernels import get_kernel

    repository, version = PREBUILT[name]
    return get_kernel(repository, version=version)


if importlib.util.find_spec("mamba_ssm"):
    # mamba_ssm imports Mamba-1's compiled extension without need; its Mamba-2 is Triton and does without
    sys.modules.setdefault("selective_scan_cuda", ModuleType("selective_scan_cuda"))
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    try:
        from causal_conv1d import causal_conv1d_fn
    except ImportError:
        causal_conv1d_fn = None
    NAME = "mamba-ssm" + (" + causal-conv1d" if causal_conv1d_fn else "")
else:
    mamba_chunk_scan_combined = fetched("mamba-ssm").mamba_chunk_scan_combined
    try:
        causal_conv1d_fn = fetched("causal-conv1d").causal_conv1d_fn
    except Exception as problem:  # of use, but not needed
        log.warning("No causal-conv1d for this machine: %s", problem)
        causal_conv1d_fn = None
    NAME = "mamba-ssm" + (" + causal-conv1d" if causal_conv1d_fn else "") + ", prebuilt"

CHUNK = 256


def scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`ssd.ssd` by Triton's chunked scan."""
    with undisturbed:  # it may be tuned here, and Triton's tuners are not made for several threads
        y, state = mamba_chunk_scan_combined(
            x, dt, A, B[:, :, None], C[:, :, None], CHUNK, D=D, initial_states=state, return_final_states=True
        )
    return y, state.float()


def conv(
    x: Tensor, weight: Tensor, bias: Tensor, state: Tensor | None = None, length: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`ssd.causal_conv` by causal-conv1d, where it is installed and takes such sizes."""
    if causal_conv1d_fn is None or x.shape[1] == 1 or x.shape[2] % 8:
        return ssd.causal_conv(x, weight, bias, state, length)
    width = weight.shape[-1]
    before = x.new_zeros(x.shape[0], width - 1, x.shape[2]) if state is None else state.to(x.dtype)
    if x.stride(0) % 8 or x.stride(1) % 8:
        x = x.contiguous()
    y = causal_conv1d_fn(x.mT, weight, bias, initial_states=before.mT, activation="silu").mT
    recent = x[:, 1 - width :] if length is None else x
    return y, ssd.last_inputs(torch.cat([before, recent], dim=1), width - 1, length)
