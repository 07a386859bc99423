"""Every code, spike by spike, against NumPy, and by what its spikes add up to."""

import functools
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import nets
import numpy as np
import oracle
import pytest
from nets import LAYERS, case

from jaxburst import neurons
from jaxburst.graph import Function
from jaxburst.methods import shifted, silenced
from jaxburst.neurons import (
    Burst,
    Differential,
    FirstSpike,
    Growing,
    MultiThreshold,
    OneSpike,
    Parallel,
    Phase,
    Radix,
    Refining,
    SigmaDelta,
    SignDescent,
    Threshold,
)
from jaxburst.neurons.sigma_delta import nearest
from jaxburst.run import infer
from jaxburst.streams import stream
from jaxburst.tracing import trace
from jaxburst.traffic import count

pytestmark = pytest.mark.usefixtures("double")


@pytest.fixture(scope="module")
def double():
    with jax.enable_x64(True):
        yield


def numbers(digits: int | None, most: int | None) -> np.ndarray:
    """All whole numbers with so many signed digits, of a sum of up to `most`."""
    if digits is None:
        return np.arange(-300, 301)
    powers = [0, *(sign * 2**k for k in range(9) for sign in (1, -1))]
    return np.unique([sum(some) for some in itertools.product(powers, repeat=digits)])


def rounded(x, neuron, least):
    """The nearest of these numbers; those below `least` are 0."""
    every = numbers(neuron.digits, neuron.gamma)
    found = every[np.abs(x[..., None] - every).argmin(-1)]
    found = np.where(np.abs(x) < 1, np.where(np.abs(x) < least, 0, np.sign(x)), found)
    most = neuron.gamma or np.inf
    return np.clip(found, -most, most)


# Each simulates one layer, a step or slot at a time: from its current `[T, ...]` to
# what it sends, and what that is worth over its threshold.


def sigma_delta(neuron, theta, initial, current):
    drive, sent, found = np.zeros_like(current[0]), 0.0, []
    for t, arriving in enumerate(current, 1):
        drive = drive + arriving
        wanted = np.maximum(drive, 0) / theta - sent
        if neuron.digits is None:
            n = np.floor(wanted + (initial if t == 1 else 0.5))
            n = np.clip(n, -(neuron.gamma or np.inf), neuron.gamma or np.inf)
        else:
            n = rounded(wanted, neuron, 1 - initial if t == 1 else 0.5)
        sent = sent + n
        found.append(n)
    return np.stack(found), np.ones(len(found))


def differential(neuron, theta, initial, current):
    """In the domain of rates: `x_t = m_{t-1} + s_t` goes in, and so it goes out."""
    potential, heard, said, found = 0.0, np.zeros_like(current[0]), 0.0, []
    for t, arriving in enumerate(current, 1):
        before, heard = np.maximum(heard, 0), heard + arriving
        potential = potential + (t * np.maximum(heard, 0) - (t - 1) * before) / theta
        error = (potential - said) * (1 + 1e-6)  # ties go away from zero
        n = rounded(error, neuron, 1 - initial if t == 1 else 0.5)
        n = np.where(n < -t * said - 1e-6, np.trunc(n / 2), n)
        potential = potential - (n + said)
        said = said + n / t
        found.append(n)
    return np.stack(found), 1 / np.arange(1, len(found) + 1)


def refining(neuron, theta, initial, current):
    drive, sent, found = np.zeros_like(current[0]), 0.0, []
    for t, arriving in enumerate(current, 1):
        drive, unit = drive + arriving, neuron.ratio ** (1.0 - t)
        missing = np.maximum(drive, 0) / theta - sent
        n = np.floor(missing / unit + (initial if t == 1 else 0.5))
        if t > 1:
            n = np.where(np.abs(missing / unit) <= neuron.silence, 0, n)
        n = np.clip(n, -neuron.gamma, neuron.gamma)
        sent = sent + n * unit
        found.append(n)
    return np.stack(found), neuron.ratio ** (1.0 - np.arange(1, len(found) + 1))


