// Controls: each shows what is looked at, and changes it.

/** Of a head that hardly scans: Δ so small at most patches, in every direction, that the state takes nothing in. */
function asleep(trace, layer, head) {
  const name = mapsName(head);
  if (!trace.packed[name] || !partOf(trace, name)) return '';
  const delta = quantityIndex(trace, 'delta');
  const typical = Math.max(...trace.orders.map((_, d) => medianOf(along(trace, layer, head, d, delta))));
  return typical < 1e-3 ? `, asleep: Δ ≈ ${formatNumber(typical)}` : '';
}

function scaleTitle(scene) {
  return scene.measure.title + (scene.scale && scene.scale.log ? ', log scale' : '');
}

/** A group of radio buttons; `options` are {value, label, title, nodes()}. Only another list of options rebuilds it. */
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
        face.append(...(nodes ? nodes() : [label]));
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

function notice(view, text) {
  view.at.notice.hidden = !text;
  view.at['notice-text'].textContent = text || '';
}

function setBusy(view, busy) {
  view.root.setAttribute('aria-busy', String(Boolean(busy)));
}

/** Every control shows the state. */
function syncControls(view) {
  const { at, state } = view;
  const trace = view.traces[kindsShown(state)[0]] || Object.values(view.traces)[0];
  if (!trace) return;
  view.root.classList.remove('scan-empty');
  const go = (key) => (value) => change(view, { [key]: value });
  const compare = state.kind === 'compare';
  const kinds = trace.kinds.map((kind) => ({ value: kind, label: KIND_NAMES[kind] || kind }));
  const comparable = trace.kinds.length > 1 && view.host.can.compare !== false;
  if (comparable) kinds.push({ value: 'compare', label: KIND_NAMES.compare });
  fillRadios(view, at.kinds, kinds, state.kind, go('kind'));
  const layers = Array.from({ length: trace.layers }, (_, i) => ({ value: i, label: String(i + 1) }));
  fillRadios(view, at.layers, layers, state.layer, go('layer'));
  at['layer-field'].hidden = trace.layers < 2;
  const named = (_, i) => [i, `${i + 1} of ${trace.heads}${asleep(trace, state.layer, i)}`];
  const heads = Array.from({ length: trace.heads }, named);
  fillSelect(at.head, [['', 'mean of all'], ...heads], state.head === null ? '' : state.head);
  for (const input of [...at.layers.querySelectorAll('input'), at.head]) input.disabled = state.word !== null;
  const chips = trace.quantities.map((q) => ({
    value: q.name,
    title: q.text,
    label: q.symbol,
    nodes: () => [element('span', 'scan-symbol', q.symbol), element('span', 'scan-chip-title', q.title)],
  }));
  const path = { value: 'path', label: 'Path', title: PATH_TEXT, disabled: compare };
  const overlaid = state.word !== null || state.patch !== null;
  fillRadios(view, at.quantities, [path, ...chips], overlaid ? '' : state.quantity, (value) =>
    change(view, { quantity: value, patch: null, word: null }));
  const directions = [
    { value: 'all', label: 'All' },
    ...trace.directions.map((name, d) => (
      { value: d, label: name, title: name, nodes: () => directionFace(name, d) })),
    { value: MERGED, label: 'Merged' },
  ];
  fillRadios(view, at.directions, directions, state.direction === null ? 'all' : state.direction, (value) =>
    change(view, { direction: value === 'all' ? null : value }));
  at.directions.classList.toggle('scan-off', compare || state.word !== null);
  const size = [`${trace.rows} × ${trace.cols} patches`, `${trace.layers} layers`, `${trace.heads} heads`];
  at.model.textContent = [`Model ${trace.model}`, ...size].join(' · ');
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
  const back = 'Choose it again, or press Esc, to go back.';
  const hint = mode === 'word' ? '' : 'Press a patch to see which earlier ones reach it.';
  at.note.textContent = mode === 'influence' ? INFLUENCE_TEXT : hint;
  if (mode === 'influence') at.about.textContent = `What reaches the chosen patch. ${back}`;
  else if (mode === 'word') at.about.textContent = `What the chosen word saw. ${back}`;
  else at.about.textContent = mode === 'path' ? PATH_TEXT : quantity.text;
  at.leave.hidden = mode !== 'influence' && mode !== 'word';
  at.scrub.max = String(trace.n - 1);
  at.scale.style.visibility = scene.scale ? '' : 'hidden';
  at['scale-name'].replaceChildren(element('b', '', scene.measure.symbol), element('span', '', scaleTitle(scene)));
  at['plot-name'].textContent = plotName(scene);
  at['plot-high'].textContent = scene.scale && scene.timed ? formatNumber(scene.scale.high) : '';
  at['plot-low'].textContent = scene.scale && scene.timed ? formatNumber(scene.scale.low) : '';
  if (mode === 'influence' && scene.scale) {
    at['plot-high'].textContent = formatNumber(scene.scale.high);
    at['plot-low'].textContent = formatNumber(scene.scale.low);
  }
  if (scene.scale) {
    const ticks = ticksOf(scene.scale);
    if (at['scale-ticks'].children.length !== ticks.length) {
      at['scale-ticks'].replaceChildren(...ticks.map(([place]) => {
        const tick = element('span');
        tick.style.left = place * 100 + '%';
        tick.style.transform = `translateX(${-place * 100}%)`;
        return tick;
      }));
    }
    ticks.forEach(([, text], i) => (at['scale-ticks'].children[i].textContent = text));
  }
  if (view.barred !== trace.palette) {
    view.barred = trace.palette;
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
