"""Pictures put together from drawings and photos, with a full account of what is where.

A scene is a `size` x `size` RGB picture and a `Scene`. Boxes are (x0, y0, x1, y1) in 0..1.
The held-out split draws from photos that the train split never shows; drawings are few, so they are in both.
"""

import colorsys
import io
import json
import math
import random
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont

from mlmamba.errors import UserError
from mlmamba.training.things import COLOURS, CORE, KINDS, OF_WNID, table, unsure

EMOJI_FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
STAMPS = Path("/usr/share/tuxpaint/stamps")

Split = Literal["train", "held-out"]
Style = Literal["drawing", "photo", "collage", "shapes"]
Box = tuple[float, float, float, float]

PATCH = 32  # pixels: side of a cell of `Scene.cells`, as the encoder's patches
CELL_SHARE = 0.45  # a kind owns a cell when it covers this much of it
N_HELD_OUT_SINGLES = 150  # full-size photos that training never shows
EMOJI_SIZE = 109  # the one size that the font's bitmaps have

# What a photo may show beside its own thing, by the group of that, so that nobody asks for it there.
# Every kind is left out by some groups, else a model would learn that in photos it is always there.
_GREEN = "tree,plant,leaf,flower,rock,wood,fence,wall"
_OUTDOORS = f"{_GREEN},house,building,car,window,door,cloud,sun,mountain,pole,street sign,bird,flag,lamp,lake,beach"
_INDOORS = "table,chair,window,door,wall,lamp,curtain,pillow,box,book,potted plant,couch,cup,bottle,desk,rug"
_MEAL = "plate,bowl,cup,glass,table,spoon,fork,knife,bottle,basket,leaf,pan,pot,tray"
SURROUNDINGS: dict[str, str] = {
    "animal": f"{_GREEN},lake,beach,cloud",
    "vehicle": f"{_OUTDOORS},wheel,boat,bench,traffic light,wave,bridge",
    "building": f"{_OUTDOORS},bench,boat,bridge,tower,statue,church,table,chair",
    "street": f"{_OUTDOORS},bench,bicycle,truck,bus",
    "nature": f"{_OUTDOORS},boat,wave,tent",
    "plant": f"{_GREEN},potted plant,vase,insect,bee,butterfly",
    "food": f"{_MEAL},tomato,lettuce,meat,bread,cheese,pepper,onion,carrot,potato,egg",
    "fruit": f"{_MEAL},tree,flower,apple,pear,grapes",
    "kitchen": f"{_MEAL},{_INDOORS},sink,oven,refrigerator,toilet,mirror,bathtub,flower",
    "furniture": f"{_INDOORS},mirror,bowl,vase,glass,television,sink,toilet,plant,flower,clock,bed",
    "device": f"{_INDOORS},hand,phone,laptop,computer,pen,glass",
    "office": f"{_INDOORS},hand,pen,pencil,computer",
    "toy": f"{_INDOORS},tree,plant,hand,bed,doll",
    "clothing": f"{_INDOORS},tree,plant,hand,bed,car,mirror,bag,handbag,leaf",
    "person": f"{_OUTDOORS},table,chair,ball,glass,bag,handbag,flower",
    "sport": f"{_OUTDOORS},table,chair,bench,hand",
    "musical instrument": f"{_INDOORS},microphone,hand,loudspeaker",
    "tool": f"{_INDOORS},tree,plant,hand,car,wood,rock",
}
PETS = {"dog", "cat", "rabbit", "hamster", "guinea pig", "parrot", "turtle", "fish"}

RGB: dict[str, tuple[tuple[int, int, int], ...]] = {
    "red": ((220, 30, 30), (200, 20, 40), (240, 50, 40)),
    "orange": ((250, 140, 20), (240, 125, 10)),
    "yellow": ((250, 220, 30), (255, 235, 60)),
    "green": ((30, 150, 50), (60, 180, 60), (20, 120, 60)),
    "blue": ((30, 80, 210), (40, 120, 230), (20, 50, 160)),
    "purple": ((130, 40, 170), (110, 60, 180)),
    "pink": ((250, 130, 180), (255, 160, 200), (240, 90, 160)),
    "brown": ((120, 70, 30), (100, 60, 35)),
    "black": ((15, 15, 15), (30, 30, 30)),
    "white": ((252, 252, 252), (245, 245, 240)),
    "grey": ((128, 128, 128), (150, 150, 150)),
}
SHAPES = ("circle", "square", "triangle", "star", "heart")


@dataclass(frozen=True)
class Thing:
    """One thing. `area` is the fraction of the picture that it really covers; 0 where nobody knows (a person
    somewhere in a photo), and then the box says nothing either."""

    kind: str
    box: Box
    area: float
    colour: str | None = None
    source: Literal["drawing", "photo"] = "drawing"

    @property
    def centre(self) -> tuple[float, float]:
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


