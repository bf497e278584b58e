"""The page in a real browser: every tab loads and does what it is for, on a desk and on a phone, by day and by night."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import SENTENCE
from tests.runs import ROOT, free_port, wait_for_port

pytestmark = pytest.mark.browser
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WAIT = 60_000  # milliseconds, for the slowest machine
SHOTS = os.environ.get("TOKENCOLOR_SCREENSHOTS")  # a folder to keep pictures of the page in


@pytest.fixture(scope="session")
def address(trained, tokcom_checkpoint, reader, vit_checkpoint):
    """A demo that runs, with small checkpoints of all systems."""
    port = free_port()
    command = [sys.executable, "demo.py", "--checkpoint", trained / "best_model.pth", "--tokcom", tokcom_checkpoint]
    command += [
        "--image_context",
        reader,
        "--vit",
        vit_checkpoint,
        "--port",
        str(port),
        "--no-browser",
        "--device",
        "cpu",
    ]
    process = subprocess.Popen(command, cwd=ROOT)
    wait_for_port(port, process)
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    process.wait()


@pytest.fixture(scope="session")
def chromium():
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture(params=[(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")], ids="{0[0]}-{0[1]}".format)
def page(request, chromium, address):
    """The open page, which asks nobody but its own server and reports no error."""
    width, scheme = request.param
    page = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.set_default_timeout(WAIT)
    elsewhere, failed = [], []
    page.on("request", lambda r: r.url.startswith((address, "data:", "blob:")) or elsewhere.append(r.url))
    page.on("pageerror", lambda error: failed.append(str(error)))
    page.goto(address)
    page.wait_for_selector("text=Add noise and recover")
    yield page
    assert page.evaluate("document.documentElement.scrollWidth") <= width  # nothing to scroll sideways for
    if SHOTS:
        test = request.node.name.split("[")[0].removeprefix("test_")
        page.screenshot(path=Path(SHOTS) / f"{test}-{width}-{scheme}.png", full_page=True)
    page.close()
    assert not elsewhere and not failed


def tab(page, name: str) -> None:
    """Open a tab, which a narrow page keeps in a menu."""
    found = page.get_by_role("tab", name=name, exact=True)
    if not found.is_visible():
        page.locator(".overflow-menu > button").first.click()
        page.locator(".overflow-dropdown button", has_text=name).first.click()
    else:
        found.click()


def fill(page, label: str, value: str) -> None:
    page.get_by_label(label, exact=True).first.fill(value)


def press(page, name: str, answer: str):
    page.get_by_role("button", name=name, exact=True).click()
    return page.wait_for_selector(answer).inner_text()


def test_a_sentence_is_read_back_out_of_a_noisy_picture(page, tmp_path):
    fill(page, "Text", SENTENCE)
    press(page, "Add noise and recover", "#recovered .tc-bars")
    assert page.locator("#pictures .tc-grid").count() == 3
    assert page.locator("#pictures .tc-grid i[title]").first.get_attribute("title")
    press(page, "Animate", "#animation img")
    with page.expect_download() as download:
        page.locator("a[download]").first.click()
    download.value.save_as(tmp_path / "picture.png")
    Image.open(tmp_path / "picture.png").convert("RGB").save(tmp_path / "picture.jpg", quality=95)
    tab(page, "Read a picture")
    for name in ("picture.png", "picture.jpg"):
        page.locator("input[type=file]").locator("visible=true").or_(
            page.locator("input[type=file]")
        ).first.set_input_files(tmp_path / name)
        page.wait_for_timeout(1000)
        signed = "tokens; cleaned" if name == "picture.png" else "does not say which checkpoint"
        press(page, "Read", f"#read >> text={signed}")
        assert SENTENCE[:30] in page.locator("#read").inner_text()
        if name == "picture.png":
            page.get_by_label("Remove Image").or_(page.get_by_label("Clear")).first.click()


def test_gaps_are_filled(page):
    tab(page, "Write")
    fill(page, "Prompt, or text with gaps", "the color of a [[3]] is a point in space")
    assert press(page, "Write", "#written .tc-text .new")
    written = page.locator("#written").inner_text()
    assert written.startswith("the color of a") and "is a point in space" in written


def test_mistakes_are_told_and_nothing_breaks(page):
    fill(page, "Text", " ")
    press(page, "Add noise and recover", "text=write some text first")
    fill(page, "Text", "<img src=x onerror=alert(1)>")
    press(page, "Add noise and recover", "#recovered .tc-bars")
    assert page.locator("#recovered img").count() == 0


def test_tokcom_reads_back_and_continues(page):
    tab(page, "TokCom")
    page.get_by_label("Text", exact=True).locator("visible=true").fill(SENTENCE[:50])
    shares = press(page, "Encode, add noise, read back", "#tokcom_read .tc-bars")
    assert "vectors alone" in shares and shares.count("%") == 2
    page.get_by_label("Prompt to continue").fill(SENTENCE[:40])
    assert press(page, "Continue", "#tokcom_written .tc-text .new").strip()


def test_text_travels_as_an_image(page):
    tab(page, "Image context")
    assert "visual tokens" in press(page, "Encode, send, read back", "#carried .tc-table")
    assert "Read back to the letter" in page.locator("#carried").inner_text()
    assert "tokens restored" in press(page, "Let the model read", "#restored .tc-bars")


def test_an_image_is_classified(page, tmp_path):
    Image.effect_noise((64, 64), 80).convert("RGB").save(tmp_path / "noise.png")
    tab(page, "ViT")
    page.locator("input[type=file]").last.set_input_files(tmp_path / "noise.png")
    page.wait_for_timeout(1000)
    press(page, "Classify", "#looked img")
    assert page.locator("#looked img").count() == 2 and "attention rollout" in page.locator("#looked").inner_text()
