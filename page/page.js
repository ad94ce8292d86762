() => {
  // A picture that is dropped or pasted anywhere on the page goes the way of the upload button.
  const hand_over = (files) => {
    const chosen = document.querySelector("#see-pictures")?.offsetParent ? "#see-pictures" : "#left";
    const input = document.querySelector(`${chosen} input[type=file]`);
    if (!input || !files.length) return;
    const box = new DataTransfer();
    box.items.add([...files].find((file) => file.type.startsWith("image/")) ?? files[0]);
    input.files = box.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
  };
  const has_files = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  let depth = 0;
  const mark = (change) => {
    depth = Math.max(0, depth + change);
    document.body.classList.toggle("dropping", depth > 0);
  };
  document.addEventListener("dragenter", (event) => has_files(event) && mark(1));
  document.addEventListener("dragleave", (event) => has_files(event) && mark(-1));
  document.addEventListener("dragover", (event) => has_files(event) && event.preventDefault());
  document.addEventListener("drop", (event) => {
    if (!has_files(event)) return;
    event.preventDefault();
    mark(-depth);
    hand_over(event.dataTransfer.files);
  });
  document.addEventListener("paste", (event) => {
    if (!event.clipboardData?.files.length) return; // text: into the box that has the focus
    event.preventDefault();
    hand_over(event.clipboardData.files);
  });

  // Gradio's own footer is hidden; its API page opens from a link of ours.
  document.addEventListener("click", (event) => {
    if (!event.target.closest?.("#api-link")) return;
    event.preventDefault();
    document.querySelector("footer .show-api")?.click();
  });

  // A link to a view of the scan opens its tab; the view reads the rest of the link.
  const open_scan = () => {
    if (!location.hash.startsWith("#scan")) return;
    const tab = [...document.querySelectorAll('#tabs [role="tab"]')].find((one) => one.textContent.includes("scan"));
    tab ? tab.click() : setTimeout(open_scan, 50);
  };
  open_scan();
}
