"""A student as a program that runs without this package: `torch.export`, and ONNX.

``(noise [1, 3, H, W], token_ids [1, L]) -> picture [1, 3, H, W]`` in fp32: the text encoder, the student and its steps in
one graph. H and W are multiples of the patch. What was written is run and compared with the student at sizes that it
was not traced at, before it takes its place.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from l2p.errors import UserError
from l2p.extras import install_hint
from l2p.files import atomic_path, write_text
from l2p.hub.portable import PortableStudent, refuse_guided, refuse_other_readers
from l2p.students.io import load_student, read_config
from l2p.students.lora import merged
from l2p.students.pipeline import text_encoder_folder
from l2p.teachers.protocol import Conditioning
from l2p.teachers.text import MAX_TOKENS, TextEncoder
from l2p.teachers.z_image_forward import MULTIPLE

INPUTS, OUTPUT = ("noise", "token_ids"), "picture"
TRACED = (3, 5, 7)  # token rows, token columns, words: all different, so that none is taken for another
CHECKED = ((2, 3, 40), (5, 4, 33), (8, 8, 12), (16, 24, 32))  # with whole tiles and words, and without
TOLERANCE = 1e-3  # of the largest value
OPSET = 23  # the newest that torch.onnx writes
TORCH_FILE, ONNX_FILE = "student.pt2", "student.onnx"

Call = Callable[[Tensor, Tensor], Tensor]

CARD = """\
A one-step pixel-space text-to-image model as a program, written by latent2pixel. Sides are multiples of {patch}, from \
{least} pixels on; the picture lies in [-1, 1], not clamped. `pip install {packages}`.

```python
{code}
```
"""
TORCH_CODE = """\
import torch
from tokenizers import Tokenizer

ids = Tokenizer.from_file("tokenizer.json").encode({prompt}).ids
program = torch.export.load("student.pt2").module()
picture = program(torch.randn(1, 3, {height}, {width}), torch.tensor([ids]))"""
ONNX_CODE = """\
import numpy as np
import onnxruntime
from tokenizers import Tokenizer

ids = Tokenizer.from_file("tokenizer.json").encode({prompt}).ids
noise = np.random.standard_normal((1, 3, {height}, {width})).astype(np.float32)
session = onnxruntime.InferenceSession("student.onnx")
(picture,) = session.run(None, {{"noise": noise, "token_ids": np.array([ids])}})"""


def to_torch_export(student: Path, out: Path) -> Path:
    """Write a folder with ``student.pt2``, which `torch.export.load` reads; the config is in it as ``config.json``."""
    _check_replaceable(out, TORCH_FILE)
    portable, texts = _portable(student)
    with atomic_path(out) as partial:
        partial.mkdir()
        extra = {"config.json": json.dumps(read_config(student))}
        torch.export.save(_trace(portable), partial / TORCH_FILE, extra_files=extra)
        _check(portable, torch.export.load(partial / TORCH_FILE).module())
        _write_texts(partial, student, portable, texts, TORCH_CODE, "torch tokenizers")
    return out


def to_onnx(student: Path, out: Path) -> Path:
    """Write a folder with ``student.onnx``, checked with onnxruntime; from 2 GB on its weights lie beside it."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"{error.name} is not installed: {install_hint('onnx')}") from None
    _check_replaceable(out, ONNX_FILE)
    portable, texts = _portable(student)
    program = torch.onnx.export(
        _trace(portable),
        input_names=list(INPUTS),
        output_names=[OUTPUT],
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    with atomic_path(out) as partial:
        partial.mkdir()
        program.save(partial / ONNX_FILE)
        session = onnxruntime.InferenceSession(partial / ONNX_FILE, providers=["CPUExecutionProvider"])

        def run(*inputs: Tensor) -> Tensor:
            feeds = {name: value.numpy() for name, value in zip(INPUTS, inputs, strict=True)}
            return torch.from_numpy(session.run([OUTPUT], feeds)[0])

        _check(portable, run)
        _write_texts(partial, student, portable, texts, ONNX_CODE, "onnxruntime tokenizers")
    return out


def _check_replaceable(out: Path, file: str) -> None:
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or (out / file).is_file())):
        raise UserError(
            f"{out} holds something that is no such export, so it is left alone: move it away, or choose another folder"
        )


def _portable(student: Path) -> tuple[PortableStudent, TextEncoder]:
    loaded = merged(load_student(student))
    refuse_other_readers(loaded.spec, student)
    refuse_guided(loaded.spec, student)
    texts = TextEncoder.from_pretrained(text_encoder_folder(student))
    return PortableStudent(loaded, texts), texts


def _write_texts(
    folder: Path, student: Path, portable: PortableStudent, texts: TextEncoder, code: str, packages: str
) -> None:
    """The tokenizer, and a README with the lines that use it all."""
    shutil.copyfile(text_encoder_folder(student) / "tokenizer" / "tokenizer.json", folder / "tokenizer.json")
    spec, prompt = portable.student.spec, texts.in_template("a red house by a lake at dusk")
    least = 2 * spec.patch_size
    sizes = {"height": spec.height or least, "width": spec.width or least}
    code = code.format(prompt=json.dumps(prompt, ensure_ascii=False), **sizes)
    write_text(
        folder / "README.md", CARD.format(patch=spec.patch_size, least=least, packages=packages, code=code)
    )


def _inputs(portable: PortableStudent, rows: int, columns: int, length: int) -> tuple[Tensor, Tensor]:
    p = portable.student.spec.patch_size
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(portable.text_encoder.config.vocab_size, (1, length), generator=generator)
    return torch.randn(1, 3, rows * p, columns * p, generator=generator), ids


@torch.no_grad()
def _trace(portable: PortableStudent) -> torch.export.ExportedProgram:
    p, lens = portable.student.spec.patch_size, portable.student.core.transformer.config.axes_lens
    dim: Any = torch.export.Dim
    rows, columns = dim("rows", min=2, max=lens[1]), dim("columns", min=2, max=lens[2])
    # the caption is padded by up to MULTIPLE - 1, and the picture's place comes after it
    length = dim("length", min=2, max=min(MAX_TOKENS, lens[0] - MULTIPLE - 2))
    shapes = {"noise": {2: p * rows, 3: p * columns}, "token_ids": {1: length}}
    return torch.export.export(portable, _inputs(portable, *TRACED), dynamic_shapes=shapes)


@torch.no_grad()
def _check(portable: PortableStudent, program: Call) -> None:
    """Against the student itself, not against what was traced."""
    lens = portable.student.core.transformer.config.axes_lens
    for rows, columns, length in CHECKED:
        noise, ids = _inputs(portable, min(rows, lens[1]), min(columns, lens[2]), length)
        caption = portable.caption(ids)
        conditioning = Conditioning(caption, torch.tensor([caption.shape[1]]))
        wanted = portable.student.sample(noise, conditioning)
        error = ((program(noise, ids) - wanted).abs().max() / wanted.abs().max()).item()
        if not error <= TOLERANCE:
            raise UserError(
                f"the exported program differs from the student by {error:.1e} of the largest value at "
                f"{tuple(noise.shape[2:])}, expected at most {TOLERANCE:.0e}: nothing was written"
            )
