"""The page that shows pools live, in a real browser and under real servers."""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pooling.tools.dashboard import DashboardServer
from pooling.web.dashboard import DashboardEndpoint
from tests.integration.tools import ROOT, environment, wait_until
from tests.servers import requires

TOKEN = "token-of-the-test"
WITHIN = 3.0  # seconds in which an exhausted pool shows
WORKERS = 4
EVIL = '<script>window.hacked=1</script><img src=x onerror="window.hacked=1"> & "quoted"'


# -- a browser -------------------------------------------------------------------------------------


class Browser:
    """A headless Chromium."""

    def __init__(self, program: str, driver: str) -> None:
        from selenium import webdriver
        from selenium.webdriver.chrome.options import Options
        from selenium.webdriver.chrome.service import Service

        options = Options()
        options.binary_location = program
        for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(driver))
        self.driver.set_page_load_timeout(60)

    def screen(self, width: int, height: int = 900, scheme: str = "light") -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def press(self, *keys: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def tab_back(self) -> None:
        from selenium.webdriver.common.action_chains import ActionChains
        from selenium.webdriver.common.keys import Keys

        ActionChains(self.driver).key_down(Keys.SHIFT).send_keys(Keys.TAB).key_up(Keys.SHIFT).perform()

    def pids(self) -> list[int]:
        return list(self.run("return state.view.processes.map(one => one.pid)"))

    def text(self, selector: str = "body") -> str:
        return str(self.run("return document.querySelector(arguments[0])?.innerText ?? ''", selector))

    def all(self, selector: str, what: str = "textContent") -> list[str]:
        script = "return [...document.querySelectorAll(arguments[0])].map(one => one[arguments[1]])"
        return list(self.run(script, selector, what))

    def state(self, pool: str) -> str:
        script = "return [...document.querySelectorAll('[data-pool]')].find(one => one.dataset.pool === arguments[0])"
        return str(self.run(f"{script}?.dataset.state", pool))

    def show(self, url: str) -> None:
        self.driver.get(url)

    def complaints(self) -> list[str]:
        """Return what is in the console since the last call, violations of the policy included."""
        return [str(line["message"]) for line in self.driver.get_log("browser")]

    def close(self) -> None:
        self.driver.quit()


@pytest.fixture(scope="module")
def _browser() -> Iterator[Browser]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    requires("Chromium", program, "apt-get install chromium")
    requires("chromedriver", driver, "apt-get install chromium-driver")
    requires("Selenium", importlib.util.find_spec("selenium"), "pip install selenium")
    assert program is not None and driver is not None
    browser = Browser(program, driver)
    try:
        yield browser
    finally:
        browser.close()


@pytest.fixture
def browser(_browser: Browser) -> Iterator[Browser]:
    """A browser with an empty console, which must stay empty."""
    _browser.show("about:blank")
    _browser.screen(1280)
    _browser.complaints()
    yield _browser
    complaints = _browser.complaints()
    _browser.show("about:blank")
    assert complaints == []


# -- views made by hand ----------------------------------------------------------------------------


def a_pool(name: str, **more: Any) -> dict[str, Any]:
    now = time.time()
    series = [None] * 20 + [float(number % 7) for number in range(40)]
    return {
        "name": name, "kind": "PostgresPool", "processes": 2, "idle": 1, "in_use": 3, "size": 4, "max_size": 20,
        "waiting": 0, "oldest_wait": 0.0, "state": "up", "last_error": None, "last_error_at": None,
        "servers": [], "circuits_open": 0, "role": None,
        "leases_per_second": 12.5, "timeouts_per_minute": 0.0, "wait": {"p50": 0.0, "p99": 0.004},
        "use": {"p50": 0.001, "p99": 0.02}, "by_process": [{"pid": 12, "in_use": 2, "size": 2, "waiting": 0}],
        "holders": [
            {"where": "shop/views.py:12 orders()", "thread": "MainThread", "pid": 12, "since": now - 4, "seconds": 4.0}
        ],
        "minutes": {
            "start": now - 3600, "step": 60.0,
            **dict.fromkeys(("in_use", "waiting", "leases", "timeouts", "p99_wait"), series),
        },
        **more,
    }  # fmt: skip


def a_view(pools: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    now = time.time()
    process = {
        "pid": 12, "command": "gunicorn: worker [shop]", "cpu": 0.12, "memory": 48_000_000, "threads": 9,
        "descriptors": 31, "started": now - 9000, "age": 0.4,
    }  # fmt: skip
    event = {"pool": pools[0]["name"] if pools else "db", "kind": "outage", "start": now - 100, "end": None}
    event = {**event, "count": 3, "text": "refused", "pid": 12}
    return {"time": now, "processes": [process], "pools": pools, "events": [event], **more}


EXHAUSTED = {
    "state": "exhausted", "in_use": 20, "idle": 0, "waiting": 7, "oldest_wait": 4.7, "timeouts_per_minute": 3.0
}  # fmt: skip
DOWN = {"state": "down", "in_use": 0, "idle": 0, "last_error": "ConnectionError: refused " * 20}


def everything() -> dict[str, Any]:
    """All states, long and strange names."""
    down = {**DOWN, "last_error_at": time.time() - 60}
    pools = [a_pool("db"), a_pool("full", **EXHAUSTED), a_pool("gone", **down), a_pool("shut", state="closed")]
    names = ["a_long_name_without_a_space_" * 5, *(f"tenant {number}" for number in range(12))]
    return a_view([*pools, *(a_pool(name) for name in names)])


class Site:
    """A server whose views are made by hand; its view and whether it answers may change.

    Attributes:
        polls: When a view was asked for, as of ``time.monotonic``.
    """

    def __init__(self, folder: Path, token: str | None = None, port: int = 0) -> None:
        self.view: Callable[[], dict[str, Any]] = everything
        self.polls: list[float] = []
        self.admits = token is None
        self.server = DashboardServer("127.0.0.1", port, folder, token)
        site = self

        class Views:
            def view(self) -> dict[str, Any]:
                site.polls.append(time.monotonic())
                return site.view()

        viewer: Any = Views
        endpoint = DashboardEndpoint(token=TOKEN, admit=lambda environ: site.admits, viewer=viewer, scope="directory")

        def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
            status, headers, body = endpoint.answer(environ)
            start_response(status, headers)
            return [body]

        self.server.set_app(application)
        self.url = self.server.url
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.close()


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path, TOKEN)
    yield made
    made.close()


def test_everything_shows(browser: Browser, site: Site) -> None:
    browser.show(site.url)
    wait_until(lambda: browser.state("db") == "up")
    assert browser.text("#standing").split() == ["✕", "1", "down,", "1", "exhausted"]
    assert browser.driver.title == "✕ 1 down, 1 exhausted – Pools"
    order = browser.all("[data-pool] .label")
    assert order[:3] == ["gone", "full", "a_long_name_without_a_space_" * 5] and order[-1] == "shut"
    row = browser.text('[data-pool="full"]')
    for part in ("▲ exhausted", "20 of 20", "0 idle", "7", "4.7 s", "13", "4.0 ms", "20 ms", "1.0 ms", "3"):
        assert part in row
    assert "ConnectionError: refused" in browser.text('[data-pool="gone"]')
    assert browser.text("#holders") == "Holders" and "shop/views.py:12 orders()" in browser.text(".halves")
    events = browser.text(".events")
    assert "outage" in events and re.search(r"ongoing for 10\d s, 3 times", events) and "refused" in events
    assert "gunicorn: worker [shop]" in browser.text() and "12 %" in browser.text() and "48 MB" in browser.text()
    assert "In use of db, last hour: highest 6, last 4" in browser.all("svg[role=img]", "ariaLabel")


def test_nothing_to_show(browser: Browser, site: Site) -> None:
    site.view = lambda: a_view([], processes=[], events=[])
    browser.show(site.url)
    wait_until(lambda: "No pool is in use yet" in browser.text())
    assert "No process that shares this directory" in browser.text()
    site.view = lambda: a_view([a_pool("db", in_use=0, holders=[])], events=[])
    wait_until(lambda: browser.state("db") == "up")
    assert "No outage, exhaustion, leak or drain so far." in browser.text() and "Nothing is held" in browser.text()


def test_texts_are_never_html(browser: Browser, site: Site) -> None:
    holder = {"where": EVIL, "thread": EVIL, "pid": 12, "since": time.time(), "seconds": 0.0}
    pool = a_pool(EVIL, kind=EVIL, last_error=EVIL, last_error_at=time.time(), holders=[holder])
    event = {"pool": EVIL, "kind": EVIL, "start": time.time(), "end": time.time(), "count": 1, "text": EVIL, "pid": 12}
    process = {**a_view([])["processes"][0], "command": EVIL}
    site.view = lambda: a_view([pool], events=[event], processes=[process])
    browser.show(site.url)
    wait_until(lambda: browser.state(EVIL) == "up")
    browser.run("document.querySelector('td.name button').click()")
    wait_until(lambda: browser.all("tr.more"))
    assert browser.run("return window.hacked") is None
    assert browser.all("script", "id") == [""] and browser.all("img") == []
    assert browser.text().count(EVIL) >= 8


def test_policy_is_enforced(browser: Browser, site: Site) -> None:
    browser.show(site.url)
    wait_until(lambda: browser.state("db") == "up")
    inline = "const s = document.createElement('script'); s.append('window.ran = 1'); document.body.append(s);"
    for attempt in (
        "try { document.body.innerHTML += '<b>no</b>'; return 'let'; } catch { return 'refused'; }",
        f"try {{ {inline} }} catch {{}} return window.ran ? 'let' : 'refused';",
        "const i = new Image(); i.src = 'http://127.0.0.1:9/x.png'; document.body.append(i); return 'refused';",
    ):
        assert browser.run(attempt) == "refused"
    wait_until(lambda: len(browser.complaints()) >= 1)
    time.sleep(0.2)
    assert all("Content Security Policy" in line or "TrustedHTML" in line for line in browser.complaints())


SCREENS = [(320, 640), (360, 740), (768, 1000), (1100, 800), (1280, 900), (2000, 1100)]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), SCREENS, ids=lambda number: str(number))
def test_screen(browser: Browser, site: Site, width: int, height: int, scheme: str) -> None:
    """Nothing is wider than the screen, and every text can be read against its background (WCAG 2.2: 4.5 to 1)."""
    browser.screen(width, height, scheme)
    browser.show(site.url)
    wait_until(lambda: browser.state("gone") == "down")
    buttons = ".is-bad td.name button, .is-warn td.name button"
    browser.run("document.querySelectorAll(arguments[0]).forEach(one => one.click())", buttons)
    wait_until(lambda: len(browser.all("tr.more")) == 2)
    found = browser.run(MEASURE)
    assert found["at"] == width and found["wide"] <= width, found["over"]
    assert found["background"] == ("rgb(245, 246, 248)" if scheme == "light" else "rgb(16, 21, 28)")
    assert found["texts"] > 200 and found["faint"] == []


