"""Follows the equations of a jaxpr: signals become nodes, the rest a program.

An equation that is affine in the signals becomes a wire, or a synapse if it has a
kernel; a ReLU, however it is spelled, a neuron; a maximum a pool. Any other function of
signals becomes a wire that is not affine, which `populations` makes part of a neuron or
a product. What has no spiking meaning is refused by name.
"""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax._src import source_info_util  # the only way to a user's line
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun

from jaxburst.graph import (
    Constant,
    Input,
    Neuron,
    Node,
    Operand,
    Pool,
    Synapse,
    Wire,
    at_batch,
    is_number,
)
from jaxburst.network import Refused
from jaxburst.tracing.program import (
    Held,
    Made,
    Program,
    Signal,
    Sized,
    SynapseUse,
    WireUse,
    bind,
)

_OWN_JAXPR = frozenset(
    """scan while cond reduce reduce_window custom_linear_solve select_and_scatter
    select_and_gather_add reduce_precision""".split()
)

# Primitives by what they mean for a signal.

_AFFINE = frozenset(
    """reshape transpose squeeze expand_dims broadcast_in_dim slice rev concatenate pad
    tile cumsum reduce_sum reduce_window_sum neg add add_any sub real""".split()
)
_WHOLE = frozenset(  # take no operand with one image instead of all
    """concatenate select_n dynamic_update_slice dot_general gather scatter scatter-add
    scatter-mul conv_general_dilated clamp""".split()
)
_PLACES = {  # which operands say where
    "gather": (slice(1, 2), "looks up at"),
    "dynamic_slice": (slice(1, None), "looks up at"),
    "scatter": (slice(1, 2), "writes to"),
    "scatter-add": (slice(1, 2), "writes to"),
    "scatter-mul": (slice(1, 2), "writes to"),
    "dynamic_update_slice": (slice(2, None), "writes to"),
}
_NOTHING = frozenset(
    """stop_gradient copy copy_p optimization_barrier name device_put
    sharding_constraint""".split()
)
COMPARE = {"gt": False, "ge": False, "lt": True, "le": True}
_FUNCTIONS = frozenset(
    """exp exp2 expm1 log log1p logistic tanh erf erfc sin cos tan asin acos atan atan2
    sinh cosh asinh acosh atanh sqrt rsqrt cbrt square integer_pow pow erf_inv lgamma
    digamma eq ne and or not is_finite select_n sign cumlogsumexp cumprod cummax cummin
    reduce_prod clamp gt ge lt le""".split()
)
AT_END = frozenset(("argmax", "argmin", "top_k", "sort"))
"""What may be set aside behind an output, and nowhere else."""
INFERENCE = (
    "put the network into inference mode (Linen: train=False, deterministic=True, "
    "use_running_average=True; NNX: model.eval(); Equinox: "
    "eqx.nn.inference_mode(model); Haiku: is_training=False)"
)
ROUNDS = (
    "rounding a signal has no spiking meaning: what it sends would not follow what it "
    "receives"
)
_UNKNOWN = (
    "is not known as a function of signals; say what it is by roles={...}, or write it "
    "with others"
)
_RANDOM = ("random_", "threefry", "rng_")
_ROUNDING = frozenset(("floor", "ceil", "round", "rem", "nextafter"))
_LONGEST = 4096  # rounds of a loop that is unrolled
_SEVERAL = 7  # images, of which what depends on their number shows it


class Place(NamedTuple):
    """Where an equation stands: the modules, the function of JAX, the user's line."""

    eqn: Any = None
    stack: tuple[str, ...] = ()
    call: str = ""
    source: str = ""
    values: tuple = ()  # what the equation is given

    def named(self, kind: str) -> str:
        """A name for what stands there: the scope, without the outermost module."""
        return "/".join([*self.stack[1:], kind])


