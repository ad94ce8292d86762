"""A view as a file: a figure for print, an animation, the numbers behind it.

Matplotlib's objects alone, never pyplot and no global settings, so that threads of a server can draw at once. Every
text is drawn with parse_math=False: what a user or a model wrote is text, whatever it looks like.
"""

import io
import json
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
from matplotlib import colormaps, font_manager
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba_array
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.transforms import Affine2D
from numpy.typing import NDArray
from PIL import Image

from mlmamba.errors import UserError
from visualize.payload import PALETTE
from visualize.trace import NAMES, QUANTITIES, Array, Trace, View

Mask = NDArray[np.bool_]
Pixels = NDArray[np.uint8]

INK, SOFT, LINE, GREEN, WARNING = "#26302b", "#5d665f", "#d8d3c8", "#1f6b52", "#9a3412"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")  # Okabe and Ito's: one a direction, told apart by everybody
KIND_COLOURS = {"bsm": INK, "csm": GREEN}
KINDS = {"bsm": "BSM", "csm": "CSM"}
DIFFERENCE = "PuOr"  # diverging, and safe for colour-blind readers
DECADES = 3  # influence and words fall off fast: a log scale, this far below the largest value
RELIEF = 0.3  # how much of the picture shows through a map, as light and shade around each patch's own mean
TAIL = 9  # steps of the path that stay behind its head, on a map
PRINT, SCREEN = (10.0, 200), (7.2, 100)  # inches wide, dots an inch: 2000 and 720 pixels
FRAMES, SECONDS, HOLD_MS = 60, 6.0, 1500
EDGE = 0.42  # inches of margin
FONT = "DejaVu Sans"  # comes with matplotlib
OTHER_FONTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans Devanagari", "Droid Sans Fallback")  # if installed

UNITS = {
    "delta": "time steps of the model, no physical unit",
    "decay": "share of the state that is kept, between 0 and 1",
    "input": "Frobenius norm, in the model's own units",
    "state": "Frobenius norm, in the model's own units",
    "output": "Euclidean norm, in the model's own units",
    "gate": "Euclidean norm, in the model's own units",
    "path": "none: the order of the patches",
    "influence": "Euclidean norm of a term of y, in the model's own units",
    "word": "Euclidean norm of a term of y, in the model's own units",
}
FORMULAS = {
    "delta": "Δ_t: the time step of step t, after softplus",
    "decay": "exp(Δ_t A): the share of the state that step t keeps",
    "input": "‖Δ_t x_t B_tᵀ‖: the size of what step t adds to the state",
    "state": "‖H_t‖, where H_t = exp(Δ_t A) H_{t-1} + Δ_t x_t B_tᵀ",
    "output": "‖y_t‖, where y_t = H_t C_t + D x_t",
    "gate": "‖SiLU(z_t)‖: the size of the gate on y_t",
    "path": "orders[direction][t]: the patch that step t reads",
    "influence": "|M[t,s]|·‖x_s‖, where M[t,s] = C_t·B_s · exp(sum of Δ_k A over k = s+1..t) · Δ_s, and t is the step "
    "that reads the chosen patch; patches not yet read have 0",
    "word": "|M[t,s]|·‖x_s‖ in the language model's scan, from the steps t that chose the word to the patches s",
}
INFLUENCE = (
    "How strongly each earlier patch reaches the chosen one: |M[t,s]|·‖xₛ‖, the size of its term in "
    "yₜ = Σ M[t,s] xₛ + D xₜ. Exact for the scan itself; the 4-wide convolution before it and the gate and norm "
    "after it are not in it."
)
PATH = "The order in which the patches are read, one a step, by every direction at once."
WORD = (
    "How strongly each patch reaches the step that chose this word: |M|·‖x‖ in Mamba-2's dual form, mean over heads. "
    "It shows what could flow, not what decided the word."
)
THROUGH = (
    "How strongly each patch reaches the step that chose this word, |M|·‖x‖, then spread back over the patches that "
    "each feature was mixed from, by the connector's own matrices, half kept in place at each layer as the residual "
    "does. A rough guide: gates, norms and SwiGLU are left out."
)
UNTRAINED = "exploratory: CSM's orders with BSM's parameters, never trained"


# What a view shows


@dataclass(frozen=True)
class Shown:
    """One trace as a view shows it: (n_patches,) a direction and merged, in patch order; None where there is none."""

    trace: Trace
    over: tuple[Array | None, ...]
    merged: Array | None

    @property
    def values(self) -> list[Array]:
        """All that there is, for a scale they share."""
        return [values for values in (*self.over, self.merged) if values is not None]


def mode(view: View) -> str:
    """A quantity's name, "path", "influence" or "word"."""
    if view.word is not None:
        return "word"
    return "influence" if view.patch is not None else view.quantity


def shown(view: View, trace: Trace) -> Shown:
    """What the view shows of a trace."""
    what, directions = mode(view), range(trace.n_directions)
    nothing = (None,) * trace.n_directions
    if what == "path":
        return Shown(trace, nothing, None)
    if view.word is not None:
        words = trace.answer.words if trace.answer else ()
        if view.word >= len(words):
            return Shown(trace, nothing, None)
        layer = 0 if view.word_layer is None else 1 + view.word_layer
        return Shown(trace, nothing, words[view.word].maps[int(view.through), layer])
    if view.patch is not None:
        over = tuple(trace.influence(view.layer, view.head, d, view.patch) for d in directions)
    else:
        over = tuple(trace.over(view.layer, view.head, d, view.quantity) for d in directions)
    return Shown(trace, over, np.mean(over, axis=0))


def select(view: View, traces: dict[str, Trace]) -> list[Shown]:
    """What the view shows, one entry a connector. Raises UserError for a view that can't be shown."""
    kinds = ("bsm", "csm") if view.kind == "compare" else (view.kind,)
    missing = [KINDS[kind] for kind in kinds if kind not in traces]
    if missing:
        raise UserError(f"The scan of {' and '.join(missing)} isn't there yet; look at it first, then export.")
    shows = []
    for kind in kinds:
        shows.append(shown(view, traces[kind]))
        wordless = view.kind == "compare" and not shows[-1].values  # of two answers one can be shorter, or missing
        (replace(view, word=None, word_layer=None) if wordless else view).check(traces[kind])
    if view.word is not None and not any(show.values for show in shows):
        raise UserError("There is no answer with this word; ask a question, then click a word of its answer.")
    return shows


