"use strict";
const { labels, noun, grades, columns, cases } = JSON.parse(document.getElementById("content").textContent);
const byId = (id) => document.getElementById(id);
const form = byId("filters"), list = byId("cases"), dialog = byId("case"), frame = byId("picture");
const PAGE = 240;
let shown = [], limit = PAGE, open = null;

// Everything of the data enters the page as text, never as markup.
function element(tag, text = "", attributes = {}) {
  const made = Object.assign(document.createElement(tag), attributes);
  made.textContent = text;
  return made;
}

const words = (name) => name.charAt(0).toUpperCase() + name.slice(1).replaceAll("_", " ");
const percent = (share) => (share < 0.005 ? "<1" : share >= 0.995 ? ">99" : (100 * share).toFixed(0)) + " %";
const gradeName = (label) => grades[labels.indexOf(label)];

function filters() {
  return Object.fromEntries([...new FormData(form)].filter(([, value]) => value !== ""));
}

const TESTS = {
  actual: (item, value) => item.actual === value,
  predicted: (item, value) => item.predicted === value,
  graded: (item, value) =>
    item.error !== null && { wrong: item.error > 0, far: item.error > 1, right: item.error === 0 }[value],
  retrieved: (item, value) => item.retrieved === (value === "yes"),
  finding: (item, value) => item.findings.some((finding) => finding.name === value && finding.truth),
  maps: (item, value) => (item.maps.length > 0) === (value === "yes"),
  words: (item, value) => `${item.file}\n${item.text}`.toLowerCase().includes(value.toLowerCase()),
  sort: () => true,
};

function passes(item, chosen) {
  return Object.entries(chosen).every(([name, value]) =>
    name.startsWith("in.") ? item.categories[name.slice(3)] === value : TESTS[name]?.(item, value) ?? true,
  );
}

const known = (value, otherwise) => value ?? otherwise;
const ORDERS = {
  error: (a, b) => known(b.error, -1) - known(a.error, -1) || known(b.confidence, 0) - known(a.confidence, 0),
  sure: (a, b) => known(b.confidence, 0) - known(a.confidence, 0),
  unsure: (a, b) => known(a.confidence, 0) - known(b.confidence, 0),
  rank: (a, b) => b.rank - a.rank,
  file: (a, b) => (a.file < b.file ? -1 : a.file > b.file ? 1 : 0),
};

function outcome(item) {
  if (item.predicted === undefined) return item.retrieved ? "right text first" : `right text at rank ${item.rank}`;
  return `reader ${item.actual ?? "none"}, model ${item.predicted} (${percent(item.confidence)})`;
}

const isWrong = (item) => (item.error === undefined || item.error === null ? !item.retrieved : item.error > 0);

function drawList() {
  list.replaceChildren(...shown.slice(0, limit).map((item) => {
    const button = element("button", "", { type: "button", className: isWrong(item) ? "wrong" : "" });
    button.append(
      item.picture
        ? element("img", "", { src: item.picture, alt: "", loading: "lazy" })
        : element("span", "no picture", { className: "none" }),
      element("b", outcome(item)),
      element("span", item.file),
    );
    button.addEventListener("click", () => show(item));
    const entry = element("li");
    entry.append(button);
    return entry;
  }));
  byId("more").hidden = shown.length <= limit;
}

function update() {
  const chosen = filters();
  shown = cases.filter((item) => passes(item, chosen)).sort((a, b) => ORDERS[chosen.sort](a, b) || a.row - b.row);
  const mistakes = shown.filter(isWrong).length;
  byId("count").textContent = `${shown.length} of ${cases.length} cases, ${mistakes} of them mistakes.`;
  limit = PAGE;
  drawList();
  remember();
}

function remember() {
  const parts = filters();
  if (parts.sort === form.elements.sort.options[0].value) delete parts.sort;
  if (open) parts.case = open.row;
  history.replaceState(null, "", `#${new URLSearchParams(parts)}`);
}

