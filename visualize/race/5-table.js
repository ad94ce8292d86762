// The race in numbers: a median and its range for both, and who leads by how much.

const timed = (name, of, leads) => ({ name, of, leads, units: SECONDS, less: true });
const ROWS = [
  timed('Vision', (runner) => runner.vision_s, 'faster'),
  timed('Prefill', (runner) => runner.prefill_s, 'faster'),
  timed('Time to first token', (runner) => runner.first_token_s, 'sooner'),
  timed('Decode, per token', (runner) => runner.decode_s, 'faster'),
  { name: 'Tokens per second', of: (runner) => runner.tokens_per_s, leads: 'faster', units: null, less: false },
  { name: 'Memory at the end', of: lastMemory, leads: 'less', units: BYTES, less: true },
];

function lastMemory(runner) {
  const bytes = (runner.memory || [])[(runner.memory || []).length - 1];
  return Number.isFinite(bytes) ? { min: bytes, median: bytes, max: bytes } : null;
}

function showTable(view) {
  const run = shownRun(view, 'race');
  view.at.table.parentNode.hidden = !run;
  if (!run) return;
  const runners = runnersOf(run.race);
  const rows = ROWS.map((row) => {
    const found = runners.map((runner) => row.of(runner) || null);
    if (!found.some(Boolean)) return null;
    const line = element('tr');
    line.append(rowHead(row.name), ...found.map((spread) => spreadCell(spread, row.units)));
    if (runners.length === 2) line.append(leadCell(found, row, runners));
    return line;
  });
  const heads = runners.map((runner, index) => runnerHead(runner, index));
  if (runners.length === 2) heads.push(columnHead('Ahead', 'race-lead'));
  const repeats = run.race.repeats ? `median of ${run.race.repeats} (fastest–slowest)` : 'median (fastest–slowest)';
  fillTable(view.at.table, `The race in numbers: ${repeats}`, heads, rows.filter(Boolean));
}

function fillTable(table, title, heads, rows) {
  const head = element('thead');
  const line = element('tr');
  line.append(element('td'), ...heads);
  head.append(line);
  const body = element('tbody');
  body.append(...rows);
  table.replaceChildren(element('caption', 'race-heading', title), head, body);
}

function columnHead(text, className) {
  const cell = element('th', className, text);
  cell.scope = 'col';
  return cell;
}

function runnerHead(runner, index) {
  const cell = columnHead();
  const name = element('span', 'race-column');
  name.append(markOf(index), runner.name);
  cell.append(name);
  return cell;
}

function rowHead(text) {
  const cell = element('th', '', text);
  cell.scope = 'row';
  return cell;
}

function spreadCell(spread, units) {
  const cell = element('td', '', spread ? (units ? inUnits(spread.median, units) : numberText(spread.median)) : '–');
  const range = spread ? rangeText(spread, units) : '';
  if (range) cell.append(' ', element('span', 'race-range', `(${range})`));
  return cell;
}

/** Who leads, and by how much; where the ranges overlap the lead may be noise, and it says so. */
function leadCell([first, second], row, runners) {
  const cell = element('td', 'race-lead');
  if (!first || !second || !(first.median > 0) || !(second.median > 0)) {
    cell.textContent = '–';
    return cell;
  }
  const ratio = Math.max(first.median, second.median) / Math.min(first.median, second.median);
  if (ratio < 1.005) {
    cell.textContent = 'equal';
    return cell;
  }
  const leader = first.median < second.median === row.less ? 0 : 1;
  const who = element('span', 'race-column');
  who.append(markOf(leader), element('span', 'race-hidden', `${runners[leader].name}: `),
    `${ratio < 10 ? ratio.toFixed(2) : numberText(ratio)}× ${row.leads}`);
  cell.append(who);
  if (first.min <= second.max && second.min <= first.max && first.max > first.min) {
    cell.append(' ', element('span', 'race-range', 'ranges overlap'));
  }
  return cell;
}

/** Whether kernels were launched as graphs: by all, or by whom. */
function graphsText(race) {
  const runners = runnersOf(race);
  const graphed = runners.filter((runner) => runner.mode === 'graph');
  if (!graphed.length) return '';
  return `CUDA graphs${graphed.length < runners.length ? `: ${graphed.map((runner) => runner.name).join(', ')}` : ''}`;
}

/** The verdict, the picture and the question of the race that is shown. */
function showVerdict(view) {
  const { at } = view;
  const run = shownRun(view, 'race');
  const race = run ? run.race : {};
  const repeats = race.repeats && `median of ${race.repeats} runs`;
  const budget = [
    race.tokens && `${numberText(race.tokens)} tokens each`,
    race.context && `after ${numberText(race.context)} tokens of context`,
    graphsText(race),
    repeats,
  ];
  at.about.textContent = run
    ? [run.here ? 'Raced here, live' : 'A recorded race', ...budget.filter(Boolean)].join(' · ')
    : 'No race has been recorded yet; start one below.';
  at.asked.textContent = race.question ? `“${race.question}”` : '';
  at.verdict.replaceChildren(...(race.verdict || []).map((sentence) => element('li', '', sentence)));
  showPicture(at.picture, run && run.thumb, run ? `The picture of this race: ${pictureName(race.picture)}` : '');
  at['verdict-card'].classList.toggle('race-pictured', !at.picture.hidden);
}

/** Only pictures that are in the message itself; nothing is fetched. */
function showPicture(image, source, title) {
  const given = typeof source === 'string' && source.startsWith('data:image/');
  image.hidden = !given;
  image.alt = given ? title : '';
  if (given && image.src !== source) image.src = source;
}
