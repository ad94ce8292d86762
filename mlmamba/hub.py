"""Where the files of a model are: in this repository, in a folder, or on the Hugging Face Hub."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mlmamba import weights
from mlmamba.errors import UserError

CHECKPOINTS = Path(__file__).parent.parent / "checkpoints"
PUBLISHED_REPO, PUBLISHED_FILE = "huangwenjun1994/ML-Mamba", "latest-checkpoint.pt"
NEOX_REPO = "EleutherAI/gpt-neox-20b"  # the tokenizer of the published model


def find(name: str | Path) -> Path:
    """The folder with a model's `config.json` and `model.safetensors`, fetched and converted where need be.

    A folder may hold the authors' `latest-checkpoint.pt` instead: it is converted there, once.
    """
    if name in ("tiny", "twin"):
        return _complete(CHECKPOINTS / name)
    if name == "3b":
        return _published()
    if Path(name).is_dir():
        return _complete(Path(name))
    if str(name).count("/") == 1 and not Path(name).exists() and not str(name).startswith((".", "/")):
        files = [_fetch(str(name), file) for file in (weights.CONFIG, weights.WEIGHTS, weights.TOKENIZER)]
        return files[0].parent
    raise UserError(f'There is no model "{name}"; use "tiny", "twin", "3b", a folder with config.json, or a Hub id.')


def find_mamba2(name: str) -> Path | None:
    """The folder of a language model in the layout of `state-spaces/mamba2-2.7b`, fetched where need be.

    None for every other model, which `find` finds.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder if (folder / weights.MAMBA2_WEIGHTS).is_file() else None
    if name.split("/")[0] != "state-spaces":
        return None
    return _fetch(name, weights.MAMBA2_WEIGHTS).parent


def tokenizer_file(folder: Path) -> Path:
    """`tokenizer.json` beside the weights, or the published model's from the Hub."""
    own = folder / weights.TOKENIZER
    if not own.exists():
        shutil.copyfile(_fetch(NEOX_REPO, weights.TOKENIZER), own)
    return own


def _complete(folder: Path) -> Path:
    if (folder / PUBLISHED_FILE).is_file():
        return _converted(folder, lambda: folder / PUBLISHED_FILE)
    for file in (weights.CONFIG, weights.WEIGHTS):
        if not (folder / file).is_file():
            raise UserError(f"{folder} has no {file}; train a model into it or convert one with `mlmamba convert`.")
    if not weights.sound(folder):
        raise UserError(f"{folder / weights.WEIGHTS} is damaged (its checksum differs); fetch or convert it again.")
    return folder


def _published() -> Path:
    """The authors' release, converted once into the Hub's own cache."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return _converted(Path(HF_HUB_CACHE) / "mlmamba-3b", lambda: _fetch(PUBLISHED_REPO, PUBLISHED_FILE))


def _converted(folder: Path, pickle: Callable[[], Path]) -> Path:
    """The folder with the authors' file in our format; the pickle is asked for only where that is not there yet."""
    if not ((folder / weights.CONFIG).is_file() and weights.sound(folder)):
        weights.convert(pickle(), folder, name="3b")
    return folder


def _fetch(repo: str, file: str) -> Path:
    """A file of a Hub repository, downloaded with a progress bar at first need."""
    from huggingface_hub import hf_hub_download

    with fetching(f"{file} of {repo}"):
        return Path(hf_hub_download(repo, file))


@contextmanager
def fetching(what: str, *, wanted: bool = True) -> Iterator[None]:
    """Let the library inside fetch from the Hub (it shows its own progress bar), or raise UserError.

    With no network the local cache is asked alone: the Hub's client would retry for a minute first.
    """
    if not wanted:
        yield
        return
    import httpx
    from huggingface_hub import constants, get_session

    setting = constants.HF_HUB_OFFLINE
    try:
        get_session().head(constants.ENDPOINT, timeout=10)
        reason = ""
    except (OSError, httpx.HTTPError) as error:
        constants.HF_HUB_OFFLINE = True
        reason = f"{constants.ENDPOINT} does not answer: {error}"
    try:
        yield
    except (OSError, RuntimeError, httpx.HTTPError) as error:  # RuntimeError is open_clip's
        reason = reason or str(error).strip().split("\n")[0]
        raise UserError(
            f"Could not fetch {what} from the Hugging Face Hub; check the name, go online and try again, "
            f'or take the model "tiny", which needs no download ({reason}).'
        ) from error
    finally:
        constants.HF_HUB_OFFLINE = setting
