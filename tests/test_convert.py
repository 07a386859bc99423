"""What can be converted, and what is refused by name; the laws are in `test_laws`."""

import jax
import numpy as np
import pytest
from nets import case

from jaxburst.convert import convert
from jaxburst.neurons import Burst
from jaxburst.run import infer

pytestmark = pytest.mark.usefixtures("double")


@pytest.fixture(scope="module")
def double():
    with jax.enable_x64(True):
        yield


def test_initial_potential_is_half_a_threshold_unless_asked():
    it = case("vgg")
    thresholds = it.thresholds(Burst(5))
    for settings, expected in (({}, 0.5), ({"initial": 0.0}, 0.0)):
        spiking = convert(it.network, it.variables, thresholds, **settings)
        starts = {float(spiking[name].initial) for name in it.network.neurons}
        assert starts == {expected}
    with pytest.raises(ValueError, match="between 0 and 1, found 1.5"):
        convert(it.network, it.variables, thresholds, initial=1.5)


def test_whole_numbers_are_thresholds_too():
    it = case("vgg")
    spiking = convert(it.network, it.variables, dict.fromkeys(it.network.neurons, 1))
    for name in it.network.neurons:
        assert float(spiking[name].initial) == 0.5 and float(spiking[name].theta) == 1
        assert np.issubdtype(spiking[name].theta.dtype, np.floating)


def replaced(tree, path, value):
    """A copy of the nested dictionary with another value at 'a/b/c'."""
    first, _, rest = path.partition("/")
    return tree | {first: replaced(tree[first], rest, value) if rest else value}


@pytest.mark.parametrize(
    "path, change, message",
    [
        ("params/conv0/kernel", lambda x: x * np.nan, "conv0/kernel: .*not finite"),
        (
            "batch_stats/residual1_body/conv0_norm/var",
            lambda x: x + np.inf,
            "residual1_body/conv0_norm/var: .*not finite",
        ),
        (
            "params/residual0_body",
            lambda x: {},
            "missing: params/residual0_body/conv0/kernel, .*unknown: none",
        ),
        (
            "params/dense0/bias",
            lambda x: x[1:],
            r"dense0/bias was \(3,\) when traced, is \(2,\)",
        ),
        ("params/conv0/kernel", lambda x: x[0], r"conv0/kernel was .*is \(3, 2, 4\)"),
        ("params/dense0/extra", lambda x: np.ones(3), "none; unknown: .*dense0/extra"),
        ("params/dense1", lambda x: {"kernel": np.ones(3)}, "dense1/kernel"),
    ],
)
def test_unfit_variables_are_refused_by_name(path, change, message):
    it = case("resnet")
    value = it.variables
    for key in path.split("/"):
        value = value.get(key, {})
    variables = replaced(it.variables, path, change(value))
    with pytest.raises(ValueError, match=message):
        convert(it.network, variables, it.thresholds(Burst(5)))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop("relu1"), "missing: .'relu1'., unknown: none"),
        (lambda t: t.update(relu9=1.0), "missing: none, unknown: .'relu9'."),
        (lambda t: t.update(relu1=0.0), "relu1: .*greater than 0"),
        (lambda t: t.update(relu1=np.arange(5) - 2.0), "relu1: .*-2.0"),
        (lambda t: t.update(relu1=np.ones(2)), r"relu1: .*\(5,\)\], found \(2,\)"),
        (lambda t: t.update(relu1=np.nan), "relu1: .*finite"),
    ],
)
def test_unfit_thresholds_are_refused_by_name(change, message):
    it = case("vgg")
    thresholds = it.thresholds(Burst(5))
    change(thresholds)
    with pytest.raises(ValueError, match=message):
        convert(it.network, it.variables, thresholds)


def test_variables_of_another_network_are_refused():
    it, other = case("resnet"), case("vgg")
    inside = it.variables["params"]
    for given, words in (
        (other.variables, "missing: .*residual0_body/conv0_norm.* and 21 more"),
        (inside, "found a part of them: conv0.*, of batch_stats/"),
        (it.inputs, r"found float\d+ .*; are the arguments in order"),
        ((it.inputs, 3), r"found a tuple of float\d+ .*, int; are the arguments"),
    ):
        with pytest.raises(ValueError, match=words):
            convert(it.network, given, it.thresholds(Burst(5)))
    with pytest.raises(ValueError, match="pass the inputs alone, without labels"):
        infer(it.model(Burst(5)), it.spiking(Burst(5)), (it.inputs, it.inputs), 2)
