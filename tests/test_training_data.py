"""The made-up scenes and questions: true, balanced, and the held-out photos really kept out."""

import json
import pickle
import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from mlmamba.errors import UserError
from mlmamba.training import scenes
from mlmamba.training.batches import NONE, shown
from mlmamba.training.questions import (
    QA,
    RELATIONS,
    Facts,
    View,
    ask,
    deciding,
    is_there,
    judge,
    mentions,
    names,
    some_absent,
    some_coloured,
    some_what,
)
from mlmamba.training.scenes import (
    EMOJI_FONT,
    N_HELD_OUT_SINGLES,
    STAMPS,
    Canvas,
    Photo,
    Scene,
    Sighting,
    Sources,
    Thing,
    collage_scene,
    compose,
    cut,
    drawing_scene,
    photo_scene,
    shapes_scene,
)  # fmt: skip
from mlmamba.training.things import COCO, COLOURS, CORE, GROUPS, KINDS, NUMBERS, OF_WNID, a, unsure
from mlmamba.training.tokenizer import SPECIALS, corpus, first_ids, layout, train

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(
    not (SHARED.is_dir() and EMOJI_FONT.exists() and STAMPS.is_dir()), reason="no photos or drawings here"
)


def test_the_table_is_sound():
    assert len(OF_WNID) == 1000 == sum(len(kind.wnids) for kind in KINDS.values())
    assert len(COCO) == 80
    for name in [k for k in COCO.values() if k]:
        assert KINDS[name].core, name
    for kind in KINDS.values():
        for other in (*kind.related, *kind.also):
            assert other in KINDS, (kind.name, other)
        assert kind.name not in kind.related, kind.name
    assert set(GROUPS) <= {kind.group for kind in KINDS.values()}
    assert a("owl") == "an owl" and a("unicycle") == "a unicycle" and a("hay") == "some hay"
    assert KINDS["person"].number(2) == "two people"


def test_questions_are_true_of_their_scene():
    rng = random.Random(1)
    for _ in range(400):
        scene = layout(rng)
        present = {k for t in scene.things for k in (t.kind, *KINDS[t.kind].also)}
        photographic = any(t.source == "photo" for t in scene.things)
        for qa in ask(scene, rng, 10):
            assert judge(qa, qa.answer), qa
            if qa.type == "is_there" and qa.truth == "yes":
                assert set(qa.kinds) <= present, (qa, present)
                if said := re.search("Yes, I see (.*)[.]", qa.answer):
                    n = sum(qa.kinds[0] in (t.kind, *KINDS[t.kind].also) for t in scene.things)
                    assert said[1] == (NUMBERS[n] if n < len(NUMBERS) else "many"), (qa, scene)
            if qa.type == "is_there" and qa.truth == "no":
                (whole,) = qa.kinds
                assert qa.answer == "No, I see none." and (whole == "person" or names(whole, qa.question))
                assert whole not in present and whole not in scene.avoid, (qa, present)
                assert not unsure(whole) & present, (qa, present)
            if photographic:
                assert qa.type not in ("count", "colour"), qa


def test_is_there_is_balanced_and_worded_in_many_ways():
    rng = random.Random(2)
    asked = [qa for _ in range(300) for qa in ask(layout(rng), rng, 8) if qa.type == "is_there"]
    share = sum(qa.truth == "yes" for qa in asked) / len(asked)
    assert 0.45 < share < 0.55, share
    negatives = Counter(qa.kinds for qa in asked if qa.truth == "no")
    assert len(negatives) > 200, len(negatives)


def test_counts_and_relations_of_a_known_layout():
    dog = Thing("dog", (0.05, 0.4, 0.25, 0.6), 0.03)
    cups = [Thing("cup", (x, 0.4, x + 0.15, 0.55), 0.02, "red") for x in (0.5, 0.8)]
    tree = Thing("tree", (0.05, 0.8, 0.25, 1.0), 0.02)
    rng = random.Random(3)
    qas = [qa for _ in range(40) for qa in ask(Scene((dog, *cups, tree), "drawing"), rng, 12)]
    for qa in qas:
        if qa.type == "count" and "cups" in qa.question:
            assert qa.truth == "2" and qa.answer == "I see two.", qa
        if qa.type == "relation" and qa.truth in RELATIONS:
            assert qa.answer == ("It is above it." if qa.kinds == ("dog", "tree") else "It is below it."), qa
            assert set(qa.kinds) == {"dog", "tree"}
        if qa.type == "where" and "dog" in qa.question:
            assert qa.answer == "On the left.", qa
        if qa.type == "list":
            assert qa.answer == "I see two cups, a dog and a tree.", qa
    assert {"count", "relation", "where", "list", "is_there", "colour"} <= {qa.type for qa in qas}


