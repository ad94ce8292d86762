"""One run against the clock, and what several of them spread over."""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from mlmamba.bench.runners import Runner

Clock = Callable[[], float]  # seconds


class Stopped(Exception):
    """Whoever measures was told to end."""


@dataclass(frozen=True)
class Lap:
    """One answer; times are seconds since its start. No end of turn ends it: all runners say as many tokens.

    seen: when the picture had gone through towers and connector (None where a runner can't tell that apart).
    said: when each token was there, the first one right after the prompt was read. memory: what is carried from token
    to token after each, in bytes.
    """

    seen: float | None
    said: tuple[float, ...]
    tokens: tuple[int, ...]
    memory: tuple[int, ...]

    @property
    def prefill(self) -> float:
        """From the picture seen to the first token."""
        return self.said[0] - (self.seen or 0.0)

    @property
    def decode(self) -> float:
        """Seconds a token, the first one (which belongs to the prefill) not counted."""
        return (self.said[-1] - self.said[0]) / max(1, len(self.said) - 1)


def lap(
    runner: Runner, image: Any, prompt: Sequence[int], n_tokens: int, *,
    stop: threading.Event | None = None, clock: Clock = time.perf_counter,
) -> Lap:  # fmt: skip
    """Let a runner see, read and say `n_tokens`. Raises Stopped between two tokens when `stop` is set."""
    start = clock()
    sight = runner.see(image)
    seen = clock() - start if runner.sees_apart else None
    token, state = runner.read(sight, prompt, n_tokens)
    said, tokens, memory = [clock() - start], [token], [runner.memory(state)]
    while len(said) < n_tokens:
        check(stop)
        token, state = runner.step(token, state)
        said.append(clock() - start)
        tokens.append(token)
        memory.append(runner.memory(state))
    return Lap(seen, tuple(said), tuple(tokens), tuple(memory))


def check(stop: threading.Event | None) -> None:
    """Raise Stopped if `stop` is set."""
    if stop is not None and stop.is_set():
        raise Stopped


def spread(values: Iterable[float]) -> dict[str, float]:
    """Least, median and largest: machine noise is shown, not hidden."""
    found = list(values)
    return {"min": min(found), "median": median(found), "max": max(found)}
