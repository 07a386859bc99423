"""Training at the speed of the fast kernels, whatever module it is that trains.

loss = accelerate(loss, "cpu")      # the same function
gradient = jax.jit(jax.grad(loss))
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal
from jax.extend.source_info_util import current_name_stack, user_context

from jaxburst.kernels.convolution import choose, convolve_once


def accelerate(function: Callable, platform: str) -> Callable:
    """The same function, with convolutions and max pooling in their fast forms.

    Convolutions take the form of `convolution.choose`, forwards and backwards. On CPU,
    max pooling whose windows tile the map becomes a reshape and a maximum, whose
    gradient takes a fifth of the time; windows with several largest values share it
    among them instead of giving it to the first. All else is as it was: derivative
    rules are kept, and so is what is inside of `jax.checkpoint` and of loops.

    Args:
      function: of pytrees of arrays, with pytrees of arrays as its outputs.
      platform: where it will run: `cpu`, `gpu`, `tpu`, ...

    Returns:
      A function of the same arguments, for use under `jit`. Differentiate it backwards
      (`grad`, `vjp`); forwards, Winograd's convolutions cannot be.
    """

    def fast(*args, **kwargs):
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args, **kwargs)
        inputs = jax.tree.leaves((args, kwargs))
        outputs = _evaluate(closed, platform, inputs)
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    return fast


def _evaluate(closed: ClosedJaxpr, platform: str, inputs: list) -> list:
    jaxpr: Jaxpr = closed.jaxpr
    values = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    values |= dict(zip(jaxpr.invars, inputs, strict=True))

    def read(atom):
        return atom.val if isinstance(atom, Literal) else values[atom]

    for equation in jaxpr.eqns:
        # Errors and profiles name the line and the module, as without us.
        info = equation.source_info
        names = current_name_stack() + info.name_stack
        with user_context(info.traceback, name_stack=names), equation.ctx.manager:
            found = _apply(equation, platform, [read(atom) for atom in equation.invars])
        outputs = found if equation.primitive.multiple_results else [found]
        values |= dict(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _apply(equation: JaxprEqn, platform: str, inputs: list):
    primitive, params = equation.primitive, equation.params
    if primitive.name == "conv_general_dilated" and params["out_sharding"] is None:
        x, kernel = inputs
        form = choose(params, kernel.shape, x.shape, x.dtype, platform=platform)
        if form.kind != "plain":
            return convolve_once(form, x, kernel)
    if primitive.name == "reduce_window_max" and platform == "cpu" and _tiles(params):
        return _largest_of_tiles(inputs[0], params["window_dimensions"])
    params = primitive.get_bind_params(params)
    if primitive.name in ("jit", "pjit"):
        inner: ClosedJaxpr = params["jaxpr"]
        params["jaxpr"] = jax.make_jaxpr(
            lambda *inputs: _evaluate(inner, platform, list(inputs))
        )(*inner.in_avals)
    return primitive.bind(*inputs, **params)


def _tiles(params: dict) -> bool:
    """Whether windows lie side by side, without padding and without holes."""
    return (
        params["window_dimensions"] == params["window_strides"]
        and not np.any(params["padding"])
        and {*params["base_dilation"], *params["window_dilation"]} == {1}
    )


def _largest_of_tiles(x: jax.Array, window: tuple[int, ...]) -> jax.Array:
    counts = [side // size for side, size in zip(x.shape, window, strict=True)]
    sides = [count * size for count, size in zip(counts, window, strict=True)]
    x = x[tuple(slice(side) for side in sides)]
    shape, inside = [], []
    for count, size in zip(counts, window, strict=True):
        shape.append(count)
        if size > 1:
            inside.append(len(shape))
            shape.append(size)
    return x.reshape(shape).max(tuple(inside))