MEASURE = """
const over = [...document.querySelectorAll('main *')].filter(one => one.getBoundingClientRect().right > innerWidth + 1);
function channels(text) { return text.match(/[\\d.]+/g).map(Number); }
function light([r, g, b]) {
  const [x, y, z] = [r, g, b].map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * x + 0.7152 * y + 0.0722 * z;
}
function behind(node) {
  for (let at = node; at; at = at.parentElement) {
    const found = channels(getComputedStyle(at).backgroundColor);
    if (found.length < 4 || found[3] === 1) return found;
  }
}
let texts = 0; const faint = [];
const walk = document.createTreeWalker(document.querySelector('main'), NodeFilter.SHOW_TEXT);
while (walk.nextNode()) {
  const box = walk.currentNode.parentElement;
  if (!walk.currentNode.data.trim() || !box.checkVisibility({visibilityProperty: true})) continue;
  if (box.tagName === 'OPTION') continue;
  texts += 1;
  const [a, b] = [light(channels(getComputedStyle(box).color)), light(behind(box))].sort((a, b) => b - a);
  const contrast = (a + 0.05) / (b + 0.05);
  if (contrast < 4.5) faint.push(`${walk.currentNode.data}: ${contrast.toFixed(2)}`);
}
return {wide: document.documentElement.scrollWidth, at: innerWidth, over: over.map(one => one.outerHTML.slice(0, 120)),
        background: getComputedStyle(document.body).backgroundColor, texts, faint};
"""

