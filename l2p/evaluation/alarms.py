"""Which figures of a student should worry: one line each, with the value, the limit and what it may mean.

The limits lie above what scikit-image's photographs and the renders of landscapes score, so a clean set stays silent.
Where the teacher (or the real renders) share a trait, it is no fault of the student: the figure must exceed theirs too.
"""

from __future__ import annotations

from typing import Any

from l2p.evaluation import color, patch_artifacts
from l2p.evaluation.bootstrap import wilson_interval

REPEATED_PICTURES = 0.1
MISSED = 0.1  # by which an attribute is surely found less often than in the reference
FINE = (0.5, 2.0)  # of the reference's energy above 0.25 cycles a pixel


def alarms(metrics: dict[str, Any]) -> list[str]:
    """Lines for the object ``student`` of an evaluation's metrics; empty where nothing is out of the ordinary."""
    student = metrics["student"]
    reference = metrics.get("real") or metrics.get("teacher") or metrics.get("against") or {}
    lines = []
    seams = student.get("seams", {})
    if seams.get("alarming") and seams["strength"] > 1.1 * seams.get("strength_in_reference", 1.0):
        lines.append(
            f"seams every {seams['period']} px ({seams['axis']}, from {seams['offset']}): steps {seams['strength']:.2f} "
            f"times those beside them, limit {seams['limit']:g}"
        )
    share = student.get("grid_share")
    if share is not None and share > max(patch_artifacts.ALARM, 2 * reference.get("grid_share", 0.0)):
        lines.append(
            f"marks that repeat with the patch: {100 * share:.1f} % of the fine structure, limit {100 * patch_artifacts.ALARM:g} %"
        )
    repeated = student.get("repeated_pictures")
    if repeated is not None and repeated > REPEATED_PICTURES + reference.get("repeated_pictures", 0.0):
        lines.append(
            f"repeated texture: {100 * repeated:.0f} % of the pictures copy parts of themselves, "
            f"limit {100 * REPEATED_PICTURES:.0f} %"
        )
    cast = student.get("color_drift_worst")
    if cast is not None and cast > color.ALARM:
        lines.append(
            f"colours drift: {cast:.1f} CIEDE2000 in the worst sixteenth of a picture, limit {color.ALARM:g}"
        )
    fine = student.get("high_frequency_ratio")
    if fine is not None and not FINE[0] <= fine <= FINE[1]:
        what = "soft" if fine < 1 else "noisy"
        lines.append(
            f"{what}: {fine:.2f} of the reference's fine structure, expected {FINE[0]:g} to {FINE[1]:g}"
        )
    return lines + _missed(student, reference)


def _missed(student: dict[str, Any], reference: dict[str, Any]) -> list[str]:
    """Attributes that prompts name and the judge does not find, where it finds them in the reference."""
    lines, expected = [], reference.get("attribute_accuracy_by_attribute") or {}
    for name, share in (student.get("attribute_accuracy_by_attribute") or {}).items():
        asked = student.get("attributes_asked", {}).get(name, 0)
        if not asked or expected.get(name) is None:
            continue
        most = wilson_interval(round(share * asked), asked)[1]
        if most < expected[name] - MISSED:
            lines.append(
                f"missing: {name} is as prompts name it in {100 * share:.0f} % of {asked} pictures, "
                f"in {100 * expected[name]:.0f} % of the reference's"
            )
    return lines
