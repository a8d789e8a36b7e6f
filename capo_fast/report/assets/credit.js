"use strict";
// The list of rollouts: sorting, filters, search, links, navigation by keys.

const CHUNK = 50; // list items added to the document at a time
const kinds = Object.keys(page.kinds);
const flaggedSteps = (rollout) => rollout.votes.filter((_, step) => flagged(rollout, step)).length;
const SORTS = {
  "disagreement, right answer with a wrong step first": [(r) => kinds.indexOf(r.kind), (r) => -flaggedSteps(r), (r) => -r.step],
  "reward, highest first": [(r) => -(r.reward ?? -Infinity)],
  "reward, lowest first": [(r) => r.reward ?? Infinity],
  "advantage spread": [(r) => -spread(r)],
  "length, longest first": [(r) => -sum(r.tokens)],
  "step, last first": [(r) => -r.step],
  "step, first first": [(r) => r.step],
};
const filter = { sort: Object.keys(SORTS)[0], kind: "", run: "", search: "" };
const list = document.getElementById("list");
let rows = []; // rows of the list, in order
let current = null;

function matches(rollout) {
  if (filter.kind && rollout.kind !== filter.kind) return false;
  if (filter.run && rollout.run !== Number(filter.run)) return false;
  return !filter.search || words(rollout).includes(filter.search);
}

function words(rollout) {
  rollout.words ??= [address(rollout), rollout.prompt_id, rollout.problem, rollout.answer, ...rollout.steps, ...rollout.critiques.map((each) => each.text)].join("\n").toLowerCase();
  return rollout.words;
}

function compare(one, other) {
  for (const key of SORTS[filter.sort]) {
    const difference = key(one) - key(other);
    if (difference) return difference; // Infinity - Infinity is NaN: a tie
  }
  return one.index - other.index;
}

function item(rollout) {
  const strip = el("div", { class: "strip", "aria-hidden": "true" });
  rollout.tokens.forEach((count, step) => {
    const cell = shade(el("span", flagged(rollout, step) ? { class: "flagged" } : {}), rollout.advantages[step]);
    cell.style.flexGrow = count;
    strip.append(cell);
  });
  const wrong = valid(rollout).length ? ` \u00b7 wrong ${flaggedSteps(rollout)}/${rollout.steps.length}` : "";
  const place = `${page.runs.length > 1 ? page.runs[rollout.run].name + " \u00b7 " : ""}step ${rollout.step} \u00b7 reward ${rollout.reward ?? "?"}${wrong}`;
  const node = el("div", { class: "item", role: "option", id: `item-${rollout.index}`, "aria-selected": String(rollout === current) },
    el("div", {}, kindLabel(rollout)), el("div", {}, rollout.problem), strip, el("div", { class: "faint" }, place));
  node.addEventListener("click", () => select(rollout));
  return node;
}

function more() {
  const held = list.querySelectorAll(".item").length;
  list.append(...rows.slice(held, held + CHUNK).map(item));
}

function refresh(linked = true) {
  rows = page.rollouts.filter(matches).sort(compare);
  document.getElementById("count").textContent = `${rows.length.toLocaleString("en")} of ${many(page.rollouts.length, "rollout")}`;
  list.replaceChildren();
  list.scrollTop = 0;
  more();
  if (!rows.length) {
    current = null;
    document.getElementById("detail").replaceChildren(el("p", { class: "faint" }, "No rollout matches."));
    hideNote();
  } else select(rows.includes(current) ? current : rows[0], linked);
}

function select(rollout, linked = true) {
  current = rollout;
  while (list.children.length <= rows.indexOf(rollout)) more();
  list.querySelectorAll("[aria-selected=true]").forEach((node) => node.setAttribute("aria-selected", "false"));
  const node = document.getElementById(`item-${rollout.index}`);
  node.setAttribute("aria-selected", "true");
  list.setAttribute("aria-activedescendant", node.id);
  list.scrollTop += Math.min(node.offsetTop - list.scrollTop, 0) + Math.max(node.offsetTop + node.offsetHeight - list.scrollTop - list.clientHeight, 0);
  if (linked) history.replaceState(null, "", link(rollout));
  showRollout(rollout);
}

function move(by) {
  const at = rows.indexOf(current) + by;
  if (at >= 0 && at < rows.length) select(rows[at]);
}

function moveStep(by) {
  const steps = [...document.querySelectorAll("#detail .step")];
  const at = steps.findIndex((step) => step.classList.contains("current"));
  const next = steps[Math.min(Math.max(at + by, 0), steps.length - 1)];
  steps.forEach((step) => step.setAttribute("tabindex", step === next ? "0" : "-1"));
  next?.focus();
}

function followLink() {
  if (!location.hash.startsWith("#rollout/")) return;
  const rollout = page.rollouts.find((each) => link(each) === location.hash);
  document.getElementById("credit").scrollIntoView();
  if (!rollout) return void (document.getElementById("count").textContent = `${location.hash} is not among the rollouts of this page`);
  if (!rows.includes(rollout)) resetFilters();
  select(rollout);
}

function resetFilters() {
  Object.assign(filter, { kind: "", run: "", search: "" });
  for (const id of ["kind", "run", "search"]) if (document.getElementById(id)) document.getElementById(id).value = "";
  refresh();
}

function choices(id, options) {
  const node = document.getElementById(id);
  node?.append(...options.map(([value, name]) => el("option", { value }, name)));
  node?.addEventListener("change", () => { filter[id] = node.value; refresh(); });
}

function key(event) {
  const open = document.getElementById("keys").open;
  if (event.ctrlKey || event.metaKey || event.altKey || open) return;
  if (event.key === "Escape") { document.activeElement.blur(); if (list) hideNote(); return; }
  if (event.target.matches("input, select, textarea")) return;
  const inMap = event.target.closest("#map");
  const actions = { "?": () => document.getElementById("keys").showModal(), t: otherTheme };
  if (list) Object.assign(actions, { j: () => move(1), k: () => move(-1), "/": () => document.getElementById("search").focus() });
  if (inMap) Object.assign(actions, { ArrowDown: () => move(1), ArrowUp: () => move(-1), ArrowRight: () => moveStep(1), ArrowLeft: () => moveStep(-1) });
  if (!actions[event.key]) return;
  event.preventDefault();
  actions[event.key]();
}

document.getElementById("help").addEventListener("click", () => document.getElementById("keys").showModal());
document.addEventListener("keydown", key);
if (list) {
  page.rollouts.forEach((rollout, index) => { rollout.index = index; });
  choices("sort", Object.keys(SORTS).map((name) => [name, name]));
  choices("kind", [["", "all rollouts"], ...kinds.filter((kind) => page.rollouts.some((r) => r.kind === kind)).map((kind) => [kind, page.kinds[kind]])]);
  choices("run", [["", "all"], ...page.runs.map((run, place) => [place, run.name])]);
  document.getElementById("search").addEventListener("input", (event) => { filter.search = event.target.value.toLowerCase(); refresh(); });
  list.addEventListener("scroll", () => { if (list.scrollTop + 2 * list.clientHeight > list.scrollHeight) more(); });
  addEventListener("hashchange", followLink);
  refresh(false);
  followLink();
}
