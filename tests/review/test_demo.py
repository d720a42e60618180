"""The demo: what it refuses, what it draws, and its page in a real browser."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from l2p.errors import UserError
from l2p.review.demo import DrawRequest, demo_app

GOOD = {"prompt": "a lake", "seed": 7, "height": 32, "width": 48, "path": "l2p"}


class FakeModels:
    """Says what it was asked for by a colour."""

    about = {"name": "quick", "height": 32, "width": 48, "device": "cpu"}
    about |= {"paths": ["l2p", "vae", "pid"], "scale": 4}

    def draw(self, request):
        red = {"l2p": 10, "vae": 250, "pid": 130}[request.path]
        scale = 4 if request.path == "pid" else 1
        size = (scale * request.height, scale * request.width, 3)
        return np.full(size, (red, request.seed % 256, 0), np.uint8), 12.34


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": " "}, "prompt"),
        ({"prompt": "x" * 1001}, "prompt"),
        ({"seed": -1}, "seed"),
        ({"seed": 1.5}, "whole number"),
        ({"seed": True}, "whole number"),
        ({"height": 7}, "multiple of 8"),
        ({"width": 4096}, "multiple of 8"),
        ({"path": "gan"}, "path must be l2p"),
    ],
)
def test_what_cannot_be_drawn_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        DrawRequest.check({**GOOD, **change})


def test_a_picture_and_its_latency(serve, call):
    address = serve(demo_app(FakeModels()))
    assert call(address, "/api/about")[1]["name"] == "quick"
    status, made = call(address, "/api/draw", GOOD)
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(made["picture"].partition(",")[2]))))
    assert status == 200 and made["milliseconds"] == 12.3 and picture.shape == (32, 48, 3)
    assert picture[0, 0].tolist() == [10, 7, 0]
    status, error = call(address, "/api/draw", {**GOOD, "height": 33})
    assert status == 400 and "multiple of 8" in error["detail"]


def test_the_page(chromium, until, serve):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select

    def one(selector):
        return chromium.find_element(By.CSS_SELECTOR, selector)

    chromium.get(serve(demo_app(FakeModels())))
    until(lambda: one("#title").text == "quick")
    assert one("#width").get_property("value") == "48"
    one("#draw").click()
    until(lambda: "12 ms" in one("#caption").text)
    assert "l2p, 48 × 32, seed 7" in one("#caption").text
    Select(one("#path")).select_by_value("vae")
    one("#prompt").clear()
    one("#prompt").send_keys("<b>a river</b>")
    one("#draw").click()
    until(lambda: "vae, 48" in one("#caption").text)
    assert "<b>a river</b>" in one("#caption").text
    Select(one("#path")).select_by_visible_text("pid: its teacher, pixel decoder, 4 × as large")
    one("#draw").click()
    until(lambda: "pid, 192 × 128" in one("#caption").text)
    before = one("#seed").get_property("value")
    one("#another").click()
    until(lambda: one("#seed").get_property("value") != before)
