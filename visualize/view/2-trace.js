// One trace: what a connector's scans were on one picture, with the maps that the stage draws from it.

const MERGED = 'merged';

/** A payload, made ready: orders[d][t] is the patch seen at step t, steps[d][patch] the step that sees it. */
function openTrace(payload) {
  const orders = payload.orders.map((order) => Int32Array.from(order));
  const steps = orders.map((order) => {
    const inverse = new Int32Array(order.length);
    order.forEach((patch, t) => (inverse[patch] = t));
    return inverse;
  });
  return {
    model: String(payload.model),
    kind: payload.kind,
    kinds: payload.kinds,
    trained: payload.trained,
    rows: payload.rows,
    cols: payload.cols,
    n: payload.rows * payload.cols,
    layers: payload.layers,
    heads: payload.heads,
    directions: payload.directions,
    orders,
    steps,
    quantities: payload.quantities,
    palette: bytesOf(payload.palette),
    picture: payload.picture,
    answer: payload.answer && { ...payload.answer, maps: { ...payload.answer.maps } },
    packed: { ...payload.parts },
    opened: new Map(), // parts by name, each unpacked once
    decays: new Map(), // log-decay summed along the scan, a layer
    absent: new Set(), // parts that were asked for in vain
  };
}

/** A part of the trace, unpacked; null where it has yet to be asked for. */
function partOf(trace, name) {
  if (trace.opened.has(name)) return trace.opened.get(name);
  const packed = name.startsWith('word/') ? trace.answer && trace.answer.maps[name] : trace.packed[name];
  if (!packed) return null;
  let part;
  if ('data' in packed) part = unpackArray(packed);
  else part = Object.fromEntries(Object.entries(packed).map(([key, array]) => [key, unpackArray(array)]));
  trace.opened.set(name, part);
  return part;
}

function storePart(trace, name, packed) {
  if (name.startsWith('word/')) {
    if (trace.answer) trace.answer.maps[name] = packed;
  } else trace.packed[name] = packed;
  trace.opened.delete(name);
}

/** Another answer: its words' maps replace those of the last. */
function setAnswer(trace, answer) {
  trace.answer = answer && { ...answer, maps: { ...answer.maps } };
  for (const name of [...trace.opened.keys()]) if (name.startsWith('word/')) trace.opened.delete(name);
  trace.absent.clear();
}

function mapsName(head) {
  return head === null ? 'maps/mean' : 'maps/' + head;
}

function quantityIndex(trace, name) {
  return trace.quantities.findIndex((quantity) => quantity.name === name);
}

/** A quantity at each step of a direction, in scan order; the mean over heads where head is null. */
function along(trace, layer, head, direction, quantity) {
  const part = partOf(trace, mapsName(head));
  if (!part) return null;
  const [, directions, quantities, length] = part.shape;
  const start = ((layer * directions + direction) * quantities + quantity) * length;
  return part.values.subarray(start, start + length);
}

/** The same at each patch, row by row. */
function over(trace, layer, head, direction, quantity) {
  const line = along(trace, layer, head, direction, quantity);
  return line && atPatches(trace, direction, line);
}

/** From scan order to patch order. */
function atPatches(trace, direction, line) {
  const map = new Float32Array(line.length);
  const order = trace.orders[direction];
  for (let t = 0; t < line.length; t++) map[order[t]] = line[t];
  return map;
}

/** Σ Δ_k A from the start of the scan to each step: (d, h, l), in double precision, as its differences are small. */
function summedDecay(trace, layer, keys) {
  if (trace.decays.has(layer)) return trace.decays.get(layer);
  const [directions, length, heads] = keys.dt.shape;
  const sums = new Float64Array(directions * heads * length);
  for (let d = 0; d < directions; d++) {
    for (let h = 0; h < heads; h++) {
      const rate = keys.A.values[d * heads + h];
      let sum = 0;
      for (let t = 0; t < length; t++) {
        sum += keys.dt.values[(d * length + t) * heads + h] * rate;
        sums[(d * heads + h) * length + t] = sum;
      }
    }
  }
  trace.decays.set(layer, sums);
  return sums;
}

/**
 * How strongly each patch reaches one, in one direction: {M, size} in scan order up to and with the patch's own step,
 * 0 after it. M[t,s] = C_t·B_s · exp(Σ_{k=s+1..t} Δ_k A) · Δ_s and size = |M[t,s]|·‖x_s‖, or their means over heads.
 */
function influenceAlong(trace, layer, head, direction, patch) {
  const keys = partOf(trace, 'keys/' + layer);
  if (!keys) return null;
  const [, length, heads] = keys.dt.shape;
  const size = keys.B.shape[2];
  const sums = summedDecay(trace, layer, keys);
  const t = trace.steps[direction][patch];
  const first = head === null ? 0 : head;
  const last = head === null ? heads : head + 1;
  const M = new Float32Array(length);
  const reach = new Float32Array(length);
  const C = keys.C.values.subarray((direction * length + t) * size, (direction * length + t + 1) * size);
  for (let s = 0; s <= t; s++) {
    const row = direction * length + s;
    const B = keys.B.values;
    let match = 0;
    for (let i = 0; i < size; i++) match += C[i] * B[row * size + i];
    let signed = 0;
    let strength = 0;
    for (let h = first; h < last; h++) {
      const at = (direction * heads + h) * length;
      const m = match * Math.exp(sums[at + t] - sums[at + s]) * keys.dt.values[row * heads + h];
      signed += m;
      strength += Math.abs(m) * keys.x.values[row * heads + h];
    }
    M[s] = signed / (last - first);
    reach[s] = strength / (last - first);
  }
  return { M, size: reach };
}

/** What a word saw: (n,) in patch order, or null. Of the layers the first is their mean. */
function wordMap(trace, word, layer, through) {
  const part = partOf(trace, 'word/' + word);
  if (!part) return null;
  const [, layers, length] = part.shape;
  const start = ((through ? layers : 0) + (layer === null ? 0 : 1 + layer)) * length;
  return part.values.subarray(start, start + length);
}
