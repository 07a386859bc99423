"""Streams: a state carried on, frame after frame, stands for the last of them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import nets
import numpy as np
import pytest

from jaxburst.convert import convert
from jaxburst.methods.channels import shape_of
from jaxburst.methods.direct import direct
from jaxburst.neurons import Burst, Refining, SigmaDelta
from jaxburst.run import Model, simulate
from jaxburst.streams import stream
from jaxburst.tracing import trace


@pytest.fixture(scope="module", autouse=True)
def double():
    with jax.enable_x64(True):
        yield


class Gated(nn.Module):
    """Max pooling, a ReLU, a gate, a norm and a shift behind the ReLU."""

    kind: str

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), param_dtype=float)(x))
        x = nn.max_pool(x, (2, 2), (2, 2)) + 0.25
        if self.kind == "gated":
            gate = nn.sigmoid(nn.Dense(4, param_dtype=float)(x.mean((1, 2))))
            x = nn.LayerNorm(param_dtype=float)(x * gate[:, None, None])
        return nn.Dense(3, param_dtype=float)(nn.relu(x).reshape(x.shape[0], -1))


def build(kind: str):
    images = nets.images(4, 4, 2).astype(np.float64)
    module = Gated(kind)
    variables = module.init(jax.random.key(0), images)
    network = trace(module.apply, variables, images[:1])
    thresholds = dict.fromkeys(network.neurons, 0.31)
    spiking, rng = convert(network, variables, thresholds), np.random.default_rng(1)
    for name in network.neurons:  # corrected, as by the presets
        rows = rng.normal(size=(4, *shape_of(network, name))) / 10
        spiking[name] = spiking[name]._replace(bias=jnp.asarray(rows))
    return network, spiking


def moving(steps: int, seed: int = 0) -> np.ndarray:
    """A scene that drifts."""
    rng = np.random.default_rng(seed)
    moves = rng.random((steps, 3, 1, 1, 1)) < 0.6
    jumps = rng.normal(size=(steps, 3, 4, 4, 2)) * moves
    return jumps.cumsum(0)


@pytest.mark.parametrize("kind", ["plain", "gated"])
def test_after_a_stream_the_state_is_the_network_of_the_last_frame(kind):
    """To one quantum: to the last bit the quantised network, at every frame."""
    network, spiking = build(kind)
    model = Model(network, Refining())
    frames = moving(6)
    found, _ = stream(model, spiking, frames, step=3)
    exact = Model(network, Refining(gamma=None, silence=0))
    spiking = jax.tree.map(jnp.asarray, spiking)
    for frame, logits in zip(frames, found.logits, strict=True):
        (expected,) = direct(exact, spiking, frame, (3,))
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-9)
    assert all(counts.any() for counts in found.events.values())


def test_a_still_scene_costs_nothing_and_chunks_are_one_stream():
    network, spiking = build("gated")
    model = Model(network, Refining())
    frames = moving(5)
    frames[3] = frames[2]
    whole, end = stream(model, spiking, frames)
    first, state = stream(model, spiking, frames[:2])
    second, last = stream(model, spiking, frames[2:], state)
    joined = np.concatenate([first.logits, second.logits])
    np.testing.assert_allclose(joined, whole.logits, rtol=0, atol=1e-9)
    for one, other in zip(jax.tree.leaves(end), jax.tree.leaves(last), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-9)
    for counts in whole.events.values():
        assert not counts[3].any() and counts[2].any()


@pytest.mark.parametrize("neuron", [Burst(5), Burst(None, signed=True)])
def test_bursts_on_a_still_scene_are_a_simulation(neuron):
    network, spiking = build("plain")
    model, frame = Model(network, neuron), moving(1)[0]
    found, _ = stream(model, spiking, np.stack([frame] * 5))
    expected = simulate(model, spiking, frame, 5)
    np.testing.assert_allclose(found.logits, expected.logits, rtol=0, atol=1e-9)
    for name, counts in expected.events.items():
        assert counts.any()
        np.testing.assert_array_equal(found.events[name], counts)


def test_what_streams_refuse():
    network, spiking = build("plain")
    model = Model(network, Refining())
    with pytest.raises(ValueError, match=r"frames: expected arrays \[T, B"):
        stream(model, spiking, np.zeros((0, 3, 4, 4, 2)))
    with pytest.raises(ValueError, match="frames must have the shape"):
        stream(model, spiking, moving(2)[0])

    def masked(w, inputs):
        x, ids = inputs
        return jnp.where(ids > 0, jax.nn.relu(x @ w), 0.5) @ w

    w, inputs = np.eye(3), (np.ones((2, 3)), np.ones((2, 3), int))
    network = trace(masked, w, inputs)
    spiking = convert(network, w, {"relu0": 0.3})
    frames = jax.tree.map(lambda x: x[None], inputs)
    with pytest.raises(ValueError, match="mask of the inputs"):
        stream(Model(network, Refining()), spiking, frames)


def test_bursts_on_a_moving_scene_depend_on_the_sums_alone():
    """Signed and unbounded, after T frames: those of T steps of the mean frame."""
    network, spiking = build("plain")
    model, frames = Model(network, Burst(None, signed=True)), moving(6)
    found, _ = stream(model, spiking, frames)
    spiking = jax.tree.map(jnp.asarray, spiking)
    for steps in (1, 3, 6):
        (expected,) = direct(model, spiking, frames[:steps].mean(0), (steps,))
        np.testing.assert_allclose(found.logits[steps - 1], expected, atol=1e-9)
    assert all(counts[1:].any() for counts in found.events.values())


def test_scenes_of_a_batch_do_not_meet_and_jit_changes_nothing():
    network, spiking = build("gated")
    model, frames, order = Model(network, Refining()), moving(4), [2, 0, 1]
    found, _ = stream(model, spiking, frames)
    mixed, _ = jax.jit(lambda x: stream(model, spiking, x))(frames[:, order])
    np.testing.assert_allclose(mixed.logits, found.logits[:, order], atol=1e-9)
    for name, counts in found.events.items():
        assert len({*counts.sum(0).tolist()}) > 1  # the scenes differ
        np.testing.assert_array_equal(mixed.events[name], counts[:, order])


def test_refining_at_its_first_step_streams_as_sigma_delta():
    network, spiking = build("gated")
    for name in network.neurons:
        spiking[name] = spiking[name]._replace(bias=jnp.zeros(()))
    found = [
        stream(Model(network, neuron), spiking, moving(4), step=1)[0]
        for neuron in (Refining(), SigmaDelta())
    ]
    np.testing.assert_array_equal(found[0].logits, found[1].logits)
    for name, counts in found[0].events.items():
        np.testing.assert_array_equal(counts, found[1].events[name])
        assert counts.any()


def test_words_that_change():
    """Inputs that are whole numbers, and two inputs of which one stays."""
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=shape) for shape in ((7, 5), (2, 5), (5, 3))]

    def function(w, inputs):
        words, numbers = inputs
        return jax.nn.relu(w[0][words].sum(1) + numbers @ w[1]) @ w[2]

    frames = rng.integers(0, 7, (4, 3, 6)), np.stack([rng.normal(size=(3, 2))] * 4)
    network = trace(function, weights, jax.tree.map(lambda x: x[0], frames))
    spiking = convert(network, weights, {"relu0": 0.3})
    found, _ = stream(Model(network, Refining()), spiking, frames, step=2)
    exact = Model(network, Refining(gamma=None, silence=0))
    for t, logits in enumerate(found.logits):
        inputs = jax.tree.map(lambda x, t=t: x[t], frames)
        (expected,) = direct(exact, spiking, inputs, (2,))
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-9)
    assert found.events["relu0"].any(1).all()


def test_a_state_is_of_its_weights_and_step():
    network, spiking = build("plain")
    model, frames = Model(network, Refining()), moving(2)
    _, state = stream(model, spiking, frames, step=3)
    stream(model, jax.tree.map(jnp.copy, spiking), frames, state, step=3)
    other = spiking | {"relu0": spiking["relu0"]._replace(theta=jnp.asarray(0.32))}
    for weights, step in ((spiking, 2), (other, 3)):
        with pytest.raises(ValueError, match="state: was made with other weights"):
            stream(model, weights, frames, state, step=step)
