// Lanes: one a runner, on one time axis, with the phases of its lap and its text.

/** The lanes of a race, built anew; `view.lanes` holds what the replay moves. */
function buildLanes(view, race) {
  const laps = runnersOf(race).map(lapOf);
  view.length = Math.max(...laps.map((lap) => lap.end), 1e-6);
  view.lanes = runnersOf(race).map((runner, index) => buildLane(view, race, runner, laps[index], index));
  view.at['lane-list'].replaceChildren(...view.lanes.map((lane) => lane.node));
  buildTicks(view);
}

function buildLane(view, race, runner, lap, index) {
  const node = element('div', `race-lane race-hue-${index + 1}`);
  node.setAttribute('role', 'group');
  node.setAttribute('aria-label', runner.name);
  const head = element('div', 'race-lane-head');
  const state = element('span', 'race-state');
  const size = `${countText(runner.parameters)} parameters`;
  head.append(markOf(index), element('b', 'race-name', runner.name), element('span', 'race-soft', size), state);
  const track = element('div', 'race-track');
  track.append(drawTrack(view, lap, 'race-faint'), drawTrack(view, lap, 'race-strong'), element('i', 'race-now'));
  const text = element('div', 'race-text');
  const words = runner.text_shown === false ? [] : lap.tokens.map((token, i) => {
    const word = element('span', i >= lap.ended ? 'race-token race-after' : 'race-token', token);
    text.append(word);
    return word;
  });
  const count = words.length ? null : element('span', 'race-count');
  if (count) text.append(count);
  node.append(head, track, phasesOf(lap), text);
  return { node, lap, words, count, state, context: race.context, written: -1 };
}

/** The lap as blocks: looking, reading, then one block a token. */
function drawTrack(view, lap, className) {
  const drawing = shape('svg', {
    class: className, viewBox: '0 0 1000 10', preserveAspectRatio: 'none', 'aria-hidden': 'true',
  });
  const place = (time) => (1000 * time) / view.length;
  const block = (from, to, kind) => {
    const width = place(to) - place(from);
    const gap = Math.min(1.4, width / 4);
    drawing.append(shape('rect', { x: place(from), y: 0, width: Math.max(0, width - gap), height: 10, class: kind }));
  };
  block(0, lap.vision, 'race-vision');
  block(lap.vision, lap.prefill, 'race-prefill');
  // the first token is there when prefill ends: each block after it is a step of decoding
  lap.at.forEach((time, i) => i && block(lap.at[i - 1], time, i >= lap.ended ? 'race-late' : 'race-decode'));
  return drawing;
}

/** The phases in numbers; it is the legend of the blocks as well. */
function phasesOf(lap) {
  const steps = lap.at.length - 1;
  const phases = [
    // some models read picture and prompt in one: then there is no vision to tell apart
    ...(lap.vision ? [['vision', 'vision', secondsText(lap.vision)]] : []),
    ['prefill', 'prefill', secondsText(lap.prefill - lap.vision)],
  ];
  if (steps > 0) phases.push(['decode', 'decode', `${secondsText((lap.end - lap.at[0]) / steps)} a token`]);
  if (lap.ended < lap.at.length) phases.push(['late', 'after its end, for timing alone', '']);
  const row = element('div', 'race-phases');
  row.append(...phases.map(([kind, name, text]) => {
    const phase = element('span', 'race-phase');
    phase.append(element('span', `race-swatch race-swatch-${kind}`), `${name} `, element('b', '', text));
    return phase;
  }));
  return row;
}

/** The shared axis: round times, as many as have room. */
function buildTicks(view) {
  const most = view.narrow ? 4 : 8;
  const rough = view.length / most;
  const decade = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((digit) => digit * decade).find((size) => size >= rough * 0.999);
  const unit = unitOf(view.length, SECONDS);
  const ticks = [];
  for (let i = 0; i * step <= view.length * 1.0001; i++) {
    const tick = element('span', '', i ? inUnits(i * step, SECONDS, unit) : '0');
    const place = (i * step) / view.length;
    tick.style.left = `${100 * place}%`;
    if (place > 0.95) tick.className = 'race-tick-last';
    ticks.push(tick);
  }
  view.at.ticks.replaceChildren(...ticks);
}

/** A lane at a time of the replay. */
function showLane(lane, time) {
  const { lap } = lane;
  const written = writtenBy(lap, time);
  const state = stateOf(lane, written, time);
  if (lane.state.textContent !== state) lane.state.textContent = state;
  if (written === lane.written) return;
  lane.words.forEach((word, i) => word.classList.toggle('race-unwritten', i >= written));
  if (lane.count) lane.count.textContent = `${numberText(written)} tokens so far; its weights are random, for speed alone, so its text is not shown`;
  lane.written = written;
}

function stateOf({ lap, context }, written, time) {
  if (time < lap.vision) return 'looking at the picture';
  if (time < lap.prefill) return context ? `reading ${numberText(context)} tokens` : 'reading';
  if (written >= lap.at.length) return `done after ${secondsText(lap.end)}`;
  return `token ${written} of ${lap.at.length}`;
}
