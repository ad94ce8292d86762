"""ML-Mamba, the figure of the paper: vision towers → scan connector → projector → Mamba-2 language model."""

import gc
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor, nn

from mlmamba import backend, hub, weights
from mlmamba.backend import Backend
from mlmamba.chat import ChatTokenizer, Conversation, check_question
from mlmamba.config import LanguageConfig, MLMambaConfig, TransformerConfig
from mlmamba.connector import Connector
from mlmamba.decoding import Alone, Decoder, Together
from mlmamba.errors import UserError
from mlmamba.images import ImageSource, open_image
from mlmamba.mamba2 import LanguageModel
from mlmamba.reading import FixedReader, Reader
from mlmamba.transformer import Transformer
from mlmamba.vision import Vision


class MLMamba(nn.Module):
    """Picture and text in, text out.

    The vision towers are frozen and have weights of their own, so that they are no part of `state_dict()`.
    """

    vision: Vision | None

    def __init__(
        self,
        config: MLMambaConfig,
        tokenizer: Tokenizer | None = None,
        vision: Vision | None = None,
        dtype: torch.dtype | None = None,
    ):
        """`dtype`: that a Transformer, which may be large, is made in."""
        super().__init__()
        self.config = config
        self.connector = Connector(config.connector)
        self.language_model = reader(config.language, dtype)
        self._chat_tokenizer = ChatTokenizer(tokenizer) if tokenizer else None
        self.reader = Reader(self)
        self.decoder: Decoder = Alone(self.language_model)
        self.backend = backend.choose("cpu")
        object.__setattr__(self, "vision", vision)  # past nn.Module: not a part of the weights

    def forward(self, pixels: Tensor, ids: Tensor, kind: str | None = None) -> Tensor:
        """pixels: (b, 3, s, s) in [0, 1], ids: (b, l) → logits (b, n_patches + l, vocab_size)."""
        patches = self.towers(pixels)  # (b, n_patches, d_features)
        features = self.connector(patches, self.grid, kind).features  # (b, n_patches, d_model)
        text = self.language_model.embed(ids)  # (b, l, d_model)
        return self.language_model(torch.cat([features, text], dim=1)).logits

    def run_on(self, chosen: Backend) -> "MLMamba":
        """Move everything to a device and dtype; what carries the state's memory stays in float32."""
        self.backend = chosen
        self.to(chosen.device, chosen.dtype)
        if self.vision is not None:
            self.vision.to(chosen.device, chosen.dtype)
        return self.eval().requires_grad_(False)

    @property
    def n_parameters(self) -> int:
        """Trained parameters, without the vision towers."""
        return sum(p.numel() for p in self.parameters())

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.towers.grid

    @property
    def towers(self) -> Vision:
        """The vision towers. Raises UserError in a model without them."""
        if self.vision is None:
            raise UserError(f'"{self.config.name}" was loaded without its vision towers; load it with vision=True.')
        return self.vision

    @property
    def chat_tokenizer(self) -> ChatTokenizer:
        """Text ↔ ids. Raises UserError in a model without a tokenizer."""
        if self._chat_tokenizer is None:
            raise UserError(f'"{self.config.name}" has no tokenizer; put its tokenizer.json beside its weights.')
        return self._chat_tokenizer

    def pixels(self, image: Image.Image) -> Tensor:
        """A picture → what the towers look at: (1, 3, s, s) in [0, 1]."""
        return self.towers.prepare(image)[None].to(self.backend.device)

    def see(self, image: Image.Image) -> Tensor:
        """A picture → patch features (1, n_patches, d_features)."""
        return self.towers(self.pixels(image))

    def embed(self, ids: Sequence[int]) -> Tensor:
        """Token ids → (1, l, d_model)."""
        return self.language_model.embed(torch.tensor([ids], device=self.backend.device))

    def serve(self, seats: int) -> "MLMamba":
        """From now on decode the answers of up to `seats` users as one batch, each as if alone.

        What a GPU does is recorded as graphs, and its kernels are tuned when they are first used: both is done here,
        so that no visitor waits for it.
        """
        try:
            if isinstance(self.language_model, LanguageModel):
                if self.backend.graphs:
                    self.reader = FixedReader(self)
                self.decoder = Together(self.language_model, seats, self.config.vocab_words)
            if self.backend.device.type != "cpu":
                self.warm_up()
        except BaseException:
            self.stop_serving()  # its thread would hold the model for good
            raise
        return self

    def stop_serving(self) -> "MLMamba":
        """From now on answer one user at a time again, and give back what was made for several."""
        if isinstance(self.decoder, Together):
            self.decoder.close()
        self.reader, self.decoder = Reader(self), Alone(self.language_model)
        gc.collect()  # of what refers to itself
        return self

    def warm_up(self) -> None:
        """With each connector, answer a first question and one that goes on from its state."""
        for kind in self.config.connector.kinds:
            conversation = self.start(Image.new("RGB", (64, 64)), kind)
            for _ in range(2):
                for _ in conversation.ask("?", max_new_tokens=4):
                    pass

    def check_connector(self, kind: str | None) -> str:
        """The connector to use; the first that has weights by default. Raises UserError for one without."""
        kinds = self.config.connector.kinds
        if kind is not None and kind not in kinds:
            raise UserError(
                f'"{self.config.name}" has no weights for the connector "{kind}"; use {" or ".join(kinds)}.'
            )
        return kind or kinds[0]

    def start(
        self, image: ImageSource, connector: str | None = None, history: Sequence[tuple[str, str]] = ()
    ) -> Conversation:
        """A conversation about a picture; nothing is computed before the first question."""
        return Conversation(self, open_image(image), connector, history)

    def chat(
        self,
        image: ImageSource,
        question: str,
        *,
        history: Sequence[tuple[str, str]] = (),
        stream: bool = False,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        connector: str | None = None,
    ) -> str | Iterator[str]:
        """Answer one question about a picture; with stream=True as an iterator of pieces.

        `history` holds earlier (question, answer) turns about the same picture. Raises UserError for a picture or a
        question that can't be used.
        """
        check_question(question)
        conversation = self.start(image, connector, history)
        pieces = conversation.ask(question, max_new_tokens=max_new_tokens, temperature=temperature)
        return pieces if stream else "".join(pieces)


