// The stage: panels of the picture with a map over it, drawn on canvases. A frame repaints only the cells that changed.

const GAP = 14; // CSS pixels between panels
const CAPTION = 30; // and for a panel's caption
const TALLEST = 540; // of a single panel
const TRAIL = 9; // steps of the path that stay behind its head, on a map
const GRID = 'rgba(255,255,255,.22)';

/** An element of a class, with text. All that comes from outside is set as text, never as HTML. */
function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

/** The picture in its own size, in colour and in grey, kept until another one comes. */
function loadPicture(view, picture) {
  if (view.picture && view.picture.src === picture.src) return view.picture.ready;
  const loading = { src: picture.src, aspect: picture.width / picture.height, colour: null, grey: null };
  view.picture = loading;
  const image = new Image();
  loading.ready = new Promise((done) => {
    image.onload = () => {
      loading.colour = canvasOf(image, picture.width, picture.height);
      loading.grey = canvasOf(image, picture.width, picture.height);
      const context = loading.grey.getContext('2d');
      const pixels = context.getImageData(0, 0, picture.width, picture.height);
      const data = pixels.data;
      for (let i = 0; i < data.length; i += 4) {
        const light = 0.2126 * data[i] + 0.7152 * data[i + 1] + 0.0722 * data[i + 2];
        data[i] = data[i + 1] = data[i + 2] = 38 + 0.6 * light; // dimmed, so that a map stands out
      }
      context.putImageData(pixels, 0, 0);
      done();
    };
    image.onerror = () => done(); // the maps can be read without the picture
    image.src = picture.src;
  });
  return loading.ready;
}

function canvasOf(image, width, height) {
  const canvas = element('canvas');
  canvas.width = width;
  canvas.height = height;
  canvas.getContext('2d').drawImage(image, 0, 0, width, height);
  return canvas;
}

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

/** Panels of the scene as elements, made anew where their number or kind changed. */
function buildPanels(view) {
  const { scene, at } = view;
  const names = scene.panels.map((panel) => panelName(view, panel));
  const hues = scene.panels.map((panel) => (panel.direction === MERGED ? panel.trace.orders.length : panel.direction));
  const words = scene.compare ? scene.panels.map((panel, k) => comparedName(view, panel, names[k])) : names;
  const signature = JSON.stringify([scene.layout, scene.mode, words, hues, scene.trace.rows, scene.trace.cols]);
  if (signature !== view.signature) {
    view.signature = signature;
    at.stage.replaceChildren();
    view.panels = [];
    let frame = null;
    scene.panels.forEach((spec, i) => {
      const panel = { canvas: element('canvas', 'scan-map'), path: element('canvas', 'scan-path'), dots: [], spec: null };
      if (!frame || !scene.compare) {
        const box = element('div', 'scan-panel' + (spec.direction === MERGED ? ' scan-merged' : ''));
        frame = element('div', 'scan-frame');
        const caption = element('div', 'scan-caption');
        if (scene.compare) caption.append(...words.map((text) => element('span', '', text)));
        else {
          const mark = element('span', 'scan-mark');
          if (spec.direction === MERGED) mark.classList.add('scan-mark-merged');
          else mark.style.background = HUES[spec.direction];
          panel.value = element('span', 'scan-value');
          caption.append(mark, element('span', 'scan-name', names[i]), panel.value);
        }
        box.append(frame, caption);
        at.stage.append(box);
      }
      panel.frame = frame;
      frame.append(panel.canvas);
      if (scene.timed || scene.mode === 'influence') frame.append(...(scene.compare ? [] : dotsOf(panel, spec)));
      view.panels.push(panel);
    });
    for (const panel of new Set(view.panels.map((panel) => panel.frame))) {
      panel.append(element('div', 'scan-cursor'), element('div', 'scan-chosen'));
    }
    if (scene.compare) addSwipe(view, frame);
    view.placed = '';
  }
  scene.panels.forEach((spec, i) => {
    view.panels[i].spec = spec;
    view.panels[i].painted = -1; // everything is to be painted
  });
}

/** The path's canvas and a dot at the playhead of each direction that the panel shows. */
function dotsOf(panel, spec) {
  const shown = spec.direction === MERGED ? spec.trace.orders.map((_, d) => d) : [spec.direction];
  panel.dots = shown.map((d) => {
    const dot = element('div', 'scan-dot');
    dot.style.background = HUES[d];
    return { direction: d, node: dot };
  });
  return [panel.path, ...panel.dots.map((dot) => dot.node)];
}

