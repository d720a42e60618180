"""Writes the conformance table of ``docs/teachers.md`` from what the tests measure: ``make teachers``."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from test_conformance import Case

from l2p.lift import Lift
from l2p.patches import patchify, unpatchify
from l2p.recipe import HeadConfig, StudentConfig
from l2p.students.build import from_teacher
from l2p.students.cores import CORES
from l2p.teachers import FAMILIES, tiny

DOCS = Path(__file__).parents[2] / "docs" / "teachers.md"
BEGIN, END = "<!-- conformance: begin -->", "<!-- conformance: end -->"
HEADER = ["pipeline", "network", "guidance", "solver", "latents", "picture", "core"]


def facts(name: str, teacher) -> list[str]:
    """The columns that need no measuring."""
    return [name, type(teacher.transformer).__name__, teacher.guidance_kind, teacher.solver.__name__]


def core_error(teacher, prompts: list[str]) -> float:
    """Largest difference of the untrained student's picture from the lifted teacher's, in closed form."""
    p, d = teacher.geometry.token_pixels, teacher.geometry.token_dim
    generator = torch.Generator().manual_seed(13)
    basis = torch.linalg.qr(torch.randn(3 * p**2, d, generator=generator, dtype=torch.float64))[0]
    lift = Lift(basis, 0.4, torch.zeros(3 * p**2, dtype=torch.float64), 0.8, 0.9, 0.95)
    config = StudentConfig(patch_size=p, head=HeadConfig("linear"))
    guidance = 3.5 if teacher.guidance_kind == "input" else 0.0
    student = from_teacher(teacher, lift, config, guidance_scale=guidance).eval()
    x_t, t = 0.8 * torch.randn(2, 3, 2 * p, 2 * p, generator=generator), torch.tensor([0.3, 0.9])
    conditioning, tokens = teacher.encode_prompts(prompts), patchify(x_t, p)
    with torch.no_grad():
        z_t = teacher.unpack(lift.to_latent(tokens, t))
        u_z = teacher.pack(teacher.velocity(z_t, lift.latent_time(t), conditioning, guidance))
        expected = unpatchify(lift.x_0(tokens, u_z, t), p)
        return float((student(x_t, t, conditioning) - expected).abs().max())


def row(name: str) -> list[str]:
    case = Case(name)
    errors = case.errors()
    has_core = FAMILIES[name.split(" ")[0]].denoiser_class in CORES
    core = f"{core_error(case.teacher, case.prompts):.0e}" if has_core else "none"
    return [*facts(name, case.teacher), f"{errors['latent']:.0e}", f"{errors['picture']:.0e}", core]


def table(rows: list[list[str]]) -> str:
    lines = [HEADER, ["---"] * len(HEADER), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def committed() -> list[list[str]]:
    """The rows of the table in the documentation."""
    text = DOCS.read_text().partition(BEGIN)[2].partition(END)[0]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    before, _, rest = DOCS.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    DOCS.write_text(f"{before}{BEGIN}\n{table([row(name) for name in tiny.PIPELINES])}\n{END}{after}")
