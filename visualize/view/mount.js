// Everything is put together here: mount(root, host) makes the section in `root` live.

/** root: the element that holds view.html; host: how the view asks for data. Returns {get, set, receive, maps}. */
function mount(root, host) {
  const section = root.matches('.scan-view') ? root : root.querySelector('.scan-view');
  const at = {};
  for (const node of section.querySelectorAll('[data-at]')) at[node.dataset.at] = node;
  const view = {
    root: section,
    host: { can: {}, ...host, request: (...args) => host.request(...args), link: (state) => host.link(state) },
    at,
    id: (mount.count = (mount.count || 0) + 1),
    state: {
      picture: null, kind: 'bsm', layer: 0, head: null, quantity: 'state', direction: null, step: 0, patch: null,
      word: null, word_layer: null, through: false,
    },
    wishes: readWishes(host.initial),
    traces: {}, failed: new Set(), loading: new Set(), asked: new Set(), pending: 0, epoch: 0, loaded: false,
    scene: null, panels: [], bases: new Map(), picture: null, curves: [element('canvas'), element('canvas')],
    sizes: { stage: { width: 0, height: 0 }, plot: { width: 0, height: 0 } }, veil: '#ffffff', ink: '#26302b',
    dirty: { scene: false, paint: false }, hover: null, opacity: 0.85, swipe: 50,
    playing: false, position: 0, speed: 1, read: 0,
    still: window.matchMedia('(prefers-reduced-motion: reduce)').matches,
  };
  readColours(view);
  listen(view);
  fillFormats(view);
  start(view);
  const object = {
    get: () => ({ ...view.state }),
    set: (partial) => {
      view.touched = true;
      change(view, partial);
    },
    receive: (message) => receive(view, message),
    maps: () => {
      const scene = planScene(view);
      return scene && { directions: scene.sides[0].maps.map(listOf), merged: listOf(scene.sides[0].merged) };
    },
  };
  root.scanView = object;
  return object;
}

function listOf(map) {
  return map && Array.from(map);
}

/** What a link asks for; each field is checked once there is a trace to check it against. */
function readWishes(initial) {
  return initial && typeof initial === 'object' ? { ...initial } : {};
}

function start(view) {
  const { kind } = view.wishes;
  loadTrace(view, kind === 'csm' ? 'csm' : 'bsm');
}

function receive(view, message) {
  if (!message || typeof message !== 'object') return;
  if (message.type === 'picture') {
    if (view.tour) closeTour(view);
    const { kind, layer, head, quantity, direction } = view.state;
    setPlaying(view, false);
    view.epoch += 1;
    Object.assign(view, {
      traces: {}, failed: new Set(), loading: new Set(), asked: new Set(), loaded: false, hover: null, touched: false,
    });
    view.wishes = { kind, layer, head, quantity, direction };
    Object.assign(view.state, { step: 0, patch: null, word: null, word_layer: null, through: false });
    notice(view, '');
    start(view);
  } else if (message.type === 'answer' && message.kind) takeAnswers(view, { [message.kind]: message.answer });
}

/** Colours that canvases need, from the page. */
function readColours(view) {
  const style = getComputedStyle(view.root);
  view.ink = style.color || view.ink;
  view.veil = style.getPropertyValue('--scan-veil').trim() || '#ffffff';
  view.bases.clear();
}

