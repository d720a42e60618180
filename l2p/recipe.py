"""What a recipe may say, and reading one: YAML over dataclasses, `key=value` overrides, mistakes explained in one line.

Every knob is explained where people choose it: in `recipes/quickstart.yaml` and `recipes/z-image-turbo-1k.yaml`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field

from l2p.config import (
    BatchSize,
    Blocks,
    ConfigError,
    Count,
    CountOrZero,
    DTypeName,
    Float,
    GuidanceScale,
    Int,
    LearningRate,
    Number,
    Pixels,
    SamplingSteps,
    Sections,
    Seed,
    Side,
    Steps,
    Text,
    Threads,
    Weight,
    Width,
    adapter,
    check_keys,
    config,
    dotted,
    shown,
    shown_text,
    validate,
)
from l2p.errors import UserError
from l2p.keys import SECRET_NAME, check_endpoint, holds_key, known_endpoint
from l2p.shipped_recipes import find_recipe
from l2p.yaml_file import Document, parse_value, read_document

REQUIRED = "???"  # OmegaConf's sign for a value that has no default
MOST_LAYERS = 8  # recipes that extend one another
MOST_REFERENCES = 24  # ${...} in a recipe: each may double the work of resolving the others
# A key of this recipe, from its top or, with dots before it, from where it stands. OmegaConf also knows functions, such as
# ${oc.env:NAME}, which would put any variable of the environment into a name, a file or a request.
REFERENCE = re.compile(r"\$\{\.*[A-Za-z_]\w*(?:\.\w+)*\}", re.ASCII)
T = TypeVar("T")


@config
class TeacherConfig:
    path: Text = "landscapes"
    revision: Text | None = None
    num_inference_steps: SamplingSteps = 20
    guidance_scale: GuidanceScale = 1.0
    height: Pixels = 128
    width: Pixels = 128


@config
class LLMConfig:
    """A language model behind an OpenAI-compatible endpoint that writes each prompt of the source anew."""

    base_url: Text
    model: Text
    key_env: Text = "OPENAI_API_KEY"
    instruction: str | None = None
    temperature: Annotated[Float, Field(ge=0, le=2)] = 1.0
    prompts_per_request: Annotated[Int, Field(ge=1, le=1000)] = 10
    parallel: Annotated[Int, Field(ge=1, le=256)] = 4
    timeout: Annotated[Float, Field(ge=1, le=86400)] = 120.0


@config
class PromptFilters:
    min_words: Count = 3
    max_words: Count = 150
    language: Text | None = None
    near_duplicates: Annotated[Float, Field(ge=0.1, le=1)] = 0.8
    blocked_terms: list[str] = field(default_factory=list)
    blocked_file: Text | None = None


@config
class QualityConfig:
    """A scorer of the user's own; pictures below `min_score` are left out."""

    scorer: Text
    min_score: Number = 0.0
    options: dict[str, Any] = field(default_factory=dict)


@config
class CorpusConfig:
    num_pairs: Annotated[Int, Field(ge=2, le=10**9)] = 2500
    prompts: Text = "landscapes"
    num_prompts: Count | None = None
    held_out: Annotated[Float, Field(ge=0, le=0.5)] = 0.05
    llm: LLMConfig | None = None
    filters: PromptFilters | None = None
    quality: QualityConfig | None = None
    num_inference_steps: SamplingSteps = 10
    solver: Literal["teacher", "adams"] = "teacher"
    batch_size: BatchSize = 25
    shard_size: Annotated[Int, Field(ge=1, le=10**6)] = 500
    image_format: Literal["png", "webp"] = "png"
    latents: bool = True
    noise_generator: Literal["philox", "mt19937"] = "philox"
    path: Text | None = None


@config
class LiftConfig:
    num_images: Count = 256
    scale: Literal["procrustes", "energy"] = "procrustes"
    min_r2: Annotated[Float, Field(ge=-1, le=1)] = 0.2


@config
class TrainBlocks:
    """Main blocks of the core that train: the first and the last so many."""

    first: Blocks = 0
    last: Blocks = 0