def reader(config: LanguageConfig | TransformerConfig, dtype: torch.dtype | None) -> LanguageModel | Transformer:
    """What reads patches and words: Mamba-2; in the race's rival a Transformer."""
    return LanguageModel(config) if isinstance(config, LanguageConfig) else Transformer(config, dtype)


def read_tokenizer(path: Path) -> Tokenizer:
    """A `tokenizer.json`. Raises UserError when it is none."""
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no narrower one
        raise UserError(f"{path} is not a readable tokenizer; fetch it again.") from error


def load(
    name: str | Path = "tiny",
    *,
    device: str = "auto",
    dtype: str | torch.dtype = "auto",
    vision: bool = True,
) -> MLMamba:
    """Load a model: "tiny" (comes with this repository), "3b" (the authors' release), a directory, or a Hub id.

    vision=False leaves the vision towers out, for work on features or text alone. Raises UserError when a file can't
    be had or doesn't fit.
    """
    chosen = backend.choose(device, dtype)
    folder = hub.find(name)
    config = MLMambaConfig.load(folder / weights.CONFIG)
    tokenizer = read_tokenizer(hub.tokenizer_file(folder))
    # the weights come from the file, so none are made here
    with torch.device("meta"):
        model = MLMamba(config, tokenizer)
    if not isinstance(config.language, LanguageConfig):
        # a Transformer also has tables that are in no file; it is made where the file holds as much as it will take
        weights.check_fits(model, folder / weights.WEIGHTS)
        model = MLMamba(config, tokenizer)
    weights.load_into(model, folder / weights.WEIGHTS)
    if vision:
        own = folder / weights.VISION
        towers = Vision(config.vision, pretrained=not own.exists())
        if own.exists():
            weights.load_into(towers, own)
        object.__setattr__(model, "vision", towers)
    return model.run_on(chosen)
