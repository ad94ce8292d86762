"""The command line: `python -m visualize export | record`. Only here does the visualizer run a model."""

import argparse
import json
import sys
from pathlib import Path

import mlmamba
from mlmamba import MLMamba, UserError
from mlmamba.connector import DIRECTIONS
from visualize import standalone
from visualize.payload import pack
from visualize.trace import Trace, record

ROOT = Path(__file__).resolve().parent.parent
RECORDED = Path(__file__).resolve().parent / "recorded"
EXAMPLE, QUESTION = "meadow", "Is there a cat?"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m visualize", description="Keep the scan of a picture in a file.")
    commands = parser.add_subparsers(dest="command", required=True)

    export = commands.add_parser("export", help="one HTML file with the scan of a picture, which opens from disk")
    export.add_argument("out", type=Path, metavar="OUT.html")
    export.add_argument("image", type=Path, metavar="IMAGE")
    export.add_argument("--question", help="ask this too, and show what each word of the answer saw")
    export.set_defaults(run=run_export)

    again = commands.add_parser("record", help="rewrite the recording that the page opens on")
    again.set_defaults(run=run_record)

    for command in (export, again):
        command.add_argument("--model", default="tiny", help='"tiny", "3b", a folder or a Hub id (default: tiny)')
        command.add_argument("--device", default="auto")

    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def run_export(options: argparse.Namespace) -> None:
    if not options.out.absolute().parent.is_dir():  # before the model runs, not after
        raise UserError(f"There is no folder {options.out.parent}; make it first, or choose another place.")
    model = mlmamba.load(options.model, device=options.device)
    traces = record_all(model, options.image, options.question)
    write(options.out, standalone.page(traces))


def run_record(options: argparse.Namespace) -> None:
    model = mlmamba.load(options.model, device=options.device)
    RECORDED.mkdir(exist_ok=True)
    for kind, trace in record_all(model, ROOT / "examples" / f"{EXAMPLE}.jpg", QUESTION, EXAMPLE).items():
        payload = json.dumps(pack(trace, None), ensure_ascii=False, separators=(",", ":"))
        write(RECORDED / f"{kind}.json", payload + "\n")


def record_all(model: MLMamba, image: Path, question: str | None, picture: str | None = None) -> dict[str, Trace]:
    """The picture's trace through every connector; one without weights is a look at its orders, and answers nothing."""
    traces = {}
    for kind in DIRECTIONS:
        has_weights = kind in model.config.connector.kinds
        conversation = model.start(image, kind if has_weights else None)
        if question is not None and has_weights:
            for _ in conversation.ask(question):
                pass
        traces[kind] = record(conversation, kind, picture, answered=bool(conversation.turns))
    return traces


def write(file: Path, text: str) -> None:
    """Write a file and say so."""
    data = text.encode("utf-8")
    try:
        file.write_bytes(data)
    except OSError as error:
        raise UserError(f"{file} can't be written: {error.strerror or error}.") from error
    print(f"Wrote {file} ({len(data) / 1e6:.2f} MB)")


if __name__ == "__main__":
    sys.exit(main())