def phase(neuron, theta, initial, current):
    clock = [2.0 ** (neuron.period - 1 - t % neuron.period) for t in range(20)]
    potential, found = initial * theta, []
    for weight, arriving in zip(clock, current, strict=False):
        potential = potential + arriving
        n = np.where(potential >= weight * theta, 1.0, 0.0)
        potential = potential - n * weight * theta
        found.append(n)
    return np.stack(found), np.array(clock[: len(found)])


def growing(neuron, theta, initial, current):
    """Each neuron by itself, from the length of the burst it is in."""
    found = np.zeros_like(current)
    for place in np.ndindex(current.shape[1:]):
        potential, length = (initial * theta)[place], 0
        for t, arriving in enumerate(current[(slice(None), *place)]):
            potential, size = potential + arriving, min(2**length, neuron.gamma)
            length = length + 1 if potential >= size * theta[place] else 0
            found[t, *place] = size * (length > 0)
            potential -= found[t, *place] * theta[place]
    return found, np.ones(len(found))


def multi_threshold(neuron, theta, initial, current):
    """As the authors' program: the largest threshold that fits, half a quantum before
    it; a potential gathers what the ReLU of the sum changes by."""
    drive, potential, found = 0.0, 0.0, []
    for arriving in current:
        before, drive = np.maximum(drive, 0), drive + arriving
        potential = potential + np.maximum(drive, 0) - before
        n, size = np.zeros_like(arriving), neuron.gamma
        while size >= 1:
            for sign, early in ((1, initial), (-1, 1 - initial)):
                fires = (n == 0) & (sign * potential >= (size - early) * theta)
                n = np.where(fires, sign * size, n)
            size /= 2
        potential = potential - n * theta
        found.append(n)
    return np.stack(found), np.ones(len(found))


def sign_descent(neuron, theta, initial, current):
    drive, said, found = 0.0, np.zeros_like(current[0]), []
    for t, arriving in enumerate(current):
        drive = drive + arriving
        n = np.where(np.maximum(drive, 0) > said * theta, 1.0, -1.0)
        said = said + n * neuron.decay**t
        found.append(n)
    return np.stack(found), neuron.decay ** np.arange(len(found))


def parallel(neuron, theta, initial, current):
    """All slots are compared with the whole input."""
    whole = current.sum(0) + initial * theta
    return np.stack([whole >= k * theta for k in range(1, neuron.slots + 1)]) * 1.0, 1.0


def radix(neuron, theta, initial, current):
    """The potential of a window is spent on powers of two, the largest first."""
    potential, found = current.sum(0) + initial * theta, []
    weights = 2.0 ** np.arange(neuron.slots)[::-1]
    for weight in weights:
        fires = (potential >= weight * theta) * 1.0
        potential = potential - weight * theta * fires
        found.append(fires)
    return np.stack(found), weights


def first_spike(neuron, theta, initial, current):
    """Slopes were integrated; now the potential rises by one quantum a slot, and what
    is sent is the slope that a spike begins at the synapses."""
    potential, found = current.sum(0) + initial * theta, []
    fired = np.zeros(potential.shape, bool)
    for _ in range(neuron.slots):
        potential = potential + theta
        fired |= potential >= (neuron.slots + 1) * theta
        found.append(fired * 1.0)
    return np.stack(found), 1.0


def one_spike(neuron, theta, initial, current):
    """A window's first slot is its largest size, of which one fires."""
    wanted, sizes = current.sum(0) / theta, [1]
    while len(sizes) < neuron.slots:
        sizes.append(max(sizes[-1] + 1, int(neuron.base * sizes[-1] + 0.5)))
    nearest = np.abs(wanted[..., None] - np.array(sizes) - 1e-9).argmin(-1)
    silent = wanted < 1 - initial
    found = [(nearest == k) & ~silent for k in range(neuron.slots)[::-1]]
    return np.stack(found) * 1.0, np.array(sizes[::-1])


