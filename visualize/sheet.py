"""What figures are made of: a sheet that is laid out from the top down, and maps over a picture.

Matplotlib's objects alone, never pyplot and no global settings, so that threads of a server can draw at once. Every
text is drawn with parse_math=False: what a user or a model wrote is text, whatever it looks like.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps, font_manager
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.transforms import Affine2D
from numpy.typing import NDArray
from PIL import Image

from visualize.shown import Scale
from visualize.trace import Array, Trace

Pixels = NDArray[np.uint8]
Growth = Callable[[int], tuple[Array, Array]]  # step → values and how strongly each is drawn (0 to 1), (n_patches,)
Map = tuple[Growth, Scale]
Box = tuple[float, float, float, float]  # x, y, width, height

INK, SOFT, LINE, MARK, WARNING = "#26302b", "#5d665f", "#d8d3c8", "#b7e0cf", "#9a3412"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")  # Okabe and Ito's: one a direction, told apart by everybody
RELIEF = 0.3  # how much of the picture shows through a map, as light and shade around each patch's own mean
FADED = 0.55  # and how much of its darkness is left where there is no map
TAIL = 9  # steps of the path that stay behind its head, on a map
EDGE = 0.42  # inches of margin
CAPTION = 0.26  # inches above a panel
OTHER_FONTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans Devanagari", "Droid Sans Fallback")  # if installed
INSTALLED = set(font_manager.fontManager.get_font_names())
FONTS = ["DejaVu Sans", *(name for name in OTHER_FONTS if name in INSTALLED)]  # the first comes with matplotlib


class Sheet:
    """A figure whose height is what was laid out on it. All places are in inches, y downward from the top."""

    def __init__(self, width: float, dpi: int, growing: bool = False):
        self.growing = growing  # the maps grow with the scan, also where a still picture shows all of them
        self.figure = Figure(figsize=(width, 1), dpi=dpi, facecolor="white")
        self.canvas = FigureCanvasAgg(self.figure)
        self.width, self.dpi = width, dpi
        self.inner = width - 2 * EDGE
        self.y = EDGE * 0.9  # how far down the sheet is laid out
        self.moves: list[tuple[Artist, Callable[[int], None]]] = []  # what moves, and how it is brought to a step
        self._down = Affine2D().scale(1, -1)  # becomes "from the top" once the height is known
        self._inches = self._down + self.figure.dpi_scale_trans
        self._boxes: list[tuple[Axes, Box]] = []

    def text(self, x: float, y: float, text: str, size: float = 8, colour: str = INK, **more: Any) -> Text:
        """One line of text with its baseline at y."""
        bold = more.pop("bold", False)  # our own words alone: the other fonts have no bold to speak of
        font = FontProperties(family=FONTS[:1] if bold else FONTS, size=size, weight="bold" if bold else "normal")
        return self.figure.text(
            x, y, text, fontproperties=font, color=colour, parse_math=False, transform=self._inches, **more
        )

    def length(self, text: str, size: float) -> float:
        font = FontProperties(family=FONTS, size=size)
        return self.canvas.get_renderer().get_text_width_height_descent(text, font, False)[0] / self.dpi

    def paragraph(
        self, x: float, text: str, width: float, size: float = 8, colour: str = SOFT, lines: int = 5, marked: int = -1
    ) -> None:
        """Wrapped text from self.y on, with one of its words marked; what does not fit ends in an ellipsis."""
        wrapped: list[list[str]] = [[]]
        for word in re.sub(r"(\S{40})(?=\S)", r"\1 ", text).split(" ") if marked < 0 else text.split(" "):
            if wrapped[-1] and self.length(" ".join([*wrapped[-1], word]), size) > width:
                wrapped.append([])
            wrapped[-1].append(word)
        if len(wrapped) > lines:
            wrapped[lines - 1][-1] = "…"
        for words in wrapped[:lines]:
            self.y += size * 1.5 / 72
            if 0 <= marked < len(words):
                start = self.length(" ".join(words[: marked + 1]), size) - self.length(words[marked], size)
                self.box(x + start - 0.02, self.y + 0.05, self.length(words[marked], size) + 0.04, 0.18, MARK)
            self.text(x, self.y, " ".join(words), size, colour)
            marked -= len(words)

    def box(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        """A filled box that stands on y."""
        box = Rectangle((x, y - height), width, height, color=colour, linewidth=0, transform=self._inches)
        self.figure.add_artist(box).set_zorder(0)

    def caption(self, x: float, y: float, text: str, colour: str) -> None:
        """A line above a panel, with a small square that says whose colour this is."""
        self.box(x, y, 0.09, 0.09, colour)
        self.text(x + 0.15, y, text, 8.5, bold=True)

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        """Axes without numbers in a box."""
        axes = self.figure.add_axes((0.0, 0.0, 1.0, 1.0), xticks=[], yticks=[])
        axes.spines[:].set_color(LINE)
        self._boxes.append((axes, (x, y, width, height)))
        return axes

    def bar(self, x: float, y: float, width: float, scale: Scale, label: str) -> None:
        """A colour bar from y on, 0.45 inches high: label, colours, numbers."""
        self.text(x, y + 0.1, label)
        colours = colormaps[scale.palette](np.linspace(0, 1, 256))[None, :, :3]
        self.axes(x, y + 0.17, width, 0.12).imshow(colours, extent=(0, 1, 0, 1), aspect="auto")
        for i, (_, text) in enumerate(scale.ticks()):
            self.text(x + width * i / 2, y + 0.43, text, 7.5, SOFT, ha=("left", "center", "right")[i])

    def legend(self, y: float, trace: Trace) -> None:
        """The directions' names with their colours, flush right."""
        for d, name in enumerate(trace.directions):
            self.caption(self.width - EDGE - 0.98 * (trace.n_directions - d), y, name, COLOURS[d])

    def finish(self) -> None:
        """Cut the sheet to what lies on it."""
        pixels = round((self.y + EDGE * 0.75) * self.dpi)
        height = (pixels + pixels % 2) / self.dpi
        self.figure.set_size_inches(self.width, height)
        self._down.translate(0, height)
        for axes, (x, y, w, h) in self._boxes:
            axes.set_position((x / self.width, 1 - (y + h) / height, w / self.width, h / height))

    def show(self, step: int) -> None:
        """Bring what moves to a step."""
        for _, move in self.moves:
            move(step)

    def pixels(self) -> Image.Image:
        self.canvas.draw()
        return self._drawn()

    def frames(self, steps: Sequence[int]) -> Iterator[Image.Image]:
        """The sheet at each of the steps: only what moves is drawn anew."""
        for artist, _ in self.moves:
            artist.set_animated(True)
        self.canvas.draw()
        still = self.canvas.copy_from_bbox(self.figure.bbox)
        for step in steps:
            self.canvas.restore_region(still)
            self.show(step)
            for artist, _ in self.moves:
                artist.draw(self.canvas.get_renderer())
            yield self._drawn()

    def _drawn(self) -> Image.Image:
        return Image.fromarray(np.asarray(self.canvas.buffer_rgba())).convert("RGB")


