// Samples: one cell is unpacked when it is chosen, fifty of its samples are listed at a time, one is open beside them.
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
const press = (text, style, act) => {
  const button = make("button", text, style);
  button.type = "button";
  button.addEventListener("click", act);
  return button;
};
const fill = (select, options, keep) => {
  select.replaceChildren(...options.map(([value, text]) => Object.assign(make("option", text), { value })));
  if (options.some(([value]) => value === keep)) select.value = keep;
};
const task = () => at("cell-subset").value.split("/")[0];
const cellNow = () => index.cells.find((c) => `${c.task}/${c.subset}` === at("cell-subset").value && c.length === at("cell-length").value);
const percent = (value) => (100 * value).toFixed(value === 0 || value === 1 ? 0 : 1);
const plain = (name) => name.replaceAll("_", " ");
const clip = (text, most) => (text.length > most ? text.slice(0, most) + " …" : text);

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

// The runs to show: any number, in the order of the arms.
const boxes = () => [...at("run-list").querySelectorAll("input")];
const chosen = () => boxes().filter((box) => box.checked).map((box) => Number(box.value));
const runName = (n) => {
  const run = index.runs[n], same = index.runs.filter((other) => other.arm === run.arm && other.tasks.includes(task()));
  return run.arm + (same.length > 1 ? ` (${run.name})` : "") + (run.published ? " (published)" : "");
};

// Offer the runs of the task; where none of those chosen is left: one of the first arm, and one beside it.
function offer(wanted) {
  const own = index.runs.flatMap((run, i) => (run.tasks.includes(task()) ? [i] : []));
  own.sort((i, j) => index.arms.indexOf(index.runs[i].arm) - index.arms.indexOf(index.runs[j].arm));
  let ticked = wanted.filter((i) => own.includes(i));
  if (!ticked.length) ticked = withAnother(index.runs[own[0]].arm, own);
  at("run-list").replaceChildren(...own.map((i) => {
    const label = make("label"), box = Object.assign(make("input"), { type: "checkbox", value: i, checked: ticked.includes(i) });
    label.append(box, ` ${runName(i)}`);
    return label;
  }));
}

// A run of an arm and one of another that was asked the same questions: of the same training seed, where there are such.
function withAnother(arm, own) {
  const { runs } = index, first = own.filter((i) => runs[i].arm === arm);
  const others = (run) => own.filter((i) => runs[i].arm !== arm && runs[i].data === runs[run].data);
  const twin = (run) => others(run).findLast((i) => runs[i].seed !== null && runs[i].seed === runs[run].seed);
  const run = first.find((i) => twin(i) !== undefined);
  return run === undefined ? [first[0], ...others(first[0]).slice(-1)] : [run, twin(run)];
}

function nameChosen() {
  const names = chosen().map(runName), more = names.length - 3;
  const said = more > 0 ? [...names.slice(0, 3), `${more} more`] : names;
  at("chosen").textContent = said.length > 1 ? `${said.slice(0, -1).join(", ")} and ${said.at(-1)}` : said[0] ?? "none";
}

function lengths(keep) {
  fill(at("cell-length"), index.cells.filter((c) => `${c.task}/${c.subset}` === at("cell-subset").value).map((c) => [c.length, c.length.toUpperCase()]), keep);
}

function scorers(keep) {
  fill(at("scorer"), index.scorers[task()].map((name) => [name, plain(name)]), keep);
}

async function list(isAsked = true) {
  const cell = cellNow(), mine = ++turn;
  if (!cell) return;
  nameChosen();
  at("status").textContent = "Unpacking …";
  let all;
  try {
    all = await read(cell);
  } catch (error) {
    at("status").textContent = `These samples cannot be unpacked here (${error}); a browser of 2023 or later can.`;
    return;
  }
  if (mine !== turn) return;
  const names = index.scorers[cell.task], s = names.indexOf(at("scorer").value), runs = chosen();
  const official = names.indexOf("official"), corrected = names.indexOf("corrected");
  const words = at("words").value.toLowerCase();
  const tests = {
    all: () => true,
    differ: (rows) => new Set(rows.map((row) => row[7][s])).size > 1,
    wrong: (rows) => rows.some((row) => !(row[7][s] >= 1)),
    scorers: (rows) => rows.some((row) => row[7][official] !== row[7][corrected]),
    failed: (rows) => rows.some((row) => row[1] !== null || row[2] !== "stop"),
  };
  const test = tests[at("which").value];
  const says = (sample, rows) => !words || [sample[0], sample[2], sample[3], ...rows.map((row) => row[0])].some((t) => t && t.toLowerCase().includes(words));
  const answers = ({ rows }) => runs.flatMap((run) => (rows[run] ? [rows[run]] : []));
  const asked = all.filter((item) => answers(item).length);
  shown = asked.filter((item) => test(answers(item)) && says(item.sample, answers(item)));
  first = 0;
  close();
  page();
  at("status").textContent = runs.length
    ? `${shown.length.toLocaleString("en")} of ${asked.length.toLocaleString("en")} samples of ${cell.subset} at ${cell.length.toUpperCase()}.`
    : "No run is chosen.";
  if (isAsked) remember();
}

