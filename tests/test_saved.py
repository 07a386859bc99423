"""Saved networks: round trips, damage that must not pass, interruptions."""

import dataclasses
import json
import os

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from jaxburst.convert import convert
from jaxburst.io import checkpoint
from jaxburst.io.checkpoint import describe, load, save
from jaxburst.io.sealed import seal
from jaxburst.neurons import Burst, Refining
from jaxburst.normalise import normalise
from jaxburst.run import Model, simulate
from jaxburst.tracing import trace


class Net(nn.Module):
    features: int = 4
    stride: int = 2
    cap: float | None = None

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3))(x))
        x = nn.max_pool(x, (2, 2), (self.stride, self.stride), "SAME")
        x = nn.relu(x + nn.Conv(4, (3, 3))(x))
        if self.cap is not None:
            x = jnp.minimum(x, self.cap)
        x = x * jnp.array([1.0, 2.0, 0.5, 1.0]).reshape(1, 1, 1, 4)
        x = x[:, ::2, ::2].reshape(x.shape[0], -1)
        return nn.Dense(3)(nn.relu(nn.Dense(self.features)(x)))


IMAGES = np.random.default_rng(0).normal(size=(2, 6, 6, 1)).astype(np.float32)


def traced(**fields):
    net = Net(**fields)
    variables = net.init(jax.random.key(0), IMAGES)
    return trace(net.apply, variables, IMAGES), variables


@pytest.fixture(scope="module")
def saved():
    network, variables = traced()
    thetas = {name: np.float32(0.2 + i) for i, name in enumerate(network.neurons)}
    thetas[network.neurons[1]] = np.full(4, 0.3, np.float32)
    spiking = convert(network, variables, thetas)
    neuron = Burst(3, True, gammas=(("relu0", 2), ("relu2", 9)))
    return Model(network, neuron, "gated", True, "bfloat16"), spiking


def equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    kinds = jax.tree.map(lambda a, b: jnp.result_type(a) == jnp.result_type(b),
                         found, expected)  # fmt: skip
    assert all(jax.tree.leaves(kinds))


def test_a_saved_network_loads_as_it_was(tmp_path, saved):
    model, spiking = saved
    path = save(tmp_path / "net", model, spiking, notes={"mean": [0.5, 0.4]})
    assert path == tmp_path / "net"
    loaded, arrays = load(path, traced()[0])
    assert loaded == model
    equal(arrays, spiking)
    one = simulate(model, spiking, IMAGES, 3)
    other = simulate(loaded, arrays, IMAGES, 3)
    jax.tree.map(np.testing.assert_array_equal, one, other)
    found = describe(path)
    assert found["notes"] == {"mean": [0.5, 0.4]}
    assert found["settings"]["pool"] == "gated"
    names = [row["name"] for row in found["nodes"]]
    assert names == [node.name for node in model.network.graph.nodes]
    # Any program that reads safetensors sees the arrays under the nodes' names.
    others = load_file(path)
    np.testing.assert_array_equal(others["Conv_0/kernel"], spiking["Conv_0"].kernel)
    np.testing.assert_array_equal(others["relu1/theta"], spiking["relu1"].theta)


def test_a_folder_holds_one_network_under_a_fixed_name(tmp_path, saved):
    path = save(tmp_path, *saved)
    assert path == tmp_path / "network.safetensors"
    assert load(tmp_path, saved[0].network)[0] == saved[0]
    assert describe(tmp_path)["notes"] == {}


@dataclasses.dataclass(frozen=True)
class Mine(Burst):
    inner: Refining = Refining()
    pairs: tuple = ((1, 2.5), ("a", None))


def test_any_neuron_and_any_weights(tmp_path, saved):
    network, spiking = saved[0].network, dict(saved[1])
    for neuron in (Refining(7, 4, 0.5), Burst(None), Mine(2, inner=Refining(3))):
        path = save(tmp_path / "net", Model(network, neuron), spiking)
        kinds = (Mine,) if isinstance(neuron, Mine) else ()
        assert load(path, network, kinds=kinds)[0].neuron == neuron
    with pytest.raises(ValueError, match=r"net: its neurons are of the kind 'Mine'.*"
                                         r"pass kinds=\(Mine,\)"):  # fmt: skip
        load(path, network)
    # Corrections by step and neuron; arrays that are not in C order; half precision.
    own = spiking["relu0"]
    shape = network.graph["relu0"].image_shape[1:]
    spiking["relu0"] = own._replace(bias=np.ones((2, *shape), np.float32))
    kernel = np.asarray(spiking["Conv_0"].kernel)
    flipped = np.asfortranarray(
        np.arange(kernel.size, dtype="f4").reshape(kernel.shape)
    )
    spiking["Conv_0"] = spiking["Conv_0"]._replace(kernel=flipped)
    spiking["Dense_0"] = jax.tree.map(
        lambda x: x.astype("bfloat16"), spiking["Dense_0"]
    )
    equal(load(save(path, Model(network), spiking), network)[1], spiking)


def test_double_precision_is_not_rounded_in_silence(tmp_path, saved):
    network, spiking = saved[0].network, saved[1]
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: x.astype("float64"), spiking)
        path = save(tmp_path / "net", Model(network), wide)
        equal(load(path, network)[1], wide)
    with pytest.raises(ValueError, match=r"net: Conv_0/bias is float64, which JAX"):
        load(path, network)


