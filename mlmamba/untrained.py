"""A model of random weights in the authors' own layout: all of the 3B but what it has learnt, with no download.

It loads, answers (nonsense), can be looked into and raced just as the release: speed and memory don't depend on
what the weights are. `python -m mlmamba init 3b OUT` writes it.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from mlmamba import hub, weights
from mlmamba.config import ConnectorConfig, LanguageConfig, MLMambaConfig
from mlmamba.errors import UserError
from mlmamba.model import MLMamba
from mlmamba.vision import Vision

PUBLISHED = MLMambaConfig("3b", ConnectorConfig(d_features=2176, d_model=2560), LanguageConfig())


def write(config: MLMambaConfig, out: Path, seed: int) -> None:
    """Write `latest-checkpoint.pt`, the vision towers and a tokenizer into the folder `out`, weights in bfloat16.

    Raises UserError for a config that the authors' layout has no names for.
    """
    if config.connector.kinds != ("bsm",) or not isinstance(config.language, LanguageConfig):
        raise UserError(f"The authors' layout knows BSM and Mamba-2 alone; {config.name} is of another kind.")
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    torch.set_default_dtype(torch.bfloat16)  # made in it, 3B need 6 GB and not 12
    try:
        with torch.no_grad():
            published = weights.to_published(config, MLMamba(config).state_dict())
    finally:
        torch.set_default_dtype(torch.float32)
    torch.save({"model": published}, out / hub.PUBLISHED_FILE)
    del published
    towers = Vision(config.vision, pretrained=False).to(dtype=torch.bfloat16)
    save_file({name: tensor.contiguous() for name, tensor in towers.state_dict().items()}, out / weights.VISION)
    _tokenizer(config.vocab_words, out / weights.TOKENIZER)


def _tokenizer(words: int, path: Path) -> None:
    """The tiny model's tokenizer, with made-up words up to `words`, so that every id can be said."""
    told = json.loads((hub.CHECKPOINTS / "tiny" / weights.TOKENIZER).read_text(encoding="utf-8"))
    vocabulary = told["model"]["vocab"]
    for number in range(len(vocabulary), words):
        vocabulary[f"Ġw{number}"] = number  # no merge leads to it, so that no text is read as it
    path.write_text(json.dumps(told, ensure_ascii=False), encoding="utf-8")
