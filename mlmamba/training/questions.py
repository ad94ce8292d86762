"""Questions about a scene with their true answers, and a judge for the answers of a model.

Everything is asked from the `Scene` alone. What nobody knows is never claimed: a photo gives no counts and no
colours, and kinds in `scene.avoid` are neither confirmed nor denied.
"""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from mlmamba.training.scenes import SHAPES, Scene, Thing
from mlmamba.training.things import COLOURS, CORE, GROUPS, KINDS, NARROWER, NUMBERS, a, unsure

WEIGHTS = {
    # rare in the outcome where the scene often gives no such question
    "is_there": 36, "list": 7, "what": 12, "main": 4, "count": 22, "colour": 16, "relation": 22, "where": 12,
    "describe": 4, "decline": 3, "about": 1, "group": 1,
}  # fmt: skip
PHOTO_WEIGHTS = {
    "is_there": 54, "list": 10, "what": 26, "main": 6, "describe": 5, "decline": 2, "about": 1, "group": 2,
}  # fmt: skip

# for training, beside the questions that a model is examined with
PRACTICE = WEIGHTS | {
    "list": 16, "count": 36, "relation": 36, "where": 16, "some_number": 8, "some_what": 10, "some_coloured": 10,
    "some_absent": 6,
}  # fmt: skip
PHOTO_PRACTICE = PHOTO_WEIGHTS | {"what": 32, "some_number": 10}

IS_THERE = (
    "Is there {a} in the picture?", "Is there {a} in this picture?", "Is there {a}?", "Is there {a} here?",
    "Do you see {a}?", "Can you see {a}?", "Can you see {a} in this picture?", "Do you see any {s}?",
    "Are there any {s}?", "Are there any {s} in the picture?", "Is there any sign of {a}?",
    "Can you spot {a} in this picture?", "Does the picture show {a}?", "Does this image show {a}?",
    "Any {s} in the image?", "Any {s}?", "Is {a} in the picture?", "Is {a} visible?", "Can you find {a}?",
    "Does this picture contain {a}?", "Is there {a} in the image?", "Are there {s} in this photo?",
    "Tell me whether there is {a}.", "I am looking for {a}. Is there one?", "Do you notice {a} anywhere?",
    "Have you found {a} in there?",
)  # fmt: skip
IS_THERE_SOME = (
    "Is there any {n} in the picture?", "Is there any {n}?", "Is there {n} here?", "Do you see any {n}?",
    "Can you see {n}?", "Can you see {n} in this picture?", "Do you see {n}?", "Can you spot any {n}?",
    "Does the picture show {n}?", "Any {n} in the image?", "Any {n}?", "Does this picture contain {n}?",
    "Is {n} visible?", "Tell me whether there is any {n}.", "Is there {n} in the image?",
)  # fmt: skip
ARE_THERE_SOME = (
    "Are there any {n} in the picture?", "Are there any {n}?", "Are there {n} here?", "Do you see any {n}?",
    "Can you see {n}?", "Can you see {n} in this picture?", "Do you see {n}?", "Can you spot any {n}?",
    "Does the picture show {n}?", "Any {n} in the image?", "Any {n}?", "Does this picture contain {n}?",
    "Are {n} visible?", "Tell me whether there are any {n}.", "Are there {n} in the image?",
)  # fmt: skip
PEOPLE = (
    "Is anybody in the picture?", "Is anyone there?", "Do you see anyone?", "Do you see anybody?",
    "Are there any people?", "Is there somebody in this photo?", "Can you see people?", "Is there a human?",
    "Is there a man or a woman?",
)  # fmt: skip
WHAT = (
    "What is this?", "What is it?", "What is this a picture of?", "What is shown here?",
    "What am I looking at?", "What is this thing?", "What is that?", "Name the thing in the picture.",
    "What's this?", "What's that?", "What object is this?", "Can you tell me what this is?",
    "What do we have here?", "What kind of thing is this?", "Do you know what this is?",
)  # fmt: skip
LIST = (
    "What can you see?", "What do you see?", "What is in the picture?", "What is in this picture?",
    "Which things are in the picture?", "What things can you see?", "List the things in this picture.",
    "What does the picture show?", "What is in the image?", "Tell me what you see.",
    "What can you see here?", "What's in this picture?", "Name everything you see.",
    "Which objects can you see?", "What objects are there?",
)  # fmt: skip
MAIN = (
    "What is the main thing in the picture?", "What is the biggest thing in the picture?",
    "What stands out?", "What is the main subject?", "What is the largest thing here?",
    "What is the main thing?", "Which thing is the biggest?", "What takes up the most room?",
    "What is this picture mostly about?", "What do you notice first?",
    "What is the most important thing here?", "What is the main object?",
)  # fmt: skip
DESCRIBE = (
    "Describe the picture.", "Describe this image.", "Describe what you see.",
    "Can you describe the picture?", "Give me a short description.", "Tell me about this picture.",
    "Write a caption.", "Caption this picture.", "Please describe this photo.",
    "What is going on in this picture?", "Say something about the picture.",
    "Describe the image in one sentence.",
)  # fmt: skip
COUNT = (
    "How many {s} are there?", "How many {s} are in the picture?", "How many {s} do you see?",
    "How many {s} can you see?", "Count the {s}.", "Can you count the {s}?", "How many {s}?",
    "What is the number of {s}?", "How many {s} are there in this picture?",
    "How many {s} does the picture show?", "Tell me how many {s} there are.",
    "Please count the {s} in the image.",
)  # fmt: skip
COLOUR = (
    "What colour is the {n}?", "What color is the {n}?", "Which colour does the {n} have?",
    "What is the colour of the {n}?", "What is the color of the {n}?", "Which color is the {n}?",
    "Tell me the colour of the {n}.", "The {n} is what colour?", "What colour does the {n} have?",
    "Can you tell me the color of the {n}?", "In what colour is the {n}?", "What color does the {n} have?",
)  # fmt: skip
COLOURS_ARE = (
    "What colour are the {s}?", "What color are the {s}?", "Which colour do the {s} have?",
    "What is the colour of the {s}?", "What is the color of the {s}?", "Tell me the colour of the {s}.",
)  # fmt: skip
COLOUR_YES_NO = (
    "Is the {n} {c}?", "Is there a {c} {n}?", "Do you see a {c} {n}?", "Is the {n} in the picture {c}?",
    "Can you see a {c} {n}?", "Does the {n} look {c}?",
)  # fmt: skip
GROUND = (
    "What colour is the background?", "What color is the background?", "What is the background colour?",
    "Which colour does the background have?", "What is the color of the background?",
    "What colour is behind it?",
)  # fmt: skip
WHERE = (
    "Where is the {n}?", "Where is the {n} in the picture?", "Where do you see the {n}?",
    "Where can I find the {n}?", "In which part of the picture is the {n}?",
    "Which part of the picture shows the {n}?", "Locate the {n}.", "Can you find the {n}? Where is it?",
    "Where in the image is the {n}?", "Tell me where the {n} is.", "Show me where the {n} is.",
    "At which place is the {n}?",
)  # fmt: skip
RELATION_WHERE = (
    "Where is the {x} relative to the {y}?", "Where is the {x} compared to the {y}?",
    "Seen from the {y}, where is the {x}?", "How is the {x} placed relative to the {y}?",
    "Where do you find the {x} from the {y}?", "On which side of the {y} is the {x}?",
)  # fmt: skip
RELATION_WHAT = (
    "What is {r} the {y}?", "Which thing is {r} the {y}?", "What do you see {r} the {y}?",
    "What can be found {r} the {y}?", "Name what is {r} the {y}.", "What thing is {r} the {y}?",
)  # fmt: skip
RELATION_IS = (
    "Is the {x} {r} the {y}?", "Is the {x} placed {r} the {y}?", "Would you say the {x} is {r} the {y}?",
    "Do you see the {x} {r} the {y}?", "Is it true that the {x} is {r} the {y}?",
    "Can you see the {x} {r} the {y}?",
)  # fmt: skip
GROUP = (
    "Is there {g}?", "Is there {g} in the picture?", "Do you see {g}?", "Can you see {g}?",
    "Does the picture show {g}?", "Can you spot {g}?", "Can you find {g} here?",
    "Does this image contain {g}?", "Is {g} in the picture?", "Is there {g} here?", "Have you seen {g}?",
    "Is there {g} in this photo?",
)  # fmt: skip

