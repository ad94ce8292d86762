"""What a measurement was made on and with; without it a figure says nothing."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

from mlmamba.backend import Backend, gpu_name

PACKAGES = ("torch", "transformers", "mamba-ssm", "causal-conv1d", "triton")


def describe(backend: Backend) -> dict[str, Any]:
    """Processor, GPU, memory, system, threads and dtype, in words fit to be shown."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": f"{processor()}, {cores} cores",
        "gpu": gpu_name(backend.device),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GB",
        "system": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "dtype": str(backend.dtype).removeprefix("torch."),
    }


def processor() -> str:
    """The processor's name as its maker gives it, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Python and the packages that compute."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
