"""Files are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from l2p import files
from l2p.errors import UserError


def test_a_write_replaces_the_old_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "deep" / "notes.txt"
    files.write_text(path, "old")
    files.write_text(path, "new, ä")
    assert path.read_text(encoding="utf-8") == "new, ä"
    assert list(path.parent.iterdir()) == [path]


def test_the_partial_keeps_the_suffix_and_the_folder(tmp_path):
    with files.atomic_path(tmp_path / "weights.safetensors") as partial:
        assert (
            partial.suffix == ".safetensors" and partial.parent == tmp_path and partial.name.startswith(".")
        )
        partial.write_bytes(b"x")


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_write_leaves_the_old_file_and_no_partial(tmp_path, error):
    path = tmp_path / "a.json"
    files.write_json(path, {"kept": True})
    with pytest.raises(type(error)), files.atomic_path(path) as partial:
        partial.write_text("half")
        raise error
    assert files.read_json(path) == {"kept": True}
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_that_turns_out_full_when_flushed_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    files.write_json(path, 1)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write_json(path, 2)
    assert files.read_json(path) == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_replaces_a_folder(tmp_path):
    path = tmp_path / "student"
    for content in ("old", "new"):
        with files.atomic_path(path) as partial:
            partial.mkdir()
            (partial / f"{content}.txt").write_text(content)
    assert [file.name for file in path.iterdir()] == ["new.txt"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_folder_leaves_the_old_one(tmp_path):
    path = tmp_path / "student"
    with files.atomic_path(path) as partial:
        partial.mkdir()
        (partial / "kept").touch()
    with pytest.raises(RuntimeError), files.atomic_path(path) as partial:
        partial.mkdir()
        raise RuntimeError
    assert [file.name for file in path.iterdir()] == ["kept"]
    assert list(tmp_path.iterdir()) == [path]


def test_after_a_kill_the_old_file_stands_and_the_next_write_cleans_up(tmp_path):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    script = (
        "import sys, time\nfrom l2p.files import atomic_path\n"
        "with atomic_path(sys.argv[1]) as partial:\n"
        "    partial.write_text('half')\n    print('ready', flush=True)\n    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert path.read_text() == "old"
    files._swept.clear()  # as in a new process
    files.write_text(path, "new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_json_comes_back_and_refuses_what_is_no_json(tmp_path):
    value = {"ü": [1, 2.5, None], "b": {"c": "d"}}
    files.write_json(tmp_path / "a.json", value)
    assert files.read_json(tmp_path / "a.json") == value
    with pytest.raises(ValueError):
        files.write_json(tmp_path / "b.json", float("nan"))
    assert not (tmp_path / "b.json").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "does not exist"), (b'{"a": 1,\n}', "line 2"), (b"\xff\xfe", "not a text file")],
)
def test_broken_json_is_a_users_error_in_one_line(tmp_path, content, message):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        files.read_json(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UserError, match="is a folder"):
        files.read_json(tmp_path)


def test_check_writable_makes_the_folder_and_leaves_no_trace(tmp_path):
    files.check_writable(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_check_writable_tells_a_file_in_the_way_and_a_full_disk(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="a file stands where a folder is needed"):
            files.check_writable(path)

    def full(dir: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(UserError, match="no space left on device"):
        files.check_writable(tmp_path / "full")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_check_writable_tells_a_missing_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="permission denied"):
        files.check_writable(tmp_path)


def test_import_is_quick_and_needs_no_heavy_package():
    script = "import sys, l2p, l2p.recipe, l2p.files, l2p.cli.main; print(sorted({'torch', 'lightning', 'diffusers', "
    script += "'transformers', 'matplotlib', 'omegaconf', 'PIL'} & set(sys.modules)))"
    start = time.process_time()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert time.process_time() - start < 2


def test_a_full_disk_that_safetensors_tells_in_words_is_an_os_error(tmp_path):
    from safetensors import SafetensorError

    path = tmp_path / "model.safetensors"
    with pytest.raises(OSError, match="No space left") as raised, files.atomic_path(path) as partial:
        partial.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert raised.value.errno == errno.ENOSPC and not list(tmp_path.iterdir())


def test_weights_are_as_readable_as_any_new_file(tmp_path):
    from safetensors.torch import save_file

    (tmp_path / "any").touch()
    with files.atomic_path(tmp_path / "model.safetensors") as partial:
        save_file({"x": torch.zeros(4)}, partial)
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "any").stat().st_mode


LEFT = "{name}.{pid}-{start}-{machine}-0123abcd.{kind}"


def _left(folder, name="a", kind="partial.txt", pid=None, start=None, machine=None):
    """A file as a writer leaves it that is killed; by default this process, which is alive."""
    pid = os.getpid() if pid is None else pid
    start = files.process_start(os.getpid()) if start is None else start
    path = folder / LEFT.format(
        name=f".{name}", pid=pid, start=start, machine=machine or files._machine(), kind=kind
    )
    path.write_text("half")
    return path


def test_only_what_dead_writers_left_is_swept(tmp_path):
    """A living process', a process' of another machine and a user's own hidden files stay."""
    kept = [_left(tmp_path), _left(tmp_path, "b", machine="00000000"), tmp_path / ".a.partial.txt"]
    kept[2].touch()
    again = _left(tmp_path, "c", start="1")  # the number of a dead process that a living one has now
    week = _left(tmp_path, "d", machine="00000000")
    os.utime(week, (0, 0))
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").touch()
    link = tmp_path / LEFT.format(
        name=".e", pid=2**22 + 1, start="1", machine=files._machine(), kind="partial"
    )
    link.symlink_to(outside)
    files.sweep(tmp_path)
    assert all(path.exists() for path in kept) and not again.exists() and not week.exists()
    assert not link.is_symlink() and (outside / "precious").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs files of another user")
