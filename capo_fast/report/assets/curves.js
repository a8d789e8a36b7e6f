"use strict";
// The charts: each is drawn when it is scrolled near the screen. Loaded last, after Bokeh, which loads slowly.

const view = { axis: "step", smooth: 1, hidden: new Set() };
const figures = [...document.querySelectorAll("figure[data-chart]")];
const drawn = new Map(); // figure element -> its chart with the plot, and of each series the source and renderers
const touch = matchMedia("(pointer: coarse)").matches; // on touch screens a drag scrolls the page
Bokeh.logger.set_level("error"); // otherwise it warns about charts whose runs are all hidden

function draw(figure) {
  const chart = { ...page.charts[Number(figure.dataset.chart)] };
  chart.plot = emptyPlot(chart);
  chart.series = chart.top === null ? chart.series.map((each) => line(chart.plot, each)) : bars(chart.plot, chart.series);
  chart.cursor = new Bokeh.Span({ dimension: "height", level: "overlay", line_alpha: 0.5, visible: false });
  chart.plot.add_layout(chart.cursor);
  chart.readout = figure.appendChild(el("div", { class: "readout", "aria-hidden": "true", hidden: "" }));
  for (const name of ["mousemove", "tap"]) chart.plot.on_event(name, (event) => read(chart, event));
  if (!touch) chart.plot.on_event("mouseleave", () => stopReading(chart));
  chart.plot.on_event("doubletap", () => chart.plot.reset.emit());
  drawn.set(figure, chart);
  paint(chart, figure);
  update(chart);
  chart.shown = show(chart.plot, figure.querySelector(".plot"));
  return chart;
}

async function show(plot, place) {
  const root = new Bokeh.Document();
  root.add_root(plot);
  const shown = (await Bokeh.embed.add_document_standalone(root, place)).get(plot);
  shown.canvas_view.events_el.removeAttribute("tabindex"); // it has no keyboard actions
  return shown;
}

function emptyPlot(chart) {
  const plot = Bokeh.Plotting.figure({
    tools: touch ? [] : [new Bokeh.BoxZoomTool({ dimensions: "width" })],
    x_range: new Bokeh.DataRange1d({ only_visible: true, range_padding: 0.06 }),
    y_range: chart.top === null ? new Bokeh.DataRange1d({ only_visible: true }) : new Bokeh.Range1d({ start: 0, end: chart.top }),
    toolbar_location: null, sizing_mode: "stretch_both", min_border_left: 46, min_border_right: 8, min_border_bottom: 26, min_border_top: 6,
    background_fill_color: null, border_fill_color: null, outline_line_color: null,
  });
  for (const axis of plot.axes) axis.setv({ axis_line_color: null, major_tick_line_color: null, minor_tick_line_color: null, major_label_text_font_size: "11px" });
  plot.xaxis.ticker = new Bokeh.BasicTicker({ desired_num_ticks: 6, min_interval: 1 });
  plot.yaxis.ticker = plot.ygrid.ticker = new Bokeh.BasicTicker({ desired_num_ticks: 4 });
  plot.xaxis.formatter = new Bokeh.BasicTickFormatter({ use_scientific: false });
  plot.yaxis.formatter = chart.percent ? new Bokeh.NumeralTickFormatter({ format: "0.[00]%" }) : new Bokeh.PrintfTickFormatter({ format: "%.6g" });
  plot.xgrid.visible = false;
  return plot;
}

// A line, with markers for few values; if it is smoothed, a pale line shows the raw values.
function line(plot, series) {
  const source = new Bokeh.ColumnDataSource({ data: { x: [], raw: [], y: [], low: [], high: [] } });
  const look = { source, line_color: series.colour, line_dash: series.dash, line_width: 1.75 };
  const raw = plot.line({ field: "x" }, { field: "raw" }, { ...look, line_alpha: 0.25 });
  const all = [raw, plot.line({ field: "x" }, { field: "y" }, look)];
  if (series.error) all.push(plot.segment({ field: "x" }, { field: "low" }, { field: "x" }, { field: "high" }, { ...look, line_width: 1 }));
  if (series.x.length <= 40) all.push(plot.scatter({ field: "x" }, { field: "y" }, { source, size: 4.5, color: series.colour }));
  return { ...series, source, raw, all };
}

function bars(plot, stack) {
  const { x } = stack[0];
  const wide = x[1] - x[0] || 1;
  const steps = x.map((middle, at) => (at > 1 ? 2 * (middle - x[at - 1]) - wide : wide)); // the last bar may have fewer steps
  const width = steps.map((each) => 0.92 * each);
  const top = x.map(() => 0);
  return stack.map((series) => {
    const bottom = [...top];
    series.y.forEach((y, at) => { top[at] += y; });
    const source = new Bokeh.ColumnDataSource({ data: { x, y: series.y, steps, width, bottom, top: [...top] } });
    const all = [plot.vbar({ field: "x" }, { field: "width" }, { field: "top" }, { field: "bottom" }, { source, color: series.colour, line_color: null })];
    return { ...series, source, all };
  });
}

