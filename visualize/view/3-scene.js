// A scene: what the present state asks to see, computed from the traces, before anything is drawn.

const HUES = ['#0072b2', '#d55e00', '#009e73', '#cc79a7']; // Okabe and Ito's: one a direction, told apart by everybody
const KIND_NAMES = { bsm: 'BSM', csm: 'CSM', compare: 'Compare' };
const UNTRAINED = 'exploratory: CSM’s orders with BSM’s parameters, never trained';
const INFLUENCE_TEXT =
  'How strongly each earlier patch reaches the chosen one: |M[t,s]|·‖x_s‖, the size of its term in ' +
  'y_t = Σ M[t,s] x_s + D x_t. Exact for the scan itself; the 4-wide convolution before it and the gate and norm ' +
  'after it are not in it.';
const PATH_TEXT = 'The order in which the patches are read, one a step, by every direction at once.';

/** "word", "influence", "path" or "map". */
function modeOf(state) {
  if (state.word !== null) return 'word';
  if (state.patch !== null) return 'influence';
  return state.quantity === 'path' ? 'path' : 'map';
}

function kindsShown(state) {
  return state.kind === 'compare' ? ['bsm', 'csm'] : [state.kind];
}

/** The scene of the view's state, or null while something of it is on its way. */
function planScene(view) {
  const { state } = view;
  const mode = modeOf(state);
  const sides = [];
  for (const kind of kindsShown(state)) {
    const trace = view.traces[kind];
    const side = trace && sideOf(view, trace, mode);
    if (!side) return null;
    sides.push(side);
  }
  const compare = state.kind === 'compare';
  const timed = !compare && (mode === 'map' || mode === 'path');
  const measure = measureOf(view, mode);
  const maps = sides.flatMap((side) => (compare ? [] : side.maps).concat([side.merged])).filter(Boolean);
  const scale = mode === 'path' ? null : scaleOf(maps, measure.log, mode === 'word');
  const panels = [];
  for (const side of sides) {
    const all = side.maps.map((map, d) => panelOf(side.trace, d, map, [map], side.masks[d], timed));
    const merged = panelOf(side.trace, MERGED, side.merged, side.maps, side.mergedMask, timed);
    if (compare || mode === 'word' || state.direction === MERGED) panels.push(merged);
    else if (state.direction === null) panels.push(...all, merged);
    else panels.push(all[state.direction]);
  }
  for (const panel of panels) Object.assign(panel, { scale, colours: panel.map && coloursOf(panel.map, scale) });
  const layout = compare ? 'compare' : panels.length > 1 ? 'all' : 'one';
  return { mode, compare, timed, scale, sides, panels, layout, trace: sides[0].trace, measure };
}

/** One connector's maps in patch order, with masks of the patches that have a value; null: something is to come. */
function sideOf(view, trace, mode) {
  const { state } = view;
  const all = trace.orders.map((_, d) => d);
  const nothing = all.map(() => null);
  const empty = { trace, maps: nothing, masks: nothing, merged: null, mergedMask: null, lines: [], weights: null };
  if (mode === 'path') return empty;
  if (mode === 'word') {
    const words = trace.answer ? trace.answer.words.length : 0;
    if (state.word >= words) return empty; // of two answers one can be shorter, or missing
    const name = 'word/' + state.word;
    if (!partOf(trace, name)) return askForPart(view, trace, name) ? null : empty;
    return { ...empty, merged: wordMap(trace, state.word, state.word_layer, state.through) };
  }
  const name = mode === 'influence' ? 'keys/' + state.layer : mapsName(state.head);
  if (!partOf(trace, name)) return askForPart(view, trace, name) ? null : empty;
  let lines, masks, weights;
  if (mode === 'influence') {
    const reach = all.map((d) => influenceAlong(trace, state.layer, state.head, d, state.patch));
    lines = reach.map((part) => part.size);
    weights = reach.map((part) => part.M);
    masks = trace.steps.map((steps) => {
      const mask = new Uint8Array(trace.n);
      for (let p = 0; p < trace.n; p++) mask[p] = steps[p] <= steps[state.patch] ? 1 : 0;
      return mask;
    });
  } else {
    const quantity = quantityIndex(trace, state.quantity);
    lines = all.map((d) => along(trace, state.layer, state.head, d, quantity));
    masks = nothing;
  }
  const maps = lines.map((line, d) => atPatches(trace, d, line));
  return { trace, maps, masks, merged: meanMap(maps), mergedMask: eitherMask(masks), lines, weights };
}

