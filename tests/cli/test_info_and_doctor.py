"""`l2p info` and `l2p doctor`."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from l2p.cli import doctor, info
from l2p.files import read_json
from l2p.students.io import read_config
from l2p.students.pipeline import load
from l2p.students.resolve import bundled_students, resolve_student


def test_info_counts_what_the_network_has(l2p, student_folder):
    from l2p.students.io import load_student

    code, out, _ = l2p("info", student_folder, "--json")
    facts = json.loads(out)
    assert code == 0 and facts["parameters"] == sum(
        t.numel() for t in load_student(student_folder).state_dict().values()
    )
    assert facts["recipe"]["name"] == "tiny" and facts["metrics"] is None
    assert facts["config"]["patch_size"] == 16 and facts["config"]["stage"] == "one_step"
    code, out, _ = l2p("info", student_folder)
    assert code == 0 and "48 x 32" in out and "tiny (seed 3)" in out and "linear" in out


def test_info_shows_the_figures_beside_the_student(l2p, student_folder, monkeypatch):
    figures = {"attribute_accuracy": 0.91, "frechet": 3.25, "latency_ms": 14.0, "psnr_to_teacher": None}
    metrics = student_folder.parent / "metrics.json"
    metrics.write_text(json.dumps({"student": figures, "teacher": {"frechet": 2.5}}))
    try:
        assert info.gather(student_folder)["metrics"]["student"] == figures
        _, out, _ = l2p("info", student_folder)
    finally:
        metrics.unlink()
    assert "0.910" in out and "3.250" in out and "2.500" in out


def test_doctor_names_versions_device_and_kernel(l2p):
    import torch

    code, out, err = l2p("doctor", "--json")
    findings = {item["name"]: item for item in json.loads(out)}
    assert err == "" and code == int(any(item["state"] == "broken" for item in findings.values()))
    assert (
        findings["torch"]["value"].startswith(torch.__version__.split("+")[0])
        and findings["torch"]["state"] == "ok"
    )
    assert "impl=" in findings["patch attention"]["value"]
    assert {"python", "threads", "bf16", "disk", "Hub cache"} <= findings.keys()
    assert all(item["fix"] for item in findings.values() if item["state"] == "slow")


def test_doctor_prints_a_table(l2p):
    _, out, err = l2p("doctor")
    assert err == "" and "what to do" in out and "patch attention" in out


def test_doctor_survives_a_probe_that_fails(l2p, monkeypatch):
    def fail():
        raise RuntimeError("libcuda is\nbroken")

    monkeypatch.setitem(doctor.PROBES, "device", fail)
    code, out, err = l2p("doctor", "--json")
    found = next(item for item in json.loads(out) if item["name"] == "device")
    assert code == 1 and err == "" and found["state"] == "broken" and found["value"] == "libcuda is broken"
    assert "pip install" in found["fix"]


def test_doctor_tells_missing_and_old_packages(monkeypatch):
    from importlib import metadata

    real = metadata.version

    def version(name: str) -> str:
        if name == "lpips":
            raise metadata.PackageNotFoundError(name)
        return "2.6.3" if name == "lightning" else real(name)

    monkeypatch.setattr(metadata, "version", version)
    findings = {item.name: item for item in doctor._packages()}
    assert (findings["lpips"].state, findings["lightning"].state) == ("broken", "broken")
    assert "lightning>=2.6.4" in findings["lightning"].fix and "pip install" in findings["lpips"].fix


def test_doctor_warns_of_threads_that_wait_for_each_other(monkeypatch):
    from l2p import runtime

    monkeypatch.setattr(runtime, "usable_cores", lambda: 4)
    for asked, state in (("16", "slow"), ("1", "slow"), ("4", "ok"), ("many", "broken")):
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
        assert doctor._threads()[0].state == state


def test_a_student_that_comes_with_the_package_is_listed_loaded_and_drawn(
    l2p, student_folder, tmp_path, monkeypatch
):
    import shutil

    import l2p as library
    from l2p.students import resolve

    monkeypatch.chdir(tmp_path)
    bundled = tmp_path / "package"
    shutil.copytree(student_folder, bundled / "landscapes-128")
    monkeypatch.setattr(resolve, "BUNDLED", bundled)
    assert resolve.bundled_students() == ["landscapes-128"]
    assert "landscapes-128, which comes with l2p" in " ".join(resolve.student_help().split())
    assert "landscapes-128" in l2p("info")[1]
    assert json.loads(l2p("info", "--json")[1])["students"] == ["landscapes-128"]
    assert "48 x 32" in l2p("info", "landscapes-128")[1]
    code, _, err = l2p("generate", "landscapes-128", "a lake at dusk", "--seed", 1, "--out", "a.png")
    assert code == 0 and err == "" and (tmp_path / "a.png").is_file()
    drawn = [
        library.load(path, dtype="fp32").generate("a lake", seeds=1)[0]
        for path in ("landscapes-128", student_folder)
    ]
    assert np.array_equal(*map(np.array, drawn))
    code, _, err = l2p("generate", "landscape-128", "a lake")
    assert code == 2 and "or one that comes with l2p: landscapes-128" in err
    (tmp_path / "landscapes-128").mkdir()  # a folder of one's own of that name is meant rather
    assert l2p("info", "landscapes-128")[0] == 2


@pytest.mark.parametrize("name", bundled_students())
def test_a_student_of_the_package_draws_as_installed(name, tmp_path, l2p):
    """Strictly read, within 25 MB, complete with its recipe, figures and text encoder; no CPU computes in its fp16."""
    folder = resolve_student(name)
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 25e6
    assert read_config(folder)["recipe"] and read_json(folder / "metrics.json")["student"]
    assert load(folder, device="cpu").dtype in (torch.bfloat16, torch.float32)
    assert l2p("generate", name, "a lake at dusk", "--out", tmp_path / "lake.png")[0] == 0
    assert np.asarray(Image.open(tmp_path / "lake.png")).std() > 10
