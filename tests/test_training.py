"""The tiny model's training keeps its mathematics, goes on where it was killed, and learns what it can be asked."""

import dataclasses
import itertools
import math
import random
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch.utils.data import Dataset

import mlmamba
from mlmamba.__main__ import main
from mlmamba.config import ConnectorConfig, LanguageConfig, TransformerConfig
from mlmamba.hub import CHECKPOINTS
from mlmamba.model import MLMamba
from mlmamba.training import batches, evaluate, loop, naming
from mlmamba.training import train as training
from mlmamba.training.batches import NONE, TYPES, Batch, Batches, Branches
from mlmamba.training.naming import Imagined
from mlmamba.training.questions import DECLINE, DECLINE_WORLD, QA, View, ask, deciding, how_many, judge
from mlmamba.training.scenes import EMOJI_FONT, STAMPS, Scene, Sources, Thing
from mlmamba.training.things import COLOURS, KINDS
from mlmamba.training.tokenizer import layout
from mlmamba.vision import Vision

DATA = Path(__file__).parents[2] / "shared" / "data"
TINY = loop.recipe_from(training.Recipe, "tiny")
SMALL = dataclasses.replace(
    TINY.model,
    name="small",
    vision=dataclasses.replace(TINY.model.vision, image_size=320),
    connector=ConnectorConfig(2786, 32, kinds=("bsm", "csm"), n_layers=1, d_state=8, head_dim=16, d_projector=32),
    language=LanguageConfig(32, n_layers=1, vocab_size=4096, d_state=8, head_dim=16),
)
RECIPE = dataclasses.replace(
    TINY, model=SMALL, steps=5, align_steps=1, batch=2, micro_batch=2, branches=2, warmup=2, save_every=2, workers=0
)
WORDS = {  # ids for the words of each kind of fact
    "number": torch.arange(30, 37), "colour": torch.arange(3, 3 + len(COLOURS)), "row": torch.tensor([20, 21, 22]),
    "column": torch.tensor([23, 21, 24]),
}  # fmt: skip

on_real_data = pytest.mark.skipif(
    not (DATA / "tiny-imagenet-subset").exists() or not EMOJI_FONT.exists() or not STAMPS.exists(),
    reason="needs the training data, Debian's fonts-noto-color-emoji and tuxpaint-stamps-default",
)
# an owl is a bird, and may be taken for an eagle
SOME_KINDS = [list(KINDS).index(kind) for kind in ("owl", "bird", "eagle", "cup")]


class Drawn(Dataset):
    """Batches of random numbers in place of scenes: two pictures of 3 x 3 patches, two branches each, 12 tokens."""

    def __getitem__(self, index: int) -> Batch:
        generator = torch.Generator().manual_seed(index)

        def some(low: int, high: int, *shape: int) -> torch.Tensor:
            return torch.randint(low, high, shape, generator=generator)

        def talk() -> Branches:
            ids = some(0, 1024, 4, 12)
            asked = some(0, 3, 4, 12) == 0
            telling = torch.where(asked & (some(0, 2, 4, 12) == 0), some(0, 3, 4, 12), -1)
            early = torch.where(~asked & (some(0, 3, 4, 12) == 0), some(0, 1024, 4, 12), NONE)
            facts = torch.stack([some(0, len(words), 4, 12) for words in WORDS.values()], -1)
            facts = torch.where(some(0, 2, 4, 12, 4) == 0, facts, NONE)
            places = torch.where(some(0, 2, 4, 12, 1) == 0, torch.rand(4, 12, 2, generator=generator), float(NONE))
            kinds = torch.tensor([*SOME_KINDS, NONE])[some(0, 5, 4, 12)]
            return Branches(ids, torch.where(asked, some(0, 1024, 4, 12), NONE), telling, early, facts, places, kinds)

        words = torch.where(some(0, 2, 2, 9) == 0, some(0, 1024, 2, 9), NONE)
        pixels = some(0, 256, 2, 3, 96, 96).to(torch.uint8)
        colours = torch.where(some(0, 2, 2, 9) == 0, some(0, len(COLOURS), 2, 9), NONE)
        groups, amounts = some(0, 2, 2, 3, 9).float(), torch.where(some(0, 3, 2, 3) > 0, some(0, 5, 2, 3), NONE).float()
        pushed = [(some(-1, 1000, 2, 9), torch.rand(2, 9, generator=generator)) for _ in range(2)]
        pushed[0][0][0] = -1  # nothing in the first picture is called another
        photographic = torch.tensor([False, True])
        shows = torch.tensor([*SOME_KINDS, len(KINDS), NONE])[some(0, 6, 2, 9)]
        return Batch(
            pixels, words, photographic, colours, groups, amounts, talk(), shows, *pushed[0], *pushed[1], index
        )  # fmt: skip


