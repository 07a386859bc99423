"""The one door: what an argument must be, said once, and checked before any work.

    @door
    def simulate(model, spiking, inputs, steps): ...

What an argument must be, its kind, follows from its name: that of a kind, or one of
`NAMES`, unless the decorator says otherwise: `@door(energy="positive")`. A parameter
for which neither says anything is an error when the module is imported. What a
transformation traces is let through.

Simple kinds are rows of the tables `WHOLE`, `NUMBERS`, `WORDS`, `CLASSES`, `LIKE` and
`SEVERAL`; the others are functions, `check(name, value, all arguments)`, which return
what is passed on.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import math
import pkgutil
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax.core import Tracer

Kind = Callable[[str, Any, dict[str, Any]], Any]

STEPS = 2**16
"""The most time steps of a run."""

LARGEST = 2**31 - 1
"""The largest whole number where nothing else is said."""

LEAST, MOST = map(float, (np.finfo(np.float32).tiny, np.finfo(np.float32).max))
"""Of positive numbers in single precision: what is less counts as 0."""

KINDS: dict[str, Kind] = {}
"""Every kind of argument, and its check."""

NAMES = {
    name: kind
    for kind, of in {
        "count": "batch_size checkpoint_every iterations size steps_per_epoch trials",
        "natural": "image padding step validation",
        "fraction": "agreement ann initial",
        "positive": "ann_energy error logits z",
        "flag": "download each_step exact progress resume wires",
        "path": "data_dir directory",
        "function": "metric visit",
        "text": "baseline description label name title",
        "names": "platforms record",
        "inputs": "example",
        "spiking": "weights",
        "events": "rounded sent",
        "json": "notes",
        "percentiles": "candidates",
        "anything": "cls roles self",
        "constants": "mean std",
    }.items()
    for name in of.split()
}
"""What an argument of this name is, where it is not the name of a kind."""

WHOLE = {
    "count": (1, LARGEST),
    "natural": (0, LARGEST),
    "seed": (0, 2**32 - 1),
    "bits": (1, 32),
    "levels": (1, 2**20),
    "classes": (1, 10**6),
}
"""Whole numbers: the least and the most."""

NUMBERS = {
    "fraction": ("a number between 0 and 1", lambda x: 0 <= x <= 1),
    "positive": ("a number greater than 0, up to 1e9", lambda x: 1e-30 < x <= 1e9),
    "rate": ("a number in 0 < x <= 1", lambda x: 0 < x <= 1),
    "percentile": ("a number greater than 0, up to 100", lambda x: 0 < x <= 100),
}
"""Finite numbers: which, and whether it is one."""

WORDS = {
    "platform": ("cpu", "gpu", "cuda", "rocm", "tpu"),
    "per": ("layer", "channel"),
    "unit": ("quanta", "events", "digits"),
    "reuse": ("no", "full"),
    "first_layer": ("once", "every step"),
    "shortcut": ("subsample", "conv"),
    "head": ("mean", "max"),
    "kind": ("none", "crop_flip", "li2022"),
}
"""Words out of a list."""

CLASSES = {
    "cost": ("jaxburst.energy.costs:Cost", "a Cost", ""),
    "graph": ("jaxburst.graph:Graph", "a Graph", "network.graph is one"),
    "integers": ("jaxburst:Integers", "what to_integers returns", ""),
    "mapping": ("collections.abc:Mapping", "a dictionary, {label: ...}", ""),
    "model": ("jaxburst:Model", "a Model", "Model(network, neuron) makes one"),
    "module": (
        "flax.linen:Module",
        "a Flax Linen module",
        "a network of another kind is trained by its own tools, and then traced",
    ),
    "network": ("jaxburst:Network", "what trace returns", "model.network is"),
    "neuron": ("jaxburst.neurons:Neuron", "a neuron such as Burst() or Refining()", ""),
    "recipe": ("jaxburst:Recipe", "a Recipe", ""),
    "subject": (
        "jaxburst:Network jaxburst:Model",
        "what trace returns, or a Model",
        "",
    ),
    "text": ("builtins:str", "a string", ""),
}
"""What is of a class: where that is, what is expected, and how to come by it."""

LIKE = {
    "images": ("dtype ndim", "an array of pixels, uint8 [..., C]"),
    "optimiser": ("init update", "an optimiser of optax"),
}
"""What has certain attributes, whatever its class."""

SEVERAL = {
    "names": ("text", "names"),
    "percentiles": ("percentile", "percentiles such as (99, 99.9)"),
    "times": ("steps", "time steps such as (1, 2, 4)"),
}
"""What holds some of another kind."""


def door(function: Callable | None = None, /, **special: str) -> Any:
    """Checks the arguments of a public function at every call.

    Args:
      function: the function; signature and documentation stay.
      special: `{argument: kind}` where the name alone does not say it.

    Raises:
      TypeError: when it is applied, for an argument of which nobody says what it is.
    """
    if function is None:
        return functools.partial(door, **special)
    signature = inspect.signature(function)
    named = {
        name: special.get(name, NAMES.get(name, name)) for name in signature.parameters
    }
    unknown = [name for name, kind in named.items() if kind not in KINDS]
    unknown += special.keys() - named.keys()
    if unknown:
        raise TypeError(f"{function.__qualname__}: of what kind is {unknown[0]!r}?")
    optional = {
        name for name, one in signature.parameters.items() if one.default is None
    }

    @functools.wraps(function)
    def checked(*positional, **keywords):
        try:
            bound = signature.bind(*positional, **keywords)
        except TypeError as error:
            raise TypeError(f"{function.__name__}: {error}") from None
        bound.apply_defaults()
        given = bound.arguments
        for name, kind in named.items():
            if given[name] is not None or name not in optional:
                given[name] = KINDS[kind](name, given[name], given)
        return function(*bound.args, **bound.kwargs)

    vars(checked)["kinds"] = named
    return checked


def fields(of, **kinds: str) -> None:
    """Checks fields of an object, of kinds as for `door`."""
    for name, kind in kinds.items():
        KINDS[kind](f"{type(of).__name__}.{name}", getattr(of, name), {})


def kind(check: Kind) -> Kind:
    """Declares a kind of argument, under the name of its check."""
    KINDS[check.__name__] = check
    return check


def refuse(
    name: str, expected: str, value: Any, hint: str = "", error: type = ValueError
) -> NoReturn:
    """Raises the error of an argument, which says what it is in a few words."""
    short = int | float | complex | str | bytes | type | None
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, short):
        found = repr(value)
    elif isinstance(value, np.ndarray | jax.Array):
        found = f"an array {value.dtype} {list(value.shape)}"
    elif isinstance(value, tuple | list) and all(
        isinstance(x, short | np.generic) for x in value
    ):
        found = repr(value)
    else:
        found = type(value).__name__
    text = f"{name}: expected {expected}, found {found:.120}"
    raise error(f"{text}; {hint}" if hint else text)


def traced(value) -> bool:
    """Whether a transformation of JAX traces a value, which then has no numbers."""
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(value))


# Checks of one value, for doors and for what is no function.


def is_whole(value, least: int = 0, most: float = LARGEST) -> bool:
    """Whether it is a whole number in `least .. most`; True and False are none."""
    fine = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return fine and bool(least <= value <= most)


def whole(name: str, value, least: int = 0, most: int = LARGEST) -> int:
    """A whole number in `least .. most`."""
    if not is_whole(value, least, most):
        limit = "" if most == LARGEST else f" and at most {most:,}"
        refuse(name, f"a whole number of at least {least}{limit}", value)
    return int(value)


def number(name: str, value, expected: str, fine: Callable[[Any], bool]):
    """A finite number for which something holds; what is traced may be anything."""
    if traced(value):
        return value
    scalar = isinstance(value, int | float | np.number) or (
        isinstance(value, np.ndarray | jax.Array) and not value.ndim
    )
    if not scalar or np.asarray(value).dtype.kind not in "iuf":
        refuse(name, expected, value)
    if not abs(value) < math.inf or not fine(value):
        refuse(name, expected, value)
    return value


def one_of(name: str, value, known: Iterable[str]):
    """A word out of a list."""
    known = tuple(known)
    if not isinstance(value, str) or value not in known:
        refuse(name, f"one of {', '.join(map(repr, known))}", value)
    return value


def instance(name: str, value, kinds, expected: str, hint: str = ""):
    """Of a class, or one of several."""
    if isinstance(value, kinds):
        return value
    refuse(name, expected, value, hint, TypeError)


def has(name: str, value, attributes: str, expected: str):
    """Whatever has certain attributes."""
    if not all(hasattr(value, one) for one in attributes.split()):
        refuse(name, expected, value, "", TypeError)
    return value


def _several(name: str, value, given: dict[str, Any], of: str, expected: str):
    if isinstance(value, str) and of == "text":
        value = (value,)
    if not isinstance(value, Iterable) or isinstance(value, str | bytes):
        refuse(name, expected, value)
    value = tuple(KINDS[of](name, one, given) for one in value)
    if not value and of != "text":
        refuse(name, f"at least one of {expected}", value)
    if len(set(value)) < len(value) and of == "text":
        refuse(name, f"different {expected}", value)
    return value


def _declare() -> None:
    """The kinds of the tables."""
    for name, limits in WHOLE.items():
        KINDS[name] = lambda name, value, _, of=limits: whole(name, value, *of)
    for name, row in NUMBERS.items():
        KINDS[name] = lambda name, value, _, of=row: number(name, value, *of)
    for name, words in WORDS.items():
        KINDS[name] = lambda name, value, _, of=words: one_of(name, value, of)
    for name, row in CLASSES.items():
        KINDS[name] = lambda name, value, _, of=row: instance(
            name, value, tuple(map(pkgutil.resolve_name, of[0].split())), *of[1:]
        )
    for name, row in LIKE.items():
        KINDS[name] = lambda name, value, _, of=row: has(name, value, *of)
    for name, row in SEVERAL.items():
        KINDS[name] = functools.partial(_several, of=row[0], expected=row[1])


_declare()


# Steps, switches, places.


@kind
def steps(name, value, given):
    value = whole(name, value, 1, STEPS)
    model = given.get("model")
    if model is not None and hasattr(model, "neuron"):
        model.neuron.check_steps(value)
    return value


@kind
def anything(name, value, given):
    return value


@kind
def flag(name, value, given):
    return bool(instance(name, value, bool | np.bool_, "True or False"))


@kind
def path(name, value, given):
    from jaxburst.io.files import as_path

    as_path(value, name)
    return value


@kind
def schedule(name, value, given):
    from jaxburst.run import Plan

    if isinstance(value, Plan):
        return value
    return one_of(name, value, ("auto", "step", "layer"))


@kind
def sizes(name, value, given):
    """Whole numbers of at least 1, if any."""
    for one in instance(name, value, list | tuple, "whole numbers such as (64, 128)"):
        whole(name, one, 1)
    return value


@kind
def plan(name, value, given):
    """Of a VGG: the channels of its convolutions, and `"M"` for a pool."""
    entries = instance(name, value, list | tuple, "channels and 'M': (64, 'M', 128)")
    sizes(name, [x for x in entries if not (isinstance(x, str) and x == "M")], given)
    return value


@kind
def zoo(name, value, given):
    from jaxburst.zoo import NETWORKS

    return one_of(name, value, NETWORKS)


@kind
def function(name, value, given):
    return value if callable(value) else refuse(name, "a function", value)


@kind
def kinds(name, value, given):
    """Kinds of neurons: classes."""
    from jaxburst.neurons import Neuron

    expected = "classes of neurons, such as (Mine,)"
    value = tuple(instance(name, value, Iterable, expected))
    for one in value:
        if not inspect.isclass(one) or not issubclass(one, Neuron):
            refuse(name, expected, one)
    return value


@kind
def json(name, value, given):
    """A dictionary that JSON gives back as it was."""
    from json import dumps

    if not isinstance(value, Mapping):
        refuse(name, "a dictionary", value)
    try:
        dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: expected what JSON can hold ({error})") from None
    odd = [key for key in value if not isinstance(key, str)]
    if odd:
        refuse(name, "a dictionary with strings for keys", odd[0])
    return value


# Networks, and what belongs to one.


def network_of(given: dict[str, Any]) -> Any:
    """The network that a call is about, if it is about one."""
    from jaxburst.network import Network

    one = given.get("network", given.get("model", given.get("self")))
    one = getattr(one, "network", one)
    return one if isinstance(one, Network) else None


@kind
def variables(name, value, given):
    """Those of the network, and finite."""
    one = network_of(given)
    if traced(value):
        return value
    if one is None:
        instance(name, value, Mapping, "the variables of a module")
        flat = flatten_dict(value)
        for where, leaf in flat.items() or [(("it",), None)]:
            if not hasattr(leaf, "dtype"):
                refuse(f"{name}: {'/'.join(map(str, where))}", "an array", leaf)
    else:
        one.program.pick(value)  # what is no array is as it was when traced
    numeric(name, value)
    finite(name, value, "train again with a lower learning rate", masks=True)
    return value


@kind
def spiking(name, value, given):
    """What convert made for this network."""
    from jaxburst.convert import check_spiking

    one = network_of(given)
    instance(name, value, dict, "what convert returns", "run.prepare is internal")
    for node, own in value.items():
        for leaf in own if isinstance(own, tuple) else ():
            if not is_numeric(leaf, "biuf") and not isinstance(leaf, float):
                refuse(f"{name}: {node}", f"arrays of {_NUMERIC}", leaf)
    if one is not None:
        check_spiking(one, value)
        known = {node.name for node in one.graph.nodes} | one.program.uses.keys()
        for other in value.keys() - known:
            refuse(name, "what convert made of this network", other, "of another one")
        for population in one.neurons if not traced(value) else ():
            place = f"{name}: {population}"
            finite(place, value[population], "calibrate and convert again")
            _threshold(place, value[population], one, population)
            _corrected(place, value[population], given.get("model"))
    finite(name, value, "calibrate and convert again", masks=True)
    return value


_MADE: dict[bytes, Any] = {}  # which neuron corrections are for, by their digest


def corrected_for(neuron, spiking: dict) -> dict:
    """Remembers which kind of neuron the corrections of a network are for."""
    for own in spiking.values():
        if key := _correction(own):
            _MADE[key] = neuron
    return spiking


def _correction(own) -> bytes | None:
    """The digest of the corrections of a population, which copies share; None if it
    has none."""
    rows = getattr(own, "bias", 0) if hasattr(own, "theta") else 0
    if not np.ndim(rows) or traced(rows):
        return None
    rows = np.asarray(rows, np.float32)
    return hashlib.sha256(rows.tobytes()).digest() if rows.any() else None


def _corrected(name: str, own, model) -> None:
    neuron = _MADE.get(_correction(own) or b"")
    if model and neuron and type(model.neuron) is not type(neuron):
        raise ValueError(
            f"{name}: its corrections were made for {neuron}, which {model.neuron} "
            "would take for something else; correct for the model that is run"
        )


def _threshold(name: str, own, one, population: str) -> None:
    """Refuses thresholds that no neuron can have."""
    theta, initial = np.asarray(own.theta), np.asarray(own.initial)
    if not (theta >= LEAST).all():
        refuse(f"{name}.theta", "thresholds greater than 0", theta.min())
    if not ((initial >= 0) & (initial <= 1)).all():
        refuse(f"{name}.initial", "potentials of 0 .. 1 thresholds", initial.max())
    shape = one.graph[population].image_shape
    channels = shape[one.graph.channel_axes[population]]
    if np.shape(own.bias)[:1] == (0,) or np.shape(own.bias) == (channels,) != (1,):
        refuse(
            f"{name}.bias",
            "rows [T, ...], one for each step, or a scalar",
            list(np.shape(own.bias)),
            "one value per channel at every step is a row that is repeated",
        )


@kind
def thresholds(name, value, given):
    """`{population: θ > 0}`, for every population of the network."""
    from jaxburst.convert import threshold_shapes

    one = network_of(given)
    instance(name, value, Mapping, "{population: threshold}, as calibrate returns")
    expected, found = set(one.neurons), set(value)
    if expected != found:
        raise ValueError(
            f"{name}: expected one for every population of the network; missing: "
            f"{sorted(expected - found) or 'none'}, unknown: "
            f"{sorted(found - expected) or 'none'}"
        )
    for population, theta in value.items():
        place, shapes = f"{name}: {population}", threshold_shapes(one, population)[:2]
        if np.shape(theta) not in shapes:
            shape = np.shape(theta)
            raise ValueError(
                f"{place}: expected one of the shapes {shapes}, found {shape}"
            )
        if traced(theta):
            continue
        plain = theta if hasattr(theta, "dtype") else np.asarray(theta)
        if not is_numeric(plain):
            refuse(place, _NUMERIC, theta)
        theta = np.asarray(plain).astype(float)
        if not ((theta >= LEAST) & (theta <= MOST)).all():
            refuse(
                place,
                "finite thresholds greater than 0",
                theta.min(),
                "calibrate on images that make it fire",
            )
    return value


@kind
def inputs(name, value, given):
    """Images `[N, ...]` as the network takes them, at least one."""
    if traced(value):
        return value
    if hasattr(value, "pair"):
        refuse(name, "arrays [N, ...]", value, "pass split.inputs; labels are not read")
    leaves = jax.tree.leaves(value)
    for leaf in leaves:
        array(name, leaf)
    if not leaves:
        refuse(name, "arrays [N, ...]", value)
    counts = {len(leaf) for leaf in leaves}
    if len(counts) != 1 or 0 in counts:
        raise ValueError(
            f"{name}: expected the same number of images in each, at least one, found "
            f"{sorted(counts)}"
        )
    one = network_of(given)
    if one is not None:
        try:
            one.leaves(jax.tree.map(lambda x: np.asarray(x[:1]), value), name)
        except (TypeError, ValueError):
            one.leaves(value, name)  # says what all of it looks like
            raise
    finite(name, value, "normalise the data again")
    return value


@kind
def calibration(name, value, given):
    """Inputs of which not every number is 0, which would say nothing."""
    value = inputs(name, value, given)
    leaves = [] if traced(value) else jax.tree.leaves(value)
    if leaves and not any(
        (abs(np.asarray(row, float)) >= LEAST).any() for leaf in leaves for row in leaf
    ):
        refuse(name, "inputs that show what activations are like", "zeros alone")
    return value


@kind
def frames(name, value, given):
    """Frames `[T, B, ...]`, at least one, each as the network takes it."""
    leaves = jax.tree.leaves(value)
    for leaf in leaves:
        array(name, leaf)
    shapes = [np.shape(leaf) for leaf in leaves]
    lengths = {shape[0] if len(shape) > 1 else 0 for shape in shapes}
    if len(lengths) != 1 or 0 in lengths:
        refuse(name, "arrays [T, B, ...], of one length T of at least 1", shapes)
    inputs(name, jax.tree.map(lambda x: x[0], value), given)
    finite(name, value, "normalise the data again")
    return value


@kind
def state(name, value, given):
    from jaxburst.streams import Streamed

    return instance(name, value, Streamed, "what stream returned, or None")


@kind
def trace(name, value, given):
    """Of a simulation; of this network where there is one."""
    from jaxburst.run import Trace

    instance(name, value, Trace, "the Trace that simulate returns")
    one = network_of(given)
    if one is None:
        return value
    for population, spikes in value.spikes.items():
        own = one.graph[population].image_shape if population in one.neurons else (0,)
        if math.prod(spikes.shape[2:]) != math.prod(own):
            place, hint = f"{name}: {population}", "simulate this network"
            refuse(place, f"spikes of this network, [T, B, {own}]", spikes, hint)
    return value


@kind
def data(name, value, given):
    """Inputs and their targets, `(inputs, targets)` or a Split."""
    from jaxburst.batching import length
    from jaxburst.evaluation import check_targets, pair

    split(name, value, given)
    found, targets = pair(value)
    if not hasattr(value, "pair"):
        inputs("inputs", found, given)
    if isinstance(targets, list):
        targets = np.asarray(targets)
    for leaf in jax.tree.leaves(targets):
        if isinstance(leaf, np.ma.MaskedArray):
            refuse("labels", _NUMERIC, leaf)
    check_targets(network_of(given), targets, length(found), given.get("metric"))
    return value if hasattr(value, "pair") else (found, targets)


@kind
def split(name, value, given):
    if not isinstance(value, tuple) or len(value) != 2:
        has(name, value, "pair", "a Split, or (inputs, labels)")
    return value


@kind
def margins(name, value, given):
    from jaxburst.methods.anytime import Margins

    instance(name, value, Margins, "what settle returns")
    threshold = np.asarray(value.threshold)
    if threshold.ndim != 1 or not threshold.size or threshold.dtype.kind not in "iuf":
        refuse(f"{name}.threshold", "one number for each step, [T]", threshold)
    steps(f"{name}: its number of steps", len(threshold), given)
    if not (threshold >= 0).all():
        expected = "numbers of at least 0, inf where no image stops"
        refuse(f"{name}.threshold", expected, threshold.min())
    return value


@kind
def source(name, value, given):
    """Weights: a path, a mapping of names to arrays, or the bytes of a file."""
    for key in value if isinstance(value, Mapping) else ():
        instance(f"{name}: the name of an array", key, str, "a string")
    return value if isinstance(value, Mapping | bytes) else path(name, value, given)


@kind
def arguments(name, value, given):
    """What is traced: variables, and last an example of the inputs; or by name."""
    if isinstance(value, Mapping):
        return value
    for leaf in jax.tree.leaves(value):
        if isinstance(leaf, np.ndarray) and not is_numeric(leaf, "biufc"):
            refuse(name, _NUMERIC, leaf)
    for leaf in jax.tree.leaves(value[-1:]):
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            refuse(name, "arrays [N, ...], as an example of the inputs", leaf)
        array(name, leaf)
    return value


@kind
def events(name, value, given):
    """`{name: [...]}`, or what has them: `Curves`, a `Trace`."""
    counts = getattr(value, "traffic", value)
    instance(name, counts, Mapping, "Curves, a Trace, or {name: events}")
    for sender, leaf in counts.items():
        for one in map(np.asarray, jax.tree.leaves(leaf) or [leaf]):
            fine = is_numeric(one) and one.size and ((one >= 0) & (one < np.inf)).all()
            if not fine:
                refuse(f"{name}: {sender}", "counts [T, ...], of at least 0", leaf)
    return value


@kind
def curves(name, value, given):
    """`{label: Curves}`, at least one."""
    from jaxburst.evaluation import Curves

    instance(name, value, Mapping, "{label: Curves}")
    for label, one in value.items() or [("it", None)]:
        instance(f"{name}: {label}", one, Curves, "the Curves that evaluate returns")
    return value


@kind
def energies(name, value, given):
    """`{label: [T]}`, for all curves."""
    instance(name, value, Mapping, "{label: [T]}, as energy.relative returns")
    for label, one in given["curves"].items():
        found, steps = np.asarray(value.get(label, ())), np.shape(one.accuracy)
        if found.shape != steps or found.dtype.kind not in "iuf":
            refuse(f"{name}: {label}", f"a number for each step, {list(steps)}", found)
        if not np.isfinite(found).all():
            refuse(f"{name}: {label}", "finite numbers", np.nan)
    return value


@kind
def reports(name, value, given):
    """`{label: rows of analysis.report}`, or the rows of one."""
    several = value.values() if isinstance(value, Mapping) else [value]
    if not all(rows(name, one, given) for one in several) or not several:
        refuse(name, "the rows that analysis.report returns", value)
    return value


@kind
def neurons(name, value, given):
    """How many, or which."""
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        value = tuple(whole(name, one) for one in value)
        return (
            value
            if len({*value}) == len(value)
            else refuse(name, "different ones", value)
        )
    return whole(name, value, 1)


@kind
def axes(name, value, given):
    """Of Matplotlib, one or several."""
    several = value if isinstance(value, Iterable) else [value]
    for one in np.ravel(np.array(several, object)):
        has(name, one, "plot", "axes of Matplotlib to draw on")
    return value


@kind
def batch(name, value, given):
    """Images `[B, H, W, C]`."""
    fine = isinstance(value, np.ndarray | jax.Array) and value.ndim == 4
    if not fine or not traced(value) and not is_numeric(value, "biuf"):
        refuse(name, "images [B, H, W, C]", value)
    return value


@kind
def key(name, value, given):
    """Of JAX's random numbers: one, in either form."""
    kind, shape = getattr(value, "dtype", np.dtype(object)), np.shape(value)
    if jnp.issubdtype(kind, jax.dtypes.prng_key) and not shape:
        return value
    if not isinstance(value, np.ndarray | jax.Array) or (kind, shape) != (_RAW, (2,)):
        refuse(name, "a key of jax.random, one", value)
    return value


