"""The language model against `transformers`' Mamba-2 with the same weights, and against itself in pieces."""

import copy

import pytest
import torch
from transformers import Mamba2Config, Mamba2ForCausalLM

from mlmamba.config import LanguageConfig
from mlmamba.mamba2 import LanguageModel

CONFIG = LanguageConfig(d_model=64, n_layers=3, vocab_size=97, d_state=16, head_dim=32)

# ours → transformers', within a layer
NAMES = {
    "norm.weight": "norm.weight",
    "in_proj.weight": "mixer.in_proj.weight",
    "scan.conv_weight": "mixer.conv1d.weight",
    "scan.conv_bias": "mixer.conv1d.bias",
    "scan.dt_bias": "mixer.dt_bias",
    "scan.A_log": "mixer.A_log",
    "scan.D": "mixer.D",
    "gated_norm.weight": "mixer.norm.weight",
    "out_proj.weight": "mixer.out_proj.weight",
}


@pytest.fixture(scope="module")
def ours() -> LanguageModel:
    torch.manual_seed(0)
    model = LanguageModel(CONFIG).eval().requires_grad_(False)
    for parameter in model.parameters():  # away from the special values of a fresh model
        parameter += 0.1 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module")
def theirs(ours: LanguageModel) -> Mamba2ForCausalLM:
    model = Mamba2ForCausalLM(
        Mamba2Config(
            vocab_size=97, hidden_size=64, num_hidden_layers=3, state_size=16, num_heads=4, head_dim=32, expand=2,
            n_groups=1, chunk_size=8, tie_word_embeddings=True, use_bias=False, use_conv_bias=True,
            time_step_limit=(0.0, float("inf")), residual_in_fp32=True, layer_norm_epsilon=1e-5,
        )
    ).eval()  # fmt: skip
    state = {
        "backbone.embeddings.weight": ours.embedding.weight,
        "lm_head.weight": ours.embedding.weight,
        "backbone.norm_f.weight": ours.norm_f.weight,
    }
    for i, layer in enumerate(ours.layers):
        tensors = layer.state_dict()
        assert tensors.keys() == NAMES.keys()
        for name, tensor in tensors.items():
            tensor = tensor[:, None] if name == "scan.conv_weight" else tensor
            state[f"backbone.layers.{i}.{NAMES[name]}"] = tensor
    model.load_state_dict(state, strict=True)
    return model


@pytest.mark.parametrize("length", [1, 7, 8, 9, 64, 65, 130])
def test_logits_are_those_of_transformers(ours, theirs, length):
    ids = torch.randint(0, 97, (2, length), generator=torch.Generator().manual_seed(length))
    with torch.no_grad():
        expected = theirs(ids).logits
    torch.testing.assert_close(ours(ours.embed(ids)).logits, expected, atol=1e-4, rtol=1e-4)


def test_greedy_decoding_is_that_of_transformers(ours, theirs):
    ids = torch.randint(0, 97, (1, 11), generator=torch.Generator().manual_seed(1))
    expected = theirs.generate(ids, max_new_tokens=20, do_sample=False, pad_token_id=0, eos_token_id=None)[0, 11:]
    output, step, said = ours(ours.embed(ids), last_only=True), ours.stepper(), []
    logits = output.logits
    for _ in range(20):
        said.append(int(logits[0, -1].argmax()))
        logits = step(torch.tensor([[said[-1]]]), output.state)
    assert said == expected.tolist()


def test_token_by_token_is_the_parallel_pass(ours):
    ids = torch.randint(0, 97, (2, 70))
    whole, step, state = ours(ours.embed(ids)), ours.stepper(), ours.empty(2)
    logits = [step(token[:, None], state) for token in ids.T]
    torch.testing.assert_close(torch.cat(logits, 1), whole.logits, atol=1e-4, rtol=1e-4)
    for one, other in zip(state, whole.state, strict=True):
        torch.testing.assert_close(one.ssm, other.ssm, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(one.conv, other.conv, atol=1e-4, rtol=1e-4)


def test_steps_in_bfloat16_are_the_parallel_pass_but_for_rounding(ours):
    half = copy.deepcopy(ours).bfloat16()
    ids = torch.randint(0, 97, (2, 30))
    step, state, exact = half.stepper(), half.empty(2), ours(ours.embed(ids)).logits
    logits = torch.cat([step(token[:, None], state) for token in ids.T], 1)
    # as far from float32 as the parallel pass is, whose rounding is no worse than a bfloat16's
    apart = (half(half.embed(ids)).logits - exact).abs().mean()
    assert (logits - exact).abs().mean() < 1.5 * apart < 0.05 * exact.abs().mean()


@pytest.mark.parametrize("cut", [1, 2, 3, 40, 64, 69])
def test_a_carried_state_goes_on_as_if_never_cut(ours, cut):
    embeds = ours.embed(torch.randint(0, 97, (2, 70)))
    first = ours(embeds[:, :cut])
    second = ours(embeds[:, cut:], first.state)
    torch.testing.assert_close(torch.cat([first.logits, second.logits], 1), ours(embeds).logits, atol=1e-4, rtol=1e-4)


def test_the_state_is_float32_and_as_large_after_any_length(ours):
    half = LanguageModel(CONFIG).to(torch.bfloat16)
    sizes = set()
    for length in (1, 50, 200):
        state = half(half.embed(torch.zeros(1, length, dtype=torch.long))).state
        assert all(layer.ssm.dtype == torch.float32 for layer in state)
        kept = sum(t.untyped_storage().nbytes() for layer in state for t in (layer.conv, layer.ssm))
        sizes |= {LanguageModel.state_bytes(state), kept}
    assert len(sizes) == 1  # nor does it keep more than it shows


def test_scans_come_for_the_layers_asked_for(ours):
    output = ours(ours.embed(torch.randint(0, 97, (1, 9))), scans=(0, 2))
    assert sorted(output.scans) == [0, 2]
    scan = output.scans[2]
    assert scan.x.shape == (1, 9, 4, 32) and scan.dt.shape == (1, 9, 4) and scan.B.shape == (1, 9, 16)
