// The host of the view in Gradio: a request leaves as an event, its reply comes back as the component's value.
const EVENTS = { trace: "look", ask: "ask" }; // what runs the model waits in the model's queue, the rest in another
const PATIENCE_MS = 300000;
const waiting = new Map();
let number = 0;
let last = Promise.resolve();
let key = null; // of what is shown: picture, turns, model

function request(type, args) {
  const send = () =>
    new Promise((resolve, reject) => {
      const id = `${Date.now()}-${++number}`;
      const late = setTimeout(() => {
        waiting.delete(id);
        reject(new Error("The server did not answer; try again, or reload the page."));
      }, PATIENCE_MS);
      waiting.set(id, { resolve, reject, late });
      trigger(EVENTS[type] ?? "request", { id, type, args });
    });
  last = last.catch(() => {}).then(send); // one at a time: of two values in one tick Gradio shows the second alone
  return last;
}

// #scan?kind=csm&layer=1…: a picture of one's own is never in a link
function read_link() {
  const [place, query] = location.hash.slice(1).split("?");
  if (place !== "scan" || !query) return null;
  const view = {};
  for (const [name, text] of new URLSearchParams(query)) {
    try {
      view[name] = JSON.parse(text);
    } catch {
      view[name] = text;
    }
  }
  return view;
}

const initial = read_link();
let wanted = initial?.picture ?? null; // asked for once, with the first trace

const view = mount(element.querySelector(".scan-view"), {
  can: { ask: true, export: ["png", "webp", "gif", "json"], compare: true },
  initial,
  request: (type, args) => {
    if (type !== "trace" || wanted === null) return request(type, args);
    const opening = request(type, { ...args, picture: wanted });
    wanted = null;
    return opening;
  },
  link: (shown) => {
    const query = new URLSearchParams();
    for (const [name, value] of Object.entries(shown)) if (value !== null) query.set(name, String(value));
    return `${location.href.split("#")[0]}#scan?${query}`;
  },
});

watch("value", () => {
  const message = props.value;
  if (!message) return;
  const asker = waiting.get(message.re);
  if (message.key !== undefined) {
    const changed = key !== null && message.key !== key;
    key = message.key;
    if (!asker && changed) view.receive({ type: "picture" });
  }
  if (!asker) return;
  waiting.delete(message.re);
  clearTimeout(asker.late);
  if (message.error) asker.reject(new Error(message.error));
  else asker.resolve(message.content);
});
