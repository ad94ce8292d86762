"""Many visitors at once, on a page of its own or one that is there already.

    python -m loadtest [--users 50] [--minutes 3] [--json OUT]    python -m loadtest --leaving

Visitors do what a browser does: they open the page, upload a picture, ask, read a while and ask again; some press Stop,
some close the tab in mid-answer and come back. A first answer has to be the one that the model gives alone. `--leaving`
measures how soon a visitor who stops or leaves makes room for the next.
"""

import argparse
import asyncio
import json
import random
import secrets
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import psutil
from anyio import fail_after

import mlmamba
from page.chat import EXAMPLES, EXAMPLES_DIR

MB = 1e6
READING_S = 4.0  # a visitor's pause, on average
STOPPING, LEAVING, ANOTHER = 0.05, 0.05, 0.2  # how often a visitor stops, closes the tab, takes another picture
LONGEST_S = 60  # a question without an answer by then is an error
SAMPLE_S = 5  # between two looks at the memory
# the real model, but slow: it may not end its answer, and thinks 0.1 s before each token
SLOW = """
import time
from mlmamba import decoding
choose, say = decoding.choose, decoding.Seat.say
def endless(logits, temperature, noise):
    logits = logits.clone()
    logits[:, 0] = float("-inf")  # the end of a turn
    return choose(logits, temperature, noise)
def slow(self, token):
    time.sleep(0.1)
    say(self, token)
decoding.choose, decoding.Seat.say = endless, slow
"""


@contextmanager
def page(*options: str, patch: str = "") -> Iterator[tuple[str, psutil.Process]]:
    """`python app.py` on a free port, its log in loadtest.log; yields its address and process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/"
    command = [sys.executable, "-c", f"{patch}\nimport app\napp.main()", "--port", str(port), *options]
    with open("loadtest.log", "w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            while process.poll() is None and not answers(url):
                time.sleep(0.5)
            if process.poll() is not None:
                sys.exit("The page did not start; loadtest.log says why.")
            yield url, psutil.Process(process.pid)
        finally:
            process.terminate()


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=10).status_code == 200
    except httpx.HTTPError:
        return False


class Endpoints:
    """The numbers of the page's events, as its config has them."""

    def __init__(self, config: dict[str, Any]):
        found = {event["api_name"]: event for event in reversed(config["dependencies"])}  # the chat's come first
        self.take, self.begin, self.halt = (found[name]["id"] for name in ("take", "begin_box", "halt"))
        follows = [event for event in config["dependencies"] if event["trigger_after"] == self.begin]
        (self.answer,) = (event["id"] for event in follows)


@dataclass
class Tally:
    """What came of it."""

    asked: Counter = field(default_factory=Counter)  # by visitor
    answered: Counter = field(default_factory=Counter)
    outcomes: Counter = field(default_factory=Counter)
    first_s: dict[int, list[float]] = field(default_factory=dict)  # from the click to the first word, by visitor
    whole_s: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    memory: list[tuple[float, int]] = field(default_factory=list)  # seconds since the start, bytes


