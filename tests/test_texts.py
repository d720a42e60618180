"""The one reader of texts: encodings, lines, formats, columns; what is no prompt is refused with its place."""

from __future__ import annotations

import csv
import io
import json

import pytest

from l2p.corpus.sources import read_texts
from l2p.errors import UserError, UserNotice
from l2p.texts import read_lines, read_prompts, read_table, write_prompts

WANTED = ["a red house", "un été près d'un lac", "a\u2028b, \u0085c \x0b d\x0ce \x1c\x1d\x1e f"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_encodings_and_the_two_ends_of_a_line(tmp_path, encoding, end):
    path = tmp_path / "p.txt"
    path.write_bytes(end.join([*WANTED, ""]).encode(encoding))
    assert read_prompts(path) == WANTED


def test_utf_16_of_the_other_order(tmp_path):
    (tmp_path / "p.txt").write_bytes(b"\xfe\xff" + "a barn\na lake".encode("utf-16-be"))
    assert read_prompts(tmp_path / "p.txt") == ["a barn", "a lake"]


def test_files_that_were_joined_keep_no_mark_inside(tmp_path):
    (tmp_path / "p.txt").write_bytes("a barn\n".encode("utf-8-sig") + "a lake\n".encode("utf-8-sig"))
    assert read_prompts(tmp_path / "p.txt") == ["a barn", "a lake"]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("a barn\nun été\n".encode("latin-1"), r"p\.txt:2 is no UTF-8 \(byte 0xe9\).*save it as UTF-8"),
        ("日本\n語\n".encode("shift_jis"), r"p\.txt:1 is no UTF-8"),
        ("a\nb".encode("utf-32"), r"p\.txt:1 is UTF-32"),
        ("a barn\nb".encode("utf-16-le"), r"p\.txt:1 holds a NUL byte"),
        (b"\xff\xfea\x00\n\x00b", r"p\.txt:2 is no UTF-16"),
        (b"\x89PNG\r\n\x1a\n", r"p\.txt:1 is no UTF-8"),
        (b"a barn\ra lake\rb", r"p\.txt:1 holds a carriage return: end lines with"),
        (b"prompt\na barn\n", r"p\.txt:1 looks like a header \(prompt\): name the file p\.csv"),
        (b"Prompt,seed\na barn,3\n", r"p\.txt:1 looks like a header"),
        (b"prompt\tnegative prompt\na barn\tblurry\n", r"p\.txt:1 looks like a header"),
        (b"a barn\nb'a red house'\n", r"p\.txt:2 holds what a program prints for bytes"),
        (b"['a', 'b']\n", r"p\.txt:1 holds what a program prints for a list"),
        (b"{'prompt': 'a', 'seed': 1}\n", r"p\.txt:1 holds what a program prints for an object"),
        (b"('a red house', 0.3)\n", r"p\.txt:1 holds what a program prints for a tuple"),
        (b'a barn\n{"prompt": "a", "real": true}\n', r"p\.txt:2 holds what a program prints for an object"),
        (b"1\ta red house\n", r"p\.txt:1 looks like a row of a table"),
        (b"1,a red house\n2,a barn\n", r"p\.txt:1 looks like a row of a table"),
    ],
)
def test_what_is_no_list_of_prompts_is_refused_with_its_line(tmp_path, data, said):
    (tmp_path / "p.txt").write_bytes(data)
    with pytest.raises(UserError, match=said) as error:
        read_prompts(tmp_path / "p.txt")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["p.yaml", "p.md", "p.html", "p.xlsx", "p.txt.bak"])
def test_other_suffixes_are_refused_by_name(tmp_path, name):
    (tmp_path / name).write_text("a red house\n")
    with pytest.raises(UserError, match=rf"ends in \.{name.split('.')[-1]}, expected \.txt, "):
        read_prompts(tmp_path / name)


def test_a_json_string_a_line_is_the_text_in_it_and_words_stay_as_they_are(tmp_path):
    (tmp_path / "p.txt").write_text('"a \\"red\\" house"\n\n"a barn\\nby a lake"\n')
    assert read_prompts(tmp_path / "p.txt") == ['a "red" house', "a barn\nby a lake"]
    words = [
        '"Stop" on a sign',
        "(a house:1.2), [dusk]",
        "{a|b} house",
        "a barn, 2 cows",
        "prompt, a house",
        "3 houses",
    ]
    (tmp_path / "p").write_text("\n".join(words))
    assert read_prompts(tmp_path / "p") == words


ROWS = [{"id": n, "text": text, "other": "x"} for n, text in enumerate([*WANTED, "two\nlines"])]


def as_csv(separator=","):
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, ROWS[0], delimiter=separator)
    writer.writeheader()
    writer.writerows(ROWS)
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.jsonl", "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)),
        ("p.ndjson", "\r\n".join(json.dumps(row) for row in ROWS) + "\r\n"),
        ("p.txt", "\n".join(json.dumps(row) for row in ROWS)),  # known by its content
        ("p.json", json.dumps(ROWS, indent=2)),
        ("p.jsonl", json.dumps(ROWS)),
        ("p.json", "\n".join(json.dumps(row) for row in ROWS)),
        ("p.json", json.dumps([row["text"] for row in ROWS])),
        ("p.txt", json.dumps([row["text"] for row in ROWS])),
        ("p.json", json.dumps({"text": [row["text"] for row in ROWS]})),
        ("p.csv", as_csv()),
        ("p.csv", as_csv(";")),
        ("p.csv", "\ufeff" + as_csv()),
        ("p.tsv", as_csv("\t")),
    ],
)
def test_every_format_holds_the_same_prompts(tmp_path, name, content):
    (tmp_path / name).write_bytes(content.encode())
    assert read_prompts(tmp_path / name) == [row["text"] for row in ROWS]
    assert list(read_texts(str(tmp_path / name))) == [row["text"] for row in ROWS]


