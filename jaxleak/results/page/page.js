// Tables, rows as CSV, examples, keys; and the start.
function sortBy(heading) {
  const body = heading.closest("table").tBodies[0], place = heading.cellIndex;
  const up = heading.getAttribute("aria-sort") !== "ascending";
  const key = (row) => row.cells[place].dataset.key;
  const compare = (a, b) => {
    if (a === "" || b === "") return (a === "") - (b === "") || 0;
    const numbers = [Number(a), Number(b)];
    const order = numbers.some(Number.isNaN) ? a.localeCompare(b, "en", { numeric: true }) : numbers[0] - numbers[1];
    return up ? order : -order;
  };
  for (const other of heading.parentNode.cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", up ? "ascending" : "descending");
  body.append(...[...body.rows].sort((a, b) => compare(key(a), key(b))));
}

function quoted(value) {
  const text = value === null ? "" : String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function csv() {
  const columns = Object.keys(data.runs[0].columns);
  const lines = trials.map((trial) => [trial.run.name, ...columns.map((column) => cell(trial, column))]);
  return [["run", ...columns], ...lines].map((line) => line.map(quoted).join(",")).join("\r\n") + "\r\n";
}

function download() {
  const link = make("a", { href: URL.createObjectURL(new Blob([csv()], { type: "text/csv" })), download: "rows.csv" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

function fillExamples() {
  const pictured = data.examples.filter((id) => data.pictures[id]?.src).slice(0, 12);
  byId("examples")?.append(...pictured.map((id) => {
    const trial = trials[id], image = data.images[trial.image], pictures = data.pictures[id];
    const label = data.series[trial.series].label, seed = cell(trial, "seed"), status = cell(trial, "status");
    const box = frame(sizeOf(trial.image), pictures.src, pictures.at.length, "");
    setFrame(box, pictures.at.length - 1, pictures.at.length, `${label}, ${image.label}, start ${seed}: ${status}`);
    const button = make("button", { type: "button", class: "show", "data-show": `${trial.series},${trial.image},${seed}` }, status);
    return make("figure", {}, box, button, `: ${label}, ${image.label}, start ${seed}`);
  }));
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const on = event.target.closest("select, textarea, button, summary, input:not([type=range]), .scroll");
  const arrows = { ArrowLeft: -1, ArrowRight: 1 };
  if (event.key in arrows && !on) {
    play(false);
    move(position() + arrows[event.key]);
    event.preventDefault();
  } else if (event.key === " " && !on) {
    play(view.timer === null);
    event.preventDefault();
  }
}

function restyle() {
  const place = position();
  refresh();
  move(place);
}

document.addEventListener("click", (event) => {
  const heading = event.target.closest("th"), wanted = event.target.closest("[data-show]");
  if (heading && event.target.closest("button")) sortBy(heading);
  if (wanted && trials.length) show(wanted.dataset.show);
});
if (trials.length) {
  fillChoices();
  view.image = trials[0].image;
  byId("image").value = view.image;
  byId("image").addEventListener("change", () => { view.image = Number(byId("image").value); refresh(); });
  byId("trial").addEventListener("change", () => { view.rank = byId("trial").value; refresh(); });
  byId("slider").addEventListener("input", () => { play(false); move(position()); });
  byId("play").addEventListener("click", () => play(view.timer === null));
  for (const id of ["x", "scope", "left-quantity", "right-quantity"]) byId(id).addEventListener("change", drawCurves);
  byId("csv").addEventListener("click", download);
  document.addEventListener("keydown", onKey);
  dark.addEventListener("change", restyle);
  addEventListener("beforeprint", () => { printing = true; restyle(); });
  addEventListener("afterprint", () => { printing = false; restyle(); });
  refresh();
  fillExamples();
  requestAnimationFrame(() => setTimeout(() => { view.ready = true; drawCurves(); document.body.dataset.ready = "yes"; }));
} else {
  document.body.dataset.ready = "yes";
}
