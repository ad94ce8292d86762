"""Scenes and questions as tensors. Batch `i` is a function of the seed and `i` alone, so that a run can be resumed."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import Dataset

from mlmamba.chat import ChatTokenizer
from mlmamba.training.naming import pushes
from mlmamba.training.questions import COLUMNS, MAKERS, QA, ROWS, View, ask, deciding, mentions, third
from mlmamba.training.renaming import Push, rename
from mlmamba.training.scenes import PATCH, Scene, Sources, compose
from mlmamba.training.things import COLOURS, KINDS, NUMBERS, unsure
from mlmamba.training.tokenizer import first_id

TYPES = tuple(MAKERS)
FORESEEN = ("is_there", "group", "count", "colour", "where", "relation", "what", "main")  # types that one word answers
NONE = -100  # a target that gives no loss
FACTS = {"number": NUMBERS, "colour": COLOURS, "row": ROWS, "column": COLUMNS}  # of a thing, and the words for them
MOST = 6  # things that a scene without photos shows
OF_KINDS = slice(1, 1 + MOST)  # groups of patches whose things are counted: all, those of each kind, and of each thing
N_GROUPS = 1 + 2 * MOST
OTHER_WORDS = 0.35  # how often a patch is told by its plural or a synonym
AGAIN = 0.2  # how often a talk may come back to a thing: what was said of it can be copied, and needs no look


@dataclass
class Branches:
    """Several short talks about each picture; b pictures, k branches each, t tokens.

    ids: (b * k, t). targets: (b * k, t), the next id where it belongs to an answer, NONE elsewhere.
    telling: (b * k, t), the index in TYPES of the question at the places that predict the words which decide whether
    its answer is right (the number, the colour, the side, the thing), -1 elsewhere.
    early: (b * k, t), within a question that one word answers ("Yes", "three", "red", "left") that word: as soon as a
    thing is asked for, the look-up can be done, and telling so there teaches it sooner.
    facts: (b * k, t, 4), from the name of a thing to the end of its question what is true of it, whatever is asked:
    for each of FACTS the index of its word, NONE where nobody knows.
    places: (b * k, t, 2), there too, x and y of its middle, from -1 at the left and at the top to 1; NONE as in facts.
    kinds: (b * k, t), there too, its index in KINDS; NONE elsewhere.
    """

    ids: Tensor
    targets: Tensor
    telling: Tensor
    early: Tensor
    facts: Tensor
    places: Tensor
    kinds: Tensor

    def to(self, device: torch.device) -> "Branches":
        return Branches(*(getattr(self, field.name).to(device) for field in fields(self)))


INDEX = {kind: index for index, kind in enumerate(KINDS)}
Fact = tuple[int, ...]  # one of FACTS each
NO_FACT: Fact = (NONE,) * len(FACTS)
Place = tuple[float, float]
NOWHERE: Place = (float(NONE), float(NONE))
Row = tuple[list[int], list[int], list[int], list[int], list[Fact], list[Place], list[int]]  # one branch of `Branches`


@dataclass
class Batch:
    """pixels: (b, 3, s, s) uint8. words: (b, n_patches), the first id of the word of what a patch shows, or NONE.
    photographic: (b,), whether patches without a word show a photo, so that the encoder's own classes can name them.
    colours: (b, n_patches), the index in COLOURS of what a patch shows, NONE where nobody knows.
    groups: (b, N_GROUPS, n_patches) of 0 and 1, groups of patches; amounts: (b, N_GROUPS), how many things each of
    them shows, as `amounts` says.
    shows: (b, n_patches), the index in KINDS of what a patch shows, len(KINDS) where it shows none of them, NONE where
    nobody knows.
    instead and leads: (b, n_patches), the class that a patch is pushed towards and by how much it is to lead, where a
    thing is called another (`renaming`); -1 and 0 elsewhere.
    towards and margins: (b, n_patches), as `naming.pushes` says.
    seed: of what is drawn where the features are."""

    pixels: Tensor
    words: Tensor
    photographic: Tensor
    colours: Tensor
    groups: Tensor
    amounts: Tensor
    talks: Branches
    shows: Tensor
    instead: Tensor
    leads: Tensor
    towards: Tensor
    margins: Tensor
    seed: int


class Batches(Dataset[Batch]):
    """`batches[i]`: `size` scenes with `branches` talks each, of at most `max_tokens` tokens."""

    def __init__(
        self, sources: Sources, tokenizer: Tokenizer, *, size: int, branches: int, max_tokens: int,
        image_size: int, seed: int,
    ):  # fmt: skip
        self.sources, self.tokenizer = sources, tokenizer
        self.size, self.branches, self.max_tokens = size, branches, max_tokens
        self.image_size, self.seed = image_size, seed
        self.chat = ChatTokenizer(tokenizer)
        self.first_ids = {
            kind: [first_id(tokenizer, word) for word in (kind, thing.plural, *thing.synonyms)]
            for kind, thing in KINDS.items()
        }

    def __getitem__(self, index: int) -> Batch:
        rng = random.Random(f"{self.seed} {index}")
        made = [compose(self.sources, rng, "train", self.image_size) for _ in range(self.size)]
        scenes, called = zip(*(rename(scene, rng) for _, scene in made), strict=True)
        pixels = np.stack([np.asarray(image) for image, _ in made])  # (b, s, s, 3)
        return Batch(
            torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(),
            torch.tensor([self.words(scene, rng) for scene in scenes]),
            torch.tensor([photographic(scene) for scene in scenes]),
            torch.tensor([colours(scene) for scene in scenes]),
            *amounts_of(scenes),
            self.talks(scenes, rng),
            torch.tensor([shown(scene) for scene in scenes]),
            *renamed(scenes, called),
            *pushes(rng, (self.size, (self.image_size // PATCH) ** 2)),
            rng.getrandbits(32),
        )

    def words(self, scene: Scene, rng: random.Random) -> list[int]:
        """What each patch shows: most often by its name, else by its plural or a synonym, for questions use them."""
        kinds = [kind for row in scene.cells for kind in row]
        as_told = {
            kind: rng.choice(ids[1:]) if rng.random() < OTHER_WORDS else ids[0] for kind, ids in self.first_ids.items()
        }
        return [NONE if kind is None else as_told[kind] for kind in kinds]

    def talks(self, scenes: Sequence[Scene], rng: random.Random) -> Branches:
        views = [View(scene) for scene in scenes]
        rows = []
        for view in views:
            elsewhere = shown_elsewhere(view, views)
            questions = ask(view.scene, rng, 3 * self.branches, practice=True, elsewhere=elsewhere)
            rows += self.pack(view, questions, rng)
        t = self.max_tokens  # always the same, so that memory is used again

        def padded(column: int, fill: int | Fact | Place) -> Tensor:
            return torch.tensor([[*row[column], *[fill] * (t - len(row[column]))] for row in rows])

        return Branches(
            padded(0, 0), padded(1, NONE), padded(2, -1), padded(3, NONE), padded(4, NO_FACT), padded(5, NOWHERE),
            padded(6, NONE),
        )  # fmt: skip

    def pack(self, view: View, questions: list[QA], rng: random.Random) -> list[Row]:
        """Fill each branch with as many turns as fit; what fits nowhere is left out."""
        rows: list[Row] = [([], [], [], [], [], [], []) for _ in range(self.branches)]
        named: list[set[str]] = [set() for _ in rows]
        for qa in questions:
            reply = self.chat.reply(qa.answer)
            decides = self.deciding(qa, reply)
            prompts = {first: self.chat.prompt(qa.question, first) for first in (True, False)}
            about = {*qa.kinds, *(word for word in qa.truth.split("|") if word in KINDS)}
            for (ids, targets, telling, early, facts, places, kinds), before in zip(rows, named, strict=True):
                prompt = prompts[not ids]
                if len(ids) + len(prompt) + len(reply) > self.max_tokens:
                    continue
                if about & before and rng.random() > AGAIN:
                    continue
                before |= about
                ids += prompt + reply
                # position i predicts id i + 1, so that targets are shifted by one within the turn
                asking = len(prompt) - 1
                targets += [NONE] * asking + reply + [NONE]
                telling += [-1] * asking + [TYPES.index(qa.type) if told else -1 for told in decides] + [-1]
                foreseen = reply[decides.index(True)] if qa.type in FORESEEN else NONE
                early += [foreseen] * asking + [NONE] * (len(reply) + 1)
                known, middles, things = self.facts(view, qa, len(prompt))
                facts += known + [NO_FACT] * len(reply)
                places += middles + [NOWHERE] * len(reply)
                kinds += things + [NONE] * len(reply)
                break
        rng.shuffle(rows)
        return [row if row[0] else ([0], [NONE], [-1], [NONE], [NO_FACT], [NOWHERE], [NONE]) for row in rows]

    def facts(self, view: View, qa: QA, n: int) -> tuple[list[Fact], list[Place], list[int]]:
        """What is true, at each of the `n` ids of a question's prompt, of the thing that it named last; where it is;
        and which it is."""
        told, places, kinds = [NO_FACT] * n, [NOWHERE] * n, [NONE] * n
        for end, kind in mentions(qa):
            known = view.facts(kind)
            fact = tuple(words.index(word) if (word := getattr(known, name)) else NONE for name, words in FACTS.items())
            at = len(self.chat.encode(qa.question[:end]))  # the prompt has one mark before the question
            told[at:] = [fact] * (n - at)
            middle = view.middle(kind)
            places[at:] = [(2 * middle[0] - 1, 2 * middle[1] - 1) if middle else NOWHERE] * (n - at)
            kinds[at:] = [INDEX[kind]] * (n - at)
        return told, places, kinds

    def deciding(self, qa: QA, reply: list[int]) -> list[bool]:
        """Which ids of a reply decide whether it is right."""
        spans = deciding(qa)
        encoded = self.tokenizer.encode(qa.answer, add_special_tokens=False)
        decides = [any(a < end and b > start for start, end in spans) for a, b in encoded.offsets]
        assert encoded.ids == reply[: len(decides)]  # what follows ends the turn
        return decides + [False] * (len(reply) - len(decides))


def shown_elsewhere(view: View, views: Sequence[View]) -> list[list[str]]:
    """What each other picture of the same style shows.

    What is denied is mostly drawn from there, so that a kind is asked for about as often where it isn't as where it is.
    Else a model learns that dogs, people and all that is rare are in a photo whenever somebody asks for them.
    """
    others = [other for other in views if other is not view and other.scene.style == view.scene.style]
    return [shows for other in others if (shows := other.shows())]


def renamed(scenes: Sequence[Scene], called: Sequence[dict[str, Push]]) -> tuple[Tensor, Tensor]:
    """The class that each patch is pushed towards, and by how much it leads, both (b, n_patches)."""
    patches = [
        [pushes.get(kind or "", (-1, 0.0)) for row in scene.cells for kind in row]
        for scene, pushes in zip(scenes, called, strict=True)
    ]
    told = torch.tensor(patches, dtype=torch.float32)  # (b, n_patches, 2)
    return told[..., 0].long(), told[..., 1]


def photographic(scene: Scene) -> bool:
    """Whether patches on which nothing was put show a photo, of which nobody knows all."""
    return scene.style != "shapes" and scene.background is None


def shown(scene: Scene) -> list[int]:
    """What each patch shows, as in `Batch.shows`."""
    nothing = NONE if photographic(scene) else len(KINDS)
    return [INDEX[kind] if kind else nothing for row in scene.cells for kind in row]


def alike() -> Tensor:
    """Whether a thing of a kind (columns, the last for nothing) is called by the name of another (rows): 1, 0, or NONE
    where one of them may be taken for the other. (len(KINDS), len(KINDS) + 1)."""
    table = torch.zeros(len(KINDS), len(KINDS) + 1)
    for kind, index in INDEX.items():
        for other in unsure(kind):
            table[index, INDEX[other]] = table[INDEX[other], index] = NONE
    for kind, index in INDEX.items():
        for name in (kind, *KINDS[kind].also):
            table[INDEX[name], index] = 1
    return table


def colours(scene: Scene) -> list[int]:
    """For each patch the index in COLOURS of what it shows; NONE where there is nothing or its colour isn't known."""
    of: dict[str, set[int]] = {}
    for thing in scene.things:
        of.setdefault(thing.kind, set()).add(COLOURS.index(thing.colour) if thing.colour else NONE)
    known = {kind: min(found) for kind, found in of.items() if len(found) == 1}
    return [NONE if kind is None else known.get(kind, NONE) for row in scene.cells for kind in row]