function listen(view) {
  const { at, root } = view;
  const on = (node, type, react, options) => node.addEventListener(type, react, options);
  const touch = () => (view.touched = true); // who has done something is not interrupted by autoplay
  on(root, 'pointerdown', touch, true);
  on(root, 'keydown', touch, true);
  on(at.head, 'change', () => change(view, { head: at.head.value === '' ? null : Number(at.head.value) }));
  on(at['word-layer'], 'change', () =>
    change(view, { word_layer: at['word-layer'].value === '' ? null : Number(at['word-layer'].value) }));
  on(at.opacity, 'input', () => {
    view.opacity = Number(at.opacity.value) / 100;
    view.dirty.paint = true;
    schedule(view);
  });
  on(at.scrub, 'input', () => goTo(view, Number(at.scrub.value)));
  on(at.back, 'click', () => goTo(view, view.state.step - 1));
  on(at.forward, 'click', () => goTo(view, view.state.step + 1));
  on(at.play, 'click', () => setPlaying(view, !view.playing));
  on(at.speed, 'change', () => (view.speed = Number(at.speed.value)));
  on(at.leave, 'click', () => change(view, { patch: null, word: null }));
  on(at['notice-close'], 'click', () => notice(view, ''));
  on(at.ask, 'submit', (event) => {
    event.preventDefault();
    putQuestion(view);
  });
  on(at.link, 'click', () => copyLink(view));
  on(at.tour, 'click', () => openTour(view));
  on(at['tour-close'], 'click', () => closeTour(view));
  on(at['tour-back'], 'click', () => moveTour(view, -1));
  on(at['tour-next'], 'click', () => moveTour(view, 1));
  on(at.card, 'keydown', (event) => {
    if (event.key === 'Escape') closeTour(view);
    else if (event.key === 'ArrowRight') moveTour(view, 1);
    else if (event.key === 'ArrowLeft') moveTour(view, -1);
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  on(at.export, 'keydown', (event) => {
    if (event.key !== 'Escape' || !at.export.open) return;
    at.export.open = false;
    at.export.querySelector('summary').focus();
    event.stopPropagation();
  });
  on(document, 'pointerdown', (event) => {
    if (at.export.open && !at.export.contains(event.target)) at.export.open = false;
  });
  on(at.stage, 'keydown', (event) => pressed(view, event));
  on(root, 'keydown', (event) => {
    if (event.key !== 'Escape' || event.defaultPrevented) return;
    if (view.tour) closeTour(view);
    else if (view.state.patch !== null || view.state.word !== null) change(view, { patch: null, word: null });
  });
  pointAtPatches(view);
  const resized = new ResizeObserver((entries) => {
    for (const { target, contentRect } of entries) view.sizes[target.dataset.at] = contentRect;
    view.curve = null;
    schedule(view);
  });
  resized.observe(at.stage);
  resized.observe(at.plot);
  const recolour = () => {
    readColours(view);
    view.curve = null;
    view.dirty.paint = true;
    schedule(view);
  };
  on(window.matchMedia('(prefers-color-scheme: dark)'), 'change', recolour);
  new MutationObserver(recolour).observe(document.body, { attributes: true, attributeFilter: ['class'] });
}

/** Pointing reads a patch; pressing chooses it, dragging moves the choice, the same patch again leaves it. */
function pointAtPatches(view) {
  const { stage } = view.at;
  let pressed = null;
  const hover = (patch) => {
    if (view.hover === patch) return;
    view.hover = patch;
    schedule(view);
  };
  const choose = (patch) => {
    if (patch !== null && (view.state.patch !== patch || view.state.word !== null)) change(view, { patch, word: null });
  };
  stage.addEventListener('pointermove', (event) => {
    const patch = patchUnder(view, event);
    hover(patch);
    if (!pressed) return;
    // A touch that moves up or down scrolls the page and is cancelled; one that gets here drags over the patches.
    if (patch !== null && patch !== pressed.patch) {
      pressed.dragged = true;
      choose(patch);
    }
  });
  stage.addEventListener('pointerdown', (event) => {
    if (event.button !== 0 || event.target.closest('.scan-swipe')) return;
    const patch = patchUnder(view, event);
    if (patch === null) return;
    pressed = { patch, again: view.state.patch === patch && view.state.word === null, dragged: false };
    if (event.target.hasPointerCapture && event.target.hasPointerCapture(event.pointerId)) {
      event.target.releasePointerCapture(event.pointerId); // a touch would stay with its first panel
    }
    if (event.pointerType === 'mouse') choose(patch);
  });
  stage.addEventListener('pointerup', (event) => {
    if (!pressed) return;
    if (!pressed.dragged && pressed.again) change(view, { patch: null });
    else if (!pressed.dragged) choose(pressed.patch);
    pressed = null;
    if (event.pointerType !== 'mouse') hover(null);
  });
  stage.addEventListener('pointercancel', () => {
    pressed = null;
    hover(null);
  });
  stage.addEventListener('pointerleave', () => {
    pressed = null;
    hover(null);
  });
}

/** Keys on the stage. */
function pressed(view, event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target !== view.at.stage || !view.scene) return;
  const { state } = view;
  const { trace } = view.scene;
  const stride = event.shiftKey ? 10 : 1;
  const walk = (rows, cols) => {
    const from = state.patch === null ? patchAtPlayhead(view) : state.patch;
    const r = Math.min(trace.rows - 1, Math.max(0, Math.floor(from / trace.cols) + (state.patch === null ? 0 : rows)));
    const c = Math.min(trace.cols - 1, Math.max(0, (from % trace.cols) + (state.patch === null ? 0 : cols)));
    change(view, { patch: r * trace.cols + c, word: null });
  };
  const keys = {
    ArrowLeft: () => goTo(view, state.step - stride),
    ArrowRight: () => goTo(view, state.step + stride),
    Home: () => goTo(view, 0),
    End: () => goTo(view, trace.n - 1),
    ' ': () => setPlaying(view, !view.playing),
    b: () => change(view, { kind: 'bsm' }),
    c: () => change(view, { kind: 'csm' }),
    v: () => change(view, { kind: 'compare' }),
    0: () => change(view, { direction: null }),
    5: () => change(view, { direction: MERGED }),
    Enter: () => {
      const patch = patchAtPlayhead(view);
      change(view, state.patch === patch ? { patch: null } : { patch, word: null });
    },
    w: () => walk(-1, 0),
    a: () => walk(0, -1),
    s: () => walk(1, 0),
    d: () => walk(0, 1),
  };
  for (let d = 0; d < Math.min(4, trace.orders.length); d++) keys[d + 1] = () => change(view, { direction: d });
  const act = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!act) return;
  event.preventDefault();
  act();
}
