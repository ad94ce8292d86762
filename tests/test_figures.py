"""Exports of the scan view: figures, animations, numbers, and the view as one file; on numbers known beforehand."""

import io
import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.text import Text
from PIL import Image

from mlmamba import UserError
from visualize import __main__ as command_line
from visualize import animation, figures, layout, shown, standalone
from visualize.trace import NAMES, QUANTITIES, Answer, Keys, Trace, View, Word

ROWS, COLS = 3, 4
PATCHES = ROWS * COLS
STATE = NAMES.index("state")
EVIL = "$x^2$ ${alert(1)}<img src=x onerror=alert(1)></script><script>alert(2)</script> \ud800 \x00 😀 {{value}}"
ORDERS = {  # by hand, row by row: 0 1 2 3 / 4 5 6 7 / 8 9 10 11
    "bsm": [list(range(12)), list(range(11, -1, -1))],
    "csm": [
        list(range(12)),
        list(range(11, -1, -1)),
        [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11],
        [11, 7, 3, 10, 6, 2, 9, 5, 1, 8, 4, 0],
    ],
}


def make(kind: str = "csm", text: str = "Yes, there is.", **changes) -> Trace:
    """A trace whose state is 10 · direction + patch in layer 0, and thrice that in layer 1; 2 heads, mean first."""
    orders = np.array(ORDERS[kind])
    d, n, heads = len(orders), 3, 2
    rng = np.random.default_rng(7)
    maps = rng.uniform(0.1, 1, (1 + heads, 2, d, len(NAMES), PATCHES)).astype(np.float32)
    for direction, order in enumerate(orders):
        maps[:, 0, direction, STATE] = 10 * direction + order
        maps[:, 1, direction, STATE] = 3 * (10 * direction + order)
    size = {"B": (d, PATCHES, n), "C": (d, PATCHES, n), "dt": (d, PATCHES, heads), "x": (d, PATCHES, heads)}
    parts = {name: rng.uniform(0.1, 1, shape).astype(np.float32) for name, shape in size.items()}
    keys = Keys(A=np.full((d, heads), -0.5, np.float32), **parts)
    words = tuple(
        Word(word, rng.uniform(0.01, 1, (2, 4, PATCHES)).astype(np.float32)) for word in text.split(" ") if word
    )
    whole = Trace(
        model="made up",
        kind=kind,
        kinds=("bsm", "csm"),
        trained=True,
        grid=(ROWS, COLS),
        orders=orders,
        maps=maps,
        keys=(keys, keys),
        image=Image.new("RGB", (200, 120), (90, 120, 160)),
        picture="sea",
        answer=Answer("Is there a boat?", text, words),
    )
    return replace(whole, **changes)


@pytest.fixture(scope="module")
def traces() -> dict[str, Trace]:
    return {"bsm": make("bsm"), "csm": make("csm")}


VIEWS = {
    "all": View(kind="csm", step=11),
    "all of BSM, head 2": View(kind="bsm", quantity="gate", step=5, head=1),
    "one": View(kind="csm", direction=2, step=4),
    "merged": View(kind="csm", direction="merged", quantity="decay", step=8),
    "path": View(kind="csm", quantity="path", step=7),
    "one path": View(kind="bsm", quantity="path", step=7, direction=1),
    "merged path": View(kind="bsm", quantity="path", step=7, direction="merged"),
    "influence": View(kind="csm", patch=6, layer=1),
    "one influence": View(kind="bsm", patch=6, direction=0, head=0),
    "merged influence": View(kind="csm", patch=0, direction="merged"),
    "word": View(kind="csm", word=1),
    "word through, layer 3": View(kind="bsm", word=0, word_layer=2, through=True),
    "compare": View(kind="compare", step=11),
    "compare paths": View(kind="compare", quantity="path"),
    "compare influence": View(kind="compare", patch=5),
    "compare words": View(kind="compare", word=2, through=True),
}


