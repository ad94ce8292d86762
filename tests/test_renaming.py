"""Renamed pictures: what patches tell is exchanged and nothing else, and the scene follows."""

import random

import numpy as np
import pytest
import torch

from mlmamba.training.questions import View, count, is_there
from mlmamba.training.renaming import MOST, exchange, may_change, rename
from mlmamba.training.scenes import Scene, Thing
from mlmamba.training.things import KINDS, unsure

NAMES = [kind for kind in KINDS if may_change(kind)]
BOX = (0.1, 0.1, 0.3, 0.3)
FARM = Scene(
    (Thing("dog", BOX, 0.1), Thing("dog", BOX, 0.1), Thing("cow", BOX, 0.1), Thing("person", BOX, 0.1)), "drawing"
)


def renamed_farms(n: int) -> list[tuple[Scene, dict[str, str]]]:
    return [rename(FARM, random.Random(seed), NAMES) for seed in range(n)]


def test_patches_tell_one_word_for_the_other() -> None:
    torch.manual_seed(0)
    embedding = torch.randn(12, 16) + 1.5  # words have much in common
    features = torch.randn(2, 5, 16)
    pairs = torch.tensor([[[1, 2], [3, 4]], [[5, 6], [-100, -100]]])
    before, after = features @ embedding.T, exchange(features, embedding, pairs) @ embedding.T
    order = [[0, 2, 1, 4, 3], [0, 1, 2, 3, 4, 6, 5]]
    torch.testing.assert_close(after[0, :, 1:5], before[0][:, order[0][1:]], atol=0.1, rtol=0)
    torch.testing.assert_close(after[1, :, 5:7], before[1][:, [6, 5]], atol=0.1, rtol=0)
    assert not torch.allclose(after, before, atol=0.5)


def test_no_smaller_change_would_do() -> None:
    rng = np.random.default_rng(0)
    words, feature = rng.normal(size=(4, 6)), rng.normal(size=6)
    told = words @ feature
    least = np.linalg.pinv(words) @ (told[[1, 0, 3, 2]] - told)  # of all that solve it, the shortest
    changed = exchange(
        torch.tensor(feature[None, None]).float(), torch.tensor(words).float(), torch.tensor([[[0, 1], [2, 3]]])
    )
    np.testing.assert_allclose(changed[0, 0].numpy() - feature, least, atol=0.05)  # RIDGE makes it a little shorter


def test_without_a_pair_nothing_changes() -> None:
    features = torch.randn(1, 3, 8)
    assert torch.equal(exchange(features, torch.randn(5, 8), torch.full((1, 2 * MOST, 2), -100)), features)


def test_the_scene_follows() -> None:
    for scene, called in renamed_farms(200):
        assert [thing.kind for thing in scene.things] == [called.get(thing.kind, thing.kind) for thing in FARM.things]
        assert [thing.box for thing in scene.things] == [thing.box for thing in FARM.things]
        assert "person" not in called
        view = View(scene)
        if "dog" in called:
            assert view.number("dog") in (0, None) and view.number(called["dog"]) in (2, None)


def test_lookalikes_are_never_asked_for() -> None:
    for scene, called in renamed_farms(200):
        for kind in called:
            assert not (unsure(kind) - set(scene.avoid)) - {thing.kind for thing in scene.things}
        view, rng = View(scene), random.Random(0)
        for _ in range(20):
            for made in (is_there(view, rng), count(view, rng)):
                assert made is None or not set(made.kinds) & set(scene.avoid)


def test_about_half_of_the_pictures_are_renamed() -> None:
    changed = [bool(called) for _, called in renamed_farms(400)]
    assert 0.4 < sum(changed) / len(changed) < 0.55


@pytest.mark.parametrize("kind", ["person", "scissors", "hay"])
def test_people_and_what_has_no_number_keep_their_names(kind: str) -> None:
    assert not may_change(kind)
