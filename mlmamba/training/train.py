"""Train the tiny model: first that a patch tells its word, then also that answers come true.

The losses. `align`: cross entropy on the word of what a patch shows, read from the projector's output through the tied
embedding; without it, names don't bind to patches. `imagine`: the same on patches pushed towards other classes.
`patch_colour`, `patch_row` and `patch_column`: on the words of its colour and of where it is, read in the same way
among the words of their kind. `amounts`: on how much of a thing the reader takes in there; it adds up to how many
things there are. `keys`: on how much of each patch the name of a thing in a question reads from the reader's state.
`patch_place`: on x and y of a patch, in two channels there. `read` and `placed`: on what a name reads in all, how many
there are and where the one is. `awake`: on heads of the connector's scans that close. `answer`: cross entropy on the
words of answers, with `telling` once more on those that decide whether the answer is right. `early`: within a question,
on the one word that answers it. `facts`: at the name of a thing in a question, on the words for its number, colour, row
and column, whichever of them is asked for: a look-up that one question teaches serves all. In half of the photos things
are pushed towards other classes before anything is told or asked of them (`renaming`). The first `align_steps` have the
losses of patches alone and are cheap. Connectors take turns from step to step; the vision tower stays frozen.
"""

import json
import math
import random
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from mlmamba import hub, weights
from mlmamba.config import MLMambaConfig
from mlmamba.errors import UserError
from mlmamba.mamba2 import LanguageModel, LanguageOutput, Mamba2Layer
from mlmamba.model import MLMamba, load
from mlmamba.ssd import Scan
from mlmamba.training import loop
from mlmamba.training.batches import FACTS, NONE, OF_KINDS, TYPES, Batch, Batches, Branches, alike, sides
from mlmamba.training.loop import Figures, mean_loss
from mlmamba.training.naming import Imagined, columns, listen, look, shared, sightings, start_as_dictionary
from mlmamba.training.scenes import Sources
from mlmamba.training.things import CLASSES, OF_WNID
from mlmamba.training.tokenizer import corpus, first_id, first_ids
from mlmamba.training.tokenizer import train as train_tokenizer
from mlmamba.vision import EfficientNetLite0, Vision

IMAGINED = 4  # pictures of a batch that are imagined as something else too
LEAST_DELTA = 0.01  # below this mean, a connector's head is falling asleep
FIRST = "mlp.0.weight"  # of a connector: what takes the features
NEAR = 0.1  # a number, or a place where the picture is 2 wide, that is off by less is nearly right
COUNTER = 0  # the head of a reader's first layer whose Δ is how much of a thing there is at a patch


@dataclass(frozen=True, kw_only=True)
class Recipe(loop.Recipe):
    """How to train on scenes; `configs/tiny.yaml` says what each number is."""

    model: MLMambaConfig
    align_steps: int
    branches: int
    max_tokens: int
    warmup: int
    decay: float
    align: float
    imagine: float
    tell: float
    amounts: float
    places: float
    keys: float
    telling: float
    early: float
    facts: float
    awake: float
    sure: float
    thin: float
    start: str | None = None

    def rate(self, step: int) -> float:
        """Learning rate at a step: a short rise, a plain, a fall to zero that is steep at first (1 - sqrt)."""
        rise = (step + 1) / max(1, self.warmup)
        fallen = max(0.0, 1 - (self.steps - step) / max(1, self.steps * self.decay))  # part of the fall's steps
        return self.learning_rate * min(1.0, rise, 1 - math.sqrt(fallen))


