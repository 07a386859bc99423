"""Bad input to any public function is one clear error at the door.

Functions are found by walking the package, and calls are made of what their arguments
are: a new function is covered as it is, and fails here if nobody says what its
arguments are.
"""

import importlib
import inspect
import traceback
from pathlib import Path

import flax.linen as nn
import jax
import matplotlib
import numpy as np
import optax
import pytest

import jaxburst as jb
from jaxburst import checks
from jaxburst.training import augmentation

matplotlib.use("Agg")
plt = importlib.import_module("matplotlib.pyplot")
PACKAGE = str(Path(jb.__file__).parent)
INTERNAL = {
    "free": "who may overwrite a file, for writers of this package",
    "is_artefact": "for `free`",
    "is_events": "for `free`",
    "parts": "a formula of `errors`",
    "halves": "for those that choose by one half",
    "outputs": "for those that choose by outputs",
    "rows": "of a table",
}


def public() -> dict:
    """All functions of the package's names and of the modules among them."""
    found = {}
    for name in jb.__all__:
        thing = getattr(jb, name)
        if inspect.ismodule(thing):
            own = [k for k, v in vars(thing).items() if not k.startswith("_")
                   and getattr(v, "__module__", "") == thing.__name__]  # fmt: skip
            for key in getattr(thing, "__all__", own):
                found[f"{name}.{key}"] = getattr(thing, key)
        else:
            found[name] = thing
    return {
        name: thing
        for name, thing in found.items()
        if inspect.isfunction(thing)
        and inspect.signature(thing).parameters
        and thing.__name__ not in INTERNAL
    }


def net(weights, x):
    return jax.nn.relu(x @ weights["hidden"]) @ weights["out"]


RNG = np.random.default_rng(0)
WEIGHTS = {
    "hidden": RNG.normal(size=(3, 4)).astype(np.float32),
    "out": RNG.normal(size=(4, 5)).astype(np.float32),
}
X = RNG.normal(size=(6, 3)).astype(np.float32)
Y = np.arange(6) % 5
NETWORK = jb.trace(net, WEIGHTS, X[:1])
SPIKING = jb.convert(NETWORK, WEIGHTS, {"relu0": 0.5})
MODEL = jb.Model(NETWORK)
OWN = SPIKING["relu0"]


def other():
    wider = {"hidden": np.ones((3, 7), np.float32), "out": np.ones((7, 5), np.float32)}
    network = jb.trace(net, wider, X[:1])
    return network, wider, jb.convert(network, wider, {"relu0": 1.0})


NETWORK2, WEIGHTS2, SPIKING2 = other()


def changed(array, value):
    array = np.array(array)
    array.flat[0] = value
    return array


def one(**fields):
    """The converted network with another threshold."""
    return SPIKING | {"relu0": OWN._replace(**fields)}


