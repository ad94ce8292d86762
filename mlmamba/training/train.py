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
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from mlmamba import backend, weights
from mlmamba.config import ConnectorConfig, LanguageConfig, MLMambaConfig, VisionConfig
from mlmamba.errors import UserError
from mlmamba.mamba2 import LayerState, Mamba2Layer, SelectiveScan, State
from mlmamba.model import MLMamba
from mlmamba.training.batches import NONE, TYPES, Batch, Batches, Branches
from mlmamba.training.scenes import Sources
from mlmamba.training.things import OF_WNID
from mlmamba.training.tokenizer import corpus, first_ids
from mlmamba.training.tokenizer import train as train_tokenizer
from mlmamba.vision import EfficientNetLite0, Vision

TINY = MLMambaConfig(
    name="tiny",
    vision=VisionConfig(("efficientnet-lite0",), 320),
    connector=ConnectorConfig(
        d_features=1448, d_model=256, kinds=("bsm", "csm"), n_layers=2, d_state=64, d_projector=1024
    ),
    language=LanguageConfig(d_model=256, n_layers=4, vocab_size=4096, d_state=64),
    vocab_words=4096,
)


@dataclass(frozen=True)
class Recipe:
    """How to train. A step is one batch of pictures for each connector in turn."""

    steps: int = 1300
    align_steps: int = 400
    pictures: int = 16
    branches: int = 5
    max_tokens: int = 48
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup: int = 100
    decay: float = 0.46  # the last part of the steps, in which the learning rate falls to zero
    align: float = 0.5  # weight of the loss on the words of patches
    first: float = 2.0  # extra weight of the first word of an answer: most often it decides
    early: float = 0.5  # weight of the loss on answers foreseen within the question
    sure: float = 0.6  # from this probability on the encoder's own class names a patch of a photo
    clip: float = 1.0
    seed: int = 0

    def rate(self, step: int) -> float:
        """Learning rate at a step: a short rise, a plain, a fall to zero."""
        rise, fall = (step + 1) / self.warmup, (self.steps - step) / max(1, self.steps * self.decay)
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


Scores = dict[str, tuple[int, int]]  # what was asked → right, of how many


def mean_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy per target; 0 without any, as a small batch may have no yes-or-no question."""
    return F.cross_entropy(logits, targets, reduction="sum") / max(1, len(targets))


def align_loss(model: MLMamba, features: Tensor, words: Tensor) -> tuple[Tensor, Scores]:
    """Loss on the words of patches, from features (b, n_patches, d_model) and words (b, n_patches)."""
    shown = words != NONE
    logits = model.language_model.head(features[shown])
    right = (logits.argmax(-1) == words[shown]).sum()
    return mean_loss(logits, words[shown]), {"patch": (int(right), int(shown.sum()))}


def answer_losses(model: MLMamba, features: Tensor, talk: Branches) -> tuple[dict[str, Tensor], Scores]:
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
    scores = {name: (int(right[first == i].sum()), int((first == i).sum())) for i, name in enumerate(TYPES)}
    return losses, scores


def train(
    out: Path, data: Path, recipe: Recipe | None = None, *, device: str = "auto", workers: int = 1,
    config: MLMambaConfig = TINY, save_every: int = 100,
) -> None:  # fmt: skip
    """Train into the folder `out`, going on from its checkpoint where there is one.

    Writes `tokenizer.json`, `training.pt` (to go on from) and `log.jsonl`, at the end `config.json` and
    `model.safetensors`.
    """
    recipe = recipe or Recipe()
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(out / weights.TOKENIZER, data)
    torch.manual_seed(recipe.seed)
    where = backend.choose(device, "float32")
    vision = Vision(config.vision)
    model = MLMamba(config, tokenizer, vision)
    initialise(model)
    model.to(where.device)
    vision.to(where.device, torch.bfloat16)
    model.backend = where
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": rest, "weight_decay": 0.0}],
        lr=recipe.learning_rate, betas=(0.9, 0.95),
    )  # fmt: skip
    start = _resume(out / "training.pt", model, optimiser, recipe)
    batches = Batches(
        Sources(data), tokenizer, size=recipe.pictures, branches=recipe.branches, max_tokens=recipe.max_tokens,
        sets=len(config.connector.kinds), image_size=config.vision.image_size, seed=recipe.seed,
    )  # fmt: skip
    loader = DataLoader(
        batches, batch_size=None, sampler=range(start, recipe.steps), num_workers=workers,
        prefetch_factor=4 if workers else None,
    )  # fmt: skip
    teacher = Teacher(tokenizer, recipe.sure)
    with (out / "log.jsonl").open("a", encoding="utf-8") as log:
        bar = tqdm(loader, initial=start, total=recipe.steps, unit="step", mininterval=5)
        for step, batch in enumerate(bar, start):
            row = _step(model, optimiser, teacher, batch, recipe, step)
            print(json.dumps(row), file=log, flush=True)
            bar.set_postfix({key: row[key] for key in ("answer", "align") if key in row})
            if (step + 1) % save_every == 0 or step + 1 == recipe.steps:
                _save(out / "training.pt", model, optimiser, recipe, step + 1)
    weights.save(config, model.state_dict(), out)


def _tokenizer(path: Path, data: Path) -> Tokenizer:
    """The run's tokenizer, trained at its first start on generated questions and the captions at hand."""
    if not path.exists():
        captions = data / "coco-captions-val2017.json"
        extra = json.loads(captions.read_text(encoding="utf-8")) if captions.exists() else []
        train_tokenizer(path, corpus(random.Random(0), captions=extra))
    return Tokenizer.from_file(str(path))


