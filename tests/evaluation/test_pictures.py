"""Folders of pictures: planted defects raise their alarm and no other, clean pictures none; files and names."""

import json
import shutil
import time

import numpy as np
import pytest

from l2p.errors import UserError, UserNotice
from l2p.evaluation.pictures import evaluate_pictures
from l2p.images import save_png
from l2p.landscapes import Scene, caption, render, render_batch
from l2p.picture_manifest import add_to_manifest
from l2p.texts import write_prompts

SEEDS = range(9_600_000, 9_600_006)


def fill(folder, pictures, first=0):
    for k, picture in enumerate(pictures, first):
        save_png(picture, folder / f"{k:03d}.png")
    return folder


@pytest.fixture(scope="module")
def renders():
    return render_batch(SEEDS, 96, 96)


@pytest.fixture(scope="module")
def clean(renders, tmp_path_factory):
    return fill(tmp_path_factory.mktemp("clean"), renders)


def seams(pictures):
    stripes = (8 * ((np.arange(96) // 11) % 2) - 4)[None, None, :, None]
    return np.clip(pictures.astype(int) + stripes, 0, 255).astype(np.uint8)


def hue(pictures):
    changed = pictures.copy()
    changed[:, :24, :24] = pictures[:, :24, :24, ::-1]
    return changed


def texture(pictures):
    changed = pictures.copy()
    noise = np.random.default_rng(0).integers(-40, 40, (len(pictures), 12, 12, 3))
    patch = np.clip(pictures[:, 48:60, 48:60].astype(int) + noise, 0, 255).astype(np.uint8)
    changed[:, 48:, 36:] = np.tile(patch, (1, 4, 5, 1))
    return changed


@pytest.mark.parametrize(
    ("defect", "words"),
    [(seams, "seams every 11 px"), (hue, "colours drift"), (texture, "repeated texture"), (None, None)],
)
def test_each_defect_raises_its_own_alarm(renders, clean, tmp_path, defect, words):
    folder = fill(tmp_path / "drawn", renders if defect is None else defect(renders))
    began = time.perf_counter()
    metrics = evaluate_pictures(folder, clean, tmp_path / "out", progress=False)
    assert 0 < metrics["seconds"] <= time.perf_counter() - began + 0.1
    assert metrics == json.loads((tmp_path / "out" / "metrics.json").read_text())
    lines = metrics["alarms"]
    assert any(words in line for line in lines) if words else not lines, lines
    if defect in (seams, hue):
        assert len(lines) == 1, lines
    assert metrics["settings"]["paired"] and (tmp_path / "out" / "report.html").is_file()
    if defect is None:
        assert (
            metrics["student"]["psnr_to_against"] == 100 and metrics["summary"]["frechet_to_against"] < 1e-6
        )


def test_a_missing_object_is_read_off_the_prompts(tmp_path):
    scenes = [s for s in map(Scene.from_seed, range(9_610_000, 9_610_060)) if "house" in caption(s)][:8]
    scenes = [s for s in scenes if s.house == "yes"]
    bare = [Scene.from_attributes(s.seed, **{**s.attributes, "house": "no"}) for s in scenes]
    (tmp_path / "prompts.txt").write_text("\n".join(caption(s) for s in scenes))
    with_houses = fill(tmp_path / "a", [render(s) for s in scenes])
    without = fill(tmp_path / "b", [render(s) for s in bare])
    metrics = evaluate_pictures(
        without, with_houses, tmp_path / "out", prompts=str(tmp_path / "prompts.txt"), progress=False
    )
    assert metrics["student"]["attribute_accuracy_by_attribute"]["house"] < 0.3
    assert metrics["against"]["attribute_accuracy"] > 0.9  # pictures of equal names show the same prompt
    (line,) = [line for line in metrics["alarms"] if line.startswith("missing")]
    assert line.startswith(f"missing: house is as prompts name it in 0 % of {len(scenes)} pictures")
    same = evaluate_pictures(
        with_houses, with_houses, tmp_path / "same", prompts=str(tmp_path / "prompts.txt"), progress=False
    )
    assert not same["alarms"]


def test_sets_of_other_names_are_compared_as_sets(renders, clean, tmp_path):
    other = fill(tmp_path / "other", render_batch(range(9_620_000, 9_620_008), 96, 96), first=500)
    metrics = evaluate_pictures(other, clean, tmp_path / "out", progress=False, num_images=6)
    assert not metrics["settings"]["paired"] and "psnr_to_against" not in metrics["student"]
    assert metrics["settings"]["num_images"] == 6
    student = metrics["student"]
    low, high = student["frechet_interval"]
    assert low <= student["frechet_to_against"] <= high and 0 <= student["recall"] <= 1
    again = evaluate_pictures(other, clean, tmp_path / "out2", progress=False, num_images=6)
    for metric in (metrics, again):
        del metric["seconds"]
    assert metrics == again


def test_what_cannot_be_measured_is_named(renders, clean, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds 0 pictures"):
        evaluate_pictures(tmp_path / "empty", clean, tmp_path / "out", progress=False)
    mixed = fill(tmp_path / "mixed", renders[:2])
    save_png(renders[0][:64], mixed / "zz.png")
    with pytest.raises(UserError, match="zz.png is 64 x 96, the others are 96 x 96"):
        evaluate_pictures(mixed, clean, tmp_path / "out", progress=False)
    (mixed / "zz.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="zz.png is no picture"):
        evaluate_pictures(mixed, clean, tmp_path / "out", progress=False)
    (tmp_path / "short.txt").write_text("a lake\na house\n")
    with pytest.raises(UserError, match="short.txt holds 2 prompts for 6 pictures"):
        evaluate_pictures(clean, clean, tmp_path / "out", prompts=str(tmp_path / "short.txt"), progress=False)
    small = fill(tmp_path / "small", renders[:3, :16, :16])
    with pytest.raises(UserError, match="expected at least 32 x 32"):
        evaluate_pictures(small, clean, tmp_path / "out", progress=False)


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    """Twelve renders called 1.png to 12.png, and their captions."""
    scenes = [Scene.from_seed(seed) for seed in range(9_630_000, 9_630_012)]
    folder = tmp_path_factory.mktemp("numbered")
    for number, scene in enumerate(scenes, 1):
        save_png(render(scene, 64, 64), folder / f"{number}.png")
    return folder, [caption(scene) for scene in scenes]


def measure(numbered, tmp_path, prompts, against=None, **options):
    folder, _ = numbered
    out = tmp_path / "out"
    return evaluate_pictures(folder, against or folder, out, prompts=str(prompts), progress=False, **options)


def test_the_tenth_prompt_is_of_picture_10(numbered, tmp_path):
    """In the order of strings 10, 11 and 12 come before 2."""
    (tmp_path / "p.txt").write_text("\n".join(numbered[1]), encoding="utf-8-sig")
    metrics = measure(numbered, tmp_path, tmp_path / "p.txt")
    assert metrics["student"]["attribute_accuracy"] > 0.95


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda texts: [*texts[:5], "", *texts[5:]], r"p\.txt:6 is blank"),
        (
            lambda texts: ["prompts of the test", *texts],
            r"13 prompts for 12 pictures .*is its first line, 'prompts of",
        ),
        (lambda texts: ["prompt", *texts], r"p\.txt:1 looks like a header"),
        (lambda texts: texts[1:], r"11 prompts for 12 pictures"),
    ],
)
def test_prompts_that_would_be_shifted_are_refused(numbered, tmp_path, change, said):
    (tmp_path / "p.txt").write_text("\n".join(change(numbered[1])))
    with pytest.raises(UserError, match=said):
        measure(numbered, tmp_path, tmp_path / "p.txt")


def test_a_picture_missing_on_one_side_leaves_the_other_pairs(numbered, tmp_path):
    folder, texts = numbered
    write_prompts(tmp_path / "p.jsonl", [{"prompt": text.replace(", ", ",\n")} for text in texts])
    less = shutil.copytree(folder, tmp_path / "less")
    (less / "3.png").unlink()
    with pytest.warns(UserNotice, match=r"^11 pairs; without a partner: 3\.png in"):
        metrics = measure(numbered, tmp_path, tmp_path / "p.jsonl", against=less)
    assert metrics["settings"]["pairs"] == 11 and metrics["student"]["psnr_to_against"] == 100
    assert metrics["student"]["attribute_accuracy"] > 0.95 and metrics["against"]["attribute_accuracy"] > 0.95
    assert metrics["settings"]["num_images"] == 12 and metrics["settings"]["num_against"] == 11


def test_the_manifest_of_the_folder_gives_the_prompts(numbered, tmp_path):
    folder, texts = numbered
    copy = shutil.copytree(folder, tmp_path / "copy")
    for number in range(12, 0, -1):
        add_to_manifest(copy, {"file_name": f"{number}.png", "prompt": texts[number - 1], "seed": number})
    with pytest.warns(UserNotice, match="0 pairs; .*equal numbers are no pair"):
        metrics = evaluate_pictures(copy, folder, tmp_path / "out", progress=False)
    assert metrics["student"]["attribute_accuracy"] > 0.95 and not metrics["settings"]["paired"]
    assert metrics["against"]["attribute_accuracy"] is None
