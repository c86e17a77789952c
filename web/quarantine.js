/** Which records were set aside last, where do they lie in Kafka, and why? */

import { Refused, address, get } from "./api.js";
import { byId } from "./dom.js";
import { isNumber, list, record, shown, timeOf, timestamp, whole, words } from "./format.js";
import { Table } from "./table.js";

const SAMPLES = 10;
const SHOWN_CHARACTERS = 400;
const COLUMNS = [
  ["Kafka time (UTC)", "t"],
  ["Topic", "", true],
  ["Partition : offset", "n"],
  ["Problem", ""],
  ["Value", "v"],
];

function cells(row) {
  const moment = timeOf(row.kafka_time);
  const place = `${row.partition ?? "?"} : ${isNumber(row.offset) ? whole(row.offset) : "?"}`;
  const value = row.value ?? (row.value_base64 ? `base64: ${row.value_base64}` : "(empty)");
  const time = moment === null ? "–" : timestamp(moment);
  return [time, shown(row.topic), place, words(row.problem), String(value).slice(0, SHOWN_CHARACTERS)];
}

export class Quarantine {
  constructor() {
    this.table = new Table(COLUMNS, "The newest records that were set aside");
    byId("quarantine").append(this.table.node);
    this.domain = null;
  }

  /** Show the newest of a domain; when they cannot be had, those that are shown stay. */
  async show(domain) {
    if (domain !== this.domain) this.table.fill([], "loading");
    this.domain = domain;
    if (!domain) return;
    try {
      const answer = await get(address("/v1/quarantine", { domain, limit: SAMPLES }));
      if (domain === this.domain) this.table.fill(list(answer.rows).map(record).map(cells), "Nothing was set aside.");
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
    }
  }
}