@dataclass(frozen=True)
class Scene:
    """`avoid`: kinds that may or may not be in the picture, so nobody may ask for them.
    `cells`: by row and column, the kind that covers most of that patch of the picture, or None. `whose`: likewise which
    thing of that kind does, by its place in `things`; None too for what is mostly hidden. `seen`: kinds of `avoid`
    that the encoder's classifier sees in a photo of training."""

    things: tuple[Thing, ...]
    style: Style
    background: str | None = None
    avoid: tuple[str, ...] = ()
    cells: list[list[str | None]] = field(default_factory=list)
    whose: list[list[int | None]] = field(default_factory=list)
    seen: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Scene":
        things = tuple(Thing(**{**t, "box": tuple(t["box"])}) for t in values["things"])
        kinds = {name: tuple(values[name]) for name in ("avoid", "seen")}
        return cls(**{**values, "things": things, **kinds})


@dataclass(frozen=True)
class Photo:
    """One photo of a known class; `box` is where its thing is."""

    file: str
    wnid: str
    box: Box
    small: bool  # 64 x 64

    @property
    def kind(self) -> str:
        return OF_WNID[self.wnid]

    @property
    def person(self) -> bool | None:
        """Whether a person is in it as well; None where unsure."""
        t = table()
        if not self.small:
            return True if self.wnid in t.person_singles else None if self.wnid in t.unsure_singles else False
        return True if self.wnid in t.person_wnids else False if self.wnid in t.no_person_wnids else None


@dataclass(frozen=True)
class Sighting:
    """What the encoder's own classifier sees in a full-size photo beside its one thing: kinds that are surely
    somewhere in it, and kinds that are surely nowhere."""

    there: frozenset[str]
    nowhere: frozenset[str]


class Sources:
    """Where drawings and photos come from. Reads nothing before it is needed; small enough to pickle."""

    def __init__(self, data: Path, stamps: Path = STAMPS, emoji_font: Path = EMOJI_FONT):
        self.data, self.stamps, self.emoji_font = Path(data), Path(stamps), Path(emoji_font)
        self.sightings: dict[str, Sighting] = {}  # by the photo's file; `naming.sightings` makes them

    def __getstate__(self) -> dict[str, Any]:
        kept = ("data", "stamps", "emoji_font", "sightings")
        return {name: self.__dict__[name] for name in kept}

    @cached_property
    def _singles(self) -> Path:
        folder = self.data / "imagenet-one-per-class"
        if not folder.is_dir():
            raise UserError(f"Put the folder `imagenet-one-per-class` (wnid_name.jpg) into {self.data} to train.")
        return folder

    @cached_property
    def _zip(self) -> dict[str, bytes]:
        path = self.data / "tiny-imagenet-subset" / "images.zip"
        try:
            with zipfile.ZipFile(path) as z:
                return {name: z.read(name) for name in z.namelist()}
        except OSError as error:
            raise UserError(f"Put `tiny-imagenet-subset/images.zip` into {self.data} to train.") from error

    @cached_property
    def _font(self) -> ImageFont.FreeTypeFont:
        try:
            return ImageFont.truetype(str(self.emoji_font), size=EMOJI_SIZE)
        except OSError as error:
            raise UserError(f"No emoji font at {self.emoji_font}: install Debian's fonts-noto-color-emoji.") from error

    @cached_property
    def drawings(self) -> dict[str, list[str]]:
        """Kind -> its drawings: emoji and stamps by path."""
        if not self.stamps.is_dir():
            raise UserError(f"No drawings at {self.stamps}: install Debian's tuxpaint-stamps-default.")
        return {k: [*kind.emoji, *kind.stamps] for k, kind in KINDS.items() if kind.emoji or kind.stamps}

    @cached_property
    def photos(self) -> dict[Split, dict[str, list[Photo]]]:
        """Split -> kind -> photos."""
        singles = [Photo(f.name, f.name.split("_", 1)[0], (0.1, 0.1, 0.9, 0.9), False) for f in
                   sorted(self._singles.glob("*.jpg"))]  # fmt: skip
        notes = self.data / "tiny-imagenet-subset" / "annotations.json"
        try:
            rows = json.loads(notes.read_text(encoding="utf-8"))["images"]
        except OSError as error:
            raise UserError(f"Put `tiny-imagenet-subset/annotations.json` into {self.data} to train.") from error
        tiny = []
        for row in rows:
            x0, y0, x1, y1 = row["box_xyxy"]
            box = (x0 / 64, y0 / 64, (x1 + 1) / 64, (y1 + 1) / 64)
            tiny.append(Photo(row["file"], row["wnid"], box, True))

        index_in_class: dict[str, int] = {}
        kept: set[str] = set()  # held out
        for photo in tiny:
            index = index_in_class[photo.wnid] = index_in_class.get(photo.wnid, -1) + 1
            if index % 10 == 0:
                kept.add(photo.file)
        n_of: dict[str, int] = {}
        for photo in [*singles, *tiny]:
            n_of[photo.kind] = n_of.get(photo.kind, 0) + (photo.file not in kept)
        order = list(singles)
        random.Random(0).shuffle(order)
        # a kind keeps at least three photos to train on
        for photo in order:
            if sum(not f.endswith(".JPEG") for f in kept) == N_HELD_OUT_SINGLES:
                break
            if n_of[photo.kind] > 3:
                n_of[photo.kind] -= 1
                kept.add(photo.file)

        out: dict[Split, dict[str, list[Photo]]] = {"train": {}, "held-out": {}}
        for photo in [*singles, *tiny]:
            out["held-out" if photo.file in kept else "train"].setdefault(photo.kind, []).append(photo)
        return out

    def open(self, photo: Photo, side: int) -> Image.Image:
        """The photo in RGB, its short side at least `side` where it is that big."""
        if photo.small:
            return Image.open(io.BytesIO(self._zip[photo.file])).convert("RGB")
        image = Image.open(self._singles / photo.file)
        image.draft("RGB", (side, side))
        return image.convert("RGB")

    @lru_cache(maxsize=2048)  # noqa: B019  (one Sources lives as long as its process)
    def drawing(self, name: str) -> Image.Image:
        """RGBA, cut to what is visible, at most 256 wide and high."""
        if name.endswith(".png"):
            image = Image.open(self.stamps / name).convert("RGBA")
            image.thumbnail((256, 256))
        else:
            image = Image.new("RGBA", (160, 160))
            ImageDraw.Draw(image).text((8, 8), name, font=self._font, embedded_color=True)
        return image.crop(image.getchannel("A").point(lambda v: 255 * (v > 24)).getbbox())


