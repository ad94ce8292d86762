"""All that the view shows of one picture, as numbers; and what a person looks at of it.

Glossary as in `mlmamba.ssd` (b l h p n), and: d directions, t the step that reads, s the step that is read.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mlmamba import Conversation, Scan, scan_orders
from mlmamba.chat import Reading
from mlmamba.connector import DIRECTION_NAMES, DIRECTIONS
from mlmamba.errors import UserError
from visualize.replay import reach, reach_of_all, replay

Array = NDArray[np.float32]
PICTURE = 512  # pixels: longest side of the picture under the map


@dataclass(frozen=True)
class Quantity:
    """One number that a scan has at every step, a head; `log`: it spans powers of ten, and is coloured by them."""

    name: str
    symbol: str
    title: str
    text: str
    log: bool = False


QUANTITIES = (
    Quantity("delta", "Δ", "Time step", "How long the scan dwells here: a large Δ writes much and lets much go.", True),
    Quantity("decay", "exp(ΔA)", "Decay", "The share of the state that a step keeps: 1 keeps all, 0 forgets all."),
    Quantity("input", "‖Δ x Bᵀ‖", "Input", "How much this patch adds to the state.", True),
    Quantity("state", "‖H‖", "State", "How much the state holds once this patch is read."),
    Quantity("output", "‖y‖", "Output", "How much is read from the state at this patch, before gate and norm.", True),
    Quantity("gate", "‖SiLU(z)‖", "Gate", "How far the gate lets that output through."),
)
NAMES = tuple(quantity.name for quantity in QUANTITIES)


@dataclass(frozen=True)
class Keys:
    """What influence in a connector layer is made of: B and C (d, l, n), dt (d, l, h), A (d, h), ‖x‖ (d, l, h)."""

    B: Array
    C: Array
    dt: Array
    A: Array
    x: Array

    def reach(self, direction: int, t: int) -> Array:
        """|M[t,s]|·‖x_s‖ in one direction, (h, l) in scan order."""
        dt, A, B, C, x = (torch.from_numpy(part[direction]) for part in (self.dt, self.A, self.B, self.C, self.x))
        return reach(dt, A, B, C, x, t).numpy()


@dataclass(frozen=True)
class Word:
    """A word of an answer and what reached the step that chose it: maps (2, 1 + lm_layers, n_patches).

    maps[0] in the language model, maps[1] onward through the connector; of the layers the first is their mean.
    """

    text: str
    maps: Array


@dataclass(frozen=True)
class Answer:
    """A question, its answer, and the answer's words."""

    question: str
    text: str
    words: tuple[Word, ...]


@dataclass(frozen=True)
class Trace:
    """All that the view shows of one picture through one connector.

    orders (d, l): the patch that each direction sees at each step. maps (1 + h, layers, d, 6, l): every quantity in
    scan order, first the mean over heads, then each head. picture: the name of an example, None for one's own.
    """

    model: str
    kind: str
    kinds: tuple[str, ...]
    trained: bool
    grid: tuple[int, int]
    orders: NDArray[np.int64]
    maps: Array
    keys: tuple[Keys, ...]
    image: Image.Image
    picture: str | None = None
    answer: Answer | None = None

    @property
    def rows(self) -> int:
        return self.grid[0]

    @property
    def cols(self) -> int:
        return self.grid[1]

    @property
    def n_patches(self) -> int:
        return self.rows * self.cols

    @property
    def n_heads(self) -> int:
        return self.maps.shape[0] - 1

    @property
    def n_layers(self) -> int:
        return self.maps.shape[1]

    @property
    def n_directions(self) -> int:
        return self.maps.shape[2]

    @property
    def directions(self) -> tuple[str, ...]:
        return DIRECTION_NAMES[: self.n_directions]

    def along(self, layer: int, head: int | None, direction: int, quantity: str) -> Array:
        """A quantity at each step of a direction, (l,); head None is the mean over heads."""
        return self.maps[0 if head is None else 1 + head, layer, direction, NAMES.index(quantity)]

    def over(self, layer: int, head: int | None, direction: int | None, quantity: str) -> Array:
        """A quantity at each patch, (n_patches,) row by row; direction None is the mean over directions."""
        if direction is None:
            return np.mean([self.over(layer, head, d, quantity) for d in range(self.n_directions)], axis=0)
        return self._at_patches(self.along(layer, head, direction, quantity), direction)

    def influence(self, layer: int, head: int | None, direction: int | None, patch: int) -> Array:
        """How strongly each patch reaches `patch`: |M[t,s]|·‖x_s‖, (n_patches,), 0 where not yet seen."""
        if direction is None:
            return np.mean([self.influence(layer, head, d, patch) for d in range(self.n_directions)], axis=0)
        step = int(np.flatnonzero(self.orders[direction] == patch)[0])
        heads = self.keys[layer].reach(direction, step)
        return self._at_patches(heads.mean(axis=0) if head is None else heads[head], direction)

    def _at_patches(self, along: Array, direction: int) -> Array:
        laid = np.empty_like(along)
        laid[self.orders[direction]] = along
        return laid


