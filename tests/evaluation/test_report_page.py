"""The report in a real browser: the wipe, the zoom at native pixels, the invention map that fades in, no text as markup."""

import numpy as np
import pytest

from l2p.evaluation.report import write_report
from l2p.files import write_json

HOSTILE = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"


def method(frechet: float) -> dict:
    power = [10.0 / (1 + k) ** 2 for k in range(8)]
    return {
        "attribute_accuracy": 0.9, "frechet": frechet, "seam_index": 1.1, "seam_ratio": 1.0, "detail_ratio": 0.9,
        "latency_ms": 20.0, "psnr_to_teacher": 25.0, "color_drift": 0.8, "seams": {"strength": 1.02},
        "frechet_interval": [frechet - 0.5, frechet + 0.5],
        "spectrum": {"frequencies": [0.03 + k / 16 for k in range(8)], "power": power},
    }  # fmt: skip


@pytest.fixture
def report(tmp_path):
    settings = {
        "num_images": 2, "first_seed": 7_000_000, "prompts": HOSTILE, "height": 48, "width": 64, "patch_size": 16,
        "student_steps": 1, "teacher": "landscapes", "teacher_steps": 20, "teacher_guidance": 1.0, "latency_runs": 1,
        "dtype": "float32", "device": "cpu (x)", "threads": 2, "l2p": "0.1.0", "torch": "2", "python": "3",
        "invention_draws": 4,
    }  # fmt: skip
    summary = {"psnr_to_teacher": 25.0, "seam_ratio": 1.0, "speedup": 20.0}
    metrics = {"summary": summary, "teacher": method(6.0), "student": method(7.0), "settings": settings}
    write_json(
        tmp_path / "metrics.json", {**metrics, "seconds": 3.0, "alarms": [f"seams every 16 px {HOSTILE}"]}
    )
    pictures = {
        "teacher": np.full((2, 48, 64, 3), (200, 30, 30), np.uint8),
        "student": np.full((2, 48, 64, 3), (30, 30, 200), np.uint8),
        "invention": np.zeros((2, 48, 64), np.float16),
    }
    pictures["invention"][:, :24] = 0.3
    (tmp_path / "evaluation").mkdir()
    np.savez(tmp_path / "evaluation" / "pictures.npz", captions=np.array([HOSTILE, "a lake"]), **pictures)
    return write_report(tmp_path, title=HOSTILE)


def test_wipe_zoom_and_map(chromium, report):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    def part(name):
        return chromium.find_element(By.CSS_SELECTOR, f'[data-part="{name}"]')

    def set_slider(name, value):
        script = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))"
        chromium.execute_script(script, part(name), value)

    chromium.set_window_size(1200, 900)
    chromium.get(report.as_uri())
    assert part("stage").is_displayed() and part("left-name").text.startswith("Teacher")
    assert "inset(0px 0px 0px 50%)" in part("over").value_of_css_property("clip-path")
    part("place").send_keys(Keys.HOME)
    assert "0%" in part("bar").get_attribute("style") and part("place").get_property("value") == "0"
    # dragging over the picture
    sheet = part("sheet")
    width = sheet.size["width"]
    chromium.execute_script("arguments[0].scrollIntoView({block: 'center'})", sheet)
    ActionChains(chromium).move_to_element(sheet).click_and_hold().move_by_offset(
        width // 4, 0
    ).release().perform()
    assert float(part("place").get_property("value")) == pytest.approx(75, abs=2)
    # one pixel of the picture on one of the screen, then eight
    for zoom in (1, 8):
        chromium.find_element(By.CSS_SELECTOR, f'[data-zoom="{zoom}"]').click()
        ratio = chromium.execute_script("return window.devicePixelRatio")
        assert part("under").size["width"] * ratio == pytest.approx(64 * zoom, abs=1)
        assert part("under").value_of_css_property("image-rendering") == "pixelated"
    # the map is there, is not seen, and fades in
    assert part("map").value_of_css_property("opacity") == "0"
    set_slider("fade", 80)
    assert float(part("map").value_of_css_property("opacity")) == pytest.approx(0.8)
    # hostile captions, titles and settings stayed text
    assert "owned" not in chromium.title or chromium.title.startswith("<script>")
    assert HOSTILE in part("case").text
    severe = [entry["message"] for entry in chromium.get_log("browser") if entry["level"] == "SEVERE"]
    assert not severe


def test_a_phone_need_not_scroll_sideways(chromium, report):
    chromium.set_window_size(500, 900)  # headless Chromium goes no narrower; an emulated phone does
    chromium.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True},
    )
    try:
        chromium.get(report.as_uri())
        assert chromium.execute_script("return document.documentElement.scrollWidth") <= 391
    finally:
        chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
