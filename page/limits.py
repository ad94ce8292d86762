"""What one visitor may have of the machine. Files and pictures have their limits in `mlmamba.images`, questions in
`mlmamba.chat`, the line in `page.line`."""

import time
from collections.abc import Generator, Iterable
from contextlib import closing
from typing import Any, TypeVar

from mlmamba.errors import UserError

TURNS = 50  # of a conversation
ANSWER_TOKENS = 256
ANSWER_S = 60  # an answer ends there, as if stopped
MEASURE_S = 300  # the same for a race, which keeps everybody else waiting
KEPT_S = 3600  # how long a picture is kept, and a visitor who does nothing
VISITORS = 500  # who are remembered; the page itself can bring back one who was forgotten
FULL = f"This conversation has {TURNS} turns, which is all there may be; clear the chat, or undo some."
LATE = f"The answer was stopped after {ANSWER_S} s, which is all there may be; ask for less."
TOO_LONG = f"The measuring was stopped after {MEASURE_S // 60} minutes, which is all there may be; choose less of it."

Piece = TypeVar("Piece")


class Late(UserError):
    """More than a request's time went by."""


def in_time(pieces: Iterable[Piece], seconds: float, sentence: str) -> Generator[Piece, None, None]:
    """The pieces that come in time; then their source is closed, and Late raised with the sentence."""
    until = time.monotonic() + seconds
    source: Any = pieces
    with closing(source):
        for piece in source:
            if time.monotonic() > until:
                raise Late(sentence)
            yield piece
