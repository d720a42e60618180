"""Flipped and missing bytes in every kind of file a command leaves: the same result, or one line whose advice heals."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path

import pytest

from tests.faults.conftest import check_told
from tests.faults.jobs import content, same

# Final products, which no command of the run reads again, and files that hold nothing but times.
UNREAD = re.compile(r"(previews/.*|stages/.*\.png|.*grid\.png|report\.html|logs/.*\.csv|.*-log\.csv)")
MARKERS = {  # taken away, so that what a later stage reads is read again
    "distill": ("stages/one_step.json", "stages/student.json", "stages/evaluation.json"),
    "grow": ("grow.json",),
}

LATER = ("student/", "evaluation/", "metrics", "report", "pixel_head/")  # written anew in any case


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0x11]) + data[place + 1 :]


DAMAGES = {
    "first byte": lambda data: flipped(data, 0),
    "byte in the middle": lambda data: flipped(data, len(data) // 2),
    "byte at two thirds": lambda data: flipped(data, len(data) * 2 // 3),
    "last byte": lambda data: flipped(data, len(data) - 1),
    "emptied": lambda data: b"",
    "cut in half": lambda data: data[: len(data) // 2],
}


def kinds(folder: Path) -> list[str]:
    """One file of each kind: of those that differ in digits alone the first."""
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.stat().st_size:
            name = path.relative_to(folder).as_posix()
            found.setdefault(re.sub(r"\d+", "N", name), name)
    return list(found.values())


def carry_out(line: str, world) -> tuple[str, ...]:
    """Do what the line says; what to add to the command."""
    if (words := re.search(r"--resume (\w+)", line)) and not re.search(r"\b(delete|move)\b", line):
        return ("--resume", words[1])
    assert re.search(r"\b(delete|move)\b", line), f"no advice: {line}"
    named = [Path(text.rstrip(":,;.)")) for text in re.findall(r"/\S+", line)]
    named = [path for path in named if path.is_relative_to(world.out) and path.exists()]
    assert named, f"names nothing that is there: {line}"
    place = named[0]
    if "delete the folder" in line and place.is_file():
        place = place.parent
    aside = world.place / "aside"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    shutil.move(place, aside / place.name)
    return ()


def check_damage(world, name: str, path: str, damage: str, interrupted: bool) -> None:
    wanted, kept = world.undisturbed(name)
    what = f"{name}{' under way' if interrupted else ''}, {path}: {damage}"
    world.put(kept)
    if interrupted:
        for marker in MARKERS[name]:
            (world.out / marker).unlink()
    place = world.out / path
    place.write_bytes(DAMAGES[damage](place.read_bytes()))
    done = world.run(name, again=True)
    if done.code:
        more = carry_out(check_told(done, what), world)
        done = world.run(name, again=True, more=more)
        assert done.code == 0, f"{what}: the advice leads to\n{done.err}"
    assert "Traceback" not in done.err, what
    found = result_of(world.out, what)
    other = [key for key in wanted | found if not same(found.get(key), wanted.get(key))]
    assert not [key for key in other if not UNREAD.fullmatch(key)], f"{what}: {other}"


def result_of(folder: Path, what: str) -> dict:
    """As `result`; a product that nobody reads may still be damaged."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        try:
            found[name] = content(path)
        except (ValueError, OSError, KeyError, csv.Error) as error:
            assert UNREAD.fullmatch(name), f"{what}: {name} stays damaged: {error}"
            found[name] = "damaged"
    return found


def check_file(world, name: str, path: str, interrupted: bool, damages) -> list[str]:
    failures = []
    for damage in damages:
        try:
            check_damage(world, name, path, damage, interrupted)
        except AssertionError as error:
            failures.append(str(error))
    return failures


@pytest.mark.parametrize(
    ("name", "path", "damage"),
    [
        ("train-head", "latents.npy", "byte in the middle"),
        ("train-head", "latents.npy.done", "byte in the middle"),
        ("train-head", "pixel_head/model.safetensors", "byte at two thirds"),
    ],
)
def test_damaged_bytes(world, name, path, damage):
    check_damage(world, name, path, damage, False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "interrupted"),
    [
        *((name, False) for name in ("distill", "grow", "train-head", "evaluate")),
        *((name, True) for name in MARKERS),
    ],
)
def test_damaged_bytes_in_every_kind_of_file(world, name, interrupted):
    """In a finished folder, and in one that is still to take its last steps."""
    _, kept = world.undisturbed(name)
    failures = []
    for number, path in enumerate(kinds(kept / "out")):
        if interrupted and path in MARKERS[name]:
            continue
        if interrupted and path.startswith(LATER):
            continue
        second = list(DAMAGES)[number % len(DAMAGES)]
        failures += check_file(world, name, path, interrupted, {"byte in the middle", second})
    assert not failures, "\n\n".join(failures)
