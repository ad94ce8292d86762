"""From a picture and words to a state: operation by operation, or on a GPU as a few graphs.

    patches = reader.see(image)               # (1, n_patches, d_features)
    features = reader.connect(patches, kind)  # (1, n_patches, d_model)
    state = reader.begin(features)            # after the picture
    output = reader.go_on(ids, state)         # after words too; its logits choose the next

A large model reads by thousands of small operations, most of which a GPU has done sooner than the next is launched. But
a picture always has as many patches, and words can be read in blocks of one size, so that each of these four can be
recorded as a graph, once, and then launched whole.
"""

import threading
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from mlmamba import backend
from mlmamba.mamba2 import LanguageModel, LanguageOutput, layered

if TYPE_CHECKING:
    from mlmamba.model import MLMamba

BLOCK = 64  # words; most questions are shorter
NOTHING = -1  # in place of a word, at the end of a block


class Reader:
    """Reads operation by operation."""

    def __init__(self, model: "MLMamba"):
        self.model = model

    def see(self, image: Image.Image) -> Tensor:
        """What the vision towers see in a picture."""
        return self.model.see(image)

    def connect(self, patches: Tensor, kind: str) -> Tensor:
        """What the connector makes of that."""
        return self.model.connector(patches, self.model.grid, kind).features

    def begin(self, features: Tensor) -> Any:
        """The language model's state after a picture."""
        return self.model.language_model(features, last_only=True).state

    def go_on(self, ids: Sequence[int], state: Any) -> LanguageOutput:
        """Read one word or more after `state`, which stays as it is."""
        return self.model.language_model(self.model.embed(ids), state, last_only=True)


class Fixed:
    """A function of tensors, on memory that stays where it is: on CUDA a graph, recorded when this is made.

    What it is given is copied in, what it gives copied out.
    """

    @torch.inference_mode()
    def __init__(self, function: Callable[..., list[Tensor]], *like: Tensor):
        """`like`: what it will be given, but for the numbers."""
        self.function, self.lock = function, threading.Lock()
        self.given = [each.clone() for each in like]
        self.run = backend.repeated(self._run, like[0].device)

    def _run(self) -> None:
        self.result = self.function(*self.given)

    @torch.inference_mode()
    def __call__(self, *given: Tensor) -> list[Tensor]:
        with self.lock:  # several users may read at once
            backend.copy_all(given, self.given)
            self.run()
            return backend.copies(self.result)


class FixedReader(Reader):
    """Reads Mamba-2 by functions of fixed size."""

    @torch.inference_mode()
    def __init__(self, model: "MLMamba"):
        super().__init__(model)
        kinds, lm = model.config.connector.kinds, model.language_model
        assert isinstance(lm, LanguageModel)
        pixels = model.pixels(Image.new("RGB", (1, 1)))
        patches = model.towers(pixels)
        features = super().connect(patches, kinds[0])
        ids = torch.zeros(1, BLOCK, dtype=torch.long, device=pixels.device)
        self._see = Fixed(lambda pixels: [model.towers(pixels)], pixels)
        self._connect = {kind: Fixed(partial(self._connected, kind), patches) for kind in kinds}
        self._begin = Fixed(lambda features: flat(lm(features, last_only=True)), features)
        self._go_on = Fixed(self._gone_on, ids, *chain(*lm.empty(1)))

    def _connected(self, kind: str, patches: Tensor) -> list[Tensor]:
        return [super().connect(patches, kind)]

    def _gone_on(self, ids: Tensor, *state: Tensor) -> list[Tensor]:
        lm, length = self.model.language_model, (ids != NOTHING).sum()
        return flat(lm(lm.embed(ids.clamp_min(0)), layered(state), last_only=True, length=length))

    def see(self, image: Image.Image) -> Tensor:
        return self._see(self.model.pixels(image))[0]

    def connect(self, patches: Tensor, kind: str) -> Tensor:
        return self._connect[kind](patches)[0]

    def begin(self, features: Tensor) -> Any:
        return unflat(self._begin(features)).state

    def go_on(self, ids: Sequence[int], state: Any) -> LanguageOutput:
        """As above, but that `hidden` is of the last block alone."""
        for start in range(0, len(ids), BLOCK):
            block = [*ids[start : start + BLOCK], *[NOTHING] * BLOCK][:BLOCK]
            read = unflat(self._go_on(torch.tensor([block], device=self.model.backend.device), *chain(*state)))
            state = read.state
        return read


def flat(output: LanguageOutput) -> list[Tensor]:
    """What was read as tensors in a row."""
    return [output.hidden, output.logits, *chain(*output.state)]


def unflat(tensors: Sequence[Tensor]) -> LanguageOutput:
    """What was read, from tensors in a row."""
    hidden, logits, *state = tensors
    return LanguageOutput(hidden, logits, layered(state), {})
