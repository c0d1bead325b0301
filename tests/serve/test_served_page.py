"""The page at / in a real browser, against a real server of the reference model and its guard."""

import json
import re
import shutil
from pathlib import Path

import httpx
import pytest

from kvguard import Guard
from kvguard.guard.bundle import load_operating_points

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: pip install playwright"
)
expect = playwright.expect
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: on Debian, apt-get install chromium"),
]
WAIT = 120_000  # ms: trainings may be running beside
DONE = ".tiles:not([hidden])"
HTML = "<img src=x onerror='window.planted=1'><script>window.planted=1</script>"


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=arguments, timeout=WAIT)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def reference():
    return Guard.load("models/reference")


@pytest.fixture
def watched(serving, reference):
    """A server as one is started: SnapKV, the reference guard, requests may choose."""
    points = load_operating_points(Path("models/reference"))
    names = ("snapkv", "knorm")
    return serving(guard=reference, points=points, compressors=names, limits={"hold_back": 300})


@pytest.fixture
def opened(browser):
    """Open a server's page; afterwards it has said nothing on the console and asked nobody else."""
    said, asked, tabs = [], [], []

    def start(server, **how):
        tab = browser.new_page(**{"viewport": {"width": 1300, "height": 900}, **how})
        tabs.append(tab)
        tab.set_default_timeout(WAIT)
        expect.set_options(timeout=WAIT)
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(f"{server.base}/")
        start.base = server.base
        return tab

    start.said = said
    yield start
    assert said == []
    assert [url for url in asked if not url.startswith((start.base, "data:"))] == []
    for tab in tabs:
        tab.close()


def sample(tab, number=1):
    tab.click(f"#samples button:nth-of-type({number})")


def told(tab, events):
    """Let the page be answered with some events in place of the server's."""
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
    tab.route(
        "**/v1/chat/completions", lambda route: route.fulfill(content_type="text/event-stream", body=body)
    )


def token(text, **kvguard):
    seen = {"hazard": 0.1, "state": "normal", "kv_tokens": 5.0, **kvguard}
    usage = {"prompt_tokens": 20, "completion_tokens": 1}
    delta = {"index": 0, "delta": {"content": text}, "finish_reason": None, "kvguard": seen}
    return {"choices": [delta], "kvguard": seen, "usage": usage}


def test_both_answers_come_token_by_token_with_colours_and_an_alarm(opened, watched):
    tab = opened(watched)
    expect(tab.locator("#model")).to_have_text("reference")
    sample(tab)
    compressed, full = tab.locator("article").nth(0), tab.locator("article").nth(1)
    expect(compressed.locator(".text.live span:nth-of-type(5)")).to_be_visible()
    expect(full.locator(".text.live span:nth-of-type(5)")).to_be_visible()  # beside it, not after it
    held = compressed.locator(".bar").get_attribute("aria-valuenow")
    assert 0 < int(held) < 90
    expect(tab.locator(DONE)).to_have_count(2)
    expect(tab.locator(".text.live")).to_have_count(0)
    expect(compressed.locator("h3")).to_have_text("snapkv, 50 % removed")
    expect(full.locator("h3")).to_have_text("Uncompressed")
    assert full.locator(".bar").get_attribute("aria-valuenow") == "100"
    assert full.locator(".text").inner_text().startswith("Carl: 28 + 6 = 34 balls.")
    assert "4 planes" not in compressed.locator(".text").inner_text()
    spans = compressed.locator(".text span").count()
    assert f"tokens\n{spans}" in compressed.locator(".tiles").inner_text()
    hazards = compressed.locator(".text span").evaluate_all(
        "spans => spans.map(s => [s.className, getComputedStyle(s).backgroundColor])"
    )
    assert len({colour for _, colour in hazards}) > 5
    assert {state for state, _ in hazards} <= {"normal", "alert", "safe"}