def sides(grid: tuple[int, int]) -> tuple[list[int], list[int]]:
    """For each patch of a grid (rows, columns) the index in ROWS and in COLUMNS of where it is; NONE between two."""

    def thirds(n: int) -> list[int]:
        return [NONE if (place := third((i + 0.5) / n)) is None else place for i in range(n)]

    rows, columns = (thirds(n) for n in grid)
    return [row for row in rows for _ in columns], columns * len(rows)


def amounts_of(scenes: Sequence[Scene]) -> tuple[Tensor, Tensor]:
    """`amounts` of each scene: groups (b, N_GROUPS, n_patches) and numbers (b, N_GROUPS)."""
    groups, numbers = zip(*map(amounts, scenes), strict=True)
    return torch.tensor(groups), torch.tensor(numbers)


def amounts(scene: Scene) -> tuple[list[list[float]], list[float]]:
    """Groups of patches, (N_GROUPS, n_patches) of 0 and 1, and how many things each shows: all patches, then those of
    each kind, then those of each thing that has its like. The number is NONE where a photo may show more things, and
    for a group that isn't there."""
    cells = [kind for row in scene.cells for kind in row]
    groups = [[1.0] * len(cells)] + [[0.0] * len(cells)] * (N_GROUPS - 1)
    numbers = [float(NONE)] * N_GROUPS
    kinds = [thing.kind for thing in scene.things]
    if not any(thing.source == "photo" for thing in scene.things):
        numbers[0] = len(kinds)
        for i, kind in enumerate(sorted(set(kinds) & set(cells)), 1):
            groups[i], numbers[i] = [float(cell == kind) for cell in cells], kinds.count(kind)
        whose = [thing for row in scene.whose for thing in row]
        several = [thing for thing, kind in enumerate(kinds) if kinds.count(kind) > 1 and thing in whose]
        for i, thing in enumerate(several, OF_KINDS.stop):
            groups[i], numbers[i] = [float(owner == thing) for owner in whose], 1
    return groups, numbers
