"""One training loop for every recipe, on `accelerate`: one process or several, whole or sharded.

A step is one batch and one step of the optimiser; a model's connectors take turns from step to step. A batch is made of
micro-batches; micro-batch `i` is a function of the seed and `i` alone, the learning rate one of the step alone, so
that a run that was killed goes on to the same losses, and several processes see what one would have seen.
"""

import json
import math
import os
import shutil
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import torch
import torch.nn.functional as F
import yaml
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import AutocastKwargs, DistributedDataParallelKwargs, DistributedType, gather_object
from filelock import FileLock, Timeout
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.utils.data import DataLoader, Dataset
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from mlmamba import backend, weights
from mlmamba.config import LanguageConfig, MLMambaConfig
from mlmamba.connector import DIRECTIONS, ScanLayer
from mlmamba.errors import UserError
from mlmamba.mamba2 import Mamba2Layer
from mlmamba.model import MLMamba

CONFIGS = Path(__file__).parent / "configs"
LOG, CHECKPOINTS, WHOLE, LOCK = "log.jsonl", "checkpoints", "whole.json", ".lock"
KEPT = 2  # checkpoints
MAY_CHANGE = ("steps", "save_every", "workers")  # what a run that goes on may be given anew

# A figure's sum and what it is a mean over, or names of what was met on the way
Figures = dict[str, tuple[float, float] | list[str]]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What every recipe says; the numbers are in the files of `configs/`, with comments."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", protected_namespaces=())

    steps: int
    batch: int
    micro_batch: int
    optimiser: Literal["adamw", "muon"] = "adamw"
    learning_rate: float
    betas: tuple[float, float]
    weight_decay: float
    clip: float
    seed: int
    precision: Literal["bfloat16", "float32"]
    save_every: int
    workers: int
    shard: bool = False
    recompute: bool = False
    compile: bool = False

    def rate(self, step: int) -> float:
        """Learning rate at a step."""
        raise NotImplementedError


AnyRecipe = TypeVar("AnyRecipe", bound=Recipe)


class Objective(nn.Module):
    """What is learnt: a model and its loss. The whole forward pass is in `forward`, so that it can be sharded."""

    def __init__(self, model: MLMamba):
        super().__init__()
        self.model = model

    def see(self, batch: Any) -> Any:
        """A micro-batch on the model's device, with what the frozen towers see; the same for every connector."""
        raise NotImplementedError

    def weight(self, seen: Any) -> float:
        """How much a micro-batch counts within its batch, such as the number of words that its loss is a mean over."""
        return 1.0

    def forward(self, seen: Any, kind: str, step: int) -> tuple[Tensor, Figures]:
        """The mean loss with one connector, and figures for the log."""
        raise NotImplementedError


