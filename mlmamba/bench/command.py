"""`python -m mlmamba bench`: the figures of the race's page as tables, and as the JSON that the page shows."""

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import mlmamba
from mlmamba.bench import gpu, machine, peers, race, scaling
from mlmamba.bench.runners import OurRunner
from mlmamba.errors import UserError

PICTURE = Path(__file__).resolve().parents[2] / "examples" / "meadow.jpg"


def add_command(commands: Any) -> None:
    """`bench`, with its options."""
    bench = commands.add_parser("bench", help="race against a Transformer; time and memory as contexts grow")
    bench.add_argument("--model", default="tiny", help='"tiny", "3b", a folder or a Hub id (default: tiny)')
    bench.add_argument("--connector", help='"bsm" or "csm" (default: the first that the model has)')
    bench.add_argument(
        "--rival", help='"twin", "shape" (random weights, for speed alone), or a Hub id (default: the first there is)'
    )
    bench.add_argument("--image", type=Path, default=PICTURE)
    bench.add_argument("--question", default="What can you see?")
    bench.add_argument("--tokens", type=int, default=64, help="tokens that each side says (default: 64)")
    bench.add_argument("--context", type=int, nargs="*", help="more races, with prompts filled to so many tokens")
    bench.add_argument("--contexts", type=int, nargs="*", help="contexts of the scaling (default: doubling from 256)")
    bench.add_argument("--batches", type=int, nargs="*", help="users at once of the scaling (default: 1 2 4 8 16)")
    bench.add_argument("--repeats", type=int, default=5)
    bench.add_argument("--threads", type=int, help="CPU threads of both sides (default: PyTorch's)")
    bench.add_argument("--device", default="auto")
    bench.add_argument("--dtype", default="auto")
    bench.add_argument("--graph", action="store_true", help="races are run by CUDA graphs as well, both sides")
    bench.add_argument(
        "--peers", action="store_true", help="only: transformers' Mamba-2 with the same weights, on the CPU"
    )
    bench.add_argument(
        "--gpu", action="store_true", help="only: tokens a second at full size, beside the memory's limit"
    )
    bench.add_argument("--json", type=Path, help="write what was measured here")
    bench.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    if options.threads:
        torch.set_num_threads(options.threads)
    for name in ("tokens", "repeats"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} is {getattr(options, name)}; it must be 1 or more.")
    if options.peers:
        told = peers.compare(options.model, options.repeats)
        print(peers_table(told))
        write(options.json, {"peers": told}, mlmamba.backend.choose("cpu", "float32"))
        return
    model = mlmamba.load(options.model, device=options.device, dtype=options.dtype)
    measured: dict[str, Any] = {}

    def keep(name: str, found: Any) -> None:
        """Written as soon as it is known: what comes after it may fail."""
        measured[name] = found
        write(options.json, measured, model.backend)

    if options.gpu:
        if not model.backend.graphs:
            raise UserError("bench --gpu needs a CUDA GPU; without one, bench races on what is here.")
        print(gpu_table(last(gpu.run(model, options.image, options.question, repeats=options.repeats), "gpu", keep)))
        return
    runners = race.pair(model, options.rival, options.connector)
    races = []
    for context in (None, *(options.context or ())):
        for graph in (False, True) if options.graph else (False,):
            messages = race.run(
                [runner.launched(graph) for runner in runners], options.image, options.question,
                tokens=options.tokens, context=context, repeats=options.repeats,
            )  # fmt: skip
            races.append(last(messages, "race"))
            print(race_table(races[-1]))
            keep("race", races[0] | {"picture": Path(options.image).stem})
            keep("races", races)
    ours = [runner for runner in runners if isinstance(runner, OurRunner)]
    if len(ours) == 2:
        messages = scaling.run(
            ours,
            contexts=scaling.CONTEXTS if options.contexts is None else options.contexts,
            batches=scaling.BATCHES if options.batches is None else options.batches,
        )
        print(scaling_table(last(messages, "scaling", keep)))
    print(json.dumps(machine.describe(model.backend) | machine.versions()))


def last(
    messages: Iterable[dict[str, Any]], name: str, keep: Callable[[str, Any], None] = lambda name, found: None
) -> dict[str, Any]:
    """What was found in the end, with a progress bar on the way to it; `keep` is told of all that was found so far."""
    with tqdm(desc=name, leave=False) as bar:
        for message in messages:
            if message["type"] == "progress":
                bar.total, bar.n = message["of"], message["done"]
                bar.set_postfix_str(message["what"])
            else:
                keep(name, message[name])
    return message[name]


