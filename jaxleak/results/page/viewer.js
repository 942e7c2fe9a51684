// Side by side: the chosen trials of an image, all at the slider's iteration.
const MOST_CARDS = 12;
const view = { image: 0, rank: "best", t: Infinity, stops: [0], shown: [], timer: null, only: null };
const boxes = data.facets.map(() => []);

function fillChoices() {
  data.images.forEach((image, place) => {
    const name = image.name ? `${image.label}: ${image.name}` : image.label;
    byId("image").append(make("option", { value: place }, name));
  });
  data.facets.forEach((facet, place) => {
    const set = make("fieldset", {}, make("legend", {}, facet.name));
    if (facet.values.length > 8) {
      const select = make("select", { "aria-label": facet.name }, make("option", { value: "" }, "all"));
      select.append(...facet.values.map((value) => make("option", { value }, value)));
      select.addEventListener("change", refresh);
      boxes[place] = select;
      set.append(select);
    } else {
      boxes[place] = facet.values.map((value) => {
        const box = make("input", { type: "checkbox", value });
        box.checked = true;
        box.addEventListener("change", refresh);
        set.append(make("label", {}, box, value));
        return box;
      });
    }
    byId("facets").append(set);
  });
}

function passes(series) {
  return data.facets.every((_, place) => {
    const value = series.values[place], chosen = boxes[place];
    if (!Array.isArray(chosen)) return chosen.value === "" || chosen.value === value;
    return chosen.some((box) => box.checked && box.value === value);
  });
}

// The trial of a series that the choice of rank names; undefined if it has none.
function chosenTrial(series) {
  if (!view.rank.startsWith("seed ")) return data.ranks[`${series},${view.image}`]?.[view.rank];
  const seed = Number(view.rank.slice(5));
  return ofImage.get(`${series},${view.image}`)?.find((id) => number(trials[id], "seed") === seed);
}

function fillRanks(series) {
  const seeds = new Map();
  for (const one of series) {
    for (const id of ofImage.get(`${one},${view.image}`) ?? []) {
      const seed = number(trials[id], "seed");
      seeds.set(seed, seeds.get(seed) || id in data.pictures);
    }
  }
  const options = ["best", "median", "worst"].map((rank) => [rank, `${rank} by objective`]);
  for (const [seed, pictured] of [...seeds].sort((a, b) => a[0] - b[0]).slice(0, 300)) {
    options.push([`seed ${seed}`, pictured ? `start ${seed}` : `start ${seed} (no pictures)`]);
  }
  if (!options.some(([rank]) => rank === view.rank)) view.rank = "best";
  byId("trial").replaceChildren(...options.map(([value, text]) => make("option", { value }, text)));
  byId("trial").value = view.rank;
}

// The picture of a trial as a window on its sprite.
function frame(size, source, count, alt) {
  const box = make("div", { class: "frame" });
  box.style.aspectRatio = `${size[0]} / ${size[1]}`;
  if (!source) {
    box.append(make("span", {}, alt));
    return box;
  }
  const image = make("img", { src: source, alt });
  image.style.width = `${100 * count}%`;
  box.append(image);
  return box;
}

// The texts of a frame; tokens that are not the true ones stand out.
function write(box, texts, told) {
  box.replaceChildren(...texts.map((text, item) => make("p", {}, ...text.map((token, place) => {
    const word = place ? token : token.trimStart();
    return told && told[item][place] !== token ? make("mark", {}, word) : word;
  }))));
}

function setFrame(box, place, count, alt) {
  const image = box.querySelector("img");
  if (!image) return;
  image.style.transform = `translateX(${-100 * place / count}%)`;
  image.dataset.place = place;
  image.alt = alt;
}

const sizeOf = (image) => data.images[image].size ?? [1, 1];

function card(series, id) {
  const figure = make("figure", { class: "card" }, make("h3", {}, data.series[series].label));
  figure.style.borderTopColor = colour(series);
  const pictures = data.pictures[id];
  const why = id === undefined ? "no such trial" : "no pictures of this trial on this page";
  const told = data.images[view.image].texts;
  const box = told ? make("div", { class: "texts" }, pictures?.texts ? "" : why)
    : frame(sizeOf(view.image), pictures?.src, pictures?.at.length, why);
  const facts = make("dl");
  figure.append(box, facts);
  return { series, id, pictures: pictures?.src || pictures?.texts ? pictures : undefined, box, facts, figure };
}

