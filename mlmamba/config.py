"""Sizes of a model, saved as `config.json` beside its weights. Everything derived is a property."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mlmamba.errors import UserError


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
        """Read `config.json`. Raises UserError when it is not one of ours."""
        try:
            return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path} is no ML-Mamba config ({error}); write one with `mlmamba convert`.") from error

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
