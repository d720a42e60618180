"""`l2p distill`: options and overrides in any order, the dry run, and what is handed to the library."""

from __future__ import annotations

from pathlib import Path

import pytest

QUICKSTART = Path(__file__).parents[2] / "recipes" / "quickstart.yaml"


def test_dry_run_prints_recipe_and_plan_and_does_nothing(l2p, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = l2p("distill", QUICKSTART, "--dry-run", "one_step.steps=77", "name=mine")
    assert code == 0 and err == ""
    assert "steps: 77" in out and "runs/mine" in out and "77 steps of" in out
    for stage in ("lift", "corpus", "transfer", "one_step", "match", "student", "evaluation"):
        assert f"│ {stage} " in out
    assert list(tmp_path.iterdir()) == []


def test_dry_run_finds_what_a_run_would_refuse(l2p):
    code, _, err = l2p("distill", QUICKSTART, "one_step.objectives.pairs.pixl=1", "--dry-run")
    assert (
        code == 2
        and "objectives.pairs.pixl: did you mean one_step.objectives.pairs.pixel?" in err
        and err.count("\n") == 1
    )


@pytest.mark.parametrize("resume", ["auto", "never", "some/path.ckpt"])
def test_recipe_and_resume_reach_the_library_and_the_places_are_printed(l2p, monkeypatch, resume):
    from l2p.training import distill

    seen = {}

    def run(recipe, resume):
        seen.update(recipe=recipe, resume=resume)
        places = {"output_dir": "runs/x", "student": "runs/x/student", "report": "runs/x/report.html"}
        return {**places, "metrics": {}, "stages": {}, "warnings": [], "seconds": 90.0}

    monkeypatch.setattr(distill, "run", run)
    code, out, _ = l2p("distill", "--resume", resume, QUICKSTART, "seed=5")
    assert code == 0 and seen["recipe"].seed == 5 and seen["resume"] == resume
    assert "done in 1.5 minutes" in out
    for place in ("runs/x/report.html", "runs/x/student", "runs/x/metrics.json"):
        assert place in out
