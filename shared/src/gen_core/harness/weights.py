"""A model on disk: `model.safetensors` and `config.toml`, written whole or not at all, read without pickle."""

import contextlib
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import safetensors
import safetensors.torch
from torch import Tensor, nn

from gen_core.harness import config as configs
from gen_core.harness import runs
from gen_core.harness.errors import UsageError

if TYPE_CHECKING:
    from gen_core.harness.method import Method

M = TypeVar("M", bound="Method")


def save(model: "Method", folder: Path) -> None:
    """Write a model; a killed save leaves the old file."""
    runs.update_header(folder, type(model), **_header(model))
    write(folder / runs.WEIGHTS, model.state_dict())


def _header(model: "Method") -> dict[str, Any]:
    """What a model is rebuilt from; a given part that is a method is described, any other only named."""
    from gen_core.harness.method import Method

    methods = {name: part for name in model.given if isinstance(part := getattr(model, name), Method)}
    described = {name: {"class": runs.class_path(type(part))} | _header(part) for name, part in methods.items()}
    return {
        "given": [name for name in model.given if name not in methods],
        "parts": described,
        "config": model.config.model_dump(),
        "spec": dict(model.spec or {}),
    }


def write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a `.safetensors` file by a rename at the end; on a full disk `OSError` as from any other write."""
    temporary = path.with_name(path.name + ".tmp")
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    try:
        safetensors.torch.save_file(plain, temporary)  # pyright: ignore[reportUnknownMemberType]
    except safetensors.SafetensorError as error:  # its form of a full disk
        raise OSError(f"{temporary}: {error}") from None
    temporary.replace(path)


def load(cls: type[M], folder: Path, given: Mapping[str, nn.Module]) -> M:
    """Rebuild a saved model; every way in which the folder can be wrong is a `UsageError` that says which."""
    model = _built(cls, runs.header_of(folder, cls), folder, given)
    restore(model, folder)
    return model


def _built(cls: type[M], header: Mapping[str, Any], folder: Path, given: Mapping[str, nn.Module]) -> M:
    """A model with the networks of a saved one, whose weights are still to come."""
    if missing := sorted(set(header.get("given", ())) - set(given)):
        raise UsageError(f"{folder} was trained with your own {missing}; give it again: load(..., {missing[0]}=module)")
    inner = {name: part for name, part in header.get("parts", {}).items() if name not in given}
    made = {name: _built(_class(cls, part["class"], folder), part, folder, {}) for name, part in inner.items()}
    model = cls(configs.parse(cls.Config, header.get("config", {}), str(folder / runs.CONFIG)), **made, **given)
    model.prepare(header.get("spec", {}))
    return model


def _class(owner: type["Method"], path: str, folder: Path) -> type["Method"]:
    """The class of a part, of the owner's own package alone: a run folder must not say what is imported."""
    from gen_core.harness.method import Method

    module, _, name = path.partition(":")
    home = owner.__module__.partition(".")[0]
    if module.partition(".")[0] == home:
        with contextlib.suppress(ImportError, AttributeError):
            found = getattr(importlib.import_module(module), name)
            if isinstance(found, type) and issubclass(found, Method):
                return found
    raise UsageError(f"{folder} was trained with a part of class {path}, which is none of {home}; give it to load(...)")


def unfinished(folder: Path) -> UsageError:
    """The error to raise where a run folder has no model yet."""
    return UsageError(f"{folder} has no {runs.WEIGHTS}: its training did not end; go on with train --resume")


def restore(model: nn.Module, folder: Path) -> None:
    """Put the saved weights into a model that was built like the saved one."""
    path = folder / runs.WEIGHTS
    try:
        model.load_state_dict(safetensors.torch.load_file(path))  # pyright: ignore[reportUnknownMemberType]
    except FileNotFoundError:
        raise unfinished(folder) from None
    except (safetensors.SafetensorError, RuntimeError, OSError) as error:
        raise UsageError(f"{path} is damaged or belongs to another model: {error}") from None
