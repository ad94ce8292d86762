"""Train the tiny model: first that a patch tells its word, then also that answers come true.

The losses. `align`: cross entropy on the word of what a patch shows, read from the projector's output through the
tied embedding; without it, names don't bind to patches. `answer`: the same on the words of answers, with `first` on
their first word once more. `early`: within a yes-or-no question, on the answer that is to come. The first
`align_steps` have `align` alone and are cheap.
Connectors take turns on the same pictures; the vision tower stays frozen.
"""

import json
import math
import random
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from mlmamba import weights
from mlmamba.config import MLMambaConfig
from mlmamba.mamba2 import LayerState, Mamba2Layer, SelectiveScan, State
from mlmamba.model import MLMamba
from mlmamba.training import loop
from mlmamba.training.batches import NONE, TYPES, Batch, Batches, Branches
from mlmamba.training.loop import Figures, mean_loss
from mlmamba.training.scenes import Sources
from mlmamba.training.things import OF_WNID
from mlmamba.training.tokenizer import corpus, first_ids
from mlmamba.training.tokenizer import train as train_tokenizer
from mlmamba.vision import EfficientNetLite0, Vision


@dataclass(frozen=True, kw_only=True)
class Recipe(loop.Recipe):
    """How to train on scenes; `configs/tiny.yaml` says what each number is."""

    model: MLMambaConfig
    align_steps: int
    branches: int
    max_tokens: int
    warmup: int
    decay: float
    align: float
    first: float
    early: float
    sure: float

    def rate(self, step: int) -> float:
        """Learning rate at a step: a short rise, a plain, a fall to zero."""
        rise, fall = (step + 1) / max(1, self.warmup), (self.steps - step) / max(1, self.steps * self.decay)
        return self.learning_rate * max(0.0, min(1.0, rise, fall))


def initialise(model: MLMamba) -> None:
    """Starting weights that make a look-up by content easy to find.

    A reader that asks with C for what B wrote finds it at once when C starts as B, and the gate tells whether what
    was read is what was asked for when z starts as x. Some heads must remember all the patches until the question
    has come, so A starts slower than Mamba-2's default.
    """
    nn.init.normal_(model.language_model.embedding.weight, std=model.config.language.d_model**-0.5)
    # patches find their words about twice as fast when signals keep their size through the connector
    connector = model.connector
    for linear in [m for part in (connector.mlp, connector.projector) for m in part if isinstance(m, nn.Linear)]:
        nn.init.normal_(linear.weight, std=(2 / linear.in_features) ** 0.5)
        nn.init.zeros_(linear.bias)
    for name, weight in connector.named_parameters():
        if name.endswith(("out_proj.weight", "w3.weight")):
            weight.data *= 0.5
    scans = [m for m in model.modules() if isinstance(m, SelectiveScan)]
    for scan in scans:
        nn.init.uniform_(scan.A_log, math.log(0.1), math.log(4.0))
    n, d = model.config.language.d_state, model.config.language.d_inner
    for layer in model.language_model.layers:
        assert isinstance(layer, Mamba2Layer)
        with torch.no_grad():
            layer.in_proj.weight[:d] = layer.in_proj.weight[d : 2 * d]
            layer.in_proj.weight[2 * d + n : 2 * d + 2 * n] = layer.in_proj.weight[2 * d : 2 * d + n]
            # a word is matched by itself, not by its neighbours: B and C start close to the current token's
            layer.scan.conv_weight[d:] *= 0.2
            layer.scan.conv_weight[d:, -1] = 1.0
            layer.scan.conv_weight[d + n :] = layer.scan.conv_weight[d : d + n]


class Teacher:
    """The encoder's own ImageNet head, applied at every patch, naming patches of photos where it is sure."""

    def __init__(self, tokenizer: Tokenizer, sure: float):
        ids = first_ids(tokenizer)
        words = [ids[OF_WNID[wnid]] for wnid in sorted(OF_WNID)]  # ImageNet's classes in the order of their wnids
        self.word_ids, of_class = torch.tensor(words).unique(return_inverse=True)
        self.to_words = F.one_hot(of_class).float()  # (1000, n_words)
        self.sure = sure

    def name(self, class_logits: Tensor, words: Tensor, photographic: Tensor) -> Tensor:
        """Fill NONE in `words` (b, n_patches) from class_logits (b, n_patches, 1000) where a photo is shown."""
        share, word = (class_logits.softmax(-1) @ self.to_words.to(class_logits.device)).max(-1)
        named = (words == NONE) & photographic[:, None] & (share > self.sure)
        return torch.where(named, self.word_ids.to(words.device)[word], words)


def branch(state: State, k: int) -> State:
    """The state after each picture, k times: (b, …) → (b * k, …)."""
    return tuple(LayerState(s.conv.repeat_interleave(k, 0), s.ssm.repeat_interleave(k, 0)) for s in state)


