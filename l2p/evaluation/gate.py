"""A gate for continuous integration: conditions on the figures that must not hold, such as ``seam_ratio>1.1``."""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from l2p.errors import UserError

_COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
_FORM = re.compile(r"\s*([A-Za-z_][\w.]*)\s*(>=|<=|>|<)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*")


@dataclass(frozen=True)
class Condition:
    """``name`` is a figure of the student (``seam_index``), of the summary, or a path (``teacher.frechet``)."""

    name: str
    sign: str
    limit: float

    @classmethod
    def parse(cls, text: str) -> Condition:
        """From ``NAME>NUMBER``, with >, >=, < or <=. Raises UserError for anything else."""
        match = _FORM.fullmatch(text)
        if not match:
            raise UserError(
                f"--fail-if {text!r} is no condition: expected NAME>NUMBER or NAME<NUMBER, such as 'seam_index>1.1'"
            )
        return cls(match[1], match[2], float(match[3]))

    def failure(self, metrics: dict[str, Any]) -> str | None:
        """A line if the condition holds, else None.

        Raises:
            UserError: there is no such figure, or this evaluation did not measure it.
        """
        value = _find(self.name, metrics)
        if not _COMPARE[self.sign](value, self.limit):
            return None
        return f"{self.name}{self.sign}{self.limit:g}: {self.name} is {value:.4g}"


def _find(name: str, metrics: dict[str, Any]) -> float:
    for start in (metrics.get("student", {}), metrics.get("summary", {}), metrics):
        value: Any = start
        for key in name.split("."):
            value = value.get(key) if isinstance(value, dict) and key in value else _NOTHING
        if isinstance(value, (int, float)):
            return float(value)
        if value is None:
            raise UserError(
                f"--fail-if {name}: this evaluation did not measure it (no teacher, truth or weights for it)"
            )
    known = [key for key, value in metrics.get("student", {}).items() if isinstance(value, (int, float))]
    known += [f"seams.{key}" for key in ("strength", "score")] + list(metrics.get("summary", {}))
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(dict.fromkeys(known))}"
    raise UserError(f"--fail-if {name}: there is no such figure: {hint}")


_NOTHING = object()
