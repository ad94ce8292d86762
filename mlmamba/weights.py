"""Files of weights: ours, and the authors' pickle, whose names only this file knows."""

import hashlib
import pickle
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mlmamba.config import ConnectorConfig, LanguageConfig, MLMambaConfig, VisionConfig
from mlmamba.errors import UserError

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
VISION = "vision.safetensors"  # of towers that are not to be fetched by name
CHECKSUM = "model.safetensors.sha256"  # beside weights that were converted, as `sha256sum` writes it
MAX_HEADER_BYTES = 8 * 1024**2  # of a safetensors file; that of the 3B model has less than 0.1 MB
FLOATS = ("F64", "F32", "F16", "BF16")
MAMBA2_WEIGHTS = "pytorch_model.bin"  # of a language model alone, as in `state-spaces/mamba2-2.7b`

# The vision towers that give patch features of a width; the pickle doesn't name them
TOWERS = {
    2176: VisionConfig(("dinov2-l14", "siglip-so400m-14"), 384),
    1152: VisionConfig(("siglip-so400m-14",), 384),
    1024: VisionConfig(("clip-l14-336",), 336),
    1450: VisionConfig(("efficientnet-lite0",), 320),
    2450: VisionConfig(("efficientnet-lite0-opinion",), 320),
    2786: VisionConfig(("efficientnet-lite0-detail",), 448),
}
CONVOLUTIONS = ("conv1d.weight", "conv1d_b.weight")
NEOX_WORDS = 50277  # of the 50288 rows of the embedding, the rest is padding

# theirs → ours, within one layer; a `_b` marks the backward direction
SCAN_NAMES = {
    "conv1d.weight": "conv_weight",
    "conv1d.bias": "conv_bias",
    "dt_bias": "dt_bias",
    "A_log": "A_log",
    "D": "D",
}
MIXER_NAMES = {
    "in_proj.weight": "in_proj.weight",
    "norm.weight": "gated_norm.weight",
    "out_proj.weight": "out_proj.weight",
}
SWIGLU_NAMES = {f"mlp.w{i}.{part}": f"swiglu.w{i}.{part}" for i in (1, 2, 3) for part in ("weight", "bias")}
LAYER_NORM_NAMES = {"norm.weight": "norm.weight", "norm.bias": "norm.bias"}


def save(config: MLMambaConfig, state: dict[str, Tensor], out: Path) -> None:
    """Write `config.json` and `model.safetensors` into the folder `out`; what was cut off is never taken for whole."""
    out.mkdir(parents=True, exist_ok=True)
    config.save(out / CONFIG)
    partial = out / f"{WEIGHTS}.partial"
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, partial)
    (out / CHECKSUM).unlink(missing_ok=True)  # of weights that were there before
    partial.replace(out / WEIGHTS)


