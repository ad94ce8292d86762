"""How time and memory grow with the context and with the number of users at once."""

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mlmamba.backend import synchronize
from mlmamba.bench.laps import Clock, Stopped, check, spread
from mlmamba.bench.runners import OurRunner

CONTEXTS = (256, 512, 1024, 2048, 4096, 8192, 16384)
BATCHES = (1, 2, 4, 8, 16)
BATCH_CONTEXT = 256  # tokens that each of several users has said
STEPS = 12  # tokens decoded at each point
LONGEST_S = 20.0  # a side whose next prefill would take longer rests
WHAT = {"decode_s": "per token", "prefill_s": "at reading the prompt", "memory": "in memory"}


def run(
    runners: Sequence[OurRunner], *, contexts: Sequence[int] = CONTEXTS, batches: Sequence[int] = BATCHES,
    repeats: int = 3, stop: threading.Event | None = None, clock: Clock = time.perf_counter,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """{"type": "progress"}, {"type": "point"} after each point, {"type": "result"} at the end, both with "scaling".

    Text is random tokens: times don't depend on what is read. A context of n is n tokens before the first one decoded.
    """
    sides = [{"name": runner.name, "kind": runner.kind, "contexts": [], "batches": []} for runner in runners]  # type: list[dict[str, Any]]
    told: dict[str, Any] = {"context_for_batches": BATCH_CONTEXT, "runners": sides}
    of = (len(contexts) + len(batches)) * len(runners)
    done = 0
    try:
        for size, key, measure in (*((n, "contexts", at_context) for n in contexts),
                                   *((n, "batches", at_batch) for n in batches)):  # fmt: skip
            for runner, side in zip(runners, sides, strict=True):
                what = f"{runner.name}, {size:,} {'tokens' if key == 'contexts' else 'at once'}"
                yield {"type": "progress", "done": done, "of": of, "what": what}
                check(stop)
                done += 1
                if key == "contexts" and too_long(side[key], size):
                    continue
                side[key].append(measure(runner, size, repeats, stop, clock))
                yield {"type": "point", "scaling": told | {"crossings": crossings(sides)}}
    except Stopped:
        return
    yield {"type": "result", "scaling": told | {"crossings": crossings(sides)}}


def too_long(points: Sequence[dict[str, Any]], context: int) -> bool:
    """Whether reading `context` tokens would take too long, going by the last point, were it quadratic."""
    if not points:
        return False
    return points[-1]["prefill_s"]["median"] * (context / points[-1]["tokens"]) ** 2 > LONGEST_S


def at_context(
    runner: OurRunner, tokens: int, repeats: int, stop: threading.Event | None, clock: Clock
) -> dict[str, Any]:
    """One point: reading `tokens`, then decoding after them."""
    model = runner.model.language_model
    embeds = random_embeds(runner, 1, tokens)
    reads, state = timed(lambda: model(embeds, last_only=True).state, repeats, runner, stop, clock)
    memory = model.state_bytes(state)
    steps = decoded(runner, state, 1, stop, clock)
    return {"tokens": tokens, "prefill_s": spread(reads), "decode_s": spread(steps), "memory": memory}


def at_batch(runner: OurRunner, batch: int, repeats: int, stop: threading.Event | None, clock: Clock) -> dict[str, Any]:
    """One point: a step of `batch` users at once, each with a context of its own."""
    with torch.inference_mode():
        model = runner.model.language_model
        state = model.repeat(model(random_embeds(runner, 1, BATCH_CONTEXT), last_only=True).state, batch)
    memory = model.state_bytes(state)
    steps = decoded(runner, state, batch, stop, clock)
    return {"batch": batch, "decode_s": spread(steps), "memory": memory}


@torch.inference_mode()
def random_embeds(runner: OurRunner, batch: int, tokens: int) -> Tensor:
    """(batch, tokens, d_model) of random words."""
    return runner.model.language_model.embed(random_ids(runner, batch, tokens))


def random_ids(runner: OurRunner, batch: int, tokens: int) -> Tensor:
    """(batch, tokens), the same for every runner with this vocabulary."""
    ids = torch.randint(runner.model.config.vocab_words, (batch, tokens), generator=torch.Generator().manual_seed(0))
    return ids.to(runner.model.backend.device)


@torch.inference_mode()
def timed(
    act: Callable[[], Any], repeats: int, runner: OurRunner, stop: threading.Event | None, clock: Clock
) -> tuple[list[float], Any]:
    """Seconds of each of `repeats` runs after a warm-up, and what the last one gave."""
    seconds, result = [], None
    for turn in range(repeats + 1):
        check(stop)
        result = None  # two results at once would be twice the memory
        start = clock()
        result = act()
        synchronize(runner.model.backend.device)
        if turn:
            seconds.append(clock() - start)
    return seconds, result


@torch.inference_mode()
def decoded(runner: OurRunner, state: Any, batch: int, stop: threading.Event | None, clock: Clock) -> list[float]:
    """Seconds of each of some steps on from `state`, the first one not counted."""
    go_on, ids, seconds = runner.model.language_model.stepper(), random_ids(runner, batch, 1), []
    for turn in range(STEPS + 1):
        check(stop)
        start = clock()
        go_on(ids, state)
        synchronize(runner.model.backend.device)
        if turn:
            seconds.append(clock() - start)
    return seconds


def crossings(sides: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Where the two curves of each figure cross, by straight lines between their points on log axes."""
    found = []
    for against, key, of in (("tokens", "contexts", "tokens of context"), ("batch", "batches", "users at once")):
        for what in ("decode_s", "prefill_s", "memory") if against == "tokens" else ("decode_s", "memory"):
            one, other = ({p[against]: value(p[what]) for p in side[key]} for side in sides)
            shared = sorted(one.keys() & other.keys())
            if not shared:
                continue
            at = crossing(shared, [math.log(one[n] / other[n]) for n in shared])
            leads = sides[0] if one[shared[-1]] < other[shared[-1]] else sides[1]
            better = "smaller" if what == "memory" else "faster"
            if at is None:
                says = f"{leads['name']} is {better} {WHAT[what]} at every point up to {shared[-1]:,} {of}."
            else:
                says = f"From about {round_off(at):,} {of} on, {leads['name']} is {better} {WHAT[what]}."
            found.append({"what": what, "against": against, "at": at, "says": says})
    return found


def value(point: Any) -> float:
    return point["median"] if isinstance(point, dict) else point


def crossing(at: Sequence[int], differences: Sequence[float]) -> float | None:
    """Where the differences change their sign for good; None where they don't."""
    for i in range(len(at) - 1, 0, -1):
        before, after = differences[i - 1], differences[i]
        if before * after < 0:
            share = before / (before - after)
            return math.exp(math.log(at[i - 1]) + share * (math.log(at[i]) - math.log(at[i - 1])))
        if before == 0 and after:
            return float(at[i - 1])
    return None


def round_off(number: float) -> int:
    """To two digits: more would claim too much."""
    unit = 10 ** max(0, math.floor(math.log10(number)) - 1)
    return int(round(number / unit) * unit)
