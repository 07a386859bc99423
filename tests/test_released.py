"""Released networks load, are what they say, and cannot be damaged unnoticed."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxburst import released, zoo

MODULE = zoo.vgg_tiny(3)


@pytest.fixture(scope="module")
def variables():
    return MODULE.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))


@pytest.mark.parametrize("name", released.names())
def test_released_networks_are_whole(name):
    network, dataset = name.rsplit("-", 1)
    module, variables = released.pretrained(name)
    assert isinstance(module, nn.Module)
    assert module == zoo.NETWORKS[network](module.classes)
    notes = released.notes(name)
    side = 28 if dataset == "fashion_mnist" else 32
    images = np.zeros((2, side, side, len(notes["mean"])), np.float32)
    logits = jax.jit(module.apply)(variables, images)
    assert logits.shape == (2, 100 if dataset == "cifar100" else 10)
    assert notes["dataset"] == dataset and 0.5 < notes["test_accuracy"] < 1
    assert notes["recipe"]["seed"] >= 0


def test_unknown_names_are_refused(tmp_path, variables):
    with pytest.raises(ValueError, match="expected one of .*found 'alexnet'"):
        released.pretrained("alexnet")
    with pytest.raises(ValueError, match="expected one of .*vgg16.*found 'alexnet'"):
        released.save(tmp_path / "net.safetensors", "alexnet", 3, variables)


def test_a_trained_network_comes_back_in_16_bits(tmp_path, variables):
    path = tmp_path / "new/net.safetensors"
    released.save(path, "vgg_tiny", 3, variables, {"seed": 3})
    module, found, notes = released.load(path)
    assert module == MODULE and notes == {"seed": 3}
    assert jax.tree.structure(found) == jax.tree.structure(variables)

    def close(a, b):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=2**-11, atol=2**-25)

    jax.tree.map(close, found, variables)
    again = released.save(tmp_path / "again.safetensors", "vgg_tiny", 3, found, notes)
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_damage_is_noticed(tmp_path, variables, monkeypatch, place):
    monkeypatch.setattr(released, "FOLDER", tmp_path)
    path = tmp_path / "small-digits.safetensors"
    released.save(path, "vgg_tiny", 3, variables, {"accuracy": 0.5})
    assert released.names() == ("small-digits",)
    released.pretrained("small-digits")
    content = path.read_bytes()
    at = {"first": content.index(b"0.5"), "middle": len(content) // 2, "last": -1}
    damaged = bytearray(content)
    damaged[at[place]] ^= 1
    for broken in (damaged, content[: len(content) // 2], b""):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="small-digits.safetensors: damaged"):
            released.pretrained("small-digits")
    path.unlink()
    with pytest.raises(FileNotFoundError, match="not found; expected a trained"):
        released.load(path)


def test_weights_beyond_16_bits_are_refused(tmp_path, variables):
    large = jax.tree.map(lambda x: x * 1e6, variables)
    with np.errstate(over="ignore"), pytest.raises(ValueError, match="conv0/kernel"):
        released.save(tmp_path / "net.safetensors", "vgg_tiny", 3, large)
    assert not list(tmp_path.iterdir())


def test_eight_bits_of_a_kernel(tmp_path, variables):
    """Within half of the last place of its channel; all else as it was."""
    wide, narrow = (
        released.save(tmp_path / f"{n}.safetensors", "vgg_tiny", 3, variables, bits=n)
        for n in (16, 8)
    )
    assert narrow.stat().st_size < 0.75 * wide.stat().st_size
    _, found, _ = released.load(narrow)
    assert jax.tree.structure(found) == jax.tree.structure(variables)

    def close(path, a, b):
        a, b = np.asarray(a), np.asarray(b)
        if path[-1].key != "kernel":
            np.testing.assert_array_equal(a, b)
            return
        step = np.abs(b).max(tuple(range(b.ndim - 1))) / 127
        assert (np.abs(a - b) <= 0.5001 * step).all() and (a != b).any()
        assert len(np.unique(np.rint(a / step))) > 50

    jax.tree_util.tree_map_with_path(close, found, variables)
    with pytest.raises(ValueError, match="bits: expected 8 or 16, found 4"):
        released.save(tmp_path / "net", "vgg_tiny", 3, variables, bits=4)


def test_variables_of_another_network_are_refused(tmp_path, variables):
    with pytest.raises(ValueError, match="variables: .* only one of resnet_tiny"):
        released.save(tmp_path / "net", "resnet_tiny", 3, variables)


def test_weights_lie_where_the_environment_says(tmp_path, variables, monkeypatch):
    released.save(tmp_path / "own-digits.safetensors", "vgg_tiny", 3, variables)
    with pytest.raises(ValueError, match="put own-digits.safetensors .*JAXBURST_WEIG"):
        released.pretrained("own-digits")
    monkeypatch.setenv("JAXBURST_WEIGHTS", str(tmp_path))
    assert "own-digits" in released.names() and len(released.names()) > 1
    assert released.pretrained("own-digits")[0] == MODULE
    with pytest.raises(ValueError, match="found '../own-digits'"):
        released.pretrained("../own-digits")


def test_all_released_files_together_are_small():
    sizes = [path.stat().st_size for path in released.FOLDER.iterdir()]
    assert sizes and sum(sizes) < 30e6
