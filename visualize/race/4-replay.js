// The replay: one clock for both lanes, which plays, pauses and can be dragged.

const SPEEDS = [[1, '1×'], [1 / 4, '¼×'], [1 / 16, '1/16×']];
const LONG_ENOUGH_S = 2; // a replay that is shorter is over before one has looked

function showReplay(view) {
  const run = shownRun(view, 'race');
  view.at.replay.hidden = !run;
  if (!run) return;
  buildLanes(view, run.race);
  buildMemory(view, run.race);
  view.events = [...new Set(view.lanes.flatMap(({ lap }) => [0, lap.vision, lap.prefill, ...lap.at]))]
    .sort((a, b) => a - b);
  const slow = SPEEDS.find(([speed]) => view.length / speed >= LONG_ENOUGH_S) || SPEEDS[SPEEDS.length - 1];
  setSpeed(view, slow[0]);
  goTo(view, view.length);
}

function setSpeed(view, speed) {
  view.speed = speed;
  const options = SPEEDS.map(([value, label]) => ({ value, label, title: `Replay at ${label} of the measured speed` }));
  fillRadios(view, view.at.speeds, options, speed, (value) => setSpeed(view, value));
}

function setPlaying(view, playing) {
  if (playing && view.time >= view.length) view.time = 0;
  view.playing = playing && view.lanes.length > 0;
  view.clock = 0;
  view.at.play.classList.toggle('race-playing', view.playing);
  view.at.play.setAttribute('aria-label', view.playing ? 'Pause' : 'Play');
  if (view.playing) schedule(view);
}

/** Play from the start, unless motion is not wanted: then it stands at its end. */
function playOnce(view) {
  if (view.still || view.at.replay.hidden) return;
  view.time = 0;
  setPlaying(view, true);
}

/** Frames follow each other only while it plays. */
function schedule(view) {
  if (view.frame) return;
  view.frame = requestAnimationFrame((now) => {
    view.frame = 0;
    if (!view.playing) return;
    view.time += (Math.min(now - (view.clock || now), 250) / 1000) * view.speed;
    view.clock = now;
    if (view.time >= view.length) {
      view.time = view.length;
      setPlaying(view, false);
    }
    drawTime(view);
    if (view.playing) schedule(view);
  });
}

/** Go to a time, which ends playing. */
function goTo(view, time) {
  setPlaying(view, false);
  view.time = Math.min(view.length, Math.max(0, time));
  drawTime(view);
}

/** To another moment at which something happened: a phase ended, a token came. */
function stepBy(view, steps) {
  const { events, time } = view;
  const next = events.findIndex((event) => event > time + 1e-9);
  const after = next < 0 ? events.length : next;
  const here = after > 0 && Math.abs(events[after - 1] - time) < 1e-9 ? after - 1 : after - (steps > 0 ? 1 : 0);
  goTo(view, events[Math.min(events.length - 1, Math.max(0, here + steps))]);
}

/** Everything that follows the clock. */
function drawTime(view) {
  const { at, time, length } = view;
  const share = Math.min(1, time / length);
  at.lanes.style.setProperty('--now', share.toFixed(4));
  const unit = unitOf(length, SECONDS);
  const clock = `${(time / unit[0]).toFixed(length / unit[0] < 10 ? 2 : 0)} of ${inUnits(length, SECONDS, unit)}`;
  if (at.clock.textContent !== clock) at.clock.textContent = clock;
  at.scrub.value = String(Math.round(share * 1000));
  at.scrub.setAttribute('aria-valuetext', clock);
  for (const lane of view.lanes) showLane(lane, time);
  for (const bar of view.bars) showBar(bar, time);
}

/** What each has to keep: ML-Mamba's state, the Transformer's cache, as bars on one scale. */
function buildMemory(view, race) {
  const runners = runnersOf(race);
  const most = Math.max(...runners.flatMap((runner) => runner.memory || []), 1);
  view.bars = runners.map((runner, index) => {
    const node = element('div', `race-bar-row race-hue-${index + 1}`);
    const kept = runner.kind === 'mamba' ? 'state' : 'KV cache';
    const name = element('span', 'race-bar-name');
    name.append(markOf(index), element('b', '', runner.name), element('span', 'race-soft', kept));
    const gauge = element('span', 'race-gauge');
    const last = element('span', 'race-gauge-last');
    const fill = element('span', 'race-gauge-fill');
    const lap = lapOf(runner);
    last.style.width = `${(100 * (lap.memory[lap.memory.length - 1] || 0)) / most}%`;
    gauge.append(last, fill);
    const bytes = element('span', 'race-bytes');
    node.append(name, gauge, bytes);
    return { node, fill, bytes, lap, most };
  });
  view.at.memory.replaceChildren(...view.bars.map((bar) => bar.node));
}

function showBar({ fill, bytes, lap, most }, time) {
  const written = writtenBy(lap, time);
  const kept = written ? lap.memory[Math.min(written, lap.memory.length) - 1] || 0 : 0;
  const text = written ? bytesText(kept) : 'nothing yet';
  if (bytes.textContent === text) return;
  bytes.textContent = text;
  fill.style.width = `${(100 * kept) / most}%`;
}

function listenToReplay(view) {
  const { at } = view;
  at.play.addEventListener('click', () => setPlaying(view, !view.playing));
  at.scrub.addEventListener('input', () => goTo(view, (Number(at.scrub.value) / 1000) * view.length));
  at.scrub.addEventListener('keydown', (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const keys = {
      ArrowRight: () => stepBy(view, 1), ArrowUp: () => stepBy(view, 1),
      ArrowLeft: () => stepBy(view, -1), ArrowDown: () => stepBy(view, -1),
      PageUp: () => stepBy(view, 10), PageDown: () => stepBy(view, -10),
      Home: () => goTo(view, 0), End: () => goTo(view, view.length),
      ' ': () => setPlaying(view, !view.playing),
    };
    const act = keys[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  });
}