class Visitor:
    """A browser's side of the page: one session, one picture, the turns that it shows."""

    def __init__(self, client: httpx.AsyncClient, endpoints: Endpoints):
        self.client, self.endpoints = client, endpoints
        self.session = secrets.token_hex(8)
        self.picture: Any = None
        self.talk: list = []
        self.alive: asyncio.Task | None = None

    async def open(self) -> None:
        """The page, and the connection that tells the server that somebody is there."""
        (await self.client.get("")).raise_for_status()

        async def stay() -> None:
            async with self.client.stream("GET", f"gradio_api/heartbeat/{self.session}") as beats:
                async for _ in beats.aiter_raw():
                    pass

        self.alive = asyncio.create_task(stay())

    def close(self) -> None:
        if self.alive:
            self.alive.cancel()

    async def now(self, event: int, data: list) -> list:
        """An event outside Gradio's queue."""
        call = {"fn_index": event, "data": data, "session_hash": self.session}
        return (await self.client.post("gradio_api/run/predict", json=call)).raise_for_status().json()["data"]

    async def take(self, path: Path) -> None:
        """Upload a picture."""
        sent = await self.client.post("gradio_api/upload", files={"files": (path.name, path.read_bytes())})
        file = {"path": sent.raise_for_status().json()[0], "orig_name": path.name}
        shown = await self.now(self.endpoints.take, [file | {"meta": {"_type": "gradio.FileData"}}])
        (self.picture,) = (part["value"] for part in shown if isinstance(part, dict) and part.get("value"))
        self.talk = []

    async def ask(self, question: str) -> AsyncGenerator[tuple[str, Any], None]:
        """What comes: ("line", sentence), ("word", None) at each piece, ("answer", text). Raises RuntimeError."""
        talk, notice, *_ = await self.now(self.endpoints.begin, [question, self.picture, self.talk])
        if not talk or isinstance(talk, dict):
            raise RuntimeError(f"refused: {notice}")
        call = {"fn_index": self.endpoints.answer, "data": [0, 64], "session_hash": self.session}
        (await self.client.post("gradio_api/queue/join", json=call)).raise_for_status()
        stream = self.client.stream("GET", "gradio_api/queue/data", params={"session_hash": self.session})
        async with stream as events:
            async for line in events.aiter_lines():
                told: dict[str, Any] = json.loads(line.removeprefix("data: ")) if line else {"msg": ""}
                if told["msg"] == "process_generating":
                    talk, notice = told["output"]["data"][:2]
                    if "number" in str(notice):
                        yield "line", notice
                    elif isinstance(talk, list) and talk:
                        yield "word", None
                elif told["msg"] == "process_completed":
                    if not told["success"]:
                        raise RuntimeError(str(told["output"]))
                    talk = told["output"]["data"][0]
                    if isinstance(talk, list):  # else it was stopped, and what `stop` returned shows the talk
                        self.talk = talk
                        yield "answer", talk[-1]["content"][0]["text"]
                elif told["msg"] == "close_stream":
                    return

    async def stop(self) -> None:
        await self.now(self.endpoints.halt, [])


async def visit(
    number: int, client: httpx.AsyncClient, endpoints: Endpoints, alone: dict, tally: Tally, until: float, seed: int
) -> None:
    """One visitor's three minutes."""
    chance = random.Random(f"{seed}-{number}")
    await asyncio.sleep(chance.uniform(0, 2 * READING_S))
    visitor, example = Visitor(client, endpoints), None
    try:
        while time.monotonic() < until:
            if visitor.alive is None:
                await visitor.open()
                example = None
            if example is None or chance.random() < ANOTHER:
                example = chance.choice(EXAMPLES)
                await visitor.take(EXAMPLES_DIR / example["file"])
            question, first = chance.choice(example["questions"]), not visitor.talk
            tally.asked[number] += 1
            outcome, begun, waited = "", time.monotonic(), False
            leaves, stops = chance.random() < LEAVING, chance.random() < STOPPING
            with fail_after(LONGEST_S):
                async with aclosing(visitor.ask(question)) as coming:
                    async for what, value in coming:
                        if what == "line" and not waited:
                            waited = True
                            tally.outcomes["told a place in line"] += 1
                        if what == "word" and not outcome:
                            outcome = "first word"
                            tally.first_s.setdefault(number, []).append(time.monotonic() - begun)
                            if leaves:
                                outcome = "left in mid-answer"
                                break
                            if stops:
                                outcome = "stopped"
                                await visitor.stop()  # as a browser does, which then hears the stream to its end
                        elif what == "answer" and outcome != "stopped":
                            outcome = "answered"
                            tally.answered[number] += 1
                            tally.whole_s.append(time.monotonic() - begun)
                            if not value.strip() or (first and value != alone[example["file"], question]):
                                tally.errors.append(f"{example['file']}, {question}: {value}")
            tally.outcomes[outcome or "nothing came"] += 1
            if leaves and outcome == "left in mid-answer":
                visitor.close()
                visitor = Visitor(client, endpoints)
            elif outcome == "stopped":
                example = None  # what the page shows now is not followed here
            await asyncio.sleep(min(chance.expovariate(1 / READING_S), 4 * READING_S))
    except Exception as error:
        tally.errors.append(f"{type(error).__name__}: {error}")
    finally:
        visitor.close()


async def watch(process: psutil.Process, tally: Tally) -> None:
    """The memory of the page's process, all of it that is resident."""
    begun = time.monotonic()
    while True:
        tally.memory.append((time.monotonic() - begun, process.memory_info().rss))
        await asyncio.sleep(SAMPLE_S)


