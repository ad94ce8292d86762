"""The figure of a view: where its maps, bars, lines and sentences go."""

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import numpy as np
from matplotlib.figure import Figure

from visualize.sheet import CAPTION, COLOURS, EDGE, FONTS, INK, LINE, SOFT, WARNING, Growth, Panel, Sheet
from visualize.shown import UNTRAINED, Scale, Shown, credit, differ_in_words, headline, mode, plain, select, words_of
from visualize.trace import Array, Trace, View

PRINT, SCREEN = (10.0, 200), (7.2, 100)  # inches wide, dots an inch: 2000 and 720 pixels
DIFFERENCE = "PuOr"  # diverging, and safe for colour-blind readers
GAP = 0.2  # inches between panels
Spot = tuple[float, float, float]  # x, y, width


def draw(view: View, traces: dict[str, Trace]) -> Figure:
    """The figure of a view, laid out for print. Raises UserError for a view that the traces don't have."""
    return plot(view, traces, *PRINT).figure


def plot(view: View, traces: dict[str, Trace], width: float, dpi: int, growing: bool = False) -> Sheet:
    """Lay a view out. growing: the map grows with the scan, also where a still picture shows all of it."""
    shows = select(view, traces)
    sheet, trace = Sheet(width, dpi, growing), shows[0].trace
    title, sentence = headline(view, trace)
    sheet.y += 0.16
    sheet.text(EDGE, sheet.y, title, 15, bold=True)
    if growing or (view.kind != "compare" and view.word is None and view.patch is None):
        count = sheet.text(sheet.width - EDGE, sheet.y, "", 9, SOFT, ha="right")
        sheet.moves.append((count, lambda step: count.set_text(f"step {step + 1} of {trace.n_patches}")))
    sheet.y += 0.04
    sheet.paragraph(EDGE, sentence, sheet.inner, 8.5)
    if view.word is not None:
        said(sheet, shows)
    sheet.y += 0.14
    if view.kind == "compare":
        compared(sheet, shows[0], shows[1])
    elif view.direction is None and view.word is None:
        side_by_side(sheet, shows[0])
    else:
        enlarged(sheet, shows[0])
    sheet.y += 0.2
    sheet.box(EDGE, sheet.y, sheet.inner, 0.01, LINE)
    sheet.y += 0.06
    sheet.paragraph(EDGE, credit(view, shows), sheet.inner, 7.5)
    if not all(show.trace.trained for show in shows):
        sheet.paragraph(EDGE, UNTRAINED, sheet.inner, 7.5, WARNING)
    sheet.finish()
    sheet.show(trace.n_patches - 1 if view.kind == "compare" else view.step)
    return sheet


def said(sheet: Sheet, shows: list[Shown]) -> None:
    """The question, and every answer with the chosen word marked."""
    question = next(show.trace.answer.question for show in shows if show.trace.answer)
    lines = [("Question", plain(question), -1)]
    for show in shows:
        who = f"Answer, {show.trace.kind.upper()}" if len(shows) > 1 else "Answer"
        words = [plain(word.text, 40).replace(" ", "\u00a0") for word in words_of(show.trace)]
        chosen = show.view.word or 0
        first = max(0, chosen - 20)  # of a long answer, what is said around the word
        text = " ".join(["…"] * (first > 0) + words[first:]) or "no answer"
        lines.append((who, text, chosen - first + (first > 0)))
    for who, text, marked in lines:
        sheet.y += 0.05
        sheet.text(EDGE, sheet.y + 9.5 * 1.5 / 72, who, 8, SOFT)
        sheet.paragraph(EDGE + 1, text, sheet.inner - 1, 9.5, INK, marked=marked)


def shape(trace: Trace) -> float:
    """Height of the picture over its width; a strip is drawn a little less thin than it is."""
    return float(np.clip(trace.image.height / trace.image.width, 0.3, 2.5))


def panel(
    sheet: Sheet, spot: Spot, show: Shown, d: int | None, scale: Scale | None, name: str = "", at: Growth | None = None
) -> None:
    """A map of direction d (None: merged) under its caption; at: its growth, where that is not the direction's own."""
    (x, y, width), trace, what = spot, show.trace, mode(show.view)
    moving = sheet.growing or what not in ("influence", "word")
    pale = moving and (sheet.growing or show.view.step < trace.n_patches - 1)
    merged = "merged, pale until all have read" if pale else "merged"
    if d is None:
        merged = {"path": "all directions", "word": "mean over heads"}.get(what, merged)
        sheet.caption(x, y + 0.15, name or merged, INK)
    else:
        sheet.caption(x, y + 0.15, trace.directions[d], COLOURS[d])
    paths: Sequence[int] = range(trace.n_directions) if d is None else (d,)
    if what != "path" and (d is None or not moving):
        paths = ()
    map = None if scale is None or show.map(d) is None else (at or partial(show.at, d), scale)
    made = Panel(sheet, (x, y + CAPTION, width, width * shape(trace)), trace, show.view.patch, map, paths)
    if moving:
        sheet.moves.append((made.axes, made.show))


def side_by_side(sheet: Sheet, show: Shown) -> None:
    """Every direction and the merged map, on one scale."""
    trace, top, tall = show.trace, sheet.y, shape(show.trace)
    scale = Scale.of([show])
    rows = trace.n_directions // 2
    if scale is None:
        unit = min((sheet.inner - GAP) / 2, 3.4 / tall)
    else:  # the merged map is as tall as the rows beside it
        unit = (sheet.inner - 2 * GAP - (rows - 1) * (GAP + CAPTION) / tall) / (2 + rows)
    for d in range(trace.n_directions):
        x, y = EDGE + d % 2 * (unit + GAP), top + d // 2 * (CAPTION + unit * tall + GAP)
        panel(sheet, (x, y, unit), show, d, scale)
    sheet.y = top + rows * (CAPTION + unit * tall + GAP) - GAP
    if scale is not None:
        x = EDGE + 2 * (unit + GAP)
        panel(sheet, (x, top, EDGE + sheet.inner - x), show, None, scale)
        sheet.bar(EDGE, sheet.y + 0.16, sheet.inner, scale, show.measure)
        sheet.y += 0.6


