"use strict";
// One list of items, the filtered part of which is shown; of that, only what is in sight is in the document. A decision
// is "keep", "drop" or "relabel" with a class; it goes at once to the browser's storage, an entry an item.
const ROW_HEIGHT = 64, ROWS_BEYOND = 8;
const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const pictures = $("pictures").textContent;
const { classes, items } = data;
const list = $("list"), card = $("card");
const stored = `mlnt review ${data.key} `;

let shown = []; // positions in items
let current = 0; // position in shown
const rows = new Map(); // position in shown → element
const undoable = []; // [item, decision before]
const elsewhere = new Map(); // decisions that this browser keeps and that this page does not show: stored name → decision
let unsaved = false, kept = true;

const source = (picture) =>
  picture === null
    ? "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="
    : `data:image/webp;base64,${pictures.slice(picture ? data.ends[picture - 1] : 0, data.ends[picture])}`;
const nameOf = (item) => JSON.stringify([item.path, classes[item.given]]);
const said = (decision) =>
  !decision ? "" : decision.what === "relabel" ? `→ ${classes[decision.label]}` : decision.what === "keep" ? "kept" : "dropped";
const selected = () => items[shown[current]];

function announce(text) { $("said").textContent = text; }

// Progress, kept in the browser

for (const item of items) {
  item.applied = item.decision ? { what: item.decision, label: item.label } : null;
  item.decision = item.applied;
}

/** A decision without the page's numbers of classes. */
const plain = (decision) => decision && [decision.what, decision.what === "relabel" ? classes[decision.label] : null];

/** Kept with what was applied then: where another decision has been applied since, that is the newer one. */
function remember(item) {
  try {
    if (item.decision === item.applied) localStorage.removeItem(stored + nameOf(item));
    else localStorage.setItem(stored + nameOf(item), JSON.stringify([plain(item.decision), plain(item.applied)]));
  } catch (error) { lost(error); }
}

function lost(error) {
  kept = false;
  $("trouble").hidden = false;
  $("trouble").textContent = `This browser does not keep your decisions (${error.name}): save them before you close the page.`;
}

function recall() {
  try {
    const byName = new Map(items.map((item) => [nameOf(item), item]));
    for (const key of Object.keys(localStorage)) {
      if (!key.startsWith(stored)) continue;
      const name = key.slice(stored.length), item = byName.get(name);
      const [decision, applied] = JSON.parse(localStorage.getItem(key));
      const found = decision && { what: decision[0], label: classes.indexOf(decision[1]) };
      if (item && JSON.stringify(applied) === JSON.stringify(plain(item.applied))) item.decision = found;
      else if (item) localStorage.removeItem(key);
      else if (found) elsewhere.set(name, found);
    }
  } catch (error) { lost(error); }
}

// The list

function render() {
  const first = Math.max(0, Math.floor(list.scrollTop / ROW_HEIGHT) - ROWS_BEYOND);
  const last = Math.min(shown.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW_HEIGHT) + ROWS_BEYOND);
  for (const [at, row] of rows) {
    // The selected row stays: a screen reader is told of it by its id.
    if ((at < first || at >= last) && at !== current) { row.remove(); rows.delete(at); }
  }
  for (let at = first; at < last; at++) if (!rows.has(at)) addRow(at);
  if (shown.length && !rows.has(current)) addRow(current);
}

function addRow(at) {
  const item = items[shown[at]], row = document.createElement("div");
  row.id = `row-${shown[at]}`;
  row.setAttribute("role", "option");
  row.setAttribute("aria-setsize", shown.length);
  row.setAttribute("aria-posinset", at + 1);
  row.style.top = `${at * ROW_HEIGHT}px`;
  row.dataset.at = at;
  const image = document.createElement("img"), text = document.createElement("div"), mark = document.createElement("span");
  image.src = source(item.picture);
  image.alt = "";
  text.className = "text";
  const labels = document.createElement("span"), file = document.createElement("span");
  const other = "suggested" in item && item.suggested !== item.given;
  labels.textContent = classes[item.given] + (other ? ` → ${classes[item.suggested]}?` : "");
  file.className = "file";
  file.textContent = item.path;
  text.append(labels, file);
  row.append(image, text, mark);
  rows.set(at, row);
  markRow(at);
  // In order, for those who read the document instead of seeing it.
  const next = [...rows.keys()].filter((other) => other > at).sort((a, b) => a - b)[0];
  $("space").insertBefore(row, next === undefined ? null : rows.get(next));
}