DECLINE = (
    "Who painted this?", "Who took this photo?", "Who is this?", "What is his name?", "What is her name?",
    "What is the name of this person?", "What is the capital of France?", "What time is it?",
    "What day is it today?", "When was this picture taken?", "Where was this photo taken?",
    "In which city is this?", "What does the text say?", "Read the text in the picture.",
    "What is written there?", "What is the weather like tomorrow?", "How old is he?", "How old is she?",
    "Why is this here?", "How much does it cost?", "What is two plus two?", "Who is the president?",
    "Tell me a joke.", "Write a poem.", "Sing a song.", "What is the meaning of life?",
    "Translate this into German.", "Which camera took this photo?", "What happened before this?",
    "What will happen next?", "What is he thinking?", "Is this picture beautiful?", "Do you like it?",
    "Which brand is this?", "What song is playing?", "How heavy is it?", "How tall is it?",
    "What does it smell like?", "Who won the World Cup?", "Solve this equation.", "Write some code for me.",
    "What is the temperature?", "How do I cook this?", "Are they happy?", "Which year is it?",
    "What is the square root of nine?", "Who wrote Hamlet?", "How far away is the moon?",
    "What language do they speak?", "Is it expensive?", "What is behind the camera?",
    "Can you book a flight for me?", "What should I eat today?", "Is this real?",
)  # fmt: skip
DECLINE_THING = (
    "What is the name of the {n}?", "How old is the {n}?", "Who made the {n}?", "How much is the {n}?",
    "Why is the {n} there?", "Where did you buy the {n}?", "Who owns the {n}?", "What does the {n} weigh?",
)  # fmt: skip
# asked with each of their ends in turn, so that declining is learnt from the way of asking, not from single questions
DECLINE_WORLD = {
    "Who": (
        "invented the telephone", "discovered America", "built the pyramids", "sang this song", "composed this",
        "is your father", "made you", "owns this house", "is the king of Spain", "wrote this book", "designed it",
        "was the first man on the moon", "drew this", "is the mayor", "killed Caesar", "plays the piano here",
        "is your best friend", "bought this", "was Napoleon", "is on the phone", "sent this picture",
    ),
    "What is the": (
        "capital of Spain", "capital of Italy", "largest planet", "population of China", "date today",
        "name of the street", "weather in Paris", "symbol of iron", "height of Mount Everest",
        "distance to the sun", "name of your sister", "best film of all time", "square of twelve",
        "opposite of hot", "past tense of go", "currency of Japan", "age of the universe",
        "title of this painting", "time in London", "number of the bus", "news today",
        "smallest country in the world", "recipe for this", "name of this dish in French", "law of gravity",
    ),
    "How": (
        "do planes fly", "does a computer work", "do I get to the station", "many days are in a year",
        "deep is the sea", "old is the earth", "do you feel today", "does it taste", "long does it take",
        "many stars are in the sky", "do I fix my bicycle", "much money do you have", "is the weather",
        "do you spell it", "was your day", "long did it take to paint this", "many people speak English",
        "do birds find their way", "hot is the sun",
    ),
    "Why": (
        "is the sky blue", "do cats purr", "is she sad", "did they leave", "do we sleep", "is the sea salty",
        "is he here", "was this taken", "do you think so", "do leaves fall", "are they smiling",
        "did the dinosaurs die",
    ),
    "When": (
        "did the war end", "was it built", "does the train leave", "is your birthday", "will it rain",
        "did he arrive", "was the wheel invented", "is the next flight", "did you wake up", "is Christmas",
        "was this bought",
    ),
    "Where": (
        "do you live", "is Berlin", "did he go", "was she born", "can I buy this", "do elephants live",
        "is my phone", "did Columbus land", "is the next restaurant", "does this road lead", "were you made",
        "does it come from",
    ),
    "Which": (
        "year was it", "country is this", "language is written there", "king ruled France", "river is the longest",
        "planet is closest to the sun", "team do you like", "street is it in", "company makes it", "month is it",
        "artist made it", "school do they go to", "film is this from", "metal is the heaviest",
    ),
    "Tell me": (
        "a story", "something about history", "a secret", "your opinion", "the news", "about Shakespeare",
        "what he said", "the way home", "how to cook rice", "the score of the game", "about your family",
        "the rules",
    ),
    "Give me": (
        "some advice", "a poem about spring", "the answer to everything", "a word that rhymes with house",
        "your number", "ten ideas for dinner", "a list of countries", "the address", "a summary of the book",
        "directions",
    ),
    "Can you": (
        "sing", "speak German", "drive a car", "solve a riddle", "write a letter", "call my mother",
        "count to a hundred", "play chess", "feel pain", "translate this", "read minds", "order a pizza for me",
        "hear the music",
    ),
    "Explain": (
        "gravity", "how engines work", "the rules of football", "democracy", "this joke", "why it rains",
        "electricity", "the stock market", "relativity", "the theory of evolution", "what he means",
    ),
    "Do you": (
        "believe in God", "love me", "remember yesterday", "sleep", "know Einstein", "like music", "have a family",
        "want to play", "think it is expensive", "dream", "agree", "drink coffee",
    ),
}  # fmt: skip
DECLINED = (
    "Sorry, I cannot tell. I can only talk about things, numbers, colours and places in the picture.",
    "Sorry, I do not know. I only see which things are in the picture, how many, in which colour and where.",
    "Sorry, that is beyond me. Ask me what is in the picture, how many there are, or where they are.",
)
HELLO = ("Hello", "Hi", "Hi there", "Hello!", "Good morning", "Hey", "Good evening", "Hi!")
WHO = (
    "Who are you?", "What are you?", "What is your name?", "Are you a robot?", "Tell me about yourself.",
    "Which model are you?", "Introduce yourself.", "What is ML-Mamba?", "Who am I talking to?",
)  # fmt: skip
CAN = (
    "What can you do?", "Help", "How can you help me?", "What can I ask you?", "What do you know?",
    "What should I ask?", "How does this work?", "What kind of questions can I ask?",
)  # fmt: skip
THANKS = ("Thank you", "Thanks", "Thank you!", "Thanks a lot", "Great, thanks!", "Good answer!")
HELLO_ANSWER = "Hello! I am a tiny ML-Mamba. Ask me what is in the picture."
WHO_ANSWER = "I am a tiny ML-Mamba, a small model that looks at a picture and answers simple questions about it."
CAN_ANSWER = "I can say which things are in a picture, how many there are, in which colour, and where."
THANKS_ANSWER = "You are welcome! Ask me more about the picture."

