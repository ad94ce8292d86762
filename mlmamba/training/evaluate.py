"""Ask a trained model about pictures that it has never seen, and count the right answers, for each connector."""

import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from mlmamba.chat import Conversation
from mlmamba.errors import UserError
from mlmamba.images import open_image
from mlmamba.model import MLMamba
from mlmamba.training.questions import COUNT, IS_THERE, QA, WHAT, View, ask, ask_for, judge, some_absent
from mlmamba.training.scenes import Scene, Sources, compose
from mlmamba.training.things import COCO, KINDS, a

N_PHOTOS = 150  # of one main thing each: as many full-size ones, and as many of 64 x 64
PHRASINGS = 5  # of a question that should all get the same answer
# none of them is among the questions that training declines; a few are near to one
OUT_OF_REACH = (
    "Who directed this film?", "What is the phone number of the owner?", "Which country exports the most coffee?",
    "How do airplanes stay in the air?", "What is the boiling point of water?", "Recommend me a good book.",
    "What did Einstein discover?", "How many people live in Tokyo?", "What is the speed of light?",
    "Which lens was used?", "Is the owner rich?", "What was here a hundred years ago?", "How long is the Nile?",
    "When does the shop open?", "Who lives here?", "What is the stock price today?", "Give me a recipe for pancakes.",
    "Which team is winning?", "What is the password?", "Explain quantum mechanics.", "Who is the photographer?",
    "What is the price of gold?", "Which museum owns it?", "What is the plural of mouse?", "How fast can it run?",
    "Who scored the last goal?", "What did the professor say?", "Summarize the second chapter.", "Should I invest?",
    "Whose birthday is it?", "What will the weather be on Sunday?", "Name the author of Faust.", "Is she married?",
    "How far is Rome from Naples?", "What is seven times eight?", "Which chord is she playing?", "Prove it.",
    "How do vaccines work?", "Did it rain yesterday?", "What is the postcode?", "Who invented the light bulb?",
    "Remind me tomorrow at nine.", "How was this made?", "What are her hobbies?", "Which religion is this?",
    "Why did Rome fall?", "What does this word mean?", "How expensive was the ticket?", "Where is the exit?",
    "Which metal melts first?",
)  # fmt: skip
SMALLEST = 0.06  # share of the picture that an object of a COCO photo must cover to be asked for
Asked = tuple[Image.Image, list[tuple[str, QA]]]  # a picture, and questions with the row of the table they count for


