"""A step of gradient descent: a pure function of the state and the batch.

`N` counts the inputs of the split, `B` those of a batch.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from jaxburst.data import normalise
from jaxburst.kernels.training import accelerate
from jaxburst.training.augmentation import alternating_flips, augment
from jaxburst.training.recipe import Recipe, schedule


class State(NamedTuple):
    """What one step hands to the next."""

    params: Any
    opt_state: Any
    step: jax.Array  # steps taken, int32 []
    others: dict = {}  # what else the module keeps: {'batch_stats'}
    average: dict = {}  # of all variables, by `Recipe.ema`


def _optimiser(recipe: Recipe, optimiser, steps_per_epoch: int):
    if optimiser is not None:
        return optimiser
    return optax.chain(
        optax.add_decayed_weights(recipe.weight_decay),
        optax.sgd(
            schedule(recipe, steps_per_epoch), recipe.momentum, nesterov=recipe.nesterov
        ),
    )


def keys(recipe: Recipe) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Keys for the initial weights, for augmentation, and for what the module draws."""
    initial, augmentation = jax.random.split(jax.random.key(recipe.seed))
    # Streams of their own: those of the steps are folded in from 0 on.
    return initial, augmentation, jax.random.fold_in(augmentation, np.uint32(2**32 - 2))


@functools.partial(
    jax.jit, static_argnames=("module", "recipe", "optimiser", "example", "size")
)
def initial(variables=None, *, module, recipe, optimiser, example, size) -> State:
    """The state before the first step, for a split of so many such inputs."""
    others = dict(module.init(keys(recipe)[0], example.zeros()))
    if variables is not None:
        others = jax.tree.map(lambda own, x: x.astype(own.dtype), others, variables)
    average = dict(others) if recipe.ema else {}
    params = others.pop("params", {})
    optimiser = _optimiser(recipe, optimiser, size // recipe.batch_size)
    return State(params, optimiser.init(params), jnp.int32(0), others, average)


# One step per call: within a loop, XLA on CPU takes over twenty times as long for the
# gradient of a convolution's kernel.
@functools.partial(
    jax.jit,
    static_argnames=("module", "recipe", "optimiser", "mean", "std", "mesh"),
    donate_argnames="state",
)
def step(state, rows, inputs, labels, *, module, recipe, optimiser, mean, std, mesh):
    """Takes one step.

    Args:
      state: a `State`; its buffers are reused.
      rows: the inputs of this batch. int32 `[B]`.
      inputs: those of the whole split. `[N, ...]`, uint8 if there is a `mean`.
      labels: int32 `[N, ...]`.

    Returns:
      `(state, loss, hits)`: the loss before the step, and the number of labels that
      were given the most.
    """
    x, targets = lax.with_sharding_constraint(
        (inputs[rows], labels[rows]), NamedSharding(mesh, PartitionSpec("data"))
    )
    if mean is not None:
        x = normalise(varied(recipe, state.step, rows, x, len(inputs)), mean, std)
    key = jax.random.fold_in(keys(recipe)[2], state.step)
    forward = accelerate(module.train, mesh.devices.flat[0].platform)

    def objective(params):
        rounded, rounded_x = jax.tree.map(
            lambda array: _rounded(array, recipe.precision), (params, x)
        )
        variables = {"params": rounded, **state.others}
        logits, others = forward(variables, rounded_x, key)
        logits = logits.astype(jnp.float32)
        goal = jax.nn.one_hot(targets, logits.shape[-1])
        goal = optax.smooth_labels(goal, recipe.label_smoothing)
        loss = optax.softmax_cross_entropy(logits, goal).mean()
        return loss, (others, (logits.argmax(-1) == targets).sum())

    differentiate = jax.value_and_grad(objective, has_aux=True)
    (loss, (others, hits)), gradient = differentiate(state.params)
    optimiser = _optimiser(recipe, optimiser, len(inputs) // recipe.batch_size)
    updates, opt_state = optimiser.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    average = _average(recipe, state, {"params": params, **others})
    state = State(params, opt_state, state.step + 1, others, average)
    # Every device holds the whole state again, as before the step.
    state = lax.with_sharding_constraint(state, NamedSharding(mesh, PartitionSpec()))
    return state, loss, hits


def _rounded(array: jax.Array, precision: str) -> jax.Array:
    floating = jnp.issubdtype(array.dtype, jnp.floating)
    return array.astype(precision) if floating else array


def varied(recipe: Recipe, step, rows, pixels, size: int):
    """The batch of a step, varied as the recipe says, of a split of so many images."""
    augmentation = keys(recipe)[1]
    steps_per_epoch = size // recipe.batch_size
    flips, side = None, recipe.cutout
    if recipe.alternate_flips:
        key = jax.random.fold_in(augmentation, np.uint32(2**32 - 1))
        flips = alternating_flips(key, rows, step // steps_per_epoch)
    if recipe.cutout_until < 1:
        if side is None:
            side = pixels.shape[1] // 2 if recipe.augment == "li2022" else 0
        last = round(recipe.cutout_until * recipe.epochs * steps_per_epoch)
        side = jnp.where(step < last, side, 0)
    key = jax.random.fold_in(augmentation, step)
    return augment(recipe.augment, key, pixels, flips=flips, side=side)


def _average(recipe: Recipe, state: State, variables: dict) -> dict:
    """The moving average, with the variables after step `t` in it.

    With the decay `d`, those after step `i` count in proportion to `d^(t - i)`, and the
    initial ones not at all (Kingma and Ba, ICLR 2015, section 3). What is counted in
    whole numbers is not averaged.
    """
    if not recipe.ema:
        return {}
    share = (1 - recipe.ema) / (1 - recipe.ema ** (state.step + 1))

    def move(average, variable):
        floating = jnp.issubdtype(variable.dtype, jnp.floating)
        return average + share * (variable - average) if floating else variable

    return jax.tree.map(move, state.average, variables)


def trained(state: State) -> dict:
    """The trained network, on the default device."""
    last = {"params": state.params, **state.others}
    variables = state.average or last
    return jax.tree.map(jnp.asarray, jax.device_get(variables))


def stored(state: State) -> dict:
    """What of a state is stored: nothing where there is nothing."""
    return {
        name: part
        for name, part in state._asdict().items()
        if name not in ("others", "average") or part
    }
