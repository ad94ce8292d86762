"""A trace as JSON, and back: what travels to the browser and lies in a recording.

Arrays go as two bytes a number, a sign and the logarithm of the size: Δ and states span twenty powers of ten, and
each keeps three significant digits. What goes over the budget is left out, and asked for by name when it is looked at
(`part`).
"""

import base64
import io
import json
from typing import Any

import numpy as np
from matplotlib import colormaps
from PIL import Image

from mlmamba.errors import UserError
from visualize.trace import QUANTITIES, Answer, Array, Keys, Trace, Word

VERSION = 1
BUDGET = 1_000_000  # bytes of one payload
CODES = 0x7FFF  # sizes that 15 bits can tell apart
OCTAVES = 80  # of two; what is smaller than the largest value by more becomes 0
PALETTE = "cividis"  # perceptually uniform, and the same to colour-blind readers


def pack_array(array: Array) -> dict[str, Any]:
    """{"shape", "low", "step", "data"}: data is base64 of little-endian 16-bit codes, 0 for 0.

    Else the top bit is the sign, and the other 15 are 1 + (log2 |value| - low) / step: to 0.09 % at worst.
    """
    values = np.abs(array.astype(np.float64)).ravel()
    high = float(np.log2(values.max())) if values.any() else 0.0
    low = max(float(np.log2(values[values > 0].min())), high - OCTAVES) if values.any() else 0.0
    step = (high - low) / (CODES - 1) or 1.0
    with np.errstate(divide="ignore"):
        codes = 1 + np.round((np.log2(values) - low) / step)  # -inf for 0
    codes = np.where(codes < 1, 0, codes).astype("<u2") | (np.signbit(array.ravel()).astype("<u2") << 15)
    codes = np.where(codes & CODES, codes, 0).astype("<u2")
    return {"shape": list(array.shape), "low": low, "step": step, "data": base64.b64encode(codes.tobytes()).decode()}


def unpack_array(packed: dict[str, Any]) -> Array:
    """The reverse of `pack_array`."""
    codes = np.frombuffer(base64.b64decode(packed["data"]), "<u2").astype(np.int64)
    values = np.exp2(packed["low"] + packed["step"] * ((codes & CODES) - 1)) * np.where(codes >> 15, -1, 1)
    return np.where(codes, values, 0).reshape(packed["shape"]).astype(np.float32)


def part(trace: Trace, name: str) -> dict[str, Any]:
    """One part by its name: "maps/mean", "maps/3" (a head), "keys/1" (a layer), "word/0". Raises UserError."""
    group, _, which = str(name).partition("/")
    words = trace.answer.words if trace.answer else ()
    try:
        if which != "mean" and not which.isdecimal():
            raise ValueError(which)
        if group == "maps":
            return pack_array(trace.maps[0 if which == "mean" else 1 + int(which)])
        if group == "keys":
            keys = trace.keys[int(which)]
            return {name: pack_array(getattr(keys, name)) for name in Keys.__annotations__}
        if group == "word":
            return pack_array(words[int(which)].maps)
    except (ValueError, IndexError):
        pass
    raise UserError("This part of the scan isn't there; open the page anew.")


def size(value: Any) -> int:
    """Bytes of a value as JSON."""
    return len(json.dumps(value))


def pack(trace: Trace, budget: int | None = BUDGET) -> dict[str, Any]:
    """A trace as JSON. Within the budget (None: no limit) words come first, then keys, then heads."""
    kept, colours = io.BytesIO(), colormaps[PALETTE](np.arange(256))[:, :3]
    trace.image.convert("RGB").save(kept, "JPEG", quality=82)
    packed: dict[str, Any] = {
        "version": VERSION,
        "model": trace.model,
        "kind": trace.kind,
        "kinds": list(trace.kinds),
        "trained": trace.trained,
        "rows": trace.rows,
        "cols": trace.cols,
        "layers": trace.n_layers,
        "heads": trace.n_heads,
        "picture": {
            "name": trace.picture,
            "src": "data:image/jpeg;base64," + base64.b64encode(kept.getvalue()).decode(),
            "width": trace.image.width,
            "height": trace.image.height,
        },
        "directions": list(trace.directions),
        "orders": trace.orders.tolist(),
        "quantities": [dict(vars(quantity)) for quantity in QUANTITIES],
        "palette": base64.b64encode((colours * 255).round().astype(np.uint8).tobytes()).decode(),
        "parts": {"maps/mean": part(trace, "maps/mean")},
        "answer": pack_answer(trace.answer, 0) if trace.answer else None,
    }
    left = float("inf") if budget is None else budget - size(packed)
    words = len(trace.answer.words) if trace.answer else 0
    names = [f"word/{i}" for i in range(words)] + [f"keys/{i}" for i in range(trace.n_layers)]
    for name in names + [f"maps/{i}" for i in range(trace.n_heads)]:
        piece = part(trace, name)
        if (cost := size(piece) + len(name) + 6) <= left:
            left -= cost
            (packed["answer"]["maps"] if name.startswith("word/") else packed["parts"])[name] = piece
    return packed


def pack_answer(answer: Answer, budget: int | None = BUDGET) -> dict[str, Any]:
    """An answer alone, with the maps of as many words as the budget allows."""
    packed: dict[str, Any] = {
        "question": answer.question,
        "text": answer.text,
        "words": [word.text for word in answer.words],
        "lm_layers": answer.words[0].maps.shape[1] - 1 if answer.words else 0,
        "maps": {},
    }
    left = float("inf") if budget is None else budget - size(packed)
    for i, word in enumerate(answer.words):
        piece = pack_array(word.maps)
        if (cost := size(piece) + 16) <= left:
            left -= cost
            packed["maps"][f"word/{i}"] = piece
    return packed


def unpack(packed: dict[str, Any]) -> Trace:
    """The trace of a payload that has all its parts. Raises UserError for another version."""
    if packed.get("version") != VERSION:
        raise UserError("This recording is of another version of the page; record it anew: python -m visualize record")
    parts, answer = packed["parts"], packed["answer"]
    heads = ["mean", *range(packed["heads"])]
    picture = packed["picture"]
    return Trace(
        model=packed["model"],
        kind=packed["kind"],
        kinds=tuple(packed["kinds"]),
        trained=packed["trained"],
        grid=(packed["rows"], packed["cols"]),
        orders=np.array(packed["orders"]),
        maps=np.stack([unpack_array(parts[f"maps/{head}"]) for head in heads]),
        keys=tuple(
            Keys(**{name: unpack_array(piece) for name, piece in parts[f"keys/{layer}"].items()})
            for layer in range(packed["layers"])
        ),
        image=Image.open(io.BytesIO(base64.b64decode(picture["src"].split(",", 1)[1]))).convert("RGB"),
        picture=picture["name"],
        answer=answer
        and Answer(
            answer["question"],
            answer["text"],
            tuple(Word(text, unpack_array(answer["maps"][f"word/{i}"])) for i, text in enumerate(answer["words"])),
        ),
    )
