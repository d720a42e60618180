"""l2p: a latent text-to-image teacher goes in, a pixel-space student that paints in one step comes out.

    import l2p
    student = l2p.load("runs/quickstart/student")
    student.generate("a red house by a lake at dusk", seeds=7)[0].save("house.png")

Importing this package loads no heavy library; each is loaded where it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from l2p.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from l2p.hub.pixel_pipeline import PixelPipeline
    from l2p.students.pipeline import StudentPipeline

__version__ = "0.1.0"
__all__ = ["PixelPipeline", "UserError", "__version__", "distill", "list_models", "load"]


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
    from l2p.students.pipeline import load as load_pipeline
    from l2p.students.resolve import resolve_student

    return load_pipeline(resolve_student(path), device=device, dtype=dtype)


def list_models() -> dict[str, list[str]]:
    """Names that need no file of yours: ``students`` for :func:`load`, ``teachers`` and ``decoders`` that come with the package,
    ``published`` teachers on the Hub, and ``recipes`` for :func:`distill`."""
    from l2p.catalog import catalog

    return catalog()


def distill(
    recipe: str | Path, overrides: Sequence[str] = (), *, resume: str = "auto", **sections: Any
) -> dict[str, Any]:
    """Distil a student as ``l2p distill RECIPE`` does, in this process.

    Args:
        recipe: a YAML file, or the name of a recipe that comes with the package.
        overrides: as on the command line, such as ``"one_step.steps=2000"``.
        resume: "auto" goes on where the run's folder stands, "never" starts anew, or a checkpoint to go on from.
        sections: keys of the recipe and their values; a mapping changes a section: ``one_step={"steps": 2000}``.

    Returns:
        ``student``, ``report`` and ``output_dir`` (paths), ``metrics``, ``stages``, ``warnings`` and ``seconds``.

    Raises:
        UserError: a mistake in the recipe, or anything that the command would report in one line.
    """
    from l2p.recipe import load_recipe, overrides_of
    from l2p.training import distill as distillation

    return distillation.run(load_recipe(recipe, [*overrides, *overrides_of(sections)]), resume=resume)
