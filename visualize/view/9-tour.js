// The tour: two minutes for somebody who has never heard of state-space models. Each step sets the view it speaks of.

/** The steps, for this trace. `see` is the view, `part` what is lit, `play` runs the scan from its start. */
function tourSteps(view) {
  const trace = view.traces.bsm || Object.values(view.traces)[0];
  const { rows, cols, n } = trace;
  const middle = Math.floor(rows / 2) * cols + Math.floor(cols / 2);
  const plain = { layer: 0, head: null, patch: null, word: null, word_layer: null, through: false, direction: null };
  const csm = trace.kinds.includes('csm');
  const steps = [
    {
      title: 'A picture becomes a line',
      text: `The picture is cut into ${rows} × ${cols} squares, called patches. The network reads them one at a ` +
        'time, as you read words, so they have to stand in a line. Watch the line being laid: row by row, left to ' +
        'right.',
      see: { ...plain, kind: 'bsm', quantity: 'path', direction: 0 }, part: 'stage', play: true,
    },
    {
      title: 'There and back: BSM',
      text: 'A reader who starts at the top knows nothing yet of what comes below. So a second one reads the same ' +
        'line from its end. This pair is the bidirectional scan, BSM. Both move in step; the right panel fills ' +
        'with what both have read.',
      see: { ...plain, kind: 'bsm', quantity: 'path' }, part: 'stage', play: true,
    },
    {
      title: 'A notepad that never grows',
      text: 'Each reader carries a notepad of fixed size, called the state. At every patch, some of what is on it ' +
        'fades and something new is written. Bright means that the notes are strong (‖H‖ is the size of all its ' +
        'numbers together). The curve is the same number along the line: drag it.',
      see: { ...plain, kind: 'bsm', quantity: 'state' }, part: 'below', play: true,
    },
    {
      title: 'What is kept, what is let go',
      text: 'Every patch sets its own time step, Δ. A large Δ writes the patch down firmly and lets old notes ' +
        'fade; a small one passes over it. The share of the notes that stays is exp(ΔA), seen here: 1 keeps all, 0 ' +
        'forgets all. Choosing what to keep by looking at the content is what makes the scan selective.',
      see: { ...plain, kind: 'bsm', quantity: 'decay' }, part: 'what',
    },
    {
      title: 'What reaches a patch',
      text: 'One patch is chosen here, with a white frame. The colours show how strongly each earlier patch still ' +
        'reaches it through the notepad. Patches that a reader has not met yet cannot: there the photo stays bare. ' +
        'Drag over the picture to move the frame.',
      see: { ...plain, kind: 'bsm', quantity: 'state', patch: middle }, part: 'stage',
    },
  ];
  if (csm) {
    steps.push(
      {
        title: 'Columns as well: CSM',
        text: `Along the rows, the patch just above lies ${cols} steps back, and much may fade on the way. The ` +
          'cross scan, CSM, adds two readers that follow the columns, down and up: for them it is one step away.' +
          (view.traces.csm && !view.traces.csm.trained
            ? ' This model was never trained with CSM, so here it only shows the orders.' : ''),
        see: { ...plain, kind: 'csm', quantity: 'state', patch: middle }, part: 'stage',
      },
      {
        title: 'Four readings become one',
        text: 'What the readers made of each patch is averaged, patch by patch. This merged picture, no longer a ' +
          `photo but ${n} lists of numbers, goes on to the language model, which reads it first and then your ` +
          'question.',
        see: { ...plain, kind: 'csm', quantity: 'output', direction: MERGED }, part: 'stage', play: true,
      },
    );
  }
  const last = view.traces[csm ? 'csm' : 'bsm'];
  const teller = last && last.answer ? last : trace;
  const answer = teller.answer;
  const longer = (best, word, i) => (word.length > answer.words[best].length ? i : best);
  const longest = answer && answer.words.length ? answer.words.reduce(longer, 0) : null;
  steps.push(
    {
      title: 'What a word saw',
      text: answer
        ? 'The language model keeps a notepad too. Choose a word of the answer, and the map shows which patches ' +
          'reached the step that picked this word. “Onward” follows them through the readers, back to where they ' +
          'came from.'
        : 'The language model keeps a notepad too. Once a question is answered, choose a word of the answer: the ' +
          'map shows which patches reached the step that picked it.',
      see: { ...plain, kind: teller.kind, quantity: 'state', word: longest }, part: answer ? 'scene' : 'words',
    },
    {
      title: 'What this does not prove',
      text: 'All numbers are the model’s own, from this very picture. But they show what could flow, not what ' +
        'decided an answer: gates, norms and later layers have their say too, and the model is often wrong. Now it ' +
        'is yours: choose a patch, drag the curve, ask something.',
      see: { ...plain, kind: teller.kind, quantity: 'state' }, part: 'stage',
    },
  );
  return steps;
}

function openTour(view) {
  if (!view.scene) return;
  if (!view.tour) {
    view.tour = { before: { ...view.state }, at: 0, steps: tourSteps(view), from: document.activeElement };
  }
  setPlaying(view, false);
  view.at.card.hidden = false;
  showTourStep(view);
}

function showTourStep(view) {
  const { at, tour } = view;
  const step = tour.steps[tour.at];
  at['tour-count'].textContent = `${tour.at + 1} of ${tour.steps.length}`;
  at['tour-title'].textContent = step.title;
  at['tour-text'].textContent = step.text;
  at['tour-back'].disabled = tour.at === 0;
  at['tour-next'].textContent = tour.at === tour.steps.length - 1 ? 'Done' : 'Next';
  at['tour-dots'].replaceChildren(
    ...tour.steps.map((_, i) => element('span', i === tour.at ? 'scan-tour-dot scan-now' : 'scan-tour-dot')));
  setPlaying(view, false);
  const last = view.scene.trace.n - 1;
  change(view, { ...step.see, step: step.play && !view.still ? 0 : last });
  if (step.play && !view.still) playWhenReady(view, tour.at);
  light(view, step.part);
  at.card.focus({ preventScroll: true });
}

/** Play once the step's scene is there, which may have to be fetched. */
function playWhenReady(view, step) {
  if (!view.tour || view.tour.at !== step) return;
  if (view.dirty.scene || view.pending) setTimeout(() => playWhenReady(view, step), 60);
  else setPlaying(view, true);
}

/** Frame the part that is spoken of, and keep the card off it as far as there is room. */
function light(view, part) {
  const { at } = view;
  for (const lit of view.root.querySelectorAll('.scan-lit')) lit.classList.remove('scan-lit');
  if (!part) return;
  const target = at[part];
  target.classList.add('scan-lit');
  requestAnimationFrame(() => {
    const top = at.what.getBoundingClientRect().top;
    const narrow = view.root.clientWidth < 640;
    const to = narrow ? target : at.what;
    const goal = narrow ? target.getBoundingClientRect().top - 16 : top - 12;
    if (Math.abs(goal) > 4 && to) window.scrollBy({ top: goal, behavior: view.still ? 'auto' : 'smooth' });
  });
}

function closeTour(view) {
  const { tour, at } = view;
  if (!tour) return;
  view.tour = null;
  at.card.hidden = true;
  light(view, null);
  setPlaying(view, false);
  change(view, tour.before);
  if (tour.from && tour.from.isConnected) tour.from.focus({ preventScroll: true });
}

function moveTour(view, by) {
  if (!view.tour) return;
  const next = view.tour.at + by;
  if (next < 0) return;
  if (next >= view.tour.steps.length) return closeTour(view);
  view.tour.at = next;
  showTourStep(view);
}