def test_no_relation_is_likelier_by_the_form_of_its_answer():
    """The word that decides has more weight in training: answers in which it came sooner would be said too often."""
    scenes = [
        Scene((Thing("dog", (x, y, x + 0.2, y + 0.2), 0.04), Thing("cat", (0.4, 0.4, 0.6, 0.6), 0.04)), "drawing")
        for x, y in ((0.0, 0.4), (0.8, 0.4), (0.4, 0.0), (0.4, 0.8))
    ]
    rng = random.Random(5)
    qas = [qa for scene in scenes for qa in ask(scene, rng, 60) if qa.type == "relation" and qa.truth in RELATIONS]
    assert {qa.truth for qa in qas} == set(RELATIONS)
    assert {qa.answer[: deciding(qa)[0][0]] for qa in qas} == {"It is "}


def test_among_several_things_it_is_the_one_that_takes_most_room():
    dog, tree = Thing("dog", (0.1, 0.1, 0.4, 0.4), 0.06), Thing("tree", (0.5, 0.5, 0.7, 0.7), 0.05)
    cups = tuple(Thing("cup", (x, 0.8, x + 0.1, 0.9), 0.05) for x in (0.1, 0.3))
    rng = random.Random(1)

    def said(*things: Thing) -> str | None:
        qa = some_what(View(Scene(things, "drawing")), rng)
        return qa and f"{qa.truth}: {qa.answer}"

    assert said(dog, tree, *cups) == "cup: They are cups."
    assert said(dog, replace(cups[0], area=0.055), replace(tree, area=0.02)) is None  # a dog, but only just
    assert said(replace(dog, area=0.2), tree) == "dog: It is a dog." and said(dog) is None


@pytest.mark.parametrize(
    ("qa", "right", "wrong"),
    [
        (QA("is_there", "", "", "yes"), "yes there is", "No, there is no dog."),
        (QA("count", "", "", "2"), "There are 2 dogs.", "There are three dogs."),
        (QA("count", "", "", "0"), "There are no dogs.", "There is a dog."),
        (QA("count", "", "", "0"), "I see none.", "I see one."),
        (QA("colour", "", "", "grey"), "The dog is gray.", "The grey dog is red."),
        (QA("where", "", "", "top left"), "At the top left.", "At the top."),
        (QA("relation", "", "", "left of"), "It is to the left.", "It is to the right."),
        (QA("relation", "", "", "above"), "Above the cup.", "Above, or below."),
        (QA("what", "", "", "bird"), "It is a bird.", "It is a dog."),
        (QA("list", "", "", "dog|cup"), "I see two dogs and a mug.", "I see a dog."),
    ],
)
def test_judge(qa: QA, right: str, wrong: str):
    assert judge(qa, right) and not judge(qa, wrong)
    assert not judge(qa, "")


def test_facts_are_what_a_scene_shows():
    dog = Thing("dog", (0.05, 0.05, 0.25, 0.25), 0.03, "brown")
    cups = [Thing("cup", (x, 0.4, x + 0.15, 0.55), 0.02, "red") for x in (0.5, 0.8)]
    balls = [Thing("ball", (x, 0.7, x + 0.1, 0.8), 0.01, colour) for x, colour in ((0.1, "red"), (0.8, None))]
    wide = Thing("bridge", (0.0, 0.6, 1.0, 0.9), 0.2, "grey")
    view = View(Scene((dog, *cups, *balls, wide), "drawing", None, ("tree",)))
    assert view.facts("dog") == Facts("one", "brown", "top", "left")
    assert view.facts("cup") == Facts("two", "red", None, None)  # two have no one place
    assert view.facts("ball") == Facts("two", None, None, None)
    assert view.facts("bridge") == Facts("one", "grey", None, None)  # as wide as the picture
    assert view.facts("elephant") == Facts("no")
    assert view.facts("tree") == Facts()  # nobody knows
    photo = View(Scene((Thing("dog", (0.3, 0.3, 0.7, 0.7), 0.1, None, "photo"),), "photo"))
    assert photo.facts("dog") == Facts(None, None, "middle", "middle")  # there may be more of them
    assert view.middle("dog") == pytest.approx((0.15, 0.15)) and photo.middle("dog") == pytest.approx((0.5, 0.5))
    assert view.middle("bridge") == pytest.approx((0.5, 0.75))
    assert view.middle("cup") is view.middle("elephant") is view.middle("tree") is None