def align_loss(model: MLMamba, features: Tensor, words: Tensor) -> tuple[Tensor, Figures]:
    """Loss on the words of patches, from features (b, n_patches, d_model) and words (b, n_patches)."""
    shown = words != NONE
    logits = model.language_model.head(features[shown])
    right = (logits.argmax(-1) == words[shown]).sum()
    return mean_loss(logits, words[shown]), {"patch_right": (int(right), int(shown.sum()))}


def answer_losses(model: MLMamba, features: Tensor, talk: Branches) -> tuple[dict[str, Tensor], Figures]:
    """Losses on answers, their first words, and answers foreseen; per type, how many first words are right."""
    lm = model.language_model
    state = lm(features, last_only=True).state
    k = talk.ids.shape[0] // features.shape[0]
    hidden = lm(lm.embed(talk.ids), branch(state, k), last_only=True).hidden
    asked, foreseen = talk.targets != NONE, talk.early != NONE
    logits, targets, first = lm.head(hidden[asked]), talk.targets[asked], talk.first[asked]
    losses = {
        "answer": mean_loss(logits, targets),
        "first": mean_loss(logits[first >= 0], targets[first >= 0]),
        "early": mean_loss(lm.head(hidden[foreseen]), talk.early[foreseen]),
    }
    right = logits.argmax(-1) == targets
    figures: Figures = {
        f"{name}_right": (int(right[first == i].sum()), int((first == i).sum())) for i, name in enumerate(TYPES)
    }
    return losses, figures


@dataclass
class Seen:
    """A batch as the connectors meet it: patches (b, n_patches, d_features), words (b, n_patches), talks by kind."""

    patches: Tensor
    words: Tensor
    talks: dict[str, Branches]


class Scenes(loop.Objective):
    """The losses of one batch of scenes."""

    def __init__(self, model: MLMamba, teacher: Teacher, recipe: Recipe, device: torch.device):
        super().__init__(model)
        self.teacher, self.recipe, self.device = teacher, recipe, device

    def see(self, batch: Batch) -> Seen:
        tower = self.model.towers.towers[0]
        assert isinstance(tower, EfficientNetLite0)  # the one tower with a head of its own
        # small parts stay in a CPU's cache
        parts = [tower.features_and_classes(part.to(self.device).float() / 255) for part in batch.pixels.split(8)]
        patches, classes = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        words = self.teacher.name(classes.float(), batch.words.to(self.device), batch.photographic.to(self.device))
        talks = [
            Branches(*(t.to(self.device) for t in (talk.ids, talk.targets, talk.first, talk.early)))
            for talk in batch.talks
        ]
        return Seen(patches, words, dict(zip(self.model.config.connector.kinds, talks, strict=True)))

    def forward(self, seen: Seen, kind: str, step: int) -> tuple[Tensor, Figures]:
        features = self.model.connector(seen.patches, self.model.grid, kind).features
        loss, figures = align_loss(self.model, features, seen.words)
        told = {"align": loss}
        if step >= self.recipe.align_steps:
            answers, answer_figures = answer_losses(self.model, features, seen.talks[kind])
            told |= answers
            loss = (
                self.recipe.align * loss
                + told["answer"]
                + self.recipe.first * told["first"]
                + self.recipe.early * told["early"]
            )
            figures |= answer_figures
        return loss, figures | {name: (value.item(), 1) for name, value in told.items()}


def train(out: Path, data: Path, recipe: Recipe, *, device: str = "auto") -> None:
    """Train into the folder `out`, going on from its checkpoint where there is one; pictures are in `data`."""
    accelerator = loop.accelerator_for(recipe, device)
    out.mkdir(parents=True, exist_ok=True)
    with accelerator.main_process_first():
        tokenizer = _tokenizer(out / weights.TOKENIZER, data)
    config = recipe.model
    torch.manual_seed(recipe.seed)
    vision = Vision(config.vision)
    loop.check_sizes(config, vision.d_features)
    model = MLMamba(config, tokenizer, vision)
    initialise(model)
    vision.to(accelerator.device, torch.bfloat16)
    batches = Batches(
        Sources(data), tokenizer, size=recipe.micro_batch, branches=recipe.branches, max_tokens=recipe.max_tokens,
        sets=len(config.connector.kinds), image_size=config.vision.image_size, seed=recipe.seed,
    )  # fmt: skip
    scenes = Scenes(model, Teacher(tokenizer, recipe.sure), recipe, accelerator.device)
    loop.train(scenes, batches, recipe, out, accelerator)


def _tokenizer(path: Path, data: Path) -> Tokenizer:
    """The run's tokenizer, trained at its first start on generated questions and the captions at hand."""
    if not path.exists():
        captions = data / "coco-captions-val2017.json"
        extra = json.loads(captions.read_text(encoding="utf-8")) if captions.exists() else []
        train_tokenizer(path, corpus(random.Random(0), captions=extra))
    return Tokenizer.from_file(str(path))
