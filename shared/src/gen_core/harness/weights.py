"""A model on disk: `model.safetensors` and `config.toml`, written whole or not at all, read without pickle."""

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
    spec: Mapping[str, Any] = model.spec or {}
    runs.update_header(folder, type(model), given=model.given, config=model.config.model_dump(), spec=dict(spec))
    write(folder / runs.WEIGHTS, model.state_dict())


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
    header = runs.header_of(folder, cls)
    if missing := sorted(set(header.get("given", ())) - set(given)):
        raise UsageError(f"{folder} was trained with your own {missing}; give it again: load(..., {missing[0]}=module)")
    model = cls(configs.parse(cls.Config, header.get("config", {}), str(folder / runs.CONFIG)), **given)
    model.prepare(header.get("spec", {}))
    restore(model, folder)
    return model


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