async def load(url: str, process: psutil.Process | None, users: int, minutes: float, seed: int) -> Tally:
    """All visitors at once, each until its time is over and its last answer there."""
    model = mlmamba.load("tiny", device="cpu")
    alone = {
        (example["file"], question): model.chat(EXAMPLES_DIR / example["file"], question)
        for example in EXAMPLES
        for question in example["questions"]
    }
    del model
    tally, limits = Tally(), httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=httpx.Timeout(120), limits=limits) as client:
        endpoints = Endpoints((await client.get("config")).json())
        watching = asyncio.create_task(watch(process, tally)) if process else None
        until = time.monotonic() + 60 * minutes
        await asyncio.gather(*(visit(number, client, endpoints, alone, tally, until, seed) for number in range(users)))
        if watching:
            watching.cancel()
    return tally


def growth(memory: list[tuple[float, int]]) -> float:
    """How much more the last quarter of the samples is than the first quarter after the first minute."""
    later = [size for second, size in memory if second >= 60]
    part = max(1, len(later) // 4)
    return statistics.mean(later[-part:]) / statistics.mean(later[:part]) - 1


def report(tally: Tally, users: int, minutes: float) -> dict[str, Any]:
    """The figures of a run."""
    counts = [tally.answered[number] for number in range(users)]
    first = [seconds for each in tally.first_s.values() for seconds in each]
    of_each = [statistics.mean(each) for each in tally.first_s.values()]
    told: dict[str, Any] = {
        "users": users,
        "minutes": minutes,
        "questions": sum(tally.asked.values()),
        **tally.outcomes,
        "errors": len(tally.errors),
        "first word, median": statistics.median(first),
        "first word, 95th percentile": statistics.quantiles(first, n=20)[-1],
        "whole answer, median": statistics.median(tally.whole_s),
        "answers a second": len(tally.whole_s) / (60 * minutes),
        "answers a visitor, fewest": min(counts),
        "answers a visitor, most": max(counts),
        "first word, mean of the luckiest": min(of_each),
        "first word, mean of the unluckiest": max(of_each),
    }
    if tally.memory and minutes > 1:
        told["memory at the end, MB"] = tally.memory[-1][1] / MB
        told["growth after the first minute"] = growth(tally.memory)
    return told


async def leaving(url: str, rounds: int = 10) -> dict[str, list[float]]:
    """Seconds from one visitor's Stop, or closed tab, until the next in line is served; on a page with one seat."""
    found: dict[str, list[float]] = {"Stop": [], "a closed tab": []}
    async with httpx.AsyncClient(base_url=url, timeout=httpx.Timeout(120)) as client:
        endpoints = Endpoints((await client.get("config")).json())
        for how, _ in product(found, range(rounds)):
            one, two = Visitor(client, endpoints), Visitor(client, endpoints)
            for visitor in (one, two):
                await visitor.open()
                await visitor.take(EXAMPLES_DIR / EXAMPLES[0]["file"])
            speaking, next_one = one.ask("What can you see?"), two.ask("What can you see?")
            async with aclosing(speaking), aclosing(next_one):
                while (await anext(speaking))[0] != "word":
                    pass
                while (await anext(next_one))[0] != "line":
                    pass
                begun = time.monotonic()
                if how == "Stop":
                    await one.stop()
                else:
                    await speaking.aclose()
                    one.close()
                while (await anext(next_one))[0] != "word":
                    pass
                found[how].append(time.monotonic() - begun)
                await two.stop()
            one.close()
            two.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m loadtest", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--url", help="a page that is there already (default: one is started, with the tiny model)")
    parser.add_argument("--users", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--leaving", action="store_true", help="how soon who stops or leaves makes room")
    parser.add_argument("--json", type=Path, metavar="OUT", help="keep the figures, and the memory over time")
    args = parser.parse_args()
    if args.leaving:
        with page("--seats", "1", patch=SLOW) as (url, _):
            for how, times in asyncio.run(leaving(url)).items():
                print(f"{how}: {min(times):.2f} s, {statistics.median(times):.2f} s, {max(times):.2f} s "
                      "(least, median, most) to the next one's first word, at 0.1 s a token")  # fmt: skip
        return
    if args.url:
        tally = asyncio.run(load(args.url, None, args.users, args.minutes, args.seed))
    else:
        with page() as (url, process):
            tally = asyncio.run(load(url, process, args.users, args.minutes, args.seed))
    told = report(tally, args.users, args.minutes)
    for name, value in told.items():
        print(f"{name:32} {value:.3f}" if isinstance(value, float) else f"{name:32} {value}")
    for error in tally.errors[:10]:
        print("error:", error)
    if args.json:
        args.json.write_text(json.dumps(told | {"memory": tally.memory, "all errors": tally.errors}, indent=1))
    sys.exit(bool(tally.errors))


if __name__ == "__main__":
    main()
