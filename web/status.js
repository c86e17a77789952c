/** The badge and the note at the top: is what the page shows right, and if not, why not? */

import { byId, setText } from "./dom.js";
import { duration, isNumber, list, record, whole } from "./format.js";

const NAMED_RANGES = 4;

function show(state, badge, note = "", title = "") {
  const node = byId("status");
  node.dataset.state = state;
  node.title = title;
  setText(node, badge);
  byId("note").hidden = !note;
  setText(byId("note"), note);
}

function rangeText(item) {
  const { topic, partition, start, end, reason } = record(item);
  const offsets = isNumber(start) && isNumber(end) ? ` offsets ${whole(start)}–${whole(end)}` : "";
  return `${topic ?? "?"}/${partition ?? "?"}${offsets}${reason ? ` (${reason})` : ""}`;
}

function showIncomplete(missing) {
  if (!missing.length) {
    show("bad", "incomplete", "Something below the coverage is missing.");
    return;
  }
  const named = missing.slice(0, NAMED_RANGES).map(rangeText).join("; ");
  const more = missing.length > NAMED_RANGES ? ` and ${missing.length - NAMED_RANGES} more` : "";
  show("bad", `incomplete: ${missing.length} missing`, `Missing: ${named}${more}.`);
}

/** What a domain's entry of the ledger says of itself. */
export function showStatus(entry) {
  if (!entry) {
    const note = "This domain has no batch version yet; figures appear as soon as one is published.";
    show("wait", "no snapshot yet", note);
    return;
  }
  const { complete, balanced, staleness_seconds: staleness, max_staleness_seconds: bound } = entry;
  const missing = list(entry.missing);
  if (complete === false || missing.length) {
    showIncomplete(missing);
  } else if (balanced === false) {
    show("bad", "not balanced", "The counts of at least one topic do not add up; see the ledger below.");
  } else if (isNumber(bound) && staleness > bound) {
    const behind = `These figures are ${duration(staleness)} behind Kafka`;
    show("bad", "not ready: too old", `${behind}; READY_STALENESS allows ${duration(bound)}.`);
  } else if (complete === true) {
    show("good", "complete", "", "Every event below the coverage is in these figures.");
  } else {
    show("wait", "unknown");
  }
}

/** Why nothing new arrives, and in how many milliseconds the page asks again. */
export function showOutage(error, wait, figuresStay) {
  const seconds = Math.max(0, Math.ceil(wait / 1000));
  const starting = error.status === 503;
  const what = `serving layer ${starting ? "not ready" : "not reachable"}`;
  const reason = `${error.message}.`.replace("..", ".");
  const figures = figuresStay ? " The figures below are the last ones received." : "";
  show(starting ? "wait" : "bad", `${what}, retry in ${seconds} s`, reason + figures);
  document.body.classList.toggle("stale", figuresStay);
}