CODES = {
    "once": (SigmaDelta(), sigma_delta, 1),
    "once, 15 levels": (SigmaDelta(15), sigma_delta, 1),
    "once, two digits": (SigmaDelta(digits=2), sigma_delta, 1),
    "sigma-delta": (SigmaDelta(3), sigma_delta, 4),
    "sigma-delta, one digit": (SigmaDelta(digits=1), sigma_delta, 3),
    "refining": (Refining(6, silence=0.6), refining, 4),
    "refining, one spike a step": (Refining(1, silence=0), refining, 6),
    "differential": (Differential(8), differential, 8),
    "multi-threshold": (MultiThreshold(8), multi_threshold, 8),
    "phase": (Phase(4), phase, 11),
    "growing": (Growing(4), growing, 9),
    "sign descent": (SignDescent(0.8), sign_descent, 12),
    "parallel": (Parallel(9), parallel, 1),
    "radix": (Radix(5), radix, 1),
    "first spike": (FirstSpike(20), first_spike, 1),
    "one spike": (OneSpike(6), one_spike, 1),
    "one spike, base 1.5": (OneSpike(9, base=1.5), one_spike, 1),
}


@pytest.mark.parametrize("digits", [None, 1, 2])
def test_ties_are_rounded_once(digits):
    """A still input becomes silent, however near to half a quantum it is."""
    half = np.float32([k + 0.5 for k in range(-40, 40)])
    near = [half, np.nextafter(half, np.float32(99)), np.nextafter(half, -half)]
    drive = jnp.asarray(np.stack(near) * np.float32(0.0049725))
    neuron, f = SigmaDelta(digits=digits), Function(other=lambda x: x * 1.0)
    theta, zero = jnp.float32(0.0049725), jnp.float32(0)
    own = Threshold(theta, jnp.float32(0.5), zero)

    @jax.jit
    def step(state, current, t):
        return neuron.step(own, state, current, t, f)

    state, sent = neuron.rest(own, drive.shape, drive.dtype, f), []
    for t in range(1, 13):
        state, spikes = step(state, drive if t == 1 else 0 * drive, jnp.int32(t))
        sent.append(np.asarray(spikes))
    assert (sent[0] != 0).mean() > 0.9 and not np.any(sent[8:])
    assert np.abs(state.sent - drive / theta).max() < 0.501


@pytest.mark.parametrize("name", ["vgg", "resnet", "windows"])
@pytest.mark.parametrize("code", CODES)
def test_every_spike_is_that_of_numpy(code, name):
    neuron, simulated, steps = CODES[code]
    it, (layers, _) = case(name), LAYERS[name]
    share = 0.7 / (neuron.levels or 12)
    thresholds = it.thresholds(Burst(1), "channel", share)
    flat = [np.ravel(value) for value in thresholds.values()]
    length = neuron.slots if neuron.slots > 1 else steps
    times = np.arange(1, length + 1)
    shown = np.asarray(neuron.presented(times))
    shown = np.broadcast_to(shown, (length,)).reshape(-1, *[1] * it.inputs.ndim)
    for initial in (0.5, 0.37):
        layer = functools.partial(simulated, neuron)
        logits, trains, pools = in_numpy(it, layers, layer, flat, initial, shown)
        spiking = it.spiking(Burst(1), "channel", initial, share)
        found = it.run(it.model(neuron), spiking, steps)
        for path, expected in zip(it.network.neurons, trains, strict=True):
            sent = found.spikes[path]
            assert sent.any(), "it fires"
            if neuron.slots > 1:
                sent = np.asarray(neuron.train(sent[0]))
                if isinstance(neuron, FirstSpike):  # the slope stays
                    sent = sent.cumsum(0)
            np.testing.assert_array_equal(sent, expected)
        for path, parts in zip(it.network.pools, pools, strict=True):
            if neuron.slots == 1:  # in quanta of their step, but for rounding
                expected = np.ceil(np.abs(parts) - 1e-6).reshape(*parts.shape[:2], -1)
                quanta, events, _ = found.traffic[path]
                np.testing.assert_array_equal(quanta, expected.sum(2))
                np.testing.assert_array_equal(events, (expected > 0).sum(2))
        if isinstance(neuron, Phase):
            logits /= 1 + (times.reshape(-1, 1, 1) - 1) // neuron.period
        if neuron.repeats:
            logits /= times.reshape(-1, 1, 1)
        if neuron.slots > 1:
            logits = logits[-1:]
        np.testing.assert_allclose(found.logits, logits, rtol=0, atol=1e-12)