def mean_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy per target, from logits (n, vocab) and targets (n,); 0 without any, as can be in a small batch."""
    return F.cross_entropy(logits, targets, reduction="sum") / max(1, len(targets))


def config_file(name: str | Path) -> Path:
    """The file of a config: "tiny" and "3b" come with this package, anything else is a path."""
    own = CONFIGS / f"{name}.yaml"
    path = own if own.is_file() else Path(name)
    if not path.is_file():
        known = " or ".join(f'"{file.stem}"' for file in sorted(CONFIGS.glob("*.yaml")))
        raise UserError(f'There is no training config "{name}"; use {known}, or the path of a file of their form.')
    return path


def values(name: str | Path) -> dict[str, Any]:
    """What a config says, as it stands in its file."""
    path = config_file(name)
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} can't be read as YAML ({' '.join(str(error).split())}); mend it.") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no keys; write it in the form of {CONFIGS.name}/tiny.yaml.")
    if "like" in found:
        base = values(found.pop("like"))
        sections = [told["model"] for told in (base, found) if isinstance(told.get("model"), dict)]
        found = base | found
        if len(sections) == 2:
            found["model"] = sections[0] | sections[1]
    return found


def objective_of(name: str | Path) -> str:
    """Which objective a config is for: "scenes" or "llava"."""
    told = values(name).get("objective")
    if told not in ("scenes", "llava"):
        raise UserError(f'The key "objective" of {config_file(name)} is {told!r}; make it "scenes" or "llava".')
    return told


def recipe_from(kind: type[AnyRecipe], name: str | Path, **changed: Any) -> AnyRecipe:
    """A config as a recipe, with what was `changed` on the command line (None: as in the file)."""
    told = values(name) | {key: value for key, value in changed.items() if value is not None}
    told.pop("objective", None)
    try:
        recipe = TypeAdapter(kind).validate_python(told)
    except ValidationError as error:
        faults = [f'"{".".join(map(str, fault["loc"]))}": {fault["msg"]}' for fault in error.errors()]
        raise UserError(f"Mend these keys of {config_file(name)}: {'; '.join(faults)}.") from error
    for key, least in {"batch": 1, "micro_batch": 1, "save_every": 1, "steps": 0, "workers": 0}.items():
        if getattr(recipe, key) < least:
            raise UserError(f'"{key}" of {config_file(name)} is {getattr(recipe, key)}; it must be {least} or more.')
    return recipe


def check_sizes(config: MLMambaConfig, d_features: int) -> None:
    """Raise UserError where the sizes of a config don't fit each other, or the features of its vision towers."""
    connector, language = config.connector, config.language
    known = (*DIRECTIONS, "mlp")
    if not connector.kinds or not set(connector.kinds) <= set(known):
        raise UserError(f'"kinds" of the connector may hold {", ".join(known)}; it is {list(connector.kinds)}.')
    inner = []
    if isinstance(language, LanguageConfig):
        whole_heads = language.n_heads * language.head_dim
        inner = [("expand * d_model of the language model", language.d_inner, whole_heads)]
    for name, found, wanted in (
        ("d_features of the connector", connector.d_features, d_features),
        ("d_model of the connector", connector.d_model, language.d_model),
        ("expand * d_model of the connector", connector.d_inner, connector.n_heads * connector.head_dim),
        *inner,
    ):
        if found != wanted:
            raise UserError(f"The {name} is {found}, but {wanted} would fit; mend the sizes in the config.")


def accelerator_for(recipe: Recipe, device: str = "auto") -> Accelerator:
    """Processes, device and precision of a run; sharded where the recipe says so or accelerate's own config does."""
    where = backend.choose(device, "float32").device
    plugin = None
    AcceleratorState._reset_state(reset_partial_state=True)  # a second run in one process may want another precision
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    if recipe.shard and several and "ACCELERATE_USE_FSDP" not in os.environ:
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=[Mamba2Layer.__name__],
            # weights stay in float32 (autocast casts them where it is due), and so does the residual
            mixed_precision_policy=MixedPrecisionPolicy(),
            cpu_ram_efficient_loading=False,
        )
    try:
        accelerator = Accelerator(
            cpu=where.type == "cpu",
            mixed_precision="bf16" if recipe.precision == "bfloat16" else "no",
            fsdp_plugin=plugin,
            kwargs_handlers=[
                # each step leaves out the other connectors' weights
                DistributedDataParallelKwargs(find_unused_parameters=True),
                # cached casts of a sharded model would add up to a whole one
                AutocastKwargs(cache_enabled=not recipe.shard),
            ],
        )
    except ValueError as error:
        raise UserError(
            f"This machine can't compute in {recipe.precision} ({error}); give the config precision: float32."
        ) from error
    if plugin and accelerator.distributed_type == DistributedType.MULTI_CPU:
        # accelerate shards on GPUs alone; PyTorch does on CPUs too, where it can be tested
        PartialState().distributed_type = accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = plugin
    return accelerator