def initialise(model: MLMamba) -> None:
    """Starting weights that make a look-up by content easy to find.

    A reader that asks with C for what B wrote finds it at once when C starts as B, and the gate tells whether what
    was read is what was asked for when z starts as x. Some heads must remember all the patches until the question
    has come, so A starts slower than Mamba-2's default.
    """
    config = model.config
    nn.init.normal_(model.language_model.embedding.weight, std=config.language.d_model**-0.5)
    # patches find their words about twice as fast when signals keep their size through the connector
    connector = model.connector
    for linear in [m for part in (connector.mlp, connector.projector) for m in part if isinstance(m, nn.Linear)]:
        nn.init.normal_(linear.weight, std=(2 / linear.in_features) ** 0.5)
        nn.init.zeros_(linear.bias)
    for name, weight in connector.named_parameters():
        if name.endswith(("out_proj.weight", "w3.weight")):
            weight.data *= 0.5
        elif name.endswith("mvss.in_proj.weight"):
            # without a norm before the scan, Δ would soon be closed for good: it starts nearly as its bias says
            heads = config.connector.n_heads
            weight.data[-heads:] *= 0.1
    reader = model.language_model
    if not isinstance(reader, LanguageModel):
        return  # a Transformer's own start is as good as any
    n, d = reader.config.d_state, reader.config.d_inner
    for layer in reader.layers:
        assert isinstance(layer, Mamba2Layer)
        nn.init.uniform_(layer.scan.A_log, math.log(0.1), math.log(4.0))
        if layer is reader.layers[0]:
            scan, first = layer.scan, COUNTER * layer.scan.head_dim
            scan.A_log.data[COUNTER] = math.log(0.002)  # what was counted stays
            scan.conv_weight.data[first], scan.conv_bias.data[first] = 0.0, 0.15  # as much for every patch: Δ·B counts
            scan.conv_weight.data[first + 1 : first + 3] = 0.0
            scan.conv_weight.data[first + 1 : first + 3, -1] = 0.05  # small as that, from rows of the usual size
        with torch.no_grad():
            layer.in_proj.weight[:d] = layer.in_proj.weight[d : 2 * d]
            layer.in_proj.weight[2 * d + n : 2 * d + 2 * n] = layer.in_proj.weight[2 * d : 2 * d + n]
            # a word is matched by itself, not by its neighbours: B and C start close to the current token's
            layer.scan.conv_weight[d:] *= 0.2
            layer.scan.conv_weight[d:, -1] = 1.0
            layer.scan.conv_weight[d + n :] = layer.scan.conv_weight[d : d + n]


class Teacher:
    """The encoder's own ImageNet head, applied at every patch, naming patches of photos where it is sure."""

    def __init__(self, tokenizer: Tokenizer, sure: float):
        ids = first_ids(tokenizer)
        words = [ids[OF_WNID[wnid]] for wnid in CLASSES]
        self.word_ids, of_class = torch.tensor(words).unique(return_inverse=True)
        self.to_words = F.one_hot(of_class).float()  # (1000, n_words)
        self.sure = sure

    def opinion(self, class_logits: Tensor) -> Tensor:
        """Probabilities of `word_ids` (…, n_words), from class logits (…, 1000)."""
        return class_logits.softmax(-1) @ self.to_words.to(class_logits.device)

    def name(self, class_logits: Tensor, words: Tensor, photographic: Tensor) -> Tensor:
        """Fill NONE in `words` (b, n_patches) from class_logits (b, n_patches, 1000) where a photo is shown."""
        share, word = self.opinion(class_logits).max(-1)
        named = (words == NONE) & photographic[:, None] & (share > self.sure)
        return torch.where(named, self.word_ids.to(words.device)[word], words)


def align_loss(model: MLMamba, features: Tensor, words: Tensor) -> tuple[Tensor, Figures]:
    """Loss on the words of patches, from features (b, n_patches, d_model) and words (b, n_patches)."""
    shown = words != NONE
    logits = model.language_model.head(features[shown])
    right = (logits.argmax(-1) == words[shown]).sum()
    return mean_loss(logits, words[shown]), {"patch_right": (int(right), int(shown.sum()))}


def words_of(tokenizer: Tokenizer) -> dict[str, Tensor]:
    """Ids of the words for each of FACTS."""
    return {name: torch.tensor([first_id(tokenizer, word) for word in words]) for name, words in FACTS.items()}