function refresh() {
  const fitting = [...data.series.keys()].filter((one) => passes(data.series[one]) && ofImage.has(`${one},${view.image}`));
  if (view.only !== null && fitting.includes(view.only)) {
    fitting.splice(fitting.indexOf(view.only), 1);
    fitting.unshift(view.only);
  }
  const used = fitting.slice(0, MOST_CARDS);
  fillRanks(used);
  view.shown = used.map((one) => card(one, chosenTrial(one)));
  const truth = make("figure", { class: "card truth" }, make("h3", {}, "truth"));
  const told = data.images[view.image];
  if (told?.texts) {
    const box = make("div", { class: "texts" });
    write(box, told.texts, told.texts);
    truth.append(box);
  } else truth.append(frame(sizeOf(view.image), told?.truth, 1, told?.truth ? `True ${told.label}` : "the truth is not known"));
  if (told?.name) truth.append(make("dl", {}, make("dt", {}, "class"), make("dd", {}, told.name)));
  byId("cards").replaceChildren(truth, ...view.shown.map((one) => one.figure));
  const many = fitting.length > used.length ? `${used.length} of ${fitting.length} are shown; narrow the choice.` : "";
  byId("count").textContent = fitting.length ? many : "Nothing fits this choice.";
  setStops();
  drawCurves();
}

function setStops() {
  const pictured = view.shown.filter((one) => one.pictures);
  const before = pictured.flatMap((one) => one.pictures.at.slice(0, -1));
  const last = Math.max(0, ...view.shown.filter((one) => one.id !== undefined)
    .map((one) => number(trials[one.id], "iterations")));
  view.stops = [...new Set([...before, last])].sort((a, b) => a - b);
  byId("slider").max = view.stops.length - 1;
  setPosition(view.t === Infinity ? view.stops.length - 1 : placeAt(view.stops, view.t));
}

const position = () => Number(byId("slider").value);

function setPosition(place) {
  const slider = byId("slider");
  slider.value = Math.min(Math.max(place, 0), view.stops.length - 1);
  const t = view.stops[position()];
  view.t = position() === view.stops.length - 1 ? Infinity : t;
  byId("iteration").textContent = `iteration ${t.toLocaleString("en")}`;
  slider.setAttribute("aria-valuetext", `iteration ${t}`);
  for (const one of view.shown) tell(one, t);
}

// Picture and numbers of a card at iteration `t`.
function tell(one, t) {
  if (one.id === undefined) return;
  const trial = trials[one.id], end = number(trial, "iterations");
  const status = cell(trial, "status"), label = data.series[one.series].label;
  if (one.pictures) {
    const at = one.pictures.at, place = placeAt(at, t);
    const alt = `${label}, ${data.images[view.image].label}, start ${cell(trial, "seed")}: candidate at iteration ${at[place]}`;
    if (one.pictures.texts) write(one.box, one.pictures.texts[place], data.images[view.image].texts);
    else setFrame(one.box, place, at.length, alt);
  }
  const { at, objective } = curve(one.id), place = placeAt(at, Math.min(t, end));
  const ended = t >= end;
  const like = (name) => Number(data.pictures[one.id]?.[name]?.[placeAt(data.pictures[one.id].at, t)]);
  const facts = [
    ["objective", short(ended ? number(trial, "objective") : objective?.[place])],
    ...data.series[one.series].likeness.map(([column, name, unit]) =>
      [name, `${short(ended ? number(trial, column) : like(column))}${unit}`]),
    ["start", cell(trial, "seed")],
    ["ends", `iteration ${end}`],
    ["status", ended ? status : "running"],
  ];
  one.facts.replaceChildren(...facts.flatMap(([name, text]) => [make("dt", {}, name), make("dd", {}, text)]));
  if (ended) one.facts.lastChild.className = cell(trial, "success") ? "solved" : "failed";
}

function move(place) {
  setPosition(place);
  moveMarks();
}

function play(on) {
  clearInterval(view.timer);
  view.timer = null;
  byId("play").setAttribute("aria-pressed", String(on));
  byId("play").textContent = on ? "Pause" : "Play";
  if (!on) return;
  if (position() === view.stops.length - 1) move(0);
  view.timer = setInterval(() => {
    if (position() >= view.stops.length - 1) play(false);
    else move(position() + 1);
  }, 350);
}

// What a click on an image, a count or an example asks for: "SERIES,IMAGE,SEED".
function show(text) {
  const [series, image, seed] = text.split(",");
  view.only = Number(series);
  view.image = Number(image);
  view.rank = seed === "" ? "best" : `seed ${seed}`;
  view.t = Infinity;
  for (const chosen of boxes) {
    if (Array.isArray(chosen)) chosen.forEach((box) => { box.checked = true; });
    else chosen.value = "";
  }
  byId("image").value = image;
  refresh();
  byId("viewer").scrollIntoView();
}
