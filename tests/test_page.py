"""The page in a real browser, and its API, on the embedded model. Nothing here asserts a time."""

import asyncio
import itertools
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
from conftest import BOT, USER, ask
from gradio_client import Client, handle_file
from PIL import Image

import mlmamba
from page.chat import Chat
from page.sessions import Speakers

ROOT = Path(__file__).resolve().parent.parent
MEADOW = ROOT / "examples" / "meadow.jpg"
PHONE = {"width": 390, "height": 844}


@pytest.fixture
def expect():
    return pytest.importorskip("playwright.sync_api").expect


def give(page, path: Path) -> None:
    """Choose a file; on return its preview is there (or the sentence that says why not)."""
    before = page.locator("#picture img").get_attribute("src") if page.locator("#picture img").count() else None
    page.set_input_files("#left input[type=file]", path)
    page.wait_for_function(
        """before => document.querySelector('#picture img')?.getAttribute('src') != before
                     || document.querySelector('.notice.problem')""",
        arg=before,
    )


def page_in_this_process(request: pytest.FixtureRequest) -> tuple[Chat, gr.Blocks]:
    chat = Chat(Speakers(request.config.getoption("--model"), "cpu"))
    with gr.Blocks(analytics_enabled=False) as demo:
        chat.lay_out()
    return chat, demo


def notice(page) -> str:
    return page.inner_text("#notice .notice")


def test_upload_ask_answer(visit, url, expect):
    page = visit(url)
    give(page, MEADOW)
    ask(page, "Is there a dog?")
    expect(page.locator(USER)).to_have_text("Is there a dog?")
    expect(page.locator(BOT)).to_have_text(re.compile(r"\w"))
    expect(page.locator("#question textarea")).to_have_value("")
    line = page.inner_text("#status")
    assert all(word in line for word in ("cpu", "float32", "plain PyTorch", "First word", "Prefill", "Decode"))
    assert "speaks" in page.inner_text("#about")

    # the picture stays known, and only the new question is read
    first = int(re.search(r"(\d+) tokens", line)[1])
    ask(page, "What can you see?")
    line = page.inner_text("#status")
    assert "kept from before" in line
    assert int(re.search(r"(\d+) tokens", line)[1]) < first


def test_answer_streams_and_stops(visit, slow_url, expect):
    page = visit(slow_url)
    give(page, MEADOW)
    page.fill("#question textarea", "What can you see?")
    page.keyboard.press("Enter")
    expect(page.locator("#stop")).to_be_visible()
    lengths = []
    for _ in range(3):  # each wait ends only when the text has grown
        lengths.append(len(page.inner_text(BOT)) if page.locator(BOT).count() else 0)
        page.wait_for_function(f"n => (document.querySelector('{BOT}')?.innerText.length ?? 0) > n", arg=lengths[-1])
    assert lengths == sorted(set(lengths))

    # a second question meanwhile: refused in one sentence, its text kept
    page.fill("#question textarea", "And a cat?")
    page.keyboard.press("Enter")
    expect(page.locator("#notice")).to_contain_text("One answer at a time")
    expect(page.locator("#question textarea")).to_have_value("And a cat?")
    expect(page.locator("#stop")).to_be_visible()

    page.click("#stop")
    expect(page.locator("#ask")).to_be_visible()
    expect(page.locator("#notice")).to_contain_text("Stopped")
    stopped = page.inner_text(BOT)
    assert stopped.strip()
    page.wait_for_timeout(500)
    assert page.inner_text(BOT) == stopped
    expect(page.locator("#question textarea")).to_have_value("And a cat?")

    # the worker is free: the next question begins to be answered, and a new picture ends it
    page.click("#ask")
    page.wait_for_function(f"document.querySelectorAll('{BOT}')[1]?.innerText.length > 1")
    page.click("#examples button >> nth=1")
    expect(page.locator(USER)).to_have_count(0)
    expect(page.locator("#ask")).to_be_visible()