# relation -> the opposite one; x < y in picture coordinates means left of, above
RELATIONS = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
# things are not named again: a small model can look up one place after another, but not copy two names in order.
# The word that decides comes at the same place in all four, so that no answer is more likely by its form
RELATION_SAYS = {relation: f"it is {relation} it" for relation in RELATIONS}
ELSEWHERE = 0.75  # how often a common thing that is denied is one that another picture shows, where there is one
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "middle", "right")


@dataclass(frozen=True)
class QA:
    """`truth`: what a right answer must say: "yes", "no", a number, a colour, kinds joined by "|", a relation, a
    place ("top left"), or "" where `judge` compares with the answer itself. `kinds`: what the question names and may
    be looked up as soon as it has: things of which something is asked."""

    type: str
    question: str
    answer: str
    truth: str
    kinds: tuple[str, ...] = ()


@dataclass(frozen=True)
class Facts:
    """What is true of the things of one kind, as words that answers say; None where nobody knows or there are
    several truths."""

    number: str | None = None
    colour: str | None = None
    row: str | None = None
    column: str | None = None


class View:
    """What one can say about a scene: who is present, how many, what is not to be asked. `elsewhere`: kinds to deny
    most often, as lists of which one is drawn first."""

    def __init__(self, scene: Scene, elsewhere: Sequence[Sequence[str]] = ()):
        self.scene, self.elsewhere = scene, elsewhere
        self.shown = sorted((t for t in scene.things if t.area > 0), key=lambda t: -t.area)
        self.present: dict[str, list[Thing]] = {}
        for thing in scene.things:
            for kind in (thing.kind, *KINDS[thing.kind].also):
                self.present.setdefault(kind, []).append(thing)
        self.avoid = set(scene.avoid)
        self.photographic = any(t.source == "photo" for t in scene.things)

    def number(self, kind: str) -> int | None:
        """How many there are; None where nobody knows."""
        things = self.present.get(kind, [])
        if any(t.source == "photo" for t in things) or kind in self.avoid or KINDS[kind].form != "count":
            return None
        if self.photographic or any(unsure(kind) & set(self.present)):
            # a photo beside it may hold another one
            return None if self.photographic else (len(things) or None)
        return len(things)

    def facts(self, kind: str) -> Facts:
        """What one can say about the things of a kind."""
        things = self.present.get(kind, [])
        if not things:
            return Facts(number=None if kind in self.avoid else NUMBERS[0])
        n = self.number(kind)
        colours = {thing.colour for thing in things}
        row, column = thirds(things[0]) if self.middle(kind) else (None, None)
        return Facts(
            NUMBERS[n] if n and n < len(NUMBERS) else None, colours.pop() if len(colours) == 1 else None, row, column
        )

    def middle(self, kind: str) -> tuple[float, float] | None:
        """Where the one thing of a kind is, x and y from 0 to 1; None where there are several or nobody knows."""
        things = self.present.get(kind, [])
        return things[0].centre if len(things) == 1 and things[0].area else None

    def shows(self) -> list[str]:
        """All kinds that may be asked for with a yes, wider words too."""
        return [*self.present, *self.scene.seen]

    def absent(self, rng: random.Random) -> str:
        """A kind that is surely not there: mostly what another picture shows or a common one, a fifth of them any."""
        while True:
            chance = rng.random()
            kind = rng.choice(CORE if chance < 0.8 else list(KINDS))
            # now and then of the same group as something present: not every animal is this one
            if chance > 0.8 and self.shown and KINDS[kind].group != KINDS[self.shown[0].kind].group:
                kind = rng.choice([k for k in KINDS if KINDS[k].group == KINDS[self.shown[0].kind].group])
            # rare things are shown too seldom to be denied for being shown elsewhere
            if chance < 0.8 and self.elsewhere and rng.random() < ELSEWHERE:
                kind = rng.choice(rng.choice(self.elsewhere))
            # a wider word is there when one of its own is
            if kind not in self.avoid and kind not in self.present and not unsure(kind) & set(self.present):
                if not any(n in self.avoid for n in NARROWER[kind]):
                    return kind

    def single(self) -> list[Thing]:
        """Things that one can call "the dog": alone in their kind, with a known place."""
        return [t for t in self.shown if all(len(self.present[k]) == 1 for k in (t.kind, *KINDS[t.kind].also))
                and KINDS[t.kind].form != "mass"]  # fmt: skip

    def amounts(self, limit: int = 5) -> list[tuple[str, int]]:
        """(kind, how many), the biggest first; people that are only known to be there come last."""
        totals: dict[str, float] = {}
        for thing in self.scene.things:
            totals[thing.kind] = totals.get(thing.kind, 0.0) + thing.area
        order = sorted(totals, key=lambda k: -totals[k])[:limit]
        return [(k, sum(t.kind == k for t in self.scene.things)) for k in order]

    def phrase(self, limit: int = 5) -> str:
        """ "a dog, two cups and a tree"."""
        parts = [KINDS[k].number(n) for k, n in self.amounts(limit)]
        return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def there_is(kind: str, n: int | None) -> str:
    if n is not None and n > 1:
        return f"there are {KINDS[kind].number(n)}"
    return f"there {KINDS[kind].are} {a(kind)}"