def in_numpy(it, layers, layer, thresholds, initial, shown):
    """The sum of the currents of the outputs, what each population sends, and what each
    pool passes on, in what a spike of the step is worth."""
    trains, of_step = [], []

    def relu(i, current):
        theta = np.broadcast_to(thresholds[i], current.shape[1:])
        train, worth = layer(theta, initial, current)
        trains.append(train)
        of_step.append(np.reshape(worth, (-1, *[1] * (train.ndim - 1))))
        return train * of_step[-1], theta[0]

    currents, _, pools = oracle._evaluate(
        layers, it.variables, it.inputs * shown, relu, "lateral", shown.ravel()
    )
    pools = [
        passed / of_step[0].reshape(-1, *[1] * (passed.ndim - 1)) for passed in pools
    ]
    return currents.cumsum(0), trains, pools


@pytest.mark.parametrize("name", ["vgg", "resnet"])
def test_silenced_neurons_are_those_that_fired_too_much(name):
    """SRP against NumPy: residuals of one run, and the next without what they tell."""
    it, (layers, _) = case(name), LAYERS[name]
    before, steps, active = 3, 5, []
    thresholds = it.thresholds(Burst(1), "channel", 0.4)
    flat = [np.ravel(value) for value in thresholds.values()]

    def first(theta, initial, current):
        spikes = oracle.fire(Burst(1), theta, initial * theta, current)
        residual = initial * theta + (current - theta * spikes).sum(0)
        active.append(residual > 0.001 * theta)
        return spikes, np.ones(len(spikes))

    def second(theta, initial, current):
        spikes = oracle.fire(Burst(1), theta, initial * theta, current)
        heard.append(spikes)
        return spikes * active[len(heard) - 1], np.ones(len(spikes))

    runs = []
    for length, layer in ((before, first), (steps, second)):
        heard = []
        shown = np.ones((length, *[1] * it.inputs.ndim))
        logits, trains, _ = in_numpy(it, layers, layer, flat, 0.5, shown)
        times = np.arange(1, length + 1).reshape(-1, 1, 1)
        runs.append((logits / times, [n.sum() for n in trains]))
    assert not all(mask.all() for mask in active), "some are silenced"
    spiking = it.spiking(Burst(1), "channel", 0.5, 0.4)
    found = silenced(it.model(Burst(1)), spiking, it.inputs, steps, before=before)
    for part, (logits, quanta) in zip(
        (slice(before), slice(before, None)), runs, strict=True
    ):
        np.testing.assert_allclose(found.logits[part], logits, rtol=0, atol=1e-12)
        assert [found.events[name][part].sum() for name in it.network.neurons] == quanta
    for other in (SigmaDelta(), Burst(1, reset="zero")):
        with pytest.raises(ValueError, match="silenced: expected integrate-and-fire"):
            silenced(it.model(other), spiking, it.inputs, steps)


def drives():
    return np.random.default_rng(0).normal(3, 8, (6, 50))


@functools.partial(nets.quick, static=(0, 2))
def said(neuron, drive, steps):
    """What each step says, and the sum of its spikes, for drives presented."""
    threshold = Threshold(*(jnp.asarray(x, jnp.float64) for x in (0.7, 0.5, 0.0)))
    state = neuron.rest(threshold, drive.shape, jnp.float64)
    total, found = 0.0, []
    for t in range(1, steps + 1):
        now = jnp.asarray(t, jnp.int32)
        current = drive * jnp.asarray(neuron.presented(now), jnp.float64)
        state, spikes = neuron.step(threshold, state, current, now)
        total = total + 0.7 * jnp.asarray(neuron.worth(now), jnp.float64) * spikes
        found.append((neuron.heard(threshold, state, spikes, now), total, spikes))
    return [jnp.stack(values) for values in zip(*found, strict=True)]


def heard_and_sent(neuron, drive, steps):
    return [np.asarray(values) for values in said(neuron, drive, steps)]


