"""The views as Gradio components. The scan's HTML, style and script are in view/, the race's in race/; gradio.js and
the host of each, gradio_scan.js and gradio_race.js, tie them to Gradio.

The scan asks by three events, "look" for a trace, "ask" for an answer, "request" for the rest, and gets its reply as
the component's value:

    view = ScanView()
    view.look(answer, outputs=view, trigger_mode="multiple")

where `answer(event: gr.EventData)` returns reply(event, {...}) or failure(event, "One sentence."). The race asks by
"race" and "scaling", which may yield any number of news(event, {...}) before their reply, and "halt", which ends them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

HERE = Path(__file__).resolve().parent
STYLES = [HERE / "view" / "view.css", HERE / "race" / "race.css"]  # for launch(css_paths=…)


def skeleton(folder: str) -> str:
    """The HTML of a view."""
    return (HERE / folder / f"{folder}.html").read_text(encoding="utf-8")


def script(folder: str) -> str:
    """The scripts of a view, in the order of their names; they define `mount(root, host)`."""
    files = sorted((HERE / folder).glob("*.js"))
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


def on_load(folder: str, host: str) -> str:
    """What runs once the HTML is there: the view, and its host in Gradio."""
    glue = "\n".join((HERE / name).read_text(encoding="utf-8") for name in ("gradio.js", host))
    # in a scope of its own: Gradio's `element`, `props`, `trigger` and `watch` are for the glue
    return f"const mount = (() => {{\n{script(folder)}\nreturn mount;\n}})();\n{glue}"


class ScanView(gr.HTML):
    """Draws what it is given; texts reach it as data, never through Gradio's templates."""

    def __init__(self, **options: Any):
        super().__init__(
            html_template=skeleton("view"),
            js_on_load=on_load("view", "gradio_scan.js"),
            apply_default_css=False,
            elem_id="scan",
            **options,
        )


class RaceView(gr.HTML):
    """The race and how both scale; shows the recorded runs, {"race", "scaling", "machine", …} each, from the first."""

    def __init__(self, recorded: Sequence[dict[str, Any]] = (), **options: Any):
        super().__init__(
            html_template=skeleton("race"),
            js_on_load=on_load("race", "gradio_race.js"),
            apply_default_css=False,
            elem_id="race",
            recorded=list(recorded),
            **options,
        )


def asked(event: gr.EventData) -> tuple[str, dict[str, Any]]:
    """Type and arguments of a request, with nothing taken for granted: it may come from anywhere."""
    data = event._data if isinstance(event._data, dict) else {}
    args = data.get("args")
    return str(data.get("type", "")), args if isinstance(args, dict) else {}


def number_of(event: gr.EventData) -> Any:
    """What a request calls itself; its replies are told by it."""
    return event._data.get("id") if isinstance(event._data, dict) else None


def reply(event: gr.EventData, content: dict[str, Any]) -> dict[str, Any]:
    """The value that answers a request."""
    return {"re": number_of(event), "content": content}


def news(event: gr.EventData, content: dict[str, Any]) -> dict[str, Any]:
    """A value on the way to the answer."""
    return {"re": number_of(event), "news": content}


def failure(event: gr.EventData, sentence: str) -> dict[str, Any]:
    """The value that tells why a request was refused."""
    return {"re": number_of(event), "error": sentence}