def photo_of(
    sources: Sources, rng: random.Random, split: Split, small_share: float = 0.4, common: float = 0.9
) -> Photo:
    """A random photo: of common kinds in a share `common` or more, of 64 x 64 about `small_share` of the time."""
    photos = sources.photos[split]
    core = [k for k in CORE if k in photos]
    kind = rng.choice(core if rng.random() < common else list(photos))
    small = [p for p in photos[kind] if p.small]
    large = [p for p in photos[kind] if not p.small]
    return rng.choice(small if small and (not large or rng.random() < small_share) else large)


def colour_of(image: Image.Image) -> str | None:
    """The one colour name that an RGBA picture has, or None."""
    small = np.asarray(image.resize((24, 24), Image.Resampling.BOX), dtype=np.int32).reshape(-1, 4)
    rgb = small[small[:, 3] > 160, :3]
    if len(rgb) < 40:
        return None
    high, low = rgb.max(1), rgb.min(1)
    chroma = high - low
    r, g, b = rgb.T
    wide = np.maximum(chroma, 1)
    hue = np.select(
        [high == r, high == g],
        [(g - b) / wide * 60 % 360, (b - r) / wide * 60 + 120],
        (r - g) / wide * 60 + 240,
    )
    saturation = chroma / np.maximum(high, 1)
    grey = (saturation < 0.16) | (high < 45)
    index = np.full(len(rgb), -1)
    name = {c: i for i, c in enumerate(COLOURS)}

    def paint(where: np.ndarray, colour: str) -> None:
        index[where & (index < 0)] = name[colour]

    paint(grey & (high < 70), "black")
    paint(grey & (high > 215), "white")
    paint(grey & (high >= 95) & (high <= 190), "grey")
    index[grey & (index < 0)] = -2
    paint((hue >= 12) & (hue < 48) & (high < 165), "brown")
    paint(((hue < 9) | (hue >= 345)) & (saturation > 0.6) & (high > 110), "red")
    paint((hue >= 300) & (hue < 350) & (high > 180), "pink")
    paint(((hue < 12) | (hue >= 345)) & (saturation < 0.5) & (high > 220), "pink")
    paint((hue >= 18) & (hue < 38) & (saturation > 0.6) & (high > 190), "orange")
    paint((hue >= 43) & (hue < 66) & (saturation > 0.35) & (high > 170), "yellow")
    paint((hue >= 75) & (hue < 165), "green")
    paint((hue >= 195) & (hue < 250), "blue")
    paint((hue >= 262) & (hue < 300), "purple")
    counts = np.bincount(index[index >= 0], minlength=len(COLOURS))
    best = int(counts.argmax())
    # black outlines and white highlights are no colour of their own
    rest = len(rgb) - (counts[name["black"]] + counts[name["white"]]) * 0.6 * (best not in (8, 9))
    return COLOURS[best] if counts[best] > 0.68 * rest else None


def shift_hue(image: Image.Image, turn: int) -> Image.Image:
    """Turn the hue of an RGBA picture by `turn` of 256."""
    alpha = image.getchannel("A")
    h, s, v = image.convert("RGB").convert("HSV").split()
    h = h.point(lambda x: (x + turn) % 256)
    out = Image.merge("HSV", (h, s, v)).convert("RGB").convert("RGBA")
    out.putalpha(alpha)
    return out


