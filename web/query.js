/** What does a card ask of its view? The windows, the groups, and the call that brings its rows. */

import { address, get, viewPath } from "./api.js";
import { iso, list, record, shown, timeOf } from "./format.js";

export const TOP_SERIES = 6;
const TOP_BARS = 12;
const MOST_GROUPS = 9;
const MAX_POINTS = 170;
const MAX_ROWS = 10000;
const PROBE_AGAIN_MS = 120000;
const HOUR = 3600;
const DAY = 86400;
const GRAIN_SECONDS = { "1m": 60, "5m": 300, "15m": 900, "1h": HOUR, "1d": DAY };
const SERIES_RANGES = [
  ["15 min", 900],
  ["1 hour", HOUR],
  ["6 hours", 6 * HOUR],
  ["1 day", DAY],
  ["7 days", 7 * DAY],
];
const DAY_RANGES = [
  ["all days", 0],
  ["1 day", DAY],
  ["7 days", 7 * DAY],
  ["30 days", 30 * DAY],
];

/** A view of short windows is drawn over time; one of days or of none is drawn as bars. */
export const isSeries = (view) => Boolean(view.every) && view.every !== "1d";
export const dimensionsOf = (view) => list(view.dimensions).map((dimension) => dimension.name);

/** The ranges to choose from as [text, seconds], and the one to begin with. */
export function rangesOf(view) {
  if (!isSeries(view)) return { ranges: DAY_RANGES, first: 0 };
  const ranges = SERIES_RANGES.filter(([, span]) => span >= 10 * GRAIN_SECONDS[view.every]);
  return { ranges, first: ranges.some(([, span]) => span === HOUR) ? HOUR : ranges[0][1] };
}

/**
 * The windows of a range that ends with the one in which `anchor` (ms) lies: {every, step, from}; no view without
 * windows has any, and `from` is null for all of them.
 */
function windowsOf(view, span, anchor) {
  if (!view.every) return {};
  if (!isSeries(view)) {
    const day = DAY * 1000;
    return { every: "all", from: span ? (Math.floor(anchor / day) + 1) * day - span * 1000 : null };
  }
  const drawable = ([, seconds]) => seconds % GRAIN_SECONDS[view.every] === 0 && span / seconds <= MAX_POINTS;
  const every = Object.entries(GRAIN_SECONDS).find(drawable)?.[0] ?? view.every;
  const step = GRAIN_SECONDS[every] * 1000;
  return { every, step, from: (Math.floor(anchor / step) + 1) * step - span * 1000 };
}

const only = (name, value) => (value === null ? [`${name}.null`, "true"] : [name, shown(value)]);

/** The call whose rows are drawn; for lines of many groups the largest are asked for first. Throws Refused. */
async function callOf(view, measure, by, windows) {
  const path = viewPath(view.view);
  const common = [["by", by], ...(windows.from ? [["from", iso(windows.from)]] : [])];
  const ranked = [...(windows.every ? [["every", "all"]] : []), ...common, ["order", `-${measure}`]];
  if (!isSeries(view)) return { call: address(path, [...ranked, ["limit", TOP_BARS]]), filters: [], cut: false };
  let filters = [];
  let cut = false;
  if (by) {
    const top = await get(address(path, [...ranked, ["measures", measure], ["limit", TOP_SERIES + 1]]));
    const groups = list(top.rows).map((row) => row[by]);
    cut = groups.length > TOP_SERIES;
    if (cut) filters = groups.slice(0, TOP_SERIES).map((value) => only(by, value));
  }
  const rest = [["measures", measure], ["order", "window_start"], ["limit", MAX_ROWS]];
  return { call: address(path, [["every", windows.every], ...common, ...filters, ...rest]), filters, cut };
}

/** Ask for what a card draws: its rows, and all that says what they are. Throws Refused. */
export async function ask(view, measure, by, span, anchor) {
  const windows = windowsOf(view, span, anchor);
  const { call, filters, cut } = await callOf(view, measure, by, windows);
  const answer = await get(call);
  const newest = timeOf(record(answer.as_of).event_time_max);
  const rows = list(answer.rows).map(record);
  return { view, measure, by, span, windows, filters, cut, call, rows, newest, more: Boolean(answer.next_cursor) };
}

/** One window or one group of what is drawn: narrow enough to recount while somebody waits; null without rows. */
export function provable({ view, by, windows, filters, rows, newest }) {
  if (!rows.length) return null;
  if (isSeries(view)) {
    const closed = rows.filter((row) => newest === null || (timeOf(row.window_end) ?? 0) <= newest);
    const start = timeOf((closed.at(-1) ?? rows.at(-1)).window_start);
    return [["every", windows.every], ["by", by], ...filters, ["from", iso(start)], ["to", iso(start + windows.step)]];
  }
  const every = windows.every ? [["every", "all"]] : [];
  const from = windows.from ? [["from", iso(windows.from)]] : [];
  const group = by ? by.split(",").map((name) => only(name, rows[0][name])) : [];
  return [...every, ...from, ["by", by], ...group];
}

const probes = new Map();

/** How many groups a dimension has, at most nine; null when the view cannot be grouped so. Throws Refused. */
export async function groupsOf(view, dimension) {
  const key = `${view.view} ${dimension}`;
  const known = probes.get(key);
  if (known && Date.now() - known.at < PROBE_AGAIN_MS) return known.count;
  let count = null;
  try {
    const every = view.every ? [["every", "all"]] : [];
    const answer = await get(address(viewPath(view.view), [...every, ["by", dimension], ["limit", MOST_GROUPS]]));
    count = list(answer.rows).length;
  } catch (error) {
    if (error.status !== 422) throw error;
  }
  probes.set(key, { count, at: Date.now() });
  return count;
}
