/** A table that changes in place: rows that stay are not made anew, so a selection and the scroll position stay. */

import { el, setText } from "./dom.js";

export class Table {
  /** Columns are [label, class, whether its cells head their row]. */
  constructor(columns, caption) {
    this.columns = columns;
    const head = el("tr", {}, ...columns.map(([label, kind]) => el("th", { scope: "col", class: kind }, label)));
    this.body = el("tbody", {});
    this.node = el("table", {}, el("caption", { class: "hidden" }, caption), el("thead", {}, head), this.body);
  }

  /** Hold these rows, or one line that says `empty`; a cell is text, or {text, state}. */
  fill(rows, empty) {
    const wanted = Math.max(1, rows.length);
    while (this.body.rows.length > wanted) this.body.lastChild.remove();
    if (!rows.length) setText(this.line(0, true).cells[0], empty);
    rows.forEach((row, index) => {
      const { cells } = this.line(index, false);
      row.forEach((cell, place) => {
        const { text, state = "" } = cell !== null && typeof cell === "object" ? cell : { text: cell };
        setText(cells[place], String(text ?? "–"));
        if ((cells[place].dataset.state ?? "") !== state) cells[place].dataset.state = state;
      });
    });
  }

  /** The line at a place: one cell for a sentence, or one for each column. */
  line(index, sentence) {
    const present = this.body.rows[index];
    if (present && present.cells[0].classList.contains("empty") === sentence) return present;
    const cells = sentence
      ? [el("td", { colspan: this.columns.length, class: "empty" })]
      : this.columns.map(([, kind, heading]) =>
          el(heading ? "th" : "td", { class: kind, scope: heading ? "row" : null }),
        );
    const fresh = el("tr", {}, ...cells);
    if (present) present.replaceWith(fresh);
    else this.body.append(fresh);
    return fresh;
  }
}
