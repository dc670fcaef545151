"""The door into Stable-Baselines3: faster buffers by one argument, and prioritized replay for DQN, SAC and TD3.

On-policy, for A2C, PPO and whatever takes a `rollout_buffer_class`:

    -model = PPO("MlpPolicy", env)
    +model = PPO("MlpPolicy", env, rollout_buffer_class=fastac.compat.sb3.RolloutBuffer)

Off-policy, for DQN, SAC, TD3, DDPG and whatever takes a `replay_buffer_class`:

    -model = SAC("MlpPolicy", env)
    +model = SAC("MlpPolicy", env, replay_buffer_class=fastac.compat.sb3.ReplayBuffer)

Dict observations take `DictRolloutBuffer` and `DictReplayBuffer`, n-step targets `replay_buffer_kwargs={"n_steps": 3,
"gamma": 0.99}`, hindsight `HerReplayBuffer`. What Stable-Baselines3 has no seam for:

    -model = SAC("MlpPolicy", env)
    +model = prioritized(SAC)("MlpPolicy", env)
"""

from fastac.compat._versions import check_version
from fastac.compat.sb3.learning import PrioritizedDQN, PrioritizedSAC, PrioritizedTD3, prioritized
from fastac.compat.sb3.prioritized import PrioritizedDictReplayBuffer, PrioritizedReplayBuffer, PrioritizedSamples
from fastac.compat.sb3.replay import DictReplayBuffer, HerReplayBuffer, NStepReplayBuffer, ReplayBuffer
from fastac.compat.sb3.rollout import DictRolloutBuffer, RolloutBuffer

__all__ = [
    "DictReplayBuffer",
    "DictRolloutBuffer",
    "HerReplayBuffer",
    "NStepReplayBuffer",
    "PrioritizedDQN",
    "PrioritizedDictReplayBuffer",
    "PrioritizedReplayBuffer",
    "PrioritizedSAC",
    "PrioritizedSamples",
    "PrioritizedTD3",
    "ReplayBuffer",
    "RolloutBuffer",
    "prioritized",
]

check_version("stable_baselines3", tested=("2.7", "2.9"))
