"""The race's tab in a real browser, on measurements of the test's own making. Nothing here asserts a time."""

# ruff: noqa: RUF001  # the page writes ranges and ratios as print does

import json
import re
import time
from pathlib import Path

import pytest
from conftest import serve

ROOT = Path(__file__).resolve().parent.parent
EVIL = "${alert(1)}<img src=x onerror=alert(1)>"
PHONE = {"width": 390, "height": 844}
GET = "document.querySelector('.race-view').raceView.get()"
# texts of the view that reach over the sides of the card they are in
OUTSIDE = """() => [...document.querySelectorAll('.race-view .race-card')].flatMap(card => {
    const { left, right } = card.getBoundingClientRect();
    return [...card.querySelectorAll('text, td, th, li, span, b')].filter(node => {
        const box = node.getBoundingClientRect();
        return box.width > 1 && (box.left < left || box.right > right + 0.5);
    }).map(node => node.textContent);
})"""


def spread(median: float) -> dict[str, float]:
    return {"min": median * 0.8, "median": median, "max": median * 1.25}


def runner(name: str, kind: str, prefill: float, step: float, memory: list[int], shown: bool = True) -> dict:
    said = ["It", " is", " a", " dog", ".", "", " And", " so"]
    return {
        "name": name, "kind": kind, "parameters": 6_328_072, "kernels": f"kernels of {kind}", "mode": "eager",
        "text_shown": shown, "context": 112, "vision_s": spread(0.5), "prefill_s": spread(prefill),
        "first_token_s": spread(0.5 + prefill), "decode_s": spread(step), "tokens_per_s": spread(1 / step),
        "memory": memory,
        "lap": {
            "vision": 0.5, "prefill": 0.5 + prefill, "at": [0.5 + prefill + step * i for i in range(8)],
            "tokens": said if shown else [], "ended": 5,
        },
    }  # fmt: skip


OURS = runner("ML-Mamba tiny", "mamba", 0.25, 0.125, [4_000_000] * 8)
THEIRS = runner("Transformer twin", "transformer", 0.125, 0.5, [1_000_000 * n for n in range(1, 9)])
RACE = {
    "picture": "meadow", "question": "What is this?", "tokens": 8, "context": 112, "repeats": 5,
    "runners": [OURS, THEIRS], "verdict": ["The twin spoke first.", "Then ML-Mamba was 4.0 times faster per token."],
}  # fmt: skip
UNSHOWN = [OURS, runner("Transformer of this shape", "transformer", 0.125, 0.5, [1_000_000] * 8, shown=False)]
NASTY = [part | {"name": EVIL, "lap": part["lap"] | {"tokens": [EVIL] * 8}} for part in (OURS, THEIRS)]
RACES = [
    RACE,
    RACE | {"context": 1024, "runners": UNSHOWN, "verdict": ["It speaks at random."]},
    RACE | {"context": 4096, "question": EVIL, "runners": NASTY, "verdict": [EVIL]},
]


def curve(decode: list[float], prefill: list[float], memory: list[int]) -> list[dict]:
    points = zip((256, 512, 1024, 2048), decode, prefill, memory, strict=True)
    return [{"tokens": n, "decode_s": spread(d), "prefill_s": spread(p), "memory": m} for n, d, p, m in points]


def crowd(decode: list[float]) -> list[dict]:
    return [{"batch": n, "decode_s": spread(d), "memory": 10**6 * n} for n, d in zip((1, 2, 4), decode, strict=True)]