function readAddress() {
  const parts = new URLSearchParams(location.hash.slice(1));
  for (const control of form.elements) {
    if (control.name) control.value = parts.get(control.name) ?? (control.name === "sort" ? control.options[0].value : "");
  }
  const wanted = parts.get("case");
  update();
  const item = wanted === null ? undefined : cases.find((each) => String(each.row) === wanted);
  if (item) show(item);
  else if (dialog.open) dialog.close();
}

function table(rows, heads) {
  const made = element("table"), head = element("thead"), body = element("tbody"), titles = element("tr");
  heads.forEach((title) => titles.append(element("th", title, { scope: "col" })));
  head.append(titles);
  rows.forEach((cells) => {
    const row = element("tr");
    cells.forEach((cell, place) => {
      const box = element(place ? "td" : "th", typeof cell === "object" ? "" : cell);
      if (!place) box.scope = "row";
      if (typeof cell === "object") box.append(cell);
      row.append(box);
    });
    body.append(row);
  });
  made.append(head, body);
  return made;
}

function meter(value, label) {
  const made = element("meter", "", { min: 0, max: 1, value });
  made.setAttribute("aria-label", label);
  return made;
}

// matplotlib's inferno at nine even steps: dark without evidence, bright where a place speaks for the phrase.
const COLOURS = [
  [0, 0, 4], [31, 12, 72], [85, 15, 109], [136, 34, 106], [186, 54, 85], [227, 89, 51], [249, 140, 10], [249, 201, 50], [252, 255, 164],
];
const OPACITY = 0.6;

function colour(strength) {
  const place = strength * (COLOURS.length - 1), low = Math.min(Math.floor(place), COLOURS.length - 2);
  return COLOURS[low].map((from, channel) => from + (place - low) * (COLOURS[low + 1][channel] - from));
}

// The same scale for every map, so that they compare; transparent where nothing speaks for the phrase.
function drawMap(map) {
  const rows = map.heat.length, canvas = element("canvas", "", { width: rows, height: rows, className: "map" });
  const context = canvas.getContext("2d"), image = context.createImageData(rows, rows);
  map.heat.flat().forEach((heat, place) => {
    const strength = Math.min(Math.max(heat / map.full, 0), 1);
    image.data.set([...colour(strength), 255 * OPACITY * strength], 4 * place);
  });
  context.putImageData(image, 0, 0);
  canvas.setAttribute("aria-hidden", "true");
  return canvas;
}

function scale(map) {
  const made = element("div", "", { className: "scale" }), bar = element("span"), ticks = element("span");
  bar.style.background = `linear-gradient(to right, ${COLOURS.map((rgb) => `rgb(${rgb.join()})`).join()})`;
  for (let tick = 0; tick <= map.full; tick += 1) ticks.append(element("span", String(tick)));
  made.append(bar, ticks);
  return made;
}

function mapPanel(item) {
  const panel = element("div"), note = element("p"), buttons = element("p", "", { className: "buttons" });
  const legend = scale(item.maps[0]);
  item.maps.forEach((map) => {
    const button = element("button", words(map.title), { type: "button" });
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => {
      const on = button.getAttribute("aria-pressed") !== "true";
      frame.querySelector("canvas")?.remove();
      buttons.querySelectorAll("button").forEach((each) => each.setAttribute("aria-pressed", "false"));
      button.setAttribute("aria-pressed", String(on));
      if (on && !map.missing) frame.querySelector(".stack")?.append(drawMap(map));
      const peak = Math.max(...map.heat.flat()).toFixed(1);
      note.textContent = !on ? "" : map.missing ? `Not found: ${map.missing}.` : `Strongest place: ${peak} log-odds.`;
    });
    buttons.append(button);
  });
  const meaning = element("p", "Log-odds of the phrase that a place is worth: at 3, hiding it divides the odds by 20.");
  panel.append(buttons, note, legend, meaning);
  return panel;
}

