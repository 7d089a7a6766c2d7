// Puts the page together and keeps it up to date.

let waiting = 0;

function update() {
  const sets = passing();
  updateFilters();
  updateTable(sets);
  if (!sets.some((set) => set.group === state.group) && sets.length) chooseGroup(sets[0].group);
  cancelAnimationFrame(waiting);
  waiting = requestAnimationFrame(() => {
    drawCharts();
    updateCompare();
  });
}

function chooseGroup(group) {
  state.group = group;
  state.metric = "";
  state.logTime = null;
}

function groupTitle(group) {
  return group.size === "official" ? group.benchmark : `${group.benchmark} (${group.size})`;
}

function drawTabs(sets) {
  const counts = data.groups.map((_, index) => sets.filter((set) => set.group === index).length);
  const order = data.groups.map((group, index) => [group, index]).filter(([, index]) => counts[index]);
  order.sort(([a, i], [b, j]) => (a.size !== "official") - (b.size !== "official") || counts[j] - counts[i] || a.name.localeCompare(b.name));
  const twins = (group) => data.groups.filter((other) => other.name === group.name).length > 1;
  const label = (group, index) => groupTitle(group) + (twins(group) ? ` ${data.sets.find((set) => set.group === index).release}` : "");
  const tab = ([group, index]) =>
    el("button", {
      type: "button", role: "tab", "aria-selected": String(index === state.group),
      click: () => { chooseGroup(index); drawCharts(); updateCompare(); },
    }, label(group, index), el("small", null, String(counts[index])));
  fill(byId("tabs"), order.map(tab));
}

function drawLegend(sets) {
  const item = (set) =>
    el("li", null, el("button", {
      type: "button", "aria-pressed": String(!state.hidden.has(set.id)), title: "Show or hide in the charts",
      click: () => { state.hidden.has(set.id) ? state.hidden.delete(set.id) : state.hidden.add(set.id); drawCharts(); },
    },
    svg("svg", { width: 22, height: 12, "aria-hidden": "true" }, svg("line", { class: `s${set.color} dash${set.dash}`, x1: 0, x2: 22, y1: 6, y2: 6, "stroke-width": 2.5 })),
    el("span", null, `${set.name} · ${set.division}${set.round ? ` · v${set.round}` : ""}`)));
  return el("ul", { class: "legend" }, sets.map(item));
}

function drawGroup(group, sets) {
  const suite = `MLPerf® ${group.suite} ${unique(sets.map((set) => set.release)).sort().join(", ")}`;
  const about = group.size === "official"
    ? `${group.benchmark} benchmark of ${suite}${group.about ? `: ${group.about}` : ""}`
    : `${group.benchmark}, ${group.size}: a small stand-in with other data, not a benchmark of ${suite}`;
  fill(
    byId("group"),
    el("div", { class: "card group-head" }, el("h3", null, about), el("p", { class: "muted" }, statement(sets)), drawLegend(sets)),
  );
}

let cards = [];

function drawCharts() {
  hideTip();
  const passed = passing();
  drawTabs(passed);
  const group = data.groups[state.group];
  const members = passed.filter((set) => set.group === state.group).sort((a, b) => (a.chips || 0) - (b.chips || 0) || bySystem(a).localeCompare(bySystem(b)) || a.id - b.id);
  byId("charts").hidden = !members.length;
  if (!members.length) return;
  drawGroup(group, members);
  const sets = members.filter((set) => !state.hidden.has(set.id));
  const metrics = metricsOf(members);
  const metric = metrics.includes(state.metric) ? state.metric : metrics[0] || "";
  cards = [
    qualityCard(group, sets, byTime, metric),
    qualityCard(group, sets, bySamples, metric),
    scaleCard(group, sets),
    throughputCard(group, sets),
    spreadCard("spread-length", `Spread over seeds: ${group.unit} to converge`, group.unit, sets, lengths(group)),
    spreadCard("spread-time", "Spread over seeds: minutes", "minutes", sets, minutes),
    group.size === "official" ? referenceCard(group, sets) : null,
  ].filter(Boolean);
  if (cards.length % 2) cards[cards.length - 1].classList.add("wide");
  if (metrics.length > 1) cards[0].querySelector(".plot-head").append(metricList(metrics, metric, group));
  fill(byId("plots"), cards);
  sizeCards();
}

