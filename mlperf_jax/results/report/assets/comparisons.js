// Comparisons of optimizers: a table, curves with the range of the seeds, intervals of ratios; profiles of several.

const MEASURES = ["samples", "steps", "seconds"];
let comparisonCards = [];

function drawComparisons() {
  const all = data.comparisons;
  if (!all.length) return;
  byId("comparisons").hidden = false;
  byId("comparisons-note").textContent = "Runs of one seed start from the same weights and see the same samples. All numbers are unverified.";
  comparisonCards = [];
  const blocks = all.map(comparisonBlock);
  if (data.profiles) blocks.push(profileBlock(data.profiles));
  if (data.profiles_fault) blocks.push(el("p", { class: "card muted" }, data.profiles_fault));
  fill(byId("comparison-list"), blocks);
  sizeCards();
}

const colorOf = (entry) => entry % COLORS;
const dashOf = (entry) => Math.floor(entry / COLORS) % 3;
const asSet = (label, entry) => ({ title: label, color: colorOf(entry) }); // what charts of sets point at

function textTable(head, rows) {
  const cell = (text, n) => el("td", { class: n ? "number" : null }, text);
  const heads = head.map((text, n) => el("th", { scope: "col", class: n ? "number" : null }, text));
  const body = rows.map((row) => el("tr", null, row.map(cell)));
  return el("div", { class: "scroll" }, el("table", null, el("thead", null, el("tr", null, heads)), el("tbody", null, body)));
}

function entryKeys(entries) {
  const key = (label, n) =>
    el("li", { class: "key" },
      svg("svg", { width: 22, height: 12, "aria-hidden": "true" }, svg("line", { class: `s${colorOf(n)} dash${dashOf(n)}`, x1: 0, x2: 22, y1: 6, y2: 6, "stroke-width": 2.5 })),
      el("span", null, label));
  return el("ul", { class: "legend" }, entries.map(key));
}

function comparisonBlock(one, index) {
  const drawn = one.curves.map((curve, n) => bandCard(`band-${index}-${n}`, one, curve));
  if (one.entries.length > 1) drawn.push(forestCard(`forest-${index}`, one));
  if (drawn.length % 2) drawn[drawn.length - 1].classList.add("wide");
  comparisonCards.push(...drawn);
  return el(
    "div",
    { class: "comparison" },
    el("h3", null, one.title, one.folder ? el("span", { class: "muted" }, ` ${one.folder}`) : null),
    textTable(one.head, one.rows),
    el("ul", { class: "comparison-notes" }, one.notes.map((line) => el("li", null, line))),
    entryKeys(one.entries),
    el("div", { class: "grid" }, drawn),
  );
}

// curves: the median over the seeds, and the middle half of them as an area

function bandCard(id, one, curve) {
  const note = "Line: the median over the seeds; area: between the quartiles; a run that ended keeps its last value. Unverified.";
  return card(id, `${curve.name} against samples`, note, null, (width) => (curve.lines.length ? drawBands(one, curve, width) : none("No run logged it.")));
}

function drawBands(one, curve, width) {
  const target = curve.target === null ? null : { at: curve.target, text: curve.words };
  const values = curve.lines.flatMap((line) => [...line.low, ...line.high]);
  const [low, high] = padded(target ? [...values, target.at] : values, 0.05);
  const end = Math.max(...curve.lines.map((line) => line.x[line.x.length - 1]));
  const f = frame(
    width,
    width < 460 ? 260 : 320,
    { title: "samples", low: 0, high: end, format: short },
    { title: curve.name, low, high, format: (v) => digits(v, 4) },
    `${curve.name} of ${one.name}`,
  );
  const marks = [];
  for (const line of curve.lines) {
    const point = (n, y) => `${f.x(line.x[n]).toFixed(1)} ${f.y(y).toFixed(1)}`;
    const there = line.x.map((_, n) => point(n, line.low[n]));
    const back = line.x.map((_, n) => point(n, line.high[n])).reverse();
    f.root.append(svg("path", { class: `band f${colorOf(line.entry)}`, d: `M${[...there, ...back].join("L")}Z` }));
  }
  for (const line of curve.lines) {
    const path = line.x.map((x, n) => `${f.x(x).toFixed(1)} ${f.y(line.y[n]).toFixed(1)}`);
    f.root.append(svg("path", { class: `curve s${colorOf(line.entry)} dash${dashOf(line.entry)}`, d: `M${path.join("L")}`, "stroke-width": 2 }));
    line.x.forEach((x, n) => marks.push({ set: asSet(one.entries[line.entry], line.entry), line, n, x: f.x(x), y: f.y(line.y[n]) }));
  }
  if (target) drawTarget(f, target);
  hoverMarks(f.root, marks, ({ line, n }) => [
    `after ${digits(line.x[n], 6)} samples, of ${plural(line.runs, "run")}`,
    `median ${digits(line.y[n], 5)}, middle half ${digits(line.low[n], 5)} to ${digits(line.high[n], 5)}`,
    "unverified",
  ]);
  return f.root;
}

