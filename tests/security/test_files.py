"""Files of strangers: nothing is allocated, followed or run because a file says so."""

from __future__ import annotations

import io
import json
import os
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from l2p import files
from l2p.corpus.manifest import read_manifest
from l2p.corpus.photos import Photos
from l2p.errors import UserError
from l2p.students import weights
from l2p.students.io import load_student, read_spec
from l2p.students.resolve import BUNDLED

STUDENT = BUNDLED / "landscapes-128"


@pytest.fixture
def student(tmp_path) -> Path:
    """The bundled student; its config is a copy, all else are links."""
    folder = tmp_path / "student"
    folder.mkdir()
    for path in STUDENT.iterdir():
        if path.name != "config.json":
            (folder / path.name).symlink_to(path)
    (folder / "config.json").write_text((STUDENT / "config.json").read_text())
    return folder


def change(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    for key, value in changes.items():
        section, dot, name = key.partition("__")
        if dot:
            config[section][name] = value
        else:
            config[key] = value
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "changes",
    [
        {"num_steps": 10**9},
        {"num_steps": 1001},
        {"height": 10**6},
        {"width": 16385},
        {"patch_size": 10**9},
        {"latent_dim": 10**12},
        {"head__tile": 0},
        {"head__tile": -8},
        {"head__tile": 1.5},
        {"head__fine_patch": 0},
        {"head__halo": -1},
        {"head__head_dim": 0},
        {"head__num_blocks": 10**9},
        {"head__width": 10**6},
        {"core__axes_lens": [10**6, 10**6, 10**6]},
        {"core__axes_lens": [512] * 1000},
        {"core__axes_dims": [8] * 1000},
        {"core__dim": 10**6},
        {"core__n_layers": 10**7},
        {"core__n_heads": 0},
    ],
    ids=str,
)
def test_sizes_in_a_config_are_refused_before_anything_is_allocated(student, changes, frugal):
    change(student, **changes)
    with pytest.raises(UserError, match=r"broken|do not fit") as caught:
        load_student(student)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_honest_configs_next_to_the_limits_are_read(student):
    change(student, num_steps=1000, height=16384, width=16384, head__halo=0)
    assert read_spec(student).num_steps == 1000
    assert sum(p.numel() for p in load_student(STUDENT).parameters()) > 10**6


def header(entries: dict, data: bytes = b"", length: int | None = None) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


