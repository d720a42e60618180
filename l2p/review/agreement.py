"""How far reviewers agree beyond chance: Cohen's kappa for two, Fleiss' for more.

1 is full agreement, 0 what chance gives, below 0 less than that. Where all gave one and the same answer throughout there
is nothing to tell from chance, and kappa is not defined (None).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence


def cohen_kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> float | None:
    """Of two reviewers' answers to the same questions (Cohen 1960). Raises ValueError for other lengths, or none."""
    if len(first) != len(second) or not first:
        raise ValueError(f"two equally long rows of answers expected, got {len(first)} and {len(second)}")
    count = len(first)
    agreed = sum(x == y for x, y in zip(first, second, strict=True)) / count
    one, two = Counter(first), Counter(second)
    chance = sum(one[value] * two[value] for value in one) / count**2
    return None if chance == 1 else (agreed - chance) / (1 - chance)


def fleiss_kappa(answers: Sequence[Sequence[Hashable]]) -> float | None:
    """Of several reviewers (Fleiss 1971): a row a question, with as many answers in each. Raises ValueError otherwise."""
    if not answers or len({len(row) for row in answers}) != 1 or len(answers[0]) < 2:
        raise ValueError("rows of equally many answers, at least 2 each, expected")
    raters = len(answers[0])
    counts = [Counter(row) for row in answers]
    agreed = sum(sum(n * (n - 1) for n in row.values()) / (raters * (raters - 1)) for row in counts) / len(
        counts
    )
    total = sum(counts, Counter())
    chance = sum((n / (raters * len(counts))) ** 2 for n in total.values())
    return None if chance == 1 else (agreed - chance) / (1 - chance)
