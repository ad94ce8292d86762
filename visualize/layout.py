"""The figure of a view: where its maps, bars, lines and sentences go."""

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import numpy as np
from matplotlib.figure import Figure

from visualize.sheet import CAPTION, COLOURS, EDGE, FONTS, INK, LINE, SOFT, WARNING, Panel, Sheet
from visualize.shown import (
    UNTRAINED,
    Scale,
    Shown,
    credit,
    differ_in_words,
    headline,
    in_words,
    measure,
    mode,
    plain,
    select,
    words_of,
)
from visualize.trace import Array, Trace, View

PRINT, SCREEN = (10.0, 200), (7.2, 100)  # inches wide, dots an inch: 2000 and 720 pixels
DIFFERENCE = "PuOr"  # diverging, and safe for colour-blind readers
GAP = 0.2  # inches between panels


def draw(view: View, traces: dict[str, Trace]) -> Figure:
    """The figure of a view, laid out for print. Raises UserError for a view that the traces don't have."""
    return plot(view, traces, *PRINT).figure


def plot(view: View, traces: dict[str, Trace], width: float, dpi: int, growing: bool = False) -> Sheet:
    """Lay a view out. growing: the map grows with the scan, also where a still picture shows all of it."""
    shows = select(view, traces)
    sheet, trace = Sheet(width, dpi), shows[0].trace
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
        compared(sheet, shows[0], shows[1], growing)
    elif view.direction is None and view.word is None:
        side_by_side(sheet, shows[0], growing)
    else:
        enlarged(sheet, shows[0], growing)
    sheet.y += 0.2
    sheet.box(EDGE, sheet.y, sheet.inner, 0.01, LINE)
    sheet.y += 0.06
    sheet.paragraph(EDGE, credit(view, shows), sheet.inner, 7.5)
    if not all(show.trace.trained for show in shows):
        sheet.paragraph(EDGE, f"CSM is {UNTRAINED}.", sheet.inner, 7.5, WARNING)
    sheet.finish()
    sheet.show(trace.n_patches - 1 if view.kind == "compare" else view.step)
    return sheet


def said(sheet: Sheet, shows: list[Shown]) -> None:
    """The question, and every answer with the chosen word marked."""
    question = next(show.trace.answer.question for show in shows if show.trace.answer)
    said = [("Question", plain(question), -1)]
    for show in shows:
        words, chosen = (
            [plain(word.text, 40).replace(" ", "\u00a0") for word in words_of(show.trace)],
            show.view.word or 0,
        )
        first, last = max(0, chosen - 12), chosen + 24  # of a long answer, what is said around the word
        cut = ["…"] * (first > 0) + words[first:last] + ["…"] * (last < len(words))
        who = f"Answer, {show.trace.kind.upper()}" if len(shows) > 1 else "Answer"
        marked = chosen - first + (first > 0) if chosen < len(words) else -1
        said.append((who, " ".join(cut) or "no answer", marked))
    for who, text, marked in said:
        sheet.y += 0.05
        sheet.text(EDGE, sheet.y + 9.5 * 1.5 / 72, who, 8, SOFT)
        sheet.paragraph(EDGE + 1, text, sheet.inner - 1, 9.5, INK, marked=marked)


def shape(trace: Trace) -> float:
    """Height of the picture over its width; a strip is drawn a little less thin than it is."""
    return float(np.clip(trace.image.height / trace.image.width, 0.3, 2.5))


def panel(
    sheet: Sheet,
    x: float,
    y: float,
    width: float,
    show: Shown,
    direction: int | None,
    scale: Scale | None,
    growing: bool,
    name: str = "",
) -> None:
    """A map (direction None: merged) under its caption; where it moves with the step, the path runs along."""
    view, trace, what = show.view, show.trace, mode(show.view)
    moving = growing or what not in ("influence", "word")
    if direction is not None:
        name = trace.directions[direction]
    elif not name and what == "word":
        name = "through the connector, on the patches" if view.through else "in the language model"
    elif not name:
        pale = moving and (growing or view.step < trace.n_patches - 1)
        name = "all directions" if what == "path" else "merged, pale until all have read" if pale else "merged"
    sheet.caption(x, y + 0.15, name, INK if direction is None else COLOURS[direction])
    paths = (direction,) if direction is not None and moving else ()
    made = Panel(
        sheet, (x, y + CAPTION, width, width * shape(trace)), trace,
        None if show.map(direction) is None else partial(show.at, direction), scale,
        paths=range(trace.n_directions) if what == "path" and direction is None else paths, outlined=view.patch,
    )  # fmt: skip
    made.show(trace.n_patches - 1)
    if moving:
        sheet.moves.append((made.axes, made.show))


