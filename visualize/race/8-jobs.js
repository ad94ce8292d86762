// Measuring here: starting it, its progress in words, stopping it. One thing at a time.

const WAITING = 'Waiting for the machine: a race has it for itself …';

/** Start a "race" or a "scaling"; what comes of it is shown, what goes wrong is said in one sentence. */
async function startJob(view, mode, args) {
  if (view.job) return;
  notice(view, '');
  const job = { mode, ...view.host.follow(mode, args, (news) => view.job === job && hear(view, job, news)) };
  view.job = job;
  showJob(view, WAITING);
  try {
    const result = await job.done;
    if (view.job !== job) return;
    endJob(view, mode === 'race' ? 'The race is over.' : 'All is measured.');
    keepRun(view, mode, { ...result, time: clockTime() });
    if (mode === 'race' && result.race) say(view, (result.race.verdict || []).join(' '));
    show(view);
    if (mode === 'race' && view.mode === 'race') playOnce(view);
  } catch (problem) {
    if (view.job !== job) return;
    endJob(view, '');
    notice(view, problem.message);
  }
}

/** News of a job: how far it is, or the points so far. */
function hear(view, job, news) {
  if (news.type === 'progress') {
    job.of = news.of;
    showJob(view, news.of ? `${news.done} of ${news.of}: ${news.what}` : news.what, news.done / news.of);
  } else if (news.type === 'point' && news.scaling) {
    keepRun(view, 'scaling', { ...news, time: clockTime(), unfinished: 'measured here, not to its end' });
    show(view);
  }
}

function stopJob(view) {
  const { job } = view;
  if (!job) return;
  job.stop();
  const stays = job.mode === 'race' ? 'the race before it stays' : 'the points measured so far stay';
  endJob(view, `Stopped; ${stays}.`);
  show(view);
}

function endJob(view, sentence) {
  const { mode } = view.job;
  const stop = view.at[`${mode}-stop`];
  const focused = document.activeElement === stop;
  view.job = null;
  showJob(view, '');
  if (focused) view.at[`${mode}-go`].focus(); // the button under the keyboard is gone
  say(view, sentence);
}

function showJob(view, sentence, share) {
  const { at, job } = view;
  view.root.setAttribute('aria-busy', String(Boolean(job)));
  for (const mode of ['race', 'scaling']) {
    const mine = Boolean(job) && job.mode === mode;
    const focused = document.activeElement === at[`${mode}-go`];
    at[`${mode}-go`].hidden = mine;
    at[`${mode}-go`].disabled = Boolean(job);
    at[`${mode}-stop`].hidden = !mine;
    at[`${mode}-job`].hidden = !mine;
    if (!mine) continue;
    if (focused) at[`${mode}-stop`].focus();
    at[`${mode}-doing`].textContent = sentence;
    if (Number.isFinite(share)) at[`${mode}-progress`].value = share;
    else at[`${mode}-progress`].removeAttribute('value');
  }
  for (const choice of [at.tokens, at.contexts, at.launches]) {
    for (const input of choice.querySelectorAll('input')) input.disabled = Boolean(job);
  }
  if (job) say(view, sentence);
}

/** For screen readers. */
function say(view, sentence) {
  if (sentence && view.at.status.textContent !== sentence) view.at.status.textContent = sentence;
}

function notice(view, text) {
  view.at.notice.hidden = !text;
  view.at['notice-text'].textContent = text || '';
}

function clockTime() {
  return new Date().toLocaleTimeString('en-GB', { hour: '2-digit', minute: '2-digit' });
}
