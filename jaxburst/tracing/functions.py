"""Any JAX function to a graph, and to the pure function that makes its weights.

    network = trace(net.apply, variables, images[:1])  # f(variables, inputs)
    network = trace(module, images[:1])                # NNX, Equinox, or a closure

The jaxpr of the function is followed with the inputs traced and calls inlined. What
depends on the variables alone is set aside as `Network.weights`; evaluated, it is the
folding of batch normalisation. What is left becomes nodes of the five roles in
`graph`, and anything else is refused by name.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import traceback
import warnings
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import export, lax
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, Literal

from jaxburst.checks import door
from jaxburst.graph import (
    Constant,
    Graph,
    Neuron,
    Node,
    Synapse,
    Wire,
    at_batch,
    is_number,
)
from jaxburst.network import Network, Refused
from jaxburst.tracing import sizes
from jaxburst.tracing.following import INFERENCE, Follower, called, framework
from jaxburst.tracing.populations import grouped
from jaxburst.tracing.program import (
    SINGLE,
    Held,
    Made,
    Program,
    SynapseUse,
    bind,
    is_array,
    widened,
)
from jaxburst.tracing.proofs import prove

__all__ = ["trace"]


@door(function="anything")
def trace(function, *arguments, roles: dict[str, type] | None = None) -> Network:
    """Traces a function of `(variables, inputs)`, or a module that holds its variables.

    Args:
      function: `f(variables, inputs)`, such as `net.apply` of Flax or Haiku; or, with
        the example alone, an NNX or Equinox module or any closure over arrays. An
        Equinox module takes one image, so `jax.vmap` of it is traced.
      arguments: `variables, example` or `example`. An example is what the function
        takes, `[B, ...]` with the batch in front, or a pytree of that.
      roles: what primitives of your own are, `{"my_primitive": Wire}`, by their name: a
        `graph.Wire`, if it is linear in all its signals together, and adds what it
        holds; or a `graph.Synapse`, if it is a product of a signal and a kernel, in
        either order.

    Returns:
      The `Network`, for any number of images.

    Raises:
      Refused: naming what has no spiking meaning, where it is, and what to do.

    Example:
      >>> def net(w, x): return jax.nn.relu(x @ w[0]) @ w[1]
      >>> network = trace(net, (np.ones((3, 4)), np.ones((4, 2))), np.ones((1, 3)))
      >>> network.neurons
      ('relu0',)
    """
    if len(arguments) not in (1, 2):
        raise TypeError(
            "trace: expected (function, variables, example) or (module, example), "
            f"found {1 + len(arguments)} arguments"
        )
    roles = dict(roles or {})
    for name, role in roles.items():
        if role not in (Wire, Synapse):
            raise ValueError(
                f"trace: roles[{name!r}] must be graph.Wire or graph.Synapse, found "
                f"{role!r}; a function becomes a neuron by its equations"
            )
    from flax import linen

    *variables, example = arguments
    if not variables and _is_nnx(function):
        from flax import nnx

        definition, random, state = nnx.split(function, nnx.RngState, ...)

        def call(state, inputs):
            own = jax.tree.map(lambda leaf: leaf, random)  # may be drawn from here
            return nnx.merge(definition, own, state)(inputs)

        return dataclasses.replace(
            _network(call, state, example, roles), variables=state
        )
    if variables and isinstance(function, linen.Module):
        raise TypeError(
            "trace: a Linen module is called by its apply: pass "
            "trace(module.apply, variables, example)"
        )
    if variables:
        return _network(function, variables[0], example, roles)
    return _closure(function, example, roles)


def _is_nnx(module) -> bool:
    from flax import nnx

    return isinstance(module, nnx.Module)


def _network(function: Callable, variables, example, roles) -> Network:
    """Traces `f(variables, inputs)`."""
    flat, tree = jax.tree_util.tree_flatten_with_path(variables)
    arrays = [
        i for i, (_, leaf) in enumerate(flat) if is_array(leaf) or type(leaf) is float
    ]
    values = [flat[i][1] for i in arrays]
    kind = _widest([*values, *jax.tree.leaves(example)])
    wide = widened(values, kind)
    names = [_path(flat[i][0]) for i in arrays]

    def call(values, inputs):
        leaves = [leaf for _, leaf in flat]  # whole numbers and others stay as they are
        for i, value in zip(arrays, values, strict=True):
            leaves[i] = value
        return function(jax.tree.unflatten(tree, leaves), inputs)

    def own(variables, inputs):
        found = jax.tree.leaves(variables)
        return call([found[i] for i in arrays], inputs)

    def pick(variables) -> list:
        found, structure = jax.tree.flatten(variables)
        if structure != tree:
            raise ValueError(_difference(tree, flat, variables))
        for i, (path, leaf) in enumerate(flat):
            was, now = leaf, found[i]
            if i in arrays:
                was, now = np.shape(leaf), np.shape(found[i])
            elif isinstance(now, Tracer):
                continue
            if was != now:
                name = _path(path)
                raise ValueError(f"variables: {name} was {was} when traced, is {now}")
        return widened([found[i] for i in arrays], kind)

    symbols, inputs_tree = _symbolic(example, kind)
    with warnings.catch_warnings():
        # Widened weights meet casts to what they were.
        warnings.filterwarnings("ignore", message="Explicitly requested dtype")
        with _told(variables, example):
            closed, shapes = _jaxpr(call, wide, symbols)
    program, held, known = Program(pick), {}, _names_of(function)
    made = [
        _made(program, var.aval, name)
        for var, name in zip(closed.jaxpr.invars, names, strict=False)
    ]
    for value in _constants(closed).values():  # kernels that the function holds itself
        name = known.get(id(value), known.get(_content(value)))
        kernel = np.ndim(value) > 1 and jnp.issubdtype(value.dtype, jnp.floating)
        if name and kernel and np.isfinite(value).all():
            held[id(value)] = one = _made(program, value, name)
            step = (lax.copy_p, (Held(np.asarray(value)),), {}, [one.slot])
            program.steps.append(step)
    trees = inputs_tree, jax.tree.structure(shapes)
    whole = function if len(arrays) == len(flat) else own
    network = _followed(closed, program, made, held, roles, whole, trees)
    variables = widened(variables, kind)
    return _proved(network, variables, example, kind)


def _path(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _difference(tree, flat, variables) -> str:
    """What is wrong with variables of another structure than was traced."""
    expected = "variables: expected those of the network that was traced"
    node = tree.node_data()
    if node and not isinstance(variables, node[0] | Mapping):
        return f"{expected}, found {_kind(variables)}; are the arguments in order?"
    there = [_path(path) for path, _ in flat]
    here = [_path(path) for path, _ in jax.tree_util.tree_leaves_with_path(variables)]
    missing = [name for name in there if name not in here]
    more = [name for name in here if name not in there]
    if more and all(any(a.endswith(f"/{b}") for a in missing) for b in more):
        return f"{expected}, found a part of them: {_few(here)}, of {_few(there)}"
    if missing or more:
        return f"{expected}; missing: {_few(missing)}; unknown: {_few(more)}"
    found = jax.tree.structure(variables)
    return f"variables: expected the structure that was traced, {tree}, found {found}"


def _few(names: list[str]) -> str:
    """Some of many names."""
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return f"{', '.join(names[:4]) or 'none'}{more}"


def _kind(value) -> str:
    """What somebody passed, in a few words."""
    if is_array(value):
        return f"{jnp.result_type(value)} {list(np.shape(value))}"
    if isinstance(value, dict):
        return f"a dictionary of {_few([*map(str, value)])}"
    if isinstance(value, tuple | list) and len(value) < 4:
        return f"a {type(value).__name__} of {', '.join(map(_kind, value))}"
    return type(value).__name__


@contextlib.contextmanager
def _told(variables, example):
    """Adds to an error of somebody's function what it was called with."""
    try:
        yield
    except Refused:
        raise
    except Exception as error:
        given = "" if variables is None else f"variables {_kind(variables)} and "
        error.add_note(
            f"jaxburst.trace called the function with {given}inputs "
            f"{_kind(example)}, the batch in front. It takes (variables, inputs), such "
            "as module.apply of Flax with all its variables, and is the network at "
            "inference: without dropout, and with batch normalisation by its averages."
        )
        raise


