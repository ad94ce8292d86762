// Time: the frame loop, the transport, and the curve along the scan that is also its scrubber.

const SECONDS = 6; // of a whole scan at 1×

/** Ask for one frame; frames follow each other only while the scan plays. */
function schedule(view) {
  if (view.frame || view.gone) return;
  view.frame = requestAnimationFrame((now) => {
    view.frame = 0;
    drawFrame(view, now);
  });
}

function drawFrame(view, now) {
  if (view.dirty.scene) {
    const scene = planScene(view);
    setBusy(view, !scene && view.pending > 0);
    view.dirty.scene = false; // a part that arrives makes it dirty again
    if (scene) {
      view.scene = scene;
      loadPicture(view, scene.trace.picture).then(() => {
        if (view.pictured === view.picture) return;
        view.pictured = view.picture; // painted before it was decoded: once more
        view.bases.clear();
        view.dirty.paint = true;
        schedule(view);
      });
      buildPanels(view);
      view.at.stage.dataset.mode = scene.mode;
      showScene(view);
      view.dirty.paint = true;
      view.curve = null;
      const idle = window.requestIdleCallback || ((act) => setTimeout(act, 300)); // the first influence is then quick
      idle(() => partOf(scene.trace, 'keys/' + view.state.layer), { timeout: 1500 });
    }
  }
  if (!view.scene) return;
  const last = view.scene.trace.n - 1;
  let glide = 0;
  if (view.playing) {
    view.position += Math.min(now - (view.clock || now), 250) * ((view.speed * (last + 1)) / (SECONDS * 1000));
    view.clock = now;
    if (view.position >= last) {
      view.position = last;
      setPlaying(view, false);
    }
    view.state.step = Math.floor(view.position);
    glide = view.position - view.state.step;
  }
  if (!view.sizes.stage.width) return; // not shown yet: the first size starts it again
  placePanels(view);
  if (view.keep && !view.dirty.scene) {
    if (view.keep.node.isConnected) window.scrollBy(0, view.keep.node.getBoundingClientRect().top - view.keep.top);
    view.keep = null;
  }
  if (view.dirty.paint) for (const panel of view.panels) panel.painted = panel.drawn = -1;
  view.dirty.paint = false;
  paintPanels(view, view.state.step, glide);
  if (!view.at.time.hidden) paintCurve(view, view.state.step, glide);
  outlinePatches(view);
  const due = view.playing ? 110 : 60; // milliseconds: text is for eyes, which need a moment
  if (now - view.read > due) {
    view.read = now;
    view.late = false;
    readOut(view);
  } else view.late = true;
  if (view.playing || view.late) schedule(view);
}

function setPlaying(view, playing) {
  if (playing && view.scene && !view.scene.compare && view.scene.mode !== 'word') {
    const last = view.scene.trace.n - 1;
    if (view.state.step >= last) view.state.step = 0;
    view.position = view.state.step;
  } else playing = false;
  view.playing = playing;
  view.root.classList.toggle('scan-moving', playing);
  view.clock = 0;
  view.at.play.classList.toggle('scan-playing', playing);
  view.at.play.setAttribute('aria-label', playing ? 'Pause' : 'Play');
  schedule(view);
}

/** Go to a step, which ends playing. */
function goTo(view, step) {
  if (!view.scene) return;
  setPlaying(view, false);
  view.state.step = Math.min(view.scene.trace.n - 1, Math.max(0, step));
  view.position = view.state.step;
  schedule(view);
}