def test_two_are_answered_at_once_and_a_third_waits(visit, slow_url, expect):
    """Three visitors, two seats: the third is told its place, gives up, and gets the question back."""
    visitors = first, second, third = [visit(slow_url) for _ in range(3)]
    for page in visitors:
        page.click("#examples button >> nth=0")
        page.wait_for_selector("#picture img")
        page.fill("#question textarea", "What can you see?")
        page.click("#ask")
        page.wait_for_selector("#stop")
        if page is not third:
            expect(page.locator(BOT)).to_have_text(re.compile(r"\w"))
    expect(third.locator("#notice")).to_contain_text("you are number 1 in line")
    for page in (first, second):  # both go on
        so_far = len(page.inner_text(BOT))
        page.wait_for_function(f"n => document.querySelector('{BOT}').innerText.length > n", arg=so_far)
    expect(third.locator(BOT)).to_have_text("…")
    third.click("#stop")
    expect(third.locator("#ask")).to_be_visible()
    expect(third.locator("#question textarea")).to_have_value("What can you see?")

    third.click("#ask")  # once more, and now a seat comes free
    expect(third.locator("#notice")).to_contain_text("you are number 1 in line")
    first.click("#stop")
    expect(first.locator("#ask")).to_be_visible()
    expect(third.locator(BOT)).to_have_text(re.compile(r"\w"))
    expect(third.locator("#notice")).not_to_contain_text("in line")
    for page in (second, third):
        page.click("#stop")
        expect(page.locator("#ask")).to_be_visible()


def test_a_race_waits_until_nobody_is_answered(visit, slow_url, expect):
    talker, racer = visit(slow_url), visit(slow_url)
    talker.click("#examples button >> nth=0")
    talker.wait_for_selector("#picture img")
    talker.fill("#question textarea", "What can you see?")
    talker.click("#ask")
    expect(talker.locator(BOT)).to_have_text(re.compile(r"\w"))
    racer.click('[role=tab]:has-text("Race")')
    doing = racer.locator("#race [data-at=race-doing]")
    for group, longest in (("tokens", "128"), ("contexts", "4,096")):  # time enough to ask while it runs
        racer.locator(f"#race [data-at={group}] label").filter(has_text=longest).click()
    racer.click("#race [data-at=race-go]")
    expect(doing).to_contain_text("number 1 in line")
    talker.click("#stop")
    expect(doing).to_contain_text(re.compile(r"warm-up|run \d of \d"))
    talker.click("#suggestions button >> nth=0")  # nobody is answered meanwhile
    expect(talker.locator("#notice")).to_contain_text("number 1 in line")
    racer.click("#race [data-at=race-stop]")
    expect(talker.locator("#notice")).not_to_contain_text("in line")
    talker.click("#stop")
    expect(talker.locator("#ask")).to_be_visible()


def test_retry_undo_clear_and_new_picture(visit, url, expect):
    page = visit(url)
    page.click("#examples button >> nth=0")
    page.click("#suggestions button >> nth=1")
    expect(page.locator(USER)).to_have_text("Is there a dog?")
    expect(page.locator("#status")).to_contain_text("First word")
    ask(page, "Is there a cat?")
    answers = page.locator(BOT).all_inner_texts()

    line = page.inner_text("#status")
    page.click("#retry")  # the words have to be read anew, so that the status line changes
    expect(page.locator("#status")).not_to_have_text(line, use_inner_text=True)
    expect(page.locator("#status")).to_contain_text("First word")
    expect(page.locator(BOT)).to_have_text(answers)  # temperature 0

    page.click("#undo")
    expect(page.locator(USER)).to_have_count(1)
    expect(page.locator("#question textarea")).to_have_value("Is there a cat?")
    page.click("#clear")
    expect(page.locator(USER)).to_have_count(0)
    assert page.locator("#picture img").count() == 1
    for button in ("#undo", "#retry"):
        page.click(button)
        expect(page.locator("#notice")).to_contain_text("There is no")

    ask(page, "Is there a dog?")
    give(page, ROOT / "examples" / "street.jpg")
    expect(page.locator(USER)).to_have_count(0)
    ask(page, "Is there a bus?")
    expect(page.locator(USER)).to_have_text("Is there a bus?")


