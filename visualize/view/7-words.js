// What a word saw: the question, the answer as words to click, and how far back to look.

const WORD_TEXT =
  'How strongly each patch reaches the step that chose this word: |M|·‖x‖ in Mamba-2’s dual form, mean over heads. ' +
  'It shows what could flow, not what decided the word.';
const THROUGH_TEXT =
  'How strongly each patch reaches the step that chose this word, |M|·‖x‖, then spread back over the patches that ' +
  'each feature was mixed from, by the connector’s own matrices, half kept in place at each layer as the residual ' +
  'does. A rough guide: gates, norms and SwiGLU are left out.';

/** The words section, as the state has it. */
function showWords(view) {
  const { at, state } = view;
  const kinds = kindsShown(state);
  const traces = kinds.map((kind) => view.traces[kind]);
  const mayAsk = Boolean(view.host.can && view.host.can.ask);
  at.ask.hidden = !mayAsk;
  const answered = traces.some((trace) => trace && trace.answer);
  at.hint.textContent = answered
    ? 'Click a word of the answer to see which patches reached it.'
    : mayAsk ? 'Ask something, then click a word of the answer.' : 'No question was recorded with this picture.';
  at.words.hidden = !answered && !mayAsk;
  const told = (trace) => trace.answer && [trace.answer.question, trace.answer.words];
  const signature = JSON.stringify([kinds, traces.map((trace) => trace && [trace.trained, told(trace)])]);
  if (signature !== view.worded) {
    view.worded = signature;
    at.answers.replaceChildren(...traces.map((trace, i) => answerBox(view, trace, kinds.length > 1 ? kinds[i] : '')));
  }
  for (const word of at.answers.querySelectorAll('.scan-word')) {
    word.setAttribute('aria-pressed', String(Number(word.dataset.word) === state.word));
  }
  const answer = traces.map((trace) => trace && trace.answer).find(Boolean);
  const layers = answer ? answer.lm_layers : 0;
  const options = Array.from({ length: layers }, (_, i) => [i, `${i + 1} of ${layers}`]);
  fillSelect(at['word-layer'], [['', 'mean of all'], ...options], state.word_layer === null ? '' : state.word_layer);
  const ways = [
    { value: false, label: 'In the language model' },
    { value: true, label: 'Onward through the connector' },
  ];
  fillRadios(view, at.through, ways, state.through, (value) => change(view, { through: value }));
  at['word-text'].textContent = state.through ? THROUGH_TEXT : WORD_TEXT;
  const words = traces.map((trace) => trace && trace.answer && trace.answer.words[state.word]);
  const saw = [...new Set(words.filter(Boolean))];
  at['word-title'].textContent = 'What ' + saw.map((word) => `“${word}”`).join(' and ') + ' saw';
}

function answerBox(view, trace, kind) {
  const box = element('div', 'scan-answer');
  if (kind) box.append(element('div', 'scan-answer-kind', KIND_NAMES[kind]));
  if (!trace || !trace.answer) {
    const text = trace && !trace.trained ? `No answer: ${UNTRAINED}.` : kind && trace ? 'No answer yet.' : '';
    if (text) box.append(element('div', 'scan-silent', text));
    return box;
  }
  box.append(element('div', 'scan-asked', trace.answer.question));
  const flow = element('div', 'scan-flow');
  flow.setAttribute('role', 'group');
  flow.setAttribute('aria-label', `Answer${kind ? ' of ' + KIND_NAMES[kind] : ''}, word by word`);
  trace.answer.words.forEach((text, i) => {
    const word = element('button', 'scan-word', text);
    word.type = 'button';
    word.dataset.word = String(i);
    word.setAttribute('aria-pressed', 'false');
    word.addEventListener('click', () => {
      view.keep = { node: word, top: word.getBoundingClientRect().top }; // it stays under the finger
      change(view, { word: view.state.word === i ? null : i });
    });
    flow.append(word, ' ');
  });
  if (!trace.answer.words.length) flow.append(element('span', 'scan-silent', trace.answer.text || '(no words)'));
  box.append(flow);
  return box;
}

/** Put the question to the model; the answer replaces the last. */
async function putQuestion(view) {
  const { at } = view;
  const question = at.question.value.trim();
  if (!question || view.asking) return;
  const { kind } = view.state;
  view.asking = true;
  notice(view, '');
  at['ask-button'].setAttribute('aria-disabled', 'true');
  at['ask-button'].textContent = 'Asking …';
  at.words.classList.add('scan-asking');
  const { epoch } = view;
  const reply = await ask(view, 'ask', { kind, question });
  view.asking = false;
  at['ask-button'].removeAttribute('aria-disabled');
  at['ask-button'].textContent = 'Ask';
  at.words.classList.remove('scan-asking');
  if (!reply || epoch !== view.epoch) return;
  if (at.question.value.trim() === question) at.question.value = '';
  takeAnswers(view, reply.answers || { [reply.kind || kind]: reply.answer });
}

/** Answers by connector, for the traces that are there. */
function takeAnswers(view, answers) {
  let shown = false;
  for (const [kind, answer] of Object.entries(answers)) {
    if (!view.traces[kind]) continue;
    setAnswer(view.traces[kind], answer || null);
    shown = shown || kindsShown(view.state).includes(kind);
  }
  // the other connector's trace answered an earlier question
  for (const kind of Object.keys(view.traces)) if (!(kind in answers)) delete view.traces[kind];
  for (const kind of kindsShown(view.state)) if (!view.traces[kind]) loadTrace(view, kind);
  if (shown && view.state.word !== null) change(view, { word: null });
  syncControls(view);
}
