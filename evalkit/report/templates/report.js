"use strict";
// Tables: a heading sorts, a third click restores the order; a field filters.
for (const section of document.querySelectorAll("section.table")) {
  const body = section.querySelector("tbody"), rows = [...body.rows], heads = [...section.querySelectorAll("thead th")];
  const units = []; // a row, and the rows that only add to it
  for (const row of rows) row.classList.contains("detail") ? units.at(-1).push(row) : units.push([row]);
  const value = (row, i) => {
    const cell = row.cells[i];
    return cell.dataset.number !== undefined ? Number(cell.dataset.number) : cell.textContent.trim();
  };
  const compare = (a, b) => {
    if (typeof a === "number" && typeof b === "number") return a - b;
    if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
    return a.localeCompare(b, "en", { numeric: true });
  };
  heads.forEach((head, i) => head.querySelector("button").addEventListener("click", () => {
    const was = head.getAttribute("aria-sort");
    const order = was === null ? "descending" : was === "descending" ? "ascending" : null;
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    if (order) head.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    const empty = (row) => { const v = value(row, i); return v === "" || v === "-"; };
    const sorted = order ? [...units].sort(([a], [b]) => empty(a) - empty(b) || sign * compare(value(a, i), value(b, i))) : units;
    body.append(...sorted.flat());
  }));
  section.querySelector("input").addEventListener("input", (event) => {
    const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const unit of units) {
      const text = unit[0].textContent.toLowerCase();
      for (const row of unit) row.hidden = !words.every((word) => text.includes(word));
    }
  });
}

// Samples: one cell is unpacked when it is chosen, fifty of its samples are listed at a time.
const index = JSON.parse(document.getElementById("index").textContent);
const at = (id) => document.getElementById(id);
const PAGE = 50, kept = new Map();
let shown = [], first = 0, opened = -1, turn = 0;

const make = (name, text, style) => {
  const node = document.createElement(name);
  if (text !== undefined) node.textContent = text;
  if (style) node.className = style;
  return node;
};
const fill = (select, options, keep) => {
  select.replaceChildren(...options.map(([value, text]) => Object.assign(make("option", text), { value })));
  if (options.some(([value]) => value === keep)) select.value = keep;
};
const longName = (n) => {
  const run = index.runs[n], task = at("cell-subset").value.split("/")[0];
  const same = index.runs.filter((other) => other.arm === run.arm && other.tasks.includes(task)).length > 1;
  return run.arm + (same ? ` (${run.name})` : "") + (run.published ? " (published)" : "");
};

