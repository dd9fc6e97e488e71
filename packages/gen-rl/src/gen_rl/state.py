"""All that a run of an SB3 off-policy agent depends on, on disk without pickle: safetensors, .npy, JSON.

What cannot be saved in general is the inside of an environment. A restored run keeps the environments' random numbers
where they are numpy's, and begins new episodes.
"""

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from gen_core.harness import weights
from gen_core.harness.errors import UsageError
from gen_rl.replay import SegmentReplayBuffer

COUNTERS = (
    "num_timesteps", "_n_updates", "_n_calls", "_episode_num", "exploration_rate", "_current_progress_remaining",
    "_without_pairs",
)  # fmt: skip
ROWS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts", "lo", "hi", "returns")
"""Arrays of the buffer with a row a slot."""
PER_ENV = ("start", "sum", "episode")


def last(folder: Path) -> Path | None:
    """The newest whole checkpoint below `folder`."""
    return max((path for path in folder.glob("step-*") if not path.suffix), default=None)


def save(agent: Any, folder: Path) -> None:
    """Write a checkpoint `step-<n>` into `folder`, whole or not at all, then delete the others."""
    final = folder / f"step-{agent.num_timesteps:010d}"
    partial = final.with_suffix(".tmp")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    buffer: SegmentReplayBuffer = agent.replay_buffer
    tensors = {f"policy.{name}": value for name, value in agent.policy.state_dict().items()}
    for number, values in agent.policy.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": value for name, value in values.items()}
    tensors["random"] = torch.get_rng_state()
    if agent.device.type == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state(agent.device)
    weights.write(partial / "tensors.safetensors", tensors)
    for name in (name for name in ROWS if hasattr(buffer, name)):
        np.save(partial / f"{name}.npy", getattr(buffer, name)[: buffer.size()])
    kind, keys, *rest = np.random.get_state()
    state = {
        "counters": {name: getattr(agent, name) for name in COUNTERS},
        "buffer": {"pos": buffer.pos, "full": buffer.full, "steps": buffer.steps}
        | {name: getattr(buffer, name).tolist() for name in PER_ENV},
        "python": random.getstate(),
        "numpy": [kind, np.asarray(keys).tolist(), *rest],
        "generators": [generator.bit_generator.state for generator in _generators(agent)],
    }
    (partial / "state.json").write_text(json.dumps(state))
    partial.replace(final)
    for path in folder.glob("step-*"):
        if path != final:
            shutil.rmtree(path, ignore_errors=True)


def restore(agent: Any, path: Path) -> None:
    """Put a checkpoint into a new agent of the same settings; its environments are reset and begin new episodes."""
    try:
        _restore(agent, path)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise UsageError(f"{path} is damaged or of another run ({error}); remove it to start from step 0") from None


def _restore(agent: Any, path: Path) -> None:
    tensors, state = load_file(path / "tensors.safetensors"), json.loads((path / "state.json").read_text())
    policy = {name.removeprefix("policy."): value for name, value in tensors.items() if name.startswith("policy.")}
    agent.policy.load_state_dict(policy)
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, number, key = name.split(".")
            moments.setdefault(int(number), {})[key] = value
    groups = agent.policy.optimizer.state_dict()["param_groups"]
    agent.policy.optimizer.load_state_dict({"state": moments, "param_groups": groups})
    buffer: SegmentReplayBuffer = agent.replay_buffer
    for name in (name for name in ROWS if hasattr(buffer, name)):
        rows = np.load(path / f"{name}.npy", allow_pickle=False)
        getattr(buffer, name)[: len(rows)] = rows
    for name, value in state["buffer"].items():
        setattr(buffer, name, np.array(value, dtype=getattr(buffer, name).dtype) if name in PER_ENV else value)
    buffer.interrupt()
    for name, value in state["counters"].items():
        setattr(agent, name, value)
    agent.env.seed(agent.seed + agent.num_timesteps)  # for environments whose random numbers are not numpy's
    agent.env.reset()
    for generator, value in zip(_generators(agent), state["generators"], strict=True):
        generator.bit_generator.state = value
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    np.random.set_state(tuple(state["numpy"]))
    torch.set_rng_state(tensors["random"])
    if agent.device.type == "cuda" and "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"], agent.device)


def _generators(agent: Any) -> Iterator[np.random.Generator]:
    """numpy's generators of the pairs, of random actions and of the environments, wrapper by wrapper."""
    yield agent.replay_buffer.generator
    yield agent.action_space.np_random
    for env in agent.env.unwrapped.envs:
        layer = env
        while layer is not None:
            yield from (value for value in vars(layer).values() if isinstance(value, np.random.Generator))
            layer = vars(layer).get("env")