PIXELS = np.zeros((2, 3, 3, 1), np.uint8)
CURVES = jb.evaluate(MODEL, SPIKING, (X, Y), 2, progress=False)
EVENTS = {"relu0": np.ones(4)}
TRACE = jb.simulate(MODEL, SPIKING, X, 2, record="relu0")
GOOD = {
    "network": NETWORK,
    "subject": NETWORK,
    "model": MODEL,
    "graph": NETWORK.graph,
    "variables": WEIGHTS,
    "spiking": SPIKING,
    "thresholds": {"relu0": 0.5},
    "inputs": X,
    "data": (X, Y),
    "split": (X, Y),
    "neuron": jb.Burst(),
    "steps": 2,
    "times": (1, 2),
    "count": 1,
    "natural": 1,
    "seed": 0,
    "fraction": 0.5,
    "positive": 1.0,
    "percentile": 99.0,
    "percentiles": (99,),
    "flag": False,
    "path": "/dev/null/nowhere",  # nothing can be written there
    "function": len,
    "text": "text",
    "names": ("relu0",),
    "json": {},
    "schedule": "auto",
    "platform": "cpu",
    "per": "layer",
    "unit": "quanta",
    "reuse": "no",
    "first_layer": "once",
    "shortcut": "conv",
    "zoo": "vgg_tiny",
    "events": EVENTS,
    "cost": jb.energy.HOROWITZ_FP32,
    "margins": jb.anytime.Margins(np.ones(2)),
    "module": nn.Dense(5),
    "recipe": jb.Recipe(),
    "trace": TRACE,
    "integers": jb.to_integers(MODEL, SPIKING, X, 2),
    "mapping": {},
    "rows": [],
    "errors": [],
    "levels": 4,
    "constants": (0.5,),
    "arguments": (WEIGHTS, X),
    "classes": 3,
    "images": PIXELS,
    "optimiser": optax.sgd(0.1),
    "rate": 0.1,
    "source": {},
    "axes": plt.figure().subplots(),
    "bits": 8,
    "curves": {"a": CURVES},
    "energies": {"a": np.ones(2)},
    "neurons": 3,
    "reports": jb.analysis.report(MODEL, SPIKING, X, 2),
    "sample": X,
    "share": 0.5,
    "kinds": (),
    "frames": np.stack([X, X]),
    "calibration": X,
    "state": jb.stream(MODEL, SPIKING, X[None])[1],
    "anything": optax.sgd(0.1),
    "sizes": (4, 5),
    "plan": (4, "M"),
    "head": "mean",
    "kind": "none",
    "batch": PIXELS,
    "key": jax.random.key(0),
    "flips": np.array([True, False]),
    "side": 2,
}
FUNCTIONS = public() | {  # and what has a door elsewhere, methods among it
    f"augmentation.{name}": thing
    for name, thing in vars(augmentation).items()
    if hasattr(thing, "kinds")
}
FUNCTIONS |= {
    f"Integers.{name}": getattr(GOOD["integers"], name)
    for name, method in inspect.getmembers(jb.Integers)
    if hasattr(method, "kinds")
}
TINY, HUGE, MASKED = np.float32(1e-42), np.float64(1e300), np.ma.masked_less(X, 0)
WHOLE = [-1, 1.5, True, "3", np.nan, 2**70, np.array([1, 2]), [3], 1j, b"1"]
NUMBER = [-0.1, np.nan, np.inf, "0.5", True, 1j, [0.5], np.ones(2), object()]
WORD = ["", "no such", 1, True, b"auto", ["auto"]]
BAD = {
    "network": [None, MODEL, net, "network", 3, SPIKING, NETWORK.graph],
    "subject": [None, net, "network", 3, SPIKING],
    "model": [None, NETWORK, jb.Burst(), "model", SPIKING, jb.Model],
    "graph": [None, NETWORK, 3],
    "variables": [
        *(None, {}, [], 3, "weights", SPIKING, WEIGHTS2, WEIGHTS | {"more": X}),
        *({"hidden": WEIGHTS["hidden"]}, WEIGHTS | {"out": WEIGHTS["out"].T}),
        *(
            WEIGHTS | {"out": changed(WEIGHTS["out"], v)}
            for v in (np.nan, np.inf, -np.inf)
        ),
        *(WEIGHTS | {"out": WEIGHTS["out"].astype(v)} for v in ("longdouble", "V4")),
        *(
            WEIGHTS | {"out": v}
            for v in (np.ma.masked_less(WEIGHTS["out"], 0), WEIGHTS["out"] * HUGE)
        ),
        *(WEIGHTS | {"out": v} for v in ("out", None, WEIGHTS["out"] * 1j)),
    ],
    "spiking": [
        *({}, [], 3, "spiking", WEIGHTS, SPIKING2, SPIKING | {"other": OWN}),
        *(one(theta=np.float32(v)) for v in (0, -1, np.nan, np.inf, TINY)),
        *(one(theta=v) for v in (HUGE, [0.5] * 4, "0.5", None, np.complex64(1))),
        *(one(bias=v) for v in (np.ones((0, 4), np.float32), -HUGE)),
        *(SPIKING | {"out": SPIKING["out"]._replace(kernel=v)} for v in ("a", [[1.0]])),
        *(one(initial=np.float32(v)) for v in (7, -1, np.nan)),
        *(one(bias=np.float32(v)) for v in (np.nan, np.inf)),
        *(one(bias=np.ones(4, np.float32)), one(theta=np.ones(3, np.float32))),
        *(SPIKING | {"relu0": v} for v in (None, 0.5, SPIKING["hidden"])),
        *(SPIKING | {"hidden": v} for v in (None, WEIGHTS["hidden"], OWN)),
        SPIKING | {"out": SPIKING["out"]._replace(kernel=WEIGHTS["out"] * np.nan)},
        SPIKING | {"out": SPIKING["out"]._replace(bias=np.ones(3, np.float32))},
        {name: SPIKING[name] for name in ("hidden", "out")},
    ],
    "thresholds": [
        *(None, {}, [], 3, "relu0", {"relu1": 1.0}, {"relu0": 1.0, "relu1": 1.0}),
        *({"relu0": v} for v in (0, -1.0, np.nan, np.inf, "1", None, True, 1j, [])),
        *({"relu0": v} for v in (TINY, 1e300, MASKED[0], np.longdouble(1))),
        *({"relu0": v} for v in (np.ones(3), np.ones((4, 4)), changed(np.ones(4), 0))),
    ],
    "inputs": [
        *(None, 3, "images", [], {}, (), X[0], X[:0], X[None], X[:, :2], X.T),
        *(changed(X, np.nan), changed(X, np.inf), X * 1j, X > 0, X.astype(str)),
        *(MASKED, X * HUGE, X.astype("longdouble"), X.astype("V4")),
        *(
            X.astype(np.uint8),
            X.astype(object),
            (X, X),
            {"x": X},
            iter(X),
            np.float32(1),
        ),
    ],
    "data": [
        *(None, X, 3, "data", (X,), (X, Y, Y), (Y, X), (X, None), (None, Y), [X, Y]),
        *((X, v) for v in (np.eye(5)[Y], Y[:, None], Y * 1.0, Y - 1, Y + 1, Y[:5])),
        *((X, v) for v in (Y.astype(str), Y > 0, Y * 1j, [*Y[:5], None], 3, "abcdef")),
        *(
            (X, v)
            for v in (
                np.ma.masked_less(Y, 2),
                Y + 2**32,
                changed(Y * 1.0, np.nan),
                Y[:0],
                [Y, Y],
            )
        ),
        *((v, Y) for v in (changed(X, np.nan), X[:, :2], X * 1j, X[:0], "x", X[:5])),
    ],
    "split": [None, X, 3, "data", (X,), (X, Y, Y)],
    "neuron": [None, jb.Burst, "burst", 3, MODEL],
    "steps": [0, *WHOLE, 2**31, 2**24],
    "times": [None, 3, "1", b"1", (), (0,), (1.5,), (True,), [2**31]],
    "count": [0, *WHOLE],
    "natural": WHOLE,
    "seed": [*WHOLE, 2**33],
    "fraction": [1.1, *NUMBER],
    "positive": [0, 1e-300, *NUMBER],
    "rate": [0, 1e9, *NUMBER],
    "classes": [0, *WHOLE, 10**9],
    "images": [None, 3, "images", [[1]], {}],
    "optimiser": ["adam", 3, optax.sgd],
    "source": [None, 3, "", [1], {1: X}],
    "arguments": [],  # there are no bad ones for all functions
    "axes": [3, "axes", [3], jb.plot],
    "bits": [0, *WHOLE, 99],
    "curves": [None, 3, {}, {"a": 3}, CURVES],
    "energies": [3, {}, {"b": np.ones(2)}, {"a": [1]}, {"a": [np.nan, 1]}],
    "neurons": [0, *WHOLE[:6], "a", [-1], ["a"], [0, 0]],
    "reports": [None, 3, [], {}, [3], {"a": []}, {"a": 3}],
    "sample": [None, 3, "x", [], [None]],
    "share": [-1, 2, np.nan, "1", None, [], [0.5, 2], 1j],
    "percentile": [0, 101, *NUMBER],
    "percentiles": [None, 3, "99", (), (0,), (np.nan,), (99, 101), ("99",)],
    "flag": ["no", "false", 0, 1, None, np.ones(2)],
    "path": [None, "", 3, 1.5, ["a"], True, "a\0b"],
    "function": [3, "function", [len]],
    "text": [None, 3, b"text", ["text"]],
    "names": [3, 1.5, (3,), [None], b"relu0", ("relu0", "relu0")],
    "frames": [
        *(None, 3, "frames", [], X, [X, X], np.stack([X, X])[:0], X[None, :0]),
        *(
            MASKED[None],
            X[None] * np.nan,
            X[None] * 1j,
            X[None].astype(str),
            X[None, :, :2],
        ),
    ],
    "state": [
        *(3, (1, 2), TRACE, jb.stream(MODEL, SPIKING, X[None, :2])[1]),
        jb.stream(MODEL, one(theta=np.float32(0.25)), X[None])[1],
        jax.tree.map(lambda x: x * np.nan, GOOD["state"]),
    ],
    "kinds": [3, "Burst", jb.Burst, (3,), (jb.Burst(),), [len], [dict]],
    "json": [3, "notes", {1: 2}, {"a": object()}, {"a": np.nan}, {"a": np.ones(2)}],
    "events": [
        *(None, 3, "events", np.ones(4), [EVENTS]),
        *({"relu0": v} for v in (-np.ones(4), np.ones(4) * np.nan, "a", [None], [])),
    ],
    "cost": [None, 3, "horowitz"],
    "margins": [
        *(None, 3, "margins", np.ones(2), (np.ones(2),), [0.5]),
        *(
            jb.anytime.Margins(v)
            for v in (np.ones(2**17), np.nan, [], np.ones((2, 2)), [np.nan], "a")
        ),
    ],
    "module": [None, net, NETWORK, "vgg", jb.zoo.VGG],
    "recipe": [None, {}, "li2022", jb.Recipe],
    "trace": [None, X, {}, MODEL],
    "integers": [None, X, MODEL, SPIKING, "net.c"],
    "mapping": [3, "curves", [3]],
    "rows": [3, "rows", [3], None, [(1, 2)], jb.analysis.errors(MODEL, SPIKING, X, 2)],
    "errors": [3, "rows", [3], None, [(1, 2)], GOOD["reports"]],
    "levels": [0, *WHOLE, 2**31 - 1],
    "batch": [None, 3, PIXELS[0], PIXELS.tolist(), PIXELS * 1j, PIXELS.astype(str)],
    "key": [None, 0, "key", np.zeros(2), jax.random.split(jax.random.key(0))],
    "flips": [True, [True, False], np.ones(2), np.ones(3, bool), "no"],
    "side": WHOLE,
    "constants": [None, 3, "mean", (), (np.nan,), ("a",), [[0.5]]],
    **dict.fromkeys(
        (
            "schedule",
            "platform",
            "per",
            "unit",
            "reuse",
            "first_layer",
            "shortcut",
            "head",
            "kind",
            "zoo",
        ),
        WORD,
    ),
}


