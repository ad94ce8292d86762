"""How fast the scan view is: frames while it plays, the cost of a scrub, bytes of a payload, seconds of a replay.

    python -m benchmarks.scan_view [--grid 27] [--kind csm] [--seconds 6]

Draws in headless Chromium without a GPU; times are requestAnimationFrame's. The model is the tiny one, on a picture
large enough for the grid.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

import mlmamba
from mlmamba.config import VisionConfig
from mlmamba.vision import Vision
from visualize import View, record, standalone
from visualize.payload import pack, size
from visualize.replay import replay

MEADOW = Path(__file__).resolve().parent.parent / "examples" / "meadow.jpg"
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu"]
PATCH = 32  # pixels of the tiny model's patches

FRAMES = """async seconds => {
    const view = document.querySelector('.scan-view').scanView, stamps = [];
    document.querySelector('.scan-stage').focus();
    view.set({ step: 0 });
    document.querySelector('[data-at="play"]').click();
    await new Promise(done => {
        const tick = now => {
            stamps.push(now);
            now - stamps[0] < seconds * 1000 ? requestAnimationFrame(tick) : done();
        };
        requestAnimationFrame(tick);
    });
    return { stamps, step: view.get().step };
}"""

# our callback is asked for after the view's own, so that it runs after it, in the same frame
SCRUBS = """async n => {
    const scrub = document.querySelector('[data-at="scrub"]'), costs = [];
    const canvas = document.querySelector('.scan-stage canvas');
    let changed = 0, before = canvas.toDataURL();
    for (let i = 0; i < 60; i++) {
        scrub.value = String(Math.floor(((i * 0.618034) % 1) * n));
        scrub.dispatchEvent(new Event('input', { bubbles: true }));
        costs.push(await new Promise(done => requestAnimationFrame(start => done(performance.now() - start))));
        const after = canvas.toDataURL();
        changed += after !== before;
        before = after;
        await new Promise(requestAnimationFrame);
    }
    return { costs, changed };
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--grid", type=int, default=27, help="patches a side")
    parser.add_argument("--kind", default="csm", choices=["bsm", "csm"])
    parser.add_argument("--seconds", type=float, default=6.0, help="how long to watch it play")
    options = parser.parse_args()

    model = mlmamba.load("tiny", device="cpu", vision=False)
    vision = Vision(VisionConfig(("efficientnet-lite0",), PATCH * options.grid)).eval()
    object.__setattr__(model, "vision", vision)
    conversation = model.start(MEADOW, options.kind)
    for _ in conversation.ask("What can you see?"):
        pass
    scans = [scan for layer in conversation.look().seen.scans for scan in layer]
    start = time.perf_counter()
    replay(scans)
    replayed = time.perf_counter() - start
    trace = record(conversation)
    rows, cols = trace.grid
    print(f"{rows} x {cols} patches, {trace.n_directions} directions, {trace.n_layers} layers, {trace.n_heads} heads")
    print(f"replay of all states   {replayed:.2f} s")
    print(f"payload                {size(pack(trace)) / 1e6:.2f} MB")

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page_file = Path(folder) / "scan.html"
        page_file.write_text(standalone.page({options.kind: trace}, View(kind=options.kind)), encoding="utf-8")
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(page_file.as_uri())
        page.wait_for_selector('.scan-view[aria-busy="false"]')
        page.wait_for_timeout(1500)
        played = page.evaluate(FRAMES, options.seconds)
        gaps = sorted(b - a for a, b in zip(played["stamps"], played["stamps"][1:], strict=False))
        late = sum(gap > 25 for gap in gaps)
        print(
            f"playing                {1000 / statistics.mean(gaps):.1f} frames/s; between frames: median "
            f"{statistics.median(gaps):.1f} ms, 99th percentile {gaps[int(0.99 * len(gaps))]:.1f} ms, "
            f"largest {gaps[-1]:.1f} ms; {late} of {len(gaps)} later than 25 ms"
        )
        scrubbed = page.evaluate(SCRUBS, trace.n_patches)
        costs = sorted(scrubbed["costs"])
        print(
            f"scrub                  redrawn in the same frame {scrubbed['changed']} of {len(costs)} times; from the "
            f"frame's start: median {statistics.median(costs):.1f} ms, largest {costs[-1]:.1f} ms"
        )
        browser.close()


if __name__ == "__main__":
    main()
