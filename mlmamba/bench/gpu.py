"""Full size on a GPU: tokens a second, beside others with as many parameters and beside what the memory bus allows.

Five decode batches at contexts, likeliest token by likeliest token: ML-Mamba as it serves (a graph) and launched kernel
by kernel, mamba_ssm's own `generate(cg=True)` with the same weights, and a Transformer of this shape with a static
cache (as a graph) and with a growing one. No token can come sooner than its bytes are read: all weights, and what is
carried from token to token (read and written by Mamba-2, read by a Transformer).
"""

import gc
import importlib.util
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from mlmamba.backend import most_memory, synchronize, within_memory
from mlmamba.bench import rivals
from mlmamba.bench.graphs import FixedCache
from mlmamba.bench.laps import Clock, lap, spread
from mlmamba.bench.peers import NAMES
from mlmamba.bench.runners import OurRunner
from mlmamba.decoding import Steps
from mlmamba.errors import MemoryFull
from mlmamba.images import ImageSource, open_image
from mlmamba.mamba2 import LanguageModel
from mlmamba.model import MLMamba

BATCHES, CONTEXTS = (1, 8), (1024, 4096, 16384)
STEPS = 64  # tokens at a time
SEATS = 8  # as a page has on a GPU
COPIED = 1 << 30  # bytes
KERNELS = 12  # of a profile
PROMPT = 256
log = logging.getLogger(__name__)
Side = tuple[nn.Module, Callable[[int, int], list[float]]]  # batch, context → seconds a token, of each repeat
Ready = Callable[..., Callable[[], Any]]  # gives a step