BAD["sizes"] = [None, 3, "45", b"45", *([value] for value in BAD["count"])]
BAD["plan"] = [*BAD["sizes"], ["X"]]
BAD["calibration"] = [*BAD["inputs"], X * 0, X * TINY]


def test_every_kind_has_values_to_try():
    assert checks.KINDS.keys() == GOOD.keys()
    assert checks.KINDS.keys() - {"anything"} == BAD.keys()
    for kind in checks.KINDS:
        given = {"network": NETWORK, "curves": GOOD["curves"], "images": PIXELS}
        checks.KINDS[kind]("argument", GOOD[kind], given)


def test_the_package_was_walked():
    assert len(FUNCTIONS) > 80
    assert {"convert", "evaluate", "fit", "energy.joules", "plot.raster"} <= {
        *FUNCTIONS
    }


@pytest.mark.parametrize("name", FUNCTIONS)
def test_bad_values_are_refused_at_the_door(name):
    function = FUNCTIONS[name]
    assert hasattr(function, "kinds"), (
        f"{function.__module__}.{name} has no door: put @door above it"
    )
    parameters = inspect.signature(function).parameters
    wrong = []
    for argument, kind in function.kinds.items():
        for value in BAD.get(kind, ()):
            if value is None and parameters[argument].default is None:
                continue
            if name.startswith("Integers") and isinstance(value, dict) and value:
                continue  # of inputs they know the order, and no names
            required = {
                other: GOOD[function.kinds[other]]
                for other, one in parameters.items()
                if one.default is one.empty
                and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
            }
            try:
                function(**required | {argument: value})
            except (TypeError, ValueError) as error:
                last = traceback.extract_tb(error.__traceback__)[-1].filename
                clear = argument in str(error) or kind in ("data", "spiking")
                if not clear or not last.startswith(PACKAGE) or len(str(error)) > 600:
                    wrong.append(f"{argument}={value!r:.60}: deep: {error!r:.200}")
            except Exception as error:
                wrong.append(f"{argument}={value!r:.60}: deep: {error!r:.200}")
            else:
                wrong.append(f"{argument}={value!r:.60}: accepted")
    assert not wrong, "\n".join([name, *wrong])


