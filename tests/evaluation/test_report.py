"""The report: self-contained, escaped, complete with and without a distillation's history."""

import base64
import json
from html.parser import HTMLParser

import numpy as np
import pytest

from l2p.errors import UserError
from l2p.evaluation.charts import line_chart
from l2p.evaluation.report import duration, write_report
from l2p.images import labelled_grid, save_png

HOSTILE = "<script>alert('x')</script> \"><img src=http://evil.example/x.png onerror=alert(1)>"


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def metrics(scale: float = 1.0) -> dict:
    def method(accuracy, frechet, psnr, latency):
        return {
            "attribute_accuracy": accuracy, "frechet": frechet, "frechet_to_teacher": frechet / 2, "seam_index": 1.2,
            "psnr_to_teacher": psnr, "seam_ratio": 1.01, "latency_ms": latency, "detail_ratio": 1 - frechet / 100,
        }  # fmt: skip

    teacher = method(0.934, 6.1, None, 440.0) | {"frechet_to_teacher": None, "seam_ratio": 0.998}
    return {
        "summary": {"psnr_to_teacher": 29.1, "seam_ratio": 1.01, "speedup": 22.0},
        "teacher": teacher,
        "teacher_one_step": method(0.7, 60.0, 22.0, 33.0),
        "lift": method(0.68, 70.0, 19.0, 18.0),
        "student": method(0.93, 7.0, 29.1, 20.0),
        "real": method(0.99, 2.0, None, None),
        "vae": method(0.98, 3.0, None, None),
        "judge": {"accuracy": 0.985, "accuracy_by_attribute": {}, "reference_images": 2000},
        "settings": {
            "num_images": 256, "first_seed": 7_010_000, "prompts": "landscapes", "height": 24, "width": 24,
            "patch_size": 16, "student_steps": 1, "teacher": "landscapes", "teacher_steps": 20, "teacher_guidance": 1.0,
            "latency_runs": 5, "dtype": "bfloat16", "device": "cpu (x86_64)", "threads": 2, "l2p": "0.1.0",
            "torch": "2.14.1", "python": "3.11.2",
        },
        "seconds": 73.0,
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    names = ("teacher", "teacher_one_step", "lift", "student", "real")
    arrays = {name: rng.integers(0, 256, (5, 24, 24, 3), dtype=np.uint8) for name in names}
    (tmp_path / "evaluation").mkdir()
    captions = np.array([HOSTILE, "a lake", "a house & a lake", "pines", "a river"])
    np.savez(tmp_path / "evaluation" / "pictures.npz", captions=captions, **arrays)
    (tmp_path / "metrics.json").write_text(json.dumps(metrics()))
    return tmp_path


def add_history(folder):
    (folder / "recipe.yaml").write_text(f"name: quickstart  # {HOSTILE}\n")
    for sub in ("stages", "logs", "previews"):
        (folder / sub).mkdir()
    for stage, seconds in (("one_step", 300.0), ("corpus", 120.0), ("lift", 4.0)):
        marker = {
            "stage": stage,
            "seconds": seconds,
            "warnings": ["look here"] if stage == "one_step" else [],
        }
        marker["figures"] = {"num_held_out": 3} if stage == "corpus" else {}
        (folder / "stages" / f"{stage}.json").write_text(json.dumps(marker))
    rows = ["step,seconds,lr,grad_norm,psnr,loss,pairs/pixel"]
    rows += [
        f"{n},{n / 10},0.001,1.0,{20 + n / 20 if n % 50 == 0 else ''},{2 / n},{1 / n}" for n in range(1, 201)
    ]
    (folder / "logs" / "one_step.csv").write_text("\n".join(rows) + "\n")
    rng = np.random.default_rng(1)
    for step in (50, 100, 150, 200):
        grid = {
            label: rng.integers(0, 256, (3, 24, 24, 3), dtype=np.uint8)
            for label in ("teacher", "student, 1 step")
        }
        save_png(labelled_grid(grid, ["a lake"] * 3), folder / "previews" / f"one_step-{step:06d}.png")
    return grid


def test_self_contained_and_escaped(folder):
    page = Page(write_report(folder, title=HOSTILE).read_text())
    assert not [tag for tag, _ in page.tags if tag in ("link", "iframe", "object")]
    assert (
        len([tag for tag, _ in page.tags if tag == "script"]) == 1
    )  # the page's own; the policy names its hash
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy and "'sha256-" in policy
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes), tag
        for name in ("src", "href", "srcset", "action"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, attributes)
    assert HOSTILE in page.text
    images = [attributes for tag, attributes in page.tags if tag == "img" and "src" in attributes]
    assert len(images) == 20 and all("alt" in image for image in images)


