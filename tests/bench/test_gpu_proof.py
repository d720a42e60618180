"""`make gpu-proof` without a GPU: every section at tiny sizes on the CPU, and what happens when one fails or hangs."""

from __future__ import annotations

import json
import os
import sys

import pytest

from l2p.bench import gpu_proof
from l2p.bench.gpu_proof import Section, gather, report, run, sections
from l2p.bench.gpu_sections import SECTIONS, Findings


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    work = tmp_path_factory.mktemp("proof")
    for name, section in SECTIONS.items():
        section(Findings(name, "cpu", True, work))
    return work, {name: json.loads((work / f"{name}.json").read_text()) for name in SECTIONS}


def test_every_section_runs_on_a_cpu(found):
    _, by_name = found
    for name, part in by_name.items():
        failures = {k: v for k, v in part.items() if isinstance(v, dict) and v.get("figure") == "failed"}
        assert part and not failures, (name, failures)
    assert all("WRONG" not in v.get("note", "") for v in by_name["correct"].values())
    for key in ("text", "noise", "core", "head", "8 bits on the host", "prompt to 8 bits"):
        assert by_name["step"][key]["milliseconds"] > 0
    assert by_name["kernels"]["attention, norm, RoPE"]["of_floor"] > 0


def test_the_saved_student_is_one(found):
    from l2p.students.io import read_spec

    assert read_spec(found[0] / "student").height == 64


def test_one_that_fails_or_hangs_is_a_row(tmp_path):
    python = [sys.executable, "-c"]
    todo = [
        Section("good", 60, [*python, f"open({str(tmp_path / 'good.json')!r}, 'w').write('{{\"a\": 1}}')"]),
        Section("bad", 60, [*python, "raise SystemExit('no such card')"]),
        Section("hangs", 1, [*python, "import time; time.sleep(60)"]),
        Section("late", 60, [*python, "pass"]),
    ]
    ticks = iter([0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 90, 90])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_proof.time, "monotonic", lambda: next(ticks))
        done = run(todo, tmp_path, 100, dict(os.environ), say=lambda line: None)
    assert [row["status"] for row in done.values()] == [
        "ok", "failed with code 1", "stopped after 1 s", "skipped: no time left",
    ]  # fmt: skip
    facts = gather(tmp_path, done)
    assert facts["good"] == {"a": 1} and facts["sections"]["bad"]["last_lines"] == ["no such card"]
    path, text = report(facts, tmp_path / "out")
    assert "section hangs" in text and "stopped after 1 s" in path.read_text()
    assert json.loads(path.with_suffix(".json").read_text()) == facts


def test_all_sections_fit_their_budget(tmp_path):
    todo = sections("cuda", False, tmp_path)
    assert len({s.name for s in todo}) == len(todo) and set(SECTIONS) <= {s.name for s in todo}
    assert all("--cuda-graphs" in s.command for s in todo if s.name in ("bench-graphs", "bench-compiled"))


def test_a_table_of_a_card(found, tmp_path):
    _, by_name = found
    env = by_name["env"] | {"card": {"name": "NVIDIA H100 80GB", "gib": 79.1, "capability": "9.0"}}
    row = {"path": "l2p", "height": 4096, "seconds_median": 0.0251, "peak_memory_bytes": 4e9, "status": "ok"}
    facts = {**by_name, "env": env, "bench": {"rows": [row]}, "sections": {}, "training": {"one_step": 12.5}}
    path, text = report(facts, tmp_path)
    assert path.name == "nvidia-h100-80gb.md"
    assert "bench: l2p 4096 px" in text and "25.1 ms" in text and "12.5 ms" in text


@pytest.mark.slow
def test_the_whole_proof_on_a_cpu(tmp_path):
    assert gpu_proof.main(["--device", "cpu", "--small", "--budget", "900", "--out", str(tmp_path)]) == 0
    facts = json.loads((tmp_path / "cpu-dry-run.json").read_text())
    wanted = set(facts["sections"]) - {"bench-compiled"}  # which needs a C++ compiler
    assert {name for name in wanted if facts["sections"][name]["status"] != "ok"} == set()
    assert facts["training"]["one_step"] is None or facts["training"]["one_step"] > 0
