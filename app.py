"""The page: talk with ML-Mamba about a picture.

python app.py [--model tiny] [--device auto] [--host 127.0.0.1] [--port 7860] [--root-path /path]
"""

import argparse
import sys
from pathlib import Path

import gradio as gr

from mlmamba.errors import UserError
from page.chat import EXAMPLES_DIR, Chat
from page.race import Race
from page.see import See
from page.sessions import Speakers
from page.texts import SUBTITLE, TITLE
from page.theme import theme
from visualize.component import STYLES

PAGE_DIR = Path(__file__).resolve().parent / "page"
MAX_FILE_SIZE = "32mb"

HEADER = f"<h1>{TITLE}</h1><p>{SUBTITLE}</p>"
FOOTER = (
    '<p>Paper: <a href="https://arxiv.org/abs/2407.19832" target="_blank" rel="noopener">ML-Mamba: Efficient '
    "Multi-Modal Large Language Model Utilizing Mamba-2 (arXiv 2407.19832)</a></p>"
    "<p>From Python: <code>gradio_client</code>, endpoint <code>/ask</code> "
    '(<a href="#" id="api-link">how</a>). '
    "Pictures stay on this server and are deleted after a day.</p>"
)


def build(speakers: Speakers) -> gr.Blocks:
    """The whole page: header, one tab each to ask, to see the scan, and to race, footer."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, 86400), fill_width=True) as demo:
        gr.HTML(HEADER, elem_id="header")
        chat = Chat(speakers)
        see = See(chat)
        race = Race(chat)
        with gr.Tabs(elem_id="tabs") as tabs:
            with gr.Tab("Ask", id="ask"):
                chat.lay_out()
            with gr.Tab("See the scan", id="see") as tab:
                see.lay_out()
            with gr.Tab("Race", id="race") as race_tab:
                race.lay_out()
        see.wire(tabs, tab)
        race.wire(race_tab)
        gr.HTML(FOOTER, elem_id="footer")
        demo.load(
            chat.arrive,
            None,
            [chat.status, chat.about, chat.connector, chat.notice],
            concurrency_limit=None,
            api_visibility="private",
            show_progress="hidden",
        )
        demo.unload(chat.forget)
        demo.unload(race.forget)
    return demo.queue(max_size=32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny", help='"tiny", "3b", a folder, or a Hub id')
    parser.add_argument("--device", default="auto", help='"auto", "cpu", "cuda" or "mps"')
    parser.add_argument("--host", help="address to listen on; 0.0.0.0 for all (default: only this machine)")
    parser.add_argument("--port", type=int, help="default: GRADIO_SERVER_PORT, or a free one from 7860")
    parser.add_argument("--root-path", help="path of the page behind a proxy")
    args = parser.parse_args()
    try:
        speakers = Speakers(args.model, args.device)
        demo = build(speakers)
        demo.launch(
            server_name=args.host,
            server_port=args.port,
            root_path=args.root_path,
            theme=theme(),
            css_paths=[PAGE_DIR / "page.css", *STYLES],
            js=(PAGE_DIR / "page.js").read_text(encoding="utf-8"),
            favicon_path=PAGE_DIR / "icon.png",
            max_file_size=MAX_FILE_SIZE,
            footer_links=["api"],  # for the link in our own footer; Gradio's is hidden by the CSS
            run_history=False,
            allowed_paths=[str(EXAMPLES_DIR)],
            prevent_thread_lock=True,
        )
        speakers.wait()  # the page is open meanwhile, on a recording
        demo.block_thread()
    except UserError as problem:
        sys.exit(str(problem))


if __name__ == "__main__":
    main()
