// The stage: panels of the picture with a map over it, where they stand, and what is pointed at on them.

const GAP = 14; // CSS pixels between panels
const CAPTION = 30; // and for a panel's caption
const TALLEST = 540; // of a single panel

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
      const panel = { canvas: element('canvas', 'scan-map'), path: element('canvas', 'scan-path'), dots: [] };
      if (!frame || !scene.compare) {
        const box = element('div', 'scan-panel' + (spec.direction === MERGED ? ' scan-merged' : ''));
        frame = element('div', 'scan-frame');
        const caption = element('div', 'scan-caption');
        if (scene.compare) caption.append(...words.map((text) => element('span', '', text)));
        else {
          const mark = element('span', 'scan-mark');
          mark.hidden = scene.mode === 'word';
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
  if (scene.mode === 'word') return view.at['word-title'].textContent;
  return panel.direction === MERGED ? 'merged' : panel.trace.directions[panel.direction];
}

/** Widths of the panels, so that all fit the stage and keep the picture's shape. */
function placePanels(view) {
  const { scene, at } = view;
  const wide = view.sizes.stage.width;
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
  panel.line = cell >= 10 * ratio ? Math.round(ratio) : 0; // finer grids need no lines
  panel.grid = cell >= 20 * ratio ? 'rgba(255,255,255,.22)' : 'rgba(255,255,255,.12)';
  panel.stroke = Math.max(2 * ratio, Math.min(cell * 0.13, 3.5 * ratio));
}

/** The outlines of the patch pointed at and of the chosen one, on all panels. */
function outlinePatches(view) {
  if (!view.scene) return;
  const { rows, cols } = view.scene.trace;
  const chosen = view.scene.mode === 'influence' ? view.state.patch : null;
  const outlined = [view.signature, view.hover, chosen].join();
  if (outlined === view.outlined) return;
  view.outlined = outlined;
  for (const [name, patch] of [['scan-cursor', view.hover], ['scan-chosen', chosen]]) {
    for (const box of view.at.stage.getElementsByClassName(name)) {
      box.style.display = patch === null ? 'none' : 'block';
      if (patch === null) continue;
      box.style.width = 100 / cols + '%';
      box.style.height = 100 / rows + '%';
      box.style.transform = `translate(${(patch % cols) * 100}%,${Math.floor(patch / cols) * 100}%)`; // without layout
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
    const fine = { ArrowLeft: -2, ArrowDown: -2, ArrowRight: 2, ArrowUp: 2 };
    const by = { ...fine, Home: -100, End: 100, PageUp: 10, PageDown: -10 };
    if (!(event.key in by)) return;
    event.preventDefault();
    event.stopPropagation();
    move(view.swipe + by[event.key]);
  });
  move(view.swipe);
}
