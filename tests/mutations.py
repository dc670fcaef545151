"""Plants defects in a copy of the sources, one at a time, and shows that the tests notice each.

    python -m tests.mutations                 # all of them, a few minutes
    python -m tests.mutations trpo-restore    # by name

A defect is a piece of text that occurs once in a file, and what is put in its place: signs, missing masks, wrong
directions, things forgotten. It counts as caught if tests fail; a copy that cannot even be imported counts as an error,
and so do tests that fail without a defect. The exit code is 0 if all are caught.
"""

import argparse
import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
WITHOUT_TRAINING = "not learn and not improves and not resumed and not limit"


class Mutation(NamedTuple):
    name: str
    path: str
    old: str
    new: str
    tests: str  # pytest's arguments


def quick(algorithm: str) -> str:
    """An algorithm's tests without those that train."""
    return f"tests/algorithms/test_{algorithm}.py -k '{WITHOUT_TRAINING}'"


PPO = f"tests/test_losses.py {quick('ppo')}"
DISTRIBUTIONS = "tests/test_distributions.py"
EXPERIENCE = "tests/test_experience.py"
FUSED_Q = "tests/test_fused_q.py -k float64"
REPLAYED = "tests/algorithms/test_sac.py tests/algorithms/test_td3.py tests/algorithms/test_ddpg.py -k float64"
COLLECTING = "tests/algorithms/test_ppo.py tests/test_collector.py -k 'not learn and not improves and not resumed'"
OFF_POLICY = quick("off_policy")
EXPORT = "tests/test_export.py -k alone"
SIMULATED = "tests/kernels/cuda/test_simulated.py -k estimators"

