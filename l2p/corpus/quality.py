"""A hook for a scorer of pictures (aesthetics, CLIP, nudity): the user's own function, on this machine.

    def scorer(images, prompts, **options) -> scores

``images`` uint8 numpy [B, H, W, 3], ``prompts`` B texts; one number a picture, of which those below
``corpus.quality.min_score`` are left out. It is named as ``module:function``, as ``file.py:function``, or by an entry
point of the group ``l2p.scorers`` that an installed package brings. Nothing is downloaded here, and none is built in.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np

from l2p.corpus.samples import Sample
from l2p.errors import UserError
from l2p.recipe import QualityConfig

GROUP = "l2p.scorers"


class Scorer:
    """Sorts drawn samples by the score of the user's function.

    Raises:
        UserError: there is no such function.
    """

    def __init__(self, config: QualityConfig) -> None:
        self.config, self._score = config, load_scorer(config.scorer)

    def sort(self, samples: Sequence[Sample]) -> tuple[list[Sample], list[tuple[int, float]]]:
        """Samples to keep, with their scores, and (index, score) of the others.

        Raises:
            UserError: the function fails, or gives something else than one finite number a picture.
        """
        images, prompts = np.stack([s.image for s in samples]), [s.prompt for s in samples]
        name = self.config.scorer
        try:
            scores = [float(score) for score in self._score(images, prompts, **self.config.options)]
        except Exception as error:  # the function is not ours: whatever it raises is its author's to mend
            raise UserError(
                f"corpus.quality.scorer {name} failed: {type(error).__name__}: {error}"
            ) from error
        if len(scores) != len(samples) or not all(map(math.isfinite, scores)):
            raise UserError(
                f"corpus.quality.scorer {name} gave {scores[:4]} ..., expected {len(samples)} finite numbers"
            )
        kept = [replace(sample, score=score) for sample, score in zip(samples, scores, strict=True)]
        low = self.config.min_score
        return (
            [sample for sample in kept if sample.score >= low],
            [(sample.index, sample.score) for sample in kept if sample.score < low],
        )


def load_scorer(name: str) -> Callable[..., Any]:
    """The function of that name, see the top of this file. Raises UserError where there is none."""
    where, colon, function = name.rpartition(":")
    try:
        if not colon:
            found = next(iter(entry_points(group=GROUP, name=name)), None)
            if found is None:
                known = sorted(point.name for point in entry_points(group=GROUP))
                raise UserError(
                    f"no scorer {name!r} is installed (found: {', '.join(known) or 'none'}): expected one of these, "
                    "module:function or file.py:function"
                )
            score = found.load()
        else:
            score = getattr(_module(where), function)
    except (ImportError, AttributeError, OSError, SyntaxError) as error:
        raise UserError(f"cannot load corpus.quality.scorer {name}: {error}") from error
    if not callable(score):
        raise UserError(f"corpus.quality.scorer {name} is no function, but {type(score).__name__}")
    return score


def _module(where: str) -> Any:
    if not where.endswith(".py"):
        return importlib.import_module(where)
    path = Path(where)
    spec = importlib.util.spec_from_file_location(f"l2p_scorer_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