@dataclass(frozen=True)
class Scale:
    """From numbers to colours, and the numbers at the colour bar."""

    low: float
    high: float
    log: bool = False
    palette: str = PALETTE

    @classmethod
    def of(cls, values: Sequence[Array], log: bool) -> "Scale":
        finite = np.concatenate([part[np.isfinite(part)] for part in values]) if values else np.zeros(1)
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
        if log:
            high = high or 1.0
            low = high / 10**DECADES
        return cls(low, high, log)

    def places(self, values: Array) -> Array:
        """Where in the palette each value lies, 0 to 1."""
        values = np.nan_to_num(np.asarray(values, np.float64))
        if self.log:
            return cast(Array, np.clip(np.log10(np.maximum(values, self.low) / self.low) / DECADES, 0, 1))
        return cast(Array, np.clip((values - self.low) / ((self.high - self.low) or 1.0), 0, 1))

    def colours(self, values: Array) -> NDArray[np.float64]:
        """(n,) → (n, 3) in 0..255."""
        return cast(NDArray[np.float64], colormaps[self.palette](self.places(values))[:, :3] * 255)

    def ticks(self) -> list[tuple[float, str]]:
        """Places in 0..1 with their numbers."""
        if self.log:
            numbers = [number(self.high * 10.0 ** (i - DECADES)) for i in range(DECADES + 1)]
            return [(i / DECADES, "≤ " * (i == 0) + text) for i, text in enumerate(numbers)]
        return [(i / 4, number(self.low + (self.high - self.low) * i / 4)) for i in range(5)]


def growth(*traces: Trace, direction: int | None = None) -> Callable[[int], Mask]:
    """The patches that a direction, or every direction of every trace, has read by a step."""
    return lambda step: np.logical_and.reduce([reached(trace, direction, step) for trace in traces])


def before(trace: Trace, direction: int | None, patch: int | None) -> Mask | None:
    """The patches that a direction, or some direction, has read once it reads `patch`; None without one."""
    if patch is None:
        return None
    if direction is None:
        masks = (before(trace, d, patch) for d in range(trace.n_directions))
        return np.logical_or.reduce([mask for mask in masks if mask is not None])
    return reached(trace, direction, int(np.flatnonzero(trace.orders[direction] == patch)[0]))


def reached(trace: Trace, direction: int | None, step: int) -> Mask:
    """Which patches a direction has read by a step, (n_patches,); direction None: those that every direction has."""
    if direction is None:
        return np.logical_and.reduce([reached(trace, d, step) for d in range(trace.n_directions)])
    mask = np.zeros(trace.n_patches, bool)
    mask[trace.orders[direction][: step + 1]] = True
    return mask


def difference(first: Array, second: Array) -> dict[str, float]:
    """What two maps differ by, in numbers; r is NaN where one of them is flat."""
    gap = np.abs(second.astype(np.float64) - first)
    flat = min(float(np.ptp(first)), float(np.ptp(second))) == 0
    return {
        "mean_bsm": float(first.mean()),
        "mean_csm": float(second.mean()),
        "mean_difference": float(gap.mean()),
        "largest_difference": float(gap.max()),
        "largest_at": int(gap.argmax()),
        "correlation": float("nan") if flat else float(np.corrcoef(first, second)[0, 1]),
    }


# Words and numbers


def number(value: float) -> str:
    """Three significant digits, a true minus, and powers of ten that read as such."""
    if not np.isfinite(value):
        return "none"
    digits, power = f"{value:.2e}".split("e")
    exponent = int(power)
    if value == 0 or -4 <= exponent <= 5:
        text = f"{float(f'{value:.3g}'):.{max(0, 2 - exponent)}f}" if value else "0"
        text = text.rstrip("0").rstrip(".") if "." in text else text
    else:
        text = f"{digits}×10{str(exponent).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"  # noqa: RUF001
    return text.replace("-", "−")  # noqa: RUF001


def plain(text: str, most: int = 400) -> str:
    """One line of printable text, of a sane length: a font file takes neither controls nor half characters."""
    text = " ".join("".join(c if c.isprintable() or c.isspace() else "□" for c in text[: 4 * most]).split())
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


@cache
def fonts() -> tuple[set[int], list[str]]:
    """The characters that our font has, and the installed fonts to look in for another."""
    installed = set(font_manager.fontManager.get_font_names())
    has = set(font_manager.get_font(font_manager.findfont(FONT)).get_charmap())
    return has, [FONT, *(name for name in OTHER_FONTS if name in installed)]


def font_for(text: str, size: float, weight: str = "normal") -> FontProperties:
    """Our font; for scripts that it lacks, with others to fall back on (which have no bold to speak of)."""
    has, all_fonts = fonts()
    if has.issuperset(map(ord, text)):
        return FontProperties(family=FONT, size=size, weight=weight)
    return FontProperties(family=all_fonts, size=size)


def place(trace: Trace, patch: int) -> str:
    return f"row {patch // trace.cols + 1}, column {patch % trace.cols + 1}"


def heads_of(view: View, trace: Trace) -> str:
    return f"mean of {trace.n_heads} heads" if view.head is None else f"head {view.head + 1} of {trace.n_heads}"


def headline(view: View, trace: Trace) -> tuple[str, str]:
    """A title and a sentence below it."""
    if view.word is not None:
        words = trace.answer.words if trace.answer else ()
        word = plain(words[view.word].text, 40) if view.word < len(words) else ""
        return (f"What the word “{word}” saw" if view.kind != "compare" else "What a word saw"), (
            THROUGH if view.through else WORD
        )
    if view.patch is not None:
        return f"What reaches the patch in {place(trace, view.patch)}", INFLUENCE
    if view.quantity == "path":
        return "The path of the scan", PATH
    quantity = QUANTITIES[NAMES.index(view.quantity)]
    return f"{quantity.title}  {quantity.symbol}", quantity.text


def measure(view: View) -> str:
    """What the colour bar says."""
    what = mode(view)
    if what in NAMES:
        quantity = QUANTITIES[NAMES.index(what)]
        return f"{quantity.title} {quantity.symbol}"
    return f"|M|·‖x‖, log scale, {DECADES} decades"


def in_words(show: Shown, means: bool, direction: int | None = None) -> str:
    """What a map comes to: its mean, its extremes and where they are; of several, each one's mean or sum."""
    trace, over = show.trace, show.merged if direction is None else show.over[direction]
    if over is None:
        return ""
    low, high = int(over.argmin()), int(over.argmax())
    told = f"{'Merged' if direction is None and show.over[0] is not None else 'This map'}: "
    told += f"mean {number(float(over.mean()))}, " if means else ""
    told += f"largest {number(float(over[high]))} at {place(trace, high)}"
    told += f", smallest {number(float(over[low]))} at {place(trace, low)}." if means else "."
    if direction is None and show.over[0] is not None:
        sums = [float(part.mean() if means else part.sum()) for part in show.over if part is not None]
        pairs = zip(trace.directions, sums, strict=True)
        parts = (f"{name} {number(total)}".replace(" ", "\u00a0") for name, total in pairs)
        told += f" {'Mean' if means else 'Sum over patches'} of each direction: {', '.join(parts)}."
    return told


