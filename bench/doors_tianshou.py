"""tianshou's PPO on CartPole, with its own returns and with ours."""

import time
from contextlib import nullcontext

from bench import record
from bench.doors_frame import AbsentError, Clock, Round, Row, measure

NUM_ENVS, ROLLOUT, BATCH, EPOCHS, WIDTH = 8, 2048, 64, 10, 64


def train(rollouts: int, *, ours: bool = False, seed: int = 0, rollout: int = ROLLOUT) -> tuple[Round, float]:
    """One run from scratch: its times, and the sum of the absolute weights it ends with.

    Raises:
        AbsentError: tianshou is not installed.
    """
    try:
        from tianshou.algorithm import PPO, Algorithm
    except ImportError as error:
        raise AbsentError(f"tianshou: {error}") from error
    import gymnasium as gym
    import numpy as np
    import torch
    from tianshou.algorithm.modelfree.reinforce import DiscreteActorPolicy
    from tianshou.algorithm.optim import AdamOptimizerFactory
    from tianshou.data import Collector, VectorReplayBuffer
    from tianshou.env import DummyVectorEnv
    from tianshou.trainer import OnPolicyTrainerParams
    from tianshou.utils.net.common import Net
    from tianshou.utils.net.discrete import DiscreteActor, DiscreteCritic

    from fastac.compat.tianshou import returns

    torch.set_num_threads(1)
    np.random.seed(seed)  # noqa: NPY002  (the state tianshou draws from)
    torch.manual_seed(seed)
    envs = DummyVectorEnv([lambda: gym.make("CartPole-v1") for _ in range(NUM_ENVS)])
    envs.seed(seed)
    net = Net(state_shape=(4,), hidden_sizes=[WIDTH, WIDTH])
    actor, critic = DiscreteActor(preprocess_net=net, action_shape=2), DiscreteCritic(preprocess_net=net)
    policy = DiscreteActorPolicy(
        actor=actor, dist_fn=torch.distributions.Categorical, action_space=envs.action_space[0]
    )
    algorithm = PPO(policy=policy, critic=critic, optim=AdamOptimizerFactory(lr=3e-4), gae_lambda=0.95)
    collector = Collector(algorithm, envs, VectorReplayBuffer(rollout, NUM_ENVS))
    params = OnPolicyTrainerParams(
        training_collector=collector,
        max_epochs=1,
        epoch_num_steps=rollouts * rollout,
        collection_step_num_env_steps=rollout,
        update_step_num_repetitions=EPOCHS,
        batch_size=BATCH,
        verbose=False,
        show_progress=False,
    )
    with returns() if ours else nullcontext(), Clock().inside(Algorithm, "compute_episodic_return") as clock:
        start = time.process_time()
        algorithm.run_training(params)
        whole = time.process_time() - start
    weights = sum(float(x.detach().double().abs().sum()) for x in algorithm.parameters())
    return Round(clock.seconds, whole, rollouts), weights


def rows(*, smallest: bool = False) -> list[Row]:
    """PPO's returns and advantages in a whole training step."""
    rollouts, rollout, rounds = (1, 64, 1) if smallest else (2, ROLLOUT, 5)
    row = Row(
        door="tianshou PPO",
        part="`compute_episodic_return`",
        step=f"a rollout of {NUM_ENVS} x {rollout // NUM_ENVS} steps on CartPole and {EPOCHS} epochs",
        versions={"tianshou": record.version("tianshou")},
    )
    return [
        measure(
            row,
            lambda: train(rollouts, rollout=rollout)[0],
            lambda: train(rollouts, ours=True, rollout=rollout)[0],
            rounds,
        )
    ]