SCALING = {
    "context_for_batches": 256,
    "runners": [
        {
            "name": "ML-Mamba tiny", "kind": "mamba", "batches": crowd([0.004, 0.005, 0.006]),
            "contexts": curve([0.004] * 4, [0.1, 0.2, 0.4, 0.8], [2_000_000] * 4),
        },
        {
            "name": "Transformer twin", "kind": "transformer", "batches": crowd([0.002, 0.003, 0.004]),
            "contexts": curve([0.001, 0.002, 0.004, 0.008], [0.05, 0.1, 0.2, 0.4], [10**6, 2 * 10**6, 10**7, 10**7]),
        },
    ],
    "crossings": [
        {"what": "decode_s", "against": "tokens", "at": 1024.0, "says": "From about 1,000 tokens on, ML-Mamba leads."},
        {"what": "prefill_s", "against": "tokens", "at": None, "says": "The twin is faster up to 2,048 tokens."},
        {"what": "memory", "against": "tokens", "at": 512.0, "says": "From about 510 tokens on, ML-Mamba is smaller."},
        {"what": "decode_s", "against": "batch", "at": None, "says": "The twin is faster up to 4 users."},
    ],
}  # fmt: skip
RECORDED = {
    "machine": {"processor": "Abacus, 2 beads", "gpu": None, "memory": "1 GB", "system": "Wood", "threads": 2,
                "dtype": "float32"},
    "versions": {"python": "3.11", "torch": "2.11"}, "made": "2026-11-01", "command": "python -m mlmamba bench",
    "race": RACE, "races": RACES, "scaling": SCALING,
}  # fmt: skip

# The real page, but what it measures is told beforehand. 128 tokens never end; other numbers go wrong in their ways.
FAKE = """
import json, time
from pathlib import Path
from types import SimpleNamespace
from mlmamba.bench import race, results, rivals, scaling
from mlmamba.errors import UserError
told = json.loads(Path({told!r}).read_text())

def wait(stop):
    try:
        while not stop.is_set():
            yield
            time.sleep(0.05)
    finally:
        Path({freed!r}).write_text("freed")

def run(runners, image, question, *, tokens, context, stop, **rest):
    assert image.width and [runner.name for runner in runners] == ["ML-Mamba tiny", "twin"]
    if context == 4096:
        raise UserError("Choose a shorter context.")
    if context == 1024:
        raise MemoryError if tokens == 128 else AssertionError("a mistake")
    for done in range(4):
        time.sleep(0.1)
        yield {{"type": "progress", "done": done, "of": 4, "what": f"ML-Mamba tiny, run {{done}} of 3"}}
    if tokens == 128:
        for _ in wait(stop):
            pass
        return
    sides = [one | {{"mode": "graph" if runner.graph else "eager"}}
             for one, runner in zip(told["race"]["runners"], runners)]
    found = {{"question": question, "tokens": tokens, "context": 99, "runners": sides}}
    yield {{"type": "result", "race": told["race"] | found}}

def grow(runners, *, stop, **rest):
    full = told["scaling"]
    for n in (1, 2):
        some = [one | {{"contexts": one["contexts"][:n], "batches": []}} for one in full["runners"]]
        yield {{"type": "progress", "done": n, "of": 9, "what": f"ML-Mamba tiny, {{n}} points"}}
        yield {{"type": "point", "scaling": full | {{"runners": some, "crossings": []}}}}
    for _ in wait(stop):
        pass

results.recorded = lambda: [{{key: told[key] for key in told}}]
race.run, scaling.run = run, grow
import page.race

class OurRunner(SimpleNamespace):
    def __init__(self, model, name, connector=None):
        super().__init__(name=name, trained=True)

    def launched(self, graph):
        self.graph = graph
        return self

page.race.OurRunner = OurRunner
rivals.find = lambda model: OurRunner(model, "twin")
"""


@pytest.fixture
def expect():
    return pytest.importorskip("playwright.sync_api").expect