@pytest.mark.parametrize("code", CODES)
def test_what_a_code_sends_adds_up_to_what_it_says(code):
    """And what it says approaches the activation, within what its quantum leaves."""
    neuron, _, steps = CODES[code]
    steps = {"phase": 12}.get(code, steps)
    drive = np.concatenate([drives(), drives() / 8])
    heard, total, spikes = heard_and_sent(neuron, drive, steps)
    assert np.abs(spikes).max() >= 1
    if isinstance(neuron, Phase):
        np.testing.assert_allclose(heard.cumsum(0) / neuron.period, total, atol=1e-12)
        wanted = np.clip(drive, 0, 0.7 * neuron.levels)
        assert np.abs(total[11] / 3 - wanted).max() <= 0.7 / 2 / 3 + 1e-9
        return
    if isinstance(neuron, MultiThreshold):  # a spike is more than half of what is due
        np.testing.assert_allclose(heard.cumsum(0), total, atol=1e-12)
        wanted = np.maximum(drive, 0)
        inside, error = drive < 0.7 * neuron.gamma, total[-1] - steps * wanted
        assert (np.abs(error) <= wanted + 0.7 / 2 + 1e-9)[inside].all()
        assert len(set(np.ravel(spikes))) == 5
        return
    if isinstance(neuron, Growing):  # what a neuron holds is no more than two bursts
        np.testing.assert_allclose(heard.cumsum(0), total, atol=1e-12)
        inside = drive < 0.7 * neuron.gamma / 2
        error = np.abs(total[-1] / steps - np.maximum(drive, 0))[inside]
        assert error.max() <= 2 * 0.7 * neuron.gamma / steps
        return
    np.testing.assert_allclose(heard, total, rtol=0, atol=1e-12)
    if isinstance(neuron, SignDescent):  # what may still be sent makes up for it
        left = 0.7 * neuron.decay ** np.arange(steps + 1) / (1 - neuron.decay)
        error = np.abs(total - np.maximum(drive, 0))[:, drive < left[0]]
        assert (error.max(axis=1) <= left[1:] + 1e-9).all() and error[0].max() > 1
        return
    within = (neuron.gamma or np.inf) * 0.7
    wanted = np.maximum(drive, 0)
    inside = wanted < within
    error = np.abs(total - wanted)[:, inside]
    assert inside.any()
    if isinstance(neuron, OneSpike):  # half of what is between two sizes
        most = (neuron.base - 1) / (neuron.base + 1) * wanted[inside] + 0.7 / 2
        assert (error[-1] <= most + 1e-9).all()
    elif isinstance(neuron, SigmaDelta) and neuron.digits is None:
        assert error[-1].max() <= 0.7 / 2 + 1e-9
    else:
        assert error[-1].mean() < 0.35
    if neuron.slots > 1:
        train = neuron.train(spikes[0])
        assert set(np.unique(train)) == {0, 1} and len(train) == neuron.slots
        np.testing.assert_array_equal(neuron.said(train), spikes[0])


def test_hierarchical_thresholds_are_a_burst():
    """H-MT: thresholds θ, θ/2, ... of which each may fire, the largest first, and what
    is left stays; from half the least. The binary digits of a burst up to 2^n - 1."""
    currents = np.random.default_rng(1).normal(2, 3, (50, 64))
    least, count = 0.3, 4
    potential, expected = np.full(64, least / 2), []
    for current in currents:
        potential, burst = potential + current, np.zeros(64)
        for level in range(count)[::-1]:
            fires = potential >= least * 2**level
            potential = potential - least * 2**level * fires
            burst = burst + 2**level * fires
        expected.append(burst)
    threshold = Threshold(*map(jnp.asarray, (least, 0.5, 0.0)))
    neuron, found = Burst(2**count - 1), []
    state = neuron.rest(threshold, (64,), jnp.float64)
    step = nets.quick(neuron.step)
    for t, current in enumerate(currents, 1):
        state, n = step(threshold, state, jnp.asarray(current), jnp.array(t))
        found.append(n)
    assert np.max(expected) == 15 and (np.array(expected) == 5).any()
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("digits", [1, 2, 3])
def test_no_other_number_of_so_few_digits_is_nearer(digits):
    x = np.random.default_rng(2).normal(0, 60, 400)
    every = numbers(digits, None)
    found = np.asarray(nearest(jnp.asarray(x), digits))
    assert set(found) <= set(every) and len(set(found)) > 10
    best = np.abs(x[:, None] - every).min(1)
    np.testing.assert_allclose(np.abs(found - x), best, rtol=0, atol=1e-12)