FOCUS = """
const at = document.activeElement, style = getComputedStyle(at), box = at.getBoundingClientRect();
return {name: at.innerText.trim(), id: at.id, inside: box.top >= 0 && box.bottom <= innerHeight,
        outline: style.outlineStyle === 'none' ? 0 : parseFloat(style.outlineWidth)};
"""


FOCUSED_POOL = "return document.activeElement.closest('[data-pool]')?.dataset.pool"


def test_keyboard(browser: Browser, site: Site) -> None:
    """Everything can be reached, seen to be focused, and used; the focus stays through polls and sorting."""
    from selenium.webdriver.common.keys import Keys

    site.view = lambda: a_view([a_pool("b", in_use=1), a_pool("a", in_use=9), a_pool("c", in_use=5)])
    browser.show(site.url)
    wait_until(lambda: browser.state("a") == "up")
    names = []
    for _ in range(13):
        browser.press(Keys.TAB)
        focus = browser.run(FOCUS)
        assert focus["outline"] >= 2 and focus["inside"], focus
        names.append(re.sub(r"[\s▲▼▸]+", " ", focus["name"]).strip())
    assert names == [
        "Pause", "Pool", "State", "In use", "Waiting", "Oldest wait", "Leases/s", "Wait p99", "Use p99", "Timeouts/min",
        "a", "b", "c",
    ]  # fmt: skip

    polls = len(site.polls)
    wait_until(lambda: len(site.polls) > polls + 2)
    assert browser.run(FOCUSED_POOL) == "c"  # not lost when the figures changed
    browser.press(Keys.ENTER)
    wait_until(lambda: browser.all('[data-pool="c"] tr.more'))
    assert browser.run("return document.activeElement.ariaExpanded") == "true"
    controlled = "document.getElementById(document.activeElement.getAttribute('aria-controls'))"
    assert browser.run(f"return {controlled}.className") == "more"
    browser.press(Keys.SPACE)
    wait_until(lambda: not browser.all("tr.more"))

    for _ in range(9):
        browser.tab_back()
    assert browser.run(FOCUS)["id"] == "sort-in_use"
    for key, expected, order in ((Keys.ENTER, "descending", "acb"), (Keys.SPACE, "ascending", "bca")):
        browser.press(key)
        wait_until(lambda order=order: "".join(browser.all("[data-pool] .label")) == order)  # type: ignore[misc]
        assert browser.run("return document.activeElement.closest('th').getAttribute('aria-sort')") == expected
        assert len(browser.all("th[aria-sort]")) == 1 and browser.run(FOCUS)["id"] == "sort-in_use"
    polls = len(site.polls)
    wait_until(lambda: len(site.polls) > polls + 1)
    assert "".join(browser.all("[data-pool] .label")) == "bca"


