"""The page: talk with ML-Mamba about a picture.

python app.py [--model tiny] [--device auto] [--host 127.0.0.1] [--port 7860] [--root-path /path] [--seats 4]

Where a command line can't be given, MLMAMBA_MODEL names the model, and Gradio reads GRADIO_SERVER_NAME,
GRADIO_SERVER_PORT and GRADIO_ROOT_PATH. MLMAMBA_LOGIN=user:password asks everybody for these two.
"""

import argparse
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import gradio as gr

from mlmamba.errors import UserError
from mlmamba.images import MAX_FILE_BYTES, too_large
from page.api import Api
from page.chat import EXAMPLES_DIR, Chat
from page.limits import KEPT_S, VISITORS
from page.race import Race
from page.see import See
from page.sessions import Speakers
from page.texts import SUBTITLE, TITLE, line
from page.theme import theme
from visualize.component import STYLES

PAGE_DIR = Path(__file__).resolve().parent / "page"
MAX_FILE_SIZE = "32mb"  # what the server takes at all; above MAX_FILE_BYTES, so that ours is the sentence
SWEEP_S = 60  # how often files are looked for that have been kept long enough
LOGIN = "MLMAMBA_LOGIN"
ZERO_GPU = "SPACES_ZERO_GPU"  # set by such a Space

# Gradio says nothing of a file that is too large, or that the server could not take.
NOT_TAKEN = "The server could not take this file; try a smaller one, or try again later."
REFUSE = f"""() => {{
  document.addEventListener("change", (event) => {{
    if (![...(event.target.files ?? [])].some((file) => file.size > {MAX_FILE_BYTES})) return;
    event.stopImmediatePropagation();
    event.target.value = "";
    document.querySelector("#too-large").click();
  }}, true);
  const fetch = window.fetch;
  window.fetch = async (...call) => {{
    const answer = await fetch(...call);
    const sent = call[0] instanceof Request ? call[0].url : String(call[0]);
    if (!answer.ok && sent.includes("/gradio_api/upload")) document.querySelector("#not-taken").click();
    return answer;
  }};
}}"""

HEADER = f"<h1>{TITLE}</h1><p>{SUBTITLE}</p>"
FOOTER = (
    '<p>Paper: <a href="https://arxiv.org/abs/2407.19832" target="_blank" rel="noopener">ML-Mamba: Efficient '
    "Multi-Modal Large Language Model Utilizing Mamba-2 (arXiv 2407.19832)</a></p>"
    "<p>From programs: <code>/ask</code>, <code>/scan</code> and <code>/race</code>, by gradio_client or as tools over "
    'MCP (<a href="#" id="api-link">how</a>). '
    "Pictures stay on this server and are deleted within an hour.</p>"
)


def build(speakers: Speakers) -> gr.Blocks:
    """The whole page: header, one tab each to ask, to see the scan, and to race, footer."""
    with gr.Blocks(
        title=TITLE, analytics_enabled=False, delete_cache=(SWEEP_S, KEPT_S - SWEEP_S), fill_width=True
    ) as demo:
        gr.HTML(HEADER, elem_id="header")
        chat = Chat(speakers)
        see = See(chat)
        race = Race(chat)
        Api(chat, race).lay_out()  # first: names are given in order
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

        def left(request: gr.Request) -> None:
            chat.forget(request)
            demo.app.state_holder.session_data.pop(request.session_hash, None)  # Gradio would keep thousands

        demo.unload(left)
        for name, sentence in (("too-large", str(too_large())), ("not-taken", NOT_TAKEN)):
            gr.Button(visible="hidden", elem_id=name).click(
                partial(lambda told: [line(told)] * 2, sentence),
                None,
                [chat.notice, see.notice],
                queue=False,
                api_visibility="private",
                show_progress="hidden",
            )
        demo.load(None, js=REFUSE, api_visibility="private")
    for block in demo.blocks.values():  # Gradio would delete the buttons' pictures as a visitor's
        block.keep_in_cache |= block.temp_files
    return demo.queue(max_size=32)


def login() -> tuple[str, str] | None:
    """The user and the password that everybody is asked for, or None. Raises UserError unless it has both."""
    if LOGIN not in os.environ:
        return None
    user, _, password = os.environ[LOGIN].partition(":")
    if not user.strip() or not password:  # an empty one too, lest a typing error open the page to all
        raise UserError(f"Set {LOGIN} to user:password, both not empty, or unset it to let everybody in.")
    return user.strip(), password


def arguments(description: str) -> argparse.ArgumentParser:
    """What the page can be told."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--model",
        default=os.environ.get("MLMAMBA_MODEL", "tiny"),
        help='"tiny", "3b", a folder, or a Hub id (default: MLMAMBA_MODEL, or tiny)',
    )
    parser.add_argument("--device", default="auto", help='"auto", "cpu", "cuda" or "mps"')
    parser.add_argument("--host", help="address to listen on; 0.0.0.0 for all (default: only this machine)")
    parser.add_argument("--port", type=int, help="default: GRADIO_SERVER_PORT, or a free one from 7860")
    parser.add_argument("--seats", type=int, help="how many answers are written at once (default: 4; 8 on a GPU)")
    parser.add_argument("--root-path", help="path of the page behind a proxy")
    return parser


def run(args: argparse.Namespace, speakers_of: Callable[[argparse.Namespace], Speakers]) -> None:
    """The page until Ctrl-C; exits with one sentence where a user has to mend something."""
    try:
        auth = login()
        speakers = speakers_of(args)
        # what stops a container or a service ends the page as Ctrl-C does; here, for Ray sets a handler of its own
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        demo = build(speakers)
        demo.launch(
            server_name=args.host,
            server_port=args.port,
            root_path=args.root_path,
            auth=auth,
            ssr_mode=False,  # a Space would put Node.js in front
            theme=theme(),
            css_paths=[PAGE_DIR / "page.css", *STYLES],
            js=(PAGE_DIR / "page.js").read_text(encoding="utf-8"),
            favicon_path=PAGE_DIR / "icon.png",
            state_session_capacity=VISITORS,
            max_threads=128,  # as many events go on at once, those too that only wait in line
            max_file_size=MAX_FILE_SIZE,
            mcp_server=True,
            footer_links=["api"],  # for the link in our own footer; Gradio's is hidden by the CSS
            run_history=False,
            allowed_paths=[str(EXAMPLES_DIR)],
            prevent_thread_lock=True,
        )
        try:
            speakers.wait()  # the page is open meanwhile, on a recording
        except KeyboardInterrupt:
            demo.close()
        demo.block_thread()  # ends on Ctrl-C by itself
    except UserError as problem:
        sys.exit(str(problem))


def speakers_of(args: argparse.Namespace) -> Speakers:
    """The models; on a Space with ZeroGPU, where a GPU is lent for a call, in the way that asks for it."""
    if os.environ.get(ZERO_GPU, "").lower() not in ("1", "t", "true"):
        return Speakers(args.model, args.device, args.seats)
    from page import zero  # needs `spaces`, which such a Space has, and which takes hold of CUDA

    return zero.speakers(args.model, args.device, args.seats)


def main() -> None:
    run(arguments(__doc__.splitlines()[0]).parse_args(), speakers_of)


if __name__ == "__main__":
    main()
