"""What a view shows of a trace: its maps, their scale, and the words and numbers that go with them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray

from mlmamba.errors import UserError
from visualize.payload import PALETTE
from visualize.trace import NAMES, QUANTITIES, Array, Trace, View, Word

Mask = NDArray[np.bool_]

DECADES = 3  # a log scale goes this far below the largest value; what is smaller takes the lowest colour
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
UNTRAINED = "Exploratory: CSM's orders with BSM's parameters, never trained."


def mode(view: View) -> str:
    """A quantity's name, "path", "influence" or "word"."""
    if view.word is not None:
        return "word"
    return "influence" if view.patch is not None else view.quantity


def logarithmic(view: View) -> bool:
    """Whether what is shown spans powers of ten, and is coloured by them."""
    return mode(view) == "influence" or any(quantity.log for quantity in QUANTITIES if quantity.name == mode(view))


def words_of(trace: Trace) -> tuple[Word, ...]:
    return trace.answer.words if trace.answer else ()


@dataclass(frozen=True)
class Shown:
    """One trace as a view shows it: (n_patches,) a direction and merged, in patch order; None where there is none."""

    view: View
    trace: Trace
    over: tuple[Array | None, ...]
    merged: Array | None

    @classmethod
    def of(cls, view: View, trace: Trace) -> "Shown":
        directions, words = range(trace.n_directions), words_of(trace)
        if mode(view) in ("word", "path"):
            merged = None
            if view.word is not None and view.word < len(words):
                layer = 0 if view.word_layer is None else 1 + view.word_layer
                merged = words[view.word].maps[int(view.through), layer]
            return cls(view, trace, (None,) * len(directions), merged)
        if view.patch is not None:
            over = tuple(trace.influence(view.layer, view.head, d, view.patch) for d in directions)
        else:
            over = tuple(trace.over(view.layer, view.head, d, view.quantity) for d in directions)
        return cls(view, trace, over, np.mean(over, axis=0))

    @property
    def measure(self) -> str:
        """What the colour bar says."""
        name = headline(self.view, self.trace)[0] if mode(self.view) in NAMES else "|M|·‖x‖"
        if mode(self.view) == "word":
            return f"{name}, linear from 0"
        return name + f", log scale, {DECADES} decades" * logarithmic(self.view)

    def map(self, direction: int | None) -> Array | None:
        """The map of a direction; None: merged."""
        return self.merged if direction is None else self.over[direction]

    def read(self, direction: int, step: int) -> Mask:
        """Which patches a direction has read by a step, (n_patches,)."""
        mask = np.zeros(self.trace.n_patches, bool)
        mask[self.trace.orders[direction][: step + 1]] = True
        return mask

    def before(self, direction: int | None) -> Mask:
        """The patches that can reach the chosen one: those a direction (None: any of them) reads up to it."""
        if mode(self.view) != "influence":
            return np.ones(self.trace.n_patches, bool)
        if direction is None:
            return np.logical_or.reduce([self.before(d) for d in range(self.trace.n_directions)])
        order = self.trace.orders[direction]
        return self.read(direction, int(np.flatnonzero(order == self.view.patch)[0]))

    def at(self, direction: int | None, step: int) -> tuple[Array, Array]:
        """A map as it reads: values, and how strongly each is drawn, 0 to 1; (n_patches,) each.

        Merged, it is the mean of the directions that have read a patch, pale until all have.
        """
        if self.over[0] is None:  # what a word saw
            return cast(Array, self.merged), np.ones(self.trace.n_patches, np.float32)
        readers = range(self.trace.n_directions) if direction is None else (direction,)
        read = np.stack([self.read(d, step) for d in readers])  # (readers, n_patches)
        count = read.sum(axis=0)
        share = count / len(readers)
        over = np.stack([cast(Array, self.over[d]) for d in readers])
        values = np.where(read, over, 0).sum(axis=0) / np.maximum(count, 1)
        return values, np.where(share % 1 == 0, share, 0.2 + 0.45 * share) * self.before(direction)


