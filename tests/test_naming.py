"""What the encoder's own head knows reaches the words of patches: pushed features, and the dictionary to start with."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ImageOps
from test_training import DATA, TINY, on_real_data
from tokenizers import Tokenizer

import mlmamba
from mlmamba.config import VisionConfig
from mlmamba.errors import UserError
from mlmamba.hub import CHECKPOINTS
from mlmamba.model import MLMamba
from mlmamba.training import naming
from mlmamba.training.naming import HEARD, Imagined, look, pushes, start_as_dictionary
from mlmamba.training.questions import COUNT, KINDS, View, ask, some_number
from mlmamba.training.scenes import Scene, Sources, Thing
from mlmamba.training.things import CLASSES, NARROWER, unsure
from mlmamba.training.train import Teacher, initialise, take_over, thinned
from mlmamba.vision import Vision

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module", params=["", "-opinion", "-detail"])
def vision(request) -> Vision:
    return Vision(replace(TINY.model.vision, towers=(f"efficientnet-lite0{request.param}",), image_size=320))


def seen(vision: Vision) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and last level of two photos."""
    from PIL import Image

    with torch.no_grad():
        pixels = torch.stack([vision.prepare(Image.open(EXAMPLES / name)) for name in ("street.jpg", "meadow.jpg")])
        return vision.towers[0].look(pixels)