FIELDS = {
    jb.zoo.VGG: {"plan": "plan", "classes": "classes", "bias": "flag"},
    jb.zoo.ResNet: {"widths": "sizes", "blocks": "count", "classes": "classes"}
    | {"stem": "count", "shortcut": "shortcut", "head": "head", "excite": "flag"},
    jb.zoo.Block: {"features": "count", "stride": "count", "shortcut": "shortcut"},
    jb.zoo.ViT: {"classes": "classes"}
    | dict.fromkeys(("patch", "width", "depth", "heads", "hidden"), "count"),
    jb.zoo.Encoder: {"heads": "count", "hidden": "count"},
}


@pytest.mark.parametrize("module", FIELDS)
def test_networks_of_the_zoo_check_their_fields(module):
    good = {name: GOOD[kind] for name, kind in FIELDS[module].items()}
    module(**good)
    for name, kind in FIELDS[module].items():
        for value in BAD[kind]:
            with pytest.raises((TypeError, ValueError), match=f"{name}: expected"):
                module(**good | {name: value})


@pytest.mark.parametrize("value", BAD["variables"])
def test_a_network_is_a_function_of_its_variables(value):
    with pytest.raises((TypeError, ValueError), match="variables"):
        NETWORK(value, X)


@pytest.mark.parametrize("value", [v for v in BAD["inputs"] if v is not None])
def test_functions_of_inputs_say_what_they_take(value):
    compiled = jb.compiled(MODEL, SPIKING, 2)
    for function in (compiled, lambda x: NETWORK(WEIGHTS, x)):
        with pytest.raises((TypeError, ValueError), match="inputs") as found:
            function(value)
        assert len(str(found.value)) < 600


