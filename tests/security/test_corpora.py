"""Recipes, texts, captions and corpora of strangers: bounded in time and memory, and broken ones end in one line."""

from __future__ import annotations

import io
import json
import os
import struct
import tarfile
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from l2p import texts
from l2p.config import shown
from l2p.corpus.dataset import CorpusDataset
from l2p.corpus.photos import Photos
from l2p.corpus.samples import decode_tensors
from l2p.errors import UserError
from l2p.picture_folder import folder_captions
from l2p.recipe import load_recipe

LONG = 200_000
OPTIONS = "corpus:\n  quality:\n    scorer: installed\n    options:\n"
RECIPES = {
    "digits": (f"seed: {'1' * LONG}x", "expected a whole number"),
    "digits and underscores": (f"seed: {'1_' * (LONG // 2)}x", "expected a whole number"),
    "sixtieths": (f"seed: {'1:' * (LONG // 2)}x", "expected a whole number"),
    "a text and its aliases": (
        f'seed:\n  - &x "{"x" * 100_000}"\n' + "  - *x\n" * 15_000,
        "more than .* characters",
    ),
    "references behind escapes": (
        OPTIONS
        + "      a0: xxxxxxxx\n"
        + "".join(f'      a{i}: "\\x24{{.a{i - 1}}}\\x24{{.a{i - 1}}}"\n' for i in range(1, 20)),
        "more than 24 references|reference",
    ),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_refused_soon(tmp_path, name, frugal):
    text, said = RECIPES[name]
    (tmp_path / "r.yaml").write_text(f"name: x\n{text}\n")
    start = time.process_time()
    with pytest.raises(UserError, match=said) as caught:
        load_recipe(tmp_path / "r.yaml")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert time.process_time() - start < 5


def test_of_a_large_value_little_is_looked_at_and_the_line_is_the_same():
    assert shown(["x" * 500_000] * 100_000) == "['" + "x" * 55 + "..."
    for value in (
        5,
        "a'b",
        [1, {"a": (2, None)}],
        {"k": "v" * 57},
        "v" * 58,
        (1,),
        "hf_abcdefghijklmnopqrst",
    ):
        text = repr(value).replace("hf_abcdefghijklmnopqrst", "hf_***")
        assert shown(value) == (text if len(text) <= 60 else f"{text[:57]}...")


def test_texts_and_captions_are_regular_files_of_bounded_size(tmp_path, monkeypatch, frugal):
    sparse = tmp_path / "in" / "a.txt"
    sparse.parent.mkdir()
    with sparse.open("wb") as file:
        file.truncate(6 * 10**9)
    with pytest.raises(UserError, match="larger than 512 MiB"):
        texts.read_text(sparse)
    Image.new("RGB", (8, 8)).save(sparse.with_suffix(".png"))
    with pytest.raises(UserError, match="larger than 1 MiB, expected a caption"):
        folder_captions(sparse.parent, list(sparse.parent.iterdir()))
    os.mkfifo(tmp_path / "pipe.txt")
    for endless in (tmp_path / "pipe.txt", Path("/dev/zero")):
        for read in (texts.read_text, texts.read_table):
            with pytest.raises(UserError, match="is no regular file"):
                read(endless)
    monkeypatch.setattr(texts, "MOST_ROWS", 3)
    assert texts.decode_text(b"a\n" * 3, "a")
    with pytest.raises(UserError, match="4 lines"):
        texts.decode_text(b"a\n" * 4, "a")


def parquet(path, indices, values, **kinds):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    coded = pa.DictionaryArray.from_arrays(pa.array(indices), pa.array(values, **kinds))
    pq.write_table(pa.table({"prompt": coded}), path, compression="zstd", store_schema=False)


def test_a_parquet_unpacks_what_its_rows_share_once(tmp_path, monkeypatch, frugal):
    path = tmp_path / "p.parquet"
    parquet(path, np.zeros(50_000, np.int32), ["x" * 2**20])
    assert path.stat().st_size < 5000 and len(texts.read_prompts(path)) == 50_000
    monkeypatch.setattr(texts, "MOST_UNPACKED", 2**19)
    with pytest.raises(UserError, match="more than 524,288 bytes"):
        texts.read_prompts(path)


def test_a_parquet_of_lists_or_broken_bytes_ends_in_one_line(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path, rng = tmp_path / "p.parquet", np.random.default_rng(1)
    lists = pa.array([["x"] * 10] * 10)
    pq.write_table(pa.table({"prompt": lists}), path)
    with pytest.raises(UserError, match="row 1 has no text under 'prompt'"):
        texts.read_prompts(path)
    pq.write_table(pa.table({"prompt": ["a lake"] * 50}), path)
    whole = path.read_bytes()
    for _ in range(400):
        broken = bytearray(whole)
        for place in rng.integers(4, len(whole) - 4, 3):
            broken[place] = rng.integers(256)
        path.write_bytes(broken)
        try:
            texts.read_prompts(path)
        except UserError as error:
            assert "\n" not in str(error)


def header(name: str, size: int = 0, kind: bytes = b"0") -> bytes:
    info = tarfile.TarInfo(name)
    info.type = kind
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT)[:512])
    block[124:136] = b"%011o\0" % size if 0 <= size else b"\xff" * 4 + struct.pack(">q", size)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def member(name: str, data: bytes, kind: bytes = b"0") -> bytes:
    return header(name, len(data), kind) + data + bytes(-len(data) % 512)


