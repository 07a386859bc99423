"""NIR graphs: what is written is read again, and fires the same spikes in sinabs.

Weights are multiples of 1/32 and thresholds powers of 2, so that sums are exact and
only the equations can differ. The packages come with the extras `nir` and `oracles`.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxburst as jb

nir = pytest.importorskip(
    "nir", reason="nir is not installed: pip install 'jaxburst[nir]'"
)

from jaxburst.io.nir import as_it_is  # noqa: E402

STEPS, IMAGES = 8, 4
relu = jax.nn.relu


class Residual(nn.Module):
    """Uneven padding, averages, a shortcut, and what a product finds in a map."""

    @nn.compact
    def __call__(self, x):
        norm = nn.BatchNorm(use_running_average=True)
        x = nn.avg_pool(relu(norm(nn.Conv(4, (3, 3))(x))), (2, 2), (2, 2))
        x = relu(nn.Conv(6, (3, 3), strides=2)(x))
        y = relu(nn.Conv(6, (3, 3))(x))
        x = relu(nn.Conv(6, (3, 3))(y) + x)
        x = relu(nn.Dense(5)(x.reshape(x.shape[0], -1)))
        return nn.Dense(3)(x)


class Wires(nn.Module):
    """What becomes a node of its own: scales, shifts, signs, padded averages."""

    @nn.compact
    def __call__(self, x):
        x = relu(nn.Conv(4, (3, 3), strides=2, feature_group_count=2)(2 * x - 0.5))
        y = nn.avg_pool(x, (2, 2), (1, 1), "SAME")
        z = relu(nn.avg_pool(nn.Conv(4, (1, 1))(x), (2, 2), (1, 1), "SAME"))
        x = relu(0.5 - nn.Conv(4, (2, 2))(y) + (z + z))
        x = (x * 4 + 1).mean((1, 2))
        return {"a": nn.Dense(3)(x[:, ::-1]), "b": -nn.Dense(2)(x[:, 1:]) * 2}


def one_dimension(w, x):
    x = jax.lax.conv_general_dilated(
        x, w[0], (2,), [(1, 2)], dimension_numbers=("NWC", "WIO", "NWC")
    )
    return relu(x).reshape(x.shape[0], -1) @ w[1]


def rounded(tree):
    return jax.tree.map(lambda x: np.float32(np.round(np.asarray(x) * 32) / 32), tree)


def images(*shape):
    return rounded(np.random.default_rng(0).normal(size=(IMAGES, *shape)))


def converted(function, variables, x):
    """`(model, spiking)` with a threshold for every channel of the first layer."""
    network = jb.trace(function, variables, x)
    thresholds = dict.fromkeys(network.neurons, np.float32(0.25))
    first = network.graph[network.neurons[0]]
    channels = first.image_shape[-1]
    thresholds[first.name] = np.float32(2) ** -(np.arange(channels) % 3)
    return jb.Model(network, jb.Burst(1)), jb.convert(
        network, variables, thresholds, initial=0
    )


def linen(module, *shape):
    x = images(*shape)
    variables = rounded(module.init(jax.random.key(0), x))
    return *converted(module.apply, variables, x), x


NETWORKS = {
    "residual": lambda: linen(Residual(), 8, 8, 2),
    "wires": lambda: linen(Wires(), 6, 6, 2),
    "one dimension": lambda: (
        *converted(one_dimension, rounded(WEIGHTS), images(9, 2)),
        images(9, 2),
    ),
}
WEIGHTS = [np.random.default_rng(i).normal(size=s) for i, s in
           enumerate([(4, 2, 3), (15, 3)])]  # fmt: skip


def first_channels(x):
    """Maps `[..., H, W, C]` as NIR has them."""
    return np.moveaxis(x, -1, 2)


@functools.partial(
    jax.jit,
    static_argnums=0,
    compiler_options={"xla_backend_optimization_level": 0},  # it runs once
)
def _simulate(model, spiking, x):
    return jb.simulate(model, spiking, x, STEPS, record=model.network.neurons)


def simulated(model, spiking, x):
    return jax.device_get(_simulate(model, spiking, x))


@functools.cache
def case(name):
    """`(model, spiking, inputs, trace)` of one of the networks."""
    found = NETWORKS[name]()
    return *found, simulated(*found)


@pytest.mark.parametrize("name", NETWORKS)
def test_what_was_written_is_read_and_fires_the_same_spikes(tmp_path, name):
    model, spiking, x, expected = case(name)
    path = jb.to_nir(model, spiking, tmp_path / "network.nir")
    again, weights = jb.from_nir(path)
    assert again.neuron == jb.Burst(1)
    found = simulated(again, weights, np.moveaxis(x, -1, 1))
    names = zip(model.network.neurons, again.network.neurons, strict=True)
    for one, other in names:
        spikes = expected.spikes[one]
        assert spikes.sum() > 5
        own = found.spikes[other]
        if spikes.ndim > 3:
            spikes = first_channels(spikes)
        np.testing.assert_array_equal(own, spikes)
    logits = zip(
        jax.tree.leaves(found.logits), jax.tree.leaves(expected.logits), strict=True
    )
    for one, other in logits:
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


def test_sinabs_fires_the_same_spikes(tmp_path):
    torch = pytest.importorskip("torch")
    sinabs = pytest.importorskip("sinabs")
    from sinabs.activation import SingleSpike
    from sinabs.layers import IAFSqueeze
    from sinabs.nir import from_nir

    model, spiking, x, expected = case("residual")
    path = jb.to_nir(model, spiking, tmp_path / "network.nir")
    with pytest.warns(DeprecationWarning):
        network = from_nir(nir.read(str(path)), num_timesteps=STEPS)
    seen = {}
    for name, layer in network.named_modules():
        if isinstance(layer, IAFSqueeze):
            layer.spike_fn, layer.min_v_mem = SingleSpike, None
            layer.register_forward_hook(
                lambda _, __, out, name=name: seen.__setitem__(name, out)
            )
    rows = np.repeat(np.moveaxis(x, -1, 1)[:, None], STEPS, 1)
    with torch.no_grad():
        logits, _ = network(torch.from_numpy(rows.reshape(-1, *rows.shape[2:])))
    assert len(seen) == len(model.network.neurons) == 5, sinabs
    for name in model.network.neurons:
        spikes = expected.spikes[name]
        spikes = first_channels(spikes) if spikes.ndim > 3 else spikes
        own = seen[name].numpy().reshape(IMAGES, STEPS, *spikes.shape[2:])
        assert own.sum() > 5
        np.testing.assert_array_equal(own.swapaxes(0, 1), spikes)
    mean = logits.numpy().reshape(IMAGES, STEPS, -1).mean(1)
    np.testing.assert_allclose(mean, expected.logits[-1], atol=1e-6)


def test_networks_of_sinabs_are_read():
    """Written by its own writer; it says nothing of bursts, so they are named here."""
    torch = pytest.importorskip("torch")
    layers = pytest.importorskip("sinabs.layers")
    from sinabs.nir import to_nir

    torch.manual_seed(0)
    net = torch.nn.Sequential(
        *(torch.nn.Conv2d(2, 4, 3, padding=1), layers.IAFSqueeze(batch_size=IMAGES)),
        *(layers.SumPool2d(2), torch.nn.Conv2d(4, 5, 3)),
        *(layers.IAFSqueeze(batch_size=IMAGES), torch.nn.Flatten()),
        torch.nn.Linear(5, 3),
    )
    x = np.moveaxis(images(6, 6, 2), -1, 1)
    rows = torch.from_numpy(np.repeat(x[:, None], STEPS, 1).reshape(-1, *x.shape[1:]))
    with torch.no_grad():
        expected = net(rows).numpy().reshape(IMAGES, STEPS, 3).mean(1)
    with pytest.warns(DeprecationWarning):
        graph = to_nir(net, rows)
    with pytest.raises(ValueError, match="does not say how its neurons reset"):
        jb.from_nir(graph)
    model, spiking = jb.from_nir(graph, neuron=jb.Burst(None))
    trace = jb.simulate(model, spiking, x, STEPS)
    assert all(np.sum(count) > 10 for count in trace.events.values())
    assert np.abs(trace.logits[-1] - expected).max() < 1e-6


def chain(*nodes):
    """A graph of nodes one after the other, from 3 numbers."""
    nodes = {"input": nir.Input({"input": np.array([3])}), **dict(nodes)}
    nodes["output"] = nir.Output({"output": np.array([2])})
    names = list(nodes)
    edges = list(zip(names, names[1:], strict=False))
    return nir.NIRGraph(nodes, edges, **as_it_is())


def dense(rows, columns):
    return nir.Affine(np.eye(rows, columns, dtype="f"), np.zeros(rows, "f"))


def test_networks_of_norse_and_snntorch_are_read():
    """The one writes scalars, the other an endless time constant."""
    x = np.array([[0.5, 1.25, 2]], np.float32)
    graph = chain(
        *(("0", dense(3, 3)), ("1", nir.IF(np.ones(()), np.array(1.0)))),
        ("2", dense(2, 3)),
    )
    model, spiking = jb.from_nir(graph, neuron=jb.Burst(1, reset="zero"))
    found = jb.simulate(model, spiking, x, 4)
    assert found.logits[-1].tolist() == [[0.5, 1.0]]  # every second step, every step
    endless = np.full(3, np.inf)
    leaky = nir.LIF(endless, endless, np.zeros(3), np.array([1.0, 0.5, 1.0]))
    graph = chain(("0", dense(3, 3)), ("1", leaky), ("2", dense(2, 3)))
    model, spiking = jb.from_nir(graph, neuron=jb.Burst(1))
    found = jb.simulate(model, spiking, x, 4)
    assert found.logits[-1].tolist() == [[0.5, 1.0]]


@pytest.mark.parametrize(
    "node, words",
    [
        (nir.LIF(*np.ones((4, 3))), "its potential leaks .tau = 1"),
        (nir.Threshold(np.ones(3)), "expected neurons .IF., found Affine, .*Threshold"),
        (nir.IF(np.ones(3), -np.ones(3)), "not greater than 0"),
    ],
)
def test_graphs_that_are_not_read(node, words):
    graph = chain(("0", dense(3, 3)), ("1", node), ("2", dense(2, 3)))
    with pytest.raises(ValueError, match=words):
        jb.from_nir(graph, neuron=jb.Burst(1))


def test_loops_and_damaged_files_are_not_read(tmp_path):
    unit = nir.IF(np.ones(3), np.ones(3))
    graph = chain(("0", dense(3, 3)), ("1", unit), ("2", dense(2, 3)))
    graph.edges.append(("1", "0"))
    with pytest.raises(ValueError, match="0, 1, 2, output form a loop"):
        jb.from_nir(graph, neuron=jb.Burst(1))
    path = tmp_path / "network.nir"
    path.write_bytes(b"no graph")
    with pytest.raises(ValueError, match="damaged or no NIR graph"):
        jb.from_nir(path)
    with pytest.raises(FileNotFoundError, match="expected a NIR graph"):
        jb.from_nir(tmp_path / "none.nir")


def small(function=None, neuron=None, **how):
    """`(model, spiking)` of one hidden layer."""
    w = (np.eye(4, dtype="f"), np.ones((4, 2), "f"))
    function = function or (lambda w, x: relu(x @ w[0]) @ w[1])
    network = jb.trace(function, w, np.ones((1, 4), "f"))
    thresholds = dict.fromkeys(network.neurons, np.float32(1))
    spiking = jb.convert(network, w, thresholds, **{"initial": 0} | how)
    return jb.Model(network, neuron or jb.Burst(1)), spiking


def pooled(w, x):
    return relu(x @ w[0]).reshape(-1, 2, 2).max(-1) @ w[1][:2]


def patches(w, x):
    return jnp.einsum("bpc,cd->bpd", relu(x @ w[0]).reshape(-1, 2, 2), w[1][:2])


@pytest.mark.parametrize(
    "how, words",
    [
        ({"neuron": jb.Burst(5)}, "relu0: NIR has no word for Burst.*convert for"),
        ({"neuron": jb.Refining()}, "NIR has no word for Refining"),
        ({"initial": 0.5}, r"start at 0, these at 0.5 .* convert\(..., initial=0\)"),
        ({"function": pooled}, "lateral inhibition .*: train with average pooling"),
        ({"function": patches}, "a product at every place .*: use a 1x1 convolution"),
        (
            {"function": lambda w, x: jnp.clip(x @ w[0], 0, 2) @ w[1]},
            "no plain ReLU: train with ReLU",
        ),
    ],
)
def test_what_nir_cannot_say_is_refused_with_the_alternative(tmp_path, how, words):
    model, spiking = small(**how)
    path = tmp_path / "network.nir"
    with pytest.raises(ValueError, match=words):
        jb.to_nir(model, spiking, path)
    assert not path.exists()


def test_maps_of_one_channel_and_one_pixel(tmp_path):
    """Where axes of size 1 could be taken for each other; channels come first."""

    def function(w, x):
        how = {"dimension_numbers": ("NCHW", "OIHW", "NCHW")}
        x = relu(jax.lax.conv_general_dilated(x, w[0], (1, 1), "SAME", **how))
        x = jax.lax.reduce_window(
            x, np.float32(0), jax.lax.add, (1, 1, 4, 2), (1, 1, 4, 2), "VALID"
        )
        x = relu(jax.lax.conv_general_dilated(x, w[1], (1, 1), "VALID", **how))
        return x.reshape(x.shape[0], -1) @ w[2]

    shapes = (1, 1, 3, 3), (2, 1, 1, 2), (2, 3)
    rng = np.random.default_rng(0)
    w = rounded([abs(rng.normal(size=shape)) for shape in shapes])
    x = np.moveaxis(images(4, 4, 1), -1, 1)
    network = jb.trace(function, w, x)
    spiking = jb.convert(network, w, dict.fromkeys(network.neurons, 0.25), initial=0)
    model = jb.Model(network, jb.Burst(1))
    expected = jb.simulate(model, spiking, x, STEPS)
    assert all(np.sum(count) > 5 for count in expected.events.values())
    again = jb.from_nir(jb.to_nir(model, spiking, tmp_path / "network.nir"))
    found = jb.simulate(*again, x, STEPS)
    np.testing.assert_array_equal(found.logits, expected.logits)


def test_a_file_that_is_something_else_is_kept(tmp_path):
    path = tmp_path / "network.nir"
    path.write_text("years of work")
    with pytest.raises(FileExistsError, match="is not a NIR graph"):
        jb.to_nir(*small(), path)
    assert path.read_text() == "years of work"