def within(x0: float, y0: float, x1: float, y1: float) -> Box:
    """A box cut at the edges of the picture."""
    return min(max(x0, 0.0), 1.0), min(max(y0, 0.0), 1.0), min(max(x1, 0.0), 1.0), min(max(y1, 0.0), 1.0)


def background(rng: random.Random, size: int) -> tuple[Image.Image, str | None]:
    """A plain, shaded or noisy ground, and its colour's name."""
    name: str | None = rng.choice(COLOURS) if rng.random() < 0.6 else "white"
    r, g, b = rng.choice(RGB[name or "white"])
    if rng.random() < 0.5 and name != "white":  # paler, and then no colour to be sure of
        r, g, b, name = (r + 2 * 255) // 3, (g + 2 * 255) // 3, (b + 2 * 255) // 3, None
    first = (r, g, b)
    how = rng.random()
    if how < 0.55:
        return Image.new("RGB", (size, size), first), name
    if how < 0.8:
        second = tuple(
            int(255 * c) for c in colorsys.hsv_to_rgb(rng.random(), rng.uniform(0, 0.5), rng.uniform(0.4, 1))
        )
        ramp = Image.linear_gradient("L").rotate(rng.choice((0, 90, 180, 270))).resize((size, size))
        return Image.composite(
            Image.new("RGB", (size, size), second), Image.new("RGB", (size, size), first), ramp
        ), None
    fine = rng.choice((4, 10, 40, size))
    noise = np.random.default_rng(rng.getrandbits(32)).normal(0, rng.uniform(6, 30), (fine, fine, 3))
    ground = np.clip(np.asarray(first) + noise, 0, 255).astype(np.uint8)
    return Image.fromarray(ground).resize((size, size), Image.Resampling.BICUBIC), None


def cut(
    rng: random.Random, sources: Sources, photo: Photo, width: int, height: int, split: Split
) -> tuple[Image.Image, Box]:
    """A random crop of the photo at `width` x `height`, and where its thing's box is in it. Training sees its few
    photos closer, stretched and as other cameras would have taken them too."""
    training = split == "train"
    image = sources.open(photo, max(width, height))
    w, h = image.size
    scale = rng.uniform(0.9 if photo.small else 0.6 if training else 0.78, 1.0)
    shape = height / width * (rng.uniform(0.85, 1.18) if training else 1.0)
    cw = min(w, h / shape) * scale
    ch = cw * shape
    # near the middle: that is where the thing is, and a single photo has no true box
    fx, fy = (rng.uniform(0, 1), rng.uniform(0, 1)) if photo.small else (rng.uniform(0.25, 0.75) for _ in "xy")
    left, top = (w - cw) * fx, (h - ch) * fy
    if photo.small:  # keep at least most of the box
        bx, by = (photo.box[0] + photo.box[2]) / 2 * w, (photo.box[1] + photo.box[3]) / 2 * h
        left = min(max(left, bx - 0.8 * cw), bx - 0.2 * cw)
        top = min(max(top, by - 0.8 * ch), by - 0.2 * ch)
        left, top = min(max(left, 0), w - cw), min(max(top, 0), h - ch)
    image = image.resize((width, height), Image.Resampling.BICUBIC, (left, top, left + cw, top + ch))
    if photo.small:
        x0, y0, x1, y1 = photo.box
        box = ((x0 * w - left) / cw, (y0 * h - top) / ch, (x1 * w - left) / cw, (y1 * h - top) / ch)
    else:
        box = photo.box
    box = within(*box)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        box = (1 - box[2], box[1], 1 - box[0], box[3])
    if training:
        image = other_camera(rng, image, photo.small)
    return image, box


def other_camera(rng: random.Random, image: Image.Image, small: bool) -> Image.Image:
    """Perhaps with another white balance, more or less contrast, no colour; as few pixels as a `small` photo has."""
    if rng.random() < 0.3:
        image = ImageEnhance.Contrast(image).enhance(rng.uniform(0.65, 1.3))
    if rng.random() < 0.3:
        gains = [rng.uniform(0.85, 1.15) for _ in "rgb"]
        image = image.point([min(255, round(gain * value)) for gain in gains for value in range(256)])
    if rng.random() < 0.05:
        image = image.convert("L").convert("RGB")
    if not small and rng.random() < 0.3:
        fewer = rng.uniform(0.25, 0.6)
        shrunk = (max(1, round(image.width * fewer)), max(1, round(image.height * fewer)))
        image = image.resize(shrunk, Image.Resampling.BOX).resize(image.size, Image.Resampling.BICUBIC)
    return image


def jitter(rng: random.Random, image: Image.Image) -> Image.Image:
    """A little more or less light and colour."""
    if rng.random() < 0.4:
        image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.75, 1.2))
    if rng.random() < 0.3:
        image = ImageEnhance.Color(image).enhance(rng.uniform(0.5, 1.4))
    return image


