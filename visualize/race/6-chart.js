// The chart of how both scale: two lines on logarithmic axes, with a band from the fastest to the slowest run.

const SHAPES = [
  (x, y, size) => shape('circle', { cx: x, cy: y, r: size, class: 'race-dot' }),
  (x, y, size) => shape('rect', {
    x: x - size * 0.9, y: y - size * 0.9, width: size * 1.8, height: size * 1.8, rx: 1, class: 'race-dot',
  }),
];
const LABEL = 210; // pixels that the words at a crossing take at most
const NEAR = 44; // pixels from the pointer within which a point is meant

/** lines: [{name, points: [{x, y: {min, median, max}}]}]; figure: {units, xText, xTitle, title, crossing}. */
function drawChart(view, lines, figure) {
  const { chart } = view.at;
  const width = Math.round(view.width);
  const points = lines.flatMap((line) => line.points);
  const focused = chart.contains(document.activeElement) ? view.point : null;
  chart.replaceChildren();
  view.points = [];
  if (!width || !points.length) {
    if (!points.length) chart.append(element('div', 'race-empty', 'Nothing has been measured of this.'));
    return;
  }
  const frame = frameOf(points, figure, width);
  const drawing = shape('svg', { width, height: frame.height, class: 'race-plot', role: 'group' });
  drawing.setAttribute('aria-label', `${figure.title}. The arrow keys go from point to point.`);
  drawAxes(drawing, frame, figure, points);
  lines.forEach((line, index) => drawLine(drawing, frame, line, index));
  if (figure.crossing) drawCrossing(drawing, frame, lines, figure);
  lines.forEach((line, index) => drawPoints(view, drawing, frame, line, index, figure));
  view.tip = element('div', 'race-tip');
  view.tip.hidden = true;
  view.tip.setAttribute('aria-hidden', 'true'); // a point has the same as its name
  chart.append(drawing, view.tip);
  const start = view.points.find((point) => focused && point.key === focused.key) || view.points[0];
  start.node.setAttribute('tabindex', '0');
  view.point = start;
  if (focused) start.node.focus();
}

/** Where values lie on the drawing. */
function frameOf(points, { crossing }, width) {
  const narrow = width < 560;
  const height = narrow ? 290 : 380;
  const left = narrow ? 60 : 66;
  const right = width - (narrow ? 16 : 28);
  const [top, bottom] = [26, height - 46];
  const xs = points.map((point) => point.x);
  const ys = points.flatMap((point) => [point.y.min, point.y.max]);
  const pad = Math.max(1.12, (Math.max(...ys) / Math.min(...ys)) ** 0.05);
  const low = { x: Math.min(...xs), y: Math.min(...ys) / pad };
  const high = { x: Math.max(...xs), y: Math.max(...ys) * pad };
  // a crossing just before the first or after the last point is still on the chart
  if (crossing && crossing.at < low.x && crossing.at > low.x / 2) low.x = crossing.at * 0.97;
  if (crossing && crossing.at > high.x && crossing.at < high.x * 2) high.x = crossing.at * 1.03;
  if (high.x === low.x) [low.x, high.x] = [low.x / 2, high.x * 2];
  const place = (value, from, to) => Math.log(value / from) / Math.log(to / from);
  return {
    narrow, width, height, left, right, top, bottom, low, high,
    x: (value) => left + place(value, low.x, high.x) * (right - left),
    y: (value) => bottom - place(value, low.y, high.y) * (bottom - top),
  };
}

/** Round numbers between two values: 1, 2, 5 a decade, closer where that gives few, wider where it gives many. */
function roundNumbers(low, high, most) {
  const close = [1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 9];
  const ladders = [[1], [1, 3], [1, 2, 5], [1, 1.5, 2, 3, 4, 5, 6, 8], close];
  const on = (ladder) => {
    const found = [];
    for (let decade = Math.floor(Math.log10(low)); decade <= Math.log10(high); decade++) {
      for (const digit of ladder) {
        const value = Number((digit * 10 ** decade).toPrecision(3));
        if (value >= low && value <= high) found.push(value);
      }
    }
    return found;
  };
  const fitting = ladders.map(on).filter((ticks) => ticks.length <= most);
  return fitting.reduce((best, ticks) => (ticks.length > best.length ? ticks : best), []);
}

function drawAxes(drawing, frame, figure, points) {
  const { left, right, top, bottom, narrow } = frame;
  const put = (text, x, y, anchor, className) => {
    const node = shape('text', { x, y, 'text-anchor': anchor, class: className });
    node.textContent = text;
    drawing.append(node);
  };
  // numbers in bytes are in decimal units, so round ones are round in MB as well
  for (const value of roundNumbers(frame.low.y, frame.high.y, 7)) {
    const y = frame.y(value);
    drawing.append(shape('line', { x1: left, x2: right, y1: y, y2: y, class: 'race-grid' }));
    put(inUnits(value, figure.units), left - 8, y + 4, 'end', 'race-tick');
  }
  const xs = [...new Set(points.map((point) => point.x))].sort((a, b) => a - b);
  let edge = -Infinity;
  for (const value of xs) {
    const x = frame.x(value);
    drawing.append(shape('line', { x1: x, x2: x, y1: bottom, y2: bottom + 5, class: 'race-axis-line' }));
    if (x - edge < (narrow ? 36 : 44)) continue;
    edge = x;
    put(figure.xText(value), x, bottom + 20, 'middle', 'race-tick');
  }
  drawing.append(shape('line', { x1: left, x2: right, y1: bottom, y2: bottom, class: 'race-axis-line' }));
  put(figure.xTitle, right, bottom + 40, 'end', 'race-tick');
}

