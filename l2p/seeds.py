"""The seeds of every use, in one table, so that nothing is measured on what something was trained on; and streams of
random numbers that depend on names alone."""

from __future__ import annotations

import hashlib

from l2p.errors import UserError

SEEDS = {
    "teacher": range(
        1_000_000, 5_000_000
    ),  # scenes that the bundled teacher was trained on; a GAN's real renders
    "judge": range(5_000_000, 6_000_000),
    "judge test": range(6_000_000, 7_000_000),
    "evaluation": range(7_000_000, 7_500_000),
    "decoder evaluation": range(7_500_000, 8_000_000),
    "lift": range(8_000_000, 9_000_000),
    "grow": range(9_000_000, 9_999_900),
    "decoder held-out": range(9_999_900, 10_000_000),  # shown and measured at a decoder's previews
    "decoder": range(10_000_000, 2**53),
}  # a corpus starts at its recipe's seed, from 0 on
MEASURED = ("judge test", "evaluation", "decoder evaluation", "decoder held-out")


def check_seeds(use: str, first: int, count: int, key: str) -> range:
    """The seeds ``first`` to ``first + count - 1`` of a use.

    Args:
        use: a key of :data:`SEEDS` whose seeds are measured on, or the name of what is trained.
        key: what a user sets them by, for the message.

    Raises:
        UserError: a measurement beyond its own range, or training on the seeds of a measurement.
    """
    seeds = range(first, first + count)
    if use in MEASURED:
        own = SEEDS[use]
        if not (own.start <= seeds.start and seeds.stop <= own.stop):
            raise UserError(
                f"{key} leads to the seeds {seeds.start} to {seeds.stop - 1}, beyond those of the {use}, "
                f"{own.start} to {own.stop - 1}: set a smaller one, or fewer pictures"
            )
        return seeds
    for name in MEASURED:
        other = SEEDS[name]
        if seeds.start < other.stop and other.start < seeds.stop:
            raise UserError(
                f"{key} leads the {use} to the seeds {seeds.start} to {seeds.stop - 1}, which meet those of the {name} "
                f"({other.start} to {other.stop - 1}): it would be judged on what it was trained on; set another one"
            )
    return seeds


def derive_seed(*names: object) -> int:
    """A 63-bit seed that depends on its arguments and on nothing else."""
    digest = hashlib.sha256("/".join(map(str, names)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
