"""The dashboard in a real browser: Debian's Chromium, headless, driven by Playwright.

Chromium opens no Unix sockets, so the API listens on TCP and asks for a token.
"""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, expect, sync_playwright

from tests.conftest import StartBalancer, StartUpstream
from tests.harness import LoadBalancer, eventually, fetch
from tests.harness.load import Background
from tests.harness.ports import free_port
from tests.harness.settings import settings
from tests.harness.websocket import TEXT, connect, frame, read_frame, serve_echo
from tests.interop.conftest import program
from tests.interop.dashboard_stand_in import HOSTILE, TOKEN, StandIn

pytestmark = pytest.mark.interop

ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WITHIN = 10_000  # ms


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = program("chromium")
    expect.set_options(timeout=WITHIN)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page in a profile of its own; at the end nothing may have gone wrong in it."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    page = context.new_page()
    page.set_default_timeout(WITHIN)
    wrong: list[str] = []

    def console(message: ConsoleMessage) -> None:
        # The browser says of each failed request that it failed, whatever the page makes of it.
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            wrong.append(message.text)

    page.on("console", console)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    yield page
    context.close()
    assert wrong == []


@pytest.fixture
def stand_in() -> Iterator[tuple[StandIn, str]]:
    """An admin API with canned answers, and where it is."""
    api = StandIn()
    stack = AsyncExitStack()

    async def start() -> str:
        runner = web.AppRunner(api.app(), shutdown_timeout=0.1)
        stack.push_async_callback(runner.cleanup)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        return f"http://{host}:{port}/"

    with Background() as background:
        address = background.run(start())
        yield api, str(address)
        background.run(stack.aclose())


def enter(page: Page, address: str, token: str = TOKEN) -> None:
    """Opens the dashboard and gives the token."""
    page.goto(address)
    page.get_by_label("Token", exact=True).fill(token)
    page.keyboard.press("Enter")
    expect(page.locator("#link")).to_have_text("live")


def server_row(page: Page, name: str) -> Locator:
    """The row of a server."""
    return page.locator(".servers tbody tr").filter(
        has=page.get_by_role("rowheader").get_by_text(name, exact=True)
    )