TERA = 2**40
HEADERS = {
    "terabytes": header({"x": {"dtype": "F32", "shape": [TERA], "data_offsets": [0, 4 * TERA]}}),
    "a product beyond 64 bits": header({"x": {"dtype": "F32", "shape": [TERA] * 3, "data_offsets": [0, 4]}}),
    "overlap": header({n: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for n in "xy"}, bytes(8)),
    "a hole": header({"x": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, bytes(8)),
    "negative": header({"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}}),
    "a huge header": header({}, length=2**62),
    "a header of the file's length": header({}, bytes(100), length=2**27),
    "a deep header": struct.pack("<Q", 200_000) + b"[" * 200_000,
    "a pickle": b"\x80\x04\x95cos\nsystem\n(S'touch ran'\ntR.",
}


@pytest.mark.parametrize("content", HEADERS.values(), ids=HEADERS)
def test_headers_of_weights_are_believed_only_where_the_file_holds_them(tmp_path, content, frugal):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="broken or cut short"):
        weights.read_entries(tmp_path)
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/passwd", "model-00001-of-00002.safetensors/../y", ""]
)
def test_an_index_leads_to_no_other_folder(tmp_path, name):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
    with pytest.raises(UserError, match="expected files such as"):
        weights.read_entries(tmp_path)


def test_json_is_bounded(tmp_path, monkeypatch, frugal):
    deep = tmp_path / "deep.json"
    deep.write_text('{"a":' * 100_000)
    with pytest.raises(UserError, match="nested too deep|not valid JSON"):
        files.read_json(deep)
    digits = tmp_path / "digits.json"
    digits.write_text("1" * 10**6)
    with pytest.raises(UserError, match="not valid JSON"):
        files.read_json(digits)
    sparse = tmp_path / "sparse.json"
    with sparse.open("wb") as file:
        file.truncate(files.LARGEST_JSON + 1)
    with pytest.raises(UserError, match="larger than 256 MiB"):
        files.read_json(sparse)
    os.mkfifo(tmp_path / "pipe.json")
    for endless in (tmp_path / "pipe.json", Path("/dev/zero")):
        with pytest.raises(UserError, match="is no regular file"):
            files.read_json(endless)
    (tmp_path / "honest.json").write_text("[" * 50 + "]" * 50)
    assert files.read_json(tmp_path / "honest.json")


def tar_of(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for info, data in members:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def test_members_of_a_tar_write_nothing_and_lead_nowhere(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(buffer, "PNG")
    picture = buffer.getvalue()
    (tmp_path / "in").mkdir()
    secret = tmp_path / "secret.png"
    secret.write_bytes(picture)
    tar_of(
        tmp_path / "in" / "a.tar",
        (member("../../outside.png"), picture),
        (member("/absolute.png"), picture),
        (member("link.png", tarfile.SYMTYPE, str(secret)), b""),
        (member("hard.png", tarfile.LNKTYPE, str(secret)), b""),
        (member("device.png", tarfile.CHRTYPE), b""),
        (member("pipe.png", tarfile.FIFOTYPE), b""),
    )
    before = sorted(tmp_path.rglob("*"))
    photos = Photos([str(tmp_path / "in")], 64, 64)
    assert len(photos) == 2  # the regular ones, read where they lie in the tar
    for index in range(2):
        assert photos.crop(index, 64, 64)[0].mean() == 90
    assert sorted(tmp_path.rglob("*")) == before and not Path("/absolute.png").exists()


def test_a_packed_tar_and_a_huge_caption_are_refused(tmp_path, frugal):
    with tarfile.open(tmp_path / "a.tar", "w:gz") as tar:
        info = tarfile.TarInfo("a.png")
        info.size = 200 * 2**20
        tar.addfile(info, io.BytesIO(bytes(info.size)))
    with pytest.raises(UserError, match="is no tar"):
        Photos([str(tmp_path / "a.tar")], 8, 8)
    (tmp_path / "a.tar").unlink()
    tar_of(tmp_path / "b.tar", (member("a.txt"), b"x" * (2**20 + 1)))
    with pytest.raises(UserError, match="too large for a caption"):
        Photos([str(tmp_path / "b.tar")], 8, 8)


SHARD = {"name": "shard-000000.tar", "first": 0, "count": 2, "bytes": 10240, "sha256": "x"}


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "../../etc/passwd"},
        {"name": "/etc/passwd"},
        {"name": "shard-000000.tar/../x"},
        {"count": 10**15},
        {"count": 10**12, "bytes": 2**52},
        {"count": -1},
        {"count": True},
        {"first": 10**30},
        {"first": "0"},
        {"dropped": 10**9},
        {"name": None},
    ],
    ids=str,
)
def test_a_manifest_counts_and_names_only_what_can_be(tmp_path, changes, frugal):
    (tmp_path / "shard-000000.tar").write_bytes(bytes(10240))
    manifest = {"format": 2, "settings": {}, "parts": [".png"], "shards": [SHARD | changes]}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="broken"):
        read_manifest(tmp_path)
    for shards in ({"a": 1}, [3], None, "x"):
        (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"shards": shards}))
        with pytest.raises(UserError, match="broken"):
            read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"shards": [SHARD]}))
    assert read_manifest(tmp_path)["shards"] == [SHARD]


def test_a_parquet_that_unpacks_to_gigabytes_is_refused(tmp_path, monkeypatch):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    from l2p import texts

    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"prompt": ["a lake"] * 5000}), path, compression="zstd")
    monkeypatch.setattr(texts, "MOST_ROWS", 5000)
    assert len(list(texts.read_prompts(path))) == 5000
    monkeypatch.setattr(texts, "MOST_ROWS", 4999)
    with pytest.raises(UserError, match="declares 5,000 rows"):
        texts.read_prompts(path)


def test_removing_a_folder_removes_no_link_target(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "down").symlink_to(outside)
    files.remove(folder)
    assert (outside / "precious").exists() and not folder.exists()
    folder.symlink_to(outside)
    files.remove(folder)
    assert (outside / "precious").exists() and not folder.is_symlink()
    folder.symlink_to(outside)
    with files.atomic_path(folder) as partial:
        partial.mkdir()
        (partial / "new").touch()
    assert (outside / "precious").exists() and not folder.is_symlink() and (folder / "new").exists()


def test_a_name_on_the_hub_is_the_commit_that_was_read_first(monkeypatch, tmp_path):
    import huggingface_hub

    from l2p.hub import client

    asked = []

    def snapshot_download(repo, revision=None, dry_run=False, **_):
        asked.append(revision)
        commit = revision if revision and len(revision) == 40 else f"{len(asked):040d}"
        folder = tmp_path / "models--ann--it" / "snapshots" / commit
        folder.mkdir(parents=True, exist_ok=True)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(client, "_check_space", lambda *_: None)
    monkeypatch.setattr(client, "_commits", {})
    name = client.HubName("ann/it", "main")
    first = client.download(name, ("config.json",))
    assert client.download(name, ("*.safetensors",)) == first and asked == ["main", first.name]
    other = client.download(client.HubName("ann/it"), ("config.json",))
    assert other != first and asked[2] is None