def _jaxpr(function: Callable, *arguments):
    """The function's jaxpr for any number of images, and its outputs' shapes.

    Raises:
      Refused: for Python code that depends on the data or on the number of images.
    """
    make = _make_jaxpr(function)
    depends = "Python code that depends on the number of images"
    try:
        return make(*arguments)
    except Exception as error:  # perhaps it insists on a number of images
        failed = error
    if "dimension comparison" in str(failed):
        raise Refused(f"{_line(failed)}: {depends}; a network treats them alike")
    try:
        found = [make(*_sized(arguments, size)) for size in sizes.SIZES]
    except jax.errors.ConcretizationTypeError as error:
        why = "Python code that depends on a signal"
        raise Refused(f"{_line(error)}: {why} has no spiking meaning") from error
    (symbol,) = export.symbolic_shape("b")
    try:
        closed = sizes.unified(found[0][0], found[1][0], symbol)
    except sizes.Differs:
        raise Refused(
            f"{_line(failed)}: {depends}; if it is batch normalisation in training, "
            f"{INFERENCE}"
        ) from failed
    return closed, found[0][1]


def _make_jaxpr(function: Callable) -> Callable:
    """Of anything that can be called: not all that wraps a function has a name."""
    return jax.make_jaxpr(lambda *given: function(*given), return_shape=True)


