"""A teacher that has to be fetched: what a user meets on the way, each as one line and exit 2 of `l2p distill`."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from l2p.teachers import load_teacher, tiny
from tests.hub.local_hub import READER, Repo

NAME = "ann/teacher"


@pytest.fixture(scope="session")
def pipeline_files(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("tiny") / "pipeline"
    tiny.save("StableDiffusionPipeline", folder)
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@pytest.fixture
def repo(hub, pipeline_files) -> Repo:
    hub.repos[NAME] = Repo()
    card = b"---\nlicense: other\nlicense_name: openrail-of-ann\ntags: [x]\n---\n"
    hub.repos[NAME].commit("main", {**pipeline_files, "README.md": card})
    return hub.repos[NAME]


@pytest.fixture
def distill(l2p, tmp_path):
    def run(path: str = NAME) -> str:
        """What `l2p distill` says on its last line, for a recipe of this teacher."""
        (tmp_path / "prompts.txt").write_text("a lake\n")
        (tmp_path / "recipe.yaml").write_text(
            f"name: x\noutput_dir: {tmp_path}/run\ndevice: cpu\nteacher: {{path: {path}, height: 64, width: 64}}\n"
            f"corpus: {{prompts: {tmp_path}/prompts.txt}}\nstudent: {{core: tiny}}\n"
        )
        code, _, err = l2p("distill", tmp_path / "recipe.yaml")
        assert code == 2 and "Traceback" not in err
        return err.splitlines()[-1]

    return run


def test_a_gate_without_a_token_and_with_one_that_was_not_let_in(hub, repo, distill, monkeypatch):
    repo.gated = True
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    page = f"{hub.endpoint}/{NAME}"
    assert (
        f"is gated and there is no token here: accept its licence at {page}, then run `hf auth login`"
        in distill()
    )
    monkeypatch.setenv("HF_TOKEN", READER)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: READER)
    assert f"is gated: accept its licence at {page} with the account of this token" in distill()


def test_a_private_or_misspelt_name_and_a_wrong_revision(repo, distill, monkeypatch):
    assert "ann/teecher is not on the Hub, or is private: check the name" in distill("ann/teecher")
    assert "ann/teacher has no revision v9: expected a branch, a tag or a commit" in distill(f"{NAME}@v9")
    repo.private = True
    monkeypatch.setenv("HF_TOKEN", "hf_somebodysomebodysomebody")
    line = distill()
    assert "is private" in line and "hf_" not in line


def test_a_disk_that_is_too_small_is_told_before_anything_is_fetched(hub, repo, distill, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(total=10**9, used=10**9, free=1000))
    line = distill()
    assert "ann/teacher needs 0.0 GB more in" in line and "set HF_HOME to a folder on a larger disk" in line
    assert not hub.count("GET", "/resolve/.*safetensors")


def test_a_disk_that_fills_up_on_the_way(repo, distill, monkeypatch):
    import errno

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    assert (
        "no space left on the device for ann/teacher: free some and run the same command again" in distill()
    )


def test_a_library_that_is_too_old(repo, distill, monkeypatch):
    import diffusers
    import transformers

    import l2p.teachers.installed as installed

    monkeypatch.setattr(installed, "import_module", lambda name: SimpleNamespace(__version__="0.30.0"))
    monkeypatch.setattr(
        diffusers.StableDiffusionPipeline, "from_pretrained", lambda *_, **__: transformers.NoSuchModel
    )
    line = distill()
    assert (
        "diffusers 0.30.0 has no " in line and "too old" in line and "pip install --upgrade diffusers" in line
    )
    monkeypatch.setitem(vars(diffusers), "StableDiffusionPipeline", None)  # as in a version before the family
    line = distill()
    assert (
        "diffusers 0.30.0 has no StableDiffusionPipeline" in line
        and "pip install --upgrade diffusers" in line
    )


def test_a_repository_that_is_no_pipeline(hub, repo, distill):
    hub.repos["ann/other"] = Repo()
    hub.repos["ann/other"].commit("main", {"config.json": b"{}"})
    assert "is no diffusers pipeline: model_index.json is missing" in distill("ann/other")


def test_a_teacher_comes_without_its_second_copies_and_says_its_licence(hub, repo):
    files = repo.files("main")[1]
    weights = files["unet/diffusion_pytorch_model.safetensors"]
    repo.commit(
        "main",
        {**files, "unet/diffusion_pytorch_model.fp16.safetensors": weights, "all.safetensors": weights},
    )
    teacher = load_teacher(NAME)
    assert teacher.license == "openrail-of-ann" and teacher.revision == repo.refs["main"]
    assert not hub.count("GET", "fp16") and not hub.count("GET", "/all.safetensors")
