"""`transformers`' Mamba-2 with the same weights, in a process of its own: python -m mlmamba.bench.peers MODEL OUT

A process of its own, because its module picks other code when mamba-ssm can be imported, and so that neither warms
the other's caches.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import mlmamba
from mlmamba.bench.laps import spread
from mlmamba.errors import UserError
from mlmamba.mamba2 import LanguageModel

PREFILL = 1024  # tokens
CONTEXTS = (256, 4096)  # at which decoding is timed
STEPS, WARMING = 64, 8
OURS, THEIRS = "ML-Mamba", "transformers"
# ours → theirs, within one layer
NAMES = {
    "norm.weight": "norm.weight",
    "in_proj.weight": "mixer.in_proj.weight",
    "scan.conv_weight": "mixer.conv1d.weight",
    "scan.conv_bias": "mixer.conv1d.bias",
    "scan.dt_bias": "mixer.dt_bias",
    "scan.A_log": "mixer.A_log",
    "scan.D": "mixer.D",
    "gated_norm.weight": "mixer.norm.weight",
    "out_proj.weight": "mixer.out_proj.weight",
}


def compare(model: str, repeats: int = 5) -> dict[str, dict[str, Any]]:
    """Times of both, each in a new process with as many threads as this one has."""
    told = {}
    for side in (OURS, THEIRS):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "times.json"
            command = [sys.executable, "-m", __name__ if __name__ != "__main__" else "mlmamba.bench.peers"]
            command += [model, str(out), "--side", side, "--threads", str(torch.get_num_threads())]
            command += ["--repeats", str(repeats)]
            root = str(Path(mlmamba.__file__).resolve().parents[1])
            paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
            done = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True)
            if done.returncode:
                raise UserError(f"The process that times {side} failed: {done.stderr.strip().splitlines()[-1]}")
            told[side] = json.loads(out.read_text(encoding="utf-8"))
    return told


def their_mamba2(ours: LanguageModel) -> Any:
    """`transformers`' Mamba2ForCausalLM with the weights of `ours`."""
    from transformers import Mamba2Config, Mamba2ForCausalLM

    c = ours.config
    theirs = Mamba2ForCausalLM(
        Mamba2Config(
            vocab_size=c.vocab_size, hidden_size=c.d_model, num_hidden_layers=c.n_layers, state_size=c.d_state,
            num_heads=c.n_heads, head_dim=c.head_dim, expand=c.expand, conv_kernel=c.d_conv, n_groups=1,
            layer_norm_epsilon=c.norm_eps, tie_word_embeddings=True, use_bias=False, use_conv_bias=True,
            residual_in_fp32=True, chunk_size=64,  # on CPUs faster than its default of 256
        )
    )  # fmt: skip
    state = {
        "backbone.embeddings.weight": ours.embedding.weight,
        "lm_head.weight": ours.embedding.weight,
        "backbone.norm_f.weight": ours.norm_f.weight,
    }
    for i, layer in enumerate(ours.layers):
        for name, tensor in layer.state_dict().items():
            # theirs keeps a channel's filter as (1, width)
            state[f"backbone.layers.{i}.{NAMES[name]}"] = tensor[:, None] if name == "scan.conv_weight" else tensor
    theirs.load_state_dict(state, strict=True)
    return theirs.eval()


@torch.inference_mode()
def times(side: str, model: str, repeats: int) -> dict[str, Any]:
    """Seconds of a prefill, and of a decoded token after each of CONTEXTS."""
    ours = mlmamba.load(model, device="cpu", dtype="float32", vision=False).language_model
    if not isinstance(ours, LanguageModel):
        raise UserError(f'"{model}" is no Mamba-2; compare one that is.')
    theirs = their_mamba2(ours) if side == THEIRS else None

    def read(ids: torch.Tensor) -> Any:
        if theirs is None:
            return ours(ours.embed(ids), last_only=True).state
        return theirs(ids, use_cache=True, logits_to_keep=1).cache_params

    go_on = ours.stepper()

    def step(ids: torch.Tensor, state: Any) -> None:
        if theirs is None:
            go_on(ids, state)
        else:
            theirs(ids, cache_params=state, use_cache=True)  # writes over its cache too

    def some(n: int) -> torch.Tensor:
        return torch.randint(ours.config.vocab_size, (1, n), generator=torch.Generator().manual_seed(0))

    reads = []
    for turn in range(repeats + 1):
        start = time.perf_counter()
        read(some(PREFILL))
        if turn:
            reads.append(time.perf_counter() - start)
    states = {context: read(some(context)) for context in CONTEXTS}
    decoded: dict[int, list[float]] = {context: [] for context in CONTEXTS}
    for turn in range(WARMING + STEPS):
        for context, state in states.items():  # in turns, so that a machine's moods meet all alike
            start = time.perf_counter()
            step(some(1), state)
            if turn >= WARMING:
                decoded[context].append(time.perf_counter() - start)
    steps = {str(context): spread(seconds) for context, seconds in decoded.items()}
    return {"prefill_s": spread(reads), "decode_s": steps, "prefill_tokens": PREFILL}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--side", choices=(OURS, THEIRS), required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.write_text(json.dumps(times(options.side, options.model, options.repeats)), encoding="utf-8")


if __name__ == "__main__":
    main()
