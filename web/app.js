"use strict";
/* The dashboard: reads /v1 only, draws what the views say of themselves, and keeps the last figures when the server is away. */

const LEDGER_MS = 1000;
const CHART_MS = 5000;
const CATALOGUE_MS = 15000;
const BACKOFF_MAX_MS = 30000;
const TIMEOUT_MS = 10000;
const PROOF_TIMEOUT_MS = 45000;
const TOP_BARS = 12;
const TOP_SERIES = 6;
const MAX_POINTS = 170;
const SAMPLES = 10;
const SECONDS = { "1m": 60, "5m": 300, "15m": 900, "1h": 3600, "1d": 86400 };
const SERIES_RANGES = [["15 min", 900], ["1 hour", 3600], ["6 hours", 21600], ["1 day", 86400], ["7 days", 604800]];
const DAY_RANGES = [["all days", 0], ["1 day", 86400], ["7 days", 604800], ["30 days", 2592000]];
const NUMERIC = /INT|DOUBLE|FLOAT|REAL|DECIMAL|NUMERIC|LONG|SHORT/i;
// What no window has, is zero for these; for the others it is unknown.
const ZERO_WHEN_ABSENT = new Set(["count", "sum", "distinct"]);

const state = { views: [], ledger: new Map(), domain: null, cards: new Map(), rates: new Map(), failures: 0, retryAt: 0, anchors: new Map(), probes: new Map(), perPartition: false };
const $ = (id) => document.getElementById(id);
const dark = matchMedia("(prefers-color-scheme: dark)");
const narrow = matchMedia("(max-width: 560px)");

/* ---- small helpers ---- */

function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const fine = new Intl.NumberFormat("en", { maximumFractionDigits: 3 });
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const number = (value) => (isNumber(value) ? (Number.isInteger(value) ? whole : fine).format(value) : "–");
const words = (name) => String(name ?? "").replaceAll("_", " ");
const list = (value) => (Array.isArray(value) ? value : []);
const record = (value) => (value && typeof value === "object" && !Array.isArray(value) ? value : {});
const shown = (value) => (value === null || value === undefined ? "(none)" : typeof value === "object" ? JSON.stringify(value) : String(value));

/** Sum of what is a number; null when nothing is. */
function sum(values) {
  const numbers = values.filter(isNumber);
  return numbers.length ? numbers.reduce((total, value) => total + value, 0) : null;
}

function timeOf(text) {
  const value = typeof text === "string" ? Date.parse(text) : NaN;
  return Number.isNaN(value) ? null : value;
}

function duration(seconds) {
  if (!isNumber(seconds)) return "–";
  const rest = Math.max(0, seconds);
  if (rest < 10) return `${rest.toFixed(1)} s`;
  if (rest < 120) return `${Math.round(rest)} s`;
  if (rest < 7200) return `${Math.floor(rest / 60)} min`;
  if (rest < 172800) return `${Math.floor(rest / 3600)} h ${Math.floor((rest % 3600) / 60)} min`;
  return `${Math.floor(rest / 86400)} d`;
}

const pad = (value) => String(value).padStart(2, "0");

/** UTC, as the windows are. */
function clock(ms, withDate) {
  const time = new Date(ms);
  const day = `${time.getUTCFullYear()}-${pad(time.getUTCMonth() + 1)}-${pad(time.getUTCDate())}`;
  const hour = `${pad(time.getUTCHours())}:${pad(time.getUTCMinutes())}`;
  return withDate ? `${day} ${hour}` : hour;
}

const iso = (ms) => new Date(ms).toISOString().replace(".000Z", "Z");

function address(path, pairs) {
  const query = new URLSearchParams(pairs).toString();
  return query ? `${path}?${query}` : path;
}

const viewPath = (name) => `/v1/views/${encodeURIComponent(name)}`;

