/** One view on the page: what may be chosen of it, its chart, its rows as a table, and its proof. */

import { Refused, viewPath } from "./api.js";
import { draw } from "./chart.js";
import { el, setText } from "./dom.js";
import { figure, list, words } from "./format.js";
import { prove } from "./proof.js";
import { TOP_SERIES, ask, dimensionsOf, groupsOf, isSeries, provable, rangesOf } from "./query.js";
import { Table } from "./table.js";

const NUMERIC = /INT|DOUBLE|FLOAT|REAL|DECIMAL|NUMERIC|LONG|SHORT/i;
const NUMERIC_KINDS = ["count", "sum", "distinct", "avg"];
const NEWEST_ROWS = 60;
const FAR_MS = 120000;
const narrow = matchMedia("(max-width: 560px)");

// Domain → newest event time (ms): the windows of its cards end there, and not at the clock of this machine.
const anchors = new Map();

const measuresOf = (view) =>
  list(view.measures).filter(({ type, kind }) => NUMERIC.test(type || "") || NUMERIC_KINDS.includes(kind));

function selection(label, options) {
  return el("select", { "aria-label": label }, ...options.map(([value, text]) => el("option", { value }, text)));
}

/** Lines may be drawn of all together; bars need a dimension, or several at once. */
function groupings(view) {
  const dimensions = dimensionsOf(view);
  const single = dimensions.map((name) => [name, `by ${words(name)}`]);
  if (isSeries(view) || !dimensions.length) return [["", "all together"], ...single];
  if (dimensions.length === 1) return single;
  return [...single, [dimensions.join(","), `by ${dimensions.map(words).join(" and ")}`]];
}

export class Card {
  constructor(view) {
    this.view = view;
    this.drawing = null; // what `query.ask` brought last
    this.settled = false; // whether the groups are chosen, by a person or after looking how many there are
    this.busy = false;
    this.again = false;
    this.buildControls();
    this.buildNode();
  }

  buildControls() {
    const { view } = this;
    const name = words(view.view);
    const { ranges, first } = rangesOf(view);
    const measures = measuresOf(view).map((measure) => [measure.name, words(measure.name)]);
    this.measure = selection(`Measure of ${name}`, measures);
    this.group = selection(`Groups of ${name}`, groupings(view));
    this.range = selection(`Range of ${name}`, ranges.map(([text, span]) => [span, text]));
    this.range.value = String(first);
    this.range.hidden = !view.every;
    this.link = el("a", { href: viewPath(view.view) }, "API call");
    this.button = el("button", { type: "button", "aria-label": `Prove ${name}` }, "Prove");
    this.button.addEventListener("click", () => this.prove());
    this.group.addEventListener("change", () => {
      this.settled = true;
    });
    for (const select of [this.measure, this.group, this.range]) {
      select.addEventListener("change", () => this.refresh(true));
    }
  }

  buildNode() {
    const { view } = this;
    const id = `view-${view.view}`;
    const name = words(view.view);
    const title = el("h3", { id: `${id}-title` }, name);
    const actions = el("span", { class: "actions" }, this.link, this.button);
    this.plot = el("div", { class: "plot", role: "img", "aria-labelledby": `${id}-title ${id}-said` });
    this.sentence = el("p", { class: "said", id: `${id}-said` }, "loading");
    this.proof = el("div", { class: "proof", role: "status", hidden: true });
    this.rows = el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Rows of ${name}` });
    this.details = el("details", {}, el("summary", {}, "Rows as a table"), this.rows);
    this.details.addEventListener("toggle", () => this.showRows());
    this.node = el(
      "article",
      { class: "card", "data-view": view.view, "aria-labelledby": `${id}-title` },
      el("header", {}, title, el("p", { class: "from" }, list(view.topics).join(", "))),
      el("div", { class: "controls" }, this.measure, this.group, this.range, actions),
      this.plot,
      this.sentence,
      this.proof,
      this.details,
    );
  }

  /** The chart measures its place, so the card must stand on the page by now. */
  start() {
    this.chart = globalThis.echarts.init(this.plot, null, { renderer: "canvas" });
    this.observer = new ResizeObserver(() => this.chart.resize());
    this.observer.observe(this.plot);
  }

  close() {
    this.observer.disconnect();
    this.chart.dispose();
    this.node.remove();
  }

  /** Load and draw; a person's choice (`now`) does not wait for the next turn where one is under way. */
  async refresh(now) {
    if (this.busy) {
      this.again ||= Boolean(now);
      return;
    }
    this.busy = true;
    try {
      if (!this.settled) await this.settle();
      await this.load();
      this.node.classList.remove("failed");
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      this.node.classList.add("failed");
      setText(this.sentence, this.drawing ? `not refreshed: ${error.message}` : error.message);
    } finally {
      this.busy = false;
      if (this.again) {
        this.again = false;
        this.refresh(true);
      }
    }
  }

  /** Choose the groups while nobody did: few of them for lines, the first dimension that works for bars. */
  async settle() {
    const usable = [];
    for (const name of dimensionsOf(this.view)) {
      const count = await groupsOf(this.view, name);
      const option = [...this.group.options].find(({ value }) => value === name);
      if (option) option.disabled = count === null;
      if (count !== null) usable.push([name, count]);
    }
    if (this.settled) return; // by a person, meanwhile
    const several = usable.filter(([, count]) => count > 1);
    const few = several.filter(([, count]) => count <= TOP_SERIES).sort((a, b) => a[1] - b[1]);
    const [first] = isSeries(this.view) ? few : usable;
    this.group.value = first ? first[0] : this.group.options[0].value;
    // While the log is still filling up, look again later.
    this.settled = several.length > 0 || !dimensionsOf(this.view).length;
  }

  async load() {
    const { view, measure, group, range } = this;
    if (!measure.value) {
      setText(this.sentence, "This view has no measure that can be drawn.");
      return;
    }
    const anchor = anchors.get(view.domain) ?? Date.now();
    this.drawing = await ask(view, measure.value, group.value, Number(range.value), anchor);
    const { newest, call } = this.drawing;
    if (newest !== null) {
      anchors.set(view.domain, newest);
      if (Math.abs(newest - anchor) > FAR_MS) this.again = true;
    }
    this.link.href = call;
    this.draw();
    this.showRows();
  }

  draw() {
    if (!this.drawing) return;
    const { option, sentence } = draw(this.drawing, narrow.matches);
    this.chart.setOption(option, { notMerge: true });
    setText(this.sentence, sentence);
  }

  showRows() {
    if (!this.details.open || !this.drawing) return;
    const { rows } = this.drawing;
    const columns = Object.keys(rows[0] ?? {});
    if (this.columns !== columns.join()) {
      this.columns = columns.join();
      const measures = list(this.view.measures).map(({ name }) => name);
      const heads = columns.map((name) => [words(name), measures.includes(name) ? "n" : ""]);
      this.table = new Table(heads, `Rows of ${words(this.view.view)}`);
      this.rows.replaceChildren(this.table.node);
    }
    const newestFirst = isSeries(this.view) ? rows.slice(-NEWEST_ROWS).reverse() : rows;
    this.table.fill(newestFirst.map((row) => columns.map((name) => figure(row[name]))), "No rows.");
  }

  async prove() {
    const pairs = this.drawing && provable(this.drawing);
    if (!pairs || this.button.hasAttribute("aria-disabled")) return;
    this.button.setAttribute("aria-disabled", "true");
    setText(this.button, "Recounting");
    try {
      await prove(this.proof, this.view, pairs);
    } finally {
      this.button.removeAttribute("aria-disabled");
      setText(this.button, "Prove");
    }
  }
}