function markRow(at) {
  const row = rows.get(at);
  if (!row) return;
  const item = items[shown[at]], mark = row.lastChild, decision = said(item.decision);
  row.setAttribute("aria-selected", at === current);
  mark.className = `mark ${item.decision ? item.decision.what : ""}`;
  mark.textContent = decision;
  const suggestion = "suggested" in item ? `model suggests ${classes[item.suggested]}` : "";
  row.setAttribute("aria-label", [item.path, `given ${classes[item.given]}`, suggestion, decision].filter(Boolean).join(", "));
}

function select(at, scroll = true) {
  const before = current;
  current = Math.max(0, Math.min(at, shown.length - 1));
  if (scroll) {
    const top = current * ROW_HEIGHT, room = list.clientHeight; // with a row before it and one after
    if (top - ROW_HEIGHT < list.scrollTop) list.scrollTop = top - ROW_HEIGHT;
    else if (top + 2 * ROW_HEIGHT > list.scrollTop + room) list.scrollTop = top + 2 * ROW_HEIGHT - room;
  }
  render();
  markRow(before);
  markRow(current);
  if (shown.length) list.setAttribute("aria-activedescendant", `row-${shown[current]}`);
  else list.removeAttribute("aria-activedescendant");
  showCard();
}

// The image

function showCard() {
  const item = selected();
  card.hidden = !item;
  $("nothing").hidden = Boolean(item);
  $("nothing").textContent = items.length ? "No image fits the filter." : "No label is doubtful.";
  $("position").textContent = item ? `${current + 1} of ${shown.length}` : "";
  if (!item) return;
  $("picture").src = source(item.picture);
  $("picture").alt = item.picture === null ? "no picture in this page" : `image ${item.path}`;
  $("original").hidden = data.originals === null;
  if (data.originals !== null) $("original").href = data.originals + item.path.split("/").map(encodeURIComponent).join("/");
  $("title").textContent = item.path;
  const seen = "suggested" in item, agrees = seen && item.suggested === item.given;
  fact("given", classes[item.given]);
  fact("suggested", seen ? (agrees ? "the given label" : `${classes[item.suggested]}, ${percent(item.sure)}`) : "");
  fact("score", typeof item.score === "number" ? percent(item.score) : "");
  fact("also", item.also);
  fact("split", item.split === "train" ? "" : item.split);
  fact("decision", said(item.decision).replace("→", "relabelled"));
  $("keep").lastElementChild.textContent = classes[item.given];
  $("suggest").hidden = !seen || agrees;
  if (seen) $("suggest").lastElementChild.textContent = classes[item.suggested];
  $("class").value = item.decision?.what === "relabel" ? item.decision.label : "";
  $("relabel").disabled = $("class").value === "";
  $("clear").disabled = !item.decision;
  const others = item.asked - item.agree;
  const nearest = `the ${item.asked} nearest training images`, other = `another label than ${classes[item.given]}`;
  $("votes").textContent = !others
    ? `All of ${nearest} have the given label.`
    : `${item.agree ? others : "All"} of ${nearest} ${others === 1 ? "has" : "have"} ${other}.`;
  $("neighbors").replaceChildren(...item.against.map(neighbor));
}

function percent(probability) {
  return probability < 0.0005 ? "< 0.1 %" : `${(100 * probability).toFixed(1)} %`;
}

function fact(name, text) {
  $(`fact-${name}`).textContent = text ?? "";
  $(`fact-${name}`).parentElement.hidden = !text;
}

