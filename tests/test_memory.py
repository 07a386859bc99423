"""Energy reports against machines that count every access to memory one by one.

Each network is walked here spike by spike and tap by tap, in NumPy, with a counter for
each thing that is paid for; nothing of `reach` or `energy` is used for that. Prices are
primes, so that no two counts can be taken for each other.
"""

import collections
import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxburst import energy
from jaxburst.convert import convert
from jaxburst.energy.costs import LEMAIRE, Cost, Memory
from jaxburst.evaluation import evaluate
from jaxburst.neurons import Burst, Phase, Radix, Refining
from jaxburst.run import Model, simulate
from jaxburst.tracing import trace
from jaxburst.traffic import Traffic, count

RNG = np.random.default_rng(5)
WORD = 32
COST = Cost(
    "primes",
    accumulate=2.0,
    mac=5.0,
    weight=Memory(WORD, ((0, 7.0),)),
    potential=Memory(WORD, ((0, 11.0),), ((0, 13.0),)),
    signal=Memory(WORD, ((0, 17.0),), ((0, 19.0),)),
    scales=True,
    addition=23.0,
    neuron=29.0,
    sent=31.0,
    captured=37.0,
    address=41.0,
)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def digits(n: int) -> int:
    """Digits of the non-adjacent form, by its definition: odd rests are 1 or -1."""
    found, n = 0, abs(n)
    while n:
        if n % 2:
            found, n = found + 1, n - (2 - n % 4)
        n //= 2
    return found


def test_units_by_their_definitions():
    numbers = np.array([[0, 1, -1, 2, 3, -7, 11, 15, 100, 12345], [0] * 10])
    found = count(jnp.asarray(numbers, jnp.float32))
    assert found.quanta.tolist() == [np.abs(numbers[0]).sum(), 0]
    assert found.events.tolist() == [9, 0]
    assert found.digits.tolist() == [sum(map(digits, numbers[0].tolist())), 0]
    assert [digits(n) for n in (1, 3, 7, 11, 15)] == [1, 2, 2, 3, 2]
    charges = count(jnp.array([0.25, 0.0, -3.5]), whole=False)
    assert [int(x) for x in charges] == [2, 2, 2]


class Machine:
    """Counts what each column pays for, by unit."""

    def __init__(self, unit, bits):
        self.unit, self.tally = unit, collections.Counter()
        product = COST.accumulate + (COST.mac - COST.accumulate) * bits / WORD
        self.work = product if unit == "events" else COST.accumulate

    def pieces(self, n: int) -> tuple[int, int]:
        """How many events a spike of `n` is, and how many operations at a synapse."""
        n = abs(int(n))
        if self.unit == "quanta":
            return n, n
        return int(n > 0), digits(n) if self.unit == "digits" else int(n > 0)

    def send(self, n):
        events, _ = self.pieces(n)
        self.tally["events"] += events * (19 + 31)

    def arrive(self, n):
        events, _ = self.pieces(n)
        self.tally["events"] += events * (17 + 37)

    def synapse(self, n):
        events, operations = self.pieces(n)
        self.tally["operations"] += operations * self.work
        self.tally["weights"] += events * (7 + 41)
        self.tally["potentials"] += events * (11 + 13)

    def add(self, n, column="sums"):
        events, _ = self.pieces(n)
        self.tally[column] += events * (23 + 11 + 13)

    def compare(self, n):
        events, _ = self.pieces(n)
        self.tally["pools"] += events * (23 + 11)

    def pass_on(self, n):
        events, _ = self.pieces(n)
        self.tally["pools"] += events * 13

    def update(self, neurons, states):
        for _ in range(neurons):
            self.tally["neurons"] += 29
            self.tally["potentials"] += states * (11 + 13)

    def constant(self, places, taps):
        """An input of so many numbers, each of which meets so many weights."""
        for _ in range(places):
            self.tally["events"] += 17 + 37
            for _ in range(taps):
                self.tally["operations"] += 5
                self.tally["weights"] += 7 + 41
                self.tally["potentials"] += 11 + 13


