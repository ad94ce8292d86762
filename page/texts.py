"""What the page says: which model speaks, the status line, notices, and the turns of a conversation.

What a visitor or the model writes is only ever shown as plain text, never as Markdown or HTML.
"""

import html
from collections.abc import Sequence
from typing import Any

import mlmamba
from page.limits import TURNS

NO_WORDS = "(no words)"  # stands for an empty answer
WAITING = "…"  # stands for an answer whose first word has not come yet
SEEN_S = 0.0005  # a shorter time at the picture means that it was not looked at again
Turns = list[tuple[str, str]]

TITLE = "ML-Mamba"
SUBTITLE = "Show it a picture and ask. Patches and words are both read by Mamba-2, a model without attention."
ABOUT = {  # what each model is, can and can't; the one place on the page that says so
    "tiny": (
        "trained for this page, besides a frozen image encoder",
        "answers short English questions about everyday things, best “Is there a …?”, colours and places.",
        "It is often wrong, above all about photos and numbers, misses small things, can't read text, doesn't "
        "recognise people, and knows nothing beyond the picture.",
    ),
    "3b": (
        "the paper's own model",
        "describes pictures and answers questions in whole sentences, mostly in English.",
        "It can state wrong things with confidence; check what matters.",
    ),
}
LOADING = (
    '<dl class="status"><div><dt>Loading the model</dt><dd>one moment; meanwhile, “See the scan” plays a recording'
    "</dd></div></dl>"
)
MODEL_LABELS = {"tiny": "Tiny", "3b": "3B (needs a GPU)"}
CONNECTORS = {
    "bsm": "scans the patches row by row, forward and backward",
    "csm": "scans rows and columns, each both ways: four directions",
    "mlp": "no scan, each patch by itself",
}


def line(text: str, kind: str = "problem") -> str:
    """One sentence for the notice area. Escaped, with `$`, `{`, `}`: gr.HTML evaluates `${…}` and `{{…}}`."""
    if not text:
        return ""
    safe = html.escape(text).replace("$", "&#36;").replace("{", "&#123;").replace("}", "&#125;")
    role = "alert" if kind == "problem" else "status"
    return f'<p class="notice {kind}" role="{role}">{safe}</p>'


def messages(turns: Turns, question: str | None = None, text: str = "") -> list[dict[str, str]]:
    """Turns, and one that is being written, as the Chatbot wants them.

    Escaped: even with render_markdown=False it shows a `<b>` or an `<img>` of the text as HTML.
    """
    shown = [(asked, answered or NO_WORDS) for asked, answered in turns]
    if question is not None:
        shown.append((question, text or WAITING))
    return [
        {"role": role, "content": html.escape(content, quote=False)}
        for turn in shown
        for role, content in zip(("user", "assistant"), turn, strict=True)
    ]


def turns_of(said: Sequence[dict[str, Any]]) -> Turns:
    """The reverse of `messages`, for what a browser sends back."""
    parts = [[part.get("text") or "" for part in message["content"]] for message in said or []]
    texts = [html.unescape("".join(part)) for part in parts]
    texts = ["" if text in (NO_WORDS, WAITING) else text for text in texts]
    return list(zip(texts[::2], texts[1::2], strict=False))[-TURNS:]


def about(model: mlmamba.MLMamba) -> str:
    """Which model speaks, and what it can and can't do."""
    name = html.escape(model.config.name)
    origin, can, cannot = ABOUT.get(model.config.name, ("a model of your own", "answers questions.", ""))
    size = model.n_parameters / 1e6
    count = f"{size / 1000:.1f} B" if size >= 1000 else f"{size:.1f} M" if size < 100 else f"{size:.0f} M"
    return (
        f'<p class="about"><strong>ML-Mamba {name}</strong> speaks: {count} parameters, {origin}. '
        f"It {can} <span>{cannot}</span></p>"
    )


def status(model: mlmamba.MLMamba, connector: str, timings: mlmamba.Timings | None = None, note: str = "") -> str:
    """Where the model runs, and where the time of the last answer went."""
    cells = [("Runs on", f"{model.config.name} · {connector.upper()} · {model.backend}")]
    if timings:
        seen = f"{timings.vision_s:.2f} s" if timings.vision_s > SEEN_S else "kept from before"
        speed = f" · {timings.tokens_per_s:.0f} tokens/s" if timings.decode_tokens else ""
        cells += [
            ("First word", f"{timings.first_token_s:.2f} s"),
            ("Vision", seen),
            ("Prefill", f"{timings.prefill_s:.2f} s · {timings.prefill_tokens} tokens"),
            ("Decode", f"{timings.decode_s:.2f} s · {timings.decode_tokens} tokens{speed}"),
        ]
    else:
        cells.append(("Last answer", note or "times appear here"))
    return '<dl class="status">' + "".join(f"<div><dt>{k}</dt><dd>{v}</dd></div>" for k, v in cells) + "</dl>"
