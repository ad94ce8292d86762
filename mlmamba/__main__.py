"""The command line: `python -m mlmamba ask | convert | train | evaluate`."""

import argparse
import json
import sys
from pathlib import Path

import mlmamba
from mlmamba import UserError, weights


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m mlmamba", description=mlmamba.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    ask = commands.add_parser("ask", help="ask one question about a picture")
    ask.add_argument("image", type=Path)
    ask.add_argument("question")
    ask.add_argument("--model", default="tiny", help='"tiny", "3b", a folder or a Hub id (default: tiny)')
    ask.add_argument("--connector", help='"bsm" or "csm" (default: the first that the model has)')
    ask.add_argument("--device", default="auto")
    ask.add_argument("--dtype", default="auto")
    ask.add_argument("--max-new-tokens", type=int, default=64)
    ask.add_argument("--temperature", type=float, default=0.0)
    ask.set_defaults(run=run_ask)

    convert = commands.add_parser("convert", help="turn the authors' checkpoint into config.json + model.safetensors")
    convert.add_argument("checkpoint", type=Path)
    convert.add_argument("out", type=Path)
    convert.set_defaults(run=run_convert)

    train = commands.add_parser("train", help="train the tiny model, or go on with a run that was stopped")
    train.add_argument("out", type=Path, help="folder of the run; what is there already is gone on with")
    train.add_argument("--data", type=Path, required=True, help="folder of the pictures; a missing one is named")
    train.add_argument("--steps", type=int, help="how many batches of pictures (default: 1300)")
    train.add_argument("--pictures", type=int, help="pictures a batch")
    train.add_argument("--device", default="auto")
    train.add_argument("--workers", type=int, default=1, help="processes that compose scenes")
    train.add_argument("--scenes", type=int, default=300, help="held-out scenes to evaluate on at the end")
    train.set_defaults(run=run_train)

    evaluate = commands.add_parser("evaluate", help="ask a model about held-out pictures and count right answers")
    evaluate.add_argument("--model", default="tiny")
    evaluate.add_argument("--data", type=Path, required=True, help="folder of the pictures; a missing one is named")
    evaluate.add_argument("--scenes", type=int, default=300, help="how many held-out scenes")
    evaluate.add_argument("--device", default="auto")
    evaluate.add_argument("--json", type=Path, help="also write the figures here")
    evaluate.set_defaults(run=run_evaluate)

    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def run_ask(options: argparse.Namespace) -> None:
    model = mlmamba.load(options.model, device=options.device, dtype=options.dtype)
    pieces = model.chat(
        options.image,
        options.question,
        stream=True,
        connector=options.connector,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
    )
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


def run_convert(options: argparse.Namespace) -> None:
    config = weights.convert(options.checkpoint, options.out)
    print(f"Wrote {weights.CONFIG} and {weights.WEIGHTS} to {options.out}: {json.dumps(config.language.__dict__)}")


def run_train(options: argparse.Namespace) -> None:
    from mlmamba.training import train

    chosen = {name: getattr(options, name) for name in ("steps", "pictures") if getattr(options, name)}
    train.train(options.out, options.data, train.Recipe(**chosen), device=options.device, workers=options.workers)
    options.model, options.json = options.out, options.out / "evaluation.json"
    run_evaluate(options)  # a run ends with what it is worth
    print(f"Trained. Ask it: python -m mlmamba ask IMAGE QUESTION --model {options.out}")


def run_evaluate(options: argparse.Namespace) -> None:
    from mlmamba.training import evaluate

    model = mlmamba.load(options.model, device=options.device)
    results = evaluate.evaluate(model, options.data, options.scenes)
    print(evaluate.as_table(results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