@pytest.mark.parametrize(("action", "word"), [("restore", "restored"), ("rollback", "taken back")])
def test_an_alarm_and_what_was_done_are_marked_where_they_were(opened, watched, action, word):
    tab = opened(watched)
    tab.locator("select[name=action]").select_option(action)
    tab.locator("input[name=ratio]").fill("0.875")
    expect(tab.locator("output[name=share]")).to_have_text("88 %")
    tab.locator("select[name=point]").select_option("conservative")
    tab.locator("input[name=beside]").uncheck()
    with tab.expect_request("**/v1/chat/completions") as request:
        sample(tab)
    asked = {"compressor": "snapkv", "ratio": 0.875, "action": action, "point": "conservative"}
    assert request.value.post_data_json["kv"] == asked
    expect(tab.locator(DONE)).to_have_count(1)
    marks = tab.locator(".text .mark").all_inner_texts()
    assert any("alarm" in mark for mark in marks)
    assert any(word in mark for mark in marks), marks
    expect(tab.locator(".text span.safe").first).to_be_visible()
    assert tab.locator(".chart g line").count() >= 1


def test_a_key_is_asked_for_a_wrong_one_told_and_none_kept(opened, serving):
    locked = serving(keys=["the-key"])
    tab = opened(locked)
    expect(tab.locator("#door")).to_be_visible()
    expect(tab.locator("#room")).to_be_hidden()
    assert opened.said == []  # nothing was asked before a key was there
    tab.fill("#key", "wrong")
    tab.keyboard.press("Enter")
    expect(tab.locator("#refused")).to_have_text("The server does not take this key.")
    assert [line for line in opened.said if "401" not in line] == []  # that is the browser's own line
    opened.said.clear()
    tab.fill("#key", "schlüssel")
    tab.keyboard.press("Enter")
    expect(tab.locator("#refused")).to_contain_text("letters, digits")
    tab.fill("#key", "the-key")
    tab.keyboard.press("Enter")
    expect(tab.locator("#room")).to_be_visible()
    tab.locator("input[name=tokens]").fill("4")
    tab.fill("#prompt", "Two and two and three make what?")
    tab.keyboard.press("Enter")
    expect(tab.locator(DONE)).to_have_count(2)
    kept = tab.evaluate("[document.cookie, localStorage.length, sessionStorage.length, location.href]")
    assert kept == ["", 0, 0, f"{locked.base}/"]
    tab.reload()
    expect(tab.locator("#door")).to_be_visible()


def test_without_allow_kv_the_controls_say_so_and_the_answer_comes_all_the_same(opened, serving):
    tab = opened(serving(limits={"choosing": False}))
    expect(tab.locator("#fixed")).to_contain_text("--allow-kv")
    for name in ("compressor", "ratio", "action", "beside"):
        expect(tab.locator(f"[name={name}]")).to_be_disabled()
    expect(tab.locator("select[name=compressor]")).to_have_value("snapkv")
    expect(tab.locator("input[name=ratio]")).to_have_value("0.5")
    tab.locator("input[name=tokens]").fill("4")
    sample(tab)
    expect(tab.locator(DONE)).to_have_count(1)


def test_a_server_without_a_guard_or_a_template_is_asked_as_it_can_be(opened, serving, loaded, monkeypatch):
    monkeypatch.setattr(type(loaded), "has_chat", property(lambda _: False))
    tab = opened(serving(guard=None, action="none"))
    expect(tab.locator("select[name=action]")).to_be_disabled()
    tab.locator("input[name=tokens]").fill("4")
    sample(tab)
    expect(tab.locator(DONE)).to_have_count(2)
    expect(tab.locator(".badge").first).to_have_text("not watched")


def test_it_works_from_the_keyboard(opened, watched):
    tab = opened(watched)
    expect(tab.locator("#prompt")).to_be_focused()
    tab.locator("input[name=tokens]").fill("900")
    tab.locator("#prompt").focus()
    tab.keyboard.type("Two and two")
    tab.keyboard.press("Shift+Enter")
    tab.keyboard.type("and three make what?")
    tab.keyboard.press("Enter")
    assert tab.locator(".question").text_content() == "Two and two\nand three make what?"
    tab.locator("article .text span:nth-of-type(3)").first.wait_for()
    tab.keyboard.press("Escape")
    expect(tab.locator("article .error:not([hidden]), " + DONE)).to_have_count(2)
    expect(tab.locator("#send")).to_be_visible()
    assert watched.idle()  # what is stopped is generated no further
    tab.locator(".text").first.focus()
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("ArrowRight")
    expect(tab.locator(".detail").first).to_have_text(
        re.compile(r"token 1: hazard \d\.\d\d, NORMAL, \d+ of \d+ entries")
    )
    tab.locator(".text span").first.hover()
    expect(tab.locator(".detail").first).to_contain_text("token 0:")


