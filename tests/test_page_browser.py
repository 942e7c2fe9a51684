"""The page in a real browser: nothing is asked of the network, and everything that can be moved moves.

Needs Chromium (Debian's `chromium`, or $CHROMIUM); with JAXLEAK_REQUIRE_CHROMIUM=1 its absence is a failure.
"""

import csv
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxleak
from jaxleak.data import load_dataset
from jaxleak.results.page import write_page
from jaxleak.results.store.run import Run
from jaxleak.results.verdict import Criteria
from jaxleak.runs.run import run_sweep
from jaxleak.runs.sweep import Sweep
from jaxleak.threat.from_dataset import make_victim

# Without these, Chromium itself asks for updates and the like.
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
ARGUMENTS += ["--disable-component-update", "--disable-sync"]
BAD = "document.title = 'bad'"
CLASSES = (f"</script><script>{BAD}</script>", f'<img src=x onerror="{BAD}">', 'a, "b"\n=1')
QUICK = replace(jaxleak.IDLG, solver=jaxleak.TorchLBFGS(history=20), iterations=10)
ATTACKS = (QUICK, replace(QUICK, name=f"<img src=x onerror={BAD}>", init="uniform"))
WAIT = 60_000  # ms


def chromium() -> str | None:
    names = (os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
    return next((found for name in names if name and (found := shutil.which(name))), None)


@pytest.fixture(scope="module")
def browser():
    path = chromium()
    if path is None and os.environ.get("JAXLEAK_REQUIRE_CHROMIUM") != "1":
        pytest.skip("no Chromium is installed (apt-get install chromium, or set CHROMIUM)")
    assert path, "JAXLEAK_REQUIRE_CHROMIUM is set, and no Chromium is installed"
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (the extra `test`)")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Two attacks on two grey pictures of 8 by 8 pixels from four starts each."""
    folder = tmp_path_factory.mktemp("runs")
    file = folder / f"<img src=x onerror={BAD}>.npz"
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), dtype=np.uint8)
    np.savez(file, images=pixels, labels=np.arange(4) % 3, class_names=np.array(CLASSES))
    victim = make_victim("lenet", load_dataset(str(file)), [3, 1])
    criteria = Criteria(objective=0.01, relative_error=0.5)
    sweep = Sweep(victim=victim, attacks=ATTACKS, seeds=4, snapshots=(0, 2, 5), criteria=criteria)
    out = folder / f"<script>{BAD}<script>"
    run_sweep(sweep, out, lanes=2, quiet=True)
    return out


@pytest.fixture(scope="module")
def file(run) -> Path:
    return write_page([run], trials=1)


@pytest.fixture(scope="module")
def said() -> list[str]:
    """What went wrong since it was emptied: console messages, errors of scripts, requests."""
    return []


@pytest.fixture(scope="module")
def shared(browser, file, said):
    yield from opened(browser, file, said)


# What a page that was just opened shows.
RESET = """() => {
    const set = (id, value) => {
        const element = document.getElementById(id);
        element.value = value;
        element.dispatchEvent(new Event(id === "slider" ? "input" : "change"));
    };
    document.querySelectorAll("#facets input").forEach((box) => { if (!box.checked) box.click(); });
    set("image", 0); set("trial", "best"); set("x", "iterations"); set("left-quantity", "objective");
    set("slider", document.getElementById("slider").max);
    document.activeElement.blur();
}"""


@pytest.fixture
def page(shared, said):
    """Opening takes a second: one page, set back for each test."""
    shared.evaluate(RESET)
    return shared


def opened(browser, file: Path, said: list[str], **settings):
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **settings})
    page = context.new_page()
    page.set_default_timeout(WAIT)
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(str(error)))
    own = file.as_uri()
    page.on("request", lambda request: request.url.split("#")[0] != own and said.append(request.url[:200]))
    page.goto(own)
    page.wait_for_selector("body[data-ready]")
    yield page
    context.close()


def not_inline(said: list[str]) -> list[str]:
    return [text for text in said if not text.startswith(("data:", "blob:"))]


def places(page) -> list[str]:
    return page.eval_on_selector_all("#cards .card:not(.truth) img", "all => all.map(one => one.style.transform)")


