"""The page in headless Chromium: `make test-browser`. Screenshots are left in pytest's temporary folder."""

import base64
import io
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from perceivers.flow.estimate import BUNDLED_MODEL, estimate_flow
from perceivers.flow.files import read_flow
from perceivers.flow.pictures import draw_flow
from perceivers.flow.serving import EXAMPLE
from perceivers.images.classify import classify_image
from perceivers.text.classify import classify_text
from perceivers.text.fill_mask import fill_mask
from tests.support.models import classifier, labels, language
from tests.support.serving import draw_picture, running
from tests.support.tables import as_rows, learned, small_model, write

pytestmark = pytest.mark.browser

SIZES = {"wide": {"width": 1200, "height": 900}, "narrow": {"width": 360, "height": 740}}

READ_PIXELS = """(image) => {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
  canvas.getContext("2d").drawImage(image, 0, 0);
  return canvas.toDataURL("image/png").split(",")[1];
}"""


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert executable, "Chromium is not installed: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def show(browser, tmp_path):
    """Returns a function that opens the page of a server; in the end, nothing has gone wrong on it."""
    pages, problems = [], []

    def note(text, is_expected):
        if not is_expected:
            problems.append(text)

    def show(url, size="wide", **settings):
        page = browser.new_page(viewport=SIZES[size], **settings)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: note(message.text, message.text.startswith("Failed to load resource")))
        page.on("request", lambda request: note(request.url, request.url.startswith((url, "data:"))))
        page.goto(url)
        page.wait_for_selector("#fields .field")
        pages.append(page)
        return page

    yield show
    for number, page in enumerate(pages):
        page.screenshot(path=tmp_path / f"page{number}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page is too wide"
        page.close()
    assert problems == []


def predict(page, button="Predict"):
    page.get_by_role("button", name=button, exact=True).click()
    page.wait_for_selector("#waiting", state="detached")


def read_bars(page, index=0):
    rows = page.locator(".bars").nth(index).locator("li").all()
    return [tuple(row.locator("span").all_inner_texts()) for row in rows]


def as_percent(classes):
    return [(name, f"{100 * value:.1f}%") for name, value in classes.items()]


@pytest.fixture(scope="module")
def flow_server():
    with running() as (url, _):
        yield url


@pytest.mark.parametrize("size", SIZES)
def test_the_example_of_flow(flow_server, show, tmp_path, size):
    page = show(flow_server, size, color_scheme="light" if size == "wide" else "dark")
    assert page.title() == "Estimates optical flow · perceivers"
    assert "the bundled model: PerceiverIO with 1,421,136 parameters" in page.inner_text("#summary")
    predict(page, "Example")
    flow_2YX = estimate_flow(BUNDLED_MODEL, EXAMPLE / "frame1.jpg", EXAMPLE / "frame2.jpg")
    with Image.open(io.BytesIO(base64.b64decode(page.locator("#picture").evaluate(READ_PIXELS)))) as shown:
        pixels = np.asarray(shown.convert("RGB")).astype(int)
    assert np.abs(pixels - draw_flow(flow_2YX).permute(1, 2, 0).numpy()).max() <= 2
    length_YX = flow_2YX.norm(dim=0)
    caption = page.inner_text("figcaption")
    assert f"{length_YX.mean():.2f} pixels long on average, {length_YX.max():.2f} at most" in caption
    with page.expect_download() as download:
        page.get_by_text("Download flow.flo").click()
    download.value.save_as(tmp_path / "flow.flo")
    torch.testing.assert_close(read_flow(tmp_path / "flow.flo")[0], flow_2YX, rtol=1e-3, atol=1e-4)
    if size == "narrow":
        assert page.locator("#output").evaluate("(output) => output.getBoundingClientRect().top < innerHeight / 2")


def test_what_is_wrong_with_frames_is_said(flow_server, show, tmp_path):
    page = show(flow_server)
    page.get_by_role("button", name="Predict").click()
    assert page.get_by_role("alert").inner_text() == "Missing: First frame, Second frame."
    for name, size in (("First frame", 20), ("Second frame", 24)):
        (tmp_path / f"{size}.png").write_bytes(draw_picture(size, size, size))
        page.get_by_label(name, exact=True).set_input_files(tmp_path / f"{size}.png")
        page.get_by_alt_text(name).wait_for()
    page.get_by_role("button", name="Predict").click()
    page.get_by_text("the frames differ in size, 20 x 20 pixels and 24 x 24 pixels").wait_for()
    assert page.locator("#waiting").is_visible()
    (tmp_path / "text.png").write_text("no picture")
    page.get_by_label("First frame", exact=True).set_input_files(tmp_path / "text.png")
    page.get_by_text("text.png").wait_for()
    page.get_by_role("button", name="Predict").click()
    page.get_by_text("the first frame cannot be decoded as an image.").wait_for()


def test_a_picture_is_classified_with_its_attention(show, tmp_path):
    model = classifier(crop=1.0, class_names=[f"<b>class</b> {k}" for k in range(10)])
    model.save(tmp_path / "model")
    (tmp_path / "picture.png").write_bytes(draw_picture(3))
    (expected,) = classify_image(model, [tmp_path / "picture.png"])
    with running(tmp_path / "model") as (url, _):
        page = show(url)
        page.get_by_label("Picture", exact=True).set_input_files(tmp_path / "picture.png")
        page.get_by_alt_text("Picture").wait_for()
        page.get_by_label("Classes").fill("3")
        predict(page)
        assert read_bars(page) == as_percent(expected)[:3]
        layers = page.locator("#attention img")
        assert layers.count() == 2
        for layer in layers.all():
            assert layer.evaluate("(image) => [image.naturalWidth, image.naturalHeight]") == [12, 12]
        boxes = [layer.bounding_box() for layer in layers.all()]
        assert boxes[0] == boxes[1], "attention lies over the picture"
        page.get_by_label("also draw what the model attends to").uncheck()
        page.get_by_label("Classes").fill("10")
        page.get_by_role("button", name="Predict").click()
        page.locator("#attention").wait_for(state="detached")
        assert read_bars(page) == as_percent(expected)


def test_masks_of_a_text_are_filled(show, tmp_path):
    model = language()
    model.save(tmp_path / "model")
    filled = fill_mask(model, "ab[MASK*2]c", 3)
    with running(tmp_path / "model") as (url, _):
        page = show(url, "narrow")
        page.get_by_label("Text", exact=True).fill("ab[MASK*2]c")
        page.get_by_label("Candidates").fill("3")
        predict(page)
        assert page.locator("#text").text_content() == filled.text
        cells = [row.locator("td").all_inner_texts() for row in page.locator("tr").all()]
        assert cells == [
            [f"{name} {100 * value:.1f}%" for name, value in candidates.items()] for candidates in filled.candidates
        ]
        parts = page.locator(".text b").all_inner_texts()
        assert parts == ["a", "b", "[MASK]", "[MASK]", "c"]


def test_a_text_is_classified_with_its_attention(show, tmp_path):
    model = labels({"topic": 3}, {"topic": ["art", "law", "sea"]})
    model.save(tmp_path / "model")
    (expected,) = classify_text(model, ["some words"])
    with running(tmp_path / "model") as (url, _):
        page = show(url)
        page.get_by_label("Text", exact=True).fill("some words")
        predict(page)
        assert read_bars(page) == as_percent(expected)
        assert "".join(page.locator(".text b").all_inner_texts()).endswith("some words")


def test_a_row_of_a_table_has_a_form_of_its_columns(show, tmp_path):
    columns = {"size": learned("number", [1.5, 2, 7]), "a color": learned("category", ["red", "green", "blue"])}
    model = small_model(columns, {"weight": learned("number", [1, 5, 9]), "kind": learned("category", ["x", "y", "x"])})
    model.save(tmp_path / "model")
    (expected,) = write(model, as_rows({"size": [3.25], "a color": ["green"]}))
    with running(tmp_path / "model") as (url, _):
        page = show(url)
        page.get_by_label("size").fill("3.25")
        options = page.get_by_label("a color").locator("option").all_inner_texts()
        assert options == ["unknown", "blue", "green", "red"]
        page.get_by_label("a color").select_option("green")
        predict(page)
        assert float(page.inner_text(".value")) == pytest.approx(expected["weight_predicted"], rel=1e-4)
        best = (expected["kind_predicted"], f"{100 * expected['kind_probability']:.1f}%")
        assert read_bars(page)[0] == best