def scenes_on_drawn(
    recipe: training.Recipe, accelerator, language: LanguageConfig | TransformerConfig = SMALL.language
) -> training.Scenes:
    config = dataclasses.replace(
        SMALL,
        vision=dataclasses.replace(SMALL.vision, image_size=96),
        language=dataclasses.replace(language, vocab_size=1024),
    )
    torch.manual_seed(recipe.seed)
    vision = Vision(config.vision)
    model = MLMamba(config, None, vision)
    training.initialise(model)
    teacher = training.Teacher.__new__(training.Teacher)  # one that names word i where the encoder sees class i
    teacher.word_ids, teacher.to_words, teacher.sure = torch.arange(1000), torch.eye(1000), 0.02
    imagination = Imagined(vision.towers[0], torch.rand(500, 1280, generator=torch.Generator().manual_seed(0)))
    return training.Scenes(model, teacher, imagination, WORDS, recipe, accelerator.device)


def train_on_drawn(out: Path, recipe: training.Recipe) -> list[dict]:
    """Train on `Drawn`; returns the log."""
    accelerator = loop.accelerator_for(recipe, "cpu")
    scenes = scenes_on_drawn(recipe, accelerator)
    scenes.model.towers.to(torch.bfloat16)
    out.mkdir(exist_ok=True)
    loop.train(scenes, Drawn(), recipe, out, accelerator)
    return loop.rows(out)


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> list[dict]:
    return train_on_drawn(tmp_path_factory.mktemp("drawn"), RECIPE)