def test_of_a_patch_with_nothing_on_it_a_photo_may_show_anything():
    dog, kinds = Thing("dog", (0.0, 0.0, 0.5, 1.0), 0.4), list(KINDS)
    for style, background, nothing in (
        ("drawing", "red", len(kinds)), ("shapes", None, len(kinds)), ("drawing", None, NONE), ("photo", None, NONE)
    ):  # fmt: skip
        scene = Scene((dog,), style, background, cells=[["dog", None], [None, "dog"]])
        assert shown(scene) == [kinds.index("dog"), nothing, nothing, kinds.index("dog")]


def test_things_are_found_in_the_questions_that_name_them():
    """Every thing that is asked about; and what is known of it is what the answer says."""
    rng, found = random.Random(8), Counter()
    for _ in range(400):
        scene = layout(rng)
        for qa in ask(scene, rng, 6):
            places = mentions(qa)
            assert len(places) == len(qa.kinds) or "person" in qa.kinds, qa  # "anybody"
            for end, kind in places:
                word = next(w for w in (KINDS[kind].plural, kind, *KINDS[kind].synonyms)
                            if qa.question[:end].lower().endswith(w.lower()))  # fmt: skip
                assert not qa.question[end : end + 1].isalnum() and word
                facts = View(scene).facts(kind)
                if qa.type == "count" and not any(f"{c} {KINDS[kind].plural}" in qa.question for c in COLOURS):
                    assert facts.number == NUMBERS[int(qa.truth)], qa
                if qa.type == "colour" and qa.truth in COLOURS:
                    assert facts.colour == qa.truth, qa
                if qa.type == "where":
                    told = {facts.row, facts.column}
                    assert (told if told == {"middle"} else told - {"middle"}) == set(qa.truth.split()), qa
                found[qa.type] += 1
    assert set(found) == {"is_there", "count", "colour", "where", "relation"}


def test_what_a_classifier_sees_in_a_photo_is_asked_for_and_nothing_more_is_said_of_it():
    dog = Photo("dog.jpg", "n02085620", (0.1, 0.1, 0.9, 0.9), False)
    told: dict[bool, dict[str, set[str]]] = {}
    for sighted in (False, True):
        canvas = Canvas(Image.new("RGB", (96, 96)), "photo")
        canvas.photo(dog, canvas.image, dog.box, 0, 0)
        if sighted:
            canvas.sighted(Sighting(frozenset({"chair", "dog"}), frozenset({"book", "cup"})))
        scene = canvas.scene(None)
        assert [thing.kind for thing in scene.things] == ["dog"]
        assert scene.seen == (("chair",) if sighted else ()) and set(scene.seen) <= set(scene.avoid)
        view, rng = View(scene), random.Random(0)
        asked = [qa for _ in range(4000) if (qa := is_there(view, rng))]
        told[sighted] = {truth: {qa.kinds[0] for qa in asked if qa.truth == truth} for truth in ("yes", "no")}
        assert all(qa.answer == "Yes." for qa in asked if qa.truth == "yes")
        rest = [qa for _ in range(40) for qa in ask(scene, rng, 20, practice=True) if qa.type != "is_there"]
        assert rest and not any("chair" in (*qa.kinds, *qa.truth.split("|")) for qa in rest)
        assert view.facts("chair").number is None
    assert told[True]["yes"] - told[False]["yes"] == {"chair"} and "dog" in told[False]["yes"]
    more = told[True]["no"] - told[False]["no"]
    assert {"book", "cup"} <= more and not {"lamp", "bottle"} & more
    # a couch may be taken for the chair that was seen
    assert "couch" in unsure("chair") and not {"chair", *unsure("chair"), "couch"} & told[True]["no"]