_RAW = np.dtype("uint32")


@kind
def flips(name, value, given):
    """Which images are flipped, bool `[B]`."""
    kind, shape = getattr(value, "dtype", None), np.shape(value)
    if kind != np.dtype(bool) or shape != given["images"].shape[:1]:
        refuse(name, "True or False for each image, [B]", value)
    return value


@kind
def side(name, value, given):
    """Of a square: a whole number, which may be traced."""
    return value if traced(value) else whole(name, np.asarray(value)[()])


@kind
def share(name, value, given):
    found = np.asarray(value)
    fine = found.dtype.kind in "iuf" and found.size
    if not fine or not ((found >= 0) & (found <= 1)).all():
        refuse(name, "shares between 0 and 1", value)
    return value


@kind
def sample(name, value, given):
    """An example of inputs, of what has no network yet, or their shape."""
    if isinstance(value, tuple) and value and all(is_whole(n, 1) for n in value):
        return value
    arguments(name, (value,), given)
    return value if jax.tree.leaves(value) else refuse(name, "arrays", value)


@kind
def rows(name, value, given):
    """What `analysis.report` returns."""
    return _rows(name, value, "theta", "report")


@kind
def errors(name, value, given):
    """What `analysis.errors` returns."""
    return _rows(name, value, "size", "errors")