@config
class HeadConfig:
    kind: Literal["patch", "linear", "unet"] = "patch"
    fine_patch: Side = 4
    width: Width = 96
    num_blocks: Annotated[Int, Field(ge=0, le=64)] = 3
    head_dim: Width = 32
    tile: Side = 8
    halo: Annotated[Int, Field(ge=0, le=1000)] = 4
    pretrained: Text | None = None


@config
class LoRAConfig:
    """Adapters on the core's linear layers, which themselves are frozen; targets are the ends of their names."""

    rank: Width = 16
    alpha: Weight = 16.0
    targets: Annotated[list[Text], Field(min_length=1)] = field(
        default_factory=lambda: ["to_q", "to_k", "to_v", "to_out.0", "w1", "w2", "w3"]
    )


def _train_blocks(value: Any) -> Any:
    if isinstance(value, TrainBlocks) or value in ("all", "none"):
        return value
    try:
        if value:
            return validate(TrainBlocks, value)
    except ConfigError:
        pass
    raise UserError(f"student.train_blocks is {shown(value)}, expected all, none or {{first: 5, last: 5}}")


@config
class StudentConfig:
    patch_size: Side = 16
    num_steps: SamplingSteps = 1
    max_timestep: Annotated[Float, Field(ge=0.5, le=1)] = 1.0
    project_noise: bool = False
    interval: bool = False
    random_core: bool = False
    core: Literal["tiny", "base", "large"] | None = None
    train_blocks: Annotated[Literal["all", "none"] | TrainBlocks, BeforeValidator(_train_blocks)] = "all"
    gradient_checkpointing: bool = False
    lora: LoRAConfig | None = None
    head: HeadConfig = field(default_factory=HeadConfig)

    def __post_init__(self) -> None:
        if self.core is not None and (self.lora is not None or self.train_blocks != "all"):
            raise UserError(
                f"student.core is {self.core}, which starts with random weights: all of it must train, so set "
                "student.train_blocks=all and student.lora=null"
            )
        if self.lora is not None and self.train_blocks not in ("all", "none"):
            raise UserError("student.lora freezes the whole core: leave student.train_blocks at all or none")


def _objective_specs() -> Any:
    from l2p.objectives.spec import objective_specs

    return objective_specs()


