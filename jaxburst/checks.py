"""The one door: what an argument must be, said once, and checked before any work.

    @door
    def simulate(model, spiking, inputs, steps): ...

What an argument must be follows from its name, by `NAMES`, unless the decorator says
otherwise: `@door(energy="positive")`. A parameter for which neither says anything is an
error when the module is imported. What a transformation traces is let through.
"""

from __future__ import annotations

import functools
import inspect
import math
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

Function = TypeVar("Function", bound=Callable)
Kind = Callable[[str, Any, dict[str, Any]], Any]

STEPS = 2**16
"""The most time steps of a run."""

KINDS: dict[str, Kind] = {}
"""`{kind: check(name, value, all arguments)}`; a check returns what is passed on."""

NAMES = {
    name: kind
    for kind, of in {
        "count": "batch_size checkpoint_every count iterations levels "
        "size steps_per_epoch trials",
        "natural": "image step validation",
        "fraction": "agreement ann initial",
        "positive": "ann_energy error logits z",
        "flag": "download each_step exact progress resume wires",
        "path": "data_dir directory path",
        "function": "function metric visit",
        "text": "baseline description label name title",
        "names": "names platforms record",
        "subject": "subject",
        "inputs": "example inputs",
        "spiking": "spiking weights",
        "events": "events rounded sent",
        "json": "notes",
        "percentiles": "candidates",
        "anything": "kinds roles",
        "constants": "mean std",
        "rows": "rows",
    }.items()
    for name in of.split()
} | {
    name: name
    for name in (
        *("arguments", "axes", "bits", "classes", "curves", "images", "neurons"),
        *("optimiser", "rate", "reports", "share", "source"),
        *("cost", "data", "first_layer", "graph", "integers", "margins", "model"),
        *("module", "network", "neuron", "per", "percentile", "platform", "recipe"),
        *("reuse",),
        *("schedule", "seed", "shortcut", "split", "steps", "thresholds", "times"),
        *("trace", "unit", "variables"),
    )
}
"""What an argument of this name is, where the decorator does not say otherwise."""


def door(function: Function | None = None, /, **special: str) -> Any:
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
    named = {name: special.get(name, NAMES.get(name)) for name in signature.parameters}
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

    checked.kinds = named
    return checked


def kind(check: Kind) -> Kind:
    """Declares a kind of argument, under the name of its check."""
    KINDS[check.__name__.strip("_")] = check
    return check


def refuse(name: str, expected: str, value: Any, hint: str = "") -> NoReturn:
    """Raises the error of an argument."""
    short = isinstance(value, int | float | str | bytes | type(None) | np.generic)
    found = repr(value) if short else type(value).__name__
    text = f"{name}: expected {expected}, found {found:.120}"
    raise ValueError(f"{text}; {hint}" if hint else text)


