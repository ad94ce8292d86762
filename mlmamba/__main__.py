"""The command line: `python -m mlmamba ask | init | convert | train | average | evaluate | bench`."""

import argparse
import json
import sys
from pathlib import Path

import torch

import mlmamba
from mlmamba import UserError, weights
from mlmamba.bench import command as bench
from mlmamba.training import benchmarks


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

    init = commands.add_parser("init", help="write a model of random weights in the authors' layout, to try and time")
    init.add_argument(
        "config", help='"3b" (the published sizes: 7 GB, and as much again once converted) or a config.json'
    )
    init.add_argument("out", type=Path)
    init.add_argument("--seed", type=int, default=0)
    init.set_defaults(run=run_init)

    convert = commands.add_parser("convert", help="turn the authors' checkpoint into config.json + model.safetensors")
    convert.add_argument("checkpoint", type=Path)
    convert.add_argument("out", type=Path)
    convert.set_defaults(run=run_convert)

    train = commands.add_parser("train", help="train a model, or go on with a run that was stopped")
    train.add_argument("config", help='"tiny", "3b" or a YAML file of their form (mlmamba/training/configs/)')
    train.add_argument("out", type=Path, help="folder of the run; what is there already is gone on with")
    train.add_argument("--data", type=Path, default=Path("data"), help="folder of pictures and samples (default: data)")
    train.add_argument("--steps", type=int, help="how many batches (default: as in the config)")
    train.add_argument("--device", default="auto")
    train.add_argument("--workers", type=int, help="processes that prepare batches (default: as in the config)")
    train.add_argument("--scenes", type=int, default=300, help="held-out scenes to evaluate a tiny model on at the end")
    train.set_defaults(run=run_train)

    average = commands.add_parser("average", help="the mean of the weights of models that are alike")
    average.add_argument("models", nargs="+", help='"tiny" or folders; one that is named twice counts twice')
    average.add_argument("out", type=Path)
    average.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="as which they are written")
    average.set_defaults(run=run_average)

    benchmarks.add_command(commands)
    bench.add_command(commands)

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


def run_init(options: argparse.Namespace) -> None:
    from mlmamba import untrained
    from mlmamba.config import MLMambaConfig

    config = untrained.PUBLISHED if options.config == "3b" else MLMambaConfig.load(Path(options.config))
    untrained.write(config, options.out, options.seed)
    print(
        f"Wrote random weights to {options.out}. Ask them: python -m mlmamba ask IMAGE QUESTION --model {options.out}"
    )


def run_convert(options: argparse.Namespace) -> None:
    config = weights.convert(options.checkpoint, options.out)
    print(f"Wrote {weights.CONFIG} and {weights.WEIGHTS} to {options.out}: {json.dumps(config.language.__dict__)}")


def run_train(options: argparse.Namespace) -> None:
    from accelerate import PartialState

    from mlmamba.training import evaluate, llava, loop, train

    on_scenes = loop.objective_of(options.config) == "scenes"
    changed = {"steps": options.steps, "workers": options.workers}
    if on_scenes:
        recipe = loop.recipe_from(train.Recipe, options.config, **changed)
        train.train(options.out, options.data, recipe, device=options.device)
    else:
        conversations = loop.recipe_from(llava.Recipe, options.config, **changed)
        llava.train(options.out, options.data, conversations, device=options.device)
    if not PartialState().is_main_process:
        return
    if on_scenes:  # such a run ends with what it is worth
        results = evaluate.evaluate(mlmamba.load(options.out, device=options.device), options.data, options.scenes)
        benchmarks.report(evaluate.as_table(results), results, options.out / "evaluation.json")
    print(f"Trained. Ask it: python -m mlmamba ask IMAGE QUESTION --model {options.out}")


def run_average(options: argparse.Namespace) -> None:
    from mlmamba import hub

    dtype = torch.float16 if options.dtype == "float16" else torch.float32
    weights.average([hub.find(model) for model in options.models], options.out, dtype)
    print(f"Averaged. Ask it: python -m mlmamba ask IMAGE QUESTION --model {options.out}")


if __name__ == "__main__":
    sys.exit(main())
