/** The figures of this moment: events, which version they stand on, how old they are, what was set aside, what lags. */

import { byId, el, setText } from "./dom.js";
import { duration, isNumber, list, number, record, sum, timeOf, words } from "./format.js";
import { lagOf } from "./ledger.js";

const TILES = [
  ["merged", "Events"],
  ["batch", "Batch"],
  ["speed", "Speed"],
  ["version", "Batch view"],
  ["staleness", "Staleness"],
  ["quarantine", "Quarantine"],
  ["lag", "Lag"],
];
const RATE_OVER_MS = 10000;
const RATE_FROM_MS = 1500;

export class Tiles {
  constructor() {
    this.counts = new Map(); // domain → [moment, merged events], the newest last
    this.tiles = new Map();
    for (const [key, label] of TILES) {
      const value = el("dd", { class: "value", "data-value": "" }, "–");
      const detail = el("dd", { class: "detail" });
      this.tiles.set(key, { value, detail });
      byId("tiles").append(el("div", { class: "tile", "data-tile": key }, el("dt", {}, label), value, detail));
    }
    this.rate = el("span", { class: "rate" });
    this.batchBar = el("i", {});
    this.speedBar = el("b", {});
    this.share = el("span", { class: "share", role: "img" }, this.batchBar, this.speedBar);
    this.tiles.get("merged").detail.append(this.rate, this.share);
  }

  show(entry) {
    const events = record(entry?.events);
    for (const key of ["merged", "batch", "speed"]) this.showCount(key, events[key]);
    this.showRate(entry, events);
    this.showShare(events);
    setText(this.tiles.get("batch").detail, "in the stored version");
    setText(this.tiles.get("speed").detail, "since its horizon");

    const made = timeOf(entry?.created_at);
    const version = entry?.version ?? null;
    const age = made === null ? "age unknown" : `${duration((Date.now() - made) / 1000)} old`;
    this.showText("version", version === null ? "–" : `v${version}`, age);
    this.showText("staleness", duration(entry?.staleness_seconds), "behind the end of Kafka");

    const problems = Object.entries(record(entry?.quarantined)).sort((a, b) => b[1] - a[1]);
    const quarantined = entry ? (sum(problems.map(([, count]) => count)) ?? 0) : null;
    this.showPairs("quarantine", quarantined, problems.map(([name, count]) => [words(name), count]));

    const partitions = list(entry?.partitions);
    const lags = ["ingest", "typed", "stream"].map((layer) => [layer, lagOf(partitions, layer)]);
    this.showPairs("lag", lagOf(partitions, "stream"), lags);
  }

  /** While the page was hidden no counts arrived, so there is no rate over that time. */
  forgetRates() {
    this.counts.clear();
  }

  showCount(key, count) {
    const node = this.tiles.get(key).value;
    setText(node, number(count));
    if (isNumber(count)) node.dataset.value = count;
    else delete node.dataset.value;
  }

  showText(key, value, detail) {
    setText(this.tiles.get(key).value, value);
    setText(this.tiles.get(key).detail, detail);
  }

  showPairs(key, total, pairs) {
    const { value, detail } = this.tiles.get(key);
    setText(value, number(total));
    const texts = pairs.flatMap(([name, count]) => [name, number(count)]);
    while (detail.childNodes.length > texts.length) detail.lastChild.remove();
    while (detail.childNodes.length < texts.length) {
      detail.append(el("span", { class: detail.childNodes.length % 2 ? "n" : "k" }));
    }
    texts.forEach((text, place) => setText(detail.childNodes[place], text));
  }

  showRate(entry, events) {
    const perSecond = entry ? this.perSecond(entry.domain, events.merged) : null;
    setText(this.rate, perSecond === null ? "batch + speed" : `${number(Math.round(perSecond))} per second`);
  }

  /** Events per second over the last ten seconds of changes. */
  perSecond(domain, merged) {
    const counts = this.counts.get(domain) ?? [];
    const now = performance.now();
    if (isNumber(merged)) counts.push([now, merged]);
    while (counts.length > 2 && now - counts[0][0] > RATE_OVER_MS) counts.shift();
    this.counts.set(domain, counts);
    const [first, last] = [counts[0], counts.at(-1)];
    if (!first || last[0] - first[0] <= RATE_FROM_MS) return null;
    return Math.max(0, ((last[1] - first[1]) * 1000) / (last[0] - first[0]));
  }

  showShare(events) {
    const percent = isNumber(events.batch) && events.merged > 0 ? (events.batch / events.merged) * 100 : 0;
    this.share.hidden = !(events.merged > 0);
    this.batchBar.style.width = `${percent}%`;
    this.speedBar.style.width = `${100 - percent}%`;
    this.share.setAttribute("aria-label", `${percent.toFixed(1)} percent counted by batch, the rest by speed`);
  }
}