def test_parquet_is_known_by_its_content(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    table = pyarrow.Table.from_pylist(ROWS)
    for name in ("p.parquet", "p.txt"):
        write_table(table, tmp_path / name)
        assert read_prompts(tmp_path / name) == [row["text"] for row in ROWS]
    coded = pyarrow.table({"prompt": pyarrow.array(["a", "b", "a"]).dictionary_encode()})
    write_table(coded, tmp_path / "p.parquet")
    assert read_prompts(tmp_path / "p.parquet") == ["a", "b", "a"]
    for values in ([b"a red house"], [["a", "b"]], [3], [0.5], [{"text": "a"}]):
        write_table(pyarrow.table({"prompt": values}), tmp_path / "p.parquet")
        with pytest.raises(UserError, match=r"p\.parquet row 1 has no text under 'prompt'"):
            read_prompts(tmp_path / "p.parquet")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("p.csv", "words,seed\na,1\n", r"has the columns words, seed: name one, such as p\.csv#words"),
        ("p.csv", "a red house\na lake\n", r"has the columns a red house: name one"),
        ("p.csv", "prompt\na red house, by a lake\n", r"p\.csv:2 has 2 fields, the header has 1: put texts"),
        ("p.csv", 'prompt\n"a\nb"\n"c\n', r"p\.csv:4 is no CSV: unexpected end of data"),
        ("p.csv", "prompt,seed\nb'a red house',3\n", r"p\.csv:2 holds what a program prints for bytes"),
        ("p.csv", "text\n1\n2.5\n", r"column 'text' of .* holds numbers"),
        ("p.csv", "prompt,prompt\na,b\n", r"has several columns 'prompt'"),
        ("p.json", '[{"prompt": "a"}, {"prompt": 3}]', r"p\.json item 2 has no text under 'prompt': 3"),
        ("p.json", '[{"prompt": "a"}, {"text": "b"}]', r"p\.json item 2 has no text under 'prompt'"),
        ("p.json", '[{"prompt": ["a", "b"]}]', r"item 1 has no text under 'prompt': .*\"a\", \"b\""),
        ("p.json", '["a", ["b", "c"]]', r"item 2 has no text"),
        ("p.json", '[\n"a",\n', r"p\.json:\d is no JSON"),
        ("p.json", '{"prompt": {"0": "a"}}', r"p\.json:1 has no text under 'prompt'"),
        ("p.jsonl", '{"prompt": "a"}\nnonsense', r"p\.jsonl:2 is no JSON"),
        ("p.txt", '{"prompt": "a"}\nnonsense', r"p\.txt:2 is no JSON"),
        ("p.jsonl", '{"prompt": "\\ud800"}', r"p\.jsonl:1 holds half of a surrogate pair"),
    ],
)
def test_a_table_that_holds_no_texts_is_refused_with_its_place(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=said):
        read_prompts(tmp_path / name)


def test_a_column_is_named_or_found(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("id,Text,Caption,other\n1,t,c,o\n")
    assert read_prompts(path) == ["c"]
    assert read_texts(f"{path}#other") == ("o",)
    with pytest.raises(UserError, match="has no column 'nix', only id, Text, Caption, other"):
        read_texts(f"{path}#nix")


def test_a_bracket_does_not_make_json(tmp_path):
    (tmp_path / "p.txt").write_text("[photo] a barn\n{a} lake\n")
    assert read_prompts(tmp_path / "p.txt") == ["[photo] a barn", "{a} lake"]


def test_blank_texts_are_left_out_or_refused_where_each_has_its_picture(tmp_path):
    path = tmp_path / "p.txt"
    path.write_text("a\n\nb\n\n\n")
    assert read_prompts(path) == ["a", "b"]
    with pytest.raises(UserError, match=r"p\.txt:2 is blank, but each text belongs to one picture"):
        read_prompts(path, paired=True)
    path.write_text("a\nb\n\n\n")  # blank lines at the end shift nothing
    assert read_prompts(path, paired=True) == ["a", "b"]
    for name, content, place in (
        ("p.csv", "prompt,seed\na,1\n,2\nb,3\n", ":3"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": null}\n{"prompt": "b"}\n', ":2"),
        ("p.json", '["a", " ", "b"]', " item 2"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match=f"{name}{place} is blank"):
            read_prompts(tmp_path / name, paired=True)
    with pytest.warns(UserNotice, match=r"p\.csv: 1 of 3 rows have no text"):
        assert read_prompts(tmp_path / "p.csv") == ["a", "b"]


def test_what_is_written_is_read_back(tmp_path):
    texts = [*WANTED, "two\nlines", "three\r\n", '"quoted"', "{", "b"]
    write_prompts(tmp_path / "p.jsonl", [{"prompt": text.strip(), "seed": 3} for text in texts])
    assert read_prompts(tmp_path / "p.jsonl", paired=True) == [text.strip() for text in texts]
    assert read_table(tmp_path / "p.jsonl").values("seed") == [3] * len(texts)


def test_lines(tmp_path):
    (tmp_path / "terms.txt").write_bytes("\ufeffa\u2028b\r\n\r\n c \n".encode())
    assert read_lines(tmp_path / "terms.txt") == ["a\u2028b", "", "c"]
    with pytest.raises(UserError, match="cannot read .*nowhere: no such file"):
        read_lines(tmp_path / "nowhere")
