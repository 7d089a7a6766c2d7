// The data as the page uses it, and what is chosen.

const data = JSON.parse(byId("data").textContent);
const COLORS = 8;

const state = {
  filters: { text: "", benchmark: "", system: "", division: "", chips: "", status: "" },
  sort: { key: "benchmark", down: false },
  group: 0,
  metric: "",
  logTime: null, // null: as the times suggest
  opened: new Set(),
  picked: new Set(),
  hidden: new Set(),
};

function axis(packed) {
  if (!packed) return null;
  if (packed.d) {
    let sum = 0;
    return packed.d.map((step) => (sum += step) * packed.q);
  }
  return Array.from({ length: packed.n }, (_, i) => packed.a + packed.s * i);
}

const members = data.groups.map(() => 0);
data.sets.forEach((set, index) => {
  set.id = index;
  const place = members[set.group]++;
  set.color = place % COLORS;
  set.dash = Math.floor(place / COLORS) % 3;
  // what tells sets of one benchmark apart comes first, lest it be cut off
  set.title = [set.by, set.system, set.chips === null ? null : plural(set.chips, "chip"), set.by ? null : set.optimizer].filter(Boolean).join(" · ");
  set.release = `${set.round ? `v${set.round}` : "version unknown"}${set.assumed && set.round ? " (assumed)" : ""}`;
  set.done = set.runs.filter((run) => run.status === "success").length;
  set.search = [set.label, set.benchmark, set.system, set.org, set.accelerator, set.optimizer, set.by, set.division, set.folder, set.status, set.release]
    .join(" ")
    .toLowerCase();
  for (const run of set.runs) {
    run.set = set;
    for (const curve of run.curves) {
      const seconds = axis(curve.t);
      curve.t = seconds && seconds.map((second) => second / 60); // minutes, as everywhere on the page
      curve.x = axis(curve.x);
    }
  }
});

// where closed and open results stand together, each name says which it is
for (const set of data.sets) {
  const mixed = data.sets.some((other) => other.group === set.group && other.division !== set.division);
  set.name = set.title;
  if (mixed) set.title += ` · ${set.division}`;
}

const chipsText = (set) => (set.chips === null ? "unknown" : String(set.chips));
const unique = (values) => [...new Set(values)];

const matches = {
  text: (set, value) => value.toLowerCase().split(/\s+/).every((word) => set.search.includes(word)),
  benchmark: (set, value) => set.label === value,
  system: (set, value) => set.system === value,
  division: (set, value) => set.division === value,
  chips: (set, value) => chipsText(set) === value,
  status: (set, value) => set.status === value,
};

// the sets that pass all filters, or all but one of them
function passing(except) {
  const active = Object.entries(state.filters).filter(([name, value]) => value !== "" && name !== except);
  return data.sets.filter((set) => active.every(([name, value]) => matches[name](set, value)));
}

// The rules ask that whoever compares results states in what they differ.
function statement(sets) {
  const text = (values, none) => unique(values).sort().join(", ") || none;
  const chips = unique(sets.map((set) => set.chips).filter((count) => count !== null)).sort((a, b) => a - b);
  const parts = [
    `Version: ${text(sets.map((set) => set.release), "unknown")}`,
    `division: ${text(sets.map((set) => set.division), "unknown")}`,
    `chips: ${chips.length > 3 ? `${chips[0]} to ${chips[chips.length - 1]}` : chips.join(", ") || "unknown"}`,
    `submitters: ${unique(sets.map((set) => set.org || "none")).length}`,
  ];
  let sentence = `${parts.join("; ")}. All results are unverified.`;
  if (sets.some((set) => set.division === "open") && sets.some((set) => set.division === "closed")) {
    sentence += " An open result may have changed the model, the optimizer or the schedule, which the closed division forbids: see Differences for what it changed.";
  }
  if (sets.some((set) => set.size !== "official")) {
    sentence += " These are small stand-ins: they are never compared with the benchmark itself.";
  }
  return sentence;
}