class Canvas:
    """A picture in the making, and for every pixel the number of the thing on top (0: none)."""

    def __init__(self, ground: Image.Image, style: Style):
        self.image, self.style, self.size = ground, style, ground.width
        self.owner = np.zeros((self.size, self.size), dtype=np.uint8)
        self.things: list[tuple[str, str | None, Literal["drawing", "photo"], Box]] = []
        self.own_areas: list[int] = []  # pixels of each before another thing came on top
        self.extra: list[Thing] = []
        self.avoid: set[str] = set()
        self.seen: frozenset[str] = frozenset()

    def _own(self, mask: np.ndarray, x: int, y: int) -> None:
        """`mask` (h, w) bool, placed at (x, y), belongs to the newest thing."""
        self.own_areas.append(int(mask.sum()))
        x0, y0 = max(x, 0), max(y, 0)
        x1, y1 = min(x + mask.shape[1], self.size), min(y + mask.shape[0], self.size)
        if x1 > x0 and y1 > y0:
            self.owner[y0:y1, x0:x1][mask[y0 - y : y1 - y, x0 - x : x1 - x]] = len(self.things)

    def draw(self, kind: str, picture: Image.Image, x: int, y: int, colour: str | None) -> None:
        """Put an RGBA picture on top."""
        self.image.paste(picture, (x, y), picture)
        corners = (x, y, x + picture.width, y + picture.height)
        box = within(*(v / self.size for v in corners))
        self.things.append((kind, colour, "drawing", box))
        self._own(np.asarray(picture.getchannel("A")) > 127, x, y)

    def photo(
        self, photo: Photo, picture: Image.Image, box: Box, x: int, y: int, mask: Image.Image | None = None
    ) -> None:
        """Put a photo on top (through `mask`); its thing fills the ellipse in `box` (of the photo)."""
        self.image.paste(picture, (x, y), mask)
        w, h = picture.size
        shown = np.asarray(mask) > 127 if mask is not None else np.ones((h, w), dtype=bool)
        # the photo hides what was below, its own background belongs to nobody
        view = self.owner[y : y + h, x : x + w]
        view[shown[: view.shape[0], : view.shape[1]]] = 0
        x0, y0, x1, y1 = box[0] * w, box[1] * h, box[2] * w, box[3] * h
        columns = ((np.arange(w) + 0.5 - (x0 + x1) / 2) / max((x1 - x0) / 2, 1)) ** 2
        rows = ((np.arange(h) + 0.5 - (y0 + y1) / 2) / max((y1 - y0) / 2, 1)) ** 2
        ellipse = (rows[:, None] + columns[None, :] < 1) & shown
        corners = ((x + x0) / self.size, (y + y0) / self.size, (x + x1) / self.size, (y + y1) / self.size)
        self.things.append((photo.kind, None, "photo", within(*corners)))
        self._own(ellipse, x, y)
        self.around(photo, present=True)

    def around(self, photo: Photo, present: bool) -> None:
        """Note what else may be in a photo; with `present` its own kind is one of the scene's things."""
        kind = KINDS[photo.kind]
        self.avoid |= unsure(kind.name)
        self.avoid |= set(SURROUNDINGS[kind.group].split(","))
        if kind.name in PETS:
            self.avoid |= set(_INDOORS.split(",")) | {"bed", "bowl"}
        if not present:
            self.avoid |= {kind.name, *kind.also}
        if photo.person and present:
            if "person" not in (kind.name, *kind.also):
                self.extra.append(Thing("person", (0.0, 0.0, 1.0, 1.0), 0.0, None, "photo"))
            self.avoid |= unsure("person") | set(SURROUNDINGS["person"].split(","))
        elif photo.person is not False:
            self.avoid |= {"person", *unsure("person")}

    def sighted(self, sighting: Sighting) -> None:
        """Tell of a photo also what a classifier sees around its thing, and what it sees nowhere."""
        self.seen = sighting.there
        self.avoid -= sighting.nowhere

    def scene(self, ground: str | None) -> Scene:
        """The account of it all; things that got hidden are only avoided."""
        n = len(self.things) + 1
        pixels = np.bincount(self.owner.ravel(), minlength=n)
        things: list[Thing] = []
        told: dict[int, int] = {}  # number on the canvas -> place in the account
        avoid = {*self.avoid, *(near for kind in self.seen for near in (kind, *unsure(kind)))}
        for i, (kind, colour, source, box) in enumerate(self.things, 1):
            if pixels[i] < 0.4 * self.own_areas[i - 1] or pixels[i] == 0:
                avoid |= {kind, *KINDS[kind].also}
                continue
            avoid |= unsure(kind)
            box = within(*(round(v, 4) for v in box))
            told[i] = len(things)
            things.append(Thing(kind, box, round(float(pixels[i] / self.owner.size), 5), colour, source))
        if self.extra:
            things.append(self.extra[0])
        present = {k for t in things for k in (t.kind, *KINDS[t.kind].also)}
        cells, owners = self._cells(n)
        whose = [[told.get(owner) for owner in row] for row in owners]
        seen = tuple(sorted(self.seen - present))
        return Scene(tuple(things), self.style, ground, tuple(sorted(avoid - present)), cells, whose, seen)

    def _cells(self, n: int) -> tuple[list[list[str | None]], list[list[int]]]:
        """The kind that covers most of each patch, and the number of the thing of that kind that does (0: none)."""
        side = self.size // PATCH  # in patches
        blocks = self.owner[: side * PATCH, : side * PATCH].reshape(side, PATCH, side, PATCH).swapaxes(1, 2)
        blocks = blocks.reshape(side * side, PATCH * PATCH)  # (cells, pixels)
        kinds = [t[0] for t in self.things]
        cells: list[str | None] = [None] * (side * side)
        owners = [0] * (side * side)
        offsets = np.arange(side * side)[:, None] * n
        counts = np.bincount((blocks + offsets).ravel(), minlength=n * side * side).reshape(-1, n)
        for cell in np.flatnonzero(counts[:, 1:].sum(1)):
            shares: dict[str, int] = {}
            for i in np.flatnonzero(counts[cell, 1:]):
                shares[kinds[i]] = shares.get(kinds[i], 0) + int(counts[cell, i + 1])
            kind, share = max(shares.items(), key=lambda item: item[1])
            if share >= CELL_SHARE * PATCH * PATCH:
                cells[cell] = kind
                owners[cell] = max((i for i in range(1, n) if kinds[i - 1] == kind), key=lambda i: counts[cell, i])
        rows = [slice(r * side, (r + 1) * side) for r in range(side)]
        return [cells[row] for row in rows], [owners[row] for row in rows]


