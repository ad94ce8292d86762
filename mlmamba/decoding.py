"""From a read prompt to words, token by token: one answer alone, or several as one batch.

    decoding = decoder.start(output, wish)   # output: of the language model, after the prompt
    for token in decoding: ...               # ends after the end of turn, the wish's length, or its stop
    late = decoding.end()                    # tokens that were said before it could be stopped
    decoding.state                           # has read every token but the last

`Alone` decodes in the caller's thread. `Together` has one thread of its own and a fixed number of seats, each with a
state: at every step all seats go one token on, whoever sits there. What one user gets does not depend on who else
is there, because a step always has the same shape and no seat looks at another.
"""

import atexit
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from mlmamba.mamba2 import LanguageModel, LanguageOutput, LayerState, State


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
        """One id from logits (vocab_size,): the likeliest at temperature 0."""
        logits = logits[: self.words]
        if self.temperature <= 0:
            return int(logits.argmax())
        probabilities = torch.softmax(logits / self.temperature, dim=-1)
        return int(torch.multinomial(probabilities, 1, generator=self.generator))

    def over(self, token: int, said: int) -> bool:
        """Whether `token`, the last of `said` ones, ends the answer."""
        return token == self.end or said >= self.length or (self.stop is not None and self.stop.is_set())


class Decoding(Protocol):
    """One answer on its way."""

    @property
    def state(self) -> Any: ...

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
        self.language_model, self.output, self.wish = language_model, output, wish

    @property
    def state(self) -> Any:
        return self.output.state

    def __iter__(self) -> Iterator[int]:
        lm, said = self.language_model, 0
        while True:
            token = self.wish.choose(self.output.logits[0, -1])
            said += 1
            yield token
            if self.wish.over(token, said):
                return
            with torch.inference_mode():
                ids = torch.tensor([[token]], device=self.output.logits.device)
                self.output = lm(lm.embed(ids), self.output.state)

    def end(self) -> list[int]:
        return []


class Together:
    """Decodes up to `seats` answers as one batch, each step one token for every seat; others wait for a seat."""

    def __init__(self, language_model: LanguageModel, seats: int):
        self.language_model = language_model
        self.seats: list[Seat | None] = [None] * seats
        self.tokens = [0] * seats  # the last one of each seat, not yet read
        self.state: State | None = None  # of all seats, made with the first answer
        self.arrivals: queue.SimpleQueue[Seat | None] = queue.SimpleQueue()
        self.room = threading.Semaphore(seats)
        self.thread = threading.Thread(target=self._run, name="decoder", daemon=True)
        self.thread.start()
        atexit.register(self.close)  # a thread that is cut off amid PyTorch would abort the process

    def start(self, output: LanguageOutput, wish: Wish) -> "Seat":
        """Waits for a seat where all are taken; whoever is told to stop meanwhile has said nothing."""
        seat = Seat(output, wish)
        while not self.room.acquire(timeout=0.05):
            if wish.stop is not None and wish.stop.is_set():
                seat.leave(output.state)
                return seat
        self.arrivals.put(seat)
        return seat

    def close(self) -> None:
        """End the thread once nobody is there; waits a moment for it."""
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
                    return
                self._welcome(arriving)
                waiting = not any(self.seats)
            try:
                self._step()
            except Exception as fault:
                for number, seat in enumerate(self.seats):
                    if seat:
                        self._leave(number, seat, fault)

    def _welcome(self, seat: "Seat") -> None:
        """Say the first token, which the prompt's own reading has chosen, and take a seat if more is to come."""
        try:
            token = seat.wish.choose(seat.output.logits[0, -1])
            seat.say(token)
            if seat.over(token):
                seat.leave(seat.output.state)
                self.room.release()
                return
            number = self.seats.index(None)
            arriving: State = seat.output.state
            if self.state is None:
                self.state = tuple(
                    LayerState(*(t.new_zeros(len(self.seats), *t.shape[1:]) for t in (layer.conv, layer.ssm)))
                    for layer in arriving
                )
            for own, new in zip(self.state, arriving, strict=True):
                own.conv[number], own.ssm[number] = new.conv[0], new.ssm[0]
            self.seats[number], self.tokens[number] = seat, token
        except Exception as fault:
            seat.leave(seat.output.state, fault)
            self.room.release()

    def _step(self) -> None:
        """One token for each seat."""
        lm = self.language_model
        ids = torch.tensor(self.tokens, device=lm.embedding.weight.device)[:, None]
        output = lm(lm.embed(ids), self.state)
        self.state = output.state
        for number, seat in enumerate(self.seats):
            if seat is None:
                continue
            token = seat.wish.choose(output.logits[number, -1])
            seat.say(token)
            self.tokens[number] = token
            if seat.over(token):
                self._leave(number, seat)

    def _leave(self, number: int, seat: "Seat", fault: Exception | None = None) -> None:
        """Give the seat's state back, and clear it: an empty seat goes on being computed, from zeros."""
        state, own = self.state or (), slice(number, number + 1)
        seat.leave(tuple(LayerState(layer.conv[own].clone(), layer.ssm[own].clone()) for layer in state), fault)
        for layer in state:
            layer.conv[number].zero_()
            layer.ssm[number].zero_()
        self.seats[number], self.tokens[number] = None, 0
        self.room.release()


class Seat:
    """One answer of several that are decoded together."""

    def __init__(self, output: LanguageOutput, wish: Wish):
        self.output, self.wish = output, wish
        self.said = 0
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
