// The controls of dashboard.py. All text is set as textContent, so none of it can run.

function make(parent, tag, attributes = {}) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return parent.appendChild(node);
}

function render({ model, el }) {
  const root = make(el, "div", { class: "dpo-live", role: "group", "aria-label": "Training" });
  const line = make(root, "span", { class: "where" });
  const bar = make(root, "progress", { "aria-label": "Steps done" });
  const button = make(root, "button", { type: "button", "aria-label": "Stop training and save a checkpoint" });
  const spoken = make(root, "div", { role: "status", "aria-live": "polite" });

  function draw() {
    const scene = model.get("scene");
    line.textContent = scene.progress;
    bar.max = scene.total;
    bar.value = scene.step;
    button.textContent = scene.stopping ? "Stopping …" : "Stop and save";
    button.setAttribute("aria-disabled", scene.stopping);
    if (spoken.textContent !== scene.announced) spoken.textContent = scene.announced;
  }
  button.onclick = () => model.get("scene").stopping || model.send({ do: "stop" });
  model.on("change:scene", draw);
  draw();
  return () => model.off("change:scene", draw);
}

export default { render };
