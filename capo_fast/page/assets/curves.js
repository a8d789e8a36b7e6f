"use strict";
// The charts: each is drawn when it comes near the screen. Comes last, after plotly, which takes a second to load.

const view = { axis: "step", smooth: 1, hidden: new Set() };
const figures = [...document.querySelectorAll("figure[data-chart]")];
const drawn = new Set();

function draw(figure) {
  const chart = page.charts[Number(figure.dataset.chart)];
  const data = chart.data.filter((trace) => !view.hidden.has(trace.meta.run)).flatMap(lines);
  const touch = matchMedia("(pointer: coarse)").matches; // there a drag scrolls the page
  const layout = { ...chart.layout, template: page.templates[page.theme], dragmode: touch ? false : "zoom" };
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

function toggleRun(button) {
  const run = Number(button.dataset.run);
  const shown = view.hidden.delete(run);
  if (!shown) view.hidden.add(run);
  button.setAttribute("aria-pressed", String(shown));
  drawn.forEach(draw);
}

addEventListener("theme", () => drawn.forEach(draw));
for (const [id, read] of [["axis", String], ["smooth", Number]]) {
  document.getElementById(id)?.addEventListener("change", (event) => {
    view[id] = read(event.target.value);
    drawn.forEach(draw);
  });
}
document.querySelectorAll("button.run").forEach((button) => button.addEventListener("click", () => toggleRun(button)));

const near = new IntersectionObserver((entries) => {
  for (const { target } of entries.filter((entry) => entry.isIntersecting)) {
    near.unobserve(target);
    setTimeout(() => drawn.has(target) || draw(target)); // the screen is painted in between
  }
}, { rootMargin: "150px" });
figures.forEach((figure) => near.observe(figure));

// On paper: all charts, in light colours.
let before = null;
addEventListener("beforeprint", () => {
  before = page.theme;
  setTheme("light");
  figures.filter((figure) => !drawn.has(figure)).forEach(draw);
});
addEventListener("afterprint", () => setTheme(before));
