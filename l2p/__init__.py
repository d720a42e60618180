"""l2p: a latent text-to-image teacher goes in, a pixel-space student that paints in one step comes out.

    import l2p
    student = l2p.load("runs/quickstart/student")
    student.generate("a red house by a lake at dusk", seeds=7)[0].save("house.png")

Importing this package loads no heavy library; each is loaded where it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from l2p.errors import UserError

if TYPE_CHECKING:
    from l2p.hub.pixel_pipeline import PixelPipeline
    from l2p.students.pipeline import StudentPipeline

__version__ = "0.1.0"
__all__ = ["PixelPipeline", "UserError", "__version__", "load"]


def __getattr__(name: str) -> type[PixelPipeline]:
    if name == "PixelPipeline":  # found when it is asked for: diffusers is slow to import
        from l2p.hub.pixel_pipeline import PixelPipeline

        return PixelPipeline
    raise AttributeError(f"module 'l2p' has no attribute {name!r}")


def load(path: str, device: str = "auto", dtype: str = "auto") -> StudentPipeline:
    """The student in the folder `path`, or called so in the package or on the Hub (``USER/NAME[@revision]``), ready to
    draw.

    device: "auto", "cpu", "cuda", "cuda:1" or "mps"; dtype: "auto", "bf16", "fp16" or "fp32".
    Raises UserError when the folder holds no student or its weights do not fit.
    """
    from l2p.students.named import resolve_student
    from l2p.students.pipeline import load as load_pipeline

    return load_pipeline(resolve_student(path), device=device, dtype=dtype)