def credit(view: View, shows: Sequence[Shown]) -> str:
    """The footer's line: what made these numbers."""
    trace = shows[0].trace
    kinds = " and ".join(KINDS[show.trace.kind] for show in shows)
    parts = [f"ML-Mamba “{plain(trace.model, 60)}”", kinds]
    if view.word is None and mode(view) != "path":
        parts += [f"connector layer {view.layer + 1} of {trace.n_layers}", heads_of(view, trace)]
    elif view.word is not None:
        answer = next((show.trace.answer for show in shows if show.trace.answer), None)
        layers = answer.words[0].maps.shape[1] - 1 if answer else 0
        layer = f"mean of {layers}" if view.word_layer is None else f"{view.word_layer + 1} of {layers}"
        parts += [f"language layer {layer}" if view.word_layer is not None else f"{layer} language layers"]
        parts += ["onward through the connector" if view.through else "in the language model"]
    parts += [f"picture “{plain(trace.picture, 60)}”"] if trace.picture else []
    parts += [f"{trace.rows} × {trace.cols} patches"]  # noqa: RUF001
    return " · ".join(parts)


# The sheet: a figure that is laid out from the top down


class Sheet:
    """A figure whose height is what was laid out on it. All places are in inches, y downward from the top."""

    def __init__(self, width: float, dpi: int):
        self.figure = Figure(figsize=(width, 1), dpi=dpi, facecolor="white")
        self.canvas = FigureCanvasAgg(self.figure)
        self.width, self.dpi = width, dpi
        self.y = EDGE * 0.9
        self._down = Affine2D().scale(1, -1)  # becomes "from the top" once the height is known
        self._boxes: list[tuple[Axes, tuple[float, float, float, float]]] = []

    @property
    def inner(self) -> float:
        return self.width - 2 * EDGE

    def text(self, x: float, y: float, text: str, size: float = 8.5, colour: str = INK, **more: Any) -> Text:
        """One line of text with its baseline at y."""
        font = font_for(text, size, more.pop("weight", "normal"))
        more = {"va": "baseline", **more}
        transform = self._down + self.figure.dpi_scale_trans
        return self.figure.text(
            x, y, text, fontproperties=font, color=colour, parse_math=False, transform=transform, **more
        )

    def paragraph(self, x: float, text: str, size: float, colour: str, width: float, lines: int = 3) -> None:
        """Wrapped text from self.y on."""
        for line in self.wrap(text, size, width, lines):
            self.y += size * 1.5 / 72
            self.text(x, self.y, line, size, colour)

    def length(self, text: str, size: float, weight: str = "normal") -> float:
        font = font_for(text, size, weight)
        return self.canvas.get_renderer().get_text_width_height_descent(text, font, False)[0] / self.dpi

    def wrap(self, text: str, size: float, width: float, lines: int) -> list[str]:
        """Lines no longer than width; what does not fit ends in an ellipsis."""
        wrapped, line = [], ""
        for word in filter(None, text.split(" ")):  # a no-break space holds what it joins together
            while self.length(word, size) > width and len(word) > 1:  # a word longer than a line
                fits = max(1, int(len(word) * width / self.length(word, size)) - 1)
                wrapped += [line, word[:fits]] if line else [word[:fits]]
                line, word = "", word[fits:]
            longer = f"{line} {word}" if line else word
            if line and self.length(longer, size) > width:
                wrapped.append(line)
                line = word
            else:
                line = longer
        wrapped += [line] if line else []
        if len(wrapped) > lines:
            wrapped = [*wrapped[: lines - 1], wrapped[lines - 1].rstrip(" .,;:") + " …"]
        return wrapped

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        """Bare axes in a box."""
        axes = self.figure.add_axes((0.0, 0.0, 1.0, 1.0))
        axes.set_axis_off()
        self._boxes.append((axes, (x, y, width, height)))
        return axes

    def rule(self, x: float, y: float, width: float) -> None:
        transform = self._down + self.figure.dpi_scale_trans
        self.figure.add_artist(Line2D([x, x + width], [y, y], color=LINE, linewidth=0.8, transform=transform))

    def mark(self, x: float, y: float, colour: str, size: float = 0.09) -> None:
        """A small square that says whose colour this is."""
        transform = self._down + self.figure.dpi_scale_trans
        self.figure.add_artist(Rectangle((x, y - size), size, size, color=colour, linewidth=0, transform=transform))

    def finish(self) -> Figure:
        """Cut the sheet to what lies on it."""
        pixels = round((self.y + EDGE * 0.75) * self.dpi)
        height = (pixels + pixels % 2) / self.dpi
        self.figure.set_size_inches(self.width, height)
        self._down.translate(0, height)
        for axes, (x, y, w, h) in self._boxes:
            axes.set_position((x / self.width, 1 - (y + h) / height, w / self.width, h / height))
        return self.figure


