"""Recipes and folders of strangers read no variable, send nothing anywhere, and lead to no private file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from l2p.errors import UserError, UserNotice
from l2p.hub.client import HubName, cached_commit
from l2p.recipe import load_recipe
from l2p.students.resolve import BUNDLED

SECRET = "planted-secret-value"
FUNCTIONS = [
    "${oc.env:PLANTED}",
    "${oc.env:PLANTED,none}",
    "${oc.decode:'${oc.env:PLANTED}'}",
    "${oc.select:seed}",
    "${oc.dict.keys:corpus}",
    "${oc.deprecated:seed}",
    "${mine:1}",
    "${name}${oc.env:PLANTED}",
    r"\${oc.env:PLANTED}",
    "${na${seed}me}",
    "${corpus[path]}",
    "${}",
    "${",
]


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """``recipe(text) -> path`` of a recipe, with a secret in the environment."""
    monkeypatch.setenv("PLANTED", SECRET)
    monkeypatch.chdir(tmp_path)

    def write(text: str, name: str = "recipe.yaml") -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


@pytest.mark.parametrize("text", FUNCTIONS)
def test_a_reference_names_a_key_alone(recipe, text):
    quoted = json.dumps(text)
    recipe(f"name: {quoted}\n", "base.yaml")
    for attack, overrides in (
        (f"name: {quoted}\n", ()),
        (f"name: x\nlogging: {{wandb_project: {quoted}}}\n", ()),
        (f"name: x\nevaluation: {{features: [{quoted}]}}\n", ()),
        ("extends: base.yaml\nseed: 1\n", ()),
        ("name: x\n", (f"name={quoted}",)),
    ):
        with pytest.raises(UserError, match=r"may name a key of this recipe") as caught:
            load_recipe(recipe(attack), overrides)
        assert SECRET not in str(caught.value) and "\n" not in str(caught.value)


def test_references_to_keys_are_resolved(recipe):
    path = recipe("name: x\nseed: 3\noutput_dir: runs/${name}-${seed}/${.name}${teacher.path}\n")
    assert load_recipe(path).output_dir == "runs/x-3/xlandscapes"
    assert load_recipe(path, ["output_dir=${corpus.prompts}"]).output_dir == "landscapes"


def test_references_are_counted_where_yaml_spells_them_otherwise(recipe):
    rows = "".join(f'      a{i}: "\\x24{{.a{i - 1}}}\\x24{{.a{i - 1}}}"\n' for i in range(1, 20))
    options = "name: x\ncorpus:\n  quality:\n    scorer: s\n    options:\n      a0: xx\n" + rows
    with pytest.raises(UserError, match="more than 24 references"):
        load_recipe(recipe(options))
    assert load_recipe(recipe("".join(options.splitlines(keepends=True)[:16]))).name == "x"


LLM = "name: x\ncorpus:\n  prompts: {prompts}\n  llm: {{base_url: '{url}', model: m, key_env: {key}}}\n"
STRANGE = [
    ("http://evil.example/v1", "HF_TOKEN"),
    ("https://evil.example/v1", "OPENAI_API_KEY"),
    ("https://api.openai.com.evil.example/v1", "OPENAI_API_KEY"),
    ("https://api.openai.com/v1", "HF_TOKEN"),
    ("http://api.openai.com/v1", "OPENAI_API_KEY"),
    ("https://api.openai.com:8443/v1", "OPENAI_API_KEY"),
    ("http://127.0.0.1:8000/v1", "HF_TOKEN"),
    ("http://127.0.0.1.evil.example/v1", "OPENAI_API_KEY"),
    ("http://169.254.169.254/v1", "OPENAI_API_KEY"),
    ("http://[fd00::1]/v1", "OPENAI_API_KEY"),
]


@pytest.mark.parametrize(("url", "key"), STRANGE)
def test_a_recipe_alone_sends_no_variable_and_no_prompt_to_a_strange_address(l2p, recipe, url, key):
    (Path.cwd() / "private.txt").write_text("my password\n")
    path = recipe(LLM.format(url=url, key=key, prompts=str(Path.cwd() / "private.txt")))
    with pytest.raises(UserError, match="a file alone"):  # words about other keys are no word about this one
        load_recipe(path, [f"name=a-{url.rpartition('/')[2]}", f"corpus.quality={{scorer: '{url}'}}"])
    for verb in ("distill", "synthesize"):
        code, _, err = l2p(verb, path, "--dry-run")
        assert code == 2 and "which a file alone may not ask for" in err and err.count("\n") == 1, err
    words = [f"corpus.llm.base_url={url}", f"corpus.llm.key_env={key}"]
    assert load_recipe(path, words).corpus.llm.base_url == url
    if key != "OPENAI_API_KEY":
        for word in words:
            with pytest.raises(UserError, match="a file alone"):
                load_recipe(path, [word])
    recipe("extends: recipe.yaml\n", "child.yaml")
    with pytest.raises(UserError, match="a file alone"):
        load_recipe("child.yaml")


@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("https://api.openai.com/v1", "OPENAI_API_KEY"),
        ("https://openrouter.ai/api/v1", "OPENROUTER_API_KEY"),
        ("http://localhost:8000/v1", "OPENAI_API_KEY"),
        ("http://[::1]:8000/v1", "OPENAI_API_KEY"),
    ],
)
def test_known_services_with_their_own_key_may_stand_in_a_recipe(recipe, url, key):
    assert load_recipe(recipe(LLM.format(url=url, key=key, prompts="landscapes"))).corpus.llm.key_env == key


@pytest.mark.parametrize(
    "url", ["http://host:0/v1", "http://h:99999/v1", r"http://a\b/v1", "http://a b/v1", "http://a\tb"]
)
def test_addresses_that_libraries_read_differently_are_none(recipe, url):
    from l2p.keys import check_endpoint

    with pytest.raises(UserError, match="expected one such as https"):
        check_endpoint(url, "KEY")


@pytest.mark.parametrize("name", ["../../escape", "/tmp/x", "a/b", "..", "", "a\u202eb", "a\x1b[31mb"])
def test_a_row_of_an_ablation_is_a_plain_name(l2p, recipe, name):
    recipe("name: x\n", "base.yaml")
    rows = {name: {"overrides": []}}
    path = recipe(json.dumps({"name": "a", "recipe": "base.yaml", "output_dir": "out", "rows": rows}))
    code, _, err = l2p("ablate", path, "--dry-run")
    assert code == 2 and "expected a plain name" in err and err.count("\n") == 1
    assert not any(c in err for c in "\x1b\u202e")


@pytest.fixture
def student(tmp_path) -> Path:
    shutil.copytree(BUNDLED / "landscapes-128", tmp_path / "run" / "student")
    return tmp_path / "run" / "student"


@pytest.mark.parametrize(
    "name",
    [
        "tokenizer",
        "text_encoder/extra.json",
        "metrics.json",
        "pictures.png",
        "../metrics.json",
        "../evaluation",
    ],
)
def test_publishing_follows_no_link_out_of_the_students_folder(student, tmp_path, name):
    from l2p.hub.stage import find_metrics, stage

    private = tmp_path / "private"
    private.mkdir()
    (private / "id_rsa").write_text("PRIVATE")
    (private / "x.json").write_text('{"client_secret": "abc", "student": {}}')
    place = student / name
    if place.is_dir():
        shutil.rmtree(place)
    place.unlink(missing_ok=True)
    if name == "../metrics.json":
        (student / "metrics.json").unlink(missing_ok=True)
    place.symlink_to(private / "x.json" if place.suffix else private)
    with pytest.raises(UserError, match="is a link out of its folder, which publishing does not follow"):
        stage(student, tmp_path / "out", include_text_encoder=True, name="ann/it")
    assert not (tmp_path / "out").exists()
    assert "client_secret" not in (find_metrics(student) or {})


def test_a_caption_behind_a_link_out_of_its_folder_is_left_out_with_a_warning(tmp_path):
    from l2p.corpus.photos import Photos
    from l2p.picture_folder import PictureFolder

    folder = tmp_path / "in"
    folder.mkdir()
    for name in "ab":
        Image.new("RGB", (16, 16)).save(folder / f"{name}.png")
    (tmp_path / "id_rsa").write_text("PRIVATE KEY")
    (tmp_path / "rows.jsonl").write_text('{"file_name": "b.png", "text": "PRIVATE"}\n')
    (folder / "a.txt").symlink_to(tmp_path / "id_rsa")
    (folder / "metadata.jsonl").symlink_to("../rows.jsonl")
    with pytest.warns(
        UserNotice, match=r"2 texts that are links out of the folder \(a.txt, metadata.jsonl\)"
    ):
        assert [photo.caption for photo in Photos([str(folder)], 8, 8).photos] == ["", ""]
    with pytest.warns(UserNotice, match="links out of the folder"):
        assert [picture.prompt for picture in PictureFolder.read(folder).pictures] == [None, None]
    (folder / "own.txt").write_text("a lake")
    (folder / "a.txt").unlink()
    (folder / "a.txt").symlink_to("own.txt")
    (folder / "metadata.jsonl").unlink()
    with pytest.warns(UserNotice):
        assert Photos([str(folder)], 8, 8).photos[0].caption == "a lake"


def test_links_of_the_hubs_cache_lead_to_its_own_blobs_alone(tmp_path):
    from l2p.files import leads_out

    for repo, commit, right in (
        ("models--a--b", "c0ffee" + "0" * 34, True),
        ("models--a--b", "main", False),
        ("home", "c0ffee" + "0" * 34, False),
    ):
        snapshot = tmp_path / repo / "snapshots" / commit / "text_encoder"
        snapshot.mkdir(parents=True)
        (tmp_path / repo / "blobs").mkdir(exist_ok=True)
        for name in ("blobs/1", "token"):
            (tmp_path / repo / name).write_text("x")
        (snapshot / "blob").symlink_to("../../../blobs/1")
        (snapshot / "token").symlink_to("../../../token")
        (snapshot / "own").symlink_to("blob2")
        for folder in (snapshot, snapshot.parent):
            assert leads_out(snapshot / "blob", folder) is not right
            assert leads_out(snapshot / "token", folder) and not leads_out(snapshot / "own", folder)


@pytest.mark.parametrize(
    "revision", ["../../../token", "a/../../x", "/etc/passwd", "..", "a//b", "", "a\0b", "a/.git", "x" * 300]
)
def test_a_revision_leads_out_of_no_cache(tmp_path, monkeypatch, revision):
    from huggingface_hub import constants

    from l2p.teachers import resolve, teacher_sha256

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub" / "cache"))
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the Hub was asked"))
    (tmp_path / "hub" / "cache" / "models--ann--it" / "refs").mkdir(parents=True)
    (tmp_path / "hub" / "token").write_text("hf_secret")
    with pytest.raises(UserError, match="is no revision"):
        cached_commit(HubName("ann/it", revision))
    assert HubName.parse(f"ann/it@{revision}") is None
    for read in (resolve, teacher_sha256):
        with pytest.raises(UserError, match="is no revision"):
            read("ann/it", revision) if revision else HubName("ann/it", revision)


@pytest.mark.parametrize("repo", ["../x", "a/b/c", "a", "a/..", "a/b--c", ".a/b", "", "a/b\n"])
def test_a_repository_is_a_name(repo):
    if repo != "a":  # which the Hub's oldest models are called
        with pytest.raises(UserError, match="no name on the Hub"):
            HubName(repo)
    assert HubName.parse(repo) is None
    for revision in ("main", "v1.0", "refs/pr/1", "c0ffee" * 6, "a-b_c"):
        assert (
            HubName("ann/it", revision).revision == revision == HubName.parse(f"ann/it@{revision}").revision
        )
