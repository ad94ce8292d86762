"""Photos whose things are called something else: the scene, the talk and the patches agree."""

import random
from dataclasses import replace

import pytest
import torch
from test_training import DATA, RECIPE, Drawn, on_real_data, scenes_on_drawn
from tokenizers import Tokenizer

from mlmamba.hub import CHECKPOINTS
from mlmamba.training import loop
from mlmamba.training.batches import Batches
from mlmamba.training.questions import View, count, is_there, what
from mlmamba.training.renaming import LEADS, may_change, rename
from mlmamba.training.scenes import Scene, Sources, Thing
from mlmamba.training.things import CLASSES, KINDS, OF_WNID, unsure
from mlmamba.training.tokenizer import first_id

BOX = (0.1, 0.1, 0.3, 0.3)
DOG, COW = (Thing(kind, BOX, 0.1, source="photo") for kind in ("dog", "cow"))
CELLS = [["dog", None], ["cow", "dog"]]
COLLAGE = Scene((DOG, DOG, COW, Thing("star", BOX, 0.1)), "collage", cells=CELLS)


def collages(n: int = 200) -> list[tuple[Scene, dict[str, tuple[int, float]]]]:
    return [rename(COLLAGE, random.Random(seed)) for seed in range(n)]


def test_things_patches_and_pushes_agree() -> None:
    for scene, pushes in collages():
        kinds = [thing.kind for thing in scene.things]
        assert kinds[0] == kinds[1] == scene.cells[0][0] == scene.cells[1][1] and kinds[2] == scene.cells[1][0]
        assert kinds[3] == "star" and scene.cells[0][1] is None
        assert [thing.box for thing in scene.things] == [thing.box for thing in COLLAGE.things]
        assert set(pushes) == set(kinds) - {"dog", "cow", "star"}
        for name, (wanted, lead) in pushes.items():
            assert OF_WNID[CLASSES[wanted]] == name and LEADS[0] <= lead <= LEADS[1]


def test_old_things_and_their_lookalikes_are_never_asked_for() -> None:
    for scene, pushes in collages():
        view, rng = View(scene), random.Random(0)
        kinds = {thing.kind for thing in scene.things}
        gone = {"dog", "cow"} - kinds
        assert bool(gone) == bool(pushes)
        doubtful = {near for kind in gone for near in (kind, *unsure(kind), *KINDS[kind].also)}
        assert all(
            view.facts(kind).number is None for kind in doubtful - set(view.present)
        )  # nor is "none" said of them
        for _ in range(40):
            for made in (is_there(view, rng), count(view, rng)):
                assert made is None or not set(made.kinds) & doubtful - set(view.present)


def test_what_a_classifier_saw_is_not_asked_for_where_patches_have_changed() -> None:
    photo = Scene((DOG,), "photo", avoid=("chair", "couch"), cells=[["dog"]], seen=("chair",))
    for seed in range(60):
        scene, pushes = rename(photo, random.Random(seed))
        assert scene.seen == (() if pushes else ("chair",)) and "chair" in scene.avoid


def test_every_class_can_come() -> None:
    photo = Scene((DOG,), "photo", cells=[["dog"]])
    names = set()
    for seed in range(3000):
        scene, pushes = rename(photo, random.Random(seed))
        if pushes:
            (name,) = pushes
            made = what(View(scene), random.Random(0))
            assert made is not None and made.truth == name
            names.add(name)
    able = {name for name in OF_WNID.values() if KINDS[name].form == "count"}
    assert names <= able and len(names) > 0.75 * len(able)


@pytest.mark.parametrize("style", ["drawing", "shapes"])
def test_what_is_drawn_keeps_its_name(style: str) -> None:
    scene = Scene(COLLAGE.things, style, cells=CELLS)
    assert all(rename(scene, random.Random(seed)) == (scene, {}) for seed in range(50))
    assert not may_change(Thing("dog", BOX, 0.1)) and not may_change(Thing("person", BOX, 0.1, source="photo"))


def test_connectors_meet_the_new_things() -> None:
    """The head's opinion among the features is of the new class, and no other patch has changed."""
    scenes, batch = scenes_on_drawn(RECIPE, loop.accelerator_for(RECIPE, "cpu")), Drawn()[0]
    batch.towards[1, ::2] = -1
    with torch.no_grad():
        plain = scenes.model.towers(batch.pixels.float() / 255)
        seen = scenes.see(replace(batch, leads=torch.full((2, 9), 4.0)))
    met = seen.patches
    other = batch.instead >= 0
    assert other[1].any() and not other[0].any()
    torch.testing.assert_close(met[~other], plain[~other])
    assert (met[other][:, 1448:2448].argmax(-1) == batch.instead[other]).float().mean() > 0.8
    # what is imagined besides is the photo itself, which comes first, not what it was called
    assert other[1, ::2].any()
    torch.testing.assert_close(seen.imagined[0, ::2], plain[1, ::2])


@on_real_data
def test_batches_push_the_patches_of_what_they_tell() -> None:
    sources, tokenizer = Sources(DATA), Tokenizer.from_file(str(CHECKPOINTS / "tiny" / "tokenizer.json"))
    made = Batches(sources, tokenizer, size=24, branches=1, max_tokens=48, image_size=320, seed=0)[0]
    other = made.instead >= 0
    assert 2 <= other.any(1).sum() <= 12
    for wanted, word in zip(made.instead[other].tolist(), made.words[other].tolist(), strict=True):
        kind = KINDS[OF_WNID[CLASSES[wanted]]]
        told = {first_id(tokenizer, name) for name in (kind.name, kind.plural, *kind.synonyms)}
        assert word in told
    assert (made.leads[~other] == 0).all() and (made.leads[other] >= LEADS[0]).all()
