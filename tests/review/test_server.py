"""The review's server: blind, strict, and everything on the disk before the next pair."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from l2p.errors import UserError, UserNotice
from l2p.review.answers import Answers
from l2p.review.pairs import prepare, read_review
from l2p.review.server import review_app
from tests.review.conftest import PROMPTS


@pytest.fixture
def address(review, tmp_path, serve):
    return serve(review_app(review, tmp_path / "review", sources=[tmp_path]))


def test_a_whole_review(address, call, review, tmp_path):
    status, state = call(address, "/api/state", reviewer="Ann")
    assert status == 200 and (state["done"], state["total"]) == (0, 4)
    for done in range(4):
        pair = state["pair"]["id"]
        sides = {}
        for side in ("left", "right"):
            status, data = call(address, "/api/picture", reviewer="Ann", pair=pair, side=side)
            assert status == 200
            color = np.asarray(Image.open(io.BytesIO(data)))[-1, 0]
            sides[side] = "a" if color[0] > color[2] else "b"  # red is the student's
        assert sides == review.sides("Ann", pair)
        box = {"side": "left", "x": 0.1, "y": 0.2, "w": 0.3, "h": 0.4}
        given = {"pair": pair, "follows": "left", "real": "tie", "boxes": [box]}
        status, state = call(address, "/api/answer", given, reviewer="Ann")
        assert status == 200 and state["done"] == done + 1
        kept = Answers(tmp_path / "review" / "answers").of("Ann")[pair]  # read anew from the disk
        assert kept.follows == sides["left"] and kept.real == "tie" and kept.boxes[0].of == sides["left"]
    assert state["pair"] is None
    status, state = call(address, "/api/undo", {}, reviewer="Ann")
    assert state["pair"]["id"] == pair and state["before"] == {
        k: given[k] for k in ("follows", "real", "boxes")
    }
    assert call(address, "/api/state", reviewer="Bob")[1]["done"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pair": "9999"}, "no pair of this review"),
        ({"follows": "a"}, "follows must be left, right or tie"),
        ({"real": None}, "real must be"),
        ({"boxes": "x"}, "boxes must be a list"),
        ({"boxes": [{"side": "left", "x": 0, "y": 0, "w": 2, "h": 1}]}, "inside its picture"),
        ({"boxes": [{"side": "left", "x": "nan", "y": 0, "w": 1, "h": 1}]}, "inside its picture"),
        ({"boxes": [{"side": "up", "x": 0, "y": 0, "w": 1, "h": 1}]}, "a box has a side"),
    ],
)
def test_a_wrong_answer_is_refused_and_not_kept(address, call, tmp_path, change, message):
    good = {"pair": "0000", "follows": "left", "real": "right", "boxes": []}
    status, value = call(address, "/api/answer", {**good, **change}, reviewer="Ann")
    assert status == 400 and message in value["detail"]
    assert Answers(tmp_path / "review" / "answers").all() == {}


def test_strangers_are_refused(address, call, review):
    assert call(address, "/api/state", reviewer=" ")[0] == 400
    assert call(address, "/api/state", reviewer="Ann", host="evil.example")[0] == 400
    assert call(address, "/api/picture", reviewer="Ann", pair="../x", side="left")[0] == 400
    assert call(address, "/api/picture", reviewer="Ann", pair="0000", side="a")[0] == 400
    status, error = call(address, "/api/picture", reviewer="Ann", pair="0000", side="left")
    assert status == 200
    for picture in review.pairs[0].a, review.pairs[0].b:
        Path(picture).unlink()
    status, error = call(address, "/api/picture", reviewer="Ann", pair="0000", side="left")
    assert status == 400 and "gone from the disk" in error["detail"]
    assert call(address, "/docs")[0] == 404


def test_orders_and_sides_differ_between_reviewers_and_stay(review):
    names = [f"reviewer {k}" for k in range(60)]
    orders = {tuple(pair.id for pair in review.order(name)) for name in names}
    assert len(orders) > 10 and review.order("x") == review.order("x")
    swapped = sum(review.sides(name, "0001")["left"] == "b" for name in names)
    assert 15 < swapped < 45


def test_a_review_goes_on_and_refuses_other_pictures(review, folders, tmp_path):
    new, old, prompts = folders
    again = prepare(tmp_path / "review", new, str(old), prompts=str(prompts), num_images=4)
    assert again == review == read_review(tmp_path / "review")
    with pytest.raises(UserError, match="other settings"):
        prepare(tmp_path / "review", new, str(old), prompts=str(prompts), num_images=3)
    (tmp_path / "odd").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "odd" / "other.png")
    with pytest.raises(
        UserError,
        match="no pictures of .* belong together: 0 pairs; without a partner: 0.png, 1.png, 2.png and 1 more",
    ):
        prepare(tmp_path / "r2", new, str(tmp_path / "odd"))


def test_a_pair_is_judged_by_the_prompt_of_its_pictures_where_one_is_missing(tmp_path, folders):
    new, old, prompts = folders
    (old / "1.png").unlink()
    with pytest.warns(UserNotice, match=r"3 pairs; without a partner: 1\.png in"):
        review = prepare(tmp_path / "review", new, str(old), prompts=str(prompts))
    assert [(Path(pair.a).name, pair.prompt) for pair in review.pairs] == [
        ("0.png", PROMPTS[0]),
        ("2.png", PROMPTS[2]),
        ("3.png", PROMPTS[3]),
    ]


def test_a_picture_that_no_browser_shows_is_sent_as_png(tmp_path, serve, call):
    for side in ("a", "b"):
        (tmp_path / side).mkdir()
        Image.new("RGB", (8, 8), (9, 80, 7)).save(tmp_path / side / "x.tif")
    review = prepare(tmp_path / "review", tmp_path / "a", str(tmp_path / "b"))
    address = serve(review_app(review, tmp_path / "review", sources=[tmp_path]))
    status, data = call(address, "/api/picture", reviewer="Ann", pair="0000", side="left")
    assert status == 200 and Image.open(io.BytesIO(data)).getpixel((0, 0)) == (9, 80, 7)