MUTATIONS = [
    # Distributions
    Mutation(
        "gaussian-log-scale",
        "fastac/distributions.py",
        "0.5 * z.square().sum(-1) - self.log_std.sum(-1) -",
        "0.5 * z.square().sum(-1) -",
        DISTRIBUTIONS,
    ),
    Mutation(
        "kl-direction-categorical",
        "fastac/distributions.py",
        "(p.log_probs.exp() * (p.log_probs - q.log_probs))",
        "(q.log_probs.exp() * (q.log_probs - p.log_probs))",
        DISTRIBUTIONS,
    ),
    Mutation(
        "kl-direction-gaussian",
        "fastac/distributions.py",
        "log_ratio = q.log_std - p.log_std",
        "log_ratio = p.log_std - q.log_std",
        DISTRIBUTIONS,
    ),
    Mutation(
        "frozen-shares-the-deviation",
        "fastac/distributions.py",
        "Gaussian(self.mean.detach().clone(), self.log_std.detach().clone())",
        "Gaussian(self.mean.detach().clone(), self.log_std.detach())",
        quick("importance_weighted"),
    ),
    # REINFORCE
    Mutation(
        "reinforce-sign",
        "fastac/algorithms/reinforce.py",
        "return -(distribution",
        "return (distribution",
        quick("reinforce"),
    ),
    Mutation(
        "reinforce-own-steps-in-the-baseline",
        "fastac/algorithms/reinforce.py",
        "return (sums.sum() - sums) / (lengths.sum() - lengths)",
        "return sums.sum().expand_as(sums) / lengths.sum()",
        quick("reinforce"),
    ),
    Mutation(
        "reinforce-discount-from-the-batchs-start",
        "fastac/algorithms/reinforce.py",
        "t = torch.arange(steps, device=psi.device) - first.repeat_interleave(lengths, output_size=steps)",
        "t = torch.arange(steps, device=psi.device)",
        quick("reinforce"),
    ),
    Mutation(
        "reinforce-fillers-among-the-rows",
        "fastac/algorithms/reinforce.py",
        ".T[buffer.mask.T]\n        last",
        ".T.ravel()\n        last",
        quick("reinforce"),
    ),
    # Actor-critic
    Mutation(
        "actor-critic-sign",
        "fastac/losses.py",
        "return -(log_probs * advantages).mean()",
        "return (log_probs * advantages).mean()",
        quick("actor_critic"),
    ),
    Mutation(
        "actor-critic-fitted-values-not-used",
        "fastac/algorithms/actor_critic.py",
        "    if config.critic_steps:\n        # V",
        "    if not config.critic_steps:\n        # V",
        quick("actor_critic"),
    ),
    Mutation(
        "actor-critic-kernel-sign",
        "kernels/fastac_kernels/heads.py",
        "        return -advantage\n",
        "        return advantage\n",
        "tests/test_fused.py -k one_by_one",
    ),
    Mutation(
        "actor-critic-labels-not-renewed",
        "fastac/algorithms/actor_critic.py",
        "        for _ in range(config.critic_steps):\n            y = targets(self.evaluate(), config)",
        "        fixed = self.evaluate()\n"
        "        for _ in range(config.critic_steps):\n            y = targets(fixed, config)",
        quick("actor_critic"),
    ),
    # Importance weights
    Mutation(
        "weights-of-the-wrong-kind",
        "fastac/algorithms/importance_weighted.py",
        'cumulative = importance_weights == "per_decision"',
        'cumulative = importance_weights == "per_step"',
        quick("importance_weighted"),
    ),
    Mutation(
        "weights-cross-an-episodes-end",
        "fastac/algorithms/importance_weighted.py",
        "weights = importance_ratio(log_probs, old_log_probs, terminated, truncated, mask,",
        "weights = importance_ratio(log_probs, old_log_probs, terminated, None, mask,",
        quick("importance_weighted"),
    ),
    Mutation(
        "penalty-sign",
        "fastac/algorithms/importance_weighted.py",
        "total = total + kl_coef * masked_mean",
        "total = total - kl_coef * masked_mean",
        quick("importance_weighted"),
    ),
    Mutation(
        "penalty-direction",
        "fastac/algorithms/importance_weighted.py",
        "kl = kl_divergence(distribution, type(distribution)(*batch.old)).view_as(log_probs)\n            total",
        "kl = kl_divergence(type(distribution)(*batch.old), distribution).view_as(log_probs)\n            total",
        quick("importance_weighted"),
    ),
    Mutation(
        "too-far-not-undone",
        "fastac/algorithms/importance_weighted.py",
        "            parameter.copy_(start)\n",
        "            start.copy_(parameter)\n",
        quick("importance_weighted"),
    ),
    Mutation(
        "mean-over-fillers",
        "fastac/algorithms/importance_weighted.py",
        "return torch.where(mask, x, 0.0).sum() / mask.sum()",
        "return torch.where(mask, x, 0.0).mean()",
        quick("importance_weighted"),
    ),
    # TRPO
    Mutation(
        "trpo-restore",
        "fastac/algorithms/trpo.py",
        "            else:\n                set_parameters(parameters, old_parameters)\n",
        "            else:\n",
        quick("trpo"),
    ),
    Mutation(
        "trpo-accepts-a-loss",
        "fastac/algorithms/trpo.py",
        "return bool(gained > 0.0 and moved < target_kl)",
        "return bool(moved < target_kl)",
        quick("trpo"),
    ),
    Mutation(
        "trpo-step-length", "fastac/algorithms/trpo.py", "torch.sqrt(2.0 * config", "torch.sqrt(config", quick("trpo")
    ),
    Mutation("trpo-undamped", "fastac/algorithms/trpo.py", " + damping * vector", "", quick("trpo")),
    Mutation(
        "trpo-kl-direction",
        "fastac/algorithms/trpo.py",
        "kl = kl_divergence(old, distribution).mean()",
        "kl = kl_divergence(distribution, old).mean()",
        quick("trpo"),
    ),
    # PPO
    Mutation("ppo-optimist", "fastac/losses.py", "objective = torch.minimum(", "objective = torch.maximum(", PPO),
    Mutation(
        "ppo-value-optimist",
        "fastac/losses.py",
        "squared_error = torch.maximum(",
        "squared_error = torch.minimum(",
        PPO,
    ),
    Mutation("ppo-entropy-sign", "fastac/losses.py", "- ent_coef * entropy\n", "+ ent_coef * entropy\n", PPO),
    Mutation(
        "ppo-kernel-log-scale",
        "kernels/fastac_kernels/heads.py",
        "constant = np.float32(log_scale + count * LOG_SQRT_2PI)",
        "constant = np.float32(count * LOG_SQRT_2PI)",
        "tests/test_losses.py",
    ),
    Mutation(
        "fused-gradients-given-twice",
        "fastac/fused.py",
        "gradients, ctx.gradients = ctx.gradients, None",
        "gradients = ctx.gradients",
        "tests/test_fused.py",
    ),
    Mutation(
        "fused-critic-without-its-share",
        "kernels/fastac_kernels/fused.py",
        "of_critic = of_actor + unit * actor_hidden",
        "of_critic = of_actor",
        "tests/test_fused.py -k one_by_one",
    ),
    # The rollout
    Mutation(
        "clipped-action-stored",
        "fastac/collector.py",
        "                observations, actions, step.rewards,",
        "                observations, policy.environment_actions(actions).reshape(actions.shape), step.rewards,",
        COLLECTING,
    ),
    Mutation(
        "final-observation-not-normalised",
        "fastac/collector.py",
        "                final_observations = policy.observe(final_observations)\n",
        "",
        COLLECTING,
    ),
    Mutation(
        "stored-with-newer-statistics",
        "fastac/collector.py",
        "                observations, actions, step.rewards,",
        "                policy.observe(self.raw_observations), actions, step.rewards,",
        COLLECTING,
    ),
    Mutation(
        "a-time-limit-is-an-end",
        "fastac/buffers/rollout.py",
        "            next_values[cut] = values[rows + self.num_envs :]",
        "            next_values[cut] = 0.0",
        "tests/buffers/test_rollout.py",
    ),
    Mutation(
        "bootstrap-at-termination",
        "fastac/buffers/rollout.py",
        "fields = (rewards, values[:rows], next_values, terminated, truncated, mask)",
        "fields = (rewards, values[:rows], next_values, terminated & False, truncated | terminated, mask)",
        "tests/buffers/test_rollout.py",
    ),
    Mutation(
        "bootstrap-one-row-early",
        "fastac/buffers/rollout.py",
        "next_values = values[self.num_envs : self.num_envs + rows].clone()",
        "next_values = values[:rows].clone()",
        "tests/buffers/test_rollout.py",
    ),
    Mutation(
        "rewards-scaled-with-fillers",
        "fastac/collector.py",
        "self.reward_normalizer(buffer.rewards[rows], over, buffer.mask[rows])",
        "self.reward_normalizer(buffer.rewards[rows], over)",
        COLLECTING,
    ),
    # Off-policy
    Mutation(
        "tanh-without-its-slope",
        "fastac/tanh_gaussian.py",
        "return torch.tanh(u), (of_normal - log_slope_of_tanh(u)).sum(-1)",
        "return torch.tanh(u), of_normal.sum(-1)",
        DISTRIBUTIONS,
    ),
    Mutation(
        "tanh-slope-that-underflows",
        "fastac/tanh_gaussian.py",
        "return 2.0 * (LOG_2 - u - softplus(-2.0 * u))",
        "return torch.log(1.0 - torch.tanh(u).square())",
        DISTRIBUTIONS,
    ),
    Mutation(
        "sac-entropy-sign-in-the-target",
        "fastac/q_losses.py",
        "next_values = next_values - alpha * log_probs",
        "next_values = next_values + alpha * log_probs",
        REPLAYED,
    ),
    Mutation(
        "sac-policy-of-one-q",
        "fastac/fused_q.py",
        "policy_loss(alpha, log_probs, q(observations, actions))",
        "policy_loss(alpha, log_probs, q(observations, actions)[:1])",
        REPLAYED,
    ),
    Mutation(
        "fused-target-without-its-entropys-sign",
        "kernels/fastac_kernels/q_losses.py",
        "value = value - temperature * log_prob[i]",
        "value = value + temperature * log_prob[i]",
        FUSED_Q,
    ),
    Mutation(
        "fused-gradient-of-one-critic",
        "kernels/fastac_kernels/fused_q.py",
        "into[r, c] += handed[r, inputs + c]",
        "into[r, c] = handed[r, inputs + c]",
        FUSED_Q,
    ),
    Mutation(
        "sac-temperature-direction",
        "fastac/algorithms/sac.py",
        "return log_alpha * (entropy - target_entropy)",
        "return log_alpha * (target_entropy - entropy)",
        REPLAYED,
    ),
    Mutation(
        "q-of-one-target",
        "fastac/q_losses.py",
        "        least = torch.minimum(least, other)\n",
        "        pass\n",
        REPLAYED,
    ),
    Mutation(
        "bootstrap-at-an-end",
        "fastac/q_losses.py",
        "torch.where(terminated, 0.0, next_values)",
        "next_values",
        REPLAYED,
    ),
    Mutation(
        "td3-noise-unclipped",
        "fastac/algorithms/td3.py",
        "(policy_noise * noise).clamp(-noise_clip, noise_clip)",
        "policy_noise * noise",
        REPLAYED,
    ),
    Mutation(
        "td3-target-actor-left-behind",
        "fastac/algorithms/td3.py",
        "            self.target_actor.follow()\n",
        "",
        REPLAYED,
    ),
    Mutation(
        "target-follows-at-once",
        "fastac/q_functions.py",
        "self._theirs, self.tau)",
        "self._theirs, 1.0)",
        REPLAYED,
    ),
    Mutation(
        "next-observation-after-the-reset",
        "fastac/experience.py",
        "            following[ended] = step.final_observations\n",
        "            pass\n",
        EXPERIENCE,
    ),
    Mutation(
        "time-limit-stored-as-an-end",
        "fastac/experience.py",
        "            step.terminated,\n            step.truncated,\n",
        "            step.terminated | step.truncated,\n            step.truncated,\n",
        EXPERIENCE,
    ),
    Mutation(
        "scaled-actions-stored",
        "fastac/experience.py",
        "            actions,\n            step.rewards,",
        "            self.policy.environment_actions(actions),\n            step.rewards,",
        EXPERIENCE,
    ),
    Mutation(
        "replay-not-resumed",
        "fastac/experience.py",
        "self.replay = rebuild(kind,",
        "rebuild(kind,",
        EXPERIENCE,
    ),
    # Off-policy, and what is exported
    Mutation(
        "off-policy-score-sign",
        "fastac/algorithms/off_policy.py",
        "return -(log_probs * weights.detach()).mean()",
        "return (log_probs * weights.detach()).mean()",
        OFF_POLICY,
    ),
    Mutation(
        "off-policy-own-baseline",
        "fastac/algorithms/off_policy.py",
        "* (count / (count - 1))",
        "* 1.0",
        OFF_POLICY,
    ),
    Mutation(
        "off-policy-truncation-is-an-end",
        "fastac/algorithms/off_policy.py",
        "torch.where(batch.terminated, 0.0, next_values)",
        "torch.where(batch.terminated | batch.truncated, 0.0, next_values)",
        "tests/algorithms/test_off_policy.py -k 'limit and probe'",
    ),
    Mutation(
        "off-policy-next-action-of-the-buffer",
        "fastac/algorithms/off_policy.py",
        "            actions = self.actor(observations).sample(noise.next_actions)\n",
        "            actions = batch.actions[None]\n",
        OFF_POLICY,
    ),
    Mutation(
        "off-policy-draws-in-the-graph",
        "fastac/algorithms/off_policy.py",
        "            actions = self.actor(observations).sample(noise.next_actions)\n",
        "            actions = self.actor(observations).sample(self.noise(1, len(observations)))\n",
        "tests/test_graphs.py -k 'a11 and off_policy'",
    ),
    Mutation(
        "off-policy-graphs-outlive-a-state",
        "fastac/algorithms/off_policy.py",
        "        graphs.reset(self.learn)\n",
        "",
        "tests/test_graphs.py -k 'loading and off_policy'",
    ),
    Mutation(
        "a2c-reads-back",
        "fastac/algorithms/actor_critic.py",
        "        explained = 1.0 - (batch",
        "        float(total)\n        explained = 1.0 - (batch",
        "tests/test_graphs.py -k 'a11 and actor_critic'",
    ),
    Mutation(
        "off-policy-target-in-the-policy-loss",
        "fastac/algorithms/off_policy.py",
        "q_values = self.q_values(self.critic, observations, actions)\n        return score",
        "q_values = self.q_values(self.target.network, observations, actions)\n        return score",
        OFF_POLICY,
    ),
    Mutation(
        "export-without-statistics",
        "fastac/export.py",
        "(observations - self.mean) / self.deviation",
        "observations / self.deviation",
        EXPORT,
    ),
    Mutation(
        "export-unscaled",
        "fastac/export.py",
        "* (0.5 * (high - low))",
        "* (high - low)",
        EXPORT,
    ),
    # CUDA kernels
    Mutation(
        "cuda-cut-composed-over",
        "kernels/fastac_kernels/cuda/scan.py",
        "if later_kind == 0 or kind & CUT != 0:",
        "if later_kind == 0:",
        SIMULATED,
    ),
    Mutation(
        "cuda-masked-row-in-time",
        "kernels/fastac_kernels/cuda/scan.py",
        "if not inside or valid == 0:",
        "if not inside:",
        SIMULATED,
    ),
    Mutation(
        "cuda-chunks-in-the-wrong-order",
        "kernels/fastac_kernels/cuda/scan.py",
        "for other in range(chunks - 1, chunk, -1):",
        "for other in range(chunk + 1, chunks):",
        SIMULATED,
    ),
    Mutation(
        "cuda-doubling-skips-a-thread",
        "kernels/fastac_kernels/cuda/scan.py",
        "distance *= 2",
        "distance += 2",
        SIMULATED,
    ),
    Mutation(
        "cuda-last-row-takes-the-carry",
        "kernels/fastac_kernels/cuda/returns.py",
        "result += gamma * (x if behind and not truncated else next_value)",
        "result += gamma * (x if not truncated else next_value)",
        SIMULATED,
    ),
    Mutation(
        "cuda-vtrace-takes-the-next-value-for-the-next-target",
        "kernels/fastac_kernels/cuda/vtrace.py",
        "decay * (later_value + x)",
        "decay * (following + x)",
        SIMULATED,
    ),
    Mutation(
        "cuda-loss-over-masked-elements",
        "kernels/fastac_kernels/cuda/ratio.py",
        "scale = -one / real(max(count, 1))",
        "scale = -one / real(total)",
        "tests/kernels/cuda/test_simulated.py -k ratio",
    ),
    Mutation(
        "cuda-float64-in-a-float32-kernel",
        "kernels/fastac_kernels/cuda/ratio.py",
        "return half * x * x * tail",
        "return 0.5 * x * x * tail",
        "tests/kernels/cuda/test_ptx.py -k 'ppo_clip_loss-float32'",
    ),
    Mutation(
        "cuda-default-stream",
        "kernels/fastac_kernels/cuda/scan.py",
        "launch.driver(kernel, grid, block, stream, device, arguments)",
        "launch.driver(kernel, grid, block, 0, device, arguments)",
        "tests/kernels/cuda/test_launch.py",
    ),
    Mutation(
        "cuda-target-over-a-cut",
        "kernels/fastac_kernels/cuda/ring.py",
        "while taken < n and cut[8 * words * last] == 0 and",
        "while taken < n and",
        "tests/kernels/cuda/test_simulated.py -k ring",
    ),
    Mutation(
        "cuda-negated-memory-taken-as-it-is",
        "fastac/_torch_cuda.py",
        "or next_values.is_neg() or not rewards.is_contiguous()",
        "or not rewards.is_contiguous()",
        "tests/test_torch_cuda.py",
    ),
]


