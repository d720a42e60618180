"""Conformance, the same for every family: our sampler against the family's own diffusers pipeline, from the same noise.

Tiny pipelines of the real classes with random weights, fp32. ``docs/teachers.md`` holds the table these tests measure;
``python tests/teachers/conformance_table.py`` writes it.
"""

from __future__ import annotations

import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

import theirs

from l2p import flow
from l2p.errors import UserError
from l2p.features import load_features
from l2p.teachers import FAMILIES, PARTS, Conditioning, load_teacher, tiny
from l2p.teachers.dit import class_numbers
from l2p.teachers.schedules import solver_of

STEPS = 3
TOLERANCE = 1e-4
GUIDANCE = {"ZImagePipeline": 2.0, "Flux2KleinPipeline (distilled)": 1.0}


def relative_rms(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).pow(2).mean().sqrt() / b.pow(2).mean().sqrt())


@pytest.fixture(scope="module", params=tiny.PIPELINES)
def case(request):
    return Case(request.param)


class Case:
    """A family's tiny pipeline, its teacher, and what both draw."""

    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        self.name = name
        self.pipeline = tiny.PIPELINES[name]()
        self.pipeline.set_progress_bar_config(disable=True)
        self.teacher = FAMILIES[name.split(" ")[0]](self.pipeline, "tiny")
        if (
            type(self.pipeline.scheduler).__name__ == "PNDMScheduler"
        ):  # read as Euler by the teacher, see its file
            self.pipeline.scheduler = type(self.teacher.scheduler).from_config(self.pipeline.scheduler.config)
        self.size = (64, 64) if "DiT" in name else (64, 128)
        self.prompts = ["7", "207"] if "DiT" in name else tiny.WORDS
        self.guidance = GUIDANCE.get(name, 3.0)
        self.eps = flow.noise([1, 2], *self.teacher.geometry.latent_shape(*self.size))
        self._theirs: dict[tuple[str, float], torch.Tensor] = {}

    def ours(self, guidance: float | None = None) -> torch.Tensor:
        guidance = self.guidance if guidance is None else guidance
        return self.teacher.sample(self.eps, self.teacher.encode_prompts(self.prompts), STEPS, guidance)

    def theirs(self, output: str = "latent", guidance: float | None = None) -> torch.Tensor:
        key = (output, self.guidance if guidance is None else guidance)
        if key not in self._theirs:
            self._theirs[key] = theirs.draw(
                self.pipeline, self.prompts, self.eps, STEPS, key[1], self.size, output
            )
        return self._theirs[key]

    def errors(self) -> dict[str, float]:
        """Relative RMS of latents and pictures, guided; ``docs/teachers.md`` prints them."""
        with torch.no_grad():
            z = self.ours()
            pictures = (self.teacher.decode(z) / 2 + 0.5).clamp(0, 1)
            return {
                "latent": relative_rms(z, self.theirs()),
                "picture": relative_rms(pictures, self.theirs("pt")),
            }


def test_draws_what_the_pipeline_draws(case):
    assert case.theirs().std() > 0.1 and case.theirs("pt").std() > 1e-3
    assert all(error <= TOLERANCE for error in case.errors().values()), case.errors()


def test_without_guidance_too(case):
    assert case.teacher.times(1, *case.size).isfinite().all()  # one step, with which students are compared
    plain = case.ours(0.0)
    assert relative_rms(plain, case.theirs(guidance=0.0)) <= TOLERANCE
    if case.teacher.guidance_kind != "none":
        assert relative_rms(plain, case.ours()) > 1e-3


SAMPLING = {
    "sign": lambda teacher: ("_velocity", lambda *a, own=teacher._velocity: -own(*a)),
    "shift": lambda teacher: ("times", lambda *a, own=teacher.times: flow.shift_time(own(*a), 1.2)),
    "guidance": lambda teacher: ("guide", lambda p, n, w, own=teacher.guide: own(p, n, w + 0.5)),
}


