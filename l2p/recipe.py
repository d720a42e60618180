"""What a recipe may say, and reading one: YAML over dataclasses, `key=value` overrides, mistakes explained in one line.

Every knob is explained where people choose it: in `recipes/quickstart.yaml` and `recipes/z-image-turbo-1k.yaml`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from l2p.errors import UserError
from l2p.shipped_recipes import find_recipe

REQUIRED = "???"  # OmegaConf's sign for a value that has no default
T = TypeVar("T")


def knob(default: Any, low: float | None = None, high: float | None = None) -> Any:
    """A dataclass field with a range; both ends belong to it."""
    return field(default=default, metadata={"low": low, "high": high})


@dataclass
class TeacherConfig:
    path: str = "landscapes"
    revision: str | None = None
    num_inference_steps: int = knob(20, low=1)
    guidance_scale: float = knob(1.0, low=0)
    height: int = knob(128, low=8)
    width: int = knob(128, low=8)


@dataclass
class LLMConfig:
    """A language model behind an OpenAI-compatible endpoint that writes each prompt of the source anew."""

    base_url: str = REQUIRED
    model: str = REQUIRED
    key_env: str = "OPENAI_API_KEY"
    instruction: str | None = None
    temperature: float = knob(1.0, low=0, high=2)
    prompts_per_request: int = knob(10, low=1)
    parallel: int = knob(4, low=1)
    timeout: float = knob(120.0, low=1)


@dataclass
class PromptFilters:
    min_words: int = knob(3, low=1)
    max_words: int = knob(150, low=1)
    language: str | None = None
    near_duplicates: float = knob(0.8, low=0.1, high=1.0)
    blocked_terms: list[str] = field(default_factory=list)
    blocked_file: str | None = None


@dataclass
class QualityConfig:
    """A scorer of the user's own; pictures below `min_score` are left out."""

    scorer: str = REQUIRED
    min_score: float = 0.0
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class CorpusConfig:
    num_pairs: int = knob(2500, low=2)
    prompts: str = "landscapes"
    num_prompts: int | None = knob(None, low=1)
    llm: LLMConfig | None = None
    filters: PromptFilters | None = None
    quality: QualityConfig | None = None
    num_inference_steps: int = knob(10, low=1)
    solver: Literal["teacher", "adams"] = "teacher"
    batch_size: int = knob(25, low=1)
    shard_size: int = knob(500, low=1)
    image_format: Literal["png", "webp"] = "png"
    latents: bool = True
    trajectory_points: int = knob(0, low=0)
    noise_generator: Literal["philox", "mt19937"] = "philox"
    path: str | None = None


@dataclass
class LiftConfig:
    num_images: int = knob(256, low=1)
    scale: Literal["procrustes", "energy"] = "procrustes"
    min_r2: float = knob(0.2, low=-1, high=1)


@dataclass
class TrainBlocks:
    """Main blocks of the core that train: the first and the last so many."""

    first: int = knob(0, low=0)
    last: int = knob(0, low=0)


@dataclass
class HeadConfig:
    kind: Literal["patch", "linear", "unet"] = "patch"
    fine_patch: int = knob(4, low=1)
    width: int = knob(96, low=1)
    num_blocks: int = knob(3, low=0)
    head_dim: int = knob(32, low=1)
    tile: int = knob(8, low=1)
    halo: int = knob(4, low=0)
    pretrained: str | None = None


@dataclass
class LoRAConfig:
    """Adapters on the core's linear layers, which themselves are frozen; targets are the ends of their names."""

    rank: int = knob(16, low=1, high=65536)
    alpha: float = knob(16.0, low=0)
    targets: list[str] = field(default_factory=lambda: ["to_q", "to_k", "to_v", "to_out.0", "w1", "w2", "w3"])


