// Elements, and numbers as people read them.

const SVG = 'http://www.w3.org/2000/svg';
const SECONDS = [[1, 's'], [1e-3, 'ms'], [1e-6, 'µs']];
const BYTES = [[1e9, 'GB'], [1e6, 'MB'], [1e3, 'KB'], [1, 'B']];

/** Texts only ever get in as textContent: what a model or a visitor wrote is never markup. */
function element(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function shape(tag, attributes) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, String(value));
  return node;
}

/** Three digits, more only before the point: 4.2, 0.069, 1,024. */
function numberText(value, digits = 3) {
  if (!Number.isFinite(value)) return '–';
  const whole = Math.abs(value) >= 10 ** (digits - 1);
  return (whole ? Math.round(value) : Number(value.toPrecision(digits))).toLocaleString('en');
}

/** The unit in which a value is written: the largest that is not above it. */
function unitOf(value, units) {
  return units.find(([size]) => value >= size * 0.9995) || units[units.length - 1];
}

function inUnits(value, units, [size, unit] = unitOf(value, units)) {
  return Number.isFinite(value) ? `${numberText(value / size)}\u00a0${unit}` : '–';
}

const secondsText = (value) => inUnits(value, SECONDS);
const bytesText = (value) => inUnits(value, BYTES);

/** 37.7–47.6, in the unit of the median; '' where nothing spread. */
function rangeText({ min, median, max }, units) {
  if (!(max > min)) return '';
  const [size] = units ? unitOf(median, units) : [1];
  return `${numberText(min / size)}–${numberText(max / size)}`;
}

function countText(count) {
  if (!Number.isFinite(count)) return '–';
  if (count >= 1e9) return `${(count / 1e9).toFixed(1)} B`;
  return count >= 1e6 ? `${(count / 1e6).toFixed(1)} M` : numberText(count);
}

/** 256, 1k, 4k: what stands at an axis of context lengths. */
function shortCount(count) {
  return count >= 1024 && count % 1024 === 0 ? `${count / 1024}k` : numberText(count);
}

/** Which runner is meant, by colour and by form: a disc for the first, a square for the second. */
function markOf(index) {
  return element('span', `race-mark race-mark-${index + 1}`);
}

/** A group of radio buttons; `options` are {value, label, title, disabled}. Another list rebuilds it. */
function fillRadios(view, holder, options, chosen, choose) {
  const signature = JSON.stringify(options);
  if (holder.dataset.options !== signature) {
    holder.dataset.options = signature;
    const name = `race-${view.id}-${holder.dataset.at}`;
    holder.replaceChildren(
      ...options.map(({ value, label, title, disabled }) => {
        const option = element('label', 'race-option');
        const input = element('input');
        Object.assign(input, { type: 'radio', name, value: String(value), disabled: Boolean(disabled) });
        if (title) option.title = title;
        input.addEventListener('change', () => choose(value));
        option.append(input, element('span', 'race-face', label));
        return option;
      }),
    );
  }
  for (const input of holder.querySelectorAll('input')) input.checked = input.value === String(chosen);
}