def test_it_opens_without_errors_and_requests(page, said):
    assert page.locator("#cards .card").count() == 3
    assert page.locator(".plot .main-svg").count() >= 3
    assert page.locator("#curves .scatterlayer .trace").count() > 6
    page.wait_for_timeout(200)
    assert not_inline(said) == []


def test_markup_in_names_is_text(page, said):
    assert page.title().startswith("idlg, <img src=x")
    assert page.locator("img[src='x'], svg a").count() == 0
    assert ATTACKS[1].name in page.locator("#cards").inner_text()
    assert "<script>" in page.locator("#repeat summary").first.inner_text()
    page.locator("#left .nsewdrag").first.hover()
    assert page.title() != "bad"
    assert not_inline(said) == []


def test_the_slider_changes_the_pictures(page):
    last = places(page)
    page.locator("#slider").fill("0")
    assert page.locator("#iteration").inner_text() == "iteration 0"
    assert len(last) == 2
    assert all(before != after for before, after in zip(last, places(page), strict=True))
    assert page.locator("#cards .card:not(.truth) dd").nth(5).inner_text() == "running"
    alts = page.eval_on_selector_all("#cards img", "all => all.map(one => one.alt)")
    assert all(alts)
    assert "candidate at iteration 0" in alts[1]


def test_pixels_on_the_screen_change(page):
    """What is seen, not only what is set: the first candidate is noise, the last one not."""
    frame = page.locator("#cards .card:not(.truth) .frame").first
    last = frame.screenshot()
    page.locator("#slider").fill("0")
    assert frame.screenshot() != last


def test_keys_step_and_play(page):
    top = int(page.locator("#slider").get_attribute("max"))
    page.keyboard.press("ArrowLeft")
    assert page.locator("#slider").input_value() == str(top - 1)
    page.keyboard.press("ArrowRight")
    assert page.locator("#slider").input_value() == str(top)
    page.locator("#slider").focus()
    page.keyboard.press("ArrowLeft")
    assert page.locator("#slider").input_value() == str(top - 1)
    page.keyboard.press(" ")
    assert page.locator("#play").get_attribute("aria-pressed") == "true"
    page.wait_for_selector("#play[aria-pressed=false]")
    assert page.locator("#slider").input_value() == str(top)


def test_choices_filter(page):
    page.locator("#facets input").first.uncheck()
    assert page.locator("#cards .card").count() == 2
    assert page.locator("#legend li").count() == 1
    page.locator("#facets input").first.check()
    truth = page.locator(".truth img").get_attribute("src")
    page.locator("#image").select_option(index=1)
    assert page.locator(".truth img").get_attribute("src") != truth
    pictures = page.eval_on_selector_all("#cards img", "all => all.map(one => one.src)")
    page.locator("#trial").select_option("worst")
    assert page.eval_on_selector_all("#cards img", "all => all.map(one => one.src)") != pictures
    page.locator("#trial").select_option("seed 0")
    assert page.locator("#cards .card:not(.truth) dd").nth(3).inner_text() == "0"


def test_curves_follow_the_choices(page):
    def drawn():
        return page.locator("#left .ytick").first.text_content(), page.locator("#left .xtick").last.text_content()

    before = drawn()
    page.locator("#left-quantity").select_option("ssim")
    page.locator("#x").select_option("evaluations")
    assert drawn() != before
    assert page.locator("#left").get_attribute("aria-label").startswith("SSIM against evaluations.")
    x = "document.getElementById('right').data.filter(one => one.mode === 'markers')[0].x[0]"
    last = page.evaluate(x)
    page.locator("#slider").fill("0")
    assert page.evaluate(x) < last


def test_the_table_sorts(page):
    def column():
        return [float(one.split("/")[0]) for one in page.locator("#by-image tbody td:nth-child(3)").all_inner_texts()]

    heading = page.locator("#by-image th").nth(2)
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    assert column() == sorted(column())
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "descending"
    assert column() == sorted(column(), reverse=True)


def test_a_click_on_a_count_shows_an_example(page):
    page.locator("#trial").select_option("best")
    button = page.locator("#failures button.show").first
    seed = button.get_attribute("data-show").split(",")[2]
    button.click()
    assert page.locator("#trial").input_value() == f"seed {seed}"