@pytest.mark.parametrize("mutation", SAMPLING)
def test_a_wrong_convention_of_sampling_is_caught(case, mutation, monkeypatch):
    if mutation == "guidance" and case.teacher.guidance_kind != "classifier-free":
        pytest.skip("this family is not guided by two passes")
    monkeypatch.setattr(case.teacher, *SAMPLING[mutation](case.teacher))
    assert relative_rms(case.ours(), case.theirs()) > 10 * TOLERANCE


@pytest.mark.parametrize(("scale", "shift"), [(1.05, 0.0), (1.0, 0.05)])
def test_a_wrong_constant_of_the_latents_is_caught(case, scale, shift):
    z = case.theirs()
    with torch.no_grad():
        pictures = (case.teacher.decode(scale * z + shift * z.std()) / 2 + 0.5).clamp(0, 1)
    assert relative_rms(pictures, case.theirs("pt")) > 10 * TOLERANCE


def test_encode_undoes_what_decode_hands_to_the_vae(case, monkeypatch):
    """decode's constants are the pipeline's (the pictures agree), so encode's are if the two cancel out."""
    from types import SimpleNamespace

    vae, handed = case.teacher.vae, {}

    def keep(raw, **_):
        handed["raw"] = raw
        return (raw,)

    def give(images, **_):
        raw = handed["raw"]
        return (raw,) if "Sana" in case.name else SimpleNamespace(latent_dist=SimpleNamespace(mean=raw))

    monkeypatch.setattr(vae, "decode", keep)
    monkeypatch.setattr(vae, "encode", give)
    case.teacher.decode(case.eps)
    assert relative_rms(handed["raw"].reshape(case.eps.shape), case.eps) > 0.05  # there is something to undo
    again = case.teacher.encode(torch.zeros(2, 3, *case.size))
    torch.testing.assert_close(again, case.eps, atol=1e-5, rtol=1e-5)


def test_sampling_from_a_stop_goes_on_to_the_same_latent(case):
    """The steps below ``stop_at`` are not run, and the first of them starts where the rest would have."""
    teacher, steps = case.teacher, []
    conditioning = teacher.encode_prompts(case.prompts)
    times = teacher.times(STEPS, *case.size)
    stopped = teacher.sample(case.eps, conditioning, STEPS, stop_at=float(times[2]), progress=steps.append)
    assert len(steps) == 2 and stopped.shape == case.eps.shape
    if type(teacher.scheduler).__name__ != "DPMSolverMultistepScheduler":  # that one remembers a step
        rest = flow.euler(lambda z, t: teacher.velocity(z, t, conditioning), stopped, times[2:])
        torch.testing.assert_close(rest, case.ours(0.0), atol=1e-5, rtol=1e-5)


def test_a_prompt_reads_the_same_alone_and_in_company(case):
    """Captions of several lengths in one batch, each with its own mask."""
    teacher = case.teacher
    both = teacher.encode_prompts(case.prompts)
    assert both.embeds.shape[-1] == teacher.text_encoder.width
    t = torch.tensor([0.4, 0.8])
    with torch.no_grad():
        together = teacher.velocity(case.eps, t, both)
        for i in range(2):
            alone = teacher.velocity(case.eps[i : i + 1], t[i : i + 1], both[i : i + 1])
            torch.testing.assert_close(alone, together[i : i + 1], atol=1e-4, rtol=1e-4)


def test_a_parked_text_encoder_comes_back_for_a_new_prompt(monkeypatch):
    """On a CPU parking does nothing; the meta device stands in for an accelerator."""
    encoder = Case("FluxPipeline").teacher.text_encoder
    known, home = encoder(["a lake"]), []
    for module in encoder.modules.values():
        module.to("meta")
    monkeypatch.setattr(encoder, "_move", lambda device: home.append(device.type))
    encoder.park()
    assert torch.equal(encoder(["a lake"]).embeds, known.embeds) and home == ["cpu"]
    encoder(["a river"])
    assert home == ["cpu", "meta"]


def test_the_encoder_of_every_family_compares_pictures(case):
    """What the pairs' perceptual term needs of a teacher: feature maps on a grid, with a gradient."""
    images = torch.rand(2, 3, 64, 64, requires_grad=True)
    maps = load_features("encoder", case.teacher).maps(images)
    assert all(features.ndim == 4 and len(features) == 2 for features in maps)
    assert torch.autograd.grad(sum(features.square().mean() for features in maps), images)[0].abs().sum() > 0