// The data of a chart for the chosen axis, smoothing and runs.
function update(chart) {
  for (const series of chart.series) {
    for (const renderer of series.all) renderer.visible = !view.hidden.has(series.run);
    if (!series.raw) continue;
    const smooth = view.smooth > 1 && !series.error;
    const { clock } = page.runs[series.run];
    const x = view.axis === "time" ? series.x.map((step) => clock[step] ?? NaN) : series.x;
    const raw = series.y.map((y) => y ?? NaN);
    const error = (sign) => raw.map((y, at) => y + sign * (series.error?.[at] ?? NaN));
    series.raw.visible &&= smooth;
    series.source.data = { x, raw, y: smooth ? trailingMean(raw, view.smooth) : raw, low: error(-1), high: error(1) };
  }
}

function trailingMean(values, size) {
  return values.map((value, at) => {
    const window = values.slice(Math.max(at - size + 1, 0), at + 1).filter((each) => !isNaN(each));
    return isNaN(value) ? NaN : sum(window) / window.length;
  });
}

// The page's colours, as computed by CSS for the theme.
function paint({ plot, cursor }, figure) {
  const { borderTopColor: grid, fontFamily } = getComputedStyle(figure);
  const { color: ink } = getComputedStyle(figure.querySelector(".faint"));
  for (const axis of plot.axes) axis.setv({ major_label_text_color: ink, major_label_text_font: fontFamily });
  plot.ygrid.grid_line_color = grid;
  cursor.line_color = ink;
  for (const { overlay } of plot.toolbar.tools) overlay.setv({ fill_color: ink, fill_alpha: 0.15, line_color: null });
}

// ---- one readout of all lines, where the point nearest to the mouse is ----

function read(chart, { x: mouse, sx }) {
  const points = chart.series.filter(({ run }) => !view.hidden.has(run)).map((series) => nearest(series, mouse)).filter(Boolean);
  const { plot: { x_range: { start, end }, inner_width, outer_width }, cursor, readout } = chart;
  const at = points.reduce((best, { x }) => (Math.abs(x - mouse) < Math.abs(best - mouse) ? x : best), Infinity);
  if (!(at >= start && at <= end)) return stopReading(chart); // also without visible data: start and end are NaN then
  const together = points.filter(({ x }) => Math.abs(x - at) <= (10 / inner_width) * (end - start));
  readout.replaceChildren(el("p", {}, placeName(chart, at, together[0].steps)), ...together.map((point) => row(chart, point)));
  readout.style.left = sx < outer_width / 2 ? `${sx + 24}px` : "auto";
  readout.style.right = sx < outer_width / 2 ? "auto" : `${outer_width - sx + 24}px`;
  readout.hidden = false;
  cursor.setv({ location: at, visible: true });
}

function stopReading({ readout, cursor }) {
  readout.hidden = true;
  cursor.visible = false;
}

function placeName({ top }, at, steps) {
  if (view.axis === "time" && top === null) return `${at.toFixed(1)} s`;
  return steps > 1 ? `steps ${at - (steps - 1) / 2} to ${at + (steps - 1) / 2}` : `step ${at}`;
}

function nearest({ name, colour, source: { data } }, mouse) {
  const points = Array.from(data.x, (x, at) => ({ name, colour, x, y: data.y[at], steps: data.steps?.[at] })).filter(({ x, y }) => isFinite(x + y));
  return points.reduce((best, point) => (best && Math.abs(best.x - mouse) <= Math.abs(point.x - mouse) ? best : point), null);
}

function row({ percent }, { name, colour, y }) {
  const text = percent ? `${Number((100 * y).toFixed(2))}%` : Math.abs(y) >= 1000 ? Math.round(y).toLocaleString("en") : String(Number(y.toPrecision(4)));
  return el("div", {}, el("i", { style: `background:${colour}` }), el("span", {}, name), el("b", {}, text));
}

// ---- the reader's choices ----

function toggleRun(button) {
  const run = Number(button.dataset.run);
  const shown = view.hidden.delete(run);
  if (!shown) view.hidden.add(run);
  button.setAttribute("aria-pressed", String(shown));
  drawn.forEach(update);
}

addEventListener("theme", () => drawn.forEach(paint));
for (const [id, choose] of [["axis", String], ["smooth", Number]]) {
  document.getElementById(id)?.addEventListener("change", (event) => {
    view[id] = choose(event.target.value);
    drawn.forEach(update);
    if (id === "axis") drawn.forEach(({ plot }) => plot.reset.emit());
  });
}
addEventListener("pointerdown", () => drawn.forEach(stopReading));
document.querySelectorAll("button.run").forEach((button) => button.addEventListener("click", () => toggleRun(button)));

const near = new IntersectionObserver((entries) => {
  for (const { target } of entries.filter((entry) => entry.isIntersecting)) {
    near.unobserve(target);
    setTimeout(() => drawn.has(target) || draw(target)); // lets the browser paint in between
  }
}, { rootMargin: "150px" });
figures.forEach((figure) => near.observe(figure));

// For printing: all charts, in light colours, at the printer's resolution.
let before = null;
addEventListener("beforeprint", () => {
  before = page.theme;
  setTheme("light");
  for (const figure of figures) (drawn.get(figure) ?? draw(figure)).shown.then((shown) => putOnPaper(figure, shown));
});
addEventListener("afterprint", () => {
  setTheme(before);
  document.querySelectorAll(".paper").forEach((paper) => paper.remove());
});

function putOnPaper(figure, shown) {
  const paper = shown.export("svg").canvas;
  paper.setAttribute("class", "paper");
  paper.setAttribute("viewBox", `0 0 ${shown.bbox.width} ${shown.bbox.height}`);
  figure.querySelector(".plot").append(paper);
}
