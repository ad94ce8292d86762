"""Photos whose things look like something else, so that rare names are said as well as common ones.

There is one photo of most of ImageNet's classes, and a reader that meets a hundred dogs for each lizard learns to say
"dog" and never "lizard". But what a lizard does to the encoder's features is known from the encoder's own head
(`naming.Imagined`). So patches of a photo's thing are pushed towards another class, and all that is said and asked of
the picture follows.
"""

import random
from dataclasses import replace

from mlmamba.training.scenes import Scene, Thing
from mlmamba.training.things import CLASSES, KINDS, OF_WNID, unsure

OFTEN = 0.5  # share of the photos and collages
LEADS = (1.0, 8.0)  # by how much the new class leads in the head's logits

Push = tuple[int, float]  # towards which class, and by how much it is to lead


def rename(scene: Scene, rng: random.Random) -> tuple[Scene, dict[str, Push]]:
    """Call each kind of thing on the photos of a scene something else, in a share OFTEN of all such scenes.

    Returns the new scene and, for each new kind in it, where its patches are to be pushed. Nobody knows how much of the
    old things is still to be seen: they may not be asked for, nor may their lookalikes.
    """
    if scene.style not in ("photo", "collage") or rng.random() > OFTEN:
        return scene, {}
    there = {thing.kind for thing in scene.things}
    kinds = sorted(there - {thing.kind for thing in scene.things if not may_change(thing)})
    closed = there.union(scene.avoid, *map(_near, there))
    called: dict[str, str] = {}
    pushes: dict[str, Push] = {}
    for kind in kinds:
        wanted = rng.randrange(len(CLASSES))
        name = OF_WNID[CLASSES[wanted]]
        if KINDS[name].form == "count" and not {name, *_near(name)} & closed:
            called[kind], pushes[name] = name, (wanted, rng.uniform(*LEADS))
            closed |= {name, *_near(name)}
    things = tuple(replace(thing, kind=called.get(thing.kind, thing.kind)) for thing in scene.things)
    cells = [[called.get(kind, kind) if kind else None for kind in row] for row in scene.cells]
    left = {near for thing in things for near in (thing.kind, *KINDS[thing.kind].also)}
    doubtful = {*scene.avoid, *called, *(near for kind in called for near in _near(kind))}
    return replace(
        scene, things=things, cells=cells, avoid=tuple(sorted(doubtful - left)), seen=() if called else scene.seen
    ), pushes


def may_change(thing: Thing) -> bool:
    """Whether a thing can be called another: one on a photo that can be counted, and nobody, for people are more than
    one kind at once."""
    kind = KINDS[thing.kind]
    return thing.source == "photo" and thing.area > 0 and kind.form == "count" and kind.group != "person"


def _near(kind: str) -> set[str]:
    """Wider words for a kind, and its lookalikes."""
    return {*KINDS[kind].also, *unsure(kind)}