def _step(
    model: MLMamba,
    optimiser: torch.optim.Optimizer,
    teacher: Teacher,
    batch: Batch,
    recipe: Recipe,
    step: int,
) -> dict[str, float]:
    """One optimiser step a connector, all on the same pictures; returns the row for the log."""
    begun = time.perf_counter()
    device = model.backend.device
    for group in optimiser.param_groups:
        group["lr"] = recipe.rate(step)
    amp = torch.autocast(device.type, torch.bfloat16)
    with torch.no_grad():
        parts = [_encode(model, pixels) for pixels in batch.pixels.split(8)]  # small parts stay in a CPU's cache
        patches, classes = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    words = teacher.name(classes.float(), batch.words.to(device), batch.photographic.to(device))
    row: dict[str, float] = {"step": step, "rate": round(recipe.rate(step), 7)}
    total: dict[str, list[int]] = {}
    for kind, talk in zip(model.config.connector.kinds, batch.talks, strict=True):
        with amp:
            features = model.connector(patches, model.grid, kind).features
            loss, scores = align_loss(model, features, words)
            row["align"] = round(loss.item(), 4)
            if step >= recipe.align_steps:
                talk = Branches(*(t.to(device) for t in (talk.ids, talk.targets, talk.first, talk.early)))
                told, answer_scores = answer_losses(model, features, talk)
                loss = (
                    recipe.align * loss + told["answer"] + recipe.first * told["first"] + recipe.early * told["early"]
                )
                row |= {name: round(value.item(), 4) for name, value in told.items()}
                scores |= answer_scores
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        row["norm"] = round(torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip).item(), 3)
        optimiser.step()
        for name, (right, of) in scores.items():
            so_far = total.setdefault(name, [0, 0])
            so_far[0], so_far[1] = so_far[0] + right, so_far[1] + of
    row |= {f"{name}_right": right / of for name, (right, of) in total.items() if of}
    row["questions"] = sum(of for name, (_, of) in total.items() if name != "patch")
    row["seconds"] = round(time.perf_counter() - begun, 3)
    return row


def _encode(model: MLMamba, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """uint8 pixels (b, 3, s, s) → features (b, n_patches, d_features), class logits (b, n_patches, 1000)."""
    tower = model.towers.towers[0]
    assert isinstance(tower, EfficientNetLite0)  # the one tower with a head of its own
    return tower.features_and_classes(pixels.to(model.backend.device).float() / 255)


def _save(path: Path, model: MLMamba, optimiser: torch.optim.Optimizer, recipe: Recipe, step: int) -> None:
    partial = path.with_suffix(".partial")
    torch.save(
        {
            "step": step,
            "recipe": asdict(recipe),
            "model": model.state_dict(),
            "optimiser": optimiser.state_dict(),
        },
        partial,
    )
    partial.replace(path)  # a run killed while it saves keeps the checkpoint before


def _resume(path: Path, model: MLMamba, optimiser: torch.optim.Optimizer, recipe: Recipe) -> int:
    if not path.exists():
        return 0
    saved = torch.load(path, map_location=model.backend.device, weights_only=True)
    if replace(Recipe(**saved["recipe"]), steps=recipe.steps) != recipe:
        raise UserError(f"{path} was begun with another recipe; give the same one, or another folder.")
    model.load_state_dict(saved["model"])
    optimiser.load_state_dict(saved["optimiser"])
    return int(saved["step"])
