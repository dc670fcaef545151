"""Environments so small that the right values and actions are known."""

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete


class Probe(gymnasium.Env):
    """Observations of one number in [-1, 1]."""

    observation_space = Box(-1, 1, (1,), np.float32)
    action_space = Discrete(2)
    observation = 0.0

    def seen(self):
        return np.array([self.observation], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.begin()
        return self.seen(), {}

    def begin(self):
        pass


class Constant(Probe):
    """Pays 1 and ends: V = 1."""

    def step(self, action):
        return self.seen(), 1.0, True, False, {}


class Observed(Probe):
    """Pays its observation, 1 or -1, and ends: V(s) = s."""

    def begin(self):
        self.observation = float(self.np_random.choice([-1.0, 1.0]))

    def step(self, action):
        return self.seen(), self.observation, True, False, {}


class Discounted(Probe):
    """Two steps, the second pays 1: V(0) = gamma, V(1) = 1."""

    def begin(self):
        self.observation = 0.0

    def step(self, action):
        if self.observation == 0.0:
            self.observation = 1.0
            return self.seen(), 0.0, False, False, {}
        return self.seen(), 1.0, True, False, {}


class Rewarding(Probe):
    """Pays 1 for action 1 and -1 for action 0."""

    def step(self, action):
        return self.seen(), 1.0 if action == 1 else -1.0, True, False, {}


class Matching(Observed):
    """Pays 1 where the action says the observation's sign, -1 elsewhere."""

    def step(self, action):
        return self.seen(), 1.0 if (action == 1) == (self.observation > 0) else -1.0, True, False, {}


class Endless(Probe):
    """Pays 1 for ever; a time limit that the observation does not show cuts it after ten steps: V = 1 / (1 - gamma)."""

    def begin(self):
        self.steps = 0

    def step(self, action):
        self.steps += 1
        return self.seen(), 1.0, False, self.steps == 10, {}


class Later(Probe):
    """Pays 0, then 1 for ever; cut after three steps: V(0) = gamma / (1 - gamma), V(1) = 1 / (1 - gamma)."""

    def begin(self):
        self.steps, self.observation = 0, 0.0

    def step(self, action):
        reward = self.observation
        self.steps, self.observation = self.steps + 1, 1.0
        return self.seen(), reward, False, self.steps == 3, {}


class Target(Probe):
    """Continuous: pays -(action - 0.5)^2."""

    action_space = Box(-1, 1, (1,), np.float32)

    def step(self, action):
        return self.seen(), -float((action[0] - 0.5) ** 2), True, False, {}


PROBES = (Constant, Observed, Discounted, Rewarding, Matching, Endless, Later, Target)


def register():
    """Registers `probe/<Class>-v0`, without Gymnasium's checker."""
    for probe in PROBES:
        env_id = f"probe/{probe.__name__}-v0"
        if env_id not in gymnasium.registry:
            gymnasium.register(env_id, probe, disable_env_checker=True)