async function unpack(number) {
  if (!kept.has(number)) {
    const bytes = Uint8Array.from(atob(at(`slice-${number}`).textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    kept.set(number, await new Response(stream).json());
    if (kept.size > 40) kept.delete(kept.keys().next().value);
  }
  return kept.get(number);
}

async function read(cell) {
  const samples = [];
  for (const part of await Promise.all(cell.slices.map(unpack)))
    part.samples.forEach((sample, i) => {
      const rows = {};
      for (const run in part.runs) if (part.runs[run][i]) rows[run] = part.runs[run][i];
      samples.push({ sample, rows });
    });
  return samples;
}

const cellNow = () => index.cells.find((c) => `${c.task}/${c.subset}` === at("cell-subset").value && c.length === at("cell-length").value);

async function list() {
  const cell = cellNow(), mine = ++turn;
  if (!cell) return;
  const scorers = index.scorers[cell.task];
  fill(at("scorer"), scorers.map((s, i) => [String(i), s.replaceAll("_", " ")]), at("scorer").value);
  at("status").textContent = "Unpacking …";
  let all;
  try {
    all = await read(cell);
  } catch (error) {
    at("status").textContent = `These samples cannot be unpacked here (${error}); a browser of 2023 or later can.`;
    return;
  }
  if (mine !== turn) return;
  const a = at("run-a").value, b = at("run-b").value, s = Number(at("scorer").value);
  const official = scorers.indexOf("official"), corrected = scorers.indexOf("corrected");
  const words = at("words").value.toLowerCase();
  const score = (row) => (row ? row[7][s] : undefined);
  const tests = {
    all: () => true,
    differ: ({ rows }) => rows[a] && rows[b] && score(rows[a]) !== score(rows[b]),
    wrong: ({ rows }) => rows[a] && !(score(rows[a]) >= 1),
    scorers: ({ rows }) => rows[a] && rows[a][7][official] !== rows[a][7][corrected],
    failed: ({ rows }) => rows[a] && (rows[a][1] !== null || rows[a][2] !== "stop"),
  };
  const says = ({ sample, rows }) => !words || [sample[0], sample[2], sample[3], rows[a]?.[0], rows[b]?.[0]].some((t) => t && t.toLowerCase().includes(words));
  const asked = all.filter(({ rows }) => rows[a] || rows[b]);
  shown = asked.filter((item) => tests[at("which").value](item) && says(item));
  first = 0;
  close();
  page();
  at("status").textContent = `${shown.length.toLocaleString("en")} of ${asked.length.toLocaleString("en")} samples of ${cell.subset} at ${cell.length.toUpperCase()}.`;
}

const grade = (row, s) => {
  if (!row) return make("span", "-", "quiet");
  const value = row[7][s];
  if (value === null) return make("span", row[1] ? "failed" : "unscored", "wrong");
  return make("span", (100 * value).toFixed(value === 0 || value === 1 ? 0 : 1), value >= 1 ? "right" : value <= 0 ? "wrong" : "");
};

function page() {
  const a = at("run-a").value, b = at("run-b").value, s = Number(at("scorer").value);
  const clip = (text) => (text.length > 160 ? text.slice(0, 160) + " …" : text);
  at("list").tBodies[0].replaceChildren(...shown.slice(first, first + PAGE).map((item, i) => {
    const row = make("tr"), button = make("button", item.sample[0]);
    button.type = "button";
    button.addEventListener("click", () => open(first + i));
    row.append(make("td"), make("td"), make("td"), make("td", clip(item.sample[2])), make("td", clip(item.sample[3])));
    row.cells[0].append(button);
    row.cells[1].append(grade(item.rows[a], s));
    row.cells[2].append(b === "" ? "" : grade(item.rows[b], s));
    return row;
  }));
  at("back").disabled = first === 0;
  at("on").disabled = first + PAGE >= shown.length;
  at("page").textContent = shown.length ? `${first + 1} to ${Math.min(first + PAGE, shown.length)}` : "";
}

function close() {
  opened = -1;
  at("sample").hidden = true;
}

function open(i) {
  opened = i;
  const { sample, rows } = shown[i], box = at("sample"), cell = cellNow();
  const runs = [at("run-a").value, at("run-b").value].filter((run, k, both) => run !== "" && both.indexOf(run) === k);
  const some = rows[runs[0]] ?? Object.values(rows)[0];
  box.replaceChildren(make("h3", `${cell.subset} at ${cell.length.toUpperCase()}, sample ${sample[0]}`));
  const own = index.runs[runs[0]];
  const whole = own.published ? "" : ` The whole prompt: evalkit show ${own.folder} ${cell.subset}/${cell.length}/${sample[0]}`;
  box.append(make("p", `Story ${sample[1]}.${whole}`, "quiet"));
  box.append(make("h4", "Question"), make("pre", sample[2]), make("h4", "Target"), make("pre", sample[3]));
  const replies = make("div", undefined, "replies");
  for (const run of runs) {
    const row = rows[run], part = make("div");
    part.append(make("h4", longName(run)));
    if (!row) part.append(make("p", "This run did not ask it.", "quiet"));
    else {
      const scores = index.scorers[cell.task].map((name, k) => `${name.replaceAll("_", " ")} ${row[7][k] === null ? "unscored" : (100 * row[7][k]).toFixed(1)}`);
      part.append(make("p", scores.join(" · ")));
      part.append(row[1] === null ? make("pre", row[0] === "" ? "(an empty reply)" : row[0]) : make("p", row[1], "wrong"));
      const tokens = row[3] ? `tokens: ${row[3].toLocaleString("en")} of prompt, ${row[4].toLocaleString("en")} of reply` : "tokens not known";
      part.append(make("p", `finish reason: ${row[2]} · ${tokens}`, "quiet"));
    }
    replies.append(part);
  }
  const step = make("div", undefined, "pages");
  for (const [text, to] of [["Previous sample", i - 1], ["Next sample", i + 1]]) {
    const button = make("button", text, "plain");
    button.type = "button";
    button.disabled = to < 0 || to >= shown.length;
    button.addEventListener("click", () => open(to));
    step.append(button);
  }
  box.append(replies);
  const positions = some[5], needed = new Set(some[6]);
  if (positions.length || sample[4].length) {
    const facts = make("ol");
    facts.tabIndex = 0;
    for (let k = 0; k < Math.max(positions.length, sample[4].length); k++) {
      const depth = k < positions.length && some[3] ? `${(100 * positions[k] / some[3]).toFixed(1)} % (token ${positions[k].toLocaleString("en")})` : "";
      const text = [depth, sample[4][k], needed.has(k) ? "needed" : ""].filter(Boolean).join(" · ");
      facts.append(make("li", text, needed.has(k) ? "needed" : ""));
    }
    box.append(make("h4", "Facts by their depth in the prompt"), facts);
  }
  box.append(step);
  box.hidden = false;
  box.focus();
  box.scrollIntoView({ block: "nearest" });
}

// The runs of a task in the order of the arms; the second run is one of another arm that was asked the same questions.
function runs() {
  const task = at("cell-subset").value.split("/")[0];
  const own = index.runs.flatMap((run, i) => (run.tasks.includes(task) ? [i] : []));
  own.sort((i, j) => index.arms.indexOf(index.runs[i].arm) - index.arms.indexOf(index.runs[j].arm));
  const options = own.map((i) => [String(i), longName(i)]), b = at("run-b").value;
  fill(at("run-a"), options, at("run-a").value);
  fill(at("run-b"), [["", "(none)"], ...options], b);
  if (b === "") chooseSecond(own);
}

function chooseSecond(own) {
  const { arm, data } = index.runs[at("run-a").value];
  at("run-b").value = String(own.findLast((i) => index.runs[i].arm !== arm && index.runs[i].data === data) ?? "");
}

function lengths(keep) {
  fill(at("cell-length"), index.cells.filter((c) => `${c.task}/${c.subset}` === at("cell-subset").value).map((c) => [c.length, c.length.toUpperCase()]), keep);
}

// A score's link: #samples/task/subset/length/arm
function follow() {
  let parts;
  try { parts = location.hash.slice(1).split("/").map(decodeURIComponent); } catch { return; } // an address such as #%
  const [place, task, subset, length, ...rest] = parts;
  const arm = rest.join("/"); // an arm may be named after organisation/model
  const known = index.cells.some((c) => c.task === task && c.subset === subset && c.length === length);
  if (place !== "samples" || !arm || !known) return;
  at("cell-subset").value = `${task}/${subset}`;
  lengths(length);
  runs();
  const run = index.runs.findIndex((one) => one.arm === arm && one.tasks.includes(task));
  if (run >= 0) at("run-a").value = String(run);
  if (at("run-b").value === at("run-a").value) chooseSecond([...at("run-a").options].map((option) => Number(option.value)));
  at("samples").scrollIntoView();
  list();
}

const subsets = [...new Set(index.cells.map((c) => `${c.task}/${c.subset}`))];
fill(at("cell-subset"), subsets.map((s) => [s, s.replace("/", ": ")]));
lengths();
runs();
at("cell-subset").addEventListener("change", () => { lengths(at("cell-length").value); runs(); list(); });
for (const id of ["cell-length", "run-a", "run-b", "scorer", "which"]) at(id).addEventListener("change", list);
let pause;
at("words").addEventListener("input", () => { clearTimeout(pause); pause = setTimeout(list, 200); });
document.querySelector("form.controls").addEventListener("submit", (event) => event.preventDefault());
at("back").addEventListener("click", () => { first -= PAGE; page(); });
at("on").addEventListener("click", () => { first += PAGE; page(); });
addEventListener("hashchange", follow);
// Unpack the first cell only when the browser comes into view: nobody waits for samples that are not looked at.
new IntersectionObserver((entries, watch) => {
  if (entries.some((entry) => entry.isIntersecting)) { watch.disconnect(); if (!turn) list(); }
}).observe(at("samples"));
follow();