def test_the_losses_are_what_a_plain_loop_finds(monkeypatch):
    """Place by place, with the picture read anew for each talk."""
    recipe = dataclasses.replace(RECIPE, precision="float32")
    scenes = scenes_on_drawn(recipe, loop.accelerator_for(recipe, "cpu"))
    model, batch = scenes.model.float(), Drawn()[0]
    mixer, language = model.language_model.layers[0], model.config.language
    keys = slice(2 * language.d_inner, 2 * (language.d_inner + language.d_state))
    mixer.in_proj.weight.data[keys] *= 30  # B and C are loud: names read more than one of a thing, of others too
    seen = scenes.see(batch)
    numbers = torch.tensor([0.0, 1.0, 3.0, NONE])[torch.arange(len(KINDS))[:, None] % torch.tensor([4, 3])]
    monkeypatch.setattr(training, "numbers_of", lambda *_: numbers)
    with torch.no_grad():
        loss, figures = scenes(seen, "csm", step=1)
        patches = seen.patches  # test_renaming asks what they are
        classes = model.towers.towers[0].classify(batch.pixels / 255).softmax(-1)
        output = model.connector(patches, (3, 3), "csm")
        features = output.features
        delta = model.language_model(features, scans=(0,)).scans[0].dt[..., 0]  # of the first head
        heads = [scan.dt[:, :, h].log().mean().item() for layer in output.scans for scan in layer for h in range(4)]

        def surprise(vector: torch.Tensor, target: int, among: list[int] | slice = slice(None)) -> float:
            return -torch.log_softmax(model.language_model.head(vector)[among], -1)[target].item()

        patch = {name: [] for name in ("patch_colour", "patch_row", "patch_column")}
        told = patch | {name: [] for name in ("align", "amounts", "answer", "telling", "early")}
        told |= {f"fact_{name}": [] for name in WORDS} | {
            name: [] for name in ("keys", "read", "numbers", "patch_place", "placed")
        }

        def apart(place: float, truth: float) -> float:
            off = abs(place - truth)
            return off - 0.05 if off > 0.1 else off**2 / 0.2

        def called(name: int, shows: int) -> int | None:
            if shows == NONE:
                return None
            bird, owl, eagle = SOME_KINDS[1], SOME_KINDS[0], SOME_KINDS[2]
            if name == shows or (name == bird and shows in (owl, eagle)):
                return 1
            return None if {name, shows} < {bird, owl, eagle} else 0

        owned = some_there = 0
        for b, i in itertools.product(range(2), range(9)):
            word = batch.words[b, i].item()
            if word == NONE and batch.photographic[b] and classes[b, i].max() > 0.02:
                word = classes[b, i].argmax().item()
            if word != NONE:
                told["align"].append(surprise(features[b, i], word))
            if (colour := batch.colours[b, i].item()) != NONE:
                told["patch_colour"].append(surprise(features[b, i], colour, WORDS["colour"].tolist()))
            told["patch_row"].append(surprise(features[b, i], i // 3, [20, 21, 22]))
            told["patch_column"].append(surprise(features[b, i], i % 3, [23, 21, 24]))
        for b, group in itertools.product(range(2), range(3)):
            if (amount := batch.amounts[b, group].item()) != NONE:
                told["amounts"].append(
                    apart(sum(delta[b, i].item() for i in range(9) if batch.groups[b, group, i]), amount)
                )
        talk = batch.talks
        states = [model.language_model(of[None]).state[0].ssm[0, 0, 0] for of in features]
        for row in range(4):
            read = torch.cat([features[row // 2], model.language_model.embed(talk.ids[row])])
            output = model.language_model(read[None], scans=(0,))
            hidden, scan = output.hidden[0, 9:], output.scans[0]
            counted = torch.zeros(3, 8)  # of the first head's first channels, as the paper's recurrence has it
            for i in range(9):
                delta_i = scan.dt[0, i, 0]
                counted = torch.exp(delta_i * scan.A[0]) * counted
                one, right, down = scan.x[0, i, 0, :3].tolist()
                counted = counted + delta_i * torch.outer(torch.tensor([one, right, down]), scan.B[0, i])
                if row % 2 == 0:  # two talks about a picture
                    told["patch_place"] += [
                        apart(right / one, (-2 / 3, 0, 2 / 3)[i % 3]), apart(down / one, (-2 / 3, 0, 2 / 3)[i // 3])
                    ]  # fmt: skip
            for t in range(12):
                kind = talk.kinds[row, t].item()
                if kind != NONE and (t == 0 or talk.kinds[row, t - 1] != kind):
                    for b, i in itertools.product(range(2), range(9)):
                        scan_b = model.language_model(features[b : b + 1], scans=(0,)).scans[0]
                        says = (scan.C[0, 9 + t] @ scan_b.B[0, i]).item() * scan_b.x[0, i, 0, 0].item()
                        if (truth := called(kind, batch.shows[b, i].item())) is not None:
                            told["keys"].append((says - truth) ** 2)
                            owned += truth
                    for state, there in zip(states, numbers[kind].tolist(), strict=True):
                        if there != NONE:
                            told["numbers"].append(apart((state @ scan.C[0, 9 + t]).item(), there))
                            some_there += there > 0
                    number, right, down = (counted @ scan.C[0, 9 + t]).tolist()
                    truth, (x, y) = talk.facts[row, t, 0].item(), talk.places[row, t].tolist()
                    if truth != NONE or x != NONE:
                        told["read"].append(apart(number, truth) if truth != NONE else apart(min(number, 1), 1))
                    if x != NONE:
                        told["placed"].append(apart(right, number * x) + apart(down, number * y))
                for name, targets in (("answer", talk.targets), ("early", talk.early)):
                    if (target := targets[row, t].item()) != NONE:
                        told[name].append(surprise(hidden[t], target))
                        if name == "answer" and talk.telling[row, t] >= 0:
                            told["telling"].append(told[name][-1])
                for (name, ids), fact in zip(WORDS.items(), talk.facts[row, t].tolist(), strict=True):
                    if fact != NONE:
                        told[f"fact_{name}"].append(surprise(hidden[t], fact, ids.tolist()))
    means = {name: sum(values) / len(values) for name, values in told.items()}
    means["numbers"] *= len(told["numbers"]) / some_there
    means["keys"] *= len(told["keys"]) / owned  # an average thing of many that it isn't would weigh nothing
    # the photo comes first
    imagined = model.connector(seen.imagined, (3, 3), "csm").features
    losses, sure = [], []
    for b, i in itertools.product(range(2), range(9)):
        told_so = torch.log_softmax(model.language_model.head(imagined[b, i])[:1000], -1)
        sure.append(seen.opinions[b, i].max().item())
        losses.append(-sure[-1] * (seen.opinions[b, i] * told_so).sum().item())
    means["imagined"] = sum(losses) / sum(sure)
    means["awake"] = sum(max(0.0, math.log(0.01) - mean) ** 2 for mean in heads) / len(heads)
    weights = dict.fromkeys(patch, recipe.tell) | {
        "align": recipe.align, "imagined": recipe.imagine, "amounts": recipe.amounts, "read": recipe.amounts,
        "numbers": recipe.amounts, "keys": recipe.keys, "patch_place": recipe.places, "placed": recipe.places,
        "awake": recipe.awake, "answer": 1.0, "telling": recipe.telling, "early": recipe.early,
    } | {f"fact_{name}": recipe.facts for name in WORDS}  # fmt: skip
    for name, mean in means.items():
        assert figures[name][0] == pytest.approx(mean, rel=1e-3), name
    assert loss.item() == pytest.approx(sum(weight * means[name] for name, weight in weights.items()), rel=1e-3)
    assert "answer" not in scenes(seen, "csm", step=0)[1]  # align_steps is 1


def test_connectors_meet_photos_thinned_out():
    recipe = dataclasses.replace(RECIPE, precision="float32", thin=0.5)
    scenes, batch = scenes_on_drawn(recipe, loop.accelerator_for(recipe, "cpu")), Drawn()[0]
    batch.amounts[:, 0] = torch.tensor([2.0, NONE])  # the second may show more than is known: a photo
    batch.instead[:], batch.towards[:] = -1, -1
    with torch.no_grad():
        plain, seen = scenes.model.towers(batch.pixels / 255), scenes.see(batch)
        again = scenes.see(dataclasses.replace(batch, seed=batch.seed + 1))
    torch.testing.assert_close(seen.patches[0], plain[0])
    gone = (seen.patches[1] == 0).all(0)
    assert 0.4 < gone[:1448].float().mean() < 0.6 and not gone[1448:2448].all()
    assert not torch.equal(gone, (again.patches[1] == 0).all(0))
    torch.testing.assert_close(seen.imagined[0], plain[1])  # photos come first


def test_a_run_asks_for_what_the_head_sees(tmp_path, monkeypatch):
    told = {}
    shutil.copy(CHECKPOINTS / "tiny" / "tokenizer.json", tmp_path)
    monkeypatch.setattr(training, "look", lambda *_: (torch.rand(1, 4, 2786), torch.rand(1, 4, 1280)))
    monkeypatch.setattr(training, "start_as_dictionary", lambda *_: None)
    monkeypatch.setattr(training, "sightings", lambda tower, sources, size: {"a.jpg": (tower.grid, size)})
    monkeypatch.setattr(loop, "train", lambda scenes, batches, *_: told.update(batches.sources.sightings))
    training.train(tmp_path, DATA, RECIPE, device="cpu")
    assert told == {"a.jpg": ((10, 10), 320)}


def test_closed_heads_open_again():
    """From Δ of 1e-6, by the loss on sleep alone; an MLP has none."""
    recipe = dataclasses.replace(RECIPE, precision="float32")
    model = scenes_on_drawn(recipe, loop.accelerator_for(recipe, "cpu")).model
    patches = torch.randn(2, 9, 2786, generator=torch.Generator().manual_seed(0))
    for direction in model.connector.scan["bsm"].layers[0].mvss.directions:
        direction.dt_bias.data.fill_(math.log(1e-6))
    adam = torch.optim.Adam(model.connector.parameters(), 0.05)
    told = []
    for _ in range(150):
        loss = training.asleep(model.connector(patches, (3, 3), "bsm").scans)
        told.append(loss.item())
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert told[0] > 30 and told[-1] < 1
    assert training.asleep(()) == 0


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_each_weight_has_one_optimiser_and_learns(optimiser, tmp_path):
    recipe = dataclasses.replace(RECIPE, optimiser=optimiser, precision="float32", steps=3, warmup=1, decay=0.0)
    scenes = scenes_on_drawn(recipe, loop.accelerator_for(recipe, "cpu"))
    told = [
        weight
        for one in loop.optimisers_for(scenes, recipe)
        for group in one.param_groups
        for weight in group["params"]
    ]
    assert sorted(map(id, told)) == sorted(map(id, scenes.parameters()))
    before = {name: weight.clone() for name, weight in scenes.state_dict().items()}
    loop.train(scenes, Drawn(), recipe, tmp_path, loop.accelerator_for(recipe, "cpu"))
    still = [name for name, weight in scenes.state_dict().items() if torch.equal(weight, before[name])]
    assert not [name for name in still if name.startswith("model.")]


def test_a_transformer_counts_by_a_head_of_training_alone(tmp_path):
    sizes = TransformerConfig(kind="llama", d_model=32, n_layers=1, n_heads=2, d_mlp=64, vocab_size=1024)
    scenes = scenes_on_drawn(RECIPE, loop.accelerator_for(RECIPE, "cpu"), language=sizes)
    loud = scenes.taken_in(torch.tensor([100.0, -100.0])[:, None].expand(2, 32))
    assert ((loud >= 0.001) & (loud <= 0.1)).all()  # what Mamba's Δ starts between, whatever there is to see
    before = {name: weight.clone() for name, weight in scenes.state_dict().items()}
    loop.train(scenes, Drawn(), RECIPE, tmp_path, loop.accelerator_for(RECIPE, "cpu"))
    learnt = {name for name, weight in scenes.state_dict().items() if not torch.equal(weight, before[name])}
    assert {"amount.weight", "amount.bias"} <= learnt
    assert load_file(tmp_path / "model.safetensors").keys() == scenes.model.state_dict().keys()


def test_a_stopped_run_goes_on_to_the_same_losses(log, tmp_path, monkeypatch):
    forward = training.Scenes.forward

    def stopped(self, seen, kind, step):
        if step == 3 and kind == "csm":
            raise KeyboardInterrupt
        return forward(self, seen, kind, step)

    monkeypatch.setattr(training.Scenes, "forward", stopped)
    with pytest.raises(KeyboardInterrupt):
        train_on_drawn(tmp_path, RECIPE)
    monkeypatch.setattr(training.Scenes, "forward", forward)
    with (tmp_path / "log.jsonl").open("a") as half:
        half.write('{"step": 3, "lo')  # killed while it wrote
    again = train_on_drawn(tmp_path, RECIPE)
    assert [row["step"] for row in again] == list(range(5))  # step 2 was done twice, and stands there once
    for row, expected in zip(again, log, strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert any((tmp_path / "tensorboard").iterdir())


def test_a_checkpoint_that_was_cut_off_is_passed_over(log, tmp_path):
    train_on_drawn(tmp_path, dataclasses.replace(RECIPE, save_every=1))
    assert [folder.name for folder in loop.checkpoints(tmp_path)] == ["0000004", "0000005"]  # the last two
    newest = tmp_path / "checkpoints" / "0000005" / "model.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])
    assert [folder.name for folder in loop.checkpoints(tmp_path)] == ["0000004"]
    again = train_on_drawn(tmp_path, RECIPE)
    assert again[-1]["loss"] == pytest.approx(log[-1]["loss"], rel=1e-5)
    assert [folder.name for folder in loop.checkpoints(tmp_path)] == ["0000004", "0000005"]


def test_two_runs_do_not_share_a_folder(tmp_path, monkeypatch):
    recipe = dataclasses.replace(RECIPE, steps=1)
    forward, refused = training.Scenes.forward, []

    def meanwhile(self, seen, kind, step):
        monkeypatch.setattr(training.Scenes, "forward", forward)
        with pytest.raises(mlmamba.UserError, match=r"Another run is at work in .*name another folder") as error:
            train_on_drawn(tmp_path, recipe)
        refused.append(error)
        return forward(self, seen, kind, step)

    monkeypatch.setattr(training.Scenes, "forward", meanwhile)
    assert [row["step"] for row in train_on_drawn(tmp_path, recipe)] == [0] and refused


def test_another_recipe_does_not_go_on(tmp_path):
    train_on_drawn(tmp_path, dataclasses.replace(RECIPE, steps=1))
    with pytest.raises(mlmamba.UserError, match="another recipe"):
        train_on_drawn(tmp_path, dataclasses.replace(RECIPE, learning_rate=1.0))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"learning_rat": 1}, "learning_rat"),
        ({"model": {"connector": {"layers": 2}}}, "model.connector.layers"),
        ({"clip": "much"}, "clip"),
        ({"objective": "scene"}, "objective"),
        ({"micro_batch": 0}, "micro_batch"),
    ],
)
def test_a_config_that_does_not_fit_is_one_sentence(changed, said, tmp_path, capsys):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(loop.values("tiny") | changed))
    assert main(["train", str(file), str(tmp_path / "out"), "--data", str(tmp_path)]) == 1
    told = capsys.readouterr().err.strip()
    assert said in told and len(told.splitlines()) == 1


def test_a_gradient_without_bounds_stops_the_run(tmp_path):
    with pytest.raises(mlmamba.UserError, match="not finite"):
        train_on_drawn(tmp_path, dataclasses.replace(RECIPE, learning_rate=1e30))


def test_a_batch_that_cannot_be_shared_out_is_told(tmp_path):
    with pytest.raises(mlmamba.UserError, match="micro_batch"):
        train_on_drawn(tmp_path, dataclasses.replace(RECIPE, batch=3))


def test_every_key_of_the_configs_has_a_comment():
    for file in loop.CONFIGS.glob("*.yaml"):
        for line in file.read_text().splitlines():
            assert not line.strip() or "#" in line or line.endswith(":"), f"{file.name}: {line}"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    shutil.copy(CHECKPOINTS / "tiny" / "tokenizer.json", out)  # its own would take half a minute
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(naming, "N_PICTURES", 32)
        patch.setattr(training, "sightings", lambda *_: {})  # of hundreds of photos; test_naming is about them
        training.train(out, DATA, dataclasses.replace(RECIPE, steps=2), device="cpu")
    return out


@on_real_data
@pytest.mark.slow
def test_what_was_trained_loads_and_answers(whole):
    model = mlmamba.load(whole, device="cpu")
    example = Path(__file__).parents[1] / "examples" / "meadow.jpg"
    assert isinstance(model.chat(example, "Is there a dog?", max_new_tokens=3), str)
    moved = load_file(whole / "model.safetensors")
    torch.manual_seed(RECIPE.seed)
    fresh = mlmamba.model.MLMamba(SMALL)
    training.initialise(fresh)
    assert all(not torch.equal(moved[name], tensor) for name, tensor in fresh.state_dict().items() if "weight" in name)


@on_real_data
@pytest.mark.slow
def test_loss_is_on_answers_alone(whole):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(whole / "tokenizer.json"))
    dataset = Batches(Sources(DATA), tokenizer, size=2, branches=3, max_tokens=48, image_size=320, seed=7)
    batch = dataset[0]
    assert batch.pixels.shape == (2, 3, 320, 320) and batch.words.shape == (2, 100)
    talk = batch.talks
    assert talk.ids.shape == talk.targets.shape == (6, 48)
    for ids, targets, telling in zip(talk.ids.tolist(), talk.targets.tolist(), talk.telling.tolist(), strict=True):
        text = tokenizer.decode(ids, skip_special_tokens=False)
        replies = [part.split("<|endoftext|>")[0] for part in text.split("<|assistant|>\n")[1:]]
        told = tokenizer.decode([t for t in targets if t != NONE], skip_special_tokens=False)
        assert told == "".join(f"{reply}<|endoftext|>" for reply in replies)
        assert sum(f >= 0 for f in telling) >= len(replies) and max(telling) < len(TYPES)
        assert all(target != NONE for target, f in zip(targets, telling, strict=True) if f >= 0)
        assert all(t in (NONE, n) for t, n in zip(targets, ids[1:], strict=False))
    again = dataset[0]
    assert torch.equal(again.pixels, batch.pixels) and torch.equal(again.talks.ids, talk.ids)
    assert not torch.equal(dataset[1].pixels, batch.pixels)


class Parrot:
    """A model and its conversation at once, which says what it was told to."""

    config = SimpleNamespace(vision=SimpleNamespace(image_size=64))

    def __init__(self, say):
        self.say, self.turns = say, 0

    def start(self, image, connector):
        return self

    def ask(self, question, **options):
        self.turns += 1
        yield self.say(question)

    def undo(self):
        self.turns -= 1


def test_agreement_and_declining_are_counted(monkeypatch):
    """By parrots: one that always says the same, one that never does, one that declines half of the questions."""
    monkeypatch.setattr(evaluate, "compose", lambda *_: (None, Scene((), "drawing")))
    number = itertools.count()
    same = dict((row, share) for row, share, _ in evaluate.unanimous(Parrot(lambda _: "No, none."), "bsm", DATA, 1, 3))
    never = dict((row, share) for row, share, _ in evaluate.unanimous(
        Parrot(lambda _: f"{next(number)}, so"), "bsm", DATA, 1, 3))  # fmt: skip
    assert len(same) == 3 and set(same.values()) == {1.0} and set(never.values()) == {0.0}
    # of an is-there answer only yes or no counts
    noted = Parrot(lambda question: f"Yes, {next(number)}.")
    assert [share for _, share, _ in evaluate.unanimous(noted, "bsm", DATA, 1, 3)] == [1.0, 0.0, 0.0]
    assert noted.turns == 0  # each is asked as if it were the first
    polite = Parrot(lambda question: "Sorry, no." if question in evaluate.OUT_OF_REACH[::2] else "It is a dog.")
    _, share, of = evaluate.declined(polite, "bsm", DATA, 1)
    assert of == len(evaluate.OUT_OF_REACH) and share == (of + 1) // 2 / of
    world = {f"{start} {end}" for start, ends in DECLINE_WORLD.items() for end in ends} | set(DECLINE)
    assert not {question.strip("?.") for question in evaluate.OUT_OF_REACH} & {
        question.strip("?.") for question in world
    }


def test_denials_of_nothing_are_counted(monkeypatch):
    """Of one that sees through every third question."""
    scene = Scene((Thing("dog", (0.1, 0.1, 0.3, 0.3), 0.04, "red"),), "drawing")
    monkeypatch.setattr(evaluate, "compose", lambda *_: (None, scene))
    asked = []

    def say(question: str) -> str:
        asked.append(question)
        return "It is red." if len(asked) % 3 else "I see none."

    parrot = Parrot(say)
    ((_, share, of),) = evaluate.of_nothing(parrot, "bsm", DATA, 1, 200)
    assert 150 < of == len(asked) <= 200 and share == of // 3 / of and parrot.turns == 0
    assert not any("dog" in question for question in asked)
    # "no" to "is it red?" tells nothing
    assert not any(re.search(rf"\b({'|'.join(set(COLOURS) - {'orange'})})\b", question) for question in asked)
    monkeypatch.setattr(evaluate, "compose", lambda *_: (None, Scene((), "drawing")))
    assert not list(evaluate.of_nothing(parrot, "bsm", DATA, 1, 5))


def test_the_deciding_words_decide():
    """What `judge` calls right is not right any more once those words are gone."""
    rng, types = random.Random(0), set()
    for _ in range(600):
        for qa in ask(layout(rng), rng, 8):
            spans, answer = deciding(qa), qa.answer
            assert judge(qa, answer)
            for start, end in sorted(spans, reverse=True):
                assert re.fullmatch(r"[\w'ñ -]+", answer[start:end]), qa
                answer = answer[:start] + "xx" + answer[end:]
            assert not judge(qa, answer) or qa.truth in answer, qa  # "a bubble is below the speech bubble"
            types.add(qa.type)
    assert types == set(TYPES)


def test_facts_begin_at_the_name_of_a_thing(tmp_path):
    """In the ids of a talk: nothing before the name, from there the thing's facts, nothing in the answer."""
    tokenizer = Tokenizer.from_file(str(CHECKPOINTS / "tiny" / "tokenizer.json"))
    made = Batches(Sources(DATA), tokenizer, size=1, branches=1, max_tokens=60, image_size=320, seed=0)
    dog, cat = Thing("dog", (0.0, 0.0, 0.2, 0.2), 0.02, "brown"), Thing("cat", (0.45, 0.8, 0.55, 0.9), 0.01, "grey")
    qa = QA("relation", "Where is the dog relative to the cat?", "It is above it.", "above", ("dog", "cat"))
    ((ids, _, _, _, facts, places, kinds),) = made.pack(View(Scene((dog, cat), "drawing")), [qa], random.Random(0))
    read = [tokenizer.decode([i], skip_special_tokens=False) for i in ids]
    at, then, answer = read.index(" dog"), read.index(" cat"), read.index("\n<|assistant|>\n") + 1
    assert set(facts[:at]) == set(facts[answer:]) == {(NONE,) * 4}
    assert set(places[:at]) == set(places[answer:]) == {(NONE, NONE)}
    # numbers begin with "no"
    assert set(facts[at:then]) == {(1, COLOURS.index("brown"), 0, 0)}
    assert set(facts[then:answer]) == {(1, COLOURS.index("grey"), 2, 1)}
    assert [*dict.fromkeys(kinds)] == [NONE, list(KINDS).index("dog"), list(KINDS).index("cat")]
    (of_dog,), (of_cat,) = set(places[at:then]), set(places[then:answer])
    assert of_dog == pytest.approx((-0.8, -0.8)) and of_cat == pytest.approx((0.0, 0.7))


def test_what_is_denied_is_shown_elsewhere(monkeypatch):
    """What is denied is most often what another picture of the same style shows, and never what is there.

    Rare things are denied as often as in an examination, where there is no other picture.
    """
    tokenizer = Tokenizer.from_file(str(CHECKPOINTS / "tiny" / "tokenizer.json"))
    made = Batches(Sources(DATA), tokenizer, size=4, branches=3, max_tokens=60, image_size=64, seed=0)
    box = (0.1, 0.1, 0.9, 0.9)
    dog, zebra = (Scene((Thing(kind, box, 0.5, None, "photo"),), "photo") for kind in ("dog", "zebra"))
    hidden = Scene((), "photo")
    drawing = Scene((Thing("cup", box, 0.5),), "drawing")
    denied: dict[int, list[str]] = {id(scene): [] for scene in (dog, zebra, hidden, drawing)}

    def spied(scene: Scene, *args, **how) -> list[QA]:
        asked = ask(scene, *args, **how)
        denied[id(scene)] += [qa.kinds[0] for qa in asked if qa.type == "is_there" and qa.truth == "no"]
        return asked

    monkeypatch.setattr(batches, "ask", spied)
    for i in range(60):
        made.talks((dog, zebra, hidden, drawing), random.Random(i))
    for one, other in ((dog, zebra), (zebra, dog)):
        kinds = denied[id(one)]
        shown = set(View(other).shows()) - set(View(one).shows())
        share = sum(kind in shown for kind in kinds) / len(kinds)
        assert len(kinds) > 60 and 0.5 < share < 0.75 and kinds.count("cup") < 0.1 * len(kinds), (share, len(kinds))
        assert not set(kinds) & set(View(one).shows())
    # of a picture alone in its style, anything
    assert denied[id(drawing)] and len(set(denied[id(drawing)])) > 0.5 * len(denied[id(drawing)])
    examined, taught = View(dog), View(dog, elsewhere=[View(zebra).shows()])
    rare = [
        sum(not KINDS[view.absent(rng)].core for rng in map(random.Random, range(2000))) for view in (examined, taught)
    ]
    assert rare[0] > 200 and rare[1] == pytest.approx(rare[0], rel=0.1), rare


@on_real_data
@pytest.mark.slow
def test_a_talk_asks_of_a_thing_once(whole, monkeypatch):
    """What was said of a thing could be copied when it is asked for again: counting would need no look."""
    tokenizer = Tokenizer.from_file(str(whole / "tokenizer.json"))
    made = Batches(Sources(DATA), tokenizer, size=1, branches=4, max_tokens=60, image_size=64, seed=0)
    dog, cat = Thing("dog", (0.1, 0.1, 0.3, 0.2), 0.02, None), Thing("cat", (0.7, 0.8, 1.0, 1.0), 0.06, None)
    qas = [how_many(kind, 1, random.Random(i)) for i in range(8) for kind in ("dog", "cat")]

    def asked(again: float) -> list[list[str]]:
        monkeypatch.setattr(batches, "AGAIN", again)
        rows = made.pack(View(Scene((dog, cat), "drawing")), qas, random.Random(0))
        return [re.findall("dog|cat", tokenizer.decode(ids)) for ids, *_ in rows]

    assert [sorted(row) for row in asked(0)] == [["cat", "dog"]] * 4
    assert any(len(row) > len(set(row)) for row in asked(1))


def test_what_was_counted_stays():
    scenes = scenes_on_drawn(RECIPE, loop.accelerator_for(RECIPE, "cpu"))
    decay = scenes.model.language_model.layers[0].scan.A[0].item()
    five = 0.0
    for _ in range(5):  # things that Δ = 1 takes in, by the paper's recurrence
        five = math.exp(decay) * five + 1
    assert 4.95 < five < 5


def test_numbers_of_things_by_any_of_their_names():
    cells: list[list[str | None]] = [["owl", "owl", None], ["cup", None, None], [None, "dog", "dog"]]
    box = (0.0, 0.0, 0.5, 0.5)
    things = tuple(Thing(kind, box, 0.1, None) for kind in ("owl", "owl", "cup", "dog"))
    drawn = Scene(things, "drawing", "white", (), cells)
    on_photo = dataclasses.replace(drawn, background=None)
    photo = dataclasses.replace(drawn, things=tuple(dataclasses.replace(t, source="photo") for t in things))
    thin = dataclasses.replace(drawn, things=(*things, Thing("pencil", box, 0.001, None)))  # owns no patch
    scenes = [drawn, on_photo, photo, thin]
    groups, amounts = batches.amounts_of(scenes)
    shows = torch.tensor([batches.shown(scene) for scene in scenes])
    seen = SimpleNamespace(groups=groups, amounts=amounts, shows=shows)
    numbers = dict(zip(KINDS, training.numbers_of(seen, batches.alike()).tolist(), strict=True))
    assert numbers["owl"] == numbers["bird"] == [2, 2, NONE, NONE]
    assert numbers["cup"] == numbers["dog"] == [1, 1, NONE, NONE]
    assert numbers["eagle"] == [NONE] * 4  # an owl may be taken for one
    assert numbers["castle"] == [0, NONE, NONE, NONE]  # a photo behind may show one


def test_sides_of_patches():
    rows, columns = (torch.tensor(side).view(10, 10) for side in batches.sides((10, 10)))
    assert rows[:, 4].tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 2, 2] and torch.equal(columns, rows.T)


def test_patches_tell_colours_and_amounts():
    cells: list[list[str | None]] = [[None] * 10 for _ in range(10)]
    cells[1][1] = cells[1][2] = "dog"
    cells[8][8] = "cat"
    dog, cat = Thing("dog", (0.1, 0.1, 0.3, 0.2), 0.02, "brown"), Thing("cat", (0.8, 0.8, 0.9, 0.9), 0.01, None)
    scene = Scene((dog, cat), "drawing", None, (), cells)
    found = torch.tensor(batches.colours(scene)).view(10, 10)
    assert found[1, 1] == found[1, 2] == COLOURS.index("brown") and (found != NONE).sum() == 2
    thin = Thing("pencil", (0.5, 0.1, 0.51, 0.3), 0.001, None)  # owns no patch
    whose: list[list[int | None]] = [[None] * 10 for _ in range(10)]
    whose[1][1], whose[1][2], whose[8][8] = 0, 1, 2
    two = dataclasses.replace(
        scene, things=(dog, dataclasses.replace(dog, colour="black"), cat, thin, thin), whose=whose
    )
    assert set(batches.colours(two)) == {NONE}  # dogs of two colours
    groups, numbers = batches.amounts(two)
    patches = [[i for i, share in enumerate(group) if share] for group in groups]
    told = [(number, which) for number, which in zip(numbers, patches, strict=True) if number != NONE]
    # all, cats, dogs, either dog; none of pencils, which own no patch, nor of a cat that has not its like
    assert told == [(5, [*range(100)]), (1, [88]), (2, [11, 12]), (1, [11]), (1, [12])]
    assert sum(map(len, patches)) == 105
    photo = dataclasses.replace(scene, things=(dog, dataclasses.replace(cat, source="photo")))
    assert set(batches.amounts(photo)[1]) == {NONE}
