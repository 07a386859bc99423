"""Pictures of a network and of what it did (extra `plot`, matplotlib).

    trace = jb.simulate(model, spiking, images[:8], steps=16, record="relu1")
    jb.plot.raster(trace, "relu1").figure.savefig("raster.png")

Every function draws on the axes it is given, or on a new figure, and returns the axes.
Colours are told apart by the colour-blind, and marks and dashes tell curves apart in
grey.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxburst.checks import door
from jaxburst.convert import Spiking
from jaxburst.evaluation import Curves
from jaxburst.graph import Input, Neuron, Node, Pool, Product, Synapse, Wire
from jaxburst.methods.analysis import LayerReport
from jaxburst.model import Model
from jaxburst.network import Network, forward
from jaxburst.run import Trace, simulate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, with a mark and a dash of their own.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_MARKS, _DASHES = "os^Dv<>", ("-", "--", "-.", ":")
_GREY = "0.35"
_BESIDE = {"loc": "upper left", "bbox_to_anchor": (1, 1)}


@door
def raster(
    trace: Trace, name: str, *, image: int = 0, neurons: int = 60, axes=None
) -> Axes:
    """The spikes of a population over time: a dot for a burst, larger for more spikes.

    Args:
      trace: from `simulate(..., record=name)`.
      name: the population.
      image: the number of the image in the batch.
      neurons: how many neurons to show at most, evenly spaced among those that sent
        any.
      axes: where to draw.

    Returns:
      The axes.

    Raises:
      ValueError: for a population that was not recorded, or no such image.

    Example:
      >>> spikes = {"relu0": np.array([[[0, 2, 1]], [[0, 0, 3]]])}  # [T, B, neurons]
      >>> axes = raster(Trace(None, {}, spikes, {}), "relu0")
      >>> axes.get_title()
      'relu0: 6 spikes of 2 neurons, 1 silent'
    """
    spikes = _of_image(trace.spikes, name, image)
    active = np.flatnonzero((spikes != 0).any(0))
    chosen = active[_spaced(len(active), neurons)]
    axes = _axes(axes, (6.4, 3.6))
    steps, rows = np.nonzero(spikes[:, chosen])
    sent = spikes[:, chosen][steps, rows]
    scale = 54 / max(np.abs(sent).max(initial=2) - 1, 1)
    for sign, mark, colour in (("", "o", COLOURS[0]), ("−", "v", COLOURS[1])):
        counts = np.unique(np.abs(sent[(sent < 0) == bool(sign)]))
        for i, count in enumerate(counts):
            at = sent == (-count if sign else count)
            style = {"s": 6 + scale * (count - 1), "color": colour, "marker": mark}
            if i in _spaced(len(counts), 4):
                style["label"] = f"{sign}{count:g}"
            axes.scatter(steps[at] + 1, rows[at], linewidths=0, **style)
    some = f", {len(chosen)} shown" if len(chosen) < len(active) else ""
    axes.set(
        title=f"{name}: {np.abs(spikes).sum():,.0f} spikes of {len(active):,} neurons"
        f"{some}, {spikes.shape[1] - len(active):,} silent",
        xlabel="time step",
        ylabel="neuron",
        xlim=(0.5, len(spikes) + 0.5),
        ylim=(-1, max(len(chosen), 1)),
    )
    shown = _spaced(len(chosen), 6)
    axes.set_yticks(shown, [f"{chosen[row]:,}" for row in shown])
    axes.xaxis.get_major_locator().set_params(integer=True)
    if len(chosen):
        _legend(axes, title="spikes of\na step", title_fontsize=8, **_BESIDE)
    return axes


@door
def membrane(
    model: Model,
    spiking: Spiking,
    trace: Trace,
    name: str,
    *,
    image: int = 0,
    neurons: int | Sequence[int] = 3,
    axes=None,
) -> list[Axes]:
    r"""The potential of single neurons over time, with threshold and spikes.

    Of neurons that repeat: the potential charges to :math:`u_t = v_{t-1} + I_t`, the
    spikes take :math:`\theta n_t` of it. Of others, as `Refining`: the whole drive
    :math:`v_t`, and what all spikes so far say, which closes in on it. Numbers are the
    spikes of a step.

    Args:
      model: the network, neuron and pooling.
      spiking: its converted weights.
      trace: from `simulate(..., record=name)`.
      name: the population.
      image: the number of the image in the batch.
      neurons: how many of the busiest to show, at most 12, or which, counted through
        the population.
      axes: where to draw, one for each neuron.

    Returns:
      The axes, one for each neuron.

    Raises:
      ValueError: for a population that was not recorded, or no such image or neuron.

    Example:
      >>> spiking = jb.convert(network, weights, {"relu0": 1.0}, initial=0)
      >>> inputs = np.array([[0.4, 2.5]], np.float32)
      >>> trace = jb.simulate(model, spiking, inputs, 3, record="relu0")
      >>> (axes,) = membrane(model, spiking, trace, "relu0", neurons=[1])
      >>> [text.get_text() for text in axes.texts]  # 2.5 a step: 2, 3 and 2 spikes
      ['2', '3', '2']
    """
    spikes = _of_image(trace.spikes, name, image)
    potentials = _of_image(trace.potentials, name, image)
    if isinstance(neurons, int):
        busiest = np.argsort(-np.abs(spikes).sum(0), kind="stable")
        count, chosen = neurons, sorted(busiest[:neurons].tolist())
    else:
        count, chosen = len(neurons), list(neurons)
    there = max(chosen, default=0) < spikes.shape[1]
    if not there or not 1 <= count <= min(spikes.shape[1], 12):
        raise ValueError(
            f"neurons: expected 1 to 12 of the {spikes.shape[1]:,} of {name}, counted "
            f"from 0; found {neurons}"
        )
    rows = _axes(axes, (6.4, 1.1 + 1.7 * count), count, sharex=True)
    like = np.asarray(trace.potentials[name])[0, image]
    thetas, starts = (
        np.broadcast_to(np.asarray(value, np.float64), like.shape).reshape(-1)
        for value in (spiking[name].theta, spiking[name].initial)
    )
    times = np.arange(1, len(spikes) + 1)
    for row, index in zip(rows, chosen, strict=True):
        n, v, theta = spikes[:, index], potentials[:, index], thetas[index]
        top, when, levels = v, times, v
        if not model.neuron.repeats:
            told = np.cumsum(theta * _worth(model.neuron, times) * n)
            top = np.maximum(v, told)
            row.plot(times, v, color=COLOURS[0], marker="o", ms=3, label="drive")
            style = {"color": COLOURS[1], "ls": "--", "marker": "s", "ms": 3}
            row.step(times, told, where="post", label="its spikes add up to", **style)
        else:
            if model.neuron.conserves:  # the potential before the reset is known
                top, when = v + theta * n, np.concatenate([[0], np.repeat(times, 2)])
                both = np.stack([top, v], 1).reshape(-1)
                levels = np.concatenate([[theta * starts[index]], both])
            row.plot(when, levels, color=COLOURS[0], label="potential")
            row.axhline(theta, color=COLOURS[1], ls="--", lw=1, label="threshold")
        row.axhline(0, color=_GREY, lw=0.6)
        for t, fired, at in zip(times, n, top, strict=True):
            if fired:
                style = {"textcoords": "offset points", "ha": "center", "fontsize": 8}
                row.annotate(f"{fired:g}".replace("-", "−"), (t, at), (0, 4), **style)
        row.set_ylabel(f"neuron {index:,}")
        row.margins(y=0.25)
        row.xaxis.get_major_locator().set_params(integer=True)
    rows[0].set_title(f"{name}: potential in units of activation, spikes as numbers")
    rows[-1].set_xlabel("time step")
    _legend(rows[0], **_BESIDE)
    return list(rows)


@door
def rates(
    model: Model,
    spiking: Spiking,
    inputs,
    steps: int,
    *,
    names: Sequence[str] | None = None,
    axes=None,
) -> list[Axes]:
    """What the spikes of each neuron say against the activation they stand for.

    Dots on the line are right. A burst neuron that cannot send more has dots to the
    right of `γ θ`, which a dotted line shows.

    Args:
      model: the network, neuron and pooling.
      spiking: its converted weights.
      inputs: a few of them, `[B, ...]`.
      steps: number of time steps.
      names: the populations; at most four, evenly spaced, if not given.
      axes: where to draw, one for each population.

    Returns:
      The axes, one for each population.

    Example:
      >>> (axes,) = rates(model, spiking, np.array([[0.5, 9.0]], np.float32), 8)
      >>> axes.collections[0].get_offsets().tolist()  # 9 is out of reach, γ θ = 2.5
      [[0.5, 0.5], [9.0, 2.5]]
    """
    network = model.network
    names = names or [network.neurons[i] for i in _spaced(len(network.neurons), 4)]
    trace = simulate(model, spiking, inputs, steps, record=tuple(names))
    _, activations = forward(network, spiking, inputs)
    rows = _axes(axes, (3.3 * len(names), 3.4), 1, len(names))
    worth = _worth(model.neuron, np.arange(1, steps + 1))
    for row, name in zip(rows, names, strict=True):
        told = np.tensordot(worth, np.asarray(trace.spikes[name], np.float64), 1)
        told /= steps if model.neuron.repeats else 1
        theta = np.asarray(spiking[name].theta)
        axis = network.graph[name].batch_axis
        actual = np.moveaxis(np.asarray(activations[name]), axis, 0).reshape(-1)
        told = (told * theta).reshape(-1)
        error = np.sqrt(np.mean(np.square(told - actual)))
        some = _spaced(len(told), 3000)
        dots = {"s": 5, "alpha": 0.35, "lw": 0, "color": COLOURS[0]}
        row.scatter(actual[some], told[some], label="a neuron", **dots)
        top = max(actual.max(), told.max(), 1e-12)
        row.plot([0, top], [0, top], color=_GREY, lw=1, ls="--", label="no error")
        levels = model.neuron.at(name).levels if model.neuron.repeats else None
        if levels is not None and theta.ndim == 0:
            reach = levels * float(theta)
            row.axhline(reach, color=COLOURS[1], ls=":", lw=1.2, label="γ θ, the most")
        row.set(
            title=f"{name}, T = {steps}\nroot mean square error {error:.2g}",
            xlabel="activation of the ANN",
            ylabel="what the spikes say",
        )
    _legend(rows[0])
    return list(rows)


@door
def layers(
    reports: Mapping[str, Sequence[LayerReport]] | Sequence[LayerReport], *, axes=None
) -> list[Axes]:
    """Spikes and error of each layer, from `analysis.report`, one above the other.

    Args:
      reports: the rows of a report, or `{label: rows}` to compare several.
      axes: two of them.

    Returns:
      The two axes.

    Example:
      >>> row = LayerReport("relu0", 1.0, 0.5, 0.4, 0.1, 0.0, 0.25, 30.0)
      >>> above, below = layers([row])
      >>> print(below.patches[0].get_height(), "% of 0.5")
      20.0 % of 0.5
    """
    if not isinstance(reports, Mapping):
        reports = {"": reports}
    names = [row.name for row in next(iter(reports.values()))]
    wide = max(5.5, 1.5 + 0.32 * len(names) * len(reports))
    above, below = _axes(axes, (wide, 5), 2, sharex=True)
    width = 0.8 / len(reports)
    for i, (label, rows) in enumerate(reports.items()):
        if [row.name for row in rows] != names:
            raise ValueError(
                f"reports: {label} is of other layers; compare runs of one network"
            )
        places = np.arange(len(rows)) + (i - (len(reports) - 1) / 2) * width
        style: Any = {"width": width, "color": COLOURS[i % 7], "label": label}
        above.bar(places, [row.events for row in rows], **style)
        errors = [100 * row.error / (row.activation or np.nan) for row in rows]
        below.bar(places, errors, **style)
    above.set(title="spikes of each population", ylabel="spikes per image")
    below.set(
        title="error: root mean square, over the mean activation", ylabel="error (%)"
    )
    crowded = sum(map(len, names)) > 8 * wide
    below.set_xticks(range(len(names)), names, rotation=90 if crowded else 0)
    for axis in (above, below):
        axis.grid(axis="y", alpha=0.3)
    if list(reports) != [""]:
        _legend(above)
    return [above, below]


@door(energy="energies", unit="text")
def accuracy(
    curves: Mapping[str, Curves],
    *,
    energy: Mapping[str, Any] | None = None,
    ann: float | None = None,
    ann_energy: float = 1.0,
    unit: str = "energy / energy of the ANN",
    title: str = "",
    axes=None,
) -> Axes:
    r"""Accuracy against time steps, or against energy, a mark for each time step.

    Of more than 16 steps 1, 2, 4, ... are marked. Bands are Wilson's 95 % intervals of
    a share :math:`p` of :math:`N` images. They say what other images would give; curves
    of the same images are closer to each other than their bands.

    Args:
      curves: `{label: Curves}`, from `evaluate`.
      energy: `{label: [T]}`, as from `energy.relative`; without it the horizontal axis
        is time.
      ann: accuracy of the trained network, for a line; what lies more than 10 points
        below it is cut off.
      ann_energy: its energy, for a mark on that line.
      unit: the words on the axis of energy.
      title: of the picture.
      axes: where to draw.

    Returns:
      The axes.

    Example:
      >>> curves = Curves(np.array([0.5, 0.9]), {}, images=100)
      >>> axes = accuracy({"bursts": curves})
      >>> axes.lines[0].get_xydata().tolist()
      [[1.0, 50.0], [2.0, 90.0]]
    """
    axes = _axes(axes, (6.4, 4))
    least = 0.0 if ann is None else ann - 0.1
    longest, seen, k = 0, [ann_energy] if ann is not None else [], len(COLOURS)
    for i, (label, curve) in enumerate(curves.items()):
        y, times = np.asarray(curve.accuracy), np.arange(1, len(curve.accuracy) + 1)
        x = times if energy is None else np.asarray(energy[label])
        marked = [t - 1 for t in times if len(y) <= 16 or t & (t - 1) == 0]
        style = {"color": COLOURS[i % k], "marker": _MARKS[i % k], "ms": 4, "lw": 1.5}
        style |= {"ls": _DASHES[i // k % len(_DASHES)], "markevery": marked}
        below = "" if (y >= least).any() else " (below)"
        axes.plot(x, 100 * y, label=f"{label}{below}", **style)
        low, high = interval(y, curve.images)
        band = {"color": COLOURS[i % k], "alpha": 0.15, "lw": 0}
        axes.fill_between(x, 100 * low, 100 * high, **band)
        longest = max(longest, len(y))
        seen += list(x[y >= least])
    if ann is not None:
        axes.axhline(100 * ann, color=_GREY, ls="--", lw=1, label=f"ANN, {ann:.2%}")
        if energy is not None:
            axes.plot(ann_energy, 100 * ann, "*", color=_GREY, ms=11)
        best = max([ann, *(np.max(curve.accuracy) for curve in curves.values())])
        axes.set_ylim(max(axes.get_ylim()[0], 100 * least), 100 * best + 1)
    axes.set(title=title, ylabel="accuracy on test images (%)")
    marks = "T = 1, 2, 4, ..." if longest > 16 else "each time step"
    doubling(axes, "time step" if energy is None else f"{unit} (marks: {marks})")
    if energy is not None and min(seen, default=0) > 0:
        axes.set_xlim(min(seen) / 1.15, max(seen) * 1.15)
        if max(seen) < 4 * min(seen):  # marks that double would be one or two
            from matplotlib.ticker import MaxNLocator

            axes.xaxis.set_major_locator(MaxNLocator(5))
    _legend(axes)
    return axes


@door
def interval(share, count: int, z: float = 1.96) -> tuple[Any, Any]:
    """Wilson's interval of a share of so many, 95 % if `z` is not given.

    Args:
      share: between 0 and 1; a number or an array.
      count: of how many.
      z: half its width, in standard deviations.

    Returns:
      `(low, high)`.

    Example:
      >>> low, high = interval(1.0, 360)  # all of 360 were right
      >>> print(f"{low:.2%} .. {high:.2%}")
      98.94% .. 100.00%
    """
    scale = 1 + z**2 / count
    middle = (share + z**2 / (2 * count)) / scale
    inside = share * (1 - share) / count + z**2 / (4 * count**2)
    half = z * np.sqrt(inside) / scale
    return middle - half, middle + half


@door
def doubling(axes: Axes, label: str) -> None:
    """Makes the horizontal axis double from mark to mark.

    Example:
      >>> axes = accuracy({"bursts": Curves(np.array([0.5, 0.9]), {}, 100)})
      >>> doubling(axes, "time step")
      >>> axes.get_xscale(), axes.get_xlabel()
      ('log', 'time step')
    """
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel(label)
    axes.grid(alpha=0.3)


_ROLES = {
    Input: ("input", "#ffffff"),
    Synapse: ("synapse: operations are counted here", "#a6cee3"),
    Neuron: ("neuron: sends spikes", "#fdbf6f"),
    Pool: ("pool: a maximum", "#b2df8a"),
    Product: ("product of two signals", "#cab2d6"),
    Wire: ("wire: moves and adds numbers", "#eeeeee"),
}


@door
def graph(network: Network, *, wires: bool = False, axes=None) -> Axes:
    r"""The network as a graph: names, roles and shapes, from the inputs downwards.

    Args:
      network: the traced network.
      wires: whether to show every wire; otherwise those alone that join signals or
        lead to an output.
      axes: where to draw.

    Returns:
      The axes.

    Example:
      >>> axes = graph(network)
      >>> [text.get_text() for text in axes.texts if text.get_text()]
      ['input0\n2', 'hidden\n2', 'relu0\n2', 'out\n1']
    """
    from matplotlib.patches import Patch

    whole = network.graph
    parents: dict[str, tuple[str, ...]] = {}
    hidden: dict[str, tuple[str, ...]] = {}
    for node in whole.nodes:
        above = [name for one in node.inputs for name in hidden.get(one, (one,))]
        above = tuple(dict.fromkeys(above))
        plain = isinstance(node.role, Wire) and len(above) < 2
        shown = wires or not plain or node.name in whole.outputs
        (parents if shown else hidden)[node.name] = above
    levels: list[list[str]] = []
    depth: dict[str, int] = {}
    for name, above in parents.items():
        depth[name] = 1 + max((depth[one] for one in above), default=-1)
        levels += [[]] * (depth[name] == len(levels))
        levels[depth[name]] = [*levels[depth[name]], name]
    place: dict[str, tuple[float, float]] = {}
    for level, names in enumerate(levels):
        middle = {
            n: np.mean([place[one][0] for one in parents[n]] or [0]) for n in names
        }
        for i, name in enumerate(sorted(names, key=middle.__getitem__)):
            place[name] = (i - (len(names) - 1) / 2, -level)
    widest = max(map(len, levels))
    axes = _axes(axes, (max(4.5, 2.3 * widest), 1 + 0.52 * len(levels)))
    arrow = {"arrowstyle": "-|>", "color": _GREY, "lw": 0.8, "shrinkA": 0, "shrinkB": 0}
    box = {"ha": "center", "va": "center", "fontsize": 7, "zorder": 3}
    for name, above in parents.items():
        x, y = place[name]
        for one in above:
            (a, b), bend = place[one], 0.0
            tip, tail = (x, y + 0.31), (a, b - 0.31)
            if depth[name] - depth[one] > 1 and a == x:  # around what lies between
                tip, tail, bend = (x + 0.42, y), (a + 0.42, b), -0.25
            curve = {"connectionstyle": f"arc3,rad={bend}"}
            axes.annotate("", tip, tail, arrowprops=arrow | curve)
        colour = _ROLES[type(whole[name].role)][1]
        edge = {"facecolor": colour, "edgecolor": _GREY, "lw": 0.8, "zorder": 2}
        axes.add_patch(_box(x, y, **edge))
        axes.text(x, y, _words(whole[name]), **box)
    used = {type(whole[name].role) for name in parents}
    handles = [
        Patch(facecolor=colour, edgecolor=_GREY, label=label)
        for role, (label, colour) in _ROLES.items()
        if role in used
    ]
    side = (widest + 1.1) / 2
    axes.set(xlim=(-side, side), ylim=(-len(levels) + 0.3, 0.6))
    axes.axis("off")
    _legend(axes, handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0))
    return axes


def _box(x: float, y: float, **style):
    from matplotlib.patches import FancyBboxPatch

    rounded = "round,pad=0,rounding_size=0.08"
    return FancyBboxPatch((x - 0.42, y - 0.29), 0.84, 0.58, boxstyle=rounded, **style)


def _words(node: Node) -> str:
    """Name, and the shape of one image's part of the output."""
    shape = [size for i, size in enumerate(node.image_shape) if i != node.batch_axis]
    what = node.role.primitive.name if isinstance(node.role, Wire) else ""
    cap = getattr(node.role, "cap", None)
    what = f"up to {cap:g}" if cap is not None else what
    size = " × ".join(f"{n:,}" for n in shape)
    return f"{node.name}\n{', '.join(filter(None, (what, size)))}"