def test_refused_questions_keep_their_text(visit, url, expect):
    page = visit(url)
    box = page.locator("#question textarea")
    box.fill("Is there a dog?")
    page.click("#ask")
    expect(page.locator("#notice")).to_contain_text("choose a picture first")
    expect(box).to_have_value("Is there a dog?")

    give(page, MEADOW)  # which takes the sentence from before for one of its own
    page.wait_for_selector("#picture img")
    box.fill("  ")
    page.click("#ask")
    expect(page.locator("#notice")).to_contain_text("type a question")

    long = "dog " * 25_000
    box.fill(long)
    page.click("#ask")
    expect(page.locator("#notice")).to_contain_text("100,000")
    expect(box).to_have_value(long)
    assert page.locator(USER).count() == 0

    ask(page, "Is there a dog?")
    expect(page.locator(BOT)).to_have_text(re.compile(r"\w"))
    expect(page.locator("#notice .notice")).to_have_count(0)


def text_as_jpg(path: Path) -> Path:
    path.with_suffix(".jpg").write_text("This is a letter, not a picture.\n" * 40)
    return path.with_suffix(".jpg")


def truncated_jpeg(path: Path) -> Path:
    whole = MEADOW.read_bytes()
    path.with_suffix(".jpg").write_bytes(whole[: len(whole) // 3])
    return path.with_suffix(".jpg")


def saved(image: Image.Image, path: Path, suffix: str, **options) -> Path:
    image.save(path.with_suffix(suffix), **options)
    return path.with_suffix(suffix)


def huge_png(path: Path) -> Path:
    return saved(Image.new("1", (20_000, 20_000)), path, ".png")


def heic(path: Path) -> Path:
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.from_pillow(Image.open(MEADOW)).save(path.with_suffix(".heic"))
    return path.with_suffix(".heic")


def deep(path: Path) -> Path:
    ramp = np.linspace(0, 65535, 200 * 150).reshape(150, 200).astype(np.uint16)
    return saved(Image.fromarray(ramp), path, ".png")


def palette_with_alpha(path: Path) -> Path:
    image = Image.open(MEADOW).quantize(64)
    return saved(image, path, ".png", transparency=bytes(range(0, 256, 4)))


def animated_gif(path: Path) -> Path:
    frames = [Image.new("RGB", (160, 120), colour) for colour in ("red", "green", "blue")]
    return saved(frames[0], path, ".gif", save_all=True, append_images=frames[1:], duration=200)


def rotated(path: Path) -> Path:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter: lying in the file, upright to the eye
    return saved(Image.open(MEADOW), path, ".jpg", exif=exif)


REFUSED = {"text": text_as_jpg, "truncated": truncated_jpeg, "huge": huge_png}
TAKEN = {
    "1x1": lambda path: saved(Image.new("RGB", (1, 1), "red"), path, ".png"),
    "3000x10": lambda path: saved(Image.new("RGB", (3000, 10), "green"), path, ".png"),
    "cmyk": lambda path: saved(Image.open(MEADOW).convert("CMYK"), path, ".jpg"),
    "16-bit": deep,
    "palette-alpha": palette_with_alpha,
    "gif": animated_gif,
    "rotated": rotated,
    "heic": heic,
}


@pytest.mark.parametrize("kind", REFUSED)
def test_unreadable_pictures_change_nothing(visit, url, expect, tmp_path, kind):
    page = visit(url)
    give(page, MEADOW)
    ask(page, "Is there a dog?")
    page.fill("#question textarea", "And a cat?")
    preview = page.get_attribute("#picture img", "src")
    page.set_input_files("#left input[type=file]", REFUSED[kind](tmp_path / kind))
    expect(page.locator("#notice .notice.problem")).to_be_visible()
    assert len(re.findall(r"[.!?](?:\s|$)", notice(page))) == 1, notice(page)
    assert page.get_attribute("#picture img", "src") == preview
    expect(page.locator(USER)).to_have_count(1)
    expect(page.locator("#question textarea")).to_have_value("And a cat?")
    page.click("#ask")
    expect(page.locator(BOT)).to_have_count(2)


@pytest.mark.parametrize("kind", TAKEN)
def test_odd_pictures_are_shown_and_talked_about(visit, url, expect, tmp_path, kind):
    page = visit(url)
    give(page, TAKEN[kind](tmp_path / kind))
    page.wait_for_function("document.querySelector('#picture img')?.naturalWidth > 0")
    width, height = page.evaluate("(i => [i.naturalWidth, i.naturalHeight])(document.querySelector('#picture img'))")
    if kind == "rotated":
        assert height > width
    ask(page, "What can you see?")
    expect(page.locator(BOT)).to_have_count(1)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_drop_on_the_page(visit, url, expect):
    page = visit(url)
    data = list(MEADOW.read_bytes())
    page.evaluate(
        """data => {
            const box = new DataTransfer();
            box.items.add(new File([new Uint8Array(data)], 'meadow.jpg', { type: 'image/jpeg' }));
            for (const kind of ['dragenter', 'dragover', 'drop'])
                document.querySelector('#chat').dispatchEvent(
                    new DragEvent(kind, { dataTransfer: box, bubbles: true, cancelable: true }));
        }""",
        data,
    )
    expect(page.locator("#picture img")).to_be_visible()


@pytest.mark.parametrize(
    "text", ["<img src=x onerror=window.hacked=1>", "${1+1} {{value}} $$x^2$$ **b** `c`", "a & b &lt; c"]
)
def test_text_is_never_markup(visit, url, expect, text):
    page = visit(url)
    give(page, MEADOW)
    ask(page, text)
    expect(page.locator(USER)).to_have_text(text)
    assert page.locator("#chat").locator("img, strong, code, .katex").count() == 0
    assert page.evaluate("window.hacked") is None
    page.click("#undo")
    expect(page.locator("#question textarea")).to_have_value(text)


def test_connector_and_model(visit, url, expect):
    page = visit(url)
    give(page, MEADOW)
    ask(page, "Is there a dog?")
    page.click("#connector label:has-text('CSM')")
    expect(page.locator("#status")).to_contain_text("CSM")
    expect(page.locator(USER)).to_have_count(1)
    ask(page, "Is there a cat?")
    expect(page.locator(USER)).to_have_count(2)

    page.click("#model label:has-text('3B')")  # on a CPU: an honest sentence, and the model stays
    expect(page.locator("#notice")).to_contain_text("needs a GPU")
    expect(page.locator("#model input:checked")).not_to_have_value("3b")
    expect(page.locator(USER)).to_have_count(2)


def test_by_keyboard_alone(visit, url, expect):
    page = visit(url)

    def go_to(selector: str, key: str = "Tab") -> None:
        """There by Tab, with the focus to be seen."""
        for _ in range(80):
            page.keyboard.press(key)
            if page.evaluate("wanted => document.activeElement.matches(wanted)", selector):
                break
        else:
            raise AssertionError(f"Tab never comes to {selector}")
        ringed = """() => {
            const element = document.activeElement;
            const look = () => {
                document.getAnimations().forEach((one) => one.finish());
                return JSON.stringify([element, element.parentElement].map((each) => {
                    const { outline, boxShadow, borderColor } = getComputedStyle(each);
                    return [outline, boxShadow, borderColor];
                }));
            };
            const focused = look();
            element.blur();
            const blurred = look();
            element.focus();
            return focused !== blurred;
        }"""
        assert page.evaluate(ringed), selector

    go_to("#examples button")
    page.keyboard.press("Enter")
    expect(page.locator("#picture img")).to_be_visible()
    go_to("#question textarea")
    page.keyboard.type("Is there a dog?")
    page.keyboard.press("Enter")
    expect(page.locator(BOT)).to_have_count(1)
    expect(page.locator("#stop")).to_have_count(0)
    go_to("#undo")
    page.keyboard.press("Space")
    expect(page.locator(BOT)).to_have_count(0)
    expect(page.locator("#question textarea")).to_have_value("Is there a dog?")
    go_to("[role=tab][aria-selected=false]", "Shift+Tab")
    page.keyboard.press("Enter")
    expect(page.locator("[role=tab][aria-selected=true]")).not_to_have_text("Ask")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", ["desktop", "phone"])
def test_looks(visit, url, expect, screenshots, size, theme):
    page = visit(url, theme=theme, **(PHONE if size == "phone" else {}))
    page.screenshot(path=screenshots / f"first-{size}-{theme}.png")
    page.click("#examples button >> nth=0")
    page.click("#suggestions button >> nth=0")
    expect(page.locator(BOT)).to_have_count(1)
    page.wait_for_selector("#ask")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (max(paper) < 60) if theme == "dark" else (min(paper) > 200)


def test_the_server_may_forget(visit, request, expect):
    """A browser that slept finds its session gone: it goes on with the picture and the turns on the page."""
    chat, demo = page_in_this_process(request)
    _, url, _ = demo.queue().launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
    try:
        page = visit(url)
        give(page, MEADOW)
        ask(page, "Is there a <b>dog</b>?")
        chat.sessions.clear()
        ask(page, "Is there a cat?")
        expect(page.locator(USER)).to_have_text(["Is there a <b>dog</b>?", "Is there a cat?"])
        chat.sessions.clear()
        page.click("#undo")
        expect(page.locator(USER)).to_have_text(["Is there a <b>dog</b>?"])
        for file in Path(chat.picture.GRADIO_CACHE).rglob("image.webp"):  # as after an hour
            file.unlink()
        ask(page, "Is there a tree?")  # the server remembers the picture itself
        expect(page.locator(USER)).to_have_count(2)
        chat.sessions.clear()
        page.fill("#question textarea", "And a cat?")
        page.click("#ask")
        expect(page.locator("#notice")).to_contain_text("This picture has been deleted, as all are after an hour")
        expect(page.locator("#question textarea")).to_have_value("And a cat?")
        expect(page.locator(USER)).to_have_count(2)
        page.set_input_files("#left input[type=file]", MEADOW.with_name("street.jpg"))
        expect(page.locator(USER)).to_have_count(0)
        ask(page, "And a cat?")
        expect(page.locator(USER)).to_have_count(1)
    finally:
        demo.close()


def test_the_api_page_opens(visit, url, expect):
    page = visit(url)
    page.click("#api-link")
    expect(page.locator(".api-docs")).to_contain_text("/ask")


def test_a_closed_answer_frees_the_model(request):
    """On stop and on a closed tab Gradio closes the generator: lock, stop event and memory follow."""
    chat, _ = page_in_this_process(request)
    visitor = SimpleNamespace(session_hash="visitor")
    chat.take(str(MEADOW), visitor)
    chat.begin("What can you see?", None, [], visitor)
    session = chat.sessions["visitor"]
    released = threading.Event()
    real = session.conversation.ask

    def endless(*args, **kwargs):
        try:
            yield from real(*args, **kwargs)
            while True:
                yield "and "
        finally:
            released.set()

    session.conversation.ask = endless

    async def leave_after_the_first_words() -> None:
        answer = chat.answer(0.0, 8, visitor)
        async for update in answer:
            if chat.talk in update:
                break
        assert session.lock.locked() and session.pending
        await answer.aclose()

    # in a thread: the browser's client has a loop of its own in this one
    ThreadPoolExecutor(1).submit(asyncio.run, leave_after_the_first_words()).result()
    assert released.is_set() and session.stop.is_set() and session.pending is None
    assert not session.lock.locked() and not chat.speakers.line.served
    chat.forget(visitor)
    assert not chat.sessions


def test_visitors_are_apart(url):
    """Nine at once through the API, on four seats: each gets what it would have got alone, about its own picture."""
    pictures = sorted((ROOT / "examples").glob("*.jpg"))[:3]
    asked = list(itertools.product(pictures, ("What is this?", "What can you see?", "How many cars are there?")))
    model = mlmamba.load("tiny", device="cpu")
    alone = [model.chat(picture, question) for picture, question in asked]
    assert len(set(alone)) > 5  # else getting another's answer would go unseen
    client = Client(url, verbose=False)
    jobs = [client.submit(handle_file(picture), question, api_name="/ask") for picture, question in asked]
    assert [job.result() for job in jobs] == alone
