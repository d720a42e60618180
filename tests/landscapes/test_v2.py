"""The second world: the same words, larger subjects; one scene at every resolution, and every attribute to be seen."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from PIL import Image

from l2p import landscapes
from l2p.errors import UserError
from l2p.landscapes import ATTRIBUTES, caption, load_world, v2
from l2p.landscapes.v2 import Scene, render, render_batch
from l2p.landscapes.v2.scene import MIN_HOUSE


def shrink(picture: np.ndarray, by: int) -> np.ndarray:
    h, w, _ = picture.shape
    return picture.reshape(h // by, by, w // by, by, 3).astype(np.float64).mean((1, 3))


def test_a_seed_gives_one_picture_and_a_batch_is_its_pictures() -> None:
    assert Scene.from_seed(3) == Scene.from_seed(3)
    batch = render_batch([5, 2], 32, 48)
    assert batch.shape == (2, 32, 48, 3) and batch.dtype == np.uint8
    assert np.array_equal(batch[1], render(Scene.from_seed(2), 32, 48))
    assert not np.array_equal(batch[0], batch[1])
    assert render_batch([], 8, 8).shape == (0, 8, 8, 3)


def test_both_worlds_share_attributes_and_captions() -> None:
    for seed in range(60):
        old, new = landscapes.Scene.from_seed(seed), Scene.from_seed(seed)
        assert old.attributes == new.attributes and np.array_equal(old.labels, new.labels)
        assert caption(old, 7) == caption(new, 7) and caption(old) == caption(new)


@pytest.mark.parametrize("seed", range(10))
def test_resolutions_agree(seed: int) -> None:
    scene = Scene.from_seed(seed)
    small = render(scene, 128, 128)
    assert np.abs(small - shrink(render(scene, 512, 512), 4)).mean() < 3.0


def test_a_very_large_picture_agrees_too_and_holds_more() -> None:
    scene = Scene.from_attributes(
        6, time="day", season="summer", water="none", house="yes", trees="broadleaf"
    )
    small, large = render(scene, 128, 96), render(scene, 1536, 1152)
    assert np.abs(small - shrink(large, 12)).mean() < 3.0
    # Grass, leaves and shingles: more than an enlargement holds.
    medium = Image.fromarray(render(scene, 512, 384)).resize((1152, 1536), Image.Resampling.BICUBIC)
    fine, smooth = (
        np.abs(x - shrink(x, 4).repeat(4, 0).repeat(4, 1)).mean() for x in (large, np.asarray(medium))
    )
    assert fine > 1.4 and fine > 1.5 * smooth, (fine, smooth)


def test_fine_ripples_leave_the_average_of_the_water() -> None:
    scene = Scene.from_attributes(11, time="day", water="lake", house="no", trees="none")
    small, large = render(scene, 64, 48), shrink(render(scene, 2048, 1536), 32)
    rows = slice(int((scene.lake.y - 0.6 * scene.lake.b) * 64), int((scene.lake.y + 0.6 * scene.lake.b) * 64))
    assert abs(small[rows].mean() - large[rows].mean()) < 1.5


def test_bands_change_nothing(monkeypatch) -> None:
    for seed in (1, 6, 11, 4):  # water, trees, a house, snow
        scene = Scene.from_seed(seed)
        whole = render(scene, 200, 160)
        monkeypatch.setattr(sys.modules[render.__module__], "BAND", 48)
        gap = np.abs(whole.astype(int) - render(scene, 200, 160))
        assert gap.max() <= 4 and (gap > 1).mean() < 1e-4
        monkeypatch.undo()


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_every_attribute_is_seen(name: str) -> None:
    """Another value changes a good part of the picture, whatever the rest is."""
    for seed in range(8):
        value = Scene.from_seed(seed).attributes[name]
        picture = render(Scene.from_seed(seed), 96, 96).astype(int)
        for other in ATTRIBUTES[name]:
            if other != value:
                changed = render(Scene.from_attributes(seed, **{name: other}), 96, 96)
                share = (np.abs(picture - changed).max(-1) > 12).mean()
                assert share > 0.025, (seed, value, other)


def house_width(seed: int, height: int, width: int) -> float:
    """Share of the picture's width that changes when the house is taken away, above its foot and below its smoke."""
    fixed = dict(water="none", trees="none", mountains="no")
    scene = Scene.from_attributes(seed, house="yes", **fixed)
    with_house = render(scene, height, width).astype(int)
    without = render(Scene.from_attributes(seed, house="no", **fixed), height, width)
    rows = slice(
        int((scene.home.y - 0.35 * scene.home.size) * height),
        int((scene.home.y - 0.1 * scene.home.size) * height),
    )
    return float((np.abs(with_house - without).max(-1) > 12)[rows].any(0).mean())


