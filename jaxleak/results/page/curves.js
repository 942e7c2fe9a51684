// Curves, drawn by Plotly: the trials that the cards show, and the spread over all of theirs.
const GRID = 60;
const PLOTS = ["left", "right"];
const LOGARITHMIC = { objective: true, relative: true, mse: true };
const LIKENESS = Object.fromEntries(data.series.flatMap((one) => one.likeness).map(([column, name, unit]) => [column, unit ? `${name} [${unit.trim()}]` : name]));
const NAMES = { objective: "objective", relative: "objective / |update|²", mse: data.wrong, ...LIKENESS };
const marks = {};

// Plotly reads a little markup in texts.
const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

// What an iteration costs a trial, in the units of the horizontal axis.
function unit(id) {
  const iterations = number(trials[id], "iterations");
  return against() === "iterations" ? 1 : number(trials[id], against()) / Math.max(iterations, 1);
}

function points(id, quantity) {
  const each = unit(id);
  if (quantity in LIKENESS) {
    const { at = [], [quantity]: values = [] } = data.pictures[id] ?? {};
    return { x: at.slice(0, values.length).map((t) => t * each), y: values.map(Number) };
  }
  const { at, objective, mse } = curve(id);
  if (!objective) return { x: [], y: [] };
  const x = at.map((t) => t * each);
  if (quantity === "mse") return { x, y: mse.map((value) => value || NaN) };
  const squared = cell(trials[id], "objective_kind") === "l2" ? number(trials[id], "update_norm2") : 1;
  const norm = quantity === "relative" ? squared : 1;
  return { x, y: objective.map((value) => value / norm || NaN) };
}

function quantile(sorted, level) {
  const place = level * (sorted.length - 1), low = Math.floor(place);
  return sorted[low] + (place - low) * (sorted[Math.min(low + 1, sorted.length - 1)] - sorted[low]);
}

// Tenth, half and nine tenths of the trials at evenly spread places; a trial that has ended keeps its last value.
function spread(ids, quantity) {
  const all = ids.map((id) => points(id, quantity)).filter(({ x }) => x.length);
  const end = Math.max(0, ...all.map(({ x }) => x[x.length - 1]));
  const x = Array.from({ length: GRID }, (_, i) => i * end / (GRID - 1));
  const bands = x.map((at) => {
    const values = all.map((one) => one.y[placeAt(one.x, at)]).filter(Number.isFinite).sort((a, b) => a - b);
    return values.length ? [0.1, 0.5, 0.9].map((level) => quantile(values, level)) : [null, null, null];
  });
  return { x, low: bands.map((b) => b[0]), median: bands.map((b) => b[1]), high: bands.map((b) => b[2]), n: all.length };
}

function scope(series) {
  return byId("scope").value === "all" ? ofSeries[series] : ofImage.get(`${series},${view.image}`) ?? [];
}

function layout(title, quantity) {
  const style = getComputedStyle(document.documentElement);
  const text = printing ? "#000" : style.getPropertyValue("--text"), line = printing ? "#bbb" : style.getPropertyValue("--line");
  const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true, tickfont: { size: 11 } };
  return {
    margin: { l: 58, r: 10, t: 8, b: 44 }, showlegend: false, hovermode: "closest",
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: text },
    xaxis: { ...axis, title: { text: title, standoff: 6 }, rangemode: "tozero" },
    yaxis: { ...axis, title: { text: quantity, standoff: 4 } },
  };
}

const faded = (hex) => `${hex}22`;
const config = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d"] };
const against = () => byId("x").value;

function drawQuantity(plot) {
  const quantity = byId(`${plot}-quantity`).value, below = [], traces = [], seen = { low: [], high: [] }, said = [];
  marks[plot] = [];
  for (const one of view.shown) {
    const own = colour(one.series), name = plain(data.series[one.series].label), style = DASHES[dash(one.series)];
    const band = spread(scope(one.series), quantity);
    const hover = { hoverinfo: "skip", mode: "lines" };
    if (band.n > 1) {
      below.push({ ...hover, x: band.x, y: band.low, line: { width: 0, color: own } });
      below.push({ ...hover, x: band.x, y: band.high, line: { width: 0, color: own }, fill: "tonexty", fillcolor: faded(own) });
      traces.push({ x: band.x, y: band.median, mode: "lines", line: { width: 1, color: own, dash: style },
        hovertemplate: `${name}, median of ${band.n}: %{y:.3g}<extra></extra>` });
    }
    const single = one.id === undefined ? { x: [], y: [] } : points(one.id, quantity);
    traces.push({ x: single.x, y: single.y, mode: "lines", line: { width: 2.5, color: own, dash: style },
      hovertemplate: `${name}, start ${one.id === undefined ? "" : cell(trials[one.id], "seed")}: %{y:.3g}<extra></extra>` });
    marks[plot].push({ trace: traces.length, single });
    traces.push({ x: [], y: [], mode: "markers", marker: { size: 10, color: own, line: { width: 1.5, color: inDark() ? "#000" : "#fff" } }, hoverinfo: "skip" });
    seen.low.push(...band.low, ...single.y);
    seen.high.push(...band.high, single.y[0]);
    said.push(`${data.series[one.series].label}: median at the end ${short(band.median.at(-1) ?? NaN)}`);
  }
  const drawn = layout(against(), NAMES[quantity]);
  limit(drawn, quantity, seen);
  marks[plot].forEach((mark) => { mark.trace += below.length; });
  Plotly.react(plot, [...below, ...traces], drawn, config);
  byId(plot).setAttribute("aria-label", `${NAMES[quantity]} against ${against()}. ${said.join("; ")}`);
}

