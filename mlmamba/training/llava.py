"""Train on conversations in LLaVA's form: the paper's recipe, one stage for connector and language model.

    [{"id": "1", "image": "coco/1.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"},
                                                           {"from": "gpt", "value": "A street."}]}]

A sample without "image" is text alone. The loss is on the answers, each with its <|endoftext|>. A sequence is the
picture's patches, then the text; shorter ones are padded at their right end, which a causal model never looks at from
within, and which gives no loss.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

import mlmamba
from mlmamba import hub, weights
from mlmamba.chat import ChatTokenizer
from mlmamba.config import ConnectorConfig, MLMambaConfig, VisionConfig
from mlmamba.connector import Connector
from mlmamba.errors import UserError
from mlmamba.images import open_image
from mlmamba.model import MLMamba
from mlmamba.training import loop
from mlmamba.training.batches import NONE
from mlmamba.training.loop import Figures, mean_loss
from mlmamba.vision import Vision


@dataclass(frozen=True, kw_only=True)
class Recipe(loop.Recipe):
    """How to train on conversations; `configs/3b.yaml` says what each number is."""

    model: str
    vision: dict[str, Any] | None
    connector: dict[str, Any] | None
    samples: tuple[str, ...]
    max_tokens: int
    epochs: float
    warmup: float

    def rate(self, step: int) -> float:
        """Learning rate at a step: a rise, then a half cosine to zero."""
        rising = self.warmup * self.steps
        if step < rising:
            return self.learning_rate * (step + 1) / (rising + 1)
        through = (step - rising) / max(1.0, self.steps - rising)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * through))


@dataclass(frozen=True)
class Sample:
    """One conversation, and the picture that it is about if there is one."""

    id: str
    image: Path | None
    turns: tuple[tuple[str, str], ...]  # (question, answer)


def read_samples(file: Path, folder: Path) -> list[Sample]:
    """The samples of a JSON file in LLaVA's form; pictures' paths are relative to `folder`."""
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"There is no file {file}; put it there, or name others under `samples` in a config."
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"{file} can't be read as JSON ({error}); fetch it again.") from error
    if not isinstance(told, list):
        raise UserError(f"{file} holds no list; write it in LLaVA's form (docs/training.md shows it).")
    samples = []
    for number, entry in enumerate(told):
        try:
            image = entry.get("image")
            samples.append(Sample(str(entry.get("id", number)), folder / image if image else None, _turns(entry)))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"Sample {number} of {file} is not in LLaVA's form ({error!r}); mend it, or take it out."
            ) from error
    return samples


def _turns(entry: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """(question, answer) of each turn. An answer before the first question is dropped, a question at the end too."""
    told = [(part["from"], part["value"]) for part in entry["conversations"]]
    if told and told[0][0] == "gpt":
        told = told[1:]
    turns = tuple(zip(told[::2], told[1::2], strict=False))
    for question, answer in turns:
        if (question[0], answer[0]) != ("human", "gpt") or not all(
            isinstance(text, str) for _, text in (question, answer)
        ):
            raise ValueError('turns must be text, from "human" and "gpt" by turns')
    if not turns:
        raise ValueError("there is no answer in it")
    return tuple((question, answer) for (_, question), (_, answer) in turns)


def encode(chat: ChatTokenizer, turns: tuple[tuple[str, str], ...]) -> tuple[list[int], list[int]]:
    """A conversation → ids, and the next id wherever it belongs to an answer (NONE elsewhere), of the same length."""
    ids: list[int] = []
    targets: list[int] = []
    for number, (question, answer) in enumerate(turns):
        prompt, reply = chat.prompt(question, number == 0), chat.reply(answer)
        ids += prompt + reply
        targets += [NONE] * (len(prompt) - 1) + reply + [NONE]
    return ids, targets


@dataclass
class Batch:
    """Some samples. pixels: (n_pictures, 3, s, s), of at least one picture: a blank one where no sample has any.

    ids, targets: per sample (t,). pictures: per sample, which of the pixels is its picture, None for text alone.
    left_out: samples whose picture couldn't be opened. cut: samples longer than allowed.
    """

    pixels: Tensor
    ids: list[Tensor]
    targets: list[Tensor]
    pictures: list[int | None]
    left_out: list[str]
    cut: list[str]


class Conversations(Dataset[Batch]):
    """`conversations[i]`: the i-th `size` samples in an order that the seed gives, shuffled anew in each epoch."""

    def __init__(
        self, samples: list[Sample], chat: ChatTokenizer, prepare: Callable[[Image.Image], Tensor], image_size: int,
        *, size: int, max_tokens: int, seed: int,
    ):  # fmt: skip
        self.samples, self.chat, self.prepare, self.image_size = samples, chat, prepare, image_size
        self.size, self.max_tokens, self.seed = size, max_tokens, seed

    def __getitem__(self, index: int) -> Batch:
        blank = torch.zeros(3, self.image_size, self.image_size)
        pixels: list[Tensor] = []
        batch = Batch(blank, [], [], [], [], [])
        for place in range(index * self.size, (index + 1) * self.size):
            epoch, within = divmod(place, len(self.samples))
            sample = self.samples[shuffled(len(self.samples), self.seed, epoch)[within]]
            if sample.image is not None:
                try:
                    pixels.append(self.prepare(open_image(sample.image)))
                except UserError as error:
                    batch.left_out.append(f"{sample.id}: {error}")
                    continue
            ids, targets = encode(self.chat, sample.turns)
            if len(ids) > self.max_tokens:
                batch.cut.append(sample.id)
            batch.ids.append(torch.tensor(ids[: self.max_tokens]))
            batch.targets.append(torch.tensor(targets[: self.max_tokens]))
            batch.pictures.append(None if sample.image is None else len(pixels) - 1)
        if not batch.ids:  # all were left out: one word without a loss, for the sake of the other processes
            batch.ids, batch.targets, batch.pictures = [torch.tensor([0])], [torch.tensor([NONE])], [None]
        batch.pixels = torch.stack(pixels or [blank])
        return batch


@lru_cache(maxsize=2)  # a batch may lie in two epochs
def shuffled(n: int, seed: int, epoch: int) -> list[int]:
    """The order of n samples in an epoch."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch)).tolist()