def test_coloured_shapes_are_counted():
    x = 0.1

    def some(*what: str) -> Scene:
        return Scene(tuple(Thing(w.split()[1], (x, x, 0.3, 0.3), 0.04, w.split()[0]) for w in what), "shapes")

    scene = some("red star", "red star", "blue star", "blue heart")
    told = {qa.question: qa for i in range(300) if (qa := some_coloured(View(scene), random.Random(i)))}
    number = {"red stars": 2, "blue stars": 1, "red hearts": 0, "blue hearts": 1}
    for what, n in number.items():
        asked = [qa for question, qa in told.items() if what in question]
        assert len(asked) > 5 and {qa.truth for qa in asked} == {str(n)}
        assert {qa.answer for qa in asked} == {f"I see {('none', 'one', 'two')[n]}."}
    assert all(any(what in question for what in number) for question in told)
    alike = some("red star", "red heart")
    assert not any(some_coloured(View(alike), random.Random(i)) for i in range(50))
    dogs = Scene(tuple(Thing("dog", (x, x, 0.3, 0.3), 0.04, colour) for colour in ("red", "blue")), "drawing")
    assert not any(some_coloured(View(dogs), random.Random(i)) for i in range(50))


def test_nothing_has_a_colour_or_a_place():
    dog = Thing("dog", (0.1, 0.1, 0.3, 0.3), 0.04, "red")
    another = Thing("dog", (0.7, 0.7, 0.9, 0.9), 0.04, "blue")
    photo = Thing("dog", (0.1, 0.1, 0.3, 0.3), 0.04, None, "photo")

    def told(*things: Thing) -> list[QA]:
        view = View(Scene(things, "drawing"))
        return [qa for i in range(400) if (qa := some_absent(view, random.Random(i)))]

    one, two, uncoloured = told(dog), told(dog, another), told(photo)
    of_colour = [[qa for qa in asked if "colo" in qa.question or qa.truth == "no"] for asked in (one, two, uncoloured)]
    assert len(one) == 400 and 150 < len(of_colour[0]) < 250  # else of a place
    assert len(of_colour[1]) == len(two) > 150  # no one place could be asked for
    assert not of_colour[2] and len(uncoloured) > 150  # no colour is known
    assert not told() and not told(replace(photo, box=(0.1, 0.1, 0.9, 0.9)))
    for qa in one:
        assert qa.kinds and qa.kinds[0] not in ("dog", *KINDS["dog"].also)
        assert re.search(rf"\b({qa.kinds[0]}|{KINDS[qa.kinds[0]].plural})\b", qa.question)
        denied = qa.truth == "no"
        assert qa.answer == ("No, I see none." if denied else "I see none.")
        assert denied == bool(re.search(f"({'|'.join(COLOURS)})", qa.question.replace(qa.kinds[0], "")))
        assert judge(qa, qa.answer)
        assert not any(judge(qa, said) for said in ("It is red.", "Yes, it is red.", "On the left.", "At the left."))
    assert 10 < sum(qa.truth == "no" for qa in one) < 80


def test_opposites():
    assert all(RELATIONS[RELATIONS[r]] == r for r in RELATIONS)


def test_whose_a_patch_is():
    def drawn(*things: tuple[str, int, int]) -> Scene:
        """Things of some width from some x on, in the upper row of patches; later ones hide what is below."""
        canvas = Canvas(Image.new("RGB", (160, 160), "white"), "drawing")
        for kind, x, width in things:
            canvas.draw(kind, Image.new("RGBA", (width, 32), "black"), x, 0, None)
        return canvas.scene("white")

    scene = drawn(("owl", 0, 64), ("dog", 0, 60), ("owl", 64, 64), ("owl", 100, 28), ("cup", 128, 32))
    assert [thing.kind for thing in scene.things] == ["dog", "owl", "owl", "cup"]  # the dog hides an owl
    assert scene.cells[0] == ["dog", "dog", "owl", "owl", "cup"] and scene.whose[0] == [0, 0, 1, 2, 3]
    assert scene.cells[1:] == scene.whose[1:] == [[None] * 5] * 4
    between = drawn(("owl", 0, 43), ("dog", 43, 12), ("owl", 55, 41))  # patch 1: 11 pixels, 12 and 9
    assert between.cells[0][:3] == ["owl"] * 3 and between.whose[0][:3] == [0, 0, 2]
    hidden = drawn(("owl", 0, 64), ("dog", 0, 40))
    assert hidden.cells[0][:2] == ["dog", "owl"] and hidden.whose[0][:2] == [0, None]