/** What stands below each half of a comparison. */
function comparedName(view, panel, name) {
  if (view.scene.mode !== 'word') return `${name}, mean of ${panel.trace.orders.length} directions`;
  const word = panel.trace.answer && panel.trace.answer.words[view.state.word];
  return word === undefined || word === null ? `${name}: no such word` : `${name} “${word}”`;
}

function panelName(view, panel) {
  const { scene } = view;
  if (scene.compare) return KIND_NAMES[panel.trace.kind];
  if (scene.mode === 'word') return `saw by “${panel.trace.answer ? panel.trace.answer.words[view.state.word] : ''}”`;
  return panel.direction === MERGED ? 'merged' : panel.trace.directions[panel.direction];
}

/** Widths of the panels, so that all fit the stage and keep the picture's shape. */
function placePanels(view) {
  const { scene, at } = view;
  const wide = at.stage.clientWidth;
  const ratio = Math.min(window.devicePixelRatio || 1, 2);
  const aspect = view.picture.aspect;
  const placed = [view.signature, wide, ratio, aspect].join();
  if (!wide || placed === view.placed) return;
  view.placed = placed;
  view.bases.clear();
  const d = scene.panels.length - 1;
  let widths, columns;
  if (scene.layout !== 'all') {
    widths = [Math.min(wide, TALLEST * aspect)];
    columns = widths[0] + 'px';
  } else if (wide < 640) {
    const half = Math.min((wide - GAP) / 2, (TALLEST * aspect) / 2);
    widths = [...Array(d).fill(half), 2 * half + GAP];
    columns = `${half}px ${half}px`;
  } else if (d === 2) {
    const third = Math.min((wide - 2 * GAP) / 3, TALLEST * aspect);
    widths = Array(3).fill(third);
    columns = `repeat(3, ${third}px)`;
  } else {
    // Two rows of small panels, as tall as the merged one beside them: b = 2 a + (caption and gap, as a width).
    const extra = (CAPTION + GAP) * aspect;
    const large = Math.min((wide - 2 * GAP - extra) / 2 + extra, TALLEST * aspect);
    const small = (large - extra) / 2;
    widths = [...Array(d).fill(small), large];
    columns = `${small}px ${small}px ${large}px`;
  }
  at.stage.style.gridTemplateColumns = columns;
  at.stage.dataset.layout = scene.layout === 'all' && wide < 640 ? 'phone' : scene.layout === 'all' ? 'all' + d : 'one';
  view.panels.forEach((panel, i) => {
    const width = scene.compare ? widths[0] : widths[i];
    const high = width / aspect;
    panel.frame.style.width = width + 'px';
    panel.frame.style.height = high + 'px';
    sizePanel(panel, Math.round(width * ratio), Math.round(high * ratio), ratio, scene.trace);
  });
}

/** A panel's canvases in device pixels, and where its cells begin: cell edges fall on whole pixels. */
function sizePanel(panel, width, height, ratio, trace) {
  for (const canvas of [panel.canvas, panel.path]) {
    canvas.width = width;
    canvas.height = height;
  }
  Object.assign(panel, { width, height, ratio, painted: -1, drawn: -1 });
  panel.context = panel.canvas.getContext('2d', { alpha: false });
  panel.pen = panel.path.getContext('2d');
  panel.xs = Int32Array.from({ length: trace.cols + 1 }, (_, c) => Math.ceil((c * width) / trace.cols - 0.5));
  panel.ys = Int32Array.from({ length: trace.rows + 1 }, (_, r) => Math.ceil((r * height) / trace.rows - 0.5));
  panel.small = element('canvas');
  panel.small.width = trace.cols;
  panel.small.height = trace.rows;
  const cell = Math.min(width / trace.cols, height / trace.rows);
  panel.line = cell >= 6 * ratio ? Math.round(ratio) : 0; // finer grids need no lines
  panel.stroke = Math.max(1.3 * ratio, Math.min(cell * 0.13, 3.5 * ratio));
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
    context.fillStyle = GRID;
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
  context.fillStyle = GRID;
  if (c) context.fillRect(x, y, panel.line, h);
  if (r) context.fillRect(x + (c ? panel.line : 0), y, w - (c ? panel.line : 0), panel.line);
}