def places(rng: random.Random, sizes: list[tuple[int, int]], size: int, overlap: float) -> Iterator[tuple[int, int]]:
    """A place (x, y) for each (w, h), with little overlap: the best of a few tries."""
    taken: list[tuple[int, int, int, int]] = []
    for w, h in sizes:
        best, best_hidden = (0, 0), math.inf
        for _ in range(14):
            x, y = rng.randint(0, max(0, size - w)), rng.randint(0, max(0, size - h))
            hidden = 0.0
            for tx, ty, tw, th in taken:
                shared = max(0, min(x + w, tx + tw) - max(x, tx)) * max(0, min(y + h, ty + th) - max(y, ty))
                hidden = max(hidden, shared / min(w * h, tw * th))
            if hidden < best_hidden:
                best, best_hidden = (x, y), hidden
            if hidden <= overlap:
                break
        taken.append((*best, w, h))
        yield best


def drawing_of(
    sources: Sources, rng: random.Random, kind: str, name: str, width: int
) -> tuple[Image.Image, str | None]:
    """A drawing of `kind`, about `width` wide, perhaps flipped, turned, in another hue; and its colour."""
    picture = sources.drawing(name)
    scale = width / max(picture.size)
    picture = picture.resize((max(8, round(picture.width * scale)), max(8, round(picture.height * scale))),
                             Image.Resampling.BILINEAR)  # fmt: skip
    group = KINDS[kind].group
    if group not in ("symbol", "street", "office") and rng.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if group not in ("person", "street") and rng.random() < 0.2:
        picture = shift_hue(picture, rng.randint(20, 236))
    if rng.random() < 0.35:
        alpha = picture.getchannel("A")
        picture = jitter(rng, picture.convert("RGB")).convert("RGBA")
        picture.putalpha(alpha)
    colour = None if group == "person" or kind == "smiley" else colour_of(picture)
    if rng.random() < 0.5:
        picture = picture.rotate(rng.uniform(-15, 15), Image.Resampling.BILINEAR, expand=True)
        picture = picture.crop(picture.getchannel("A").point(lambda v: 255 * (v > 24)).getbbox())
    return picture, colour


def pick_drawn(sources: Sources, rng: random.Random) -> str:
    """A kind that has drawings; common ones and people more often."""
    chance = rng.random()
    if chance < 0.06:
        return "person"
    if chance < 0.9:
        kind = rng.choice(CORE)
        return kind if kind in sources.drawings else "dog"
    return rng.choice(list(sources.drawings))