function neighbor(picture) {
  const [path, label] = data.neighbors[picture];
  const entry = document.createElement("li"), image = document.createElement("img");
  image.src = source(picture);
  image.alt = "";
  image.title = path;
  entry.append(image, classes[label]);
  return entry;
}

// Decisions

function set(item, decision) {
  undoable.push([item, item.decision]);
  item.decision = decision;
  unsaved = true;
  remember(item);
}

function decide(what, label = null) {
  const item = selected();
  if (!item || (what === "relabel" && label === item.given)) return;
  set(item, { what, label });
  goOn(`${item.path}: ${said(item.decision).replace("→", "relabelled")}.`);
}

function clear() {
  const item = selected();
  if (!item?.decision) return;
  set(item, null);
  refresh(shown[current]);
  announce(`${item.path}: no decision.`);
}

function undo() {
  const last = undoable.pop();
  if (!last) return;
  const [item, before] = last, at = items.indexOf(item);
  item.decision = before;
  unsaved = true;
  remember(item);
  refresh(at);
  if (!shown.includes(at)) {
    for (const name of ["given", "suggested", "state"]) $(name).selectedIndex = 0;
    refresh(at);
  }
  announce(`Undone. ${item.path}: ${said(before).replace("→", "relabelled") || "no decision"}.`);
}

/** To the next image that is not decided, from the selected one on and then from the start. */
function goOn(text) {
  const here = shown[current], from = current;
  let next = -1;
  for (let step = 1; step <= shown.length && next < 0; step++) {
    const at = shown[(from + step) % shown.length];
    if (!items[at].decision) next = at;
  }
  refresh(next < 0 ? here : next);
  const left = items.reduce((count, item) => count + !item.decision, 0);
  announce(next < 0 ? `${text} ${left ? "All of this filter are decided." : "All are decided: save the decisions."}` : `${text} Next: ${label(items[next])}.`);
}

const label = (item) => `${item.path}, given ${classes[item.given]}${"suggested" in item ? `, model suggests ${classes[item.suggested]}` : ""}`;

/** Show the list anew, with item `at` selected, or what has taken its place. */
function refresh(at) {
  const before = shown;
  filter();
  const same = before.length === shown.length && before.every((item, i) => item === shown[i]);
  if (!same) { for (const row of rows.values()) row.remove(); rows.clear(); }
  $("space").style.height = `${shown.length * ROW_HEIGHT}px`;
  const found = shown.indexOf(at);
  if (same) markRow(current);
  select(found < 0 ? current : found);
  count();
}

function filter() {
  const given = $("given").value, suggested = $("suggested").value, state = $("state").value;
  shown = [];
  items.forEach((item, at) => {
    if (given !== "" && item.given !== Number(given)) return;
    if (suggested !== "" && item.suggested !== Number(suggested)) return;
    if (state !== "all" && (state === "decided") !== Boolean(item.decision)) return;
    shown.push(at);
  });
}

function count() {
  const of = { keep: 0, relabel: 0, drop: 0 };
  for (const item of items) if (item.decision) of[item.decision.what]++;
  const decided = of.keep + of.relabel + of.drop;
  $("counts").textContent = `${decided} of ${items.length} decided: ${of.keep} kept, ${of.relabel} relabelled, ${of.drop} dropped`
    + (elsewhere.size ? `; and ${elsewhere.size} of before that are doubtful no more` : "");
  $("progress").max = Math.max(1, items.length);
  $("progress").value = decided;
  $("undo").disabled = !undoable.length;
  $("save").disabled = !decided && !elsewhere.size;
}

// The file

