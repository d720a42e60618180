"""What one picture of a preset's student asks of a GPU, from prompt features to 8 bits, counted on any machine."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from l2p.bench.launches import Launches, counted, fake, without_tables

TOKENS = 40  # of the prompt
BUDGET = 40 * 10**9  # bytes that such a card has left


def count_step(preset: str, height: int, width: int) -> tuple[dict[str, Launches], list[torch.Size]]:
    """Counts of a warm step in bf16 by part, "core", "head" and "whole", and the shapes of what is copied to the host.

    "whole" holds the parts, the noise and the 8 bits; the text encoder is not counted.

    Raises:
        UserError: an unknown preset.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    from l2p.students import tiled_inference
    from l2p.students.build import caption_width
    from l2p.students.heads import PatchHead
    from l2p.students.pipeline import StudentPipeline
    from l2p.students.presets import preset_spec
    from l2p.students.student import PixelStudent
    from l2p.teachers.protocol import Conditioning

    spec = preset_spec(preset, height, width)
    with torch.device("meta"):
        student = PixelStudent(spec).to(torch.bfloat16).eval()
    counts: dict[str, Launches] = {}
    copied: list[torch.Size] = []

    def on_host(x: Tensor) -> Any:
        copied.append(x.shape)
        return np.zeros(x.shape, np.uint8)

    with without_tables(), FakeTensorMode(), torch.no_grad(), ExitStack() as patches:
        fake(student)
        embeds = torch.empty(1, TOKENS, caption_width(spec.core), dtype=torch.bfloat16, device="cuda")
        words = Conditioning(embeds, torch.tensor([TOKENS]))
        pipeline = StudentPipeline(student, lambda prompts: words, torch.bfloat16)
        patches.enter_context(patch.object(tiled_inference, "default_budget", lambda device: BUDGET))
        patches.enter_context(patch.object(tiled_inference, "on_host", on_host))

        def part(owner: Any, name: str, label: str) -> None:
            run = getattr(owner, name)

            def measured(*args: Any, **kwargs: Any) -> Any:
                with counted() as count:
                    out = run(*args, **kwargs)
                assert label not in counts, f"the {label} runs more than once"
                counts[label] = count
                return out

            patches.enter_context(patch.object(owner, name, measured))

        pipeline.generate_arrays(["a lake"], [1], height, width)  # tables are made
        copied.clear()
        part(student.core, "run", "core")
        part(student.head, "rows" if isinstance(student.head, PatchHead) else "forward", "head")
        with counted() as whole:
            pipeline.generate_arrays(["a lake"], [1], height, width)
    return {**counts, "whole": whole}, copied