def is_there(view: View, rng: random.Random) -> QA | None:
    yes = rng.random() < 0.5
    if yes and not view.present:
        return None
    if yes:
        kind = rng.choice(view.shows())
    else:
        kind = view.absent(rng)
    question = ask_for(kind, rng)
    if yes:
        # a small model that has to name the thing again names another at times
        n = view.number(kind)
        return QA("is_there", question, "Yes." if n is None else f"Yes, {number_alone(n)}", "yes", (kind,))
    return QA("is_there", question, "No, I see none.", "no", (kind,))


def ask_for(kind: str, rng: random.Random) -> str:
    """Some wording of "Is there a dog?"."""
    thing = KINDS[kind]
    if kind == "person" and rng.random() < 0.3:
        return rng.choice(PEOPLE)
    if thing.form == "mass":
        return rng.choice(IS_THERE_SOME).format(n=thing.name)
    if thing.form == "plural":
        return rng.choice(ARE_THERE_SOME).format(n=thing.name)
    if thing.synonyms and rng.random() < 0.15:
        word = rng.choice(thing.synonyms)
        article = "an" if word[0] in "aeiou" else "a"
        return rng.choice([q for q in IS_THERE if "{s}" not in q]).format(a=f"{article} {word}")
    return rng.choice(IS_THERE).format(a=a(kind), s=thing.plural)


