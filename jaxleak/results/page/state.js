// The page's data, and what is read from it. Trials are numbered over all runs.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const trials = data.runs.flatMap((run) =>
  run.series.map((series, place) => ({ run, place, series, image: run.images[place] })));

function cell(trial, column) {
  const values = trial.run.columns[column];
  return Array.isArray(values) ? values[trial.place] : values.all;
}

function number(trial, column) {
  const value = cell(trial, column);
  return value === null ? NaN : Number(value);
}

// Of each series, and of each series and image, the numbers of its trials.
const ofSeries = data.series.map(() => []);
const ofImage = new Map();
trials.forEach((trial, id) => {
  ofSeries[trial.series].push(id);
  const key = `${trial.series},${trial.image}`;
  if (!ofImage.has(key)) ofImage.set(key, []);
  ofImage.get(key).push(id);
});

// Curves: 1000 log10 of the value as 16-bit integers, at evenly spread iterations (curves.py).
const POINTS = 64, NOTHING = -32768, ZERO = -32767;
const decoded = new Map();

function curve(id) {
  if (!decoded.has(id)) {
    const iterations = number(trials[id], "iterations");
    const count = Math.min(iterations + 1, POINTS);
    const at = Array.from({ length: count }, (_, i) => Math.floor(i * iterations / Math.max(count - 1, 1) + 0.5));
    const [objective, mse] = (data.curves[id] ?? []).map((text) => {
      const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
      return Array.from(new Int16Array(bytes.buffer),
        (step) => step === NOTHING ? NaN : step === ZERO ? 0 : 10 ** (step / 1000));
    });
    decoded.set(id, { at, objective, mse });
  }
  return decoded.get(id);
}

// The last place whose iteration is not above `t`; the first, if all are.
function placeAt(at, t) {
  let place = 0;
  while (place + 1 < at.length && at[place + 1] <= t) place += 1;
  return place;
}

function short(value) {
  if (!Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  return size !== 0 && (size < 0.01 || size >= 1e5) ? value.toExponential(1) : String(Number(value.toPrecision(3)));
}

// Colours of Okabe and Ito; beyond them the lines are dashed.
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
const STROKES = ["", "6 3", "2 2", "6 2 2 2", "10 3", "10 2 2 2"];
const dark = matchMedia("(prefers-color-scheme: dark)");
let printing = false;
const inDark = () => dark.matches && !printing;

function colour(series) {
  const own = data.colours[series % data.colours.length];
  return own === "#000000" && inDark() ? "#ffffff" : own;
}

const dash = (series) => Math.floor(series / data.colours.length) % DASHES.length;
