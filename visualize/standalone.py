"""The scan view as one HTML file that opens from disk: the view, the payloads and a small host, and no network."""

import html
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlmamba.errors import UserError
from visualize.payload import pack
from visualize.trace import Trace, View

VIEW = Path(__file__).resolve().parent / "view"
KINDS = {"bsm": "BSM", "csm": "CSM"}

# Scripts and styles from this file alone, pictures from its own data: whatever a text says, nothing is fetched.
POLICY = (
    "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'"
)

# The page's own colours and fonts, as page/theme.py and page/page.css have them.
STYLE = """
:root {
  --ink-soft: #5d665f; --line: #e4dfd5; --paper: #ffffff; --green: #1f6b52; --problem: #9a3412; --problem-bg: #fff3ea;
  --body-text-color: #26302b; color-scheme: light;
}
.dark {
  --ink-soft: #a3aca5; --line: #323733; --paper: #1d201e; --green: #84c1a4; --problem: #fdba8c; --problem-bg: #33241a;
  --body-text-color: #e4e8e4; color-scheme: dark;
}
* { box-sizing: border-box; }
body {
  margin: 0; background: #f7f5f0; color: var(--body-text-color); line-height: 1.5; -webkit-text-size-adjust: 100%;
  font-family: ui-sans-serif, system-ui, -apple-system, "Segoe UI", "Noto Sans", sans-serif;
}
.dark body { background: #141614; }
#page { max-width: 1160px; margin: 0 auto; padding: 40px 32px 24px; }
#page > header h1 { font-size: 2rem; font-weight: 650; letter-spacing: -0.02em; line-height: 1.15; margin: 0 0 6px; }
#page > header p { font-size: 1.02rem; color: var(--ink-soft); margin: 0 0 22px; max-width: 62em; }
#page > footer { margin-top: 28px; padding-top: 14px; border-top: 1px solid var(--line); }
#page > footer p { margin: 0 0 4px; font-size: 0.84rem; color: var(--ink-soft); overflow-wrap: anywhere; }
noscript { color: var(--problem); }
@media (max-width: 720px) {
  #page { padding: 20px 16px; }
  #page > header h1 { font-size: 1.6rem; }
}
@media (prefers-reduced-motion: reduce) {
  *, *::before, *::after { animation: none !important; transition: none !important; }
}
"""

# Before anything is drawn, so that a dark page never flashes.
THEME = """
const dark = matchMedia('(prefers-color-scheme: dark)');
const follow = () => document.documentElement.classList.toggle('dark', dark.matches);
dark.addEventListener('change', follow);
follow();
"""

# What the view asks for, answered from the payloads in the file.
HOST = """
const read = (id) => JSON.parse(document.getElementById(id).textContent);
const payloads = read('scan-payloads');
const LINK = '#scan?';

function viewOf(hash) {
  if (!hash.startsWith(LINK)) return null;
  const view = { head: null, direction: null, patch: null, word: null, word_layer: null };
  for (const [name, value] of new URLSearchParams(hash.slice(LINK.length))) {
    if (/^\\d{1,6}$/.test(value)) view[name] = Number(value);
    else if (value === 'true' || value === 'false') view[name] = value === 'true';
    else view[name] = value;
  }
  delete view.picture; // there is but the one in this file
  return view;
}

function trace(kind) {
  if (!Object.hasOwn(payloads, kind)) throw new Error('This file holds ' + names() + ' alone.');
  return payloads[kind];
}

function names() {
  return Object.keys(payloads).map((kind) => kind.toUpperCase()).join(' and ');
}

const answers = {
  trace: ({ kind }) => trace(kind),
  part: ({ kind, name }) => {
    const held = trace(kind);
    const part = name.startsWith('word/') ? held.answer && held.answer.maps[name] : held.parts[name];
    if (!part) throw new Error('This part of the scan is not in this file.');
    return part;
  },
};

const host = {
  can: { ask: false, compare: Object.keys(payloads).length > 1, export: ['png', 'json'] },
  exportsHere: true,
  initial: viewOf(location.hash) || read('scan-view'),
  link(view) {
    const kept = Object.entries(view).filter(([name, value]) => (value ?? null) !== null && name !== 'picture');
    return location.href.split('#')[0] + LINK + new URLSearchParams(kept);
  },
  async request(type, args) {
    if (!Object.hasOwn(answers, type)) throw new Error('A file can show what was recorded, but run no model.');
    return answers[type](args);
  },
};
"""

MOUNT = "mount(document.querySelector('.scan-view'), host);"


def page(traces: dict[str, Trace], view: View | None = None) -> str:
    """One HTML file with the view on these traces, everything embedded. Raises UserError without a trace."""
    if not traces:
        raise UserError("There is no scan to export; look at a picture first.")
    first = next(iter(traces.values()))
    parts = [(VIEW / name).read_text(encoding="utf-8") for name in ("view.html", "view.css")]
    script = f"(function () {{\n'use strict';\n{scripts()}\n{HOST}\n{MOUNT}\n}})();"
    answered = any(trace.answer for trace in traces.values())
    saw = ", what its states hold, and what a word of the answer saw" if answered else ", and what its states hold"
    title = html.escape(f"The scan of ML-Mamba “{first.model}”")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>
<style>{parts[1]}</style>
<script>{THEME}</script>
</head>
<body>
<div id="page">
<header>
<h1>{title}</h1>
<p>Watch how the connector reads a picture patch by patch{saw}.</p>
</header>
<main>
<noscript><p>This page needs JavaScript to draw the scan.</p></noscript>
{parts[0]}
</main>
<footer><p>{html.escape(recorded(traces))}</p>
<p>Paper: <a href="https://arxiv.org/abs/2407.19832" rel="noopener" style="color: var(--green)">ML-Mamba: Efficient \
Multi-Modal Large Language Model Utilizing Mamba-2 (arXiv 2407.19832)</a></p></footer>
</div>
{data("scan-payloads", {kind: pack(trace, None) for kind, trace in traces.items()})}
{data("scan-view", view and asdict(view))}
<script>{closed(script)}</script>
</body>
</html>
"""


def recorded(traces: dict[str, Trace]) -> str:
    """One line: what these numbers are."""
    first = next(iter(traces.values()))
    kinds = " and ".join(KINDS.get(kind, kind) for kind in traces)
    untrained = [KINDS.get(kind, kind) for kind, trace in traces.items() if not trace.trained]
    note = f" {untrained[0]} is exploratory: its orders with BSM's parameters, never trained." if untrained else ""
    grid = f"{first.rows} × {first.cols} patches"  # noqa: RUF001
    return (
        f"The numbers were recorded with the model “{first.model}”, through {kinds}, on a picture of {grid}, "
        f"and lie in this file: it runs no model and loads nothing.{note}"
    )


def scripts() -> str:
    """The view's JavaScript in alphabetical order, for one function."""
    return "\n".join(file.read_text(encoding="utf-8") for file in sorted(VIEW.glob("*.js")))


def data(id: str, value: Any) -> str:
    """JSON in a page; with every < escaped, no text can end the element or open another."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json" id="{id}">{text}</script>'


def closed(script: str) -> str:
    """A script in which nothing reads as the end of its element: in JavaScript's strings <\\/ is </."""
    return re.sub(r"<(?=/script|!--|script)", r"\\x3c", script, flags=re.IGNORECASE)
