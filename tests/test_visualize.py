"""The numbers behind the view: against hand-worked 3 x 4 grids, the plain recurrence and the model's own outputs."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import mlmamba
from mlmamba import Scan, UserError, scan_orders
from mlmamba.chat import Reading, Word
from mlmamba.config import ConnectorConfig
from mlmamba.connector import Connector, ConnectorOutput
from mlmamba.mamba2 import SelectiveScan
from mlmamba.ssd import ssd_recurrence
from mlmamba.vision import Vision
from visualize import View, record
from visualize.payload import BUDGET, pack, pack_array, part, size, unpack, unpack_array
from visualize.replay import reach_of_all, replay, transfer
from visualize.trace import NAMES, answer_of, trace_of

ROOT = Path(__file__).resolve().parent.parent
MEADOW = ROOT / "examples" / "meadow.jpg"


@pytest.fixture(scope="module")
def model() -> mlmamba.MLMamba:
    return mlmamba.load("tiny", device="cpu")


def halving_scan(order: torch.Tensor | None, length: int, rate: float = -math.log(2)) -> Scan:
    """One head, one channel, one state: what is in the state halves at each step, and each step adds 1."""
    ones = torch.ones(1, length, 1)
    A, D, x = torch.tensor([rate]), torch.zeros(1), ones[..., None]
    return Scan(x, ones, A, ones, ones, D, gate=torch.zeros_like(x), order=order)


def halving_trace(kind: str, rate: float = -math.log(2), words: tuple[Word, ...] = ()):
    scans = tuple(halving_scan(order, 12, rate) for order in scan_orders(kind, 3, 4))
    seen = ConnectorOutput(torch.zeros(1, 12, 1), (scans,))
    language = (halving_scan(None, 15), halving_scan(None, 15, -1000.0)) if words else ()
    reading = Reading(kind, (3, 4), seen, "Is there a cat?", "Yes", words, language)
    conversation = SimpleNamespace(
        image=Image.new("RGB", (40, 30)), model=SimpleNamespace(config=SimpleNamespace(name="hand"))
    )
    return trace_of(reading, conversation)


def test_maps_of_a_hand_worked_grid():
    trace = halving_trace("csm")
    state = [2 - 0.5**t for t in range(12)]  # 1, 1.5, 1.75, ...
    rows, rows_back, columns, columns_back = (trace.over(0, None, d, "state").reshape(3, 4) for d in range(4))
    np.testing.assert_allclose(rows, np.reshape(state, (3, 4)), rtol=1e-6)
    np.testing.assert_allclose(rows_back, np.reshape(state[::-1], (3, 4)), rtol=1e-6)
    np.testing.assert_allclose(columns, np.reshape(state, (4, 3)).T, rtol=1e-6)  # down the first column: 1, 1.5, 1.75
    np.testing.assert_allclose(columns_back, np.reshape(state[::-1], (4, 3)).T, rtol=1e-6)
    merged = trace.over(0, None, None, "state").reshape(3, 4)
    # the patch at row 1, column 2 is step 6 of rows →, 5 of rows ←, 7 of columns ↓, 4 of columns ↑
    assert merged[1, 2] == pytest.approx((state[6] + state[5] + state[7] + state[4]) / 4)
    np.testing.assert_allclose(trace.along(0, 0, 2, "state"), state, rtol=1e-6)
    for quantity, value in {"delta": 1, "decay": 0.5, "input": 1, "gate": 0}.items():
        np.testing.assert_allclose(trace.over(0, 0, 3, quantity), value, rtol=1e-6)
    np.testing.assert_allclose(trace.along(0, 0, 1, "output"), state, rtol=1e-6)


def test_influence_on_a_hand_worked_grid():
    bsm, csm = halving_trace("bsm"), halving_trace("csm")
    # on patch 6 (row 1, column 2): a half for each step between
    rows = [0.5**6, 0.5**5, 0.5**4, 0.5**3, 0.5**2, 0.5, 1, 0, 0, 0, 0, 0]
    back = [0, 0, 0, 0, 0, 0, 1, 0.5, 0.5**2, 0.5**3, 0.5**4, 0.5**5]
    columns = [  # columns ↓ come to patch 6 as their step 7
        [0.5**7, 0.5**4, 0.5, 0],
        [0.5**6, 0.5**3, 1, 0],
        [0.5**5, 0.5**2, 0, 0],
    ]
    np.testing.assert_allclose(bsm.influence(0, 0, 0, 6), rows, rtol=1e-6)
    np.testing.assert_allclose(bsm.influence(0, None, 1, 6), back, rtol=1e-6)
    np.testing.assert_allclose(csm.influence(0, 0, 2, 6).reshape(3, 4), columns, rtol=1e-6)
    np.testing.assert_allclose(bsm.influence(0, 0, None, 6), np.add(rows, back) / 2, rtol=1e-6)


def test_what_a_word_saw_on_a_hand_worked_grid():
    """12 patches, then text; the word was chosen by steps 13 and 14; the second layer forgets at once."""
    (word,) = halving_trace("bsm", words=(Word("Yes", (13, 14)),)).answer.words
    first = [(0.5 ** (13 - s) + 0.5 ** (14 - s)) / 2 for s in range(12)]
    np.testing.assert_allclose(word.maps[0, 1], first, rtol=1e-5)
    np.testing.assert_allclose(word.maps[0, 2], 0, atol=1e-30)
    np.testing.assert_allclose(word.maps[0, 0], np.divide(first, 2), rtol=1e-5)
    # onward: half stays; half goes to the patches that rows → and rows ← bring, 2**-distance each, 1 for itself twice
    near = np.array([[0.5 ** abs(i - j) * (2 if i == j else 1) for j in range(12)] for i in range(12)])
    spread = (np.eye(12) + near / near.sum(1, keepdims=True)) / 2
    np.testing.assert_allclose(word.maps[1, 1], first @ spread, rtol=1e-5)


def test_onward_goes_back_layer_by_layer():
    """Two layers whose directions forget at different rates, so that neither their order nor a side can be swapped."""
    rates = ((0.9, 0.2), (0.3, 0.7))  # what is kept a step: rows → and rows ←, of each layer
    layers = tuple(
        tuple(
            halving_scan(order, 12, math.log(kept)) for kept, order in zip(pair, scan_orders("bsm", 3, 4), strict=True)
        )
        for pair in rates
    )
    seen = ConnectorOutput(torch.zeros(1, 12, 1), layers)
    reading = Reading("bsm", (3, 4), seen, "?", "Yes", (Word("Yes", (13,)),), (halving_scan(None, 14),))
    word = answer_of(reading).words[0]
    wanted = np.array([0.5 ** (13 - s) for s in range(12)])
    for forth, back in reversed(rates):  # from the last layer to the first
        reach = np.array(
            [[(i >= j) * forth ** (i - j) + (j >= i) * back ** (j - i) for j in range(12)] for i in range(12)]
        )
        wanted = wanted @ (np.eye(12) + reach / reach.sum(1, keepdims=True)) / 2
    np.testing.assert_allclose(word.maps[1, 1], wanted, rtol=1e-4)


def test_a_connector_that_forgets_at_once_leaves_features_in_place():
    (word,) = halving_trace("csm", rate=-1000.0, words=(Word("Yes", (14,)),)).answer.words
    np.testing.assert_allclose(word.maps[1], word.maps[0], rtol=1e-5)


def outputs_of(module: torch.nn.Module, run) -> list[torch.Tensor]:
    """What every selective scan within `module` gave out while `run` ran: y (b, l, d_inner)."""
    heard, hooks = [], []
    for scan in module.modules():
        if isinstance(scan, SelectiveScan):
            hooks.append(scan.register_forward_hook(lambda _, __, result: heard.append(result[0])))
    run()
    for hook in hooks:
        hook.remove()
    return heard


def check_the_sum(scan: Scan, y: torch.Tensor) -> None:
    """Σ_s M[t,s] x_s + D x_t is the model's own y, for every step, to 3e-4 of its size: with Δ above 30, float32 sums
    of its decays have no more."""
    length = scan.x.shape[1]
    own = y[0].unflatten(-1, scan.x.shape[2:])  # (l, h, p)
    for t in range(length):
        M = transfer(scan.dt[0], scan.A, scan.B[0], scan.C[0], t)  # (h, t + 1)
        total = torch.einsum("hs,shp->hp", M, scan.x[0, : t + 1]) + scan.D[:, None] * scan.x[0, t]
        assert (total - own[t]).norm() <= 3e-4 * own[t].norm(), f"step {t}"


def test_all_rows_at_once_are_the_terms_of_every_step():
    """|M[t,s]|·‖x_s‖, each by the recurrence, from one step's x alone; some heads keep nothing of it."""
    torch.manual_seed(0)
    length, h, p, n = 70, 3, 4, 5
    dt, A = torch.rand(length, h) * torch.tensor([0.1, 1.0, 40.0]), -torch.rand(h) - 0.5
    B, C, x = torch.randn(length, n), torch.randn(length, n), torch.randn(length, h, p)
    found = reach_of_all(dt, A, B, C, x.norm(dim=-1))
    for s in range(length):
        alone = torch.zeros_like(x)
        alone[s] = x[s]
        y, _ = ssd_recurrence(alone[None], dt[None], A, B[None], C[None], torch.zeros(h))
        torch.testing.assert_close(found[:, s], y[0].norm(dim=-1).mean(-1), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["bsm", "csm"])
