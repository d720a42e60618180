"""`l2p evaluate`: its options, the gate's exit code, folders of pictures, resuming."""

import json

import numpy as np
import pytest

from l2p.images import save_png
from l2p.landscapes import render_batch


@pytest.fixture
def pictures(tmp_path):
    for k, picture in enumerate(render_batch(range(9_700_000, 9_700_004), 32, 48)):
        save_png(picture, tmp_path / "renders" / f"{k}.png")
    return tmp_path / "renders"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--paths", "pid,l2p"], "pid, which decodes what the teacher draws: add vae"),
        (["--paths", "vae,pid,l2p", "--pid", "nowhere"], "no pixel diffusion decoder at nowhere"),
        (["--paths", "vae"], "a student is to be measured"),
        (["--paths", "tv"], "--paths names 'tv'"),
        (["--fail-if", "nonsense"], "--fail-if 'nonsense' is no condition"),
        (["--prompts", "nowhere.txt", "--num-images", 2], "nowhere.txt"),
        (["--against", "nowhere/at/all"], "nowhere/at/all"),
    ],
)
def test_mistakes_are_one_line(l2p, student_folder, tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = l2p("evaluate", student_folder, "--out", tmp_path / "out", *argv)
    assert code == 2 and out == "" and message in err.splitlines()[-1]


def test_a_student_beside_a_folder_with_gate_json_and_resume(
    l2p, student_folder, pictures, tmp_path, monkeypatch
):
    argv = ["evaluate", student_folder, "--against", pictures, "--num-images", 4, "--out", tmp_path / "out"]
    argv += ["--dtype", "fp32", "--device", "cpu", "--json", tmp_path / "figures.json"]
    code, out, _ = l2p(*argv, "--fail-if", "seam_index>0", "--fail-if", "recall>2")
    assert code == 1 and out.count("failed: ") == 1 and "failed: seam_index>0: seam_index is" in out
    metrics = json.loads((tmp_path / "figures.json").read_text())
    assert metrics["settings"]["num_images"] == 4 and metrics["student"]["frechet_to_against"] > 0
    drawn = sorted((tmp_path / "out" / "evaluation" / "student").glob("*/*.png"))
    assert len(drawn) == 4
    drawn[1].unlink()  # as after a kill
    from l2p.students.pipeline import StudentPipeline

    counted = []
    draw = StudentPipeline.generate
    monkeypatch.setattr(
        StudentPipeline, "generate", lambda s, p, *a, **k: counted.append(p) or draw(s, p, *a, **k)
    )
    code, _, _ = l2p(*argv, "--fail-if", "recall>2")
    assert code == 0 and sum(map(len, counted)) == 1
    again = json.loads((tmp_path / "figures.json").read_text())
    for values in (metrics, again):
        del values["seconds"]
    assert metrics == again


def test_pictures_need_others_to_be_compared_with(l2p, pictures, tmp_path):
    code, _, err = l2p("evaluate", pictures)
    assert code == 2 and "name the pictures to compare with" in err
    code, out, _ = l2p("evaluate", pictures, "--against", pictures, "--out", tmp_path / "out", "--json")
    assert code == 0 and json.loads(out)["summary"]["precision"] == 1


@pytest.mark.slow
def test_the_student_alone_and_resumed(l2p, student_folder, tmp_path, monkeypatch):
    argv = ["evaluate", student_folder, "--paths", "l2p", "--num-images", 4, "--out", tmp_path / "out"]
    argv += ["--dtype", "fp32", "--device", "cpu", "--json"]
    figures = []
    for _ in range(2):
        code, out, err = l2p(*argv)
        assert code == 0, err
        metrics = json.loads(out)
        assert "teacher" not in metrics and metrics["summary"]["speedup"] is None
        del metrics["seconds"], metrics["student"]["latency_ms"], metrics["student"]["peak_memory_mb"]
        figures.append(metrics)
        if len(figures) == 1:  # the second time the pictures come from the disk
            from l2p.evaluation import evaluate

            monkeypatch.setattr(evaluate, "_paint", lambda *_: pytest.fail("drawn again"))
    assert figures[0] == figures[1]
    assert np.isfinite(figures[0]["student"]["frechet"])
    assert (tmp_path / "out" / "report.html").is_file()


def test_pictures_of_other_prompts_are_not_taken_for_these(l2p, student_folder, pictures, tmp_path):
    """Two files of prompts into one folder: each is measured on pictures of its own prompts."""
    (tmp_path / "a.txt").write_text("a red house\na lake\nsnow\nthree trees\n")
    (tmp_path / "b.txt").write_text("night over hills\na river\na tower\nrain\n")
    common = ["--against", pictures, "--num-images", 4, "--dtype", "fp32", "--device", "cpu"]
    figures = {}
    for out, names in (("shared", "ab"), ("fresh", "b")):
        for name in names:
            argv = [
                "evaluate",
                student_folder,
                "--prompts",
                tmp_path / f"{name}.txt",
                "--out",
                tmp_path / out,
            ]
            code, _, err = l2p(*argv, *common, "--json", tmp_path / "f.json")
            assert code == 0, err
        figures[out] = json.loads((tmp_path / "f.json").read_text())["student"]
    assert figures["shared"] == figures["fresh"]