def test_focus_stays_when_the_order_changes(browser: Browser, site: Site) -> None:
    uses = {"a": 1, "b": 2}
    site.view = lambda: a_view([a_pool(name, in_use=used) for name, used in uses.items()])
    browser.show(site.url)
    wait_until(lambda: browser.state("a") == "up")
    browser.run("document.getElementById('sort-in_use').click()")
    browser.run("document.querySelector('[data-pool=a] button').focus()")
    wait_until(lambda: browser.all("[data-pool] .label") == ["b", "a"])
    uses["a"] = 3
    wait_until(lambda: browser.all("[data-pool] .label") == ["a", "b"])
    assert browser.run(FOCUSED_POOL) == "a"


def test_roles_for_readers_of_the_screen(browser: Browser, site: Site) -> None:
    """Where a narrow screen shows rows as blocks, they are still a table; changes of state are said once."""
    browser.screen(360)
    pools = [a_pool("db")]
    site.view = lambda: a_view(pools)
    browser.show(site.url)
    wait_until(lambda: browser.state("db") == "up")
    tree = browser.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    roles = [node["role"]["value"] for node in tree if not node["ignored"]]
    assert {"table", "row", "cell", "heading", "main", "status"} <= set(roles)
    browser.run(
        "window.said = []; new MutationObserver(() => window.said.push(document.getElementById('said').textContent))"
        ".observe(document.getElementById('said'), {childList: true, characterData: true, subtree: true})"
    )
    pools[0] = a_pool("db", **EXHAUSTED)
    wait_until(lambda: browser.run("return window.said") == ["1 exhausted"])
    polls = len(site.polls)
    wait_until(lambda: len(site.polls) > polls + 2)
    assert browser.run("return window.said") == ["1 exhausted"]


def test_state_that_changes_every_second_is_not_said_and_moves_nothing(browser: Browser, site: Site) -> None:
    flips = iter([EXHAUSTED, {}] * 100)
    site.view = lambda: a_view([a_pool("a"), a_pool("z", **next(flips))])
    browser.show(site.url)
    wait_until(lambda: browser.state("z") == "exhausted")
    polls = len(site.polls)
    while len(site.polls) < polls + 6:
        assert browser.all("[data-pool] .label") == ["z", "a"] and browser.text("#said") == ""
        time.sleep(0.1)


