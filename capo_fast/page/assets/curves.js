"use strict";
// The page's data, its theme, and the charts: each is drawn when it comes near the screen.

const page = JSON.parse(document.getElementById("data").textContent);
const view = { axis: "step", smooth: 1, hidden: new Set(), theme: null };
const figures = [...document.querySelectorAll("figure[data-chart]")];
const drawn = new Set();

function draw(figure) {
  const chart = page.charts[Number(figure.dataset.chart)];
  const data = chart.data.filter((trace) => !view.hidden.has(trace.meta.run)).flatMap(lines);
  const touch = matchMedia("(pointer: coarse)").matches; // there a drag scrolls the page
  const layout = { ...chart.layout, template: page.templates[view.theme], dragmode: touch ? false : "zoom" };
  drawn.add(figure);
  return Plotly.react(figure.querySelector(".plot"), data, layout, { responsive: true, displayModeBar: false });
}

// What a trace of the file looks like under the chosen axis and smoothing.
function lines(trace) {
  if (trace.meta.bars) return [trace];
  const clock = page.runs[trace.meta.run].clock;
  const x = view.axis === "time" ? trace.x.map((step) => clock[step] ?? null) : trace.x;
  if (view.smooth === 1 || trace.error_y) return [{ ...trace, x }];
  const raw = { ...trace, x, mode: "lines", opacity: 0.25, hoverinfo: "skip", hovertemplate: null };
  return [raw, { ...trace, x, y: trailingMean(trace.y, view.smooth), mode: "lines" }];
}

function trailingMean(values, size) {
  return values.map((value, at) => {
    const window = values.slice(Math.max(at - size + 1, 0), at + 1).filter((each) => each !== null);
    return value === null ? null : window.reduce((sum, each) => sum + each, 0) / window.length;
  });
}

function setTheme(theme) {
  view.theme = theme;
  document.documentElement.dataset.theme = theme;
  document.getElementById("theme").textContent = theme === "dark" ? "Light" : "Dark";
  drawn.forEach(draw);
}

function otherTheme() {
  setTheme(view.theme === "dark" ? "light" : "dark");
}

function toggleRun(button) {
  const run = Number(button.dataset.run);
  const shown = view.hidden.delete(run);
  if (!shown) view.hidden.add(run);
  button.setAttribute("aria-pressed", String(shown));
  drawn.forEach(draw);
}

const dark = matchMedia("(prefers-color-scheme: dark)");
setTheme(dark.matches ? "dark" : "light");
dark.addEventListener("change", () => setTheme(dark.matches ? "dark" : "light"));
document.getElementById("theme").addEventListener("click", otherTheme);
for (const [id, read] of [["axis", String], ["smooth", Number]]) {
  document.getElementById(id)?.addEventListener("change", (event) => {
    view[id] = read(event.target.value);
    drawn.forEach(draw);
  });
}
document.querySelectorAll("button.run").forEach((button) => button.addEventListener("click", () => toggleRun(button)));

const near = new IntersectionObserver((entries) => {
  entries.filter((entry) => entry.isIntersecting && !drawn.has(entry.target)).forEach((entry) => draw(entry.target));
}, { rootMargin: "400px" });
figures.forEach((figure) => near.observe(figure));

// On paper: all charts, in light colours.
let before = null;
addEventListener("beforeprint", () => {
  before = view.theme;
  setTheme("light");
  figures.filter((figure) => !drawn.has(figure)).forEach(draw);
});
addEventListener("afterprint", () => setTheme(before));