def train(objective: Objective, batches: Dataset[Any], recipe: Recipe, out: Path, accelerator: Accelerator) -> None:
    """Train into the folder `out`, going on from its newest whole checkpoint.

    Writes `log.jsonl`, `tensorboard/` and `checkpoints/`, at the end `config.json` and `model.safetensors`. Raises
    UserError where another run is at work in that folder.
    """
    world, rank, main = accelerator.num_processes, accelerator.process_index, accelerator.is_main_process
    accumulated, odd = divmod(recipe.batch, recipe.micro_batch * world)
    if odd or not accumulated:
        raise UserError(
            f"A batch of {recipe.batch} can't be shared out by {recipe.micro_batch} to {world} processes; "
            "choose a micro_batch that divides it."
        )
    kinds = objective.model.config.connector.kinds
    optimisers = optimisers_for(objective, recipe)
    if recipe.recompute:
        apply_activation_checkpointing(objective, check_fn=lambda module: isinstance(module, Mamba2Layer))
    if recipe.compile:
        for layer in objective.modules():
            if isinstance(layer, (Mamba2Layer, ScanLayer)):
                layer.compile(dynamic=False)
    see, weight = objective.see, objective.weight  # not a part of what is sharded
    module, *optimisers = accelerator.prepare(objective, *optimisers)
    start = resume(accelerator, out, recipe)
    per_step = accumulated * world
    micro_batches = iter(
        DataLoader(
            batches,
            batch_size=None,
            sampler=range(start * per_step + rank, recipe.steps * per_step, world),
            num_workers=recipe.workers,
            prefetch_factor=4 if recipe.workers else None,
        )
    )
    with hold(out) if main else nullcontext(), Log(out, start, enabled=main) as log:
        bar = tqdm(range(start, recipe.steps), "training", recipe.steps, initial=start, unit="step", disable=not main)
        for step in bar:
            begun = time.perf_counter()
            with torch.no_grad():
                seen = [see(batch) for batch in islice(micro_batches, accumulated)]
            # the loss is a mean over the whole batch, however its words are spread over micro-batches and processes
            shares = [weight(micro) for micro in seen]
            whole = max(1.0, accelerator.reduce(torch.tensor(sum(shares), device=accelerator.device)).item())
            for group in (group for optimiser in optimisers for group in optimiser.param_groups):
                group["lr"] = recipe.rate(step)
            told: list[Figures] = []
            for micro, share in zip(seen, shares, strict=True):
                with accelerator.autocast():
                    loss, figures = module(micro, kinds[step % len(kinds)], step)
                # processes average their gradients, so that each multiplies by how many they are
                accelerator.backward(loss * (share * world / whole))
                told += [figures, {"loss": (loss.item() * share, share)}]
            norm = float(accelerator.clip_grad_norm_(module.parameters(), recipe.clip))
            if not math.isfinite(norm):  # a step along it would spoil all weights
                raise UserError(f"The gradient of step {step} is not finite; begin anew with a lower learning_rate.")
            for optimiser in optimisers:
                optimiser.step()
                optimiser.zero_grad()
            row = {"step": step, "rate": float(f"{recipe.rate(step):.6g}"), "norm": round(norm, 3)}
            row |= summed(gather_object(told)) | {"seconds": round(time.perf_counter() - begun, 3)}
            log.write(row)
            bar.set_postfix(loss=row["loss"])
            if (step + 1) % recipe.save_every == 0 or step + 1 == recipe.steps:
                save(accelerator, out, recipe, step + 1)
    state = accelerator.get_state_dict(module)
    if main:
        own = {name.removeprefix("model."): tensor for name, tensor in state.items() if name.startswith("model.")}
        weights.save(objective.model.config, own, out)
        for name, entries in met_on_the_way(out).items():
            print(f"{name}: {len(entries)} ({', '.join(entries[:5])}{', …' if len(entries) > 5 else ''}); all in {LOG}")
    # none leaves before the weights are written, nor while a thread still holds tensors of the last exchange: a process
    # that ends under such a thread is aborted
    accelerator.wait_for_everyone()
    accelerator.end_training()


def optimisers_for(objective: Objective, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """AdamW for all weights; or Muon for the matrices of linear layers and AdamW for the others."""
    matrices = {id(m.weight) for m in objective.model.modules() if isinstance(m, nn.Linear)}
    turned: list[nn.Parameter] = []
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for weight in objective.parameters():
        by_muon = recipe.optimiser == "muon" and id(weight) in matrices
        (turned if by_muon else decayed if weight.ndim >= 2 else others).append(weight)
    optimisers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=recipe.learning_rate,
            betas=recipe.betas,
        )
    ]
    if turned:
        # its steps are as long as AdamW's, so that one learning rate serves both
        muon = torch.optim.Muon(
            turned, recipe.learning_rate, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"
        )
        optimisers.append(muon)
    return optimisers


