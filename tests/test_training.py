"""The tiny model's training keeps its mathematics, goes on where it was killed, and learns what it can be asked."""

import dataclasses
import itertools
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.utils.data import Dataset

import mlmamba
from mlmamba.__main__ import main
from mlmamba.config import ConnectorConfig, LanguageConfig
from mlmamba.hub import CHECKPOINTS
from mlmamba.model import MLMamba
from mlmamba.training import evaluate, loop
from mlmamba.training import train as training
from mlmamba.training.batches import NONE, TYPES, Batch, Batches, Branches
from mlmamba.training.questions import DECLINE
from mlmamba.training.scenes import EMOJI_FONT, STAMPS, Scene, Sources
from mlmamba.vision import Vision

DATA = Path(__file__).parents[2] / "shared" / "data"
TINY = loop.recipe_from(training.Recipe, "tiny")
SMALL = dataclasses.replace(
    TINY.model,
    name="small",
    connector=ConnectorConfig(1448, 32, kinds=("bsm", "csm"), n_layers=1, d_state=8, head_dim=16, d_projector=32),
    language=LanguageConfig(32, n_layers=1, vocab_size=4096, d_state=8, head_dim=16),
)
RECIPE = dataclasses.replace(
    TINY, model=SMALL, steps=5, align_steps=1, batch=2, micro_batch=2, branches=2, warmup=2, save_every=2, workers=0
)
# The losses before there was a loop of its own for training: on `Drawn` scenes, the mean of both connectors
BEFORE = {
    "align": [7.6467, 7.16682, 7.02912, 7.17291, 6.93777],
    "answer": [7.53425, 7.01322, 7.28311, 7.72854],
    "first": [7.60081, 6.88277, 7.34109, 8.36076],
    "early": [7.14346, 7.55868, 7.41107, 8.13712],
    "loss": [7.6467, 29.89101, 28.07265, 29.25728, 31.98751],
    "rate": [0.001, 0.002, 0.002, 0.00173913, 0.000869565],
}

on_real_data = pytest.mark.skipif(
    not (DATA / "tiny-imagenet-subset").exists() or not EMOJI_FONT.exists() or not STAMPS.exists(),
    reason="needs the training data, Debian's fonts-noto-color-emoji and tuxpaint-stamps-default",
)


class Drawn(Dataset):
    """Batches of random numbers in place of scenes: two pictures of 3 x 3 patches, two branches each, 12 tokens."""

    def __getitem__(self, index: int) -> Batch:
        generator = torch.Generator().manual_seed(index)

        def some(low: int, high: int, *shape: int) -> torch.Tensor:
            return torch.randint(low, high, shape, generator=generator)

        def talk() -> Branches:
            ids = some(0, 1024, 4, 12)
            asked = some(0, 3, 4, 12) == 0
            first = torch.where(asked & (some(0, 2, 4, 12) == 0), some(0, 3, 4, 12), -1)
            early = torch.where(~asked & (some(0, 3, 4, 12) == 0), some(0, 1024, 4, 12), NONE)
            return Branches(ids, torch.where(asked, some(0, 1024, 4, 12), NONE), first, early)

        words = torch.where(some(0, 2, 2, 9) == 0, some(0, 1024, 2, 9), NONE)
        pixels = some(0, 256, 2, 3, 96, 96).to(torch.uint8)
        return Batch(pixels, words, torch.tensor([True, False]), [talk(), talk()])


def train_on_drawn(out: Path, recipe: training.Recipe) -> list[dict]:
    """Train on `Drawn`; returns the log."""
    config = dataclasses.replace(
        SMALL,
        vision=dataclasses.replace(SMALL.vision, image_size=96),
        language=dataclasses.replace(SMALL.language, vocab_size=1024),
    )
    accelerator = loop.accelerator_for(recipe, "cpu")
    torch.manual_seed(recipe.seed)
    vision = Vision(config.vision)
    model = MLMamba(config, None, vision)
    training.initialise(model)
    vision.to(torch.bfloat16)
    teacher = training.Teacher.__new__(training.Teacher)  # one that names word i where the encoder sees class i
    teacher.word_ids, teacher.to_words, teacher.sure = torch.arange(1000), torch.eye(1000), 0.02
    scenes = training.Scenes(model, teacher, recipe, accelerator.device)
    out.mkdir(exist_ok=True)
    loop.train(scenes, Drawn(), recipe, out, accelerator)
    return loop.rows(out)


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> list[dict]:
    return train_on_drawn(tmp_path_factory.mktemp("drawn"), RECIPE)


def test_the_losses_are_those_from_before_the_loop(log):
    assert [row["step"] for row in log] == list(range(5))
    for name, expected in BEFORE.items():
        found = [row[name] for row in log if name in row]
        assert found == pytest.approx(expected, rel=1e-2), name  # bfloat16 on another CPU
    assert "answer" not in log[0]  # align_steps is 1


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
    batches = Batches(
        Sources(DATA), tokenizer, size=2, branches=3, max_tokens=48, sets=2, image_size=320, seed=7
    )  # fmt: skip
    batch = batches[0]
    assert batch.pixels.shape == (2, 3, 320, 320) and batch.words.shape == (2, 100) and len(batch.talks) == 2
    for talk in batch.talks:
        assert talk.ids.shape == talk.targets.shape == (6, 48)
        for ids, targets, first in zip(talk.ids.tolist(), talk.targets.tolist(), talk.first.tolist(), strict=True):
            text = tokenizer.decode(ids, skip_special_tokens=False)
            replies = [part.split("<|endoftext|>")[0] for part in text.split("<|assistant|>\n")[1:]]
            told = tokenizer.decode([t for t in targets if t != NONE], skip_special_tokens=False)
            assert told == "".join(f"{reply}<|endoftext|>" for reply in replies)
            assert sum(f >= 0 for f in first) == len(replies) and max(first) < len(TYPES)
            assert all(t in (NONE, n) for t, n in zip(targets, ids[1:], strict=False))
    again = batches[0]
    assert torch.equal(again.pixels, batch.pixels) and torch.equal(again.talks[1].ids, batch.talks[1].ids)
    assert not torch.equal(batches[1].pixels, batch.pixels)


class Parrot:
    """A model and its conversation at once, which says what it was told to."""

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
    assert not set(evaluate.OUT_OF_REACH) & set(DECLINE)
