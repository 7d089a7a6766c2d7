// In what the chosen sets differ: facts, settings, configuration, versions.

const MOST_COMPARED = 6;

const FACTS = [
  ["benchmark", (set) => set.label],
  ["version", (set) => set.release],
  ["division", (set) => set.division],
  ["optimizer", (set) => set.by || set.optimizer],
  ["system", (set) => set.system],
  ["submitter", (set) => set.org],
  ["chips", (set) => set.chips],
  ["accelerator", (set) => set.accelerator],
  ["batch size", (set) => set.batch],
  ["minutes (unverified)", (set) => (set.minutes === null ? null : digits(set.minutes, 4))],
  ["status", (set) => set.status],
];

function compared() {
  const picked = data.sets.filter((set) => state.picked.has(set.id));
  if (picked.length) return { sets: picked.slice(0, MOST_COMPARED), left: picked.length - MOST_COMPARED, picked: true };
  const group = passing().filter((set) => set.group === state.group);
  group.sort((a, b) => (a.minutes === null) - (b.minutes === null) || (a.chips || 0) - (b.chips || 0));
  return { sets: group.slice(0, 3), left: 0, picked: false };
}

function differing(title, sets, keys, value) {
  const rows = keys
    .map((key) => [key, sets.map((set) => value(set, key))])
    .filter(([, values]) => unique(values.map(valueText)).length > 1);
  if (!rows.length) return [];
  const cell = (text) => el("td", null, text === undefined || text === null || text === "" ? "–" : valueText(text));
  return [
    el("tr", { class: "part" }, el("td", { colspan: sets.length + 1 }, title)),
    ...rows.map(([key, values]) => el("tr", null, el("th", { scope: "row" }, key), values.map(cell))),
  ];
}

const keysOf = (sets, part) => unique(sets.flatMap((set) => Object.keys(set[part])));
const own = (object, key) => (Object.hasOwn(object, key) ? object[key] : undefined);

function updateCompare() {
  const { sets, left, picked } = compared();
  const section = byId("compare");
  section.hidden = data.sets.length < 2;
  const note = picked
    ? `${plural(sets.length, "chosen set")}${left > 0 ? `; ${left} more not shown` : ""}`
    : "Tick sets in the table to choose them; until then, the first ones of the chart group.";
  byId("compare-note").textContent = note;
  if (sets.length < 2) {
    fill(byId("differences"), el("p", { class: "card muted" }, "Tick two sets or more in the table above."));
    return;
  }
  const known = FACTS.map(([name]) => name);
  const fact = (set, name) => FACTS.find(([each]) => each === name)[1](set);
  const rows = [
    ...differing("The sets", sets, known, fact),
    ...differing("Logged settings", sets, keysOf(sets, "settings"), (set, key) => own(set.settings, key)),
    ...differing("Configuration", sets, keysOf(sets, "config"), (set, key) => own(set.config, key)),
    ...differing("Versions", sets, keysOf(sets, "versions"), (set, key) => own(set.versions, key)),
  ];
  const mixed = unique(sets.map((set) => set.group)).length > 1;
  const warning = mixed ? " These sets are of different benchmarks, sizes or versions: their results may not be compared, only their settings are shown side by side." : "";
  const heads = sets.map((set) => el("th", { scope: "col" }, set.label, el("span", { class: "muted" }, ` ${set.title}`)));
  const body = rows.length ? rows : [el("tr", null, el("td", { colspan: sets.length + 1 }, "They do not differ in anything that was logged."))];
  const table = el("table", { class: "differences" }, el("thead", null, el("tr", null, el("th", { scope: "col" }, ""), heads)), el("tbody", null, body));
  fill(byId("differences"), el("p", { class: "statement" }, statement(sets) + warning), el("div", { class: "scroll" }, table));
}
