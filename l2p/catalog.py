"""What comes with the package, and what is known of the Hub: names that commands and functions take."""

from __future__ import annotations


def catalog() -> dict[str, list[str]]:
    """Sorted names by kind: ``students``, ``teachers``, ``decoders``, ``published`` (teachers on the Hub) and ``recipes``."""
    from l2p.decoders.io import bundled_decoders
    from l2p.shipped_recipes import shipped_recipes
    from l2p.students.resolve import bundled_students
    from l2p.teachers import BUNDLED, FAMILIES

    return {
        "students": bundled_students(),
        "teachers": sorted(path.parent.name for path in BUNDLED.glob("*/model_index.json")),
        "decoders": sorted(bundled_decoders()),
        "published": sorted({entry.name for family in FAMILIES.values() for entry in family.published}),
        "recipes": list(shipped_recipes()),
    }
