"""The dashboard's files as they are served, and the page in Chromium over a serving layer without Kafka and HDFS."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from engine.serving import proof
from tests.unit.test_serving_api import Api, _recount

WEB = Path(__file__).resolve().parents[2] / "web"
MODULES = {path.name: path.read_text(encoding="utf-8") for path in WEB.glob("*.js")}
IMPORT = re.compile(r'^(?:import|export) (?:\{([^}]*)\} )?(?:from )?"([^"]+)";$', re.M)
EXPORT = re.compile(r"^export (?:async )?(?:const|function|class) (\w+)", re.M)
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
ADDRESS = "http://dashboard.test"
WAIT_MS = 20_000


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Api:
    api = Api(tmp_path_factory.mktemp("web"))
    api.fill()
    return api


# Files -------------------------------------------------------------------------------------------------------------


def imports_of(module: str) -> dict[str, set[str]]:
    """Module → names that are taken from it."""
    return {
        path.removeprefix("./"): {name.strip() for name in names.split(",") if name.strip()}
        for names, path in IMPORT.findall(MODULES[module])
    }


def test_every_module_is_reached_from_the_page_and_every_export_is_used() -> None:
    reached, waiting = set(), {"main.js", "docs.js"}
    while waiting:
        module = waiting.pop()
        reached.add(module)
        waiting |= imports_of(module).keys() - reached
    assert reached == MODULES.keys() and len(reached) > 8
    used = {(module, name) for other in MODULES for module, names in imports_of(other).items() for name in names}
    exported = {(module, name) for module, text in MODULES.items() for name in EXPORT.findall(text)}
    assert used == exported


def test_modules_import_in_one_direction() -> None:
    def walk(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " → ".join([*path, module])
        for imported in imports_of(module):
            walk(imported, (*path, module))

    walk("main.js", ())


@pytest.mark.parametrize("name", sorted(path.name for path in WEB.iterdir() if path.suffix in (".js", ".css", ".html")))
def test_no_line_is_longer_than_120_characters(name: str) -> None:
    lines = (WEB / name).read_text(encoding="utf-8").splitlines()
    assert [number for number, line in enumerate(lines, 1) if len(line) > 120] == []


def test_what_the_page_names_is_served_as_what_it_is(filled: Api) -> None:
    page = filled.get("/")
    assert page.headers["content-type"].startswith("text/html") and page.headers["cache-control"] == "no-cache"
    # Without inline scripts the policy of the page needs no exception.
    assert page.headers["content-security-policy"].startswith("default-src 'self'")
    assert re.findall(r"<script(?![^>]* src=)[^>]*>", page.text) == [] and " style=" not in page.text
    assert re.findall(r'<script src="([^"]+)" type="module">', page.text) == ["/static/main.js"]
    for path in re.findall(r'(?:src|href)="(/static/[^"]+)"', page.text):
        assert filled.get(path).status_code == 200, path
    for name, text in MODULES.items():
        answer = filled.get(f"/static/{name}")
        # A browser refuses a module of another type.
        assert answer.headers["content-type"].split(";")[0] in ("text/javascript", "application/javascript"), name
        assert answer.text == text and answer.headers["cache-control"] == "no-cache"


def test_the_catalogue_gives_the_title_of_every_domain(filled: Api) -> None:
    assert filled.json("/v1/views")["domains"] == [{"domain": "shop", "title": "Corner shops"}]
    described = filled.json("/openapi.json")
    content = described["paths"]["/v1/views"]["get"]["responses"]["200"]["content"]["application/json"]
    schema = described["components"]["schemas"][content["schema"]["$ref"].rpartition("/")[2]]
    assert schema["properties"]["domains"]["items"]["properties"].keys() == {"domain", "title"}


# In a browser --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not CHROMIUM:
        pytest.skip("no Chromium; set CHROMIUM to its path")
    with pytest.importorskip("playwright.sync_api").sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield found
        found.close()


class Page:
    """A page whose requests are answered by the serving layer's routes, and what it complained of."""

    def __init__(self, browser: Any, api: Api, path: str = "", **options: Any) -> None:
        self.api = api
        self.page = browser.new_page(viewport={"width": 1280, "height": 844}, **options)
        self.away = False
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda line: self.errors.append(line.text) if line.type == "error" else None)
        self.page.route("**/*", self._answer)
        self.page.goto(ADDRESS + path)

    def _answer(self, route: Any) -> None:
        url = urlsplit(route.request.url)
        assert f"{url.scheme}://{url.netloc}" == ADDRESS, url
        if self.away:
            route.abort()
            return
        answer = self.api.get(f"{url.path}?{url.query}" if url.query else url.path)
        route.fulfill(status=answer.status_code, headers=dict(answer.headers), body=answer.content)

    def wait(self, expression: str) -> Any:
        return self.page.wait_for_function(expression, timeout=WAIT_MS).json_value()

    def text(self, selector: str) -> str:
        return str(self.page.locator(selector).first.text_content())


@pytest.fixture(scope="module")
def board(browser: Any, filled: Api) -> Iterator[Page]:
    page = Page(browser, filled)
    page.wait("() => [...document.querySelectorAll('.said')].every((node) => /\\d/.test(node.textContent))")
    yield page
    page.page.close()