function drawFacts(item) {
  const parts = [element("h3", "Impression"), element("p", item.text)];
  if (item.maps.length) parts.push(element("h3", "Where the model sees it"), mapPanel(item));
  if (item.probabilities) {
    const agreed = item.error === null ? "" : item.error ? "wrong" : "right";
    const said = `Reader: ${item.actual === null ? `no ${noun}` : gradeName(item.actual)}. Model: ${gradeName(item.predicted)}.`;
    parts.push(element("h3", words(noun)), element("p", said, { className: agreed }));
    const rows = item.probabilities.map((value, place) => [grades[place], percent(value), meter(value, grades[place])]);
    parts.push(table(rows, [words(noun), "Probability (uncalibrated)", ""]));
  }
  parts.push(element("h3", "Retrieved texts"));
  parts.push(table(
    item.found.map((text) => [
      text.text,
      text.similarity.toFixed(3),
      element("span", text.right ? "right" : "wrong", { className: text.right ? "right" : "wrong" }),
    ]),
    ["Text", "Similarity", ""],
  ));
  parts.push(element("p", `Rank of the first right text among those of all cases, equal texts counted each: ${item.rank}.`));
  if (item.findings.length) {
    const truth = (finding) => (finding.truth === null ? "unknown" : finding.truth ? "yes" : "no");
    const rows = item.findings.map((finding) => [words(finding.name), truth(finding), finding.score.toFixed(3)]);
    parts.push(element("h3", "Findings"), table(rows, ["Finding", "In the text", "Score"]));
  }
  const facts = Object.entries(item.categories).filter(([, value]) => value !== "");
  if (facts.length) {
    const rows = facts.map(([name, value]) => [columns[name], value]);
    parts.push(element("h3", "Data"), table(rows, ["Column", "Value"]));
  }
  byId("facts").replaceChildren(...parts);
}

function zoom(on) {
  frame.classList.toggle("zoomed", on);
  byId("zoom").setAttribute("aria-pressed", String(on));
}

function show(item) {
  open = item;
  const place = shown.indexOf(item);
  byId("case-title").textContent = `${item.file} · ${outcome(item)}${place < 0 ? "" : ` · ${place + 1} of ${shown.length}`}`;
  zoom(false);
  if (item.picture) {
    const picture = element("img", "", { src: item.picture, alt: `Radiograph ${item.file}` });
    picture.addEventListener("click", () => zoom(!frame.classList.contains("zoomed")));
    const stack = element("div", "", { className: "stack" });
    stack.append(picture);
    frame.replaceChildren(stack);
  } else {
    frame.replaceChildren(element("p", `No picture: ${item.reason}`, { className: "none" }));
  }
  drawFacts(item);
  byId("previous").disabled = place <= 0;
  byId("next").disabled = place < 0 || place >= shown.length - 1;
  if (!dialog.open) dialog.showModal();
  remember();
}

function step(by) {
  const item = shown[shown.indexOf(open) + by];
  if (item && shown.includes(open)) show(item);
}

form.addEventListener("input", update);
form.addEventListener("change", update);
form.addEventListener("reset", () => setTimeout(update));
form.addEventListener("submit", (event) => event.preventDefault());
byId("more").addEventListener("click", () => { limit += PAGE; drawList(); });
byId("previous").addEventListener("click", () => step(-1));
byId("next").addEventListener("click", () => step(1));
byId("zoom").addEventListener("click", () => zoom(!frame.classList.contains("zoomed")));
byId("close").addEventListener("click", () => dialog.close());
dialog.addEventListener("close", () => { open = null; remember(); });
dialog.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const zoomed = frame.classList.contains("zoomed") && document.activeElement === frame;
  if (event.key === "ArrowLeft" && !zoomed) step(-1);
  else if (event.key === "ArrowRight" && !zoomed) step(1);
  else if (event.key === "z" || event.key === "Z") zoom(!frame.classList.contains("zoomed"));
});
addEventListener("hashchange", readAddress);
readAddress();
