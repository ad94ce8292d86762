// Controls: what is chosen, kept valid; and what has to be asked of the host for it.

/** A group of radio buttons; `options` are {value, label, title, nodes}. Only another list of options rebuilds it. */
function fillRadios(view, holder, options, chosen, choose) {
  const signature = JSON.stringify(options.map(({ value, label, title, disabled }) => [value, label, title, disabled]));
  if (holder.dataset.options !== signature) {
    holder.dataset.options = signature;
    const name = `scan-${view.id}-${holder.dataset.at}`;
    holder.replaceChildren(
      ...options.map(({ value, label, title, nodes, disabled }) => {
        const option = element('label', 'scan-option');
        const input = element('input');
        Object.assign(input, { type: 'radio', name, value: String(value), disabled: Boolean(disabled) });
        if (title) option.title = title;
        input.addEventListener('change', () => choose(value));
        const face = element('span', 'scan-face');
        face.append(...(nodes || [label]));
        option.append(input, face);
        return option;
      }),
    );
  }
  for (const input of holder.querySelectorAll('input')) input.checked = input.value === String(chosen);
}

function fillSelect(select, options, chosen) {
  const signature = JSON.stringify(options);
  if (select.dataset.options !== signature) {
    select.dataset.options = signature;
    select.replaceChildren(
      ...options.map(([value, label]) => {
        const option = element('option', '', label);
        option.value = String(value);
        return option;
      }),
    );
  }
  select.value = String(chosen);
}

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
  if (state.quantity !== 'path' && (typeof state.quantity !== 'string' || (trace && quantityIndex(trace, state.quantity) < 0))) {
    state.quantity = 'state';
  }
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

function notice(view, text) {
  view.at.notice.hidden = !text;
  view.at['notice-text'].textContent = text || '';
}

