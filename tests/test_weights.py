"""The authors' checkpoint against what their own code computes, and strict loading of both formats."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mlmamba import UserError
from mlmamba.__main__ import main
from mlmamba.config import MLMambaConfig
from mlmamba.hub import CHECKPOINTS
from mlmamba.model import MLMamba
from mlmamba.weights import convert, load_into

PUBLISHED = Path(__file__).parent / "data" / "published-tiny"


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("converted")
    assert main(["convert", str(PUBLISHED / "latest-checkpoint.pt"), str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def model(converted) -> MLMamba:
    model = MLMamba(MLMambaConfig.load(converted / "config.json"))
    load_into(model, converted / "model.safetensors")
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    with np.load(PUBLISHED / "golden.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


def test_sizes_are_read_from_the_tensors(model):
    language, connector = model.config.language, model.config.connector
    assert (language.head_dim, language.d_state, language.n_heads, language.n_layers) == (32, 16, 4, 2)
    assert (connector.d_features, connector.d_state, connector.d_projector, connector.swiglu) == (
        48,
        16,
        256,
        True,
    )


def test_every_stage_is_the_authors(model, golden):
    def close(ours: torch.Tensor, name: str) -> None:
        torch.testing.assert_close(ours, golden[name], atol=1e-4, rtol=0, msg=lambda m: f"{name}: {m}")

    h = model.connector.mlp(golden["features"])
    close(h, "mlp")
    close(model.connector.scan["bsm"](h, (3, 4))[0], "connector")
    features = model.connector(golden["features"], grid=(3, 4)).features
    close(features, "projected")
    lm = model.language_model
    close(lm(torch.cat([features, lm.embed(golden["ids"])], 1)).logits, "logits")


def test_the_authors_logits_on_a_carried_state(model, golden):
    lm = model.language_model
    first = lm(golden["projected"])
    step, state, logits = lm.stepper(), lm.repeat(first.state, 1), [first.logits]
    for token in golden["ids"].T:
        logits.append(step(token[:, None], state))
    torch.testing.assert_close(torch.cat(logits, 1), golden["logits"], atol=1e-4, rtol=0)


def test_bfloat16_says_what_float32_says_but_where_two_words_are_as_likely(converted, golden):
    """At each of the 19 places of both sequences of the golden case; where they differ, the margin is rounding."""
    model = MLMamba(MLMambaConfig.load(converted / "config.json"))
    load_into(model, converted / "model.safetensors")
    lm = model.to(torch.bfloat16).eval().requires_grad_(False).language_model
    rounded = lm(torch.cat([golden["projected"].bfloat16(), lm.embed(golden["ids"])], 1)).logits.argmax(-1)
    exact = golden["logits"]  # by the authors' code, in float32
    same = rounded == exact.argmax(-1)
    assert same.float().mean() > 0.8 and len(set(rounded.flatten().tolist())) > 10
    margin = exact.max(-1).values - exact.gather(-1, rounded[..., None])[..., 0]
    # a bfloat16 has 8 bits: what it rounds away of the largest logit, in each of a few layers
    assert (margin <= 4 * exact.abs().amax(-1) * 2**-8).all(), margin[~same]


def edited(tmp_path: Path, edit) -> Path:
    checkpoint = torch.load(PUBLISHED / "latest-checkpoint.pt", weights_only=True)
    edit(checkpoint["model"])
    torch.save(checkpoint, tmp_path / "edited.pt")
    return tmp_path / "edited.pt"


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda m: m["mlp"].update({"9.weight": torch.ones(1)}), "no place for: mlp.9.weight"),
        (lambda m: m["llm_backbone"].update({"backbone.layers.0.mixer.D_b": torch.ones(4)}), "no place for"),
        (lambda m: m.pop("projector"), "lacks connector.projector.0.weight"),
        (lambda m: m["llm_backbone"].update({"lm_head.weight": torch.ones(304, 64)}), "not tied"),
    ],
)
def test_a_published_file_that_is_not_whole_is_refused(tmp_path, edit, says):
    with pytest.raises(UserError, match=says):
        convert(edited(tmp_path, edit), tmp_path / "out")


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("evil-was-run"),))


def test_code_in_a_pickle_is_never_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"model": Evil()}))
    torch.save({"model": Evil()}, tmp_path / "evil2.pt")
    for name in ("evil.pt", "evil2.pt"):
        with pytest.raises(UserError, match="not an ML-Mamba checkpoint"):
            convert(tmp_path / name, tmp_path / "out")
    assert not (tmp_path / "evil-was-run").exists()


def without(name):
    return lambda tensors: tensors.pop(name)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda t: t.pop("connector.mlp.0.bias"), "no connector.mlp.0.bias"),
        (lambda t: t.update({"connector.extra": torch.ones(1)}), "unknown connector.extra"),
        (lambda t: t.update({"connector.mlp.0.bias": torch.ones(3)}), r"bias is \(3,\) instead of \(64,\)"),
    ],
)
def test_our_file_is_loaded_strictly(converted, tmp_path, edit, says):
    tensors = load_file(converted / "model.safetensors")
    edit(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=says):
        load_into(MLMamba(MLMambaConfig.load(converted / "config.json")), tmp_path / "model.safetensors")


def test_a_file_that_is_no_safetensors_is_refused(converted, tmp_path):
    (tmp_path / "model.safetensors").write_text("hello")
    with pytest.raises(UserError, match="not a readable safetensors file"):
        load_into(MLMamba(MLMambaConfig.load(converted / "config.json")), tmp_path / "model.safetensors")


def test_config_round_trip(converted, tmp_path):
    config = MLMambaConfig.load(converted / "config.json")
    config.save(tmp_path / "config.json")
    assert MLMambaConfig.load(tmp_path / "config.json") == config
    (tmp_path / "config.json").write_text('{"name": "x"}')
    with pytest.raises(UserError, match="is no ML-Mamba config"):
        MLMambaConfig.load(tmp_path / "config.json")


def test_an_average_is_the_mean_of_what_is_alike(tmp_path, capsys):
    sizes = json.loads((CHECKPOINTS / "tiny" / "config.json").read_text(encoding="utf-8"))
    folders = [tmp_path / name for name in ("one", "other", "wider")]
    shipped = load_file(CHECKPOINTS / "tiny" / "model.safetensors")
    tensors = [{name: tensor.float() for name, tensor in shipped.items()}]
    tensors.append({name: tensor * 3 + 1 for name, tensor in tensors[0].items()})
    for folder, weights in zip(folders, [*tensors, tensors[0]], strict=True):
        folder.mkdir()
        save_file(weights, folder / "model.safetensors")
        (folder / "tokenizer.json").write_bytes((CHECKPOINTS / "tiny" / "tokenizer.json").read_bytes())
        told = sizes if folder.name != "wider" else sizes | {"vocab_words": 4000}
        (folder / "config.json").write_text(json.dumps(told | {"name": folder.name}), encoding="utf-8")
    out = tmp_path / "out"
    # named twice, the first counts twice
    assert main(["average", str(folders[0]), str(folders[1]), str(folders[0]), str(out)]) == 0
    found = load_file(out / "model.safetensors")
    assert found.keys() == tensors[0].keys()
    for name, tensor in found.items():
        np.testing.assert_allclose(tensor.numpy(), (5 * tensors[0][name].numpy() + 1) / 3, rtol=1e-5, atol=1e-6)
    assert MLMambaConfig.load(out / "config.json").name == "one"
    assert main(["average", str(folders[0]), str(folders[1]), str(tmp_path / "half"), "--dtype", "float16"]) == 0
    for name, tensor in load_file(tmp_path / "half" / "model.safetensors").items():
        mean = (4 * tensors[0][name].numpy() + 1) / 2
        assert tensor.dtype == torch.float16
        np.testing.assert_allclose(tensor.numpy(), mean, rtol=2**-11, atol=2**-24)
    assert main(["average", str(folders[0]), str(folders[2]), str(out)]) == 1
    assert "average only what is alike" in capsys.readouterr().err