def listing(view: View, rng: random.Random) -> QA | None:
    if not view.shown:
        return None
    return QA("list", rng.choice(LIST), f"I see {view.phrase()}.", "|".join(k for k, _ in view.amounts()))


def what(view: View, rng: random.Random) -> QA | None:
    kinds = {t.kind for t in view.shown}
    if len(kinds) != 1:
        return None
    return it_is(view, kinds.pop(), rng)


def some_what(view: View, rng: random.Random) -> QA | None:
    """What it is where there are several kinds of things: the one that plainly takes up the most room."""
    areas: dict[str, float] = {}
    for thing in view.shown:
        areas[thing.kind] = areas.get(thing.kind, 0.0) + thing.area
    if len(areas) < 2:
        return None
    kind, second = sorted(areas, key=lambda k: -areas[k])[:2]
    return it_is(view, kind, rng) if areas[kind] > 1.15 * areas[second] else None


def it_is(view: View, kind: str, rng: random.Random) -> QA | None:
    n = sum(thing.kind == kind for thing in view.shown)
    if n == 1:
        is_ = "They are" if KINDS[kind].form == "plural" else "It is"
        return QA("what", rng.choice(WHAT), f"{is_} {a(kind)}.", kind)
    if KINDS[kind].form != "count":
        return None
    # no number: told in passing, it is another at each way of asking
    return QA("what", rng.choice(WHAT), f"They are {KINDS[kind].plural}.", kind)


def main(view: View, rng: random.Random) -> QA | None:
    if not view.shown or (len(view.shown) > 1 and view.shown[0].area < 1.5 * view.shown[1].area):
        return None
    kind = view.shown[0].kind
    if sum(t.kind == kind for t in view.shown) > 1:
        return None
    return QA("main", rng.choice(MAIN), f"The main thing is {a(kind)}.", kind)


def describe(view: View, rng: random.Random) -> QA | None:
    if not view.shown:
        return None
    what_it_is = {"drawing": "picture", "photo": "photo", "collage": "collage", "shapes": "picture"}[view.scene.style]
    plain = view.scene.background and view.scene.style != "photo"
    ground = f" on a {view.scene.background} background" if plain else ""
    ground = ground.replace("a orange", "an orange")
    answer = f"A {what_it_is} of {view.phrase()}{ground}."
    return QA("describe", rng.choice(DESCRIBE), answer, "|".join(k for k, _ in view.amounts()))


def count(view: View, rng: random.Random) -> QA | None:
    kinds = [k for k in view.present if view.number(k)]
    if rng.random() < 0.15 and not view.photographic and not view.avoid:
        kind = view.absent(rng)
        if KINDS[kind].form != "count":
            return None
    elif kinds:
        # the higher numbers are the rare ones
        kind = rng.choices(kinds, [(view.number(k) or 0) ** 1.2 for k in kinds])[0]
    else:
        return None
    return how_many(kind, view.number(kind) or 0, rng)


def how_many(kind: str, n: int, rng: random.Random) -> QA:
    question = rng.choice(COUNT).format(s=KINDS[kind].plural)
    return QA("count", question, number_alone(n), str(n), (kind,))


def how_many_coloured(alike: list[Thing], colour: str, rng: random.Random) -> QA | None:
    """How many of some shapes of one kind have a colour; None of other things, whose colours are not as sure."""
    kind = alike[0].kind
    if kind not in SHAPES or not all(thing.colour for thing in alike):
        return None
    n = sum(thing.colour == colour for thing in alike)
    return QA("count", rng.choice(COUNT).format(s=f"{colour} {KINDS[kind].plural}"), number_alone(n), str(n))


def some_coloured(view: View, rng: random.Random) -> QA | None:
    """How many shapes of a kind have one of the colours in the picture, none of them at times."""
    colours = sorted({thing.colour for thing in view.shown if thing.colour})
    if len(colours) < 2:
        return None
    kind = rng.choice(view.shown).kind
    return how_many_coloured([thing for thing in view.shown if thing.kind == kind], rng.choice(colours), rng)


def number_alone(n: int) -> str:
    """A small model looks a number up; to name the thing again, or to fit "is" or "are", it would have to copy."""
    return f"I see {'none' if n == 0 else NUMBERS[n] if n < len(NUMBERS) else 'many'}."


