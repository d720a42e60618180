from __future__ import annotations

import sys
from dataclasses import replace
from importlib.metadata import EntryPoint, EntryPoints

import pytest

from l2p.corpus import CorpusDataset, quality, read_manifest
from l2p.corpus.dataset import verify
from l2p.errors import UserError
from l2p.recipe import QualityConfig

SCORER = """
def brightness(images, prompts, scale=1.0):
    assert images.dtype == "uint8" and len(images) == len(prompts)
    return images.mean((1, 2, 3)) * scale

number = 3

def broken(images, prompts):
    raise RuntimeError("no weights")

def short(images, prompts):
    return [1.0]

def nothing(images, prompts):
    return [float("nan")] * len(images)
"""


@pytest.fixture
def scorer(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(SCORER)
    return path


def test_dropped_pictures_are_the_ones_below_and_the_rest_is_untouched(corpora, straight, scorer, tmp_path):
    whole = CorpusDataset(straight)
    means = [whole[i]["image"].mean() for i in range(11)]
    low = sorted(means)[4] * 2.0  # five of eleven are not above it
    wanted = QualityConfig(f"{scorer}:brightness", min_score=low + 1e-6, options={"scale": 2.0})
    folder = corpora.draw(tmp_path / "c", replace(corpora.CONFIG, quality=wanted))
    manifest = read_manifest(folder)
    dropped = {index: score for shard in manifest["shards"] for index, score in shard.get("dropped", ())}
    assert dropped == {i: pytest.approx(2 * mean) for i, mean in enumerate(means) if 2 * mean <= low}
    kept = CorpusDataset(folder, 11)
    assert len(kept) == 6 == verify(folder)["pictures"]
    for place, index in enumerate(i for i in range(11) if i not in dropped):
        assert kept[place]["seed"] == whole[index]["seed"]
        assert (kept[place]["image"] == whole[index]["image"]).all()
    assert len(CorpusDataset(folder, 5)) == sum(i < 5 for i in range(11) if i not in dropped)
    corpora.draw(folder, replace(corpora.CONFIG, quality=wanted))  # nothing is missing
    assert read_manifest(folder) == manifest
    with pytest.raises(UserError, match="made with other settings .quality"):
        corpora.draw(folder, replace(corpora.CONFIG, quality=replace(wanted, min_score=0.0)))


def test_a_scorer_that_drops_everything_is_told(corpora, scorer, tmp_path):
    config = replace(corpora.CONFIG, quality=QualityConfig(f"{scorer}:brightness", min_score=256.0))
    folder = corpora.draw(tmp_path / "c", config)
    with pytest.raises(UserError, match="holds no pair: its scorer dropped all of them"):
        CorpusDataset(folder, 11)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("nix", "cannot load corpus.quality.scorer .*mine.py:nix: module .* has no attribute 'nix'"),
        ("number", "is no function, but int"),
        ("broken", "failed: RuntimeError: no weights"),
        ("short", r"gave \[1.0\] ..., expected 2 finite numbers"),
        ("nothing", r"gave \[nan, nan\]"),
    ],
)
def test_a_scorer_that_is_none_is_one_line_and_no_shard(corpora, scorer, tmp_path, function, message):
    config = replace(corpora.CONFIG, quality=QualityConfig(f"{scorer}:{function}"))
    with pytest.raises(UserError, match=message):
        corpora.draw(tmp_path / "c", config)
    assert not list((tmp_path / "c").glob("*.tar"))


def test_scorers_by_module_and_by_entry_point(scorer, monkeypatch):
    monkeypatch.syspath_prepend(str(scorer.parent))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    assert quality.load_scorer("mine:brightness").__name__ == "brightness"
    points = EntryPoints([EntryPoint("light", "mine:brightness", quality.GROUP)])
    monkeypatch.setattr(quality, "entry_points", lambda **wanted: points.select(**wanted))
    assert quality.load_scorer("light").__name__ == "brightness"
    with pytest.raises(UserError, match=r"no scorer 'dark' is installed \(found: light\)"):
        quality.load_scorer("dark")
    with pytest.raises(UserError, match="No module named 'nowhere'"):
        quality.load_scorer("nowhere:f")
    with pytest.raises(UserError, match="cannot load corpus.quality.scorer nowhere.py:f"):
        quality.load_scorer("nowhere.py:f")
