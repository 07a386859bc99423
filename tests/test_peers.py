"""Other people's simulators agree with this one. They come with the extra `oracles`.

sinabs starts its membranes at 0, SpikingJelly's integer neuron in effect at half a
threshold. Where spikes are compared one by one, every charge is a multiple of 2**-11
and far below 2**13, and thresholds have few bits: sums are exact in single precision,
so that only the equations can differ.
"""

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxburst.convert import convert
from jaxburst.io.state_dict import load_pytorch
from jaxburst.methods.calibration import calibrate
from jaxburst.neurons import Burst, Threshold
from jaxburst.run import Model, simulate
from jaxburst.tracing import trace

STEPS, NEURONS = 100, 2**15
THETAS = [1.0, 0.75, 1.375]


def peer(name):
    """A module of another simulator, or the reason why there is none."""
    reason = f"{name} is not installed: pip install 'jaxburst[oracles]'"
    return pytest.importorskip(name, reason=reason)


@pytest.fixture
def torch():
    """PyTorch without gradients, which nobody needs here."""
    torch = peer("torch")
    with torch.inference_mode():
        yield torch


def noise(theta):
    """Currents `[T, n]`, 1024ths of both signs, with means up to three thresholds."""
    rng = np.random.default_rng(0)
    mean = theta * np.linspace(-0.5, 3, NEURONS)
    currents = rng.normal(mean, 1.5 * theta, (STEPS, NEURONS))
    return (np.rint(currents * 1024) / 1024).astype(np.float32)


def spikes_here(gamma, theta, initial, currents):
    """Spikes `[T, n]` of `Burst(gamma)`, of which there must be a million."""
    numbers = (jnp.float32(value) for value in (theta, initial, 0))
    spikes = np.asarray(_unroll(Burst(gamma), Threshold(*numbers), currents[:, None]))
    assert spikes.sum() > 1e6 and spikes.max() >= (gamma or 8)
    return spikes[:, 0]


@jax.jit(static_argnums=0)
def _unroll(neuron, threshold, currents):
    def step(state, at):
        return neuron.step(threshold, state, *at)

    start = neuron.rest(threshold, currents.shape[1:], currents.dtype)
    return jax.lax.scan(step, start, (currents, jnp.arange(1, STEPS + 1)))[1]


@pytest.mark.parametrize("theta", THETAS)
@pytest.mark.parametrize("gamma", [1, 2, 5, None])
def test_sinabs_fires_the_same_spikes(torch, gamma, theta):
    peer("sinabs")
    from sinabs.activation import MaxSpike, MembraneSubtract
    from sinabs.layers import IAF

    currents = noise(theta)
    assert (currents[0] == theta).any(), "a potential at the threshold fires"
    neurons = IAF(
        spike_threshold=torch.tensor(theta),
        spike_fn=MaxSpike(gamma),
        reset_fn=MembraneSubtract(),
        min_v_mem=None,
    )
    found = neurons(torch.from_numpy(currents)[None])[0].numpy()
    np.testing.assert_array_equal(spikes_here(gamma, theta, 0, currents), found)


@pytest.mark.parametrize("theta", THETAS)
@pytest.mark.parametrize("gamma", [1, 2, 5])
def test_spikingjelly_fires_the_same_spikes(torch, gamma, theta):
    """It rounds where these neurons round down from half a threshold.

    The two differ in ties, which it rounds to even numbers: half a 1024th in the first
    current keeps every later sum away from them.
    """
    peer("spikingjelly")
    from spikingjelly.activation_based.neuron import ILIFNode
    from spikingjelly.activation_based.surrogate import MultiLevelSpikeCount

    currents = noise(theta)
    currents[0] += 1 / 2048
    neurons = ILIFNode(
        tau=1e9,  # no leak: 1 - 1/tau is 1 in single precision
        v_threshold=theta,
        surrogate_function=MultiLevelSpikeCount(gamma),
        step_mode="m",
    ).eval()
    found = neurons(torch.from_numpy(currents)).numpy()
    np.testing.assert_array_equal(spikes_here(gamma, theta, 0.5, currents), found)