def test_influence_sums_to_the_connectors_output(model, kind):
    seen = []
    patches = model.see(mlmamba.open_image(MEADOW))
    heard = outputs_of(model.connector, lambda: seen.append(model.connector(patches, model.grid, kind)))
    scans = [scan for layer in seen[0].scans for scan in layer]
    assert len(scans) == len(heard) == (4 if kind == "bsm" else 8)
    for scan, y in zip(scans, heard, strict=True):
        check_the_sum(scan, y)


def test_influence_sums_to_the_language_models_output(model):
    conversation = model.start(MEADOW)
    assert "".join(conversation.ask("Is there a cat?"))
    readings = []
    heard = outputs_of(model.language_model, lambda: readings.append(conversation.look()))
    assert len(heard) == len(readings[0].language) == model.config.language.n_layers
    for scan, y in zip(readings[0].language, heard, strict=True):
        check_the_sum(scan, y)


@pytest.mark.parametrize("kind", ["bsm", "csm"])
def test_replay_is_the_plain_recurrence(model, kind):
    patches = model.see(mlmamba.open_image(MEADOW))
    scans = [scan for layer in model.connector(patches, model.grid, kind).scans for scan in layer]
    for scan, found in zip(scans, replay(scans), strict=True):  # (h, 6, l)
        y, states = ssd_recurrence(scan.x, scan.dt, scan.A, scan.B, scan.C, scan.D)
        fed = torch.einsum("lh,lhp,ln->lhpn", scan.dt[0], scan.x[0], scan.B[0])
        wanted = {
            "delta": scan.dt[0],
            "decay": torch.exp(scan.dt[0] * scan.A),
            "input": fed.flatten(2).norm(dim=-1),
            "state": states[0].flatten(2).norm(dim=-1),
            "output": y[0].norm(dim=-1),
            "gate": (scan.gate[0] * torch.sigmoid(scan.gate[0])).norm(dim=-1),
        }
        for i, name in enumerate(NAMES):
            torch.testing.assert_close(found[:, i].T, wanted[name], rtol=1e-4, atol=1e-5, msg=name)


