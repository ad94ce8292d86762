// The host of the race in Gradio. Measuring waits in the model's queue; stopping waits for nothing.
const { follow } = connect({ race: "race", scaling: "scaling" }, (message) => view.receive(message));

const view = mount(element.querySelector(".race-view"), {
  recorded: props.recorded ?? [],
  follow: (type, args, heard) => {
    const { id, done, drop } = follow(type, args, heard);
    const stop = () => {
      drop();
      trigger("halt", { id, type: "halt", args: {} });
    };
    return { done, stop };
  },
});
view.receive(props.value ?? {}); // it may have been told before it was there
