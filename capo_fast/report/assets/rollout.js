"use strict";
// One rollout: its steps coloured by advantage, and the note with votes and critiques beside the current step.
// Texts come from models: they become text nodes, never markup.

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children.filter((child) => child !== null));
  return node;
}

const signed = (number) => (number === null ? "?" : (number > 0 ? "+" : number < 0 ? "\u2212" : "") + Math.abs(number).toFixed(2));
const many = (count, one) => `${count.toLocaleString("en")} ${one}${count === 1 ? "" : "s"}`;
const sum = (numbers) => numbers.reduce((total, each) => total + each, 0);
const valid = (rollout) => rollout.critiques.filter((critique) => !critique.abstained);
const judges = (critique, step) => !critique.abstained && !(critique.unread ?? []).includes(step);
const judging = (rollout, step) => rollout.critiques.filter((critique) => judges(critique, step));
const against = (rollout, step) => judging(rollout, step).filter((critique) => critique.wrong_steps.includes(step)).length;
const flagged = (rollout, step) => valid(rollout).length > 0 && rollout.votes[step] >= 0.5;
const address = (rollout) => `rollout/${page.runs[rollout.run].name}/${rollout.step}/${rollout.group}/${rollout.sample}`;
const link = (rollout) => `#${encodeURI(address(rollout))}`;

function spread(rollout) {
  const known = rollout.advantages.filter((each) => each !== null);
  return known.length ? Math.max(...known) - Math.min(...known) : 0;
}

// The colour of an advantage: its share of the scale, in the tone of its sign.
function shade(node, advantage) {
  node.classList.add("shade");
  if (advantage < 0) node.classList.add("neg");
  node.style.setProperty("--w", Math.min(Math.abs(advantage ?? 0) / page.scale, 1).toFixed(3));
  return node;
}

function scale() {
  const ramp = el("span", { class: "ramp", "aria-hidden": "true" });
  for (let at = -8; at <= 8; at++) ramp.append(shade(el("span"), (at / 8) * page.scale));
  const words = "advantage of the tokens, 0 in the middle; all tokens of a step share one";
  return el("div", { class: "scale" }, `\u2212${page.scale}`, ramp, `+${page.scale}`, el("span", {}, words));
}

function kindLabel(rollout) {
  const tone = rollout.kind === "right-flagged" || rollout.kind === "wrong-sound" ? "bad" : rollout.kind.startsWith("right") ? "good" : "";
  return el("span", { class: `kind ${tone}` }, page.kinds[rollout.kind]);
}

function facts(rollout) {
  const critiques = rollout.critiques.length;
  const pairs = [
    ["reward", rollout.reward ?? "?"],
    ["verdict", rollout.outcome ?? "timed out"],
    ["group", `${rollout.group_right} of ${rollout.group_size} right`],
    ["advantage spread", spread(rollout).toFixed(2)],
    ["length", many(sum(rollout.tokens), "token") + (rollout.stop_reason === "length" ? ", cut by the limit" : "")],
    ["critiques", critiques ? `${valid(rollout).length} of ${critiques} valid` : "none"],
    ["trained on", rollout.trained ? "yes" : "no"],
  ];
  return el("dl", { class: "facts" }, ...pairs.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, String(value)))));
}

function stepRow(rollout, step) {
  const wrong = flagged(rollout, step);
  const count = against(rollout, step);
  const votes = count ? `${wrong ? "\u2717 " : ""}${count}/${judging(rollout, step).length}` : null;
  const gutter = el("span", { class: "gutter" }, el("b", {}, `step ${step}`), el("span", {}, signed(rollout.advantages[step])),
    votes && el("span", { class: wrong ? "flagged" : "", title: "critiques against this step" }, votes));
  const text = shade(el("span", { class: "text" }, rollout.steps[step].trim() || "\u00a0"), rollout.advantages[step]);
  return el("li", { class: wrong ? "step wrong" : "step", tabindex: step === 0 ? "0" : "-1", "data-step": step, "aria-describedby": "note" }, gutter, text);
}

