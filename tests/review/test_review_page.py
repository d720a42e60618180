"""The review in a real browser: clicks, keys, boxes, undo, a reload in mid-review, two reviewers at once."""

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from l2p.review.answers import Answers
from l2p.review.server import review_app


@pytest.fixture
def address(review, tmp_path, serve):
    return serve(review_app(review, tmp_path / "review", sources=[tmp_path]))


def test_a_review_by_mouse_and_by_keys(chromium, until, address, review, tmp_path):
    def one(selector):
        return chromium.find_element(By.CSS_SELECTOR, selector)

    def keys(text):
        ActionChains(chromium).send_keys(text).perform()

    def counted(number):
        until(lambda: one("#count").text.startswith(f"{number} of 4"))

    kept = Answers(tmp_path / "review" / "answers")
    chromium.get(address)
    until(lambda: one("#name").is_displayed())
    one("#name").send_keys("Ann", Keys.ENTER)
    until(lambda: one("#ask").is_displayed())
    order = review.order("Ann")
    counted(0)
    # by mouse, with a box on the right picture
    assert not one("#next").is_enabled()
    one('[data-question="follows"] [data-choice="left"]').click()
    one('[data-question="real"] [data-choice="tie"]').click()
    shown = one('.shown[data-side="right"]')
    width, height = shown.size["width"], shown.size["height"]
    start = ActionChains(chromium).move_to_element_with_offset(shown, -width // 4, -height // 4)
    start.click_and_hold().move_by_offset(width // 2, height // 4).perform()
    growing = one(".shown i.growing")  # the box is seen while it is drawn
    assert growing.size["width"] == pytest.approx(width / 2, abs=0.03 * width)
    ActionChains(chromium).release().perform()
    until(lambda: len(chromium.find_elements(By.CSS_SELECTOR, ".shown i")) == 1)
    assert kept.of("Ann") == {}
    one("#next").click()
    counted(1)
    sides = review.sides("Ann", order[0].id)
    answer = kept.of("Ann")[order[0].id]
    assert (answer.follows, answer.real) == (sides["left"], "tie")
    (box,) = answer.boxes
    assert box.of == sides["right"]
    assert (box.x, box.y, box.w, box.h) == pytest.approx((0.25, 0.25, 0.5, 0.25), abs=0.03)
    # by keys, and a reload in the middle
    keys("dj")
    keys(Keys.ENTER)
    counted(2)
    sides = review.sides("Ann", order[1].id)
    answer = kept.of("Ann")[order[1].id]
    assert (answer.follows, answer.real) == (sides["right"], sides["left"])
    chromium.refresh()
    counted(2)
    assert one("#prompt").text == order[2].prompt
    # undo shows the answer as it was, to be changed
    keys("u")
    counted(1)
    pressed = [
        b.get_attribute("data-choice")
        for b in chromium.find_elements(By.CSS_SELECTOR, '[aria-pressed="true"]')
    ]
    assert one("#prompt").text == order[1].prompt and pressed == ["right", "left"]
    keys("s")
    keys(Keys.ENTER)
    counted(2)
    assert kept.of("Ann")[order[1].id].follows == "tie"
    # another reviewer beside her
    first = chromium.current_window_handle
    chromium.switch_to.new_window("tab")
    chromium.get(f"{address}/?reviewer=Bob")
    counted(0)
    keys("al")
    keys(Keys.ENTER)
    counted(1)
    chromium.close()
    chromium.switch_to.window(first)
    for done in (3, 4):
        keys("ak")
        keys(Keys.ENTER)
        until(lambda n=done: len(kept.of("Ann")) == n)
        if done == 3:
            counted(3)
    until(lambda: one("#done").is_displayed())
    assert len(kept.of("Bob")) == 1
    # the first prompt is markup that would change the title
    assert chromium.title == "l2p review" and any("<img" in pair.prompt for pair in order)
    severe = [
        entry
        for entry in chromium.get_log("browser")
        if entry["level"] == "SEVERE" and "favicon" not in entry["message"]
    ]
    assert not severe
