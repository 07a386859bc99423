"""The laws of one layer of burst neurons, and of pooling their spikes."""

import functools
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from jax import lax

from jaxburst.graph import Function, Node, Pool
from jaxburst.neurons import Burst, Pooled, Threshold
from jaxburst.neurons.pooling import gated, lateral


class MaxPool(NamedTuple):
    """A square window on `[B, H, W, C]`."""

    window: int
    stride: int | None = None
    padding: int = 0

    def __call__(self, x):
        stride, edge = self.stride or self.window, (self.padding,) * 2
        return lax.reduce_window(
            x,
            *(np.array(-np.inf, x.dtype), lax.max),
            (1, self.window, self.window, 1),
            (1, stride, stride, 1),
            ((0, 0), edge, edge, (0, 0)),
        )

    @property
    def node(self) -> Node:
        (equation,) = jax.make_jaxpr(self)(np.zeros((2, 7, 8, 3))).eqns
        return Node("pool", Pool(equation.primitive, equation.params), ("x",), (1,))


def quick(function, static=()):
    """`jax.jit` without optimisation: what runs only once compiles in half the time."""
    options = {"xla_backend_optimization_level": 0}
    return jax.jit(function, static_argnums=static, compiler_options=options)


pytestmark = pytest.mark.usefixtures("float64")

GOLDEN = Path(__file__).parent / "golden"
BURSTS = [Burst(1), Burst(2), Burst(5), Burst(None)]
SIGNED = [Burst(1, signed=True), Burst(3, signed=True), Burst(None, signed=True)]
POOLS = [MaxPool(2), MaxPool(3, 2, 1), MaxPool(2, 1), MaxPool(3, 3), MaxPool(2, 3, 1)]


def unroll(neuron, currents, theta=1.0, initial=0.0, bias=0.0):
    """`(potentials, spikes)` of neurons `[n]` driven by `currents` `[T, n]`."""
    numbers = (jnp.asarray(x, jnp.float64) for x in (theta, initial, bias))
    found = _unroll(neuron, Threshold(*numbers), jnp.asarray(currents))
    return [np.asarray(values) for values in found]


@functools.partial(quick, static=0)
def _unroll(neuron, threshold, currents):
    def advance(state, arriving):
        current, t = arriving
        state, spikes = neuron.step(threshold, state, current, t)
        return state, (neuron.potential(threshold, state), spikes)

    state = neuron.rest(threshold, currents.shape[1:], currents.dtype)
    times = 1 + jnp.arange(len(currents), dtype=jnp.int32)
    return jax.lax.scan(advance, state, (currents, times))[1]


def noise(seed=0, steps=200, size=64):
    """Currents with both signs and means from 0 to 4, so that neurons differ."""
    rng = np.random.default_rng(seed)
    return rng.normal(np.linspace(0, 4, size), 1.5, (steps, size))


def constants(theta, neuron):
    """Constant currents within reach, `0 <= c < γ θ`, none of them a round number."""
    return np.linspace(0, 0.99871 * theta * (neuron.gamma or 7), 64)


@pytest.mark.parametrize("gamma", [1, 2, 5])
def test_golden_neuron(gamma):
    golden = np.load(GOLDEN / "neuron.npz")
    current, expected, membrane = (
        golden[f"{name}_gamma{gamma}"] for name in ("current", "spikes", "membrane")
    )
    potentials, spikes = unroll(Burst(gamma), current)
    assert expected.max() == gamma
    np.testing.assert_array_equal(spikes, expected)
    np.testing.assert_array_equal(potentials, membrane)


@pytest.mark.parametrize("neuron", BURSTS + SIGNED)
@pytest.mark.parametrize("initial", [0.5, 1])
def test_charge_is_conserved(neuron, initial):
    """Law 1: `v_T + θ Σn = v_0 + ΣI`, at every T; of a start at the threshold, too."""
    theta = np.linspace(0.3, 1.7, 64)
    currents = noise()
    potentials, spikes = unroll(neuron, currents, theta, initial, bias=0.01)
    assert spikes.any(axis=0).all()
    left = potentials + theta * spikes.cumsum(0)
    right = initial * theta + (currents + 0.01).cumsum(0)
    np.testing.assert_allclose(left, right, rtol=1e-13, atol=1e-12)


