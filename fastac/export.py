"""A trained policy as one file of `torch.export`: observations as the environment gives them in, its actions out.

Whoever runs it needs torch and nothing of ours:

    policy = torch.export.load("policy.pt2").module()
    actions = policy(torch.from_numpy(observations))  # (B, *observation) -> (B, *action)
"""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor, nn

from fastac.networks import TanhActor, TanhGaussianActor
from fastac.normalize import EPSILON
from fastac.policy import Policy
from fastac.run import RunError, versions

__all__ = ["METADATA", "PolicyModule", "export"]

METADATA = "fastac.json"
"""The name of the file's own description: pass it to `torch.export.load` in `extra_files`."""


class PolicyModule(nn.Module):
    """`Policy.act` without noise as a module on the CPU, from tensors to tensors.

        observations  -> (x - mean) / sqrt(var + 1e-8), clipped, where the training normalised them (in float64)
                      -> network
        actions       <- argmax + start                                     discrete
                      <- mean, clipped to the bounds                        Gaussian
                      <- low + (tanh(mean) + 1) (high - low) / 2            tanh

    Args:
        policy: Its parameters are copied.

    Example:
        >>> from fastac.networks import make_actor
        >>> spaces = Box(-1, 1, (3,)), Discrete(2, start=5)
        >>> policy = Policy(make_actor(*spaces), *spaces)
        >>> bool((PolicyModule(policy)(torch.ones(4, 3)).numpy() == policy.act(np.ones((4, 3)))).all())
        True
    """

    low: Tensor
    high: Tensor
    mean: Tensor
    deviation: Tensor

    def __init__(self, policy: Policy):
        super().__init__()
        # What requires no gradient gives results that require none.
        self.network = copy.deepcopy(policy.actor.network).cpu().requires_grad_(False)
        space, normalizer = policy.action_space, policy.observation_normalizer
        self.is_image = policy._is_image
        self.takes_tanh = isinstance(policy.actor, TanhActor | TanhGaussianActor)
        self.gives_log_std = isinstance(policy.actor, TanhGaussianActor)
        self.start = int(space.start) if isinstance(space, Discrete) else None
        self.clip = None if normalizer is None else normalizer.clip
        if normalizer is not None:
            self.register_buffer("mean", torch.tensor(normalizer.moments.mean, dtype=torch.float64))
            deviation = np.sqrt(normalizer.moments.var + EPSILON)
            self.register_buffer("deviation", torch.tensor(deviation, dtype=torch.float64))
        if isinstance(space, Box):
            self.shape = space.shape
            self.register_buffer("low", torch.from_numpy(space.low.copy()))
            self.register_buffer("high", torch.from_numpy(space.high.copy()))

    def forward(self, observations: Tensor) -> Tensor:
        """Maps observations `(B, *observation)` to actions `(B, *action)`, as the environment gives and takes them."""
        if not self.is_image:
            if self.clip is not None:
                observations = (observations - self.mean) / self.deviation
                observations = observations.clamp(-self.clip, self.clip)
            observations = observations.to(torch.float32)
        outputs: Tensor = self.network(observations)
        if self.start is not None:
            return outputs.argmax(-1) + self.start
        if self.gives_log_std:
            outputs = outputs.chunk(2, dim=-1)[0]
        if self.takes_tanh:
            low, high = self.low.double(), self.high.double()
            actions = low + (torch.tanh(outputs).view(-1, *self.shape) + 1.0) * (0.5 * (high - low))
        else:
            actions = outputs.view(-1, *self.shape)
        return actions.clamp(self.low, self.high).to(self.low.dtype)


def export(policy: Policy, path: str | Path, *, overwrite: bool = False, **metadata: Any) -> None:
    """Writes a policy's most probable action, with all that lies between it and the environment, for torch alone.

    Any number of observations can be passed; they have the dtype of the environment's. The file also holds `METADATA`,
    JSON: the two spaces, versions, and what else is given.

    Args:
        policy: What `fastac.load` or a training returned.
        path: The file, `.pt2`; its folder must exist.
        overwrite: Replace a file that is there.
        metadata: More to say in the file, for JSON.

    Raises:
        fastac.run.RunError: the file exists, is called something else, or cannot be written.

    Example:
        >>> import tempfile
        >>> from fastac.networks import make_actor
        >>> spaces = Box(-1, 1, (3,)), Box(-2, 2, (1,))
        >>> path = Path(tempfile.mkdtemp()) / "policy.pt2"
        >>> export(Policy(make_actor(*spaces), *spaces), path)
        >>> torch.export.load(path).module()(torch.zeros(5, 3)).shape
        torch.Size([5, 1])
    """
    path = Path(path)
    if path.suffix != ".pt2":
        raise RunError(f"{path}: expected a name that ends in .pt2, as torch.export's files do")
    if path.is_dir():
        raise RunError(f"{path}: is a folder")
    if path.exists() and not overwrite:
        raise RunError(f"{path}: exists; --overwrite replaces it")
    if not path.parent.is_dir():
        raise RunError(f"{path}: its folder does not exist")
    space = policy.observation_space
    # Neither 0 nor 1, which torch would take for the only size.
    example = torch.from_numpy(np.stack([np.nan_to_num(space.low, posinf=0.0, neginf=0.0)] * 2))
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(PolicyModule(policy).eval(), (example,), dynamic_shapes=({0: batch},))
    description = {
        "observations": {"shape": list(space.shape), "dtype": str(space.dtype)},
        "actions": str(policy.action_space),
        "versions": versions(),
        **metadata,
    }
    # A file is there whole, or not at all.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.pt2")
    try:
        try:
            torch.export.save(program, temporary, extra_files={METADATA: json.dumps(description)})
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:
        raise RunError(f"{path}: cannot write ({str(error).splitlines()[0]})") from error
