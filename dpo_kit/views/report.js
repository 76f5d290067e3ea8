// Filters on top of the groups; without JavaScript the groups alone do it.
const bar = document.querySelector(".filters"), groups = [...document.querySelectorAll(".group")];
const names = ["all", ...groups.map(group => group.dataset.outcome)];
const search = Object.assign(document.createElement("input"), {type: "search", placeholder: "find in prompts and answers"});
search.setAttribute("aria-label", search.placeholder);
let only = "all";
function apply() {
  const wanted = search.value.toLowerCase();
  for (const group of groups) {
    group.hidden = only !== "all" && group.dataset.outcome !== only;
    if (only === group.dataset.outcome) group.open = true;
    for (const prompt of group.querySelectorAll(".prompt")) prompt.hidden = !prompt.textContent.toLowerCase().includes(wanted);
  }
  for (const button of bar.querySelectorAll("button")) button.setAttribute("aria-pressed", button.textContent === only);
}
for (const name of names) {
  const button = Object.assign(document.createElement("button"), {type: "button", textContent: name});
  button.addEventListener("click", () => { only = name; apply(); });
  bar.append(button);
}
search.addEventListener("input", apply);
bar.append(search);
bar.hidden = false;
apply();