def side_by_side(sheet: Sheet, show: Shown, growing: bool) -> None:
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
        panel(sheet, x, y, unit, show, d, scale, growing)
    sheet.y = top + rows * (CAPTION + unit * tall + GAP) - GAP
    if scale is not None:
        x = EDGE + 2 * (unit + GAP)
        large = EDGE + sheet.inner - x
        panel(sheet, x, top, large, show, None, scale, growing)
        start = sheet.y + 0.16
        sheet.bar(EDGE, start, 2 * unit + GAP, scale, measure(show.view))
        sheet.y = start - 0.06
        sheet.paragraph(x, in_words(show, None), large)
        sheet.y = max(sheet.y, start + 0.45)


def enlarged(sheet: Sheet, show: Shown, growing: bool) -> None:
    """One map large with the picture beside it, and below it the quantity along the scan."""
    trace, top, tall, scale = show.trace, sheet.y, shape(show.trace), Scale.of([show])
    direction = show.view.direction if isinstance(show.view.direction, int) and show.view.word is None else None
    unit = min(sheet.inner * 0.7 - GAP, 5.6 / tall)
    panel(sheet, EDGE, top, unit, show, direction, scale, growing)
    x, aside = EDGE + unit + GAP, min(sheet.inner * 0.3, 5.6 / tall)
    Panel(sheet, (x, top + CAPTION, aside, aside * tall), trace, outlined=show.view.patch)
    sheet.y += CAPTION + aside * tall + 0.16
    if scale is not None:
        sheet.bar(x, sheet.y, aside, scale, measure(show.view))
        sheet.y += 0.5
        sheet.paragraph(x, in_words(show, direction), aside)
    sheet.y = max(sheet.y, top + CAPTION + unit * tall)
    if scale is not None and show.view.word is None:
        sheet.y += GAP
        along(sheet, show, range(trace.n_directions) if direction is None else (direction,), scale, growing)


def along(sheet: Sheet, show: Shown, directions: Sequence[int], scale: Scale, growing: bool) -> None:
    """The quantity along the scan, one line a direction, and the step as an upright line."""
    trace, left, height = show.trace, 0.62, 1.05
    sheet.text(EDGE, sheet.y + 0.08, f"{measure(show.view)}, along the scan")
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
    if growing or show.view.patch is None:
        now = axes.axvline(1, color=INK, linewidth=0.9)
        sheet.moves.append((now, lambda step: now.set_xdata([step + 1, step + 1])))


def compared(sheet: Sheet, bsm: Shown, csm: Shown, growing: bool) -> None:
    """BSM, CSM and their difference, merged, with the numbers that they differ by."""
    trace, tall, top, scale = bsm.trace, shape(bsm.trace), sheet.y, Scale.of([bsm, csm], merged=True)
    both = bsm.merged is not None and csm.merged is not None
    unit = (sheet.inner - 2 * GAP) / 3 if both else min((sheet.inner - GAP) / 2, 4.6 / tall)
    for show, x in ((bsm, EDGE), (csm, EDGE + unit + GAP)):
        name = show.trace.kind.upper() + ("" if show.trace.trained else ", never trained")
        name += ", no such word" if show.view.word is not None and show.merged is None else ""
        panel(sheet, x, top, unit, show, None, scale, growing, name)
    sheet.y += CAPTION + unit * tall + 0.16
    if scale is None:
        sheet.legend(sheet.y + 0.1, csm.trace)
        sheet.y += 0.08
        return
    sheet.bar(EDGE, sheet.y, min(2 * unit + GAP, 4.4), scale, f"{measure(bsm.view)}, merged")
    if bsm.merged is not None and csm.merged is not None:
        most = float(np.nanmax(np.abs(csm.merged - bsm.merged))) or 1.0
        gaps, x = Scale(-most, most, palette=DIFFERENCE), EDGE + 2 * (unit + GAP)

        def apart(step: int) -> tuple[Array, Array]:
            (a, strength_a), (b, strength_b) = bsm.at(None, step), csm.at(None, step)
            return b - a, np.minimum(strength_a, strength_b)

        sheet.caption(x, top + 0.15, "difference: CSM − BSM", LINE)  # noqa: RUF001
        made = Panel(sheet, (x, top + CAPTION, unit, unit * tall), trace, apart, gaps, outlined=bsm.view.patch)
        made.show(trace.n_patches - 1)
        if growing:
            sheet.moves.append((made.axes, made.show))
        sheet.bar(x, sheet.y, unit, gaps, "BSM larger (left), CSM larger (right)")
        sheet.y += 0.51
        sheet.paragraph(EDGE, differ_in_words(trace, bsm.merged, csm.merged), sheet.inner, 8.5, INK)
    else:
        sheet.y += 0.45
