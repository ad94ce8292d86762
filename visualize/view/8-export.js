// Export and links. Where a host makes the files they come from it; a page on its own makes them here.

const FORMAT_NAMES = { png: 'PNG picture', webp: 'Animated WebP', gif: 'Animated GIF', json: 'JSON numbers' };

function fillFormats(view) {
  const formats = (view.host.can && view.host.can.export) || [];
  view.at.export.hidden = !formats.length;
  view.at.formats.replaceChildren(
    ...formats.map((format) => {
      const button = element('button', 'scan-format', FORMAT_NAMES[format] || format);
      button.type = 'button';
      button.dataset.format = format;
      button.addEventListener('click', () => {
        view.at.export.open = false;
        exportAs(view, format);
      });
      return button;
    }),
  );
}

async function exportAs(view, format) {
  if (!view.scene || view.exporting) return;
  view.exporting = true;
  notice(view, '');
  view.at.export.classList.add('scan-working');
  let file = null;
  if (!view.host.exportsHere) file = await ask(view, 'export', { format, view: { ...view.state } });
  else if (format === 'json') file = { name: fileName(view, format), blob: numbersFile(view) };
  else file = { name: fileName(view, format), blob: await pictureFile(view) };
  if (file) download(file.blob || new Blob([bytesOf(file.data)], { type: file.type }), file.name);
  view.exporting = false;
  view.at.export.classList.remove('scan-working');
}

function download(blob, name) {
  const link = element('a');
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.style.display = 'none';
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 30000);
}

function fileName(view, format) {
  const { state, scene } = view;
  const parts = [scene.trace.model, state.kind, 'layer', state.layer + 1];
  parts.push(scene.mode === 'map' ? state.quantity : scene.mode);
  return parts.join('-').toLowerCase().replace(/[^a-z0-9]+/g, '-') + '.' + format;
}

/** One line that says what is seen. */
function titleOf(view) {
  const { scene, state } = view;
  const trace = scene.trace;
  const kind = scene.compare ? 'BSM against CSM' : KIND_NAMES[state.kind];
  const head = state.head === null ? `mean of ${trace.heads} heads` : `head ${state.head + 1}`;
  const where = `${kind}, layer ${state.layer + 1} of ${trace.layers}, ${head}`;
  if (scene.mode === 'word') return `${kind}: ${view.at['word-title'].textContent}`;
  if (scene.mode === 'influence') return `What reaches the patch in ${placeOf(trace, state.patch)} (${where})`;
  return `${scene.measure.title} ${scene.measure.symbol} (${where})`;
}

/** The numbers of the scene, patch by patch, row by row. */
function numbersFile(view) {
  const { scene, state } = view;
  const list = (map) => map && Array.from(map, (value) => Number(value.toPrecision(6)));
  const shown = scene.sides.map((side) => ({
    kind: side.trace.kind,
    trained: side.trace.trained,
    directions: side.trace.directions.map((name, d) => ({
      name,
      order: Array.from(side.trace.orders[d]),
      values: list(side.maps[d]),
    })),
    merged: list(side.merged),
  }));
  const { trace } = scene;
  const numbers = { title: titleOf(view), model: trace.model, rows: trace.rows, cols: trace.cols, view: state, shown };
  return new Blob([JSON.stringify(numbers)], { type: 'application/json' });
}

