"""A corpus drawn by several processes, and the members that a recipe may ask for."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from l2p.corpus import CorpusDataset, read_manifest
from l2p.corpus.dataset import verify
from l2p.errors import UserError


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.tar")}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("shard"))


def test_shares_in_any_order_make_the_corpus_of_one_process(corpora, straight, tmp_path):
    folder = tmp_path / "c"
    for rank in (2, 0):
        corpora.draw(folder, share=(rank, 3))
        with pytest.raises(UserError, match="lacks the samples from|holds 4 pairs"):
            CorpusDataset(folder, 11)
    assert {f"shard-{i:06d}.tar" for i in (0, 2)} == set(shards(folder))
    corpora.draw(folder, share=(1, 3))
    assert shards(folder) == shards(straight)
    assert names(folder) == names(straight)  # the manifests are joined
    assert (folder / "manifest.json").read_bytes() == (straight / "manifest.json").read_bytes()


@pytest.mark.slow
def test_processes_at_once_of_which_one_dies(corpora, tmp_path):
    """Three at a time, with a list of prompts that all but the first wait for; then two go on where they stopped."""
    command = [sys.executable, corpora.__file__, str(tmp_path), "--share"]
    cases = ["1/before the manifest:2", "0/drawing:2"]
    subprocess.run([*command, *cases], cwd=Path(__file__).parents[2], check=True, timeout=300)
    alone = corpora.draw(tmp_path / "alone", replace(corpora.CONFIG, num_prompts=7))
    for folder in (tmp_path / "0", tmp_path / "1"):
        assert shards(folder) == shards(alone) and names(folder) == names(alone)
        assert verify(folder)["pictures"] == 11


def test_one_process_ends_what_several_began_and_a_corpus_grows_among_them(corpora, straight, tmp_path):
    folder = tmp_path / "c"
    corpora.draw(folder, replace(corpora.CONFIG, num_pairs=6), share=(1, 2))  # a short second shard
    corpora.draw(folder)
    assert shards(folder) == shards(straight) and names(folder) == names(straight)
    corpora.draw(folder, replace(corpora.CONFIG, num_pairs=16), share=(0, 2))  # redraws the short third one
    assert [(s["first"], s["count"]) for s in read_manifest(folder)["shards"]] == [(0, 4), (4, 4), (8, 4)]


def test_shares_with_other_settings_are_refused(corpora, tmp_path):
    corpora.draw(tmp_path / "c", share=(1, 2))
    with pytest.raises(UserError, match=r"made with other settings \(num_inference_steps: 2 there, 3 here\)"):
        corpora.draw(tmp_path / "c", replace(corpora.CONFIG, num_inference_steps=3), share=(0, 2))


def test_two_processes_with_the_same_number_are_refused(corpora, tmp_path):
    from l2p.locks import locked

    hold = "import sys; from pathlib import Path; from l2p.locks import locked\n"
    hold += f"with locked(Path({str(tmp_path)!r}), 'corpus.path', '.lock-0'): print('held', flush=True); sys.stdin.read()"
    other = subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(
            UserError, match=f"in use by process {other.pid}: wait for it, or choose another corpus.path"
        ):
            corpora.draw(tmp_path)
        with locked(tmp_path, "corpus.path", ".lock-1"):
            assert (tmp_path / ".lock-1").is_file()
    finally:
        other.kill()
        other.communicate()


def test_webp_is_as_lossless_as_png(corpora, straight, tmp_path):
    folder = corpora.draw(tmp_path / "c", replace(corpora.CONFIG, image_format="webp"))
    one, other = CorpusDataset(straight), CorpusDataset(folder)
    assert all(np.array_equal(one[i]["image"], other[i]["image"]) for i in range(11))
    assert b"WEBP" in (folder / "shard-000000.tar").read_bytes()[:600]


def test_a_corpus_without_latents(corpora, tmp_path):
    dataset = CorpusDataset(corpora.draw(tmp_path / "c", replace(corpora.CONFIG, latents=False)))
    assert not dataset.has_latents and "latent" not in dataset[3]


def test_plain_webdataset_and_tar_read_every_member(corpora, tmp_path):
    webdataset = pytest.importorskip("webdataset")
    from safetensors.numpy import load

    config = replace(corpora.CONFIG, num_inference_steps=4, image_format="webp")
    folder = corpora.draw(tmp_path / "c", config)
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    found = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    ours = CorpusDataset(folder)
    assert [sample["json"]["index"] for sample in found] == list(range(11))
    for sample, mine in zip(found, (ours[i] for i in range(11)), strict=True):
        assert np.array_equal(sample["webp"], mine["image"]) and sample["json"]["prompt"] == mine["prompt"]
        assert np.array_equal(load(sample["latent.safetensors"])["latent"], mine["latent"].half().numpy())
    listed = subprocess.run(
        ["tar", "-tf", urls[0]], capture_output=True, text=True, check=True
    ).stdout.split()
    assert listed[:3] == [
        f"00000000{part}" for part in json.loads((folder / "manifest.json").read_text())["parts"]
    ]


def test_verify_finds_a_changed_byte(corpora, tmp_path):
    folder = corpora.draw(tmp_path / "c")
    assert verify(folder) == {"pictures": 11, "shards": 3, "bytes": sum(map(len, shards(folder).values()))}
    path = folder / "shard-000001.tar"
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"shard-000001\.tar has another hash than its manifest says"):
        verify(folder)