def test_the_mean_comes_first_and_heads_follow(model):
    trace = record(model.start(MEADOW), "csm", "meadow")
    assert trace.maps.shape == (1 + trace.n_heads, trace.n_layers, 4, 6, trace.n_patches)
    for name in NAMES:
        heads = [trace.over(1, head, 3, name) for head in range(trace.n_heads)]
        np.testing.assert_allclose(trace.over(1, None, 3, name), np.mean(heads, axis=0), rtol=1e-5)
        assert not np.array_equal(heads[0], heads[1])
    assert trace.answer is None and trace.picture == "meadow" and trace.trained


def test_a_words_steps_are_those_that_chose_it(model):
    """At temperature 0 the likeliest token at a word's steps is the word's own, also after earlier turns."""
    conversation = model.start(MEADOW, "csm")
    for question in ("Is there a cat?", "What can you see?"):
        answer = "".join(conversation.ask(question))
        heard = []
        with pytest.MonkeyPatch.context() as patch:
            forward = model.language_model.forward
            patch.setattr(
                model.language_model,
                "forward",
                lambda *a, forward=forward, heard=heard, **k: heard.append(forward(*a, **k)) or heard[-1],
            )
            reading = conversation.look()
        assert " ".join(word.text for word in reading.words) == answer
        chosen = model.language_model.head(heard[0].hidden)[0].argmax(-1)
        for word in reading.words:
            assert model.chat_tokenizer.decode(chosen[list(word.steps)].tolist()).strip() == word.text