const grade = (row, s) => {
  if (!row) return make("span", "-", "quiet");
  const value = row[7][s];
  if (value === null) return make("span", row[1] ? "failed" : "unscored", "wrong");
  return make("span", percent(value), value >= 1 ? "right" : value <= 0 ? "wrong" : "");
};

function page() {
  const runs = chosen(), s = index.scorers[task()].indexOf(at("scorer").value);
  const most = runs.length > 4 ? 60 : 120;
  const heads = ["Sample", "Question", "Target", ...runs.map(runName)].map((text) => Object.assign(make("th", text, "word"), { scope: "col" }));
  at("list").tHead.rows[0].replaceChildren(...heads);
  at("list").tBodies[0].replaceChildren(...shown.slice(first, first + PAGE).map(({ sample, rows }, i) => {
    const row = make("tr"), name = make("td");
    name.append(press(sample[0]));
    row.append(name, make("td", clip(sample[2], 120)), make("td", clip(sample[3], 60)));
    for (const run of runs) {
      const cell = make("td"), own = rows[run];
      cell.append(grade(own, s));
      if (own) cell.append(" ", make("span", clip(own[1] ?? (own[0] || "(an empty reply)"), most), "reply"));
      row.append(cell);
    }
    row.addEventListener("click", () => {
      const marked = getSelection(); // whoever marks text in a row does not open it
      if (marked.isCollapsed || !marked.containsNode(row, true)) open(first + i);
    });
    return row;
  }));
  at("back").disabled = first === 0;
  at("on").disabled = first + PAGE >= shown.length;
  at("page").textContent = shown.length ? `${first + 1} to ${Math.min(first + PAGE, shown.length)}` : "";
  mark();
}

// The row of the open sample.
function mark() {
  const rows = [...at("list").tBodies[0].rows];
  rows.forEach((row, i) => row.classList.toggle("open", first + i === opened));
  return rows[opened - first];
}

function close() {
  opened = -1;
  at("sample").hidden = true;
  at("browser").classList.remove("open");
  mark();
}

function turnTo(start) {
  first = start;
  page();
}