@dataclass
class StudentConfig:
    patch_size: int = knob(16, low=1)
    num_steps: int = knob(1, low=1)
    latest_time: float = knob(1.0, low=0.5, high=1.0)
    noise_in_span: bool = False
    interval: bool = False
    random_core: bool = False
    core: Literal["tiny", "base", "large"] | None = None
    train_blocks: Any = (
        "all"  # "all", "none" or TrainBlocks: OmegaConf has no such union, so __post_init__ checks it
    )
    gradient_checkpointing: bool = False
    lora: LoRAConfig | None = None
    head: HeadConfig = field(default_factory=HeadConfig)

    def __post_init__(self) -> None:
        if isinstance(self.train_blocks, Mapping):
            known, blocks = {"first", "last"}, dict(self.train_blocks)
            if (
                not blocks
                or blocks.keys() - known
                or not all(type(n) is int and n >= 0 for n in blocks.values())
            ):
                raise UserError(
                    f"student.train_blocks is {blocks}, expected all, none or {{first: 5, last: 5}}"
                )
            self.train_blocks = TrainBlocks(**blocks)
        elif self.train_blocks not in ("all", "none") and not isinstance(self.train_blocks, TrainBlocks):
            raise UserError(
                f"student.train_blocks is {self.train_blocks!r}, expected all, none or {{first: 5, last: 5}}"
            )
        if self.core is not None and (self.lora is not None or self.train_blocks != "all"):
            raise UserError(
                f"student.core is {self.core}, which starts with random weights: all of it must train, so set "
                "student.train_blocks=all and student.lora=null"
            )
        if self.lora is not None and self.train_blocks not in ("all", "none"):
            raise UserError("student.lora freezes the whole core: leave student.train_blocks at all or none")


@dataclass
class StageConfig:
    enabled: bool = True
    steps: int = knob(100, low=1)
    batch_size: int = knob(32, low=1)
    accumulate: int = knob(1, low=1)
    learning_rate: float = knob(1e-3, low=0)
    warmup_steps: int = knob(20, low=0)
    weight_decay: float = knob(0.0, low=0)
    gradient_clip: float = knob(1.0, low=0)
    ema_decay: float = knob(0.99, low=0, high=0.99999)
    optimizer: Literal["muon", "adamw"] = "muon"
    checkpoint_every: int = knob(100, low=1)
    preview_every: int = knob(200, low=1)
    objectives: dict[str, dict[str, Any]] = field(default_factory=dict)


def _transfer() -> StageConfig:
    return StageConfig(enabled=False, steps=400, objectives={"flow": {"weight": 1.0}})


def _one_step() -> StageConfig:
    return StageConfig(steps=600, objectives={"pairs": {"weight": 1.0}})


def _match() -> StageConfig:
    return StageConfig(steps=60, objectives={"pairs": {"weight": 1.0}, "drift": {"weight": 1.0}})


@dataclass
class EvaluationConfig:
    num_images: int = knob(256, low=2)
    batch_size: int = knob(32, low=1)
    seed: int = knob(10_000, low=0)
    prompts: str | None = None
    preview_images: int = knob(8, low=1)
    cache: str | None = None
    latency_runs: int = knob(5, low=1)
    clip: str | None = None
    peak_memory: bool = True


@dataclass
class ParallelConfig:
    """How several processes share the training; see docs/scale.md. One process reads none of it."""

    strategy: Literal["ddp", "fsdp"] = "ddp"
    teacher: Literal["whole", "sharded", "offloaded"] = "whole"
    timeout_minutes: float = knob(30.0, low=0.1)


@dataclass
class LoggingConfig:
    tensorboard: bool = False
    wandb: bool = False
    wandb_project: str = "l2p"


@dataclass
class Recipe:
    """Everything `l2p distill` needs to know."""

    name: str = REQUIRED
    output_dir: str = "runs/${name}"
    seed: int = knob(0, low=0)
    device: str = "auto"
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    threads: int | None = knob(None, low=1)
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
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    config = OmegaConf.structured(schema)
    sources = _layers(find_recipe(str(path))) + [
        (f"override {o!r}", "", _parse_override(o)) for o in overrides
    ]
    for source, text, parsed in sources:
        try:
            problem = _misplaced(OmegaConf.to_container(parsed, resolve=False), schema)
            if problem is None:
                config = OmegaConf.merge(config, parsed)
                continue
            key, message = problem
        except OmegaConfBaseException as error:
            key, message = error.full_key, _explain(error)
        line = _line_of(text, key) if text and key else None
        raise UserError(f"{source}{f':{line}' if line else ''}: {message}")
    try:
        recipe = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise UserError(f"{path}: {_explain(error)}") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    for key, value, low, high in _ranges(recipe):
        if value is not None and not ((low is None or value >= low) and (high is None or value <= high)):
            wanted = f"at least {low}" if high is None else f"{low} to {high}"
            raise UserError(f"{path}: {key} is {value}, expected {wanted}")
    return recipe