@pytest.mark.parametrize("neuron", BURSTS + SIGNED)
def test_spikes_are_whole_numbers_within_the_cap(neuron):
    _, spikes = unroll(neuron, noise(), theta=0.4)
    np.testing.assert_array_equal(spikes, np.rint(spikes))
    if neuron.gamma is None:
        assert spikes.max() > 10
    else:
        assert np.abs(spikes).max() == neuron.gamma
    assert (spikes.min() < 0) == neuron.signed


@pytest.mark.parametrize("neuron", BURSTS)
@pytest.mark.parametrize("initial", [0.0, 0.5, 0.99])
def test_rate_is_within_one_spike_of_a_constant_current(neuron, initial):
    """Law 2: `|θ N_T / T - c| <= θ / T` for `0 <= c < γ θ`."""
    theta, steps = 0.7, np.arange(1, 101).reshape(-1, 1)
    constant = constants(theta, neuron)
    currents = np.broadcast_to(constant, (100, 64))
    _, spikes = unroll(neuron, currents, theta, initial)
    assert spikes[:, 1:].any(axis=0).all()
    error = theta * spikes.cumsum(0) / steps - constant
    assert np.abs(error * steps).max() <= theta * (1 + 1e-12)


@pytest.mark.parametrize("gamma", [2, 5])
@pytest.mark.parametrize("initial", [0.0, 0.5])
def test_burst_is_integrate_and_fire_with_finer_time(gamma, initial):
    """Law 4: γ spikes per step on I for T steps, or one on I/γ for γT steps."""
    theta = 0.7
    constant = np.append(constants(theta, Burst(gamma)), [-1.3, 9.1])  # and beyond
    _, burst = unroll(Burst(gamma), np.broadcast_to(constant, (20, 66)), theta, initial)
    fine = np.broadcast_to(constant / gamma, (20 * gamma, 66))
    _, single = unroll(Burst(1), fine, theta, initial)
    assert burst.max() == gamma
    np.testing.assert_array_equal(burst.cumsum(0), single.cumsum(0)[gamma - 1 :: gamma])


@pytest.mark.parametrize("initial", [0.0, 0.5])
def test_signed_and_unbounded_depends_on_the_sum_alone(initial):
    """Law 6: `N(t) = max(0, floor((v_0 + ΣI) / θ))`, whatever came before."""
    currents = noise()
    _, spikes = unroll(Burst(None, signed=True), currents, 0.7, initial)
    assert spikes.min() < -1
    expected = np.maximum(0, np.floor(initial + currents.cumsum(0) / 0.7))
    np.testing.assert_array_equal(spikes.cumsum(0), expected)


@pytest.mark.parametrize("initial", [0.0, 0.5])
def test_unsigned_and_unbounded_is_a_running_maximum(initial):
    """Law 7: what was sent cannot be taken back."""
    currents = noise()
    _, spikes = unroll(Burst(None), currents, 0.7, initial)
    sums = np.floor(initial + currents.cumsum(0) / 0.7)
    assert (np.diff(sums, axis=0) < 0).any()
    expected = np.maximum(0, np.maximum.accumulate(sums))
    np.testing.assert_array_equal(spikes.cumsum(0), expected)


@pytest.mark.parametrize("neuron", SIGNED)
def test_signed_never_takes_back_more_than_it_sent(neuron):
    currents = np.concatenate([noise(), -5 + noise(1)])
    _, spikes = unroll(neuron, currents, 0.7)
    totals = spikes.cumsum(0)
    assert totals.max() > 100 and (totals[-1] == 0).any()
    assert totals.min() == 0


def test_signed_step_by_step():
    # current   1.5   1.0  -2.5  -1.0   0.0   2.5
    # charged   1.5   1.5  -2.0  -2.0  -1.0   2.5
    # sent        0     1     2     0     0     0     before the step
    # spikes      1     1    -2     0     0     2     γ = 2
    # after     0.5   0.5   0.0  -1.0  -1.0   ...
    currents = np.array([[1.5], [1.0], [-2.5], [-1.0], [0.0], [2.5]])
    potentials, spikes = unroll(Burst(2, signed=True), currents)
    np.testing.assert_array_equal(spikes[:, 0], [1, 1, -2, 0, 0, 1])
    np.testing.assert_array_equal(potentials[:, 0], [0.5, 0.5, 0.0, -1.0, -1.0, 0.5])


