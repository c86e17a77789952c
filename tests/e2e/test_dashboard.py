"""Does the dashboard show live figures, by itself, on every screen? Chromium looks at a running serving layer."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.e2e.conftest import PATIENCE

sync_api = pytest.importorskip("playwright.sync_api")

CHROMIUM = (
    os.environ.get("CHROMIUM")
    or shutil.which("chromium")
    or shutil.which("chromium-browser")
    or shutil.which("google-chrome")
)
WAIT_MS = 30_000
MERGED = '[data-tile="merged"] [data-value]:not([data-value=""])'
COUNTS = """() => ["batch", "speed", "merged"].map((name) => {
  const node = document.querySelector(`[data-tile="${name}"] .value`);
  return [Number(node.dataset.value), Number(node.textContent.replaceAll(",", ""))];
})"""

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium; set CHROMIUM to its path")


class Seen:
    """What a page asked for and complained about."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.requests: list[str] = []
        self.errors: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield found
        found.close()


def opened(browser: Any, url: str, width: int = 1280, scheme: str = "light") -> Seen:
    """A page that shows its first figures."""
    page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    seen = Seen(page)
    page.goto(url)
    page.wait_for_selector(MERGED, timeout=WAIT_MS)
    page.wait_for_selector("article canvas", timeout=WAIT_MS)
    return seen


@pytest.fixture(scope="module")
def desktop(browser: Any, serving_url: str) -> Iterator[Seen]:
    seen = opened(browser, serving_url)
    yield seen
    seen.page.close()


def counts(page: Any) -> list[int]:
    """Batch, speed and merged of one moment."""
    pairs = page.evaluate(COUNTS)
    assert all(value == text for value, text in pairs), pairs
    return [int(value) for value, _ in pairs]


def test_batch_and_speed_add_up_to_merged(desktop: Seen) -> None:
    batch, speed, merged = counts(desktop.page)
    assert batch + speed == merged > 0


def test_numbers_move(desktop: Seen) -> None:
    before = counts(desktop.page)[2]
    deadline = time.monotonic() + PATIENCE
    while (after := counts(desktop.page)) and after[2] <= before and time.monotonic() < deadline:
        desktop.page.wait_for_timeout(250)
    assert after[2] > before
    assert after[0] + after[1] == after[2]


def test_every_view_of_the_domain_has_one_chart_with_rows(desktop: Seen, serving_url: str) -> None:
    page = desktop.page
    views = page.evaluate("async () => (await (await fetch('/v1/views')).json()).views")
    domain = page.evaluate("() => decodeURIComponent(location.hash.slice(1))") or views[0]["domain"]
    wanted = [view["view"] for view in views if view["domain"] == domain]
    assert page.eval_on_selector_all("article[data-view]", "all => all.map((one) => one.dataset.view)") == wanted
    for name in wanted:
        card = page.locator(f'article[data-view="{name}"]')
        sync_api.expect(card.locator("canvas")).to_have_count(1, timeout=WAIT_MS)
        sync_api.expect(card.locator(".said")).to_have_text(re.compile(r"\d"), timeout=WAIT_MS)
        assert urlsplit(card.get_by_role("link", name="API call").get_attribute("href")).path == f"/v1/views/{name}"
        assert "failed" not in (card.get_attribute("class") or ""), card.locator(".said").text_content()


def test_ledger_names_every_topic(desktop: Seen) -> None:
    page = desktop.page
    rows = page.evaluate("async () => (await (await fetch('/v1/ledger')).json()).domains[0].partitions")
    shown = page.eval_on_selector_all("#ledger tbody th", "all => all.map((one) => one.textContent)")
    assert shown == sorted({row["topic"] for row in rows})


def test_unknown_fields_are_shown_where_there_are_some(browser: Any, serving_url: str) -> None:
    """The live ledger, with fields added to what it says, which no generator sends."""
    said: dict[str, dict[str, int]] = {}

    def answered(route: Any) -> None:
        body = route.fetch().json()
        for domain in body["domains"]:
            assert domain["unknown_fields"] == {}
            domain["unknown_fields"] = said
        route.fulfill(json=body)

    seen = opened(browser, serving_url)
    block = seen.page.locator("#unknown")
    assert block.is_hidden()
    seen.page.route("**/v1/ledger", answered)
    said |= {"video_topic": {"codec": 1_234, "<b>x</b>": 2}, "auth_topic": {"agent": 1}}
    sync_api.expect(block).to_be_visible(timeout=WAIT_MS)
    rows = block.locator("tbody tr").evaluate_all(
        "all => all.map((row) => [...row.cells].map((one) => one.textContent))"
    )
    assert rows == [["auth_topic", "agent", "1"], ["video_topic", "codec", "1,234"], ["video_topic", "<b>x</b>", "2"]]
    said.clear()
    sync_api.expect(block).to_be_hidden(timeout=WAIT_MS)
    seen.page.unroute_all(behavior="ignoreErrors")
    assert not seen.errors
    seen.page.close()


def test_proof_shows_served_and_recomputed_figures(desktop: Seen) -> None:
    card = desktop.page.locator("article[data-view]").first
    card.get_by_role("button", name="Prove").click()
    sync_api.expect(card.locator(".verdict")).to_have_text("Match: yes", timeout=60_000)
    assert card.locator(".proof tbody td").count() > 3


def test_phone_needs_no_horizontal_scroll(browser: Any, serving_url: str) -> None:
    seen = opened(browser, serving_url, width=390)
    assert seen.page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
    assert not seen.errors
    seen.page.close()


def test_dark_scheme_is_applied(browser: Any, serving_url: str, desktop: Seen) -> None:
    light = "() => getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + Number(b), 0)"
    seen = opened(browser, serving_url, scheme="dark")
    assert seen.page.evaluate(light) < 150 < 600 < desktop.page.evaluate(light)
    assert not seen.errors
    seen.page.close()


def test_an_unreachable_server_is_said_and_the_figures_stay(browser: Any, serving_url: str) -> None:
    seen = opened(browser, serving_url)
    seen.page.route("**/v1/**", lambda route: route.abort())
    sync_api.expect(seen.page.locator("#status")).to_contain_text("not reachable", timeout=WAIT_MS)
    assert counts(seen.page)[2] > 0
    seen.page.unroute_all(behavior="ignoreErrors")
    sync_api.expect(seen.page.locator("#status")).not_to_contain_text("not reachable", timeout=WAIT_MS)
    seen.page.close()


def test_nothing_comes_from_elsewhere_and_nothing_is_complained_of(desktop: Seen, serving_url: str) -> None:
    origin = urlsplit(serving_url)[:2]
    assert [
        url for url in desktop.requests if urlsplit(url)[:2] != origin and not url.startswith(("data:", "blob:"))
    ] == []
    assert desktop.errors == []
