// Figures with lines: each is put into the page when it comes near, and then its parts can be pointed at and hidden.
const armNames = JSON.parse(document.getElementById("figures").dataset.arms), hidden = new Set();

function records(text) {
  const rows = [[]];
  for (const [, quoted, bare, end] of text.matchAll(/(?:"((?:[^"]|"")*)"|([^,\n]*))(,|\n)/g)) {
    rows.at(-1).push(quoted === undefined ? bare : quoted.replaceAll('""', '"'));
    if (end === "\n") rows.push([]);
  }
  const [heads, ...cells] = rows.slice(0, -1);
  return cells.map((row) => Object.fromEntries(row.map((value, i) => [heads[i], value])));
}

const contentOf = (address) => new TextDecoder().decode(Uint8Array.from(atob(address.split(",")[1]), (c) => c.charCodeAt(0)));

function say(row) {
  const where = [row.arm, `${row.subset} at ${row.length.toUpperCase()}`].join(", ");
  const told = ["panel", "arm", "subset", "length", "ci_low", "ci_high", "n"], round = (value) => Number(value).toFixed(1);
  const numbers = Object.entries(row).filter(([name, value]) => !told.includes(name) && value !== "");
  const ends = row.ci_low ? ` [${round(row.ci_low)}, ${round(row.ci_high)}]` : "";
  return `${where}: ${numbers.map(([name, value]) => `${name.replaceAll("_", " ")} ${round(value)}`).join(", ")}${ends}${row.n ? `, n = ${row.n}` : ""}`;
}

function bring(figure) {
  const image = figure.querySelector("img");
  const svg = document.importNode(new DOMParser().parseFromString(contentOf(image.src), "image/svg+xml").documentElement, true);
  svg.setAttribute("role", "group");
  svg.setAttribute("aria-label", image.alt);
  for (const name of svg.querySelectorAll('[data-part="name"]')) {
    for (const [key, value] of [["role", "button"], ["tabindex", "0"], ["aria-label", `Hide ${armNames[name.dataset.arm]}`]]) name.setAttribute(key, value);
    name.addEventListener("click", () => toggle(name.dataset.arm));
    name.addEventListener("mousedown", (event) => event.preventDefault()); // no ring around what was clicked
    name.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      toggle(name.dataset.arm);
    });
  }
  image.replaceWith(svg);
  hide(svg);
  point(figure, svg);
}

function toggle(arm) {
  if (!hidden.delete(arm)) hidden.add(arm);
  document.querySelectorAll("figure.lines svg").forEach(hide);
}

function hide(svg) {
  for (const part of svg.querySelectorAll("[data-arm]")) {
    const isOff = hidden.has(part.dataset.arm);
    part.classList.toggle("off", isOff);
    if (part.dataset.part === "name") part.setAttribute("aria-pressed", isOff);
  }
}

// Name the values of the point that is nearest to the pointer.
function point(figure, svg) {
  const rows = Map.groupBy(records(contentOf(figure.querySelector("a[download$=csv]").href)), (row) => JSON.stringify([row.panel, row.arm]));
  const points = [];
  for (const line of svg.querySelectorAll('[data-part="line"]')) {
    const own = rows.get(JSON.stringify([line.dataset.panel, armNames[line.dataset.arm]])) ?? [];
    const corners = [...line.querySelector(":scope > path").getAttribute("d").matchAll(/[ML] ([-\d.]+) ([-\d.]+)/g)];
    if (corners.length === own.length) corners.forEach(([, x, y], i) => points.push({ x: Number(x), y: Number(y), line, row: own[i] }));
  }
  const tip = Object.assign(document.createElement("div"), { className: "tip", hidden: true });
  figure.append(tip);
  let near;
  const show = (found, event) => {
    near?.classList.remove("near");
    near = found?.line;
    near?.classList.add("near");
    tip.hidden = !found;
    if (!found) return;
    tip.textContent = say(found.row);
    const box = figure.getBoundingClientRect(), left = event.clientX - box.left;
    tip.style.top = `${event.clientY - box.top + 14}px`;
    tip.style.left = `${Math.max(0, Math.min(left + 14, box.width - tip.offsetWidth))}px`;
  };
  const look = (event) => {
    const here = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    let best, least = 12; // points of the figure
    for (const one of points) {
      const apart = Math.hypot(one.x - here.x, one.y - here.y);
      if (apart < least && !hidden.has(one.line.dataset.arm)) [best, least] = [one, apart];
    }
    show(best, event);
  };
  svg.addEventListener("pointermove", look);
  svg.addEventListener("pointerdown", look);
  svg.addEventListener("pointerleave", () => show());
}

const coming = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) if (isIntersecting) { coming.unobserve(target); bring(target); }
}, { rootMargin: "400px" });
document.querySelectorAll("figure.lines").forEach((figure) => coming.observe(figure));
