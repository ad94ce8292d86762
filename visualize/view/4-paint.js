// Painting the panels: the map's cells, the path, and the heads that walk it. A frame repaints only what changed.

const TRAIL = 9; // steps of the path that stay behind its head, on a map

/** The picture in a panel's size, in "colour", "grey" or "pale"; panels of one size share it. */
function baseOf(view, tone, width, height) {
  const key = `${tone} ${width} ${height}`;
  if (view.bases.has(key)) return view.bases.get(key);
  const base = scratchOf(view, width, height, key);
  const context = base.getContext('2d');
  const source = view.picture[tone === 'grey' ? 'grey' : 'colour'];
  context.fillStyle = '#8a8f8b';
  context.fillRect(0, 0, width, height);
  context.imageSmoothingQuality = 'high';
  if (source) context.drawImage(source, 0, 0, width, height);
  if (tone === 'pale') {
    context.globalAlpha = 0.58;
    context.fillStyle = view.veil;
    context.fillRect(0, 0, width, height);
  }
  return base;
}

/** A canvas that is kept as long as the panels keep their size. */
function scratchOf(view, width, height, key = `scratch ${width} ${height}`) {
  if (view.bases.has(key)) return view.bases.get(key);
  const canvas = element('canvas');
  canvas.width = width;
  canvas.height = height;
  view.bases.set(key, canvas);
  return canvas;
}

/** Bring every panel to a step; `glide` (0 to 1) is how far the head is on its way to the next. */
function paintPanels(view, step, glide) {
  for (const panel of view.panels) {
    const cells = Math.abs(step - panel.painted) * panel.spec.readers.length;
    if (panel.painted < 0 || cells > panel.spec.trace.n / 3) paintAll(view, panel, step);
    else if (cells) paintChanged(view, panel, step);
    panel.painted = step;
    if (panel.dots.length) paintPath(view, panel, step, glide);
  }
}

/** How opaque a cell's colour is, for the share of its readers that have read it: pale until all have. */
function strengthOf(share) {
  return share === 1 ? 1 : share === 0 ? 0 : 0.2 + 0.45 * share;
}

/**
 * The whole panel. The map is a picture of one pixel a patch, scaled up, over the picture in grey, so that its colours
 * read true; what is yet to be read stays picture, pale. On the path there is no map, only the paleness.
 */
function paintAll(view, panel, step) {
  const { spec, context, width, height, small } = panel;
  const { palette, cols, rows, n } = spec.trace;
  const path = view.scene.mode === 'path';
  const bare = !path && !spec.colours; // nothing to show: the picture alone
  const pen = small.getContext('2d');
  const pixels = pen.createImageData(cols, rows);
  const mask = pen.createImageData(cols, rows);
  let unread = 0;
  for (let p = 0; p < n; p++) {
    const share = bare ? 0 : shareRead(spec, p, step);
    mask.data[4 * p + 3] = path ? 255 * (1 - share) : share === 0 ? 255 : 0;
    if (mask.data[4 * p + 3]) unread++;
    if (path || share === 0) continue;
    const colour = 3 * colourAt(spec, p, step, share);
    for (let i = 0; i < 3; i++) pixels.data[4 * p + i] = palette[colour + i];
    pixels.data[4 * p + 3] = 255 * strengthOf(share);
  }
  context.globalAlpha = 1;
  context.drawImage(baseOf(view, path ? 'colour' : 'grey', width, height), 0, 0);
  context.imageSmoothingEnabled = false;
  if (!path) {
    pen.putImageData(pixels, 0, 0);
    context.globalAlpha = view.opacity;
    context.drawImage(small, 0, 0, width, height);
    context.globalAlpha = 1;
  }
  if (unread) {
    pen.putImageData(mask, 0, 0);
    const cut = scratchOf(view, width, height);
    const scissors = cut.getContext('2d');
    scissors.imageSmoothingEnabled = false;
    scissors.globalCompositeOperation = 'copy';
    scissors.drawImage(small, 0, 0, width, height);
    scissors.globalCompositeOperation = 'source-in';
    scissors.drawImage(baseOf(view, 'pale', width, height), 0, 0);
    context.drawImage(cut, 0, 0);
  }
  if (panel.line) {
    context.fillStyle = panel.grid;
    for (let c = 1; c < cols; c++) context.fillRect(panel.xs[c], 0, panel.line, height);
    for (let r = 1; r < rows; r++) context.fillRect(0, panel.ys[r], width, panel.line);
  }
}

/** Only the cells that are read, or no longer, between the step that is painted and `step`. */
function paintChanged(view, panel, step) {
  const { spec } = panel;
  const from = Math.min(step, panel.painted) + 1;
  const to = Math.max(step, panel.painted);
  for (const d of spec.readers) for (let t = from; t <= to; t++) paintCell(view, panel, spec.trace.orders[d][t], step);
}

