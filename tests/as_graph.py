"""A CUDA graph's rules on a CPU: what a step did once is done again, on the same memory and with the same numbers.

A recording knows operations, where their tensors lie, and the plain numbers that they were given; nothing of Python
happens in a replay. So whatever a step took from Python, or asked the device for, shows as a difference or a fault;
but for `tolist`, which on a CPU reads without asking.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
ASKING = {  # what has to wait for the device, or brings something from the host; CUDA refuses both in a recording
    aten._local_scalar_dense.default, aten.item.default, aten.is_nonzero.default, aten.equal.default,
    aten.nonzero.default, aten.masked_select.default, aten.lift_fresh.default, aten._unique2.default,
}  # fmt: skip


class Recording(TorchDispatchMode):
    """All operations of what runs within it."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, tuple, dict, list[Tensor | None]]] = []

    def __torch_dispatch__(self, operation: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        by_mask = operation is aten.index.Tensor and any(at is not None and at.dtype == torch.bool for at in args[1])
        if operation in ASKING or by_mask:
            raise RuntimeError(f"{operation} can't be recorded.")
        result = operation(*args, **kwargs)
        tensors = [each for each in tree_leaves((args, kwargs, result)) if isinstance(each, Tensor)]
        if len({each.device.type for each in tensors if each.ndim}) > 1:
            raise RuntimeError(f"{operation}, from host to device or back, can't be recorded.")
        given = {each.untyped_storage()._cdata for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)}
        fresh = [each for each in tree_leaves(result) if isinstance(each, Tensor)]
        # a view of what was given, or the given itself, needs no writing to
        fresh = [each if each.untyped_storage()._cdata not in given else None for each in fresh]
        self.operations.append((operation, args, kwargs, fresh))
        return result

    @torch.inference_mode()
    def replay(self) -> None:
        for operation, args, kwargs, places in self.operations:
            results = [each for each in tree_leaves(operation(*args, **kwargs)) if isinstance(each, Tensor)]
            for place, result in zip(places, results, strict=True):
                if place is not None:
                    place.copy_(result)


def repeated(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """As `mlmamba.backend.repeated` does it on CUDA: a few times for warmth, once recorded, from then on replayed."""
    for _ in range(3):
        step()
    recording = Recording()
    with recording:
        step()
    return recording.replay


def recorded(step: Callable[[], None]) -> bool:
    """As `mlmamba.backend.recorded`."""
    return isinstance(getattr(step, "__self__", None), Recording)
