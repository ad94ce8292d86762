"""A view as a loop: the scan from its first step to its last, or an answer word by word."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_rgba_array
from PIL import Image, ImageOps

from visualize.layout import DIFFERENCE, SCREEN, plot
from visualize.payload import PALETTE
from visualize.sheet import COLOURS, INK, LINE, MARK, SOFT
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
        palette = palette_of(drawn)
        drawn = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in drawn]
        options = {"optimize": 0}
    file = io.BytesIO()
    drawn[0].save(file, format.upper(), save_all=True, append_images=drawn[1:], duration=pauses, loop=0, **options)
    return file.getvalue()


def frames(view: View, traces: dict[str, Trace]) -> Iterator[Image.Image]:
    """The same figure, step after step."""
    last = next(iter(traces.values())).n_patches - 1
    steps = np.unique(np.linspace(0, last, min(FRAMES, last + 1)).round().astype(int))
    return plot(view, traces, *SCREEN, growing=True).frames(steps.tolist())


def words(view: View, traces: dict[str, Trace]) -> Iterator[Image.Image]:
    """A figure for each word of the answer, all of one size."""
    most = max(len(words_of(show.trace)) for show in select(view, traces))
    drawn = [plot(replace(view, word=i), traces, *SCREEN).pixels() for i in range(min(most, FRAMES))]
    tallest = max(frame.height for frame in drawn)
    return (ImageOps.pad(frame, (frame.width, tallest), color="white", centering=(0, 0)) for frame in drawn)


def palette_of(frames: Sequence[Image.Image]) -> Image.Image:
    """256 colours for a GIF: those that mean something exactly, the rest as its frames need them."""
    maps = [colormaps[name](np.linspace(0, 1, n)) for name, n in ((PALETTE, 48), (DIFFERENCE, 16))]
    exact = np.concatenate([to_rgba_array([*COLOURS, INK, SOFT, LINE, MARK, "white", "black"]), *maps])[:, :3] * 255
    some = np.concatenate([np.asarray(frames[round(i * (len(frames) - 1) / 4)]) for i in range(5)])
    rest = np.reshape(Image.fromarray(some).quantize(256 - len(exact)).getpalette() or [], (-1, 3))
    rest = rest[np.abs(rest[:, None] - exact).max(2).min(1) > 8]  # a near white would do for white
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.concatenate([exact, rest]).round().astype(int)[:256].ravel().tolist())
    return palette
