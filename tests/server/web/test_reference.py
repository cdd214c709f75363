"""The reference of the API at /docs, in a real browser under the page's own policy."""

from axe_playwright_python.sync_playwright import Axe

from tests.server.web.conftest import BrowserServer


def test_the_reference_shows_every_route_and_asks_for_a_key(server: BrowserServer) -> None:
    with server.client() as client:
        document = client.get("/openapi.json").json()
    page = server.open(viewport={"width": 390, "height": 844})
    page.goto(f"{server.address}docs")
    page.wait_for_selector("#routes section")
    shown = page.locator("#routes > section > details > summary").count()
    assert shown == sum(map(len, document["paths"].values()))
    page.get_by_text("/v1/chat/completions").click()
    assert page.get_by_text("response_format").first.is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert Axe().run(page).violations_count == 0
    key = server.rag("keys", "create", "reader", "--scope", "read")
    page.goto(f"{server.address}docs")
    page.fill("input[name=key]", key)
    page.click("button")
    page.wait_for_selector("#routes section")
    assert server.complaints == []