def check(found, machine, name):
    for column in energy.COLUMNS:
        expected = machine.tally[column] * 1e-12
        assert found[name][column] == pytest.approx(expected, rel=1e-9), column
    assert found[name]["total"] == pytest.approx(sum(machine.tally.values()) * 1e-12)


UNITS = pytest.mark.parametrize("unit", energy.UNITS)


@UNITS
def test_two_hidden_layers_of_bursts(unit):
    w = [normal(3, 6), normal(6, 5), normal(5, 2)]

    def net(w, x):
        return jax.nn.relu(jax.nn.relu(x @ w[0]) @ w[1]) @ w[2]

    network = trace(net, w, np.ones((1, 3), np.float32))
    model = Model(network, Burst(5, signed=True))
    spiking = convert(network, w, dict.fromkeys(network.neurons, 0.3))
    x, steps = normal(1, 3) * 2, 4
    seen = simulate(model, spiking, x, steps, record=network.neurons)
    machine = Machine(unit, bits=3)  # 5 needs three
    machine.constant(3, 6)
    for t in range(steps):
        for name, outputs in (("relu0", 5), ("relu1", 2)):
            for n in np.asarray(seen.spikes[name])[t, 0]:
                machine.send(n)
                machine.arrive(n)
                for _ in range(outputs):
                    machine.synapse(n)
        machine.update(6 + 5, states=2)  # potential, and what was sent
    assert machine.tally["operations"] > 3 * 6 * 5
    found = energy.report(model, seen, cost=COST, unit=unit)
    check(found, machine, f"T = {steps}")
    assert found[f"T = {steps}"]["latency"] == steps + 2
    # The conventional network: 18 + 30 + 10 multiply-accumulates, 3 + 6 + 5 numbers.
    ann = found["no reuse"]
    expected = [58 * 5, 58 * (7 + 41), 0, 58 * 17 + 11 * 19, 11 * 29, 0, 0]
    full = [58 * 5, 58 * (7 + 41), 0, 14 * 17 + 11 * 19, 11 * 29, 0, 0]
    assert [ann[c] * 1e12 for c in energy.COLUMNS] == pytest.approx(expected)
    ann = found["full reuse"]
    assert [ann[c] * 1e12 for c in energy.COLUMNS] == pytest.approx(full)
    total = sum(expected)
    relative = sum(machine.tally.values()) / total
    assert found[f"T = {steps}"]["relative"] == pytest.approx(relative)
    spent = energy.joules(model, seen, cost=COST, unit=unit)[:, 0]
    rows = [found[f"T = {t}"]["total"] for t in range(1, steps + 1)]
    np.testing.assert_allclose(spent, rows)
    np.testing.assert_allclose(np.diff(spent), [r["step"] for r in found.rows[1:steps]])


