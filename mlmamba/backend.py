"""The one place that picks a device, a dtype and the kernels; no other file names "cuda"."""

import ctypes
import gc
import importlib.util
import logging
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from mlmamba import ssd
from mlmamba.errors import MemoryFull, UserError

log = logging.getLogger(__name__)


class Kernels(NamedTuple):
    """The operations that have a faster form on some devices; signatures as in `mlmamba.ssd`."""

    name: str
    scan: Callable[..., tuple[Tensor, Tensor]]  # ssd
    conv: Callable[..., tuple[Tensor, Tensor]]  # causal_conv
    layer_step: Callable[..., Tensor]
    product: Callable[..., Tensor]  # normed_product
    norm: Callable[..., Tensor]  # rms_norm


PLAIN = Kernels("plain PyTorch", ssd.ssd, ssd.causal_conv, ssd.layer_step, ssd.normed_product, ssd.rms_norm)


@dataclass(frozen=True)
class Backend:
    """Where a model runs and with what."""

    device: torch.device
    dtype: torch.dtype
    kernels: str

    @property
    def graphs(self) -> bool:
        """Whether steps can be recorded as graphs here."""
        return self.device.type == "cuda"

    def __str__(self) -> str:
        return f"{self.device} · {str(self.dtype).removeprefix('torch.')} · {self.kernels}"


def choose(device: str = "auto", dtype: str | torch.dtype = "auto") -> Backend:
    """Turn what was asked for into a backend. Raises UserError when the machine doesn't have it.

    "auto" is CUDA where there is one, else Apple's GPU, else the CPU; bfloat16 on GPUs that have it (float16
    on older ones) and float32 elsewhere: on CPUs it is exact, and as fast one token at a time.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if device == "auto":
        device = "cuda" if cuda else "mps" if mps else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise UserError(f'There is no device "{device}"; use "auto", "cpu", "cuda" or "mps".') from error
    if (chosen.type == "cuda" and not cuda) or (chosen.type == "mps" and not mps):
        raise UserError(f'This machine has no "{chosen.type}" device that PyTorch can use; choose "auto" or "cpu".')
    if dtype == "auto":
        gpu = torch.bfloat16 if cuda and torch.cuda.is_bf16_supported() else torch.float16
        dtype = gpu if chosen.type == "cuda" else torch.float32
    if isinstance(dtype, str):
        named = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
        if dtype not in named:
            raise UserError(f'There is no dtype "{dtype}"; use "auto", {", ".join(named)}.')
        dtype = named[dtype]
    if chosen.type == "cuda" and dtype == torch.float32:
        torch.backends.cudnn.allow_tf32 = False  # else convolutions would have 10 bits of it
    return Backend(chosen, dtype, kernels_for(chosen.type).name)


@cache
def kernels_for(device_type: str) -> Kernels:
    """The fastest kernels that can be had on this kind of device; what can't be had, plain PyTorch computes."""
    if device_type != "cuda":
        return PLAIN
    try:
        from mlmamba import triton_kernels

        triton_kernels.try_out(device_type)
    except Exception:  # no Triton for this system, or no compiler for what it launches with
        log.exception("Triton can't be used here; plain PyTorch computes in its place.")
        return PLAIN
    fused = PLAIN._replace(
        name=triton_kernels.NAME, layer_step=triton_kernels.layer_step, product=triton_kernels.product,
        norm=triton_kernels.rms_norm,
    )  # fmt: skip
    if not any(importlib.util.find_spec(name) for name in ("mamba_ssm", "kernels")):
        return fused
    try:
        from mlmamba import cuda_kernels
    except Exception:
        log.exception("No kernels of mamba-ssm can be had; plain PyTorch computes in their place.")
        return fused
    name = f"{cuda_kernels.NAME} + {triton_kernels.NAME}"
    return fused._replace(name=name, scan=cuda_kernels.scan, conv=cuda_kernels.conv)


# Held by who records a graph, of which CUDA can do one at a time, and by who does what a recording elsewhere can't
# bear: tune kernels (which waits for the whole device), or draw from PyTorch's own generator.
undisturbed = threading.RLock()
# what memory that runs out is called where it has no class of its own: by PyTorch on a CPU, by CUDA, and its libraries
FULL_TOO = "can't allocate memory", "CUDA error: out of memory", "[CUDA]: out of memory", "ALLOC_FAILED", "ALLOCATION_"


def repeated(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """`step` made ready to be done again and again, on tensors that stay where they are. It is done a few times.

    On CUDA it is recorded as a graph, which launches all its kernels at once; the kernels are tuned before that.
    """
    if device.type != "cuda":
        return step
    with undisturbed:
        try:
            stream = torch.cuda.current_stream(device)
            aside = torch.cuda.Stream()
            aside.wait_stream(stream)
            with torch.cuda.stream(aside):
                for _ in range(3):
                    step()
            stream.wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # others may compute meanwhile
                step()
        except RuntimeError as error:
            if torch.cuda.is_available():
                torch.cuda.set_stream(stream)  # a recording that fails may not have come back to it
            if tells_of_full_memory(error):  # others can make room
                raise
            log.exception("No CUDA graph can be recorded; kernels are launched one by one.")
            return step
    return graph.replay


def recorded(step: Callable[[], None]) -> bool:
    """Whether what `repeated` gave is a graph."""
    return isinstance(getattr(step, "__self__", None), torch.cuda.CUDAGraph)


def copy_all(source: Sequence[Tensor], target: Sequence[Tensor]) -> None:
    """Copy tensors into others of their sizes and dtypes; on a GPU those of one dtype in few launches."""
    for dtype in {each.dtype for each in target}:
        pairs = [pair for pair in zip(target, source, strict=True) if pair[0].dtype == dtype]
        torch._foreach_copy_([into for into, _ in pairs], [of for _, of in pairs])


def copies(source: Sequence[Tensor]) -> list[Tensor]:
    """Copies of tensors, made as in `copy_all`."""
    made = [torch.empty_like(each) for each in source]
    copy_all(source, made)
    return made


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given here, so that a clock read now is true."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()  # of the whole device it would break a recording elsewhere
    elif device.type != "cpu":
        getattr(torch, device.type).synchronize()


def tells_of_full_memory(error: BaseException | None) -> bool:
    """Whether an error, or the one before it, says that memory has run out."""
    if error is None:
        return False
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(told in str(error) for told in FULL_TOO):
        return True
    return tells_of_full_memory(error.__context__)


FULL = "The memory is full; clear the chat or ask in fewer words, or try again when fewer people ask."


@contextmanager
def within_memory(sentence: str = FULL) -> Iterator[None]:
    """Tell of memory that runs out as MemoryFull, and leave the device with room for the next, smaller request."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not tells_of_full_memory(error):
            raise
        log.error("out of memory: %s", str(error))  # a record of the error itself would hold all that led to it
        traceback.clear_frames(error.__traceback__)  # they hold the tensors that there was memory for
        gc.collect()  # of what refers to itself, as a model does
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        raise MemoryFull(sentence) from None


def most_memory(device: torch.device) -> int | None:
    """Bytes of a GPU's memory that PyTorch has held at most; None on a CPU."""
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None


def give_back() -> None:
    """Return freed memory to the system; glibc would keep it, more with every thread that has computed."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc and hasattr(libc, "malloc_trim"):  # not in musl
        libc.malloc_trim(0)


def gpu_name(device: torch.device) -> str | None:
    """What the GPU calls itself; None on a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return "Apple GPU" if device.type == "mps" else None