def cell(image: np.ndarray, box, patch: int, right: float = 0.2, down: float = 0.2) -> tuple[int, int, int]:
    """The pixel at a place in a patch's cell (away from its middle, where the path runs), of axes at `box`."""
    height, width = image.shape[:2]
    row, col = divmod(patch, COLS)
    x = (box.x0 + box.width * (col + right) / COLS) * width
    y = (1 - box.y1 + box.height * (row + down) / ROWS) * height
    return tuple(int(part) for part in image[int(y), int(x), :3])


def pixels(view: View, traces: dict[str, Trace]):
    """A drawn figure as numbers, and the boxes of its axes: the panels come first, in their order."""
    figure = figures.draw(view, traces)
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba()), [axes.get_position() for axes in figure.axes]


def near(found, expected, within: int = 3) -> bool:
    return max(abs(int(a) - int(b)) for a, b in zip(found, expected, strict=True)) <= within


@pytest.mark.parametrize("name", VIEWS)
def test_every_view_can_be_drawn(name, traces):
    sheet = layout.plot(VIEWS[name], traces, *layout.SCREEN)
    image = sheet.pixels()
    assert image.width == 720 and 300 < image.height < 1000, image.size
    assert len(image.getcolors(1 << 22) or ()) > 50
    texts = [text for text in sheet.figure.texts if text.get_text()]
    boxes = [text.get_window_extent() for text in texts]
    for text, box in zip(texts, boxes, strict=True):
        assert box.x0 >= 0 and box.x1 <= 720, f"{text.get_text()!r} leaves the page"
    for i, box in enumerate(boxes):
        for j in range(i):
            overlap = box.overlaps(boxes[j]) and min(box.y1, boxes[j].y1) - max(box.y0, boxes[j].y0) > 3
            assert not overlap, f"{texts[i].get_text()!r} lies on {texts[j].get_text()!r}"


def test_a_picture_for_print_is_2000_pixels_wide(traces):
    image = Image.open(io.BytesIO(figures.png(VIEWS["all"], traces)))
    assert image.format == "PNG" and image.width == 2000 and 800 < image.height < 2000, image.size


def test_a_patch_has_its_values_colour(traces):
    image, boxes = pixels(View(kind="csm", step=11), traces)
    palette = colormaps["cividis"]
    for direction in range(4):
        for patch in range(PATCHES):
            expected = np.array(palette((10 * direction + patch) / 41)[:3]) * 255  # 41: patch 11 of the last direction
            found = cell(image, boxes[direction], patch)
            assert near(found, expected), (direction, patch, found, expected)
    for patch in range(PATCHES):  # merged: the mean of 0, 10, 20 and 30, and the patch
        expected = np.array(palette((15 + patch) / 41)[:3]) * 255
        assert near(cell(image, boxes[4], patch), expected), patch


def test_what_is_not_yet_read_stays_picture(traces):
    image, boxes = pixels(View(kind="csm", step=4), traces)
    for direction, read in enumerate(([0, 1, 2, 3, 4], [11, 10, 9, 8, 7], [0, 4, 8, 1, 5], [11, 7, 3, 10, 6])):
        for patch in range(PATCHES):
            r, g, b = cell(image, boxes[direction], patch)
            assert (r == g == b) == (patch not in read), (direction, patch, (r, g, b))


def test_words_are_linear_from_0_and_influence_spans_3_decades(traces):
    word, influence = (
        shown.Shown.of(View(kind="csm", **chosen), traces["csm"]) for chosen in ({"word": 1}, {"patch": 6})
    )
    scale = shown.Scale.of([word])
    assert (scale.low, scale.high, scale.log) == (0, word.merged.max(), False) and "linear from 0" in word.measure
    scale = shown.Scale.of([influence])
    assert scale.log and scale.high == 1000 * scale.low and "log scale, 3 decades" in influence.measure
    for quantity in QUANTITIES:
        show = shown.Shown.of(View(kind="csm", quantity=quantity.name), traces["csm"])
        assert shown.Scale.of([show]).log == quantity.log == ("log scale" in show.measure), quantity.name


