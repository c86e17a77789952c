/** Where are the events of every topic, does it balance, and which fields do they carry that no schema knows? */

import { byId } from "./dom.js";
import { list, number, record, shown, sum } from "./format.js";
import { Table } from "./table.js";

const LEDGER_COLUMNS = [
  ["Topic", "", true],
  ["Kafka end", "n"],
  ["Raw", "n"],
  ["Typed", "n"],
  ["Good", "n"],
  ["Problems", "n"],
  ["Pending", "n"],
  ["Lag ingest", "n"],
  ["Lag typed", "n"],
  ["Lag stream", "n"],
  ["Balanced", ""],
];
const UNKNOWN_COLUMNS = [
  ["Topic", "", true],
  ["Field", ""],
  ["Events", "n"],
];

/** How many offsets a layer is behind, over some partitions. */
export const lagOf = (partitions, layer) => sum(partitions.map((row) => record(record(row).lag)[layer]));

/** One line: the sums of some partitions, balanced when each of them is. */
function line(name, partitions) {
  const total = (key) => sum(partitions.map((row) => row[key]));
  const good = sum(partitions.flatMap((row) => [row.good, record(row.speed).good]));
  const counts = partitions.flatMap((row) => [record(row.problems), record(record(row.speed).problems)]);
  const problems = sum(counts.flatMap((byName) => Object.values(byName))) ?? 0;
  const lags = ["ingest", "typed", "stream"].map((layer) => lagOf(partitions, layer));
  const figures = [total("kafka_end"), total("raw"), total("typed"), good, problems, total("pending"), ...lags];
  const balanced = partitions.every((row) => row.balanced === true);
  return [name, ...figures.map(number), { text: balanced ? "yes" : "no", state: balanced ? "good" : "bad" }];
}

export class Ledger {
  constructor() {
    this.ledger = new Table(LEDGER_COLUMNS, "Ledger: where the events of every topic are");
    this.unknown = new Table(UNKNOWN_COLUMNS, "Fields that no schema knows");
    byId("ledger").append(this.ledger.node);
    byId("unknown-fields").append(this.unknown.node);
    this.perPartition = byId("per-partition");
    this.perPartition.addEventListener("change", () => this.show(this.entry));
  }

  show(entry) {
    this.entry = entry;
    this.showBalance(list(entry?.partitions).map(record));
    this.showUnknown(record(entry?.unknown_fields));
  }

  showBalance(partitions) {
    const topics = new Map();
    for (const row of partitions) topics.set(row.topic, [...(topics.get(row.topic) ?? []), row]);
    const lines = [];
    for (const [topic, rows] of [...topics].sort()) {
      lines.push(line(shown(topic), rows));
      if (!this.perPartition.checked) continue;
      lines.push(...rows.map((row) => line(`\u2003partition ${row.partition}`, [row])));
    }
    this.ledger.fill(lines, "No partition seen yet.");
  }

  /** Only where there are some; the server names the most frequent ones of each topic, most frequent first. */
  showUnknown(fields) {
    const topics = Object.entries(fields).sort(([a], [b]) => (a < b ? -1 : 1));
    const lines = topics.flatMap(([topic, counts]) =>
      Object.entries(record(counts)).map(([name, count]) => [topic, name, number(count)]),
    );
    byId("unknown").hidden = !lines.length;
    this.unknown.fill(lines, "None.");
  }
}