/** Patches that some direction reaches. */
function eitherMask(masks) {
  if (!masks[0]) return null;
  return masks[0].map((_, p) => (masks.some((mask) => mask[p]) ? 1 : 0));
}

/**
 * What one panel shows: a map in patch order, `mask` of the patches that have a value, and `readers`, the directions
 * by whose reading it fills. A still map has none.
 */
function panelOf(trace, direction, map, maps, mask, timed) {
  const all = direction === MERGED ? trace.orders.map((_, d) => d) : [direction];
  return { trace, direction, map, maps, mask, readers: timed ? all : [], colours: null };
}

/** How much of a patch's reading is done at a step: 1 where every reader has read it, 0 where none. */
function shareRead(panel, patch, step) {
  const { readers, mask, trace } = panel;
  if (!readers.length) return mask && !mask[patch] ? 0 : 1;
  let read = 0;
  for (const d of readers) if (trace.steps[d][patch] <= step) read++;
  return read / readers.length;
}

/** The place in the palette of a patch at a step: merged, the mean of the directions that have read it by then. */
function colourAt(panel, patch, step, share) {
  if (share === 1) return panel.colours[patch];
  let sum = 0, read = 0;
  panel.readers.forEach((d, i) => {
    if (panel.trace.steps[d][patch] > step) return;
    sum += panel.maps[i][patch];
    read++;
  });
  return Math.round(placeOn(panel.scale, sum / read) * 255);
}

/** Places in the palette, a byte each. */
function coloursOf(map, scale) {
  const colours = new Uint8Array(map.length);
  for (let p = 0; p < map.length; p++) colours[p] = Math.round(placeOn(scale, map[p]) * 255);
  return colours;
}

/** What the colour bar and the line over the curve say. */
function measureOf(view, mode) {
  const { state } = view;
  const trace = view.traces[kindsShown(state)[0]];
  if (mode === 'path') return { symbol: '', title: 'Order of the patches', log: false };
  if (mode === 'word') return { symbol: '|M|·‖x‖', title: 'What the word saw', log: false };
  if (mode === 'influence') return { symbol: '|M|·‖x‖', title: 'Influence', log: true };
  return trace.quantities[quantityIndex(trace, state.quantity)];
}

/** What two maps differ by. */
function differenceOf(first, second) {
  let sum = 0, most = -1, at = 0;
  for (let p = 0; p < first.length; p++) {
    const gap = Math.abs(first[p] - second[p]);
    sum += gap;
    if (gap > most) [most, at] = [gap, p];
  }
  return {
    means: [meanOf(first), meanOf(second)],
    mean: sum / first.length,
    most,
    at,
    r: correlation(first, second),
  };
}

function placeOf(trace, patch) {
  return `row ${Math.floor(patch / trace.cols) + 1}, column ${(patch % trace.cols) + 1}`;
}

/** The patch under the playhead, of the direction that is enlarged, or else the first. */
function patchAtPlayhead(view) {
  const { trace } = view.scene;
  const direction = Number.isInteger(view.state.direction) ? view.state.direction : 0;
  return trace.orders[direction][view.state.step];
}

/** The patch that the readout speaks of: pointed at, else chosen, else under the playhead. */
function patchSpokenOf(view) {
  if (view.hover !== null) return view.hover;
  if (view.state.patch !== null) return view.state.patch;
  return view.scene.timed ? patchAtPlayhead(view) : null;
}
