// What ties a view to Gradio: a request leaves as an event, its replies come back as the component's value.
const PATIENCE_MS = 300000;

/**
 * events: the event that a type of request leaves as, else "request"; told(message, asked): hears of every value, and
 * whether the view had asked for it. Returns request(type, args) → a promise of the reply, one at a time, and
 * follow(type, args, heard) → {id, done, drop} for what takes long and tells its news meanwhile.
 */
function connect(events, told) {
  const waiting = new Map();
  let number = 0;
  let last = Promise.resolve();
  const send = (id, type, args) => trigger(events[type] ?? "request", { id, type, args });
  const newId = () => `${Date.now()}-${++number}`;

  function request(type, args) {
    const once = () =>
      new Promise((resolve, reject) => {
        const id = newId();
        const late = setTimeout(() => {
          waiting.delete(id);
          reject(new Error("The server did not answer; try again, or reload the page."));
        }, PATIENCE_MS);
        waiting.set(id, { resolve, reject, late });
        send(id, type, args);
      });
    last = last.catch(() => {}).then(once); // one at a time: of two values in one tick Gradio shows the second alone
    return last;
  }

  function follow(type, args, heard) {
    const id = newId();
    const done = new Promise((resolve, reject) => waiting.set(id, { resolve, reject, heard }));
    send(id, type, args);
    return { id, done, drop: () => waiting.delete(id) };
  }

  watch("value", () => {
    const message = props.value;
    if (!message) return;
    const asker = waiting.get(message.re);
    told(message, Boolean(asker));
    if (!asker) return;
    if (message.news) {
      asker.heard?.(message.news);
      return;
    }
    waiting.delete(message.re);
    clearTimeout(asker.late);
    if (message.error) asker.reject(new Error(message.error));
    else asker.resolve(message.content);
  });
  return { request, follow };
}
