"""A CUDA device that isn't there: tensors that say they are on it, whose numbers lie on the CPU.

    python -m tests.as_cuda -m gpu    # pytest, with its options, on such a device

On a CPU nothing notices a tensor that was left on the host, or made there. Here an operation on tensors of both sides
fails as it does on a GPU. Graphs are recorded by `tests.as_graph`. Kernels can't be launched: what is written for that
case computes in their place.
"""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
ACROSS = {aten.copy_.default, aten._to_copy.default}  # what goes from side to side
INDEXING = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}


class There(Tensor):
    """A tensor on the device; `here` holds its numbers."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> "There":
        self = torch.Tensor._make_wrapper_subclass(
            cls, here.size(), strides=here.stride(), storage_offset=here.storage_offset(), dtype=here.dtype,
            device=torch.device("cuda:0"),
        )  # fmt: skip
        self.here = here
        return self

    def __repr__(self, **how: Any) -> str:
        return f"There({self.here})"

    @classmethod
    def __torch_function__(cls, function: Callable, kinds: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if function is Tensor.tolist:
            return args[0].here.tolist()
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, operation: Any, kinds: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return compute(operation, args, kwargs or {})


class Device(TorchDispatchMode):
    """Within it tensors can be made on the device, too. A thread's own."""

    def __enter__(self) -> Any:
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(…, device=) is made on the CPU first
        return super().__enter__()

    def __torch_dispatch__(self, operation: Any, kinds: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return compute(operation, args, kwargs or {})


def compute(operation: Any, args: tuple, kwargs: dict) -> Any:
    """An operation, on the side where its tensors are or where it is told to be."""
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
    there = {id(each.here): each for each in tensors if isinstance(each, There)}
    if there and operation not in ACROSS:
        # a GPU takes single numbers from the host, and indices
        left = [each for each in tensors if not isinstance(each, There) and each.ndim > 0]
        if left and not (operation in INDEXING and isinstance(args[0], There) and not has_left(args[2:])):
            raise RuntimeError(f"{operation}: expected all tensors to be on the same device, {len(left)} are not.")
    wanted = kwargs.get("device")
    result_there = bool(there) if wanted is None else torch.device(wanted).type == "cuda"
    if operation is aten.copy_.default:
        result_there = isinstance(args[0], There)
    args, kwargs = tree_map(lambda each: each.here if isinstance(each, There) else each, (args, kwargs))
    if wanted is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}

    def side(result: Any) -> Any:
        if not isinstance(result, Tensor) or not result_there:
            return result
        return there[id(result)] if id(result) in there else There(result)

    return tree_map(side, operation(*args, **kwargs))


def has_left(args: tuple) -> bool:
    """Whether a tensor of the host, of more than one number, is among these."""
    return any(isinstance(each, Tensor) and not isinstance(each, There) and each.ndim > 0 for each in args)


class Generator(torch.Generator):
    """In place of `torch.Generator`. On which side it was made is not looked at."""

    def __new__(cls, device: Any = "cpu") -> "Generator":
        return super().__new__(cls, "cpu")


class Stream:
    """In place of `torch.cuda.Stream`: all is done in the order in which it is asked for."""

    def __init__(self, device: Any = None) -> None: ...

    def wait_stream(self, other: "Stream") -> None: ...

    def synchronize(self) -> None: ...


class Graph:
    """In place of `torch.cuda.CUDAGraph`."""

    recorded: Any

    def replay(self) -> None:
        self.recorded.replay()


@contextmanager
def recording(graph: Graph, **how: Any) -> Iterator[None]:
    """In place of `torch.cuda.graph`."""
    from tests.as_graph import Recording

    graph.recorded = Recording()
    with graph.recorded:
        yield


def appear() -> None:
    """From now on there seems to be a GPU; call this before `mlmamba` is imported."""
    # it can't look into tensors of this kind
    torch.inference_mode = lambda on=True: torch.no_grad() if on else nullcontext()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    torch._C._ensureCUDADeviceGuardSet()  # one that needs no driver
    cuda: Any = torch.cuda
    cuda._lazy_init = cuda.empty_cache = cuda.set_stream = lambda *_: None
    cuda.is_available = cuda.is_bf16_supported = lambda *_: True
    cuda.get_device_name = lambda *_: "a GPU that isn't there"
    cuda.Stream = cuda.current_stream = Stream
    cuda.stream = nullcontext
    torch.Generator = Generator
    cuda.CUDAGraph, cuda.graph = Graph, recording
    thread: Any = threading.Thread
    begin = thread._bootstrap_inner

    def begin_within(self: threading.Thread) -> None:
        with Device():
            begin(self)

    thread._bootstrap_inner = begin_within


if __name__ == "__main__":
    appear()
    with Device():
        sys.exit(pytest.main(sys.argv[1:]))
