"""The line before the models: a few visitors are served at once, the others wait in order and are told their place.

A measurement wants the machine for itself: it begins when nobody else is served, and nobody else is until it ends.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing
from typing import Any, TypeVar, cast

from anyio import CapacityLimiter, to_thread

from mlmamba.errors import UserError

POLL_S = 0.05  # seconds between two looks at whether it is one's turn
TELL_S = 2.0  # seconds between two places told: each costs as much as a few words of an answer
LONGEST = 64  # visitors that may wait
END: Any = object()
Step = TypeVar("Step")


class Turn:
    """One visitor's turn, in line or begun."""

    def __init__(self, alone: bool):
        self.alone = alone


class Line:
    """First come, first served, by `seats` at once."""

    def __init__(self, seats: int):
        self.seats = seats
        self.served: set[Turn] = set()
        self.waiting: deque[Turn] = deque()
        self._lock = threading.Lock()
        self._threads = CapacityLimiter(seats)

    def join(self, alone: bool = False) -> Turn:
        """Raises UserError where the line is too long already."""
        with self._lock:
            if len(self.waiting) >= LONGEST:
                raise UserError(f"Too many people are asking now, {LONGEST} wait already; try again in a minute.")
            turn = Turn(alone)
            self.waiting.append(turn)
            self._admit()
            return turn

    def place(self, turn: Turn) -> int:
        """How many places away the turn is: 1 is next, 0 is served."""
        with self._lock:
            return 0 if turn in self.served else self.waiting.index(turn) + 1

    def leave(self, turn: Turn) -> None:
        with self._lock:
            self.served.discard(turn)
            if turn in self.waiting:
                self.waiting.remove(turn)
            self._admit()

    def _admit(self) -> None:
        while self.waiting:
            room = 1 if self.waiting[0].alone else self.seats
            if len(self.served) >= room or any(turn.alone for turn in self.served):
                return  # whoever comes first is never overtaken
            self.served.add(self.waiting.popleft())

    async def serve(
        self, steps: Callable[[], Generator[Step, None, None]], waiting: Callable[[int], Step], *, alone: bool = False
    ) -> AsyncGenerator[Step, None]:
        """`waiting(place)` at each new place in line, then what `steps` yields, computed in a worker thread.

        Closing or cancelling it leaves the line, and closes the steps once the running one has ended.
        """
        turn = self.join(alone)
        try:
            told, when = 0, 0.0
            while place := self.place(turn):
                if place != told and time.monotonic() >= when + TELL_S:
                    yield waiting(place)
                    told, when = place, time.monotonic()
                await asyncio.sleep(POLL_S)
            iterator = steps()
            try:
                while (step := await to_thread.run_sync(next, iterator, END, limiter=self._threads)) is not END:
                    yield step
            finally:
                await _close(iterator)
        finally:
            self.leave(turn)

    async def once(self, work: Callable[[], Step], *, alone: bool = False) -> Step:
        """The result of one piece of work, in its turn."""

        def steps() -> Generator[Step | None, None, None]:
            yield work()

        async with aclosing(self.serve(steps, lambda place: None, alone=alone)) as served:
            *_, result = [step async for step in served]
        return cast(Step, result)


async def _close(iterator: Generator) -> None:
    """Close a generator that may still be at work in its thread, as after a cancellation."""
    while True:
        try:
            iterator.close()
            return
        except ValueError:  # it is being run
            await asyncio.sleep(POLL_S)
