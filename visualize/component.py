"""The view as a Gradio component. Its HTML, style and script are in view/; what ties them to Gradio is gradio.js.

The view asks by three events, "look" for a trace, "ask" for an answer, "request" for the rest, and gets its reply as
the component's value:

    view = ScanView()
    view.look(answer, outputs=view, trigger_mode="multiple")

where `answer(event: gr.EventData)` returns reply(event, {...}) or failure(event, "One sentence.").
"""

from pathlib import Path
from typing import Any

import gradio as gr

HERE = Path(__file__).resolve().parent
STYLE = HERE / "view" / "view.css"  # for launch(css_paths=…)


def skeleton() -> str:
    """The HTML of the view."""
    return (HERE / "view" / "view.html").read_text(encoding="utf-8")


def script() -> str:
    """The scripts of the view, in the order of their names; they define `mount(root, host)`."""
    files = sorted((HERE / "view").glob("*.js"))
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


class ScanView(gr.HTML):
    """Draws what it is given; texts reach it as data, never through Gradio's templates."""

    def __init__(self, **options: Any):
        glue = (HERE / "gradio.js").read_text(encoding="utf-8")
        super().__init__(
            html_template=skeleton(),
            # in a scope of its own: Gradio's `element`, `props`, `trigger` and `watch` are for the glue
            js_on_load=f"const mount = (() => {{\n{script()}\nreturn mount;\n}})();\n{glue}",
            apply_default_css=False,
            elem_id="scan",
            **options,
        )


def asked(event: gr.EventData) -> tuple[str, dict[str, Any]]:
    """Type and arguments of a request, with nothing taken for granted: it may come from anywhere."""
    data = event._data if isinstance(event._data, dict) else {}
    args = data.get("args")
    return str(data.get("type", "")), args if isinstance(args, dict) else {}


def reply(event: gr.EventData, content: dict[str, Any]) -> dict[str, Any]:
    """The value that answers a request."""
    return {"re": event._data.get("id") if isinstance(event._data, dict) else None, "content": content}


def failure(event: gr.EventData, sentence: str) -> dict[str, Any]:
    """The value that tells why a request was refused."""
    return {"re": event._data.get("id") if isinstance(event._data, dict) else None, "error": sentence}