def test_servers_and_roles_are_shown(browser: Browser, site: Site) -> None:
    own = {"zone": "eu", "in_use": 1, "waiting": 2, "latency": 0.02}
    servers = [
        {"name": "https://a.example", **own, "failing": 0.0, "ejected": 0, "circuits_open": 0},
        {"name": "https://<b>.example", **own, "failing": 0.5, "ejected": 2, "circuits_open": 1},
    ]
    replica = a_pool("shop.replica", role={"name": "replica", "lag": 0.25})
    site.view = lambda: a_view([a_pool("api", servers=servers, circuits_open=1), replica])
    browser.show(site.url)
    wait_until(lambda: browser.state("api") == "up")
    assert "1 circuit open" in browser.text("[data-pool='api'] td.name")
    assert "replica, 250 ms behind" in browser.text("[data-pool='shop.replica'] td.name")
    browser.run("document.querySelector(\"[data-pool='api'] td.name button\").click()")
    text = browser.text("[data-pool='api'] .more")
    for words in ("Servers", "https://a.example", "https://<b>.example", "in service", "ejected, circuit open", "50 %"):
        assert words in text, text


def test_find_and_sort_on_a_phone(browser: Browser, site: Site) -> None:
    browser.screen(360)
    browser.show(site.url)
    wait_until(lambda: browser.state("db") == "up")
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.select import Select

    Select(browser.driver.find_element(By.CSS_SELECTOR, ".choice select")).select_by_visible_text("Waiting")
    wait_until(lambda: browser.all("[data-pool] .label")[0] == "full")
    browser.driver.find_element(By.CSS_SELECTOR, ".search input").send_keys("TENANT 1")
    wait_until(lambda: browser.all("[data-pool] .label") == ["tenant 1", "tenant 10", "tenant 11"])
    browser.driver.find_element(By.CSS_SELECTOR, ".search input").send_keys("<b>")
    wait_until(lambda: "No pool is called “tenant 1<b>”." in browser.text())


def test_pause(browser: Browser, site: Site) -> None:
    browser.show(site.url)
    wait_until(lambda: len(site.polls) > 1)
    browser.run("document.getElementById('pause').click()")
    wait_until(lambda: "paused at" in browser.text("header"))
    time.sleep(0.5)  # for a poll on its way
    polls = len(site.polls)
    time.sleep(3)
    assert len(site.polls) == polls
    browser.run("document.getElementById('pause').click()")
    wait_until(lambda: len(site.polls) > polls + 1)


def test_hidden_page_polls_less(browser: Browser, site: Site) -> None:
    browser.show(site.url)
    wait_until(lambda: len(site.polls) > 1)
    first = browser.driver.current_window_handle
    browser.driver.switch_to.new_window("tab")
    second = browser.driver.current_window_handle
    try:
        time.sleep(1.5)  # for a poll that was due
        polls = len(site.polls)
        time.sleep(6)
        assert len(site.polls) <= polls + 1
    finally:
        browser.driver.switch_to.window(second)
        browser.driver.close()
        browser.driver.switch_to.window(first)
    wait_until(lambda: len(site.polls) > polls + 2, patience=10)  # at once, and every second again


# -- the token -------------------------------------------------------------------------------------


def test_token(browser: Browser, guarded: Site) -> None:
    from selenium.webdriver.common.keys import Keys

    browser.show(guarded.url)
    wait_until(lambda: browser.all("#token"))
    assert guarded.polls == [] and browser.run("return document.activeElement.id") == "token"
    browser.press("wrong", Keys.ENTER)
    wait_until(lambda: "This token is not right." in browser.text())
    (line,) = browser.complaints()
    assert "401" in line and guarded.polls == []
    assert browser.run("return document.getElementById('token').value") == ""
    browser.press(TOKEN, Keys.ENTER)
    wait_until(lambda: browser.state("db") == "up")
    assert browser.run("return location.href") == guarded.url
    assert browser.run("return [localStorage.length, document.cookie, sessionStorage.length]") == [0, "", 1]
    assert TOKEN not in browser.run("return document.documentElement.outerHTML")

    browser.driver.refresh()  # the tab keeps it
    wait_until(lambda: browser.state("db") == "up")
    first = browser.driver.current_window_handle
    browser.driver.switch_to.new_window("tab")  # another one does not
    try:
        browser.show(guarded.url)
        wait_until(lambda: browser.all("#token"))
    finally:
        browser.driver.close()
        browser.driver.switch_to.window(first)
    browser.run("document.getElementById('forget').click()")
    wait_until(lambda: browser.all("#token"))
    assert browser.run("return sessionStorage.length") == 0 and "db" not in browser.text()


def test_client_that_is_not_admitted_any_more(browser: Browser, site: Site) -> None:
    browser.show(site.url)
    wait_until(lambda: browser.state("db") == "up")
    site.admits = False
    wait_until(lambda: browser.all("#token"))
    assert browser.state("db") == "None" and "not admitted any more" in browser.text()
    assert all("401" in line for line in browser.complaints())


