"""The report in a real browser: headless Chromium from the system's packages."""

import shutil

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: pip install playwright"
)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: on Debian, apt-get install chromium"),
]
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]  # fmt: skip
WAIT = 120_000  # ms: two trainings may be running beside


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS, timeout=WAIT)
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser, page_path):
    """The page, and what it said on the console and asked of the network."""
    tab = browser.new_page(viewport={"width": 1300, "height": 900})
    tab.set_default_timeout(WAIT)
    said, asked = [], []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(page_path.as_uri())
    tab.wait_for_selector("#plot .main-svg")
    yield tab
    local = ("file:", "data:", "blob:")
    assert said == []
    assert [url for url in asked if not url.startswith(local)] == []
    tab.close()


def shown(tab):
    """What the explorer shows: its tokens, its hazard curve, its verdict."""
    return tab.evaluate(
        """() => ({
            tokens: document.getElementById("tokens").textContent,
            hazard: Array.from(document.getElementById("plot").data[0].y),
            verdict: document.getElementById("verdict").textContent,
            n: document.querySelectorAll("#tokens span").length,
        })"""
    )


def options(tab, name):
    return tab.evaluate(f"Array.from(document.getElementById('pick').elements.{name}.options, o => o.value)")


def test_the_explorer_shows_a_trace_and_its_signals(opened, explorers):
    first = shown(opened)
    assert first["n"] == len(first["hazard"]) > 0
    assert any(trace["n"] == first["n"] for trace in explorers[0]["traces"])
    assert opened.evaluate("document.getElementById('plot').data.length") == 3
    assert "Ana has" in opened.text_content("#question")
    assert "Ana has" in opened.text_content("#uncompressed")


def test_a_catastrophe_is_marked_with_onset_state_and_hazard(opened):
    opened.select_option("select[name=ratio]", "0.875")
    assert "onset at token" in shown(opened)["verdict"]
    assert opened.text_content("#tokens b:not(.guard)") == "onset"
    assert opened.text_content("#tokens b.guard") == "SAFE"
    assert opened.locator("#tokens span.SAFE").count() > 0
    background = "getComputedStyle(document.querySelector('#tokens span.{}')).backgroundColor"
    calm, hot = (opened.evaluate(background.format(state)) for state in ("NORMAL", "SAFE"))
    assert calm != hot


def test_it_opens_on_a_catastrophe(opened):
    assert "onset at token" in shown(opened)["verdict"]


@pytest.mark.parametrize("name", ["model", "compressor", "ratio", "prompt"])
def test_each_choice_changes_tokens_and_curves(opened, name):
    before = shown(opened)
    now = opened.input_value(f"select[name={name}]")
    others = [value for value in options(opened, name) if value != now]
    assert others
    opened.select_option(f"select[name={name}]", others[0])
    after = shown(opened)
    assert after["tokens"] != before["tokens"]
    assert after["hazard"] != before["hazard"] or after["n"] != before["n"]


def test_the_controls_work_from_the_keyboard(opened):
    before = shown(opened)
    opened.focus("select[name=prompt]")
    opened.keyboard.press("ArrowDown")
    moved = shown(opened)
    assert moved["tokens"] != before["tokens"]
    opened.keyboard.press("Tab")
    opened.keyboard.press("Enter")  # on "previous prompt"
    assert shown(opened)["tokens"] == before["tokens"]


def test_every_choice_has_a_label(opened):
    labels = opened.evaluate(
        "Array.from(document.querySelectorAll('#pick select'), s => s.labels[0].firstChild.data.trim())"
    )
    assert labels == ["model", "compressor", "ratio", "prompt"]


def test_pointing_at_a_token_points_at_its_signals(opened):
    opened.hover("#tokens span:nth-of-type(5)")
    opened.wait_for_selector("#plot .hoverlayer .legend")
    assert opened.get_attribute("#tokens span:nth-of-type(5)", "title").startswith("token 4: hazard")


def test_pointing_at_the_signals_points_at_a_token(opened):
    opened.hover("#plot .draglayer .xy .nsewdrag")
    opened.wait_for_selector("#tokens span.here")


def test_planted_scripts_do_not_run(opened):
    assert "<script>" in shown(opened)["tokens"]
    assert opened.evaluate("window.planted") is None


@pytest.mark.parametrize("width", [390, 820, 1300])
def test_the_page_fits_its_window(opened, width):
    opened.set_viewport_size({"width": width, "height": 800})
    assert opened.evaluate("document.documentElement.scrollWidth") <= width


def test_a_dark_scheme_has_a_dark_page(opened):
    paper = "getComputedStyle(document.body).backgroundColor"
    light = opened.evaluate(paper)
    opened.emulate_media(color_scheme="dark")
    assert opened.evaluate(paper) != light