def test_a_cap_holds_for_every_code():
    """A capped population says no more than its cap."""
    cap = Function(cap=2.0)
    threshold = Threshold(*map(jnp.asarray, (0.3, 0.5, 0.0)))
    kinds = SigmaDelta(), Differential(), Radix(6), FirstSpike(40), Phase(5), Growing()
    kinds += SignDescent(0.9), OneSpike(12, base=1.2), MultiThreshold(8)
    for neuron in kinds:
        state = neuron.rest(threshold, (200,), jnp.float64, cap)
        drive, total = jnp.linspace(-1.0, 9.0, 200), 0.0
        steps = 1 if neuron.slots > 1 else 10
        for t in map(jnp.array, range(1, steps + 1)):
            current = drive * jnp.asarray(neuron.presented(t), jnp.float64)
            state, n = neuron.step(threshold, state, current, t, cap)
            total = total + 0.3 * n * jnp.asarray(neuron.worth(t), jnp.float64)
        if isinstance(neuron, Phase):
            total = total / 2  # two periods of five steps
        if neuron.repeats:
            total = total / steps
        assert 1.6 < total.max() <= 2.0 + 0.3
        assert (np.diff(total) >= -0.3).all() and total.min() >= 0


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_saturated_neurons_lose_no_spike_to_rounding(dtype):
    """Where the cap is a whole number of thresholds, all of it is said, for ever."""
    cap = Function(cap=0.6)
    for gamma in (1, 2, 5, 7, 8, 13, 14, 15, 16, 26, 28, 30):
        own = Threshold(*(jnp.asarray(x, dtype) for x in (0.6 / gamma, 0.5, 0.0)))
        current, sent = jnp.full(1, 9, dtype), []
        kinds = [Burst, MultiThreshold] if gamma.bit_count() == 1 else [Burst]
        for neuron in (kind(gamma) for kind in kinds):
            state = neuron.rest(own, (1,), dtype, cap)
            for t in range(1, 31):
                state, spikes = neuron.step(own, state, current, jnp.array(t), cap)
                sent.append(float(spikes[0]))
        assert set(sent) == {gamma}


@pytest.mark.parametrize(
    "kind, settings, word",
    [
        (SigmaDelta, {"gamma": 0}, "gamma"),
        (SigmaDelta, {"gamma": 3, "digits": 1}, "gamma: expected a power of two"),
        (Differential, {"gamma": 11, "digits": 2}, "gamma: expected a sum of 2 signed"),
        (Growing, {"gamma": 6}, "gamma: expected a power of two"),
        (SigmaDelta, {"digits": 0}, "digits"),
        (Radix, {"slots": 0}, "slots"),
        (Radix, {"slots": 25}, "slots"),
        (FirstSpike, {"slots": 2**24 + 1}, "slots"),
        (Parallel, {"slots": 2.0}, "slots"),
        (OneSpike, {"base": 1.0}, "base"),
        (OneSpike, {"slots": 40}, "largest size"),
        (Phase, {"period": 17}, "period"),
        (Growing, {"gamma": 0}, "gamma"),
        (MultiThreshold, {"gamma": 6}, "power of two"),
        (SignDescent, {"decay": 0.4}, "decay"),
        (SignDescent, {"decay": 1.0}, "decay"),
    ],
)
def test_impossible_codes_are_refused(kind, settings, word):
    with pytest.raises(ValueError, match=f"{kind.__name__}: .*{word}"):
        kind(**settings)


def test_thresholds_by_least_squares_fit_a_whole_run(monkeypatch):
    """Those of a single step cut off what integrate-and-fire neurons have 32 for."""
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "experiments")
    from catalogue import CODES, Draw

    rng = np.random.default_rng(0)
    w, x = rng.normal(size=(8, 16)), rng.normal(size=(200, 8))
    network = trace(lambda w, x: jax.nn.relu(x @ w) @ w.T, w, x[:1])
    code = CODES["integrate-and-fire from θ/2 (OPI)"]
    draw, wanted, errors = Draw(network, w, x), network(w, x), []
    for setting in (code.settings[-1], {"steps": 1}):
        found = infer(*code.make(draw, **setting), x, code.steps)
        errors.append(np.square(found - wanted).mean() / np.square(wanted).mean())
    assert errors[0] < 0.002 and errors[1] > 0.05