# -- an application that does not answer ------------------------------------------------------------


def test_application_does_not_answer(browser: Browser, tmp_path: Path) -> None:
    site = Site(tmp_path)
    browser.show(site.url)
    wait_until(lambda: browser.state("db") == "up")
    port = site.server.server_port
    site.close()
    wait_until(lambda: "The application does not answer" in browser.text())
    notice = browser.text(".notice.bad")
    assert re.search(r"since \d\d:\d\d:\d\d \(.*\): the connection failed", notice), notice
    assert "The figures below are from then." in notice and browser.text("#standing") == "✕ no answer"
    assert browser.driver.title == "✕ no answer – Pools" and browser.state("db") == "up"
    assert all("ERR_CONNECTION_REFUSED" in line for line in browser.complaints())
    again = Site(tmp_path, port=port)
    try:
        browser.run("document.querySelector('.notice button').click()")
        wait_until(lambda: "does not answer" not in browser.text())
        wait_until(lambda: len(again.polls) > 1)
        assert all("ERR_CONNECTION_REFUSED" in line for line in browser.complaints())
    finally:
        again.close()


def test_failing_application_is_asked_ever_less_often(browser: Browser, site: Site) -> None:
    def broken() -> dict[str, Any]:
        raise OSError("the directory is gone")

    browser.show(site.url)
    wait_until(lambda: browser.state("db") == "up")
    site.view = broken
    wait_until(lambda: "does not answer" in browser.text())
    assert "the figures cannot be read; see the log" in browser.text(".notice")
    site.polls.clear()
    time.sleep(10)
    assert 1 <= len(site.polls) <= 6  # at 0.5 1 2 4 8 15 15 ... s
    assert all("503" in line for line in browser.complaints())
    site.view = everything
    wait_until(lambda: "does not answer" not in browser.text())
    browser.complaints()


def test_process_without_new_figures(browser: Browser, site: Site) -> None:
    view = a_view([a_pool("db")])
    view["processes"][0]["age"] = 40.0
    site.view = lambda: view
    browser.show(site.url)
    wait_until(lambda: "No new figures of process 12 for 40 s" in browser.text(".notice"))
    view["processes"][0]["age"] = 0.5
    wait_until(lambda: "No new figures" not in browser.text())


# -- real servers ----------------------------------------------------------------------------------


class Server:
    """A server with a number of workers: of uWSGI, or of gunicorn and this kind."""

    def __init__(self, home: Path, workers: int, directory: Path | None, kind: str) -> None:
        self.log = home / "log"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}/pools"
        env = environment(DASHBOARD_TOKEN=TOKEN)
        env.pop("POOLING_METRICS_DIR", None)
        if directory is not None:
            env["POOLING_METRICS_DIR"] = str(directory)
        app, address = "tests.integration.dashboard_site:application", f"127.0.0.1:{self.port}"
        if kind == "uWSGI":
            env["PYTHONPATH"] = os.pathsep.join([str(ROOT), *map(sysconfig.get_path, ("purelib", "platlib"))])
            env["VIRTUAL_ENV"] = sys.prefix
            command = [
                find_uwsgi() or "uwsgi", "--processes", str(workers), "--enable-threads", "--http-socket", address,
                "--module", app, "--master", "--need-app", "--die-on-term", "--disable-logging",
            ]  # fmt: skip
        else:
            threads = ["--threads", "4"] if kind == "gthread" else []
            command = [sys.executable, "-m", "gunicorn", "-w", str(workers), "-k", kind, *threads, "-b", address]
            command += ["--no-control-socket", app]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, env=env, cwd=home, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip

    def get(self, path: str, **headers: str) -> tuple[int, str]:
        conn = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            conn.request("GET", path, headers={"Connection": "close", **headers})
            answer = conn.getresponse()
            return answer.status, answer.read().decode()
        finally:
            conn.close()

    def view(self) -> dict[str, Any]:
        status, body = self.get("/pools", Accept="application/json", Authorization=f"Bearer {TOKEN}")
        assert status == 200, body
        return dict(json.loads(body))

    def wait(self) -> None:
        def answers() -> bool:
            assert self.process.poll() is None, self.log.read_text(errors="replace")
            with contextlib.suppress(OSError, http.client.HTTPException):
                return self.get("/use")[0] == 200
            return False

        wait_until(answers, patience=60)

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextlib.contextmanager
def serving(home: Path, workers: int, directory: Path | None, kind: str = "sync") -> Iterator[Server]:
    server = Server(home, workers, directory, kind)
    try:
        server.wait()
        yield server
    finally:
        server.close()