def test_influence_leaves_patches_to_come_alone_and_outlines_the_chosen_one(traces):
    image, boxes = pixels(View(kind="csm", patch=5), traces)
    for direction, earlier in enumerate(([0, 1, 2, 3, 4], [11, 10, 9, 8, 7, 6], [0, 4, 8, 1], [11, 7, 3, 10, 6, 2, 9])):
        for patch in set(range(PATCHES)) - {5}:
            r, g, b = cell(image, boxes[direction], patch, 0.5, 0.5)
            assert (r == g == b) == (patch not in earlier), (direction, patch, (r, g, b))
        assert max(cell(image, boxes[direction], 5, 0.0, 0.5)) < 60, "a dark outline on the cell's left edge"


def test_the_difference_is_white_where_the_two_agree():
    bsm, csm = make("bsm"), make("csm")
    bsm.maps[:, 0, :, STATE] = 5
    csm.maps[:, 0, :, STATE] = 5
    csm.maps[:, 0, 0, STATE, 2] = 25  # patch 2: the mean of 25, 5, 5 and 5 is 10
    bsm.maps[:, 0, :, STATE, 11] = 5
    image, boxes = pixels(View(kind="compare"), {"bsm": bsm, "csm": csm})
    assert near(cell(image, boxes[2], 2), np.array(colormaps["PuOr"](1.0)[:3]) * 255)
    for patch in set(range(PATCHES)) - {2}:
        assert min(cell(image, boxes[2], patch)) > 240, patch
    told = json.loads(figures.numbers(View(kind="compare"), {"bsm": bsm, "csm": csm}))["difference"]
    assert told["largest_difference"] == 5 and told["largest_at"] == 2
    assert told["mean_difference"] == pytest.approx(5 / 12)
    assert told["correlation"] is None, "a flat map correlates with nothing"
    assert told["csm_minus_bsm"] == [0, 0, 5] + 9 * [0]


def test_any_text_stays_text(traces):
    evil = make("csm", EVIL, picture=EVIL, model=EVIL, answer=replace(make(text=EVIL).answer, question=EVIL * 40))
    both = {"bsm": make("bsm", EVIL), "csm": evil}
    for view in (View(kind="csm", word=0), View(kind="compare", word=1)):
        figure = layout.plot(view, both, *layout.SCREEN).figure
        figure.canvas.draw()
        drawn = [text.get_text() for text in figure.findobj(Text)]
        assert any("$x^2$" in text for text in drawn) and any("${alert(1)}<img" in text for text in drawn), drawn
        assert not any(text.get_parse_math() for text in figure.texts)
    name, _, data = figures.export(View(kind="csm", word=0), both, "json")
    assert re.fullmatch(r"[a-z0-9-]+\.json", name) and len(name) < 200, name
    json.loads(data.decode("utf-8"))


def test_odd_pictures_and_numbers_are_drawn():
    odd = make("csm", image=Image.new("RGB", (3, 400)))
    odd.maps[:, :, :, STATE] = 2  # flat: no colour scale to speak of
    odd.maps[:, :, 0, STATE, 3] = np.nan
    wide = replace(odd, image=Image.new("L", (500, 4)))
    for trace in (odd, wide):
        for view in (View(kind="csm", step=3), View(kind="csm", direction=0), View(kind="csm", patch=0)):
            sheet = layout.plot(view, {"csm": trace}, *layout.SCREEN)
            assert sheet.pixels().width == 720
    merged = json.loads(figures.numbers(View(kind="csm"), {"csm": odd}))["connectors"][0]["directions"][0]["along"]
    assert merged[3] is None and merged[4] == 2


def test_untrained_csm_says_so_and_compares_without_an_answer():
    both = {"bsm": make("bsm"), "csm": make("csm", trained=False, answer=None)}
    texts = [text.get_text() for text in layout.plot(View(kind="compare", word=0), both, *layout.SCREEN).figure.texts]
    assert any("never trained" in text for text in texts) and any("no answer" in text for text in texts)
    with pytest.raises(UserError):
        figures.draw(View(kind="csm", word=0), both)


