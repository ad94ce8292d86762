"""The line before the models: order, places, a measurement's solitude, and that leaving frees a seat."""

import asyncio
import threading
import time
from collections.abc import Coroutine, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from mlmamba.errors import UserError
from page.line import LONGEST, Line


def test_first_come_first_served():
    line = Line(2)
    a, b, c, d = (line.join() for _ in range(4))
    assert [line.place(turn) for turn in (a, b, c, d)] == [0, 0, 1, 2]
    line.leave(c)  # gives up
    assert line.place(d) == 1
    line.leave(b)
    assert line.place(d) == 0 and line.served == {a, d}


def test_who_wants_to_be_alone_is_neither_overtaken_nor_disturbed():
    line = Line(3)
    a = line.join()
    race = line.join(alone=True)
    b = line.join()
    assert (line.place(race), line.place(b)) == (1, 2)  # a seat is free, but the race comes first
    line.leave(a)
    assert line.served == {race} and line.place(b) == 1
    line.leave(race)
    assert line.served == {b}


def test_a_line_that_is_too_long_is_refused():
    line = Line(1)
    for _ in range(LONGEST + 1):
        line.join()
    with pytest.raises(UserError, match="try again in a minute"):
        line.join()


def run(coroutine: Coroutine) -> Any:
    """In a thread: a browser's client may have a loop of its own in this one."""
    return ThreadPoolExecutor(1).submit(asyncio.run, coroutine).result()


def test_no_more_than_the_seats_at_once_and_all_in_the_end():
    line, inside, most = Line(3), [], []

    def steps(number: int) -> Generator[str, None, None]:
        inside.append(number)
        for _ in range(3):
            most.append(len(inside))
            time.sleep(0.01)
            yield f"{number}"
        inside.remove(number)

    async def visitor(number: int) -> list[str]:
        return [step async for step in line.serve(lambda: steps(number), lambda place: f"wait {place}")]

    async def together() -> list[list[str]]:
        return await asyncio.gather(*(visitor(number) for number in range(10)))

    told = run(together())
    assert max(most) == 3
    for number, steps_told in enumerate(told):
        assert steps_told[-3:] == [str(number)] * 3
        places = [int(step.split()[1]) for step in steps_told[:-3]]
        assert places == sorted(set(places), reverse=True) and (places != []) == (number >= 3)


def test_leaving_frees_the_seat_once_the_running_step_has_ended():
    line = Line(1)
    begun, ended, may_end = threading.Event(), threading.Event(), threading.Event()

    def slow() -> Generator[str, None, None]:
        try:
            begun.set()
            may_end.wait(10)
            yield "late"
        finally:
            ended.set()

    async def visitor() -> None:
        async for _ in line.serve(slow, str):
            pass

    async def scene() -> None:
        task = asyncio.create_task(visitor())
        while not begun.is_set():
            await asyncio.sleep(0.01)
        task.cancel()  # as Gradio does on a stop or a closed tab
        await asyncio.sleep(0.1)
        assert line.served and not ended.is_set()  # its thread is still at work
        may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended.is_set() and not line.served

    run(scene())


def test_leaving_the_line_lets_the_next_one_in():
    line = Line(1)
    first = line.join()

    async def scene() -> None:
        waiting = line.serve(lambda: iter(()), lambda place: place)  # type: ignore[arg-type, return-value]
        assert await anext(waiting) == 1
        behind = line.join()
        await waiting.aclose()
        assert line.place(behind) == 1
        line.leave(first)
        assert line.place(behind) == 0

    run(scene())


def test_one_piece_of_work_and_its_fault():
    line = Line(1)
    assert run(line.once(lambda: 42)) == 42
    with pytest.raises(ZeroDivisionError):
        run(line.once(lambda: 1 // 0))
    assert not line.served and not line.waiting
