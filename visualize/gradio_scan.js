// The host of the scan view in Gradio. What runs the model waits in the model's queue, the rest in another.
let key = null; // of what is shown: picture, turns, model

const { request } = connect({ trace: "look", ask: "ask" }, (message, asked) => {
  if (message.key === undefined) return;
  const changed = key !== null && message.key !== key;
  key = message.key;
  if (!asked && changed) view.receive({ type: "picture" });
});

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