def word_loss(model: MLMamba, hidden: Tensor, words: Tensor, targets: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Loss on one of a few words at a position, from hidden (…, d_model) and targets (…), places in `words`; and how
    many are told right. What is told in the words' own embeddings can be copied into an answer."""
    known = targets != NONE
    logits = F.linear(hidden[known], model.language_model.embedding.weight[words.to(hidden.device)]).float()
    right = (logits.argmax(-1) == targets[known]).sum()
    return mean_loss(logits, targets[known]), (int(right), int(known.sum()))


def asleep(scans: tuple[tuple[Scan, ...], ...]) -> Tensor:
    """How far the heads of a connector's scans have closed: the mean of max(0, ln LEAST - mean ln Δ)².

    With no norm before the scan, training would close Δ while mixing still disturbs the names of patches, and a
    closed head learns no more.
    """
    heads = [scan.dt.clamp_min(1e-30).log().mean((0, 1)) for layer in scans for scan in layer]  # (heads,) each
    if not heads:
        return torch.zeros(())
    return (math.log(LEAST_DELTA) - torch.cat(heads)).clamp_min(0).square().mean()


@dataclass
class Seen:
    """A batch as the connectors meet it: patches (b, n_patches, d_features), words and colours (b, n_patches), groups,
    amounts, talks and shows as in `Batch`. imagined (k, n_patches, d_features): patches of some photos, pushed towards
    classes that are not there; opinions (k, n_patches, n_words): what the encoder's head then names them."""

    patches: Tensor
    words: Tensor
    colours: Tensor
    groups: Tensor
    amounts: Tensor
    talks: Branches
    shows: Tensor
    imagined: Tensor
    opinions: Tensor


def answer_losses(
    model: MLMamba, features: Tensor, seen: Seen, words: dict[str, Tensor], alike: Tensor
) -> tuple[dict[str, Tensor], Figures]:
    """Losses on answers, the words that decide them, answers foreseen, facts, and what names read from the state; how
    many of those are right."""
    lm, talk = model.language_model, seen.talks
    picture = lm(features, last_only=True, scans=(0,))
    k = talk.ids.shape[0] // features.shape[0]
    output = lm(lm.embed(talk.ids), lm.repeat(picture.state, k), last_only=True, scans=(0,))
    hidden = output.hidden
    asked, foreseen = talk.targets != NONE, talk.early != NONE
    logits, targets, telling = lm.head(hidden[asked]), talk.targets[asked], talk.telling[asked]
    losses = {
        "answer": mean_loss(logits, targets),
        "telling": mean_loss(logits[telling >= 0], targets[telling >= 0]),
        "early": mean_loss(lm.head(hidden[foreseen]), talk.early[foreseen]),
    }
    right = logits.argmax(-1) == targets
    figures: Figures = {
        f"{name}_right": (int(right[telling == i].sum()), int((telling == i).sum())) for i, name in enumerate(TYPES)
    }
    for (name, ids), facts in zip(words.items(), talk.facts.unbind(-1), strict=True):
        fact = f"fact_{name}"
        losses[fact], figures[f"{fact}_right"] = word_loss(model, hidden, ids, facts)
    if isinstance(lm, LanguageModel):
        told, told_figures = look_up_losses(picture, output.scans[0].C.float(), seen, alike, model.grid)
        losses, figures = losses | told, figures | told_figures
    return losses, figures


def look_up_losses(
    picture: LanguageOutput, C: Tensor, seen: Seen, alike: Tensor, grid: tuple[int, int]
) -> tuple[dict[str, Tensor], Figures]:
    """Losses on what the reader's first layer keeps of a picture, and on what the names of things read from it (C, of
    the tokens of talks); how many of those are right. With B·C as often 1 as a patch shows what a name says, else 0,
    the counter's state has all that is asked: Σ Δ·1 is how many there are, Σ Δ·x and Σ Δ·y are where the one is.

    `keys`: on B·C of all names and all patches of a batch; `alike` says what is called what (`batches.alike`).
    `patch_place`: on x and y of patches, in the counter's second and third channel. `read` and `placed`: on the sums;
    where there may be more of a thing than the one whose place is known, the number is to be 1 at least. `numbers`: on
    what all names of a batch read from each of its pictures, most often none; its own picture so counts twice.
    """
    talk, kinds = seen.talks, seen.talks.kinds
    ends = (kinds != NONE) & (kinds != F.pad(kinds, (1, 0), value=NONE)[:, :-1])  # where a name does
    scan = picture.scans[0]
    one, x, y = scan.x[..., COUNTER, :3].float().unbind(-1)  # (b, n_patches) each
    one = one.detach()

    says = torch.einsum("mn, bpn -> mbp", C[ends], scan.B.float()) * one  # of names, to patches
    truth = alike[kinds[ends]][:, seen.shows].masked_fill(seen.shows == NONE, NONE)
    own = truth == 1
    off = (says - truth).square() * (truth != NONE)

    down, right = (2 * (torch.arange(n, device=x.device) + 0.5) / n - 1 for n in grid)
    places = torch.cartesian_prod(down, right).flip(-1).expand(*x.shape, 2)

    counted = picture.state[0].ssm[:, COUNTER, :3]  # (b, 3, n)
    number, *middle = torch.einsum("btn, bcn -> btc", C, counted.repeat_interleave(len(C) // len(x), 0)).unbind(-1)
    known, placed = ends & (talk.facts[..., 0] != NONE), ends & (talk.places[..., 0] != NONE)
    numbers, some = talk.facts[..., 0][known].float(), number[placed & ~known].clamp_max(1)
    read = torch.cat([number[known], some]), torch.cat([numbers, torch.ones_like(some)])
    numbers_read, there = C[ends] @ counted[:, 0].mT, numbers_of(seen, alike)[kinds[ends]]  # (m, b) each
    wrong = F.smooth_l1_loss(numbers_read, there, reduction="none", beta=NEAR) * (there != NONE)
    middles = talk.places[placed] * number[placed][:, None].detach()
    losses = {
        "keys": off.sum() / max(1, int(own.sum())),
        "patch_place": F.smooth_l1_loss(torch.stack([x, y], -1) / one[..., None], places, beta=NEAR),
        "read": F.smooth_l1_loss(*read, reduction="sum", beta=NEAR) / max(1, len(read[0])),
        "numbers": wrong.sum() / max(1, int((there > 0).sum())),
        "placed": F.smooth_l1_loss(torch.stack(middle, -1)[placed], middles, reduction="sum", beta=NEAR)
        / max(1, len(middles)),
    }
    return losses, {
        "keys_right": (int((says[own] > 0.5).sum()), int(own.sum())),
        "numbers_right": (int((numbers_read.round() == there)[there > 0].sum()), int((there > 0).sum())),
        "read_right": (int((number[known].round() == numbers).sum()), len(numbers)),
    }


def numbers_of(seen: Seen, alike: Tensor) -> Tensor:
    """How many things each picture shows that are called by the name of a kind, (len(KINDS), b); NONE where nobody
    knows."""
    groups, amounts = seen.groups[:, OF_KINDS], seen.amounts[:, OF_KINDS]
    shown = (seen.shows[:, None] * groups).amax(-1).long()  # (b, MOST): which kind that is
    called = alike[:, shown].masked_fill(amounts == NONE, 0)  # (len(KINDS), b, MOST)
    numbers = ((called == 1) * amounts).sum(-1)
    whole = seen.amounts[:, 0] == amounts.clamp_min(0).sum(-1)  # no thing without a patch, or that may be one of more
    known = whole & (called != NONE).all(-1) & ((numbers > 0) | (seen.shows != NONE).all(-1))
    return numbers.masked_fill(~known, NONE)


def thinned(features: Tensor, tower: EfficientNetLite0, of: Tensor, share: float, seed: int) -> Tensor:
    """Features (b, n_patches, d_features) of the pictures `of` (b,) without a share of their columns, others in each
    picture; what is left is louder, so that sums stay as they were.

    There are few photos, and a model that knows each of them by its looks learns little from what the encoder's own
    classifier says of it. So that opinion is left whole, and places are.
    """
    draw = torch.Generator().manual_seed(seed)
    kept = (torch.rand(len(features), 1, features.shape[-1], generator=draw) >= share).float() / (1 - share)
    *_, opinion, _, place = torch.arange(features.shape[-1]).split(tower.d_parts)
    kept[..., torch.cat([opinion, place])] = 1
    return torch.where(of[:, None, None], features * kept.to(features), features)


class Scenes(loop.Objective):
    """The losses of one batch of scenes."""

    def __init__(
        self, model: MLMamba, teacher: Teacher, imagination: Imagined, words: dict[str, Tensor], recipe: Recipe,
        device: torch.device,
    ):  # fmt: skip
        super().__init__(model)
        self.imagination = imagination
        mamba = isinstance(model.language_model, LanguageModel)
        self.amount = None if mamba else nn.Linear(model.config.language.d_model, 1)  # a Transformer has no Δ
        if self.amount is not None:  # it takes in little at first, as Δ does
            nn.init.zeros_(self.amount.weight)
            nn.init.constant_(self.amount.bias, -4.6)  # softplus: 0.01
        self.teacher, self.words, self.recipe, self.device = teacher, words, recipe, device
        self.alike = alike().to(device)
        self.sides = [torch.tensor(side, device=device) for side in sides(model.grid)]

    def see(self, batch: Batch) -> Seen:
        tower = self.model.towers.towers[0]
        assert isinstance(tower, EfficientNetLite0)  # the one tower with a head of its own
        # small parts stay in a CPU's cache
        parts = [tower.look(part.to(self.device).float() / 255) for part in batch.pixels.split(8)]
        patches, last = (torch.cat(each) for each in zip(*parts, strict=True))
        photographic = batch.photographic.to(self.device)
        words = self.teacher.name(tower.classify_map(last), batch.words.to(self.device), photographic)
        instead, leads = batch.instead.to(self.device), batch.leads.to(self.device)
        other = instead >= 0
        renamed = patches.clone()  # below, the photo itself is imagined as something else
        renamed[other] = self.imagination.push(*(each[other][None] for each in (patches, last, instead, leads)))[0][0]
        some = photographic.float().argsort(descending=True, stable=True)[:IMAGINED]  # photos first; always as many
        imagined, classes = self.imagination.push(
            patches[some], last[some], batch.towards.to(self.device)[some], batch.margins.to(self.device)[some]
        )
        photos = (batch.amounts[:, 0] == NONE).to(self.device)  # nobody knows how many things a photo shows
        patches = thinned(renamed, tower, photos, self.recipe.thin, batch.seed)
        return Seen(
            patches, words, batch.colours.to(self.device), batch.groups.to(self.device), batch.amounts.to(self.device),
            batch.talks.to(self.device), batch.shows.to(self.device),
            imagined, self.teacher.opinion(classes),
        )  # fmt: skip

    def imagine_loss(self, seen: Seen, kind: str) -> Tensor:
        """Cross entropy with the head's opinion, among the words that it can name; patches weigh by how sure it is."""
        features = self.model.connector(seen.imagined, self.model.grid, kind).features
        ids = self.teacher.word_ids.to(features.device)
        told = F.linear(features, self.model.language_model.embedding.weight[ids]).float().log_softmax(-1)
        sure = seen.opinions.max(-1).values
        return -((seen.opinions * told).sum(-1) * sure).sum() / sure.sum()

    def taken_in(self, features: Tensor) -> Tensor:
        """How much of a thing the reader takes in at each patch, (b, n_patches): the Δ of its counter.

        That head's state is the sum of Δ·x·Bᵀ over the patches, and B tells what a patch shows: where Δ adds up to the
        number of dogs, what "dogs" reads from the state (C) does so too. For a Transformer a head that only training
        has stands in.
        """
        reader = self.model.language_model
        if not isinstance(reader, LanguageModel):
            assert self.amount is not None
            return F.softplus(self.amount(features)[..., 0].float())
        layer = reader.layers[0]
        assert isinstance(layer, Mamba2Layer)
        row = layer.in_proj.weight[COUNTER - layer.scan.heads]  # rows for Δ are the last
        return F.softplus(F.linear(layer.norm(features), row).float() + layer.scan.dt_bias[COUNTER].float())

    def amounts_loss(self, features: Tensor, seen: Seen) -> tuple[Tensor, tuple[int, int]]:
        """Loss on how much of a thing is at each patch, which has to add up to the numbers of things, and to 1 over
        each of several of a kind; and how many of these sums are right. Where in a thing it is put is left to the
        model: a head may be easier to find than a middle."""
        known = seen.amounts != NONE
        sums = (seen.groups @ self.taken_in(features)[..., None])[..., 0][known]  # groups: (b, N_GROUPS, n_patches)
        numbers = seen.amounts[known]
        loss = F.smooth_l1_loss(sums, numbers, reduction="sum", beta=NEAR) / max(1, len(numbers))
        return loss, (int((sums.round() == numbers).sum()), len(numbers))

    def forward(self, seen: Seen, kind: str, step: int) -> tuple[Tensor, Figures]:
        output = self.model.connector(seen.patches, self.model.grid, kind)
        features = output.features
        recipe = self.recipe
        loss, figures = align_loss(self.model, features, seen.words)
        told = {"align": loss, "imagined": self.imagine_loss(seen, kind)}
        loss = recipe.align * loss + recipe.imagine * told["imagined"]
        rows, columns = (side.expand(seen.words.shape) for side in self.sides)
        for name, targets in (("colour", seen.colours), ("row", rows), ("column", columns)):
            patch = f"patch_{name}"
            told[patch], figures[f"{patch}_right"] = word_loss(self.model, features, self.words[name], targets)
            loss = loss + recipe.tell * told[patch]
        told["amounts"], figures["amounts_right"] = self.amounts_loss(features, seen)
        loss = loss + recipe.amounts * told["amounts"]
        told["awake"] = asleep(output.scans)
        loss = loss + recipe.awake * told["awake"]
        if step >= recipe.align_steps:
            answers, answer_figures = answer_losses(self.model, features, seen, self.words, self.alike)
            told |= answers
            loss = loss + told["answer"] + recipe.telling * told["telling"] + recipe.early * told["early"]
            for name in FACTS:
                loss = loss + recipe.facts * told[f"fact_{name}"]
            if "read" in answers:
                loss = loss + recipe.amounts * (told["read"] + told["numbers"]) + recipe.keys * told["keys"]
                loss = loss + recipe.places * (told["patch_place"] + told["placed"])
            figures |= answer_figures
        return loss, figures | {name: (value.item(), 1) for name, value in told.items()}


def train(out: Path, data: Path, recipe: Recipe, *, device: str = "auto") -> None:
    """Train into the folder `out`, going on from its checkpoint where there is one; pictures are in `data`."""
    accelerator = loop.accelerator_for(recipe, device)
    out.mkdir(parents=True, exist_ok=True)
    with accelerator.main_process_first():
        if recipe.start and not (out / weights.TOKENIZER).exists():
            shutil.copy(hub.tokenizer_file(hub.find(recipe.start)), out / weights.TOKENIZER)
        tokenizer = _tokenizer(out / weights.TOKENIZER, data)
    config = recipe.model
    older = load(recipe.start, vision=False, device="cpu", dtype="float32") if recipe.start else None
    torch.manual_seed(recipe.seed)
    vision = Vision(config.vision)
    loop.check_sizes(config, vision.d_features)
    model = MLMamba(config, tokenizer, vision)
    initialise(model)
    sources, teacher, tower = Sources(data), Teacher(tokenizer, recipe.sure), vision.towers[0]
    assert isinstance(tower, EfficientNetLite0)  # the one tower with a head of its own
    features, last = look(tower, sources, config.vision.image_size, recipe.seed)
    maps = last.flatten(0, 1)
    if not loop.checkpoints(out):
        imagined = Imagined(tower, maps)
        if not (older and take_over(model, older, imagined)):
            start_as_dictionary(model, features, last, imagined, teacher.word_ids, teacher.to_words)
    sources.sightings = sightings(tower, sources, config.vision.image_size)
    vision.to(accelerator.device, getattr(torch, recipe.precision))
    imagination = Imagined(tower, maps.to(accelerator.device))
    batches = Batches(
        sources, tokenizer, size=recipe.micro_batch, branches=recipe.branches, max_tokens=recipe.max_tokens,
        image_size=config.vision.image_size, seed=recipe.seed,
    )  # fmt: skip
    scenes = Scenes(model, teacher, imagination, words_of(tokenizer), recipe, accelerator.device)
    loop.train(scenes, batches, recipe, out, accelerator)


def take_over(model: MLMamba, older: MLMamba, imagined: Imagined) -> bool:
    """Start from another model's words and language model, and from its connector too where that has the same sizes,
    or would have them if its encoder had given detail and told its opinion: then it learns to listen (`naming.listen`).

    Says whether the connector was taken. Raises UserError where the language models' sizes differ.
    """
    if older.config.language != model.config.language:
        raise UserError("The model to start from has a language model of other sizes; give both the same config.")
    model.language_model.load_state_dict(older.language_model.state_dict())
    new, old = model.config.connector, older.config.connector
    kept = shared(imagined.tower, old.d_features)
    if kept is None or replace(new, d_features=old.d_features) != old:
        return False
    taken = older.connector.state_dict()
    taken[FIRST] = torch.zeros_like(model.connector.state_dict()[FIRST]).index_copy(1, kept, taken[FIRST])
    model.connector.load_state_dict(taken)
    opinion = columns(imagined.tower)[1]
    if not torch.isin(opinion, kept).all():
        listen(model.connector.mlp[0], imagined)
    return True


def _tokenizer(path: Path, data: Path) -> Tokenizer:
    """The run's tokenizer, trained at its first start on generated questions and the captions at hand."""
    if not path.exists():
        captions = data / "coco-captions-val2017.json"
        extra = json.loads(captions.read_text(encoding="utf-8")) if captions.exists() else []
        train_tokenizer(path, corpus(random.Random(0), captions=extra))
    return Tokenizer.from_file(str(path))
