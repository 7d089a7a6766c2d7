// The table of results: one row per set, sorted by a click, opened by another.

const STATUS = { scored: "good", incomplete: "warn", flawed: "warn", "too fast": "bad", "not converged": "bad", broken: "bad" };
const bySystem = (set) => set.system.toLowerCase();

const COLUMNS = [
  { key: "pick", label: "", cell: pickCell, css: "pick" },
  { key: "benchmark", label: "Benchmark", value: (set) => set.label, cell: nameCell, css: "name" },
  { key: "system", label: "System", value: bySystem, cell: systemCell, css: "system" },
  { key: "chips", label: "Chips", value: (set) => set.chips, cell: (set) => digits(set.chips, 7), number: true },
  { key: "batch", label: "Batch", value: (set) => set.batch, cell: (set) => digits(set.batch, 4), number: true },
  { key: "runs", label: "Runs", value: (set) => set.done, cell: runsCell, number: true },
  { key: "minutes", label: "Minutes", value: (set) => set.minutes, cell: minutesCell, number: true, css: "minutes" },
  { key: "length", label: "To converge", value: (set) => set.length, cell: lengthCell, number: true },
  { key: "reference", label: "Against the reference", value: faster, cell: referenceCell, css: "reference" },
  { key: "rate", label: "Samples/s", value: (set) => set.rate, cell: (set) => digits(set.rate, 4), number: true },
  { key: "mfu", label: "MFU", value: (set) => set.mfu, cell: (set) => percent(set.mfu), number: true },
  { key: "status", label: "Status", value: (set) => set.status, cell: statusCell, css: "status" },
];

function faster(set) {
  const position = set.position;
  return position && position.reference && position.mean ? position.mean / position.reference : null;
}

function pickCell(set) {
  const box = el("input", {
    type: "checkbox",
    "aria-label": `Compare ${set.label} on ${set.system}`,
    title: "Show under Differences",
    click: (event) => event.stopPropagation(),
    change: () => {
      if (box.checked) state.picked.add(set.id);
      else state.picked.delete(set.id);
      updateCompare();
    },
  });
  box.checked = state.picked.has(set.id);
  return box;
}

function nameCell(set) {
  const tags = [];
  if (set.size !== "official") tags.push(" ", el("span", { class: "tag info" }, set.size));
  return [el("b", null, set.benchmark), tags, el("span", { class: "sub" }, `${set.division} · ${set.release}`)];
}

function systemCell(set) {
  const org = set.org && set.org !== "none" ? set.org : null;
  const extra = [set.by, org, set.accelerator && !set.system.includes(set.accelerator) ? set.accelerator : null].filter(Boolean);
  return [set.system, extra.map((text) => el("span", { class: "sub" }, text))];
}

function runsCell(set) {
  return set.needed ? `${set.done} of ${set.needed}` : String(set.done);
}

function minutesCell(set) {
  if (set.minutes === null) return "–";
  return [el("b", null, digits(set.minutes, 4)), el("span", { class: "sub" }, "unverified")];
}

function lengthCell(set) {
  if (set.length === null) return "–";
  return [short(set.length), el("span", { class: "sub" }, set.unit)];
}

function referenceCell(set) {
  if (!set.position) return set.size === "official" ? null : el("span", { class: "muted" }, "a stand-in has no reference");
  return set.position.sentence;
}

function statusCell(set) {
  const parts = [el("span", { class: `tag ${STATUS[set.status] || ""}` }, set.status)];
  if (set.findings) parts.push(el("span", { class: "sub" }, plural(set.findings, "finding")));
  return parts;
}

function sorted(sets) {
  const column = COLUMNS.find((each) => each.key === state.sort.key);
  const sign = state.sort.down ? -1 : 1;
  const compare = (a, b) => {
    const x = column.value(a);
    const y = column.value(b);
    if (x === null || y === null) return (x === null) - (y === null); // what is unknown comes last
    const order = typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x - y;
    return order ? sign * order : (a.chips || 0) - (b.chips || 0) || bySystem(a).localeCompare(bySystem(b)) || a.id - b.id;
  };
  return [...sets].sort(compare);
}

function headCell(column) {
  if (!column.value) return el("th", { class: "plain", scope: "col" }, el("span", { hidden: true }, "Compare"));
  const current = state.sort.key === column.key;
  const order = current ? (state.sort.down ? "descending" : "ascending") : null;
  const sort = () => {
    state.sort = { key: column.key, down: current ? !state.sort.down : false };
    updateTable(passing());
  };
  return el("th", { class: column.number ? "number" : null, scope: "col", "aria-sort": order }, el("button", { type: "button", click: sort }, column.label));
}

function row(set) {
  const open = state.opened.has(set.id);
  const cells = COLUMNS.map((column) => {
    const content = column.cell(set);
    const blank = content === "–" || content === null;
    const css = [column.css, column.number ? "number" : null, blank ? "blank" : null].filter(Boolean).join(" ");
    return el("td", { class: css || null, "data-label": ["pick", "benchmark", "system", "status"].includes(column.key) ? null : column.label }, content);
  });
  const toggle = () => {
    if (open) state.opened.delete(set.id);
    else state.opened.add(set.id);
    updateTable(passing());
  };
  const more = el("button", { class: "more", type: "button", "aria-expanded": String(open), click: (event) => { event.stopPropagation(); toggle(); } }, open ? "Hide details" : "Details");
  cells[1].querySelector(".sub").append(" · ", more);
  const line = el("tr", { class: `set${open ? " opened" : ""}`, "data-set": set.id, click: toggle }, cells);
  return open ? [line, el("tr", { class: "detail" }, el("td", { colspan: COLUMNS.length }, details(set)))] : [line];
}

function updateTable(sets) {
  const total = data.sets.length;
  fill(byId("shown"), document.createTextNode(sets.length === total ? plural(total, "set") : `${sets.length} of ${plural(total, "set")}`));
  if (!sets.length) {
    fill(byId("table"), el("p", { class: "empty" }, "No set passes these filters."));
    return;
  }
  const head = el("thead", null, el("tr", null, COLUMNS.map(headCell)));
  const body = el("tbody", null, sorted(sets).map(row));
  fill(byId("table"), el("table", { class: "results" }, head, body));
}