def _layers(path: Path, above: tuple[Path, ...] = ()) -> list[tuple[str, str, Any]]:
    """Name, text and content of the recipe that this one extends, of the one that that extends, ..., and of this one."""
    if path.resolve() in above:
        raise UserError(f"{path} extends itself by way of {above[-1]}")
    text = _read(path)
    parsed = _parse(path, text)
    base = parsed.pop("extends", None)
    if base is None:
        return [(str(path), text, parsed)]
    if not isinstance(base, str):
        raise UserError(
            f"{path}: extends is {base!r}, expected the path of a recipe such as z-image-turbo-1k.yaml"
        )
    return [*_layers(path.parent / base, (*above, path.resolve())), (str(path), text, parsed)]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1)
        hint = f"; did you mean {path.with_name(near[0])}?" if near else ""
        raise UserError(f"recipe {path} does not exist{hint}") from None
    except IsADirectoryError:
        raise UserError(f"recipe {path} is a folder, expected a YAML file") from None
    except UnicodeDecodeError:
        raise UserError(f"recipe {path} is not a text file") from None


def _parse(path: str | Path, text: str) -> Any:
    import yaml
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        parsed = OmegaConf.create(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise UserError(
            f"{path}:{mark.line + 1 if mark else 1}: broken YAML: {error.problem or error.context}"
        ) from None
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{path}: broken YAML: {' '.join(str(error).split())}") from None
    if not isinstance(parsed, DictConfig):
        raise UserError(f"{path} holds a list, expected keys and values such as 'name: my-run'")
    if not parsed:
        raise UserError(f"{path} is empty, expected keys and values such as 'name: my-run'")
    return parsed


def _parse_override(override: str) -> Any:
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    key, equals, _ = override.partition("=")
    if not equals or not all(part.strip() for part in key.split(".")):
        raise UserError(
            f"override {override!r} is not understood, expected key=value such as one_step.steps=100"
        )
    try:
        return OmegaConf.from_dotlist([override])
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        reason = " ".join(str(getattr(error, "problem", None) or error).split())
        raise UserError(f"override {override!r} has a value that is no YAML: {reason}") from None


def _misplaced(values: Any, schema: type, prefix: str = "") -> tuple[str, str] | None:
    """The first key that `schema` does not have, or section that is no section: (key, message)."""
    hints = get_type_hints(schema)
    for key, value in values.items():
        full = f"{prefix}{key}"
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1, cutoff=0.5)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"expected one of {', '.join(hints)}"
            return full, f"unknown key {full}: {hint}"
        section = next((kind for kind in (hints[key], *get_args(hints[key])) if is_dataclass(kind)), None)
        if value is None and type(None) in get_args(hints[key]):
            continue
        if section and get_origin(hints[key]) is dict and isinstance(value, Mapping):
            problems = (
                _misplaced(v, section, f"{full}.{k}.") for k, v in value.items() if isinstance(v, Mapping)
            )
            problem = next((problem for problem in problems if problem), None)
            if problem:
                return problem
        elif section:
            if not isinstance(value, Mapping):
                names = ", ".join(get_type_hints(section))
                return full, f"{full} is {value!r}, expected a section with the keys {names}"
            problem = _misplaced(value, section, f"{full}.")
            if problem:
                return problem
        elif get_origin(hints[key]) is dict and not isinstance(value, Mapping):
            return full, f"{full} is {value!r}, expected a section such as {{name: {{weight: 1}}}}"
    return None


def _line_of(text: str, key: str) -> int | None:
    """Line of a dotted key in YAML text, counted from 1."""
    import yaml

    node, line = yaml.compose(text, Loader=yaml.SafeLoader), None
    for part in key.split("."):
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        found = next(((name, value) for name, value in pairs if name.value == part), None)
        if found is None:
            break
        line, node = found[0].start_mark.line + 1, found[1]
    return line


def _explain(error: Any) -> str:
    message = str(error).split("\n")[0]
    if "missing mandatory value" in message or message.startswith("Missing mandatory value"):
        return f"{error.full_key} is missing, please give it a value"
    return f"{error.full_key}: {message}" if error.full_key else message


def _ranges(config: Any, prefix: str = "") -> list[tuple[str, Any, float | None, float | None]]:
    found = []
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value):
            found += _ranges(value, f"{prefix}{item.name}.")
        elif item.metadata.keys() >= {"low", "high"}:
            found.append((f"{prefix}{item.name}", value, item.metadata["low"], item.metadata["high"]))
    return found
