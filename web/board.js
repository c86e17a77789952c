/** Which domain does the page show? Its title, its tab, and a card for each of its views. */

import { Card } from "./card.js";
import { byId, el, setText } from "./dom.js";
import { list, record, words } from "./format.js";
import { Ledger } from "./ledger.js";
import { Quarantine } from "./quarantine.js";
import { showStatus } from "./status.js";
import { Tiles } from "./tiles.js";

const capitalised = (name) => words(name).replace(/^./, (letter) => letter.toUpperCase());

export class Board {
  constructor() {
    this.tiles = new Tiles();
    this.ledger = new Ledger();
    this.quarantine = new Quarantine();
    this.views = [];
    this.titles = new Map();
    this.entries = new Map(); // domain → its entry of the ledger
    this.cards = [];
    this.domain = null;
  }

  get hasFigures() {
    return this.entries.size > 0;
  }

  /** Take the answer of /v1/views. */
  setCatalogue(answer) {
    this.titles = new Map(list(answer.domains).map(({ domain, title }) => [domain, title]));
    this.views = list(answer.views).map(record);
    this.showDomain();
  }

  /** Take the answer of /v1/ledger. */
  setLedger(answer) {
    this.entries = new Map(list(answer.domains).map((entry) => [entry.domain, entry]));
    this.showFigures();
  }

  titleOf(domain) {
    return this.titles.get(domain) || capitalised(domain);
  }

  /** Show the domain that the address names, or the first. */
  showDomain() {
    const domains = [...new Set(this.views.map((view) => view.domain))];
    const named = decodeURIComponent(location.hash.slice(1));
    const domain = domains.includes(named) ? named : (domains[0] ?? null);
    this.showTabs(domains, domain);
    const views = this.views.filter((view) => view.domain === domain);
    const declared = JSON.stringify(views.map(({ freshness, ...rest }) => rest));
    if (domain === this.domain && declared === this.declared) return;
    this.domain = domain;
    this.declared = declared;
    this.showCards(views);
    this.showFigures();
    this.refresh();
  }

  showTabs(domains, current) {
    const title = current ? this.titleOf(current) : "";
    setText(byId("domain-title"), title);
    document.title = title ? `Highwater: ${title}` : "Highwater";
    const tabs = byId("tabs");
    tabs.hidden = domains.length < 2;
    const shown = JSON.stringify(domains.map((domain) => [domain, this.titleOf(domain)]));
    if (this.tabs !== shown) {
      this.tabs = shown;
      const tab = (name) => el("a", { href: `#${encodeURIComponent(name)}`, "data-domain": name }, this.titleOf(name));
      tabs.replaceChildren(...domains.map(tab));
    }
    for (const tab of tabs.children) {
      if (tab.dataset.domain === current) tab.setAttribute("aria-current", "page");
      else tab.removeAttribute("aria-current");
    }
  }

  showCards(views) {
    for (const card of this.cards) card.close();
    this.cards = views.map((view) => new Card(view));
    for (const card of this.cards) {
      byId("views").append(card.node);
      card.start();
    }
  }

  showFigures() {
    if (!this.domain || !this.hasFigures) return;
    const entry = this.entries.get(this.domain);
    this.tiles.show(entry);
    this.ledger.show(entry);
    showStatus(entry);
  }

  /** Ask for the quarantine and the views; one view after the other, because the server has other callers. */
  async refresh() {
    this.quarantine.show(this.domain);
    for (const card of this.cards) {
      if (document.hidden) return;
      await card.refresh();
    }
  }

  redraw() {
    for (const card of this.cards) card.draw();
  }
}
