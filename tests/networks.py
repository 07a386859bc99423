"""One table of tiny networks; the laws are asked of all of them.

It holds every kind of layer and both forms of residual network, with random weights,
settled random batch statistics and random images.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle

from jaxburst import conversion, simulation
from jaxburst.ann import Network
from jaxburst.layers import (
    AvgPool,
    Conv,
    Dense,
    Flatten,
    Layers,
    MaxPool,
    Relu,
    Residual,
    Subsample,
    walk,
)
from jaxburst.neuron import Burst

TABLE: dict[str, tuple[Layers, tuple[int, int, int]]] = {
    # Max pools down to one pixel: 3x3 kernels on maps of 2x2 and 1x1.
    "vgg": (
        (
            *(Conv(4, bias=True, norm=True), Relu(), MaxPool(2)),
            *(Conv(5, norm=True), Relu(), MaxPool(2)),
            *(Conv(4, bias=True), Relu(), MaxPool(2)),
            *(Conv(6), Relu(), Flatten(), Dense(3)),
        ),
        (8, 8, 2),
    ),
    # Windows that overlap, are padded or cut the edge; a map that is not square.
    "windows": (
        (
            *(Conv(3, padding=0), Relu(), MaxPool(3, 2, 1)),
            *(Conv(4, kernel=2, stride=1, padding=1), AvgPool(2, 1), Relu()),
            *(AvgPool(2, 1), MaxPool(2), Flatten()),
            *(Dense(5, bias=False, norm=True), Relu(), Dense(3, bias=False)),
        ),
        (9, 8, 2),
    ),
    # The three shortcuts: identity, Subsample, 1x1 convolution.
    "resnet": (
        (
            *(Conv(4, norm=True), Relu()),
            Residual((Conv(4, norm=True), Relu(), Conv(4, norm=True))),
            Relu(),
            Residual(
                (Conv(7, stride=2, norm=True),),
                (Subsample(7),),
            ),
            Relu(),
            Residual(
                (Conv(8, stride=2, norm=True),),
                (Conv(8, kernel=1, stride=2, padding=0, norm=True),),
            ),
            *(Relu(), AvgPool(), Flatten(), Dense(3)),
        ),
        (7, 7, 2),
    ),
    # Both parts of the first layer receive the image itself.
    "residual first": (
        (
            Residual((Conv(3, bias=True), Relu(), Conv(3)), (Subsample(3, stride=1),)),
            *(Relu(), MaxPool(2), Flatten(), Dense(4)),
        ),
        (4, 4, 2),
    ),
    # A residual in the body of another; a body and a shortcut that end in a Relu.
    "nested": (
        (
            *(Conv(4, norm=True), Relu()),
            Residual(
                (
                    Conv(6, bias=True),
                    Residual((Relu(), Conv(6))),
                    *(Relu(), Conv(4, norm=True), Relu()),
                ),
                (Conv(4, kernel=1, padding=0), Relu()),
            ),
            *(Relu(), AvgPool(2), Flatten(), Dense(3)),
        ),
        (4, 4, 2),
    ),
    # The Relu before the convolution; sums that stay currents from block to block.
    "preactivation": (
        (
            Conv(4),
            Residual((Relu(), Conv(4, norm=True), Relu(), Conv(4, bias=True))),
            Residual(
                (Relu(), Conv(6, stride=2, norm=True)),
                (AvgPool(2), Subsample(6, stride=1)),
            ),
            *(Relu(), AvgPool(), Flatten(), Dense(3)),
        ),
        (6, 6, 2),
    ),
    # No convolution; a Relu that reads the image, and a second Flatten.
    "dense": (
        (
            *(Relu(), Flatten(), Dense(6, norm=True), Relu(), Flatten()),
            *(Dense(5, norm=True), Relu(), Dense(3)),
        ),
        (3, 2, 2),
    ),
}
NAMES = tuple(TABLE)
POOLED = tuple(
    name
    for name, (layers, _) in TABLE.items()
    if any(isinstance(layer, MaxPool) for layer in layers)
)
STEPS = 12


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """One line of the table with its weights, images and activations (float64)."""

    layers: Layers
    image_shape: tuple[int, int, int]
    variables: dict
    images: np.ndarray
    activations: dict[str, np.ndarray]
    logits: np.ndarray

    @property
    def relus(self) -> tuple[str, ...]:
        return relus(self.layers)

    def thresholds(self, neuron: Burst, per: str, share: float = 0.5718):
        """`share` of the largest activation over γ: some neurons reach the cap.

        No two are commensurable, so that no potential meets its threshold exactly.
        """
        found = {}
        for position, (path, values) in enumerate(self.activations.items()):
            axes = tuple(range(values.ndim - 1)) if per == "channel" else None
            peak = values.max(axes)
            peak = np.where(peak > 0, peak, values.max()) * share * 1.0171**position
            found[path] = peak / (neuron.gamma or 1)
        return found

    def spiking(self, neuron: Burst, per: str, initial: float, share: float = 0.5718):
        thresholds = self.thresholds(neuron, per, share)
        return _convert(self.layers, self.variables, thresholds, initial=initial)

    def simulate(
        self, spiking, neuron: Burst, pool="lateral", *, images=None, steps=STEPS
    ):
        """One compilation per network, neuron and pooling serves all tests."""
        model = simulation.Model(self.layers, neuron, pool)
        images = jnp.asarray(self.images if images is None else images)
        return _simulate(model, spiking, images, steps)


def relus(layers: Layers) -> tuple[str, ...]:
    return tuple(path for path, layer in walk(layers) if layer == Relu())


def quick(function, static=0):
    """`jax.jit` without optimisation: what runs only once compiles in half the time."""
    options = {"xla_backend_optimization_level": 0}
    return jax.jit(function, static_argnums=static, compiler_options=options)


_convert = quick(conversion.convert)


@functools.partial(quick, static=(0, 3))
def _simulate(model, spiking, images, steps):
    record = relus(model.layers)
    return simulation.simulate(model, spiking, images, steps, record=record)


@functools.cache
def case(name: str) -> Case:
    layers, image_shape = TABLE[name]
    rng = np.random.default_rng(NAMES.index(name))
    variables = random_variables(layers, image_shape, rng)
    images = rng.normal(size=(4, *image_shape))
    logits, activations = oracle.ann(layers, variables, images)
    return Case(layers, image_shape, variables, images, activations, logits)


def random_variables(layers: Layers, image_shape, rng: np.random.Generator) -> dict:
    """Variables of `Network(layers)` in float64, batch statistics included."""
    with jax.enable_x64(False):
        image = jnp.zeros((1, *image_shape), jnp.float32)
        shapes = jax.eval_shape(Network(layers).init, jax.random.key(0), image)

    def draw(path, leaf):
        match path[-1].key:
            case "kernel":
                spread = np.sqrt(2 / np.prod(leaf.shape[:-1]))
                return spread * rng.normal(size=leaf.shape)
            case "var":
                return rng.uniform(0.5, 2, leaf.shape)
            case "scale":
                return rng.uniform(0.5, 1.5, leaf.shape)
            case "bias" | "mean":
                return 0.3 * rng.normal(size=leaf.shape)

    return jax.tree_util.tree_map_with_path(draw, shapes)
