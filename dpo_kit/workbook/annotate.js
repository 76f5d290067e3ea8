// The screen of annotate.py. All text goes in as textContent: nothing a response holds can become an element.

const KEYS = { a: "a", 1: "a", b: "b", 2: "b", t: "tie", 3: "tie", s: "skip", 4: "skip" };
const BUTTONS = [["a", "A is better", "A"], ["b", "B is better", "B"], ["tie", "Tie", "T"], ["skip", "Skip", "S"]];
const PATIENCE = 3000; // ms until a choice without an answer is said to wait

function make(parent, tag, attributes = {}, text = "") {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.textContent = text;
  return parent.appendChild(node);
}

function button(parent, label, key) {
  const node = make(parent, "button", { type: "button", "aria-keyshortcuts": key });
  make(node, "span", {}, label);
  make(node, "kbd", { "aria-hidden": "true" }, key);
  return node;
}

function side(parent, name) {
  const node = make(parent, "section", { role: "region", "aria-label": `Answer ${name}`, tabindex: "0" });
  make(node, "h4", { "aria-hidden": "true" }, name);
  return make(node, "div", { class: "text", dir: "auto" });
}

function layOut(el) {
  const root = make(el, "div", { class: "dpo-annotate", role: "group", "aria-label": "Compare two answers", tabindex: "0" });
  const head = make(root, "header");
  const count = make(head, "strong");
  const bar = make(head, "progress", { "aria-label": "Labelled" });
  const work = make(root, "div", { class: "work" });
  const prompt = make(work, "section", { role: "region", "aria-label": "Prompt", tabindex: "0", class: "prompt" });
  const answers = make(work, "div", { class: "answers" });
  const left = side(answers, "A"), right = side(answers, "B");
  const label = make(work, "label", { class: "note" });
  make(label, "span", {}, "Note");
  make(label, "kbd", { "aria-hidden": "true" }, "N");
  const note = make(label, "input", { type: "text", autocomplete: "off", placeholder: "optional, saved with your choice" });
  const foot = make(root, "div", { class: "buttons" });
  const choices = BUTTONS.map(([choice, name, key]) => [choice, button(foot, name, key)]);
  const undo = button(foot, "Undo", "U");
  const status = make(root, "p", { role: "status", "aria-live": "polite" });
  const error = make(root, "p", { role: "alert" });
  make(root, "p", { class: "hint" }, "Keys work while the focus is in this box. Enter in the note returns to it.");
  return { root, count, bar, work, prompt, left, right, note, choices, undo, status, error };
}

function render({ model, el }) {
  const page = layOut(el);
  let waiting = null; // the timer of a choice sent and not yet answered: until then no other is sent
  let shown; // the item on the screen

  function send(message) {
    if (waiting !== null) return;
    page.root.setAttribute("aria-busy", "true");
    page.status.textContent = "Saving …";
    waiting = setTimeout(() => (page.status.textContent = "Not saved yet: the kernel is busy or has stopped."), PATIENCE);
    model.send(message);
  }

  function choose(choice) {
    const { item } = model.get("scene");
    if (item !== null) send({ do: "label", item, side: choice, note: page.note.value });
  }

  function draw() {
    const scene = model.get("scene");
    clearTimeout(waiting);
    waiting = null;
    page.root.removeAttribute("aria-busy");
    const all = scene.item === null;
    const place = all ? `All ${scene.total} pairs are labelled.` : `Pair ${scene.done + 1} of ${scene.total}`;
    page.count.textContent = place;
    Object.assign(page.bar, { max: scene.total, value: scene.done });
    page.work.hidden = all;
    page.choices.forEach(([, node]) => node.setAttribute("aria-disabled", all));
    page.undo.setAttribute("aria-disabled", scene.done === 0);
    page.status.textContent = [scene.status, all ? `${place} ${scene.summary}` : scene.status && `${place}.`].join(" ").trim();
    page.error.textContent = scene.error ?? "";
    if (all && page.work.contains(document.activeElement)) page.root.focus();
    if (scene.item !== shown && !all) show(scene);
    shown = scene.item;
  }

  function show(scene) {
    page.prompt.replaceChildren();
    for (const [role, text] of scene.turns) {
      make(page.prompt, "h4", {}, role);
      make(page.prompt, "div", { class: "text", dir: "auto" }, text);
    }
    page.left.textContent = scene.left;
    page.right.textContent = scene.right;
    page.note.value = scene.note;
    for (const box of [page.prompt, page.left.parentNode, page.right.parentNode]) box.scrollTop = 0;
  }

  // JupyterLab listens on the document, in the capture phase: there `a` inserts a cell. The window is asked earlier.
  // What has no Ctrl, Alt or Meta is ours while the focus is inside; stopping it leaves what a browser does by itself.
  function hearKey(event) {
    if (!page.root.contains(event.target) || event.ctrlKey || event.altKey || event.metaKey) return;
    event.stopImmediatePropagation();
    const typing = event.target === page.note;
    if (event.repeat && !typing && ["Enter", " "].includes(event.key)) event.preventDefault(); // a held key clicks again
    if (event.repeat || event.isComposing) return;
    if (typing) {
      if (event.key === "Enter" || event.key === "Escape") page.root.focus();
      return;
    }
    const key = event.key.toLowerCase();
    if (key in KEYS) choose(KEYS[key]);
    else if (key === "u") send({ do: "undo" });
    else if (key === "n") page.note.focus();
    else return;
    event.preventDefault();
  }

  // the second click of a double click would fall on the next pair
  const once = (act) => (event) => event.detail <= 1 && act();
  page.choices.forEach(([choice, node]) => node.addEventListener("click", once(() => choose(choice))));
  page.undo.addEventListener("click", once(() => send({ do: "undo" })));
  window.addEventListener("keydown", hearKey, true);
  model.on("change:scene", draw);
  draw();
  return () => {
    window.removeEventListener("keydown", hearKey, true);
    model.off("change:scene", draw);
    clearTimeout(waiting);
  };
}

export default { render };
