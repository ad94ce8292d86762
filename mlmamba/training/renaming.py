"""Pictures whose things go by another name, so that a reader learns to say what patches tell, whatever it is.

Training shows a few hundred kinds often and the others hardly ever, and a reader that meets a dog a hundred times
learns "dog" rather than to look the name up. Here patches keep all that they tell but names: what they said of one
word they say of another, and the talk about the picture follows.
"""

import random
from dataclasses import replace

import torch
from torch import Tensor

from mlmamba.training.scenes import Scene
from mlmamba.training.things import KINDS, unsure

OFTEN = 0.5  # share of the pictures
MOST = 3  # kinds of one picture
RIDGE = 1e-3  # of the words' mean square; a singular and its plural are nearly one direction

Names = dict[str, str]  # a kind -> what it is called instead


def may_change(kind: str) -> bool:
    """Whether a kind can be called another: things that one can count, and no people, who are many kinds at once."""
    return KINDS[kind].form == "count" and KINDS[kind].group != "person"


def rename(scene: Scene, rng: random.Random, names: list[str]) -> tuple[Scene, Names]:
    """Call up to MOST kinds of a scene by some of `names`, in a share OFTEN of all scenes.

    The new scene says what may be asked: the old names are not there, and lookalikes of the old ones stay open.
    """
    kinds = sorted({thing.kind for thing in scene.things if may_change(thing.kind)})
    if rng.random() > OFTEN:
        return scene, {}
    taken = {wider for thing in scene.things for wider in (thing.kind, *KINDS[thing.kind].also)}
    closed = taken.union(scene.avoid, *(unsure(kind) for kind in taken))
    called: Names = {}
    for kind in rng.sample(kinds, min(MOST, len(kinds))):
        name = rng.choice(names)
        if {name, *KINDS[name].also, *unsure(name)} & closed:
            continue
        called[kind] = name
        closed |= {name, *KINDS[name].also, *unsure(name)}
    things = tuple(replace(thing, kind=called.get(thing.kind, thing.kind)) for thing in scene.things)
    open_ = {other for kind in called for other in (*unsure(kind), *KINDS[kind].also)}
    left = {wider for thing in things for wider in (thing.kind, *KINDS[thing.kind].also)}
    return replace(scene, things=things, avoid=tuple(sorted({*scene.avoid, *open_} - left))), called


def exchange(features: Tensor, embedding: Tensor, pairs: Tensor) -> Tensor:
    """Features that tell the second word of each pair where they told the first, and the other way round.

    A patch tells a word by the product of its feature with the word's embedding; of all changes that exchange these
    products, this is the smallest.
    features: (b, n_patches, d_model); embedding: (vocabulary, d_model); pairs: (b, k, 2) ids, negative where there is
    no pair.
    """
    there = (pairs >= 0).flatten(1)  # (b, 2k): a word each
    words = embedding.detach()[pairs.clamp_min(0)].flatten(1, 2).float() * there[..., None]  # (b, 2k, d)
    told = features.float() @ words.mT  # (b, n, 2k)
    wanted = told.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    gram = words @ words.mT  # (b, 2k, 2k)
    scale = words.square().sum(-1).max(-1).values.clamp_min(1.0)  # (b,)
    gram = gram + RIDGE * scale[:, None, None] * torch.eye(gram.shape[-1], device=gram.device)
    change = torch.linalg.solve(gram, (wanted - told).mT).mT @ words
    return features + change.to(features.dtype)