class Follower:
    """Follows the equations of a jaxpr, and keeps nodes and the program.

    Attributes:
      nodes: found so far, in order.
      places: where each of them stands.
      fronts: those that are not affine, but computed from the inputs alone.
    """

    def __init__(
        self, program: Program, dtype, roles: dict[str, type], held: dict[int, Made]
    ):
        self.program, self.dtype, self.roles, self.held = program, dtype, roles, held
        self.nodes: dict[str, Node] = {}
        self.places: dict[str, Place] = {}
        self.fronts: set[str] = set()
        self.given: set[str] = set()  # computed from the inputs, without weights
        self.kinds: dict[str, Any] = {}  # the types of what is no floating-point number
        self.counts: dict[str, int] = {}
        self.scaled: dict[str, tuple[str, Any]] = {}  # signal -> (of what, how much)
        self.raised: dict[str, tuple[str, Any]] = {}  # signal -> (neuron, shift)
        self.at = Place()
        self.own = 0  # how deep in functions of ours

    def input(self, name: str, aval) -> Signal:
        """An input of the network."""
        role, shape = Input(str(aval.dtype)), tuple(aval.shape)
        self.nodes[name] = Node(name, role, (), shape)
        self.given.add(name)
        if not jnp.issubdtype(aval.dtype, jnp.floating):
            self.kinds[name] = aval.dtype
        return Signal(name)

    # Jaxprs.

    def follow(self, closed: ClosedJaxpr, arguments) -> list:
        """The values of a jaxpr's results."""
        jaxpr, outer = closed.jaxpr, self.at
        env: dict[Any, Any] = dict(zip(jaxpr.invars, arguments, strict=True))
        env |= zip(jaxpr.constvars, map(self.constant_of, closed.consts), strict=True)

        def look(var):
            if isinstance(var, Literal):
                return Held(np.asarray(var.val))
            if _empty(var):
                return Held(np.zeros(at_batch(var.aval.shape, 1), var.aval.dtype))
            return env[var]

        for eqn in _needed(jaxpr):
            source = "" if self.own else _source(eqn)
            stack = (*outer.stack, *_scopes(eqn))
            self.at = Place(eqn, stack, outer.call, source or self.at.source)
            found = self.equation([look(v) for v in eqn.invars])
            env.update(zip(eqn.outvars, found, strict=True))
        self.at = outer._replace(source=self.at.source)
        return [look(v) for v in jaxpr.outvars]

    def constant_of(self, value):
        """A constant of a jaxpr; keys of random numbers are no arrays of NumPy."""
        if id(value) in self.held:
            return self.held[id(value)]
        key = jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
        return Held(value if key else np.asarray(value))

    def equation(self, values) -> list:
        eqn = self.at.eqn
        self.at = self.at._replace(values=tuple(values))
        name = eqn.primitive.name
        if name.startswith(_RANDOM):
            self.refuse(f"draws random numbers, as in training: {INFERENCE}")
        inner = called(eqn)
        if inner is not None:
            label = eqn.params.get("name")
            if isinstance(label, str) and label:
                self.at = self.at._replace(call=label)
            return self.follow(inner, values)
        if name == "scan":
            return self.scan(values)
        if name == "cond" and isinstance(values[0], Held):
            return self.follow(eqn.params["branches"][int(values[0].value)], values[1:])
        if all(isinstance(v, Held | Sized) for v in values):
            return self.constant(values)
        for value in values:
            if isinstance(value, Sized):
                self.refuse(
                    "depends on the number of images or on the place of an image in "
                    f"its batch, by what is computed at {value.source}"
                )
        if all(isinstance(v, Held | Made) for v in values):
            return self.known(values)
        if name in ("while", "cond"):
            self.refuse(
                "is control flow that depends on the data; a loop of a fixed length "
                "(fori_loop, scan) is followed, where is a function like others"
            )
        found = self.signal(values)
        return found if isinstance(found, list) else [found]

    def scan(self, values) -> list:
        """A loop of a fixed length, one round after the other."""
        p = self.at.eqn.params
        consts = values[: p["num_consts"]]
        carry = values[p["num_consts"] : p["num_consts"] + p["num_carry"]]
        over_rounds = values[p["num_consts"] + p["num_carry"] :]
        body, length, rows = p["jaxpr"], p["length"], []
        if not is_number(length):
            if carry:
                self.refuse("loops over the batch; use jax.vmap")
            axes = [None] * len(consts) + [0] * len(over_rounds)
            return self.apply(jax.vmap(jaxpr_as_fun(body), axes), values)
        collects = len(self.at.eqn.outvars) > p["num_carry"]
        if collects and length * len(over_rounds) > _LONGEST:
            self.refuse(f"loops {length} times")
        order = range(length - 1, -1, -1) if p["reverse"] else range(length)
        for i in order:
            parts = [self.row(value, i) for value in over_rounds]
            found = self.follow(body, [*consts, *carry, *parts])
            carry, row = found[: p["num_carry"]], found[p["num_carry"] :]
            rows.append(row)
        if p["reverse"]:
            rows = rows[::-1]
        columns = zip(*rows, strict=True)
        return [*carry, *(self.stacked(list(column)) for column in columns)]

    def row(self, value, i):
        """`value[i]`."""
        if isinstance(value, Held):
            return Held(np.asarray(value.value[i]))
        return self.apply(lambda x: lax.index_in_dim(x, i, keepdims=False), [value])[0]

    def stacked(self, values):
        if all(isinstance(v, Held) for v in values):
            return Held(np.stack([v.value for v in values]))
        return self.apply(_beside, values)[0]

    def apply(self, function, values, avals=None) -> list:
        """Follows a function of ours, written in JAX."""
        closed = jax.make_jaxpr(function)(*(avals or map(self.aval, values)))
        self.own += 1  # its lines are not the user's
        found = self.follow(closed, values)
        self.own -= 1
        return found

    def aval(self, value):
        """Of an equation's own values as it has them, with the batch of constants."""
        for one, var in zip(self.at.values, self.at.eqn.invars, strict=True):
            if one is value and isinstance(value, Held | Made):
                kind = (value.value if isinstance(value, Held) else value).dtype
                return jax.ShapeDtypeStruct(var.aval.shape, kind)
        match value:
            case Held():
                return jax.ShapeDtypeStruct(value.value.shape, value.value.dtype)
            case Made():
                return jax.ShapeDtypeStruct(value.shape, value.dtype)
            case Signal(name):
                kind = self.kinds.get(name, self.dtype)
                return jax.ShapeDtypeStruct(self.nodes[name].shape, kind)
        raise AssertionError(value)

    # Values without a signal.

    def known(self, values) -> list:
        eqn = self.at.eqn
        picks = eqn.primitive.name in ("slice", "dynamic_slice", "gather")
        if _sized(eqn.invars) and not _sized(eqn.outvars) and not picks:
            self.refuse("depends on the number of images")
        if eqn.primitive.name == "convert_element_type":
            kind = jnp.dtype(eqn.params["new_dtype"])
            kinds = kind, self.aval(values[0]).dtype
            if all(jnp.issubdtype(one, jnp.floating) for one in kinds):
                return self.shortened(values, float(jnp.finfo(kind).eps))  # stay as is
        slots = [self.program.slot() for _ in eqn.outvars]
        self.program.steps.append(
            (eqn.primitive, tuple(values), dict(eqn.params), slots)
        )
        roots = (v.root for v in values if isinstance(v, Made))
        root = next((root for root in roots if root is not None), None)
        found = []
        for slot, var in zip(slots, eqn.outvars, strict=True):
            shape = at_batch(tuple(var.aval.shape), 1)
            varies = tuple(i for i, size in enumerate(shape) if size != 1)
            if eqn.primitive.name == "broadcast_in_dim" and isinstance(values[0], Made):
                dims = eqn.params["broadcast_dimensions"]
                varies = tuple(dims[i] for i in values[0].varies)
            found.append(Made(slot, shape, var.aval.dtype, root, varies))
        return found

    def constant(self, values) -> list:
        """Evaluated now: for one image, and for several where their number enters."""
        eqn = self.at.eqn
        sized = any(isinstance(v, Sized) for v in values)
        sized = sized or _sized(eqn.outvars) or _symbol_in(eqn.params)

        def at(batch):
            arguments = []
            for value, var in zip(values, eqn.invars, strict=True):
                if isinstance(value, Sized):
                    arguments.append(value.one if batch == 1 else value.many)
                else:
                    shape = at_batch(tuple(var.aval.shape), batch)
                    arguments.append(np.broadcast_to(value.value, shape))
            if eqn.primitive.name == "dim_as_value":
                size = at_batch(eqn.params["dim"], batch)
                return [np.asarray(size, eqn.outvars[0].aval.dtype)]
            with jax.ensure_compile_time_eval():
                found = bind(eqn.primitive, arguments, at_batch(eqn.params, batch))
            return [np.asarray(x) for x in found]

        if not sized:
            return [Held(value) for value in at(1)]
        found = []
        for one, many in zip(at(1), at(_SEVERAL), strict=True):
            nan = np.issubdtype(one.dtype, np.inexact)
            same = all(a in (1, b) for a, b in zip(one.shape, many.shape, strict=True))
            same = same and np.array_equal(
                np.broadcast_to(one, many.shape), many, equal_nan=nan
            )
            found.append(Held(one) if same else Sized(one, many, self.at.source))
        return found

    # Signals.

    def signal(self, values):
        name = self.at.eqn.primitive.name
        signals = [v.name for v in values if isinstance(v, Signal)]
        if all(one in self.given and one in self.kinds for one in signals):
            return self.front(values)  # of whole numbers that the network is given
        method = getattr(self, f"_{name}".replace("-", "_"), None)
        if method is not None:
            return method(values)
        if name in _NOTHING:
            return list(values)
        if name in _PLACES:
            return self.at_places(values)
        if name in _AFFINE or self.roles.get(name) is Wire:
            return self.wire(values)
        if self.roles.get(name) is Synapse:
            return self.product(values)
        if name in _FUNCTIONS or name in AT_END:
            return self.other(values)
        self.refuse(ROUNDS if name in _ROUNDING else _UNKNOWN)

    def front(self, values) -> list:
        """What is computed from the inputs alone, and need not be affine."""
        found = self.wire(values, affine=False)
        self.fronts |= {signal.name for signal in found}
        return found

    def other(self, values, params=None) -> list:
        """Any other function of signals; of the inputs alone it is a constant."""
        signals = [v.name for v in values if isinstance(v, Signal)]
        weighs = any(isinstance(v, Made) for v in values)
        if not weighs and all(one in self.given for one in signals):
            return self.front(values)
        return self.wire(values, params, affine=False)

    def sign_of(self, value) -> tuple[str, bool] | None:
        """`x, False` of `x > 0`, as truth or number, and `x, True` of `x < 0`."""
        while isinstance(value, Signal):
            node = self.nodes[value.name]
            if not isinstance(node.role, Wire) or node.role.affine:
                return None
            name, operands = node.role.primitive.name, node.role.operands
            if name == "convert_element_type":
                value = Signal(node.inputs[0])
                continue
            level = next((o for o in operands if o is not None), None)
            zero = isinstance(level, Constant) and not level.value.any()
            if name not in COMPARE or not zero:
                return None
            return node.inputs[0], COMPARE[name] != (operands[0] is not None)
        return None

    def factor(self, value, signal: str):
        """By how much `value` is a multiple of `signal`; None if it is not."""
        if isinstance(value, Signal):
            if value.name == signal:
                return Held(np.ones((), self.dtype))
            of, much = self.scaled.get(value.name, (None, None))
            return much if of == signal else None
        if _is_zero(value):
            return Held(np.zeros((), self.dtype))
        return None

    def two_sided(self, signal: str, positive, negative) -> Signal:
        """`positive relu(x) - negative relu(-x)`."""
        parts = []
        for factor, sign in ((positive, 1), (negative, -1)):
            if _is_zero(factor):
                continue
            x = Signal(signal)
            if sign < 0:
                (x,) = self.apply(jnp.negative, [x])
            part = self.neuron(x)
            if not (isinstance(factor, Held) and (factor.value == 1).all()):
                (part,) = self.apply(lambda a, b: a * b, [part, factor])
            if sign < 0:
                (part,) = self.apply(jnp.negative, [part])
            parts.append(part)
        if not parts:
            return self.apply(jnp.zeros_like, [Signal(signal)])[0]
        return parts[0] if len(parts) == 1 else self.apply(jnp.add, parts)[0]

    # Primitives that need a thought.

    def _convert_element_type(self, values):
        kind = jnp.dtype(self.at.eqn.params["new_dtype"])
        if values[0].name in self.kinds:
            return self.other(values)  # of a comparison
        if not jnp.issubdtype(kind, jnp.floating):
            self.refuse(f"makes {kind} of a signal", values)
        return self.shortened(values, float(jnp.finfo(kind).eps))

    def _reduce_precision(self, values):
        return self.shortened(values, 2.0 ** -self.at.eqn.params["mantissa_bits"])

    def shortened(self, values, eps: float) -> list:
        """A number in half precision is taken as it is before it is rounded."""
        if eps > jnp.finfo(jnp.bfloat16).eps:
            self.refuse("rounds to few bits", values)
        if eps > jnp.finfo(jnp.float32).eps:
            self.program.rounding = max(self.program.rounding, eps)
        return list(values)

    def _max(self, values):
        x, level = self.one_signal(values)
        if x is None:
            return self.apply(lambda a, b: _beside(a, b).max(0), values)
        if isinstance(level, Held) and np.all(np.isneginf(level.value)):
            return [x]
        if _is_zero(level):
            return [self.neuron(x)]
        (below,) = self.apply(lambda a, b: a - b, [x, level])
        neuron = self.neuron(below)
        (out,) = self.apply(lambda a, b: a + b, [neuron, level])
        self.raised[out.name] = (neuron.name, level)
        return [out]

    def _min(self, values):
        x, level = self.one_signal(values)
        if x is None:
            found = self.apply(lambda a, b: _beside(-a, -b).max(0), values)
            return self.apply(jnp.negative, found)
        if isinstance(level, Held) and np.all(np.isposinf(level.value)):
            return [x]
        zero = Held(np.zeros((), self.dtype))
        neuron, shift = self.raised.get(x.name, (x.name, zero))
        role = self.nodes[neuron].role
        fits = isinstance(role, Neuron) and role.cap is None
        if fits and all(
            isinstance(v, Held) and v.value.size == 1 for v in (level, shift)
        ):
            cap = float(level.value.item()) - float(shift.value.item())
            if cap > 0:
                capped = self.neuron(Signal(self.nodes[neuron].inputs[0]), cap)
                return self.apply(lambda a, b: a + b, [capped, shift])
        (above,) = self.apply(lambda a, b: b - a, [x, level])
        return self.apply(lambda a, b: b - a, [self.neuron(above), level])

    def one_signal(self, values) -> tuple[Any, Any]:
        """`(signal, other)`, or None for the signal if there are two."""
        one, other = values
        if isinstance(one, Signal) and isinstance(other, Signal):
            return None, None
        return (one, other) if isinstance(one, Signal) else (other, one)

    def _clamp(self, values):
        low, x, high = values
        if not isinstance(x, Signal):
            return self.other(values)
        found = self.apply(lambda a, b: jnp.maximum(a, b), [x, low])
        return self.apply(lambda a, b: jnp.minimum(a, b), [*found, high])

    def _abs(self, values):
        one, less = (Held(np.full((), v, self.dtype)) for v in (1, -1))
        return [self.two_sided(values[0].name, one, less)]

    def _stack(self, values):
        params = self.at.eqn.params
        axis = params.get("axis", params.get("dimension", 0))
        return self.apply(partial(_beside, axis=axis), values)

    def _integer_pow(self, values):
        return list(values) if self.at.eqn.params["y"] == 1 else self.other(values)

    def _mul(self, values):
        """A scaling; `x (x > 0)` and its like are made of two ReLUs."""
        for i, value in enumerate(values):
            signal, flipped = self.sign_of(value) or ("", False)
            factor = self.factor(values[1 - i], signal) if signal else None
            if factor is not None:
                zero = Held(np.zeros((), self.dtype))
                pair = (zero, factor) if flipped else (factor, zero)
                return [self.two_sided(signal, *pair)]
        x, factor = self.one_signal(values)
        if x is None:
            return self.other(values)
        shape = tuple(self.at.eqn.outvars[0].aval.shape)
        if isinstance(factor, Held) and np.all(factor.value == 1):
            if factor.value.ndim == 0 or self.nodes[x.name].shape == shape:
                return [x]
        if isinstance(factor, Held) and factor.value.ndim == 0 and factor.value == 0:
            return self.apply(jnp.zeros_like, [x])
        (out,) = self.wire(values)
        self.scaled[out.name] = (x.name, factor)  # for leaky ReLUs
        return [out]

    def _div(self, values):
        if isinstance(values[1], Signal):
            return self.other(values)
        return self.wire(values)

    def _neg(self, values):
        (out,) = self.wire(values)
        self.scaled[out.name] = (values[0].name, Held(np.full((), -1.0, self.dtype)))
        return [out]

    def _select_n(self, values):
        """A constant choice is affine; `where(x > 0, a x, b x)` is two ReLUs."""
        which, *cases = values
        signal, flipped = self.sign_of(which) or ("", False)
        if signal and len(cases) == 2:
            factors = [self.factor(v, signal) for v in cases]
            if None not in factors:
                return [
                    self.two_sided(signal, *(factors if flipped else factors[::-1]))
                ]
        if isinstance(which, Held | Made) or which.name in self.given & set(self.kinds):
            return self.wire(values)
        return self.other(values)

    def _scatter_mul(self, values):
        if isinstance(values[2], Signal):
            self.refuse("multiplies two signals", values)
        return self.at_places(values)

    def at_places(self, values):
        """A wire, if its places are known."""
        places, what = _PLACES[self.at.eqn.primitive.name]
        if any(isinstance(v, Signal) for v in values[places]):
            self.refuse(f"{what} places that depend on a signal", values)
        return self.wire(values)

    def _concatenate(self, values):
        """Batches one behind the other stand beside each other first, as a new axis."""
        eqn = self.at.eqn
        axis = eqn.params["dimension"]
        pairs = zip(values, eqn.invars, strict=True)
        kept = [value for value, var in pairs if not _empty(var)]
        if len(kept) < len(values):
            return self.apply(lambda *x: lax.concatenate(x, axis), kept)
        parts = [_batches(var.aval.shape[axis]) for var in eqn.invars]
        if 0 in parts or not all(isinstance(value, Signal) for value in values):
            return self.wire(values)

        def function(*values):
            pairs = zip(values, parts, strict=True)
            rows = [self.unmerged(x, axis, count) for x, count in pairs]
            return lax.concatenate(rows, axis).reshape(eqn.outvars[0].aval.shape)

        return self.apply(function, values)

    def _slice(self, values):
        """One of several batches that stand behind each other."""
        eqn, p = self.at.eqn, self.at.eqn.params
        old, new = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
        axes = [i for i, n in enumerate(old) if not is_number(n) and n is not new[i]]
        axes = [i for i in axes if old[i] != new[i]]
        if len(axes) != 1 or (p["strides"] or (1,) * len(old))[axes[0]] != 1:
            return self.wire(values)
        (axis,) = axes
        edges = p["start_indices"][axis], p["limit_indices"][axis]
        counts = [_batches(n) for n in (old[axis], *edges)]
        if 0 in counts[::2] or (edges[0] != 0 and not counts[1]):
            return self.wire(values)

        def function(x):
            x = self.unmerged(x, axis, counts[0])
            x = lax.slice_in_dim(x, counts[1], counts[2], axis=axis)
            x = x.reshape(*old[:axis], new[axis], *old[axis + 1 :])
            start, limit = list(p["start_indices"]), list(p["limit_indices"])
            start[axis], limit[axis] = 0, new[axis]
            return lax.slice(x, start, limit, p["strides"])

        return self.apply(function, values)

    def unmerged(self, x, axis: int, count: int):
        """`[count, b]` instead of `[count * b]`."""
        (size,) = {node.shape[0] for node in self.nodes.values() if not node.inputs}
        return x.reshape(*x.shape[:axis], count, size, *x.shape[axis + 1 :])

    def _unstack(self, values):
        axis, count = self.at.eqn.params["axis"], len(self.at.eqn.outvars)
        return self.apply(
            lambda x: [lax.index_in_dim(x, i, axis, False) for i in range(count)],
            values,
        )

    def _split(self, values):
        axis, sizes = self.at.eqn.params["axis"], self.at.eqn.params["sizes"]
        ends = list(itertools.accumulate(sizes))

        def parts(x):
            return [
                lax.slice_in_dim(x, end - size, end, axis=axis)
                for size, end in zip(sizes, ends, strict=True)
            ]

        return self.apply(parts, values)

    def _add(self, values):
        for value, other in (values, values[::-1]):
            if _is_zero(value) and isinstance(other, Signal):
                shape = tuple(self.at.eqn.outvars[0].aval.shape)
                if self.nodes[other.name].shape == shape:
                    return [other]
        return self.wire(values)

    def _reduce_sum(self, values):
        """`sum(x * w)` along axes where `w` varies is a product with a kernel."""
        eqn, node = self.at.eqn, self.nodes[values[0].name]
        use = self.program.uses.get(node.name)
        times = isinstance(node.role, Wire) and node.role.primitive is lax.mul_p
        if not times or not isinstance(use, WireUse):
            return self.wire(values)
        (kernel,), summed = use.values, eqn.params["axes"]
        if kernel.root is None or not set(kernel.varies).intersection(summed):
            return self.wire(values)
        x, shape = self.before_copies(node.inputs[0])
        alike = zip(shape, kernel.shape, node.shape, strict=True)
        if any(a == 1 == b and n != 1 for a, b, n in alike):  # copies of neither
            x, shape = Signal(node.inputs[0]), node.shape
        shapes = [shape, kernel.shape]
        axes = [[i for i, n in enumerate(own) if n != 1] for own in shapes]
        kept = sorted(set(axes[0] + axes[1]) - set(summed))
        one, two, out = ("".join(chr(97 + i) for i in own) for own in (*axes, kept))

        def function(*pair):
            sides = zip(pair, shapes, axes, strict=True)
            thin = [a.reshape([own[i] for i in long]) for a, own, long in sides]
            # As exact as sums are, on accelerators too.
            product = jnp.einsum(f"{one},{two}->{out}", *thin, precision="highest")
            return product.reshape(eqn.outvars[0].aval.shape)

        held = jax.ShapeDtypeStruct(kernel.shape, kernel.dtype)
        return self.apply(function, [x, kernel], [self.aval(x), held])

    def before_copies(self, name: str) -> tuple[Signal, tuple]:
        """A signal before it is repeated, and its shape, 1 along axes of copies."""
        node = self.nodes[name]
        shape, axes = [1] * len(node.shape), range(len(node.shape))
        while isinstance(node.role, Wire) and (
            node.role.primitive is lax.broadcast_in_dim_p
        ):
            axes = [axes[i] for i in node.role.params["broadcast_dimensions"]]
            node = self.nodes[node.inputs[0]]
        for axis, size in zip(axes, node.shape, strict=True):
            shape[axis] = size
        return Signal(node.name), tuple(shape)

    def _reduce_window_max(self, values):
        return [self.pool(values[0])]

    def _reduce_max(self, values):
        self.keeps_batch()
        return [self.pool(values[0])]

    def _reduce_window_min(self, values):
        params = self.at.eqn.params
        return self.apply(lambda x: -lax.reduce_window_max_p.bind(-x, **params), values)

    def _reduce_min(self, values):
        axes = self.at.eqn.params["axes"]
        return self.apply(lambda x: -(-x).max(axes), values)

    def _conv_general_dilated(self, values):
        x, kernel = values
        if not isinstance(x, Signal):
            self.refuse("convolves with a kernel that is a signal", values)
        if self.at.eqn.params["batch_group_count"] != 1:
            self.refuse("mixes images (batch_group_count)", values)
        if not is_number(self.at.eqn.params["feature_group_count"]):
            self.refuse("convolves every image with a kernel of its own", values)
        params = dict(self.at.eqn.params) | {"preferred_element_type": None}
        if isinstance(kernel, Signal):
            return self.other(values, params)
        if isinstance(kernel, Held):
            return self.wire(values, params)
        return [self.synapse(params, x, kernel, 0)]

    def product(self, values):
        """A synapse of the user's own."""
        x, kernel = self.one_signal(values)
        if x is None:
            self.refuse("multiplies two signals", values)
        if isinstance(kernel, Held):
            shape, kind = kernel.value.shape, kernel.value.dtype
            slot = self.program.slot()
            self.program.steps.append((lax.copy_p, (kernel,), {}, [slot]))
            kernel = Made(slot, shape, kind, None, ())
        params = dict(self.at.eqn.params)
        return [self.synapse(params, x, kernel, 0 if values[0] is x else 1)]

    def _dot_general(self, values):
        eqn = self.at.eqn
        params = dict(eqn.params) | {"preferred_element_type": None}
        contracted, _ = eqn.params["dimension_numbers"]
        for value, axes in zip(values, contracted, strict=True):
            if isinstance(value, Signal):
                shape = self.nodes[value.name].shape
                if any(not is_number(shape[i]) for i in axes):
                    self.refuse("sums over the batch", values)
        x, kernel = self.one_signal(values)
        if x is None:
            return self.other(values, params)
        data = 0 if values[0] is x else 1
        if isinstance(kernel, Held) or kernel.root is None or not kernel.shape:
            return self.wire(values, params)
        copies = [
            axis
            for axis, n in enumerate(eqn.invars[1 - data].aval.shape)
            if not is_number(n)
        ]
        if copies:
            return self.with_copies(values, params, data, copies[0])
        return [self.synapse(params, x, kernel, data)]

    def with_copies(self, values, params, data: int, axis: int):
        """A product with a kernel of which there is a copy for every image."""
        contracted, batched = params["dimension_numbers"]
        x, kernel = values[data], values[1 - data]
        if axis not in batched[1 - data] or kernel.shape[axis] != 1:
            return self.wire(values, params)
        place = batched[1 - data].index(axis)
        images = batched[data][place]
        pairs = [tuple(i for n, i in enumerate(s) if n != place) for s in batched]
        free = set(range(len(self.nodes[x.name].shape)))
        free -= {*contracted[data], *pairs[data]}
        at = len(pairs[0]) + sum(i < images for i in free)
        if data == 1:  # the kernel's come first
            at += len(kernel.shape) - 1 - len(contracted[0]) - len(pairs[0])

        def without(both):  # the axis of images in the kernel
            sides = [tuple(side) for side in both]
            sides[1 - data] = tuple(i - (i > axis) for i in sides[1 - data])
            return sides[0], sides[1]

        def function(x, kernel):
            left, right = (x, jnp.squeeze(kernel, axis))[:: 1 - 2 * data]
            numbers = without(contracted), without(pairs)
            y = lax.dot_general(left, right, numbers, precision=params["precision"])
            return jnp.moveaxis(y, at, place)

        one = jax.ShapeDtypeStruct(kernel.shape, kernel.dtype)
        return self.apply(function, [x, kernel], [self.aval(x), one])

    # Nodes.

    def keeps_batch(self):
        """Refuses what mixes the images of a batch."""
        eqn = self.at.eqn
        axis = eqn.params.get("axis") if eqn.primitive.name.startswith("cum") else None
        if axis is not None and not is_number(eqn.invars[0].aval.shape[axis]):
            self.refuse("cumulates over the batch")
        for var in eqn.outvars:
            if all(is_number(n) for n in var.aval.shape):
                self.refuse(
                    "mixes the images of a batch, as batch normalisation does in "
                    f"training: {INFERENCE}"
                )

    def wire(self, values, params=None, affine: bool = True) -> list[Signal]:
        self.keeps_batch()
        eqn = self.at.eqn
        kind = eqn.primitive.name
        if len(eqn.outvars) > 1 and kind not in AT_END:
            self.refuse("has several results that are not known here", values)
        operands, own = [], []
        for value in values:
            if isinstance(value, Signal):
                operands.append(None)
            elif isinstance(value, Held):
                operands.append(Constant(value.value))
            else:
                operands.append(Operand(len(own)))
                own.append(value)
        for operand, var in zip(operands, eqn.invars, strict=True):
            several = any(
                not is_number(n) and at_batch(n, 1) != 1 for n in var.aval.shape
            )
            if operand is not None and several:
                self.refuse(
                    "meets values that are repeated for every image, along one axis "
                    "with images; let it meet [b, n, ...], not what becomes [b n, ...]",
                    values,
                )
        shapes = tuple(
            tuple(var.aval.shape)
            if operand is not None and any(not is_number(n) for n in var.aval.shape)
            else None
            for operand, var in zip(operands, eqn.invars, strict=True)
        )
        role = Wire(
            eqn.primitive,
            dict(eqn.params) if params is None else params,
            tuple(operands),
            affine,
            shapes if kind in _WHOLE else (),
        )
        inputs = tuple(v.name for v in values if isinstance(v, Signal))
        found = []
        for var in eqn.outvars:
            name = self.emit(role, inputs, var.aval.shape, self.at.named(kind))
            if own:
                self.program.uses[name] = WireUse(own)
            elif self.given.issuperset(inputs):
                self.given.add(name)
            if not jnp.issubdtype(var.aval.dtype, jnp.floating):
                self.kinds[name] = var.aval.dtype
            found.append(Signal(name))
        return found

    def synapse(self, params, x: Signal, kernel: Made, data: int) -> Signal:
        eqn = self.at.eqn
        role = Synapse(eqn.primitive, params, data, kernel.shape)
        shape = eqn.outvars[0].aval.shape
        base = _owner(kernel.root) or eqn.primitive.name
        name = self.emit(role, (x.name,), shape, base, "#")
        self.program.uses[name] = SynapseUse(
            kernel, role.features, len(shape), role.feature_axis
        )
        return Signal(name)

    def neuron(self, x: Signal, cap=None) -> Signal:
        if cap is None and isinstance(self.nodes[x.name].role, Neuron):
            return x  # never negative
        shape = self.nodes[x.name].shape
        return Signal(self.emit(Neuron(cap), (x.name,), shape, self.at.named("relu")))

    def pool(self, x: Signal) -> Signal:
        eqn = self.at.eqn
        role = Pool(eqn.primitive, dict(eqn.params))
        shape = eqn.outvars[0].aval.shape
        return Signal(self.emit(role, (x.name,), shape, self.at.named("maxpool")))

    def emit(self, role, inputs, shape, base: str, sign: str = "") -> str:
        count = self.counts.get(base, 0)
        self.counts[base] = count + 1
        if sign:
            name = base if count == 0 else f"{base}#{count + 1}"
        else:
            name = f"{base}{count}"
        if name in self.nodes:  # a parameter is called like what is numbered
            return self.emit(role, inputs, shape, base, sign)
        self.nodes[name] = Node(name, role, inputs, tuple(shape), self.at.source)
        self.places[name] = self.at
        return name

    def refuse(self, why: str, values=(), place: Place | None = None) -> NoReturn:
        """Refuses the present equation, or that of another place."""
        eqn, stack, call, source, _ = place or self.at
        before = self.nearest([v.name for v in values if isinstance(v, Signal)])
        where = "/".join(stack[1:] or stack) or "the function"
        of = f" (in {call})" if call and call != eqn.primitive.name else ""
        after = f", after {before}" if before else ""
        line = f", at {source}" if source else ""  # none within a front end
        raise Refused(f"{where}: {eqn.primitive.name}{of}{after}{line}: {why}")

    def nearest(self, names: list[str]) -> str:
        """The synapse that a refused primitive comes after."""
        queue = names or [next(reversed(self.nodes))] if self.nodes else []
        while queue:
            name = queue.pop(0)
            if isinstance(self.nodes[name].role, Synapse):
                return name
            queue += self.nodes[name].inputs
        return ""