def test_the_page_says_the_title_of_its_domain(board: Page) -> None:
    assert board.text("#domain-title") == "Corner shops" and board.page.title() == "Highwater: Corner shops"


def test_every_view_is_drawn_and_said(board: Page, filled: Api) -> None:
    names = [view["view"] for view in filled.json("/v1/views")["views"]]
    assert board.page.eval_on_selector_all("article", "all => all.map((node) => node.dataset.view)") == names
    for name in names:
        card = f'article[data-view="{name}"]'
        assert board.page.locator(f"{card} canvas").count() == 1
        assert re.search(r"\d", board.text(f"{card} .said")), name
    assert board.page.locator("article.failed").count() == 0


def test_the_figures_are_those_of_the_ledger(board: Page, filled: Api) -> None:
    entry = filled.json("/v1/ledger")["domains"][0]
    for name, events in entry["events"].items():
        assert board.text(f'[data-tile="{name}"] .value') == f"{events:,}"
    assert board.text('[data-tile="quarantine"] .value') == f"{sum(entry['quarantined'].values()):,}"
    cells = board.page.eval_on_selector_all("#ledger tbody tr", "all => all.map((row) => row.cells[0].textContent)")
    assert cells == ["sales-topic"]
    board.page.locator("#per-partition").check()
    assert board.page.locator("#ledger tbody tr").count() == 1 + len(entry["partitions"])
    board.page.locator("#per-partition").uncheck()
    assert board.page.locator("#quarantine tbody tr").count() == 10


def test_rows_are_shown_as_a_table(board: Page, filled: Api) -> None:
    card = board.page.locator('article[data-view="shops"]')
    card.locator("summary").click()
    rows = filled.json(str(card.get_by_role("link", name="API call").get_attribute("href")))["rows"]
    board.wait("() => document.querySelectorAll('article[data-view=\"shops\"] details tbody tr').length > 0")
    assert card.locator("details tbody tr").count() == len(rows) > 1


def proof_lines(board: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> dict[str, list[str]]:
    """Measure → the other cells of its line in a proof that comes back as a recount says it."""
    monkeypatch.setattr(proof, "COMMAND", _recount(tmp_path, body))
    card = board.page.locator('article[data-view="shops"]')
    card.get_by_role("button", name="Prove").click()
    board.wait("() => [...document.querySelectorAll('button')].every((node) => node.textContent === 'Prove')")
    rows = card.locator(".proof tbody tr").evaluate_all("all => all.map((r) => [...r.cells].map((c) => c.textContent))")
    return {row[1]: [row[0], *row[2:]] for row in rows}


PROOF = 'article[data-view="shops"] .proof'
ANSWER = """
rows = [dict(row, mean=row["mean"] + 0.002) for row in asked["served"]]
key = [rows[0][name] for name in asked["by"]]
print(json.dumps({"rows": rows, "offsets": {"sales-topic": {"L": {"0": [5, 105], "1": [0, 20]}}}, "segments": ["a", "b"],
    "differences": [{"key": key, "column": "mean", "served": 1, "recomputed": 2}] if WRONG else []}))
"""


def test_a_proof_says_of_each_figure_what_the_server_says(
    board: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = proof_lines(board, tmp_path, monkeypatch, ANSWER.replace("WRONG", "0"))
    assert board.text(".verdict") == "Match: yes" and "120 offsets and 2 log segments read" in board.text(PROOF)
    assert {name: cells[-1] for name, cells in lines.items() if cells[-1] != "equal"} == {"mean": "within rounding"}
    lines = proof_lines(board, tmp_path, monkeypatch, ANSWER.replace("WRONG", "1"))
    assert board.text(".verdict") == "Match: no"
    assert {name: cells[-1] for name, cells in lines.items() if cells[-1] != "equal"} == {"mean": "differs"}


def test_a_server_that_is_away_is_said_and_the_figures_stay(browser: Any, filled: Api) -> None:
    seen = Page(browser, filled)
    seen.wait("() => document.querySelector('[data-tile=\"merged\"] .value').dataset.value > 0")
    seen.away = True
    seen.wait("() => document.querySelector('#status').textContent.includes('not reachable')")
    assert seen.text('[data-tile="merged"] .value') != "–"
    seen.away = False
    seen.wait("() => !document.querySelector('#status').textContent.includes('not reachable')")
    seen.page.close()


def test_nothing_is_complained_of(board: Page) -> None:
    # The page tries by which dimensions a view can be grouped; 422 is the answer where it cannot.
    assert [text for text in board.errors if "422" not in text] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_interface_is_shown_and_can_be_tried(browser: Any, filled: Api, scheme: str) -> None:
    """Under the same Content-Security-Policy as all else: what it forbids would be an error in the console."""
    seen = Page(browser, filled, "/docs", color_scheme=scheme)
    ledger = seen.page.locator(".opblock", has=seen.page.locator('[data-path="/v1/ledger"]'))
    ledger.locator(".opblock-summary").click(timeout=WAIT_MS)
    ledger.get_by_role("button", name="Execute").click()
    answer = ledger.locator(".live-responses-table tbody")
    answer.locator(".response-col_status", has_text="200").wait_for(timeout=WAIT_MS)
    answer.locator(".response-col_description", has_text='"balanced"').first.wait_for(timeout=WAIT_MS)
    assert seen.errors == []
    seen.page.close()
