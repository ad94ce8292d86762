"""The scan view in a real browser: on the page, from a link, exported. Nothing here asserts a time."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import serve
from PIL import Image
from safetensors.torch import load_file, save_file

import mlmamba
from visualize import record
from visualize.trace import NAMES

ROOT = Path(__file__).resolve().parent.parent
CONFIG = json.loads((ROOT / "checkpoints" / "tiny" / "config.json").read_text(encoding="utf-8"))
SIDE = CONFIG["vision"]["image_size"] // 32  # patches a side
N_PATCHES = SIDE**2
MEADOW, STREET = ROOT / "examples" / "meadow.jpg", ROOT / "examples" / "street.jpg"
EVIL = "${alert(1)}<img src=x onerror=alert(1)>"
PHONE = {"width": 390, "height": 844}
STATE = "document.querySelector('.scan-view').scanView.get()"
# a canvas that shows something has more than a few colours
COLOURS = """() => Math.max(...[...document.querySelectorAll('.scan-stage canvas')].map(canvas => {
    const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
    return new Set(new Uint32Array(pixels.buffer)).size;
}))"""


@pytest.fixture
def expect():
    return pytest.importorskip("playwright.sync_api").expect


def state(page) -> dict:
    return page.evaluate(STATE)


def see(page) -> None:
    """Open the tab and wait until it shows something."""
    page.click('[role=tab]:has-text("See the scan")')
    ready(page)


def ready(page) -> None:
    page.wait_for_selector('.scan-view[aria-busy="false"]')
    page.wait_for_function(f"({COLOURS})() > 20")


def choose(page, group: str, name: str) -> None:
    """A radio button of the view by its group and label."""
    page.locator(f'.scan-view [data-at="{group}"] label').filter(has_text=re.compile(name)).click()


def patch_at(page, row: int, column: int, panel: int = 0, rows: int = SIDE, columns: int = SIDE) -> None:
    """Click the middle of a patch."""
    canvas = page.locator(".scan-stage .scan-frame").nth(panel)
    box = canvas.bounding_box()
    canvas.click(position={"x": box["width"] * (column + 0.5) / columns, "y": box["height"] * (row + 0.5) / rows})


def number(text: str) -> float:
    """A number as the page writes it: 0.691, 1.27×10⁶."""  # noqa: RUF002
    digits, _, power = text.strip().replace("\u2212", "-").partition("\u00d710")
    return float(digits) * 10.0 ** int(power.translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")) or 0)


def words(page, side: int = 0):
    return page.locator('[data-at="answers"] .scan-answer').nth(side).locator(".scan-word")


def ask(page, question: str) -> None:
    page.fill('.scan-view [data-at="question"]', question)
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('[data-at=\"ask-button\"]').getAttribute('aria-disabled') === null")


def export(page, kind: str):
    page.click(".scan-view summary:has-text('Export')")
    with page.expect_download() as download:
        page.click(f'.scan-view [data-format="{kind}"]')
    return download.value


def test_the_page_opens_on_a_recording(visit, url, expect):
    page = visit(url)
    see(page)
    kept = json.loads((ROOT / "visualize" / "recorded" / "bsm.json").read_text(encoding="utf-8"))
    expect(page.locator(".scan-view .scan-asked")).to_have_text(kept["answer"]["question"])
    assert words(page).all_inner_texts() == kept["answer"]["words"]
    assert state(page)["picture"] == "meadow" and state(page)["kind"] == "bsm"


def test_bsm_and_csm_by_a_switch(visit, url, expect):
    page = visit(url)
    see(page)
    directions = page.locator('.scan-view [data-at="table"] [role=rowheader], .scan-view [data-at="table"] th')
    choose(page, "kinds", "CSM")
    ready(page)
    assert state(page)["kind"] == "csm"
    text = page.inner_text('.scan-view [data-at="table"]')
    assert all(name in text for name in ("rows →", "rows ←", "columns ↓", "columns ↑")), directions.all_inner_texts()
    choose(page, "kinds", "BSM")
    ready(page)
    expect(page.locator('.scan-view [data-at="table"]')).not_to_contain_text("columns")


def test_play_pause_and_keys(visit, url, expect):
    page = visit(url)
    see(page)
    stage = page.locator(".scan-stage")
    stage.focus()
    page.keyboard.press("Home")
    assert state(page)["step"] == 0
    page.keyboard.press("Space")
    page.wait_for_function(f"{STATE}.step > 5")
    page.keyboard.press("Space")
    stopped = state(page)["step"]
    page.wait_for_timeout(300)
    assert state(page)["step"] == stopped
    page.keyboard.press("End")
    assert state(page)["step"] == N_PATCHES - 1
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Shift+ArrowLeft")
    assert state(page)["step"] == N_PATCHES - 12
    expect(page.locator('[data-at="step"]')).to_have_text(re.compile(rf"{N_PATCHES - 11}\D+{N_PATCHES}"))

    scrub = page.locator('.scan-view input[type=range][data-at="scrub"]')
    scrub.focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert state(page)["step"] == 1 and scrub.input_value() == "1"

    before = page.evaluate("document.querySelector('.scan-stage canvas').toDataURL()")
    page.keyboard.press("PageUp")
    page.wait_for_function("before => document.querySelector('.scan-stage canvas').toDataURL() !== before", arg=before)
    assert state(page)["step"] > 1


def test_a_patch_shows_what_reaches_it(visit, url, expect):
    """The browser's own numbers against Python's, which a test holds against the model's outputs."""
    page = visit(url)
    see(page)
    choose(page, "kinds", "CSM")
    ready(page)
    choose(page, "layers", "2")
    patch_at(page, 6, 3)
    assert state(page)["patch"] == 6 * SIDE + 3
    expect(page.locator(".scan-view")).to_contain_text("|M[t,s]|·‖x_s‖")
    conversation = mlmamba.load("tiny", device="cpu").start(MEADOW, "csm")
    trace = record(conversation, "csm")
    shown = page.evaluate("document.querySelector('.scan-view').scanView.maps()")
    for d in range(4):
        wanted = trace.influence(1, None, d, 6 * SIDE + 3)
        np.testing.assert_allclose(shown["directions"][d], wanted, rtol=0.02, atol=1e-3 * wanted.max())
    merged = trace.influence(1, None, None, 6 * SIDE + 3)
    np.testing.assert_allclose(shown["merged"], merged, rtol=0.02, atol=1e-3 * merged.max())

    page.locator(".scan-stage").focus()
    page.keyboard.press("w")
    assert state(page)["patch"] == 5 * SIDE + 3
    page.keyboard.press("Escape")
    assert state(page)["patch"] is None