def write(path: Path | None, measured: dict[str, Any], backend: mlmamba.backend.Backend) -> None:
    """A recorded run, with its machine, for the page."""
    if path is None:
        return
    import shlex
    import sys

    told = {
        "machine": machine.describe(backend),
        "versions": machine.versions(),
        "made": date.today().isoformat(),
        "command": shlex.join(["python", "-m", "mlmamba", *sys.argv[1:]]),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")  # the page reads this folder, and a half-written run would stop it
    partial.write_text(json.dumps(told | measured, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def race_table(told: dict[str, Any]) -> str:
    """A race in Markdown, with the verdict."""
    one, other = told["runners"]
    rows = []
    for key, name, scale, unit in (
        ("vision_s", "vision and connector", 1e3, "ms"), ("prefill_s", "prefill", 1e3, "ms"),
        ("first_token_s", "time to first token", 1e3, "ms"), ("decode_s", "decode, per token", 1e3, "ms"),
        ("tokens_per_s", "tokens a second", 1, ""),
    ):  # fmt: skip
        both = [side[key] for side in (one, other)]
        if None not in both:
            ratio = f"{both[1]['median'] / both[0]['median']:.2f}"
            rows.append([name, *(spread(values, scale, unit) for values in both), ratio])
    memory = [side["memory"][-1] for side in (one, other)]
    rows.append(["carried after the last token", *map(race.amount, memory), f"{memory[1] / memory[0]:.2f}"])
    what = f"{told['context']:,} tokens of context, {told['tokens']} said, {race.launch(told)}"
    head = what, one["name"], other["name"], "ratio"
    sentences = "\n".join(f"- {sentence}" for sentence in told["verdict"])
    return f"\n{table(head, rows)}\n\n{sentences}\n"


def scaling_table(told: dict[str, Any]) -> str:
    """Growth in Markdown, with where the curves cross."""
    one, other = told["runners"]
    parts = []
    for key, of, columns in (("contexts", "tokens", ("prefill_s", "decode_s")), ("batches", "batch", ("decode_s",))):
        theirs = {point[of]: point for point in other[key]}
        rows = []
        for point in one[key]:
            pairs = [(point, theirs.get(point[of]))]
            cells = [f"{point[of]:,}"]
            for what in columns:
                cells += [spread(p[what], 1e3, "ms") if p else "" for p in pairs[0]]
            rows.append([*cells, *(race.amount(p["memory"]) if p else "" for p in pairs[0])])
        names = {"prefill_s": "prefill", "decode_s": "a token"}
        head = [of, *(f"{names[w]}, {side['name']}" for w in columns for side in (one, other))]
        parts.append(table([*head, *(f"memory, {side['name']}" for side in (one, other))], rows))
    return "\n\n".join([*parts, "\n".join(f"- {found['says']}" for found in told["crossings"])]) + "\n"


def peers_table(told: dict[str, dict[str, Any]]) -> str:
    """Both in Markdown, with ratios."""
    one, other = told[peers.OURS], told[peers.THEIRS]
    rows = [[f"prefill of {one['prefill_tokens']:,} tokens", one["prefill_s"], other["prefill_s"]]]
    rows += [[f"a token, after {int(n):,}", one["decode_s"][n], other["decode_s"][n]] for n in one["decode_s"]]
    cells = [
        [what, spread(a, 1e3, "ms"), spread(b, 1e3, "ms"), f"{b['median'] / a['median']:.2f}"] for what, a, b in rows
    ]
    near, far = (one["decode_s"][str(n)]["median"] for n in peers.CONTEXTS)
    long, short = peers.CONTEXTS[1], peers.CONTEXTS[0]
    growth = f"- A token after {long:,} took {far / near:.2f} times as long as one after {short}."
    return f"\n{table(['same weights, float32', peers.OURS, peers.THEIRS, 'ratio'], cells)}\n\n{growth}\n"


def gpu_table(told: dict[str, Any]) -> str:
    """A row for each side, batch and context, with its share of what the memory bus allows."""
    rows = []
    for row in told["rows"]:
        seconds, per = row["decode_s"], [row["side"], row["batch"], f"{row['context']:,}"]
        if seconds is None:
            rows.append([*per, row["failed"], "", ""])
            continue
        users = digits(row["batch"] / seconds["median"])
        rows.append([*per, spread(seconds, 1e3, "ms"), users, f"{row['limit_s'] / seconds['median']:.2f}"])
    head = "who", "batch", "context", "a token for each", "tokens a second", "of the limit"
    copied = f"A copy reads and writes {told['copy_bytes_s'] / 1e12:.2f} TB/s."
    start = told["start"]
    first, eager = (spread(each, 1e3, "ms") for each in (start["first_token_s"], told["first_eager_s"]))
    profiles = [
        table([f"{told['rows'][0]['side']}: where {what}'s time goes", "time", "times"], [
            [f"`{each['kernel'][:60]}`", f"{digits(each['seconds'] * 1e6)} µs", digits(each["times"])] for each in of
        ])
        for what, of in told["profile"].items()
    ]  # fmt: skip
    warm, request = (f"{digits(start[key])} s" for key in ("warm_up_s", "request_s"))
    begun = f"Ready for {start['seats']} users after {warm}; the first question was answered in {request}"
    held = f", with {race.amount(start['memory'])} of memory at most." if start["memory"] else "."
    told_first = f"First token after {told['n_patches']} patches: {first}; read kernel by kernel: {eager}."
    said = "\n".join(f"- {sentence}" for sentence in (copied, told_first, begun + held))
    return "\n\n".join([f"\n{table(head, rows)}", said, *profiles]) + "\n"


def spread(values: dict[str, float], scale: float, unit: str) -> str:
    """Median and range: "4.21 ms (4.02 to 5.11)"."""
    least, middle, most = (values[key] * scale for key in ("min", "median", "max"))
    return f"{digits(middle)} {unit}".strip() + f" ({digits(least)} to {digits(most)})"


def digits(number: float) -> str:
    """Three of them, or all before the point."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
