"""What the vision tower's own ImageNet head knows, handed on to the words of patches.

A connector that learns names from photos alone knows only what it saw, and of most classes there is one photo. The
head knows all 1,000, and is a function of the features that the connector gets. So the projector starts as a
dictionary of what the head says (`start_as_dictionary`), and is held to it with features that were pushed towards any
class (`Imagined`).
"""

import random

import numpy as np
import torch
import torch.nn.functional as F
from PIL import ImageOps
from torch import Tensor, nn

from mlmamba.model import MLMamba
from mlmamba.training.scenes import Sighting, Sources, collage_scene, photo_scene
from mlmamba.training.things import CLASSES, KINDS, NARROWER, unsure
from mlmamba.vision import EfficientNetLite0

N_PICTURES = 320  # photos and collages from which statistics are taken
COORDINATES = 200  # of the connector's channels, for the directions in which classes differ most
FIT_STEPS, FIT_RATE, FIT_DECAY = 300, 0.03, 1e-3  # of the detectors
HEARD = 5.0  # by how much a class's logit would rise to move a patch as far as a sure opinion does
SEEN, PATCHES = 0.4, 6  # a kind that has this share of the head's opinion at so many patches is there
UNSEEN = 0.004  # one that has less than this at every patch is not
STRONG, LEAD = 2.0, 12.0  # what a detector says of a sure word, and by how much that then leads the others


class Imagined:
    """Features pushed towards a class that is not in the picture, and what the head then says of them.

    The mean of a class lies from the mean of all along Σ w, for a linear head w and the features' covariance Σ (this
    would be exact in a discriminant analysis), so that a push along it looks like more of that class. What the head
    says of the outcome is right by definition.
    """

    def __init__(self, tower: EfficientNetLite0, maps: Tensor):
        """maps: (n, 1280), the tower's last level at some patches."""
        self.tower = tower
        self.head: Tensor = tower.net.classifier.weight.detach().float().clone()  # (1000, 1280)
        centred = maps - maps.mean(0)
        self.towards = self.head @ (centred.T @ centred / len(centred))  # (1000, 1280)
        self.gain = (self.towards * self.head).sum(-1)
        self.spread = maps.std(-1, correction=0).mean()  # of the channels at a patch

    def push(self, features: Tensor, last: Tensor, towards: Tensor, margin: Tensor) -> tuple[Tensor, Tensor]:
        """Push patches until class `towards` (b, n_patches; -1: leave it) leads by about `margin` (b, n_patches).

        features: (b, n_patches, d_features); last: (b, n_patches, 1280), the last level that is a part of them.
        Returns features and class logits (b, n_patches, 1000) anew.
        """
        pushed, wanted = last.float(), towards.clamp_min(0)
        for _ in range(3):  # what is cut off at 0 takes some of the push away
            logits = self.tower.classify_map(pushed)
            behind = logits.max(-1).values - logits.gather(-1, wanted[..., None])[..., 0] + margin
            far = (behind / self.gain[wanted]).clamp_min(0) * (towards >= 0)
            pushed = (pushed + far[..., None] * self.towards[wanted]).clamp(0, 6)  # as ReLU6 would leave it
        things, opinion, _ = columns(self.tower)
        anew, logits = features.clone(), self.tower.classify_map(pushed)
        anew[..., things] = F.layer_norm(pushed, pushed.shape[-1:]).to(features.dtype)
        if self.tower.has_opinion:
            said = (self.tower.LOUD * logits.softmax(-1)).to(features.dtype)
            anew[..., opinion] = torch.where(towards[..., None] >= 0, said, features[..., opinion])
        return anew, logits

    def shifts(self, margin: float) -> Tensor:
        """(1000, 1280): about how the last level, as features have it, moves as a class gains `margin` in its logit."""
        pushed = margin * self.towards / self.gain[:, None]
        return (pushed - pushed.mean(-1, keepdim=True)) / self.spread


def columns(tower: EfficientNetLite0) -> tuple[Tensor, Tensor, Tensor]:
    """Which columns of the features are the last level, of things, which the opinion, if any, and which all others."""
    *lower, things, opinion, detail, place = torch.arange(tower.d_features).split(tower.d_parts)
    return things, opinion, torch.cat([*lower, detail, place])


def shared(tower: EfficientNetLite0, d_features: int) -> Tensor | None:
    """Which columns a tower with `d_features`, that perhaps gives no detail and no opinion, has too; None: no such."""
    *levels, opinion, detail, place = torch.arange(tower.d_features).split(tower.d_parts)
    for parts in ([*levels, opinion, detail, place], [*levels, opinion, place], [*levels, place]):
        if len(kept := torch.cat(parts)) == d_features:
            return kept
    return None


