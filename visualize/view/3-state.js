// What is looked at, kept valid; and what has to be asked of the host for it.

function isWhole(value) {
  return Number.isInteger(value) && value >= 0;
}

/** The state with a wish added, as far as the traces that are there allow it. */
function validState(view, wish) {
  const state = { ...view.state };
  const given = wish && typeof wish === 'object' ? wish : {};
  for (const key of Object.keys(state)) if (key in given && key !== 'picture') state[key] = given[key];
  if (isWhole(given.word)) state.patch = null; // one of the two at a time: the newer
  else if (isWhole(given.patch)) state.word = null;
  const known = Object.values(view.traces)[0];
  const kinds = known ? known.kinds : ['bsm', 'csm'];
  const comparable = kinds.length > 1 && (!view.host.can || view.host.can.compare !== false);
  if (!kinds.includes(state.kind) && !(state.kind === 'compare' && comparable)) {
    state.kind = kinds.includes(view.state.kind) ? view.state.kind : kinds[0];
  }
  const whole = (key, limit, otherwise) => {
    if (!isWhole(state[key])) state[key] = otherwise;
    else if (state[key] >= limit) state[key] = otherwise === null ? null : limit - 1;
  };
  const trace = view.traces[kindsShown(state)[0]];
  const limit = (name) => (trace ? trace[name] : Infinity);
  whole('layer', limit('layers'), 0);
  whole('head', limit('heads'), null);
  whole('step', limit('n'), 0);
  whole('patch', limit('n'), null);
  if (state.direction !== MERGED) whole('direction', trace ? trace.orders.length : Infinity, null);
  const unknown = trace && state.quantity !== 'path' && quantityIndex(trace, state.quantity) < 0;
  if (typeof state.quantity !== 'string' || unknown) state.quantity = 'state';
  if (state.kind === 'compare' && state.quantity === 'path') state.quantity = 'state'; // two paths can't be swiped
  const shown = kindsShown(state).map((kind) => view.traces[kind]);
  const answers = shown.map((one) => one && one.answer).filter(Boolean);
  const all = shown.every(Boolean);
  whole('word', all ? Math.max(0, ...answers.map((answer) => answer.words.length)) : Infinity, null);
  whole('word_layer', all ? Math.max(0, ...answers.map((answer) => answer.lm_layers)) : Infinity, null);
  state.through = state.through === true;
  return state;
}

/** Change what is looked at. */
function change(view, wish) {
  if (!view.loaded) {
    view.wishes = { ...view.wishes, ...wish };
    return;
  }
  const before = view.state;
  view.state = validState(view, wish);
  const others = (state) => JSON.stringify({ ...state, step: 0 });
  for (const trace of Object.values(view.traces)) trace.absent.clear();
  if (others(before) !== others(view.state)) {
    const wordOrCompare = view.state.kind === 'compare' || view.state.word !== null;
    if (view.playing && (wordOrCompare || view.state.patch !== before.patch)) setPlaying(view, false);
    view.dirty.scene = true;
    for (const kind of kindsShown(view.state)) if (!view.traces[kind]) loadTrace(view, kind);
    syncControls(view);
  }
  if (before.step !== view.state.step) {
    if (view.playing) setPlaying(view, false);
    view.position = view.state.step;
  }
  schedule(view);
}

/** A request, counted; an error becomes a notice. Answers for a picture that is gone are dropped: null. */
async function ask(view, type, args) {
  const { epoch } = view;
  view.pending += 1;
  setBusy(view, true);
  try {
    const answer = await view.host.request(type, args);
    return epoch === view.epoch ? answer : null;
  } catch (error) {
    if (epoch === view.epoch) notice(view, (error && error.message) || 'This did not work; please try again.');
    return null;
  } finally {
    view.pending -= 1;
    if (!view.pending) setBusy(view, false);
  }
}

/** Beside what went wrong, a way to try it again. */
function offerAgain(view) {
  const again = element('button', 'scan-button scan-again', 'Try again');
  again.type = 'button';
  again.addEventListener('click', () => {
    view.failed.clear();
    notice(view, '');
    start(view);
  });
  view.at['notice-text'].append(again);
}

/** Ask for a part of a trace, once. False where it was asked for in vain. */
function askForPart(view, trace, name) {
  if (trace.absent.has(name)) return false;
  const key = `${trace.kind} ${name}`;
  if (!view.asked.has(key)) {
    const asked = trace.answer;
    view.asked.add(key);
    ask(view, 'part', { kind: trace.kind, name }).then((packed) => {
      view.asked.delete(key);
      if (packed && (!name.startsWith('word/') || trace.answer === asked)) storePart(trace, name, packed);
      else if (!packed) trace.absent.add(name);
      view.dirty.scene = true;
      schedule(view);
    });
  }
  return true;
}

async function loadTrace(view, kind) {
  if (view.loading.has(kind)) return;
  view.loading.add(kind);
  const { epoch } = view;
  const payload = await ask(view, 'trace', { kind });
  if (epoch !== view.epoch) return;
  view.loading.delete(kind);
  if (!payload) {
    const other = kind === 'bsm' ? 'csm' : 'bsm';
    if (view.scene && view.loaded) change(view, { kind: view.shownKind }); // back to what is there
    else if (!view.failed.has(other)) {
      view.failed.add(kind);
      loadTrace(view, other);
    } else offerAgain(view); // there is nothing to go back to
    return;
  }
  view.traces[kind] = openTrace(payload);
  if (!view.loaded) firstTrace(view, view.traces[kind]);
  else {
    view.state = validState(view, {});
    view.dirty.scene = true;
    syncControls(view);
    schedule(view);
  }
}

/** Everything is ready for the first time, or for another picture: what a link asked for is shown. */
function firstTrace(view, trace) {
  view.loaded = true;
  view.state.picture = trace.picture.name;
  const wishes = view.wishes;
  view.wishes = {};
  view.dirty.scene = true;
  change(view, wishes);
  for (const kind of kindsShown(view.state)) if (!view.traces[kind]) loadTrace(view, kind);
  syncControls(view);
  if (!('step' in wishes)) startOnce(view);
}

/** Play once, when the scan is first seen; people who prefer stillness get the finished map. */
function startOnce(view) {
  if (view.still) {
    view.state.step = view.traces[kindsShown(view.state)[0]].n - 1;
    schedule(view);
    return;
  }
  const watcher = new IntersectionObserver((entries) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    watcher.disconnect();
    const wait = () => {
      if (!view.scene) setTimeout(wait, 50);
      else if (!view.touched && modeOf(view.state) !== 'word' && view.state.kind !== 'compare') setPlaying(view, true);
    };
    wait();
  }, { threshold: 0.3 });
  watcher.observe(view.at.stage);
}