def test_a_house_is_at_least_a_sixth_of_the_width() -> None:
    sizes = [Scene.from_attributes(seed, house="yes").home.size for seed in range(100)]
    assert min(sizes) >= MIN_HOUSE and np.mean(np.array(sizes) > 0.4) > 0.25  # close views
    shares = [house_width(seed, 96, 96) for seed in range(12)]
    assert min(shares) > 0.25 and max(shares) > 0.4
    assert min(house_width(seed, 72, 128) for seed in range(12)) > 1 / 6


def test_a_house_is_inside_the_square_and_mostly_inside_a_portrait() -> None:
    for seed in range(60):
        for water in ATTRIBUTES["water"]:
            home = Scene.from_attributes(seed, house="yes", water=water).home
            assert abs(home.u) + 0.5 * home.size < 0.5
            seen = min(home.u + home.size / 2, 1 / 3) - max(home.u - home.size / 2, -1 / 3)
            assert seen > 0.5 * home.size


def test_things_stand_on_land() -> None:
    for seed in range(100):
        scene = Scene.from_seed(seed)
        water = scene.lake or scene.river
        things = [*scene.wood, *([scene.home] if scene.home else [])]
        for thing in things if water else []:
            assert water.distance(np.array([thing.u]), np.array([thing.y]))[0] > 0


def test_trees_are_in_the_square_where_there_are_trees() -> None:
    for seed in range(60):
        for kind in ("pines", "broadleaf"):
            scene = Scene.from_attributes(seed, trees=kind)
            assert sum(abs(tree.u) < 0.5 for tree in scene.wood) >= 2, (seed, kind)


@pytest.mark.parametrize("size", [(64, 160), (160, 64), (7, 9), (1, 1), (1, 40), (40, 1)])
def test_any_size(size: tuple[int, int]) -> None:
    for seed in range(8):
        picture = render(Scene.from_seed(seed), *size)
        assert picture.shape == (*size, 3) and picture.dtype == np.uint8


def test_a_panorama_and_a_portrait_hold_the_square() -> None:
    for seed in (1, 2, 9):
        scene = Scene.from_seed(seed)
        square, wide = render(scene, 96, 96).astype(int), render(scene, 96, 192)
        assert np.abs(square - wide[:, 48:144]).mean() < 0.5
        assert np.abs(square[:, 16:80] - render(scene, 96, 64)).mean() < 0.5
        assert wide[:, :48].std() > 8 and wide[:, 144:].std() > 8


def test_worlds_are_found_by_name() -> None:
    world = load_world("landscapes-v2")
    assert isinstance(world.scene(3), v2.Scene)
    assert np.array_equal(world.render(world.scene(3), 32, 32), render(Scene.from_seed(3), 32, 32))
    prints = [
        load_world(name).fingerprint(*size)
        for name in ("landscapes", "landscapes-v2")
        for size in ((32, 32), (32, 48))
    ]
    assert len(set(prints)) == 4 and prints[0] == load_world("landscapes").fingerprint(32, 32)
    with pytest.raises(
        UserError, match="no world is called 'moon': expected one of landscapes, landscapes-v2"
    ):
        load_world("moon")


@pytest.mark.parametrize(
    "call",
    [
        lambda: render(Scene.from_seed(0), 0, 8),
        lambda: Scene.from_seed(-1),
        lambda: Scene.from_attributes(0, waters="lake"),
        lambda: Scene.from_attributes(0, water="sea"),
    ],
)
def test_mistakes_are_one_line(call) -> None:
    with pytest.raises(ValueError) as error:
        call()
    assert "\n" not in str(error.value)