/** A server's refusal (status, detail), or no answer at all (status 0). */
class Refused extends Error {
  constructor(status, detail, retryAfter) {
    super(detail);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

async function get(url, timeout = TIMEOUT_MS) {
  const abort = new AbortController();
  const timer = setTimeout(() => abort.abort(), timeout);
  try {
    const response = await fetch(url, { signal: abort.signal, cache: "no-store", headers: { Accept: "application/json" } });
    const body = await response.json().catch(() => null);
    if (!response.ok) {
      throw new Refused(response.status, body?.detail || body?.title || `HTTP ${response.status}`, Number(response.headers.get("Retry-After")) || 0);
    }
    return record(body);
  } catch (error) {
    if (error instanceof Refused) throw error;
    throw new Refused(0, error.name === "AbortError" ? `no answer within ${timeout / 1000} s` : "not reachable");
  } finally {
    clearTimeout(timer);
  }
}

/* ---- status ---- */

function badge(kind, text, title) {
  const node = $("status");
  node.dataset.state = kind;
  setText(node, text);
  node.title = title || "";
}

function note(text) {
  const node = $("note");
  node.hidden = !text;
  setText(node, text || "");
}

function range(item) {
  const part = record(item);
  const span = isNumber(part.start) && isNumber(part.end) ? ` offsets ${whole.format(part.start)}–${whole.format(part.end)}` : "";
  return `${part.topic ?? "?"}/${part.partition ?? "?"}${span}${part.reason ? ` (${part.reason})` : ""}`;
}

function showStatus(entry) {
  if (!entry) {
    badge("wait", "no snapshot yet");
    note("This domain has no batch version yet; figures appear as soon as one is published.");
    return;
  }
  const missing = list(entry.missing);
  if (entry.complete === false || missing.length) {
    badge("bad", missing.length ? `incomplete: ${missing.length} missing` : "incomplete");
    const more = missing.length > 4 ? ` and ${missing.length - 4} more` : "";
    note(missing.length ? `Missing: ${missing.slice(0, 4).map(range).join("; ")}${more}.` : "Something below the coverage is missing.");
  } else if (entry.balanced === false) {
    badge("bad", "not balanced");
    note("The counts of at least one topic do not add up; see the ledger below.");
  } else if (isNumber(entry.max_staleness_seconds) && entry.staleness_seconds > entry.max_staleness_seconds) {
    badge("bad", "not ready: too old");
    note(`These figures are ${duration(entry.staleness_seconds)} behind Kafka; READY_STALENESS allows ${duration(entry.max_staleness_seconds)}.`);
  } else {
    badge(entry.complete === true ? "good" : "wait", entry.complete === true ? "complete" : "unknown", "Every event below the coverage is in these figures.");
    note("");
  }
}

function showOutage(error) {
  const left = Math.max(0, Math.ceil((state.retryAt - Date.now()) / 1000));
  const starting = error.status === 503;
  badge(starting ? "wait" : "bad", `${starting ? "serving layer not ready" : "serving layer not reachable"}, retry in ${left} s`);
  const kept = state.ledger.size ? " The figures below are the last ones received." : "";
  note(`${error.message}.${kept}`.replace("..", "."));
  document.body.classList.toggle("stale", state.ledger.size > 0);
}

/* ---- tiles ---- */

const TILES = [
  ["merged", "Events"],
  ["batch", "Batch"],
  ["speed", "Speed"],
  ["version", "Batch view"],
  ["staleness", "Staleness"],
  ["quarantine", "Quarantine"],
  ["lag", "Lag"],
];
const tiles = new Map();

function buildTiles() {
  for (const [key, label] of TILES) {
    const value = el("dd", { class: "value", "data-value": "" }, "–");
    const detail = el("dd", { class: "detail" });
    tiles.set(key, { value, detail });
    $("tiles").append(el("div", { class: "tile", "data-tile": key }, el("dt", {}, label), value, detail));
  }
  const share = el("span", { class: "share", role: "img", "aria-label": "share of batch and speed" }, el("i"), el("b"));
  tiles.get("merged").detail.append(el("span", { class: "rate" }), share);
}

function pairs(node, entries) {
  const wanted = entries.length * 2;
  while (node.childNodes.length > wanted) node.lastChild.remove();
  while (node.childNodes.length < wanted) node.append(el("span", { class: node.childNodes.length % 2 ? "n" : "k" }));
  entries.forEach(([name, value], index) => {
    setText(node.childNodes[index * 2], name);
    setText(node.childNodes[index * 2 + 1], value);
  });
}

/** Events per second over the last ten seconds of changes. */
function rate(domain, merged) {
  const seen = state.rates.get(domain) || [];
  const now = performance.now();
  if (isNumber(merged)) seen.push([now, merged]);
  while (seen.length > 2 && now - seen[0][0] > 10000) seen.shift();
  state.rates.set(domain, seen);
  const [first, last] = [seen[0], seen[seen.length - 1]];
  return first && last[0] - first[0] > 1500 ? Math.max(0, ((last[1] - first[1]) * 1000) / (last[0] - first[0])) : null;
}

const lagOf = (rows, layer) => sum(rows.map((row) => record(record(row).lag)[layer]));

function showTiles(entry) {
  const events = record(entry?.events);
  const partitions = list(entry?.partitions);
  for (const key of ["merged", "batch", "speed"]) {
    const node = tiles.get(key).value;
    setText(node, number(events[key]));
    if (isNumber(events[key])) node.dataset.value = events[key];
    else delete node.dataset.value;
  }
  const perSecond = entry ? rate(entry.domain, events.merged) : null;
  const merged = tiles.get("merged").detail;
  setText(merged.firstChild, isNumber(perSecond) ? `${number(Math.round(perSecond))} per second` : "batch + speed");
  const part = isNumber(events.batch) && events.merged > 0 ? (events.batch / events.merged) * 100 : 0;
  const [batchBar, speedBar] = merged.lastChild.children;
  merged.lastChild.hidden = !(events.merged > 0);
  batchBar.style.width = `${part}%`;
  speedBar.style.width = `${100 - part}%`;
  merged.lastChild.setAttribute("aria-label", `${part.toFixed(1)} percent counted by batch, the rest by speed`);
  setText(tiles.get("batch").detail, "in the stored version");
  setText(tiles.get("speed").detail, "since its horizon");

  const made = timeOf(entry?.created_at);
  setText(tiles.get("version").value, entry?.version === null || entry?.version === undefined ? "–" : `v${entry.version}`);
  setText(tiles.get("version").detail, made === null ? "age unknown" : `${duration((Date.now() - made) / 1000)} old`);
  setText(tiles.get("staleness").value, duration(entry?.staleness_seconds));
  setText(tiles.get("staleness").detail, "behind the end of Kafka");

  const problems = Object.entries(record(entry?.quarantined)).sort((a, b) => b[1] - a[1]);
  setText(tiles.get("quarantine").value, number(entry ? sum(problems.map(([, count]) => count)) ?? 0 : null));
  pairs(tiles.get("quarantine").detail, problems.map(([name, count]) => [words(name), number(count)]));

  const layers = ["ingest", "typed", "stream"].map((layer) => [layer, lagOf(partitions, layer)]);
  setText(tiles.get("lag").value, number(layers[2][1]));
  pairs(tiles.get("lag").detail, layers.map(([layer, value]) => [layer, number(value)]));
}

/* ---- tables that change in place ---- */

function table(columns, caption) {
  const head = el("tr", {}, ...columns.map(([label, kind]) => el("th", { scope: "col", class: kind }, label)));
  const body = el("tbody");
  const node = el("table", {}, el("caption", { class: "hidden" }, caption), el("thead", {}, head), body);
  return { node, body, columns };
}

/** Make the body hold these rows; a cell is text, or {text, state}. */
function fill(found, rows, empty) {
  const { body, columns } = found;
  const wanted = rows.length ? rows : [null];
  while (body.rows.length > wanted.length) body.lastChild.remove();
  wanted.forEach((row, index) => {
    let line = body.rows[index];
    const size = row ? columns.length : 1;
    if (!line || line.cells.length !== size) {
      const cells = row
        ? columns.map(([, kind, heading]) => el(heading ? "th" : "td", { class: kind, scope: heading ? "row" : null }))
        : [el("td", { colspan: columns.length, class: "empty" })];
      const fresh = el("tr", {}, ...cells);
      if (line) line.replaceWith(fresh);
      else body.append(fresh);
      line = fresh;
    }
    if (!row) {
      setText(line.cells[0], empty);
      return;
    }
    row.forEach((cell, place) => {
      const { text, state: kind } = cell !== null && typeof cell === "object" ? cell : { text: cell };
      setText(line.cells[place], String(text ?? "–"));
      if (line.cells[place].dataset.state !== (kind || "")) line.cells[place].dataset.state = kind || "";
    });
  });
}

const ledgerTable = table(
  [["Topic", "", true], ["Kafka end", "n"], ["Raw", "n"], ["Typed", "n"], ["Good", "n"], ["Problems", "n"], ["Pending", "n"], ["Lag ingest", "n"], ["Lag typed", "n"], ["Lag stream", "n"], ["Balanced", ""]],
  "Ledger: where the events of every topic are",
);
const unknownTable = table([["Topic", "", true], ["Field", ""], ["Events", "n"]], "Fields that no schema knows");
const quarantineTable = table(
  [["Kafka time (UTC)", "t"], ["Topic", "", true], ["Partition : offset", "n"], ["Problem", ""], ["Value", "v"]],
  "The newest records that were set aside",
);

function balance(name, rows, fallback) {
  const field = (key) => sum(rows.map((row) => row[key]));
  const good = sum(rows.flatMap((row) => [row.good, record(row.speed).good]));
  const problems = sum(rows.flatMap((row) => [...Object.values(record(row.problems)), ...Object.values(record(record(row.speed).problems))]));
  const said = rows.map((row) => row.balanced).filter((value) => typeof value === "boolean");
  const balanced = said.length ? said.every(Boolean) : fallback;
  const verdict = typeof balanced === "boolean" ? { text: balanced ? "yes" : "no", state: balanced ? "good" : "bad" } : "–";
  return [name, field("kafka_end"), field("raw"), field("typed"), good, problems ?? 0, field("pending"), lagOf(rows, "ingest"), lagOf(rows, "typed"), lagOf(rows, "stream")]
    .map((value, index) => (index ? number(value) : value))
    .concat([verdict]);
}

function showLedger(entry) {
  const partitions = list(entry?.partitions).map(record);
  const topics = Map.groupBy ? Map.groupBy(partitions, (row) => row.topic) : partitions.reduce((found, row) => found.set(row.topic, [...(found.get(row.topic) || []), row]), new Map());
  const rows = [];
  for (const [topic, parts] of [...topics].sort()) {
    const own = parts.map((row) => row.balanced).filter((value) => value !== undefined);
    rows.push(balance(shown(topic), parts, own.length ? undefined : entry.balanced));
    if (state.perPartition) for (const row of parts) rows.push(balance(`\u2003partition ${row.partition}`, [row], undefined));
  }
  fill(ledgerTable, rows, "No partition seen yet.");
}

/** Shown only where there are some; the server names the most frequent ones of each topic, most frequent first. */
function showUnknown(entry) {
  const topics = Object.entries(record(entry?.unknown_fields)).sort(([a], [b]) => (a < b ? -1 : 1));
  const rows = topics.flatMap(([topic, names]) => Object.entries(record(names)).map(([name, count]) => [topic, name, number(count)]));
  $("unknown").hidden = !rows.length;
  fill(unknownTable, rows, "None.");
}

function showQuarantine(rows) {
  const cells = list(rows).map(record).map((row) => {
    const when = timeOf(row.kafka_time);
    const time = when === null ? "–" : iso(when).replace("T", " ").replace("Z", "");
    const value = row.value ?? (row.value_base64 ? `base64: ${row.value_base64}` : "(empty)");
    return [time, shown(row.topic), `${row.partition ?? "?"} : ${isNumber(row.offset) ? whole.format(row.offset) : "?"}`, words(row.problem), String(value).slice(0, 400)];
  });
  fill(quarantineTable, cells, "Nothing was set aside.");
}

/* ---- charts ---- */

function colours() {
  const style = getComputedStyle(document.documentElement);
  const read = (name) => style.getPropertyValue(name).trim();
  return {
    ink: read("--ink"), soft: read("--soft"), line: read("--line"), panel: read("--panel"), accent: read("--accent"),
    series: [1, 2, 3, 4, 5, 6].map((place) => read(`--s${place}`)),
  };
}

/** Groups of one dimension, at most nine; null when the view cannot be grouped so. */
async function probe(view, dimension) {
  const key = `${view.view} ${dimension}`;
  const known = state.probes.get(key);
  if (known && Date.now() - known.at < 120000) return known.count;
  let count = null;
  try {
    const every = view.every ? [["every", "all"]] : [];
    count = list((await get(address(viewPath(view.view), [...every, ["by", dimension], ["limit", "9"]]))).rows).length;
  } catch (error) {
    if (error.status !== 422) throw error;
  }
  state.probes.set(key, { count, at: Date.now() });
  return count;
}

class Card {
  constructor(view) {
    this.view = view;
    this.series = Boolean(view.every) && view.every !== "1d";
    this.dimensions = list(view.dimensions).map((found) => found.name);
    this.measures = list(view.measures).filter((found) => NUMERIC.test(found.type || "") || ["count", "sum", "distinct", "avg"].includes(found.kind));
    this.by = null; // chosen after the first look, or by a person
    this.chosen = false;
    this.last = null;
    this.busy = false;
    this.proving = false;
    this.build();
  }

  build() {
    const { view } = this;
    const id = `view-${view.view}`;
    const option = (value, text) => el("option", { value }, text);
    this.measure = el("select", { "aria-label": `Measure of ${words(view.view)}` }, ...this.measures.map((found) => option(found.name, words(found.name))));
    const ranges = this.series ? SERIES_RANGES.filter(([, span]) => span >= 10 * (SECONDS[view.every] || 60)) : DAY_RANGES;
    this.range = el("select", { "aria-label": `Range of ${words(view.view)}` }, ...ranges.map(([text, span]) => option(span, text)));
    if (this.series) this.range.value = ranges.some(([, span]) => span === 3600) ? "3600" : String(ranges[0]?.[1] ?? 604800);
    this.range.hidden = !view.every;
    const groups = this.dimensions.map((name) => option(name, `by ${words(name)}`));
    if (this.series || !groups.length) groups.unshift(option("", "all together"));
    else if (groups.length > 1) groups.push(option(this.dimensions.join(","), `by ${this.dimensions.map(words).join(" and ")}`));
    this.group = el("select", { "aria-label": `Groups of ${words(view.view)}` }, ...groups);
    this.link = el("a", { href: viewPath(view.view) }, "API call");
    this.button = el("button", { type: "button", "aria-label": `Prove ${words(view.view)}` }, "Prove");
    this.plot = el("div", { class: "plot", role: "img", "aria-labelledby": `${id}-title ${id}-said` });
    this.said = el("p", { class: "said", id: `${id}-said` }, "loading");
    this.proof = el("div", { class: "proof", role: "status", hidden: true });
    this.rows = el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Rows of ${words(view.view)}` });
    this.details = el("details", {}, el("summary", {}, "Rows as a table"), this.rows);
    this.node = el(
      "article",
      { class: "card", "data-view": view.view, "aria-labelledby": `${id}-title` },
      el("header", {}, el("h3", { id: `${id}-title` }, words(view.view)), el("p", { class: "from" }, list(view.topics).join(", "))),
      el("div", { class: "controls" }, this.measure, this.group, this.range, el("span", { class: "actions" }, this.link, this.button)),
      this.plot,
      this.said,
      this.proof,
      this.details,
    );
    for (const select of [this.measure, this.range, this.group]) {
      select.addEventListener("change", () => {
        if (select === this.group) this.chosen = true;
        this.refresh(true);
      });
    }
    this.button.addEventListener("click", () => this.prove());
    this.details.addEventListener("toggle", () => this.showRows());
  }

  start() {
    this.chart = echarts.init(this.plot, null, { renderer: "canvas" });
    this.observer = new ResizeObserver(() => this.chart.resize());
    this.observer.observe(this.plot);
  }

  close() {
    this.observer?.disconnect();
    this.chart?.dispose();
    this.node.remove();
  }

  /** The grouping when nobody chose one: few groups for lines, the first that works for bars. */
  async settle() {
    if (this.chosen || this.settled) return;
    const fit = [];
    for (const name of this.dimensions) {
      const count = await probe(this.view, name);
      const option = [...this.group.options].find((found) => found.value === name);
      if (option) option.disabled = count === null;
      if (count !== null) fit.push([name, count]);
    }
    if (this.chosen) return;
    const few = fit.filter(([, count]) => count > 1 && count <= TOP_SERIES).sort((a, b) => a[1] - b[1]);
    this.group.value = this.series ? few[0]?.[0] ?? "" : fit[0]?.[0] ?? this.group.options[0].value;
    // While the log is still filling up, look again later.
    this.settled = fit.some(([, count]) => count > 1) || !this.dimensions.length;
  }

  window() {
    const anchor = state.anchors.get(this.view.domain) ?? Date.now();
    const span = Number(this.range.value);
    if (!this.view.every) return {};
    if (this.series) {
      const base = SECONDS[this.view.every] || 60;
      const grain = Object.keys(SECONDS).find((name) => SECONDS[name] % base === 0 && span / SECONDS[name] <= MAX_POINTS) || this.view.every;
      const step = SECONDS[grain] * 1000;
      return { every: grain, step, from: (Math.floor(anchor / step) + 1) * step - span * 1000 };
    }
    const day = 86400000;
    return { every: "all", from: span ? (Math.floor(anchor / day) + 1) * day - span * 1000 : null };
  }

  async refresh(now) {
    if (this.busy) {
      this.again = this.again || now;
      return;
    }
    this.busy = true;
    try {
      await this.settle();
      await this.load();
      this.node.classList.remove("failed");
    } catch (error) {
      if (error instanceof Refused) {
        this.node.classList.add("failed");
        setText(this.said, this.last ? `not refreshed: ${error.message}` : error.message);
      } else throw error;
    } finally {
      this.busy = false;
      if (this.again) {
        this.again = false;
        this.refresh(true);
      }
    }
  }

  async load() {
    const path = viewPath(this.view.view);
    const [measure, by] = [this.measure.value, this.group.value];
    if (!measure) {
      setText(this.said, "This view has no measure that can be drawn.");
      return;
    }
    const at = this.window();
    const common = [["by", by]];
    if (at.from) common.push(["from", iso(at.from)]);
    const ranked = [...(at.every ? [["every", "all"]] : []), ...common, ["order", `-${measure}`]];
    let filters = [];
    let cut = false;
    let call;
    if (this.series) {
      if (by) {
        const top = await get(address(path, [...ranked, ["measures", measure], ["limit", String(TOP_SERIES + 1)]]));
        const rows = list(top.rows);
        cut = rows.length > TOP_SERIES;
        const values = rows.slice(0, TOP_SERIES).map((row) => row[by]);
        if (cut) filters = values.map((value) => (value === null ? [`${by}.null`, "true"] : [by, shown(value)]));
      }
      call = address(path, [["every", at.every], ...common, ...filters, ["measures", measure], ["order", "window_start"], ["limit", "10000"]]);
    } else {
      call = address(path, [...ranked, ["limit", String(TOP_BARS)]]);
    }
    const answer = await get(call);
    const newest = timeOf(record(answer.as_of).event_time_max);
    if (newest !== null) {
      const before = state.anchors.get(this.view.domain) ?? Date.now();
      state.anchors.set(this.view.domain, newest);
      if (Math.abs(newest - before) > 120000) this.again = true;
    }
    this.link.href = call;
    this.last = { rows: list(answer.rows).map(record), by, measure, at, filters, cut, newest, call, more: answer.next_cursor };
    this.draw();
    this.showRows();
  }

  draw() {
    if (!this.last || !this.chart) return;
    const paint = colours();
    this.chart.setOption(this.series ? this.lines(paint) : this.bars(paint), { notMerge: true });
    if (!this.last.rows.length) setText(this.said, "No rows in this range.");
  }

  frame(paint) {
    const text = { fontFamily: "inherit", color: paint.soft, fontSize: 11 };
    return {
      animation: false,
      color: paint.series,
      textStyle: { fontFamily: getComputedStyle(document.body).fontFamily },
      tooltip: {
        renderMode: "richText", confine: true, backgroundColor: paint.panel, borderColor: paint.line, borderWidth: 1,
        padding: [6, 9], textStyle: { ...text, color: paint.ink, fontSize: 12, lineHeight: 17 }, shadowBlur: 0, shadowColor: "transparent",
      },
      axis: { axisLine: { lineStyle: { color: paint.line } }, axisTick: { show: false }, axisLabel: { color: paint.soft, fontSize: 11 }, splitLine: { lineStyle: { color: paint.line, width: 1 } } },
    };
  }

  kind() {
    return this.measures.find((found) => found.name === this.last.measure)?.kind;
  }

  lines(paint) {
    const { rows, by, measure, at, cut, newest } = this.last;
    const { axis, ...frame } = this.frame(paint);
    const groups = new Map();
    let [low, high] = [Infinity, -Infinity];
    for (const row of rows) {
      const start = timeOf(row.window_start);
      if (start === null) continue;
      low = Math.min(low, start);
      high = Math.max(high, start);
      const name = by ? shown(row[by]) : words(measure);
      if (!groups.has(name)) groups.set(name, new Map());
      groups.get(name).set(start, row[measure]);
    }
    const absent = ZERO_WHEN_ABSENT.has(this.kind()) ? 0 : null;
    const weight = (points) => [...points.values()].reduce((total, value) => total + (isNumber(value) ? value : 0), 0);
    const ordered = [...groups].sort((a, b) => weight(b[1]) - weight(a[1]));
    const data = ordered.map(([name, points]) => {
      const line = [];
      for (let start = low; start <= high; start += at.step) line.push([start, points.get(start) ?? absent]);
      return [name, line];
    });
    const few = high - low < 3 * at.step;
    const latest = ordered.map(([name, points]) => `${name} ${number(points.get(high))}`).slice(0, TOP_SERIES);
    if (rows.length) {
      const open = newest !== null && high + at.step > newest ? ", still filling" : "";
      setText(this.said, `${words(measure)} per ${at.every}${cut ? `, largest ${TOP_SERIES} groups` : ""}; ${clock(high)} UTC${open}: ${by ? latest.join(", ") : number(ordered[0]?.[1].get(high))}`);
    }
    return {
      ...frame,
      legend: { show: Boolean(by), type: "scroll", top: 0, left: 0, right: 0, itemWidth: 12, itemHeight: 3, itemGap: 14, icon: "rect", textStyle: { color: paint.ink, fontSize: 12 }, pageIconColor: paint.accent, pageIconInactiveColor: paint.line, pageTextStyle: { color: paint.soft } },
      grid: { left: 4, right: 12, top: by ? 34 : 14, bottom: 4, outerBoundsMode: "same", outerBoundsContain: "axisLabel" },
      tooltip: {
        ...frame.tooltip, trigger: "axis", axisPointer: { lineStyle: { color: paint.soft, width: 1 } },
        formatter: (found) => {
          const points = list(found).filter((point) => isNumber(point.value[1]));
          if (!points.length) return "";
          const start = points[0].value[0];
          const open = newest !== null && start + at.step > newest ? "  still filling" : "";
          return [`${clock(start, true)} UTC${open}`, ...points.map((point) => `${point.seriesName}  ${number(point.value[1])}`)].join("\n");
        },
      },
      xAxis: { ...axis, type: "time", min: at.from, max: at.from + Number(this.range.value) * 1000, splitNumber: narrow.matches ? 3 : 6, splitLine: { show: false }, axisLabel: { ...axis.axisLabel, hideOverlap: true, formatter: (value) => (Number(this.range.value) > 86400 ? clock(value, true).slice(5) : clock(value)) } },
      yAxis: { ...axis, type: "value", min: absent === 0 ? 0 : undefined, scale: absent !== 0, splitNumber: 4, axisLine: { show: false }, axisLabel: { ...axis.axisLabel, formatter: (value) => compact.format(value) } },
      series: data.map(([name, line]) => ({
        name, type: "line", data: line, showSymbol: few, symbol: "circle", symbolSize: 6, lineStyle: { width: 1.6 }, emphasis: { disabled: true },
        areaStyle: by ? undefined : { opacity: 0.1 },
      })),
    };
  }

  bars(paint) {
    const { rows, by, measure, more } = this.last;
    const { axis, ...frame } = this.frame(paint);
    const names = by ? by.split(",") : [];
    const label = (row) => (names.length ? names.map((name) => shown(row[name])).join(" · ") : words(measure));
    const drawn = rows.filter((row) => isNumber(row[measure]));
    const first = drawn[0];
    if (rows.length) setText(this.said, `${more ? `top ${rows.length}` : `${rows.length}`} by ${words(measure)}${first ? `; largest: ${label(first)}, ${number(first[measure])}` : "; no values yet"}`);
    return {
      ...frame,
      grid: { left: 4, right: 72, top: 6, bottom: 4, outerBoundsMode: "same", outerBoundsContain: "axisLabel" },
      tooltip: {
        ...frame.tooltip, trigger: "item",
        formatter: (point) => {
          const row = drawn[point.dataIndex];
          if (!row) return "";
          const own = list(this.view.measures).filter((found) => row[found.name] !== undefined);
          return [label(row), ...own.map((found) => `${words(found.name)}  ${isNumber(row[found.name]) ? number(row[found.name]) : shown(row[found.name])}`)].join("\n");
        },
      },
      xAxis: { ...axis, type: "value", splitNumber: narrow.matches ? 2 : 4, axisLabel: { ...axis.axisLabel, hideOverlap: true, formatter: (value) => compact.format(value) } },
      yAxis: { ...axis, type: "category", inverse: true, data: drawn.map(label), axisLabel: { ...axis.axisLabel, color: paint.ink, width: narrow.matches ? 110 : 170, overflow: "truncate", interval: 0 } },
      series: [{ type: "bar", data: drawn.map((row) => row[measure]), barMaxWidth: 18, itemStyle: { color: paint.accent, borderRadius: [0, 2, 2, 0] }, emphasis: { disabled: true }, label: { show: true, position: "right", color: paint.soft, fontSize: 11, formatter: (point) => number(point.value) } }],
    };
  }

  showRows() {
    if (!this.details.open || !this.last) return;
    const columns = Object.keys(this.last.rows[0] || {});
    const key = columns.join();
    if (this.tableKey !== key) {
      this.tableKey = key;
      this.table = table(columns.map((name) => [words(name), list(this.view.measures).some((found) => found.name === name) ? "n" : ""]), `Rows of ${words(this.view.view)}`);
      this.rows.replaceChildren(this.table.node);
    }
    const rows = this.series ? this.last.rows.slice(-60).reverse() : this.last.rows;
    fill(this.table, rows.map((row) => columns.map((name) => (isNumber(row[name]) ? number(row[name]) : shown(row[name])))), "No rows.");
  }

  /** One window or one group of what is drawn: narrow enough to recount while somebody waits. */
  question() {
    const { rows, by, at, filters, newest } = this.last;
    const dimensions = by ? by.split(",") : [];
    if (this.series) {
      const closed = rows.filter((row) => newest === null || (timeOf(row.window_end) ?? 0) <= newest);
      const row = closed.at(-1) || rows.at(-1);
      if (!row) return null;
      const start = timeOf(row.window_start);
      return [["every", at.every], ["by", by], ...filters, ["from", iso(start)], ["to", iso(start + at.step)]];
    }
    if (!rows.length) return null;
    const narrowed = dimensions.map((name) => (rows[0][name] === null ? [`${name}.null`, "true"] : [name, shown(rows[0][name])]));
    const time = this.view.every ? [["every", "all"], ...(at.from ? [["from", iso(at.from)]] : [])] : [];
    return [...time, ["by", by], ...narrowed];
  }

  async prove() {
    const asked = this.last && this.question();
    if (this.proving || !asked) return;
    this.proving = true;
    this.button.setAttribute("aria-disabled", "true");
    setText(this.button, "Recounting");
    this.proof.hidden = false;
    const call = address(`${viewPath(this.view.view)}/proof`, asked);
    const link = el("a", { href: call }, "this proof");
    this.proof.replaceChildren(el("p", {}, "Recounting these figures from the raw log."));
    try {
      this.showProof(await get(call, PROOF_TIMEOUT_MS), asked, link);
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      this.proof.dataset.match = "unknown";
      this.proof.replaceChildren(el("p", {}, el("strong", {}, "No proof. "), `${error.message}${error.retryAfter ? `; try again in ${error.retryAfter} s` : ""}. `, link));
    } finally {
      this.proving = false;
      this.button.removeAttribute("aria-disabled");
      setText(this.button, "Prove");
    }
  }

  showProof(answer, asked, link) {
    const match = typeof answer.match === "boolean" ? answer.match : null;
    this.proof.dataset.match = match === null ? "unknown" : match ? "yes" : "no";
    const keys = [...this.dimensions, "window_start"];
    const keyOf = (row) => keys.filter((name) => row[name] !== undefined).map((name) => (name === "window_start" ? clock(timeOf(row[name]) ?? 0, true) : shown(row[name]))).join(" · ") || "all";
    const [served, recomputed] = [answer.rows_served, answer.rows_recomputed].map((rows) => new Map(list(rows).map(record).map((row) => [keyOf(row), row])));
    const value = (row, name) => (row ? (isNumber(row[name]) ? number(row[name]) : shown(row[name])) : "absent");
    const wrong = new Set(list(answer.differences).map((found) => `${list(found.key).join()} ${found.column}`));
    const lines = [];
    for (const key of new Set([...served.keys(), ...recomputed.keys()])) {
      const [mine, other] = [served.get(key), recomputed.get(key)];
      for (const measure of list(this.view.measures)) {
        if ((mine || other)[measure.name] === undefined) continue;
        const [a, b] = [value(mine, measure.name), value(other, measure.name)];
        const state = a === b ? "good" : match && !wrong.size ? "near" : "bad";
        const verdict = state === "good" ? "equal" : state === "near" ? (measure.kind === "distinct" ? "within the estimate" : "within rounding") : "differs";
        lines.push([key, words(measure.name), a, b, { text: verdict, state }]);
      }
    }
    const found = table([["Group", "", true], ["Measure", ""], ["Served", "n"], ["Recomputed", "n"], ["", ""]], "Served and recomputed figures");
    fill(found, lines.slice(0, 60), "Neither has rows.");
    const events = isNumber(answer.events) ? answer.events : Array.isArray(answer.events) ? answer.events.length : null;
    const segments = Array.isArray(answer.segments) ? answer.segments.length : answer.segments;
    const how = [events !== null ? `${number(events)} events` : null, isNumber(segments) ? `${number(segments)} log segments read` : null].filter(Boolean).join(", ");
    const what = asked.filter(([name, text]) => text !== "" && name !== "by").map(([name, text]) => `${words(name)} ${text}`).join(", ");
    this.proof.replaceChildren(
      el("p", {}, el("strong", { class: "verdict" }, `Match: ${match === null ? "unknown" : match ? "yes" : "no"}`), ` ${what}${how ? `; ${how}` : ""}. `, link),
      el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Served and recomputed figures" }, found.node),
    );
  }
}

/* ---- domains ---- */

function domainNames() {
  return [...new Set(state.views.map((view) => view.domain).filter(Boolean))];
}

const titleOf = (name) => state.views.find((view) => view.domain === name && view.domain_title)?.domain_title || record(state.ledger.get(name)).title || words(name).replace(/^./, (letter) => letter.toUpperCase());

function showDomain() {
  const names = domainNames();
  const asked = decodeURIComponent(location.hash.slice(1));
  const domain = names.includes(asked) ? asked : names[0] ?? null;
  const tabs = $("tabs");
  tabs.hidden = names.length < 2;
  if (tabs.dataset.names !== names.join()) {
    tabs.dataset.names = names.join();
    tabs.replaceChildren(...names.map((name) => el("a", { href: `#${encodeURIComponent(name)}`, "data-domain": name }, titleOf(name))));
  }
  for (const tab of tabs.children) {
    if (tab.dataset.domain === domain) tab.setAttribute("aria-current", "page");
    else tab.removeAttribute("aria-current");
  }
  const own = state.views.filter((view) => view.domain === domain);
  const key = JSON.stringify(own.map(({ freshness, ...rest }) => rest));
  if (domain === state.domain && key === state.key) return;
  const other = domain !== state.domain;
  state.domain = domain;
  state.key = key;
  setText($("domain-title"), domain ? titleOf(domain) : "");
  document.title = domain ? `Highwater: ${titleOf(domain)}` : "Highwater";
  for (const card of state.cards.values()) card.close();
  state.cards.clear();
  for (const view of own) {
    const card = new Card(view);
    state.cards.set(view.view, card);
    $("views").append(card.node);
    card.start();
  }
  if (other) {
    fill(quarantineTable, [], "loading");
    loadQuarantine();
  }
  showFigures();
  refreshCharts();
}

function showFigures() {
  const entry = state.ledger.get(state.domain);
  showTiles(entry);
  showLedger(entry);
  showUnknown(entry);
  if (state.domain) showStatus(entry);
}

/* ---- polling ---- */

let lastError = null;

async function loadCatalogue() {
  state.views = list((await get("/v1/views")).views).map(record).filter((view) => view.view);
  showDomain();
}

async function loadLedger() {
  const answer = await get("/v1/ledger");
  state.ledger = new Map(list(answer.domains).map(record).map((entry) => [entry.domain, entry]));
  state.received = Date.now();
  document.body.classList.remove("stale");
  if (state.domain) showFigures();
}

async function loadQuarantine() {
  const domain = state.domain;
  if (!domain) return;
  try {
    const answer = await get(address("/v1/quarantine", [["domain", domain], ["limit", String(SAMPLES)]]));
    if (domain === state.domain) showQuarantine(answer.rows);
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
  }
}

/** One view after the other: the server has other callers. */
async function refreshCharts() {
  for (const card of [...state.cards.values()]) {
    if (document.hidden) return;
    await card.refresh();
  }
}

const due = { catalogue: 0, charts: 0 };
let ticking = false;

async function tick() {
  setText($("clock"), `${iso(Math.floor(Date.now() / 1000) * 1000).replace("T", " ").replace("Z", "")} UTC`);
  if (lastError && Date.now() < state.retryAt) {
    showOutage(lastError);
    return;
  }
  if (ticking || document.hidden) return;
  ticking = true;
  try {
    const now = Date.now();
    if (now >= due.catalogue) {
      await loadCatalogue();
      due.catalogue = now + CATALOGUE_MS;
    }
    await loadLedger();
    lastError = null;
    state.failures = 0;
    if (now >= due.charts) {
      due.charts = now + CHART_MS;
      refreshCharts();
      loadQuarantine();
    }
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    lastError = error;
    const wait = Math.max(LEDGER_MS * 2 ** state.failures, error.retryAfter * 1000 || 0);
    state.failures += 1;
    state.retryAt = Date.now() + Math.min(BACKOFF_MAX_MS, wait);
    showOutage(error);
  } finally {
    ticking = false;
  }
}

function begin() {
  buildTiles();
  const toggle = $("per-partition");
  toggle.addEventListener("change", () => {
    state.perPartition = toggle.checked;
    showLedger(state.ledger.get(state.domain));
  });
  $("ledger").append(ledgerTable.node);
  $("unknown-fields").append(unknownTable.node);
  $("quarantine").append(quarantineTable.node);
  const redraw = () => state.cards.forEach((card) => card.draw());
  dark.addEventListener("change", redraw);
  narrow.addEventListener("change", redraw);
  addEventListener("hashchange", showDomain);
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) return;
    due.charts = 0;
    state.rates.clear();
    tick();
  });
  setInterval(tick, LEDGER_MS);
  tick();
}

begin();
