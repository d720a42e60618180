"""Exported programs: the student's own numbers at sizes that were not traced, where this package is not."""

from __future__ import annotations

import subprocess
import sys
from unittest.mock import patch

import numpy as np
import pytest
import torch

from l2p.errors import UserError
from l2p.hub.export import export
from l2p.hub.portable import patch_attention
from l2p.hub.program import _check, _inputs, _portable
from l2p.teachers.protocol import Conditioning


@pytest.fixture(scope="module")
def portable(run_folder):
    return _portable(run_folder / "student")[0]


@torch.no_grad()
def wanted(portable, noise, ids):
    caption = portable.caption(ids)
    return portable.student.sample(noise, Conditioning(caption, torch.tensor([caption.shape[1]])))


@pytest.mark.parametrize("sizes", [(2, 3, 40), (5, 4, 33), (1, 1, 32), (8, 8, 7)])
def test_the_portable_student_is_the_student(portable, sizes):
    inputs = _inputs(portable, *sizes)
    with torch.no_grad():
        torch.testing.assert_close(portable(*inputs), wanted(portable, *inputs), rtol=1e-4, atol=1e-4)


def test_the_caption_is_the_text_encoders(run_folder, portable):
    _, texts = _portable(run_folder / "student")
    ids, _ = texts.tokenize(["a red house"])
    with torch.no_grad():
        torch.testing.assert_close(portable.caption(ids), texts(["a red house"]).embeds)


@pytest.mark.parametrize(
    ("height", "width", "tile", "halo"), [(8, 12, 4, 2), (5, 7, 4, 2), (3, 3, 8, 4), (9, 4, 3, 0)]
)
def test_portable_attention_is_the_specification(height, width, tile, halo):
    from l2p_kernels.patch_attention.reference import patch_attention_reference

    generator = torch.Generator().manual_seed(1)
    q, k, v = torch.randn(3, 2, height, width, 2, 16, generator=generator)
    norms = 1 + 0.1 * torch.randn(2, 16, generator=generator)
    rope = torch.randn(height, 4, generator=generator), torch.randn(width, 4, generator=generator)
    out = patch_attention(q, k, v, tile=tile, halo=halo, q_norm=norms[0], k_norm=norms[1], rope=rope)
    expected = patch_attention_reference(q, k, v, *norms, *rope, tile, halo, 16**-0.5)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


class WholeHead(torch.nn.Module):
    """The head as the portable student runs it."""

    def __init__(self, head: torch.nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: torch.Tensor, c: torch.Tensor, x_in: torch.Tensor) -> torch.Tensor:
        with patch("l2p_kernels.patch_attention", patch_attention):
            return self.head(features, c, x_in, torch.full((1,), 0.9))


@pytest.mark.slow
@torch.no_grad()
def test_one_trace_of_the_head_holds_for_whole_and_for_broken_tiles(portable):
    student, generator = portable.student, torch.Generator().manual_seed(1)
    p = student.spec.patch_size

    def inputs(rows: int, columns: int) -> tuple[torch.Tensor, ...]:
        shapes = (
            (1, rows, columns, student.core.dim),
            (1, student.core.time_dim),
            (1, 3, rows * p, columns * p),
        )
        return tuple(torch.randn(shape, generator=generator) for shape in shapes)

    dims = [torch.export.Dim(name, min=2, max=32) for name in ("rows", "columns")]
    shapes = {"features": {1: dims[0], 2: dims[1]}, "c": None, "x_in": {2: p * dims[0], 3: p * dims[1]}}
    program = torch.export.export(WholeHead(student.head), inputs(3, 5), dynamic_shapes=shapes).module()
    for size in ((8, 8), (2, 6), (5, 4), (16, 24)):
        given = inputs(*size)
        expected = student.head(*given, torch.full((1,), 0.9))
        torch.testing.assert_close(program(*given), expected, rtol=1e-4, atol=1e-4)


# The README's own lines, with a finder before them that refuses what made the file.
ALONE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("l2p", "l2p_kernels", "diffusers", "transformers"):
            raise ImportError(name)

sys.meta_path.insert(0, Refuse())
import numpy, torch
torch.manual_seed(0)
numpy.random.seed(0)
"""


def run_readme(folder, kind: str) -> np.ndarray:
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    save = 'numpy.save("picture.npy", numpy.asarray(picture.detach() if hasattr(picture, "detach") else picture))'
    done = subprocess.run(
        [sys.executable, "-c", f"{ALONE}\n{code}\n{save}"], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return np.load(folder / "picture.npy")


def closeness(out, expected) -> float:
    return ((torch.as_tensor(out) - expected).abs().max() / expected.abs().max()).item()


@pytest.fixture(scope="module")
def readme_ids(run_folder):
    _, texts = _portable(run_folder / "student")
    return texts.tokenize(["a red house by a lake at dusk"])[0]


@pytest.mark.slow
def test_torch_export_runs_where_the_package_is_not(portable, readme_ids, run_folder, tmp_path):
    folder = export(run_folder / "student", "torch-export", tmp_path / "program")
    out = run_readme(folder, "torch")
    torch.manual_seed(0)
    assert closeness(out, wanted(portable, torch.randn(1, 3, 32, 48), readme_ids)) < 1e-4
    program = torch.export.load(folder / "student.pt2").module()
    for sizes in ((4, 6, 19), (7, 2, 3), (8, 8, 12)):
        inputs = _inputs(portable, *sizes)
        with torch.no_grad():
            assert closeness(program(*inputs), wanted(portable, *inputs)) < 1e-4


@pytest.mark.slow
def test_onnx_is_within_a_thousandth(portable, readme_ids, run_folder, tmp_path):
    pytest.importorskip("onnxscript")
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    folder = export(run_folder / "student", "onnx", tmp_path / "program")
    onnx.checker.check_model(folder / "student.onnx")
    out = run_readme(folder, "onnx")
    np.random.seed(0)
    noise = torch.from_numpy(np.random.standard_normal((1, 3, 32, 48)).astype(np.float32))
    assert closeness(out, wanted(portable, noise, readme_ids)) <= 1e-3
    session = onnxruntime.InferenceSession(folder / "student.onnx", providers=["CPUExecutionProvider"])
    for sizes in ((6, 2, 50), (9, 9, 2), (8, 8, 12)):
        noise, ids = _inputs(portable, *sizes)
        (out,) = session.run(None, {"noise": noise.numpy(), "token_ids": ids.numpy()})
        assert closeness(out, wanted(portable, noise, ids)) <= 1e-3


def test_mistakes(run_folder, tmp_path, monkeypatch):
    (tmp_path / "mine").write_text("text")
    for kind in ("torch-export", "onnx"):
        with pytest.raises(UserError, match="left alone" if kind != "onnx" else "left alone|not installed"):
            export(run_folder / "student", kind, tmp_path)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"pip install .*\[onnx\]'"):
        export(run_folder / "student", "onnx", tmp_path / "a")


def test_a_program_that_differs_is_refused(portable):
    _check(portable, portable)
    with pytest.raises(UserError, match="differs from the student"):
        _check(portable, lambda noise, ids: noise)