def add_drawings(
    canvas: Canvas, sources: Sources, rng: random.Random, most: int, share: tuple[float, float], *, crowd: bool = False
) -> None:
    """1 to `most` drawings, as wide as `share` of the picture says; often several, in a crowd 3 to 5, of a kind."""
    n = rng.randint(4, most) if crowd else rng.randint(1, most)
    kinds: list[tuple[str, str]] = []
    while len(kinds) < n:
        kind = pick_drawn(sources, rng)
        several = (3, 4, 5) if crowd and not kinds else (1, 1, 1, 2, 2, 3, 4, 5)
        copies = min(n - len(kinds), rng.choice(several) if n > 1 else 1)
        names = sources.drawings[kind]
        name = rng.choice(names)
        kinds += [(kind, name if rng.random() < 0.7 else rng.choice(names)) for _ in range(copies)]
    present = {k for k, _ in kinds}
    kinds = [k for k in kinds if not present & unsure(k[0])] or kinds[:1]  # no lookalikes side by side
    rng.shuffle(kinds)
    low, high = share
    high = min(high, 1.05 / math.sqrt(len(kinds)))
    pictures = []
    for kind, name in kinds:
        picture, colour = drawing_of(sources, rng, kind, name, int(canvas.size * rng.uniform(low, high)))
        pictures.append((kind, picture, colour))
    pictures.sort(key=lambda p: -p[1].width * p[1].height)  # big ones are hard to place
    spots = places(rng, [p.size for _, p, _ in pictures], canvas.size, rng.choice((0.0, 0.02, 0.15)))
    for (kind, picture, colour), (x, y) in zip(pictures, spots, strict=True):
        canvas.draw(kind, picture, x, y, colour)


def drawing_scene(sources: Sources, rng: random.Random, split: Split, size: int) -> tuple[Image.Image, Scene]:
    if rng.random() < 0.4:
        photo = photo_of(sources, rng, split)
        ground, _ = cut(rng, sources, photo, size, size, split)
        if rng.random() < 0.7:
            ground = ground.filter(ImageFilter.BoxBlur(rng.uniform(1.5, 7)))
        canvas, name = Canvas(jitter(rng, ground), "drawing"), None
        canvas.around(photo, present=False)
    else:
        ground, name = background(rng, size)
        canvas = Canvas(ground, "drawing")
    # training has more crowds than an examination, for they are what is miscounted
    add_drawings(canvas, sources, rng, 6, (0.18, 0.55), crowd=split == "train" and rng.random() < 0.2)
    return canvas.image, canvas.scene(name)


def photo_scene(sources: Sources, rng: random.Random, split: Split, size: int) -> tuple[Image.Image, Scene]:
    # in training rarer kinds too, or the reader learns to say names of common ones alone
    photo = photo_of(sources, rng, split, 0.3, common=0.5 if split == "train" else 0.9)
    if photo.small:  # blown up further, the encoder would hardly know it
        side = min(size, round(64 * rng.uniform(2, 3.75)))
        ground, name = background(rng, size)
        x, y = rng.randint(0, size - side), rng.randint(0, size - side)
    else:
        side, x, y = size, 0, 0
        ground, name = Image.new("RGB", (size, size)), None
    picture, box = cut(rng, sources, photo, side, side, split)
    picture = jitter(rng, picture)
    if not photo.small and rng.random() < 0.1:
        picture = picture.filter(ImageFilter.BoxBlur(rng.uniform(0.5, 1.5)))
    canvas = Canvas(ground, "photo")
    canvas.photo(photo, picture, box, x, y)
    if photo.file in sources.sightings:
        canvas.sighted(sources.sightings[photo.file])
    return canvas.image, canvas.scene(name)


