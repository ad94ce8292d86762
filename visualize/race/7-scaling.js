// How both scale: what is shown against what, in words, as a chart and as a table.

const WHATS = [
  { value: 'decode_s', label: 'Time per token', title: 'Time per token', units: SECONDS },
  { value: 'prefill_s', label: 'Prefill time', title: 'Time to read the context', units: SECONDS },
  { value: 'memory', label: 'Memory', title: 'Memory of what was read', units: BYTES },
];
const AGAINSTS = {
  tokens: {
    label: 'Context', list: 'contexts', xTitle: 'tokens of context', xText: shortCount, head: 'Tokens of context',
    xSaid: (x) => `${numberText(x)} tokens of context`,
  },
  batch: {
    label: 'Batch', list: 'batches', xTitle: 'conversations at once', xText: numberText, head: 'Conversations at once',
    xSaid: (x) => (x === 1 ? 'one conversation' : `${numberText(x)} conversations at once`),
  },
};

const BAND = 'Points are medians; the band is from the fastest to the slowest run.';
const LOGARITHMIC = 'Both axes are logarithmic.';

/** A number or a spread, as a spread; null where there is none, or none that a logarithmic axis can show. */
function spreadOf(value) {
  if (Number.isFinite(value)) return value > 0 ? { min: value, median: value, max: value } : null;
  if (!value || !(value.median > 0)) return null;
  return { median: value.median, min: value.min > 0 ? value.min : value.median, max: value.max || value.median };
}

function linesOf(scaling, what, against) {
  const { list } = AGAINSTS[against];
  return runnersOf(scaling).map((runner) => ({
    name: runner.name,
    points: (Array.isArray(runner[list]) ? runner[list] : [])
      .map((point) => ({ x: point[against], y: spreadOf(point[what]) }))
      .filter(({ x, y }) => x > 0 && y)
      .sort((a, b) => a.x - b.x),
  }));
}

function showScaling(view) {
  const { at } = view;
  const run = shownRun(view, 'scaling');
  const scaling = run ? run.scaling : null;
  const measured = (what, against) => linesOf(scaling, what, against).some((line) => line.points.length);
  // prefill is not measured against the batch, for one
  if (scaling && !measured(view.what, view.against) && measured('decode_s', view.against)) view.what = 'decode_s';
  const what = WHATS.find(({ value }) => value === view.what);
  const against = AGAINSTS[view.against];
  const choices = WHATS.map(({ value, label }) => ({ value, label, disabled: !measured(value, view.against) }));
  fillRadios(view, at.whats, choices, view.what, (value) => change(view, { what: value }));
  const sides = Object.entries(AGAINSTS).map(([value, { label }]) => ({ value, label }));
  fillRadios(view, at.againsts, sides, view.against, (value) => change(view, { against: value }));
  const lines = linesOf(scaling, view.what, view.against);
  const crossing = ((scaling && scaling.crossings) || [])
    .find((one) => one.what === view.what && one.against === view.against);
  at['scaling-about'].textContent = aboutScaling(view, run);
  at.crossing.replaceChildren(...(crossing && crossing.says ? [element('li', '', crossing.says)] : []));
  at['chart-title'].textContent = `${what.title}, against ${against.xTitle}`;
  at.legend.replaceChildren(...lines.map((line, index) => {
    const entry = element('span', 'race-column');
    entry.append(markOf(index), line.name);
    return entry;
  }));
  drawChart(view, lines, {
    ...against, units: what.units, title: at['chart-title'].textContent,
    crossing: crossing && Number.isFinite(crossing.at) ? crossing : null,
  });
  fillScalingTable(view, lines, what, against);
  at['band-note'].hidden = !run;
  at['band-note'].textContent = what.units === BYTES ? LOGARITHMIC : `${BAND} ${LOGARITHMIC}`;
}

function aboutScaling(view, run) {
  if (!run) return 'Nothing has been recorded yet; measure it below.';
  const how = run.here ? 'Measured here, live' : 'A recorded measurement';
  const { context_for_batches: context } = run.scaling;
  if (view.against === 'batch' && context) return `${how} · each conversation with ${numberText(context)} tokens`;
  return `${how} · one conversation at a time`;
}

function fillScalingTable(view, lines, what, against) {
  const xs = [...new Set(lines.flatMap((line) => line.points.map((point) => point.x)))].sort((a, b) => a - b);
  const rows = xs.map((x) => {
    const row = element('tr');
    const spreads = lines.map((line) => (line.points.find((point) => point.x === x) || {}).y);
    row.append(rowHead(numberText(x)), ...spreads.map((spread) => spreadCell(spread, what.units)));
    return row;
  });
  const title = what.units === BYTES ? what.title : `${what.title}: median (fastest–slowest)`;
  fillTable(view.at['scaling-table'], title,
    lines.map((line, index) => runnerHead(line, index)), rows);
  view.at['scaling-table'].querySelector('thead td').replaceWith(columnHead(against.head));
}
