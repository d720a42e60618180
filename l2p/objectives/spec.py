"""The options of all objectives as one pydantic model, made from the annotated arguments of their constructors."""

from __future__ import annotations

import inspect
from functools import lru_cache
from typing import Any, get_type_hints

from pydantic import BaseModel, Field, create_model

from l2p.config import RULES


def objective_specs() -> type[BaseModel]:
    """A model with a field for each objective, which holds that one's options."""
    from l2p.objectives import OBJECTIVES

    return _specs(tuple(OBJECTIVES.items()))


@lru_cache(maxsize=8)
def _specs(objectives: tuple[tuple[str, type], ...]) -> type[BaseModel]:
    fields: Any = {name: (_spec(cls), Field(default=None)) for name, cls in objectives}
    return create_model("Objectives", __config__=RULES, **fields)


def _spec(cls: type) -> type[BaseModel]:
    options: Any = options_of(cls)
    return create_model(cls.__name__, __config__=RULES, **options)


def options_of(cls: type) -> dict[str, tuple[Any, Any]]:
    """Annotated type and default of every option: of the arguments of the constructor that have a default."""
    hints = get_type_hints(cls.__init__, localns={"Teacher": object, "Lift": object}, include_extras=True)
    parameters = inspect.signature(cls.__init__).parameters.values()
    return {
        p.name: (hints[p.name], p.default) for p in parameters if p.default is not inspect.Parameter.empty
    }
