"""Weights of our networks as arrays, for references written in numpy."""


def layers(network):
    """Copies of the weights and biases of an MLP's linear layers."""
    return [(m.weight.detach().numpy().copy(), m.bias.detach().numpy().copy()) for m in network[::2]]


def flat(*networks):
    """The arrays themselves, one after the other; None is left out."""
    found = []
    for network in networks:
        if isinstance(network, list):
            found += [x for layer in network for x in layer]
        elif network is not None:
            found.append(network)
    return found


def in_float64(agent):
    """An agent that has collected goes on in float64, on the same rollout."""
    for module in (agent.actor, agent.critic):
        module.double()
    collector, buffer = agent.collector, agent.buffer
    collector.observations = collector.observations.double()
    buffer._observations = buffer._observations.double()
    if buffer._fields[0].is_floating_point():
        buffer._fields[0] = buffer._fields[0].double()
    agent.estimate()
    return agent