/** Both looks of the curves, faint and strong, drawn once a scene; a frame only cuts between them. */
function drawCurves(view) {
  const { at, scene } = view;
  const ratio = Math.min(window.devicePixelRatio || 1, 2);
  const { width: wide, height: high } = view.sizes.plot; // known without laying out the page
  const width = Math.round(wide * ratio);
  const height = Math.round(high * ratio);
  if (at.spark.width !== width || at.spark.height !== height) {
    at.spark.width = width;
    at.spark.height = height;
  }
  const inset = 8 * ratio; // half the width of the slider's thumb: the curve lies exactly under it
  const top = 6 * ratio;
  const x = (t) => inset + (t * (width - 2 * inset)) / Math.max(1, scene.trace.n - 1);
  const y = (value) => top + (1 - placeOn(scene.scale, value)) * (height - 2 * top);
  const layers = [0.3, 1].map((alpha, i) => {
    const canvas = view.curves[i];
    if (i === 0 && scene.mode === 'influence') return canvas; // shown whole, never faint
    canvas.width = width; // empties it as well
    canvas.height = height;
    const pen = canvas.getContext('2d');
    pen.lineJoin = 'round';
    if (!scene.sides[0].lines.length) {
      pen.globalAlpha = alpha;
      pen.fillStyle = view.ink;
      pen.fillRect(inset, height / 2 - ratio, width - 2 * inset, 2 * ratio);
    }
    scene.sides[0].lines.forEach((line, d) => {
      const faded = Number.isInteger(view.state.direction) && view.state.direction !== d;
      const end = scene.mode === 'influence' ? scene.trace.steps[d][view.state.patch] : line.length - 1;
      pen.globalAlpha = alpha * (faded ? 0.25 : 1);
      pen.strokeStyle = pen.fillStyle = HUES[d];
      pen.lineWidth = 1.6 * ratio;
      pen.beginPath();
      for (let t = 0; t <= end; t++) pen.lineTo(x(t), y(line[t]));
      pen.stroke();
      if (scene.mode !== 'influence') return;
      pen.fillRect(x(end) - ratio, top, 2 * ratio, height - 2 * top); // the patch itself
    });
    return canvas;
  });
  view.curve = { layers, x, y, width, height, ratio };
}

function paintCurve(view, step, glide) {
  if (!view.curve) drawCurves(view);
  const { layers, x, y, width, height, ratio } = view.curve;
  if (!width) return;
  const pen = view.at.spark.getContext('2d');
  const now = x(step + glide);
  pen.clearRect(0, 0, width, height);
  pen.globalAlpha = 1;
  const still = view.scene.mode === 'influence';
  if (!still) pen.drawImage(layers[0], 0, 0);
  const cut = still ? width : Math.round(now);
  if (cut > 0) pen.drawImage(layers[1], 0, 0, cut, height, 0, 0, cut, height);
  pen.fillStyle = view.ink;
  pen.globalAlpha = still ? 0.35 : 0.8;
  pen.fillRect(now - ratio * 0.75, 0, 1.5 * ratio, height);
  pen.globalAlpha = 1;
  const lines = still ? [] : view.scene.sides[0].lines;
  lines.forEach((line, d) => {
    if (Number.isInteger(view.state.direction) && view.state.direction !== d) return;
    pen.beginPath();
    pen.arc(now, y(line[step]), 4 * ratio, 0, 2 * Math.PI);
    pen.fillStyle = '#fff';
    pen.fill();
    pen.beginPath();
    pen.arc(now, y(line[step]), 2.8 * ratio, 0, 2 * Math.PI);
    pen.fillStyle = HUES[d];
    pen.fill();
  });
  if (!lines.length && !still) {
    pen.beginPath();
    pen.arc(now, height / 2, 5 * ratio, 0, 2 * Math.PI);
    pen.fill();
  }
}

/** Everything in words and numbers that follows the playhead and the pointer. */
function readOut(view) {
  const { at, scene, state } = view;
  const trace = scene.trace;
  at.step.textContent = `step ${state.step + 1} of ${trace.n}`;
  at.scrub.value = String(state.step);
  at.scrub.setAttribute('aria-valuetext', `step ${state.step + 1} of ${trace.n}`);
  const patch = patchSpokenOf(view);
  at.here.textContent = patch === null ? 'Point at a patch to read its value.' : hereText(view, patch);
  view.panels.forEach((panel) => {
    if (!panel.value) return;
    const { spec } = panel;
    const patches = spec.trace.orders;
    let text = '';
    if (scene.mode === 'path' && spec.direction !== MERGED) text = placeOf(trace, patches[spec.direction][state.step]);
    else if (scene.mode === 'map' && spec.direction !== MERGED) {
      text = spec.map ? formatNumber(spec.map[patches[spec.direction][state.step]]) : '';
    } else if (scene.mode === 'influence' && spec.direction !== MERGED) {
      const t = trace.steps[spec.direction][state.patch];
      text = t === 0 ? 'nothing before it' : `${t} earlier`;
    } else if (spec.direction === MERGED && scene.mode === 'path') text = 'clearer with every reading';
    else if (scene.mode !== 'word') {
      const soFar = scene.timed && state.step < trace.n - 1;
      text = soFar ? 'mean so far' : `mean of ${patches.length} directions`;
    }
    if (panel.value.textContent !== text) panel.value.textContent = text;
  });
  fillTable(view, patch);
  announce(view, patch);
}