/** The panels with their captions and the colour bar, on white, in twice their size. */
function pictureFile(view) {
  const { scene, at } = view;
  const box = at.stage.getBoundingClientRect();
  const edge = 24, top = 64, scale = 2;
  const canvas = element('canvas');
  canvas.width = (box.width + 2 * edge) * scale;
  canvas.height = (box.height + top + edge + (scene.scale ? 64 : 24)) * scale;
  const pen = canvas.getContext('2d');
  pen.scale(scale, scale);
  pen.fillStyle = '#fff';
  pen.fillRect(0, 0, canvas.width, canvas.height);
  const font = getComputedStyle(view.root).fontFamily;
  const write = (text, x, y, size, colour, align, weight) => {
    pen.font = `${weight || 400} ${size}px ${font}`;
    pen.fillStyle = colour;
    pen.textAlign = align || 'left';
    pen.fillText(text, x, y, box.width);
  };
  write(titleOf(view), edge, edge + 14, 17, '#26302b', 'left', 600);
  const untrained = at.untrained.hidden ? '' : ' · ' + at.untrained.textContent;
  write(at.model.textContent + untrained, edge, edge + 33, 12, '#5d665f');
  pen.imageSmoothingEnabled = false; // the cells stay sharp
  view.panels.forEach((panel, i) => {
    const place = panel.frame.getBoundingClientRect();
    const x = place.left - box.left + edge, y = place.top - box.top + top;
    pen.save();
    if (scene.compare && i === 1) {
      pen.beginPath();
      pen.rect(x + (place.width * view.swipe) / 100, y, place.width, place.height);
      pen.clip();
    }
    pen.drawImage(panel.canvas, x, y, place.width, place.height);
    if (panel.dots.length && !panel.path.hidden) pen.drawImage(panel.path, x, y, place.width, place.height);
    pen.restore();
    for (const { direction, node } of panel.dots) {
      const dot = node.getBoundingClientRect();
      pen.beginPath();
      pen.arc(dot.left + dot.width / 2 - box.left + edge, dot.top + dot.height / 2 - box.top + top, 5, 0, 2 * Math.PI);
      pen.fillStyle = HUES[direction];
      pen.fill();
      pen.lineWidth = 2;
      pen.strokeStyle = '#fff';
      pen.stroke();
    }
    if (scene.mode === 'influence') {
      const { xs, ys, ratio } = panel, { cols } = scene.trace;
      const c = view.state.patch % cols, r = Math.floor(view.state.patch / cols);
      pen.strokeStyle = '#fff';
      pen.lineWidth = 2;
      pen.strokeRect(x + xs[c] / ratio, y + ys[r] / ratio, (xs[c + 1] - xs[c]) / ratio, (ys[r + 1] - ys[r]) / ratio);
    }
    if (scene.compare) {
      const name = comparedName(view, panel.spec, panelName(view, panel.spec));
      write(name, i ? x + place.width : x, y + place.height + 18, 13, '#26302b', i ? 'right' : 'left', 600);
      pen.fillStyle = '#fff';
      if (i) pen.fillRect(x + (place.width * view.swipe) / 100 - 1, y, 2, place.height);
    } else {
      const name = panelName(view, panel.spec);
      if (panel.spec.direction !== MERGED) {
        pen.fillStyle = HUES[panel.spec.direction];
        pen.fillRect(x, y + place.height + 8, 10, 10);
      }
      write(name, x + (panel.spec.direction === MERGED ? 0 : 16), y + place.height + 18, 13, '#26302b', 'left', 600);
      write(panel.value.textContent, x + place.width, y + place.height + 18, 12, '#5d665f', 'right');
    }
  });
  if (scene.scale) {
    const y = box.height + top + 24, wide = Math.min(360, box.width);
    write(`${scene.measure.symbol}  ${scaleTitle(scene)}`, edge, y, 13, '#26302b', 'left', 600);
    pen.drawImage(at['scale-bar'], edge, y + 8, wide, 12);
    for (const [place, text] of ticksOf(scene.scale)) {
      write(text, edge + place * wide, y + 36, 12, '#5d665f', place === 0 ? 'left' : place === 1 ? 'right' : 'center');
    }
  }
  return new Promise((done) => canvas.toBlob(done, 'image/png'));
}

/** A link to this view, on the clipboard; where there is none, in a field to copy it from. */
async function copyLink(view) {
  const link = view.host.link({ ...view.state });
  const { at } = view;
  try {
    await navigator.clipboard.writeText(link);
  } catch {
    const field = element('input', 'scan-link-field');
    Object.assign(field, { value: link, readOnly: true });
    field.setAttribute('aria-label', 'Link to this view');
    notice(view, '');
    at['notice-text'].append(field);
    at.notice.hidden = false;
    field.focus();
    field.select();
    at.said.textContent = 'Here is the link: copy it';
    return;
  }
  const own = view.state.picture === null && !view.host.exportsHere; // somebody's picture stays with them
  at.link.textContent = own ? 'Copied, without your picture' : 'Copied';
  at.said.textContent = own ? 'Link copied; it restores the view, not your picture' : 'Link copied';
  clearTimeout(view.copied);
  view.copied = setTimeout(() => (at.link.textContent = 'Copy link'), 1800);
}