def _sized(arguments, size: int):
    def sized(leaf):
        shape = tuple(np.shape(leaf))
        if all(is_number(n) for n in shape):
            return leaf
        return jax.ShapeDtypeStruct(at_batch(shape, size), leaf.dtype)

    return jax.tree.map(sized, arguments)


def _line(error: Exception) -> str:
    """The user's line that an error comes from; in a front end, what that says."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not framework(frame.filename):
            return f"{frame.filename}:{frame.lineno} ({frame.name})"
    return f"the function ({str(error).partition(chr(10))[0]})"


def _closure(function: Callable, example, roles) -> Network:
    """Traces a function of the inputs; its variables are the arrays it holds."""
    from flax import linen

    if isinstance(function, linen.Module):
        raise TypeError(
            "trace: a Linen module does not hold its variables; pass "
            "trace(module.apply, variables, example)"
        )
    if not callable(function):
        raise TypeError(f"trace: expected a function or a module, found {function!r}")
    # Of Equinox a module takes one image, what filter_vmap makes of it all.
    inner: Any = function
    while dataclasses.is_dataclass(inner) and hasattr(inner, "__wrapped__"):
        batched = "Vmap" in type(inner).__name__
        inner = None if batched else getattr(inner, "__wrapped__")  # noqa: B009
    if dataclasses.is_dataclass(inner):
        function = jax.vmap(cast(Callable, function))
    symbols, inputs_tree = _symbolic(example)
    with _told(None, example):
        closed, shapes = _jaxpr(function, symbols)
    found, variables = _names_of(function), {}
    for value in _constants(closed).values():
        name = found.get(
            id(value), found.get(_content(value), f"const{len(variables)}")
        )
        while name in variables:
            name = f"{name}#2"
        variables[name] = value

    def pick(variables) -> list:
        missing = sorted(set(names) - set(variables))
        if missing:
            raise ValueError(
                f"variables: expected network.variables, missing {missing}"
            )
        return widened([variables[name] for name in names])

    def own(variables, inputs):
        """The function with other arrays than it holds."""
        again, _ = _make_jaxpr(function)(inputs)
        values = dict(zip(_constants(again), map(variables.get, names), strict=True))
        found = _evaluated(again, values, jax.tree.leaves(inputs))
        return jax.tree.unflatten(jax.tree.structure(shapes), found)

    names, program = list(variables), Program(pick)
    made = [_made(program, value, name) for name, value in variables.items()]
    held = dict(zip(_constants(closed), made, strict=True))
    trees = inputs_tree, jax.tree.structure(shapes)
    network = _followed(closed, program, [], held, roles, own, trees)
    network = dataclasses.replace(network, variables=variables)
    return _proved(network, variables, example)


def _constants(closed: ClosedJaxpr) -> dict[int, Any]:
    """The arrays that a jaxpr and the calls in it hold, by identity; but no keys."""
    found = {
        id(value): value
        for value in closed.consts
        if not jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
    }
    for eqn in closed.jaxpr.eqns:
        inside = called(eqn)
        if inside is not None:
            found |= _constants(inside)
    return found


def _evaluated(closed: ClosedJaxpr, constants: dict[int, Any], arguments) -> list:
    """What a jaxpr gives with other constants, by identity."""
    env: dict[Any, Any] = dict(zip(closed.jaxpr.invars, arguments, strict=True))
    values = [constants.get(id(value), value) for value in closed.consts]
    env |= zip(closed.jaxpr.constvars, values, strict=True)

    def look(var):
        return var.val if isinstance(var, Literal) else env[var]

    for eqn in closed.jaxpr.eqns:
        given, inside = [look(v) for v in eqn.invars], called(eqn)
        if inside is None:
            found = bind(eqn.primitive, given, eqn.params)
        else:
            found = _evaluated(inside, constants, given)
        env.update(zip(eqn.outvars, found, strict=True))
    return [look(v) for v in closed.jaxpr.outvars]


def _content(value):
    """An array of NumPy is another one in a jaxpr."""
    return (np.shape(value), str(value.dtype), np.asarray(value).tobytes())


def _names_of(function) -> dict[Any, str]:
    """The path of every array that a function holds, by its identity and content."""
    found: dict[Any, str] = {}
    queue: list[Any] = [function]
    seen: dict[int, Any] = {}  # kept, so that no other takes its identity
    while queue:
        owner = queue.pop(0)
        if id(owner) in seen or len(seen) > 1000:
            continue
        seen[id(owner)] = owner
        leaves = jax.tree_util.tree_leaves_with_path(_tree_of(owner))
        for path, leaf in leaves:
            if is_array(leaf):
                name = _path(path)
                found.setdefault(id(leaf), name)
                if isinstance(leaf, np.ndarray):
                    found.setdefault(_content(leaf), name)
            elif leaf is not owner and callable(leaf):
                queue.append(leaf)
        held = [getattr(owner, name, None) for name in ("__wrapped__", "__self__")]
        held += [getattr(owner, name, None) for name in ("func", "args", "keywords")]
        cells = getattr(owner, "__closure__", None) or ()
        names = owner.__code__.co_freevars if cells else ()
        for name, cell in zip(names, cells, strict=True):
            with contextlib.suppress(ValueError):  # of one that is empty
                value = cell.cell_contents
                held.append({name: value} if is_array(value) else value)
        queue += [item for item in held if item is not None]
    return found


def _tree_of(owner):
    """A pytree of what an object holds; NNX modules by their state."""
    if _is_nnx(owner):
        from flax import nnx

        return nnx.to_pure_dict(nnx.state(owner))
    return owner


def _widest(leaves: list):
    """The floating-point type that weights and inputs have in common."""
    kinds = [jnp.result_type(leaf) for leaf in leaves]
    wide = any(kind == jnp.float64 for kind in kinds)
    return jnp.dtype("float64" if wide else "float32")


def _symbolic(example, least=SINGLE):
    """The example's shapes with the symbol `b` for the batch."""
    (symbol,) = export.symbolic_shape("b")
    leaves, tree = jax.tree.flatten(example)
    if not leaves:
        raise ValueError("trace: the example is empty; pass inputs [B, ...]")
    for leaf in leaves:
        if np.ndim(leaf) == 0:
            raise ValueError(
                "trace: every input needs a batch in front, [B, ...]; found a scalar"
            )
    shapes = []
    for leaf in leaves:
        kind = jnp.result_type(leaf)
        if jnp.issubdtype(kind, jnp.floating) and kind.itemsize < least.itemsize:
            kind = least
        shapes.append(jax.ShapeDtypeStruct((symbol, *np.shape(leaf)[1:]), kind))
    return jax.tree.unflatten(tree, shapes), tree