def select(view: View, traces: dict[str, Trace]) -> list[Shown]:
    """What the view shows, one entry a connector. Raises UserError for a view that can't be shown."""
    kinds = ("bsm", "csm") if view.kind == "compare" else (view.kind,)
    missing = [kind.upper() for kind in kinds if kind not in traces]
    if missing:
        raise UserError(f"The scan of {' and '.join(missing)} isn't there yet; look at it first, then export.")
    for trace in (traces[kind] for kind in kinds):
        wordless = view.kind == "compare" and view.word is not None and view.word >= len(words_of(trace))
        (replace(view, word=None, word_layer=None) if wordless else view).check(trace)
    shows = [Shown.of(view, traces[kind]) for kind in kinds]
    if view.word is not None and all(show.merged is None for show in shows):
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
    def of(cls, shows: Sequence[Shown], merged: bool = False) -> "Scale | None":
        """Of what is shown (or its merged maps alone), None where that is no map.

        Linear: words from 0, quantities from their smallest value; what is logarithmic, from DECADES below the largest.
        """
        maps = [part for show in shows for part in ((show.merged,) if merged else (*show.over, show.merged))]
        found = [part for part in maps if part is not None]
        if not found:
            return None
        values, view = np.concatenate(found), shows[0].view
        values = values[np.isfinite(values)]
        low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
        if logarithmic(view):
            high = high or 1.0
            return cls(high / 10**DECADES, high, log=True)
        return cls(0.0 if mode(view) == "word" else low, high)

    def colours(self, values: Array) -> NDArray[np.float64]:
        """(n,) → (n, 3) in 0..255."""
        values = np.nan_to_num(values.astype(np.float64))
        places = (values - self.low) / ((self.high - self.low) or 1.0)
        if self.log:
            places = np.log10(np.maximum(values, self.low) / self.low) / DECADES
        return cast(NDArray[np.float64], colormaps[self.palette](np.clip(places, 0, 1))[:, :3] * 255)

    def ticks(self) -> list[tuple[float, str]]:
        """Three values, evenly spread over the bar, with their texts."""
        values = (np.geomspace if self.log else np.linspace)(self.low, self.high, 3).tolist()
        return [(value, "≤ " * (self.log and i == 0) + number(value)) for i, value in enumerate(values)]


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
    if value == 0 or -4 <= int(power) <= 5:
        text = np.format_float_positional(value, precision=3, fractional=False, trim="-")
    else:
        text = f"{digits}×10{str(int(power)).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"  # noqa: RUF001
    return text.replace("-", "−")  # noqa: RUF001


def plain(text: str, most: int = 400) -> str:
    """One line of printable text, of a sane length: a font file takes neither controls nor half characters."""
    text = " ".join("".join(c if c.isprintable() or c.isspace() else "□" for c in text[: 4 * most]).split())
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def place(trace: Trace, patch: int) -> str:
    return f"row {patch // trace.cols + 1}, column {patch % trace.cols + 1}"


def headline(view: View, trace: Trace) -> tuple[str, str]:
    """A title and a sentence below it."""
    if view.word is not None:
        return "What the marked word saw", THROUGH if view.through else WORD
    if view.patch is not None:
        return f"What reaches the patch in {place(trace, view.patch)}", INFLUENCE
    if view.quantity == "path":
        return "The path of the scan", PATH
    quantity = QUANTITIES[NAMES.index(view.quantity)]
    return f"{quantity.title} {quantity.symbol}", quantity.text


def differ_in_words(trace: Trace, bsm: Array, csm: Array) -> str:
    found = difference(bsm, csm)
    r = found["correlation"]
    return (
        f"Mean: BSM {number(found['mean_bsm'])}, CSM {number(found['mean_csm'])}  ·  "
        f"mean |difference| {number(found['mean_difference'])}  ·  "
        f"largest {number(found['largest_difference'])} at {place(trace, int(found['largest_at']))}  ·  "
        + (f"correlation r = {number(r)}" if np.isfinite(r) else "no correlation: a map is flat")
    )


def credit(view: View, shows: list[Shown]) -> str:
    """What made these numbers."""
    trace = shows[0].trace
    parts = [f"ML-Mamba “{plain(trace.model, 40)}”", " and ".join(show.trace.kind.upper() for show in shows)]
    if view.word is not None:
        parts += ["mean of the language layers" if view.word_layer is None else f"language layer {view.word_layer + 1}"]
        parts += ["onward through the connector" if view.through else "in the language model"]
    elif mode(view) != "path":
        parts += [f"connector layer {view.layer + 1} of {trace.n_layers}"]
        parts += [f"mean of {trace.n_heads} heads" if view.head is None else f"head {view.head + 1} of {trace.n_heads}"]
    parts += [f"picture “{plain(trace.picture, 40)}”"] if trace.picture else []
    return " · ".join([*parts, f"{trace.rows} × {trace.cols} patches"])  # noqa: RUF001