function hereText(view, patch) {
  const { scene } = view;
  const place = `Patch row ${Math.floor(patch / scene.trace.cols) + 1}, column ${(patch % scene.trace.cols) + 1}`;
  if (scene.mode === 'path') return place;
  const name = scene.mode === 'map' ? scene.measure.symbol : '|M|·‖x‖';
  const value = (side) => (side.merged ? formatNumber(side.merged[patch]) : '–');
  const both = () => scene.sides.map((side) => `${KIND_NAMES[side.trace.kind]} ${value(side)}`).join(', ');
  if (scene.compare) return `${place}: ${name} ${both()}`;
  const side = scene.sides[0];
  return `${place}: ${name} ${value(side)}${scene.mode === 'word' ? '' : ' merged'}`;
}

/** One row a direction: the step at which it reads the patch, and every quantity there. */
function fillTable(view, patch) {
  const { at, scene, state } = view;
  if (at.table.hidden) return;
  const { trace } = scene;
  const reach = scene.mode === 'influence';
  const heads = ['', 'step', ...trace.quantities.map((q) => q.symbol), ...(reach ? ['M', '|M|·‖x‖'] : [])];
  const titles = ['Direction', 'Step', ...trace.quantities.map((q) => q.title), ...(reach ? ['M', '|M|·‖x‖'] : [])];
  const signature = [heads.join(), trace.directions.join()].join(';');
  if (view.tabled !== signature) {
    view.tabled = signature;
    const line = (role, texts, d) => {
      const row = element('div', 'scan-tr');
      row.setAttribute('role', 'row');
      row.append(
        ...texts.map((text, i) => {
          const cell = element('div', 'scan-td', text);
          cell.setAttribute('role', role === 'columnheader' ? role : i ? 'cell' : 'rowheader');
          if (role === 'columnheader') cell.title = titles[i];
          if (i === 0 && d !== undefined) {
            const mark = element('span', 'scan-mark');
            mark.style.background = HUES[d];
            const name = element('span', '', text.slice(-1));
            name.prepend(element('span', 'scan-long', text.slice(0, -1))); // a phone has room for the arrow alone
            cell.replaceChildren(mark, name);
          }
          return cell;
        }),
      );
      return row;
    };
    heads[0] = 'direction';
    const rows = trace.directions.map((name, d) => line('cell', [name, ...Array(heads.length - 1).fill('–')], d));
    at.table.replaceChildren(line('columnheader', heads), ...rows);
    at.table.style.setProperty('--columns', heads.length - 1);
    view.cells = rows.map((row) => [...row.children].slice(1));
  }
  const part = partOf(trace, mapsName(state.head));
  trace.directions.forEach((_, d) => {
    const step = patch === null ? null : trace.steps[d][patch];
    const texts = [step === null ? '–' : String(step + 1)];
    trace.quantities.forEach((_, q) => {
      texts.push(step === null || !part ? '–' : formatNumber(along(trace, state.layer, state.head, d, q)[step]));
    });
    if (reach) {
      const reached = step !== null && scene.sides[0].weights && step <= trace.steps[d][state.patch];
      texts.push(reached ? formatNumber(scene.sides[0].weights[d][step]) : '–');
      texts.push(reached ? formatNumber(scene.sides[0].lines[d][step]) : '–');
    }
    texts.forEach((text, i) => {
      if (view.cells[d][i].textContent !== text) view.cells[d][i].textContent = text;
    });
  });
}

/** For screen readers: short, and only once things are still. */
function announce(view, patch) {
  clearTimeout(view.saying);
  if (view.playing) return;
  view.saying = setTimeout(() => {
    const { scene, state } = view;
    if (!scene || view.playing) return;
    const step = scene.timed ? `Step ${state.step + 1} of ${scene.trace.n}. ` : '';
    const text = step + (patch === null ? '' : hereText(view, patch) + '.');
    if (view.at.said.textContent !== text) view.at.said.textContent = text;
  }, 500);
}
