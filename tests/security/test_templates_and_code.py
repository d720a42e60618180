"""Programs in folders of strangers: chat templates are bounded, and nothing else runs."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path

import pytest

from l2p.errors import UserError
from l2p.teachers import chat_template, load_teacher
from l2p.teachers.chat_template import LANDSCAPES_TEMPLATE, BoundedTemplate, bound_chat_templates
from l2p.teachers.text import TextEncoder

MESSAGES = [{"role": "user", "content": "a lake"}]
BOMBS = {
    "nested ranges": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a huge product": "{{ 'x' * 10**10 }}",
    "a power": "{{ 9 ** (9 ** 9) }}",
    "a wide format": "{{ '%099999999999d' % 1 }}",
    "a wide centre": "{{ 'x' | center(10**11) }}",
    "doubling": "{% set ns = namespace(x='x') %}{% for _ in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "long output": "{% for a in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
    "recursion": "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
    "a replacement": "{{ ('x' * 10**6).replace('', 'y' * 10**6) }}",
    "a list": "{{ (range(99999) | list * 99999) | length }}",
}
ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.append(1) }}",
    "{{ cycler.__init__.__globals__.os.system('id') }}",
    "{{ self._TemplateReference__context }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__globals__['sys'] }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os }}",
]


@pytest.fixture
def brief(monkeypatch):
    monkeypatch.setattr(chat_template, "SECONDS", 1.5)


@pytest.mark.parametrize("source", BOMBS.values(), ids=BOMBS)
def test_a_template_bomb_ends_in_a_line_within_seconds_and_no_memory(source, brief):
    import resource

    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match="chat template") as caught:
        BoundedTemplate(source).render(messages=MESSAGES)
    assert time.monotonic() - start < 15 and "\n" not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB
    assert BoundedTemplate("{{ messages[0].content }}").render(messages=MESSAGES) == "a lake"


def test_the_memory_of_a_template_is_the_process_own_limit():
    """A text of 1 GB that is not written, but counted: it would fit this machine, and not the limit."""
    with pytest.raises(UserError, match="too much memory|chat template was stopped"):
        BoundedTemplate("{{ ('x' * 10**9) | length }}").render(messages=MESSAGES)
    assert BoundedTemplate("{{ ('x' * 10**6) | length }}").render(messages=MESSAGES) == "1000000"


@pytest.mark.parametrize("source", ESCAPES)
def test_a_template_reaches_nothing_outside_its_messages(source):
    try:
        found = BoundedTemplate(source).render(messages=MESSAGES)
    except UserError:
        return
    assert found in ("", "<built-in method append>")


def test_honest_templates_come_out_as_transformers_renders_them():
    from transformers.utils import chat_template_utils

    sources = [
        LANDSCAPES_TEMPLATE,
        "{%- for m in messages %}\n    {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}\n{%- endfor %}\n"
        "{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}",
        "{% generation %}{{ messages | tojson }}{% endgeneration %}{% for i in range(9) %}{% if i > 2 %}{% break %}{% endif %}"
        "{{ i }}{% endfor %}{% set ns = namespace(a=1) %}{{ ns.a }}",
    ]
    bound_chat_templates()
    unbounded = chat_template_utils._cached_compile_jinja_template
    for source in sources:
        given = {"messages": [{"role": "user", "content": "ä <b> \u2028 'x'"}], "add_generation_prompt": True}
        assert BoundedTemplate(source).render(**given) == unbounded(source).render(**given)


def test_the_limit_holds_for_whatever_asks_transformers(tiny_pipeline, tmp_path, brief):
    """A student's text encoder and a teacher's pipeline; the bundled teacher's own template needs no process."""
    folder = tmp_path / "teacher"
    shutil.copytree(tiny_pipeline, folder)
    assert TextEncoder.from_pretrained(folder).in_template("a lake") == "<|user|>a lake<|assistant|>"
    (folder / "tokenizer" / "chat_template.jinja").write_text(BOMBS["nested ranges"])
    start = time.monotonic()
    for load in (TextEncoder.from_pretrained, load_teacher):
        reader = load(folder)
        with pytest.raises(UserError, match="chat template was stopped: it took more than"):
            getattr(reader, "encode_prompts", reader)(["a lake"])
    assert time.monotonic() - start < 60


def test_templates_of_one_call_share_their_time_and_their_text(teacher_folder, monkeypatch):
    """One near its limits would take hours for many prompts, and their tokenizer gigabytes."""
    path = teacher_folder / "tokenizer" / "chat_template.jinja"
    prompts = [f"a lake {i}" for i in range(64)]
    monkeypatch.setattr(chat_template, "MAX_OUTPUT", 20_000)
    chat_template._worker.close()
    path.write_text("{{ 'x ' * 5000 }}")
    reader = TextEncoder.from_pretrained(teacher_folder)
    assert len(reader.tokenize(prompts[:2])[0]) == 2
    monkeypatch.setattr(type(reader.tokenizer), "__call__", lambda *_, **__: pytest.fail("tokenised first"))
    for read in (reader.tokenize, load_teacher(teacher_folder).encode_prompts):
        with pytest.raises(UserError, match="writes far more than it is given"):
            read(prompts)
    monkeypatch.setattr(chat_template, "TOTAL_SECONDS", 0.5)
    path.write_text("{% for a in range(700) %}{% for b in range(1000) %}{% endfor %}{% endfor %}x")
    start, slow = time.monotonic(), TextEncoder.from_pretrained(teacher_folder)
    with pytest.raises(UserError, match="for those of one call"):
        slow.tokenize(prompts)
    assert time.monotonic() - start < 10
    chat_template._worker.close()


