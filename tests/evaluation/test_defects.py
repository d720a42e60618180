"""Defects planted in pictures: each is found by the figure meant for it; photographs and renders stay under the alarms."""

import numpy as np
import pytest
import torch
from skimage import data
from skimage.color import deltaE_ciede2000, rgb2lab

from l2p.evaluation import color_difference, color_drift, find_seams, grid_share, repeated_share, seam_index
from l2p.evaluation.attributes import AttributeScore, named_labels
from l2p.evaluation.color import ALARM as COLOR_ALARM
from l2p.evaluation.judge import load_judge
from l2p.evaluation.patch_artifacts import ALARM as MARKS_ALARM
from l2p.evaluation.repetition import ALARM as REPETITION_ALARM
from l2p.evaluation.seam_search import ALARM as SEAM_ALARM
from l2p.evaluation.seam_search import SeamSearch
from l2p.images import from_uint8, to_uint8
from l2p.landscapes import Scene, caption, render, render_batch

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "camera", "coins", "brick", "grass", "gravel")


def photograph(name: str) -> torch.Tensor:
    picture = getattr(data, name)()[:512, :512]
    return from_uint8(np.stack([picture] * 3, -1)[None] if picture.ndim == 2 else picture[None])


@pytest.fixture(scope="module")
def renders():
    return from_uint8(render_batch(range(9_400_000, 9_400_012)))


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_photographs_stay_under_every_alarm(name):
    picture = photograph(name)
    seams = find_seams(picture)
    assert not seams.alarming, seams
    assert float(repeated_share(picture)) < REPETITION_ALARM
    assert float(grid_share(picture, 16)) < MARKS_ALARM / 4


def test_renders_stay_under_every_alarm(renders):
    assert not find_seams(renders).alarming and grid_share(renders, 16).mean() < MARKS_ALARM / 2
    assert float(repeated_share(renders).max()) < REPETITION_ALARM


@pytest.mark.parametrize(("period", "contrast"), [(8, 0.02), (16, 0.03)])  # 8-bit levels are 0.008 apart
def test_a_pattern_that_is_just_visible_is_found(renders, period, contrast):
    wave = contrast * torch.cos(2 * torch.pi * torch.arange(128) / period)
    for planted in (renders + wave + wave[:, None], (renders + wave).transpose(2, 3)):
        levels = from_uint8(to_uint8(planted.clamp(-1, 1)))
        assert grid_share(levels, 16).mean() > MARKS_ALARM
    cat = photograph("chelsea")
    wave = wave.repeat(4)[: cat.shape[3]]
    assert float(grid_share(cat + wave, 16)) > 3 * float(grid_share(cat, 16))


