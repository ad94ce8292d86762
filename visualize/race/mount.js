// Everything is put together here: mount(root, host) makes the section in `root` live.

const TOKENS = [32, 64, 128];
const CONTEXTS = [
  { value: '', label: 'as it is', title: 'The picture and the question, nothing else' },
  ...[1024, 4096].map((tokens) => (
    { value: tokens, label: numberText(tokens), title: `Filled up to ${numberText(tokens)} tokens, for both alike` })),
];
const LAUNCHES = [
  { value: false, label: 'eager', title: 'Each kernel is launched on its own' },
  { value: true, label: 'graph', title: 'All kernels of a token are launched at once, as a CUDA graph' },
];
const NARROW = 560;

/**
 * root: the element that holds race.html. host: {recorded, follow}: the runs that came with the page, and
 * follow(type, args, heard) → {done, stop} to measure. Returns {get, set, receive}.
 */
function mount(root, host) {
  const section = root.matches('.race-view') ? root : root.querySelector('.race-view');
  const at = {};
  for (const node of section.querySelectorAll('[data-at]')) at[node.dataset.at] = node;
  const view = {
    root: section, host, at, id: (mount.count = (mount.count || 0) + 1),
    runs: [...(host.recorded || [])], chosen: { race: null, scaling: null }, mode: 'race', job: null,
    subject: null, tokens: TOKENS[0], context: '', graph: false, what: 'decode_s', against: 'tokens',
    lanes: [], bars: [], events: [0], time: 0, length: 1, speed: 1, playing: false, width: 0, narrow: false,
    points: [], point: null, tip: null,
    still: window.matchMedia('(prefers-reduced-motion: reduce)').matches,
  };
  listen(view);
  show(view);
  const object = {
    get: () => {
      const { mode, tokens, context, what, against, time, length, speed, playing } = view;
      return { mode, tokens, context, what, against, time, length, speed, playing };
    },
    set: (partial) => change(view, partial),
    receive: (message) => receive(view, message),
  };
  root.raceView = object;
  playOnce(view);
  return object;
}

function listen(view) {
  const { at } = view;
  listenToReplay(view);
  listenToChart(view);
  at['notice-close'].addEventListener('click', () => notice(view, ''));
  at.source.addEventListener('change', () => {
    view.chosen[view.mode] = sourcesOf(view, view.mode)[Number(at.source.value)];
    show(view);
  });
  at['race-go'].addEventListener('click', () => {
    const { tokens, context, graph } = view;
    startJob(view, 'race', { tokens, context: context === '' ? null : context, graph });
  });
  at['scaling-go'].addEventListener('click', () => startJob(view, 'scaling', {}));
  at['race-stop'].addEventListener('click', () => stopJob(view));
  at['scaling-stop'].addEventListener('click', () => stopJob(view));
  const resized = new ResizeObserver((entries) => {
    for (const { target, contentRect } of entries) if (contentRect.width) fit(view, target, contentRect.width);
  });
  resized.observe(at.chart);
  resized.observe(at.lanes);
}

/** What is drawn for a width is drawn again for another. */
function fit(view, target, width) {
  if (target === view.at.chart) {
    if (Math.round(width) === Math.round(view.width)) return;
    view.width = width;
    if (view.mode === 'scaling') showScaling(view);
  } else if (width < NARROW !== view.narrow) {
    view.narrow = width < NARROW;
    buildTicks(view);
  }
}

/** Of what is looked at, something else. */
function change(view, partial) {
  Object.assign(view, partial);
  if (partial.mode) setPlaying(view, false);
  show(view);
}

/** News from outside: which picture and question would be raced. */
function receive(view, message) {
  if (!message || !message.subject) return;
  view.subject = message.subject;
  showSubject(view);
}

/** Everything that follows from the state; the replay only where another race is to be seen. */
function show(view) {
  const { at, mode } = view;
  const modes = [{ value: 'race', label: 'Race' }, { value: 'scaling', label: 'Scaling' }];
  fillRadios(view, at.modes, modes, mode, (value) => change(view, { mode: value }));
  at['race-pane'].hidden = mode !== 'race';
  at['scaling-pane'].hidden = mode !== 'scaling';
  showSources(view);
  if (mode === 'race') showRace(view);
  else showScaling(view);
  showFacts(view);
}

function showRace(view) {
  const { at } = view;
  const budgets = TOKENS.map((tokens) => ({ value: tokens, label: String(tokens) }));
  fillRadios(view, at.tokens, budgets, view.tokens, (tokens) => change(view, { tokens }));
  fillRadios(view, at.contexts, CONTEXTS, view.context, (context) => change(view, { context }));
  fillRadios(view, at.launches, LAUNCHES, view.graph, (graph) => change(view, { graph }));
  showSubject(view);
  const run = shownRun(view, 'race');
  if (view.replayed === run) return;
  view.replayed = run;
  showVerdict(view);
  showReplay(view);
  showTable(view);
}

/** What a race started now would be about. */
function showSubject(view) {
  const { at, subject } = view;
  at.question.textContent = subject ? `“${subject.question}”` : '';
  at.whose.textContent = subject ? subject.whose : '';
  at['launch-field'].hidden = !(subject && subject.graphs); // without CUDA there is nothing to choose
  showPicture(at.thumb, subject && subject.thumb, 'The picture that would be raced');
}

/** Which run is shown: a choice where there are several, else words. */
function showSources(view) {
  const { at, mode } = view;
  const sources = sourcesOf(view, mode);
  at['source-field'].hidden = sources.length < 2;
  at.badge.hidden = sources.length !== 1;
  at.source.replaceChildren(...sources.map((run, index) => {
    const option = element('option', '', sourceLabel(run, mode));
    option.value = String(index);
    return option;
  }));
  at.source.value = String(sources.indexOf(shownRun(view, mode)));
  if (sources.length === 1) at.badge.textContent = sourceLabel(sources[0], mode);
}