def _check_objectives(value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The objectives of a recipe as they are written, once each is known and each of its options in its range."""
    adapter(_objective_specs()).validate_python(value)
    return value


Objectives = Annotated[
    dict[str, dict[str, Any]], AfterValidator(_check_objectives), Sections(_objective_specs)
]


@config
class StageConfig:
    enabled: bool = True
    steps: Steps = 100
    batch_size: BatchSize = 32
    accumulate: BatchSize = 1
    learning_rate: LearningRate = 1e-3
    warmup_steps: CountOrZero = 20
    weight_decay: Weight = 0.0
    gradient_clip: Weight = 1.0
    ema_decay: Annotated[Float, Field(ge=0, le=0.99999)] = 0.99
    optimizer: Literal["muon", "adamw"] = "muon"
    checkpoint_every: Steps = 100
    preview_every: Steps = 200
    objectives: Objectives = field(default_factory=dict)


def _transfer() -> StageConfig:
    return StageConfig(enabled=False, steps=400, objectives={"flow": {"weight": 1.0}})


def _one_step() -> StageConfig:
    return StageConfig(steps=600, objectives={"pairs": {"weight": 1.0}})


def _match() -> StageConfig:
    return StageConfig(steps=60, objectives={"pairs": {"weight": 1.0}, "drift": {"weight": 1.0}})


@config
class EvaluationConfig:
    num_images: Count = 256
    batch_size: BatchSize = 32
    seed: Seed = 10_000
    prompts: Text | None = None
    preview_images: Annotated[Int, Field(ge=1, le=256)] = 8
    cache: Text | None = None
    latency_runs: Annotated[Int, Field(ge=1, le=1000)] = 5
    clip: Text | None = None
    features: list[Text] = field(default_factory=list)
    peak_memory: bool = True


@config
class ParallelConfig:
    """How several processes share the training; see docs/scale.md. One process reads none of it."""

    strategy: Literal["ddp", "fsdp"] = "ddp"
    teacher: Literal["whole", "sharded", "offloaded"] = "whole"
    timeout_minutes: Annotated[Float, Field(ge=0.1, le=100_000)] = 30.0


@config
class LoggingConfig:
    tensorboard: bool = False
    wandb: bool = False
    wandb_project: Text = "l2p"


@config
class Recipe:
    """Everything `l2p distill` needs to know."""

    name: Text = REQUIRED
    output_dir: Text = "runs/${name}"
    seed: Seed = 0
    device: Text = "auto"
    dtype: DTypeName = "auto"
    threads: Threads | None = None
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    lift: LiftConfig = field(default_factory=LiftConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    transfer: StageConfig = field(default_factory=_transfer)
    one_step: StageConfig = field(default_factory=_one_step)
    match: StageConfig = field(default_factory=_match)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)


def load_recipe(path: str | Path, overrides: Sequence[str] = (), schema: type[T] = Recipe) -> T:
    """The recipe in a YAML file, or shipped under that name, as an instance of the dataclass `schema`, `${...}` resolved.

    A file that says `extends: other.yaml`, a path from its own folder, changes that recipe.
    overrides: "key.subkey=value", applied in turn, the value read as YAML.
    A mapping in an override is merged into what is there. Raises UserError naming file, line and key of a mistake.
    """
    documents = [*_layers(find_recipe(str(path))), *map(_override, overrides)]
    try:
        recipe = validate(schema, _merged(documents, schema))
    except ConfigError as error:
        raise UserError(f"{_place(documents, error.path) or path}: {error}") from None
    if isinstance(recipe, Recipe):
        try:
            check_trust(recipe, overrides)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
    return recipe


def check_trust(recipe: Recipe, overrides: Sequence[str]) -> None:
    """What a file alone may not do: hold a key, have code run, or send prompts and a key of the environment anywhere.

    Args:
        overrides: the user's own words.

    Raises:
        UserError: a key or a password in ``corpus.llm``, an endpoint or a variable for its key that is not known
            (:func:`l2p.keys.known_endpoint`), or a scorer by its module or file, that the overrides do not name.
    """
    llm, quality = recipe.corpus.llm, recipe.corpus.quality
    for path, text in _texts(asdict(recipe)):
        called = SECRET_NAME.fullmatch(str(path[-1])) and text
        checked_below = path in (("corpus", "llm", "base_url"), ("corpus", "llm", "key_env"))
        if (called or holds_key(text)) and not checked_below:
            raise UserError(
                f"{shown_text(dotted(path))} holds what looks like a key, and a recipe is kept and published: put the key into "
                "the environment, and have it read there"
            )
    if llm is not None:
        check_endpoint(llm.base_url, llm.key_env)
        if not known_endpoint(llm.base_url, llm.key_env):
            wanted = {"base_url": llm.base_url}
            if llm.key_env != LLMConfig.key_env:
                wanted["key_env"] = llm.key_env
            missing = [
                f"corpus.llm.{key}={value}"
                for key, value in wanted.items()
                if _said(overrides, "corpus", "llm", key) != value
            ]
            if missing:
                raise UserError(
                    f"corpus.llm sends the prompts and the environment's {llm.key_env} to {shown(llm.base_url)}, which a "
                    f"file alone may not ask for: if you trust that address, say {' '.join(missing)} on the command "
                    "line as well"
                )
    if quality is not None and ":" in quality.scorer:
        if _said(overrides, "corpus", "quality", "scorer") != quality.scorer:
            raise UserError(
                f"corpus.quality.scorer runs the code {shown(quality.scorer)}, which a file alone may not ask for: read "
                f"that code, and say corpus.quality.scorer={quality.scorer} on the command line as well"
            )


def _said(overrides: Sequence[str], *path: str) -> Any:
    """What the last of the overrides that says something about a key says; None if none does."""
    documents = [document for document in map(_override, overrides) if document.has(path)]
    value: Any = documents[-1].values if documents else None
    for part in path if documents else ():
        value = value[part]
    return value


def overrides_of(sections: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Overrides ``key.subkey=value`` of nested mappings; an empty mapping is a value."""
    import yaml

    found = []
    for key, value in sections.items():
        if isinstance(value, Mapping) and value:
            found += overrides_of(value, f"{prefix}{key}.")
        else:
            text = (
                yaml.safe_dump(value, default_flow_style=True, width=1 << 30).removesuffix("\n...\n").strip()
            )
            found.append(f"{prefix}{key}={text}")
    return found


def _layers(path: Path, above: tuple[Path, ...] = ()) -> list[Document]:
    """The recipe that this one extends, the one that that extends, ..., and this one."""
    if path.resolve() in above:
        raise UserError(f"{path} extends itself by way of {above[-1]}")
    if len(above) >= MOST_LAYERS:
        raise UserError(f"{path}: more than {MOST_LAYERS} recipes extend one another")
    document = read_document(path)
    base = document.values.pop("extends", None)
    if base is None:
        return [document]
    if not isinstance(base, str) or not base or "\0" in base:
        raise UserError(
            f"{document.place(('extends',))}: extends is {shown(base)}, expected the path of a recipe such as "
            "z-image-turbo-1k.yaml"
        )
    return [*_layers(path.parent / base, (*above, path.resolve())), document]


def _override(text: str) -> Document:
    source = f"override {shown(text)}"
    key, equals, value = text.partition("=")
    path = [part.strip() for part in key.split(".")]
    if not equals or not all(path):
        raise UserError(f"{source} is not understood, expected key=value such as one_step.steps=100")
    try:
        values = parse_value(value, source)
    except UserError as error:
        raise UserError(
            f"{source} has a value that is no YAML: {str(error).partition('broken YAML: ')[2]}"
        ) from None
    for part in reversed(path):
        values = {part: values}
    return Document(source, values)


def _merged(documents: Sequence[Document], schema: type) -> dict[str, Any]:
    """What all documents say over the defaults, references resolved. Raises ConfigError."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    values: Any = asdict(schema())
    for document in documents:
        values = _over(values, document.values)
    check_keys(schema, values)
    for path in _missing(values):
        raise ConfigError(path, f"{dotted(path)} is missing, please give it a value")
    _check_references(values)
    try:
        return OmegaConf.to_container(OmegaConf.create(values), resolve=True)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        path = tuple(str(getattr(error, "full_key", None) or "").split("."))
        raise ConfigError(path, f"{dotted(path)}: {str(error).splitlines()[0]}".lstrip(": ")) from None
    except RecursionError:
        raise ConfigError((), "a reference ${...} leads back to itself") from None


def _check_references(values: Any) -> None:
    """Raises ConfigError for a reference to something else than a key, or too many."""
    count = 0
    for path, text in _texts(values):
        starts = text.count("${")
        count += starts
        if starts != len(REFERENCE.findall(text)):
            raise ConfigError(
                path,
                f"{dotted(path)} is {shown(text)}: ${{...}} may name a key of this recipe, such as ${{name}}, alone",
            )
    if count > MOST_REFERENCES:
        raise ConfigError((), f"more than {MOST_REFERENCES} references such as ${{name}}")


def _texts(values: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], str]]:
    if isinstance(values, str):
        yield path, values
    elif isinstance(values, (dict, list)):
        for key, value in values.items() if isinstance(values, dict) else enumerate(values):
            yield from _texts(value, (*path, key))


def _over(below: Any, above: Any) -> Any:
    """One value over another: sections are merged, anything else is replaced."""
    if isinstance(below, dict) and isinstance(above, dict):
        return below | {key: _over(below.get(key), value) for key, value in above.items()}
    return above


def _missing(values: Any) -> Iterator[tuple[str | int, ...]]:
    yield from (path for path, text in _texts(values) if text == REQUIRED)


def _place(documents: Sequence[Document], path: tuple[str | int, ...]) -> str | None:
    """The source, and line, that said a key last; of one that none said, of its section."""
    for length in range(len(path), 0, -1):
        for document in reversed(documents):
            if document.has(path[:length]):
                return document.place(path[:length])
    return None
