"""docs/import.md holds every name and shape of every published file, as the code has them."""

from __future__ import annotations

from pathlib import Path

import pytest

from l2p.published import tables
from l2p.published.importing import variants

DOCS = Path(__file__).parents[2] / "docs" / "import.md"
COUNTS = {
    "l2p-1k": 545,
    "pid-sdxl-2kto4k": 456,
    "pid-flux-2kto4k-v1.5": 461,
}  # counted by others on the real files


def test_the_page_has_the_tables():
    text = DOCS.read_text(encoding="utf-8")
    for heading, table in tables.tables().items():
        assert f"### {heading}\n\n{table}\n" in text, f"print(tables.tables()[{heading!r}]) into {DOCS.name}"


@pytest.mark.parametrize("name", COUNTS)
def test_counts_of_the_real_files(name):
    assert len(tables.published_shapes(variants()[name])) == COUNTS[name]


def test_blocks_that_are_alike_share_a_row():
    shapes = {f"blocks.{n}.w": (2, 3) for n in range(4)} | {
        "blocks.4.w": (2, 4),
        "a.0.b": (1,),
        "a.2.b": (1,),
        "c": (),
    }
    rows = tables._rows(shapes)
    assert rows == {"blocks.{0-3}.w": (2, 3), "blocks.4.w": (2, 4), "a.{0,2}.b": (1,), "c": ()}