def _made(program: Program, like, name: str) -> Made:
    """A variable of the program."""
    shape = tuple(like.shape)
    varies = tuple(i for i, n in enumerate(shape) if n != 1)
    return Made(program.slot(), shape, like.dtype, name, varies)


def _followed(
    closed: ClosedJaxpr,
    program: Program,
    made: list[Made],
    held,
    roles,
    function,
    trees,
) -> Network:
    """The network of a jaxpr whose first arguments are made by the program, and those
    of its constants that are held, `{id: Made}`."""
    kinds = [v.aval.dtype for v in closed.jaxpr.invars]
    kinds += [one.dtype for one in held.values()]
    kinds = [k for k in kinds if jnp.issubdtype(k, jnp.floating)]
    dtype = jnp.result_type(*kinds) if kinds else jnp.dtype(jnp.float32)
    follower = Follower(program, dtype, roles, held)
    signals = [
        follower.input(f"input{i}", var.aval)
        for i, var in enumerate(closed.jaxpr.invars[len(made) :])
    ]
    graph, aside = grouped(follower, follower.follow(closed, [*made, *signals]))
    graph = _folded(graph, program)
    program.seal({node.name for node in graph.weighing})
    if not graph.of(Neuron):
        raise Refused(
            "the function has no ReLU, nor another function before its end that a "
            "population could stand for, so nothing in it would spike"
        )
    return Network(graph, function, None, trees, aside, program)


