"""Released networks load, are what they say, and cannot be damaged unnoticed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxburst as jb
from jaxburst import checkpoint, released

LAYERS = jb.zoo.vgg_tiny(3)


@pytest.fixture(scope="module")
def variables():
    return jb.Network(LAYERS).init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))


@pytest.mark.parametrize("name", released.names())
def test_released_networks_are_whole(name):
    arch, dataset = name.rsplit("-", 1)
    layers, variables = jb.pretrained(name)
    assert layers == jb.zoo.NETWORKS[arch](layers[-1].features)
    images = np.zeros((2, 32, 32, 3), np.float32)
    logits, _ = jb.ann.apply(layers, variables, images)
    assert logits.shape == (2, {"cifar10": 10, "cifar100": 100}[dataset])
    notes = released.notes(name)
    assert notes["dataset"] == dataset and 0.5 < notes["test_accuracy"] < 1
    assert notes["recipe"]["seed"] >= 0


def test_released_networks_take_little_room():
    files = [path for path in released.FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 30e6


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="expected one of .*found 'alexnet'"):
        jb.pretrained("alexnet")


def test_a_trained_network_comes_back_in_16_bits(tmp_path, variables):
    checkpoint.save_trained(tmp_path / "net", LAYERS, variables, {"seed": 3})
    layers, found, notes = checkpoint.load_trained(tmp_path / "net")
    assert layers == LAYERS and notes == {"seed": 3}
    assert jax.tree.structure(found) == jax.tree.structure(variables)

    def close(a, b):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=2**-11, atol=2**-25)

    jax.tree.map(close, found, variables)


def test_damage_is_noticed(tmp_path, variables, monkeypatch):
    monkeypatch.setattr(released, "FOLDER", tmp_path)
    checkpoint.save_trained(tmp_path / "small-digits", LAYERS, variables)
    assert released.names() == ("small-digits",)
    jb.pretrained("small-digits")
    weights = tmp_path / "small-digits/weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match="SHA-256"):
        jb.pretrained("small-digits")


def test_weights_beyond_16_bits_are_refused(tmp_path, variables):
    large = jax.tree.map(lambda x: x * 1e6, variables)
    with np.errstate(over="ignore"), pytest.raises(ValueError, match="conv0/kernel"):
        checkpoint.save_trained(tmp_path / "net", LAYERS, large)
    assert not list(tmp_path.iterdir())


def test_converted_and_trained_networks_are_told_apart(tmp_path, variables):
    checkpoint.save_trained(tmp_path / "net", LAYERS, variables)
    with pytest.raises(ValueError, match="of the other kind"):
        jb.load(tmp_path / "net")