function drawLine(drawing, frame, line, index) {
  if (line.points.length < 2) return;
  const path = (points, of) => points.map((p) => `${frame.x(p.x).toFixed(1)},${frame.y(of(p)).toFixed(1)}`);
  const band = [
    ...path(line.points, (p) => p.y.max),
    ...path([...line.points].reverse(), (p) => p.y.min),
  ];
  const hue = `race-hue-${index + 1}`;
  drawing.append(
    shape('polygon', { points: band.join(' '), class: `race-band ${hue}` }),
    shape('polyline', { points: path(line.points, (p) => p.y.median).join(' '), class: `race-line ${hue}` }),
  );
}

/** A dashed line at the crossing, and a ring where the lines meet (where they do, between their points). */
function drawCrossing(drawing, frame, lines, { crossing }) {
  if (!(crossing.at >= frame.low.x && crossing.at <= frame.high.x)) return;
  const x = frame.x(crossing.at);
  const meets = lines.map((line) => valueAt(line.points, crossing.at)).filter(Number.isFinite);
  drawing.append(shape('line', { x1: x, x2: x, y1: frame.top - 6, y2: frame.bottom, class: 'race-crossing' }));
  if (meets.length === 2 && Math.abs(Math.log(meets[0] / meets[1])) < 0.2) {
    const y = frame.y(Math.sqrt(meets[0] * meets[1]));
    drawing.append(shape('circle', { cx: x, cy: y, r: 11, class: 'race-ring' }));
  }
  const middle = Math.min(Math.max(x, LABEL / 2), frame.width - LABEL / 2); // over the line, as far as there is room
  const label = shape('text', { x: middle, y: frame.top - 12, class: 'race-crossing-text', 'text-anchor': 'middle' });
  label.textContent = `they cross at about ${numberText(Number(crossing.at.toPrecision(2)))}`;
  drawing.append(label);
}

/** A line's value between its points, straight on logarithmic axes. */
function valueAt(points, x) {
  const after = points.findIndex((point) => point.x >= x);
  if (after < 0) return NaN;
  const b = points[after];
  if (b.x === x) return b.y.median;
  const a = points[after - 1];
  if (!a) return NaN;
  const share = Math.log(x / a.x) / Math.log(b.x / a.x);
  return a.y.median * (b.y.median / a.y.median) ** share;
}

function drawPoints(view, drawing, frame, line, index, figure) {
  line.points.forEach(({ x, y }, order) => {
    const node = shape('g', { class: `race-point race-hue-${index + 1}`, tabindex: -1, role: 'img' });
    const range = rangeText(y, figure.units);
    const value = inUnits(y.median, figure.units) + (range ? ` (${range})` : '');
    const where = figure.xSaid(x);
    node.setAttribute('aria-label', `${line.name}, ${where}: ${value}`);
    const [left, top] = [frame.x(x), frame.y(y.median)];
    node.append(shape('circle', { cx: left, cy: top, r: 14, class: 'race-hit' }), SHAPES[index](left, top, 5));
    const point = { key: `${index}/${x}`, node, index, order, left, top, name: line.name, where, value };
    node.addEventListener('focus', () => showTip(view, point));
    node.addEventListener('blur', () => hideTip(view));
    drawing.append(node);
    view.points.push(point);
  });
}

function showTip(view, point) {
  const { tip } = view;
  for (const other of view.points) other.node.setAttribute('tabindex', other === point ? '0' : '-1');
  view.point = point;
  const name = element('span', 'race-column');
  name.append(markOf(point.index), element('b', '', point.name));
  tip.replaceChildren(name, element('span', 'race-soft', point.where), element('span', '', point.value));
  tip.hidden = false;
  const { width } = tip.getBoundingClientRect();
  tip.style.left = `${Math.min(Math.max(0, point.left - width / 2), view.width - width)}px`;
  const above = point.top - tip.offsetHeight - 16;
  tip.style.top = `${above < 0 ? point.top + 16 : above}px`;
  for (const other of view.points) other.node.classList.toggle('race-shown', other === point);
}

function hideTip(view) {
  if (view.tip) view.tip.hidden = true;
  for (const point of view.points) point.node.classList.remove('race-shown');
}

/** The point nearest to the pointer tells its numbers; arrows go along a line and from one line to the other. */
function listenToChart(view) {
  const { chart } = view.at;
  const nearest = (event) => {
    const box = chart.getBoundingClientRect();
    const far = (p) => Math.hypot(event.clientX - box.left - p.left, event.clientY - box.top - p.top);
    const [point] = [...view.points].sort((a, b) => far(a) - far(b));
    return point && far(point) < NEAR ? point : null;
  };
  const show = (event) => {
    const point = nearest(event);
    if (point) showTip(view, point);
    else hideTip(view);
  };
  chart.addEventListener('pointermove', show);
  chart.addEventListener('pointerdown', show);
  chart.addEventListener('pointerleave', (event) => event.pointerType === 'mouse' && hideTip(view));
  chart.addEventListener('keydown', (event) => {
    const { point, points } = view;
    if (!point || event.ctrlKey || event.metaKey || event.altKey) return;
    const line = points.filter((other) => other.index === point.index);
    const along = (order) => line[Math.min(line.length - 1, Math.max(0, order))];
    const across = () => points.find((p) => p.index !== point.index && p.where === point.where) || point;
    const keys = {
      ArrowRight: () => along(point.order + 1), ArrowLeft: () => along(point.order - 1),
      ArrowUp: across, ArrowDown: across, Home: () => along(0), End: () => along(line.length - 1),
    };
    if (event.key === 'Escape') hideTip(view);
    if (!keys[event.key]) return;
    event.preventDefault();
    keys[event.key]().node.focus();
  });
}
