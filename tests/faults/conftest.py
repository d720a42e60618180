"""One world for all faults: tiny inputs, the undisturbed result of each command, and a way to try a fault."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tests.faults import injection
from tests.faults.jobs import Job, leftovers, make_jobs, result, same


class World:
    """Commands and their folder, which is the same path in every trial."""

    def __init__(self, place: Path, jobs: dict[str, Job]) -> None:
        self.place, self.jobs = place, jobs
        self.root = place / "work"  # all file operations below it count: a folder is made beside its place
        self.out = self.root / "out"
        self._undisturbed: dict[str, tuple[dict, Path]] = {}

    def run(
        self, name: str, prepare=None, again: bool = False, more: tuple[str, ...] = ()
    ) -> injection.Outcome:
        job = self.jobs[name]
        return injection.run(
            [*job.argv(self.out), *(job.again if again else ()), *more], self.place / "printed", prepare
        )

    def clean(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir()

    def put(self, root: Path) -> None:
        """Make a copy of a snapshot, or of :meth:`undisturbed`'s, what the commands find."""
        shutil.rmtree(self.root, ignore_errors=True)
        shutil.copytree(root, self.root, symlinks=True)

    def undisturbed(self, name: str) -> tuple[dict, Path]:
        """What the command leaves where nothing goes wrong, and a copy of its root."""
        if name not in self._undisturbed:
            self.clean()
            done = self.run(name)
            assert done.code == 0, done.err
            kept = self.place / f"undisturbed-{name}"
            assert not leftovers(self.root)
            shutil.copytree(self.root, kept)
            self._undisturbed[name] = result(self.out), kept
        return self._undisturbed[name]

    def operations(self, name: str) -> int:
        """How many file operations the undisturbed command has."""
        self.clean()
        counter = self.place / f"operations-{name}"

        def count() -> None:
            operations = injection.Operations(
                self.root, lambda number, *_: counter.write_text(str(number + 1))
            )
            operations.install()

        assert self.run(name, count).code == 0
        return int(counter.read_text())

    def check_resumed(self, name: str, what: str) -> None:
        """The same command again ends well, with the undisturbed result and nothing more."""
        done = self.run(name, again=True)
        assert done.code == 0, f"{what}: then exit code {done.code}\n{done.err}"
        assert not leftovers(self.root), f"{what}: {leftovers(self.root)}"
        wanted, found = self.undisturbed(name)[0], result(self.out)
        assert found.keys() == wanted.keys(), f"{what}: {set(found) ^ set(wanted)}"
        other = [path for path in wanted if not same(found[path], wanted[path])]
        assert not other, f"{what}: other contents of {other}"


def check_told(outcome: injection.Outcome, what: str, code: int = 2) -> str:
    """One line and no traceback; the line."""
    assert "Traceback" not in outcome.err and outcome.code == code, f"{what}: {outcome.code}\n{outcome.err}"
    assert len(outcome.lines) == 1, f"{what}: {outcome.err}"
    return outcome.lines[0]


@pytest.fixture(scope="session")
def world(tiny_pipeline, tmp_path_factory) -> World:
    from l2p.lift import Lift
    from l2p.recipe import HeadConfig, StudentConfig
    from l2p.students.build import from_teacher
    from l2p.students.io import save_student
    from l2p.teachers import load_teacher

    place = tmp_path_factory.mktemp("faults")
    prompts = place / "prompts.txt"
    prompts.write_text("a red house by a lake at dusk\nsnow on high mountains\na river, three trees\n")
    torch.manual_seed(0)
    teacher = load_teacher(tiny_pipeline)
    basis = torch.linalg.qr(torch.randn(768, 64, dtype=torch.float64))[0]
    lift = Lift(basis, 0.4, torch.zeros(768, dtype=torch.float64), 0.0, 0.0, 0.0)
    settings = {
        "path": tiny_pipeline,
        "num_inference_steps": 1,
        "guidance_scale": 0.0,
        "height": 32,
        "width": 32,
    }
    evaluation = {
        "num_images": 3,
        "batch_size": 1,
        "latency_runs": 1,
        "preview_images": 2,
        "peak_memory": False,
    }
    small = from_teacher(teacher, lift, StudentConfig(head=HeadConfig(width=32, num_blocks=1)), (32, 32))
    save_student(
        small,
        place / "student",
        teacher.text_encoder,
        {"recipe": {"teacher": settings, "evaluation": evaluation}},
    )
    return World(place, make_jobs(tiny_pipeline, prompts, place / "student", place / "recipes"))