def listen(first: nn.Module, imagined: Imagined) -> None:
    """Let a connector's first layer take an opinion as if the patch looked more like what it says."""
    assert isinstance(first, nn.Linear)
    things, opinion, _ = columns(imagined.tower)
    with torch.no_grad():
        first.weight[:, opinion] = first.weight[:, things] @ imagined.shifts(HEARD).T / imagined.tower.LOUD


def pushes(rng: random.Random, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Classes to push to, up to three a picture and -1 at two of five patches, and margins, both (b, n_patches)."""
    draw = np.random.default_rng(rng.getrandbits(32))
    b, n = shape
    classes = np.take_along_axis(draw.integers(1000, size=(b, 3)), draw.integers(3, size=(b, n)), 1)
    classes[draw.random((b, n)) < 0.4] = -1
    return torch.from_numpy(classes), torch.from_numpy(draw.uniform(-1, 7, (b, n)).astype(np.float32))


@torch.no_grad()
def look(tower: EfficientNetLite0, sources: Sources, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Features (N_PICTURES, n_patches, d_features) and last level (N_PICTURES, n_patches, 1280) of training photos."""
    rng = random.Random(f"look {seed}")
    seen = []
    for _ in range(0, N_PICTURES, 8):
        makers = [collage_scene, photo_scene] * 4
        made = np.stack([np.asarray(maker(sources, rng, "train", size)[0]) for maker in makers])
        seen.append(tower.look(torch.from_numpy(made).permute(0, 3, 1, 2).float() / 255))
    features, last = (torch.cat(parts).float() for parts in zip(*seen, strict=True))
    return features, last


@torch.no_grad()
def sightings(tower: EfficientNetLite0, sources: Sources, size: int) -> dict[str, Sighting]:
    """By file, what the head sees of each kind that it knows in the full-size photos of training.

    A photo's own label tells of one thing alone. What stands around it could be neither told nor denied, and what is
    in a photo of a whole room would never be asked for. People have a table of their own.
    """
    wnids = {kind: [wnid for k in (kind, *NARROWER[kind]) for wnid in KINDS[k].wnids] for kind in KINDS}
    kinds = [kind for kind in KINDS if wnids[kind] and KINDS[kind].group != "person"]
    of_kinds = torch.tensor([[float(wnid in wnids[kind]) for kind in kinds] for wnid in CLASSES])  # (1000, n_kinds)
    photos = [photo for photos in sources.photos["train"].values() for photo in photos if not photo.small]
    out = {}
    for start in range(0, len(photos), 8):
        some = photos[start : start + 8]
        made = np.stack([np.asarray(ImageOps.fit(sources.open(photo, size), (size, size))) for photo in some])
        pixels = torch.from_numpy(made).permute(0, 3, 1, 2).float() / 255
        near, far = (tower.levels(image)[-1] for image in (pixels, F.avg_pool2d(pixels, 2)))
        shares = (tower.opinion(near, far).float() @ of_kinds).topk(PATCHES, 1).values  # (b, PATCHES, n_kinds)
        for photo, widely, anywhere in zip(some, shares[:, -1].tolist(), shares[:, 0].tolist(), strict=True):
            there = {kind for kind, share in zip(kinds, widely, strict=True) if share > SEEN}
            nowhere = {kind for kind, share in zip(kinds, anywhere, strict=True) if share < UNSEEN}
            out[photo.file] = Sighting(frozenset(there - {photo.kind, *unsure(photo.kind)}), frozenset(nowhere))
    return out


def start_as_dictionary(
    model: MLMamba, features: Tensor, last: Tensor, imagined: Imagined, word_ids: Tensor, to_words: Tensor
) -> None:
    """Set the connector's first weights so that a patch's features already lie along the word that the head gives it.

    The connector's first layer takes the directions in which the head's logits differ most, and opinions along them; a
    hidden unit of the projector each detects one word, by a logistic regression of the head's own opinion; and what it
    writes tells that word's embedding from all others. A projector with fewer units than there are words is left as it
    is.
    features: (b, n_patches, d_features), last: (b, n_patches, 1280), word_ids: (w,), to_words: (1000, w).
    """
    connector, embedding = model.connector, model.language_model.embedding.weight.detach()
    detect, write, out = (layer for layer in connector.projector if isinstance(layer, nn.Linear))
    n_words = len(word_ids)
    if n_words > detect.out_features:
        return
    more, classes = imagined.push(features, last, *pushes(random.Random(0), (last.shape[0], last.shape[1])))
    classes = torch.cat([imagined.tower.classify_map(last), classes]).flatten(0, 1)
    _take_coordinates(model, torch.cat([features, more]).flatten(0, 1), imagined)
    with torch.no_grad():
        for name, quiet in connector.scan.named_parameters():
            if name.endswith(("out_proj.weight", "w3.weight")):
                quiet.mul_(0.2)  # the scans start as a whisper
        h = connector.mlp(torch.cat([features, more]))
        scanned = [connector.scan[kind](h, model.grid)[0] for kind in connector.scan] or [h]
        z = torch.cat(scanned).flatten(0, 1)
        opinion = (classes.softmax(-1) @ to_words).repeat(len(scanned), 1)
    weight, bias = _detectors(z, opinion)
    with torch.no_grad():
        found = F.linear(z, weight, bias)
        least = float(found[::50].quantile(0.98))  # few words are there at a patch
        most = float(found[opinion.max(-1).values > 0.6].max(-1).values.median())
        sharp = STRONG / (most - least)
        detect.weight[:n_words], detect.bias[:n_words] = sharp * weight, sharp * (bias - least)
        words = embedding[word_ids]
        apart = words - words.mean(0)  # embeddings that were trained have much in common
        telling = F.normalize(_whitened(apart, apart, 0.03), dim=-1)
        strength, straight = 3.0, 1.5  # at and around 1.5, GELU is nearly a straight line
        write.weight *= 0.1
        write.weight[:, :n_words] = strength * telling.T
        write.bias.fill_(straight)
        scale = LEAD / (strength * STRONG * float((telling * apart).sum(-1).mean()))
        out.weight.mul_(0.1).add_(scale * torch.eye(len(out.weight)))
        # and all words for things lead the words that are for none, where training has set them apart
        names = torch.zeros(len(embedding), 1).index_fill_(0, word_ids, 1.0)
        base = _whitened(embedding - embedding.mean(0), (names - names.mean()).T @ embedding, 0.1)[0]
        gap = (words @ base).mean() - (embedding @ base).mean()
        base *= 10 / gap if gap > 2 * (words @ base).std() else 0.0
        out.bias.copy_(base - scale * F.gelu(torch.tensor(straight)))


def _take_coordinates(model: MLMamba, features: Tensor, imagined: Imagined) -> None:
    """Let the connector's first layer take the head's principal coordinates, and all else from the other levels."""
    things, _, others = columns(imagined.tower)
    first = model.connector.mlp[0]
    assert isinstance(first, nn.Linear)
    n = min(COORDINATES, first.out_features * 3 // 4)
    with torch.no_grad():
        x = features[:, things]
        mean = x.mean(0)
        x = x - mean
        differ = (imagined.head - imagined.head.mean(0)).T  # (1280, 1000)
        _, axes = torch.linalg.eigh(differ.T @ (x.T @ x / len(x)) @ differ)
        basis = differ @ axes[:, -n:]  # (1280, n)
        basis = 0.7 * basis / (x @ basis).std(0)
        first.weight.zero_()
        first.weight[:n, things], first.bias[:n] = basis.T, 1.5 - mean @ basis
        first.weight[n:, others] = torch.randn(first.out_features - n, len(others)) * (2 / len(others)) ** 0.5
    if imagined.tower.has_opinion:
        listen(first, imagined)


def _detectors(z: Tensor, opinion: Tensor) -> tuple[Tensor, Tensor]:
    """Logistic regression of opinions (n, w) on z (n, d): weights (w, d) and biases (w,), of mean 0 over words."""
    weight = torch.zeros(opinion.shape[1], z.shape[1], requires_grad=True)
    bias = torch.zeros(opinion.shape[1], requires_grad=True)
    optimiser = torch.optim.Adam([weight, bias], FIT_RATE)
    draw = torch.Generator().manual_seed(0)
    for step in range(FIT_STEPS):
        some = torch.randint(len(z), (4096,), generator=draw)
        told = F.linear(z[some], weight, bias).log_softmax(-1)
        loss = -(opinion[some] * told).sum() / len(some) + FIT_DECAY * weight.square().mean(0).sum()
        optimiser.zero_grad()
        loss.backward()
        for group in optimiser.param_groups:
            group["lr"] = FIT_RATE * min(1.0, 2 * (1 - step / FIT_STEPS))
        optimiser.step()
    with torch.no_grad():
        return weight - weight.mean(0), bias - bias.mean()


def _whitened(x: Tensor, rows: Tensor, ridge: float) -> Tensor:
    """rows (m, d) times the inverse covariance of x (n, d)."""
    spread = x.T @ x / len(x)
    spread = spread + ridge * spread.diagonal().mean() * torch.eye(len(spread))
    return torch.linalg.solve(spread, rows.T).T