def test_looking_changes_nothing_in_the_conversation(model):
    looked, plain = model.start(MEADOW), model.start(MEADOW)
    for conversation in (looked, plain):
        "".join(conversation.ask("Is there a cat?"))
    before = looked.turns[:]
    looked.look("csm"), looked.look()
    assert looked.turns == before and looked.connector == "bsm"
    assert "".join(looked.ask("What can you see?")) == "".join(plain.ask("What can you see?"))


def test_a_kind_without_weights_borrows_and_says_so():
    torch.manual_seed(0)
    config = ConnectorConfig(d_features=24, d_model=32, kinds=("bsm",), d_state=8, head_dim=16, d_projector=64)
    connector = Connector(config).eval().requires_grad_(False)
    with torch.no_grad():  # so that the directions differ in more than their convolution
        for layer in connector.scan["bsm"].layers:
            layer.mvss.directions[1].A_log += 0.3
    patches = torch.randn(1, 12, 24)
    own, borrowed = connector(patches, (3, 4)), connector.explore(patches, (3, 4), "csm")
    assert own.trained and not borrowed.trained and connector.explore(patches, (3, 4), "bsm").trained
    first = borrowed.scans[0]
    assert [scan.order.tolist() for scan in first] == [order.tolist() for order in scan_orders("csm", 3, 4)]
    for mine, theirs in ((0, 0), (1, 1), (2, 0), (3, 1)):
        assert torch.equal(first[mine].A, own.scans[0][theirs].A)
    assert torch.equal(first[1].x, own.scans[0][1].x) and not torch.equal(first[2].x, own.scans[0][0].x)
    # columns with the rows' weights: what rows would make of the turned picture
    turned = patches.view(1, 3, 4, -1).transpose(1, 2).flatten(1, 2)
    assert torch.allclose(first[2].x, connector(turned, (4, 3)).scans[0][0].x, atol=1e-6)
    with pytest.raises(UserError, match="no weights"):
        connector(patches, (3, 4), "csm")
    with pytest.raises(UserError, match="MLP"):
        Connector(ConnectorConfig(d_features=24, d_model=32, kinds=("mlp",), d_projector=64)).explore(
            patches, (3, 4), "csm"
        )


@pytest.fixture(scope="module")
def traced(model):
    conversation = model.start(MEADOW, "csm")
    "".join(conversation.ask("What can you see?"))
    return record(conversation)


def test_arrays_keep_three_digits_zero_and_sign():
    values = np.array([[0.0, -0.0, 1.0, -1e-9], [3.14159e5, 7e-20, -1e5, 1e-30]], np.float32)
    back = unpack_array(json.loads(json.dumps(pack_array(values))))
    assert back.shape == (2, 4) and not back[0, :2].any() and back[1, 3] == 0  # too small beside 3e5
    np.testing.assert_allclose(back[:, 2:3], values[:, 2:3], rtol=1e-3)
    np.testing.assert_allclose([back[0, 3], back[1, 0]], [values[0, 3], values[1, 0]], rtol=1e-3)
    for flat in (np.zeros(3, np.float32), np.full(3, -2.5, np.float32), np.zeros((0, 2), np.float32)):
        np.testing.assert_array_equal(unpack_array(pack_array(flat)), flat)


