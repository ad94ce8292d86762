"""Training really runs, goes on where it was killed, and learns; on the real data where it is at hand."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import mlmamba
from mlmamba.config import ConnectorConfig, LanguageConfig
from mlmamba.training import train as training
from mlmamba.training.batches import NONE, TYPES, Batches
from mlmamba.training.scenes import EMOJI_FONT, STAMPS, Sources

DATA = Path(__file__).parents[2] / "shared" / "data"
SMALL = dataclasses.replace(
    training.TINY,
    name="small",
    connector=ConnectorConfig(1448, 32, kinds=("bsm", "csm"), n_layers=1, d_state=8, head_dim=16, d_projector=32),
    language=LanguageConfig(32, n_layers=1, vocab_size=4096, d_state=8, head_dim=16),
)
RECIPE = training.Recipe(steps=5, align_steps=1, pictures=2, branches=2, warmup=2)

pytestmark = pytest.mark.skipif(
    not (DATA / "tiny-imagenet-subset").exists() or not EMOJI_FONT.exists() or not STAMPS.exists(),
    reason="needs the training data, Debian's fonts-noto-color-emoji and tuxpaint-stamps-default",
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    training.train(out, DATA, RECIPE, device="cpu", workers=0, config=SMALL)
    return out


def test_a_killed_run_goes_on_to_the_same_weights(whole, tmp_path, monkeypatch):
    step = training._step

    def killed(*args):
        if args[-1] == 3:
            raise KeyboardInterrupt
        return step(*args)

    (tmp_path / "tokenizer.json").write_bytes((whole / "tokenizer.json").read_bytes())
    monkeypatch.setattr(training, "_step", killed)
    with pytest.raises(KeyboardInterrupt):
        training.train(tmp_path, DATA, RECIPE, device="cpu", workers=0, config=SMALL, save_every=2)
    monkeypatch.setattr(training, "_step", step)
    training.train(tmp_path, DATA, RECIPE, device="cpu", workers=0, config=SMALL)
    expected, found = (load_file(out / "model.safetensors") for out in (whole, tmp_path))
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-6, rtol=1e-5)
    steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps == [0, 1, 2, 2, 3, 4]  # step 2 was after the last checkpoint


def test_another_recipe_does_not_go_on(whole):
    with pytest.raises(mlmamba.UserError, match="another recipe"):
        other = dataclasses.replace(RECIPE, learning_rate=1.0)
        training.train(whole, DATA, other, device="cpu", workers=0, config=SMALL)


def test_what_was_trained_loads_and_answers(whole):
    model = mlmamba.load(whole, device="cpu")
    example = Path(__file__).parents[1] / "examples" / "meadow.jpg"
    assert isinstance(model.chat(example, "Is there a dog?", max_new_tokens=3), str)
    moved = load_file(whole / "model.safetensors")
    torch.manual_seed(RECIPE.seed)
    fresh = mlmamba.MLMamba(SMALL)
    training.initialise(fresh)
    assert all(not torch.equal(moved[name], tensor) for name, tensor in fresh.state_dict().items() if "weight" in name)


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