def planted(mutation: Mutation, source: str) -> str:
    """The source with the defect; ValueError where its place is not found exactly once."""
    found = source.count(mutation.old)
    if found != 1:
        raise ValueError(f"{mutation.name}: its text occurs {found} times in {mutation.path}, expected once")
    return source.replace(mutation.old, mutation.new)


@contextlib.contextmanager
def copied() -> Iterator[Path]:
    """A folder with what tests need, but for the kernels: those are compiled, and cached, where they are."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("fastac", "tests", "bench"):
            copy_folder(name, copy)
        shutil.copy(ROOT / "pyproject.toml", copy)
        yield copy


def copy_folder(name: str, to: Path) -> None:
    shutil.copytree(ROOT / name, to / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))


def run_tests(copy: Path, arguments: str) -> tuple[int, str]:
    """Pytest's exit code, and the first test that failed or the last line of what it said."""
    paths = [str(copy), str(copy / "kernels" if (copy / "kernels").exists() else ROOT / "kernels")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *shlex.split(arguments)]
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    failed = re.search(r"^FAILED \S+::(\S+)", done.stdout, flags=re.MULTILINE)
    lines = (done.stdout + done.stderr).strip().splitlines()
    return done.returncode, failed[1] if failed else lines[-1] if lines else "nothing was said"