def test_pointing_reads_the_values_of_a_head(visit, url, expect):
    page = visit(url)
    see(page)
    choose(page, "kinds", "CSM")
    ready(page)
    page.select_option('[data-at="head"]', "0")
    frame = page.locator(".scan-stage .scan-frame").nth(0)
    box = frame.bounding_box()
    frame.hover(position={"x": box["width"] * 0.75, "y": box["height"] * 0.25})  # row 4, column 11
    expect(page.locator('[data-at="here"]')).to_contain_text("row 4, column 11")
    trace = record(mlmamba.load("tiny", device="cpu").start(MEADOW, "csm"), "csm")
    text = page.inner_text('[data-at="table"]')
    for d, name in enumerate(trace.directions):
        cells = [cell for cell in text[text.index(name) :].split("\n") if cell.strip()]
        numbers = [number(cell) for cell in cells[1:8]]  # after the direction's name: step and six quantities
        step = int(np.flatnonzero(trace.orders[d] == 3 * SIDE + 10)[0])
        wanted = [trace.along(0, 0, d, quantity)[step] for quantity in NAMES]
        assert numbers[0] == step + 1 and numbers[1:7] == pytest.approx(wanted, rel=0.01), (name, text)


def test_a_words_map(visit, url, expect):
    page = visit(url)
    see(page)
    words(page).nth(3).click()
    assert state(page)["word"] == 3
    expect(page.locator('[data-at="word-title"]')).to_contain_text(words(page).nth(3).inner_text())
    expect(page.locator('[data-at="word-text"]')).to_contain_text("not what decided")
    here = page.evaluate("document.querySelector('.scan-view').scanView.maps().merged")
    choose(page, "through", "Onward")
    onward = page.evaluate("document.querySelector('.scan-view').scanView.maps().merged")
    assert not np.allclose(here, onward, rtol=0.01) and sum(onward) == pytest.approx(sum(here), rel=0.01)
    page.select_option('[data-at="word-layer"]', "0")
    assert state(page)["word_layer"] == 0
    words(page).nth(3).click()
    assert state(page)["word"] is None