def evaluate(model: MLMamba, data: Path, n_scenes: int = 300, seed: int = 1) -> list[dict[str, Any]]:
    """Rows of the table: what was asked, how many questions and kinds of things, chance, and right per connector.

    Chance is what always giving the commonest true answer of a row would score.
    """
    size = model.config.vision.image_size
    scenes, photos = held_out_scenes(data, n_scenes, seed, size), held_out_photos(data, seed, size)
    asked = [*scenes, *photos, *coco_photos(data, seed)]
    questions = [(row, qa) for _, qas in asked for row, qa in qas]
    rows: dict[str, dict[str, Any]] = {}
    for row in dict.fromkeys(row for row, _ in questions):
        truths = Counter(qa.truth for name, qa in questions if name == row)
        of = truths.total()
        rows[row] = {"asked": row, "questions": of, "chance": max(truths.values()) / of}
        if kinds := {qa.kinds for name, qa in questions if name == row and qa.type == "is_there"}:
            rows[row]["asked"] += f" ({len(kinds)} kinds)"
    for connector in model.config.connector.kinds:
        right: Counter[str] = Counter()
        for image, qas in tqdm(asked, desc=connector, unit="picture", mininterval=5):
            conversation = model.start(image, connector)
            for row, qa in qas:
                right[row] += judge(qa, reply(conversation, qa.question))
        for row, values in rows.items():
            values[connector] = right[row] / values["questions"]
        agreed = unanimous(model, connector, data, seed, max(1, n_scenes // PHRASINGS))
        denied = of_nothing(model, connector, data, seed, max(1, n_scenes // PHRASINGS))
        for row, share, of in (*agreed, declined(model, connector, data, seed), *denied):
            rows.setdefault(row, {"asked": row, "questions": of, "chance": None})[connector] = share
    return [rows[row] for row in sorted(rows)]


def reply(conversation: Conversation, question: str) -> str:
    """The answer to a question asked as if it were the first."""
    answer = "".join(conversation.ask(question, max_new_tokens=40))
    conversation.undo()
    return answer


def held_out_scenes(data: Path, n: int, seed: int, size: int) -> Iterator[Asked]:
    """Composed scenes of the held-out split, `size` pixels a side: new compositions, photos training never shows."""
    sources, rng = Sources(data), random.Random(seed)
    for _ in range(n):
        image, scene = compose(sources, rng, "held-out", size)
        yield image, [(_row(scene, qa), qa) for qa in ask(scene, rng, 5) if qa.type not in ("about", "group")]


def held_out_photos(data: Path, seed: int, size: int) -> Iterator[Asked]:
    """Photos of one main thing of which training saw others: full-size ones, and ones of 64 x 64.

    The small ones are shown at three times their size on grey: blown up to the whole, they are a blur.
    """
    sources, rng = Sources(data), random.Random(f"photos {seed}")
    shown = {photo.kind for photos in sources.photos["train"].values() for photo in photos}
    photos = [photo for photos in sources.photos["held-out"].values() for photo in photos if photo.kind in shown]
    for row, small in (("photos: one main thing", False), ("photos: one main thing, 64 x 64", True)):
        alike = [photo for photo in photos if photo.small == small]
        for photo in rng.sample(alike, min(N_PHOTOS, len(alike))):
            image = sources.open(photo, size)
            if small:
                image, small_one = Image.new("RGB", (size, size), "grey"), image
                image.paste(small_one.resize((192, 192), Image.Resampling.BICUBIC), ((size - 192) // 2,) * 2)
            yield image, [(row, QA("what", rng.choice(WHAT), "", photo.kind))]


def unanimous(model: MLMamba, connector: str, data: Path, seed: int, n: int) -> Iterator[tuple[str, float, int]]:
    """(row, share, n): how often five phrasings of a question get the same answer, right or wrong."""
    sources, rng = Sources(data), random.Random(f"phrasings {seed}")
    agree: dict[str, list[bool]] = {"is there": [], "how many": [], "what": []}
    for _ in range(n):
        image, scene = compose(sources, rng, "held-out", model.config.vision.image_size)
        conversation = model.start(image, connector)
        kind = KINDS[rng.choice(list(KINDS)) if rng.random() < 0.5 or not scene.things else scene.things[0].kind]
        wordings = {
            "is there": [q.format(a=a(kind.name), s=kind.plural) for q in rng.sample(IS_THERE, PHRASINGS)],
            "how many": [q.format(s=kind.plural) for q in rng.sample(COUNT, PHRASINGS)],
            "what": rng.sample(WHAT, PHRASINGS),
        }
        for what, questions in wordings.items():
            answers = {reply(conversation, question) for question in questions}
            if what == "is there":
                answers = {answer.split(",")[0] for answer in answers}
            agree[what].append(len(answers) == 1)
    for what, same in agree.items():
        yield f"five phrasings agree: {what}", sum(same) / n, n


def declined(model: MLMamba, connector: str, data: Path, seed: int) -> tuple[str, float, int]:
    """(row, share, n): how many questions out of reach, in words not trained on, are declined."""
    sources, rng = Sources(data), random.Random(f"declined {seed}")
    said = []
    for question in OUT_OF_REACH:
        image, _ = compose(sources, rng, "held-out", model.config.vision.image_size)
        said.append(judge(QA("decline", question, "", "sorry"), reply(model.start(image, connector), question)))
    return "out of reach, declined", sum(said) / len(said), len(said)


def of_nothing(model: MLMamba, connector: str, data: Path, seed: int, n: int) -> Iterator[tuple[str, float, int]]:
    """(row, share, questions): how often, asked in `n` scenes for the colour or the place of what is not there, it says
    that it sees none. Nothing where no scene gives such a question."""
    sources, rng = Sources(data), random.Random(f"of nothing {seed}")
    said = []
    for _ in range(n):
        image, scene = compose(sources, rng, "held-out", model.config.vision.image_size)
        qa = some_absent(View(scene), rng)
        if qa and qa.type == "count":  # else "No, it is red." would do as well
            said.append(judge(qa, reply(model.start(image, connector), qa.question)))
    if said:
        yield "colour or place of what isn't there, denied", sum(said) / len(said), len(said)


def _row(scene: Scene, qa: QA) -> str:
    """The row of the table that a question counts for."""
    seen = "photos" if scene.style == "photo" else "scenes"
    known = "" if qa.type != "is_there" else ", common things" if KINDS[qa.kinds[0]].core else ", rare things"
    return f"{seen}: {qa.type}{known}"


def coco_photos(data: Path, seed: int) -> Iterator[Asked]:
    """Is-there questions about the photos of `coco-256`, as often true as not.

    Every kind is asked for as often on photos without it as on photos that show it, so that knowing which kinds are
    common is of no help.
    """
    folder, rng = data / "coco-256", random.Random(seed)
    try:
        photos = json.loads((folder / "annotations.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"Put the folder `coco-256` with its annotations.json into {data} to evaluate.") from error
    present = [_kinds(photo["objects"]) for photo in photos]
    large = [_kinds([o for o in photo["objects"] if _share(o) >= SMALLEST]) for photo in photos]
    questions: list[list[QA]] = [[] for _ in photos]
    for kind in sorted(set().union(*large)):
        with_it = [i for i, kinds in enumerate(large) if kind in kinds]
        without = [i for i, kinds in enumerate(present) if kind not in kinds]
        n = min(len(with_it), len(without))
        for truth, indices in (("yes", rng.sample(with_it, n)), ("no", rng.sample(without, n))):
            for i in indices:
                questions[i].append(QA("is_there", ask_for(kind, rng), "", truth, (kind,)))
    for photo, qas in zip(photos, questions, strict=True):
        if qas:
            yield open_image(folder / photo["file"]), [("COCO photos: is_there", qa) for qa in qas]


def _kinds(things: list[dict[str, Any]]) -> set[str]:
    """Our words for COCO objects, without those that no training picture shows."""
    return {kind for thing in things if (kind := COCO.get(thing["name"]))}


def _share(thing: dict[str, Any]) -> float:
    """The share of the picture that the box of a COCO object covers."""
    return float(thing["box_cxcywh"][2] * thing["box_cxcywh"][3])


def as_table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    connectors = [key for key in rows[0] if key not in ("asked", "questions", "chance")]
    lines = [
        "| asked | questions | chance | " + " | ".join(name.upper() for name in connectors) + " |",
        "|---|---|---|" + "---|" * len(connectors),
    ]
    for row in rows:
        cells = [
            row["asked"],
            str(row["questions"]),
            *("" if row[key] is None else f"{100 * row[key]:.1f} %" for key in ("chance", *connectors)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