@pytest.mark.parametrize(
    "name",
    [
        "FluxPipeline",
        "Flux2KleinPipeline (distilled)",
        "StableDiffusionPipeline",
        "SanaPipeline",
        "DiTPipeline",
    ],
)
def test_a_saved_pipeline_loads_as_its_family(name, tmp_path):
    case = Case(name)
    case.pipeline.save_pretrained(tmp_path / "teacher", safe_serialization=True)
    loaded = load_teacher(tmp_path / "teacher")
    assert type(loaded) is type(case.teacher) and loaded.guidance_kind == case.teacher.guidance_kind
    z = loaded.sample(case.eps, loaded.encode_prompts(case.prompts), STEPS, case.guidance)
    torch.testing.assert_close(z, case.ours(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("transformer/diffusion_pytorch_model-00001-of-00003.safetensors", True),
        ("flux1-dev.safetensors", False),
    ],
)
def test_weights_beside_a_pipeline_s_folders_are_not_fetched(name, wanted):
    assert any(fnmatch(name, pattern) for pattern in PARTS) == wanted


@pytest.mark.parametrize(("prompt", "number"), [("207", 207), ("cock", 7), (" tench", 0)])
def test_a_class_goes_by_number_or_name(prompt, number):
    pipeline = tiny.PIPELINES["DiTPipeline"]()
    embeds, _, _ = FAMILIES["DiTPipeline"].read_prompts(pipeline, [prompt])
    assert class_numbers(Conditioning(embeds, torch.ones(1))).item() == number
    with pytest.raises(
        UserError, match="'1000' is no class of this teacher: expected a number from 0 to 999"
    ):
        FAMILIES["DiTPipeline"].read_prompts(pipeline, ["1000"])


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        ("EulerAncestralDiscreteScheduler", "expected Euler"),
        ("DDIMScheduler", "clips its predictions"),  # by its default settings
        ("DPMSolverSDEScheduler", "expected Euler"),
    ],
)
def test_schedulers_without_a_counterpart_are_refused(scheduler, message):
    from types import SimpleNamespace

    import diffusers

    made = (
        diffusers.DDIMScheduler()
        if scheduler == "DDIMScheduler"
        else type(scheduler, (SimpleNamespace,), {})(config={})
    )
    with pytest.raises(UserError, match=message):
        solver_of(made)


def test_dpm_solver_is_of_second_order():
    """On a Gaussian the velocity is known: halving the steps' size quarters the error (first order would halve it)."""
    std = 0.5

    def velocity(x, t):
        t = flow.time_like(t, x)
        return x * (t - (1 - t) * std**2) / ((1 - t) ** 2 * std**2 + t**2)

    eps, end = torch.ones(1, 1, dtype=torch.float64), 0.1
    exact = (
        eps * ((1 - end) ** 2 * std**2 + end**2) ** 0.5
    )  # the flow keeps the quantile, and eps has unit scale
    errors = []
    for steps in (20, 40, 80):
        times = flow.shift_time(torch.linspace(1, end, steps + 1, dtype=torch.float64), 1.0)
        errors.append(float((flow.dpm_solver(velocity, eps, times) - exact).abs()))
    assert errors[0] / errors[1] > 3 and errors[1] / errors[2] > 3


def test_the_documented_table_is_current():
    """Rows and facts of ``docs/teachers.md``; its figures, which differ in their last digit by machine, are in bounds."""
    import conformance_table

    rows = {row[0]: row for row in conformance_table.committed()}
    assert list(rows) == list(tiny.PIPELINES)
    for name, row in rows.items():
        teacher = FAMILIES[name.split(" ")[0]](tiny.PIPELINES[name](), "tiny")
        assert row[:4] == conformance_table.facts(name, teacher)
        has_core = type(teacher.transformer).__name__ in conformance_table.CORES
        assert (row[6] != "none") == has_core
        assert all(float(figure) <= TOLERANCE for figure in row[4:] if figure != "none")
