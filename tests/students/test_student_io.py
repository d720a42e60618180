"""Students on disk: bit-identical after a round trip, and every broken folder explained in one line."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from l2p.errors import UserError
from l2p.recipe import TeacherConfig
from l2p.students.build import from_teacher
from l2p.students.io import load_student, save_student
from l2p.students.origin import teacher_config


@pytest.fixture(scope="module")
def saved(teacher, lift, student_config, tmp_path_factory):
    """A student's folder; copy it before breaking it."""
    folder = tmp_path_factory.mktemp("io") / "student"
    student = from_teacher(teacher, lift, student_config("patch"), size=(32, 48))
    save_student(student, folder, teacher.text_encoder, extra={"recipe": {"name": "tiny"}})
    return folder


@pytest.fixture
def broken(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "student")


def edit(folder, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    config.update(changes)
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def test_output_is_bit_identical_after_a_round_trip(student, captions, tmp_path):
    save_student(student, tmp_path / "student")
    again = load_student(tmp_path / "student")
    x_t, t, conditioning = torch.randn(2, 3, 32, 48), torch.tensor([1.0, 0.4]), captions([5, 9])
    with torch.no_grad():
        assert torch.equal(again(x_t, t, conditioning), student(x_t, t, conditioning))
    assert again.spec == student.spec
    assert not any(tensor.is_meta for tensor in again.state_dict().values())
    again(x_t, t, conditioning).sum().backward()  # loaded students can be trained on


def test_dtype_is_kept(student, tmp_path):
    save_student(student.to(torch.bfloat16), tmp_path / "student")
    assert {p.dtype for p in load_student(tmp_path / "student").parameters()} == {torch.bfloat16}


def test_config_tells_where_a_student_comes_from(saved, teacher):
    config = json.loads((saved / "config.json").read_text())
    assert config["format_version"] == 1 and config["class"] == "PixelStudent"
    origin = {"name": teacher.name, "revision": None, "license": teacher.license}
    assert config["teacher"] == {**origin, "pipeline": "ZImagePipeline"}
    assert config["recipe"] == {"name": "tiny"}
    assert (config["height"], config["width"], config["lift_scale"]) == (32, 48, 0.4)
    with safe_open(saved / "model.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["config"]) == config
    assert (saved / "text_encoder").is_dir() and (saved / "tokenizer").is_dir()


def test_saving_again_replaces_a_student_and_leaves_nothing_behind(student, saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "student")
    save_student(student, folder)
    assert sorted(p.name for p in folder.iterdir()) == ["checksums.json", "config.json", "model.safetensors"]
    assert [p.name for p in tmp_path.iterdir()] == ["student"]


def test_a_failed_save_keeps_the_old_student(student, saved, tmp_path):
    class FullDisk:
        def save_pretrained(self, folder):
            raise OSError(28, "No space left on device")

    folder = shutil.copytree(saved, tmp_path / "student")
    with pytest.raises(UserError, match="No space left"):
        save_student(student, folder, FullDisk())
    assert [p.name for p in tmp_path.iterdir()] == ["student"]
    assert (folder / "model.safetensors").read_bytes() == (saved / "model.safetensors").read_bytes()


def test_other_peoples_folders_are_left_alone(student, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="left alone"):
        save_student(student, tmp_path)
    with pytest.raises(UserError, match="a file of that name"):
        save_student(student, tmp_path / "thesis.txt")
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_keys_of_the_format_cannot_be_overwritten(student, tmp_path):
    with pytest.raises(ValueError, match="patch_size"):
        save_student(student, tmp_path / "student", extra={"patch_size": 3})


def test_no_student(tmp_path):
    with pytest.raises(UserError, match="no student at"):
        load_student(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"config.json is missing.*l2p distill"):
        load_student(tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    with pytest.raises(UserError, match="does not describe a student"):
        load_student(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        load_student(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "student format 2, which latent2pixel 0.1.0 reads.*upgrade"),
        ({"format_version": 9, "needs": "3.1.4"}, "student format 9, which latent2pixel 3.1.4 reads"),
        ({"format_version": "1"}, "format_version is '1', expected a whole number"),
        ({"latent_dim": None}, "broken.*latent_dim"),
        ({"core": {"dim": "wide"}}, "broken"),
        ({"core": {"dims": 3}}, "broken.*dims"),
        ({"head": {"kind": "mixer"}}, "broken.*mixer"),
        ({"head": {"kind": "patch", "widht": 3}}, "broken.*widht"),
        ({"max_timestep": 1.5}, "broken.*max_timestep is 1.5"),
        ({"max_timestep": "late"}, "broken.*max_timestep is 'late'"),
        ({"project_noise": 1}, "broken.*project_noise is 1"),
    ],
)
def test_broken_configs(broken, changes, message):
    edit(broken, **changes)
    with pytest.raises(UserError, match=message):
        load_student(broken)


def test_folders_from_before_a_field_was_written_mean_its_default(broken, saved):
    edit(broken, max_timestep=None, project_noise=None)
    assert "max_timestep" not in json.loads((broken / "config.json").read_text())
    assert load_student(broken).spec == load_student(saved).spec


def test_the_teacher_is_the_recipes_else_the_specs(broken, teacher):
    assert teacher_config(broken) == TeacherConfig(path=teacher.name)
    recipe = {"teacher": {"path": "org/t", "revision": "abc", "num_inference_steps": 3, "height": 64}}
    edit(broken, recipe=recipe)
    assert teacher_config(broken) == TeacherConfig("org/t", "abc", 3, height=64)
    assert teacher_config(broken, "landscapes") == TeacherConfig("landscapes", None, 3, height=64)
    edit(broken, recipe=None, teacher={})
    assert teacher_config(broken) is None


def test_missing_and_truncated_weights(broken):
    path = broken / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match="broken or cut short"):
        load_student(broken)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="broken or cut short"):
        load_student(broken)
    path.unlink()
    with pytest.raises(UserError, match=r"model.safetensors is missing"):
        load_student(broken)


def test_keys_that_do_not_fit_are_named(broken):
    state = load_file(broken / "model.safetensors")
    blocks = [key for key in state if key.startswith("head.blocks.0.")]
    for key in blocks:
        del state[key]
    state["head.decoder.weight"] = torch.zeros(1)
    state["head.out.bias"] = torch.zeros(5)
    save_file(state, broken / "model.safetensors")
    with pytest.raises(UserError) as caught:
        load_student(broken)
    message = str(caught.value)
    assert f"missing: {blocks[0]}"[:20] in message and f"and {len(blocks) - 3} more" in message
    assert "unexpected: head.decoder.weight" in message
    assert "misshapen: head.out.bias ([5] for [192])" in message
    assert "\n" not in message


def test_a_folder_written_before_the_renames_loads(tmp_path):
    """The student that ships was written with the old keys, and is kept so."""
    import json

    from l2p.config import RENAMED_KEYS
    from l2p.students.io import read_config, read_spec
    from l2p.students.resolve import BUNDLED

    folder = BUNDLED / "landscapes-128"
    kept = json.loads((folder / "config.json").read_text())
    assert RENAMED_KEYS.keys() <= kept.keys()
    spec, config = read_spec(folder), read_config(folder)
    for old, new in RENAMED_KEYS.items():
        assert getattr(spec, new) == kept[old] == config[new] and old not in config