@pytest.fixture(scope="module")
def freed(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("race") / "freed"


@pytest.fixture(scope="module")
def race_url(freed):
    told = freed.parent / "told.json"
    told.write_text(json.dumps(RECORDED), encoding="utf-8")
    with serve("tiny", freed.parent / "log", FAKE.format(told=str(told), freed=str(freed))) as address:
        yield address


def open_race(page) -> None:
    page.click('[role=tab]:has-text("Race")')
    page.wait_for_selector(".race-view .race-lane")


def at(page, name: str):
    return page.locator(f'.race-view [data-at="{name}"]')


def choose(page, group: str, name: str) -> None:
    """A radio button of the view by its group and label."""
    at(page, group).locator("label").filter(has_text=re.compile(f"^{re.escape(name)}$")).click()


def show(page, context: str) -> None:
    """Another of the recorded races, by its context."""
    option = at(page, "source").locator("option").filter(has_text=re.compile(f"^{context} tokens"))
    at(page, "source").select_option(option.get_attribute("value"))


def go_to(page, seconds: float) -> None:
    """Drag the replay to a time."""
    page.evaluate(
        """seconds => {
            const scrub = document.querySelector('.race-scrub');
            scrub.value = Math.round(1000 * seconds / 4.125); // of the longer lap
            scrub.dispatchEvent(new Event('input'));
        }""",
        seconds,
    )


def wait_for(file: Path) -> None:
    """Until the server has written a file."""
    for _ in range(600):
        if file.exists():
            return
        time.sleep(0.1)
    raise AssertionError(f"{file} was never written")


def said(page, lane: int) -> list[str]:
    return page.locator(".race-lane").nth(lane).locator(".race-token:not(.race-unwritten)").all_text_contents()


def rows(page, table: str) -> list[list[str]]:
    """A table's cells as they read."""
    lines = at(page, table).locator("tbody tr").all()
    return [[" ".join(cell.split()) for cell in line.locator("th, td").all_inner_texts()] for line in lines]


def test_it_opens_on_a_recorded_race(visit, race_url, expect):
    page = visit(race_url)
    open_race(page)
    assert at(page, "verdict").locator("li").all_inner_texts() == RACE["verdict"]
    expect(at(page, "asked")).to_have_text("“What is this?”")
    expect(at(page, "about")).to_contain_text("A recorded race · 8 tokens each · after 112 tokens of context")
    expect(at(page, "picture")).to_be_visible()
    facts = at(page, "facts").inner_text()
    for fact in ("Abacus", "1 GB", "float32", "kernels of mamba, eager", "kernels of transformer", "torch 2.11"):
        assert fact in facts, facts
    assert "recorded on 2026-11-01, not live" in facts
    expect(at(page, "replay")).to_contain_text("Replay of the measured runs, recorded one after the other")
    assert at(page, "source").locator("option").count() == 3


def test_the_table_has_medians_ranges_and_who_leads(visit, race_url):
    page = visit(race_url)
    open_race(page)
    assert rows(page, "table") == [
        ["Vision", "500 ms (400–625)", "500 ms (400–625)", "equal"],
        ["Prefill", "250 ms (200–313)", "125 ms (100–156)", "Transformer twin: 2.00× faster"],
        [
            "Time to first token",
            "750 ms (600–938)",
            "625 ms (500–781)",
            "Transformer twin: 1.20× sooner ranges overlap",
        ],
        ["Decode, per token", "125 ms (100–156)", "500 ms (400–625)", "ML-Mamba tiny: 4.00× faster"],
        ["Tokens per second", "8 (6.4–10)", "2 (1.6–2.5)", "ML-Mamba tiny: 4.00× faster"],
        ["Memory at the end", "4 MB", "8 MB", "ML-Mamba tiny: 2.00× less"],
    ]


def test_graphs_can_be_chosen_where_there_are_any(visit, race_url, expect):
    page = visit(race_url)
    open_race(page)
    expect(at(page, "question")).not_to_be_empty()
    expect(at(page, "launch-field")).to_be_hidden()  # this server has no CUDA
    page.evaluate("""() => document.querySelector('.race-view').raceView.receive(
        { subject: { question: 'Why?', whose: 'yours', graphs: true } })""")
    choose(page, "launches", "graph")
    page.click("text=Race now")
    expect(at(page, "about")).to_contain_text("after 99 tokens of context · CUDA graphs · median")
    assert "kernels of mamba, graph" in at(page, "facts").inner_text()
    expect(at(page, "source").locator("option").last).to_contain_text("99 tokens of context, CUDA graphs, measured")


def test_the_replay_shows_what_was_there_at_each_moment(visit, race_url, expect):
    page = visit(race_url)
    open_race(page)
    state = page.locator(".race-lane .race-state")
    go_to(page, 0.3)
    assert [said(page, 0), said(page, 1)] == [[], []]
    assert state.all_inner_texts() == ["looking at the picture"] * 2
    assert page.locator(".race-bytes").all_inner_texts() == ["nothing yet"] * 2
    go_to(page, 0.7)
    assert [said(page, 0), said(page, 1)] == [[], ["It"]]
    assert state.all_inner_texts() == ["reading 112 tokens", "token 1 of 8"]
    go_to(page, 1.15)
    assert said(page, 0) == ["It", " is", " a", " dog"] and said(page, 1) == ["It", " is"]
    assert page.locator(".race-bytes").all_inner_texts() == ["4\u00a0MB", "2\u00a0MB"]
    widths = [bar.bounding_box()["width"] for bar in page.locator(".race-gauge-fill").all()]
    whole = page.locator(".race-gauge").first.bounding_box()["width"]
    assert widths == pytest.approx([whole / 2, whole / 4], abs=1)
    go_to(page, 4.125)
    assert state.all_inner_texts() == ["done after 1.63\u00a0s", "done after 4.13\u00a0s"]
    after = page.locator(".race-lane").first.locator(".race-token.race-after").all_text_contents()
    assert after == ["", " And", " so"]
    expect(page.locator(".race-lane").first).to_contain_text("after its end, for timing alone")


def test_play_pause_and_keys(visit, race_url):
    page = visit(race_url)
    open_race(page)
    scrub = at(page, "scrub")
    scrub.focus()
    page.keyboard.press("Home")
    state = page.evaluate(GET)
    assert state["time"] == 0 and not state["playing"]
    page.keyboard.press("ArrowRight")  # both have seen the picture
    assert page.evaluate(GET)["time"] == 0.5 and scrub.get_attribute("aria-valuetext") == "0.50 of 4.13\u00a0s"
    page.keyboard.press("ArrowRight")
    assert page.evaluate(GET)["time"] == 0.625
    page.keyboard.press("ArrowLeft")
    assert page.evaluate(GET)["time"] == 0.5
    choose(page, "speeds", "¼×")
    at(page, "play").click()
    page.wait_for_function(f"{GET}.time > 0.55")
    at(page, "play").click()
    state = page.evaluate(GET)
    page.wait_for_timeout(200)
    assert page.evaluate(GET)["time"] == state["time"] and state["speed"] == 0.25
    page.keyboard.press("Tab")
    scrub.focus()
    page.keyboard.press("End")
    assert page.evaluate(GET)["time"] == 4.125


def test_random_weights_show_a_count_and_no_text(visit, race_url, expect):
    page = visit(race_url)
    open_race(page)
    show(page, "1,024")
    expect(at(page, "verdict")).to_have_text("It speaks at random.")
    go_to(page, 4.125)
    expect(page.locator(".race-lane").nth(1)).to_contain_text("8 tokens so far; its weights are random")
    assert page.locator(".race-lane").nth(1).locator(".race-token").count() == 0


def test_text_is_never_markup_or_template(visit, race_url, expect):
    page = visit(race_url)
    page.evaluate("() => { window.alert = () => { window.hacked = true } }")
    open_race(page)
    show(page, "4,096")
    expect(at(page, "verdict").locator("li")).to_have_text(EVIL)
    expect(at(page, "asked")).to_have_text(f"“{EVIL}”")
    go_to(page, 4.125)
    assert said(page, 0) == [EVIL] * 8
    assert page.locator(".race-lane img, .race-verdict ul img, .race-table img").count() == 0
    assert page.evaluate("window.hacked") is None


def test_a_race_here(visit, race_url, expect):
    page = visit(race_url)
    open_race(page)
    expect(at(page, "question")).to_have_text("“What is this?”")
    choose(page, "tokens", "64")
    at(page, "race-go").click()
    expect(at(page, "race-stop")).to_be_visible()
    expect(at(page, "race-doing")).to_contain_text(re.compile(r"\d of 4: ML-Mamba tiny, run \d of 3"))
    expect(at(page, "about")).to_contain_text("Raced here, live · 64 tokens each")
    expect(at(page, "race-go")).to_be_enabled()
    expect(at(page, "source").locator("option:checked")).to_have_text(re.compile(r"^99 tokens .* measured here at \d"))
    facts = at(page, "facts").inner_text()
    assert "live on this server" in facts and "float32" in facts and "Abacus" not in facts
    assert at(page, "source").locator("option").count() == 4  # the recorded ones stay
    show(page, "112")
    expect(at(page, "about")).to_contain_text("A recorded race")


def test_the_visitors_picture_is_raced(visit, race_url, expect):
    page = visit(race_url)
    page.click("#examples .example >> nth=2")
    page.wait_for_selector("#picture img")
    open_race(page)
    expect(at(page, "question")).to_have_text("“What colour are the cars?”")
    at(page, "race-go").click()
    expect(at(page, "asked")).to_have_text("“What colour are the cars?”")
    expect(at(page, "picture")).to_have_attribute("alt", re.compile("street"))


def test_a_race_can_be_stopped_and_another_started(visit, race_url, expect, freed):
    page = visit(race_url)
    open_race(page)
    freed.unlink(missing_ok=True)
    choose(page, "tokens", "128")
    at(page, "race-go").focus()
    page.keyboard.press("Enter")
    expect(at(page, "race-doing")).to_contain_text("3 of 4")
    expect(at(page, "race-stop")).to_be_focused()
    page.keyboard.press("Enter")
    expect(at(page, "race-go")).to_be_focused()
    expect(at(page, "status")).to_contain_text("Stopped")
    wait_for(freed)
    expect(at(page, "about")).to_contain_text("A recorded race")
    choose(page, "tokens", "32")
    at(page, "race-go").click()
    expect(at(page, "about")).to_contain_text("Raced here, live · 32 tokens each")


def test_who_leaves_ends_the_race(browser, race_url, expect, freed):
    page = browser.new_context().new_page()  # of its own: Gradio notes in the console that its stream was cut
    page.goto(race_url)
    page.wait_for_selector("#examples img", state="attached")
    open_race(page)
    freed.unlink(missing_ok=True)
    choose(page, "tokens", "128")
    at(page, "race-go").click()
    expect(at(page, "race-doing")).to_contain_text("3 of 4")
    page.context.close()
    wait_for(freed)


@pytest.mark.parametrize(
    ("context", "tokens", "sentence"),
    [
        ("4,096", "64", "Choose a shorter context."),
        ("1,024", "64", "The server failed"),
        ("1,024", "128", "The memory is too small for both"),
    ],
)
def test_what_goes_wrong_is_said_in_a_sentence(visit, race_url, expect, context, tokens, sentence):
    page = visit(race_url)
    open_race(page)
    choose(page, "contexts", context)
    choose(page, "tokens", tokens)
    at(page, "race-go").click()
    expect(at(page, "notice")).to_contain_text(sentence)
    expect(at(page, "race-go")).to_be_enabled()
    at(page, "notice-close").click()
    expect(at(page, "notice")).to_be_hidden()


def test_scaling_as_chart_words_and_table(visit, race_url, expect):
    page = visit(race_url)
    open_race(page)
    choose(page, "modes", "Scaling")
    expect(at(page, "crossing")).to_have_text("From about 1,000 tokens on, ML-Mamba leads.")
    expect(at(page, "chart")).to_contain_text("they cross at about 1,000")
    assert page.locator(".race-plot .race-ring").count() == 1
    labels = [point.get_attribute("aria-label") for point in page.locator(".race-point").all()]
    assert len(labels) == 8
    assert labels[0] == "ML-Mamba tiny, 256 tokens of context: 4\u00a0ms (3.2–5)"
    assert labels[-1] == "Transformer twin, 2,048 tokens of context: 8\u00a0ms (6.4–10)"
    ticks = page.locator(".race-plot .race-tick").all_text_contents()
    assert {"256", "512", "1k", "2k"} <= set(ticks) and any(tick.endswith("ms") for tick in ticks)
    page.click(".race-numbers summary")
    assert rows(page, "scaling-table")[0] == ["256", "4 ms (3.2–5)", "1 ms (0.8–1.25)"]

    choose(page, "whats", "Prefill time")
    expect(at(page, "crossing")).to_have_text("The twin is faster up to 2,048 tokens.")
    assert page.locator(".race-plot .race-crossing").count() == 0
    choose(page, "whats", "Memory")
    assert rows(page, "scaling-table")[-1] == ["2,048", "2 MB", "10 MB"]
    choose(page, "againsts", "Batch")
    assert [row[0] for row in rows(page, "scaling-table")] == ["1", "2", "4"]
    expect(at(page, "whats").locator("input").nth(1)).to_be_disabled()
    expect(at(page, "scaling-about")).to_contain_text("each conversation with 256 tokens")


def test_points_tell_their_numbers(visit, race_url, expect):
    page = visit(race_url)
    open_race(page)
    choose(page, "modes", "Scaling")
    tip = page.locator(".race-tip")
    dot = page.locator(".race-point .race-dot").nth(5).bounding_box()
    page.mouse.move(dot["x"] + 7, dot["y"] - 5)
    expect(tip).to_contain_text("Transformer twin")
    expect(tip).to_contain_text("512 tokens of context")
    page.mouse.move(5, 5)
    expect(tip).to_be_hidden()
    page.locator(".race-point").first.focus()
    page.keyboard.press("ArrowRight")
    expect(tip).to_contain_text("512 tokens of context")
    page.keyboard.press("ArrowUp")
    expect(tip).to_contain_text("Transformer twin")
    page.keyboard.press("End")
    expect(page.locator(".race-point").last).to_be_focused()


def test_measuring_here_shows_points_as_they_come(visit, race_url, expect, freed):
    page = visit(race_url)
    open_race(page)
    freed.unlink(missing_ok=True)
    choose(page, "modes", "Scaling")
    at(page, "scaling-go").click()
    expect(at(page, "scaling-doing")).to_contain_text("2 of 9: ML-Mamba tiny, 2 points")
    expect(page.locator(".race-point")).to_have_count(4)
    choose(page, "modes", "Race")
    expect(at(page, "race-go")).to_be_disabled()  # one thing at a time
    choose(page, "modes", "Scaling")
    at(page, "scaling-stop").click()
    expect(at(page, "scaling-go")).to_be_enabled()
    expect(page.locator(".race-point")).to_have_count(4)
    expect(at(page, "source").locator("option:checked")).to_have_text("Measured here, not to its end")
    at(page, "source").select_option("0")
    expect(page.locator(".race-point")).to_have_count(8)
    wait_for(freed)


def test_reduced_motion(browser, race_url):
    page = browser.new_context(reduced_motion="reduce").new_page()
    page.goto(race_url)
    page.wait_for_selector("#examples img")
    open_race(page)
    state = page.evaluate(GET)
    assert state["time"] == state["length"] and not state["playing"]
    page.context.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", ["desktop", "phone"])
def test_looks(visit, race_url, screenshots, size, theme):
    page = visit(race_url, theme=theme, **(PHONE if size == "phone" else {}))
    open_race(page)
    for mode in ("Race", "Scaling"):
        choose(page, "modes", mode)
        page.screenshot(path=screenshots / f"{mode.lower()}-{size}-{theme}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.evaluate(OUTSIDE) == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_to_mend(visit, race_url, theme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = visit(race_url, theme=theme)

    def check(where: str) -> None:
        # half-way from one colour to another, a contrast is nobody's choice
        page.wait_for_function("!document.getAnimations().some(one => one instanceof CSSTransition)")
        found = [(v["id"], [n["html"] for n in v["nodes"]]) for v in axe.run(page).response["violations"]]
        assert not found, (where, found)

    open_race(page)
    go_to(page, 4.125)
    check("race")
    choose(page, "tokens", "128")
    at(page, "race-go").click()
    page.wait_for_selector('[data-at="race-doing"]:has-text("3 of 4")')
    check("under way")
    at(page, "race-stop").click()
    choose(page, "modes", "Scaling")
    page.click(".race-numbers summary")
    page.locator(".race-point").first.focus()
    check("scaling")


def test_a_real_race(visit, url, expect):
    page = visit(url)
    page.click('[role=tab]:has-text("Race")')
    page.wait_for_selector('.race-view [data-at="race-go"]')
    at(page, "race-go").click()
    expect(at(page, "about")).to_contain_text("Raced here, live · 32 tokens each")
    assert at(page, "verdict").locator("li").count() >= 2
    assert len(rows(page, "table")) == 6
    at(page, "scrub").focus()
    page.keyboard.press("End")
    assert page.locator(".race-lane .race-state").all_inner_texts()[0].startswith("done after")
    choose(page, "modes", "Scaling")
    at(page, "scaling-go").click()
    page.wait_for_selector(".race-point >> nth=3", state="attached")
    at(page, "scaling-stop").click()
    expect(at(page, "scaling-go")).to_be_enabled()
