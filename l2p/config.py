"""The validator of everything a user configures: dataclasses whose fields carry their ranges, checked by pydantic.

`@config` makes such a dataclass, the aliases below are the kinds of its fields, and :func:`validate` turns the first
mistake into one line that names the key. Recipes, objectives, the specs in a ``config.json`` and options of the command
line all pass through it.

Numbers are finite and bounded. A boolean is no number, an unknown key is refused with the nearest known one.
"""

from __future__ import annotations

import difflib
import math
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import lru_cache, wraps
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
)
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic_core import PydanticKnownError
from typing_extensions import dataclass_transform

from l2p.errors import UserError
from l2p.keys import mask

T = TypeVar("T")
RULES = ConfigDict(extra="forbid", allow_inf_nan=False, coerce_numbers_to_str=True)
SHOWN = 60  # characters of a wrong value that an error shows
LOOKED_AT = 1000  # of which it is made; more, since masking a key shortens a text


@dataclass_transform(field_specifiers=(Field,))
def config(cls: type[T]) -> type[T]:
    """A dataclass that validates its fields, when it is made in Python, too: then a mistake is a ConfigError."""
    made: Any = pydantic_dataclass(cls, config=RULES)
    init = made.__init__

    @wraps(init)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            init(self, *args, **kwargs)
        except ValidationError as error:
            raise first_mistake(error, made) from None

    made.__init__ = __init__
    return made


def _no_bool(kind: Literal["int_type", "float_type"]) -> BeforeValidator:
    def check(value: Any) -> Any:
        if isinstance(value, bool):
            raise PydanticKnownError(kind)
        return value

    return BeforeValidator(check)


Int = Annotated[int, _no_bool("int_type")]
Float = Annotated[float, _no_bool("float_type")]
Count = Annotated[Int, Field(ge=1, le=10**9)]  # of pictures, prompts, ...
CountOrZero = Annotated[Int, Field(ge=0, le=10**9)]
Steps = Annotated[Int, Field(ge=1, le=10**7)]  # of an optimiser
SamplingSteps = Annotated[Int, Field(ge=1, le=1000)]
BatchSize = Annotated[Int, Field(ge=1, le=65536)]
Seed = Annotated[Int, Field(ge=0, le=2**53)]  # JSON keeps whole numbers exactly up to here
Threads = Annotated[Int, Field(ge=1, le=4096)]
Pixels = Annotated[Int, Field(ge=8, le=65536)]  # a side of a picture
Blocks = Annotated[Int, Field(ge=0, le=1000)]  # layers
Width = Annotated[Int, Field(ge=1, le=65536)]  # channels
Side = Annotated[Int, Field(ge=1, le=1000)]  # of a patch or a tile
Number = Annotated[Float, Field(ge=-1e6, le=1e6)]
Weight = Annotated[Float, Field(ge=0, le=1e6)]  # of a term of a loss
Positive = Annotated[Float, Field(gt=0, le=1e6)]
Fraction = Annotated[Float, Field(ge=0, le=1)]
PositiveFraction = Annotated[Float, Field(gt=0, le=1)]  # a share, or a time at which there is noise
GuidanceScale = Annotated[Float, Field(ge=0, le=1000)]
LearningRate = Annotated[Float, Field(ge=0, le=100)]
TimeShift = Annotated[Float, Field(gt=0, le=100)]  # of sampled times towards the noise
Logit = Annotated[Float, Field(ge=-20, le=20)]  # mean of the logits of sampled times
LogitDeviation = Annotated[Float, Field(ge=0, le=20)]
CriticUpdates = Annotated[Int, Field(ge=1, le=100)]  # before each step of the student
CellSides = Annotated[list[Annotated[Int, Field(ge=1, le=1000)]], Field(min_length=1, max_length=64)]
PictureSize = Annotated[
    list[Annotated[Int, Field(ge=8, le=65536, multiple_of=8)]], Field(min_length=2, max_length=2)
]  # height and width in pixels
DTypeName = Literal["auto", "bf16", "fp16", "fp32"]
Text = Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^[^\x00]*$")]  # names and paths

PerceptualTerms = (
    Text | Annotated[dict[Text, Weight], Field(min_length=1, max_length=16)]
)  # networks, weights


def _is_inverse(value: float) -> float:
    if abs(1 / value - round(1 / value)) > 0.02:
        raise ValueError("expected 1, 0.5, 0.33, 0.25 and so on")
    return value


FeatureScale = Annotated[Float, Field(ge=0.01, le=1), AfterValidator(_is_inverse)]


