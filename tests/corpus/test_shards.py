from __future__ import annotations

import errno
import io
import json
import os
import pickle
import shutil
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load

from l2p.corpus import CorpusDataset, read_manifest
from l2p.corpus.samples import OLD_PARTS, Sample
from l2p.corpus.shards import ShardWriter
from l2p.errors import UserError


@pytest.fixture
def folder(straight, tmp_path):
    """A copy of the corpus that a test may damage."""
    return shutil.copytree(straight, tmp_path / "corpus")


def sample(index: int, prompt: str = "a lake") -> Sample:
    rng = np.random.default_rng(index)
    image = rng.integers(0, 256, (6, 5, 3), np.uint8)
    return Sample(index, 100 + index, prompt, image, rng.normal(size=(4, 3, 2)).astype(np.float32))


def test_what_is_written_is_read_back(tmp_path):
    writer = ShardWriter(tmp_path, {"shard_size": 3}, 4)
    for indices in writer.missing():
        writer.write(indices, [sample(i, 'naïve "quotes" \n 山') for i in indices])
    assert writer.missing() == []
    dataset = CorpusDataset(tmp_path)
    for i in range(4):
        found, wanted = dataset[i], sample(i)
        assert np.array_equal(found["image"], wanted.image)
        assert torch.equal(found["latent"], torch.from_numpy(wanted.latent).half().float())
        assert (found["seed"], found["prompt"]) == (100 + i, 'naïve "quotes" \n 山')


def test_shards_are_plain_tars_in_webdataset_s_layout(straight):
    with tarfile.open(straight / "shard-000001.tar") as tar:
        names = ["00000004.png", "00000004.latent.safetensors", "00000004.json", "00000005.png"]
        assert tar.getnames()[:4] == names
        facts = json.load(tar.extractfile("00000004.json"))
        latent = load(tar.extractfile("00000004.latent.safetensors").read())["latent"]
        picture = Image.open(tar.extractfile("00000004.png"))
    assert facts["index"] == 4 and facts["seed"] == 9
    assert latent.dtype == np.float16 and latent.shape == (4, 8, 12)
    assert picture.size == (24, 16) and picture.mode == "RGB"


def test_the_manifest_tells_what_made_the_corpus(straight):
    manifest = read_manifest(straight)
    assert [(s["first"], s["count"]) for s in manifest["shards"]] == [(0, 4), (4, 4), (8, 3)]
    assert manifest["settings"]["teacher"] == "arithmetic" and manifest["settings"]["seed"] == 5
    for shard in manifest["shards"]:
        assert (straight / shard["name"]).stat().st_size == shard["bytes"] and len(shard["sha256"]) == 64


@pytest.mark.parametrize("damage", ["truncate", "delete", "forget", "forget and truncate"])
def test_the_writer_redraws_what_is_not_whole_and_adopts_what_is(damage, corpora, straight, folder):
    path = folder / "shard-000001.tar"
    if "forget" in damage:  # as when killed between the shard's rename and the manifest's
        manifest = read_manifest(folder)
        del manifest["shards"][1]
        (folder / "manifest.json").write_text(json.dumps(manifest))
    if "truncate" in damage:
        os.truncate(path, path.stat().st_size - 12_000)
    if damage == "delete":
        path.unlink()
    missing = ShardWriter(folder, read_manifest(folder)["settings"], 11).missing()
    assert missing == ([] if damage == "forget" else [range(4, 8)])
    corpora.draw(folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {
        p.name: p.read_bytes() for p in straight.iterdir()
    }


def test_shards_without_a_manifest_are_not_touched(corpora, folder):
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match="holds shards but no manifest.json"):
        corpora.draw(folder)
    assert len(list(folder.glob("*.tar"))) == 3


def test_files_of_others_in_the_folder_stay(corpora, folder):
    (folder / "shard-backup.tar").write_bytes(b"mine")
    corpora.draw(folder)
    assert (folder / "shard-backup.tar").read_bytes() == b"mine"