def check(copy: Path, mutation: Mutation) -> tuple[bool, str]:
    """Whether the defect is caught, and by which test."""
    kernels = mutation.path.startswith("kernels/")
    if kernels:
        copy_folder("kernels", copy)
    path = copy / mutation.path
    source = path.read_text(encoding="utf-8")
    path.write_text(planted(mutation, source), encoding="utf-8")
    try:
        code, said = run_tests(copy, mutation.tests)
    finally:
        path.write_text(source, encoding="utf-8")
        if kernels:
            shutil.rmtree(copy / "kernels")
    # 1 is pytest's code for failed tests; 2 and above are errors of its own, or of an import.
    return code == 1, said if code == 1 else "not noticed" if code == 0 else f"error: {said}"


def main(names: list[str]) -> int:
    known = {mutation.name: mutation for mutation in MUTATIONS}
    unknown = [name for name in names if name not in known]
    if unknown:
        sys.stderr.write(f"tests.mutations: got {', '.join(unknown)}, expected some of {', '.join(known)}\n")
        return 2
    chosen = [known[name] for name in names] or MUTATIONS
    missed = 0
    with copied() as copy:
        for tests in dict.fromkeys(mutation.tests for mutation in chosen):
            code, said = run_tests(copy, tests)
            if code != 0:
                sys.stderr.write(f"tests.mutations: without a defect, {tests}: {said}\n")
                return 2
        for mutation in chosen:
            caught, said = check(copy, mutation)
            missed += not caught
            sys.stdout.write(f"{'caught' if caught else 'MISSED'}  {mutation.name:40}  {said}\n")
            sys.stdout.flush()
    sys.stdout.write(f"{len(chosen) - missed} of {len(chosen)} defects caught\n")
    return 1 if missed else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=__doc__)
    parser.add_argument("names", nargs="*", help="defects; all by default")
    sys.exit(main(parser.parse_args().names))