def enlarged(sheet: Sheet, show: Shown) -> None:
    """One map large with the picture beside it, and below it the quantity along the scan."""
    trace, top, tall, scale = show.trace, sheet.y, shape(show.trace), Scale.of([show])
    direction = show.view.direction if isinstance(show.view.direction, int) and show.view.word is None else None
    unit = min(sheet.inner * 0.7 - GAP, 5.6 / tall)
    panel(sheet, (EDGE, top, unit), show, direction, scale)
    x, aside = EDGE + unit + GAP, min(sheet.inner * 0.3, 5.6 / tall)
    Panel(sheet, (x, top + CAPTION, aside, aside * tall), trace, show.view.patch)
    if scale is not None:
        sheet.bar(x, top + CAPTION + aside * tall + 0.16, aside, scale, show.measure)
    sheet.y += CAPTION + max(unit * tall, aside * tall + 0.6)
    if scale is not None and show.view.word is None:
        sheet.y += GAP
        along(sheet, show, range(trace.n_directions) if direction is None else (direction,), scale)


def along(sheet: Sheet, show: Shown, directions: Sequence[int], scale: Scale) -> None:
    """The quantity along the scan, one line a direction, and the step as an upright line."""
    trace, left, height = show.trace, 0.82, 1.05
    sheet.text(EDGE, sheet.y + 0.08, f"{show.measure}, by step")
    if len(directions) > 1:
        sheet.legend(sheet.y + 0.08, trace)
    axes = sheet.axes(EDGE + left, sheet.y + 0.2, sheet.inner - left - 0.1, height)
    axes.spines[["top", "right"]].set_visible(False)
    for d in directions:
        line = np.where(show.before(d), np.maximum(cast(Array, show.over[d]), scale.low), np.nan)[trace.orders[d]]
        axes.plot(np.arange(1, trace.n_patches + 1), line, color=COLOURS[d], linewidth=1.4)
    pad = (scale.high - scale.low or 1.0) * 0.05
    axes.set(xlim=(0.5, trace.n_patches + 0.5), yscale="log" if scale.log else "linear")
    axes.set_ylim(*((scale.low * 0.8, scale.high * 1.3) if scale.log else (scale.low - pad, scale.high + pad)))
    small: dict[str, Any] = {"fontsize": 7.5, "family": FONTS, "color": SOFT}
    axes.set_yticks([at for at, _ in scale.ticks()], labels=[text for _, text in scale.ticks()], **small)
    axes.set_yticks([], minor=True)
    marks = sorted({1, *(round(trace.n_patches * i / 4) for i in range(1, 5))})
    axes.set_xticks(marks, labels=[f"step {marks[0]}", *map(str, marks[1:])], **small)
    axes.tick_params(color=LINE, length=3)
    sheet.y += 0.2 + height + 0.22
    if sheet.growing or show.view.patch is None:
        now = axes.axvline(1, color=INK, linewidth=0.9)
        sheet.moves.append((now, lambda step: now.set_xdata([step + 1, step + 1])))


def compared(sheet: Sheet, bsm: Shown, csm: Shown) -> None:
    """BSM, CSM and their difference, merged, with the numbers that they differ by."""
    trace, tall, top, scale = bsm.trace, shape(bsm.trace), sheet.y, Scale.of([bsm, csm], merged=True)
    both = bsm.merged is not None and csm.merged is not None
    unit = (sheet.inner - 2 * GAP) / 3 if both else min((sheet.inner - GAP) / 2, 4.6 / tall)
    for show, x in ((bsm, EDGE), (csm, EDGE + unit + GAP)):
        name = show.trace.kind.upper() + ("" if show.trace.trained else ", never trained")
        name += ", no such word" if show.view.word is not None and show.merged is None else ""
        panel(sheet, (x, top, unit), show, None, scale, name)
    sheet.y += CAPTION + unit * tall + 0.16
    if scale is None:
        sheet.legend(sheet.y + 0.1, csm.trace)
        sheet.y += 0.08
        return
    if bsm.merged is not None and csm.merged is not None:

        def apart(step: int) -> tuple[Array, Array]:
            (a, strength_a), (b, strength_b) = bsm.at(None, step), csm.at(None, step)
            return b - a, np.minimum(strength_a, strength_b)

        most = float(np.nanmax(np.abs(csm.merged - bsm.merged))) or 1.0
        gaps, x = Scale(-most, most, palette=DIFFERENCE), EDGE + 2 * (unit + GAP)
        panel(sheet, (x, top, unit), bsm, None, gaps, "difference: CSM − BSM", apart)  # noqa: RUF001
        sheet.bar(x, sheet.y, unit, gaps, "BSM larger (left), CSM larger (right)")
    sheet.bar(EDGE, sheet.y, min(2 * unit + GAP, 4.4), scale, bsm.measure + ", merged" * (bsm.view.word is None))
    sheet.y += 0.48
    if bsm.merged is not None and csm.merged is not None:
        sheet.paragraph(EDGE, differ_in_words(trace, bsm.merged, csm.merged), sheet.inner, 8.5, INK)