function paintCell(view, panel, p, step) {
  const { spec, context, xs, ys, width, height } = panel;
  const { palette, cols } = spec.trace;
  const path = view.scene.mode === 'path';
  const r = Math.floor(p / cols);
  const c = p - r * cols;
  const x = xs[c], y = ys[r], w = xs[c + 1] - xs[c], h = ys[r + 1] - ys[r];
  const share = path || spec.colours ? shareRead(spec, p, step) : 0;
  const under = baseOf(view, path ? 'colour' : share ? 'grey' : 'pale', width, height);
  context.drawImage(under, x, y, w, h, x, y, w, h);
  if (path && share < 1) {
    context.globalAlpha = 1 - share;
    context.drawImage(baseOf(view, 'pale', width, height), x, y, w, h, x, y, w, h);
  } else if (!path && share) {
    const colour = 3 * colourAt(spec, p, step, share);
    context.globalAlpha = view.opacity * strengthOf(share);
    context.fillStyle = `rgb(${palette[colour]},${palette[colour + 1]},${palette[colour + 2]})`;
    context.fillRect(x, y, w, h);
  }
  context.globalAlpha = 1;
  if (!panel.line) return;
  context.fillStyle = panel.grid;
  if (c) context.fillRect(x, y, panel.line, h);
  if (r) context.fillRect(x + (c ? panel.line : 0), y, w - (c ? panel.line : 0), panel.line);
}

/** The path: whole where it is the subject, a short trail over a map; and the heads, gliding between neighbours. */
function paintPath(view, panel, step, glide) {
  const { mode } = view.scene;
  if (panel.drawn !== step) {
    const whole = mode === 'path';
    const { pen, spec } = panel;
    const inked = mode !== 'influence' && spec.direction !== MERGED;
    if (panel.path.hidden === inked) panel.path.hidden = !inked; // an empty canvas costs time as well
    if (inked) {
      if (!whole || step < panel.drawn || panel.drawn < 0) pen.clearRect(0, 0, panel.width, panel.height);
      const order = spec.trace.orders[spec.direction];
      const begun = step < panel.drawn ? 0 : Math.max(panel.drawn, 0);
      const from = whole ? begun : Math.max(0, step - trailOf(spec.trace));
      drawPath(panel, order, from, step, HUES[spec.direction], whole);
    }
    panel.drawn = step;
  }
  for (const { direction, node } of panel.dots) {
    const order = panel.spec.trace.orders[direction];
    const here = middleOf(panel, order[step]);
    if (glide && step + 1 < order.length && areNeighbours(panel.spec.trace, order[step], order[step + 1])) {
      const next = middleOf(panel, order[step + 1]);
      here[0] += (next[0] - here[0]) * glide;
      here[1] += (next[1] - here[1]) * glide;
    }
    node.style.transform = `translate(${here[0] / panel.ratio}px,${here[1] / panel.ratio}px)`;
  }
}

function trailOf(trace) {
  return Math.max(TRAIL, Math.round(0.6 * Math.max(trace.rows, trace.cols)));
}

function middleOf(panel, patch) {
  const { cols } = panel.spec.trace;
  const r = Math.floor(patch / cols);
  const c = patch - r * cols;
  return [(panel.xs[c] + panel.xs[c + 1]) / 2, (panel.ys[r] + panel.ys[r + 1]) / 2];
}

function areNeighbours(trace, a, b) {
  const rows = Math.floor(a / trace.cols) - Math.floor(b / trace.cols);
  return Math.abs(rows) + Math.abs((a % trace.cols) - (b % trace.cols)) === 1;
}

/** Part of a path: a white casing, then the direction's colour; leaps to the next line are thin. */
function drawPath(panel, order, from, to, hue, whole) {
  const { pen, spec, stroke, ratio } = panel;
  const line = (first, last, near) => {
    pen.beginPath();
    for (let t = Math.max(first, 0) + 1; t <= last; t++) {
      if (areNeighbours(spec.trace, order[t - 1], order[t]) !== near) continue;
      pen.moveTo(...middleOf(panel, order[t - 1]));
      pen.lineTo(...middleOf(panel, order[t]));
    }
    pen.stroke();
  };
  pen.lineCap = 'round';
  pen.strokeStyle = hue;
  if (whole) {
    pen.globalAlpha = 0.4;
    pen.lineWidth = Math.max(1, 0.8 * ratio);
    line(from, to, false);
    pen.globalAlpha = 1;
  }
  pen.lineWidth = stroke + Math.max(1, Math.min(2, stroke * 0.6)) * ratio;
  pen.strokeStyle = '#fff';
  line(from, to, true);
  pen.lineWidth = stroke;
  pen.strokeStyle = hue;
  line(whole ? from - 1 : from, to, true); // the new casing's round end lies over the last piece: once more
}
