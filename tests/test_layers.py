"""One path addresses the same layer everywhere; what has no meaning is refused."""

import pytest
from networks import TABLE

from jaxburst import zoo
from jaxburst.layers import (
    AvgPool,
    Conv,
    Dense,
    Flatten,
    MaxPool,
    Relu,
    Residual,
    Subsample,
    named,
    summary,
    trace_shapes,
    validate,
    walk,
)

HEAD = (Relu(), Flatten(), Dense(3))


def test_names_count_by_kind():
    layers = (Conv(4), Relu(), Conv(4), MaxPool(2), Relu(), Flatten(), Dense(3))
    assert [name for name, _ in named(layers)] == [
        *("conv0", "relu0", "conv1", "maxpool0", "relu1", "flatten0", "dense0")
    ]


def test_paths_restart_counters_in_each_scope():
    layers = (
        *(Conv(4), Relu()),
        Residual((Conv(4), Relu(), Conv(4))),
        Relu(),
        Residual((Conv(8, stride=2), Relu(), Conv(8)), (Subsample(8),)),
        *(Relu(), AvgPool(), Flatten(), Dense(3)),
    )
    assert [path for path, _ in walk(layers)] == [
        *("conv0", "relu0"),
        *("residual0", "residual0/body/conv0"),
        *("residual0/body/relu0", "residual0/body/conv1"),
        "relu1",
        *("residual1", "residual1/body/conv0"),
        *("residual1/body/relu0", "residual1/body/conv1"),
        "residual1/shortcut/subsample0",
        *("relu2", "avgpool0", "flatten0", "dense0"),
    ]


@pytest.mark.parametrize("name", TABLE)
def test_networks_are_hashable_printable_and_equal_to_their_text(name):
    layers, image_shape = TABLE[name]
    again = eval(repr(layers))
    assert again == layers and again is not layers
    assert hash(again) == hash(layers)
    validate(layers, image_shape)
    assert [path for path, _ in walk(layers)] == sorted(
        (row.path for row in trace_shapes(layers, image_shape)),
        key=[path for path, _ in walk(layers)].index,
    )


@pytest.mark.parametrize("name", zoo.NETWORKS)
def test_the_zoo_fits_its_images(name):
    layers = zoo.NETWORKS[name](classes=7)
    image_shape = (8, 8, 1) if name.endswith("tiny") else (32, 32, 3)
    validate(layers, image_shape)
    assert trace_shapes(layers, image_shape)[-1].output == (7,)


# The numbers of the literature: ResNet-20 in He et al. (2016), table 6, without and
# with the parameters of its normalisations; ResNet-18 for CIFAR with ten classes.
@pytest.mark.parametrize(
    "layers, parameters, macs",
    [
        (zoo.resnet20(10), 269_722, 40_551_040),
        (zoo.resnet18(10), 11_173_962, 555_422_720),
        (zoo.vgg16(10), 14_728_266, 313_201_664),
    ],
)
def test_totals_of_the_literature(layers, parameters, macs):
    rows = trace_shapes(layers, (32, 32, 3))
    assert sum(row.parameters for row in rows) == parameters
    assert sum(row.macs for row in rows) == macs
    last = summary(layers, (32, 32, 3)).splitlines()[-1].split()
    assert last == ["total", f"{parameters:,}", f"{macs:,}"]


def test_summary_by_eye():
    layers = (
        *(Conv(4, bias=True, norm=True), Relu(), MaxPool(2)),
        Residual((Conv(4, norm=True),)),
        *(Relu(), AvgPool(), Flatten(), Dense(3)),
    )
    # conv0: 9 taps x 2 channels x 4 features, and per feature a bias, a scale, a shift;
    # 72 taps at each of 16 places, padding included. The next: 9 x 4 x 4 and 2 x 4.
    expected = """
        path  layer  output  parameters  MACs
        conv0  Conv(features=4, bias=True, norm=True)  4x4x4  84  1,152
        relu0  Relu()  4x4x4  0  0
        maxpool0  MaxPool(window=2)  2x2x4  0  0
        residual0/body/conv0  Conv(features=4, norm=True)  2x2x4  152  576
        relu1  Relu()  2x2x4  0  0
        avgpool0  AvgPool()  1x1x4  0  0
        flatten0  Flatten()  4  0  0
        dense0  Dense(features=3)  3  15  12
        total  251  1,740
    """
    found = summary(layers, (4, 4, 2)).splitlines()
    assert len(found) == 10
    assert "\n".join(found).split() == expected.split()


class ReLU6:
    def __repr__(self):
        return "ReLU6()"