def test_hard_reset_forgets_what_is_over():
    # current   0.75  0.75  0.25  2.50  0.50
    # charged   0.75  1.50  0.25  2.75  0.50
    # spikes       0     1     0     2     0     γ = 2, then the potential is 0
    currents = np.array([[0.75], [0.75], [0.25], [2.5], [0.5]])
    potentials, spikes = unroll(Burst(2, reset="zero"), currents)
    np.testing.assert_array_equal(spikes[:, 0], [0, 1, 0, 2, 0])
    np.testing.assert_array_equal(potentials[:, 0], [0.75, 0, 0.25, 0, 0.5])


def test_false_spikes_are_taken_back_by_hand():
    # t             1  2  3  4  5  6  7  8  9
    # current       2  0  2  0  0  0  0  0  1
    # last / k      1  1  3/2 since then, one more step allowed: due up to t = 5
    # spikes        2  0  2  0  0 -1 -1 -1  1
    currents = np.array([2, 0, 2, 0, 0, 0, 0, 0, 1.0]).reshape(-1, 1)
    _, spikes = unroll(Burst(2, allowance=1), currents)
    np.testing.assert_array_equal(spikes[:, 0], [2, 0, 2, 0, 0, -1, -1, -1, 1])


def fading(steps=200, size=64):
    """Currents that excite at first and inhibit later, as those of false spikes."""
    return noise(steps=steps, size=size) - np.linspace(0, 3, steps).reshape(-1, 1)


@pytest.mark.parametrize("allowance", [0, 3, 20])
@pytest.mark.parametrize("gamma", [1, 5])
def test_false_spikes_are_taken_back_down_to_none(gamma, allowance):
    currents = fading()
    before, plain = unroll(Burst(gamma), currents)
    after, found = unroll(Burst(gamma, allowance=allowance), currents)
    assert (found == -1).any() and found.min() == -1
    assert found.sum() < plain.sum()
    assert found.cumsum(0).min() == 0, "no more is taken back than was sent"
    np.testing.assert_array_equal(np.maximum(found, 0), plain)
    np.testing.assert_array_equal(after, before)
    neuron = Burst(gamma, allowance=allowance)
    expected = oracle.fire(neuron, 1.0, np.zeros(64), currents)
    np.testing.assert_array_equal(found, expected)


def test_nothing_is_carried_for_what_is_off():
    threshold = Threshold(*map(jnp.asarray, (1.0, 0.5, 0.0)))
    state = Burst().rest(threshold, (3,), jnp.float64)
    assert [np.size(array) for array in jax.tree.leaves(state)] == [3, 1]
    assert not Burst().counts and Burst(allowance=0).counts


def test_thresholds_per_channel_and_potentials_per_neuron():
    """Each neuron fires as it would alone."""
    theta = np.array([0.5, 0.8, 1.3])
    initial = np.random.default_rng(0).uniform(0, 1, (2, 2, 3))
    currents = noise(size=24).reshape(-1, 2, 2, 2, 3)
    _, spikes = unroll(Burst(3), currents[:20], theta, initial, 0.1 * initial)
    for place in np.ndindex(2, 2, 2, 3):
        *_, row, column, channel = place
        own = initial[row, column, channel]
        alone = currents[(slice(0, 20), *place)].reshape(-1, 1)
        _, expected = unroll(Burst(3), alone, theta[channel], own, 0.1 * own)
        np.testing.assert_array_equal(spikes[:, *place], expected[:, 0])


@pytest.mark.parametrize("neuron", [Burst(3), Burst(1), Burst(None, signed=True)])
def test_a_capped_population_approaches_the_capped_activation(neuron):
    """`|θ N_T / T - min(c, cap)| <= θ / T` for constants within reach and beyond."""
    theta, cap, steps = 0.7, 0.6, np.arange(1, 101).reshape(-1, 1)
    constant = np.linspace(0, 0.69, 64) if neuron.gamma == 1 else np.linspace(0, 2, 64)
    threshold = Threshold(*map(jnp.asarray, (theta, 0.5, 0.0)))
    state, spikes = neuron.rest(threshold, (64,), jnp.float64, Function(cap)), []
    step = quick(functools.partial(neuron.step, f=Function(cap)))
    for t in range(1, 101):
        state, n = step(threshold, state, jnp.asarray(constant), jnp.array(t))
        spikes.append(np.asarray(n))
    rate = theta * np.cumsum(spikes, 0) / steps
    assert (constant > cap).any() and (rate[-1] > 0.5).any()
    error = (rate - np.minimum(constant, cap)) * steps
    assert np.abs(error).max() <= theta * (1 + 1e-12)


