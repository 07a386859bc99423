"""The vocabulary: a network is a tuple of small frozen layers.

A layer holds no arrays. It is hashable and printable, so a network can be a static
argument of a jitted function, a dictionary key, or a line in a log:

    (Conv(16), Relu(), MaxPool(2), Flatten(), Dense(10))

Every other module is one reading of such a tuple. `named` gives each layer its name
within its scope (`conv0`, `relu0`, ...; counters restart in each scope), and the names
joined by '/' are the one path that addresses the layer in every tree of the library:
parameters, activations, thresholds, membranes, spike counts.

Throughout, `B` counts images, `T` time steps; maps are `[B, H, W, C]`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

Shape: TypeAlias = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Conv:
    """2-D convolution with explicit symmetric zero padding, as in PyTorch.

    Attributes:
      features: number of output channels.
      kernel: side of the square kernel.
      stride: step of the kernel, the same in both directions.
      padding: rows and columns of zeros added on each side.
      bias: whether a bias is added.
      norm: whether batch normalisation follows; its parameters live under `norm`.
    """

    features: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    bias: bool = False
    norm: bool = False


@dataclasses.dataclass(frozen=True)
class Dense:
    """Fully connected layer on `[B, features]`; `bias` and `norm` as in `Conv`."""

    features: int
    bias: bool = True
    norm: bool = False


@dataclasses.dataclass(frozen=True)
class Relu:
    """Rectified linear unit: the layer that becomes a population of spiking neurons."""


@dataclasses.dataclass(frozen=True)
class MaxPool:
    """Max pooling over square windows. The padding never wins, as in PyTorch."""

    window: int
    stride: int | None = None
    padding: int = 0


@dataclasses.dataclass(frozen=True)
class AvgPool:
    """Average pooling over square windows without padding; `None` is the whole map."""

    window: int | None = None
    stride: int | None = None


@dataclasses.dataclass(frozen=True)
class Flatten:
    """`[B, H, W, C]` to `[B, H * W * C]`."""


@dataclasses.dataclass(frozen=True)
class Subsample:
    """The parameter-free shortcut ("option A" of He et al., 2016, section 4.2).

    Takes every `stride`-th row and column and adds channels of zeros up to `features`,
    half of the new ones before the old and half after.
    """

    features: int
    stride: int = 2


@dataclasses.dataclass(frozen=True)
class Residual:
    """`body(x) + shortcut(x)`. An empty shortcut is the identity.

    The ReLU after the sum is the next layer outside. The scopes are called `body` and
    `shortcut`: `residual3/body/relu0`.
    """

    body: tuple[Layer, ...]
    shortcut: tuple[Layer, ...] = ()


Layer: TypeAlias = (
    Conv | Dense | Relu | MaxPool | AvgPool | Flatten | Subsample | Residual
)
Layers: TypeAlias = tuple[Layer, ...]

KINDS = (Conv, Dense, Relu, MaxPool, AvgPool, Flatten, Subsample, Residual)


def named(layers: Layers) -> list[tuple[str, Layer]]:
    """Names the layers of one scope by kind and count: `conv0, relu0, conv1, ...`.

    Args:
      layers: the tuple of one scope. The inside of a `Residual` is a scope of its own.

    Returns:
      `(name, layer)` pairs in network order.
    """
    counts: dict[str, int] = {}
    pairs = []
    for layer in layers:
        kind = type(layer).__name__.lower()
        pairs.append((f"{kind}{counts.get(kind, 0)}", layer))
        counts[kind] = counts.get(kind, 0) + 1
    return pairs


def walk(layers: Layers, scope: str = "") -> Iterator[tuple[str, Layer]]:
    """Yields `(path, layer)` for every layer, those inside residuals included.

    A `Residual` comes first, then its body, then its shortcut; this is the order in
    which weights from elsewhere are assigned.
    """
    for name, layer in named(layers):
        path = f"{scope}{name}"
        yield path, layer
        if isinstance(layer, Residual):
            yield from walk(layer.body, f"{path}/body/")
            yield from walk(layer.shortcut, f"{path}/shortcut/")


class Row(NamedTuple):
    """What `trace_shapes` knows of one layer.

    Attributes:
      path: the layer's path, `residual0/body/conv1`.
      layer: the layer itself.
      input: shape of its input without the batch dimension.
      output: shape of its output without the batch dimension.
      signal: what it receives: `image` (the constant input and whatever is affine in
        it), `spikes`, or `current` (sums of weighted spikes).
      spread: mean number of positions of its input that one event of its source
        reaches: 1, except after average pooling with overlapping or missing windows.
    """

    path: str
    layer: Layer
    input: Shape
    output: Shape
    signal: str
    spread: float

    @property
    def parameters(self) -> int:
        """Number of trained numbers (batch statistics are not trained)."""
        if not isinstance(self.layer, Conv | Dense):
            return 0
        features = self.layer.features
        extra = features * (self.layer.bias + 2 * self.layer.norm)
        return self._fan_in * features + extra

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image, taps on zero padding included."""
        if not isinstance(self.layer, Conv | Dense):
            return 0
        return self._fan_in * math.prod(self.output)

    @property
    def fan_out(self) -> float:
        """Synapses that one event at this layer's source reaches here, on average."""
        return self.spread * self.macs / math.prod(self.input)

    @property
    def _fan_in(self) -> int:
        kernel = self.layer.kernel if isinstance(self.layer, Conv) else 1
        return kernel**2 * self.input[-1]