def extended(**facts: str) -> bytes:
    lines = b""
    for key, value in facts.items():
        line = f" {key.replace('__', '.')}={value}\n"
        length = len(line) + len(str(len(line) + 2))
        lines += f"{length}{line}".encode()
    return member("pax", lines, b"x")


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "PNG")
    return buffer.getvalue()


TARS = {
    "a negative size": header("a.png", -512),
    "a negative size in words": extended(size="-512") + member("a.png", b"x"),
    "a sparse map of no numbers": extended(GNU__sparse__map="a,b", GNU__sparse__size="10")
    + member("a.png", b"x"),
    "a sparse size of 30 digits": extended(GNU__sparse__map="0,10", GNU__sparse__size="9" * 30)
    + member("a.png", b"x"),
    "a sparse size of terabytes": extended(GNU__sparse__map="0,9", GNU__sparse__size="9" * 13)
    + member("a.png", b"x"),
    "a size beyond the file": header("a.png", 2**33 - 1),
}


@pytest.mark.parametrize("name", TARS)
def test_odd_sizes_in_a_tar_end_in_one_line(tmp_path, name, frugal):
    (tmp_path / "a.tar").write_bytes(TARS[name] + bytes(1024))
    with pytest.raises(UserError, match=r"is no tar|1 sparse files") as caught:
        Photos([str(tmp_path)], 8, 8)
    assert "\n" not in str(caught.value)


def corpus(folder: Path, data: bytes, **changes: object) -> Path:
    (folder / "shard-000000.tar").write_bytes(data)
    shard = {"name": "shard-000000.tar", "first": 0, "count": 1, "bytes": len(data), "sha256": "x"}
    shard |= {key: changes.pop(key) for key in ("dropped",) if key in changes}
    manifest = {"format": 2, "settings": {}, "parts": [".png", ".json"], "shards": [shard]} | changes
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize("size", [-512, -1024, -1])
def test_a_shard_whose_members_lead_back_is_refused(tmp_path, size):
    with pytest.raises(UserError, match="truncated or corrupt"):
        CorpusDataset(corpus(tmp_path, header("00000000.png", size) + bytes(4096)))


@pytest.mark.parametrize(
    "facts", ["[1]", "3", '{"index": 0, "crc32": [1]}', "[" * 100_000, '{"index": [0], "seed": 1}', "{}"],
    ids=lambda text: text[:20],
)  # fmt: skip
def test_facts_of_another_shape_end_in_one_line(tmp_path, facts):
    data = member("00000000.png", picture()) + member("00000000.json", facts.encode()) + bytes(1024)
    with pytest.raises(UserError, match="sample 0 in .* is corrupt"):
        CorpusDataset(corpus(tmp_path, data))[0]


@pytest.mark.parametrize(
    "changes", [{"parts": 3}, {"parts": [[1]]}, {"parts": []}, {"format": [2]}, {"dropped": [1, 2]}, {"dropped": [[[], 1]]}],
    ids=str,
)  # fmt: skip
def test_a_manifest_of_another_shape_ends_in_one_line(tmp_path, changes):
    with pytest.raises(UserError, match=r"is broken|corpus format"):
        CorpusDataset(corpus(tmp_path, bytes(10240), **changes))


@pytest.mark.parametrize(
    ("kind", "shape"), [("'<f4'", f"({10**12},)"), ("[('a', '<f4')]", "(0,)"), ("'<i8'", "()"), ("'<f4'", "(-1,)"), ("'O'", "(1,)"), ("1", "2")]
)  # fmt: skip
def test_a_latent_is_believed_only_where_its_bytes_are_there(kind, shape, frugal):
    text = f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    with pytest.raises(ValueError):
        decode_tensors(b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text, ".latent.npy")


def test_honest_neighbours_are_read(tmp_path):
    facts = {"index": 0, "seed": 1, "prompt": "a", "crc32": {".png": zlib.crc32(picture())}}
    data = (
        member("00000000.png", picture()) + member("00000000.json", json.dumps(facts).encode()) + bytes(1024)
    )
    assert CorpusDataset(corpus(tmp_path, data, dropped=[[1, 0.5]]))[0]["image"].shape == (64, 64, 3)
    (tmp_path / "r.yaml").write_text(f'name: x\ncorpus: {{path: "{"a" * 4000}"}}\nseed: {"0" * 90}7\n')
    assert load_recipe(tmp_path / "r.yaml").corpus.path == "a" * 4000