def test_shrinking_quanta_follow_no_stream():
    it = case("vgg")
    frames = np.stack([it.inputs, it.inputs])
    with pytest.raises(ValueError, match="SignDescent.* shrink from frame to frame"):
        stream(it.model(SignDescent()), it.spiking(Burst(1)), frames)


def test_a_window_is_one_step():
    it = case("vgg")
    with pytest.raises(ValueError, match="one window of 5 slots"):
        it.run(it.model(Radix(5)), it.spiking(Burst(1)), 2)
    assert Radix(5) != FirstSpike(5) and Radix(5).gamma == 31


def test_a_part_of_a_quantum_is_counted():
    """What pools pass on of means, or of another phase, need not be whole."""
    found = count(jnp.array([0.5, -1.25, 0.0, 3.0, 2e-6, 1.000002, 2.0**24]))
    assert [int(n) for n in found] == [1 + 2 + 3 + 1 + 2**24, 5, 1 + 1 + 2 + 1 + 1]


def test_no_code_is_forgotten():
    """Every kind of neuron is checked above or, bursts, by the laws."""
    kinds = {
        kind
        for kind in vars(neurons).values()
        if isinstance(kind, type) and issubclass(kind, neurons.Neuron)
    }
    tested = {type(neuron) for neuron, *_ in CODES.values()}
    assert kinds - tested == {neurons.Neuron, Burst}


@pytest.mark.parametrize("name", ["vgg", "resnet"])
def test_shifted_neurons_send_one_spike_more_or_less(name):
    """COS against NumPy, and its theorem: of the same input, just one."""
    it, (layers, _) = case(name), LAYERS[name]
    before, steps, moved = 5, 8, []
    thresholds = it.thresholds(Burst(1), "channel", 0.4)
    flat = [np.ravel(value) for value in thresholds.values()]

    def layer(theta, initial, current):
        potential, most, least, sent = initial * theta, -np.inf, np.inf, 0
        for now in current[:before]:
            charged = potential + now
            fires = charged >= theta
            most = np.maximum(most, np.where(fires, -np.inf, charged))
            least = np.minimum(least, np.where(fires, charged, np.inf))
            potential, sent = charged - theta * fires, sent + fires
        up = np.where(sent == before, theta, np.maximum(theta, 1.001 * theta - most))
        down = np.maximum(theta, least - 0.999 * theta)
        few, many = potential >= theta, (potential < 0) & (sent > 0)
        start = initial * theta + few * up - many * np.where(many, down, 0)
        spikes = oracle.fire(Burst(1), theta, start, current)
        more = spikes[:before].sum(0) - sent
        np.testing.assert_array_equal(more, (few & (sent < before)) - 1.0 * many)
        moved.append((few.any(), many.any()))
        return spikes, np.ones(len(spikes))

    shown = np.ones((steps, *[1] * it.inputs.ndim))
    logits, trains, _ = in_numpy(it, layers, layer, flat, 0.5, shown)
    assert np.any(moved, 0).all(), "some are shifted, up and down"
    spiking = it.spiking(Burst(1), "channel", 0.5, 0.4)
    found = shifted(it.model(Burst(1)), spiking, it.inputs, steps, before=before)
    times = np.arange(1, steps + 1).reshape(-1, 1, 1)
    np.testing.assert_allclose(found.logits, logits / times, rtol=0, atol=1e-12)
    for one, train in zip(it.network.neurons, trains, strict=True):
        quanta = train.reshape(*train.shape[:2], -1).sum(2)
        np.testing.assert_array_equal(found.events[one], quanta)
    with pytest.raises(ValueError, match="shifted: expected integrate-and-fire"):
        shifted(it.model(SigmaDelta()), spiking, it.inputs, steps)
    with pytest.raises(ValueError, match="shifted: before: at most the 8 steps"):
        shifted(it.model(Burst(1)), spiking, it.inputs, steps, before=9)