class Panel:
    """A picture under a map (or under none), with the path of one direction; `show(step)` redraws it in place."""

    def __init__(
        self,
        sheet: Sheet,
        box: tuple[float, float, float, float],
        trace: Trace,
        values: Array | None = None,
        scale: Scale | None = None,
        *,
        direction: int | None = None,
        growing: Callable[[int], Mask] | None = None,
        there: Mask | None = None,
        outlined: int | None = None,
        full_path: bool = False,
        paths: Sequence[int] = (),
    ):
        """growing: the patches that are drawn at a step (None: all); there: those that have a value (None: all).

        full_path: the whole path, not its tail alone; paths: of which directions, where `direction` is None.
        """
        self.trace, self.direction, self.growing = trace, direction, growing
        self.full_path, self.values = full_path, values
        self.value: Text | None = None
        self.axes = sheet.axes(*box)
        size = (round(box[2] * sheet.dpi), round(box[3] * sheet.dpi))
        self.bare, self.mapped = layers(trace, values, scale, size, there)
        rows, cols = trace.grid
        # the patch of each pixel, so that a mask of patches becomes a mask of pixels by indexing
        across, down = (np.arange(n) * k // n for n, k in ((size[0], cols), (size[1], rows)))
        self.patch_at = down[:, None] * cols + across
        self.image = self.axes.imshow(
            self.mapped, extent=(0, cols, rows, 0), aspect="auto", interpolation="nearest", origin="upper"
        )
        self.axes.set(xlim=(0, cols), ylim=(rows, 0))
        frame = Rectangle((0, 0), 1, 1, transform=self.axes.transAxes, fill=False, edgecolor=LINE, linewidth=0.8)
        self.axes.add_patch(frame).set_clip_on(False)
        self.moving: list[Artist] = [self.image]
        if full_path:
            self.axes.vlines(range(1, cols), 0, rows, color="white", alpha=0.35, linewidth=0.5)
            self.axes.hlines(range(1, rows), 0, cols, color="white", alpha=0.35, linewidth=0.5)
        self.lines = [self._line(d, box[2]) for d in ((direction,) if direction is not None else paths)]
        if outlined is not None:
            corner = (outlined % cols, outlined // cols)
            for width, colour in ((3.4, "white"), (1.8, "#111111")):
                cell = Rectangle(corner, 1, 1, fill=False, edgecolor=colour, linewidth=width, zorder=6, clip_on=False)
                self.moving.append(self.axes.add_patch(cell))

    def _line(self, direction: int, width: float) -> tuple[int, Line2D, Line2D]:
        """The path's line and its head."""
        thick = min(2.2, 7.0 * width / self.trace.cols)
        casing = [withStroke(linewidth=thick + 1.4, foreground="white")]
        (line,) = self.axes.plot([], [], color=COLOURS[direction], linewidth=thick, zorder=4, path_effects=casing)
        line.set(solid_capstyle="round", solid_joinstyle="round")
        (head,) = self.axes.plot(
            [], [], "o", color=COLOURS[direction], markersize=thick * 3.4, markeredgecolor="white",
            markeredgewidth=min(1.4, thick * 0.8), zorder=5, clip_on=False,
        )  # fmt: skip
        self.moving += [line, head]
        return direction, line, head

    def at(self, step: int) -> Mask:
        """The patches that are drawn once `step` is read."""
        return np.ones(self.trace.n_patches, bool) if self.growing is None else self.growing(step)

    def show(self, step: int) -> None:
        """What is there once `step` is read."""
        if self.growing is not None and self.values is not None:
            mask = self.at(step)
            self.image.set_data(np.where(mask[self.patch_at][..., None], self.mapped, self.bare))
        for direction, line, head in self.lines:
            start = 0 if self.full_path else max(0, step - TAIL)
            if self.direction is None and not self.full_path:  # a merged map: where the directions are, until they end
                start = step if step < self.trace.n_patches - 1 else step + 1
            x, y = course(self.trace, direction, start, step)
            if self.direction is None and self.full_path:  # one there and one back would hide each other
                aside = 0.13 if direction % 2 else -0.13
                x, y = (x, y + aside) if direction < 2 else (x + aside, y)
            line.set_data(x, y)
            head.set_data(x[-1:], y[-1:])
        if self.value is None or self.values is None:
            return
        if self.direction is not None:
            self.value.set_text(number(float(self.values[self.trace.orders[self.direction][step]])))
        else:
            some = self.growing is not None and step < self.trace.n_patches - 1
            self.value.set_text("where all have read" if some else "mean of directions")


def layers(
    trace: Trace, values: Array | None, scale: Scale | None, size: tuple[int, int], there: Mask | None = None
) -> tuple[Pixels, Pixels]:
    """The picture without and with the map, (h, w, 3) each; size is (w, h).

    On the map the picture is a relief: its grey around each patch's own mean, so that a patch as a whole has exactly
    its value's colour. Patches without a value stay picture, faded.
    """
    picture = np.asarray(trace.image.convert("RGB").resize(size, Image.Resampling.LANCZOS), np.float64)
    if values is None or scale is None:
        whole = picture.astype(np.uint8)
        return whole, whole
    rows, cols = trace.grid
    grey = picture @ (0.299, 0.587, 0.114)
    bare = np.repeat((255 - (255 - grey) * 0.55)[..., None], 3, axis=2)
    patch_at = (np.arange(size[1]) * rows // size[1])[:, None] * cols + np.arange(size[0]) * cols // size[0]
    count = np.bincount(patch_at.ravel(), minlength=trace.n_patches)
    mean = np.bincount(patch_at.ravel(), grey.ravel(), trace.n_patches) / np.maximum(count, 1)
    relief = np.clip(grey - mean[patch_at], -90, 90) * RELIEF
    mapped = scale.colours(values)[patch_at] + relief[..., None]
    if there is not None:
        mapped = np.where(there[patch_at][..., None], mapped, bare)
    return bare.astype(np.uint8), np.clip(mapped, 0, 255).astype(np.uint8)


def course(trace: Trace, direction: int, start: int, stop: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """x and y of the steps start..stop of a path, broken where it jumps to a patch that is no neighbour."""
    y, x = np.divmod(trace.orders[direction][start : stop + 1], trace.cols)
    jumps = np.flatnonzero(np.abs(np.diff(x)) + np.abs(np.diff(y)) > 1) + 1
    return np.insert(x + 0.5, jumps, np.nan), np.insert(y + 0.5, jumps, np.nan)


# The figures


@dataclass(frozen=True)
class Plot:
    """A finished figure and what moves on it."""

    sheet: Sheet
    panels: tuple[Panel, ...]
    moving: tuple[Artist, ...]
    show: Callable[[int], None]


def draw(view: View, traces: dict[str, Trace]) -> Figure:
    """The figure of a view, laid out for print. Raises UserError for a view that the traces don't have."""
    return plot(view, traces, *PRINT).sheet.figure


def plot(view: View, traces: dict[str, Trace], width: float, dpi: int, growing: bool = False) -> Plot:
    """Lay a view out. growing: the map grows with the scan, also where a still picture shows all of it."""
    shows = select(view, traces)
    sheet = Sheet(width, dpi)
    step = header(sheet, view, shows, growing)
    moving: list[Artist] = [] if step is None else [step]
    update: Callable[[int], None] | None = None
    if view.kind == "compare":
        panels = compared(sheet, view, shows, growing)
    elif view.direction is None and view.word is None:
        panels = side_by_side(sheet, view, shows[0], growing)
    else:
        panels, artists, update = enlarged(sheet, view, shows[0], growing)
        moving += artists
    footer(sheet, view, shows)
    sheet.finish()

    def show(at: int) -> None:
        for panel in panels:
            panel.show(at)
        if update is not None:
            update(at)
        if step is not None:
            step.set_text(f"step {at + 1} of {shows[0].trace.n_patches}")

    show(shows[0].trace.n_patches - 1 if view.kind == "compare" else view.step)
    for panel in panels:
        moving += panel.moving + ([panel.value] if panel.value else [])
    return Plot(sheet, tuple(panels), tuple(moving), show)


def header(sheet: Sheet, view: View, shows: Sequence[Shown], growing: bool) -> Text | None:
    """Title, a sentence, and what was asked; returns the text that counts the steps, if there are any."""
    title, sentence = headline(view, next((show.trace for show in shows if show.values), shows[0].trace))
    sheet.y += 0.16
    steps = mode(view) not in ("word", "influence") and (growing or view.kind != "compare")
    lines = sheet.wrap(title, 15, sheet.inner - (1.5 if steps else 0), 1)
    sheet.text(EDGE, sheet.y, lines[0] if lines else "", 15, weight="bold")
    step = sheet.text(sheet.width - EDGE, sheet.y, "", 9, SOFT, ha="right") if steps else None
    sheet.y += 0.04
    sheet.paragraph(EDGE, sentence, 8.5, SOFT, sheet.inner, 5)
    if view.word is not None:
        question = next((show.trace.answer.question for show in shows if show.trace.answer), "")
        sheet.y += 0.06
        said(sheet, EDGE, sheet.inner, "Question", plain(question).split(), None, 2)
        if len(shows) == 1:
            answer(sheet, EDGE, sheet.inner, view, shows[0])
    sheet.y += 0.14
    return step


def answer(sheet: Sheet, x: float, width: float, view: View, show: Shown) -> None:
    """A trace's answer with the chosen word marked."""
    words = [plain(word.text, 60) for word in show.trace.answer.words] if show.trace.answer else []
    chosen, most = view.word or 0, 40
    start = max(0, min(chosen - most // 2, len(words) - most))  # of a long answer, what is said around the word
    cut = words[start : start + most]
    chosen -= start
    if start:
        cut, chosen = ["…", *cut], chosen + 1
    if start + most < len(words):
        cut.append("…")
    said(sheet, x, width, "Answer", cut, chosen if show.values else None, 4)


def said(sheet: Sheet, x: float, width: float, who: str, words: Sequence[str], chosen: int | None, lines: int) -> None:
    """Words flowing like text after a label, one of them marked."""
    size, left = 9.5, x + 0.78
    at = left
    sheet.y += 0.21
    sheet.text(x, sheet.y, who, 8, SOFT)
    gap = sheet.length("a a", size) - sheet.length("aa", size)
    for i, word in enumerate(words):
        weight = "bold" if i == chosen else "normal"
        word = (sheet.wrap(word, size, width - 1, 1) or [""])[0]
        length = sheet.length(word, size, weight)
        at += 0.05 * (i == chosen)  # room for what marks it
        if at + length > x + width and at > left:
            at, lines = left, lines - 1
            if lines == 0:
                return
            sheet.y += 0.21
        drawn = sheet.text(at, sheet.y, word, size, "white" if i == chosen else INK, weight=weight)
        if i == chosen:
            drawn.set_bbox({"boxstyle": "round,pad=0.22,rounding_size=0.35", "facecolor": GREEN, "edgecolor": "none"})
        at += length + gap + 0.05 * (i == chosen)


def footer(sheet: Sheet, view: View, shows: Sequence[Shown]) -> None:
    """What made the numbers, under a rule."""
    sheet.y += 0.2
    sheet.rule(EDGE, sheet.y, sheet.inner)
    sheet.y += 0.06
    sheet.paragraph(EDGE, credit(view, shows), 7.5, SOFT, sheet.inner, 2)
    if any(not show.trace.trained for show in shows):
        sheet.y += 0.02
        sheet.paragraph(EDGE, UNTRAINED[0].upper() + UNTRAINED[1:] + ".", 7.5, WARNING, sheet.inner, 2)


def caption(sheet: Sheet, x: float, y: float, width: float, text: str, colour: str, value: bool = False) -> Text | None:
    """A line above a panel: whose it is, and room for the value at the playhead."""
    sheet.mark(x, y, colour)
    sheet.text(x + 0.15, y, (sheet.wrap(text, 8.5, width - 0.15, 1) or [""])[0], 8.5, weight="bold")
    return sheet.text(x + width, y, "", 8.5, SOFT, ha="right") if value else None


def bar(sheet: Sheet, x: float, y: float, width: float, scale: Scale, label: str, other: str = "") -> None:
    """A colour bar from y on, 0.45 inches high: label (and one at its other end), colours, numbers."""
    sheet.text(x, y + 0.1, (sheet.wrap(label, 8, width, 1) or [""])[0], 8)
    sheet.text(x + width, y + 0.1, other, 8, ha="right")
    colours = colormaps[scale.palette](np.linspace(0, 1, 256))[None, :, :3]
    sheet.axes(x, y + 0.17, width, 0.12).imshow(colours, extent=(0, 1, 0, 1), aspect="auto")
    taken: list[tuple[float, float]] = []
    for at, text in sorted(scale.ticks(), key=lambda tick: tick[0] not in (0, 1)):  # the ends first
        length = sheet.length(text, 7.5)
        left = at * width - length * (0.0 if at == 0 else 1.0 if at == 1 else 0.5)
        if all(left > end + 0.08 or left + length < start - 0.08 for start, end in taken):
            sheet.text(x + left, y + 0.43, text, 7.5, SOFT)
            taken.append((left, left + length))


def legend(sheet: Sheet, y: float, trace: Trace) -> None:
    """The directions' names with their colours, flush right."""
    x = sheet.width - EDGE
    for d in reversed(range(trace.n_directions)):
        x -= sheet.length(trace.directions[d], 8)
        sheet.text(x, y, trace.directions[d], 8, SOFT)
        sheet.mark(x - 0.13, y, COLOURS[d])
        x -= 0.32


def shape(trace: Trace) -> float:
    """Height of the picture over its width; a strip is drawn a little less thin than it is."""
    return float(np.clip(trace.image.height / trace.image.width, 0.3, 2.5))


def side_by_side(sheet: Sheet, view: View, show: Shown, growing: bool) -> list[Panel]:
    """Every direction and the merged map, on one scale."""
    trace, tall, gap, head = show.trace, shape(show.trace), 0.2, 0.26
    path, n = show.merged is None, show.trace.n_directions
    scale = None if path else Scale.of(show.values, log=view.patch is not None)
    columns = 2 if n == 4 else n
    if path:
        unit = min((sheet.inner - gap) / 2, 3.4 / tall)
        large = 0.0
    elif n == 4:  # the merged map as tall as the two rows beside it
        unit = (sheet.inner - 2 * gap - (gap + head) / tall) / 4
        large = sheet.inner - 2 * unit - 2 * gap
    else:
        unit = large = (sheet.inner - n * gap) / (n + 1)
    top, panels = sheet.y, []
    grows = path or growing or view.patch is None
    for d in range(n):
        x = EDGE + d % columns * (unit + gap)
        y = top + d // columns * (head + unit * tall + gap)
        value = caption(sheet, x, y + 0.15, unit, trace.directions[d], COLOURS[d], grows and not path)
        panel = Panel(
            sheet, (x, y + head, unit, unit * tall), trace, show.over[d], scale,
            direction=d if grows else None, growing=growth(trace, direction=d) if grows else None,
            there=before(trace, d, view.patch), outlined=view.patch, full_path=path,
        )  # fmt: skip
        panel.value = value
        panels.append(panel)
    rows = -(-n // columns)
    sheet.y = top + rows * (head + unit * tall) + (rows - 1) * gap
    if scale is not None:
        x = EDGE + columns * (unit + gap)
        note = caption(sheet, x, top + 0.15, large, "merged", INK, True)
        grown = growth(trace) if grows else None
        box = (x, top + head, large, large * tall)
        there = before(trace, None, view.patch)
        merged = Panel(
            sheet, box, trace, show.merged, scale, growing=grown, there=there, outlined=view.patch,
            paths=range(n) if grows else (),
        )  # fmt: skip
        merged.value = note
        panels.append(merged)
        sheet.y += 0.16
        start = sheet.y
        bar(sheet, EDGE, start, min(columns * (unit + gap) - gap, sheet.inner), scale, measure(view))
        sheet.y = start - 0.06
        sheet.paragraph(x, in_words(show, view.patch is None), 8, SOFT, large, 5)
        sheet.y = max(sheet.y, start + 0.45)
    return panels


def enlarged(
    sheet: Sheet, view: View, show: Shown, growing: bool
) -> tuple[list[Panel], list[Artist], Callable[[int], None] | None]:
    """One map large with the picture beside it, and below it the quantity along the scan."""
    trace, tall, gap = show.trace, shape(show.trace), 0.24
    path, word = mode(view) == "path", view.word is not None
    single = view.direction if isinstance(view.direction, int) and not word else None
    grows = not word and (path or growing or view.patch is None)
    aside = sheet.inner * 0.3
    unit = min(sheet.inner - gap - aside, 5.6 / tall)
    aside = min(aside, sheet.inner - gap - unit)
    values = show.merged if single is None else show.over[single]
    scale = None if values is None else Scale.of([values] if word else show.values, log=word or view.patch is not None)
    name = "merged" if single is None else trace.directions[single]
    name = "all directions" if path and single is None else name
    head = 0.0 if word else 0.26
    value = None
    if not word:
        colour = INK if single is None else COLOURS[single]
        value = caption(sheet, EDGE, sheet.y + 0.15, unit, name, colour, not path and (grows or single is None))
    box = (EDGE, sheet.y + head, unit, unit * tall)
    grown = growth(trace, direction=single) if grows else None
    panel = Panel(
        sheet, box, trace, values, scale, direction=single if grows else None, growing=grown,
        there=before(trace, single, view.patch), outlined=view.patch, full_path=path,
        paths=range(trace.n_directions) if grows and single is None else (),
    )  # fmt: skip
    panel.value = value
    panels = [panel]
    side, y = EDGE + unit + gap, sheet.y + head
    panels.append(Panel(sheet, (side, y, aside, aside * tall), trace, outlined=view.patch))
    y += aside * tall + 0.16
    if scale is not None:
        bar(sheet, side, y, aside, scale, measure(view))
        bottom, sheet.y = sheet.y + head + unit * tall, y + 0.5
        sheet.paragraph(side, in_words(show, view.patch is None, single), 8, SOFT, aside, 8)
        sheet.y = max(sheet.y, bottom)
    else:
        sheet.y += head + unit * tall
    if word:
        return panels, [], None
    sheet.y += 0.22
    directions = range(trace.n_directions) if single is None else (single,)
    artists, update = along(sheet, view, show, directions, grows)
    return panels, artists, update


def along(
    sheet: Sheet, view: View, show: Shown, directions: Sequence[int], playhead: bool
) -> tuple[list[Artist], Callable[[int], None]]:
    """The quantity along the scan, one line a direction, with a playhead."""
    trace, left, height, steps = show.trace, 0.62, 1.05, np.arange(1, show.trace.n_patches + 1)
    log, path = view.patch is not None, mode(view) == "path"
    what = "Row (solid) and column (dashed) of the patch" if path else measure(view)
    sheet.text(EDGE, sheet.y + 0.08, f"{what}, along the scan", 8)
    if len(directions) > 1:
        legend(sheet, sheet.y + 0.08, trace)
    axes = sheet.axes(EDGE + left, sheet.y + 0.2, sheet.inner - left - 0.1, height)
    axes.set_axis_on()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set(color=LINE)
    axes.tick_params(color=LINE, length=3)
    rows: list[tuple[int, NDArray[np.float64]]] = []
    for d in directions:
        y, x = np.divmod(trace.orders[d], trace.cols)
        over = show.over[d]
        if over is not None:
            rows.append((d, np.asarray(over[trace.orders[d]], np.float64)))
        else:
            rows += [(d, y + 1.0), (d, x + 1.0)]
    scale = None if path else Scale.of([over for over in show.over if over is not None], log)
    heads: list[tuple[Line2D, Line2D, NDArray[np.float64]]] = []
    for i, (d, given) in enumerate(rows):
        style = "--" if path and i % 2 else "-"
        read = before(trace, d, view.patch)
        line = given if read is None or scale is None else np.maximum(given, scale.low)
        line = line if read is None else np.where(read[trace.orders[d]], line, np.nan)
        if playhead:
            axes.plot(steps, line, color=COLOURS[d], linewidth=1.1, alpha=0.3, linestyle=style)
        (bright,) = axes.plot(steps, line, color=COLOURS[d], linewidth=1.4, linestyle=style)
        (dot,) = axes.plot([], [], "o", color=COLOURS[d], markersize=5, markeredgecolor="white", clip_on=False)
        heads.append((bright, dot, line))
    if scale is None:
        low, high = 1.0, float(max(trace.grid))
        ticks = [(low, number(low)), (high, number(high))]
        axes.invert_yaxis()
    else:
        low, high = scale.low, scale.high
        ticks = [(value, number(value)) for value in (low, (low + high) / 2, high)]
        ticks = [(low * 10.0**i, text) for i, (_, text) in enumerate(scale.ticks())] if log else ticks
        if log:
            axes.set_yscale("log")
    pad = (high - low or 1.0) * 0.05
    limits = (low * 0.8, high * 1.3) if log else (low - pad, high + pad)
    axes.set(xlim=(0.5, trace.n_patches + 0.5), ylim=limits[::-1] if scale is None else limits)
    small: dict[str, Any] = {"fontsize": 7.5, "family": FONT, "color": SOFT}
    axes.set_yticks([at for at, _ in ticks], labels=[text for _, text in ticks], **small)
    axes.set_yticks([], minor=True)
    marks = sorted({1, *(round(trace.n_patches * i / 4) for i in range(1, 5))})
    axes.set_xticks(marks, labels=[f"step {marks[0]}", *map(str, marks[1:])], **small)
    (now,) = axes.plot([], [], color=INK, linewidth=0.9, zorder=4)
    sheet.y += 0.2 + height + 0.22

    def update(step: int) -> None:
        if playhead:
            now.set_data([step + 1, step + 1], limits)
            for bright, dot, line in heads:
                bright.set_data(steps[: step + 1], line[: step + 1])
                dot.set_data(steps[step : step + 1], line[step : step + 1])

    return [now, *(artist for bright, dot, _ in heads for artist in (bright, dot))], update


def compared(sheet: Sheet, view: View, shows: Sequence[Shown], growing: bool) -> list[Panel]:
    """BSM, CSM and their difference, merged, with the numbers that they differ by."""
    bsm, csm = shows
    trace, gap, head = bsm.trace, 0.2, 0.26
    tall, path = shape(trace), mode(view) == "path"
    log = view.patch is not None or view.word is not None
    both = bsm.merged is not None and csm.merged is not None
    unit = (sheet.inner - 2 * gap) / 3 if both else min((sheet.inner - gap) / 2, 4.6 / tall)
    scale = None if path else Scale.of([show.merged for show in shows if show.merged is not None], log)
    top, panels = sheet.y, []
    boxes = [(EDGE + i * (unit + gap), top + head, unit, unit * tall) for i in range(3)]
    for show, box in zip(shows, boxes, strict=False):
        owner = show.trace
        name = KINDS[owner.kind] + ("" if owner.trained else ", never trained")
        name += ", no such word" if view.word is not None and show.merged is None else ""
        caption(sheet, box[0], top + 0.15, unit, name, KIND_COLOURS[owner.kind])
        panel = Panel(
            sheet, box, owner, show.merged, scale, growing=growth(owner) if growing else None,
            there=before(owner, None, view.patch), outlined=view.patch, full_path=path,
            paths=range(owner.n_directions) if path else (),
        )  # fmt: skip
        panels.append(panel)
    sheet.y = top + head + unit * tall + 0.16
    if path:
        legend(sheet, sheet.y + 0.1, max(bsm.trace, csm.trace, key=lambda trace: trace.n_directions))
        sheet.y += 0.08
    apart = None
    if bsm.merged is not None and csm.merged is not None:
        apart = Scale.of([np.abs(csm.merged - bsm.merged)], False)
        apart = Scale(-(apart.high or 1.0), apart.high or 1.0, palette=DIFFERENCE)
        caption(sheet, boxes[2][0], top + 0.15, unit, "difference: CSM − BSM", LINE)  # noqa: RUF001
        grown = growth(bsm.trace, csm.trace) if growing else None
        gained = csm.merged - bsm.merged
        panels.append(Panel(sheet, boxes[2], trace, gained, apart, growing=grown, outlined=view.patch))
    if scale is not None:
        bar(sheet, EDGE, sheet.y, min(2 * unit + gap, 4.4), scale, measure(view) + ", merged")
        if apart is not None:
            bar(sheet, boxes[2][0], sheet.y, unit, apart, "BSM larger", "CSM larger")
        sheet.y += 0.45
    if bsm.merged is not None and csm.merged is not None:
        sheet.y += 0.06
        sheet.paragraph(EDGE, compared_in_words(trace, bsm.merged, csm.merged), 8.5, INK, sheet.inner, 3)
    if view.word is not None:
        for show in shows:
            sheet.y += 0.1
            sheet.mark(EDGE, sheet.y + 0.16, KIND_COLOURS[show.trace.kind])
            sheet.text(EDGE + 0.15, sheet.y + 0.16, KINDS[show.trace.kind], 8.5, weight="bold")
            if show.trace.answer:
                sheet.y -= 0.05
                answer(sheet, EDGE + 0.6, sheet.inner - 0.6, view, show)
            else:
                sheet.text(EDGE + 0.6, sheet.y + 0.16, "no answer", 8.5, SOFT)
                sheet.y += 0.16
    return panels


def compared_in_words(trace: Trace, bsm: Array, csm: Array) -> str:
    differ = difference(bsm, csm)
    r = differ["correlation"]
    alike = f"correlation r\u00a0=\u00a0{r:.3f}".replace("-", "−")  # noqa: RUF001
    parts = (
        f"Mean: BSM {number(differ['mean_bsm'])}, CSM {number(differ['mean_csm'])}",
        f"mean |difference| {number(differ['mean_difference'])}",
        f"largest {number(differ['largest_difference'])} at {place(trace, int(differ['largest_at']))}",
        alike if np.isfinite(r) else "no correlation: a map is flat",
    )
    return "  ·  ".join(parts)


# Files


def png(view: View, traces: dict[str, Trace]) -> bytes:
    """The figure as PNG, 2000 pixels wide."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        draw(view, traces).savefig(file, format="png", dpi=PRINT[1], metadata={"Software": "ML-Mamba"})
    return file.getvalue()


def animation(view: View, traces: dict[str, Trace], format: str) -> bytes:
    """The scan from its first step to its last, all directions in step, 720 pixels wide; "gif" or "webp"; it loops.

    Of a word there is no scan to see: there the frames are the words of the answer.
    """
    drawn = list(words(view, traces) if view.word is not None else frames(view, traces))
    pause = 900 if view.word is not None else round(1000 * SECONDS / FRAMES)
    pauses = [pause] * (len(drawn) - 1) + [HOLD_MS]
    file = io.BytesIO()
    if format == "gif":
        palette = colours_of(drawn[0], drawn[-1])
        drawn = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in drawn]
        drawn[0].save(file, "GIF", save_all=True, append_images=drawn[1:], duration=pauses, loop=0, optimize=False)
    else:
        drawn[0].save(
            file, "WEBP", save_all=True, append_images=drawn[1:], duration=pauses, loop=0, quality=80, method=2
        )
    return file.getvalue()


def frames(view: View, traces: dict[str, Trace]) -> Iterator[Image.Image]:
    """The same figure, step after step: only what moves is drawn anew."""
    made = plot(view, traces, *SCREEN, growing=True)
    canvas, last, first = made.sheet.canvas, next(iter(traces.values())).n_patches - 1, 0
    if view.kind == "compare" and mode(view) != "path":  # merged maps begin where the directions meet
        first = max(0, min(int(np.argmax([panel.at(step).any() for step in range(last)])) for panel in made.panels) - 1)
    for artist in made.moving:
        artist.set_animated(True)
    canvas.draw()
    still = canvas.copy_from_bbox(made.sheet.figure.bbox)
    for step in np.unique(np.linspace(first, last, min(FRAMES, last - first + 1)).round().astype(int)):
        canvas.restore_region(still)
        made.show(int(step))
        for artist in made.moving:
            artist.draw(canvas.get_renderer())
        yield pixels(canvas)


def words(view: View, traces: dict[str, Trace]) -> Iterator[Image.Image]:
    """A figure for each word of the answer, all of one size."""
    select(view, traces)
    answers = [trace.answer for kind, trace in traces.items() if view.kind in ("compare", kind) and trace.answer]
    drawn = []
    for i in range(min(max(len(answer.words) for answer in answers), FRAMES)):
        made = plot(replace(view, word=i), traces, *SCREEN)
        made.sheet.canvas.draw()
        drawn.append(pixels(made.sheet.canvas))
    tallest = max(frame.height for frame in drawn)
    for frame in drawn:
        page = Image.new("RGB", (frame.width, tallest), "white")
        page.paste(frame)
        yield page


def colours_of(first: Image.Image, last: Image.Image) -> Image.Image:
    """256 colours for a GIF: those that mean something exactly, the rest as two of its frames need them."""
    maps = [colormaps[name](np.linspace(0, 1, n))[:, :3] for name, n in ((PALETTE, 64), (DIFFERENCE, 24))]
    exact = np.concatenate([to_rgba_array([*COLOURS, INK, SOFT, LINE, GREEN, "white", "black"])[:, :3], *maps])
    seen = Image.new("RGB", (first.width, 2 * first.height))
    seen.paste(first, (0, 0))
    seen.paste(last, (0, first.height))
    exact = (exact * 255).round()
    rest = np.reshape(seen.quantize(256 - len(exact), Image.Quantize.MEDIANCUT).getpalette() or [], (-1, 3))
    rest = rest[np.abs(rest[:, None] - exact).max(2).min(1) > 5]  # a near white would do for white
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.concatenate([exact, rest]).astype(int)[:256].ravel().tolist())
    return palette


def pixels(canvas: FigureCanvasAgg) -> Image.Image:
    size = tuple(map(int, canvas.get_width_height()))
    return Image.frombytes("RGBA", cast(tuple[int, int], size), bytes(canvas.buffer_rgba())).convert("RGB")


def numbers(view: View, traces: dict[str, Trace]) -> bytes:
    """The numbers behind a view as JSON in UTF-8: per direction along the scan and over the patches, and merged."""
    shows = select(view, traces)
    what = mode(view)
    quantity = next((asdict(quantity) for quantity in QUANTITIES if quantity.name == what), {"name": what})
    found: dict[str, Any] = {
        "what": "ML-Mamba, the scan view: the numbers behind one view",
        "version": version(),
        "model": shows[0].trace.model,
        "picture": shows[0].trace.picture,
        "view": asdict(view),
        "quantity": quantity,
        "formula": FORMULAS[what] + (f". {THROUGH}" if what == "word" and view.through else ""),
        "units": UNITS[what],
        "counting": "layers, heads, directions, steps, patches and words count from 0; patches go row by row",
        "heads": "mean over heads" if view.head is None or what == "word" else view.head,
        "connectors": [connector(view, show) for show in shows],
    }
    if len(shows) == 2 and shows[0].merged is not None and shows[1].merged is not None:
        found["difference"] = difference(shows[0].merged, shows[1].merged)
        found["difference"]["csm_minus_bsm"] = listed(shows[1].merged - shows[0].merged)
    return json.dumps(finite(found), ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")


def connector(view: View, show: Shown) -> dict[str, Any]:
    """One connector's numbers."""
    trace = show.trace
    part: dict[str, Any] = {
        "kind": trace.kind,
        "trained": trace.trained,
        "rows": trace.rows,
        "cols": trace.cols,
        "directions": [
            {"name": trace.directions[d], "order": trace.orders[d].tolist()}
            | ({} if over is None else {"along": listed(over[trace.orders[d]]), "patches": listed(over)})
            for d, over in enumerate(show.over)
        ],
        "merged": None if show.merged is None else listed(show.merged),
    }
    if not trace.trained:
        part["note"] = UNTRAINED
    if view.word is not None and trace.answer is not None:
        part["question"], part["answer"] = trace.answer.question, trace.answer.text
        if view.word < len(trace.answer.words):
            part["word"] = trace.answer.words[view.word].text
    return part


def listed(values: Array) -> list[float]:
    """Floats with the digits that float32 has, no more."""
    return [float(str(value)) for value in np.asarray(values, np.float32)]


def finite(value: Any) -> Any:
    """The same with null for what is no number: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def version() -> str:
    """The project's version, as its pyproject.toml has it."""
    project = Path(__file__).resolve().parent.parent / "pyproject.toml"
    found = re.search(r'^version = "(.+?)"', project.read_text(encoding="utf-8"), re.M) if project.is_file() else None
    return found.group(1) if found else "unknown"


TYPES = {"png": "image/png", "gif": "image/gif", "webp": "image/webp", "json": "application/json"}


def export(view: View, traces: dict[str, Trace], format: str) -> tuple[str, str, bytes]:
    """File name, MIME type and bytes of a view. Raises UserError for a format that there isn't."""
    if format not in TYPES:
        raise UserError(f"There is no export as “{plain(str(format), 20)}”; choose PNG, GIF, WebP or JSON.")
    if format == "png":
        data = png(view, traces)
    elif format == "json":
        data = numbers(view, traces)
    else:
        data = animation(view, traces, format)
    return f"{name(view, traces)}.{format}", TYPES[format], data


def name(view: View, traces: dict[str, Trace]) -> str:
    """A file's name that says what is in it, of letters, digits and hyphens alone."""
    trace = next(iter(traces.values()))
    parts = ["scan", trace.model, view.kind, trace.picture or "", f"layer {view.layer + 1}"]
    parts += [f"head {view.head + 1}"] if view.head is not None else []
    chosen = {"word": f"word {(view.word or 0) + 1}", "influence": f"patch {(view.patch or 0) + 1}"}
    parts.append(chosen.get(mode(view), mode(view)))
    slug = re.sub(r"[^a-z0-9]+", "-", " ".join(part[:40] for part in parts).lower())
    return slug.strip("-")