def test_missing_and_unknown_arguments_are_named():
    with pytest.raises(TypeError, match="simulate: missing a required argument: 'ste"):
        jb.simulate(MODEL, SPIKING, X)
    with pytest.raises(TypeError, match="convert: got an unexpected keyword .*'theta'"):
        jb.convert(NETWORK, WEIGHTS, {"relu0": 1.0}, theta=1)


def test_a_parameter_that_nobody_knows_is_an_error_of_the_function():
    with pytest.raises(TypeError, match="of what kind is 'whatever'"):

        @checks.door
        def function(network, whatever):
            pass

    with pytest.raises(TypeError, match="of what kind is 'stps'"):

        @checks.door(stps="count")
        def other(steps):
            pass


def test_what_is_traced_is_let_through():
    def logits(weights, x):
        spiking = jb.convert(NETWORK, weights, {"relu0": 0.5})
        return jb.infer(MODEL, spiking, x, 2)

    expected = logits(WEIGHTS, X)
    np.testing.assert_allclose(jax.jit(logits)(WEIGHTS, X), expected, rtol=1e-5)
    stacked = jax.tree.map(lambda x: np.stack([x, x]), WEIGHTS)
    found = jax.vmap(logits, (0, None))(stacked, X)
    np.testing.assert_allclose(found[1], expected, rtol=1e-5)


def test_whole_numbers_of_numpy_are_whole_numbers():
    found = jb.simulate(MODEL, SPIKING, X, np.int64(3), record=["relu0"])
    assert found.logits.shape == (3, 6, 5) and "relu0" in found.potentials


def test_corrections_are_known_by_what_they_are():
    """So that a copy of a network is refused where the network is."""
    refining = jb.Model(NETWORK, jb.Refining())
    corrected = jb.methods.correct(refining, SPIKING, X, 2)
    copy = jax.tree.map(np.array, dict(corrected))
    assert np.any(copy["relu0"].bias)
    for one in (corrected, copy):
        with pytest.raises(ValueError, match="corrections were made for Refining"):
            jb.simulate(MODEL, one, X, 2)
    found = [jb.infer(refining, one, X, 2) for one in (corrected, copy)]
    np.testing.assert_array_equal(*found)