def some_number(view: View, rng: random.Random) -> QA | None:
    """How many there are of anything at all: often none; and a photo is taken to show its own thing once.

    The last is not always true. But with no such question a model never learns what to say to one.
    """
    own = [t.kind for t in view.shown if t.source == "photo" and KINDS[t.kind].form == "count"]
    if own and rng.random() < 0.5:
        kind = rng.choice(own)
        n = own.count(kind)
    else:
        kind, n = view.absent(rng) if rng.random() < 0.5 else rng.choice(list(KINDS)), 0
        thing = KINDS[kind]
        there = kind in view.avoid or kind in view.present or unsure(kind) & set(view.present)
        if there or thing.form != "count" or any(narrower in view.avoid for narrower in NARROWER[kind]):
            return None
    return how_many(kind, n, rng)


def colour(view: View, rng: random.Random) -> QA | None:
    if view.scene.background and rng.random() < 0.12:
        return QA("colour", rng.choice(GROUND), f"The background is {view.scene.background}.", view.scene.background)
    coloured = [t for t in view.shown if t.colour]
    if not coloured:
        return None
    thing = rng.choice(coloured)
    colour = thing.colour or ""
    alike = [t for t in view.shown if t.kind == thing.kind]
    name, plural = KINDS[thing.kind].name, KINDS[thing.kind].plural
    if len(alike) > 1:
        if {t.colour for t in alike} == {colour}:
            return QA("colour", rng.choice(COLOURS_ARE).format(s=plural), f"They are {colour}.", colour, (thing.kind,))
        return how_many_coloured(alike, colour, rng)
    if KINDS[thing.kind].form == "plural":
        return QA(
            "colour",
            rng.choice(COLOURS_ARE).format(s=plural),
            f"They are {colour}.",
            colour,
            (thing.kind,),
        )
    if rng.random() < 0.25:
        yes = rng.random() < 0.5
        said = colour if yes else rng.choice([c for c in COLOURS if clearly_other(c, colour)])
        question = rng.choice(COLOUR_YES_NO).format(n=name, c=said).replace("a orange", "an orange")
        answer = f"{'Yes' if yes else 'No'}, it is {colour}."
        return QA("colour", question, answer, "yes" if yes else "no", (thing.kind,))
    return QA("colour", rng.choice(COLOUR).format(n=name), f"It is {colour}.", colour, (thing.kind,))


def some_absent(view: View, rng: random.Random) -> QA | None:
    """The colour or the place of something that isn't there; only where one could ask for that of something, else such
    questions would always be so answered of photos."""
    kind = view.absent(rng)
    thing = KINDS[kind]
    if rng.random() < 0.5:
        question, asked = where_question(kind, rng), any(map(place_of, view.single()))
    else:
        asked = any(t.colour for t in view.shown)
        if thing.form == "plural":
            question = rng.choice(COLOURS_ARE).format(s=thing.plural)
        elif rng.random() < 0.2:
            question = rng.choice(COLOUR_YES_NO).format(n=kind, c=rng.choice(COLOURS)).replace("a orange", "an orange")
            return QA("colour", question, "No, I see none.", "no", (kind,)) if asked else None
        else:
            question = rng.choice(COLOUR).format(n=kind)
    return QA("count", question, number_alone(0), "0", (kind,)) if asked else None


NEAR_COLOURS = (
    {"red", "orange", "pink", "brown"}, {"orange", "yellow", "brown"}, {"purple", "pink", "blue"},
    {"black", "grey", "brown"}, {"white", "grey"},
)  # fmt: skip


def clearly_other(one: str, other: str) -> bool:
    return one != other and not any(one in near and other in near for near in NEAR_COLOURS)


def third(v: float) -> int | None:
    """0, 1 or 2 of a side's length 0..1; None where it is not clear."""
    return 0 if v < 0.36 else 2 if v > 0.64 else 1 if 0.41 < v < 0.59 else None


def thirds(thing: Thing) -> tuple[str | None, str | None]:
    """The words for a thing's row and column; None where it is not clear."""
    x0, y0, x1, y1 = thing.box
    if x1 - x0 > 0.7 or y1 - y0 > 0.7:
        return None, None
    column, row = (third(v) for v in thing.centre)
    return None if row is None else ROWS[row], None if column is None else COLUMNS[column]


def place_of(thing: Thing) -> str | None:
    """ "top left", "left", "middle"...; None where it is not clear."""
    row, column = thirds(thing)
    if row is None or column is None:
        return None
    return " ".join(word for word in (row, column) if word != "middle") or "middle"


def where(view: View, rng: random.Random) -> QA | None:
    known = [(t, p) for t in view.single() if (p := place_of(t))]
    if not known:
        return None
    thing, place = rng.choice(known)
    said = {"middle": "In the middle.", "left": "On the left.", "right": "On the right."}.get(place, f"At the {place}.")
    return QA("where", where_question(thing.kind, rng), said, place, (thing.kind,))


def where_question(kind: str, rng: random.Random) -> str:
    question = rng.choice(WHERE).format(n=kind)
    if KINDS[kind].form == "plural":
        question = question.replace(f"is the {kind}", f"are the {kind}").replace(f"{kind} is", f"{kind} are")
        question = question.replace("is it?", "are they?")
    return question


