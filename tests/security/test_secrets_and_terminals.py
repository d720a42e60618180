"""Keys in no line and no file; texts of strangers are no commands to a terminal, and name no file of this machine."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from l2p.corpus.llm import Writer
from l2p.errors import UserError, printable
from l2p.keys import looks_like_key, mask
from l2p.recipe import LLMConfig, QualityConfig, Recipe, check_trust, load_recipe

KEYS = [
    "sk-proj-abcdefghijklmnop1234",
    "hf_abcdefghijklmnopqrstuvwxyz",
    "gsk_AbCdEfGhIjKlMnOp12",
    "AKIAIOSFODNN7EXAMPLE",
    "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
    "a1b2c3d4e5f6a7b8c9d0e1f2",
    "ABCDEF0123456789ABCDEF",
]
NAMES = ["OPENAI_API_KEY", "MY_COMPANY_LANGUAGE_MODEL_KEY_2", "key", "Llm_Key_7", "OPENROUTER_API_KEY"]
RECIPE = "name: x\ncorpus:\n  prompts: p.txt\n  llm: {{base_url: {url}, model: m, key_env: {key}}}\n"


@pytest.mark.parametrize("key", KEYS)
def test_a_key_in_place_of_its_variables_name_is_refused_and_not_repeated(l2p, tmp_path, key):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(url="http://127.0.0.1:1/v1", key=key))
    for verb in ("distill", "synthesize", "plan"):
        code, out, err = l2p(verb, path, *(["--dry-run"] if verb != "plan" else []))
        assert code == 2 and "key_env holds no name of an environment variable" in err, err
        assert key not in out + err and err.count("\n") == 1
    path.write_text("name: x\n")
    llm = f"corpus.llm={{base_url: 'http://127.0.0.1:1/v1', model: m, key_env: {key}}}"
    code, out, err = l2p("distill", path, llm, f"output_dir={tmp_path / 'out'}")
    assert code == 2 and key not in out + err
    with pytest.raises(UserError) as caught:
        Writer(LLMConfig("http://127.0.0.1:1/v1", "m", key_env=key), tmp_path / "memory")
    assert key not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["recipe.yaml"]  # nothing was written that could keep it


@pytest.mark.parametrize("name", NAMES)
def test_names_of_variables_are_names(name):
    assert not looks_like_key(name)
    Writer(LLMConfig("http://127.0.0.1:1/v1", "m", key_env=name), Path("memory"))


@pytest.mark.parametrize(
    "url", ["http://me:pass-word@host/v1", "https://host/v1?key=pass-word", "https://pass-word@[::1"]
)
def test_a_password_in_the_address_is_refused_before_the_recipe_is_kept(l2p, tmp_path, url):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(url=json.dumps(url), key="KEY"))
    code, out, err = l2p("distill", path, f"output_dir={tmp_path / 'out'}")
    assert code == 2 and "holds a password or a query" in err and "pass-word" not in out + err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("key", ["sk-secret-one\nsk-secret-two", "sk-secret one", "sk-secret\x7ftwo", "sk-ä"])
def test_a_key_that_is_no_header_is_not_printed(tmp_path, monkeypatch, key):
    monkeypatch.setenv("PLANTED_KEY", key)
    with pytest.raises(UserError, match="PLANTED_KEY holds a line break") as caught:
        Writer(LLMConfig("http://127.0.0.1:1/v1", "m", key_env="PLANTED_KEY"), tmp_path / "memory").rewrite(
            ["a lake"]
        )
    assert "secret" not in str(caught.value) and "sk-" not in str(caught.value)


def test_a_wrong_value_that_looks_like_a_key_is_masked_in_the_line(l2p, tmp_path):
    path = tmp_path / "recipe.yaml"
    for key in KEYS[:5]:
        for wrong in (f"seed: {key}", f"corpus: {{llm: {key}}}", f"teacher: {{height: {key}}}"):
            path.write_text(f"name: x\n{wrong}\n")
            code, out, err = l2p("distill", path, "--dry-run")
            assert code == 2 and key not in out + err, wrong


def test_every_line_of_the_command_is_masked(capsys, monkeypatch):
    from l2p.cli import main

    main._fail(f"the request to https://host/?token={KEYS[1]} failed: Authorization: Bearer {KEYS[0]}", 2)
    err = capsys.readouterr().err
    assert "token=***" in err and "Bearer ***" in err and KEYS[0] not in err and KEYS[1] not in err
    assert mask("hf_hub and sk-learn are words, and so is the path xai-runs/one") == (
        "hf_hub and sk-learn are words, and so is the path xai-runs/one"
    )


CODE = "corpus: {quality: {scorer: 'SCORER', min_score: 0.5}}"


@pytest.mark.parametrize("scorer", ["evil.py:run", "os:system", "/tmp/x.py:f"])
def test_a_recipe_alone_has_no_code_run(l2p, tmp_path, monkeypatch, scorer):
    monkeypatch.chdir(tmp_path)
    Path("evil.py").write_text("open('ran', 'w')\ndef run(images, prompts): return [1.0] * len(images)\n")
    Path("recipe.yaml").write_text("name: x\n" + CODE.replace("SCORER", scorer))
    code, _, err = l2p("distill", "recipe.yaml", "--dry-run")
    assert code == 2 and "which a file alone may not ask for" in err
    assert load_recipe("recipe.yaml", [f"corpus.quality.scorer={scorer}"]).corpus.quality.scorer == scorer
    Path("base.yaml").write_text("name: x\nextends: recipe.yaml\n")
    assert l2p("synthesize", "base.yaml")[0] == 2
    Path("ablation.yaml").write_text(
        "name: a\nrecipe: recipe.yaml\nrows:\n  one: {overrides: ['corpus.quality.scorer=evil.py:run']}\n"
    )
    Path("recipe.yaml").write_text("name: x\n" + CODE.replace("SCORER", "installed"))
    code, _, err = l2p("ablate", "ablation.yaml", "--dry-run")
    assert code == 2 and "a file alone may not ask for" in err
    assert not Path("ran").exists()


def test_a_scorer_of_an_installed_package_may_stand_in_a_recipe():
    recipe = Recipe(name="x")
    recipe.corpus.quality = QualityConfig(scorer="aesthetic")
    check_trust(recipe, ())


ESCAPE = "\x1b]0;owned\x07\x1b[31mred\x9b2J\u202eexe\r[red]markup[/red][link=http://evil]x[/link]"


def raw(text: str) -> list[str]:
    return [c for c in text if not c.isprintable() and c not in "\n\t"]


def test_printable_leaves_text_and_disarms_commands():
    assert printable("ä 日本 a\tb\nc") == "ä 日本 a\tb\nc"
    assert raw(printable(ESCAPE)) == [] and "\\u001b" in printable(ESCAPE) and "\\u202e" in printable(ESCAPE)


@pytest.fixture
def hostile_student(tmp_path) -> Path:
    """The bundled student with a config of texts that are commands."""
    import shutil

    from l2p.students.resolve import BUNDLED

    folder = tmp_path / "student"
    shutil.copytree(BUNDLED / "landscapes-128", folder)
    config = json.loads((folder / "config.json").read_text())
    config["teacher"] |= {"name": ESCAPE, ESCAPE: "x"}
    config["source"] = {"name": ESCAPE}
    config["stage"] = ESCAPE
    recipe = config.get("recipe") if isinstance(config.get("recipe"), dict) else {}
    config["recipe"] = recipe | {"name": ESCAPE, "seed": ESCAPE}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_info_prints_no_command_and_no_markup(l2p, hostile_student):
    code, out, err = l2p("info", hostile_student)
    assert code == 0 and raw(out + err) == [], err
    flat = re.sub(r"[\s│┃]+", "", out)
    assert "[red]markup[/red]" in flat


def test_an_error_prints_no_command(l2p, tmp_path, hostile_student):
    config = json.loads((hostile_student / "config.json").read_text())
    for changes in ({"head": {"kind": ESCAPE}}, {"class": ESCAPE}, {"patch_size": ESCAPE}, {"needs": ESCAPE}):
        config_now = config | changes | ({"format_version": 99} if "needs" in changes else {})
        (hostile_student / "config.json").write_text(json.dumps(config_now))
        for verb in ("info", "generate"):
            code, out, err = l2p(verb, hostile_student, *(["a lake"] if verb == "generate" else []))
            assert raw(out + err) == [] and err.count("\n") <= 1
    assert (
        raw("".join(l2p("info", tmp_path / "no\x1b[31m\u202e"))[1:] if False else l2p("info", "a\x1b]0;b")[2])
        == []
    )


def test_a_students_config_names_no_file_of_this_machine_as_prompts(tmp_path):
    from l2p.students.origin import recipe_prompts

    student = tmp_path / "student"
    student.mkdir()
    (tmp_path / "private.txt").write_text("my password\n")
    (student / "prompts.txt").write_text("a lake\n")
    (student / "link.txt").symlink_to(tmp_path / "private.txt")
    for named in (
        "/etc/passwd",
        "../private.txt",
        str(tmp_path / "private.txt"),
        "link.txt",
        "missing.txt",
        3,
    ):
        with pytest.raises(UserError, match="give a file yourself with --prompts") as caught:
            recipe_prompts(student, {"corpus": {"prompts": named}})
        assert "password" not in str(caught.value).replace("/etc/passwd", "")
    assert recipe_prompts(student, {"corpus": {"prompts": "prompts.txt"}}) == str(student / "prompts.txt")
    assert recipe_prompts(student, {}) == "landscapes"


def test_evaluate_and_review_read_no_private_file(l2p, hostile_student, tmp_path):
    (tmp_path / "private.txt").write_text("my password is swordfish\n" * 64)
    config = json.loads((hostile_student / "config.json").read_text())
    config["recipe"] = {"corpus": {"prompts": str(tmp_path / "private.txt")}, "name": "x"}
    config["teacher"] = {"name": "landscapes"}
    (hostile_student / "config.json").write_text(json.dumps(config))
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    from PIL import Image

    Image.new("RGB", (128, 128)).save(pictures / "0.png")
    for command in (
        ("evaluate", hostile_student, "--num-images", "2"),
        ("evaluate", hostile_student, "--against", pictures, "--num-images", "2"),
        ("review", hostile_student, "--against", "landscapes"),
    ):
        code, out, err = l2p(*command, "--out", tmp_path / "out")
        assert code == 2 and "--prompts" in err, err
    assert not (tmp_path / "out").exists()


def test_texts_of_strangers_are_inert_on_the_card(hostile_student):
    from l2p.hub.card import write_card

    evil = "<script>alert(1)</script> | x | `` ![x](http://evil/x.png) [y](javascript:1)\n\n# Heading"
    config = json.loads((hostile_student / "config.json").read_text())
    config["teacher"] |= {"name": evil, "license": evil, "revision": evil}
    config["recipe"] = {"name": evil, "seed": evil}
    (hostile_student / "config.json").write_text(json.dumps(config))
    settings = dict.fromkeys(("device", "threads", "dtype", "prompts", "num_images", "width", "height"), evil)
    metrics = {"student": {"latency_ms": 1.0, "psnr_to_teacher": 20.0}, "settings": settings}
    (hostile_student / "metrics.json").unlink(missing_ok=True)
    (hostile_student / "metrics.json").write_text(json.dumps(metrics))
    (hostile_student / "README.md").unlink(missing_ok=True)
    write_card(hostile_student, "ann/it")
    text = (hostile_student / "README.md").read_text()
    body = text.split("---", 2)[2]
    for attack in ("<script", "![x]", "[y](", "\n# Heading", "| x |"):
        assert attack not in body.replace("&#", ""), attack
    assert "&#60;script&#62;" in body