def find_uwsgi() -> str | None:
    return shutil.which("uwsgi", path=os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")]))


def enter(browser: Browser, server: Server) -> None:
    from selenium.webdriver.common.keys import Keys

    browser.show(server.url)
    wait_until(lambda: browser.all("#token"))
    browser.press(TOKEN, Keys.ENTER)
    wait_until(lambda: browser.state("db") == "up")


def test_exhaustion_shows_within_3_seconds(browser: Browser, tmp_path: Path) -> None:
    with serving(tmp_path, 1, None, "gthread") as server:
        enter(browser, server)
        assert "This process only" in browser.text() and "POOLING_METRICS_DIR" in browser.text()
        times = []
        for _ in range(3):  # one in time is enough: the machine may be busy
            server.get("/hold?s=6")
            began = time.monotonic()
            wait_until(lambda: browser.state("db") == "exhausted")
            times.append(time.monotonic() - began)
            wait_until(lambda: "dashboard_site.py" in browser.text(".halves"))  # who holds them
            assert browser.text("#standing") == "▲ 1 exhausted" and browser.driver.title == "▲ 1 exhausted – Pools"
            assert "2 of 2" in browser.text('[data-pool="db"]') and "exhausted" in browser.text(".events")
            wait_until(lambda: browser.state("db") == "up")
            if times[-1] <= WITHIN:
                break
        assert min(times) <= WITHIN, times


@pytest.mark.parametrize("kind", ["sync", "gthread", "gevent", "uWSGI"])
def test_all_workers_and_one_is_killed(browser: Browser, tmp_path: Path, kind: str) -> None:
    """The page shows all of them, whichever answers, and goes on when one is killed in the middle."""
    if kind == "uWSGI" and find_uwsgi() is None:
        pytest.skip("uWSGI is not installed")
    with serving(tmp_path, WORKERS, tmp_path / "metrics", kind) as server:

        def all_used() -> bool:
            server.get("/use?n=5")
            return len(server.view()["processes"]) == WORKERS

        wait_until(all_used)
        enter(browser, server)
        wait_until(lambda: len(browser.pids()) == WORKERS)
        assert f"{WORKERS} processes" in browser.text('[data-pool="db"]')
        assert f"{WORKERS * 2}" in browser.text(".tiles") and "process only" not in browser.text()
        began = time.monotonic()
        server.get("/hold?s=20")
        wait_until(lambda: browser.state("db") == "exhausted")
        print(f"{kind}: exhaustion of one of {WORKERS} workers showed after {time.monotonic() - began:.1f} s")
        victim = int(browser.run("return state.view.pools[0].holders[0].pid"))
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: browser.state("db") == "up" and victim not in browser.pids())

        def replaced() -> bool:
            server.get("/use?n=5")
            return len(browser.pids()) == WORKERS

        wait_until(replaced)
        assert "does not answer" not in browser.text()
        assert [line for line in browser.complaints() if "net::ERR" not in line] == []  # of the worker that was killed


def test_application_that_hangs(browser: Browser, tmp_path: Path) -> None:
    with serving(tmp_path, 1, None) as server:
        enter(browser, server)
        worker = int(server.get("/use")[1])
        os.kill(worker, signal.SIGSTOP)
        try:
            wait_until(lambda: "The application does not answer" in browser.text())
            assert "no answer within 5 s" in browser.text(".notice")
        finally:
            os.kill(worker, signal.SIGCONT)
        wait_until(lambda: "does not answer" not in browser.text() and browser.state("db") == "up")
        browser.complaints()


def test_several_processes_without_a_directory(browser: Browser, tmp_path: Path) -> None:
    with serving(tmp_path, WORKERS, None) as server:
        enter(browser, server)
        wait_until(lambda: "Several processes answer in turn" in browser.text(), patience=60)


def test_open_page_does_not_keep_a_worker_busy(browser: Browser, tmp_path: Path) -> None:
    """With one sync worker, which serves one connection at a time, the application answers between two polls."""
    with serving(tmp_path, 1, tmp_path / "metrics") as server:
        enter(browser, server)
        slowest = 0.0
        for _ in range(30):
            began = time.monotonic()
            assert server.get("/use")[0] == 200
            slowest = max(slowest, time.monotonic() - began)
            time.sleep(0.05)
        assert slowest < 5.0


# -- the command and the demo -----------------------------------------------------------------------

