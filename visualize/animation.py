"""A view as a loop: the scan from its first step to its last, or an answer word by word."""

import io
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from PIL import Image

from visualize.layout import SCREEN, plot
from visualize.shown import select, words_of
from visualize.trace import Trace, View

FRAMES, STEP_MS, WORD_MS, HOLD_MS = 60, 100, 900, 1500


def animation(view: View, traces: dict[str, Trace], format: str) -> bytes:
    """The scan from its first step to its last, all directions in step, 720 pixels wide; "gif" or "webp"; it loops.

    Of a word there is no scan to see: there the frames are the words of the answer.
    """
    drawn = list(words(view, traces) if view.word is not None else frames(view, traces))
    pauses = [STEP_MS if view.word is None else WORD_MS] * (len(drawn) - 1) + [HOLD_MS]
    options: dict[str, int] = {"quality": 80, "method": 2}
    if format == "gif":
        some = [np.asarray(drawn[round(i * (len(drawn) - 1) / 4)]) for i in range(5)]
        palette = Image.fromarray(np.concatenate(some)).quantize(256)
        drawn = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in drawn]
        options = {"optimize": 0}
    file = io.BytesIO()
    drawn[0].save(file, format.upper(), save_all=True, append_images=drawn[1:], duration=pauses, loop=0, **options)
    return file.getvalue()


def frames(view: View, traces: dict[str, Trace]) -> Iterator[Image.Image]:
    """The same figure, step after step."""
    sheet = plot(view, traces, *SCREEN, growing=True)
    last = next(iter(traces.values())).n_patches - 1
    for step in np.unique(np.linspace(0, last, min(FRAMES, last + 1)).round().astype(int)):
        sheet.show(int(step))
        yield sheet.pixels()


def words(view: View, traces: dict[str, Trace]) -> Iterator[Image.Image]:
    """A figure for each word of the answer, all of one size."""
    most = max(len(words_of(show.trace)) for show in select(view, traces))
    drawn = [plot(replace(view, word=i), traces, *SCREEN).pixels() for i in range(min(most, FRAMES))]
    tallest = max(frame.height for frame in drawn)
    for frame in drawn:
        page = Image.new("RGB", (frame.width, tallest), "white")
        page.paste(frame)
        yield page
