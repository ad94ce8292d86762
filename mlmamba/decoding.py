"""From a read prompt to words, token by token: one answer alone, or several as one batch.

    decoding = decoder.start(output, wish)   # output: of the language model, after the prompt
    for token in decoding: ...               # ends after the end of turn, the wish's length, or its stop
    late = decoding.end()                    # tokens that were said before it could be stopped
    decoding.state                           # has read every token but the last

`Alone` decodes in the caller's thread. `Together` has one thread of its own and a fixed number of seats (`Steps`), each
with a state: at every step all seats go one token on, whoever sits there. What one user gets does not depend on who
else is there, because a step always has the same shape and no seat looks at another. And since it is always the same,
on the same memory, CUDA can do it as one graph.
"""

import atexit
import logging
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor

from mlmamba import backend
from mlmamba.mamba2 import LanguageModel, LanguageOutput, State, layered

log = logging.getLogger(__name__)
CLOSED = "The decoder was closed."


@dataclass(frozen=True)
class Wish:
    """How an answer is to be decoded: at most `length` tokens, until `end`, or until `stop` is set."""

    length: int
    end: int
    words: int  # ids below it may be said
    temperature: float = 0.0
    generator: torch.Generator | None = None
    stop: threading.Event | None = None

    def choose(self, logits: Tensor) -> int:
        """One id from logits (vocab_size,)."""
        logits = logits[None, : self.words]
        noise = self.draw(torch.ones_like(logits[0]))
        return int(choose(logits, torch.full_like(logits[:, :1], self.temperature), noise[None]))

    def draw(self, noise: Tensor) -> Tensor:
        """Fill noise (words,) with what the next choice is drawn by; at temperature 0 it is left alone."""
        return noise.exponential_(generator=self.generator) if self.temperature > 0 else noise

    def over(self, token: int, said: int) -> bool:
        """Whether `token`, the last of `said` ones, ends the answer."""
        return token == self.end or said >= self.length or (self.stop is not None and self.stop.is_set())


def choose(logits: Tensor, temperature: Tensor, noise: Tensor) -> Tensor:
    """For each of logits (s, words) an id (s,): the likeliest where its temperature (s, 1) is 0, else drawn.

    Of words whose clocks ring after e / p, with e exponentially distributed, the first to ring is the word w in a share
    p_w of all cases: drawing is a division by noise (s, words) as well, and all seats choose in one go.
    """
    odds = torch.softmax(logits / temperature.clamp_min(1e-6), dim=-1)
    return torch.where(temperature > 0, odds / noise, logits).argmax(-1)


class Decoding(Protocol):
    """One answer on its way."""

    state: Any  # after it, None if that could not be kept

    def __iter__(self) -> Iterator[int]: ...

    def end(self) -> list[int]: ...


class Decoder(Protocol):
    """Who decodes."""

    def start(self, output: LanguageOutput, wish: Wish) -> Decoding: ...


class Alone:
    """Decodes in the caller's thread, as its answers are asked for."""

    def __init__(self, language_model: Any):
        self.language_model = language_model

    def start(self, output: LanguageOutput, wish: Wish) -> "AnswerAlone":
        return AnswerAlone(self.language_model, output, wish)


class AnswerAlone:
    """One answer, computed while it is iterated over."""

    def __init__(self, language_model: Any, output: LanguageOutput, wish: Wish):
        self.language_model, self.wish = language_model, wish
        self.logits, self.state = output.logits[0, -1], output.state

    def __iter__(self) -> Iterator[int]:
        lm, said = self.language_model, 0
        with torch.inference_mode():
            step, self.state = lm.stepper(), lm.repeat(self.state, 1)  # the prompt's own stays as it was
        while True:
            token = self.wish.choose(self.logits)
            said += 1
            yield token
            if self.wish.over(token, said):
                return
            with torch.inference_mode():
                self.logits = step(torch.tensor([[token]], device=self.logits.device), self.state)[0, -1]

    def end(self) -> list[int]:
        return []


class Steps:
    """Seats that go one token on at a time, on tensors that stay where they are: on CUDA a graph, recorded once.

    state: of all seats; tokens (seats, 1): the last of each, not yet read; logits (seats, words): those it was chosen
    from; temperature (seats, 1) and noise (seats, words): see `choose`. A seat where nobody sits is computed too.
    """

    @torch.inference_mode()
    def __init__(self, language_model: LanguageModel, seats: int, words: int):
        like = language_model.embedding.weight
        self.step = language_model.stepper()
        self.state = language_model.empty(seats)
        self.of_seat = [[each[seat : seat + 1] for each in chain(*self.state)] for seat in range(seats)]
        self.tokens = torch.zeros(seats, 1, dtype=torch.long, device=like.device)
        real: Any = {"dtype": torch.float32, "device": like.device}
        self.logits = torch.zeros(seats, words, **real)
        self.temperature, self.noise = torch.zeros(seats, 1, **real), torch.ones(seats, words, **real)
        self.advance = backend.repeated(self._advance, like.device)
        for seat in range(seats):
            self.clear(seat)  # what it was made ready on

    def sit(self, seat: int, state: State, token: int, temperature: float) -> None:
        """Begin at the state of one sequence (batch of 1) and a token that it has not read."""
        backend.copy_all([*chain(*state)], self.of_seat[seat])
        self.tokens[seat], self.temperature[seat] = token, temperature

    def taken(self, seat: int) -> State:
        """A copy of a seat's state."""
        return layered(backend.copies(self.of_seat[seat]))

    def clear(self, seat: int) -> None:
        """Leave nothing of whoever sat there."""
        for own in (self.of_seat[seat][0::2], self.of_seat[seat][1::2]):  # of one dtype, all at once
            torch._foreach_zero_(own)
        for tensor in (self.tokens, self.logits, self.temperature):
            tensor[seat] = 0
        self.noise[seat] = 1

    def _advance(self) -> None:
        """Every seat reads its token and chooses the next."""
        self.logits.copy_(self.step(self.tokens, self.state)[:, -1, : self.logits.shape[1]])
        self.tokens.copy_(choose(self.logits, self.temperature, self.noise)[:, None])


