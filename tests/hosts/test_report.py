"""Reports in a real browser, from the disk, without a network: no error, and the viewers draw.

`apt-get install --no-install-recommends chromium` installs it on Debian.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Locator, Page, sync_playwright

from tests.commands import workbench
from tests.report_folders import BAD_CASE, write_crossval, write_data, write_pictures, written

CHROMIUM = shutil.which("chromium")

#: WebGL2 without a GPU.
OPTIONS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]

#: Milliseconds after which a change is drawn.
SETTLES = 700

#: Of 255, more of one colour than of another is no grey.
COLOURED = 25

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report of volumes that were judged, and one of pictures that nobody judged."""
    folder = tmp_path_factory.mktemp("reports")
    data = write_data(folder)
    run = write_crossval(data, folder)
    workbench("report", run, "--dataset_dir", data)
    images, out = write_pictures(folder)
    config = {"spatial_dims": 2, "in_channels": 3, "labels": {"background": 0, "cell": 1}, "channels": [4]}
    objects = {"to_labels": [{"_target_": "scripts.transforms.WatershedInstancesd"}]}
    recipe = written(folder / "recipe/inference.json", {**config, **objects})
    workbench("report", out, "--dataset_dir", images, "--recipe", recipe)
    return {"volume": run / "report.html", "picture": out / "report.html"}


@pytest.fixture
def page(reports: dict[str, Path], request: pytest.FixtureRequest) -> Iterator[Page]:
    """A report without a network, which must have no complaint at the end."""
    complaints: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        context = browser.new_context(viewport={"width": 1100, "height": 900}, offline=True)
        opened = context.new_page()
        opened.on("console", lambda said: complaints.append(said.text) if said.type != "log" else None)
        opened.on("pageerror", lambda error: complaints.append(str(error)))
        opened.on("request", lambda asked: complaints.append(asked.url) if asked.url[:4] == "http" else None)
        opened.goto(reports[request.param].as_uri())
        yield opened
        browser.close()
    harmless = "GPU stall due to ReadPixels"  # of a screenshot
    assert [text for text in complaints if harmless not in text] == []


def pixels(part: Locator) -> np.ndarray:
    """What a part of the page shows, (rows, columns, 3)."""
    part.page.wait_for_timeout(SETTLES)
    return np.asarray(Image.open(io.BytesIO(part.screenshot())).convert("RGB"), int)


def coloured(picture: np.ndarray) -> int:
    """How many pixels are not grey."""
    return int((picture.max(axis=2) - picture.min(axis=2) > COLOURED).sum())


@pytest.mark.parametrize("page", ["volume"], indirect=True)
def test_volumes_are_drawn_and_their_layers_go_on_and_off(page: Page) -> None:
    page.wait_for_selector("#viewer[data-shown]")
    canvas = page.locator("#volume")
    whole = pixels(canvas)
    assert len(np.unique(whole)) > 30  # grey values of the image
    assert coloured(whole) > 1000
    for layer in ("prediction", "truth"):
        page.get_by_role("checkbox", name=layer).uncheck()
    plain = pixels(canvas)
    assert coloured(plain) < 0.1 * coloured(whole)
    page.get_by_role("checkbox", name="truth").check()
    outline = pixels(canvas)
    assert coloured(plain) < coloured(outline) < coloured(whole)
    page.get_by_role("checkbox", name="uncertainty").check()
    assert coloured(pixels(canvas)) > 2 * coloured(outline)
    page.get_by_role("checkbox", name="uncertainty").uncheck()
    slider = page.get_by_label("bottom to top")
    slider.focus()
    slider.press("Home")  # the keyboard is enough
    assert coloured(pixels(canvas)) < coloured(outline)
    page.get_by_role("radio", name="best").check()
    page.wait_for_selector("#viewer[data-shown='2']")
    assert BAD_CASE in page.locator(".now").inner_text()
    assert coloured(pixels(canvas)) > 100


@pytest.mark.parametrize("page", ["volume"], indirect=True)
def test_a_volume_lies_as_its_affine_says(page: Page) -> None:
    page.wait_for_selector("#viewer[data-shown]")
    page.get_by_role("radio", name="best").check()
    page.wait_for_selector("#viewer[data-shown='2']")
    content = json.loads(page.locator("#viewer-data").inner_text())
    at = [float(slider.input_value()) / 1000 for slider in page.locator("input[name=slice]").all()]
    assert at == pytest.approx(content["cases"][2]["at"], abs=0.002)


@pytest.mark.parametrize("page", ["picture"], indirect=True)
def test_pictures_are_drawn_and_their_layers_go_on_and_off(page: Page) -> None:
    page.get_by_role("radio", name="largest").check()
    stage = page.locator(".stage")
    whole = pixels(stage)
    page.get_by_role("checkbox", name="prediction").uncheck()
    plain = pixels(stage)
    assert (whole != plain).any(axis=2).mean() > 0.1
    page.get_by_role("checkbox", name="uncertainty").check()
    assert (pixels(stage) != plain).any(axis=2).mean() > 0.5
    page.get_by_role("checkbox", name="uncertainty").uncheck()
    page.get_by_role("checkbox", name="image").uncheck()
    assert pixels(stage)[:-20, :-20].max() == 0  # but for what scrolls it
    before = page.locator(".stack:not([hidden])").bounding_box()
    page.get_by_role("slider", name="size").focus()
    page.get_by_role("slider", name="size").press("End")
    after = page.locator(".stack:not([hidden])").bounding_box()
    assert before is not None
    assert after is not None
    assert after["width"] > 4 * before["width"]


@pytest.mark.parametrize("width", [360, 1100])
@pytest.mark.parametrize("kind", ["volume", "picture"])
def test_no_page_is_wider_than_its_screen(reports: dict[str, Path], kind: str, width: int) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        page = browser.new_page(viewport={"width": width, "height": 800})
        page.goto(reports[kind].as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        browser.close()
