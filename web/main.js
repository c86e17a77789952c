/** The dashboard: asks /v1 by a clock, and keeps the last figures while the server is away. */

import { Refused, get } from "./api.js";
import { Board } from "./board.js";
import { byId, setText } from "./dom.js";
import { timestamp } from "./format.js";
import { showOutage } from "./status.js";

const LEDGER_MS = 1000;
const CHARTS_MS = 5000;
const CATALOGUE_MS = 15000;
const BACKOFF_MAX_MS = 30000;

const board = new Board();
const due = { catalogue: 0, charts: 0 };
const outage = { error: null, failures: 0, retryAt: 0 };
let asking = false;

async function ask(now) {
  if (now >= due.catalogue) {
    board.setCatalogue(await get("/v1/views"));
    due.catalogue = now + CATALOGUE_MS;
  }
  board.setLedger(await get("/v1/ledger"));
  document.body.classList.remove("stale");
  Object.assign(outage, { error: null, failures: 0 });
  if (now >= due.charts) {
    due.charts = now + CHARTS_MS;
    board.refresh();
  }
}

/** Wait twice as long after each failure, and at least as long as the server asks for. */
function backOff(error) {
  const wait = Math.max(LEDGER_MS * 2 ** outage.failures, error.retryAfter * 1000);
  outage.error = error;
  outage.failures += 1;
  outage.retryAt = Date.now() + Math.min(BACKOFF_MAX_MS, wait);
}

const tellOutage = () => showOutage(outage.error, outage.retryAt - Date.now(), board.hasFigures);

async function tick() {
  const now = Date.now();
  setText(byId("clock"), `${timestamp(Math.floor(now / 1000) * 1000)} UTC`);
  if (outage.error && now < outage.retryAt) {
    tellOutage();
    return;
  }
  if (asking || document.hidden) return;
  asking = true;
  try {
    await ask(now);
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    backOff(error);
    tellOutage();
  } finally {
    asking = false;
  }
}

for (const query of ["(prefers-color-scheme: dark)", "(max-width: 560px)"]) {
  matchMedia(query).addEventListener("change", () => board.redraw());
}
addEventListener("hashchange", () => board.showDomain());
document.addEventListener("visibilitychange", () => {
  if (document.hidden) return;
  due.charts = 0;
  board.tiles.forgetRates();
  tick();
});
setInterval(tick, LEDGER_MS);
tick();