def relation_of(x: Thing, y: Thing) -> str | None:
    """Where `x` is, seen from `y`; None unless it is plainly to one side."""
    dx, dy = x.centre[0] - y.centre[0], x.centre[1] - y.centre[1]
    if abs(dx) > 1.8 * abs(dy) and abs(dx) > 0.2:
        apart = y.box[0] - x.box[2] if dx < 0 else x.box[0] - y.box[2]
        return ("left of" if dx < 0 else "right of") if apart > -0.08 else None
    if abs(dy) > 1.8 * abs(dx) and abs(dy) > 0.2:
        apart = y.box[1] - x.box[3] if dy < 0 else x.box[1] - y.box[3]
        return ("above" if dy < 0 else "below") if apart > -0.08 else None
    return None


def relation(view: View, rng: random.Random) -> QA | None:
    singles = [t for t in view.single() if KINDS[t.kind].form == "count"]
    pairs = [(x, y, r) for x in singles for y in singles if x is not y and (r := relation_of(x, y))]
    if not pairs:
        return None
    x, y, r = rng.choice(pairs)
    how = rng.random()
    if how < 0.5:
        yes = rng.random() < 0.5
        said = r if yes else rng.choice([RELATIONS[r], RELATIONS[r], *(o for o in RELATIONS if o != r)])
        question = rng.choice(RELATION_IS).format(x=x.kind, y=y.kind, r=said)
        answer = "Yes, it is." if yes else f"No, {RELATION_SAYS[r]}."
        return QA("relation", question, answer, "yes" if yes else "no", (x.kind, y.kind))
    if how < 0.8:
        question = rng.choice(RELATION_WHERE).format(x=x.kind, y=y.kind)
        return QA("relation", question, f"{RELATION_SAYS[r].capitalize()}.", r, (x.kind, y.kind))
    # nothing else may be on that side
    if view.photographic or any(t is not x and t is not y and on_side(t, y, r) for t in view.shown):
        return None
    question = rng.choice(RELATION_WHAT).format(y=y.kind, r=r)
    return QA("relation", question, f"It is {a(x.kind)}.", x.kind, (y.kind,))


def on_side(t: Thing, y: Thing, relation: str) -> bool:
    """Whether `t` is on that side of `y` at all, however far to the other way."""
    dx, dy = t.centre[0] - y.centre[0], t.centre[1] - y.centre[1]
    return {"left of": dx < 0, "right of": dx > 0, "above": dy < 0, "below": dy > 0}[relation]


def group(view: View, rng: random.Random) -> QA | None:
    there = {group_of(k) for k in view.present} | {"food" for k in view.present if KINDS[k].group == "fruit"}
    asked = sorted(there & set(GROUPS))
    if rng.random() < 0.5 and asked:
        name = rng.choice(asked)
        which = next(
            t.kind
            for t in view.scene.things
            if group_of(t.kind) == name or (name == "food" and KINDS[t.kind].group == "fruit")
        )
        return QA(
            "group",
            rng.choice(GROUP).format(g=GROUPS[name]),
            f"Yes, {there_is(which, view.number(which))}.",
            "yes",
        )
    maybe = there | {KINDS[k].group for k in view.avoid}
    if "fruit" in maybe:
        maybe.add("food")
    if maybe & {"kitchen", "creature", "toy"}:
        maybe |= {"food", "animal"}
    absent = [g for g in GROUPS if g not in maybe]
    if not absent:
        return None
    name = rng.choice(absent)
    no = "nothing to eat" if name == "food" else f"no {GROUPS[name].split(' ', 1)[1]}"
    return QA("group", rng.choice(GROUP).format(g=GROUPS[name]), f"No, there is {no}.", "no")


def group_of(kind: str) -> str:
    return KINDS[kind].group


def decline(view: View, rng: random.Random) -> QA:
    question = rng.choice(DECLINE)
    if rng.random() < 0.6:
        start = rng.choice(list(DECLINE_WORLD))
        question = f"{start} {rng.choice(DECLINE_WORLD[start])}"
        question += "." if start in ("Tell me", "Give me", "Explain") else "?"
    elif rng.random() < 0.4 and view.shown:
        kind = rng.choice(view.shown).kind
        question = rng.choice(DECLINE_THING).format(n=kind)
    # one kind of question, one answer: else a small model learns to mix them
    return QA("decline", question, DECLINED[sum(map(ord, question)) % len(DECLINED)], "sorry")


def about(view: View, rng: random.Random) -> QA:
    questions, answer = rng.choice(
        ((HELLO, HELLO_ANSWER), (WHO, WHO_ANSWER), (CAN, CAN_ANSWER), (THANKS, THANKS_ANSWER))
    )
    return QA("about", rng.choice(questions), answer, "")


MAKERS: dict[str, Callable[[View, random.Random], QA | None]] = {
    "is_there": is_there, "list": listing, "what": what, "main": main, "describe": describe,
    "count": count, "colour": colour, "relation": relation, "where": where, "group": group,
    "decline": decline, "about": about,
}  # fmt: skip


PRACTISED = MAKERS | {
    "some_number": some_number, "some_what": some_what, "some_coloured": some_coloured, "some_absent": some_absent,
}  # fmt: skip


def scribble(question: str, rng: random.Random) -> str:
    """As people type: sometimes in lower case, sometimes without the mark at the end."""
    chance = rng.random()
    if chance < 0.15:
        question = question[0].lower() + question[1:]
    if chance < 0.1 or chance > 0.93:
        question = question.rstrip("?.!")
    if 0.15 < chance < 0.17:
        question = rng.choice(("Hey, ", "Please: ", "So, ", "And ", "OK, ")) + question[0].lower() + question[1:]
    return question