def run(
    model: MLMamba, image: ImageSource, question: str, *, batches: Sequence[int] = BATCHES,
    contexts: Sequence[int] = CONTEXTS, steps: int = STEPS, copied: int = COPIED, repeats: int = 5,
    clock: Clock = time.perf_counter,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Messages {"type": "progress", …}, {"type": "point", "gpu": {…}} after each row, and at the end {"type": "result",
    "gpu": {…}}.

    start: see `started`. copy_bytes_s: of a copy on the device, both what is read and what is written. first_eager_s:
    from the picture to the first token, read kernel by kernel. rows: of a side at a batch and a context, seconds of a
    token for each of the batch: decode_s (None where it "failed") and limit_s. profile: see `profile`, of a token as in
    the first row and of a first token as it is served; done last, for what watches may slow.
    """
    start = started(model, image, question, repeats, clock)
    bandwidth = bytes_copied(model, copied, repeats, clock)
    runner, picture = OurRunner(model, model.config.name), open_image(image)
    prompt = runner.prompt(question, None)
    firsts = [lap(runner, picture, prompt, 1, clock=clock).said[0] for _ in range(repeats + 1)][1:]
    reader = model.language_model
    assert isinstance(reader, LanguageModel)
    timing: dict[str, Any] = {"repeats": repeats, "clock": clock}
    measure = partial(steps_of, model, steps=steps, **timing)

    def ours(ready: Ready) -> Side:
        return reader, partial(measure, reader, ready)

    def transformer(ready: Ready) -> Side:
        other = rivals.same_shape(model).language_model
        return other, partial(measure, other, ready)

    def mamba_ssm() -> Side:
        theirs = mamba_ssm_model(reader)
        return theirs, partial(generated, theirs, steps=steps, **timing)

    sides: dict[str, Callable[[], Side]] = {
        "ML-Mamba, graph": partial(ours, fixed_state),
        "ML-Mamba, eager": partial(ours, eager),
        "Transformer of this shape, graph": partial(transformer, fixed_cache),
        "Transformer of this shape, eager": partial(transformer, eager),
    }
    if importlib.util.find_spec("mamba_ssm"):
        sides["mamba_ssm, graph"] = mamba_ssm
    rows: list[dict[str, Any]] = []
    told: dict[str, Any] = {"start": start, "copy_bytes_s": bandwidth, "first_eager_s": spread(firsts)}
    told |= {"n_patches": runner.n_patches, "steps": steps, "repeats": repeats, "rows": rows}
    points = [(batch, context) for batch in batches for context in contexts]
    for name, made in sides.items():
        side: Side | None = None  # made when its turn comes, and gone after it
        for batch, context in points:
            what = f"{name}, {batch} at {context:,}"
            yield {"type": "progress", "done": len(rows), "of": len(points) * len(sides), "what": what}
            row = {"side": name, "batch": batch, "context": context, "limit_s": None, "decode_s": None, "failed": None}
            try:
                with within_memory():
                    side = side or made()
                    row["limit_s"] = traffic(side[0], batch, context) / bandwidth
                    row["decode_s"] = spread(side[1](batch, context))
            except MemoryFull:
                row["failed"] = "out of memory"
            except Exception as problem:  # one side's fault takes nothing from the others
                log.exception("%s", what)
                row["failed"] = f"failed: {type(problem).__name__}"
            rows.append(row)
            yield {"type": "point", "gpu": told}
        side = None
        gc.collect()
    batch, context = points[0]
    step = prepared(model, reader, fixed_state, batch, context, context + 2 * steps)
    told["profile"] = {"a token": profile(step, model.backend.device, steps)}
    del step
    model.serve(SEATS)
    first = partial(model.chat, picture, question, max_new_tokens=1)
    told["profile"]["a first token"] = profile(first, model.backend.device, repeats)
    model.stop_serving()
    yield {"type": "result", "gpu": told}


def started(model: MLMamba, image: ImageSource, question: str, repeats: int, clock: Clock) -> dict[str, Any]:
    """As a page starts: warm_up_s until it can answer `seats` users, request_s of the first question's whole answer,
    and the memory that this took at most (memory, in bytes; None on a CPU). Then, as it answers, first_token_s from a
    picture to the first token."""
    begun, picture = clock(), open_image(image)
    model.serve(SEATS)
    ready = clock()
    model.chat(image, question)
    told: dict[str, Any] = {"seats": SEATS, "warm_up_s": ready - begun, "request_s": clock() - ready}
    told["memory"] = most_memory(model.backend.device)
    first = partial(model.chat, picture, question, max_new_tokens=1)
    told["first_token_s"] = spread(timed(first, model.backend.device, 1, repeats, clock))
    model.stop_serving()
    return told


def bytes_copied(model: MLMamba, size: int, repeats: int, clock: Clock) -> float:
    """Bytes a second that a copy on the model's device reads and writes, the best of some."""
    device = model.backend.device
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = timed(lambda: target.copy_(source), device, 10, repeats, clock)
    return 2 * size / min(seconds)


def traffic(reader: nn.Module, batch: int, context: int) -> int:
    """Bytes that a token for each of a batch must read and write."""
    weights = sum(p.numel() * p.element_size() for p in reader.parameters())
    if isinstance(reader, LanguageModel):
        return weights + 2 * LanguageModel.state_bytes(reader.empty(batch))
    config: Any = reader.config
    element = next(reader.parameters()).element_size()
    allocate: Any = getattr(reader, "allocate_inference_cache", None)
    if allocate:  # mamba_ssm's, whose state has the dtype of its weights where ours is float32
        carried = allocate(batch, 1, dtype=next(reader.parameters()).dtype)
        return weights + 2 * sum(tensor.nbytes for layer in carried.values() for tensor in layer)
    return weights + batch * context * 2 * config.n_layers * config.d_model * element


def timed(step: Callable[[], Any], device: torch.device, n: int, repeats: int, clock: Clock) -> list[float]:
    """Seconds of one of `n` steps, `repeats` times after a warm-up."""
    seconds = []
    for turn in range(repeats + 1):
        start = clock()
        for _ in range(n):
            step()
        synchronize(device)
        if turn:
            seconds.append((clock() - start) / n)
    return seconds


@torch.inference_mode()
def steps_of(
    model: MLMamba, reader: Any, ready: Ready, batch: int, context: int, *,
    steps: int, repeats: int, clock: Clock,
) -> list[float]:  # fmt: skip
    """Seconds of a step that `ready` prepares for `batch` users, each with `context` random words of their own."""
    step = prepared(model, reader, ready, batch, context, context + steps * (repeats + 1))
    return timed(step, model.backend.device, steps, repeats, clock)


@torch.inference_mode()
def prepared(model: MLMamba, reader: Any, ready: Ready, batch: int, context: int, length: int) -> Callable[[], Any]:
    """A step after `context` random words; there is room for `length`."""
    words, device = model.config.vocab_words, model.backend.device
    ids = torch.randint(words, (1, context), generator=torch.Generator().manual_seed(0)).to(device)
    state = reader(reader.embed(ids), last_only=True).state
    return ready(reader, words, state, batch, length)


@torch.inference_mode()
def profile(step: Callable[[], Any], device: torch.device, n: int) -> list[dict[str, Any]]:
    """Where a step's time goes, of `n` steps: kernels by name, the longest together first. seconds and times: a step's.

    Of the device alone: what these don't add up to is time in which it waited. Without a GPU, of the caller's thread.
    """
    step()
    synchronize(device)
    with torch.profiler.profile(activities=torch.profiler.supported_activities(), acc_events=True) as watched:
        for _ in range(n):
            step()
        synchronize(device)
    there = [each for each in watched.key_averages() if each.device_type.name.lower() == device.type]
    microseconds = attrgetter("self_cpu_time_total" if device.type == "cpu" else "self_device_time_total")
    longest = sorted(there, key=microseconds, reverse=True)[:KERNELS]
    return [{"kernel": e.key, "seconds": microseconds(e) / n / 1e6, "times": e.count / n} for e in longest]


def fixed_state(reader: LanguageModel, words: int, state: Any, batch: int, length: int) -> Callable[[], Any]:
    """As it serves: all seats a token on, which are then read, for somebody waits for each."""
    steps = Steps(reader, batch, words)
    for seat in range(batch):
        steps.sit(seat, state, 0, temperature=0.0)

    def step() -> list[int]:
        steps.advance()
        return steps.tokens[:, 0].tolist()

    return step


def fixed_cache(reader: Any, words: int, state: Any, batch: int, length: int) -> Callable[[], Any]:
    """A Transformer on a static cache."""

    def read(ids: Tensor, cache: Any) -> Tensor:
        return reader.go_on(ids, cache)[:, :, :words]

    cache = FixedCache(read, reader.decoder.config, state, length, batch)
    cache.begin(0, state)
    return cache.step


def eager(reader: Any, words: int, state: Any, batch: int, length: int) -> Callable[[], Any]:
    """Kernel by kernel, on a state or a cache of its own."""
    carried, go_on = reader.repeat(state, batch), reader.stepper()
    tokens = torch.zeros(batch, 1, dtype=torch.long, device=reader.embedding.weight.device)

    def step() -> list[int]:
        nonlocal tokens
        tokens = go_on(tokens, carried)[:, :, :words].argmax(-1)
        return tokens[:, 0].tolist()

    return step


def mamba_ssm_model(ours: LanguageModel) -> Any:
    """mamba_ssm's own model with the weights of `ours`."""
    from mamba_ssm.models.config_mamba import MambaConfig
    from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel

    c, like = ours.config, ours.embedding.weight
    sizes = {"layer": "Mamba2", "d_state": c.d_state, "expand": c.expand, "headdim": c.head_dim, "d_conv": c.d_conv}
    config = MambaConfig(d_model=c.d_model, n_layer=c.n_layers, vocab_size=c.vocab_size, ssm_cfg=sizes)
    theirs = MambaLMHeadModel(config, device=like.device, dtype=like.dtype)
    state = {"backbone.embedding.weight": like, "lm_head.weight": like, "backbone.norm_f.weight": ours.norm_f.weight}
    for i, layer in enumerate(ours.layers):
        for name, tensor in layer.state_dict().items():
            # theirs keeps a channel's filter as (1, width)
            state[f"backbone.layers.{i}.{NAMES[name]}"] = tensor[:, None] if name == "scan.conv_weight" else tensor
    theirs.load_state_dict(state, strict=True)
    return theirs.eval()


@torch.inference_mode()
def generated(model: Any, batch: int, context: int, *, steps: int, repeats: int, clock: Clock) -> list[float]:
    """Seconds a token of mamba_ssm's generate: of `steps` + 1 tokens, less one.

    After at most PROMPT words: its state does not grow with them, and the difference of two long prompts' times would
    be lost in what these vary by.
    """
    device, context = model.lm_head.weight.device, min(context, PROMPT)
    vocabulary = model.config.vocab_size
    ids = torch.randint(vocabulary, (batch, context), generator=torch.Generator().manual_seed(0)).to(device)

    def seconds(more: int) -> float:
        start = clock()
        model.generate(ids, max_length=context + more, cg=True, top_k=1)
        synchronize(device)
        return clock() - start

    seconds(steps + 1)  # records the graph
    return [(seconds(steps + 1) - seconds(1)) / steps for _ in range(repeats)]
