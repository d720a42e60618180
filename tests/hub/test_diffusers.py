"""A student as a diffusers pipeline: with the package, and with nothing but diffusers and the folder's own code."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import l2p as library
from l2p.errors import UserError
from l2p.hub.bundle import closure
from l2p.hub.export import export
from l2p.students.io import load_student, save_student


@pytest.fixture(scope="module")
def exported(run_folder, tmp_path_factory):
    return export(run_folder / "student", "diffusers", tmp_path_factory.mktemp("export") / "pipeline")


@pytest.fixture(scope="module")
def pipe(exported):
    pipe = library.PixelPipeline.from_pretrained(exported)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def expected(run_folder, seed: int, dtype: str = "fp32", **options) -> np.ndarray:
    student = library.load(run_folder / "student", device="cpu", dtype=dtype)
    return np.asarray(student.generate("a lake", seeds=seed, **options)[0])


@pytest.mark.parametrize(
    ("call", "options"),
    [
        ({}, {}),
        ({"height": 40, "width": 24}, {"height": 40, "width": 24}),
        ({"num_inference_steps": 3}, {"num_steps": 3}),
    ],
)
def test_the_same_seed_is_the_same_picture_to_the_last_bit(pipe, run_folder, call, options):
    image = pipe("a lake", generator=seeded(7), **call).images[0]
    assert np.array_equal(np.asarray(image), expected(run_folder, 7, **options))


def test_in_half_precision_too(exported, run_folder):
    pipe = library.PixelPipeline.from_pretrained(exported, torch_dtype=torch.bfloat16)
    assert {p.dtype for p in pipe.student.parameters()} == {torch.bfloat16}
    assert pipe.student.basis.dtype == torch.float32 and pipe.student.head.basis.dtype == torch.float32
    image = pipe("a lake", generator=seeded(7)).images[0]
    assert np.array_equal(np.asarray(image), expected(run_folder, 7, "bf16"))


def test_the_call_that_users_know(pipe, run_folder):
    seen = []

    def look(pipeline, step, time, tensors):
        seen.append((pipeline is pipe, step, time, tuple(tensors["pixels"].shape)))
        return tensors

    result = pipe(
        ["a lake", "a house"],
        num_images_per_prompt=2,
        num_inference_steps=2,
        generator=[seeded(n) for n in (1, 2, 3, 4)],
        output_type="pt",
        callback_on_step_end=look,
    )
    assert result.images.shape == (4, 3, 32, 48) and 0 <= result.images.min() and result.images.max() <= 1
    assert seen == [(True, 0, 1.0, (4, 3, 32, 48)), (True, 1, 0.5, (4, 3, 32, 48))]
    assert pipe("a lake", output_type="np", generator=seeded(1)).images.shape == (1, 32, 48, 3)
    (images,) = pipe("a lake", return_dict=False)
    assert isinstance(images[0], Image.Image) and images[0].size == (48, 32)
    grey = pipe("a lake", callback_on_step_end=lambda *_: {"pixels": torch.zeros(1, 3, 32, 48)}).images[0]
    assert set(np.asarray(grey).ravel()) == {128}
    assert pipe.to("cpu") is pipe


def test_a_bar_is_drawn(exported, capsys):
    pipe = library.PixelPipeline.from_pretrained(exported)
    pipe("a lake", num_inference_steps=2)
    assert "2/2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"height": 7}, "height must be a positive multiple of 8, got 7"),
        ({"num_inference_steps": 0}, "num_inference_steps of 1 or more"),
        ({"output_type": "latent"}, "output_type pil, np or pt"),
        ({"generator": [seeded(1)] * 3}, "one for each of the 1 pictures, got 3"),
        ({"prompt": []}, "expected a prompt"),
    ],
)
def test_mistakes(pipe, call, message):
    with pytest.raises(UserError, match=message):
        pipe(**{"prompt": "a lake", **call})


def test_weights_are_offloaded_in_the_right_order_and_come_back(pipe, monkeypatch):
    """There is no accelerator to offload to in tests; what is checked is that each part is entered through its hook."""
    entered = []
    hooks = [
        getattr(pipe, name).register_forward_pre_hook(lambda *_, n=name: entered.append(n))
        for name in pipe.model_cpu_offload_seq.split("->")
    ]
    pipe("a lake", num_inference_steps=2)
    for hook in hooks:
        hook.remove()
    assert entered == ["text_encoder", "student", "student"]


ALONE = """
import sys
from importlib.abc import MetaPathFinder