const quoted = (text) => (/[",;\t\r\n]|^\s|\s$/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);

function save() {
  const lines = items.filter((item) => item.decision).map((item) => [item.path, classes[item.given], item.decision]);
  for (const [name, decision] of elsewhere) lines.push([...JSON.parse(name), decision]);
  lines.sort((a, b) => (a[0] < b[0] ? -1 : a[0] > b[0] ? 1 : a[1] < b[1] ? -1 : 1));
  const text = lines.map(([path, given, { what, label }]) =>
    [path, given, what, what === "relabel" ? classes[label] : ""].map(quoted).join(","));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([["path,given_label,decision,label", ...text, ""].join("\n")], { type: "text/csv" }));
  link.download = "decisions.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  unsaved = false;
  announce(`decisions.csv with ${lines.length} decisions is among your downloads.`);
}

// Controls

/** The class that a digit stands for, −1 for none: the one of that name, or where no class is called so, the first to the ninth. */
function ofDigit(text) {
  if (!/^[0-9]$/.test(text)) return -1;
  if (classes.some((name) => /^[0-9]$/.test(name))) return classes.indexOf(text);
  return Number(text) <= classes.length ? Number(text) - 1 : -1;
}

function key(event) {
  if (event.altKey || event.ctrlKey || event.metaKey) {
    if (event.key === "z" && !event.altKey && !event.shiftKey) { event.preventDefault(); undo(); }
    return;
  }
  const inList = document.activeElement === list || document.activeElement === document.body;
  if (/^(SELECT|INPUT|SUMMARY)$/.test(document.activeElement.tagName)) return;
  const page = Math.max(1, Math.floor(list.clientHeight / ROW_HEIGHT) - 1);
  const steps = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1, PageDown: page, PageUp: -page, Home: -shown.length, End: shown.length };
  if (event.key in steps) {
    if (!inList) return;
    event.preventDefault();
    select(current + steps[event.key]);
    return;
  }
  if (!$("keys").checked || !selected()) return;
  const acts = {
    k: () => decide("keep"),
    s: () => $("suggest").hidden || decide("relabel", selected().suggested),
    d: () => decide("drop"),
    r: () => $("class").focus(),
    u: undo,
    c: clear,
  };
  const act = acts[event.key.toLowerCase()] ?? (ofDigit(event.key) < 0 ? null : () => decide("relabel", ofDigit(event.key)));
  if (act) { event.preventDefault(); act(); }
}

function options(name, values, every) {
  const counts = new Map();
  for (const value of values) if (value !== undefined) counts.set(value, (counts.get(value) ?? 0) + 1);
  const found = [...counts].sort(([a], [b]) => a - b);
  $(name).append(new Option(`${every} (${items.length})`, ""), ...found.map(([i, count]) => new Option(`${classes[i]} (${count})`, i)));
}

recall();
options("given", items.map((item) => item.given), "all");
options("suggested", items.map((item) => item.suggested), "all");
$("class").append(new Option("…", ""), ...classes.map((name, i) => new Option(i < 9 && ofDigit(`${i + 1}`) === i ? `${i + 1} ${name}` : name, i)));
for (const name of ["given", "suggested", "state"]) $(name).addEventListener("change", () => { list.scrollTop = 0; current = 0; refresh(-1); });
$("class").addEventListener("change", () => { $("relabel").disabled = $("class").value === ""; });
$("class").addEventListener("keydown", (event) => { if (event.key === "Enter") { event.preventDefault(); $("relabel").click(); } });
$("keep").addEventListener("click", () => decide("keep"));
$("suggest").addEventListener("click", () => decide("relabel", selected().suggested));
$("drop").addEventListener("click", () => decide("drop"));
$("relabel").addEventListener("click", () => decide("relabel", Number($("class").value)));
$("clear").addEventListener("click", clear);
$("undo").addEventListener("click", undo);
$("save").addEventListener("click", save);
list.addEventListener("scroll", render, { passive: true });
list.addEventListener("click", (event) => {
  const row = event.target.closest("[role=option]");
  if (row) select(Number(row.dataset.at), false);
});
document.addEventListener("keydown", key);
window.addEventListener("resize", render);
window.addEventListener("beforeunload", (event) => { if (unsaved && !kept) event.preventDefault(); });
refresh(0);
const start = shown.findIndex((at) => !items[at].decision);
if (start > 0) select(start);
