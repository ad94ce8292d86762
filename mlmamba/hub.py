"""Where the files of a model are: in this repository, in a folder, or on the Hugging Face Hub."""

import shutil
from pathlib import Path

from mlmamba import weights
from mlmamba.errors import UserError

CHECKPOINTS = Path(__file__).parent.parent / "checkpoints"
PUBLISHED_REPO, PUBLISHED_FILE = "huangwenjun1994/ML-Mamba", "latest-checkpoint.pt"
NEOX_REPO = "EleutherAI/gpt-neox-20b"  # the tokenizer of the published model


def find(name: str | Path) -> Path:
    """The folder with a model's `config.json` and `model.safetensors`, fetched and converted where need be."""
    if name == "tiny":
        return _complete(CHECKPOINTS / "tiny")
    if name == "3b":
        return _published()
    if Path(name).is_dir():
        return _complete(Path(name))
    if str(name).count("/") == 1 and not Path(name).exists() and not str(name).startswith((".", "/")):
        files = [_fetch(str(name), file) for file in (weights.CONFIG, weights.WEIGHTS, weights.TOKENIZER)]
        return files[0].parent
    raise UserError(f'There is no model "{name}"; use "tiny", "3b", a folder with config.json, or a Hub id.')


def tokenizer_file(folder: Path) -> Path:
    """`tokenizer.json` beside the weights, or the published model's from the Hub."""
    own = folder / weights.TOKENIZER
    if not own.exists():
        shutil.copyfile(_fetch(NEOX_REPO, weights.TOKENIZER), own)
    return own


def _complete(folder: Path) -> Path:
    for file in (weights.CONFIG, weights.WEIGHTS):
        if not (folder / file).is_file():
            raise UserError(f"{folder} has no {file}; train a model into it or convert one with `mlmamba convert`.")
    return folder


def _published() -> Path:
    """The authors' release, converted once into the Hub's own cache."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE) / "mlmamba-3b"
    if not (folder / weights.WEIGHTS).is_file():
        weights.convert(_fetch(PUBLISHED_REPO, PUBLISHED_FILE), folder, name="3b")
    return folder


def _fetch(repo: str, file: str) -> Path:
    """A file of a Hub repository, downloaded with a progress bar at first need."""
    import httpx
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repo, file))
    except (HfHubHTTPError, LocalEntryNotFoundError, httpx.HTTPError, OSError) as error:
        raise UserError(
            f"Could not fetch {file} of {repo} from the Hugging Face Hub; check the name and the network, "
            'or use the embedded model "tiny".'
        ) from error