def conv(x, w, stride=1):
    return lax.conv_general_dilated(
        x, w, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@UNITS
def test_a_shortcut_and_a_pool_of_refining_spikes(unit):
    w = {"a": normal(1, 1, 2, 3), "b": normal(1, 1, 3, 3), "c": normal(12, 2)}

    def net(w, x):
        a = jax.nn.relu(conv(x, w["a"]))
        b = jax.nn.relu(conv(a, w["b"]) + a)
        return nn.max_pool(b, (2, 2), (2, 2)).reshape(x.shape[0], -1) @ w["c"]

    network = trace(net, w, np.ones((1, 4, 4, 2), np.float32))
    model = Model(network, Refining(15, silence=0))
    spiking = convert(network, w, dict.fromkeys(network.neurons, 0.4))
    x, steps = normal(1, 4, 4, 2), 3
    seen = simulate(model, spiking, x, steps, record=network.neurons)
    (pool,) = network.pools
    passed = pooled_changes(np.asarray(seen.spikes["relu1"]))
    machine = Machine(unit, bits=4)  # 15 needs four, the sign apart
    machine.constant(32, 3)
    for t in range(steps):
        for n in np.asarray(seen.spikes["relu0"])[t, 0].ravel():
            machine.send(n)
            machine.arrive(n)  # at the convolution
            for _ in range(3):
                machine.synapse(n)
            machine.arrive(n)  # at the neuron, along the shortcut
            machine.add(n)
        for n in np.asarray(seen.spikes["relu1"])[t, 0].ravel():
            machine.send(n)
            machine.arrive(n)
            machine.add(n, "pools")  # the running sum
            machine.compare(n)  # with the maximum of its one window
        for n in passed[t].ravel():
            machine.pass_on(n)
            machine.send(n)
            machine.arrive(n)
            for _ in range(2):
                machine.synapse(n)
        machine.update(48 + 48, states=2)
    assert machine.tally["pools"] > 0 < machine.tally["sums"]
    found = energy.report(model, seen, cost=COST, unit=unit)
    check(found, machine, f"T = {steps}")
    # 96 + 144 + 24 multiply-accumulates; 48 sums; 12 windows of 4; 32 + 48 + 12 numbers
    # are read by kernels; 48 + 48 + 12 are written.
    for reuse, reads, weights, window in (
        ("no", 264, 264, 48),
        ("full", 92, 6 + 9 + 24, 48),
    ):
        row = found[f"{reuse} reuse"]
        expected = [264 * 5, weights * 48, 0, reads * 17 + 108 * 19, 96 * 29]
        expected += [48 * (23 + 17), 48 * 23 + window * 17]
        assert [row[c] * 1e12 for c in energy.COLUMNS] == pytest.approx(expected)


def pooled_changes(spikes):
    """What 2x2 pools pass on: the maximum of what was sent, in quanta that halve."""
    total, before, found = np.zeros(spikes.shape[2:]), 0, []
    for n in spikes[:, 0]:
        total = 2 * total + n
        best = total.reshape(2, 2, 2, 2, 3).max((1, 3))
        found.append(best - 2 * before)
        before = best
    return np.stack(found)


def test_kernels_with_padding_averages_and_branches_where_all_places_are_active():
    """Edges reach fewer synapses: alike activity makes the average exact."""
    w = {"bias": np.float32([1.2, 1.2]), "a": normal(3, 3, 2, 2)}
    w["a"][0, 0, 0, 0] = 0  # no synapse

    def net(w, x):
        x = jax.nn.relu(x * 1e-9 + w["bias"].reshape(1, 1, 1, 2))
        a = jax.nn.relu(conv(x, w["a"], 2) * 1e-9 + 0.9)
        mean = nn.avg_pool(x, (2, 2), (2, 2))
        joined = jnp.concatenate([a, mean], -1)
        return nn.avg_pool(joined, (2, 2), (2, 2)).reshape(x.shape[0], -1) @ w["c"]

    w["c"] = normal(4, 3)
    network = trace(net, w, np.ones((1, 4, 4, 2), np.float32))
    model = Model(network, Burst(3))
    spiking = convert(network, w, dict.fromkeys(network.neurons, 0.5), initial=0.0)
    seen = simulate(model, spiking, normal(1, 4, 4, 2), 2, record=network.neurons)
    machine = Machine("quanta", 2)
    for t in range(2):
        spikes = np.asarray(seen.spikes[network.neurons[0]])[t, 0]
        assert (spikes == spikes[0, 0]).all() and spikes.any()
        for y, x, c in np.ndindex(4, 4, 2):
            n = spikes[y, x, c]
            machine.send(n)
            machine.arrive(n)
            for o_y, o_x, k_y, k_x, f in np.ndindex(2, 2, 3, 3, 2):
                # SAME, stride 2, an even map: padded behind only.
                here = (2 * o_y + k_y, 2 * o_x + k_x) == (y, x)
                if here and w["a"][k_y, k_x, c, f] != 0:
                    machine.synapse(n)
            machine.arrive(n)  # at the product, through both averages
            for _ in range(3):
                machine.synapse(n)
        for n in np.asarray(seen.spikes[network.neurons[1]])[t, 0].ravel():
            machine.send(n)
            machine.arrive(n)
            for _ in range(3):
                machine.synapse(n)
        machine.update(32 + 8, states=1)
    found = energy.report(model, seen, cost=COST, spiking=spiking)
    check(found, machine, "T = 2")


def test_places_that_meet_no_synapse_are_not_read():
    """A stride of two leaves out three quarters, of constants and of events."""
    w = {"a": normal(1, 1, 1, 2), "b": normal(1, 1, 3, 2)}

    def net(w, x):
        return conv(jnp.concatenate([x, jax.nn.relu(conv(x, w["a"]))], -1), w["b"], 2)

    network = trace(net, w, np.ones((1, 4, 4, 1), np.float32))
    found = energy.report(network, {"relu0": [32.0]}, cost=COST, bits=8)
    machine = Machine("quanta", 1)
    machine.constant(16, 2)
    machine.constant(4, 2)
    for place in np.ndindex(4, 4, 2):
        machine.send(1)
        if place[0] % 2 == place[1] % 2 == 0:
            machine.arrive(1)
            for _ in range(2):
                machine.synapse(1)
    machine.update(32, states=1)
    check(found, machine, "T = 1")
    read = 16 + 4 + 8 * 8 / WORD  # images are not rounded
    row = found["8 bits, full reuse"]
    assert row["events"] * 1e12 == pytest.approx(read * 17 + 32 * 19 * 8 / WORD)


def test_charges_that_a_pool_passes_on_are_multiplied():
    w = [normal(3, 8), normal(2, 2), normal(4, 5)]

    def net(w, x):
        x = jax.nn.relu(x @ w[0]).reshape(x.shape[0], 4, 2) @ w[1]
        return nn.max_pool(x, (2,), (2,)).reshape(x.shape[0], 4) @ w[2]

    network = trace(net, w, np.ones((1, 3), np.float32))
    (pool,) = network.pools
    found = energy.report(network, {"relu0": [8.0], pool: [4.0]}, cost=COST)
    operations = 3 * 8 * 5 + 8 * 2 * 2 + 4 * 5 * 5
    assert found["T = 1"]["operations"] * 1e12 == pytest.approx(operations)


@UNITS
def test_products_of_two_signals_and_functions(unit):
    w = {"a": normal(2, 3), "b": normal(2, 3), "c": normal(4, 2)}

    def net(w, x):
        a, b = jnp.tanh(x @ w["a"]), jax.nn.relu(x @ w["b"])
        return jnp.einsum("bqd,bkd->bqk", a, b) @ w["c"]

    network = trace(net, w, np.ones((1, 4, 2), np.float32))
    model = Model(network, Refining(15, silence=0))
    spiking = convert(network, w, dict.fromkeys(network.neurons, 0.2))
    x, steps = normal(1, 4, 2), 3
    seen = simulate(model, spiking, x, steps, record=network.neurons)
    (product,), sides = network.products, network.graph.senders
    operands = sides[product]
    (after,) = set(network.neurons) - set(operands)
    machine = Machine(unit, bits=4)
    for _ in range(2):  # into each side
        machine.constant(8, 3)
    for t in range(steps):
        for name in operands:
            for n in np.asarray(seen.spikes[name])[t, 0].ravel():
                machine.send(n)
                machine.arrive(n)
                events, operations = machine.pieces(n)
                machine.tally["operations"] += events * 23  # to what it has sent
                machine.tally["potentials"] += events * (11 + 13)
                for _ in range(4):  # numbers of the other side
                    machine.tally["operations"] += operations * machine.work
                    machine.tally["weights"] += events * (11 + 41)
                    machine.tally["potentials"] += events * (11 + 13)
        for n in np.asarray(seen.spikes[after])[t, 0].ravel():
            machine.send(n)
            machine.arrive(n)
            for _ in range(2):
                machine.synapse(n)
        machine.update(12 + 12 + 16, states=2)
        machine.tally["neurons"] += 12 * 9 * 5  # tanh, 9 multiply-accumulates each
    assert machine.tally["weights"] > 48 * (7 + 41)
    found = energy.report(model, seen, cost=COST, unit=unit)
    check(found, machine, f"T = {steps}")
    # 24 + 24 + 48 + 32 multiply-accumulates, of which 48 of two activations.
    assert sum(energy.macs(network).values()) == 128
    assert energy.macs(network, spiking) == energy.macs(network)
    for reuse, reads, weights in (("no", 80 + 96, 80), ("full", 16 + 24 + 16, 20)):
        row = found[f"{reuse} reuse"]
        expected = [128 * 5, weights * 48, 0, reads * 17 + 40 * 19]
        expected += [40 * 29 + 12 * 9 * 5, 0, 0]
        assert [row[c] * 1e12 for c in energy.COLUMNS] == pytest.approx(expected)


def test_memories_cost_what_their_size_costs():
    w = [normal(3, 600), normal(600, 8)]
    network = trace(lambda w, x: jax.nn.relu(x @ w[0]) @ w[1], w, np.ones((1, 3), "f4"))
    events = {"relu0": np.array([10.0])}
    row = energy.report(network, events, cost=LEMAIRE)["T = 1"]

    def word(words):  # all buffers here are below 32 KiB
        size = 4 * words
        if size <= 8192:
            return 10 * size / 8192
        return 10 + 10 * (size - 8192) / (32768 - 8192)

    expected = {
        "operations": 1800 * 3.2 + 80 * 0.1,
        "weights": 1800 * (word(1800) + 0.1) + 80 * (word(4800) + 0.1),
        "potentials": 2 * (1800 * word(600) + 80 * word(8) + 600 * word(600)),
        "events": 3 * (word(3) + 6.4) + 10 * (2 * word(600) + 6.4),
        "neurons": 600 * 0.2,
    }
    for column, value in expected.items():
        assert row[column] * 1e12 == pytest.approx(value), column
    assert row["sums"] == row["pools"] == 0


def test_neurons_are_updated_in_every_slot_of_a_window():
    """Bursts of one and weighted spikes keep a potential alone, windows two numbers."""
    w = [normal(3, 6), normal(6, 5)]
    network = trace(lambda w, x: jax.nn.relu(x @ w[0]) @ w[1], w, np.ones((1, 3), "f4"))
    for neuron, slots, states in ((Burst(1), 1, 1), (Phase(4), 1, 1), (Radix(4), 4, 2)):
        machine = Machine("quanta", 1)
        machine.constant(3, 6)
        for _ in range(8):
            machine.send(1)
            machine.arrive(1)
            for _ in range(5):
                machine.synapse(1)
        for _ in range(slots):
            machine.update(6, states)
        found = energy.report(Model(network, neuron), {"relu0": [8.0]}, cost=COST)
        check(found, machine, "T = 1")
        assert found["T = 1"]["latency"] == slots * (1 + 1)


def test_the_usual_model_counts_operations_alone():
    w = [normal(3, 6), normal(6, 5)]
    network = trace(lambda w, x: jax.nn.relu(x @ w[0]) @ w[1], w, np.ones((1, 3), "f4"))
    events = {"relu0": np.array([4.0, 2.0])}
    found = energy.report(network, events)
    assert [found["T = 2"][c] for c in energy.COLUMNS[1:]] == [0.0] * 6
    spent = energy.joules(network, events)
    np.testing.assert_allclose(spent * 1e12, [18 * 4.6 + 20 * 0.9, 18 * 4.6 + 30 * 0.9])
    assert found["T = 2"]["total"] == pytest.approx(spent[1])
    assert found["no reuse"]["total"] == found["full reuse"]["total"]
    assert found["no reuse"]["total"] == pytest.approx(48 * 4.6e-12)


def test_a_quantised_network_that_skips_zeros():
    w = [normal(3, 6), normal(6, 5)]
    network = trace(lambda w, x: jax.nn.relu(x @ w[0]) @ w[1], w, np.ones((1, 3), "f4"))
    sent = {"relu0": np.array([2.0])}
    ann = energy.ann_joules(network, cost=COST, bits=4, sent=sent) * 1e12
    product = 2 + 3 * 4 / WORD
    # Inputs are whole; of 6 numbers 2 are read for 5 weights each, and written; where
    # they are, is a bit each.
    expected = 18 * 5 + 10 * product + 28 * 48 + 18 * 17 + 10 * 17 / 8
    expected += 6 * 17 / WORD + 2 * 19 / 8 + 6 * 19 / WORD + 6 * 29
    assert ann == pytest.approx(expected)
    dense = energy.ann_joules(network, cost=COST, bits=4) * 1e12
    expected = 18 * 5 + 30 * product + 48 * 48 + 18 * 17 + 30 * 17 / 8 + 6 * 19 / 8
    assert dense == pytest.approx(expected + 6 * 29)


def test_at_break_even_spikes_cost_what_the_conventional_network_costs():
    w = {"a": normal(1, 1, 2, 3), "b": normal(1, 1, 3, 3), "c": normal(48, 2)}

    def net(w, x):
        a = jax.nn.relu(conv(x, w["a"]))
        b = jax.nn.relu(conv(a, w["b"]) + a)
        return b.reshape(x.shape[0], -1) @ w["c"]

    network = trace(net, w, np.ones((1, 4, 4, 2), np.float32))
    for cost in energy.PRESETS.values():
        rates = energy.break_even(network, 3, cost=cost)
        for t, rate in enumerate(rates, 1):
            if rate > 0:
                events = dict.fromkeys(network.neurons, np.full(t, 48 * rate))
                ratio = energy.relative(network, events, cost=cost, unit="events")
                assert ratio[-1] == pytest.approx(1), cost.name
    assert (energy.break_even(network, 3) > 0).all()


def test_curves_carry_every_unit():
    w = [normal(3, 6), normal(6, 5)]
    network = trace(lambda w, x: jax.nn.relu(x @ w[0]) @ w[1], w, np.ones((1, 3), "f4"))
    model = Model(network, Burst(7))
    spiking = convert(network, w, dict.fromkeys(network.neurons, 0.2))
    x, labels = normal(9, 3), np.zeros(9, np.int64)
    curves = evaluate(model, spiking, (x, labels), 3, batch_size=4, progress=False)
    seen = simulate(model, spiking, x, 3, record="relu0")
    n = np.asarray(seen.spikes["relu0"]).astype(int)
    expected = Traffic(
        np.abs(n).sum(2), (n != 0).sum(2), np.vectorize(digits)(n).sum(2)
    )
    for unit, own, mean, right in zip(
        Traffic._fields, seen.traffic["relu0"], curves.traffic["relu0"], expected,
        strict=True,
    ):  # fmt: skip
        np.testing.assert_array_equal(own, right, err_msg=unit)
        np.testing.assert_allclose(mean, right.mean(1), err_msg=unit)
    np.testing.assert_array_equal(
        curves.events["relu0"], curves.traffic["relu0"].quanta
    )
    spent = [energy.joules(model, curves, unit=unit) for unit in ("quanta", "digits")]
    assert (spent[0] > spent[1]).all()


def test_what_makes_no_sense_is_refused():
    w = [normal(3, 6), normal(6, 5)]
    network = trace(lambda w, x: jax.nn.relu(x @ w[0]) @ w[1], w, np.ones((1, 3), "f4"))
    events = {"relu0": np.array([4.0, 2.0])}
    with pytest.raises(ValueError, match="unit: .*found 'spikes'"):
        energy.joules(network, events, unit="spikes")
    with pytest.raises(ValueError, match="'digits' needs the events and their digits"):
        energy.joules(network, events, unit="digits")
    with pytest.raises(ValueError, match="reuse: .*found 'some'"):
        energy.ann_joules(network, reuse="some")
    with pytest.raises(ValueError, match="baseline must be one of .*found 'T = 1'"):
        energy.report(network, events, baseline="T = 1")
    with pytest.raises(ValueError, match="one step"):
        energy.ann_joules(network, sent=events)


def test_a_table():
    w = [normal(3, 6), normal(6, 5)]
    network = trace(lambda w, x: jax.nn.relu(x @ w[0]) @ w[1], w, np.ones((1, 3), "f4"))
    found = energy.report(network, {"relu0": np.array([4.0, 2.0])}, cost=LEMAIRE)
    lines = str(found).splitlines()
    assert lines[0].startswith("lemaire, charged in quanta; nanojoules per image")
    assert len(lines) == 2 + len(found.rows) == 2 + 2 + 4
    assert all(len(line) == len(lines[1]) for line in lines[1:])
    total = found["T = 2"]["total"]
    assert total == pytest.approx(sum(found["T = 2"][c] for c in energy.COLUMNS))
    eight = dataclasses.replace(LEMAIRE, weight=Memory(8, LEMAIRE.weight.read))
    other = energy.report(network, {"relu0": np.array([4.0, 2.0])}, cost=eight)
    assert other["T = 2"]["weights"] < found["T = 2"]["weights"]