def test_a_template_writes_no_file_and_no_core():
    assert "RLIMIT_FSIZE, 0" in chat_template.WORKER
    BoundedTemplate("x").render()
    limits = Path(f"/proc/{chat_template._worker._process.pid}/limits").read_text()
    for name in ("Max file size", "Max core file size"):
        assert limits.partition(name)[2].split()[:2] == ["0", "0"]


def test_no_process_is_left_behind():
    BoundedTemplate("x").render()
    process = chat_template._worker._process
    chat_template._worker.close()
    assert process.poll() is not None and BoundedTemplate("x").render() == "x"


def test_the_worker_sees_no_secret_of_the_environment(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "a" * 30)
    chat_template._worker.close()
    BoundedTemplate("x").render()
    pid = chat_template._worker._process.pid
    assert b"hf_" not in Path(f"/proc/{pid}/environ").read_bytes()


@pytest.fixture
def teacher_folder(tiny_pipeline, tmp_path) -> Path:
    shutil.copytree(tiny_pipeline, tmp_path / "teacher")
    return tmp_path / "teacher"


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


CODE = {
    "a module beside the recipe": ("model_index.json", {"vae": ["evil_module", "Model"]}),
    "a module of Python": ("model_index.json", {"vae": ["antigravity", "Model"]}),
    "a path": ("model_index.json", {"vae": ["os.path", "join"]}),
    "a class that is no identifier": ("model_index.json", {"vae": ["diffusers", "a.b"]}),
    "attention code on the Hub": ("text_encoder/config.json", {"_attn_implementation": "evil/kernel"}),
    "attention code by another key": ("text_encoder/config.json", {"attn_implementation": "evil/kernel:run"}),
    "attention code below": ("text_encoder/config.json", {"text_config": {"attn_implementation": "evil/k"}}),
}


@pytest.mark.parametrize(("file", "changes"), CODE.values(), ids=CODE)
def test_a_teacher_that_names_code_is_refused_before_any_is_imported(
    teacher_folder, monkeypatch, file, changes
):
    (teacher_folder / "evil_module.py").write_text("raise SystemExit('ran')")
    monkeypatch.syspath_prepend(str(teacher_folder))
    edit(teacher_folder / file, **changes)
    before = set(sys.modules)
    with pytest.raises(UserError, match="expected a class of diffusers|attention code on the Hub"):
        load_teacher(teacher_folder)
    assert not {"evil_module", "antigravity"} & (set(sys.modules) - before)


def test_the_attention_of_a_student_is_ours_whatever_its_config_says(teacher_folder, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("code was fetched")
    )
    edit(teacher_folder / "text_encoder" / "config.json", attn_implementation="evil/kernel")
    reader = TextEncoder.from_pretrained(teacher_folder)
    assert reader.model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("file", ["tokenizer/tokenizer_config.json", "text_encoder/config.json"])
def test_no_auto_map_runs_code(teacher_folder, file, monkeypatch):
    """Neither transformers' question whether to trust it, nor the code."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether to trust code"))
    (teacher_folder / file).with_name("evil.py").write_text("raise SystemExit('ran')")
    classes = {name: "evil.Evil" for name in ("AutoModel", "AutoConfig", "AutoProcessor")}
    changes = {"auto_map": {**classes, "AutoTokenizer": ["evil.Evil", None]}, "model_type": "evil"}
    edit(teacher_folder / file, **changes)
    try:
        TextEncoder.from_pretrained(teacher_folder)
    except UserError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("name", ["Trainer", "pipeline", "os", "AutoModel", "../x", None, 3])
def test_a_text_encoder_is_a_model_of_transformers(name, tmp_path):
    from l2p.teachers.installed import model_class

    with pytest.raises(UserError, match="names no model of transformers"):
        model_class(tmp_path, name)


def test_tokens_beyond_the_vocabulary_are_one_line(teacher_folder):
    path = teacher_folder / "tokenizer" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {word: (n if n < 260 else n + 10**6) for word, n in vocabulary.items()}
    path.write_text(json.dumps(tokenizer))
    reader = TextEncoder.from_pretrained(teacher_folder)
    with pytest.raises(UserError, match="the text encoder knows .*: they do not belong together"):
        reader(["a red house by a lake at dusk, snow on high mountains"])


def test_nothing_in_the_tree_trusts_remote_code():
    root = Path(chat_template.__file__).parents[1]
    card = root / "hub" / "export.py"  # tells users of diffusers how to load the exported code, in a text
    found = [p for p in root.rglob("*.py") if "trust_remote_code=True" in p.read_text() and p != card]
    assert found == []
    assert card.read_text().count("trust_remote_code=True") == 1


def test_importing_a_scorer_takes_the_users_own_word():
    """No file that comes from elsewhere (a student's recipe, a corpus) leads to a scorer's import."""
    root = Path(chat_template.__file__).parents[1]
    callers = [p.relative_to(root).as_posix() for p in root.rglob("*.py") if "Scorer(" in p.read_text()]
    assert sorted(callers) == ["corpus/synthesis.py"]
