"""The race: one picture, one prompt, one token budget; each side alone on the machine, by turns, after a warm-up."""

import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import mlmamba
from mlmamba.bench.laps import Clock, Lap, Stopped, check, lap, spread
from mlmamba.bench.runners import OurRunner, Runner
from mlmamba.images import ImageSource
from mlmamba.model import MLMamba


def run(
    runners: Sequence[Runner], image: ImageSource, question: str, *, tokens: int = 64, context: int | None = None,
    repeats: int = 5, stop: threading.Event | None = None, clock: Clock = time.perf_counter,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Messages {"type": "progress", …} and at the end {"type": "result", "race": {…}}; once stopped, none any more.

    `context` fills the prompt with earlier turns to that many tokens, patches included; None leaves it as it is.
    Raises UserError for a picture, a question or a context that can't be used.
    """
    mlmamba.chat.check_question(question)
    picture = mlmamba.open_image(image)
    prompts = [runner.prompt(question, context) for runner in runners]
    laps: list[list[Lap]] = [[] for _ in runners]
    of = (repeats + 1) * len(runners)
    try:
        for turn in range(repeats + 1):
            for n, (runner, prompt) in enumerate(zip(runners, prompts, strict=True)):
                what = f"{runner.name}, {f'run {turn} of {repeats}' if turn else 'warm-up'}"
                yield {"type": "progress", "done": turn * len(runners) + n, "of": of, "what": what}
                check(stop)
                run_now = lap(runner, picture, prompt, tokens, stop=stop, clock=clock)
                if turn:
                    laps[n].append(run_now)
    except Stopped:
        return
    sides = [side(runner, found, len(prompt)) for runner, found, prompt in zip(runners, laps, prompts, strict=True)]
    yield {
        "type": "result",
        "race": {
            "question": question,
            "tokens": tokens,
            "context": max(side["context"] for side in sides),
            "repeats": repeats,
            "runners": sides,
            "verdict": verdict(sides),
        },
    }


def side(runner: Runner, laps: Sequence[Lap], n_prompt: int) -> dict[str, Any]:
    """What is told of one runner: spreads over its laps, and the lap of median length for the replay."""
    shown = sorted(laps, key=lambda lap: lap.said[-1])[(len(laps) - 1) // 2]
    ended = next((i for i, token in enumerate(shown.tokens) if runner.ends(token)), None)
    pieces = ["" if runner.ends(token) else None for token in shown.tokens]
    texts = runner.text(shown.tokens)
    return {
        "name": runner.name,
        "kind": runner.kind,
        "parameters": runner.parameters,
        "kernels": runner.kernels,
        "mode": runner.mode,
        "text_shown": runner.trained,
        "context": runner.n_patches + n_prompt,
        "vision_s": None if shown.seen is None else spread(lap.seen or 0.0 for lap in laps),
        "prefill_s": spread(lap.prefill for lap in laps),
        "first_token_s": spread(lap.said[0] for lap in laps),
        "decode_s": spread(lap.decode for lap in laps),
        "tokens_per_s": spread(1 / lap.decode for lap in laps),
        "memory": list(shown.memory),
        "lap": {
            "vision": shown.seen,
            "prefill": shown.said[0],
            "at": [round(t, 6) for t in shown.said],
            "tokens": [text if piece is None else piece for text, piece in zip(texts, pieces, strict=True)]
            if runner.trained
            else [],
            "ended": ended,
        },
    }


def verdict(sides: Sequence[dict[str, Any]]) -> list[str]:
    """What came out, in words, whoever won."""
    one, other = sides
    return [
        compared(one, other, "first_token_s", "{fast} said its first token {times}.", "To their first token both took"),
        compared(one, other, "decode_s", "After that {fast} was {times} per token.", "After that both took"),
        remembered(one, other),
    ]


def compared(one: dict[str, Any], other: dict[str, Any], key: str, sentence: str, alike: str) -> str:
    """A sentence on who was faster; where the spreads overlap, that nobody was."""
    fast, slow = sorted((one, other), key=lambda side: side[key]["median"])
    if fast[key]["max"] >= slow[key]["min"]:
        return f"{alike} about as long: their runs overlap."
    times = f"{slow[key]['median'] / fast[key]['median']:.1f} times faster"
    return sentence.format(fast=fast["name"], times=times)


def remembered(one: dict[str, Any], other: dict[str, Any]) -> str:
    """A sentence on what each carries from token to token."""
    said = []
    for side in (one, other):
        first, last = side["memory"][0], side["memory"][-1]
        grows = (last - first) / max(1, len(side["memory"]) - 1)
        name = side["name"]
        if grows:
            said.append(f"{name} carries {amount(last)} after its last token, and {amount(grows)} more with each")
        else:
            said.append(f"{name} carries {amount(last)} from token to token, however long it talks")
    return "; ".join(said) + "."


def launch(told: dict[str, Any]) -> str:
    """How both sides' kernels were launched: "eager", "graph", or "graph against eager" where one has fallen back."""
    return " against ".join(dict.fromkeys(side["mode"] for side in told["runners"]))


def amount(n_bytes: float) -> str:
    """Bytes in words: 1,536,000 → "1.5 MB"."""
    for unit in ("bytes", "KB", "MB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if n_bytes >= 100 or unit == "bytes" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} GB"


def pair(
    model: MLMamba, rival: str | None = None, connector: str | None = None, *, graph: bool = False
) -> tuple[Runner, Runner]:
    """A model and who runs against it: "twin", "shape" (random weights, for speed alone), a Hub id, or by default
    whom `rivals.of` names. Both decode eager, or both by CUDA graphs.

    Raises UserError where the rival can't be had, or graphs can't.
    """
    from mlmamba.bench import rivals

    ours = OurRunner(model, f"ML-Mamba {model.config.name}", connector)
    return ours.launched(graph), rivals.find(model, rival).launched(graph)
