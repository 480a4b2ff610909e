"""The page in a real Chromium, the system's own."""

import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server import Running, running, service_of

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("there is no Chromium on this machine", allow_module_level=True)

from playwright.sync_api import Browser, Page, expect, sync_playwright  # noqa: E402 # may be absent

pytestmark = pytest.mark.slow

# what a browser would do on its own: ask elsewhere
QUIET = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as library:
        browser = library.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(opinionated_model: Path, tiny_model: Path) -> Iterator[Running]:
    with running(service_of(opinionated_model, tiny_model)) as it:
        yield it


class Visit:
    """A page, and what it asked for and complained of."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.asked: list[str] = []
        self.complaints: list[str] = []
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("console", lambda line: self._hear(line.type, line.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.goto(url)

    def _hear(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.complaints.append(text)

    def ask(self, **values: str) -> None:
        """Fill in fields and start by the keyboard."""
        for name, value in values.items():
            self.page.fill(f"#{name}", value)
        self.page.keyboard.press("Control+Enter")


@pytest.fixture
def visit(server: Running, browser: Browser) -> Iterator[Visit]:
    context = browser.new_context(locale="en-US")
    context.set_default_timeout(20_000)
    it = Visit(context.new_page(), server.url)
    expect(it.page).to_have_title("opinionated-gpt2, tiny-gpt20")
    yield it
    assert it.complaints == []  # of the content security policy, say
    assert all(url.startswith(server.url) for url in it.asked)
    context.close()


def texts(page: Page) -> list[str]:
    """Return what each card says, once all are written."""
    expect(page.locator("article[aria-busy=true]")).to_have_count(0)
    return page.locator("article .text").all_text_contents()


def test_base_and_fine_tuned_side_by_side(visit: Visit, server: Running) -> None:
    page = visit.page
    visit.ask(prompt="The river", max_tokens="20", n="2", seed="7", top_p="1", top_k="0")
    shown = texts(page)
    expected = [
        server.text(
            prompt="The river", max_tokens=20, seed=seed, temperature=0.7, model=model, echo=True
        )
        for seed in (7, 8)
        for model in ("opinionated-gpt2", "tiny-gpt20")
    ]
    assert shown == expected
    titles = page.locator("article h2").all_text_contents()
    assert titles == [
        *("opinionated-gpt2seed 7", "tiny-gpt20seed 7"),
        *("opinionated-gpt2seed 8", "tiny-gpt20seed 8"),
    ]
    assert re.fullmatch(r"\d+ tokens in [\d.]+ s", page.inner_text("#status"))
    assert page.locator("article").first.inner_text().count("cut at the limit") == 1


def test_one_model_and_the_options(visit: Visit, server: Running) -> None:
    page = visit.page
    page.select_option("#model", "tiny-gpt20")
    whole = server.text(prompt="a", max_tokens=30, temperature=0, model="tiny-gpt20")
    stop = whole[8:11]
    visit.ask(prompt="a", max_tokens="30", n="1", temperature="0", stops=f"{stop}\n@@@")
    assert texts(page) == ["a" + whole[: whole.index(stop)]]
    assert "ended" in page.inner_text("article footer")
    page.click("text=Go on from here")
    assert page.input_value("#prompt") == "a" + whole[: whole.index(stop)]
    assert page.locator("article h2 small").inner_text() == "likeliest tokens"


def test_surprisal_is_shaded_when_asked(visit: Visit) -> None:
    page = visit.page
    page.select_option("#model", "opinionated-gpt2")
    visit.ask(
        prompt="今天 is", max_tokens="30", n="1", seed="3", temperature="1.5", top_p="1", top_k="0"
    )
    texts(page)
    shaded = page.locator(".text span[class^=s]").first
    color = "getComputedStyle(document.querySelector('.text span[class^=s]')).backgroundColor"
    assert page.evaluate(color) == "rgba(0, 0, 0, 0)"
    assert not page.is_visible("#legend")
    page.check("#shade")
    assert page.evaluate(color) != "rgba(0, 0, 0, 0)"
    assert page.is_visible("#legend")
    title = shaded.get_attribute("title") or ""
    assert re.match(r'[\d.]+ bits. Likeliest here: "', title)
    bits = [
        float(it.split()[0])
        for it in page.eval_on_selector_all(
            ".text span[title]", "nodes => nodes.map(node => node.title)"
        )
    ]
    said = re.search(r"(\d+) tokens · ([\d.]+) bits each", page.inner_text("article footer"))
    assert said
    assert sum(bits) / int(said[1]) == pytest.approx(float(said[2]), abs=0.2)


def test_it_streams_and_stops(
    visit: Visit, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = visit.page
    page.select_option("#model", "opinionated-gpt2")
    engine = server.service.models[0].engine
    step = engine.batch.step
    monkeypatch.setattr(engine.batch, "step", lambda *args: (time.sleep(0.1), step(*args))[1])  # type: ignore[func-returns-value] # a slow model
    visit.ask(prompt="a", max_tokens="60", n="3", seed="3")
    expect(page.locator("article[aria-busy=true]")).to_have_count(3)
    expect(page.locator("article[aria-busy=true] .text span").nth(8)).to_be_visible()
    assert page.is_disabled("#start")
    assert engine.running == 3
    page.keyboard.press("Escape")
    expect(page.locator("#status")).to_have_text(re.compile(r"Stopped after \d+ tokens"))
    assert page.is_disabled("#stop")
    shown = texts(page)
    assert all(len(text) > 1 for text in shown)
    assert page.locator("article footer", has_text="stopped").count() == 3
    deadline = time.monotonic() + 10
    while engine.running and time.monotonic() < deadline:
        time.sleep(0.02)
    assert engine.running == 0
    monkeypatch.undo()
    visit.ask(max_tokens="5", n="1")  # older samples stay, for comparison
    texts(page)
    expect(page.locator("article")).to_have_count(4)


def test_mistakes_are_told(visit: Visit) -> None:
    page = visit.page
    page.select_option("#model", "tiny-gpt20")
    visit.ask(prompt="a", max_tokens="500")
    expect(page.locator("#error")).to_contain_text("max_tokens: 500 is more than 64")
    expect(page.locator("article")).to_have_count(0)
    visit.complaints.clear()  # the browser's own line about the 400
    visit.ask(max_tokens="5", n="1", seed="3")
    assert len(texts(page)) == 1
    assert not page.is_visible("#error")


def test_markup_in_a_prompt_is_text(visit: Visit) -> None:
    page = visit.page
    page.select_option("#model", "tiny-gpt20")
    visit.ask(prompt="<img src=x onerror=alert(1)><b>", max_tokens="2", n="1")
    assert texts(page)[0].startswith("<img src=x onerror=alert(1)><b>")
    assert page.locator("article img, article b").count() == 0


@pytest.mark.parametrize(
    ("locale", "start", "status"),
    [
        ("zh-CN", "续写", r"[\d.]+ 秒生成 20 个词元"),
        ("de-DE", "Continue", r"20 tokens in [\d.]+ s"),
    ],
)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_in_the_browsers_language(
    server: Running, browser: Browser, locale: str, start: str, status: str, scheme: str
) -> None:
    context = browser.new_context(
        viewport=PHONE,  # type: ignore[arg-type] # a dictionary of the right form
        locale=locale,
        color_scheme=scheme,  # type: ignore[arg-type] # one of its literals
        has_touch=True,
        is_mobile=True,
    )
    it = Visit(context.new_page(), server.url)
    expect(it.page.locator("#start span")).to_have_text(start)
    assert it.page.get_attribute("html", "lang") == locale[:2].replace("de", "en")
    it.page.fill("#prompt", "The river")
    it.page.click("summary")
    it.page.fill("#max_tokens", "5")
    it.page.fill("#seed", "3")
    it.page.click("#start")
    texts(it.page)
    expect(it.page.locator("#status")).to_have_text(re.compile(status))
    assert it.page.evaluate("document.documentElement.scrollWidth") == 390
    small = "nodes => nodes.filter(node => node.offsetParent && node.offsetHeight < 40).length"
    assert it.page.eval_on_selector_all("button, input:not([type=checkbox]), select", small) == 0
    unnamed = "nodes => nodes.filter(node => !node.labels[0]?.innerText.trim()).length"
    it.page.evaluate("document.getElementById('keys').hidden = false")
    assert it.page.eval_on_selector_all("input, textarea, select", unnamed) == 0
    assert it.complaints == []
    context.close()


def test_a_server_with_a_key(opinionated_model: Path, browser: Browser) -> None:
    with running(service_of(opinionated_model, api_key="sesame")) as it:
        context = browser.new_context(locale="en-US")
        page = context.new_page()
        page.goto(it.url)
        expect(page.locator("#error")).to_have_text("This server asks for an API key.")
        page.fill("#key", "sesame")
        page.fill("#prompt", "a")
        page.fill("#max_tokens", "5")
        page.fill("#seed", "3")
        page.keyboard.press("Control+Enter")
        expect(page.locator("article")).to_have_count(2)
        assert len(texts(page)[0]) > 1
        assert "sesame" not in page.content()
        context.close()