def ask(
    scene: Scene, rng: random.Random, n: int, *, practice: bool = False, elsewhere: Sequence[Sequence[str]] = ()
) -> list[QA]:
    """`n` different questions about a scene, by the weights of their types; fewer where it gives no more.

    `practice` and `elsewhere` (as in `View`) are for training: an examination keeps its questions when training is
    changed.
    """
    view = View(scene, elsewhere)
    photo = scene.style == "photo"
    if practice:
        weights = PHOTO_PRACTICE if photo else PRACTICE
    else:
        weights = PHOTO_WEIGHTS if photo else WEIGHTS
    types, odds = list(weights), list(weights.values())
    out: list[QA] = []
    seen: set[str] = set()
    for _ in range(12 * n):
        if len(out) == n:
            break
        qa = PRACTISED[rng.choices(types, odds)[0]](view, rng)
        if qa is None or qa.question in seen:
            continue
        seen.add(qa.question)
        out.append(replace(qa, question=scribble(qa.question, rng)))
    return out


_SAYS = {
    "count": rf"\b(no(?=ne\b)|(?:{'|'.join(NUMBERS)}|many)\b)",
    "colour": rf"\b({'|'.join(COLOURS)})(?=\.$)",
    "relation": r"\b(left|right|above|below)\b",
    "where": r"(top|bottom|left|right|middle|top left|top right|bottom left|bottom right)(?=\.$)",
}


def deciding(qa: QA) -> list[tuple[int, int]]:
    """Where in its answer the words stand, as (start, end), that decide whether it is right."""
    if qa.type in ("decline", "about") or qa.truth in ("yes", "no"):
        first = re.match(r"\w+", qa.answer)
        # of a yes or no about a colour or a side, the one that it is stands further on
        found = [first, qa.type in ("colour", "relation") and re.search(_SAYS[qa.type], qa.answer)]
    elif qa.type in _SAYS and qa.truth not in KINDS:
        found = [re.search(_SAYS[qa.type], qa.answer)]
    else:
        things = [KINDS[kind] for kind in qa.truth.split("|")]
        found = [re.search(rf"\b({thing.plural}|{thing.name})\b", qa.answer, re.IGNORECASE) for thing in things]
    return [match.span() for match in found if match]


_DIGITS = {str(i): w for i, w in enumerate(NUMBERS)} | {"zero": "no", "none": "no", "a": "one", "an": "one"}


def mentions(qa: QA) -> list[tuple[int, str]]:
    """Where in its question (the end of a word) the kinds are named, in order of place: (end, kind)."""
    found = []
    for kind in qa.kinds:
        thing = KINDS[kind]
        names = "|".join(map(re.escape, sorted((thing.name, thing.plural, *thing.synonyms), key=len, reverse=True)))
        if match := re.search(rf"\b({names})\b", qa.question, re.IGNORECASE):
            found.append((match.end(), kind))
    return sorted(found)


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9'ñ-]+", text.lower())


def names(kind: str, text: str) -> bool:
    """Whether the text has the kind's word, its plural or a synonym, as whole words."""
    thing = KINDS[kind]
    spaced = f" {' '.join(words(text))} "
    return any(f" {' '.join(words(w))} " in spaced for w in (thing.name, thing.plural, *thing.synonyms))


def judge(qa: QA, answer_text: str) -> bool:
    """Whether a generated answer is right, as far as `qa.truth` tells."""
    said = words(answer_text)
    if not said:
        return False
    if qa.truth in ("yes", "no") and qa.type != "count":
        return said[0] == qa.truth
    if qa.type == "count":
        numbers = [_DIGITS.get(w, w) for w in said if _DIGITS.get(w, w) in NUMBERS]
        return bool(numbers) and numbers[0] == NUMBERS[int(qa.truth)]
    if qa.type == "colour":
        colours = [("grey" if w == "gray" else w) for w in said if w in (*COLOURS, "gray")]
        # "The orange is yellow.": the last one is the colour
        return bool(colours) and colours[-1] == qa.truth
    if qa.type == "where":
        got = {w for w in said if w in ("top", "bottom", "left", "right", "middle", "center", "centre")}
        return {"middle" if w in ("center", "centre") else w for w in got} == set(qa.truth.split())
    if qa.type == "relation":
        if qa.truth in RELATIONS:
            return qa.truth.split()[0] in said and RELATIONS[qa.truth].split()[0] not in said
        return names(qa.truth, answer_text)
    if qa.type in ("list", "describe"):
        # every thing named, and no more: a longer list is not a better one
        kinds = qa.truth.split("|")
        n_ands = sum(k.count(" and ") for k in kinds)
        n_named = len(re.split(r",| and ", answer_text)) - n_ands
        return all(names(k, answer_text) for k in kinds) and n_named <= len(kinds)
    if qa.type in ("what", "main"):
        return names(qa.truth, answer_text) or any(names(k, answer_text) for k in KINDS[qa.truth].also)
    if qa.type == "decline":
        return said[0] == "sorry"
    return words(qa.answer) == said