def test_a_second_question_takes_the_conversation_along_and_a_new_chat_forgets_it(opened, watched):
    tab, bodies = opened(watched), []
    tab.on("request", lambda request: bodies.append(request.post_data_json) if request.post_data else None)
    tab.locator("input[name=tokens]").fill("3")
    for number, n_messages in enumerate((1, 3), 1):
        tab.fill("#prompt", "Two and two and three make what?")
        tab.keyboard.press("Enter")
        expect(tab.locator(DONE)).to_have_count(2 * number)
        assert [len(body["messages"]) for body in bodies[-2:]] == [n_messages] * 2
    answers = [body["messages"][1]["content"] for body in bodies[-2:]]
    assert answers == [text.text_content() for text in tab.locator(".turn").first.locator(".text").all()]
    tab.click("#fresh")
    expect(tab.locator(".turn")).to_have_count(0)
    sample(tab)
    expect(tab.locator(DONE)).to_have_count(2)
    assert len(bodies[-1]["messages"]) == 1


def test_what_a_model_or_a_server_says_is_text_and_nothing_else(opened, serving):
    tab = opened(serving(name=HTML))
    expect(tab.locator("#model")).to_have_text(HTML)
    told(tab, [token(HTML), token(HTML, state=HTML.replace(" ", "")), {"error": {"message": HTML}}])
    sample(tab)
    expect(tab.locator("article .error:not([hidden])").first).to_have_text(HTML)
    assert tab.locator(".text").first.text_content() == HTML * 2
    assert tab.evaluate("window.planted") is None
    assert tab.locator("img").count() == 0


def test_a_script_that_got_in_all_the_same_would_not_run(opened, watched):
    tab = opened(watched)
    planted = """() => {
        const script = document.createElement("script");
        try {
            script.textContent = "window.planted = 1";
            document.body.append(script);
        } catch { return "refused"; }
        return window.planted ?? "blocked";
    }"""
    assert tab.evaluate(planted) in ("refused", "blocked")
    opened.said.clear()  # the browser tells of it


def test_a_stream_that_breaks_off_is_told(opened, watched):
    tab = opened(watched)
    tab.route(
        "**/v1/chat/completions", lambda route: route.fulfill(body="data: " + json.dumps(token("a")) + "\n\n")
    )
    sample(tab)
    expect(tab.locator("article .error:not([hidden])").first).to_have_text(
        "the connection ended before the answer did"
    )
    expect(tab.locator("#send")).to_be_visible()


def test_what_the_server_rejects_is_told_in_its_words(opened, watched):
    tab = opened(watched)
    tab.locator("input[name=tokens]").fill("2048")
    sample(tab)
    expect(tab.locator("article .error:not([hidden])").first).to_contain_text(
        "exceed the 2048 that this model takes"
    )
    assert all("400" in line for line in opened.said)
    opened.said.clear()


def test_an_alarm_that_lasts_is_marked_where_it_begins(opened, watched):
    tab = opened(watched)
    alarms = [[{"what": "alarm", "t": t, "kept": t + 1}] if t in (1, 2, 3, 6) else [] for t in range(8)]
    told(tab, [token(str(t), events=events, state="safe") for t, events in enumerate(alarms)])
    sample(tab)
    expect(tab.locator(".text").first).to_have_text("01alarm23456alarm7")


@pytest.mark.parametrize("width", [360, 390, 820, 1300])
def test_the_page_fits_its_window_in_light_and_dark(opened, watched, width):
    tab = opened(watched, viewport={"width": width, "height": 800})
    long = "supercalifragilistic" * 20
    told(
        tab,
        [token(long), token("x", events=[{"what": "rollback", "t": 31, "kept": 0}], state="safe", hazard=1)],
    )
    sample(tab)
    expect(tab.locator(".mark.done").first).to_be_visible()
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    paper = "getComputedStyle(document.body).backgroundColor"
    light = tab.evaluate(paper)
    tab.emulate_media(color_scheme="dark")
    assert tab.evaluate(paper) != light
    assert all(
        tab.evaluate("Array.from(document.querySelectorAll('input, select, textarea'), e => e.labels.length)")
    )


def test_the_page_is_one_document_and_its_policy_names_only_what_is_in_it(watched):
    answer = httpx.get(watched.base)
    policy = answer.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    assert not re.search(r"(?:src|href|action)=\"(?!data:)", answer.text)
    assert "{{" not in answer.text
    assert answer.text.count("<script") == answer.text.count("</script") == 1
