from __future__ import annotations

import json
from dataclasses import replace

import pytest

from l2p.artifacts import read_sealed
from l2p.corpus import prompt_list
from l2p.corpus.prompts import prompts_for
from l2p.errors import UserError
from l2p.recipe import CorpusConfig, LLMConfig, PromptFilters

FILTERS = PromptFilters(min_words=2, near_duplicates=1.0)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a barn\nlake\na BARN\na lake at noon\nhttp://x y\n")
    return path


def test_a_file_is_filtered_and_what_was_dropped_is_told(source, tmp_path):
    report = prompt_list.make_list(CorpusConfig(prompts=str(source), filters=FILTERS), tmp_path / "c", 0)
    assert prompts_for(tmp_path / "c" / "prompts.jsonl", range(3)) == ["a barn", "a lake at noon", "a barn"]
    assert {reason: found["count"] for reason, found in report["dropped"].items()} == {"format": 1, "length": 1, "duplicate": 1}  # fmt: skip
    assert lines(tmp_path / "c" / "prompts-dropped.jsonl") == [
        {"prompt": "lake", "reason": "length", "detail": "1 words"},
        {"prompt": "a BARN", "reason": "duplicate", "detail": "a barn"},
        {"prompt": "http://x y", "reason": "format", "detail": "holds an address of the web: http://"},
    ]
    assert read_sealed(tmp_path / "c" / "prompts.json", "") == report


@pytest.mark.parametrize("prompts", ["landscapes", "taxonomy"])
def test_a_generator_gives_as_many_as_are_wanted_and_starts_at_the_seed(prompts, tmp_path):
    config = CorpusConfig(prompts=prompts, num_prompts=20, filters=FILTERS)
    prompt_list.make_list(config, tmp_path, 5)
    kept = [row["prompt"] for row in lines(tmp_path / "prompts.jsonl")]
    raw = prompts_for(prompts, range(60), 5)
    assert len(kept) == 20 == len(set(kept))
    assert kept == [prompt for prompt in dict.fromkeys(raw) if len(prompt.split()) > 1][:20]


def test_a_list_is_made_once_and_other_settings_are_refused(source, tmp_path):
    config = CorpusConfig(prompts=str(source), filters=FILTERS)
    made = prompt_list.make_list(config, tmp_path / "c", 0)
    stamp = (tmp_path / "c" / "prompts.jsonl").stat().st_mtime_ns
    assert prompt_list.make_list(replace(config, num_pairs=9), tmp_path / "c", 0) == made  # a corpus may grow
    assert (tmp_path / "c" / "prompts.jsonl").stat().st_mtime_ns == stamp
    with pytest.raises(
        UserError, match=r"were made with other settings \(filters.min_words: 2 there, 3 here\)"
    ):
        prompt_list.make_list(replace(config, filters=replace(FILTERS, min_words=3)), tmp_path / "c", 0)
    source.write_text("a barn\n")
    with pytest.raises(UserError, match="were made with other settings .source_sha256: "):
        prompt_list.make_list(config, tmp_path / "c", 0)


def test_a_list_that_was_changed_is_told(source, tmp_path):
    config = CorpusConfig(prompts=str(source), filters=FILTERS)
    prompt_list.make_list(config, tmp_path / "c", 0)
    (tmp_path / "c" / "prompts.jsonl").write_text('{"prompt": "a barn"}\n')
    with pytest.raises(UserError, match=r"prompts\.jsonl is not what prompts\.json says"):
        prompt_list.make_list(config, tmp_path / "c", 0)


def test_too_little_left_is_one_line_with_the_reasons(source, tmp_path):
    config = CorpusConfig(prompts=str(source), num_prompts=4, filters=FILTERS)
    told = r"only 2 prompts of 5 are left, 4 were asked for \(dropped: format 1, length 1, duplicate 1\)"
    with pytest.raises(UserError, match=told):
        prompt_list.make_list(config, tmp_path / "c", 0)
    assert not list((tmp_path / "c").iterdir())


def test_a_kill_between_the_files_makes_them_anew(source, tmp_path, monkeypatch):
    config = CorpusConfig(prompts=str(source), filters=FILTERS)

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(prompt_list, "write_sealed", die)
        prompt_list.make_list(config, tmp_path / "c", 0)
    assert prompt_list.read_report(config, tmp_path / "c", 0) is None
    assert prompt_list.make_list(config, tmp_path / "c", 0)["kept"] == 2


def test_a_language_model_writes_what_the_filters_then_see(source, tmp_path, monkeypatch):
    asked = []

    class Writer:
        def __init__(self, config, memory):
            assert memory == tmp_path / "c" / "prompts-llm.jsonl"

        def rewrite(self, prompts):
            asked.append(prompts)
            return [f"{prompt} in fog" for prompt in prompts]

    monkeypatch.setattr(prompt_list, "Writer", Writer)
    model = LLMConfig(base_url="https://host/v1", model="small", prompts_per_request=2, parallel=1)
    config = CorpusConfig(prompts=str(source), num_prompts=2, filters=FILTERS, llm=model)
    report = prompt_list.make_list(config, tmp_path / "c", 0)
    assert [row["prompt"] for row in lines(tmp_path / "c" / "prompts.jsonl")] == [
        "a barn in fog",
        "lake in fog",
    ]
    assert asked == [["a barn", "lake"]]  # no more than was needed: answers cost money
    assert report["settings"]["llm"]["model"] == "small" and "key_env" not in report["settings"]["llm"]


def test_a_share_of_a_file_s_prompts_is_held_out_by_their_text(tmp_path):
    """Seeded and by text: other orders and repeats change nothing, and what is held out is in no sample."""
    from l2p.corpus.synthesis import the_prompts, training_prompts

    texts = [f"a lake with {number} boats" for number in range(200)]
    source = tmp_path / "prompts.txt"
    source.write_text("\n".join([*texts, *texts[:9]]) + "\n")
    config = CorpusConfig(prompts=str(source), num_pairs=400)
    assert prompt_list.needs_list(config)
    drawn_from = the_prompts(config, tmp_path / "c", 3)
    held = set(prompts_for(prompt_list.held_out_prompts(tmp_path / "c"), range(200)))
    trained = training_prompts(config, tmp_path / "c", 3)
    assert 3 <= len(held) <= 22 and not held & trained and held | trained == set(texts)
    assert set(prompts_for(drawn_from, range(400), 3)) == trained
    assert read_sealed(tmp_path / "c" / "prompts.json", "")["held_out"] == len(held)

    source.write_text("\n".join(reversed(texts)) + "\n")
    prompt_list.make_list(config, tmp_path / "turned", 3)
    assert set(prompts_for(prompt_list.held_out_prompts(tmp_path / "turned"), range(200))) == held
    prompt_list.make_list(config, tmp_path / "other", 4)
    assert set(prompts_for(prompt_list.held_out_prompts(tmp_path / "other"), range(200))) != held


@pytest.mark.parametrize("config", [{"held_out": 0.0}, {"prompts": "landscapes"}, {"prompts": "few"}])
def test_nothing_is_held_out_of_generators_and_short_files(tmp_path, config):
    (tmp_path / "many.txt").write_text("\n".join(f"{n} boats on a lake" for n in range(99)))
    (tmp_path / "few.txt").write_text("\n".join(f"{n} boats on a lake" for n in range(9)))
    names = {"few": str(tmp_path / "few.txt"), "landscapes": "landscapes", None: str(tmp_path / "many.txt")}
    found = CorpusConfig(**{**config, "prompts": names[config.get("prompts")]})
    assert not prompt_list.needs_list(found)
