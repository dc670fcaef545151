"""A trained policy: observations in, environment actions out, with the normalisation it was trained with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from fastac import checkpoint
from fastac.acting import ArrayActor
from fastac.images import image_of
from fastac.networks import ACTORS, Activation, AnyActor, TanhActor, TanhGaussianActor
from fastac.normalize import ObservationNormalizer

CHECKPOINT = "checkpoint.pt"
IN_UNIT_BOX = (TanhGaussianActor, TanhActor)


class Policy:
    """An actor with everything between it and an environment.

    Args:
        actor: As `make_actor`, or another of `fastac.networks.ACTORS`, builds it from the same spaces, sizes and
            activation.
        observation_space: Flat Box, or an image.
        action_space: Discrete or Box. Raw actions are shifted by a Discrete's start; those of a Gaussian are clipped to
            a Box's bounds, and those in [-1, 1] of a tanh are scaled to them: low + (a + 1) (high - low) / 2.
        hidden_sizes: Widths of the actor's hidden layers.
        activation: Between them.
        observation_normalizer: Applied before the actor, if there is one; acting never updates it.
        seed: Of the own generator that `act(..., deterministic=False)` draws from.

    Example:
        >>> from fastac.networks import make_actor
        >>> spaces = gymnasium.spaces.Box(-1, 1, (3,)), gymnasium.spaces.Discrete(2)
        >>> policy = Policy(make_actor(*spaces), *spaces)
        >>> policy.act(np.zeros((5, 3))).shape, policy.act(np.zeros(3)).shape
        ((5,), ())
    """

    def __init__(
        self,
        actor: AnyActor,
        observation_space: gymnasium.spaces.Box,
        action_space: gymnasium.spaces.Discrete | gymnasium.spaces.Box,
        *,
        hidden_sizes: tuple[int, ...] = (64, 64),
        activation: Activation = "tanh",
        observation_normalizer: ObservationNormalizer | None = None,
        seed: int = 0,
    ):
        self.actor = actor
        self.observation_space = observation_space
        self.action_space = action_space
        self.observation_normalizer = observation_normalizer
        self._architecture = {"hidden_sizes": list(hidden_sizes), "activation": activation}
        self._is_image = image_of(observation_space) is not None
        if self._is_image and observation_normalizer is not None:
            raise ValueError(
                "observation_normalizer: got one for images, expected None: the network divides them by 255"
            )
        self._acting = ArrayActor(actor)
        self._generator = torch.Generator().manual_seed(seed)

    def act(self, observations: ArrayLike, deterministic: bool = True) -> NDArray[Any]:
        """Returns actions as the environment takes them.

        Args:
            observations: One observation `(D,)` or a batch `(B, D)`, as the environment gives them.
            deterministic: The most probable action (the mean of a Gaussian), or else a draw.

        Returns:
            An action of the space's shape, or a batch of them.

        Raises:
            ValueError: observations of another shape.
        """
        batch = np.asarray(observations)
        shape = self.observation_space.shape
        single = batch.shape == shape
        if not single and batch.shape[1:] != shape:
            raise ValueError(f"observations: got shape {batch.shape}, expected {shape} or (B, *{shape})")
        seen = self.observe(batch[None] if single else batch)
        if deterministic:
            raw = self._acting.mode(seen)
        else:
            raw = self._acting.sample(seen, self._acting.noise((len(seen),), self._generator))
        actions = self.environment_actions(raw)
        result: NDArray[Any] = actions[0] if single else actions
        return result

    def observe(self, observations: NDArray[Any]) -> NDArray[Any]:
        """Returns what the actor sees of a batch of observations: float32, normalised if training was; images uint8."""
        if self._is_image:
            return observations.astype(np.uint8, copy=False)
        if self.observation_normalizer is not None:
            return self.observation_normalizer(observations)
        return observations.astype(np.float32)

    def environment_actions(self, raw: NDArray[Any]) -> NDArray[Any]:
        """Returns a batch of raw actions as the environment takes them: its own copy, clipped, scaled or shifted."""
        space = self.action_space
        if isinstance(space, gymnasium.spaces.Discrete):
            return raw + space.start if space.start else raw.copy()
        if isinstance(self.actor, IN_UNIT_BOX):
            half = (0.5 * (space.high.astype(np.float64) - space.low)).reshape(-1)
            raw = space.low.reshape(-1) + (raw.reshape(len(raw), -1) + 1.0) * half
        # A fifth of what `np.clip` takes.
        clipped: NDArray[Any] = np.minimum(np.maximum(raw.reshape(-1, *space.shape), space.low), space.high)
        return clipped.astype(space.dtype, copy=False)

    def state_dict(self) -> dict[str, Any]:
        """Returns plain containers and tensors from which `from_state_dict` builds the policy again."""
        normalizer = self.observation_normalizer
        return {
            "observation_space": _space_to_dict(self.observation_space),
            "action_space": _space_to_dict(self.action_space),
            **self._architecture,
            "kind": self.actor.kind,
            "actor": self.actor.state_dict(),
            "observation_normalizer": None if normalizer is None else normalizer.state_dict(),
            "generator": self._generator.get_state(),
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any], device: torch.device | str = "cpu") -> Policy:
        """Builds the policy that `state_dict` described."""
        observation_space = _space_from_dict(state["observation_space"])
        action_space = _space_from_dict(state["action_space"])
        assert isinstance(observation_space, gymnasium.spaces.Box)
        hidden_sizes = tuple(state["hidden_sizes"])
        activation: Activation = state["activation"]
        make = ACTORS[state.get("kind", "gaussian")]
        actor = make(observation_space, action_space, hidden_sizes=hidden_sizes, activation=activation)
        actor.load_state_dict(state["actor"])
        normalizer = None
        if state["observation_normalizer"] is not None:
            normalizer = ObservationNormalizer(observation_space.shape)
            normalizer.load_state_dict(state["observation_normalizer"])
        policy = cls(
            actor.to(device),
            observation_space,
            action_space,
            hidden_sizes=hidden_sizes,
            activation=activation,
            observation_normalizer=normalizer,
        )
        policy._generator.set_state(state["generator"])
        return policy


def load(run: str | Path, device: torch.device | str = "cpu") -> Policy:
    """Loads the policy of a run.

    Args:
        run: A run folder, or a checkpoint file.
        device: Where its actor goes.

    Returns:
        The policy as it was saved last; `policy.act(observations)` gives actions as the environment takes them.

    Raises:
        fastac.checkpoint.CheckpointError: missing, damaged, foreign or of a newer version.

    Example:
        >>> import tempfile
        >>> from fastac.algorithms import ppo
        >>> run = Path(tempfile.mkdtemp())
        >>> result = ppo.train(ppo.Config(env_id="CartPole-v1", total_timesteps=256, num_steps=64), run_dir=run)
        >>> load(run).act(np.zeros((2, 4))).shape
        (2,)
    """
    path = Path(run)
    state = checkpoint.load(path / CHECKPOINT if path.is_dir() else path)
    if "policy" not in state:
        raise checkpoint.CheckpointError(f"{path}: no policy in this checkpoint")
    policy: dict[str, Any] = state["policy"]
    return Policy.from_state_dict(policy, device)


def _space_to_dict(space: gymnasium.spaces.Discrete | gymnasium.spaces.Box) -> dict[str, Any]:
    if isinstance(space, gymnasium.spaces.Discrete):
        return {"kind": "discrete", "n": int(space.n), "start": int(space.start)}
    return {"kind": "box", "low": space.low.copy(), "high": space.high.copy(), "dtype": str(space.dtype)}


def _space_from_dict(state: dict[str, Any]) -> gymnasium.spaces.Discrete | gymnasium.spaces.Box:
    if state["kind"] == "discrete":
        return gymnasium.spaces.Discrete(state["n"], start=state["start"])
    dtype = np.dtype(state["dtype"])
    low, high = np.asarray(state["low"], dtype), np.asarray(state["high"], dtype)
    return gymnasium.spaces.Box(low, high, low.shape, dtype.type)