@pytest.mark.parametrize(
    "layers, error, message",
    [
        ([Conv(4), *HEAD], TypeError, "a network is a tuple of layers, found list"),
        ((Conv(4), ReLU6(), *HEAD), TypeError, r"layer 1 of the network: ReLU6\(\)"),
        (
            (Conv(4), Relu(), Residual((Conv(4), ReLU6())), *HEAD),
            TypeError,
            r"layer 1 of residual0/body: ReLU6\(\) has no spiking meaning",
        ),
        ((Conv, *HEAD), TypeError, "layer 0 of the network"),
        ((Conv(4), Residual([Conv(4)]), *HEAD), TypeError, "residual0: body must be"),
        ((Conv(4), Residual(()), *HEAD), ValueError, "residual0: the body is empty"),
        ((Conv(0), *HEAD), ValueError, "conv0: features .* at least 1, found 0"),
        ((Conv(4), Relu(), Conv(4, stride=0), *HEAD), ValueError, "conv1: stride"),
        ((Conv(4, kernel=1.5), *HEAD), ValueError, "conv0: kernel .* found 1.5"),
        ((Conv(4, padding=-1), *HEAD), ValueError, "conv0: padding .* at least 0"),
        ((Conv(4, padding=True), *HEAD), ValueError, "conv0: padding .* found True"),
        ((Conv(4), Relu(), MaxPool(None), *HEAD), ValueError, "maxpool0: window"),
        ((Conv(4), Relu(), MaxPool(2, 0), *HEAD), ValueError, "maxpool0: stride"),
        ((Conv(4), Relu(), MaxPool(2, 2, 2), *HEAD), ValueError, "maxpool0: padding 2"),
        ((Conv(4), Relu(), AvgPool(0), *HEAD), ValueError, "avgpool0: window"),
        (
            (MaxPool(2), Conv(4), *HEAD),
            ValueError,
            "maxpool0: .*receives no spikes yet",
        ),
        (
            (Conv(4), MaxPool(2), *HEAD),
            ValueError,
            "maxpool0: .*receives no spikes yet",
        ),
        (
            (Conv(4), Relu(), Conv(4), MaxPool(2), *HEAD),
            ValueError,
            "maxpool0: .*receives a current; put the Relu before the MaxPool",
        ),
        (
            (Conv(4), Relu(), Residual((Conv(4), MaxPool(1))), *HEAD),
            ValueError,
            "residual0/body/maxpool0: .*a current",
        ),
        ((Conv(4), Relu(), Conv(4), Conv(4), *HEAD), ValueError, "conv2: .*a current"),
        (
            (Conv(4), Relu(), Residual((Conv(4),)), Conv(4), *HEAD),
            ValueError,
            "conv1: receives a current",
        ),
        ((Conv(4), Relu(), Flatten(), Dense(3), Relu()), ValueError, "ends in relu1"),
        ((), ValueError, "ends in nothing"),
        ((Flatten(), Dense(3)), ValueError, "needs a Relu"),
    ],
)
def test_networks_without_meaning_are_refused_by_name(layers, error, message):
    with pytest.raises(error, match=message):
        validate(layers)


@pytest.mark.parametrize(
    "layers, image_shape, message",
    [
        ((Conv(4), *HEAD), (8, 8), r"image_shape .* found \(8, 8\)"),
        ((Conv(4), *HEAD), (8, 8, 0), "image_shape"),
        ((Conv(4), Relu(), Dense(3)), (8, 8, 1), r"dense0: .*\(8, 8, 4\); put a Fl"),
        ((Flatten(), Conv(4), *HEAD), (8, 8, 1), r"conv0: expected a map .*\(64,\)"),
        ((Conv(4, kernel=9), *HEAD), (6, 6, 1), "conv0: a window of 9 .* 6x6"),
        (
            (Conv(4), Relu(), MaxPool(2), MaxPool(4), *HEAD),
            (6, 6, 1),
            "maxpool1: a window of 4 with padding 0 does not fit into a map of 3x3",
        ),
        ((Conv(4), Relu(), AvgPool(), *HEAD), (6, 4, 1), "avgpool0: .* found 6x4"),
        (
            (Conv(4), Relu(), Residual((Conv(8),)), *HEAD),
            (6, 6, 1),
            r"residual0: the body gives \(6, 6, 8\) but the shortcut gives \(6, 6, 4\)",
        ),
        (
            (Conv(4), Relu(), Residual((Conv(2),), (Subsample(2, 1),)), *HEAD),
            (6, 6, 1),
            "residual0/shortcut/subsample0: cannot go from 4 channels down to 2",
        ),
    ],
)
def test_shapes_that_do_not_fit_are_refused_by_name(layers, image_shape, message):
    validate(layers)
    with pytest.raises(ValueError, match=message):
        validate(layers, image_shape)


def test_the_wide_network_of_the_authors_is_not_resnet20():
    wide = trace_shapes(zoo.resnet20_wide(10), (32, 32, 3))
    assert sum(row.parameters for row in wide) > 40 * 269_722


def test_an_unknown_shortcut_is_refused():
    with pytest.raises(ValueError, match="'subsample' or 'conv', found 'identity'"):
        zoo.resnet20(10, shortcut="identity")