def test_a_network_with_wires_of_its_own(tmp_path, saved):
    network, spiking = normalise(saved[0].network, saved[1])
    path = save(tmp_path / "net", Model(network), spiking)
    equal(load(path, network)[1], spiking)
    with pytest.raises(ValueError, match="unit0"):
        load(path, saved[0].network)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"features": 5}, r"'Dense_1' is a synapse \(dot_general\) \(b, 4\); here, "
                          r"'Dense_1' is a synapse \(dot_general\) \(b, 5\)"),
        ({"stride": 1}, "there, .*; here, "),
        ({"cap": 6.0}, r"'relu1' is a neuron .*; here, 'relu2' is a neuron"),
    ],
)  # fmt: skip
def test_another_network_is_refused_with_the_first_difference(
    tmp_path, saved, fields, message
):
    path = save(tmp_path / "net", *saved)
    other, _ = traced(**fields)
    with pytest.raises(ValueError, match=f"net: was saved of another .*{message}"):
        load(path, other)


def test_constants_and_order_are_part_of_a_network(tmp_path):
    def net(w, x, scale=2.0, order=1, cap=6.0):
        x = jnp.minimum(jax.nn.relu(x @ w), cap) * np.array(
            [[1.0, scale, 3.0]], np.float32
        )
        return x @ w, jax.nn.relu(x)[:, ::order]

    w = np.ones((3, 3), np.float32)

    def of(**options):
        return trace(lambda w, x: net(w, x, **options), w, np.ones((1, 3), np.float32))

    network = of()
    spiking = convert(network, w, dict.fromkeys(network.neurons, 1.0))
    path = save(tmp_path / "net", Model(network), spiking)
    load(path, of())
    with pytest.raises(ValueError, match="mul0 has constants"):
        load(path, of(scale=4.0))
    with pytest.raises(ValueError, match="another network"):
        load(path, of(order=-1))
    with pytest.raises(ValueError, match="has cap 6.0 there, 5.0 here"):
        load(path, of(cap=5.0))


@pytest.fixture(scope="module")
def content(tmp_path_factory, saved):
    path = tmp_path_factory.mktemp("saved") / "net"
    return path, save(path, *saved).read_bytes()


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_no_damage_passes(content, saved, data):
    """Any byte changed, left out, or added: an error that names the file."""
    path, whole = content
    damaged = bytearray(whole)
    header = 8 + int.from_bytes(whole[:8], "little")
    place = data.draw(
        st.one_of(
            st.integers(0, 16), st.integers(0, header), st.integers(0, len(whole) - 1)
        )
    )
    how = data.draw(st.sampled_from(("flip", "cut", "drop", "add")))
    if how == "flip":
        damaged[place] ^= data.draw(st.integers(1, 255))
    elif how == "cut":
        del damaged[place:]
    elif how == "drop":
        del damaged[place]
    else:
        damaged.insert(place, data.draw(st.integers(0, 255)))
    path.write_bytes(damaged)
    if bytes(damaged) == whole:
        return
    with pytest.raises(ValueError, match=f"{path}: "):
        load(path, saved[0].network)


def test_a_changed_setting_is_found(content, saved):
    path, whole = content
    assert whole.count(b'\\"gamma\\": 3') == 1
    path.write_bytes(whole.replace(b'\\"gamma\\": 3', b'\\"gamma\\": 2'))
    with pytest.raises(ValueError, match=r"net: damaged, or not .*its SHA-256 is"):
        load(path, saved[0].network)


def test_what_is_wrong_is_said(tmp_path, content, saved):
    network, whole = saved[0].network, content[1]
    path = tmp_path / "net"
    with pytest.raises(FileNotFoundError, match="net: not found; expected a file of"):
        load(path, network)
    for size in (0, 5, 100):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=f"it has {size} bytes, too few for its"):
            load(path, network)
    path.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=f"by its header it should be {len(whole)}"):
        load(path, network)
    save_file({"a": np.ones(3)}, path)
    with pytest.raises(ValueError, match="net: .*file of another program"):
        load(path, network)
    path.write_bytes(seal("jaxburst 9", {}, {}))
    with pytest.raises(ValueError, match="of the format 'jaxburst 9', expected 'jaxb"):
        load(path, network)
    # Whole, but nothing that `save` would have written.
    for description in ({}, {"parts": {}}, [], {"nodes": 3}):
        path.write_bytes(seal(checkpoint.FORMAT, description, {}))
        with pytest.raises(ValueError, match="net: "):
            load(path, network)
    with pytest.raises(TypeError, match="network: expected what trace returns"):
        load(path, ())


def test_something_else_is_not_replaced(tmp_path, saved):
    for name, content in (("thesis.tex", b"years"), ("empty", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FileExistsError, match=f"{name}: is there already and is"):
            save(tmp_path / name, *saved)
        assert (tmp_path / name).read_bytes() == content
    save_file({"a": np.ones(3)}, tmp_path / "others.safetensors")
    with pytest.raises(FileExistsError, match="is not a saved network"):
        save(tmp_path / "others.safetensors", *saved)


def test_what_no_file_can_hold_is_refused_before_anything_is_written(tmp_path, saved):
    model, spiking = saved
    odd = Mine(pairs=(("a", np.ones(3)),))
    with pytest.raises(TypeError, match="save: neuron.pairs must be numbers"):
        save(tmp_path / "net", Model(model.network, odd), spiking)
    with pytest.raises(TypeError, match="not JSON serializable"):
        save(tmp_path / "net", model, spiking, notes={"a": object()})
    with pytest.raises(
        ValueError, match="Conv_0: the converted network has no weights"
    ):
        save(tmp_path / "net", model, {})
    with pytest.raises(TypeError, match="expected a Model, found Network"):
        save(tmp_path / "net", model.network, spiking)
    assert not os.listdir(tmp_path)


def test_the_table_is_plain_data(saved):
    text = json.dumps(checkpoint._table(saved[0].network.graph))
    assert "0x" not in text  # no addresses: another process writes the same