def test_payload_round_trip(traced):
    packed = json.loads(json.dumps(pack(traced, None)))
    back = unpack(packed)
    assert (back.model, back.kind, back.grid, back.trained) == ("tiny", "csm", traced.grid, True)
    assert np.array_equal(back.orders, traced.orders)
    np.testing.assert_allclose(back.maps, traced.maps, rtol=1e-3, atol=1e-12)
    for patch in (0, 57, traced.orders.shape[-1] - 1):
        sent, kept = back.influence(1, 2, None, patch), traced.influence(1, 2, None, patch)
        np.testing.assert_allclose(sent, kept, rtol=0.02, atol=1e-2 * kept.max())
    assert back.answer.question == "What can you see?" and back.answer.text == traced.answer.text
    for sent, kept in zip(back.answer.words, traced.answer.words, strict=True):
        assert sent.text == kept.text
        np.testing.assert_allclose(sent.maps, kept.maps, rtol=1e-3, atol=1e-12)
    assert back.image.size == traced.image.size
    with pytest.raises(UserError, match="record it anew"):
        unpack(packed | {"version": 0})


def test_a_large_grid_stays_within_the_budget(model):
    large = mlmamba.load("tiny", device="cpu", vision=False)
    object.__setattr__(large, "vision", Vision(replace(large.config.vision, image_size=864)).eval())
    conversation = large.start(MEADOW, "csm")
    "".join(conversation.ask("What can you see?"))
    trace = record(conversation)
    assert trace.grid == (27, 27) and trace.n_directions == 4 and trace.n_layers == 2
    packed = pack(trace)
    assert size(packed) <= BUDGET <= 1024**2
    missing = [name for i in range(2) if (name := f"keys/{i}") not in packed["parts"]]
    assert missing and unpack_array(part(trace, missing[0])["B"]).shape == (4, 729, model.config.connector.d_state)


@pytest.mark.parametrize("name", ["maps/99", "keys/-1", "word/999", "", "maps/", "../x", "keys/1.5", "maps/²", "x/0"])
def test_unknown_parts_are_refused(traced, name):
    with pytest.raises(UserError, match="open the page anew"):
        part(traced, name)


@pytest.mark.parametrize(
    "given",
    [
        {"kind": "zigzag"}, {"layer": -1}, {"layer": "0"}, {"head": 1.5}, {"quantity": "<b>"}, {"step": None},
        {"direction": "up"}, {"patch": True}, {"through": 1}, {"picture": 7}, [], None,
    ],
)  # fmt: skip
def test_views_that_make_no_sense_are_refused(given):
    with pytest.raises(UserError, match="view can't be read"):
        View.of(given)


def test_views_that_a_trace_does_not_have_are_refused(traced):
    n = traced.orders.shape[-1]
    good = {
        "kind": "csm",
        "layer": 1,
        "head": 7,
        "direction": 3,
        "step": n - 1,
        "patch": n - 1,
        "word": 0,
        "extra": "ignored",
    }
    View.of(good).check(traced)
    View(kind="csm", direction="merged").check(traced)
    for name, value in {"layer": 2, "head": 8, "direction": 4, "step": n, "patch": n, "word": 99}.items():
        with pytest.raises(UserError, match="no such view"):
            View.of(good | {name: value}).check(traced)


@pytest.mark.parametrize("kind", ["bsm", "csm"])
def test_the_recording_is_what_the_shipped_model_does(model, kind):
    """New weights need a new recording: python -m visualize record"""
    kept = unpack(json.loads((ROOT / "visualize" / "recorded" / f"{kind}.json").read_text(encoding="utf-8")))
    conversation = model.start(ROOT / "examples" / f"{kept.picture}.jpg", kind)
    assert "".join(conversation.ask(kept.answer.question)) == kept.answer.text
    fresh = record(conversation)
    np.testing.assert_allclose(kept.maps[0], fresh.maps[0], rtol=0.02, atol=1e-6)
    for old, new in zip(kept.answer.words, fresh.answer.words, strict=True):
        np.testing.assert_allclose(old.maps[:, 0], new.maps[:, 0], rtol=0.02, atol=1e-3 * new.maps[:, 0].max())