def test_what_another_user_left_stays(tmp_path):
    left = _left(tmp_path, start="1")
    os.chown(left, 1234, 1234)
    files.sweep(tmp_path)
    assert left.exists()


def test_a_folder_that_stood_aside_for_a_dead_writer_comes_back(tmp_path):
    """Killed between the two renames: neither the old folder nor the new one has the name."""
    aside = tmp_path / LEFT.format(
        name=".student", pid=2**22 + 1, start="1", machine=files._machine(), kind="old"
    )
    aside.mkdir()
    (aside / "kept").touch()
    files.write_text(tmp_path / "notes.txt", "any write to the folder")
    assert (tmp_path / "student" / "kept").exists() and not aside.exists()


def test_a_link_in_a_new_folder_is_not_followed(tmp_path):
    secret = tmp_path / "secret"
    secret.touch(mode=0o600)
    with files.atomic_path(tmp_path / "student") as partial:
        partial.mkdir()
        (partial / "link").symlink_to(secret)
    assert secret.stat().st_mode & 0o777 == 0o600


WRITERS = """
import sys
from pathlib import Path
from l2p.files import atomic_path, write_text
folder, who = Path(sys.argv[1]), sys.argv[2]
sys.stdin.read(1)
for _ in range(60):
    write_text(folder / "one.txt", who * 5000)
    with atomic_path(folder / "student") as partial:
        partial.mkdir()
        (partial / "a").write_text(who)
        (partial / "b").write_text(who)
"""


def test_many_processes_write_one_path_and_each_write_is_whole(tmp_path):
    command = [sys.executable, "-c", WRITERS, str(tmp_path)]
    writers = [
        subprocess.Popen([*command, who], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for who in "abcd"
    ]
    for writer in writers:
        writer.stdin.write("x")
        writer.stdin.flush()
    seen = set()
    while any(writer.poll() is None for writer in writers):
        try:
            seen.add((tmp_path / "one.txt").read_text())
        except FileNotFoundError:
            pass
    assert [writer.communicate()[1] for writer in writers] == [""] * 4
    assert seen <= {who * 5000 for who in "abcd"} and len(seen) > 1
    last = tmp_path / "student"
    assert (last / "a").read_text() == (last / "b").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.txt", "student"]


def test_a_long_name_can_be_written(tmp_path):
    path = tmp_path / ("ä" * 120 + ".txt")
    files.write_text(path, "x")
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