class _Signal(NamedTuple):
    """A value on its way through the network, as far as shapes are concerned."""

    shape: Shape
    kind: str  # 'image', 'current' or 'spikes'
    spread: float = 1.0


def trace_shapes(layers: Layers, image_shape: Shape) -> list[Row]:
    """Follows one image through the network without computing anything.

    Args:
      layers: the network.
      image_shape: `(H, W, C)` of one image.

    Returns:
      One `Row` per layer, in the order of `walk` except that a `Residual` comes after
      its parts.

    Raises:
      ValueError: naming the first layer that does not fit, what it expected and found.
    """
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise ValueError(
            f"image_shape must be (height, width, channels), found {image_shape}; "
            "leave out the batch dimension, add the channel dimension"
        )
    rows: list[Row] = []
    _trace(layers, _Signal(tuple(image_shape), "image"), "", rows)
    return rows


def _trace(layers: Layers, signal: _Signal, scope: str, rows: list[Row]) -> _Signal:
    for name, layer in named(layers):
        path = f"{scope}{name}"
        if isinstance(layer, Residual):
            body = _trace(layer.body, signal, f"{path}/body/", rows)
            shortcut = _trace(layer.shortcut, signal, f"{path}/shortcut/", rows)
            if body.shape != shortcut.shape:
                raise ValueError(
                    f"{path}: the body gives {body.shape} but the shortcut gives "
                    f"{shortcut.shape}, and they are added; use Subsample or a 1x1 Conv"
                    " as the shortcut"
                )
            shape, spread = body.shape, 1.0
        else:
            shape, spread = _after(layer, signal, path)
        rows.append(Row(path, layer, signal.shape, shape, signal.kind, signal.spread))
        signal = _Signal(shape, _kind_after(layer, signal.kind, path), spread)
    return signal


def _kind_after(layer: Layer, kind: str, path: str) -> str:
    """What a layer passes on when it receives an `image`, a `current` or `spikes`."""
    match layer:
        case Conv() | Dense() if kind == "current":
            raise ValueError(
                f"{path}: receives a current, but only spikes and the image travel to "
                "synapses; put a Relu before it, or merge the two affine layers"
            )
        case Conv() | Dense() | Subsample():
            return "image" if kind == "image" else "current"
        case Relu():
            return "spikes"
        case MaxPool() if kind != "spikes":
            raise ValueError(
                f"{path}: max pooling chooses among spikes, but it receives "
                f"{'no spikes yet' if kind == 'image' else 'a current'}; put the Relu "
                "before the MaxPool (the two commute)"
            )
        case Residual(body, shortcut):
            kinds = set()
            for part, inside in (("body", body), ("shortcut", shortcut)):
                last = kind
                for name, inner in named(inside):
                    last = _kind_after(inner, last, f"{path}/{part}/{name}")
                kinds.add(last)
            return "image" if kinds == {"image"} else "current"
        case _:
            return kind


