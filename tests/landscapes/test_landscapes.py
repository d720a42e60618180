"""The little world: deterministic, the same at every resolution, told truthfully."""

from __future__ import annotations

import numpy as np
import pytest

from l2p.landscapes import ATTRIBUTES, Scene, caption, parse, render, render_batch


def shrink(picture: np.ndarray, by: int) -> np.ndarray:
    h, w, _ = picture.shape
    return picture.reshape(h // by, by, w // by, by, 3).astype(np.float64).mean((1, 3))


def test_a_seed_gives_the_same_picture_twice() -> None:
    assert np.array_equal(render(Scene.from_seed(3)), render(Scene.from_seed(3)))
    assert Scene.from_seed(3) == Scene.from_seed(3)
    assert not np.array_equal(render(Scene.from_seed(3)), render(Scene.from_seed(4)))


def test_a_batch_is_its_pictures() -> None:
    batch = render_batch([5, 2], 32, 48)
    assert batch.shape == (2, 32, 48, 3) and batch.dtype == np.uint8
    assert np.array_equal(batch[1], render(Scene.from_seed(2), 32, 48))
    assert render_batch([], 8, 8).shape == (0, 8, 8, 3)


@pytest.mark.parametrize("seed", range(12))
def test_resolutions_agree(seed: int) -> None:
    scene = Scene.from_seed(seed)
    assert np.abs(render(scene) - shrink(render(scene, 512, 512), 4)).mean() < 3.0


def test_detail_grows_with_the_pixels() -> None:
    def fine(picture: np.ndarray) -> float:
        return float(np.abs(np.diff(picture.astype(np.float64), axis=1)).mean())

    for seed in range(6):
        scene = Scene.from_seed(seed)
        large, small = render(scene, 512, 512), render(scene)
        coarse = shrink(large, 4).repeat(4, 0).repeat(4, 1)
        detail = np.abs(large - coarse).mean()
        x = np.arange(512) / 4 - 0.375
        smooth = np.stack([[np.interp(x, np.arange(128), row[:, c]) for row in small] for c in range(3)], -1)
        assert fine(large) > fine(smooth) and detail > 0.5


@pytest.mark.parametrize("size", [(64, 160), (160, 64), (7, 9), (1, 1), (1, 40), (40, 1)])
def test_any_size(size: tuple[int, int]) -> None:
    for seed in range(8):
        picture = render(Scene.from_seed(seed), *size)
        assert picture.shape == (*size, 3) and picture.dtype == np.uint8


def test_captions_never_contradict_their_scene() -> None:
    words = set()
    for seed in range(500):
        scene = Scene.from_seed(seed)
        for wording in (None, 7):
            text = caption(scene, wording)
            words |= set(text.replace(",", "").split())
            assert text == text.lower() and 3 <= len(text.split()) <= 24
            told = parse(text)
            assert told and all(scene.attributes[name] == value for name, value in told.items()), text
    assert len(words) < 200


def test_a_text_is_read() -> None:
    assert parse("A lake at dusk") == {"time": "dusk", "water": "lake"}
    assert parse("a snowy cabin by a stream, no trees, under the stars") == {
        "time": "night", "season": "winter", "water": "river", "house": "yes", "trees": "none"}  # fmt: skip
    assert parse("no mountains, no clouds") == {"mountains": "no", "sky": "clear"}
    assert parse("") == {}


def test_attributes_are_balanced_and_labelled() -> None:
    labels = np.stack([Scene.from_seed(seed).labels for seed in range(600)])
    assert labels.dtype == np.int64 and labels.shape == (600, 7)
    for column, (name, values) in zip(labels.T, ATTRIBUTES.items(), strict=True):
        share = np.bincount(column, minlength=len(values)) / 600
        assert share.min() > 0.7 / len(values), name
    scene = Scene.from_seed(9)
    assert [ATTRIBUTES[n][k] for n, k in zip(ATTRIBUTES, scene.labels, strict=True)] == list(
        scene.attributes.values()
    )


def test_attributes_can_be_forced() -> None:
    for seed in range(20):
        scene = Scene.from_attributes(seed, water="lake", house="yes", trees="pines")
        assert scene.attributes | {"water": "lake", "house": "yes", "trees": "pines"} == scene.attributes
        assert scene.lake and scene.home and scene.wood
        assert scene.time == Scene.from_seed(seed).time


def test_things_stand_on_land() -> None:
    for seed in range(200):
        scene = Scene.from_seed(seed)
        water = scene.lake or scene.river
        things = [*scene.wood, *([scene.home] if scene.home else [])]
        for thing in things if water else []:
            assert water.distance(np.array([thing.u]), np.array([thing.y]))[0] > 0


@pytest.mark.parametrize(
    "call",
    [
        lambda: render(Scene.from_seed(0), 0, 8),
        lambda: render(Scene.from_seed(0), 8, -1),
        lambda: Scene.from_seed(-1),
        lambda: Scene.from_attributes(0, waters="lake"),
        lambda: Scene.from_attributes(0, water="sea"),
    ],
)
def test_mistakes_are_told_in_one_line(call) -> None:
    with pytest.raises(ValueError) as error:
        call()
    assert "\n" not in str(error.value)
