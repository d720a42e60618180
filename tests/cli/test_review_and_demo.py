"""`l2p review` and `l2p demo`: mistakes in one line, the summary, the pages' start."""

import json

import numpy as np
import pytest
from PIL import Image

from l2p.review import serving
from l2p.review.answers import Answer, Answers


@pytest.fixture
def folders(tmp_path):
    for name, color in (("new", "red"), ("old", "blue")):
        (tmp_path / name).mkdir()
        for k in range(2):
            Image.new("RGB", (16, 16), color).save(tmp_path / name / f"{k}.png")
    return tmp_path / "new", tmp_path / "old"


@pytest.fixture
def served(monkeypatch):
    """What would have been served."""
    calls = []
    monkeypatch.setattr(serving, "serve", lambda app, host, port, what: calls.append((app, host, port, what)))
    return calls


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["review", "nowhere", "--against", "x"], "no student at nowhere"),
        (["review", "."], "--against is missing"),
        (["review", ".", "--against", "x", "--num-images", "0"], "--num-images is 0"),
        (["review", ".", "--summary"], "holds no review"),
        (["review", ".", "--against", "x", "--port", "0"], "--port is 0"),
        (["demo", "nowhere"], "no student at nowhere"),
        (["demo", "nowhere", "--port", "70000"], "--port is 70000"),
    ],
)
def test_mistakes_are_one_line(l2p, tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = l2p(*argv)
    assert code == 2 and out == "" and message in err and err.count("\n") == 1


def test_two_folders_are_reviewed_and_summed_up(l2p, folders, served):
    new, old = folders
    code, out, _ = l2p("review", new, "--against", old)
    assert code == 0 and "2 pairs" in out and served[0][1:] == ("127.0.0.1", 8765, "review")
    folder = new.parent / "review-new"
    code, _, err = l2p("review", new, "--summary")
    assert code == 2 and "no answer yet" in err
    Answers(folder / "answers").add("Ann", Answer("0000", "a", "tie"))
    code, out, _ = l2p("review", new, "--summary")
    assert code == 0 and "100.0 %" in out and "Ann" in out
    code, out, _ = l2p("review", new, "--summary", "--json")
    assert json.loads(out)["real"]["win_rate"] == 0.5


def test_a_student_beside_its_teacher(l2p, student_folder, tiny_pipeline, served, tmp_path):
    argv = [
        "review",
        student_folder,
        "--against",
        tiny_pipeline,
        "--num-images",
        2,
        "--out",
        tmp_path / "out",
    ]
    code, out, err = l2p(*argv, "--device", "cpu", "--dtype", "fp32")
    assert code == 0, err
    pictures = [Image.open(path).size for path in sorted((tmp_path / "out" / "pictures").glob("*/*.png"))]
    assert pictures == [(48, 32)] * 4


def test_a_student_retrained_in_place_gets_no_old_review(
    l2p, student_folder, tiny_pipeline, served, tmp_path
):
    import shutil

    import torch

    from l2p.students.io import load_student, save_student
    from l2p.students.pipeline import load_texts

    folder, out = tmp_path / "student", tmp_path / "out"
    shutil.copytree(student_folder, folder)
    argv = ["review", folder, "--against", tiny_pipeline, "--num-images", 1, "--out", out]
    argv += ["--device", "cpu", "--dtype", "fp32"]
    assert l2p(*argv)[0] == l2p(*argv)[0] == 0
    before = (out / "pictures" / "a" / "0000.png").read_bytes()
    student = load_student(folder)
    with torch.no_grad():
        for parameter in student.head.parameters():
            parameter.mul_(0.5)
    save_student(student, folder, load_texts(folder, student.spec), {"recipe": {"seed": 4}})
    code, _, err = l2p(*argv)
    assert code == 2 and "holds a review with other settings (student_sha256: " in err
    (out / "review.json").unlink()  # as if stopped while it drew: no picture of the old student is judged
    code, _, err = l2p(*argv)
    assert code == 0 and "0000.png is made anew (sha256: " in err
    assert (out / "pictures" / "a" / "0000.png").read_bytes() != before


def test_the_demo_draws_with_student_and_teacher(l2p, student_folder, served):
    code, _, err = l2p("demo", student_folder, "--device", "cpu", "--dtype", "fp32")
    assert code == 0, err
    from l2p.review.demo import DemoModels, DrawRequest

    models = DemoModels(student_folder, "cpu", "fp32")
    assert models.about["paths"] == ["l2p", "vae"] and models.about["width"] == 48
    for path in ("l2p", "vae"):
        picture, milliseconds = models.draw(DrawRequest("a lake", 3, 32, 48, path))
        assert picture.shape == (32, 48, 3) and milliseconds > 0


def test_the_demo_draws_with_a_pixel_decoder(l2p, student_folder, tiny_pipeline, served, tmp_path):
    from l2p.decoders.build import from_teacher
    from l2p.decoders.io import save_decoder
    from l2p.errors import UserError
    from l2p.recipe import HeadConfig
    from l2p.review.demo import DemoModels, DrawRequest
    from l2p.teachers import load_teacher

    head = HeadConfig(fine_patch=4, width=16, num_blocks=1, head_dim=16, tile=4, halo=2)
    decoder = from_teacher(load_teacher(tiny_pipeline), 2, head, adapter_width=8, features=8)
    save_decoder(decoder, tmp_path / "decoder")
    command = ("demo", student_folder, "--device", "cpu", "--dtype", "fp32", "--pid")
    code, _, err = l2p(*command, tmp_path / "decoder")
    assert code == 0, err
    models = DemoModels(student_folder, "cpu", "fp32", decoder=str(tmp_path / "decoder"))
    assert models.about["paths"] == ["l2p", "vae", "pid"] and models.about["scale"] == 2
    requests = [DrawRequest("a lake", 3, 32, 48, path) for path in ("pid", "vae")]
    (large, milliseconds), (small, _) = map(models.draw, requests)
    assert large.shape == (64, 96, 3) and milliseconds > 0
    # untrained, it is the teacher's own picture of the same noise, enlarged
    shrunk = large.reshape(32, 2, 48, 2, 3).mean((1, 3))
    assert np.abs(shrunk - small).mean() < 2
    with pytest.raises(UserError, match="2 times as large: choose at most 1024"):
        models.draw(DrawRequest("a lake", 3, 1040, 48, "pid"))
    with pytest.raises(UserError, match="no decoder of this teacher's latents"):
        DemoModels(student_folder, "cpu", "fp32").draw(requests[0])
    code, _, err = l2p(*command, "landscapes-4x")  # offered, but of other latents than the tiny teacher's
    assert code == 0
    code, _, err = l2p(*command, tmp_path / "nowhere")
    assert code == 2 and "no pixel diffusion decoder" in err and err.count("\n") == 1


def test_an_address_that_is_taken_is_told(l2p):
    import socket

    from l2p.errors import UserError

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="cannot listen on 127.0.0.1"):
            serving.serve(None, "127.0.0.1", taken.getsockname()[1], "demo")
