"""TorchRL's PPO on CartPole, with its own GAE and with ours: the parts and sizes of its own PPO script.

`GAE` loops over the rows unless `vectorized=True`, which that script says, asks for the other function.
"""

import time
from contextlib import nullcontext
from functools import partial
from typing import Any

from bench import record
from bench.doors_frame import AbsentError, Clock, Round, Row, measure

ROLLOUT, BATCH, EPOCHS, WIDTH = 2048, 64, 10, 64
FUNCTIONS = "generalized_advantage_estimate", "vec_generalized_advantage_estimate"


def train(
    rollouts: int, *, ours: bool = False, vectorized: bool = True, seed: int = 0, rollout: int = ROLLOUT
) -> tuple[Round, float]:
    """One run from scratch: its times, and the sum of the absolute weights it ends with.

    Raises:
        AbsentError: TorchRL is not installed.
    """
    try:
        from torchrl.objectives.value import advantages
    except ImportError as error:
        raise AbsentError(f"TorchRL: {error}: pip install torchrl") from error
    import torch
    from torchrl.collectors import Collector
    from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
    from torchrl.data.replay_buffers.samplers import SamplerWithoutReplacement
    from torchrl.envs import GymEnv
    from torchrl.objectives import ClipPPOLoss

    from fastac.compat.torchrl import returns

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    env = GymEnv("CartPole-v1", categorical_action_encoding=True)
    env.set_seed(seed)
    actor, critic = networks()
    collector = Collector(
        env, actor, frames_per_batch=rollout, total_frames=rollouts * rollout, auto_register_policy_transforms=False
    )
    sampler, storage = SamplerWithoutReplacement(), LazyTensorStorage(rollout)
    minibatches = TensorDictReplayBuffer(storage=storage, sampler=sampler, batch_size=min(BATCH, rollout))
    gae = advantages.GAE(gamma=0.99, lmbda=0.95, value_network=critic, vectorized=vectorized)
    loss = ClipPPOLoss(actor, critic, clip_epsilon=0.2, normalize_advantage=True)
    optimizer = torch.optim.Adam(loss.parameters(), lr=3e-4, eps=1e-5)
    with returns() if ours else nullcontext(), Clock().inside(advantages, FUNCTIONS[vectorized]) as clock:
        start = time.process_time()
        for data in collector:
            for _ in range(EPOCHS):
                with torch.no_grad():
                    gae(data)
                minibatches.extend(data.reshape(-1))
                for minibatch in minibatches:
                    terms = loss(minibatch)
                    optimizer.zero_grad()
                    (terms["loss_objective"] + terms["loss_entropy"] + terms["loss_critic"]).backward()
                    optimizer.step()
        whole = time.process_time() - start
    collector.shutdown()
    weights = sum(float(x.detach().double().abs().sum()) for x in (*actor.parameters(), *critic.parameters()))
    return Round(clock.seconds, whole, rollouts), weights


def networks() -> tuple[Any, Any]:
    """The actor and the critic, of `WIDTH` x `WIDTH` units each."""
    import torch
    from tensordict.nn import TensorDictModule
    from torchrl.modules import MLP, ProbabilisticActor, ValueOperator

    def mlp(outputs: int) -> Any:
        return MLP(in_features=4, out_features=outputs, num_cells=[WIDTH, WIDTH], activation_class=torch.nn.Tanh)

    logits = TensorDictModule(mlp(2), in_keys=["observation"], out_keys=["logits"])
    distribution = torch.distributions.Categorical
    actor = ProbabilisticActor(logits, in_keys=["logits"], distribution_class=distribution, return_log_prob=True)
    return actor, ValueOperator(mlp(1), in_keys=["observation"])


def rows(*, smallest: bool = False) -> list[Row]:
    """PPO's advantages in a whole training step, the loop's and the vectorized ones."""
    rollouts, rollout, rounds = (1, 64, 1) if smallest else (2, ROLLOUT, 5)
    found = []
    for vectorized, name in enumerate(FUNCTIONS):
        row = Row(
            door="TorchRL PPO",
            part=f"`GAE(vectorized={bool(vectorized)})`: `{name}`, once an epoch",
            step="the same" if found else f"a rollout of {rollout} steps on CartPole and {EPOCHS} epochs",
            versions={name: record.version(name) for name in ("torchrl", "tensordict")},
        )
        own, ours = (
            partial(run, rollouts, ours=ours, vectorized=bool(vectorized), rollout=rollout) for ours in (False, True)
        )
        found.append(measure(row, own, ours, rounds))
    return found


def run(rollouts: int, **options: Any) -> Round:
    return train(rollouts, **options)[0]