def traced(value) -> bool:
    """Whether a transformation of JAX traces a value, which then has no numbers."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(value))


# Numbers.


def whole(name: str, value, least: int, most: int = 2**31 - 1) -> int:
    """A whole number in `least .. most`; True and False are none."""
    fine = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not fine or not least <= value <= most:
        limit = "" if most == 2**31 - 1 else f" and at most {most:,}"
        refuse(name, f"a whole number of at least {least}{limit}", value)
    return int(value)


def number(name: str, value, expected: str, fine: Callable[[Any], bool]):
    """A finite number for which something holds; what is traced may be anything."""
    if traced(value):
        return value
    array = isinstance(value, np.ndarray | jax.Array) and value.ndim == 0
    known = isinstance(value, int | float | np.integer | np.floating) or array
    if (
        not known
        or isinstance(value, bool)
        or np.asarray(value).dtype.kind not in "iuf"
    ):
        refuse(name, expected, value)
    if not math.isfinite(value) or not fine(value):
        refuse(name, expected, value)
    return value


@kind
def count(name, value, given):
    return whole(name, value, 1)


@kind
def natural(name, value, given):
    return whole(name, value, 0)


@kind
def steps(name, value, given):
    value = whole(name, value, 1, STEPS)
    model = given.get("model")
    if model is not None and hasattr(model, "neuron"):
        model.neuron.check_steps(value)
    return value


@kind
def times(name, value, given):
    """Time steps, some of them."""
    if not isinstance(value, Iterable) or isinstance(value, str):
        refuse(name, "time steps such as (1, 2, 4)", value)
    value = tuple(steps(name, one, given) for one in value)
    return value or refuse(name, "at least one time step", value)


@kind
def seed(name, value, given):
    return whole(name, value, 0, 2**32 - 1)


@kind
def fraction(name, value, given):
    return number(name, value, "a number between 0 and 1", lambda x: 0 <= x <= 1)


@kind
def positive(name, value, given):
    return number(name, value, "a number greater than 0", lambda x: x > 0)


@kind
def rate(name, value, given):
    """Of learning."""
    return number(name, value, "a number in 0 < x <= 1", lambda x: 0 < x <= 1)


@kind
def bits(name, value, given):
    return whole(name, value, 1, 32)


@kind
def classes(name, value, given):
    return whole(name, value, 1, 10**6)


@kind
def percentile(name, value, given):
    return number(
        name, value, "a number greater than 0, up to 100", lambda x: 0 < x <= 100
    )


@kind
def percentiles(name, value, given):
    if not isinstance(value, Iterable) or isinstance(value, str):
        refuse(name, "percentiles such as (99, 99.9)", value)
    value = tuple(percentile(name, one, given) for one in value)
    return value or refuse(name, "at least one percentile", value)


# Words, switches, places.


def one_of(name: str, value, known: Iterable[str]):
    """A word out of a list."""
    known = tuple(known)
    if not isinstance(value, str) or value not in known:
        refuse(name, f"one of {', '.join(map(repr, known))}", value)
    return value


@kind
def anything(name, value, given):
    return value


@kind
def flag(name, value, given):
    if not isinstance(value, bool | np.bool_):
        refuse(name, "True or False", value)
    return bool(value)


@kind
def text(name, value, given):
    if not isinstance(value, str):
        refuse(name, "a string", value)
    return value


@kind
def names(name, value, given):
    """One name, or several."""
    value = (value,) if isinstance(value, str) else value
    if not isinstance(value, Iterable):
        refuse(name, "names", value)
    return tuple(text(name, one, given) for one in value)


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
def platform(name, value, given):
    return one_of(name, value, ("cpu", "gpu", "cuda", "rocm", "tpu"))


@kind
def per(name, value, given):
    return one_of(name, value, ("layer", "channel"))


@kind
def unit(name, value, given):
    return one_of(name, value, ("quanta", "events", "digits"))


@kind
def reuse(name, value, given):
    return one_of(name, value, ("no", "full"))


@kind
def first_layer(name, value, given):
    return one_of(name, value, ("once", "every step"))


@kind
def zoo(name, value, given):
    from jaxburst.zoo import NETWORKS

    return one_of(name, value, NETWORKS)


@kind
def shortcut(name, value, given):
    return one_of(name, value, ("subsample", "conv"))


@kind
def function(name, value, given):
    if not callable(value):
        refuse(name, "a function", value)
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


def instance(name: str, value, kinds, expected: str, hint: str = ""):
    """Of a class, or one of several."""
    if isinstance(value, kinds):
        return value
    found = repr(value) if isinstance(value, type) else type(value).__name__
    text = f"{name}: expected {expected}, found {found:.120}"
    raise TypeError(f"{text}; {hint}" if hint else text)


def network_of(given: dict[str, Any]):
    """The network that a call is about, if it is about one."""
    one = given.get("network", given.get("model"))
    one = getattr(one, "network", one)
    return one if hasattr(one, "program") else None


@kind
def network(name, value, given):
    from jaxburst.network import Network

    hint = "pass model.network" if hasattr(value, "network") else "trace the function"
    return instance(name, value, Network, "what trace returns", hint)


@kind
def model(name, value, given):
    from jaxburst.run import Model

    return instance(name, value, Model, "a Model", "Model(network, neuron) makes one")


@kind
def integers(name, value, given):
    from jaxburst.io.integers import Integers

    return instance(name, value, Integers, "what to_integers returns")


@kind
def subject(name, value, given):
    """A network, or a model of one."""
    from jaxburst.network import Network
    from jaxburst.run import Model

    return instance(name, value, (Network, Model), "what trace returns, or a Model")


@kind
def neuron(name, value, given):
    from jaxburst.neurons import Neuron

    return instance(
        name, value, Neuron, "a kind of neuron such as Burst() or Refining()"
    )


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
        one.program.pick(value)
    numeric(name, value)
    finite(name, value, "train again with a lower learning rate")
    return value


@kind
def spiking(name, value, given):
    """What convert made for this network."""
    from jaxburst.convert import check_spiking

    one = network_of(given)
    if not isinstance(value, dict):
        instance(name, value, dict, "what convert returns", "run.prepare is internal")
    if one is not None:
        check_spiking(one, value)
        known = {node.name for node in one.graph.nodes} | one.program.uses.keys()
        for other in value.keys() - known:
            refuse(name, "what convert made of this network", other, "of another one")
        for population in one.neurons if not traced(value) else ():
            _threshold(f"{name}: {population}", value[population], one, population)
            _corrected(f"{name}: {population}", value[population], given.get("model"))
    numeric(name, value)
    finite(name, value, "calibrate and convert again")
    return value


_MADE: dict[int, tuple] = {}  # corrections, by their id, and the neuron they are for


def corrected_for(neuron, spiking: dict) -> dict:
    """Remembers which kind of neuron the corrections of a network are for."""
    for own in spiking.values():
        bias = getattr(own, "initial", None) is not None and own.bias
        if isinstance(bias, jax.Array) and bias.ndim and not traced(bias):
            forget = functools.partial(lambda key, _: _MADE.pop(key, None), id(bias))
            _MADE[id(bias)] = weakref.ref(bias, forget), neuron
    return spiking


def _corrected(name: str, own, model) -> None:
    found, neuron = _MADE.get(id(own.bias), (int, None))
    if found() is own.bias and model and model.neuron.repeats != neuron.repeats:
        raise ValueError(
            f"{name}: its corrections were made for {neuron}, which {model.neuron} "
            "would take for something else; correct for the model that is run"
        )


def _threshold(name: str, own, one, population: str) -> None:
    """Refuses thresholds that no neuron can have."""
    theta, initial = np.asarray(own.theta), np.asarray(own.initial)
    if not (theta > 0).all():
        refuse(f"{name}.theta", "thresholds greater than 0", theta.min())
    if not ((initial >= 0) & (initial <= 1)).all():
        refuse(f"{name}.initial", "potentials of 0 .. 1 thresholds", initial.max())
    shape = one.graph[population].image_shape
    channels = shape[one.graph.channel_axes[population]]
    if np.shape(own.bias) == (channels,) and channels > 1:
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
        theta = np.asarray(theta)
        if theta.dtype.kind not in "iufV":
            refuse(place, "a number", theta.dtype.name)
        if not (np.isfinite(theta.astype(float)) & (theta > 0)).all():
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
    check_targets(network_of(given), targets, length(found), given.get("metric"))
    return value if hasattr(value, "pair") else (found, targets)


@kind
def split(name, value, given):
    if not hasattr(value, "pair") and not (
        isinstance(value, tuple) and len(value) == 2
    ):
        instance(name, value, (), "a Split, or (inputs, labels)")
    return value


@kind
def margins(name, value, given):
    from jaxburst.methods.anytime import Margins

    instance(name, value, Margins, "what settle returns")
    threshold = np.asarray(value.threshold)
    if threshold.ndim != 1 or not threshold.size or threshold.dtype.kind not in "iuf":
        refuse(f"{name}.threshold", "one number for each step, [T]", threshold)
    if not (threshold >= 0).all():
        expected = "numbers of at least 0, inf where no image stops"
        refuse(f"{name}.threshold", expected, threshold.min())
    return value


@kind
def module(name, value, given):
    import flax.linen as nn

    return instance(
        name,
        value,
        nn.Module,
        "a Flax Linen module",
        "a network of another kind is trained by its own tools, and then traced",
    )


@kind
def optimiser(name, value, given):
    if not hasattr(value, "init") or not hasattr(value, "update"):
        instance(name, value, (), "an optimiser of optax")
    return value


@kind
def source(name, value, given):
    """Weights: a path, a mapping of names to arrays, or the bytes of a file."""
    if isinstance(value, Mapping | bytes):
        return value
    return path(name, value, given)


@kind
def arguments(name, value, given):
    """What is traced: variables, and last an example of the inputs; or by name."""
    if isinstance(value, Mapping):
        return value
    for leaf in jax.tree.leaves(value[-1:]):
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            refuse(name, "arrays [N, ...], as an example of the inputs", leaf)
        array(name, leaf)
    return value


@kind
def images(name, value, given):
    """Pixels."""
    if not hasattr(value, "dtype") or not hasattr(value, "ndim"):
        instance(name, value, (), "an array of pixels, uint8 [..., C]")
    return value


@kind
def recipe(name, value, given):
    from jaxburst.training.recipe import Recipe

    return instance(name, value, Recipe, "a Recipe")


@kind
def events(name, value, given):
    """`{name: [...]}`, or what has them: `Curves`, a `Trace`."""
    counts = getattr(value, "traffic", value)
    instance(name, counts, Mapping, "Curves, a Trace, or {name: events}")
    for sender, leaf in counts.items():
        for one in jax.tree.leaves(leaf):
            if np.asarray(one).dtype.kind not in "iuf":
                refuse(f"{name}: {sender}", "counts [T, ...]", leaf)
    return value


@kind
def graph(name, value, given):
    from jaxburst.graph import Graph

    return instance(name, value, Graph, "a Graph", "network.graph is one")


@kind
def cost(name, value, given):
    from jaxburst.costs import Cost

    return instance(name, value, Cost, "a Cost")


@kind
def trace(name, value, given):
    from jaxburst.run import Trace

    return instance(name, value, Trace, "the Trace that simulate returns")


@kind
def mapping(name, value, given):
    return instance(name, value, Mapping, "a dictionary, {label: ...}")


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
    for one in value.values() if isinstance(value, Mapping) else [value]:
        rows(name, one, given)
        if not one or not all(hasattr(row, "events") for row in one):
            refuse(name, "the rows that analysis.report returns", one)
    return value or refuse(name, "the rows that analysis.report returns", value)


@kind
def neurons(name, value, given):
    """How many, or which."""
    if isinstance(value, Iterable) and not isinstance(value, str):
        return tuple(natural(name, one, given) for one in value)
    return count(name, value, given)


@kind
def axes(name, value, given):
    """Of Matplotlib, one or several."""
    several = value if isinstance(value, Iterable) else [value]
    for one in np.ravel(np.array(several, object)):
        if not hasattr(one, "plot"):
            instance(name, one, (), "axes of Matplotlib to draw on")
    return value


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
    if isinstance(value, tuple) and value and all(isinstance(n, int) for n in value):
        return value
    arguments(name, (value,), given)
    return value if jax.tree.leaves(value) else refuse(name, "arrays", value)


@kind
def rows(name, value, given):
    """What a report returns."""
    instance(name, value, list | tuple, "the rows that report or errors returns")
    for one in value:
        instance(name, one, tuple, "the rows that report or errors returns")
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
    if shape is None and hasattr(value, "__len__") and hasattr(value, "__getitem__"):
        if not isinstance(value, str | bytes):
            return  # rows that are read when they are asked for
    if not shape:
        refuse(name, "arrays [N, ...]", value)
    if np.dtype(value.dtype).kind not in "biufV":
        refuse(name, "numbers", str(value.dtype))


def numeric(name: str, tree) -> None:
    """Refuses arrays that do not hold real numbers."""
    for where, leaf in jax.tree_util.tree_leaves_with_path(tree):
        kind = getattr(getattr(leaf, "dtype", None), "kind", "O")
        if kind not in "iufV" and not isinstance(leaf, int | float | jax.core.Tracer):
            place = jax.tree_util.keystr(where, simple=True, separator="/")
            refuse(f"{name}: {place}", "numbers", str(getattr(leaf, "dtype", leaf)))


_SEEN: dict[int, weakref.ref] = {}  # arrays of JAX, which never change, by their id


def finite(name: str, tree, hint: str) -> None:
    """Refuses numbers that are not finite.

    Raises:
      ValueError: naming the place of the first.
    """
    for where, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not isinstance(leaf, np.ndarray | np.generic | jax.Array | float):
            continue
        if isinstance(leaf, jax.core.Tracer) or _SEEN.get(id(leaf), int)() is leaf:
            continue
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            continue
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            continue
        host = np.asarray(leaf)
        if host.dtype.kind == "V":  # bfloat16 and the like
            host = host.astype(np.float32)
        if not np.isfinite(host).all():
            place = jax.tree_util.keystr(where, simple=True, separator="/")
            place = f"{name}: {place}" if place else name
            raise ValueError(f"{place}: a number is not finite; {hint}")
        if isinstance(leaf, jax.Array):
            _SEEN[id(leaf)] = weakref.ref(leaf, functools.partial(_forget, id(leaf)))


def _forget(key: int, _) -> None:
    _SEEN.pop(key, None)