class Sections(NamedTuple):
    """Marks a field of mappings whose keys are known elsewhere; ``of`` returns the model that validates them."""

    of: Callable[[], Any]


class ConfigError(UserError):
    """What is wrong with a value: ``key`` (dotted) and a message that names it."""

    def __init__(self, path: Sequence[str | int], message: str) -> None:
        super().__init__(message)
        self.path = tuple(path)


@lru_cache(maxsize=256)
def adapter(cls: type) -> TypeAdapter[Any]:
    """The pydantic validator of a class; it raises pydantic's own errors."""
    return TypeAdapter(cls)


def validate(schema: Any, value: Any, name: str = "") -> Any:
    """The value as ``schema``, a class made by :func:`config` or any annotated type.

    Args:
        name: dotted key of the value, with which the messages start.

    Raises:
        ConfigError: the first mistake, unknown keys before others, in one line.
    """
    validator = adapter(schema) if _is_section(schema) else TypeAdapter(schema, config=RULES)
    try:
        return validator.validate_python(value)
    except ValidationError as error:
        raise first_mistake(error, schema, name) from None


def first_mistake(error: ValidationError, schema: Any, name: str = "") -> ConfigError:
    """The mistake of a failed validation that is worth a line: an unknown key, or else the first."""
    found = sorted(error.errors(include_url=False), key=lambda e: not _is_unknown(e))[0]
    path, parent, node = [name] if name else [], schema, schema
    for part in found["loc"]:
        below = _below(node, part)
        if below is None and not _is_unknown(found):
            continue  # pydantic names the branch of a union, too
        path.append(part)
        parent, node = node, below
    return ConfigError(path, _message(found, path, parent, node))


def _is_unknown(found: Any) -> bool:
    return found["type"] in ("unexpected_keyword_argument", "extra_forbidden")


def _message(found: Any, path: Sequence[str | int], parent: Any, node: Any) -> str:
    key = dotted(path) or "the value"
    if _is_unknown(found):
        return _unknown(path, list(_keys(parent)))
    if found["type"] in ("missing", "missing_argument"):
        return f"{key} is missing, please give it a value"
    if found["type"] == "value_error":
        error = found["ctx"]["error"]
        text = " ".join(str(error).split())
        if isinstance(error, UserError):
            return text
        return (
            f"{key} is {shown(found['input'])}, {text}" if text.startswith("expected") else f"{key}: {text}"
        )
    return (
        f"{key} is {shown(found['input'])}, expected {_expected(found['type'], found.get('ctx') or {}, node)}"
    )


# Keys of recipes and student configs that were written before they had the field's names -> the names of today.
RENAMED_KEYS = {"latest_time": "max_timestep", "noise_in_span": "project_noise"}


def _unknown(path: Sequence[str | int], known: Sequence[str]) -> str:
    if (now := RENAMED_KEYS.get(str(path[-1]))) in known:
        return f"unknown key {dotted(path)}: it is called {dotted([*path[:-1], now])} now"
    near = difflib.get_close_matches(str(path[-1])[:LOOKED_AT], known, n=1, cutoff=0.5)
    hint = f"did you mean {dotted([*path[:-1], near[0]])}?" if near else f"expected one of {', '.join(known)}"
    return f"unknown key {shown_text(dotted(path))}: {hint}"


def check_keys(schema: Any, values: Any, path: tuple[str | int, ...] = ()) -> None:
    """Refuse a key that ``schema`` does not have, before values are known. Raises ConfigError."""
    known = list(_keys(schema))
    for key, value in values.items() if isinstance(values, dict) else ():
        below = _below(schema, key)
        if known and key not in known:
            raise ConfigError((*path, key), _unknown((*path, key), known))
        if below is not None:
            check_keys(below, value, (*path, key))


def dotted(path: Iterable[str | int]) -> str:
    """A key as people write it: ``student.head.width``, ``rows[2]``."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def shown(value: Any) -> str:
    """A value in an error's line: short, printable. Of a large one only what may be shown is looked at."""
    try:
        text = repr(_beginning(value, [LOOKED_AT]))
    except ValueError:  # an integer of more digits than Python prints
        text = "a number of thousands of digits"
    return shown_text(text)


def _beginning(value: Any, room: list[int]) -> Any:
    """The first ``room[0]`` characters or so of texts, lists and mappings, each item for two at least."""
    if isinstance(value, (str, bytes)):
        value = value[: max(0, room[0])]
        room[0] -= len(value)
    elif isinstance(value, (list, tuple, dict)):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        kept = []
        for key, item in pairs:
            if room[0] <= 0:
                break
            room[0] -= 2
            kept.append((_beginning(key, room), _beginning(item, room)))
        if isinstance(value, dict):
            return dict(kept)
        return [item for _, item in kept] if isinstance(value, list) else tuple(item for _, item in kept)
    return value


