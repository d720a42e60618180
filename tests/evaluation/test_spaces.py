"""Distances in the spaces of feature networks: closed forms, any order and batches, folders of photographs."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from l2p.cli.main import main
from l2p.evaluation.spaces import SpaceFigures, Spaces
from l2p.images import from_uint8, save_png


class Means:
    """Features that are simple numbers of a picture: channel means and their square roots' kin."""

    name, spec = "means", SimpleNamespace(identity="means")

    def vectors(self, images):
        return images.mean((2, 3))


def levels(mean, deviation, count, seed):
    """Flat grey pictures whose three channels are Gaussian."""
    drawn = np.random.default_rng(seed).normal(mean, deviation, (count, 1, 1, 3))
    return from_uint8(np.clip(drawn, 0, 255).round().astype(np.uint8).repeat(8, 1).repeat(8, 2))


def gathered(images, batch=64):
    figures = SpaceFigures(Means())
    for part in images.split(batch):
        figures.update(part)
    return figures


def test_frechet_and_its_ratio_are_the_closed_form_of_gaussians():
    """Diagonal Gaussians of d = 3: d ((m - m')^2 + (s - s')^2), in units of 127.5 levels."""
    reference, other = gathered(levels(120, 20, 4000, 0)), gathered(levels(140, 30, 4000, 1))
    found = other.report(reference)
    assert found["frechet"] == pytest.approx(3 * (20**2 + 10**2) / 127.5**2, rel=0.05)
    assert found["frechet_ratio"] == pytest.approx(found["frechet"] / reference.validation)
    same = gathered(levels(120, 20, 4000, 2)).report(reference)
    assert same["frechet"] < 0.01 * found["frechet"] and same["frechet_ratio"] < 10
    assert abs(same["kernel"]) < 0.02 * found["kernel"] and same["precision"] > 0.9 and same["recall"] > 0.9
    both = Spaces([Means()])
    both.figures["means"] = other
    target = Spaces([Means()])
    target.figures["means"] = reference
    assert both.report(target)["fdr"] == found["frechet_ratio"]


def test_kernel_distance_is_that_of_every_pair():
    a, b = gathered(levels(120, 20, 40, 0)), gathered(levels(140, 30, 50, 1))
    x, y = a.vectors, b.vectors

    def k(u, v):
        return (float(u @ v) / 3 + 1) ** 3

    within = [np.mean([k(u, v) for i, u in enumerate(s) for j, v in enumerate(s) if i != j]) for s in (x, y)]
    across = np.mean([k(u, v) for u in x for v in y])
    assert a.report(b)["kernel"] == pytest.approx(sum(within) - 2 * across, rel=1e-9)


def test_nothing_depends_on_order_or_batches_even_when_only_some_vectors_are_kept():
    images, others = levels(120, 20, 300, 0), levels(140, 30, 300, 1)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    found = []
    for pictures, batch in ((images, 7), (images[order], 64)):
        a, b = SpaceFigures(Means(), limit=50), SpaceFigures(Means(), limit=50)
        for part in pictures.split(batch):
            a.update(part)
        for part in others.split(batch):
            b.update(part)
        assert len(a.vectors) == 50
        found.append(b.report(a))
    for key, value in found[0].items():
        assert found[1][key] == pytest.approx(value, rel=1e-9)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Two folders of crops of scikit-image's photographs, of several sizes, and a model with random weights."""
    from skimage import data

    root = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    sources = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket()]
    for folder, count in (("one", 12), ("two", 14)):
        (root / folder).mkdir()
        for k in range(count):
            source = sources[k % 4]
            height, width = (int(side) for side in rng.integers(120, 260, 2))
            y, x = (int(rng.integers(0, s - n)) for s, n in zip(source.shape, (height, width), strict=False))
            save_png(source[y : y + height, x : x + width], root / folder / f"{k:02d}.png")
    torch.manual_seed(0)
    save_file(timm.create_model("test_vit", num_classes=0).state_dict(), root / "vit.safetensors")
    return root


def test_folders_of_photographs_in_two_spaces_whatever_the_order(photographs, tmp_path, monkeypatch, capsys):
    from l2p.evaluation import pictures, spaces

    names = [f"timm:test_vit{layers}={photographs / 'vit.safetensors'}" for layers in ("", "@1,3")]
    asked = [word for name in names for word in ("--features", name)]
    found = []
    for batch, flip in ((16, False), (3, True)):
        monkeypatch.setattr(spaces, "BATCH", batch)
        monkeypatch.setattr(pictures, "BATCH", batch)
        sides = [photographs / name for name in ("one", "two")]
        if flip:  # the same pictures under names in the other order
            for side in sides:
                (tmp_path / side.name).mkdir()
                for k, path in enumerate(sorted(side.iterdir(), reverse=True)):
                    (tmp_path / side.name / f"{k:02d}.png").write_bytes(path.read_bytes())
            sides = [tmp_path / side.name for side in sides]
        arguments = [str(sides[0]), "--against", str(sides[1]), *asked]
        assert main(["evaluate", *arguments, "--out", str(tmp_path / str(batch))]) == 0
        found.append(json.loads((tmp_path / str(batch) / "metrics.json").read_text()))
    one, two = found
    assert list(one["student"]["features"]) == names
    for name in names:
        values = one["student"]["features"][name]
        assert values["frechet"] > 0 and values["num_images"] == 12
        for key, value in values.items():
            assert two["student"]["features"][name][key] == pytest.approx(value, rel=1e-5, abs=1e-9)
        assert one["settings"]["features"][name] == {"license": "not recorded", "trained_on": False}
    assert one["summary"]["fdr"] == pytest.approx(two["summary"]["fdr"], rel=1e-5)
    assert "several sizes" in one["settings"]["not_measured"][0] and names[0] in capsys.readouterr().out