@dataclass(frozen=True)
class View:
    """What is looked at: carried by links and exports. Raises UserError for what can't be looked at.

    head None: the mean over heads; direction None: all side by side; patch: its influence map; word: what it saw,
    in the language model's word_layer (None: the mean over layers), `through` the connector or not.
    """

    picture: str | None = None
    kind: str = "bsm"
    layer: int = 0
    head: int | None = None
    quantity: str = "state"
    direction: int | str | None = None
    step: int = 0
    patch: int | None = None
    word: int | None = None
    word_layer: int | None = None
    through: bool = False

    def __post_init__(self) -> None:
        def number(value: Any) -> bool:
            return type(value) is int and 0 <= value < 10**6

        good = (
            (self.picture is None or isinstance(self.picture, str)),
            self.kind in ("bsm", "csm", "compare"),
            number(self.layer),
            self.quantity in ("path", *NAMES),
            self.direction in (None, "merged") or number(self.direction),
            number(self.step),
            type(self.through) is bool,
            *(value is None or number(value) for value in (self.head, self.patch, self.word, self.word_layer)),
        )
        if not all(good):
            raise UserError("This view can't be read; open the page anew and choose it again.")

    @classmethod
    def of(cls, given: dict[str, Any]) -> "View":
        """A view from JSON; what it doesn't name stays at its default."""
        if not isinstance(given, dict):
            raise UserError("This view can't be read; open the page anew and choose it again.")
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in given.items() if name in known})

    def check(self, trace: Trace) -> None:
        """Raise UserError for a view that the trace doesn't have."""
        words = len(trace.answer.words) if trace.answer else 0
        layers = trace.answer.words[0].maps.shape[1] - 1 if words and trace.answer else 0
        limits = (
            (self.layer, trace.n_layers),
            (self.head, trace.n_heads),
            (self.direction if self.direction != "merged" else None, trace.n_directions),
            (self.step, trace.n_patches),
            (self.patch, trace.n_patches),
            (self.word, words),
            (self.word_layer, layers),
        )
        if any(isinstance(value, int) and value >= limit for value, limit in limits):
            raise UserError(
                "The scan has no such view; choose a layer, head, direction, step, patch or word that it has."
            )


def record(
    conversation: Conversation, kind: str | None = None, picture: str | None = None, answered: bool = True
) -> Trace:
    """The trace of a conversation's picture through one connector, and with answered=True of its last answer."""
    return trace_of(conversation.look(kind, answered), conversation, picture)


def trace_of(reading: Reading, conversation: Conversation, picture: str | None = None) -> Trace:
    """The trace of what was read."""
    scans, model = reading.seen.scans, conversation.model
    layers, d = len(scans), len(scans[0])
    heads = replay([scan for layer in scans for scan in layer]).unflatten(0, (layers, d))  # (layers, d, h, 6, l)
    heads = heads.permute(2, 0, 1, 3, 4)
    maps = torch.cat([heads.mean(0, keepdim=True), heads])
    image = conversation.image.copy()
    image.thumbnail((PICTURE, PICTURE))
    return Trace(
        model=model.config.name,
        kind=reading.connector,
        kinds=tuple(DIRECTIONS),
        trained=reading.seen.trained,
        grid=reading.grid,
        orders=np.stack([order.numpy() for order in scan_orders(reading.connector, *reading.grid)]),
        maps=maps.cpu().numpy(),
        keys=tuple(keys_of(layer) for layer in scans),
        image=image,
        picture=picture,
        answer=answer_of(reading) if reading.words else None,
    )


def keys_of(layer: Sequence[Scan]) -> Keys:
    """What influence needs of the directions of one connector layer."""

    def stacked(parts: list[Tensor]) -> Array:
        return torch.stack(parts).float().cpu().numpy()

    return Keys(
        B=stacked([scan.B[0] for scan in layer]),
        C=stacked([scan.C[0] for scan in layer]),
        dt=stacked([scan.dt[0] for scan in layer]),
        A=stacked([scan.A for scan in layer]),
        x=stacked([scan.x[0].float().norm(dim=-1) for scan in layer]),
    )


@torch.inference_mode()
def answer_of(reading: Reading) -> Answer:
    """What each word's steps saw of the patches: the language model's |M|·‖x‖, a layer, mean over heads."""
    n_patches = reading.grid[0] * reading.grid[1]
    spread = spread_of(reading)
    norms = [scan.x[0].float().norm(dim=-1) for scan in reading.language]
    words = []
    for word in reading.words:
        rows = []
        for scan, x in zip(reading.language, norms, strict=True):
            steps = [reach(scan.dt[0], scan.A, scan.B[0], scan.C[0], x, t)[:, :n_patches] for t in word.steps]
            rows.append(torch.stack(steps).mean((0, 1)))  # over the word's tokens and the heads
        layers = torch.stack(rows).cpu()  # (lm_layers, n_patches)
        layers = torch.cat([layers.mean(0, keepdim=True), layers])
        words.append(Word(word.text, torch.stack([layers, layers @ spread]).numpy()))
    return Answer(reading.question, reading.answer, tuple(words))


def spread_of(reading: Reading) -> Tensor:
    """Which patches each feature was mixed from, (n_patches, n_patches), rows summing to 1.

    At each connector layer half stays in place, as the residual does, and half goes the way of the merged
    |M|·‖x‖, made to sum to 1: a rough guide that leaves out gates, norms and SwiGLU.
    """
    n_patches = reading.grid[0] * reading.grid[1]
    spread = torch.eye(n_patches)
    for layer in reading.seen.scans:
        merged = torch.zeros(n_patches, n_patches)
        for scan in layer:
            assert scan.order is not None
            dt, norms, order = scan.dt[0].float(), scan.x[0].float().norm(dim=-1), scan.order.cpu()
            merged[order[:, None], order] += reach_of_all(dt, scan.A, scan.B[0], scan.C[0], norms).cpu()
        merged = merged / merged.sum(1, keepdim=True).clamp_min(1e-30)
        spread = (torch.eye(n_patches) + merged) / 2 @ spread
    return spread
