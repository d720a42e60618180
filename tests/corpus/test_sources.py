from __future__ import annotations

import json

import pytest

from l2p.corpus.prompts import fingerprint, prompts_for
from l2p.corpus.sources import Source, read_texts
from l2p.errors import UserError
from tests.hub.conftest import hub  # noqa: F401
from tests.hub.local_hub import Repo


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_json_lines_of_strings_and_of_objects(tmp_path):
    rows = [{"id": 1, "caption": "a barn", "text": "no"}, {"id": 2, "caption": " un été "}]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    assert read_texts(path) == ("a barn", "un été")
    assert read_texts(f"{write_jsonl(tmp_path / 'b.jsonl', rows[:1])}#text") == ("no",)
    assert prompts_for(write_jsonl(tmp_path / "c.jsonl", ["x y", "z"]), [0, 3]) == ["x y", "z"]


def test_a_column_of_a_parquet_file(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    path = tmp_path / "table.parquet"
    write_table(pyarrow.table({"id": [1, 2, 3], "prompt": ["a", None, "b"], "other": ["c", "d", "e"]}), path)
    assert read_texts(str(path)) == ("a", "b")
    assert read_texts(f"{path}#other") == ("c", "d", "e")
    with pytest.raises(UserError, match="has no column 'nix', only id, prompt, other"):
        read_texts(f"{path}#nix")
    path.write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match=r"cannot read .*table\.parquet: expected a Parquet file"):
        read_texts(str(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"prompt": "a"}\n{', r"bad\.jsonl:2 is no JSON"),
        ('{"words": "a"}', "has the columns words: name one, such as bad.jsonl#words"),
        ('{"prompt": 3}', r"bad\.jsonl:1 has no text under 'prompt'"),
        ("[1]", r"bad\.jsonl item 1 has no text"),
        ("\n", r"bad\.jsonl holds no prompt"),
    ],
)
def test_bad_json_lines_are_one_clear_line(tmp_path, content, message):
    (tmp_path / "bad.jsonl").write_text(content)
    with pytest.raises(UserError, match=message) as error:
        read_texts(str(tmp_path / "bad.jsonl"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["hub:", "hub:one", "hub:a/b/c", "hub:a b/c"])
def test_a_name_that_is_no_data_set(name):
    with pytest.raises(UserError, match="is no data set's name: expected hub:USER/NAME"):
        read_texts(name)


def test_parts_of_a_name(tmp_path):
    found = Source.parse("hub:ann/prompts@v1:data/*.jsonl#caption")
    assert (str(found.hub), found.hub.kind, found.files, found.column) == ("ann/prompts@v1", "dataset", "data/*.jsonl", "caption")  # fmt: skip
    odd = tmp_path / "c#.txt"
    odd.write_text("a barn\n")
    assert read_texts(str(odd)) == ("a barn",)


def test_a_data_set_on_the_hub_is_its_files_and_no_code_of_it_runs(hub):  # noqa: F811
    repo = hub.repos["ann/prompts"] = Repo()
    script = b"raise SystemExit('remote code ran')"
    files = {"README.md": b"# no prompts\n", "prompts.py": script, "notes.txt": b"a note\n"}
    files |= {"data/b.jsonl": b'{"caption": "a lake"}\n', "data/a.jsonl": b'{"caption": "a barn"}\n'}
    repo.commit("main", files)
    assert read_texts("hub:ann/prompts:data/*.jsonl#caption") == ("a barn", "a lake")
    assert prompts_for("hub:ann/prompts:*.txt", [0, 1]) == ["a note", "a note"]
    fetched = [line for line in hub.requests if "/resolve/" in line]
    assert not any("prompts.py" in line or "README" in line for line in fetched)
    assert len(fingerprint("hub:ann/prompts:data/*.jsonl")) == 64
    with pytest.raises(UserError, match="ann/nowhere is not on the Hub"):
        read_texts("hub:ann/nowhere")