@pytest.mark.parametrize(("period", "offset"), [(12, 0), (20, 0), (24, 6), (23, 7), (16, 5), (40, 3)])
def test_seams_at_an_unexpected_period_are_found_and_measured(renders, period, offset):
    stripes = 0.03 * ((torch.arange(128) - offset) // period % 2 * 2.0 - 1)
    for planted, axis in ((renders + stripes, "columns"), (renders + stripes[:, None], "rows")):
        found = find_seams(planted)
        assert found.alarming and (found.period, found.offset, found.axis) == (period, offset, axis)


@pytest.mark.parametrize("period", [14, 20, 32])
def test_patches_of_uneven_light_are_found_in_texture(period):
    # every patch of every picture is lighter or darker by chance; bricks, grass and gravel drown most of the steps
    names = [name for name in PHOTOGRAPHS if name != "rocket"]
    clean = torch.cat([photograph(name)[:, :, 100:228, 60:188] for name in names])
    side = -(-128 // period)
    light = 0.03 * torch.randn(len(clean), 1, side, side, generator=torch.Generator().manual_seed(period))
    light = light.repeat_interleave(period, 2).repeat_interleave(period, 3)[:, :, :128, :128]
    found = find_seams(from_uint8(to_uint8((clean + light).clamp(-1, 1))))
    assert found.alarming and (found.period, found.offset) == (period, 0)
    assert found.strength < SEAM_ALARM and not find_seams(clean).alarming


def test_the_strength_of_a_comb_is_asked_for_in_another_set(renders):
    stripes = 0.03 * (torch.arange(128) // 12 % 2 * 2.0 - 1)
    planted, clean = SeamSearch(), SeamSearch()
    planted.update(renders + stripes)
    clean.update(renders)
    found = planted.result()
    place = (found.period, found.offset, found.axis)
    assert planted.strength(*place) == pytest.approx(found.strength, rel=1e-12)
    assert clean.strength(*place) == pytest.approx(1, abs=0.1)
    with pytest.raises(ValueError, match="too small for a line 200 px"):
        clean.strength(300, 200, "rows")


def test_the_faint_grid_of_a_jpeg_is_told_but_is_no_alarm():
    found = find_seams(photograph("rocket"))  # scikit-image stores it as a JPEG
    assert found.period == 8 and found.offset == 0 and found.score > 20 and 1.2 < found.strength < 1.5


def test_strength_has_a_closed_form_on_ramps():
    # every step is a, those on the border b: the share is 3 b / (2 a + b) there, 3 a / (2 a + b) beside it, 1 elsewhere
    a, b, period = 0.01, 0.04, 8
    steps = torch.full((63,), a)
    steps[period - 1 :: period] = b
    picture = torch.cat([torch.zeros(1), steps.cumsum(0)]).expand(1, 3, 64, 64)
    found = find_seams(picture)
    on, beside, f = 3 * (b + 1e-3), 3 * (a + 1e-3), 2 * a + b + 3e-3
    lines = 61  # the first and the last step have one neighbour only
    off = (lines - 7 - 14 + 14 * beside / f) / (lines - 7)
    assert (found.period, found.offset, found.axis) == (8, 0, "columns")
    assert found.strength == pytest.approx(on / f / off, rel=1e-6)


def test_search_streams_and_refuses_what_it_cannot_do(renders):
    search = SeamSearch()
    for part in renders.split(5):
        search.update(part)
    assert search.result().score == pytest.approx(find_seams(renders).score, rel=1e-9)
    with pytest.raises(ValueError, match="another size"):
        search.update(renders[..., :64])
    with pytest.raises(ValueError, match="no pictures yet"):
        SeamSearch().result()
    with pytest.raises(ValueError, match="too small"):
        find_seams(renders[..., :10, :10], low=8)


def test_a_hue_shift_in_one_corner_is_found_there(renders):
    shifted = renders.clone()
    shifted[:, :, :32, 96:] = renders[:, [1, 2, 0], :32, 96:]
    found = color_difference(shifted, renders)
    assert (found[:, 0, 3] > COLOR_ALARM).all() and (found.flatten(1).argmax(1) == 3).all()
    found[:, 0, 3] = 0
    assert found.max() < 1e-9
    assert color_difference(renders, renders).max() == 0


def test_a_cast_has_the_size_that_scikit_image_gives_it():
    grey, cast = np.array([0.5, 0.5, 0.5]), np.array([0.55, 0.5, 0.45])
    expected = float(deltaE_ciede2000(rgb2lab(grey), rgb2lab(cast)))
    pictures = [torch.tensor(2 * c - 1)[None, :, None, None].expand(1, 3, 16, 16) for c in (grey, cast)]
    assert float(color_drift(pictures[1], pictures[0])) == pytest.approx(expected, abs=1e-3)
    # Sharma, Wu and Dalal (2005), first of their test pairs: what the unit is built on
    pair = np.array([50.0, 2.6772, -79.7751]), np.array([50.0, 0.0, -82.7485])
    assert float(deltaE_ciede2000(*pair)) == pytest.approx(2.0425, abs=1e-4)
    with pytest.raises(ValueError, match="does not fit"):
        color_difference(*pictures, cells=32)


def test_colour_drift_ignores_detail_and_small_shifts(renders):
    assert color_drift(torch.roll(renders, (1, 1), (2, 3)), renders).max() < 0.5
    # dithering between two levels of light is their mean to the eye from afar; the mean of the codes it is not
    check = (torch.arange(16) + torch.arange(16)[:, None]) % 2 * 2.0 - 1
    even = torch.full((1, 3, 16, 16), 2 * 0.7354 - 1)  # half of white's light
    assert float(color_drift(check.expand(1, 3, 16, 16), even)) < 0.1


def test_repeated_texture_is_found_and_its_share_grows_with_it(renders):
    cat = photograph("chelsea")
    few, many = cat.clone(), cat.clone()
    tile = cat[:, :, 100:132, 200:232]
    few[:, :, 150:214, 100:196] = tile.repeat(1, 1, 2, 3)
    many[:, :, 150:278, 100:356] = tile.repeat(1, 1, 4, 8)
    shares = [float(repeated_share(picture)) for picture in (cat, few, many)]
    assert shares[0] < REPETITION_ALARM < shares[1] < shares[2]
    clone = photograph("astronaut")
    clone[:, :, 300:428, 300:428] = clone[:, :, 100:228, 200:328].clone()
    assert float(repeated_share(clone)) > REPETITION_ALARM
    noise = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert float(repeated_share(noise)) == 0 == float(repeated_share(torch.zeros(1, 3, 64, 64)))
    noise[..., 48:, :] = noise[..., :48, :].clone()
    assert float(repeated_share(noise)) > 0.6
    with pytest.raises(ValueError, match="32 x 32"):
        repeated_share(noise[..., :16])


def test_a_missing_object_is_missed_by_the_judge():
    scenes = [Scene.from_attributes(9_500_000 + k, house="yes") for k in range(24)]
    told = [(scene, text) for scene in scenes if "house" in (text := caption(scene))]
    labels = named_labels([text for _, text in told])
    bare = [Scene.from_attributes(scene.seed, **{**scene.attributes, "house": "no"}) for scene, _ in told]
    shares = []
    for pictures in ([scene for scene, _ in told], bare):
        score = AttributeScore()
        images = from_uint8(np.stack([render(scene) for scene in pictures]))
        score.update(load_judge().predict(images), labels)
        shares.append(score.by_attribute)
    assert shares[0]["house"] > 0.9 and shares[1]["house"] < 0.2
    assert shares[1]["water"] is None or shares[1]["water"] > 0.8  # and misses nothing else


def test_seam_index_is_one_figure_a_picture(renders):
    assert seam_index(renders, patch_size=16).shape == (12,)
