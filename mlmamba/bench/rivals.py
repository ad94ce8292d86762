"""Whom ML-Mamba runs against: its trained twin, random weights of the same shape, or a model from the Hub."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import mlmamba
from mlmamba.backend import undisturbed
from mlmamba.bench.runners import Launching, OurRunner, Runner
from mlmamba.config import TransformerConfig
from mlmamba.errors import UserError
from mlmamba.hub import CHECKPOINTS, fetching
from mlmamba.model import MLMamba
from mlmamba.transformer import Transformer

TWIN_OF = "tiny"


def of(model: MLMamba) -> str:
    """The rival to take unless another is asked for: a trained twin where there is one, else one of the same shape."""
    return "twin" if model.config.name == TWIN_OF and (CHECKPOINTS / "twin").is_dir() else "shape"


def find(model: MLMamba, rival: str | None = None) -> Runner:
    """The rival of a model, on its device and in its dtype. Raises UserError where it can't be had."""
    rival = rival or of(model)
    if rival == "twin":
        if model.config.name != TWIN_OF:
            raise UserError(f'Only "{TWIN_OF}" has a trained twin; take the rival "shape", or a Hub id.')
        twin = mlmamba.load("twin", device=model.backend.device.type, dtype=model.backend.dtype)
        return OurRunner(twin, "Transformer twin")
    if rival == "shape":
        return OurRunner(same_shape(model), "Transformer of this shape", trained=False)
    if rival.count("/") == 1 or Path(rival).is_dir():
        return HubRunner(rival, model)
    raise UserError(f'There is no rival "{rival}"; use "twin", "shape", or the Hub id of an image-text-to-text model.')


def same_shape(model: MLMamba) -> MLMamba:
    """A Transformer with random weights on the model's own eyes, with as many parameters as take part in it.

    As in Phi-2, a layer has attention of d_model and an MLP four times as wide: 12 d_model² parameters.
    """
    config = model.config
    d = config.language.d_model
    ours = OurRunner(model, "").parameters
    around = sum(p.numel() for part in (model.connector.mlp, model.connector.projector) for p in part.parameters())
    n_layers = max(1, round((ours - around - config.language.vocab_size * d) / (12 * d * d)))
    heads = max(1, d // (80 if d % 80 == 0 else 32))
    sizes = TransformerConfig("phi", d, n_layers, heads, 4 * d, config.language.vocab_size)
    with torch.device(model.backend.device), undisturbed:  # its weights are drawn
        rival = MLMamba(
            replace(config, name="shape", connector=replace(config.connector, kinds=("mlp",)), language=sizes),
            model.chat_tokenizer.tokenizer,
            model.towers,
            model.backend.dtype,
        )
    return rival.run_on(model.backend)


class HubRunner(Launching):
    """Any image-text-to-text model of `transformers`, with its own processor, cache and attention."""

    kind = "transformer"
    trained = True
    sees_apart = False  # such a model's forward pass takes picture and prompt together

    def __init__(self, name: str, beside: MLMamba):
        from transformers import AutoModelForImageTextToText, AutoProcessor

        with fetching(f"the model {name}"):
            self.processor = AutoProcessor.from_pretrained(name)
            model: Any = AutoModelForImageTextToText.from_pretrained(
                name, dtype=beside.backend.dtype, attn_implementation="sdpa"
            )
        self.backend = beside.backend
        self.model = model.to(self.backend.device).eval()
        self.name = name
        self.kernels = "scaled dot-product attention"
        self.parameters = sum(p.numel() for p in model.parameters())
        self.n_patches = 0  # they are among the prompt's own tokens
        self.question = ""

    def prompt(self, question: str, context: int | None) -> list[int]:
        """Nothing yet: the processor lays picture and question out together. Its context is what it makes of them."""
        if context is not None:
            raise UserError(f"{self.name} lays out its own prompt; leave the context as it is.")
        self.question = question
        return []

    def see(self, image: Image.Image) -> Any:
        turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": self.question}]}
        text = self.processor.apply_chat_template([turn], add_generation_prompt=True)
        return self.processor(images=[image], text=text, return_tensors="pt").to(self.backend.device, self.model.dtype)

    @torch.inference_mode()
    def read(self, sight: Any, prompt: Sequence[int], room: int) -> tuple[int, Any]:
        token, cache = self._choose(self.model(**sight, use_cache=True))
        if not self.graph:
            return token, cache
        self.fixed = self.fixed_cache(self._go_on, self.model.config, cache, room)
        self.fixed.begin(token, cache)
        return token, self.fixed

    @torch.inference_mode()
    def step(self, token: int, state: Any) -> tuple[int, Any]:
        if self.graph:
            return state.step(), state
        ids = torch.tensor([[token]], device=self.backend.device)
        return self._choose(self.model(input_ids=ids, past_key_values=state, use_cache=True))

    def _go_on(self, ids: Tensor, cache: Any) -> Tensor:
        return self.model(input_ids=ids, past_key_values=cache, use_cache=True).logits

    def _choose(self, output: Any) -> tuple[int, Any]:
        return int(output.logits[0, -1].argmax()), output.past_key_values

    def memory(self, state: Any) -> int:
        return state.memory() if self.graph else Transformer.state_bytes(state)

    def text(self, tokens: Sequence[int]) -> list[str]:
        texts = [self.processor.decode(list(tokens[:n]), skip_special_tokens=True) for n in range(len(tokens) + 1)]
        return [longer[len(text) :] for text, longer in pairwise(texts)]

    def ends(self, token: int) -> bool:
        end = self.model.generation_config.eos_token_id
        return token in (end if isinstance(end, list) else [end])
