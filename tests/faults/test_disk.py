"""A disk that is full, broken, read-only or gone: one line, no half file, and the same result once it is well."""

from __future__ import annotations

import errno

import pytest

from tests.faults import injection
from tests.faults.conftest import check_told
from tests.faults.jobs import leftovers

NAMES = ["distill", "grow", "train-head", "generate", "evaluate", "export"]
CODES = [errno.ENOSPC, errno.EIO, errno.EROFS]
SAID = {
    errno.ENOSPC: "no space left",
    errno.EIO: "input/output error",
    errno.EROFS: "read-only file system",
    errno.EFBIG: "file too large",
}


def check_failure(world, name: str, fault, what: str, code: int) -> None:
    """The fault is told in one line and leaves nothing; without it the same command ends well."""
    world.clean()
    line = check_told(world.run(name, fault), what)
    assert SAID[code] in line.lower(), f"{what}: {line}"
    if code != errno.EROFS:  # from such a disk nothing can be removed, either
        assert not leftovers(world.root), f"{what}: {leftovers(world.root)}"
    world.check_resumed(name, what)


def check_operations(world, name: str, code: int, parts: int) -> None:
    world.undisturbed(name)
    count = world.operations(name)
    for part in range(parts):
        at = count * part // parts
        what = f"{name}, {errno.errorcode[code]} from operation {at} of {count}"
        check_failure(world, name, injection.fail_from(world.root, at, code), what, code)


def check_writes(world, name: str, code: int, sizes) -> None:
    for size in sizes:
        fault = (
            injection.small_files(size)
            if code == errno.EFBIG
            else injection.small_disk(world.root, size, code)
        )
        check_failure(world, name, fault, f"{name}, {errno.errorcode[code]} after {size} bytes", code)


def written(world, name: str) -> int:
    _, kept = world.undisturbed(name)
    return sum(path.stat().st_size for path in kept.rglob("*") if path.is_file())


def largest(world, name: str) -> int:
    _, kept = world.undisturbed(name)
    return max(path.stat().st_size for path in kept.rglob("*") if path.is_file())


def test_a_disk_that_fails(world):
    check_operations(world, "generate", errno.EIO, 2)


def test_a_write_that_fails(world):
    check_writes(world, "generate", errno.ENOSPC, [100])


@pytest.mark.slow
def test_files_of_limited_size(world):
    check_writes(world, "train-head", errno.EFBIG, [largest(world, "train-head") - 1])


@pytest.mark.slow
@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("name", NAMES)
def test_a_disk_that_fails_at_every_part(world, name, code):
    check_operations(world, name, code, 3)


@pytest.mark.slow
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("name", ["distill", "grow", "train-head", "generate", "evaluate"])
def test_writes_that_fail_after_so_many_bytes(world, name, code):
    total = written(world, name)
    check_writes(world, name, code, [0, total // 3])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_files_limited_to_every_size(world, name):
    most = largest(world, name)
    check_writes(world, name, errno.EFBIG, [1000, most - 1])


def check_vanished(world, name: str, parts: int) -> None:
    world.undisturbed(name)
    count = world.operations(name)
    for part in range(parts):
        at = count * (part + 1) // (parts + 1)
        world.clean()
        what = f"{name}, folder gone at operation {at} of {count}"
        done = world.run(name, injection.vanish_at(world.root, world.out, at))
        if done.code:  # a folder that is made anew serves as well
            check_told(done, what)
        assert not leftovers(world.root), what
        world.check_resumed(name, what)


@pytest.mark.slow
def test_a_folder_that_vanishes(world):
    check_vanished(world, "generate", 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_folder_that_vanishes_at_every_part(world, name):
    check_vanished(world, name, 3)