@pytest.mark.parametrize(
    "settings, word",
    [
        ({"gamma": 0}, "gamma"),
        ({"gamma": 2.0}, "gamma"),
        ({"gamma": True}, "gamma"),
        ({"reset": "hard"}, "reset"),
        ({"signed": True, "reset": "zero"}, "signed"),
        ({"allowance": -1}, "allowance"),
        ({"allowance": 2.0}, "allowance"),
        ({"allowance": 4, "signed": True}, "signed"),
    ],
)
def test_impossible_neurons_are_refused(settings, word):
    with pytest.raises(ValueError, match=f"Burst: .*{word}"):
        Burst(**settings)


def test_a_neuron_is_a_static_argument():
    assert Burst(5) == Burst() and hash(Burst(5)) == hash(Burst())
    assert repr(Burst(5)) == (
        "Burst(gamma=5, signed=False, reset='subtract', gammas=(), allowance=None)"
    )


@functools.partial(quick, static=(0, 1))
def _pool_over_time(pool, layer, state, spikes):
    advance = functools.partial(pool, layer.node, batch=spikes.shape[1])
    return jax.lax.scan(advance, state, spikes)


def pool_over_time(pool, layer, spikes):
    """Outputs per step `[T, ...]` for spikes `[T, B, H, W, C]`."""
    empty = np.zeros(spikes.shape[1:])
    best = np.zeros(oracle.lateral(spikes, layer).shape[1:])
    last, outputs = _pool_over_time(pool, layer, Pooled(empty, best), spikes)
    np.testing.assert_array_equal(last.total, spikes.sum(0))
    np.testing.assert_array_equal(last.sent, outputs.sum(0))
    return np.asarray(outputs)


@pytest.mark.parametrize("name", ["lateral", "gated"])
def test_golden_pool(name):
    golden = np.load(GOLDEN / "pool.npz")
    pool = {"lateral": lateral, "gated": gated}[name]
    found = pool_over_time(pool, MaxPool(2), golden["spikes_in"].astype(float))
    assert (golden["lateral"] != golden["gated"]).any()
    np.testing.assert_array_equal(found, golden[name])


def counts(low=0):
    """Spikes at rates that differ from neuron to neuron, whole numbers."""
    rng = np.random.default_rng(3)
    rates = rng.uniform(0, 3, (2, 7, 8, 3))
    return np.maximum(np.floor(rng.normal(rates, 1.0, (20, 2, 7, 8, 3))), low)


@pytest.mark.parametrize("layer", POOLS)
def test_lateral_outputs_add_up_to_the_pool_of_the_sums(layer):
    """Law 3: at every step, for any window, stride and padding."""
    spikes = counts()
    outputs = pool_over_time(lateral, layer, spikes)
    assert outputs.any() and outputs.min() >= 0
    assert (spikes.sum(0) > 0).all()
    expected = jax.lax.reduce_window(
        spikes.cumsum(0),
        *(-np.inf, jax.lax.max),
        (1, 1, layer.window, layer.window, 1),
        (1, 1, *[layer.stride or layer.window] * 2, 1),
        ((0, 0), (0, 0), *[(layer.padding, layer.padding)] * 2, (0, 0)),
    )
    np.testing.assert_array_equal(outputs.cumsum(0), expected)


@pytest.mark.parametrize("layer", POOLS)
def test_gated_pools_pass_at_least_as_much(layer):
    spikes = counts()
    least = pool_over_time(lateral, layer, spikes).sum(0)
    found = pool_over_time(gated, layer, spikes).sum(0)
    assert (found >= least).all()
    assert found.sum() > 1.05 * least.sum()


@pytest.mark.parametrize("layer", POOLS)
def test_negative_spikes_pass_both_pools(layer):
    spikes = counts(low=-2)
    assert spikes.min() == -2
    for pool, expected in (
        (lateral, oracle.lateral),
        (gated, oracle.gated),
    ):
        outputs = pool_over_time(pool, layer, spikes)
        assert outputs.min() < 0
        np.testing.assert_array_equal(outputs, expected(spikes, layer))