class Forbid(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("l2p", "l2p_kernels"):
            raise ImportError("this environment has diffusers alone: " + name)

sys.meta_path.insert(0, Forbid())
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import import_utils

folder, out, dtype, accelerate = sys.argv[1:]
import_utils._accelerate_available = accelerate == "yes"  # before the folder's code is read, which asks
kinds = {"student": getattr(torch, dtype), "default": torch.float32}
pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True, torch_dtype=kinds)
assert {p.dtype for p in pipe.student.parameters()} == {kinds["student"]}
assert {b.dtype for b in pipe.student.buffers()} == {torch.float32}
generator = torch.Generator().manual_seed(7)
pipe("a lake", height=32, width=48, num_inference_steps=1, generator=generator).images[0].save(out)
"""


@pytest.mark.parametrize(
    ("dtype", "short", "accelerate"),
    [("float32", "fp32", "yes"), pytest.param("bfloat16", "bf16", "no", marks=pytest.mark.slow)],
)
def test_with_diffusers_alone_it_is_the_same_picture(
    exported, run_folder, tmp_path, dtype, short, accelerate
):
    """In a process that cannot see this package, with accelerate and as if it were missing."""
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(exported), "picture.png", dtype, accelerate],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "picture.png")), expected(run_folder, 7, short))


def test_code_is_not_run_unless_it_is_trusted(exported):
    from diffusers import DiffusionPipeline

    with pytest.raises(ValueError, match="trust_remote_code"):
        DiffusionPipeline.from_pretrained(exported, custom_pipeline=str(exported))


def test_bundle_and_package_live_in_one_process(exported, run_folder):
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(exported, custom_pipeline=str(exported), trust_remote_code=True)
    assert type(pipe) is not library.PixelPipeline and type(pipe).__name__ == "PixelPipeline"
    assert "_noise(" in inspect.getsource(type(pipe).__call__)  # as Triton reads its kernels
    image = pipe("a lake", generator=seeded(7)).images[0]
    assert np.array_equal(np.asarray(image), expected(run_folder, 7))


def test_the_bundle_holds_what_is_needed_and_no_more():
    modules = {name for name, source in closure("l2p.hub.pixel_pipeline").items() if source}
    assert {
        "l2p.students.student",
        "l2p.students.heads.patch",
        "l2p_kernels.patch_attention.api",
        "l2p_kernels.philox.triton",
    } <= modules
    assert not any(
        name.startswith(("l2p.training", "l2p.cli", "l2p.evaluation", "l2p.recipe")) for name in modules
    )
    assert not any("test_" in name or name.endswith(".bench") for name in modules)


def test_broken_exports_are_one_line(exported, tmp_path):
    import shutil

    with pytest.raises(UserError, match="is no exported pipeline"):
        library.PixelPipeline.from_pretrained(tmp_path)
    broken = shutil.copytree(exported, tmp_path / "broken")
    weights = broken / "student" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(UserError, match="cannot load the student"):
        library.PixelPipeline.from_pretrained(broken)


def test_the_command(l2p, run_folder, tmp_path):
    code, out, err = l2p("export", run_folder / "student", "--to", "diffusers", tmp_path / "new")
    assert code == 0 and out.strip() == str(tmp_path / "new"), err
    assert json.loads((tmp_path / "new" / "model_index.json").read_text())["_class_name"] == "PixelPipeline"
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "a.txt").write_text("years")
    code, _, err = l2p("export", run_folder / "student", "--to", "diffusers", tmp_path / "thesis")
    assert code == 2 and "left alone" in err
    code, _, err = l2p("export", run_folder / "student", "--to", "gguf", tmp_path / "x")
    assert code == 2 and "expected one of diffusers" in err


def test_half_precision_weights_stay_so_on_the_way(run_folder, tmp_path):
    save_student(load_student(run_folder / "student"), tmp_path / "half", dtype="bf16")
    import shutil

    for part in ("text_encoder", "tokenizer"):
        shutil.copytree(run_folder / "student" / part, tmp_path / "half" / part)
    pipe = library.PixelPipeline.from_pretrained(export(tmp_path / "half", "diffusers", tmp_path / "out"))
    assert {p.dtype for p in pipe.student.parameters()} == {torch.bfloat16}
    image = np.asarray(pipe("a lake", generator=seeded(7)).images[0])
    assert np.array_equal(
        image, np.asarray(library.load(tmp_path / "half", "cpu").generate("a lake", seeds=7)[0])
    )