// From the lowest value to the highest start or spread: a trial that diverges leaves the picture.
function limit(drawn, quantity, seen) {
  const usable = (values) => values.filter((v) => Number.isFinite(v) && v !== null && (!LOGARITHMIC[quantity] || v > 0));
  const low = usable(seen.low), high = usable([...seen.high, ...(LOGARITHMIC[quantity] ? [] : seen.low)]);
  if (quantity.startsWith("objective")) {
    const thresholds = new Set(view.shown.map((one) => data.series[one.series].threshold));
    drawn.shapes = [...thresholds].map((y) => ({ type: "line", xref: "paper", x0: 0, x1: 1, y0: y, y1: y,
      line: { width: 1, dash: "dot", color: drawn.font.color } }));
    low.push(...thresholds);
  }
  if (!low.length || !high.length) return;
  const bottom = Math.min(...low), top = Math.max(...high);
  if (LOGARITHMIC[quantity]) {
    drawn.yaxis = { ...drawn.yaxis, type: "log", exponentformat: "power", dtick: Math.ceil(Math.log10(top / bottom) / 6) || 1,
      range: [Math.log10(bottom) - 0.3, Math.log10(top) + 0.4] };
  } else {
    const least = quantity === "psnr" ? Math.max(bottom, -10) : bottom;
    drawn.yaxis.range = [least - 0.05 * (top - least), top + 0.05 * (top - least || 1)];
  }
}

function drawShare() {
  const traces = [], said = [];
  for (const one of view.shown) {
    const ids = scope(one.series);
    const solved = ids.filter((id) => cell(trials[id], "success") === true);
    const at = solved.map((id) => against() === "evaluations" ? number(trials[id], "threshold_evaluations")
      : number(trials[id], "threshold_iterations") * unit(id)).filter(Number.isFinite).sort((a, b) => a - b);
    const end = Math.max(0, ...ids.map((id) => number(trials[id], "iterations") * unit(id)));
    const share = (count) => ids.length ? count / ids.length : 0;
    traces.push({
      x: [0, ...at, end], y: [0, ...at.map((_, i) => share(i + 1)), share(at.length)], mode: "lines",
      line: { shape: "hv", width: 2, color: colour(one.series), dash: DASHES[dash(one.series)] },
      hovertemplate: `${plain(data.series[one.series].label)}: %{y:.2f} of ${ids.length} within %{x:,.3~g}<extra></extra>`,
    });
    said.push(`${data.series[one.series].label}: ${at.length} of ${ids.length}`);
  }
  const drawn = layout(against(), "share solved");
  drawn.yaxis.range = [-0.03, 1.05];
  Plotly.react("share", traces, drawn, config);
  byId("share").setAttribute("aria-label", `Share of trials solved against ${against()}. ${said.join("; ")}`);
}

function drawLegend() {
  byId("legend").replaceChildren(...view.shown.map((one) => {
    const picture = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    picture.setAttribute("viewBox", "0 0 40 10");
    picture.setAttribute("aria-hidden", "true");
    const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
    const looks = { x1: 0, x2: 40, y1: 5, y2: 5, stroke: colour(one.series), "stroke-width": 4, "stroke-dasharray": STROKES[dash(one.series)] };
    for (const [name, value] of Object.entries(looks)) line.setAttribute(name, value);
    picture.append(line);
    return make("li", {}, picture, data.series[one.series].label);
  }));
}

function drawCurves() {
  if (!view.ready) return;
  drawLegend();
  PLOTS.forEach(drawQuantity);
  drawShare();
  moveMarks();
}

function moveMarks() {
  if (!view.ready) return;
  const t = view.stops[position()];
  for (const plot of PLOTS) {
    const at = marks[plot].map(({ single }, i) => {
      const id = view.shown[i].id;
      if (id === undefined || !single.x.length) return [[], []];
      const place = placeAt(single.x, Math.min(t, number(trials[id], "iterations")) * unit(id));
      return [[single.x[place]], [single.y[place]]];
    });
    if (at.length) Plotly.restyle(plot, { x: at.map((p) => p[0]), y: at.map((p) => p[1]) }, marks[plot].map((m) => m.trace));
  }
}