def test_it_asks_for_the_token_and_keeps_it_for_the_tab(page: Page, stand_in: tuple[StandIn, str]) -> None:
    _, address = stand_in
    page.goto(address)
    page.get_by_label("Token", exact=True).fill("wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_text("That token is not the right one.")).to_be_visible()
    page.get_by_label("Token", exact=True).fill(TOKEN)
    page.keyboard.press("Enter")
    expect(page.locator("#link")).to_have_text("live")
    page.reload()
    expect(page.locator("#link")).to_have_text("live")
    expect(page.locator("#token")).to_be_hidden()


def test_a_link_with_the_token_opens_it_without_asking(page: Page, stand_in: tuple[StandIn, str]) -> None:
    _, address = stand_in
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto(f"{address}#token={TOKEN}")
    expect(page.locator("#link")).to_have_text("live")
    expect(page.locator("#verdict-state")).to_have_text("Serving: 2 problems")
    expect(page.locator("#token")).to_be_hidden()
    assert page.evaluate("[location.href, location.hash]") == [address, ""]
    page.reload()
    expect(page.locator("#link")).to_have_text("live")
    assert errors == [], "nothing is asked for without the token"


def test_such_a_link_in_a_tab_that_asks_for_the_token(page: Page, stand_in: tuple[StandIn, str]) -> None:
    _, address = stand_in
    page.goto(address + "#token=wr%C3%B6ng")
    expect(page.locator("#token")).to_be_visible()
    assert page.evaluate("[sessionStorage.length, location.hash]") == [0, ""]
    page.goto(address + "#token=wrong%2B%25")
    expect(page.get_by_text("That token is not the right one.")).to_be_visible()
    assert page.evaluate("[sessionStorage.getItem('shardlb-token'), location.hash]") == ["wrong+%", ""]
    page.goto(f"{address}#token={TOKEN}")
    expect(page.locator("#link")).to_have_text("live")
    expect(page.locator("#token")).to_be_hidden()
    assert page.evaluate("location.href") == address


def test_it_shows_what_the_api_says(page: Page, stand_in: tuple[StandIn, str]) -> None:
    _, address = stand_in
    enter(page, address)
    expect(page.locator("#verdict-state")).to_have_text("Serving: 2 problems")
    expect(page.locator("#problems li")).to_have_text(["chat/c:9000 is down", "worker 1 is wedged"])
    expect(page).to_have_title("▲ 2 problems · shardlb")
    expect(page.locator("#fact-uptime")).to_have_text("1 d 2 h")
    states = ["up", "drain", "down", "ejected", "starting", "maint", "unchecked"]
    expect(page.locator(".servers tbody .badge")).to_have_text(states)
    shapes = page.locator(".servers tbody .badge use").evaluate_all(
        "all => all.map(use => use.getAttribute('href'))"
    )
    assert shapes == [f"#shape-{state}" for state in states], "a state is never told by its colour alone"
    expect(server_row(page, "c:9000")).to_contain_text("3 checks failed: connection refused")
    expect(server_row(page, "e:9000").locator(".cell-weight")).to_have_text("3.4 of 10")
    expect(page.locator("#worker-table tbody tr").nth(1)).to_contain_text("wedged")
    ends = [re.compile("60 days left"), re.compile("3 days left"), re.compile("expired")]
    expect(page.locator(".certificates .badge")).to_have_text(ends)
    expect(page.locator("#spread-body tr").first.locator("td")).to_have_text(["5", "7", "12"])
    expect(page.locator("#spread-body .total td")).to_have_text(["25", "36", "61"])


def test_figures_and_events_move_by_themselves(page: Page, stand_in: tuple[StandIn, str]) -> None:
    api, address = stand_in
    enter(page, address)
    figures = page.locator(".figure-value")
    expect(figures.nth(0)).to_have_text(re.compile(r"^(19\d|20\d)$"))
    expect(figures.nth(1)).to_have_text("0.5 %")
    expect(figures.nth(3)).to_have_text(re.compile(r"^3[23]\d$"))
    expect(server_row(page, "d:9000").locator(".cell-errors")).to_have_text(re.compile(r"^[12]\.\d$"))
    assert page.locator(".figure .curve").first.get_attribute("d")
    expect(page.locator("#event-list li")).to_have_count(2)
    api.events.append(("server-up", "chat/c:9000 is up"))
    expect(page.locator("#event-list li").first).to_contain_text("chat/c:9000 is up")


def test_names_are_data(page: Page, stand_in: tuple[StandIn, str]) -> None:
    api, address = stand_in
    api.problems = (HOSTILE,)
    api.events.append((HOSTILE, HOSTILE))
    enter(page, address)
    expect(server_row(page, HOSTILE)).to_contain_text("unchecked")
    expect(page.locator("#event-list")).to_contain_text(HOSTILE)
    server_row(page, HOSTILE).get_by_role("button", name="Drain").click()
    expect(page.get_by_role("dialog")).to_contain_text(f"Drain chat/{HOSTILE}?")
    page.get_by_role("button", name="Drain", exact=True).click()
    expect(page.locator("#said")).to_have_text(f"chat/{HOSTILE} drains")
    assert api.changes == [(HOSTILE, {"admin": "drain"})]
    assert page.locator("img").count() == 0


def test_no_markup_but_its_own_runs(browser: Browser, stand_in: tuple[StandIn, str]) -> None:
    _, address = stand_in
    page = browser.new_page()
    page.goto(address)
    refused = page.evaluate(
        """() => {
            try { document.body.innerHTML = "<b>no</b>"; } catch (error) { return error.name; }
        }"""
    )
    page.close()
    assert refused == "TypeError"


def test_a_server_is_drained_by_keyboard_alone(page: Page, stand_in: tuple[StandIn, str]) -> None:
    api, address = stand_in
    enter(page, address)
    press_to(page, "Drain: chat/a:9000")
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("12 tunnels are asked to move, over the time of drain.spread.")
    expect(dialog).to_contain_text("2 requests in flight end as usual.")
    expect(dialog.get_by_role("button", name="Cancel")).to_be_focused()
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    assert api.changes == []
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#said")).to_have_text("chat/a:9000 drains")
    assert api.changes == [("a:9000", {"admin": "drain"})]
    expect(server_row(page, "a:9000").locator(".badge")).to_have_text("drain")
    button = page.get_by_role("button", name="Drain: chat/a:9000")
    expect(button).to_be_focused()
    expect(button).to_have_attribute("aria-pressed", "true")


def test_a_drain_can_leave_the_tunnels_alone(page: Page, stand_in: tuple[StandIn, str]) -> None:
    api, address = stand_in
    enter(page, address)
    server_row(page, "a:9000").get_by_role("button", name="Drain").click()
    page.get_by_label("Leave its tunnels where they are").check()
    page.get_by_role("button", name="Drain", exact=True).click()
    expect(page.locator("#said")).to_have_text("chat/a:9000 drains")
    assert api.changes == [("a:9000", {"admin": "drain", "keep_tunnels": True})]


def test_what_becomes_of_tunnels(page: Page, stand_in: tuple[StandIn, str]) -> None:
    """Which are crash-safe, how many moved, were lost, wait to be closed or for admission."""
    api, address = stand_in
    enter(page, address)
    tunnels = page.locator(".figure").filter(has_text="of them crash-safe")
    expect(tunnels.locator(".figure-note")).to_have_text("56 of them crash-safe")
    expect(server_row(page, "b:9000")).to_contain_text(re.compile(r"12 tunnels to move within 1[45] min"))
    expect(page.locator("#restarts")).to_have_text("1 restart since the start (died 1), 2 of keepers")
    expect(page.locator("#moves")).to_have_text("")
    expect(page.locator(".pool-facts")).not_to_contain_text("admission")
    api.migrations = {"crash": {"ok": 1200, "unproved": 1}, "rebalance": {"ok": 34}, "upgrade": {"ok": 0}}
    api.closing, api.waiting = 7, 2500
    moved = "1,234 moved since the start (crash 1,200, rebalance 34), 1 lost"
    expect(page.locator("#moves")).to_have_text(f"{moved}. 7 wait for their turn to be closed")
    expect(page.locator(".pool-facts")).to_contain_text("2,500 wait for admission at 500/s")
    page.get_by_text("List of tunnels").click()
    rows = page.locator("#tunnel-rows tr")
    expect(rows.nth(0)).to_contain_text("plain text, crash-safe")
    expect(rows.nth(1)).to_contain_text("TLS, not crash-safe")


def press_to(page: Page, name: str) -> None:
    """Presses Tab until the control with this name has the focus."""
    for _ in range(100):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.getAttribute('aria-label')") == name:
            return
    raise AssertionError(f"Tab does not lead to {name}")


def test_a_refusal_is_shown_and_can_be_tried_again(page: Page, stand_in: tuple[StandIn, str]) -> None:
    api, address = stand_in
    api.refuse = "a reload is under way"
    enter(page, address)
    server_row(page, "a:9000").get_by_role("button", name="Maint").click()
    page.get_by_role("button", name="Into maintenance").click()
    expect(page.get_by_role("alert").filter(has_text="a reload is under way")).to_be_visible()
    api.refuse = ""
    page.get_by_role("button", name="Into maintenance").click()
    expect(page.locator("#said")).to_have_text("chat/a:9000 is in maintenance")


def test_rows_that_have_the_focus_stay(page: Page, stand_in: tuple[StandIn, str]) -> None:
    api, address = stand_in
    enter(page, address)
    button = page.get_by_role("button", name="Ready: chat/e:9000")
    button.focus()
    del api.servers[0]
    api.servers.reverse()
    api.servers.sort(key=lambda view: view.name != "e:9000")
    expect(server_row(page, "a:9000")).to_have_count(0)
    expect(page.locator(".servers tbody th").first).to_contain_text("e:9000")
    expect(button).to_be_focused()


def test_silence_is_told_and_ends(page: Page, stand_in: tuple[StandIn, str]) -> None:
    api, address = stand_in
    enter(page, address)
    expect(page.locator("#event-list li")).to_have_count(2)
    api.silent = True
    expect(page.locator("#link")).to_have_text(re.compile(r"no answer since \d+ s"))
    expect(page).to_have_title("✕ no answer · shardlb")
    expect(page.locator("body")).to_have_class("stale")
    expect(server_row(page, "a:9000")).to_contain_text("up")
    api.control_pid += 1
    api.events = [("server-up", "seen by the new control process")]
    api.silent = False
    expect(page.locator("#link")).to_have_text("live")
    expect(page.locator("body")).not_to_have_class("stale")
    expect(page.locator("#event-list")).to_contain_text("seen by the new control process")


def test_tunnels_are_listed_by_page_and_closed(page: Page, stand_in: tuple[StandIn, str]) -> None:
    api, address = stand_in
    enter(page, address)
    page.get_by_text("List of tunnels").click()
    rows = page.locator("#tunnel-rows tr")
    expect(rows).to_have_count(50)
    expect(page.locator("#tunnel-count")).to_contain_text("120 tunnels. 1 to 50 are shown")
    page.get_by_role("button", name="Next page").click()
    expect(rows.first).to_contain_text("192.0.2.50")
    page.get_by_label("Client address").fill("192.0.2.11")
    page.get_by_role("button", name="Show", exact=True).click()
    expect(rows).to_have_count(11)
    expect(rows.nth(1)).to_contain_text("110 messages")
    page.get_by_role("button", name="Close the tunnel of 192.0.2.110").click()
    page.get_by_label("Close code").select_option("1012")
    page.get_by_label("Reason for the client").fill("moving")
    page.get_by_role("button", name="Close", exact=True).click()
    expect(page.locator("#said")).to_have_text("1 tunnel closing")
    assert api.closes == [{"ids": ["0-100-110"], "code": 1012, "reason": "moving"}]
    page.get_by_role("button", name="Close all of these").click()
    expect(page.get_by_role("dialog")).to_contain_text("Close 11 tunnels?")


def test_the_configuration_is_shown_and_a_failed_reload_is_told(
    page: Page, stand_in: tuple[StandIn, str]
) -> None:
    _, address = stand_in
    enter(page, address)
    page.get_by_text("Active configuration").click()
    expect(page.locator("#configuration-text")).to_contain_text('name = "chat"')
    page.get_by_role("button", name="Reload from the file").click()
    page.get_by_role("button", name="Reload", exact=True).click()
    expect(page.locator("#question-error")).to_have_text("Not reloaded: line 3: no")


WIDER = """() => [...document.querySelectorAll(".servers button, .servers td, .figure-value, .facts dd")]
    .filter(node => node.scrollWidth > node.clientWidth + 1
        || node.getBoundingClientRect().right > innerWidth)
    .map(node => node.textContent)"""


def test_nothing_scrolls_sideways(page: Page, stand_in: tuple[StandIn, str]) -> None:
    _, address = stand_in
    enter(page, address)
    page.get_by_text("List of tunnels").click()
    page.get_by_text("Active configuration").click()
    expect(page.locator("#tunnel-rows tr")).to_have_count(50)
    for width in (320, 360, 768, 1024, 1280):
        page.set_viewport_size({"width": width, "height": 740})
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.evaluate(WIDER) == [], f"cut off at {width} px"


NAMELESS = """() => [...document.querySelectorAll("button, a, input, select, summary, [tabindex='0'], table")]
    .filter(node => node.id !== "question-go")  // named by each question
    .filter(node => !(node.getAttribute("aria-label") || node.textContent.trim()
        || node.labels?.[0]?.textContent || document.getElementById(node.getAttribute("aria-labelledby"))))
    .map(node => node.outerHTML)"""


def test_each_control_has_a_name(page: Page, stand_in: tuple[StandIn, str]) -> None:
    _, address = stand_in
    enter(page, address)
    page.get_by_text("List of tunnels").click()
    expect(page.locator("#tunnel-rows tr")).to_have_count(50)
    assert page.evaluate(NAMELESS) == []
    names = page.locator("button:visible").evaluate_all(
        "all => all.map(node => node.ariaLabel || node.innerText)"
    )
    assert len(set(names)) == len(names), (
        "two buttons with one name are one to who can't see where they stand"
    )


def test_lists_are_bounded(page: Page, stand_in: tuple[StandIn, str]) -> None:
    api, address = stand_in
    api.events = [("server-up", f"number {number}") for number in range(1000)]
    enter(page, address)
    expect(page.locator("#event-list li").first).to_contain_text("number 999")
    assert page.locator("#event-list li").count() == 200


# --- over a real load balancer ------------------------------------------------------------------------


class Api:
    """The admin API of a running load balancer, as a script asks it."""

    def __init__(self, port: int) -> None:
        self.address = ("127.0.0.1", port)
        self.page = f"http://127.0.0.1:{port}/"

    def get(self, path: str) -> Any:
        """The JSON at `path`."""
        headers = {"Authorization": f"Bearer {TOKEN}"}
        response = fetch(self.address, f"/api/v1/{path}", host=self.page[7:-1], headers=headers)
        assert response.status == 200, response
        return json.loads(response.body)


Running = tuple[LoadBalancer, Api]


@pytest.fixture
def running(balancer: StartBalancer, upstream: StartUpstream, tmp_path: Path) -> Running:
    """A load balancer over two WebSocket echo servers, and its API."""
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    servers = [
        {"name": name, "address": upstream(serve_echo, name=name).address} for name in ("blue", "green")
    ]
    port = free_port()
    admin = {"listen": f"127.0.0.1:{port}", "token_file": str(token)}
    return balancer(settings(servers, admin=admin)), Api(port)


def test_what_happens_is_seen_at_once(page: Page, running: Running) -> None:
    lb, api = running
    enter(page, api.page)
    expect(page.locator("#verdict-state")).to_have_text("Serving: all is well")
    expect(page.locator("#worker-table tbody tr")).to_have_count(2)
    tunnels = page.locator(".figure-value").nth(2)
    expect(tunnels).to_have_text("0")
    with closing(connect(lb.address)) as first, closing(connect(lb.address)) as second:
        expect(tunnels).to_have_text("2")
        expect(page.locator("#spread-body .total td").last).to_have_text("2")
        for client in (first, second):
            client.send(frame(b"hello", TEXT, masked=True))
            assert read_frame(client).payload == b"hello"
        expect(page.locator(".figure-value").nth(3)).not_to_have_text("0")
    expect(tunnels).to_have_text("0")
    for _ in range(20):
        assert fetch(lb.address).status == 200
    requests = page.locator(".figure-value").nth(0)
    expect(requests).not_to_have_text("0")
    lb.reload()
    expect(page.locator("#fact-generation")).to_have_text("2")
    expect(page.locator("#event-list")).to_contain_text(re.compile("reload|generation", re.IGNORECASE))


def test_a_drain_click_drains(page: Page, running: Running) -> None:
    lb, api = running
    enter(page, api.page)
    with closing(connect(lb.address)) as tunnel:
        tunnel.send(frame(b"before", TEXT, masked=True))
        assert read_frame(tunnel).payload == b"before"
        shown = page.locator("#spread-body tr", has=page.locator("td", has_text="1")).first
        name = shown.locator("th").inner_text().removeprefix("main/")
        server_row(page, name).get_by_role("button", name="Drain").click()
        expect(page.get_by_role("dialog")).to_contain_text("1 tunnel is asked to move")
        page.get_by_label("Leave its tunnels where they are").check()
        page.get_by_role("button", name="Drain", exact=True).click()
        expect(page.locator("#said")).to_have_text(f"main/{name} drains")
        assert api.get(f"pools/main/servers/{name}")["admin"] == "drain"
        expect(server_row(page, name).locator(".badge")).to_have_text("drain")
        expect(page.locator("#event-list")).to_contain_text(f"main/{name} is set to drain")
        assert {fetch(lb.address).text for _ in range(12)} == {"green" if name == "blue" else "blue"}
        tunnel.send(frame(b"after", TEXT, masked=True))
        assert read_frame(tunnel).payload == b"after"
    server_row(page, name).get_by_role("button", name="Ready").click()
    page.get_by_role("button", name="Set to ready").click()
    expect(server_row(page, name).locator(".badge")).not_to_have_text("drain")
    eventually(lambda: fetch(lb.address).text == name, "it is used again")


def test_a_tunnel_is_closed_with_a_code(page: Page, running: Running) -> None:
    lb, api = running
    enter(page, api.page)
    with closing(connect(lb.address)) as tunnel:
        expect(page.locator(".figure-value").nth(2)).to_have_text("1")
        page.get_by_text("List of tunnels").click()
        page.get_by_role("button", name="Close the tunnel of").click()
        page.get_by_label("Close code").select_option("")
        page.get_by_label("Code", exact=True).fill("4001")
        page.get_by_label("Reason for the client").fill("moving")
        page.get_by_role("button", name="Close", exact=True).click()
        expect(page.locator("#said")).to_have_text("1 tunnel closing")
        received = read_frame(tunnel)
        assert (received.close_code, received.payload[2:]) == (4001, b"moving")


def test_a_new_control_process_is_followed(page: Page, running: Running) -> None:
    lb, api = running
    enter(page, api.page)
    before = api.get("status")["control_pid"]
    os.kill(before, signal.SIGKILL)

    def replaced() -> bool:
        try:
            return bool(api.get("status")["control_pid"] != before)
        except ConnectionError:
            return False

    eventually(replaced, "a new control process answers")
    expect(page.locator("#link")).to_have_text("live")
    lb.reload()
    expect(page.locator("#fact-generation")).to_have_text("2")
    server_row(page, "blue").get_by_role("button", name="Maint").click()
    page.get_by_role("button", name="Into maintenance").click()
    expect(page.locator("#event-list li").first).to_contain_text("main/blue is set to maint")