/** The path: whole where it is the subject, a short trail over a map; and the heads, gliding between neighbours. */
function paintPath(view, panel, step, glide) {
  const { mode } = view.scene;
  if (panel.drawn !== step) {
    const whole = mode === 'path';
    const { pen, spec } = panel;
    if (!whole || step < panel.drawn || panel.drawn < 0) pen.clearRect(0, 0, panel.width, panel.height);
    if (mode !== 'influence' && spec.direction !== MERGED) {
      const order = spec.trace.orders[spec.direction];
      const from = whole ? (step < panel.drawn ? 0 : Math.max(panel.drawn, 0)) : Math.max(0, step - trailOf(spec.trace));
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
  pen.lineWidth = stroke + 1.6 * ratio;
  pen.strokeStyle = '#fff';
  line(from, to, true);
  pen.lineWidth = stroke;
  pen.strokeStyle = hue;
  line(whole ? from - 1 : from, to, true); // the new casing's round end lies over the last piece: once more
}

/** The outlines of the patch pointed at and of the chosen one, on all panels. */
function outlinePatches(view) {
  if (!view.scene) return;
  const { rows, cols } = view.scene.trace;
  const chosen = view.scene.mode === 'influence' ? view.state.patch : null;
  for (const [name, patch] of [['scan-cursor', view.hover], ['scan-chosen', chosen]]) {
    for (const box of view.at.stage.getElementsByClassName(name)) {
      box.style.display = patch === null ? 'none' : 'block';
      if (patch === null) continue;
      box.style.left = ((patch % cols) * 100) / cols + '%';
      box.style.top = (Math.floor(patch / cols) * 100) / rows + '%';
      box.style.width = 100 / cols + '%';
      box.style.height = 100 / rows + '%';
    }
  }
}

/** The patch under a pointer, or null. */
function patchUnder(view, event) {
  const frame = event.target.closest && event.target.closest('.scan-frame');
  if (!frame || !view.scene) return null;
  const box = frame.getBoundingClientRect();
  const { rows, cols } = view.scene.trace;
  const c = Math.floor(((event.clientX - box.left) / box.width) * cols);
  const r = Math.floor(((event.clientY - box.top) / box.height) * rows);
  return c >= 0 && r >= 0 && c < cols && r < rows ? r * cols + c : null;
}

/** The divider between BSM and CSM: the second panel lies over the first and is cut off at it. */
function addSwipe(view, frame) {
  const handle = element('div', 'scan-swipe');
  handle.tabIndex = 0;
  handle.setAttribute('role', 'slider');
  handle.setAttribute('aria-label', 'Divider between BSM and CSM');
  handle.setAttribute('aria-valuemin', '0');
  handle.setAttribute('aria-valuemax', '100');
  handle.append(element('div', 'scan-grip'));
  const tags = ['BSM', 'CSM'].map((name, i) => element('div', 'scan-tag scan-tag-' + (i ? 'right' : 'left'), name));
  frame.append(...tags, handle);
  const move = (percent) => {
    view.swipe = Math.min(100, Math.max(0, percent));
    handle.style.left = view.swipe + '%';
    view.panels[1].canvas.style.clipPath = `inset(0 0 0 ${view.swipe}%)`;
    handle.setAttribute('aria-valuenow', String(Math.round(view.swipe)));
    handle.setAttribute('aria-valuetext', `${Math.round(view.swipe)} % BSM`);
    tags[0].style.opacity = view.swipe > 12 ? 1 : 0;
    tags[1].style.opacity = view.swipe < 88 ? 1 : 0;
  };
  const follow = (event) => {
    const box = frame.getBoundingClientRect();
    move(((event.clientX - box.left) / box.width) * 100);
  };
  handle.addEventListener('pointerdown', (event) => {
    event.stopPropagation();
    handle.setPointerCapture(event.pointerId);
  });
  handle.addEventListener('pointermove', (event) => handle.hasPointerCapture(event.pointerId) && follow(event));
  handle.addEventListener('keydown', (event) => {
    const by = { ArrowLeft: -2, ArrowDown: -2, ArrowRight: 2, ArrowUp: 2, Home: -100, End: 100, PageUp: 10, PageDown: -10 };
    if (!(event.key in by)) return;
    event.preventDefault();
    event.stopPropagation();
    move(view.swipe + by[event.key]);
  });
  move(view.swipe);
}
