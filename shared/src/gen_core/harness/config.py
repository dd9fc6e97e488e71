"""Hyper-parameters: one frozen pydantic model a method, checked the same way from Python, TOML and the command line."""

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import pydantic
import tomlkit

from gen_core.harness.errors import UsageError, nearest


class Config(pydantic.BaseModel):
    """Base of every method's `Config`: frozen, unknown keys refused, each field documented by the string below it."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


C = TypeVar("C", bound=pydantic.BaseModel)


def parse(model: type[C], values: Mapping[str, Any], source: str) -> C:
    """`model(**values)`, with every complaint in one `UsageError` that names source, key, value and what is allowed."""
    try:
        return model.model_validate(dict(values))
    except pydantic.ValidationError as error:
        raise UsageError("\n".join(complaints(model, error, source))) from None


def complaints(model: type[pydantic.BaseModel], error: pydantic.ValidationError, source: str) -> Iterator[str]:
    """pydantic's complaints as lines that a user can act on."""
    for item in error.errors(include_url=False):
        key = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden" and len(item["loc"]) == 1:
            yield f"{source}: {nearest(key, model.model_fields, 'key')}"
        elif item["type"] == "missing":
            yield f"{source}: {key} is missing"
        else:
            yield f"{source}: {key} = {item['input']!r}: {item['msg']}"


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as plain dicts; `UsageError` names the file and, for bad syntax, the line."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not readable ({error})") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: not valid TOML: {error}") from None


def write_toml(path: Path, values: Mapping[str, Any]) -> None:
    """Write `values` as TOML; TOML has no null, so keys whose value is None are left out."""
    path.write_text(tomlkit.dumps(_without_none(values)), encoding="utf-8")


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_none(cast(Mapping[str, Any], value)) if isinstance(value, Mapping) else value
        for key, value in values.items()
        if value is not None
    }