def shown_text(text: str) -> str:
    """Text in an error's line: cut, and without what a terminal would take as a command."""
    text = mask("".join(c if c.isprintable() else "?" for c in text[: 2 * LOOKED_AT]))
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def _expected(kind: str, context: Mapping[str, Any], node: Any) -> str:
    if kind in ("greater_than_equal", "greater_than", "less_than_equal", "less_than"):
        return _range(node) or f"{kind.replace('_', ' ')} {next(iter(context.values()))}"
    if kind == "literal_error":
        return context["expected"].replace("'", "")
    if kind.startswith(("dataclass", "model", "dict", "mapping")):
        keys = list(_keys(node))
        return (
            f"a section with the keys {', '.join(keys)}" if keys else "a section such as {name: {weight: 1}}"
        )
    if kind in ("too_short", "string_too_short"):
        return "at least one item" if kind == "too_short" else "some text"
    if kind in ("too_long", "string_too_long"):
        return f"at most {context['max_length']} {'items' if kind == 'too_long' else 'characters'}"
    words = {
        "int": "a whole number",
        "float": "a finite number",
        "finite": "a finite number",
        "bool": "true or false",
        "string": "text",
        "list": "a list",
        "tuple": "a list",
        "none": "null",
        "multiple": f"a multiple of {context.get('multiple_of')}",
    }
    return words.get(kind.split("_")[0], kind.replace("_", " "))


def _range(node: Any) -> str:
    limits: dict[str, Any] = {}
    for item in _metadata(node):
        for constraint in getattr(item, "metadata", [item]):
            limits |= {n: getattr(constraint, n) for n in ("ge", "gt", "le", "lt") if hasattr(constraint, n)}
    low = limits.get("ge", limits.get("gt"))
    high = limits.get("le", limits.get("lt"))
    if low is None or high is None:
        return ""
    if high >= 10**9:
        return f"at least {_short(low)}"
    if "gt" in limits:
        return f"above {_short(low)} and at most {_short(high)}"
    return f"{_short(low)} to {_short(high)}"


def _short(number: float) -> str:
    return str(int(number)) if float(number).is_integer() and not math.isinf(number) else str(number)


def _metadata(node: Any) -> tuple[Any, ...]:
    if get_origin(node) is Annotated:
        return (*_metadata(get_args(node)[0]), *node.__metadata__)
    if get_origin(node) in (Union, types.UnionType):
        return next((found for a in get_args(node) if (found := _metadata(a))), ())
    return ()


def _plain(node: Any) -> Any:
    """A type without its annotations, and without the None of an optional."""
    if get_origin(node) is Annotated:
        return _plain(get_args(node)[0])
    if get_origin(node) in (Union, types.UnionType):
        kinds = [_plain(kind) for kind in get_args(node) if kind is not type(None)]
        return next((kind for kind in kinds if _is_section(kind)), kinds[0] if kinds else node)
    return node


def _is_section(kind: Any) -> bool:
    return is_dataclass(kind) or (isinstance(kind, type) and issubclass(kind, BaseModel))


@lru_cache(maxsize=256)
def _hints(cls: type) -> dict[str, Any]:
    if issubclass(cls, BaseModel):
        return {
            name: Annotated[(info.annotation, *info.metadata)] if info.metadata else info.annotation
            for name, info in cls.model_fields.items()
        }
    hints = get_type_hints(cls, include_extras=True)
    return {item.name: hints[item.name] for item in fields(cls)}


def _keys(node: Any) -> Iterable[str]:
    marked = next((item for item in _metadata(node) if isinstance(item, Sections)), None)
    kind = marked.of() if marked else _plain(node)
    return _hints(kind) if _is_section(kind) else ()


def _below(node: Any, part: str | int) -> Any:
    """The type of a key or an item of a type; None where it has none of that name."""
    marked = next((item for item in _metadata(node) if isinstance(item, Sections)), None)
    kind = marked.of() if marked else _plain(node)
    if _is_section(kind):
        return _hints(kind).get(part) if isinstance(part, str) else None
    arguments = get_args(kind)
    if get_origin(kind) is dict and len(arguments) == 2:
        return arguments[1]
    if get_origin(kind) in (list, tuple) and isinstance(part, int) and arguments:
        return arguments[0]
    return None