def _proved(network: Network, variables, example, kind=SINGLE) -> Network:
    program = network.program
    made = jax.eval_shape(program.make, program.pick(variables))
    for name, own in made.items():
        use = program.uses[name]
        if isinstance(use, SynapseUse) and not use.biased:
            own = own.kernel
        parts = (math.prod(leaf.shape) for leaf in jax.tree.leaves(own))
        program.parameters[name] = sum(parts)
    prove(network, variables, example, kind)
    for position, aside in network.aside.items():
        warnings.warn(
            f"output {position}: the final {aside.what} is set aside; what comes out "
            "is what it was given",
            stacklevel=4,
        )
    return network


def _folded(graph: Graph, program: Program) -> Graph:
    """Moves scales and shifts per channel right behind a synapse into it."""
    nodes, outputs = graph.nodes, list(graph.outputs)
    users: dict[str, int] = {}
    for name in [name for node in nodes for name in node.inputs] + outputs:
        users[name] = users.get(name, 0) + 1
    renamed: dict[str, str] = {}
    synapses: dict[str, str] = {}  # a node that stands for a synapse -> the synapse
    kept: list[Node] = []
    shapes = {node.name: node.shape for node in nodes}
    for node in nodes:
        inputs = tuple(renamed.get(name, name) for name in node.inputs)
        node = dataclasses.replace(node, inputs=inputs)
        role = node.role
        if isinstance(role, Synapse):
            synapses[node.name] = node.name
        elif isinstance(role, Wire) and len(inputs) == 1 and inputs[0] in synapses:
            name = role.primitive.name
            before = inputs[0]
            alone = users[before] == 1 and node.shape == shapes[before]
            if name in ("add", "sub", "mul", "div") and alone:
                use = program.uses[synapses[before]]
                fold = _fold_of(node, role, program, use)
                if fold is not None:
                    use.folds.append(fold)
                    renamed[node.name] = before
                    users[before] = users[node.name]
                    program.uses.pop(node.name, None)
                    continue
        kept.append(node)
    outputs = tuple(renamed.get(name, name) for name in outputs)
    return Graph(tuple(kept), outputs)


def _fold_of(node: Node, role: Wire, program: Program, use: SynapseUse):
    """`(primitive, value, its position)` if it acts on channels alone."""
    position = next(i for i, held in enumerate(role.operands) if held is not None)
    held = role.operands[position]
    if isinstance(held, Constant):
        value: Any = Held(held.value)
        varies = tuple(i for i, n in enumerate(held.value.shape) if n != 1)
        rank = held.value.ndim
    else:
        value = program.uses[node.name].values[held.index]
        varies, rank = value.varies, len(value.shape)
    name = role.primitive.name
    if name == "div" and position == 0:
        return None
    if not varies:
        return name, value, position
    if use.axis is None or rank != use.rank:
        return None
    if any(i != use.axis % use.rank for i in varies):
        return None
    return name, value, position
