"""What the connector is worth: MLP, BSM and CSM, with and without SwiGLU, on one budget and one seed.

python -m benchmarks.ablation runs/ablation --data DIR [--steps 500] [--scenes 200] [--short]

Each is trained by the tiny recipe with one connector alone, on the same pictures and questions in the same order, and
asked what `python -m mlmamba evaluate` asks. A run that was stopped goes on. With `--short` the language model is the
tiny model's from the start, and goes on learning: then few steps show what a connector adds to it.
"""

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlmamba
from mlmamba import weights
from mlmamba.training import evaluate, loop, train

VARIANTS: dict[str, dict[str, Any]] = {
    "MLP": {"kinds": ("mlp",)},
    "BSM, no SwiGLU": {"kinds": ("bsm",), "swiglu": False},
    "BSM": {"kinds": ("bsm",)},
    "CSM, no SwiGLU": {"kinds": ("csm",), "swiglu": False},
    "CSM": {"kinds": ("csm",)},
}


SHORT: dict[str, Any] = {"start": "tiny", "learning_rate": 1e-3, "warmup": 30, "branches": 4}


def run(name: str, out: Path, data: Path, steps: int, scenes: int, changed: dict[str, Any]) -> list[dict[str, Any]]:
    """Train one variant and evaluate it; what was done before is read from its folder."""
    told = out / "evaluation.json"
    if not told.exists():
        recipe = loop.recipe_from(train.Recipe, "tiny", steps=steps, **changed)
        shorter = steps / loop.recipe_from(train.Recipe, "tiny").steps
        model = replace(recipe.model, connector=replace(recipe.model.connector, **VARIANTS[name]))
        recipe = replace(recipe, model=model, align_steps=round(recipe.align_steps * shorter))
        train.train(out, data, recipe)
        rows = evaluate.evaluate(mlmamba.load(out), data, scenes)
        told.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return json.loads(told.read_text(encoding="utf-8"))


def as_table(found: dict[str, list[dict[str, Any]]], parameters: dict[str, int]) -> str:
    """Questions down, variants across, in Markdown."""
    lines = [["asked", *found], ["---"] * (len(found) + 1)]
    lines.append(["parameters", *(f"{parameters[name] / 1e6:.2f} M" for name in found)])
    by_row = {name: {row["asked"]: row for row in rows} for name, rows in found.items()}
    for asked in next(iter(by_row.values())):
        kinds = {name: VARIANTS[name]["kinds"][0] for name in found}
        lines.append([asked, *(f"{100 * by_row[name][asked][kinds[name]]:.1f} %" for name in found)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--precision", help="float32 where a processor has no bfloat16 of its own")
    options = parser.parse_args()
    changed = (SHORT if options.short else {}) | {"precision": options.precision}
    found, parameters = {}, {}
    tokenizer: Path | None = None
    for name in VARIANTS:
        folder = options.out / name.lower().replace(", ", "-").replace(" ", "-")
        folder.mkdir(parents=True, exist_ok=True)
        if tokenizer is not None and not (folder / weights.TOKENIZER).exists():
            shutil.copy(tokenizer, folder)  # the same for all, and learning it takes a while
        found[name] = run(name, folder, options.data, options.steps, options.scenes, changed)
        parameters[name] = mlmamba.load(folder, vision=False).n_parameters
        tokenizer = folder / weights.TOKENIZER
    table = as_table(found, parameters)
    print(table)
    told = {
        "steps": options.steps,
        "scenes": options.scenes,
        "changed": changed,
        "parameters": parameters,
        "rows": found,
    }
    (options.out / "ablation.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