def test_ask_in_the_view_and_find_it_in_the_chat(visit, url, expect):
    page = visit(url)
    see(page)
    page.click("#see-pictures .example >> nth=2")
    page.wait_for_function(f"{STATE}.picture === 'street'")
    ready(page)
    ask(page, "Is there a bus?")
    expect(page.locator(".scan-asked")).to_have_text("Is there a bus?")
    said = " ".join(words(page).all_inner_texts())
    choose(page, "kinds", "CSM")
    ready(page)
    expect(page.locator(".scan-asked")).to_have_text("Is there a bus?")
    page.click('[role=tab]:has-text("Ask")')
    expect(page.locator('#chat [data-testid="bot"]')).to_have_text(said)
    expect(page.locator("#picture img")).to_be_visible()

    # and the other way round
    page.fill("#question textarea", "Is there a car?")
    page.click("#ask")
    expect(page.locator('#chat [data-testid="bot"]')).to_have_count(2)
    page.wait_for_selector("#ask")
    page.click("#saw")
    ready(page)
    expect(page.locator(".scan-asked")).to_have_text("Is there a car?")


def test_a_refused_question_says_why_and_is_kept(visit, url, expect):
    page = visit(url)
    see(page)
    page.evaluate("document.querySelector('[data-at=\"question\"]').removeAttribute('maxlength')")
    ask(page, "dog " * 600)
    expect(page.locator('[data-at="notice"]')).to_contain_text("2,000 characters")
    assert len(page.input_value('[data-at="question"]')) > 2000
    page.click('[data-at="notice-close"]')
    ask(page, "Is there a dog?")
    expect(page.locator(".scan-asked")).to_have_text("Is there a dog?")


@pytest.mark.parametrize("kind", ["bsm", "compare"])
def test_text_is_never_markup_or_template(visit, url, expect, kind):
    page = visit(url)
    page.evaluate("() => { window.alert = () => { window.hacked = true } }")
    see(page)
    if kind == "compare":
        choose(page, "kinds", "Compare")
        ready(page)
    ask(page, EVIL)
    expect(page.locator(".scan-asked").first).to_have_text(EVIL)
    export(page, "png")
    page.click('[role=tab]:has-text("Ask")')
    expect(page.locator('#chat [data-testid="user"]')).to_have_text(EVIL)
    assert page.evaluate("window.hacked") is None
    assert page.locator(".scan-view img, #chat .message img").count() == 0


def test_compare_with_a_swipe(visit, url, expect):
    page = visit(url)
    see(page)
    choose(page, "kinds", "Compare")
    ready(page)
    expect(page.locator('[data-at="answers"] .scan-answer')).to_have_count(2)
    model = mlmamba.load("tiny", device="cpu")
    first, second = (record(model.start(MEADOW, kind), kind).over(0, None, None, "state") for kind in ("bsm", "csm"))
    text = page.inner_text('[data-at="numbers"]')
    found = [float(number.replace("\u2212", "-")) for number in re.findall(r"[−\d][\d.]*", text)]  # noqa: RUF001
    gap = np.abs(first - second)
    for wanted in (first.mean(), second.mean(), gap.mean(), gap.max(), np.corrcoef(first, second)[0, 1]):
        assert any(number == pytest.approx(wanted, rel=0.01) for number in found), (wanted, text)
    handle = page.get_by_role("slider", name=re.compile("BSM|swipe", re.I)).first
    before = page.evaluate("document.querySelector('.scan-stage').innerHTML.length") and handle.get_attribute(
        "aria-valuenow"
    )
    handle.focus()
    page.keyboard.press("ArrowLeft")
    assert handle.get_attribute("aria-valuenow") != before
    words(page, 1).nth(0).click()
    assert state(page)["word"] == 0