function critiqueDetails(critique, number) {
  const said = critique.abstained ? "abstained" : critique.wrong_steps.length ? `wrong: ${critique.wrong_steps.join(", ")}` : "no wrong step";
  const unread = critique.abstained ? 0 : (critique.unread ?? []).length;
  const extra = [unread ? `${many(unread, "step")} without a verdict` : "", critique.truncated ? "truncated" : "", critique.dropped ? `${many(critique.dropped, "index")} out of range` : ""];
  const summary = [`Critique ${number + 1}`, said, ...extra].filter(Boolean).join(" \u00b7 ");
  return el("details", {}, el("summary", {}, summary), el("div", { class: "text" }, critique.text || "(empty)"));
}

function showRollout(rollout) {
  const detail = document.getElementById("detail");
  const where = `${page.runs[rollout.run].name} \u00b7 step ${rollout.step} \u00b7 group ${rollout.group} \u00b7 rollout ${rollout.sample}`;
  hideNote();
  detail.replaceChildren(
    el("h3", {}, kindLabel(rollout)),
    el("div", { class: "faint" }, `${where} \u00b7 ${rollout.prompt_id}`),
    facts(rollout),
    el("h3", {}, "Problem"),
    el("div", { class: "text", id: "problem" }, rollout.problem),
    el("p", { class: "faint" }, "Expected answer: ", el("code", {}, rollout.answer), ", found: ", rollout.extracted === null ? "none" : el("code", {}, rollout.extracted)),
    scale(),
    el("ol", { class: "steps", "aria-label": "Steps of the rollout" }, ...rollout.steps.map((_, step) => stepRow(rollout, step))),
    rollout.critiques.length ? el("h3", {}, "Critiques") : el("p", { class: "faint" }, "This rollout has no critiques: its advantages come from the outcome alone."),
    ...rollout.critiques.map(critiqueDetails),
  );
  for (const row of detail.querySelectorAll(".step")) {
    row.addEventListener("mouseenter", () => showNote(rollout, row));
    row.addEventListener("focus", () => showNote(rollout, row));
  }
}

// ---- the note beside a step ----

// A critique with mentions of the step marked; a long one is cut around the first mention.
function excerpt(text, step) {
  const name = new RegExp(`(step[_ ]?${step}(?!\\d))`, "i");
  const start = text.length <= 700 ? 0 : Math.max(text.search(name) - 120, 0);
  const part = (start ? "\u2026" : "") + text.slice(start, start + 700) + (start + 700 < text.length ? "\u2026" : "");
  return part.split(new RegExp(name, "gi")).map((piece, at) => (at % 2 ? el("mark", {}, piece) : piece));
}

function noteOf(critique, number, step) {
  const wrong = critique.wrong_steps.includes(step);
  const none = critique.abstained ? "abstained" : "no verdict on this step";
  const said = !judges(critique, step) ? `\u2013 ${none}, no vote` : wrong ? "\u2717 wrong" : "\u2713 not wrong";
  return [el("p", {}, el("b", { class: wrong && !critique.abstained ? "kind bad" : "kind" }, said), ` \u00b7 critique ${number + 1}`),
    el("div", { class: "text" }, ...excerpt(critique.text || "(empty)", step))];
}

function voteLine(rollout, step) {
  if (!rollout.critiques.length) return "no critiques, no vote";
  if (!valid(rollout).length) return `all ${many(rollout.critiques.length, "critique")} abstained: no vote`;
  return `${against(rollout, step)} of ${many(judging(rollout, step).length, "valid critique")} against it, vote ${rollout.votes[step]}`;
}

function showNote(rollout, row) {
  const step = Number(row.dataset.step);
  const note = document.getElementById("note");
  const head = `Step ${step} of 0\u2013${rollout.steps.length - 1} \u00b7 advantage ${signed(rollout.advantages[step])} \u00b7 ${many(rollout.tokens[step], "token")}`;
  note.replaceChildren(el("p", {}, el("b", {}, head)), el("p", { class: "faint" }, voteLine(rollout, step)),
    ...rollout.critiques.flatMap((critique, number) => noteOf(critique, number, step)));
  document.querySelectorAll(".step.current").forEach((other) => other.classList.remove("current"));
  row.classList.add("current");
  note.hidden = false;
  const top = Math.min(row.getBoundingClientRect().top, innerHeight - note.offsetHeight - 12); // fully on the screen
  note.style.top = `${top - document.getElementById("map").getBoundingClientRect().top}px`;
}

function hideNote() {
  document.querySelectorAll(".step.current").forEach((row) => row.classList.remove("current"));
  document.getElementById("note").hidden = true;
}
