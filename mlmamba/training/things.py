"""The things that a small model knows: one everyday word per kind, and where pictures of it come from.

`things.json` holds the table. Every one of ImageNet's 1000 classes belongs to exactly one kind.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "grey")

# the groups that one can ask for ("Is there an animal?"), and how they are called
GROUPS = {
    "animal": "an animal",
    "vehicle": "a vehicle",
    "food": "something to eat",
    "fruit": "a fruit",
    "building": "a building",
    "musical instrument": "a musical instrument",
}

# COCO's name -> our kind; None where no source has a picture of it
COCO: dict[str, str | None] = {
    "person": "person", "bicycle": "bicycle", "car": "car", "motorcycle": "motorcycle",
    "airplane": "airplane", "bus": "bus", "train": "train", "truck": "truck", "boat": "boat",
    "traffic light": "traffic light", "fire hydrant": None, "stop sign": "stop sign",
    "parking meter": "parking meter", "bench": "bench", "bird": "bird", "cat": "cat", "dog": "dog",
    "horse": "horse", "sheep": "sheep", "cow": "cow", "elephant": "elephant", "bear": "bear",
    "zebra": "zebra", "giraffe": "giraffe", "backpack": "backpack", "umbrella": "umbrella",
    "handbag": "handbag", "tie": "tie", "suitcase": "suitcase", "frisbee": "frisbee", "skis": "skis",
    "snowboard": "snowboard", "sports ball": "ball", "kite": "kite", "baseball bat": "baseball bat",
    "baseball glove": None, "skateboard": "skateboard", "surfboard": "surfboard",
    "tennis racket": "tennis racket", "bottle": "bottle", "wine glass": "wine glass", "cup": "cup",
    "fork": "fork", "knife": "knife", "spoon": "spoon", "bowl": "bowl", "banana": "banana",
    "apple": "apple", "sandwich": "sandwich", "orange": "orange", "broccoli": "broccoli",
    "carrot": "carrot", "hot dog": "hot dog", "pizza": "pizza", "donut": "donut", "cake": "cake",
    "chair": "chair", "couch": "couch", "potted plant": "potted plant", "bed": "bed",
    "dining table": "table", "toilet": "toilet", "tv": "television", "laptop": "laptop", "mouse": "mouse",
    "remote": "remote control", "keyboard": "keyboard", "cell phone": "phone", "microwave": "microwave",
    "oven": "oven", "toaster": "toaster", "sink": "sink", "refrigerator": "refrigerator", "book": "book",
    "clock": "clock", "vase": "vase", "scissors": "scissors", "teddy bear": "teddy bear",
    "hair drier": "hair dryer", "toothbrush": "toothbrush",
}  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """One kind of thing.

    `form` is "count" (a dog), "mass" (some hay) or "plural" (some scissors). `also` names the kinds that
    it is too (an owl is a bird); `related` those that may be mistaken for it or seen with it.
    """

    name: str
    plural: str
    group: str
    form: Literal["count", "mass", "plural"] = "count"
    core: bool = False
    emoji: tuple[str, ...] = ()
    stamps: tuple[str, ...] = ()
    wnids: tuple[str, ...] = ()
    related: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    synonyms: tuple[str, ...] = ()

    @property
    def article(self) -> str:
        if self.form != "count":
            return "some"
        return "an" if self.name[0] in "aeiou" and not self.name.startswith(("uni", "eu")) else "a"

    @property
    def are(self) -> str:
        return "are" if self.form == "plural" else "is"

    def number(self, n: int) -> str:
        """`n` of it: "a dog", "two dogs", "some hay"."""
        if n == 1 or self.form != "count":
            return f"{self.article} {self.name}"
        return f"{NUMBERS[n] if n < len(NUMBERS) else 'many'} {self.plural}"


@dataclass(frozen=True)
class Table:
    """What `things.json` holds.

    A small photo of a `person_wnids` class nearly always shows a person as well, one of a `no_person_wnids`
    class nearly never. The one full-size photo of each class was looked at: a person is in those of
    `person_singles`, perhaps in those of `unsure_singles`, in no other.
    """

    kinds: dict[str, Kind]
    person_wnids: frozenset[str]
    no_person_wnids: frozenset[str]
    person_singles: frozenset[str]
    unsure_singles: frozenset[str]


@cache
def table() -> Table:
    values = json.loads(Path(__file__).with_name("things.json").read_text(encoding="utf-8"))
    kinds = {
        name: Kind(name, **{k: tuple(v) if isinstance(v, list) else v for k, v in row.items()})  # type: ignore[arg-type]
        for name, row in values.pop("kinds").items()
    }
    return Table(kinds, **{k: frozenset(v) for k, v in values.items()})


KINDS = table().kinds
CORE = tuple(k for k, kind in KINDS.items() if kind.core)
OF_WNID = {wnid: name for name, kind in KINDS.items() for wnid in kind.wnids}
CLASSES = tuple(sorted(OF_WNID))  # ImageNet's, in the order of the logits of an encoder's head
NARROWER = {name: tuple(k for k, kind in KINDS.items() if name in kind.also) for name in KINDS}


@cache
def unsure(kind: str) -> frozenset[str]:
    """Kinds that one must not deny when this one is in the picture."""
    out = set(KINDS[kind].related) | set(NARROWER[kind])
    for wider in KINDS[kind].also:
        out |= set(KINDS[wider].related) | set(NARROWER[wider])
    return frozenset(out - {kind} - set(KINDS[kind].also))


def a(kind: str) -> str:
    """ "a dog", "an owl", "some hay"."""
    return KINDS[kind].number(1)