PROGRAM = """
import sys, time, pooling
pool = pooling.Pool(object, max_size=1, name="script's")
notes = pooling.SQLitePool(sys.argv[1], name="notes")
notes.execute_query("SELECT 'hunter2', ?", ("hunter2",))
broken = pooling.PostgresPool("postgresql://shop:hunter2@127.0.0.1:1/shop", name="broken", acquire_timeout=0.2)
try: broken.execute_query("SELECT 'hunter2'")
except pooling.PoolError: pass
with pool.acquire():
    print("ready", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def running(*command: str, **env: str) -> Iterator[subprocess.Popen[str]]:
    """Run a program; it is killed at the end."""
    process = subprocess.Popen(
        [sys.executable, *command], env=environment(**env), cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def address(process: subprocess.Popen[str]) -> str:
    """Return the address that a program prints."""
    assert process.stdout is not None
    for line in process.stdout:
        found = re.match(r"(?:page +)?(http://127\.0\.0\.1:\d+/)", line)
        if found:
            return found[1]
    raise AssertionError("it printed no address")


def fetch(url: str) -> dict[str, Any]:
    host = url.removeprefix("http://").rstrip("/")
    conn = http.client.HTTPConnection(host, timeout=20)
    try:
        conn.request("GET", "/", headers={"Accept": "application/json"})
        return dict(json.loads(conn.getresponse().read()))
    finally:
        conn.close()


@pytest.mark.parametrize("attached", [False, True], ids=["directory", "attached"])
def test_command(browser: Browser, tmp_path: Path, attached: bool) -> None:
    """From a process of its own; it says when the application's last process has ended."""
    shared = tmp_path / "metrics"
    shared.mkdir(mode=0o700)
    env = {"TMPDIR": str(tmp_path), "XDG_RUNTIME_DIR": ""} if attached else {"POOLING_METRICS_DIR": str(shared)}
    options = [] if attached else ["--dir", str(shared)]
    with running("-m", "pooling", "dashboard", "--port", "0", *options, TMPDIR=str(tmp_path)) as command:
        browser.show(address(command))
        wait_until(lambda: "No pool is in use yet" in browser.text() or browser.all("[data-pool]"))
        arguments = [str(tmp_path / "notes.db"), "--dsn=postgresql://shop:hunter2@db/shop"]
        with running("-c", PROGRAM, *arguments, **env) as program:
            assert program.stdout is not None and program.stdout.readline() == "ready\n"
            wait_until(lambda: browser.state("script's") != "None" and browser.state("broken") == "down")
            shown = browser.run("return JSON.stringify(state.view) + document.documentElement.outerHTML")
            assert "hunter2" not in shown and "SELECT" not in shown
            wait_until(lambda: "1 of 1" in browser.text('[data-pool="script\'s"]'))
            assert str(program.pid) in browser.text()
        if attached:  # other processes of this user may run
            wait_until(lambda: browser.state("script's") == "None")
        else:
            wait_until(lambda: "No process of the application is running" in browser.text())


def test_demo(tmp_path: Path) -> None:
    with running("-m", "pooling", "demo", "--dashboard", "--seconds", "4", "--threads", "4") as demo:
        url = address(demo)
        seen: dict[str, Any] = {}

        def used() -> bool:
            with contextlib.suppress(OSError, ValueError):
                seen.update({pool["name"]: pool for pool in fetch(url)["pools"]})
            return "market data" in seen and seen["market data"]["leases_per_second"] > 0

        wait_until(used, patience=60)
        assert demo.stdout is not None
        assert "every row is right" in demo.stdout.read() and demo.wait(60) == 0
    assert len(seen) >= 2


def test_page_of_a_demo_in_a_terminal_stays_open() -> None:
    """Until Ctrl-C, which is no failure then."""
    ours, its = os.openpty()
    command = [sys.executable, "-m", "pooling", "demo", "--dashboard", "--seconds", "0.5", "--threads", "2"]
    demo = subprocess.Popen(command, env=environment(), cwd=ROOT, stdout=its, start_new_session=True)
    os.close(its)
    try:
        shown = ""
        while "the page stays open: Ctrl-C ends the demo" not in shown:
            shown += os.read(ours, 4096).decode()
        assert "every row is right" in shown
        found = re.search(r"http://127\.0\.0\.1:\d+/", shown)
        assert found
        url = found[0]

        def leases() -> float:
            pools = {pool["name"]: pool for pool in fetch(url)["pools"]}
            return sum(filter(None, pools["market data"]["minutes"]["leases"])) if "market data" in pools else 0

        wait_until(leases)
        demo.send_signal(signal.SIGINT)
        assert demo.wait(60) == 0
    finally:
        demo.kill()
        demo.wait()
        os.close(ours)