class Together:
    """Decodes up to `seats` answers as one batch, each step one token for every seat; others wait for a seat."""

    def __init__(self, language_model: LanguageModel, seats: int, words: int):
        """`words`: ids below it may be said."""
        self.steps = Steps(language_model, seats, words)
        self.seats: list[Seat | None] = [None] * seats
        self.arrivals: queue.SimpleQueue[Seat | None] = queue.SimpleQueue()
        self.room, self.closed = threading.Semaphore(seats), False
        self.thread = threading.Thread(target=self._run, name="decoder", daemon=True)
        self.thread.start()
        atexit.register(self.close)  # a thread that is cut off amid PyTorch would abort the process

    def start(self, output: LanguageOutput, wish: Wish) -> "Seat":
        """Waits for a seat where all are taken; whoever is told to stop meanwhile has said nothing."""
        seat = Seat(output, wish)
        while not self.room.acquire(timeout=0.05) and not self.closed:
            if wish.stop is not None and wish.stop.is_set():
                seat.leave(output.state)
                return seat
        self.arrivals.put(seat)
        if self.closed:  # then nobody may come for it
            seat.leave(None, RuntimeError(CLOSED))
        return seat

    def close(self) -> None:
        """End the thread; who still sits there is told. Waits a moment for it."""
        atexit.unregister(self.close)
        self.arrivals.put(None)
        self.thread.join(5)

    @torch.inference_mode()
    def _run(self) -> None:
        while True:
            # with nobody there it sleeps; else whoever has come takes a seat between two steps
            waiting = not any(self.seats)
            while waiting or not self.arrivals.empty():
                arriving = self.arrivals.get()
                if arriving is None:
                    self.closed = True
                    self._end(RuntimeError(CLOSED))
                    while not self.arrivals.empty():
                        late = self.arrivals.get()
                        if late:
                            late.leave(None, RuntimeError(CLOSED))
                    return
                self._welcome(arriving)
                waiting = not any(self.seats)
            try:
                self._step()
            except Exception as fault:
                self._end(fault)

    def _end(self, fault: Exception) -> None:
        """Let all who are there leave with a fault."""
        for number, seat in enumerate(self.seats):
            if seat:
                self._leave(number, seat, fault)

    def _welcome(self, seat: "Seat") -> None:
        """Say the first token, which the prompt's own reading has chosen, and take a seat if more is to come."""
        assert seat.output is not None
        try:
            token = seat.wish.choose(seat.output.logits[0, -1])
            seat.say(token)
            if seat.over(token):
                seat.leave(seat.output.state)
                self.room.release()
                return
            number = self.seats.index(None)
            self.steps.sit(number, seat.output.state, token, seat.wish.temperature)
            self.seats[number], seat.output = seat, None  # its state would be held twice
        except Exception as fault:
            seat.leave(None, fault)
            self.room.release()

    def _step(self) -> None:
        """One token for each seat."""
        for number, seat in enumerate(self.seats):
            if seat is not None:
                seat.wish.draw(self.steps.noise[number])
        self.steps.advance()
        for number, token in enumerate(self.steps.tokens[:, 0].tolist()):
            seat = self.seats[number]
            if seat is None:
                continue
            seat.say(token)
            if seat.over(token):
                self._leave(number, seat)

    def _leave(self, number: int, seat: "Seat", fault: Exception | None = None) -> None:
        """Give the seat's state back, and clear it. Where there is no memory for a copy, there is no state.

        Raises nothing: whoever waits for this thread would wait forever.
        """
        state = None
        try:
            if fault is None:
                state = self.steps.taken(number)
        except Exception as full:
            log.warning("A state is given up: %s", full)
        try:
            self.steps.clear(number)
        except Exception as broken:
            fault = fault or broken
        seat.leave(state, fault)
        self.seats[number] = None
        self.room.release()


class Seat:
    """One answer of several that are decoded together."""

    def __init__(self, output: LanguageOutput, wish: Wish):
        self.output: LanguageOutput | None = output
        self.wish, self.said = wish, 0
        self.ended = threading.Event()
        self.fault: Exception | None = None
        self.tokens: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self.state: Any = None
        self.left = threading.Event()

    # called by the decoder's thread

    def say(self, token: int) -> None:
        self.said += 1
        self.tokens.put(token)

    def over(self, token: int) -> bool:
        return self.ended.is_set() or self.wish.over(token, self.said)

    def leave(self, state: Any, fault: Exception | None = None) -> None:
        self.state, self.fault = state, fault
        self.tokens.put(None)
        self.left.set()

    # called by whoever asked

    def __iter__(self) -> Iterator[int]:
        while (token := self.tokens.get()) is not None:
            yield token
        if self.fault:
            raise self.fault

    def end(self) -> list[int]:
        """Stop at the next token; returns those that nobody has taken."""
        self.ended.set()
        self.left.wait()
        late = []
        while not self.tokens.empty():
            token = self.tokens.get()
            if token is not None:
                late.append(token)
        return late