@pytest.mark.parametrize("format", ["gif", "webp"])
def test_an_animation_runs_over_the_scan_and_loops(format, traces):
    views = (View(kind="csm"), View(kind="bsm", quantity="path", direction=0), View(kind="compare", word=0))
    for view in views if format == "gif" else views[:1]:
        image = Image.open(io.BytesIO(figures.animation(view, traces, format)))
        assert image.format == format.upper() and image.width == 720
        assert 1 < image.n_frames <= 60 and image.info["loop"] == 0
        first = image.convert("RGB")
        image.seek(image.n_frames - 1)
        changed = np.abs(np.asarray(first, int) - np.asarray(image.convert("RGB"), int)).max(axis=2) > 40
        assert changed.mean() > 0.01, (view, changed.mean())
    assert len(list(animation.frames(View(kind="csm"), traces))) == PATCHES, "a frame a step, where there are few"


def test_frames_grow_with_the_scan(traces):
    grey = []
    for frame in animation.frames(View(kind="csm", direction=0), traces):
        part = np.asarray(frame, int)[130:300, 60:420]  # inside the map
        grey.append((np.ptp(part, axis=2) == 0).mean())
    assert grey == sorted(grey, reverse=True), grey
    assert grey[0] > 0.75 > 0.1 > grey[-1], grey


def test_numbers_are_those_of_the_trace(traces):
    view = View(kind="csm", layer=1, step=3)
    found = json.loads(figures.numbers(view, traces).decode("utf-8"))
    (csm,) = found["connectors"]
    for d, part in enumerate(csm["directions"]):
        assert part["order"] == ORDERS["csm"][d]
        assert part["patches"] == [3 * (10 * d + patch) for patch in range(PATCHES)]
        assert part["along"] == [3 * (10 * d + patch) for patch in ORDERS["csm"][d]]
    assert csm["merged"] == [3 * (15 + patch) for patch in range(PATCHES)]
    assert found["view"]["layer"] == 1 and found["quantity"]["symbol"] == "‖H‖" and found["model"] == "made up"
    assert re.fullmatch(r"\d+\.\d+\.\d+", found["version"]) and "H_t" in found["formula"]
    influence = json.loads(figures.numbers(View(kind="csm", patch=5, head=1), traces))["connectors"][0]
    np.testing.assert_allclose(influence["merged"], traces["csm"].influence(0, 1, None, 5), rtol=1e-6)
    word = json.loads(figures.numbers(View(kind="bsm", word=2, word_layer=1, through=True), traces))["connectors"][0]
    np.testing.assert_allclose(word["merged"], traces["bsm"].answer.words[2].maps[1, 2], rtol=1e-6)
    assert word["word"] == "is."


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1, "1"), (12345.6, "12300"), (0.00123456, "0.00123"), (-2.5, "−2.5"), (1e-7, "1.00×10⁻⁷"),  # noqa: RUF001
     (3.2e9, "3.20×10⁹"), (99.96, "100"), (0.9996, "1"), (float("nan"), "none")],  # noqa: RUF001
)  # fmt: skip
def test_numbers_as_people_read_them(value, text):
    assert shown.number(value) == text


def test_exports_have_names_and_types(traces):
    view = View(kind="csm", layer=1)
    for format, type, start in (("png", "image/png", b"\x89PNG"), ("json", "application/json", b"{"),
                                ("gif", "image/gif", b"GIF8"), ("webp", "image/webp", b"RIFF")):  # fmt: skip
        name, mime, data = figures.export(view, traces, format)
        assert (name, mime) == (f"scan-made-up-csm-sea-layer-2-state.{format}", type)
        assert data.startswith(start)
    for wrong in ("svg", "", "PNG", EVIL):
        with pytest.raises(UserError, match=r"PNG, GIF, WebP or JSON\.$"):
            figures.export(view, traces, wrong)
    for beyond in (View(kind="csm", layer=2), View(kind="csm", word=9), View(kind="compare", word=0, word_layer=3)):
        with pytest.raises(UserError):
            figures.export(beyond, traces, "png")
    with pytest.raises(UserError, match="BSM"):
        figures.export(View(kind="compare"), {"csm": traces["csm"]}, "png")


def test_threads_draw_the_same(traces):
    def drawn(_: int) -> bytes:
        return layout.plot(VIEWS["one"], traces, *layout.SCREEN).pixels().tobytes()

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(drawn, range(8))) == {drawn(0)}


