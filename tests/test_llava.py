"""The 3B recipe in the small: its loss is on answers alone, and two processes that share the model out, are killed
and go on learn what one process does."""

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from tokenizers import Tokenizer

import mlmamba
from mlmamba import weights
from mlmamba.__main__ import main
from mlmamba.config import ConnectorConfig, LanguageConfig, MLMambaConfig, VisionConfig
from mlmamba.model import MLMamba
from mlmamba.training import llava, loop
from mlmamba.training.batches import NONE

ROOT = Path(__file__).parents[1]
PUBLISHED = Path(__file__).parent / "data" / "published-tiny"
WORDS = "a red dog sees two small houses near the old tree and nobody knows why it rains today".split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A random model of reduced sizes, and samples: pictures (one broken, one missing), text alone, one too long."""
    folder = tmp_path_factory.mktemp("llava")
    tokenizer = Tokenizer.from_file(str(ROOT / "checkpoints" / "tiny" / weights.TOKENIZER))
    words = tokenizer.get_vocab_size()
    config = MLMambaConfig(
        name="small",
        vision=VisionConfig(("efficientnet-lite0",), 96),
        connector=ConnectorConfig(1450, 32, kinds=("bsm",), n_layers=1, d_state=8, head_dim=16, d_projector=32),
        language=LanguageConfig(32, n_layers=2, vocab_size=words, d_state=8, head_dim=16),
        vocab_words=words,
    )
    torch.manual_seed(0)
    weights.save(config, MLMamba(config).state_dict(), folder / "model")
    tokenizer.save(str(folder / "model" / weights.TOKENIZER))

    rng = random.Random(0)

    def text(low: int, high: int) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(low, high)))

    samples = []
    for number in range(40):
        sample: dict = {"id": f"s{number}", "conversations": []}
        for turn in range(rng.randint(1, 2)):
            mark = "<image>\n" if turn == 0 and number % 3 else ""
            sample["conversations"].append({"from": "human", "value": mark + text(1, 6)})
            sample["conversations"].append({"from": "gpt", "value": text(1, 12)})
        if number % 3:
            sample["image"] = f"{number}.png"
            noise = np.random.default_rng(number).integers(0, 256, (20, 30, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / sample["image"])
        samples.append(sample)
    (folder / "4.png").write_bytes((folder / "4.png").read_bytes()[:300])
    (folder / "5.png").unlink()
    samples[7]["conversations"][1]["value"] = text(200, 200)
    (folder / "samples.json").write_text(json.dumps(samples))
    return folder


def config_file(folder: Path, name: str, **changed) -> Path:
    """The 3B recipe with reduced sizes."""
    small = {
        "model": str(folder / "model"), "samples": ["samples.json"], "steps": 20, "batch": 4, "micro_batch": 2,
        "learning_rate": 5e-3, "precision": "float32", "max_tokens": 64, "save_every": 4, "workers": 0,
    }  # fmt: skip
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(loop.values("3b") | small | changed))
    return path


@pytest.fixture(scope="module")
def alone(folder) -> list[dict]:
    """The log of an unbroken run of one process."""
    out = folder / "alone"
    assert main(["train", str(config_file(folder, "alone")), str(out), "--data", str(folder), "--device", "cpu"]) == 0
    return loop.rows(out)


def processes(folder: Path, config: Path, out: Path, n: int) -> list[subprocess.Popen]:
    """`accelerate launch` in the small: n processes that find each other by their environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(n):
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": n, "LOCAL_WORLD_SIZE": n, "MASTER_PORT": port}
        env = os.environ | {key: str(value) for key, value in places.items()}
        env |= {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        command = [sys.executable, "-m", "mlmamba", "train", str(config), str(out), "--data", str(folder)]
        with (folder / f"process-{rank}.txt").open("a") as said:
            started.append(subprocess.Popen(command, cwd=ROOT, env=env, stdout=said, stderr=said))
    return started


@pytest.mark.slow
def test_two_sharded_processes_killed_and_resumed_learn_what_one_does(folder, alone):
    config, out = config_file(folder, "two", micro_batch=1), folder / "two"
    running = processes(folder, config, out, 2)
    try:
        deadline = time.time() + 300
        while len(loop.rows(out)) < 7:  # past the checkpoint of step 4, before that of step 8
            assert time.time() < deadline and all(p.poll() is None for p in running), said(folder)
            time.sleep(0.1)
    finally:
        for process in running:
            process.kill()  # SIGKILL
            process.wait()
    assert loop.checkpoints(out) and len(loop.rows(out)) < 20
    for process in processes(folder, config, out, 2):
        assert process.wait(timeout=300) == 0, said(folder)
    two = loop.rows(out)
    assert [row["step"] for row in two] == list(range(20))
    for row, expected in zip(two, alone, strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=1e-4), row["step"]
        assert row["norm"] == pytest.approx(expected["norm"], rel=1e-2, abs=1e-3), row["step"]
        assert set(row.get("left_out", [])) == set(expected.get("left_out", [])), row["step"]
    assert alone[-1]["loss"] < alone[0]["loss"] - 1  # it learnt, so that a wrong step would show
    one, other = (weights.load_file(folder / name / weights.WEIGHTS) for name in ("alone", "two"))
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(
            other[name], one[name], atol=2e-3, rtol=1e-2, msg=lambda m, name=name: f"{name}: {m}"
        )
    shards = list((out / "checkpoints" / "0000020").rglob("*.distcp"))
    assert len({shard.name for shard in shards}) == 2  # each process wrote its part


def said(folder: Path) -> str:
    return "\n".join(file.read_text()[-2000:] for file in sorted(folder.glob("process-*.txt")))


def test_broken_pictures_are_left_out_counted_and_named(folder, alone, capsys):
    met = loop.met_on_the_way(folder / "alone")
    assert sorted(name.split(":")[0] for name in met["left_out"]) == ["s4", "s5"]
    assert met["cut"] == ["s7"]
    assert any("5.png" in name for name in met["left_out"])
    # a run that is already at its end says so once more
    main(["train", str(folder / "alone.yaml"), str(folder / "alone"), "--data", str(folder), "--device", "cpu"])
    told = capsys.readouterr().out
    assert "left_out: 2" in told and "s4" in told and "5.png" in told and "cut: 1 (s7)" in told


def test_what_was_trained_loads_and_answers(folder, alone):
    model = mlmamba.load(folder / "alone", device="cpu")
    assert isinstance(model.chat(folder / "1.png", "why?", max_new_tokens=3), str)


@torch.no_grad()
def test_the_loss_is_the_cross_entropy_of_answers_alone(folder):
    """Against whole sequences, one sample at a time, with the prompt put together by hand."""
    model = mlmamba.load(folder / "model", device="cpu")
    tokenizer, picture = model.chat_tokenizer.tokenizer, folder / "1.png"
    turns = (("<image>\nwhat is it?", "a red dog"), ("where?", "near the old tree"))
    samples = [llava.Sample("0", picture, turns), llava.Sample("1", None, turns[1:])]
    batches = llava.Conversations(
        samples, model.chat_tokenizer, model.towers.prepare, 96, size=2, max_tokens=99, seed=0
    )
    objective = llava.Answers(model, torch.device("cpu"))
    seen = objective.see(batches[0])
    assert sorted(str(picture) for picture in seen.batch.pictures) == ["0", "None"]
    loss, _ = objective(seen, "bsm", 0)

    def ids(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    def by_hand(logits: torch.Tensor, parts: list[tuple[str, bool]]) -> list[float]:
        """Losses on what is answered; logits: (l, vocab), of which the last len(ids) stand for the text."""
        told = [(token, answered) for text, answered in parts for token in ids(text)]
        before = logits.shape[0] - len(told) - 1
        return [
            F.cross_entropy(logits[before + place], torch.tensor(token)).item()
            for place, (token, answered) in enumerate(told)
            if answered
        ]

    talk = [
        ("<|user|>\nwhat is it?<|endoftext|>\n<|assistant|>\n", False), ("a red dog<|endoftext|>", True),
        ("\n<|user|>\nwhere?<|endoftext|>\n<|assistant|>\n", False), ("near the old tree<|endoftext|>", True),
    ]  # fmt: skip
    alone = [("<|user|>\nwhere?<|endoftext|>\n<|assistant|>\n", False), talk[3]]
    pixels = model.towers.prepare(mlmamba.open_image(picture))[None]
    with_picture = model(pixels, torch.tensor([[i for text, _ in talk for i in ids(text)]]))[0]
    text = torch.tensor([[i for text, _ in alone for i in ids(text)]])
    without = model.language_model(model.language_model.embed(text)).logits[0]
    expected = by_hand(with_picture, talk) + by_hand(without, alone)
    assert loss.item() == pytest.approx(sum(expected) / len(expected), rel=1e-5)
    assert objective.weight(seen) == len(expected)


def test_a_new_connector_starts_at_random_beside_the_old_language_model(folder):
    file = config_file(folder, "csm", connector={"kinds": ["csm"]})
    model = llava.start_from(loop.recipe_from(llava.Recipe, file))
    assert model.config.connector.kinds == ("csm",) and list(model.connector.scan) == ["csm"]
    old = weights.load_file(folder / "model" / weights.WEIGHTS)
    assert torch.equal(model.language_model.embedding.weight, old["language_model.embedding.weight"])
    assert all(p.requires_grad for p in model.parameters())


def test_a_mamba2_without_eyes_gets_them(folder, tmp_path):
    """The authors' language model in a file of its own, as `state-spaces` publishes one: its logits stay theirs."""
    parts = torch.load(PUBLISHED / "latest-checkpoint.pt", weights_only=True)["model"]
    torch.save(parts["llm_backbone"], tmp_path / weights.MAMBA2_WEIGHTS)
    shutil.copy(folder / "model" / weights.TOKENIZER, tmp_path)
    sizes = {"connector": {"kinds": ["csm"], "d_projector": 32, "d_state": 8}, "model": str(tmp_path)}
    eyes = {"towers": ["efficientnet-lite0"], "image_size": 96}
    model = llava.start_from(loop.recipe_from(llava.Recipe, config_file(folder, "blind", vision=eyes, **sizes)))
    with np.load(PUBLISHED / "golden.npz") as arrays:
        projected, ids, logits = (torch.from_numpy(arrays[name]) for name in ("projected", "ids", "logits"))
    lm = model.language_model
    torch.testing.assert_close(lm(torch.cat([projected, lm.embed(ids)], 1)).logits, logits, atol=1e-4, rtol=0)
    assert model.grid == (3, 3) and list(model.connector.scan) == ["csm"] and model.config.vision.image_size == 96
    assert all(p.requires_grad for p in model.parameters()) and not any(
        p.requires_grad for p in model.towers.parameters()
    )
    with pytest.raises(mlmamba.UserError, match="eyes of its own"):
        llava.start_from(loop.recipe_from(llava.Recipe, config_file(folder, "seeing", vision=eyes)))
    (tmp_path / weights.MAMBA2_WEIGHTS).write_bytes(b"not a model")
    with pytest.raises(mlmamba.UserError, match="not a Mamba-2"):
        llava.start_from(loop.recipe_from(llava.Recipe, config_file(folder, "broken", vision=eyes, **sizes)))


def test_in_bfloat16_the_losses_are_nearly_the_same(folder, alone):
    file = config_file(folder, "bfloat16", precision="bfloat16", steps=2, shard=False, workers=1)
    assert main(["train", str(file), str(folder / "bfloat16"), "--data", str(folder), "--device", "cpu"]) == 0
    losses = [row["loss"] for row in loop.rows(folder / "bfloat16")]
    assert losses[0] == pytest.approx(alone[0]["loss"], rel=1e-2) and losses[0] != alone[0]["loss"]
    saved = weights.load_file(folder / "bfloat16" / weights.WEIGHTS)
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("connector", "said"),
    [({"kinds": ["xsm"]}, "bsm, csm, mlp"), ({"d_model": 48}, "32 would fit"), ({"layers": 1}, "layers")],
)
def test_a_connector_that_does_not_fit_is_one_sentence(folder, connector, said):
    file = config_file(folder, "unfit", connector=connector)
    with pytest.raises(mlmamba.UserError, match=said):
        llava.start_from(loop.recipe_from(llava.Recipe, file))


def test_each_epoch_shows_each_sample_once(folder):
    seen = [[llava.shuffled(40, 3, epoch)[i] for i in range(40)] for epoch in (0, 1)]
    assert all(sorted(order) == list(range(40)) for order in seen) and seen[0] != seen[1]


def test_the_learning_rate_rises_and_falls(folder):
    recipe = loop.recipe_from(llava.Recipe, config_file(folder, "rate", steps=1000, learning_rate=2e-5))
    rates = [recipe.rate(step) for step in range(1000)]
    assert max(rates) == rates[30] == pytest.approx(2e-5)  # 3 % of the steps
    assert rates[:31] == sorted(rates[:31]) and rates[30:] == sorted(rates[30:], reverse=True)
    assert rates[515] == pytest.approx(1e-5, rel=1e-3) and rates[0] < 1e-6 and rates[-1] < 1e-9


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        ("{}", "no list"),
        ("[{", "JSON"),
        ('[{"id": 1, "conversations": [{"from": "human", "value": "why?"}]}]', "Sample 0"),
        ('[{"conversations": [{"from": "human", "value": 3}, {"from": "gpt", "value": "a"}]}]', "Sample 0"),
        ('[{"image": "no.png", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}]',
         "check --data"),
        (None, "There is no file"),
    ],
)  # fmt: skip
def test_samples_of_another_form_are_one_sentence(folder, tmp_path, capsys, samples, said):
    if samples is not None:
        (tmp_path / "samples.json").write_text(samples)
    file = config_file(folder, "other")
    assert main(["train", str(file), str(tmp_path / "out"), "--data", str(tmp_path), "--device", "cpu"]) == 1
    told = capsys.readouterr().err.strip()
    assert said in told and len(told.splitlines()) == 1


def test_targets_are_the_next_ids(folder):
    chat = mlmamba.load(folder / "model", device="cpu", vision=False).chat_tokenizer
    ids, targets = llava.encode(chat, (("<image>\nwhy?", "it rains"), ("so?", "a dog")))
    assert all(target in (NONE, following) for target, following in zip(targets, ids[1:], strict=False))
    assert chat.tokenizer.decode([t for t in targets if t != NONE], skip_special_tokens=False) == (
        "it rains<|endoftext|>a dog<|endoftext|>"
    )