def soft_mask(rng: random.Random, width: int, height: int) -> Image.Image | None:
    """None (a hard rectangle), or a soft-edged ellipse or rectangle, L (height, width)."""
    how = rng.random()
    if how < 0.35:
        return None
    mask = Image.new("L", (width // 2, height // 2))
    edge = rng.randint(2, 8)
    corners = (edge, edge, width // 2 - edge, height // 2 - edge)
    draw = ImageDraw.Draw(mask)
    if how < 0.7:
        draw.ellipse(corners, fill=255)
    else:
        draw.rounded_rectangle(corners, radius=rng.randint(0, 20), fill=255)
    return mask.filter(ImageFilter.BoxBlur(rng.uniform(0.5, edge * 0.6))).resize(
        (width, height), Image.Resampling.BILINEAR
    )


def collage_scene(sources: Sources, rng: random.Random, split: Split, size: int) -> tuple[Image.Image, Scene]:
    how = rng.random()
    ground, name = background(rng, size)
    canvas = Canvas(ground, "collage")
    if split == "train" and how >= 0.55 and rng.random() < 0.5:  # things amid others, as in the photos that people take
        behind, name = photo_of(sources, rng, split, 0.0), None
        canvas.image = jitter(rng, cut(rng, sources, behind, size, size, split)[0])
        canvas.around(behind, present=False)
    half = size // 2
    if how < 0.3:  # side by side
        at = round(size * rng.uniform(0.4, 0.6))
        tiles = [(0, 0, at, size), (at, 0, size - at, size)]
        if rng.random() < 0.5:
            tiles = [(y, x, h, w) for x, y, w, h in tiles]
    elif how < 0.55:
        tiles = [(x, y, half, half) for y in (0, half) for x in (0, half)]
    else:
        sizes = [
            (round(size * rng.uniform(0.38, 0.6)), round(size * rng.uniform(0.38, 0.6)))
            for _ in range(rng.randint(2, 3))
        ]
        tiles = [(*spot, *wh) for spot, wh in zip(places(rng, sizes, size, 0.0), sizes, strict=True)]
    photos: list[Photo] = []
    for x, y, w, h in tiles:
        photo = photo_of(sources, rng, split, 0.5)
        for _ in range(4):  # no lookalikes in one picture
            if not any(p.kind in unsure(photo.kind) for p in photos):
                break
            photo = photo_of(sources, rng, split, 0.5)
        photos.append(photo)
        picture, box = cut(rng, sources, photo, w, h, split)
        canvas.photo(photo, jitter(rng, picture), box, x, y, soft_mask(rng, w, h) if how >= 0.55 else None)
    if rng.random() < 0.3:
        add_drawings(canvas, sources, rng, 2, (0.18, 0.35))
    return canvas.image, canvas.scene(name if how >= 0.55 else None)


def shape(kind: str, colour: tuple[int, int, int], width: int, turn: float) -> Image.Image:
    """RGBA, about `width` wide, drawn three times as big for smooth edges."""
    n = width * 3
    image = Image.new("RGBA", (n, n), (*colour, 0))
    draw = ImageDraw.Draw(image)
    fill = (*colour, 255)
    if kind == "circle":
        draw.ellipse((0, 0, n - 1, n - 1), fill=fill)
    elif kind == "square":
        m = n * 0.14
        draw.rectangle((m, m, n - m, n - m), fill=fill)
    elif kind == "triangle":
        draw.polygon([(n / 2, n * 0.04), (n * 0.98, n * 0.92), (n * 0.02, n * 0.92)], fill=fill)
    elif kind == "star":
        radii = [0.5 if i % 2 == 0 else 0.2 for i in range(10)]
        draw.polygon(
            [
                (n / 2 + n * r * math.sin(math.pi * i / 5), n / 2 - n * r * math.cos(math.pi * i / 5))
                for i, r in enumerate(radii)
            ],
            fill=fill,
        )
    else:
        points = []
        for i in range(60):
            t = 2 * math.pi * i / 60
            px = 16 * math.sin(t) ** 3
            py = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
            points.append((n / 2 + px * n / 34, n * 0.46 - py * n / 34))
        draw.polygon(points, fill=fill)
    if turn and kind != "circle":
        image = image.rotate(turn, Image.Resampling.NEAREST, expand=True)
    image = image.resize((round(image.width / 3), round(image.height / 3)), Image.Resampling.BOX)
    return image.crop(image.getchannel("A").point(lambda v: 255 * (v > 24)).getbbox())


def shapes_scene(rng: random.Random, size: int) -> tuple[Image.Image, Scene]:
    ground = rng.choice(("white", "white", "black", *COLOURS))
    canvas = Canvas(Image.new("RGB", (size, size), rng.choice(RGB[ground])), "shapes")
    near = {"red": {"orange", "pink", "brown"}, "yellow": {"white", "orange"}, "white": {"yellow", "grey"},
            "black": {"brown", "blue"}, "blue": {"purple", "black"}}  # fmt: skip
    colours = [c for c in COLOURS if c != ground and c not in near.get(ground, ()) and ground not in near.get(c, ())]
    n = rng.randint(1, 6)
    chosen: list[tuple[str, str]] = []
    while len(chosen) < n:
        chosen += [(rng.choice(SHAPES), rng.choice(colours))] * min(rng.choice((1, 1, 2, 3, 4)), n - len(chosen))
    high = min(0.5, 0.85 / math.sqrt(n))
    pictures = []
    for kind, colour in chosen:
        width = int(size * rng.uniform(0.14, high))
        turn = rng.uniform(-20, 20) if rng.random() < 0.4 else 0.0
        pictures.append((kind, shape(kind, rng.choice(RGB[colour]), width, turn), colour))
    pictures.sort(key=lambda p: -p[1].width)
    for (kind, picture, colour), (x, y) in zip(
        pictures, places(rng, [p.size for _, p, _ in pictures], size, 0.0), strict=True
    ):
        canvas.draw(kind, picture, x, y, colour)
    return canvas.image, canvas.scene(ground)


def compose(sources: Sources, rng: random.Random, split: Split = "train", size: int = 448) -> tuple[Image.Image, Scene]:
    """One random scene: a `size` x `size` RGB picture and what is in it."""
    # the same seed gives other compositions in the other split
    rng = random.Random(f"{split} {rng.getrandbits(64)}")
    chance = rng.random()
    if chance < 0.45:
        return drawing_scene(sources, rng, split, size)
    if chance < 0.70:
        return photo_scene(sources, rng, split, size)
    if chance < 0.90:
        return collage_scene(sources, rng, split, size)
    return shapes_scene(rng, size)