# The view as one file


@pytest.fixture(scope="module")
def evil_file(tmp_path_factory):
    trace = {kind: make(kind, EVIL, picture=EVIL, model=EVIL) for kind in ("bsm", "csm")}
    trace["csm"] = replace(trace["csm"], answer=replace(trace["csm"].answer, question=EVIL))
    file = tmp_path_factory.mktemp("standalone") / "scan.html"
    file.write_bytes(standalone.page(trace, View(kind="csm", step=5)).encode("utf-8", "replace"))
    return file


def test_a_file_has_its_texts_escaped(evil_file):
    text = evil_file.read_text(encoding="utf-8")
    data = re.findall(r'<script type="application/json" id="([a-z-]+)">(.*?)</script>', text, re.DOTALL)
    assert [name for name, _ in data] == ["scan-payloads", "scan-view"]
    payloads = json.loads(data[0][1])
    assert payloads["csm"]["answer"]["question"].startswith("$x^2$ ${alert(1)}<img src=x")
    assert set(payloads["bsm"]["parts"]) == {"maps/mean", "maps/0", "maps/1", "keys/0", "keys/1"}
    assert len(payloads["csm"]["answer"]["maps"]) == len(payloads["csm"]["answer"]["words"])
    assert "<img" not in text and "alert(2)</script>" not in text
    assert not re.search(r"""(?:src|href)=["']?https?://(?!arxiv\.org)""", text), "nothing from elsewhere"


def test_a_file_opens_from_disk(browser, evil_file, screenshots):
    context = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    page, wrong = context.new_page(), []
    page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("dialog", lambda dialog: (wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    local = ("file:", "data:", "blob:")
    page.on("request", lambda r: None if r.url.startswith(local) else wrong.append(f"request: {r.url}"))
    page.goto(evil_file.as_uri())
    page.wait_for_function("document.querySelector('.scan-view')?.scanView?.get().kind === 'csm'")
    assert "$x^2$ ${alert(1)}<img src=x" in page.title()
    assert "$x^2$ ${alert(1)}<img src=x" in page.inner_text("h1")
    assert page.evaluate("document.querySelector('.scan-view').scanView.get().step") == 5
    coloured = """() => [...document.querySelectorAll('.scan-view canvas')].some((canvas) => {
      if (!canvas.width || !canvas.height || !canvas.getContext('2d')) return false;
      const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
      const seen = new Set();
      for (let i = 0; i < data.length; i += 4) seen.add(data[i] << 16 | data[i + 1] << 8 | data[i + 2]);
      return canvas.width > 100 && seen.size > 5;
    })"""
    page.wait_for_function(coloured)
    link = page.evaluate("document.querySelector('.scan-view').scanView.set({kind: 'bsm', word: 0}), location.href")
    assert link.startswith("file:")
    page.wait_for_function("document.querySelector('.scan-view').scanView.get().word === 0")
    assert page.evaluate("document.querySelectorAll('.scan-view img, .scan-view script').length") == 0
    page.screenshot(path=str(screenshots / "standalone.png"), full_page=True)
    page.goto(evil_file.as_uri() + "#scan?kind=csm&layer=1&quantity=delta&direction=2&step=7&through=false")
    page.reload()
    page.wait_for_function("document.querySelector('.scan-view')?.scanView?.get().quantity === 'delta'")
    page.wait_for_function(coloured)
    view = page.evaluate("document.querySelector('.scan-view').scanView.get()")
    assert (view["kind"], view["layer"], view["direction"], view["step"]) == ("csm", 1, 2, 7), view
    context.close()
    assert not wrong, wrong


def test_no_script_can_end_its_element():
    assert "</script" not in standalone.closed("const a = '</script><!-- <SCRIPT';").lower()
    assert "a < b" in standalone.closed("if (a < b) c();")
    with pytest.raises(UserError):
        standalone.page({})


# The command line


def test_the_command_line_says_what_is_wrong(tmp_path, capsys):
    assert command_line.main(["export", str(tmp_path / "no" / "out.html"), "picture.jpg"]) == 1
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and "There is no folder" in said.err and not said.out
