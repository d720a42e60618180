"""A lock holds between processes, names its holder, and ends with it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from l2p.errors import UserError
from l2p.locks import InUse, locked

HOLD = """
import sys
from pathlib import Path
from l2p.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""
ROUNDS = """
import sys
from pathlib import Path
from l2p.locks import locked
folder = Path(sys.argv[1])
sys.stdin.read(1)
for _ in range(40):
    with locked(folder, wait=60):
        number = int((folder / "count").read_text())
        (folder / "count").write_text(str(number + 1))
"""


@pytest.fixture
def holder(tmp_path):
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "held\n"
    yield other
    other.kill()
    other.communicate()


def test_a_second_process_is_refused_every_time_and_learns_who_holds_it(holder, tmp_path):
    for _ in range(2):
        with pytest.raises(InUse, match=f"{tmp_path} is in use by process {holder.pid}: wait for it"):
            with locked(tmp_path):
                pass
    (tmp_path / ".lock").write_text(json.dumps({"pid": 7, "host": "elsewhere"}))
    with pytest.raises(InUse, match="process 7 on elsewhere"), locked(tmp_path):
        pass


def test_a_holder_that_has_not_written_its_name_holds_all_the_same(holder, tmp_path):
    (tmp_path / ".lock").write_text("")
    with pytest.raises(InUse, match="in use by another process"), locked(tmp_path):
        pass


def test_a_killed_holder_holds_nothing(holder, tmp_path):
    holder.kill()
    holder.wait()
    assert (tmp_path / ".lock").is_file()  # nobody removed it
    with locked(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text()) == {
            "pid": os.getpid(),
            "host": socket.gethostname(),
        }
    assert list(tmp_path.iterdir()) == []


def test_one_at_a_time_among_many(tmp_path):
    (tmp_path / "count").write_text("0")
    others = [
        subprocess.Popen([sys.executable, "-c", ROUNDS, str(tmp_path)], stdin=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for other in others:
        other.stdin.write("x")
        other.stdin.flush()
    assert [other.wait() for other in others] == [0] * 4
    assert (tmp_path / "count").read_text() == "160"


def test_a_planted_link_is_neither_followed_nor_changed(tmp_path):
    target = tmp_path / "target"
    target.write_text("precious")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".lock").symlink_to(target)
    with pytest.raises(UserError, match=r"cannot lock .*\.lock"), locked(folder):
        pass
    assert target.read_text() == "precious" and (folder / ".lock").is_symlink()


def test_a_file_in_the_way_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="a file stands where a folder is needed"):
        with locked(Path(tmp_path / "file")):
            pass


def test_a_folder_made_for_nothing_is_removed_and_one_that_was_there_stays(tmp_path):
    with pytest.raises(UserError), locked(tmp_path / "new"):
        raise UserError("a mistake")
    there = tmp_path / "there"
    there.mkdir()
    with locked(there):
        pass
    with locked(tmp_path / "used"):
        (tmp_path / "used" / "result").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there", "used"]