@pytest.fixture(scope="module")
def bsm_url(tmp_path_factory):
    """The page of a model with BSM's weights alone, as the published one."""
    folder = tmp_path_factory.mktemp("bsm-only")
    source = ROOT / "checkpoints" / "tiny"
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config["connector"]["kinds"] = ["bsm"]
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    weights = load_file(source / "model.safetensors")
    save_file({k: v for k, v in weights.items() if ".csm." not in k}, folder / "model.safetensors")
    (folder / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    with serve(str(folder), folder / "log") as address:
        yield address


def test_csm_without_weights_is_shown_as_untrained(visit, bsm_url, expect):
    page = visit(bsm_url)
    see(page)
    page.click("#see-pictures .example >> nth=2")
    page.wait_for_function(f"{STATE}.picture === 'street'")
    ready(page)
    ask(page, "Is there a bus?")
    expect(page.locator('[data-at="untrained"]')).to_be_hidden()
    choose(page, "kinds", "CSM")
    ready(page)
    expect(page.locator('[data-at="untrained"]')).to_contain_text("never trained")
    assert "columns ↑" in page.inner_text('[data-at="table"]')
    assert words(page).count() == 0
    choose(page, "kinds", "Compare")
    ready(page)
    expect(page.locator('[data-at="untrained"]')).to_be_visible()
    assert words(page, 0).count() > 0 and words(page, 1).count() == 0
    assert export(page, "png").suggested_filename.endswith(".png")


SLOW_LOAD = """
import time, mlmamba
load = mlmamba.load
def slow_load(*args, **options):
    time.sleep(25)
    return load(*args, **options)
mlmamba.load = slow_load
"""


@pytest.fixture
def loading_url(tmp_path):
    """The page while its model takes long to load."""
    with serve("tiny", tmp_path / "log", SLOW_LOAD) as address:
        yield address


def test_there_is_something_to_play_with_before_the_model_has_loaded(loading_url, visit, expect):
    page = visit(loading_url)
    expect(page.locator("#status")).to_contain_text("Loading the model")
    see(page)
    choose(page, "kinds", "CSM")
    ready(page)
    patch_at(page, 5, 5)
    assert state(page)["patch"] == 5 * SIDE + 5
    words(page).nth(1).click()
    page.click('[role=tab]:has-text("Ask")')
    expect(page.locator("#status")).to_contain_text("Loading the model")
    expect(page.locator("#about")).to_contain_text("speaks")  # and then the model is there
    expect(page.locator("#status")).to_contain_text("tiny")


def test_exports_open(visit, url):
    page = visit(url)
    see(page)
    choose(page, "kinds", "CSM")
    ready(page)
    png = export(page, "png")
    assert png.suggested_filename.endswith(".png")
    picture = Image.open(png.path())
    assert picture.format == "PNG" and picture.width >= 1500 and len(picture.convert("RGB").getcolors(10**6)) > 100
    for kind in ("gif", "webp"):
        film = Image.open(export(page, kind).path())
        assert film.format == kind.upper() and film.n_frames > 20
    numbers = json.loads(Path(export(page, "json").path()).read_text(encoding="utf-8"))
    trace = record(mlmamba.load("tiny", device="cpu").start(MEADOW, "csm"), "csm")
    flat = json.dumps(numbers)
    assert "rows →" in flat or "rows \\u2192" in flat
    found = [np.array(v) for v in lists(numbers) if len(v) == N_PATCHES]
    assert any(np.allclose(v, trace.over(0, None, 2, "state"), rtol=0.01) for v in found)


def lists(value) -> list[list[float]]:
    """Every list of numbers within JSON."""
    if isinstance(value, dict):
        return [found for item in value.values() for found in lists(item)]
    if isinstance(value, list):
        numbers = value and all(isinstance(item, (int, float)) for item in value)
        return [value] if numbers else [found for item in value for found in lists(item)]
    return []


def test_a_link_restores_the_view(visit, url, browser):
    page = visit(url)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    see(page)
    page.click("#see-pictures .example >> nth=3")
    page.wait_for_function(f"{STATE}.picture === 'night'")
    ready(page)
    choose(page, "kinds", "CSM")
    ready(page)
    choose(page, "layers", "2")
    choose(page, "quantities", "Gate")
    choose(page, "directions", "↓")
    page.locator(".scan-stage").focus()
    page.keyboard.press("Home")
    page.keyboard.press("Shift+ArrowRight")
    wanted = state(page)
    page.get_by_role("button", name="Copy link").click()
    page.wait_for_function("navigator.clipboard.readText().then(text => text.includes('#scan'))")
    link = page.evaluate("navigator.clipboard.readText()")

    other = visit(url, fragment="#" + link.split("#")[1])
    ready(other)
    other.wait_for_function(f"{STATE}.step === 10")
    assert state(other) == wanted
    assert (wanted["picture"], wanted["kind"], wanted["layer"], wanted["direction"]) == ("night", "csm", 1, 2)


@pytest.mark.parametrize(
    "query", ["kind=zigzag&layer=99&step=-4&patch=1e9", "picture=../../etc/passwd&head=x", "step=${alert(1)}", "%%%"]
)
def test_a_broken_link_opens_the_view_all_the_same(visit, url, query):
    page = visit(url, fragment=f"#scan?{query}")
    ready(page)
    shown = state(page)
    assert shown["kind"] in ("bsm", "csm") and 0 <= shown["step"] < N_PATCHES and shown["layer"] in (0, 1)
    assert shown["picture"] == "meadow"


def test_the_tour(visit, url, expect):
    page = visit(url)
    see(page)
    before = state(page)
    page.get_by_role("button", name="Tour").click()
    card = page.get_by_role("dialog")
    expect(card).to_be_visible()
    seen = []
    for _ in range(20):
        ready(page)
        seen.append(card.inner_text())
        if page.locator('[data-at="tour-next"]').inner_text() in ("Done", "Close", "Finish"):
            break
        page.click('[data-at="tour-next"]')
    assert 6 <= len(seen) == len(set(seen)) <= 10
    text = " ".join(seen)
    assert all(word in text for word in ("patch", "BSM", "CSM", "state"))
    page.keyboard.press("Escape")
    expect(card).to_be_hidden()
    kept = {name: value for name, value in state(page).items() if name != "step"}
    assert kept == {name: value for name, value in before.items() if name != "step"}


def test_another_picture_from_the_tab(visit, url, expect, tmp_path):
    page = visit(url)
    see(page)
    page.set_input_files("#see-pictures input[type=file]", STREET)
    page.wait_for_function(f"{STATE}.picture === null")
    ready(page)
    letter = tmp_path / "letter.jpg"
    letter.write_text("This is a letter, not a picture.\n" * 40)
    page.set_input_files("#see-pictures input[type=file]", letter)
    expect(page.locator("#see-notice .notice.problem")).to_be_visible()
    assert state(page)["picture"] is None


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", ["desktop", "phone"])
def test_looks(visit, url, screenshots, size, theme):
    page = visit(url, theme=theme, **(PHONE if size == "phone" else {}))
    see(page)
    for kind in ("BSM", "CSM", "Compare"):
        choose(page, "kinds", kind)
        ready(page)
        page.screenshot(path=screenshots / f"scan-{kind.lower()}-{size}-{theme}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_reduced_motion(browser, url):
    page = browser.new_context(reduced_motion="reduce").new_page()
    page.goto(url)
    page.wait_for_selector("#examples img")
    see(page)
    at = state(page)["step"]
    page.wait_for_timeout(700)
    assert state(page)["step"] == at
    page.context.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_to_mend(visit, url, theme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = visit(url, theme=theme)

    def check(where: str) -> None:
        # half-way from one colour to another, a contrast is nobody's choice
        page.wait_for_function("!document.getAnimations().some(one => one instanceof CSSTransition)")
        found = [(v["id"], [n["html"] for n in v["nodes"]]) for v in axe.run(page).response["violations"]]
        assert not found, (where, found)

    check("ask")
    see(page)
    page.wait_for_function(f"{STATE}.step === {N_PATCHES - 1}")  # the first play has ended
    check("scan")
    words(page).nth(2).click()
    ready(page)
    check("word")
    choose(page, "kinds", "Compare")
    ready(page)
    page.get_by_role("button", name="Tour").click()
    ready(page)
    check("tour")