function setBusy(view, busy) {
  view.root.setAttribute('aria-busy', String(Boolean(busy)));
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
    if (view.traces[view.shownKind]) change(view, { kind: view.shownKind }); // back to what is there
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

/** Every control shows the state. */
function syncControls(view) {
  const { at, state } = view;
  const trace = view.traces[kindsShown(state)[0]] || Object.values(view.traces)[0];
  if (!trace) return;
  const go = (key) => (value) => change(view, { [key]: value });
  const compare = state.kind === 'compare';
  const kinds = trace.kinds.map((kind) => ({ value: kind, label: KIND_NAMES[kind] || kind }));
  if (trace.kinds.length > 1 && view.host.can.compare !== false) kinds.push({ value: 'compare', label: KIND_NAMES.compare });
  fillRadios(view, at.kinds, kinds, state.kind, go('kind'));
  const layers = Array.from({ length: trace.layers }, (_, i) => ({ value: i, label: String(i + 1) }));
  fillRadios(view, at.layers, layers, state.layer, go('layer'));
  at['layer-field'].hidden = trace.layers < 2;
  const heads = Array.from({ length: trace.heads }, (_, i) => [i, `${i + 1} of ${trace.heads}`]);
  fillSelect(at.head, [['', 'mean of all'], ...heads], state.head === null ? '' : state.head);
  for (const input of [...at.layers.querySelectorAll('input'), at.head]) input.disabled = state.word !== null;
  const chips = trace.quantities.map((q) => ({
    value: q.name,
    title: q.text,
    label: q.symbol,
    nodes: [element('span', 'scan-symbol', q.symbol), element('span', 'scan-chip-title', q.title)],
  }));
  const path = { value: 'path', label: 'Path', title: PATH_TEXT, disabled: compare, nodes: [element('span', 'scan-chip-title', 'Path')] };
  const overlaid = state.word !== null || state.patch !== null;
  fillRadios(view, at.quantities, [path, ...chips], overlaid ? '' : state.quantity, (value) =>
    change(view, { quantity: value, patch: null, word: null }));
  // With a patch or a word chosen no chip is on, and none would be reachable by Tab: let the last one be.
  const directions = [
    { value: 'all', label: 'All' },
    ...trace.directions.map((name, d) => ({ value: d, label: name.slice(-1), title: name, nodes: directionFace(name, d) })),
    { value: MERGED, label: 'Merged' },
  ];
  fillRadios(view, at.directions, directions, state.direction === null ? 'all' : state.direction, (value) =>
    change(view, { direction: value === 'all' ? null : value }));
  at.directions.style.visibility = compare || state.word !== null ? 'hidden' : '';
  const parts = [`Model ${trace.model}`, `${trace.rows} × ${trace.cols} patches`, `${trace.layers} layers`, `${trace.heads} heads`];
  at.model.textContent = parts.join(' · ');
  const untrained = kindsShown(state).some((kind) => view.traces[kind] && !view.traces[kind].trained);
  at.untrained.hidden = !untrained;
  at.untrained.textContent = (compare ? 'CSM: ' : '') + UNTRAINED;
  showWords(view);
}

function directionFace(name, d) {
  const mark = element('span', 'scan-mark');
  mark.style.background = HUES[d];
  const arrow = element('span', 'scan-arrow', name.slice(-1));
  arrow.setAttribute('aria-hidden', 'true');
  return [mark, arrow, element('span', 'scan-hidden', name)];
}

/** What goes with the scene besides the panels: texts, the colour bar, the block below, numbers at the side. */
function showScene(view) {
  const { at, scene, state } = view;
  const { trace, mode } = scene;
  view.shownKind = state.kind;
  const quantity = trace.quantities[quantityIndex(trace, state.quantity)];
  at.note.textContent = mode === 'influence' ? INFLUENCE_TEXT : '';
  if (mode === 'influence') at.about.textContent = 'What reaches the chosen patch. Choose it again, or press Esc, to go back.';
  else if (mode === 'word') at.about.textContent = 'What the chosen word saw. Choose it again, or press Esc, to go back.';
  else at.about.textContent = mode === 'path' ? PATH_TEXT : quantity.text;
  at.leave.hidden = mode !== 'influence' && mode !== 'word';
  at.scrub.max = String(trace.n - 1);
  at.scale.style.visibility = scene.scale ? '' : 'hidden';
  at['scale-name'].replaceChildren(element('b', '', scene.measure.symbol), element('span', '', scene.measure.title));
  at['plot-name'].textContent = plotName(scene);
  at['plot-high'].textContent = scene.scale && scene.timed ? formatNumber(scene.scale.high) : '';
  at['plot-low'].textContent = scene.scale && scene.timed ? formatNumber(scene.scale.low) : '';
  if (mode === 'influence' && scene.scale) {
    at['plot-high'].textContent = formatNumber(scene.scale.high);
    at['plot-low'].textContent = formatNumber(scene.scale.low);
  }
  if (scene.scale) {
    const ticks = ticksOf(scene.scale).map(([place, text]) => {
      const tick = element('span', '', text);
      tick.style.left = place * 100 + '%';
      tick.style.transform = `translateX(${-place * 100}%)`;
      return tick;
    });
    at['scale-ticks'].replaceChildren(...ticks);
    const pen = at['scale-bar'].getContext('2d');
    const pixels = pen.createImageData(256, 1);
    for (let i = 0; i < 256; i++) pixels.data.set([...trace.palette.subarray(3 * i, 3 * i + 3), 255], 4 * i);
    pen.putImageData(pixels, 0, 0);
  }
  const word = mode === 'word';
  at.scene.classList.toggle('scan-comparing', scene.compare);
  at.side.hidden = !scene.compare;
  at.below.hidden = scene.compare;
  at.time.hidden = at.table.hidden = scene.compare;
  at.below.classList.toggle('scan-veiled', word);
  at.time.inert = at.table.inert = word;
  const home = scene.compare ? at.side : at.below;
  if (at['word-box'].parentNode !== home) home.append(at['word-box']);
  at['word-box'].hidden = !word;
  if (scene.compare) fillNumbers(view);
}

function plotName(scene) {
  if (scene.mode === 'path') return 'Drag to walk along the scan';
  if (scene.mode === 'influence') return 'Influence along the scan, up to the chosen patch (log scale)';
  return `${scene.measure.symbol} along the scan`;
}

/** BSM against CSM, in numbers. */
function fillNumbers(view) {
  const { scene, at } = view;
  const [first, second] = scene.sides;
  const both = first.merged && second.merged ? differenceOf(first.merged, second.merged) : null;
  const mean = (side) => (side.merged ? formatNumber(meanOf(side.merged)) : '–');
  const lines = [
    ['Mean, BSM', mean(first)],
    ['Mean, CSM', mean(second)],
    ['Mean |difference|', both ? formatNumber(both.mean) : '–'],
    ['Largest |difference|', both ? formatNumber(both.most) : '–', both ? placeOf(scene.trace, both.at) : ''],
    ['Correlation r', both ? formatNumber(both.r) : '–'],
  ];
  const title = element('div', 'scan-numbers-title');
  title.append(element('b', '', scene.measure.symbol), element('span', '', 'merged maps, BSM against CSM'));
  const list = element('dl', 'scan-list');
  for (const [name, value, where] of lines) {
    const row = element('div', 'scan-list-row');
    const number = element('dd', '', value);
    if (where) number.append(element('span', 'scan-where', where));
    row.append(element('dt', '', name), number);
    list.append(row);
  }
  at.numbers.replaceChildren(title, list);
}