def summed(told: list[Figures]) -> dict[str, Any]:
    """Figures of all connectors, micro-batches and processes → one mean or one list of names each."""
    sums: dict[str, list[float]] = {}
    names: dict[str, dict[str, None]] = {}  # each name once, in order: connectors share their pictures
    for figures in told:
        for key, value in figures.items():
            if isinstance(value, list):
                names.setdefault(key, {}).update(dict.fromkeys(value))
            else:
                so_far = sums.setdefault(key, [0.0, 0.0])
                so_far[0], so_far[1] = so_far[0] + value[0], so_far[1] + value[1]
    means = {key: round(total / of, 6) for key, (total, of) in sums.items() if of}
    return {"loss": 0.0} | means | {key: list(found) for key, found in names.items() if found}


def met_on_the_way(out: Path) -> dict[str, list[str]]:
    """All names that the log of a run holds, under what happened to them."""
    met: dict[str, dict[str, None]] = {}
    for row in rows(out):
        for key, value in row.items():
            if isinstance(value, list):
                met.setdefault(key, {}).update(dict.fromkeys(value))
    return {key: list(found) for key, found in met.items()}


def rows(out: Path) -> list[dict[str, Any]]:
    """The log's rows; a last line that was cut off is left out."""
    found = []
    for line in (out / LOG).read_text(encoding="utf-8").splitlines() if (out / LOG).exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


def hold(out: Path) -> AbstractContextManager[Any]:
    """Keep a run's folder from others: two runs that wrote into one would undo each other's steps."""
    try:
        return FileLock(out / LOCK).acquire(blocking=False)  # the system lets go of it however a run ends
    except Timeout as error:
        raise UserError(f"Another run is at work in {out}; stop it, or name another folder.") from error


class Log:
    """`log.jsonl` and TensorBoard, of the first process alone. Steps that will be done again are taken out."""

    def __init__(self, out: Path, start: int, *, enabled: bool):
        self.file, self.board = None, None
        if enabled:
            kept = [json.dumps(row) + "\n" for row in rows(out) if row["step"] < start]
            partial = out / f"{LOG}.partial"
            partial.write_text("".join(kept), encoding="utf-8")
            partial.replace(out / LOG)
            self.file = (out / LOG).open("a", encoding="utf-8")
            self.board = SummaryWriter(out / "tensorboard", purge_step=start)

    def write(self, row: dict[str, Any]) -> None:
        if self.file and self.board:
            print(json.dumps(row), file=self.file, flush=True)
            for name, value in row.items():
                if isinstance(value, float):
                    self.board.add_scalar(name, value, row["step"])

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: object) -> None:
        if self.file and self.board:
            self.file.close()
            self.board.close()


def save(accelerator: Accelerator, out: Path, recipe: Recipe, step: int) -> None:
    """Write the checkpoint of `step` and drop all but the last ones.

    It gets its name when all of it is there, with a list of its files, so that none that was cut off is gone on with.
    """
    folder = out / CHECKPOINTS / f"{step:07d}"
    partial = folder.with_suffix(".partial")
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)  # it was damaged, or the run would have gone on from it
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        sizes = {str(file.relative_to(partial)): file.stat().st_size for file in partial.rglob("*") if file.is_file()}
        (partial / WHOLE).write_text(json.dumps({"recipe": asdict(recipe), "files": sizes}), encoding="utf-8")
        partial.rename(folder)
        for old in checkpoints(out)[:-KEPT]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def checkpoints(out: Path) -> list[Path]:
    """A run's whole checkpoints, the newest last."""
    return [folder for folder in sorted((out / CHECKPOINTS).glob("*[0-9]")) if contents(folder)]


def contents(folder: Path) -> dict[str, Any] | None:
    """What a checkpoint says about itself; None where a file is missing or was cut off."""
    try:
        told = json.loads((folder / WHOLE).read_text(encoding="utf-8"))
        whole = all((folder / name).stat().st_size == size for name, size in told["files"].items())
    except (OSError, ValueError, KeyError):
        return None
    return told if whole else None


def resume(accelerator: Accelerator, out: Path, recipe: Recipe) -> int:
    """Go on from the newest whole checkpoint; returns the step to do next, 0 without one."""
    found = checkpoints(out)
    if not found:
        return 0
    told = contents(found[-1])
    assert told is not None
    before, now = (
        json.dumps({key: value for key, value in values.items() if key not in MAY_CHANGE})
        for values in (told["recipe"], asdict(recipe))
    )
    if before != now:
        raise UserError(f"{out} was begun with another recipe; give the same one, or another folder.")
    accelerator.load_state(str(found[-1]))
    return int(found[-1].name)