@dataclass
class Seen:
    """A batch with what the towers see: patches (n_pictures, n_patches, d_features)."""

    patches: Tensor
    batch: Batch


class Answers(loop.Objective):
    """Cross entropy on the words of answers."""

    def __init__(self, model: MLMamba, device: torch.device):
        super().__init__(model)
        self.device = device

    def see(self, batch: Batch) -> Seen:
        patches = self.model.towers(batch.pixels.to(self.device))
        ids, targets = ([t.to(self.device) for t in tensors] for tensors in (batch.ids, batch.targets))
        return Seen(patches, replace(batch, ids=ids, targets=targets))

    def weight(self, seen: Seen) -> float:
        return sum(int((targets != NONE).sum()) for targets in seen.batch.targets)

    def forward(self, seen: Seen, kind: str, step: int) -> tuple[Tensor, Figures]:
        model, batch = self.model, seen.batch
        features = model.connector(seen.patches, model.grid, kind).features  # (n_pictures, n_patches, d_model)
        n_patches = features.shape[1]
        sequences, wanted = [], []
        for ids, targets, picture in zip(batch.ids, batch.targets, batch.pictures, strict=True):
            text = model.language_model.embed(ids)  # (t, d_model)
            sequences.append(text if picture is None else torch.cat([features[picture], text]))
            wanted.append(F.pad(targets, (0 if picture is None else n_patches, 0), value=NONE))
        embeds = pad_sequence(sequences, batch_first=True)  # (b, l, d_model)
        targets = pad_sequence(wanted, batch_first=True, padding_value=NONE)  # (b, l)
        hidden = model.language_model(embeds, last_only=True).hidden
        asked = targets != NONE
        loss = mean_loss(model.language_model.head(hidden[asked]), targets[asked])
        # a sharded model needs a gradient for the connector from every process, from those without a picture too
        return loss + 0 * features.sum(), {"left_out": batch.left_out, "cut": batch.cut}