function open(i) {
  opened = i;
  const { sample, rows } = shown[i], box = at("sample"), cell = cellNow(), runs = chosen();
  const some = rows[runs.find((run) => rows[run])];
  const step = make("div", undefined, "pages");
  for (const [text, to] of [["Previous sample", i - 1], ["Next sample", i + 1]])
    step.append(Object.assign(press(text, "plain", () => open(to)), { disabled: to < 0 || to >= shown.length }));
  step.append(press("Close", "plain", shut));
  box.replaceChildren(step, make("h3", `${cell.subset} at ${cell.length.toUpperCase()}, sample ${sample[0]}`));
  const own = runs.find((run) => rows[run] && !index.runs[run].published);
  const whole = own !== undefined ? ` The whole prompt: evalkit show ${index.runs[own].folders[rows[own][8]]} ${cell.subset}/${cell.length}/${sample[0]}` : "";
  box.append(make("p", `Story ${sample[1]}.${whole}`, "quiet"));
  box.append(make("h4", "Question"), make("pre", sample[2]), make("h4", "Target"), make("pre", sample[3]));
  const replies = make("div", undefined, "replies");
  for (const run of runs) {
    const row = rows[run], part = make("div");
    part.append(make("h4", runName(run)));
    if (!row) part.append(make("p", "This run did not ask it.", "quiet"));
    else {
      const scores = index.scorers[cell.task].map((name, k) => `${plain(name)} ${row[7][k] === null ? "unscored" : (100 * row[7][k]).toFixed(1)}`);
      part.append(make("p", scores.join(" · ")));
      part.append(row[1] === null ? make("pre", row[0] === "" ? "(an empty reply)" : row[0]) : make("p", row[1], "wrong"));
      const tokens = row[3] ? `tokens: ${row[3].toLocaleString("en")} of prompt, ${row[4].toLocaleString("en")} of reply` : "tokens not known";
      part.append(make("p", `finish reason: ${row[2]} · ${tokens}`, "quiet"));
    }
    replies.append(part);
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
  at("browser").classList.add("open");
  box.hidden = false;
  box.scrollTop = 0;
  if (i < first || i >= first + PAGE) turnTo(i - (i % PAGE));
  mark().scrollIntoView({ block: "nearest" });
  box.focus({ preventScroll: true });
  box.scrollIntoView({ block: "nearest" });
  remember();
}

function shut() {
  const row = mark(); // none where the list was turned to another page
  close();
  row?.querySelector("button").focus();
  remember();
}

// The address holds what is shown, so that it can be sent to somebody: #samples?task=…&subset=…&length=…&run=…
function remember() {
  const cell = cellNow(), told = new URLSearchParams({ task: cell.task, subset: cell.subset, length: cell.length });
  for (const run of chosen()) told.append("run", index.runs[run].name);
  for (const [name, own] of [["scorer", at("scorer").selectedIndex], ["which", at("which").selectedIndex], ["words", at("words").value]])
    if (own) told.set(name, at(name).value);
  if (opened >= 0) told.set("sample", shown[opened].sample[0]);
  history.replaceState(null, "", `#samples?${told}`);
}

// A score's link names the arm instead of runs. What the address names and is not there is left out.
async function follow() {
  const cut = location.hash.indexOf("?");
  if (location.hash.slice(1, cut) !== "samples") return;
  const asked = new URLSearchParams(location.hash.slice(cut + 1));
  const subset = `${asked.get("task")}/${asked.get("subset")}`;
  if (!subsets.includes(subset)) return;
  at("cell-subset").value = subset;
  lengths(asked.get("length"));
  scorers(asked.get("scorer"));
  const which = asked.get("which");
  at("which").value = [...at("which").options].some((option) => option.value === which) ? which : "all";
  at("words").value = asked.get("words") ?? "";
  offer(index.runs.flatMap((run, i) => (asked.getAll("run").includes(run.name) ? [i] : [])));
  const arm = asked.get("arm"), own = boxes().map((box) => Number(box.value));
  if (own.some((i) => index.runs[i].arm === arm)) choose(withAnother(arm, own));
  at("samples").scrollIntoView();
  await list();
  const place = shown.findIndex(({ sample }) => sample[0] === asked.get("sample"));
  if (place >= 0) open(place);
}

function choose(runs) {
  for (const box of boxes()) box.checked = runs.includes(Number(box.value));
}

const subsets = [...new Set(index.cells.map((c) => `${c.task}/${c.subset}`))];
fill(at("cell-subset"), subsets.map((s) => [s, s.replace("/", ": ")]));
if (subsets.length) {
  lengths();
  scorers();
  offer([]);
  nameChosen();
}
at("cell-subset").addEventListener("change", () => {
  lengths(at("cell-length").value);
  scorers(at("scorer").value);
  offer(chosen());
  list();
});
for (const id of ["cell-length", "run-list", "scorer", "which"]) at(id).addEventListener("change", list);
at("all-runs").addEventListener("click", () => { choose(boxes().map((box) => Number(box.value))); list(); });
at("no-runs").addEventListener("click", () => { choose([]); list(); });
let pause;
at("words").addEventListener("input", () => { clearTimeout(pause); pause = setTimeout(list, 200); });
document.querySelector("form.controls").addEventListener("submit", (event) => event.preventDefault());
at("back").addEventListener("click", () => turnTo(first - PAGE));
at("on").addEventListener("click", () => turnTo(first + PAGE));
at("browser").addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const step = { j: 1, k: -1 }[event.key];
  if (step && shown[opened + step]) open(opened + step);
  if (event.key === "Escape" && opened >= 0) shut();
});
addEventListener("hashchange", follow);
// Unpack the first cell only when the browser comes into view: nobody waits for samples that are not looked at.
new IntersectionObserver((entries, watch) => {
  if (entries.some((entry) => entry.isIntersecting)) { watch.disconnect(); if (!turn) list(false); }
}).observe(at("samples"));
follow();
