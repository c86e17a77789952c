/** Are the figures of a card right? They are recounted from the raw log, and both are shown side by side. */

import { Refused, address, get, viewPath } from "./api.js";
import { el } from "./dom.js";
import { dayAndClock, figure, list, number, record, shown, sum, timeOf, words } from "./format.js";
import { dimensionsOf } from "./query.js";
import { Table } from "./table.js";

const TIMEOUT_MS = 45000;
const SHOWN_LINES = 60;
const CAPTION = "Served and recomputed figures";
const COLUMNS = [
  ["Group", "", true],
  ["Measure", ""],
  ["Served", "n"],
  ["Recomputed", "n"],
  ["", ""],
];

const keysOf = (view, row) => [...dimensionsOf(view), "window_start", "window_end"].filter((name) => name in row);
/** The key of a row as the server writes it in `differences`. */
const keyOf = (view, row) => JSON.stringify(keysOf(view, row).map((name) => row[name]));

function nameOf(view, row) {
  const names = keysOf(view, row).filter((name) => name !== "window_end");
  const texts = names.map((name) =>
    name === "window_start" ? dayAndClock(timeOf(row[name]) ?? 0) : shown(row[name]),
  );
  return texts.join(" · ") || "all";
}

/** The server judged; where it calls both the same though they are not written the same, it says how near. */
function verdict(differs, same, kind) {
  if (differs) return { text: "differs", state: "bad" };
  if (same) return { text: "equal", state: "good" };
  return { text: kind === "distinct" ? "within the estimate" : "within rounding", state: "near" };
}

/** One line for each figure of each group. */
function lines(view, answer) {
  const byKey = (rows) => new Map(list(rows).map(record).map((row) => [keyOf(view, row), row]));
  const [served, recomputed] = [byKey(answer.rows_served), byKey(answer.rows_recomputed)];
  const different = new Set(list(answer.differences).map(({ key, column }) => `${JSON.stringify(key)} ${column}`));
  const result = [];
  for (const key of new Set([...served.keys(), ...recomputed.keys()])) {
    const rows = [served.get(key), recomputed.get(key)];
    const present = rows[0] ?? rows[1];
    for (const { name, kind } of list(view.measures).filter((measure) => measure.name in present)) {
      const [ours, theirs] = rows.map((row) => (row ? figure(row[name]) : "absent"));
      const differs = different.has(`${key} ${name}`) || different.has(`${key} null`);
      result.push([nameOf(view, present), words(name), ours, theirs, verdict(differs, ours === theirs, kind)]);
    }
  }
  return result;
}

/** How many offsets were read: {topic: {log: {partition: [start, end]}}}. */
function offsetsIn(ranges) {
  const logs = Object.values(record(ranges)).flatMap((byLog) => Object.values(record(byLog)));
  const partitions = logs.flatMap((byPartition) => Object.values(record(byPartition)));
  return sum(partitions.map(([start, end]) => end - start));
}

function showAnswer(node, view, pairs, answer, link) {
  const match = answer.match === true;
  node.dataset.match = match ? "yes" : "no";
  const table = new Table(COLUMNS, CAPTION);
  table.fill(lines(view, answer).slice(0, SHOWN_LINES), "Neither has rows.");
  const asked = pairs.filter(([name, text]) => text !== "" && name !== "by");
  const what = asked.map(([name, text]) => `${words(name)} ${text}`).join(", ");
  const [offsets, segments] = [offsetsIn(answer.offsets), list(answer.segments).length];
  const read = `${number(offsets)} offsets and ${number(segments)} log segments read`;
  node.replaceChildren(
    el("p", {}, el("strong", { class: "verdict" }, `Match: ${match ? "yes" : "no"}`), ` ${what}; ${read}. `, link),
    el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": CAPTION }, table.node),
  );
}

/** Ask for a proof of what `pairs` ask of a view, and show it. */
export async function prove(node, view, pairs) {
  const call = address(`${viewPath(view.view)}/proof`, pairs);
  const link = el("a", { href: call }, "this proof");
  node.hidden = false;
  node.replaceChildren(el("p", {}, "Recounting these figures from the raw log."));
  try {
    showAnswer(node, view, pairs, await get(call, TIMEOUT_MS), link);
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    const again = error.retryAfter ? `; try again in ${error.retryAfter} s` : "";
    node.dataset.match = "unknown";
    node.replaceChildren(el("p", {}, el("strong", {}, "No proof. "), `${error.message}${again}. `, link));
  }
}