def _rows(name, value, of: str, source: str):
    expected = f"the rows that analysis.{source} returns"
    for one in instance(name, value, list | tuple, expected):
        has(name, one, of, expected)
    return value


@kind
def constants(name, value, given):
    """One finite number for each channel."""
    found = np.asarray(value)
    fine = found.ndim == 1 and found.size and found.dtype.kind in "iuf"
    if not fine or not np.isfinite(found).all():
        refuse(name, "a finite number for each channel", value)
    return value


# Arrays.


def array(name: str, value) -> None:
    """Refuses what is no array of numbers with images in front."""
    shape = getattr(value, "shape", None)
    rows = hasattr(value, "__len__") and hasattr(value, "__getitem__")
    if shape is None and rows and not isinstance(value, str | bytes):
        return  # they are read when they are asked for
    if not shape:
        refuse(name, "arrays [N, ...]", value)
    if not is_numeric(value, "biuf"):
        refuse(name, _NUMERIC, value)


_NUMERIC = "numbers, as NumPy or JAX have them, nothing masked"


def is_numeric(value, kinds: str = "iuf") -> bool:
    """Whether an array holds real numbers, all of them, of a type that JAX knows."""
    kind = getattr(value, "dtype", None)
    if not isinstance(kind, np.dtype) or isinstance(value, np.ma.MaskedArray):
        return False
    known = jnp.issubdtype(kind, jnp.number) if kind.kind == "V" else kind.kind in kinds
    return known and kind.itemsize <= 8