def _axes(axes, size: tuple[float, float], *shape: int, **options) -> Any:
    """The axes that were given, or new ones; as a list if a shape is asked for."""
    if axes is None:
        try:
            import matplotlib.pyplot as plt
        except ImportError as error:
            raise ImportError(
                "jaxburst.plot: pictures need matplotlib; pip install 'jaxburst[plot]'"
            ) from error
        options |= {"figsize": size, "layout": "constrained", "squeeze": not shape}
        _, axes = plt.subplots(*shape, **options)
    if not shape:
        return axes
    found = list(np.ravel(axes))
    count = int(np.prod(shape))
    if len(found) != count:
        raise ValueError(f"axes: expected {count} to draw on, found {len(found)}")
    return found


def _legend(axes, **options) -> None:
    axes.legend(**{"frameon": False, "fontsize": 8} | options)


def _of_image(recorded: Mapping[str, Any], name: str, image: int) -> np.ndarray:
    """`[T, neurons]` of one image."""
    if name not in recorded:
        raise ValueError(
            f"{name}: it was not recorded; simulate with record={name!r} (recorded: "
            f"{sorted(recorded) or 'none'})"
        )
    found = np.asarray(recorded[name], np.float64)
    if not 0 <= image < found.shape[1]:
        raise ValueError(
            f"image: expected one of the {found.shape[1]} in the trace, counted from "
            f"0; found {image}"
        )
    return found[:, image].reshape(len(found), -1)


def _worth(neuron, times: np.ndarray) -> np.ndarray:
    """What a spike of each step is worth, over its threshold."""
    return np.broadcast_to(np.asarray(neuron.worth(times), np.float64), times.shape)


def _spaced(count: int, most: int) -> np.ndarray:
    """At most so many of the first whole numbers, evenly spaced."""
    return np.unique(np.linspace(0, max(count - 1, 0), min(count, most)).astype(int))
