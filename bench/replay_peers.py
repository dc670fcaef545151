"""Replay buffers of other libraries, each called as its users call it, with data in the kind and layout it asks for.

Each function fills a buffer and gives its calls. What is prepared beforehand (batches, tensors, device arrays, info
dicts) is not timed, and neither is filling: some are filled through their own arrays, which is said there. Random seeds
change from call to call, since a repeated draw would be answered from the cache.
"""

from collections.abc import Callable

from bench.replay_array_peers import sb3, tianshou
from bench.replay_calls import Calls
from bench.replay_cases import Setting
from bench.replay_compiled_peers import cpprb, rlox
from bench.replay_tensor_peers import flashbax, torchrl

PEERS: dict[str, tuple[str, Callable[[Setting], Calls]]] = {
    "cpprb": ("cpprb", cpprb),
    "rlox": ("rlox", rlox),
    "sb3": ("stable_baselines3", sb3),
    "tianshou": ("tianshou", tianshou),
    "torchrl": ("torchrl", torchrl),
    "flashbax": ("flashbax", flashbax),
}
