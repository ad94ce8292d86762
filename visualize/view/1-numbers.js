// Numbers: unpacking them, scaling them to colours, and writing them so that people can read them.

/** Bytes of a base64 text. */
function bytesOf(text) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

/**
 * {shape, low, step, data} → {shape, values}. A number is 16 bits: 0 for 0, else a sign and, in the other 15 bits,
 * 1 + (log2 |value| - low) / step.
 */
function unpackArray(packed) {
  const bytes = bytesOf(packed.data);
  const values = new Float32Array(bytes.length >> 1);
  for (let i = 0; i < values.length; i++) {
    const code = bytes[2 * i] | (bytes[2 * i + 1] << 8);
    const size = 2 ** (packed.low + packed.step * ((code & 0x7fff) - 1));
    values[i] = code === 0 ? 0 : code & 0x8000 ? -size : size;
  }
  return { shape: packed.shape, values };
}

/** Three significant digits, a true minus, and powers of ten that read as such. */
function formatNumber(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return '–';
  if (value === 0) return '0';
  const [digits, power] = value.toExponential(2).split('e');
  const exponent = Number(power);
  let text;
  if (exponent >= -4 && exponent <= 5) {
    text = Number(value.toPrecision(3)).toFixed(Math.max(0, 2 - exponent));
    if (text.includes('.')) text = text.replace(/\.?0+$/, '');
  } else {
    const raised = [...String(exponent)].map((c) => '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'['-0123456789'.indexOf(c)]).join('');
    text = digits + '×10' + raised;
  }
  return text.replace('-', '−');
}

function meanOf(values) {
  let sum = 0;
  for (let i = 0; i < values.length; i++) sum += values[i];
  return values.length ? sum / values.length : NaN;
}

function medianOf(values) {
  return Float32Array.from(values).sort()[values.length >> 1];
}

/** The mean of maps, place by place. */
function meanMap(maps) {
  const mean = new Float32Array(maps[0].length);
  for (let i = 0; i < mean.length; i++) {
    let sum = 0;
    for (const map of maps) sum += map[i];
    mean[i] = sum / maps.length;
  }
  return mean;
}

/** Pearson's r, or NaN where one of the two is flat. */
function correlation(a, b) {
  const meanA = meanOf(a);
  const meanB = meanOf(b);
  let ab = 0, aa = 0, bb = 0;
  for (let i = 0; i < a.length; i++) {
    ab += (a[i] - meanA) * (b[i] - meanB);
    aa += (a[i] - meanA) ** 2;
    bb += (b[i] - meanB) ** 2;
  }
  return aa > 0 && bb > 0 ? ab / Math.sqrt(aa * bb) : NaN;
}

/**
 * From values to places in the palette, 0 to 255. A log scale covers three decades below the largest value: influence
 * falls off too fast for a linear one.
 */
function scaleOf(maps, log, fromZero) {
  let low = Infinity;
  let high = -Infinity;
  for (const map of maps) {
    for (let i = 0; i < map.length; i++) {
      if (map[i] < low) low = map[i];
      if (map[i] > high) high = map[i];
    }
  }
  if (!(high >= low)) low = high = 0;
  if (fromZero) low = Math.min(0, low);
  if (log) {
    high = high > 0 ? high : 1;
    low = high / 1000;
  }
  return { low, high, log };
}

/** Where a value lies on a scale, 0 to 1. */
function placeOn(scale, value) {
  let place;
  if (scale.log) place = value > scale.low ? Math.log10(value / scale.low) / 3 : 0;
  else place = scale.high > scale.low ? (value - scale.low) / (scale.high - scale.low) : 0;
  return place > 1 ? 1 : place > 0 ? place : 0;
}

/** Numbers at a scale's bar: [place 0..1, text]. */
function ticksOf(scale) {
  const ticks = [];
  if (scale.log) {
    for (let i = 0; i <= 3; i++) ticks.push([i / 3, (i === 0 ? '≤ ' : '') + formatNumber(scale.high * 10 ** (i - 3))]);
  } else {
    for (let i = 0; i <= 4; i++) ticks.push([i / 4, formatNumber(scale.low + ((scale.high - scale.low) * i) / 4)]);
  }
  return ticks;
}