def test_a_full_disk_keeps_whole_shards(tmp_path, monkeypatch):
    writer = ShardWriter(tmp_path, {"shard_size": 2}, 4)
    writer.write(range(2), [sample(0), sample(1)])

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("l2p.corpus.shards._add", full)
    with pytest.raises(UserError, match="no space left for .*shard-000001.tar"):
        writer.write(range(2, 4), [sample(2), sample(3)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "shard-000000.tar"]
    assert len(CorpusDataset(tmp_path)) == 2


def test_a_truncated_shard_is_named(folder):
    path = folder / "shard-000002.tar"
    os.truncate(path, path.stat().st_size - 1000)
    with pytest.raises(UserError, match="shard-000002.tar is truncated.*run again"):
        CorpusDataset(folder)


@pytest.mark.parametrize("part", ["picture", "header", "latent"])
def test_a_corrupt_shard_is_named(part, folder):
    path = folder / "shard-000000.tar"
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        members = {name: tar.getmember(name) for name in tar.getnames()}
    if part == "header":
        data[members["00000001.json"].offset + 5] ^= 0xFF
    else:
        member = members["00000001.png" if part == "picture" else "00000001.latent.safetensors"]
        data[member.offset_data + 2 : member.offset_data + 60] = bytes(58)
    path.write_bytes(data)
    with pytest.raises(
        UserError, match="shard-000000.tar is (truncated or )?corrupt|in .*shard-000000.tar is corrupt"
    ):
        CorpusDataset(folder)[1]


def test_a_flipped_bit_anywhere_in_a_sample_is_told_or_changes_nothing(folder):
    path = folder / "shard-000000.tar"
    data, before = path.read_bytes(), CorpusDataset(folder)[1]
    with tarfile.open(path) as tar:
        members = [member for member in tar.getmembers() if member.name.startswith("00000001")]
    silent = 0
    for member in members:
        places = range(member.offset_data, member.offset_data + member.size, max(1, member.size // 60))
        for place in places:
            path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
            try:
                found = CorpusDataset(folder)[1]
            except UserError as error:
                assert "shard-000000.tar is corrupt" in str(error) and "\n" not in str(error)
                continue
            silent += 1
            assert np.array_equal(found["image"], before["image"])
            assert torch.equal(found["latent"], before["latent"]) and found["prompt"] == before["prompt"]
    assert silent < 20  # in the names of the checksums themselves


def old_corpus(folder, data: bytes | None = None):
    """A corpus of format 1, as versions before this one wrote it, of one pair; `data` in place of its latent."""
    drawn = sample(0)
    folder.mkdir()
    with tarfile.open(folder / "shard-000000.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for part in OLD_PARTS:
            facts = {"index": drawn.index, "seed": drawn.seed, "prompt": drawn.prompt}  # no checksums yet
            content = json.dumps(facts).encode() if part == ".json" else drawn.encode(part)
            content = data if data is not None and part == ".latent.npy" else content
            info = tarfile.TarInfo(f"00000000{part}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    size = (folder / "shard-000000.tar").stat().st_size
    shard = {"name": "shard-000000.tar", "first": 0, "count": 1, "bytes": size, "sha256": "0" * 64}
    manifest = {"format": 1, "settings": {"shard_size": 1}, "shards": [shard]}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_a_corpus_of_format_1_is_read_and_goes_on_as_it_began(tmp_path):
    folder = old_corpus(tmp_path / "corpus")
    assert torch.equal(CorpusDataset(folder)[0]["latent"], torch.from_numpy(sample(0).latent).half().float())
    settings = {"shard_size": 1, "solver": "teacher"}  # a key that the first versions did not write
    writer = ShardWriter(folder, settings, 2)
    assert writer.missing() == [range(1, 2)]
    writer.write(range(1, 2), [sample(1)])
    assert json.loads((folder / "manifest.json").read_text())["format"] == 1
    assert [CorpusDataset(folder)[i]["seed"] for i in range(2)] == [100, 101]
    with pytest.raises(UserError, match="made with other settings .parts"):
        ShardWriter(folder, settings, 2, parts=[".webp", ".json"])


def test_a_pickled_latent_is_refused(tmp_path):
    """An object array would run code when unpickled; it must not load."""

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harmed"),)

    buffer = io.BytesIO()
    np.save(buffer, np.array([Evil()], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="corrupt"):
        CorpusDataset(old_corpus(tmp_path / "corpus", buffer.getvalue()))[0]
    assert not (tmp_path / "harmed").exists()


def test_too_few_pairs_and_gaps_are_told(folder):
    with pytest.raises(UserError, match="holds 11 pairs, 12 were asked for"):
        CorpusDataset(folder, 12)
    manifest = read_manifest(folder)
    del manifest["shards"][0]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="lacks the samples from 0"):
        CorpusDataset(folder)


@pytest.mark.parametrize("content", [None, "{", "[]", '{"format": 99}'])
def test_a_bad_manifest_is_one_clear_line(tmp_path, content):
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"manifest\.json") as error:
        CorpusDataset(tmp_path)
    assert "\n" not in str(error.value)


def test_indices_wrap_and_end_as_in_a_list(straight):
    dataset = CorpusDataset(straight)
    assert dataset[-1]["seed"] == dataset[10]["seed"]
    with pytest.raises(IndexError):
        dataset[11]


def test_workers_and_pickles_read_the_same(straight):
    dataset = CorpusDataset(straight)
    alone = [dataset[i]["prompt"] for i in range(11)]
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy[7]["prompt"] == alone[7]
    loader = torch.utils.data.DataLoader(dataset, batch_size=3, num_workers=2)
    assert [prompt for batch in loader for prompt in batch["prompt"]] == alone
    dataset.close()
    assert dataset[0]["prompt"] == alone[0]
