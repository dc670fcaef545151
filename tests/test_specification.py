import dataclasses
import json

import pytest

from fastac.run import RunError
from fastac.specification import configure, specify


def test_a_specification_is_a_preset_with_options():
    name, config = configure("ppo:sb3-zoo,gamma=0.5,anneal-lr=False,target_kl=0.02,hidden_sizes=8 4", "Acrobot-v1")
    assert name == "ppo"
    assert (config.gae_lambda, config.gamma, config.anneal_lr, config.target_kl) == (0.94, 0.5, False, 0.02)
    assert (config.hidden_sizes, config.env_id) == ((8, 4), "Acrobot-v1")


@pytest.mark.parametrize(
    ("specification", "message"),
    [
        ("pppo", "algorithms: got 'pppo', expected one of .*ppo"),
        ("policy_evaluation", "algorithms: got 'policy_evaluation', expected one of"),
        ("ppo:zoo", "preset: got 'zoo', expected one of cleanrl"),
        ("ppo,colour=red", "got 'colour=red' in 'ppo,colour=red', expected OPTION=VALUE of ppo"),
        ("ppo,gamma", "got 'gamma' in"),
        ("ppo,seed=3", "got 'seed=3' in"),
        ("ppo,gamma=high", "got 'gamma=high' in 'ppo,gamma=high', a value that is not of the option's type"),
        ("ppo,gamma=0.9 0.8", "got 'gamma=0.9 0.8' in"),
    ],
)
def test_specifications_that_cannot_be_are_named(specification, message):
    with pytest.raises(RunError, match=message):
        configure(specification, "CartPole-v1")


@pytest.mark.parametrize(
    "specification",
    ["ppo:cleanrl", "ppo:sb3-zoo,target_kl=0.02,hidden_sizes=8", "trpo:sb3,gamma=0.5", "ppo:sb3,norm_adv=False"],
)
def test_what_is_written_is_read_again(specification):
    name, config = configure(specification, "Acrobot-v1")
    again = specify(name, json.loads(json.dumps(dataclasses.asdict(config))))
    assert again == specification
    assert configure(again, "Acrobot-v1") == (name, config)
