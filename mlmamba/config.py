"""Sizes of a model, saved as `config.json` beside its weights. Everything derived is a property."""

import json
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from mlmamba.errors import UserError

# Far above any model, so that a file can't ask for what no machine has
MAX_FILE_BYTES = 1024**2
MAX_SIZE = 2**20
MAX_LAYERS = 256
MAX_IMAGE_SIZE = 4096  # pixels on a side; the embedding of places in a tower grows with its square
MAX_TOWERS = 8
MAX_REASON = 200  # characters of what is wrong, which may quote the file

KINDS = ("bsm", "csm", "mlp")
DECODERS = ("llama", "phi")  # those of `transformers` that a Transformer is tested with


@dataclass(frozen=True)
class VisionConfig:
    """Frozen vision towers, by the names in `mlmamba.vision`; their features are concatenated per patch."""

    towers: tuple[str, ...] = ("dinov2-l14", "siglip-so400m-14")
    image_size: int = 384


@dataclass(frozen=True)
class ConnectorConfig:
    """From patch features to the language model's width: MLP, scan (MVSS + SwiGLU), projector.

    `kinds` names the connectors that have weights: any of "bsm", "csm", or "mlp" alone (no scan).
    """

    d_features: int
    d_model: int
    kinds: tuple[str, ...] = ("bsm",)
    n_layers: int = 2
    d_state: int = 128
    head_dim: int = 64
    expand: int = 2
    d_conv: int = 4
    swiglu: bool = True
    d_projector: int = 10240

    @property
    def d_inner(self) -> int:
        return self.expand * self.d_model

    @property
    def n_heads(self) -> int:
        return self.d_inner // self.head_dim


@dataclass(frozen=True)
class LanguageConfig:
    """A Mamba-2 language model in the layout of `state-spaces/mamba2`, one group of B and C."""

    d_model: int = 2560
    n_layers: int = 64
    vocab_size: int = 50288
    d_state: int = 128
    head_dim: int = 64
    expand: int = 2
    d_conv: int = 4
    norm_eps: float = 1e-5

    @property
    def d_inner(self) -> int:
        return self.expand * self.d_model

    @property
    def n_heads(self) -> int:
        return self.d_inner // self.head_dim


@dataclass(frozen=True)
class TransformerConfig:
    """A Transformer in Mamba-2's place, for the race: a decoder of `transformers`, by its `kind` there ("llama")."""

    kind: str
    d_model: int
    n_layers: int
    n_heads: int
    d_mlp: int
    vocab_size: int
    max_positions: int = 131072


@dataclass(frozen=True)
class MLMambaConfig:
    """One whole model. Ids from `vocab_words` up to `language.vocab_size` are padding, never sampled."""

    name: str
    connector: ConnectorConfig
    language: LanguageConfig | TransformerConfig
    vision: VisionConfig = field(default_factory=VisionConfig)
    vocab_words: int = 50277
    end_of_turn: int = 0

    @classmethod
    def load(cls, path: Path) -> "MLMambaConfig":
        """Read `config.json`. Raises UserError when it is not one of ours, or of sizes that no model has."""
        try:
            with path.open("rb") as file:
                text = file.read(MAX_FILE_BYTES + 1)
            if len(text) > MAX_FILE_BYTES:
                raise ValueError("it is larger than 1 MB")
            config = cls.from_dict(json.loads(text))
            config.check()
        # AttributeError: a list in a section's place; RecursionError: brackets in brackets
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            reason = " ".join(str(error).split())[:MAX_REASON].rstrip(".")
            raise UserError(f"{path} is no ML-Mamba config ({reason}); write one with `mlmamba convert`.") from error
        return config

    def check(self) -> None:
        """Raise ValueError or TypeError for values that no model can have."""
        vision, connector, language = self.vision, self.connector, self.language
        for part in (self, vision, connector, language):
            for entry in fields(part):
                check_value(entry.name, entry.type, getattr(part, entry.name))
        if len(vision.towers) > MAX_TOWERS:
            raise ValueError(f"vision.towers must name at most {MAX_TOWERS} towers")
        if bool(vision.image_size) != bool(vision.towers) or vision.image_size > MAX_IMAGE_SIZE:
            raise ValueError(f"vision.image_size must be from 1 to {MAX_IMAGE_SIZE}, or 0 without towers")
        kinds = connector.kinds
        if not kinds or len(set(kinds)) < len(kinds) or not set(kinds) <= set(KINDS):
            raise ValueError(f"connector.kinds must name one or more of {', '.join(KINDS)}")
        if connector.d_model != language.d_model:
            raise ValueError("connector.d_model and language.d_model must be the same")
        if max(connector.n_layers, language.n_layers) > MAX_LAYERS:
            raise ValueError(f"n_layers must be at most {MAX_LAYERS}")
        for scanning in (connector, language):
            if isinstance(scanning, TransformerConfig):
                if scanning.kind not in DECODERS:
                    raise ValueError(f"language.kind must be {' or '.join(DECODERS)}")
                if scanning.d_model % scanning.n_heads:
                    raise ValueError("d_model must be a multiple of n_heads")
            elif scanning.d_inner > MAX_SIZE or (kinds != ("mlp",) and scanning.d_inner % scanning.head_dim):
                raise ValueError(f"expand * d_model must be a multiple of head_dim, and at most {MAX_SIZE:,}")
        if self.vocab_words > language.vocab_size or self.end_of_turn >= language.vocab_size:
            raise ValueError("vocab_words and end_of_turn must lie within language.vocab_size")

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "MLMambaConfig":
        def section(kind: type, name: str) -> Any:
            # JSON has no tuples, and a frozen config must stay hashable
            return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values[name].items()})

        rest = {k: v for k, v in values.items() if k not in ("vision", "connector", "language")}
        return cls(
            **rest,
            vision=section(VisionConfig, "vision"),
            connector=section(ConnectorConfig, "connector"),
            language=section(TransformerConfig if "kind" in values["language"] else LanguageConfig, "language"),
        )


def check_value(name: str, kind: Any, value: Any) -> None:
    """Raise TypeError or ValueError unless a value is of the kind of its field, and a size from 1 to MAX_SIZE."""
    if kind is int:
        least = 0 if name in ("end_of_turn", "image_size") else 1
        if type(value) is not int or not least <= value <= MAX_SIZE:
            raise ValueError(f"{name} must be a whole number from {least} to {MAX_SIZE:,}")
    elif kind is float:
        if type(value) not in (int, float) or not math.isfinite(value) or not 0 < value < 1:
            raise ValueError(f"{name} must be a number between 0 and 1")
    elif kind is bool or kind is str:
        if type(value) is not kind:
            raise TypeError(f"{name} must be {'true or false' if kind is bool else 'a text'}")
    elif kind == tuple[str, ...] and not (isinstance(value, tuple) and all(type(v) is str for v in value)):
        raise TypeError(f"{name} must be a list of names")
