"""Names and shapes of published files as tables: for the command line and for docs/import.md, which a test compares."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

from l2p.errors import UserError
from l2p.published.importing import variants
from l2p.published.l2p_weights import L2P_VARIANTS, L2PVariant, names
from l2p.published.pid import LICENSE, PID_VARIANTS, PREFIX, REPO, PiDVariant, pid_names

NUMBER = re.compile(r"\.(\d+)(?=\.)")


def published_shapes(variant: L2PVariant | PiDVariant) -> dict[str, tuple[int, ...]]:
    """Every name in the published file, prefix included, and its shape."""
    if isinstance(variant, PiDVariant):
        return {PREFIX + name: tuple(tensor.shape) for name, tensor in pid_names(variant).items()}
    return {name: tuple(tensor.shape) for name, (_, tensor) in names(variant).items()}


def list_variants() -> str:
    """One line a variant."""
    lines = []
    for name, variant in variants().items():
        repo, license = (
            (REPO, LICENSE) if isinstance(variant, PiDVariant) else (variant.repo, variant.license)
        )
        lines.append(f"{name:<28}{repo}:{variant.file}  ({license})")
    return "\n".join(lines)


def list_keys(name: str) -> str:
    """One line a tensor. Raises UserError for an unknown variant."""
    known = variants()
    if name not in known:
        raise UserError(f"no variant {name!r}, expected one of {', '.join(known)}")
    shapes = published_shapes(known[name])
    values = sum(math.prod(shape) for shape in shapes.values())
    lines = [f"{key:<64}{list(shape)}" for key, shape in shapes.items()]
    return "\n".join([*lines, f"{len(shapes)} tensors, {values:,} values"])


def table(shown: Mapping[str, L2PVariant | PiDVariant]) -> str:
    """Markdown: a row for names that differ in a number alone and have one shape, a column a variant."""
    columns = {name: _rows(published_shapes(variant)) for name, variant in shown.items()}
    rows = list(dict.fromkeys(row for column in columns.values() for row in column))
    head = ["name", *columns]
    body = [[f"`{row}`", *(_shape(column.get(row)) for column in columns.values())] for row in rows]
    totals = [published_shapes(variant) for variant in shown.values()]
    body.append(["**tensors**", *(str(len(shapes)) for shapes in totals)])
    body.append(["**values**", *(f"{sum(map(math.prod, shapes.values())):,}" for shapes in totals)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *body])


def tables() -> dict[str, str]:
    """The tables of docs/import.md by their headings."""
    kinds: dict[str, dict[str, PiDVariant]] = {"PiD, version 1": {}, "PiD, version 1.5": {}}
    seen = set()
    for name, variant in PID_VARIANTS.items():
        if variant.sizes not in seen:  # files of one shape stand in one column
            seen.add(variant.sizes)
            alike = [other for other, v in PID_VARIANTS.items() if v.sizes == variant.sizes]
            kind = "PiD, version 1.5" if name.endswith("v1.5") else "PiD, version 1"
            kinds[kind][", ".join(other.removeprefix("pid-") for other in alike)] = variant
    return {"L2P": table(L2P_VARIANTS), **{heading: table(shown) for heading, shown in kinds.items()}}


def _rows(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Names of blocks that are alike drawn together: ``layers.{0-29}.ffn_norm1.weight``."""
    groups: dict[tuple[str, tuple[int, ...]], list[int]] = {}
    for name, shape in shapes.items():
        first = NUMBER.search(name)
        pattern = name if first is None else f"{name[: first.start()]}.#{name[first.end() :]}"
        groups.setdefault((pattern, shape), []).append(-1 if first is None else int(first[1]))
    return {pattern.replace("#", _span(numbers), 1): shape for (pattern, shape), numbers in groups.items()}


def _span(numbers: list[int]) -> str:
    if len(numbers) == 1:
        return str(numbers[0])
    together = numbers == list(range(numbers[0], numbers[-1] + 1))
    return f"{{{numbers[0]}-{numbers[-1]}}}" if together else "{" + ",".join(map(str, numbers)) + "}"


def _shape(shape: Iterable[int] | None) -> str:
    return "-" if shape is None else " x ".join(map(str, shape)) or "scalar"