def test_a_push_goes_to_its_class_and_changes_nothing_else(vision):
    tower = vision.towers[0]
    features, last = seen(vision)
    towards = torch.full((2, 100), -1)
    towards[:, ::2] = torch.randint(1000, (2, 50), generator=torch.Generator().manual_seed(1))
    margin = torch.full((2, 100), 2.0)
    maps = torch.randn(4000, 1280, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        anew, logits = Imagined(tower, maps).push(features, last, towards, margin)
        before = tower.net.classifier(last)
    left = towards < 0
    torch.testing.assert_close(anew[left], features[left], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits[left], before[left], atol=1e-4, rtol=1e-4)
    for same in (slice(168), slice(2448, 2784), slice(-2, None)):  # the lower levels, detail if any, and the place
        torch.testing.assert_close(anew[..., same], features[..., same])
    if tower.has_opinion:
        said = anew[..., 1448:2448]
        torch.testing.assert_close(said[left], features[..., 1448:2448][left])
        torch.testing.assert_close(said[~left], tower.LOUD * logits[~left].softmax(-1))
    wanted = towards[~left][:, None]
    assert (logits[~left].gather(-1, wanted) > before[~left].gather(-1, wanted)).all()
    assert (logits[~left].argmax(-1, keepdim=True) == wanted).float().mean() > 0.6
    # what the features say is what the logits were computed from, up to the mean and scale that a norm takes away
    head = tower.net.classifier
    for feature, logit in zip(anew[~left][:20, 168:1448], logits[~left], strict=False):
        said = torch.stack([head.weight @ feature, head.weight.sum(-1)], -1).detach()
        wanted_of = (logit - head.bias.detach())[:, None]
        found = said @ torch.linalg.lstsq(said, wanted_of).solution
        torch.testing.assert_close(found, wanted_of, atol=1e-2, rtol=1e-2)


def test_pushes_are_those_of_their_seed():
    one, other = pushes(random.Random(3), (4, 100)), pushes(random.Random(3), (4, 100))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    classes, margin = one
    assert classes.max() < 1000 and classes.min() == -1 and margin.shape == classes.shape == (4, 100)
    assert all(len(set(row) - {-1}) <= 3 for row in classes.tolist())
    assert 0.3 < (classes < 0).float().mean() < 0.5


@on_real_data
@pytest.mark.slow
def test_an_untrained_connector_names_what_the_head_names(vision, monkeypatch):
    """On photos that the fit has not seen: by chance it would be right once in some hundred times."""
    monkeypatch.setattr(naming, "N_PICTURES", 48)
    monkeypatch.setattr(naming, "FIT_STEPS", 100)
    tokenizer = Tokenizer.from_file(str(CHECKPOINTS / "tiny" / "tokenizer.json"))
    torch.manual_seed(0)
    connector = replace(TINY.model.connector, d_features=vision.d_features)
    model = MLMamba(replace(TINY.model, vision=vision.config, connector=connector), tokenizer, vision)
    initialise(model)
    tower, teacher = vision.towers[0], Teacher(tokenizer, 0.6)
    sources = Sources(DATA)
    features, last = look(tower, sources, 320, seed=0)
    others, maps = look(tower, sources, 320, seed=1)

    def right(kind: str) -> float:
        with torch.no_grad():
            logits = model.language_model.head(model.connector(others, (10, 10), kind).features)
        sure, word = teacher.opinion(tower.classify_map(maps)).max(-1)
        return (logits.argmax(-1) == teacher.word_ids[word])[sure > 0.6].float().mean().item()

    assert right("bsm") < 0.05
    start_as_dictionary(model, features, last, Imagined(tower, last.flatten(0, 1)), teacher.word_ids, teacher.to_words)
    assert right("bsm") > 0.3 and right("csm") > 0.3
    assert (model.connector.mlp[0].weight != 0).any(0).all()  # each of the tower's columns is heard


@pytest.fixture(scope="module")
def heard() -> Imagined:
    """Of the tower that tells its opinion."""
    tower = Vision(replace(TINY.model.vision, towers=("efficientnet-lite0-opinion",))).towers[0]
    return Imagined(tower, torch.randn(2000, 1280, generator=torch.Generator().manual_seed(4)))


@on_real_data
def test_what_the_head_sees_in_photos(vision, monkeypatch):
    tower, sources = vision.towers[0], Sources(DATA)
    photos = [p for of in sources.photos["train"].values() for p in of if not p.small][::40][:18]
    monkeypatch.setattr(
        sources, "photos", {"train": {"some": photos, "small": [p for p in sources.photos["train"]["dog"] if p.small]}}
    )
    told = naming.sightings(tower, sources, 320)
    assert set(told) == {photo.file for photo in photos}
    some_there = False
    for photo in photos:
        near = ImageOps.fit(sources.open(photo, 320), (320, 320))
        pixels = torch.from_numpy(np.array(near)).permute(2, 0, 1)[None] / 255
        with torch.no_grad():
            fine = tower.classify(pixels).softmax(-1).mT.unflatten(2, (10, 10))
            coarse = tower.classify(torch.nn.functional.avg_pool2d(pixels, 2)).softmax(-1).mT.unflatten(2, (5, 5))
            both = (fine + torch.nn.functional.interpolate(coarse, (10, 10), mode="bilinear")) / 2
        there, nowhere = set(), set()
        for kind in KINDS:
            wnids = {wnid for name in (kind, *NARROWER[kind]) for wnid in KINDS[name].wnids}
            if not wnids or KINDS[kind].group == "person":
                continue
            share = sum(both[0, CLASSES.index(wnid)] for wnid in wnids).flatten().sort(descending=True).values
            if share[naming.PATCHES - 1] > naming.SEEN and kind not in {photo.kind, *unsure(photo.kind)}:
                there.add(kind)
            if share[0] < naming.UNSEEN:
                nowhere.add(kind)
        assert told[photo.file].there == there
        assert len(told[photo.file].nowhere ^ nowhere) <= 3  # some are at the border
        some_there |= bool(there)
    assert some_there


def test_photos_are_thinned_and_what_the_head_says_is_left(vision):
    tower = vision.towers[0]
    features = torch.rand(3, 100, tower.d_features, generator=torch.Generator().manual_seed(0)) + 1
    photos = torch.tensor([True, False, True])
    thin = thinned(features, tower, photos, 0.25, seed=5)
    torch.testing.assert_close(thin, thinned(features, tower, photos, 0.25, seed=5))
    assert not torch.equal(thin, thinned(features, tower, photos, 0.25, seed=6))
    torch.testing.assert_close(thin[1], features[1])
    left = [slice(-2, None), slice(1448, 2448)] if tower.has_opinion else [slice(-2, None)]
    for same in left:
        torch.testing.assert_close(thin[..., same], features[..., same])
    share = (thin / features)[photos][..., :1448]
    assert ((share == 0) | ((share - 4 / 3).abs() < 1e-5)).all()
    assert ((share == 0) == (share[:, :1] == 0)).all()  # the same at all patches
    gone = share[:, 0] == 0
    assert 0.15 < gone.float().mean() < 0.35 and not torch.equal(gone[0], gone[1])
    torch.testing.assert_close(thinned(features, tower, photos, 0.0, seed=5), features)


def test_a_run_starts_from_another_model_and_from_its_connector_where_that_fits():
    older = mlmamba.load("tiny", vision=False, device="cpu")
    heard = Imagined(Vision(older.config.vision).towers[0], torch.randn(2000, 1280))
    same, smaller = (
        MLMamba(older.config),
        MLMamba(replace(older.config, connector=replace(older.config.connector, n_layers=1))),
    )
    assert take_over(same, older, heard) and not take_over(smaller, older, heard)
    for name, weight in older.state_dict().items():
        assert torch.equal(same.state_dict()[name], weight)
        if name.startswith("language_model."):
            assert torch.equal(smaller.state_dict()[name], weight)
    assert not torch.equal(smaller.connector.mlp[0].weight, older.connector.mlp[0].weight)
    other = MLMamba(replace(older.config, language=replace(older.config.language, n_layers=2)))
    with pytest.raises(UserError, match="other sizes"):
        take_over(other, older, heard)


def test_a_connector_that_heard_no_opinion_learns_to_listen(heard):
    older, model = (
        MLMamba(replace(TINY.model, connector=replace(TINY.model.connector, d_features=d))) for d in (1450, 2450)
    )
    assert take_over(model, older, heard)
    torch.manual_seed(5)
    levels, place = torch.randn(1, 16, 1448), torch.rand(1, 16, 2)
    patches = torch.cat([levels, place], -1)
    silent = torch.cat([levels, torch.zeros(1, 16, 1000), place], -1)
    with torch.no_grad():
        before = older.connector(patches, (4, 4), "csm").features
        torch.testing.assert_close(model.connector(silent, (4, 4), "csm").features, before)
        # an opinion moves a patch as its features do when they are pushed to where the head says so
        dog = torch.zeros(1000)
        dog[207] = 1.0
        listened = model.connector.mlp[0].weight[:, 1448:2448] @ (dog * heard.tower.LOUD)
        pushed = older.connector.mlp[0].weight[:, 168:1448] @ heard.shifts(HEARD)[207]
        torch.testing.assert_close(listened, pushed, atol=1e-4, rtol=1e-4)
        rise = heard.head @ heard.shifts(HEARD)[207]
        assert rise.argmax() == 207


def test_a_connector_that_saw_no_detail_goes_on_as_it_was(heard):
    """And one that heard no opinion either learns to listen."""
    connector = replace(TINY.model.connector, d_features=2786)
    model = MLMamba(replace(TINY.model, connector=connector))
    seeing = Imagined(Vision(VisionConfig(("efficientnet-lite0-detail",), 96)).towers[0], torch.randn(2000, 1280))
    torch.manual_seed(6)
    levels, opinion, detail, place = (torch.randn(1, 16, n) for n in (1448, 1000, 336, 2))
    for d, known in ((2450, [levels, opinion, place]), (1450, [levels, place])):
        older = MLMamba(replace(TINY.model, connector=replace(connector, d_features=d)))
        assert take_over(model, older, seeing)
        patches = torch.cat([levels, opinion if d == 2450 else 0 * opinion, detail, place], -1)
        with torch.no_grad():
            before = older.connector(torch.cat(known, -1), (4, 4), "csm").features
            torch.testing.assert_close(model.connector(patches, (4, 4), "csm").features, before)
        assert model.connector.mlp[0].weight[:, 1448:2448].any()


def test_some_number_is_of_what_is_there_or_surely_not():
    photo = Scene((Thing("dog", (0.1, 0.1, 0.9, 0.9), 0.5, None, "photo"),), "photo", avoid=("cat", "tree"))
    told = {qa.kinds[0]: qa for i in range(400) if (qa := some_number(View(photo), random.Random(i)))}
    assert told.pop("dog").answer == "I see one." and len(told) > 50
    for kind, qa in told.items():
        assert kind not in ("cat", "tree", "animal") and qa.truth == "0"
        assert qa.question in [q.format(s=KINDS[kind].plural) for q in COUNT]
        assert qa.answer == "I see none."


def test_an_examination_asks_nothing_of_practice():
    photo = Scene((Thing("dog", (0.1, 0.1, 0.9, 0.9), 0.5, None, "photo"),), "photo")
    assert not any(qa.type == "count" for i in range(40) for qa in ask(photo, random.Random(i), 5))
    assert any(qa.type == "count" for i in range(40) for qa in ask(photo, random.Random(i), 5, practice=True))