class Panel:
    """A picture under a map (or under none), with paths of the scan; `show(step)` redraws it in place."""

    def __init__(
        self, sheet: Sheet, box: Box, trace: Trace, patch: int | None, map: Map | None = None, paths: Sequence[int] = ()
    ):
        """patch: the one to outline; map: what grows, and its scale; paths: of which directions."""
        self.trace, self.map = trace, map
        self.axes = sheet.axes(*box)
        self.layers = layers(trace, round(box[2] * sheet.dpi), round(box[3] * sheet.dpi))
        rows, cols = trace.grid
        self.image = self.axes.imshow(self.layers[0], extent=(0, cols, rows, 0), aspect="auto", interpolation="nearest")
        self.axes.set(xlim=(0, cols), ylim=(rows, 0))
        if paths and map is None:
            self.axes.vlines(range(1, cols), 0, rows, color="white", alpha=0.35, linewidth=0.5)
            self.axes.hlines(range(1, rows), 0, cols, color="white", alpha=0.35, linewidth=0.5)
        thick = min(2.2, 7.0 * box[2] / cols)
        self.lines: list[tuple[int, Line2D]] = []
        for direction in paths:
            casing = [withStroke(linewidth=thick + 1.4, foreground="white")]
            (line,) = self.axes.plot([], [], "o-", color=COLOURS[direction], linewidth=thick, path_effects=casing)
            line.set(markersize=3.4 * thick, markeredgewidth=0, solid_capstyle="round", zorder=4, clip_on=False)
            self.lines.append((direction, line))
        for width, colour in ((3.4, "white"), (1.8, "#111111")) if patch is not None else ():
            row, col = divmod(patch or 0, cols)
            cell = Rectangle((col, row), 1, 1, fill=False, edgecolor=colour, linewidth=width, zorder=6, clip_on=False)
            self.axes.add_patch(cell)
        self.show(trace.n_patches - 1)

    def show(self, step: int) -> None:
        """What is there once `step` is read."""
        if self.map is not None:
            at, scale = self.map
            values, strength = at(step)
            _, bare, relief, patch_at = self.layers
            colours = np.clip(scale.colours(values).astype(np.float32)[patch_at] + relief, 0, 255)
            mixed = bare + (colours - bare) * strength.astype(np.float32)[patch_at][..., None]
            self.image.set_data(mixed.astype(np.uint8))
        for direction, line in self.lines:
            start = max(0, step - TAIL) if self.map else 0  # on a map the end of the path, else all of it
            y, x = np.stack(np.divmod(self.trace.orders[direction][start : step + 1], self.trace.cols)) + 0.5
            if len(self.lines) > 1:  # one there and one back would hide each other
                aside = 0.13 if direction % 2 else -0.13
                x, y = (x, y + aside) if direction < 2 else (x + aside, y)
            jumps = np.flatnonzero(np.hypot(np.diff(x), np.diff(y)) > 1.01) + 1  # to a patch that is no neighbour
            x, y = (np.insert(part, jumps, np.nan) for part in (x, y))
            line.set_data(x, y)
            line.set_markevery([len(x) - 1])


def layers(trace: Trace, width: int, height: int) -> tuple[Pixels, Array, Array, NDArray[np.int64]]:
    """The picture itself, faded and as a relief, (height, width, 3 or 1), and the patch of each pixel.

    The relief is its grey around each patch's own mean: under a map, a patch as a whole then has exactly its value's
    colour, and what it is a picture of can still be seen.
    """
    rows, cols = trace.grid
    picture = np.asarray(trace.image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS))
    grey = picture.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    patch_at = (np.arange(height) * rows // height)[:, None] * cols + np.arange(width) * cols // width
    count = np.bincount(patch_at.ravel(), minlength=trace.n_patches)
    mean = np.bincount(patch_at.ravel(), grey.ravel(), trace.n_patches) / np.maximum(count, 1)
    relief = np.clip(grey - mean[patch_at].astype(np.float32), -90, 90) * RELIEF
    bare = np.floor(255 - (255 - grey) * FADED)
    return picture, bare[..., None], relief[..., None], patch_at