def numeric(name: str, tree) -> None:
    """Refuses arrays that do not hold real numbers."""
    for where, leaf in jax.tree_util.tree_leaves_with_path(tree):
        held = hasattr(leaf, "dtype") and not isinstance(leaf, Tracer)
        if held and not is_numeric(leaf, "biuf"):
            place = jax.tree_util.keystr(where, simple=True, separator="/")
            refuse(f"{name}: {place}", _NUMERIC, leaf)


_SEEN: dict[int, weakref.ref] = {}  # arrays of JAX, which never change, by their id


def finite(name: str, tree, hint: str, masks: bool = False) -> None:
    """Refuses numbers that are not finite; masks, 0 elsewhere, may hold -inf.

    Raises:
      ValueError: naming the place of the first.
    """
    for where, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not isinstance(leaf, np.ndarray | np.generic | jax.Array | float):
            continue
        if isinstance(leaf, Tracer) or _SEEN.get(id(leaf), int)() is leaf:
            continue
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            continue
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            continue
        kind = jnp.result_type(leaf)  # of double precision that of JAX, by default
        with np.errstate(over="ignore"):
            host = np.asarray(leaf, kind if kind.kind in "fc" else np.float32)
        known = np.isfinite(host)
        if not (known | (masks & np.isneginf(host) & ~host[known].any())).all():
            place = jax.tree_util.keystr(where, simple=True, separator="/")
            place = f"{name}: {place}" if place else name
            raise ValueError(f"{place}: a number is not finite; {hint}")
        if isinstance(leaf, jax.Array):
            forget = functools.partial(lambda key, _: _SEEN.pop(key, None), id(leaf))
            _SEEN[id(leaf)] = weakref.ref(leaf, forget)