def average(folders: Sequence[Path], out: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write the mean of several models' weights into the folder `out`, as `dtype`, with their config and tokenizer.

    Models that went on from one start in different ways often lie in one valley; their mean is then better all round
    than each. Raises UserError where config or tokenizer differ.
    """
    first = folders[0]
    configs = [MLMambaConfig.load(folder / CONFIG) for folder in folders]
    files = [folder / TOKENIZER for folder in folders]
    tokenizers = [file.read_bytes() if file.exists() else b"" for file in files]
    for folder, config, tokenizer in zip(folders, configs, tokenizers, strict=True):
        if replace(config, name=configs[0].name) != configs[0] or tokenizer != tokenizers[0]:
            raise UserError(f"{folder} has another config or tokenizer than {first}; average only what is alike.")
    total: dict[str, Tensor] = {}
    for folder in folders:
        for name, tensor in load_file(folder / WEIGHTS).items():
            total[name] = total[name] + tensor if name in total else tensor.double()
    save(configs[0], {name: (tensor / len(folders)).to(dtype) for name, tensor in total.items()}, out)
    if tokenizers[0]:
        (out / TOKENIZER).write_bytes(tokenizers[0])


def sha256(path: Path) -> str:
    """The checksum of a file, read block by block."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()


def seal(folder: Path) -> None:
    """Note the checksum of a folder's weights beside them."""
    (folder / CHECKSUM).write_text(f"{sha256(folder / WEIGHTS)}  {WEIGHTS}\n", encoding="utf-8")


def sound(folder: Path) -> bool:
    """Whether a folder has weights that are what their checksum says, if there is one."""
    if not (folder / WEIGHTS).is_file():
        return False
    noted = folder / CHECKSUM
    return not noted.exists() or noted.read_bytes().split()[:1] == [sha256(folder / WEIGHTS).encode()]


def load_into(module: nn.Module, path: Path) -> None:
    """Fill `module` from a safetensors file; a missing, an extra or a wrongly shaped tensor is a UserError."""
    check_fits(module, path)
    module.load_state_dict(load_file(path), strict=True, assign=True)


def check_fits(module: nn.Module, path: Path) -> None:
    """Raise UserError unless a safetensors file holds just the tensors of `module`; only its header is read."""
    try:
        with path.open("rb") as file:
            if int.from_bytes(file.read(8), "little") > MAX_HEADER_BYTES:
                raise SafetensorError("its header is too large")
        with safe_open(path, framework="pt") as opened:
            tensors = {name: opened.get_slice(name) for name in opened.keys()}
            found = {name: torch.Size(tensor.get_shape()) for name, tensor in tensors.items()}
            kinds = {name: tensor.get_dtype() for name, tensor in tensors.items()}
    except (OSError, SafetensorError) as error:
        reason = str(error).rstrip(".")
        raise UserError(f"{path} is not a readable safetensors file ({reason}); fetch or convert it again.") from error
    expected = {name: tensor.shape for name, tensor in module.state_dict().items()}
    if expected != found:
        raise UserError(f"{path} does not fit its {CONFIG}: {_difference(expected, found)}.")
    if wrong := sorted(name for name, kind in kinds.items() if kind not in FLOATS):
        raise UserError(f"{path} does not fit its {CONFIG}: {wrong[0]} is of {kinds[wrong[0]]}, not of floats.")


def _difference(expected: dict[str, torch.Size], found: dict[str, torch.Size]) -> str:
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    shapes = [
        f"{name} is {tuple(found[name])} instead of {tuple(expected[name])}"
        for name in sorted(expected.keys() & found.keys())
        if expected[name] != found[name]
    ]
    faults = [f"{what} {', '.join(names[:3])}" for what, names in (("no", missing), ("unknown", extra)) if names]
    return "; ".join(faults + shapes[:3])


def convert(source: Path, out: Path, name: str | None = None) -> MLMambaConfig:
    """Turn the authors' `latest-checkpoint.pt` into `config.json` + `model.safetensors` in the folder `out`.

    The pickle is mapped, not read: a tensor is in memory while it is copied from file to file.
    """
    try:
        # weights_only: a pickle may hold code, and none of it is run
        checkpoint = torch.load(source, map_location="cpu", weights_only=True, mmap=True)
        parts = checkpoint["model"]
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as error:
        raise UserError(f"{source} is not an ML-Mamba checkpoint: {str(error).splitlines()[0]}") from error
    config, state = from_published(parts, name or source.stem)
    save(config, state, out)
    seal(out)
    return config


def read_mamba2(folder: Path) -> tuple[LanguageConfig, dict[str, Tensor]]:
    """A Mamba-2 language model in the layout of `state-spaces/mamba2-2.7b`: its sizes, and its tensors by our names."""
    path = folder / MAMBA2_WEIGHTS
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        ours = _ours({"llm_backbone": tensors})
        return _language_sizes(ours), {name.removeprefix("language_model."): tensor for name, tensor in ours.items()}
    except (OSError, RuntimeError, KeyError, AttributeError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} is not a Mamba-2 language model: {str(error).splitlines()[0]}") from error


def from_published(parts: dict[str, dict[str, Tensor]], name: str) -> tuple[MLMambaConfig, dict[str, Tensor]]:
    """Map the four published state dicts to ours, strictly, and read the sizes off the tensors."""
    ours = _ours(parts)
    try:
        return _read_sizes(ours, name), ours
    except KeyError as error:
        raise UserError(f"The checkpoint lacks {error.args[0]}, so it is not a whole ML-Mamba.") from error


def to_published(config: MLMambaConfig, state: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Our tensors by the authors' names, in their four state dicts; the inverse of `from_published`."""
    parts: dict[str, dict[str, Tensor]] = {}
    for part, key in _published_names(config):
        name = _our_name(part, key)
        tensor = state[name] if name else state["language_model.embedding.weight"]  # the tied head
        parts.setdefault(part, {})[key] = tensor.unsqueeze(1) if key.endswith(CONVOLUTIONS) else tensor
    return parts


def _published_names(config: MLMambaConfig) -> list[tuple[str, str]]:
    """(state dict, name) of every tensor in the authors' file of a model of these sizes."""
    forward = [f"mixer.{name}" for name in (*SCAN_NAMES, *MIXER_NAMES)]
    backward = ["mixer." + re.sub(r"^\w+", r"\g<0>_b", name) for name in SCAN_NAMES]
    beside = [*LAYER_NORM_NAMES, *SWIGLU_NAMES] if config.connector.swiglu else []
    weight_and_bias = ("weight", "bias")
    return [
        *(("mlp", f"0.{kind}") for kind in weight_and_bias),
        *(("projector", f"projector.{i}.{kind}") for i in (0, 2, 4) for kind in weight_and_bias),
        *(
            ("bidirectional_mamba", f"layers.{i}.{name}")
            for i in range(config.connector.n_layers)
            for name in (*forward, *backward, *beside)
        ),
        *(("bidirectional_mamba", f"norm_f.{kind}") for kind in weight_and_bias),
        ("llm_backbone", "backbone.embedding.weight"),
        *(
            ("llm_backbone", f"backbone.layers.{i}.{name}")
            for i in range(config.language.n_layers)
            for name in (*forward, "norm.weight")
        ),
        ("llm_backbone", "backbone.norm_f.weight"),
        ("llm_backbone", "lm_head.weight"),
    ]


def _ours(parts: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    """Published tensors by our names; one without a place is a UserError."""
    ours: dict[str, Tensor] = {}
    unknown = []
    for part, tensors in parts.items():
        for key, tensor in tensors.items():
            if part == "llm_backbone" and key == "lm_head.weight":
                if not torch.equal(tensor, tensors["backbone.embedding.weight"]):
                    raise UserError("The checkpoint's lm_head is not tied to its embedding; this model ties them.")
                continue
            target = _our_name(part, key)
            if target is None:
                unknown.append(f"{part}.{key}")
            else:
                # convolutions are depthwise: (channels, 1, width) → (channels, width)
                ours[target] = tensor.squeeze(1) if target.endswith("conv_weight") else tensor
    if unknown:
        raise UserError(f"The checkpoint holds tensors that ML-Mamba has no place for: {', '.join(unknown[:3])}.")
    return ours


def _our_name(part: str, key: str) -> str | None:
    if part == "mlp" and (match := re.fullmatch(r"(0\.(?:weight|bias))", key)):
        return f"connector.mlp.{match[1]}"
    if part == "projector" and (match := re.fullmatch(r"projector\.([024]\.(?:weight|bias))", key)):
        return f"connector.projector.{match[1]}"
    if part == "bidirectional_mamba":
        if match := re.fullmatch(r"norm_f\.(weight|bias)", key):
            return f"connector.scan.bsm.norm_f.{match[1]}"
        if match := re.fullmatch(r"layers\.(\d+)\.mixer\.(.+)", key):
            mixer = _mixer_name(match[2], "mvss.directions.{direction}.", "mvss.")
            return mixer and f"connector.scan.bsm.layers.{match[1]}.{mixer}"
        if match := re.fullmatch(r"layers\.(\d+)\.(.+)", key):
            rest = (SWIGLU_NAMES | LAYER_NORM_NAMES).get(match[2])
            return rest and f"connector.scan.bsm.layers.{match[1]}.{rest}"
    if part == "llm_backbone":
        if key in ("backbone.embedding.weight", "backbone.norm_f.weight"):
            return f"language_model.{key.removeprefix('backbone.')}"
        if match := re.fullmatch(r"backbone\.layers\.(\d+)\.norm\.weight", key):
            return f"language_model.layers.{match[1]}.norm.weight"
        if match := re.fullmatch(r"backbone\.layers\.(\d+)\.mixer\.(.+)", key):
            mixer = _mixer_name(match[2], "scan.", "")
            return mixer and f"language_model.layers.{match[1]}.{mixer}"
    return None


def _mixer_name(key: str, scan_prefix: str, mixer_prefix: str) -> str | None:
    """Name of a mixer's tensor; with "{direction}" in the prefix, `conv1d_b`, `A_log_b`, … are direction 1."""
    if key in MIXER_NAMES:
        return mixer_prefix + MIXER_NAMES[key]
    match = re.fullmatch(r"(conv1d|dt_bias|A_log|D)(_b)?(\.weight|\.bias)?", key)
    name = match and SCAN_NAMES.get(match[1] + (match[3] or ""))
    if not match or not name or (match[2] and "{direction}" not in scan_prefix):
        return None
    return scan_prefix.format(direction=1 if match[2] else 0) + name


def _n_layers(state: dict[str, Tensor], prefix: str) -> int:
    return len({key.removeprefix(prefix).split(".")[0] for key in state if key.startswith(prefix)})


def _mixer_sizes(state: dict[str, Tensor], scan: str, mixer: str) -> dict[str, Any]:
    d_model, d_inner = state[f"{mixer}out_proj.weight"].shape
    channels, d_conv = state[f"{scan}conv_weight"].shape
    heads = state[f"{scan}A_log"].shape[0]
    return dict(
        d_model=d_model,
        d_state=(channels - d_inner) // 2,
        head_dim=d_inner // heads,
        expand=d_inner // d_model,
        d_conv=d_conv,
    )


def _language_sizes(state: dict[str, Tensor]) -> LanguageConfig:
    layers = "language_model.layers."
    return LanguageConfig(
        n_layers=_n_layers(state, layers),
        vocab_size=state["language_model.embedding.weight"].shape[0],
        **_mixer_sizes(state, f"{layers}0.scan.", f"{layers}0."),
    )


def _read_sizes(state: dict[str, Tensor], name: str) -> MLMambaConfig:
    scans = "connector.scan.bsm.layers."
    d_features = state["connector.mlp.0.weight"].shape[1]
    language = _language_sizes(state)
    return MLMambaConfig(
        name=name,
        vision=TOWERS.get(d_features, VisionConfig((), 0)),
        connector=ConnectorConfig(
            d_features=d_features,
            n_layers=_n_layers(state, scans),
            swiglu=f"{scans}0.swiglu.w1.weight" in state,
            d_projector=state["connector.projector.0.weight"].shape[0],
            **_mixer_sizes(state, f"{scans}0.mvss.directions.0.", f"{scans}0.mvss."),
        ),
        language=language,
        vocab_words=min(NEOX_WORDS, language.vocab_size),
    )