def _beside(*values, axis: int = 0):
    """Signals side by side along a new axis."""
    return lax.concatenate([lax.expand_dims(x, [axis]) for x in values], axis)


def _needed(jaxpr: Jaxpr) -> list:
    """The equations that results depend on: what is not used may be anything."""
    wanted, kept = {id(var) for var in jaxpr.outvars}, []
    for eqn in reversed(jaxpr.eqns):
        if wanted.intersection(id(var) for var in eqn.outvars if not _empty(var)):
            kept.append(eqn)
            wanted.update(map(id, eqn.invars))
    return kept[::-1]


def _sized(variables) -> bool:
    """Whether the number of images is part of a shape."""
    return any(not is_number(n) for var in variables for n in var.aval.shape)


def _empty(var) -> bool:
    """Whether a value has no elements: the edge of an axis that is not padded."""
    return 0 in var.aval.shape


def called(eqn) -> ClosedJaxpr | None:
    """The jaxpr of an equation that does nothing but call it."""
    if eqn.primitive.name in _OWN_JAXPR or eqn.primitive.name.startswith("scatter"):
        return None
    for value in eqn.params.values():
        if isinstance(value, Jaxpr):
            value = ClosedJaxpr(value, ())
        if isinstance(value, ClosedJaxpr) and (
            len(value.jaxpr.invars) == len(eqn.invars)
            and len(value.jaxpr.outvars) == len(eqn.outvars)
        ):
            return value
    return None


