"""Round trips of converted networks, and damage that must not pass unnoticed."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxburst as jb
from jaxburst.layers import Conv, Dense, Flatten, MaxPool, Relu, Residual, walk

LAYERS = (
    Conv(4, bias=True, norm=True),
    Relu(),
    MaxPool(2),
    Residual((Conv(4, norm=True), Relu(), Conv(4))),
    Relu(),
    Flatten(),
    Dense(3),
)


@pytest.fixture(scope="module")
def network():
    variables = jb.Network(LAYERS).init(jax.random.key(0), jnp.zeros((1, 4, 4, 2)))
    relus = [path for path, layer in walk(LAYERS) if isinstance(layer, Relu)]
    thresholds = {path: jnp.float32(0.3) for path in relus}
    spiking = jb.convert(LAYERS, variables, thresholds)
    neuron = jb.Burst(3, True, gammas=(("relu0", 2),))
    return jb.Model(LAYERS, neuron, "gated", True, "bfloat16"), spiking


def test_a_saved_network_loads_as_it_was(tmp_path, network):
    model, spiking = network
    folder = jb.save(tmp_path / "net", model, spiking, {"mean": [0.5, 0.4]})
    loaded_model, loaded, notes = jb.load(folder)
    assert loaded_model == model
    assert notes == {"mean": [0.5, 0.4]}
    assert list(loaded) == list(spiking)
    jax.tree.map(np.testing.assert_array_equal, loaded, spiking)
    assert jax.tree.structure(loaded) == jax.tree.structure(spiking)


def test_saving_again_replaces_and_leaves_nothing_else(tmp_path, network):
    model, spiking = network
    jb.save(tmp_path / "net", model, spiking)
    zeros = jax.tree.map(jnp.zeros_like, spiking)
    jb.save(tmp_path / "net", model, zeros)
    assert not jb.load(tmp_path / "net")[1]["conv0"].kernel.any()
    assert [path.name for path in tmp_path.iterdir()] == ["net"]


def test_a_failed_save_leaves_the_old_network(tmp_path, network):
    model, spiking = network
    jb.save(tmp_path / "net", model, spiking)
    with pytest.raises(TypeError):
        jb.save(tmp_path / "net", model, spiking, {"not json": object()})
    assert [path.name for path in tmp_path.iterdir()] == ["net"]
    jb.load(tmp_path / "net")


def test_a_folder_of_something_else_is_not_replaced(tmp_path, network):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match="not a saved network"):
        jb.save(tmp_path, *network)
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.parametrize("position", [-1, -200, 40])
def test_a_flipped_bit_is_found(tmp_path, network, position):
    folder = jb.save(tmp_path / "net", *network)
    weights = bytearray((folder / "weights.safetensors").read_bytes())
    weights[position] ^= 1
    (folder / "weights.safetensors").write_bytes(weights)
    with pytest.raises(ValueError, match=r"is damaged.*SHA-256"):
        jb.load(folder)


def test_a_changed_setting_is_found(tmp_path, network):
    folder = jb.save(tmp_path / "net", *network)
    text = (folder / "network.json").read_text()
    assert '"gamma": 3' in text
    (folder / "network.json").write_text(text.replace('"gamma": 3', '"gamma": 2'))
    with pytest.raises(ValueError, match=r"is damaged.*SHA-256"):
        jb.load(folder)


def test_truncated_and_missing_files_are_named(tmp_path, network):
    folder = jb.save(tmp_path / "net", *network)
    text = (folder / "network.json").read_text()
    (folder / "network.json").write_text(text[:100])
    with pytest.raises(ValueError, match=r"network.json: damaged"):
        jb.load(folder)
    (folder / "network.json").write_text(json.dumps({"layers": []}))
    with pytest.raises(ValueError, match=r"network.json: damaged"):
        jb.load(folder)
    (folder / "network.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"network.json: not found"):
        jb.load(folder)


@pytest.mark.parametrize("name", jb.zoo.NETWORKS)
def test_every_network_of_the_zoo_survives_json(name):
    layers = jb.zoo.NETWORKS[name](10)
    text = json.dumps(jb.checkpoint.to_json(layers))
    assert jb.checkpoint.from_json(json.loads(text)) == layers


def test_an_unknown_layer_in_json_is_named():
    with pytest.raises(ValueError, match="'Relu6' is not a layer"):
        jb.checkpoint.from_json([{"kind": "Relu6"}])


def test_an_interrupted_replacement_leaves_one_of_the_two(
    tmp_path, network, monkeypatch
):
    model, spiking = network
    jb.save(tmp_path / "net", model, spiking)
    rename, calls = Path.rename, []

    def interrupted(self, target):
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        jb.save(tmp_path / "net", model, spiking)
    whole = [path for path in tmp_path.iterdir() if jb.load(path)]
    assert whole