// all widths are asked for first: each answer after a drawing would cost a layout of the page
function sizeCards() {
  const every = [...comparisonCards, ...cards];
  const widths = every.map((each) => each.width());
  every.forEach((each, n) => each.draw(widths[n]));
}

function metricList(metrics, metric, group) {
  const list = el("select", { "aria-label": "Quality to draw", change: () => { state.metric = list.value; drawCharts(); } },
    metrics.map((name) => el("option", { value: name }, metricName(name, group))));
  list.value = metric;
  return list;
}

function drawCounts() {
  const scored = data.sets.filter((set) => set.minutes !== null).length;
  const counts = [
    ["sets", data.sets.length],
    ["runs", data.sets.reduce((sum, set) => sum + set.runs.length, 0)],
    ["benchmarks", unique(data.sets.map((set) => set.label)).length],
    ["systems", unique(data.sets.map((set) => set.system)).length],
    ["scored", scored],
    ["findings", data.findings.length],
  ];
  if (data.comparisons.length) counts.unshift(["comparisons", data.comparisons.length]);
  const number = (name, count) => (name === "findings" && count ? el("a", { href: "#findings" }, String(count)) : format(count, {}));
  fill(byId("counts"), counts.map(([name, count]) => el("div", null, el("dt", null, name), el("dd", null, number(name, count)))));
}

function drawFindings() {
  if (!data.findings.length) return;
  byId("findings").hidden = false;
  byId("findings-note").textContent = `${plural(data.findings.length, "thing")} in the folders that ${data.findings.length === 1 ? "is" : "are"} not as it should be; everything else is shown.`;
  const places = new Map();
  for (const finding of data.findings) places.set(finding.where, [...(places.get(finding.where) || []), finding]);
  const line = (finding) => el("div", null, finding.text);
  const item = ([where, found]) =>
    el("li", null,
      el("div", null, found.some((finding) => finding.severe) ? el("span", { class: "tag bad" }, "wrong") : el("span", { class: "tag warn" }, "note")),
      el("div", null, el("code", null, where), found.slice(0, 4).map(line),
        found.length > 4 ? el("details", null, el("summary", null, `${found.length - 4} more`), found.slice(4).map(line)) : null));
  fill(byId("finding-list"), el("ul", { class: "finding-list card" }, [...places].map(item)));
}

function drawSources() {
  const line = (group, index) => {
    const sets = data.sets.filter((set) => set.group === index);
    const what = unique(sets.map((set) => `${set.release} ${set.division}`)).sort().join(", ");
    const roots = unique(sets.map((set) => set.folder.split("/")[0])).join(", ");
    const kind = group.size === "official" ? `${group.benchmark} benchmark` : `${group.benchmark}, ${group.size}: not an MLPerf® result`;
    return el("li", null, `MLPerf® ${group.suite}, ${what}: ${kind}; ${plural(sets.length, "set")} read from ${roots}.`);
  };
  fill(
    byId("sources"),
    el("ul", null, data.groups.map(line)),
    el("p", null, `Read and written on ${data.date} by ${data.made_by}. Minutes are the olympic mean over the runs of a set, scaled where it converged faster than the reference. Throughput, MFU, scaling and spread are derived by this page; they are not official metrics.`),
  );
}

let lastWidth = innerWidth;
addEventListener("resize", () => {
  if (innerWidth === lastWidth) return; // a phone's address bar changes the height only
  lastWidth = innerWidth;
  cancelAnimationFrame(waiting);
  waiting = requestAnimationFrame(sizeCards);
});

byId("results").hidden = false;
buildFilters();
drawCounts();
drawFindings();
drawSources();
drawComparisons();
const crowd = members.map((count, index) => [count - (data.groups[index].size === "official" ? 0 : 1e6), index]).sort((a, b) => b[0] - a[0]);
if (crowd.length) state.group = crowd[0][1];
update();