def _batches(size) -> int:
    """How many times the number of images a size is; 0 if it is no such multiple."""
    one, two = at_batch(size, 1), at_batch(size, 2)
    return 0 if is_number(size) or two != 2 * one else one


def _symbol_in(value) -> bool:
    """Whether a parameter depends on the number of images."""
    if isinstance(value, dict):
        return any(_symbol_in(item) for item in value.values())
    if isinstance(value, tuple):
        return any(_symbol_in(item) for item in value)
    return hasattr(value, "_evaluate")


def _is_zero(value) -> bool:
    return isinstance(value, Held) and not np.any(value.value)


def _scopes(eqn) -> tuple[str, ...]:
    """The modules that an equation stands in."""
    stack = getattr(eqn.source_info.name_stack, "stack", ())
    return tuple(
        part
        for scope in stack
        if type(scope).__name__ == "Scope" and not scope.name.startswith("eqx.")
        for part in scope.name.split("/")
        if "->" not in part  # of an einsum
    )


def _source(eqn) -> str:
    """The innermost line that is the user's own; none if all are a framework's."""
    for frame in source_info_util.user_frames(eqn.source_info.traceback):
        if not framework(frame.file_name):
            return f"{frame.file_name}:{frame.start_line} ({frame.function_name})"
    return ""


def framework(path: str) -> bool:
    """Whether a file is not the user's own."""
    known = ("site-packages", "dist-packages", str(Path(__file__).parents[1]))
    return any(part in path for part in known)


_COLLECTIONS = ("params", "batch_stats")
_HELD_BY = ("value", "raw_value", "get_value")  # of a variable of NNX, which is last


def _owner(root: str | None) -> str | None:
    """The layer that a parameter belongs to: its path without the last part."""
    if root is None:
        return None
    parts = [part for part in root.split("/") if part not in _COLLECTIONS]
    while parts and parts[-1] in _HELD_BY:
        parts.pop()
    return "/".join(parts[:-1] or parts) or None