class Pooled(flax.linen.Module):
    """The average-pooled network that SpikingJelly converts, in Flax."""

    @flax.linen.compact
    def __call__(self, x):
        nn = flax.linen
        x = nn.BatchNorm(use_running_average=True)(nn.Conv(8, (3, 3))(x))
        x = nn.avg_pool(nn.relu(x), (2, 2), (2, 2))
        x = nn.avg_pool(nn.relu(nn.Conv(16, (3, 3))(x)), (2, 2), (2, 2))
        return nn.Dense(5)(x.reshape(x.shape[0], -1))


def pooled(torch):
    """That network in PyTorch, with normalisations that do something."""
    nn = torch.nn
    torch.manual_seed(0)
    ann = nn.Sequential(
        *(nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        nn.AvgPool2d(2),
        *(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(64, 5)),
    ).eval()
    ann[1].running_mean.uniform_(-0.3, 0.3)
    ann[1].running_var.uniform_(0.5, 2)
    return ann


@pytest.fixture
def float64():
    """Double precision; Flax's pooling needs types to mix."""
    with jax.enable_x64(True):
        yield


@pytest.mark.usefixtures("float64")
def test_spikingjelly_converts_to_the_same_network(torch):
    """Its rate coding on an average-pooled network, from thresholds to logits.

    Its "max" is our percentile 100, its logits are ours at every step, and both
    approach the trained network's like 1/T.
    """
    peer("spikingjelly")
    from spikingjelly.activation_based import ann2snn, functional

    ann = pooled(torch)
    state = ann.state_dict()
    images = np.random.default_rng(0).normal(size=(16, 8, 8, 2))
    seen = 1.5 * images  # louder, so that no neuron saturates or sits at its threshold

    def theirs(x):
        return torch.from_numpy(x.transpose(0, 3, 1, 2).copy())

    variables = load_pytorch(Pooled(), state, images).variables
    variables = jax.tree.map(lambda value: value.astype(float), variables)
    ann = ann.double()
    recipe = ann2snn.RateCodingRecipe(dataloader=[theirs(seen)], mode="max")
    snn = ann2snn.Converter(recipe=recipe).convert(ann).double()
    functional.set_step_mode(snn, "m")
    steps = 256
    currents = snn(theirs(images).expand(steps, -1, -1, -1, -1)).numpy()
    times = np.arange(1, steps + 1).reshape(-1, 1, 1)
    expected = currents.cumsum(0) / times

    network = trace(Pooled().apply, variables, images[:1])
    thresholds = calibrate(network, variables, seen, Burst(1), percentile=100)
    spiking = convert(network, variables, thresholds, initial=0)
    found = simulate(Model(network, Burst(1)), spiking, jnp.asarray(images), steps)
    assert len(found.events) == 2
    assert all(np.any(count) for count in found.events.values())
    apart = np.abs(found.logits - expected).max((1, 2))
    # It keeps thresholds in single precision, so a spike may come a step later.
    assert np.mean(apart < 1e-8) > 0.98 and apart.max() < 1e-2

    goal = ann(theirs(images)).numpy()
    for logits in (np.asarray(found.logits), expected):
        distance = (np.abs(logits - goal) * times).mean((1, 2))[31:]
        assert 0.1 < distance.min() and distance.max() < 0.15


def test_files_of_pytorch_are_read_in_their_order(torch, tmp_path):
    """Tensors, half precision and checkpoints as PyTorch saves them; code never."""
    ann = pooled(torch)
    images = np.random.default_rng(0).normal(size=(4, 8, 8, 2)).astype(np.float32)
    expected = ann(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    checkpoint = {"epoch": 3, "model": torch.nn.ModuleDict({"net": ann}).state_dict()}
    torch.save(checkpoint, tmp_path / "weights.pt")
    loaded = load_pytorch(Pooled(), tmp_path / "weights.pt", images)
    found = Pooled().apply(loaded.variables, images)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)

    half = load_pytorch(Pooled(), ann.bfloat16().state_dict(), images).variables
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(half))
    np.testing.assert_allclose(Pooled().apply(half, images), expected, atol=0.05)

    torch.save(ann, tmp_path / "whole.pt")  # a module: code that would run
    with pytest.raises(ValueError, match=r"torch.save\(model.state_dict\(\)"):
        load_pytorch(Pooled(), tmp_path / "whole.pt", images)
