"""The race's rival: transformers' own decoder, whole, in pieces, saved and loaded."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PhiConfig, PhiForCausalLM

import mlmamba
from mlmamba import weights
from mlmamba.config import ConnectorConfig, MLMambaConfig, TransformerConfig, VisionConfig
from mlmamba.model import MLMamba
from mlmamba.transformer import Transformer

SIZES = TransformerConfig("llama", d_model=64, n_layers=3, n_heads=4, d_mlp=96, vocab_size=97)
IDS = torch.arange(40).view(2, 20) % 97


@pytest.fixture(scope="module")
def rival() -> Transformer:
    torch.manual_seed(0)
    return Transformer(SIZES).eval().requires_grad_(False)


@pytest.mark.parametrize(("kind", "config", "whole"), [("llama", LlamaConfig, LlamaForCausalLM),
                                                       ("phi", PhiConfig, PhiForCausalLM)])  # fmt: skip
def test_logits_are_those_of_transformers(kind, config, whole):
    torch.manual_seed(1)
    rival = Transformer(TransformerConfig(kind, 64, 2, 4, 96, 97)).eval()
    theirs = whole(
        config(
            vocab_size=97, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96,
            tie_word_embeddings=True,
        )
    ).eval()  # fmt: skip
    theirs.model.load_state_dict(rival.decoder.state_dict())
    if kind == "phi":
        theirs.lm_head.bias.data.zero_()
    with torch.no_grad():
        torch.testing.assert_close(rival(rival.embed(IDS)).logits, theirs(IDS).logits, atol=1e-5, rtol=1e-4)


def test_in_pieces_it_reads_what_it_reads_at_once(rival):
    whole = rival(rival.embed(IDS)).logits
    state, pieces = None, []
    for ids in IDS.split([7, 1, 1, 11], dim=1):
        output = rival(rival.embed(ids), state)
        state = output.state
        pieces.append(output.logits)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=1e-5, rtol=1e-4)
    per_token = 3 * 2 * 2 * 64 * 4  # layers, keys and values, sequences, channels, bytes
    assert rival.state_bytes(state) == 20 * per_token


def test_a_kept_cache_is_not_changed_by_going_on(rival):
    kept = rival(rival.embed(IDS[:, :9])).state
    first = rival(rival.embed(IDS[:, 9:]), kept).logits
    assert torch.equal(rival(rival.embed(IDS[:, 9:]), kept).logits, first)
    several = rival.repeat(kept, 3)
    again = rival(rival.embed(IDS[:, 9:].repeat_interleave(3, 0)), several).logits
    torch.testing.assert_close(again[::3], first, atol=1e-5, rtol=1e-4)
    assert torch.equal(rival(rival.embed(IDS[:, 9:]), kept).logits, first)


def test_it_is_saved_loaded_and_asked_as_any_model(tmp_path):
    torch.manual_seed(2)
    (tmp_path / weights.TOKENIZER).write_bytes((mlmamba.hub.CHECKPOINTS / "tiny" / weights.TOKENIZER).read_bytes())
    config = MLMambaConfig(
        name="rival",
        vision=VisionConfig(("efficientnet-lite0",), 64),
        connector=ConnectorConfig(1450, 64, kinds=("mlp",), d_projector=32),
        language=TransformerConfig("llama", 64, 2, 4, 96, 4096),
        vocab_words=4096,
    )
    model = MLMamba(config)
    weights.save(config, model.state_dict(), tmp_path)
    loaded = mlmamba.load(tmp_path, device="cpu")
    assert loaded.config == config
    rows = [loaded.language_model.embed(IDS), model.language_model.embed(IDS)]
    with torch.no_grad():
        one, other = loaded.language_model(rows[0]).logits, model.eval().language_model(rows[1]).logits
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    from PIL import Image

    conversation = loaded.start(Image.new("RGB", (80, 60), "red"))
    first = "".join(conversation.ask("Is there a dog?", max_new_tokens=5))
    conversation.undo()
    assert "".join(conversation.ask("Is there a dog?", max_new_tokens=5)) == first