def start_from(recipe: Recipe) -> MLMamba:
    """The model with its first weights, in float32 on the CPU, its connector new where the recipe says so.

    A Mamba-2 that has no eyes yet, such as `state-spaces/mamba2-2.7b`, gets the published towers and a new connector.
    """
    blind = hub.find_mamba2(recipe.model)
    if blind is not None:
        return with_eyes(blind, recipe)
    model = mlmamba.load(recipe.model, device="cpu", dtype="float32")
    if recipe.vision is not None:
        raise UserError(f'"{recipe.model}" has eyes of its own; set `vision` to null in the config.')
    if recipe.connector is not None:
        model.config = replace(model.config, connector=changed(model.config.connector, recipe.connector, "connector"))
        loop.check_sizes(model.config, model.towers.d_features)
        torch.manual_seed(recipe.seed)
        model.connector = Connector(model.config.connector)
    model.train().requires_grad_(True)
    return model


def with_eyes(blind: Path, recipe: Recipe) -> MLMamba:
    """A language model from `blind` behind frozen vision towers and a new connector."""
    language, tensors = weights.read_mamba2(blind)
    vision = Vision(changed(VisionConfig(), recipe.vision, "vision"))
    connector = changed(ConnectorConfig(vision.d_features, language.d_model), recipe.connector, "connector")
    words = min(weights.NEOX_WORDS, language.vocab_size)
    config = MLMambaConfig(Path(recipe.model).name, connector, language, vision.config, vocab_words=words)
    loop.check_sizes(config, vision.d_features)
    tokenizer = Tokenizer.from_file(str(hub.tokenizer_file(blind)))
    torch.manual_seed(recipe.seed)
    model = MLMamba(config, tokenizer, vision)
    model.language_model.load_state_dict(tensors, strict=True)
    return model


Sizes = TypeVar("Sizes", VisionConfig, ConnectorConfig)


def changed(sizes: Sizes, told: dict[str, Any] | None, section: str) -> Sizes:
    """Sizes with those of a section of the config in place of their own."""
    # YAML has no tuples
    new: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in (told or {}).items()
    }
    try:
        return replace(sizes, **new)
    except TypeError as error:
        raise UserError(f"`{section}` in the config names a size that there is not: {error}.") from error


def train(out: Path, data: Path, recipe: Recipe, *, device: str = "auto") -> None:
    """Train into the folder `out`, going on from its checkpoint where there is one; `data` holds JSON and pictures."""
    accelerator = loop.accelerator_for(recipe, device)
    samples = [sample for name in recipe.samples for sample in read_samples(data / name, data)]
    if not samples:
        raise UserError("There are no samples to train on; name files that hold some under `samples` in the config.")
    pictures = [sample.image for sample in samples if sample.image is not None][:100]
    if pictures and not any(picture.is_file() for picture in pictures):  # one by one, they would all be left out
        raise UserError(f"None of the first {len(pictures)} pictures is there ({pictures[0]}, …); check --data {data}.")
    if not recipe.steps:
        recipe = replace(recipe, steps=math.ceil(len(samples) * recipe.epochs / recipe.batch))
    model = start_from(recipe)
    vision, tokenizer = model.towers, model.chat_tokenizer
    vision.to(accelerator.device, torch.bfloat16 if recipe.precision == "bfloat16" else torch.float32)
    batches = Conversations(
        samples, tokenizer, vision.prepare, vision.image_size,
        size=recipe.micro_batch, max_tokens=recipe.max_tokens, seed=recipe.seed,
    )  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    if accelerator.is_main_process:
        tokenizer.tokenizer.save(str(out / weights.TOKENIZER))
    loop.train(Answers(model, accelerator.device), batches, recipe, out, accelerator)