def _after(layer: Layer, signal: _Signal, path: str) -> tuple[Shape, float]:
    """Shape of the layer's output, and the spread of its source's events there."""
    shape, _, spread = signal
    if isinstance(layer, Dense) and len(shape) != 1:
        raise ValueError(
            f"{path}: expected a vector, found {shape}; put a Flatten before it"
        )
    if isinstance(layer, Conv | MaxPool | AvgPool | Subsample) and len(shape) != 3:
        raise ValueError(
            f"{path}: expected a map (height, width, channels), found {shape}"
        )
    match layer:
        case Conv(features, kernel, stride, padding):
            return (*_sides(shape, kernel, stride, padding, path), features), 1.0
        case Dense(features):
            return (features,), 1.0
        case Relu():
            return shape, 1.0
        case MaxPool(window, stride, padding):
            sides = _sides(shape, window, stride or window, padding, path)
            return (*sides, shape[2]), 1.0
        case AvgPool(window, stride):
            if window is None and shape[0] != shape[1]:
                raise ValueError(
                    f"{path}: averaging over the whole map needs a square map, found "
                    f"{shape[0]}x{shape[1]}; give AvgPool a window"
                )
            window = window or shape[0]
            sides = _sides(shape, window, stride or window, 0, path)
            share = math.prod(sides) * window**2 / math.prod(shape[:2])
            return (*sides, shape[2]), spread * share
        case Flatten():
            return (math.prod(shape),), spread
        case Subsample(features, stride):
            if features < shape[2]:
                raise ValueError(
                    f"{path}: cannot go from {shape[2]} channels down to {features}; "
                    "Subsample only adds channels"
                )
            return (*(-(-side // stride) for side in shape[:2]), features), 1.0


def _sides(shape: Shape, window: int, stride: int, padding: int, path: str) -> Shape:
    sides = tuple((side + 2 * padding - window) // stride + 1 for side in shape[:2])
    if min(sides) < 1:
        raise ValueError(
            f"{path}: a window of {window} with padding {padding} does not fit into a "
            f"map of {shape[0]}x{shape[1]}; the image is too small for this network"
        )
    return sides


def validate(layers: Layers, image_shape: Shape | None = None) -> None:
    """Checks that a network can be trained, converted and simulated.

    Args:
      layers: the network.
      image_shape: `(H, W, C)`; with it, shapes are checked from layer to layer too.

    Raises:
      TypeError: for something that is not a layer, or has no spiking meaning.
      ValueError: for a layer with impossible settings, a wrong order, shapes that do
        not fit, or a network that does not end in a Dense. The message names the layer.
    """
    if not isinstance(layers, tuple):
        raise TypeError(
            f"a network is a tuple of layers, found {type(layers).__name__}: {layers!r}"
        )
    _validate_scope(layers, "")
    kind = "image"
    for name, layer in named(layers):
        kind = _kind_after(layer, kind, name)
    if not layers or not isinstance(layers[-1], Dense):
        last = named(layers)[-1][0] if layers else "nothing"
        raise ValueError(
            f"a network ends in a Dense, which integrates and does not spike; this one "
            f"ends in {last}"
        )
    if not any(isinstance(layer, Relu) for _, layer in walk(layers)):
        raise ValueError("a network needs a Relu; this one has none, so nothing spikes")
    if image_shape is not None:
        trace_shapes(layers, image_shape)


def _validate_scope(layers: Layers, scope: str) -> None:
    for position, layer in enumerate(layers):
        if not isinstance(layer, KINDS):
            kinds = ", ".join(kind.__name__ for kind in KINDS)
            raise TypeError(
                f"layer {position} of {scope.rstrip('/') or 'the network'}: {layer!r} "
                f"has no spiking meaning here; the layers are {kinds}"
            )
    for name, layer in named(layers):
        path = f"{scope}{name}"
        smallest = {"padding": 0}
        for field in dataclasses.fields(layer):
            value = getattr(layer, field.name)
            if field.type.startswith("int") and not (
                value is None
                and "None" in field.type
                or isinstance(value, int)
                and not isinstance(value, bool)
                and value >= smallest.get(field.name, 1)
            ):
                raise ValueError(
                    f"{path}: {field.name} must be a whole number of at least "
                    f"{smallest.get(field.name, 1)}, found {value!r}"
                )
        if isinstance(layer, MaxPool) and 2 * layer.padding > layer.window:
            raise ValueError(
                f"{path}: padding {layer.padding} is more than half of the window "
                f"{layer.window}, so some windows would hold nothing"
            )
        if isinstance(layer, Residual):
            for part in ("body", "shortcut"):
                if not isinstance(getattr(layer, part), tuple):
                    raise TypeError(f"{path}: {part} must be a tuple of layers")
                _validate_scope(getattr(layer, part), f"{path}/{part}/")
            if not layer.body:
                raise ValueError(f"{path}: the body is empty")


def summary(layers: Layers, image_shape: Shape) -> str:
    """A table of the network: path, layer, output shape, parameters, MACs.

    Args:
      layers: the network.
      image_shape: `(H, W, C)` of one image.

    Returns:
      The table as text, with totals in the last line. MACs are multiply-accumulates
      per image, taps on zero padding included.
    """
    validate(layers, image_shape)
    rows = [("path", "layer", "output", "parameters", "MACs")]
    traced = trace_shapes(layers, image_shape)
    for row in traced:
        if not isinstance(row.layer, Residual):
            shape = "x".join(map(str, row.output))
            counts = f"{row.parameters:,}", f"{row.macs:,}"
            rows.append((row.path, _describe(row.layer), shape, *counts))
    parameters = sum(row.parameters for row in traced)
    macs = sum(row.macs for row in traced)
    rows.append(("total", "", "", f"{parameters:,}", f"{macs:,}"))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = [
        f"{path:<{widths[0]}}  {layer:<{widths[1]}}  {shape:<{widths[2]}}  "
        f"{parameters:>{widths[3]}}  {macs:>{widths[4]}}"
        for path, layer, shape, parameters, macs in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def _describe(layer: Layer) -> str:
    """The layer as one would write it: without the settings left at their default."""
    settings = [
        f"{field.name}={getattr(layer, field.name)!r}"
        for field in dataclasses.fields(layer)
        if getattr(layer, field.name) != field.default
    ]
    return f"{type(layer).__name__}({', '.join(settings)})"