def test_the_csv_equals_the_rows(page, run, tmp_path):
    """And what is said of its columns is of columns that are there."""
    with page.expect_download() as download:
        page.locator("#csv").click()
    download.value.save_as(tmp_path / "rows.csv")
    with open(tmp_path / "rows.csv", newline="") as text:
        read = list(csv.DictReader(text))
    rows = sorted(Run.open(run).rows(), key=lambda row: row["trial"])
    named = page.eval_on_selector_all("#repeat .note code", "all => all.map(one => one.textContent)")
    assert {"success", "psnr"} < {*named} < read[0].keys()
    assert len(read) == len(rows) == 16
    for got, row in zip(read, rows, strict=True):
        assert got.keys() == {"run", *row}
        assert got["run"] == run.name
        for name, value in row.items():
            if isinstance(value, bool):
                assert got[name] == str(value).lower()
            elif isinstance(value, float):
                np.testing.assert_equal(float(got[name]), value)
            else:
                assert got[name] == ("" if value is None else str(value))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_the_screen(browser, file, said, width, scheme):
    for page in opened(browser, file, said, viewport={"width": width, "height": 844}, color_scheme=scheme):
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        back = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, back[4:-1].split(", "))) < 200) == (scheme == "dark")
        sizes = "all => all.map(one => parseFloat(getComputedStyle(one).fontSize))"
        assert min(page.eval_on_selector_all("main *:not(svg *)", sizes)) >= 10
        assert len(page.screenshot(full_page=True)) > 10_000


def test_it_prints(page):
    page.emulate_media(media="print", color_scheme="dark")
    try:
        assert not page.locator("#choices").is_visible()
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert len(page.pdf()) > 10_000
    finally:
        page.emulate_media(media="screen", color_scheme="light")


def test_a_request_would_be_seen(page, said):
    """And refused by the page's own policy."""
    page.evaluate("fetch('https://example.org/').catch(() => 0)")
    page.wait_for_timeout(200)
    assert any("Content Security Policy" in text for text in said)
    said.clear()


@pytest.fixture(scope="module")
def audited(tmp_path_factory) -> Path:
    """The page of an audit of a small photograph's gradient."""
    photos = load_dataset("photos")
    made = make_victim("lenet", photos, [6], network="shared")
    pixels = made.images[:, ::2, ::2]
    params = jaxleak.draw_params(made.model, jax.random.key(0), pixels.shape[1:])
    victim = replace(made, images=pixels, params=params, surrogates=None)
    target = np.eye(victim.num_classes)[victim.labels]
    update = jax.jit(lambda p, x, t: victim.share(p, x, t, jax.random.key(0)))(params, pixels, target)
    out = tmp_path_factory.mktemp("audit") / "run"
    update = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), update)
    sweep = Sweep(victim=replace(victim, update=update), attacks=(jaxleak.IDLG,), seeds=3, snapshots=())
    report, _ = jaxleak.audit(sweep, out, quiet=True)
    assert report["verdict"] == "recovered"
    return out / "audit.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_an_audits_page_fits_and_shows_its_verdict_first(browser, audited, width, scheme):
    asked: list[str] = []
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page.on("console", lambda message: asked.append(message.text))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(audited.as_uri())
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    box = page.locator(".verdict").bounding_box()
    assert box["y"] + box["height"] < 800  # on the first screen
    assert page.locator(".word").inner_text() == "Recovered"
    sizes = page.evaluate("[...document.images].map(image => image.naturalWidth)")
    assert len(sizes) == 2
    assert min(sizes) > 100
    colours = page.evaluate("['backgroundColor', 'color'].map(name => getComputedStyle(document.body)[name])")
    dark = sum(map(int, re.findall(r"\d+", colours[0])[:3])) < 200
    assert dark == (scheme == "dark")
    page.close()


def test_an_audits_page_prints_on_two_pages(browser, audited):
    page = browser.new_page(color_scheme="dark")
    page.goto(audited.as_uri())
    printed = page.pdf(prefer_css_page_size=True)
    assert 1 <= len(re.findall(rb"/Type\s*/Page\b", printed)) <= 2
    page.close()