// a row per entry: its ratio to the first with the interval; an end that is open points out of the chart

function forestCard(id, one) {
  let measure = MEASURES[0];
  const list = el("select", { "aria-label": "What is compared" }, MEASURES.map((name) => el("option", { value: name }, name)));
  const note = `Times what ${one.entries[0]} needed to the target, seed by seed; left of 1 is better. An arrow: runs failed, so this end is open. Unverified.`;
  const node = card(id, `Ratio to ${one.entries[0]}`, note, list, (width) => drawForest(one, measure, width));
  list.addEventListener("change", () => {
    measure = list.value;
    node.draw(node.width());
  });
  return node;
}

function drawForest(one, measure, width) {
  const rows = one.ratios[measure].map((ratio, n) => ({ set: asSet(one.entries[n + 1], n + 1), ratio }));
  const ends = rows.flatMap(({ ratio }) => [ratio.ratio, ratio.low, ratio.high]).filter((value) => value !== null);
  const [low, high] = padded([...ends, 1], 0.12, true);
  const axis = { title: `${measure} to the target, times those of ${one.entries[0]} (log)`, low, high, log: true, format: (v) => digits(v, 3), room: width < 560 ? 0 : 172 };
  const lines = (mark) => [mark.ratio.verdict, mark.ratio.text, "unverified"];
  return drawRows(width, rows, axis, (root, row, y, x) => interval(root, row, y, x, width), lines, `Ratios to ${one.entries[0]}`);
}

function interval(root, row, y, x, width) {
  const { ratio, set } = row;
  const css = `s${set.color}`;
  const [from, to] = [ratio.low === null ? x.from : x(ratio.low), ratio.high === null ? x.to : x(ratio.high)];
  root.append(svg("line", { class: "target", x1: x(1), x2: x(1), y1: y - 13, y2: y + 13 }));
  if (ratio.known) {
    const left = ratio.low === null ? `M${from + 6} ${y - 5}l-6 5l6 5` : `M${from} ${y - 5}v10`;
    const right = ratio.high === null ? `M${to - 6} ${y - 5}l6 5l-6 5` : `M${to} ${y - 5}v10`;
    root.append(svg("path", { class: `interval ${css}`, d: `M${from} ${y}H${to}${left}${right}` }));
  }
  if (ratio.ratio !== null) root.append(svg("circle", { class: `halo f${set.color}`, cx: x(ratio.ratio), cy: y, r: 5 }));
  root.append(svg("text", { class: "value", x: width - 4, y: width < 560 ? y - 16 : y + 4, "text-anchor": "end" }, ratio.words));
  const at = ratio.ratio === null ? (from + to) / 2 : x(ratio.ratio);
  return [{ set, ratio, x: at, y }];
}

// profiles: on how many benchmarks an entry is within so many times the best

function profileBlock(profiles) {
  const note = `Share of the ${plural(profiles.problems.length, "benchmark")} (${profiles.problems.join(", ")}) on which an entry needs at most so many times the samples of the best. Derived, unofficial, unverified.`;
  const drawn = card("profiles", "Performance profiles", note, null, (width) => drawProfiles(profiles, width), "wide");
  comparisonCards.push(drawn);
  return el(
    "div",
    { class: "comparison" },
    el("h3", null, "All benchmarks together: ", profiles.title),
    textTable(profiles.head, profiles.rows),
    entryKeys(profiles.entries),
    el("div", { class: "grid" }, drawn),
  );
}

function drawProfiles(profiles, width) {
  const f = frame(
    width,
    width < 460 ? 260 : 300,
    { title: "samples to the target, times those of the best (log)", low: 1, high: profiles.most, log: true, format: (v) => digits(v, 3) },
    { title: "share of benchmarks", low: -0.02, high: 1.04, ticks: [0, 0.25, 0.5, 0.75, 1], format: (v) => percent(v, 0) },
    "Performance profiles",
  );
  const marks = [];
  profiles.steps.forEach((steps, n) => {
    const path = steps.map(([tau, share], i) => (i ? `H${f.x(tau).toFixed(1)}V${f.y(share).toFixed(1)}` : `M${f.x(tau).toFixed(1)} ${f.y(share).toFixed(1)}`));
    f.root.append(svg("path", { class: `curve s${colorOf(n)} dash${dashOf(n)}`, d: path.join(""), "stroke-width": 2 }));
    for (const [tau, share] of steps) marks.push({ set: asSet(profiles.entries[n], n), tau, share, x: f.x(tau), y: f.y(share) });
  });
  hoverMarks(f.root, marks, ({ tau, share }) => [`within ${digits(tau, 4)} times the best on ${percent(share, 0)}`, "unverified"]);
  return f.root;
}
