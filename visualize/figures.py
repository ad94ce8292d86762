"""A view as a file: a figure for print, an animation, the numbers behind it."""

import io
import json
import re
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from mlmamba.errors import UserError
from visualize.animation import animation
from visualize.layout import PRINT, draw
from visualize.shown import THROUGH, UNTRAINED, Shown, difference, mode, plain, select
from visualize.trace import QUANTITIES, Array, Trace, View

__all__ = ["animation", "draw", "export", "numbers", "png"]

TYPES = {"png": "image/png", "gif": "image/gif", "webp": "image/webp", "json": "application/json"}
FORMULAS = {
    "delta": "Δ_t: the time step of step t, after softplus",
    "decay": "exp(Δ_t A): the share of the state that step t keeps, between 0 and 1",
    "input": "‖Δ_t x_t B_tᵀ‖, Frobenius: the size of what step t adds to the state",
    "state": "‖H_t‖, Frobenius, where H_t = exp(Δ_t A) H_{t-1} + Δ_t x_t B_tᵀ",
    "output": "‖y_t‖, Euclidean, where y_t = H_t C_t + D x_t",
    "gate": "‖SiLU(z_t)‖, Euclidean: the size of the gate on y_t",
    "path": "orders[direction][t]: the patch that step t reads",
    "influence": "|M[t,s]|·‖x_s‖, where M[t,s] = C_t·B_s · exp(sum of Δ_k A over k = s+1..t) · Δ_s, and t is the step "
    "that reads the chosen patch; patches not yet read have 0",
    "word": "|M[t,s]|·‖x_s‖ in the language model's scan, from the steps t that chose the word to the patches s",
}


def export(view: View, traces: dict[str, Trace], format: str) -> tuple[str, str, bytes]:
    """File name, MIME type and bytes of a view. Raises UserError for a format that there isn't."""
    if format not in TYPES:
        raise UserError(f"There is no export as “{plain(str(format), 20)}”; choose PNG, GIF, WebP or JSON.")
    make = {"png": png, "json": numbers}.get(format)
    data = make(view, traces) if make else animation(view, traces, format)
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


def png(view: View, traces: dict[str, Trace]) -> bytes:
    """The figure as PNG, 2000 pixels wide."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        draw(view, traces).savefig(file, format="png", dpi=PRINT[1], metadata={"Software": "ML-Mamba"})
    return file.getvalue()


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
        "units": "the model's own",
        "counting": "from 0; patches row by row; no head, no word_layer: the mean over all",
        "connectors": [connector(view, show) for show in shows],
    }
    if len(shows) == 2 and shows[0].merged is not None and shows[1].merged is not None:
        found["difference"] = difference(shows[0].merged, shows[1].merged)
        found["difference"]["csm_minus_bsm"] = listed(shows[1].merged - shows[0].merged)
    found = json.loads(json.dumps(found), parse_constant=lambda name: None)  # JSON has no NaN: null
    return json.dumps(found, ensure_ascii=False).encode("utf-8", "replace")


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


def version() -> str:
    """The project's version, as its pyproject.toml has it."""
    project = Path(__file__).resolve().parent.parent / "pyproject.toml"
    found = re.search(r'^version = "(.+?)"', project.read_text(encoding="utf-8"), re.M) if project.is_file() else None
    return found.group(1) if found else "unknown"
