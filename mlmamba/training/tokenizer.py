"""A small byte-level BPE whose vocabulary has a token for nearly every kind's word."""

import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from mlmamba.training.questions import ask
from mlmamba.training.scenes import SHAPES, Box, Scene, Style, Thing
from mlmamba.training.things import COLOURS, KINDS, unsure

END_OF_TEXT = "<|endoftext|>"  # id 0
SPECIALS = (END_OF_TEXT, "<|user|>\n", "\n<|user|>\n", "\n<|assistant|>\n")  # ids 0, 1, 2, 3


def layout(rng: random.Random) -> Scene:
    """A scene without a picture; every kind as often as any other."""
    style: Style = rng.choices(("drawing", "photo", "collage", "shapes"), (45, 25, 20, 10))[0]
    n = 1 if style == "photo" else rng.randint(1, 4)
    kinds = rng.choices(SHAPES if style == "shapes" else list(KINDS), k=n)
    if rng.random() < 0.4:
        kinds += kinds[:1] * rng.randint(1, 2)
    source: Literal["drawing", "photo"] = "photo" if style in ("photo", "collage") else "drawing"
    things = []
    for kind in kinds:
        x, y, w = rng.uniform(0, 0.75), rng.uniform(0, 0.75), rng.uniform(0.1, 0.25)
        box: Box = (x, y, x + w, y + w)
        colour = rng.choice(COLOURS) if source == "drawing" and rng.random() < 0.7 else None
        things.append(Thing(kind, box, w * w * 0.7, colour, source))
    present = {k for kind in kinds for k in (kind, *KINDS[kind].also)}
    avoid = {k for kind in present for k in unsure(kind)} - present
    background = rng.choice((None, *COLOURS)) if source == "drawing" else None
    return Scene(tuple(things), style, background, tuple(sorted(avoid)))


def corpus(rng: random.Random, n: int = 300_000, captions: Iterable[str] = ()) -> Iterator[str]:
    """About `n` questions with their answers over random layouts, the kinds' words, and captions."""
    made = 0
    while made < n:
        for qa in ask(layout(rng), rng, 8):
            made += 1
            yield f"{qa.question}\n{qa.answer}"
    for kind in KINDS.values():
        for word in {
            *kind.name.split(),
            *kind.plural.split(),
            *(w for s in kind.synonyms for w in s.split()),
        }:
            yield f" {word}" * 200
    yield from captions


def train(out: Path, corpus: Iterable[str], vocab_size: int = 4096) -> Tokenizer:
    """Learn the merges from `corpus` and write them to `out` in the format of `tokenizers`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    out.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out))
    return tokenizer


def first_id(tokenizer: Tokenizer, word: str) -> int:
    """Id of a word's first token as it comes after "a": " dog", " remote" of "remote control"."""
    return tokenizer.encode(f" {word}", add_special_tokens=False).ids[0]


def first_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Kind -> id of the first token of its name."""
    return {kind: first_id(tokenizer, kind) for kind in KINDS}


def collisions(tokenizer: Tokenizer) -> dict[str, list[str]]:
    """First token -> the kinds that share it, where they are several."""
    shared: dict[str, list[str]] = {}
    for kind, first in first_ids(tokenizer).items():
        shared.setdefault(tokenizer.decode([first]), []).append(kind)
    return {token: kinds for token, kinds in shared.items() if len(kinds) > 1}


def split_words(tokenizer: Tokenizer) -> dict[str, list[str]]:
    """The words of kinds that are more than one token, with their pieces."""
    parts = {word for kind in KINDS for word in kind.split()}
    ids = {word: tokenizer.encode(f" {word}", add_special_tokens=False).ids for word in sorted(parts)}
    return {word: [tokenizer.decode([i]) for i in pieces] for word, pieces in ids.items() if len(pieces) > 1}
