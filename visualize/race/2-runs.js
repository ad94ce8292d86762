// What was measured: recorded runs that came with the page, and those measured here.

/** ML-Mamba first, the rival second, however they were listed. */
function runnersOf(measured) {
  const runners = Array.isArray(measured && measured.runners) ? measured.runners : [];
  return [...runners].sort((a, b) => (a.kind === 'mamba' ? 0 : 1) - (b.kind === 'mamba' ? 0 : 1));
}

/** The runs that have something of a mode, as options: recorded ones, then the one measured here. */
function sourcesOf(view, mode) {
  return view.runs.filter((run) => runnersOf(run[mode]).length);
}

/** The run that is shown in a mode, or null where nothing has been measured. */
function shownRun(view, mode) {
  const sources = sourcesOf(view, mode);
  return sources.find((run) => run === view.chosen[mode]) || sources[0] || null;
}

/** A race measured here is kept beside the others; a scaling takes the place of the one before it. */
function keepRun(view, mode, run) {
  if (mode === 'scaling') view.runs = view.runs.filter((other) => other.here !== mode);
  view.runs = [...view.runs, { ...run, here: mode }];
  view.chosen[mode] = view.runs[view.runs.length - 1];
}

/** What a run is called where one is chosen among several. */
function sourceLabel(run, mode) {
  const context = mode === 'race' && run.race.context ? `${numberText(run.race.context)} tokens of context, ` : '';
  const { gpu, processor } = run.machine || {};
  const on = gpu || processor ? ` on ${gpu || processor}` : '';
  const when = run.made ? `, ${run.made}` : '';
  const how = run.here ? run.unfinished || `measured here at ${run.time}` : `recorded${on}${when}`;
  const graphs = mode === 'race' && graphsText(run.race) ? 'CUDA graphs, ' : '';
  const label = context + graphs + how;
  return label[0].toUpperCase() + label.slice(1);
}

/** What the picture is called: the name of an example, else the visitor's own. */
function pictureName(picture) {
  return picture ? `the example “${picture}”` : 'a picture of one’s own';
}

/** One runner's lap, checked: a missing part leaves its place empty instead of breaking the replay. */
function lapOf(runner) {
  const lap = runner.lap || {};
  const at = Array.isArray(lap.at) ? lap.at.filter(Number.isFinite) : [];
  const prefill = Number.isFinite(lap.prefill) ? lap.prefill : at[0] || 0;
  return {
    vision: Math.min(lap.vision || 0, prefill),
    prefill,
    at,
    tokens: Array.isArray(lap.tokens) ? lap.tokens : [],
    ended: Number.isFinite(lap.ended) ? lap.ended : at.length,
    end: at.length ? at[at.length - 1] : prefill,
    memory: Array.isArray(runner.memory) ? runner.memory : [],
  };
}

/** How many tokens have been written by a time. */
function writtenBy(lap, time) {
  let low = 0;
  let high = lap.at.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (lap.at[middle] <= time) low = middle + 1;
    else high = middle;
  }
  return low;
}

function showFacts(view) {
  const run = shownRun(view, view.mode);
  view.at.facts.replaceChildren(...(run ? factsOf(run, run[view.mode]) : []).map(([name, text]) => {
    const row = element('div');
    row.append(element('dt', '', name), element('dd', '', text));
    return row;
  }));
  view.at.facts.parentNode.hidden = !run;
}

/** Where, on what and when it was measured. */
function factsOf(run, measured) {
  const machine = run.machine || {};
  const versions = Object.entries(run.versions || {}).map(([name, version]) => `${name} ${version}`);
  const kernels = runnersOf(measured)
    .filter((runner) => runner.kernels || runner.mode)
    .map((runner) => [runner.name, [runner.kernels, runner.mode].filter(Boolean).join(', ')]);
  const recorded = `recorded${run.made ? ` on ${run.made}` : ''}, not live`;
  const facts = [
    ['Machine', [machine.processor, machine.gpu, machine.memory, machine.system].filter(Boolean).join(' · ')],
    ['Threads', machine.threads],
    ['Precision', machine.dtype],
    ...kernels,
    ['Versions', versions.join(' · ')],
    ['Repeats', measured.repeats && `${measured.repeats} of each after a warm-up, by turns, one model at a time`],
    ['When', run.here ? `live on this server, at ${run.time}` : recorded],
    ['Command', run.command],
  ];
  return facts.filter(([, text]) => text !== undefined && text !== null && text !== '' && text !== 0)
    .map(([name, text]) => [name, String(text)]);
}