def test_metrics_can_be_downloaded_and_the_best_cells_are_marked(folder):
    text = write_report(folder).read_text()
    link = next(a["href"] for tag, a in Page(text).tags if a.get("download") == "metrics.json")
    assert json.loads(base64.b64decode(link.partition("base64,")[2])) == metrics()
    assert text.count("class=best") == 7  # one a column
    assert "class=best>93.4" in text and "class=best>29.1" in text and "class=best>18" in text
    assert "22.0×" in text


def test_history_shows_stages_curves_and_previews(folder):
    grid = add_history(folder)
    text = write_report(folder).read_text()
    page = Page(text)
    order = [page.text.index(word) for word in ("lift", "corpus", "2 min 00 s", "5 min 00 s")]
    assert order == sorted(order)
    assert "look here" in page.text and HOSTILE in page.text
    assert len([tag for tag, _ in page.tags if tag == "path"]) == 3  # two terms, and the held-out PSNR
    assert len([tag for tag, a in page.tags if tag == "img" and "src" in a]) == 20 + 5 * 3
    assert "one step, step 200" in page.text
    from l2p.evaluation.history import png_uri

    assert png_uri(grid["student, 1 step"][2]) in text and png_uri(grid["teacher"][0]) in text
    link = next(a["href"] for tag, a in page.tags if a.get("download") == "curve-2.json")
    curve = json.loads(base64.b64decode(link.partition("base64,")[2]))
    assert curve == {"one step": {"x": [50, 100, 150, 200], "y": [22.5, 25.0, 27.5, 30.0]}}


def test_the_recipe_of_a_student_and_each_attribute(folder):
    values = metrics()
    values["student"]["attribute_accuracy_by_attribute"] = {"house": 0.125, "water": 1.0, "sky": None}
    values["real"]["attribute_accuracy_by_attribute"] = {"house": 0.984, "water": 1.0, "sky": None}
    (folder / "metrics.json").write_text(json.dumps(values))
    text = write_report(folder, recipe=f"name: {HOSTILE}\n").read_text()
    page = Page(text)
    assert f"name: {HOSTILE}" in page.text and "House %" in page.text and "Sky %" not in page.text
    link = next(a["href"] for tag, a in page.tags if a.get("download") == "attributes.json")
    found = json.loads(base64.b64decode(link.partition("base64,")[2]))
    assert found["student"]["attribute_accuracy_by_attribute.house"] == 0.125
    assert "12.5" in page.text and "98.4" in page.text


def test_less_than_nothing_is_no_better_than_nothing(folder):
    values = metrics()
    for name, kernel in (("teacher", -0.4), ("student", -0.1), ("lift", 0.2)):
        values[name]["kernel"] = kernel  # unbiased: sets that do not differ scatter around 0
    (folder / "metrics.json").write_text(json.dumps(values))
    text = write_report(folder).read_text()
    assert "class=best>-400.0" in text and "class=best>-100.0" in text and "class=best>200.0" not in text


def test_missing_or_foreign_files_are_named(folder):
    add_history(folder)
    save_png(np.zeros((30, 30, 3), np.uint8), folder / "previews" / "one_step-000050.png")
    with pytest.raises(UserError, match="is no preview"):
        write_report(folder)
    (folder / "evaluation" / "pictures.npz").unlink()
    with pytest.raises(UserError, match="run the evaluation first"):
        write_report(folder)


def test_without_ground_truth_the_columns_are_empty(folder):
    values = metrics()
    for name in ("real", "vae", "judge"):
        del values[name]
    for name in ("teacher", "teacher_one_step", "lift", "student"):
        values[name]["attribute_accuracy"] = values[name]["frechet"] = values[name]["frechet_to_teacher"] = (
            None
        )
    (folder / "metrics.json").write_text(json.dumps(values))
    assert "–" in write_report(folder).read_text()


def test_line_chart_places_points_and_ticks():
    chart = line_chart("loss", {"a": ([0, 10], [1.0, 100.0]), "bad": ([0, 1], [float("nan"), 0.0])}, log=True)
    assert [line.name for line in chart.lines] == ["a"]
    (x0, y0), (x1, y1) = (map(float, p.split()) for p in chart.lines[0].path[1:].split("L"))
    assert (x0, x1) == (44.0, 430.0) and y0 > y1
    texts = [tick.text for tick in chart.y_ticks]
    assert "1" in texts and "10" in texts and "100" in texts
    ten = next(tick.place for tick in chart.y_ticks if tick.text == "10")
    assert ten == pytest.approx((y0 + y1) / 2, abs=0.2)  # half-way on a logarithmic axis
    assert line_chart("none", {"a": ([], [])}) is None
    flat = line_chart("flat", {"a": ([1, 2, 3], [5.0, 5.0, 5.0])}, smooth=0.9)
    assert flat.lines[0].last == pytest.approx(5.0) and flat.y_ticks


def test_duration_in_words():
    assert [duration(s) for s in (3.21, 41, 200, 7500)] == ["3.2 s", "41 s", "3 min 20 s", "2 h 05 min"]