def test_shapes_need_no_data():
    rng = random.Random(4)
    for _ in range(20):
        image, scene = shapes_scene(rng, 160)
        assert image.size == (160, 160) and 1 <= len(scene.things) <= 6
        assert len(scene.cells) == 5 and all(len(row) == 5 for row in scene.cells)  # patches of 32 pixels
        assert {k for row in scene.cells for k in row if k} <= {t.kind for t in scene.things}
        assert Scene.from_dict(json.loads(json.dumps(scene.as_dict()))) == scene


class OnePhoto(Sources):
    """A white disc as wide as half of a blue photo, in its middle."""

    side = 400

    def open(self, photo: Photo, side: int) -> Image.Image:
        image = Image.new("RGB", (self.side, self.side), "blue")
        ImageDraw.Draw(image).ellipse((self.side // 4, self.side // 4, self.side * 3 // 4, self.side * 3 // 4), "white")
        return image


def disc(image: Image.Image) -> tuple[float, float, float, float]:
    """Where the disc is, in 0..1."""
    bright = np.asarray(image.convert("L"), dtype=float)
    rows, columns = np.where(bright > (bright.min() + bright.max()) / 2)
    h, w = bright.shape
    return columns.min() / w, rows.min() / h, (columns.max() + 1) / w, (rows.max() + 1) / h


@pytest.mark.parametrize("split", ["train", "held-out"])
def test_where_a_thing_is_in_a_crop_of_its_photo(tmp_path: Path, split):
    photo = Photo("disc.jpg", next(iter(OF_WNID)), (0.25, 0.25, 0.75, 0.75), small=True)
    for seed in range(60):
        image, box = cut(random.Random(seed), OnePhoto(tmp_path), photo, 160, 96 + seed, split)
        assert image.size == (160, 96 + seed) and np.abs(np.subtract(disc(image), box)).max() < 0.015, seed


def test_training_sees_photos_as_other_cameras_take_them(tmp_path: Path):
    photo = Photo("disc.jpg", next(iter(OF_WNID)), (0.1, 0.1, 0.9, 0.9), small=False)
    width, shape, grey, edge = ({"train": [], "held-out": []} for _ in range(4))
    for split in ("train", "held-out"):
        for seed in range(200):
            image, _ = cut(random.Random(seed), OnePhoto(tmp_path), photo, 200, 200, split)
            x0, y0, x1, y1 = disc(image)
            width[split].append(x1 - x0)
            if min(x0, y0) > 0 and max(x1, y1) < 1:  # all of it is there
                shape[split].append((x1 - x0) / (y1 - y0))
            pixels = np.asarray(image, dtype=float)
            grey[split].append(np.ptp(pixels, axis=2).max() == 0)
            middle = pixels[100, :, 0]
            edge[split].append(np.abs(np.diff(middle)).max() / np.ptp(middle))
    # as it is, at most 1 / 0.78 times as near
    assert max(width["held-out"]) < 0.66 and 0.97 < min(shape["held-out"]) and max(shape["held-out"]) < 1.03
    assert not any(grey["held-out"]) and min(edge["held-out"]) > 0.5
    # nearer, wider and narrower, at times without colour or with fewer pixels
    assert max(width["train"]) > 0.75 and min(shape["train"]) < 0.9 and max(shape["train"]) > 1.1
    assert 3 <= sum(grey["train"]) <= 25 and 20 <= sum(np.less(edge["train"], 0.45)) <= 90


def test_missing_data_says_what_to_do(tmp_path: Path):
    with pytest.raises(UserError, match="imagenet-one-per-class"):
        _ = Sources(tmp_path).photos
    with pytest.raises(UserError, match="tuxpaint-stamps-default"):
        _ = Sources(tmp_path, stamps=tmp_path / "none").drawings


def test_tokenizer(tmp_path: Path):
    tokenizer = train(tmp_path / "tokenizer.json", corpus(random.Random(5), 3000), vocab_size=4096)
    for i, special in enumerate(SPECIALS):
        assert tokenizer.token_to_id(special) == i
        assert tokenizer.encode(special).ids == [i], special
    text = "<|user|>\nIs there a dog?\n<|assistant|>\nYes.\n<|user|>\nZürich 狗"
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
    ids = first_ids(tokenizer)
    assert set(ids) == set(KINDS)
    whole = [k for k in CORE if " " not in k and tokenizer.decode([ids[k]]) == f" {k}"]
    assert len(whole) > 0.95 * sum(" " not in k for k in CORE)


@needs_data
def test_composed_scenes():
    sources = pickle.loads(pickle.dumps(Sources(SHARED)))
    rng = random.Random(6)
    styles: Counter[str] = Counter()
    for i in range(60):
        image, scene = compose(sources, rng, "held-out" if i % 2 else "train")
        styles[scene.style] += 1
        assert image.size == (448, 448) and image.mode == "RGB"
        present = {k for t in scene.things for k in (t.kind, *KINDS[t.kind].also)}
        assert not present & set(scene.avoid), scene
        for t in scene.things:
            assert 0 <= t.box[0] < t.box[2] <= 1 and 0 <= t.box[1] < t.box[3] <= 1, t
        assert Scene.from_dict(json.loads(json.dumps(scene.as_dict()))) == scene
        assert scene.style == "shapes" or ask(scene, rng, 4)
    assert len(styles) == 4, styles
    one, again = (compose(sources, random.Random(7)) for _ in range(2))
    assert one[1] == again[1] and one[0].tobytes() == again[0].tobytes()


@needs_data
def test_crowds_are_for_training(monkeypatch):
    sources, rng = Sources(SHARED), random.Random(1)
    most = []
    for crowd in (True, False):
        canvases = [Canvas(Image.new("RGB", (96, 96)), "drawing") for _ in range(60)]
        for canvas in canvases:
            scenes.add_drawings(canvas, sources, rng, 6, (0.18, 0.55), crowd=crowd)
        most.append([max(Counter(t.kind for t in canvas.scene(None).things).values()) for canvas in canvases])
    assert sum(n >= 3 for n in most[0]) >= 54 and 10 <= sum(n < 3 for n in most[1]) <= 50

    crowds: dict[str, list[bool]] = {"train": [], "held-out": []}
    for split, asked in crowds.items():
        monkeypatch.setattr(scenes, "add_drawings", lambda *_, crowd, asked=asked: asked.append(crowd))
        for _ in range(60):
            drawing_scene(sources, rng, split, 96)
    assert 0 < sum(crowds["train"]) < 30 and not any(crowds["held-out"])


@needs_data
def test_sightings_are_of_whole_photos():
    sources, rng = Sources(SHARED), random.Random(3)
    files = [photo.file for of in sources.photos["train"].values() for photo in of if not photo.small]
    sources.sightings = dict.fromkeys(files, Sighting(frozenset({"volcano"}), frozenset()))
    sources = pickle.loads(pickle.dumps(sources))  # a process that composes scenes has them too
    seen = {split: [photo_scene(sources, rng, split, 96)[1].seen for _ in range(60)] for split in ("train", "held-out")}
    assert 20 < seen["train"].count(("volcano",)) < 60 and set(seen["train"]) <= {("volcano",), ()}
    assert set(seen["held-out"]) == {()}
    assert all(collage_scene(sources, rng, "train", 96)[1].seen == () for _ in range(20))


@needs_data
def test_photos_behind_photos_are_for_training(monkeypatch):
    behind = {"train": 0, "held-out": 0}
    sources, rng = Sources(SHARED), random.Random(2)
    around = Canvas.around

    def spied(canvas: Canvas, photo: Photo, present: bool) -> None:
        behind[split] += not present
        around(canvas, photo, present)
        if not present:  # what that photo shows may be neither told nor denied
            assert {photo.kind, *unsure(photo.kind)} <= canvas.avoid

    monkeypatch.setattr(Canvas, "around", spied)
    for split in behind:
        for _ in range(60):
            _, scene = collage_scene(sources, rng, split, 224)
            assert not {thing.kind for thing in scene.things} & set(scene.avoid)
    assert 5 <= behind["train"] <= 25 and behind["held-out"] == 0


@needs_data
def test_held_out_photos_are_never_trained_on():
    photos = Sources(SHARED).photos
    train_files, held_out = ({p.file for of in photos[s].values() for p in of} for s in ("train", "held-out"))
    assert not train_files & held_out
    assert sum(f.endswith(".jpg") for f in held_out) == N_HELD_OUT_SINGLES
    assert len(photos["held-out"]) >= 60
    assert len(train_files | held_out) == 17_000
