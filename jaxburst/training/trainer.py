"""Gradient descent on any Flax Linen module.

A run is a pure function of `(module, split, recipe)`: the same bits come out whether or
not it was interrupted, and wherever it was.
"""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxburst.checks import door
from jaxburst.data import Split, normalise
from jaxburst.devices import evenly, share
from jaxburst.kernels.training import accelerate
from jaxburst.training import checkpoints
from jaxburst.training.descent import State, initial, stored, trained
from jaxburst.training.identity import describe, describe_module, require_same
from jaxburst.training.loop import Loop, console_of, run_to_end
from jaxburst.training.recipe import LI2022, Recipe
from jaxburst.training.stopping import noticed
from jaxburst.training.task import Example, Static, check, example_of, read, require_own


@door(validation="split")
def fit(
    module: nn.Module,
    split: Split | tuple[Any, Any],
    recipe: Recipe = LI2022,
    *,
    variables: dict | None = None,
    optimiser: optax.GradientTransformation | None = None,
    validation: Split | tuple[Any, Any] | None = None,
    directory: str | Path | None = None,
    checkpoint_every: int = 500,
    resume: bool = False,
    progress: bool = True,
) -> tuple[dict, list[dict]]:
    """Trains a network. An interrupted run continues as if it had never stopped.

    The module is told that it trains by an argument of its `__call__`, one of `FLAGS`;
    batch statistics and other variables that it keeps are updated, and what it draws
    (`nn.Dropout`) follows from the seed. The loss is the cross-entropy. Convolutions
    take their fast forms, whatever module they are in.

    The bits are the same where the device computes the same bits twice: CPUs and TPUs
    do, GPUs with `XLA_FLAGS=--xla_gpu_deterministic_ops=true`. As many devices as
    divide the batch share it; batch normalisation sees the whole batch.

    Several processes (`jax.distributed.initialize`) train one network if each makes the
    same call, with the whole split and a `directory` that all can reach. All return the
    same network; the first alone reports.

    Args:
      module: a Flax Linen module that returns logits, `[B, ..., classes]`.
      split: what to train on: a `Split`, whose pixels are augmented and normalised, or
        `(inputs, labels)`, taken as they are. Inputs `[N, ...]`; labels, whole numbers,
        `[N]`, or `[N, ...]` where every position has logits.
      recipe: how to train.
      variables: those of a trained network, to train it further: `{'params',
        'batch_stats', ...}`. With None, weights are drawn by the seed.
      optimiser: used instead of the SGD that the recipe describes, of which
        `learning_rate`, `momentum`, `nesterov`, `weight_decay` and `warmup_epochs` then
        mean nothing. A run is resumed with the same one, which is not checked.
      validation: inputs and labels to report accuracy on after each epoch; nothing else
        is done with them.
      directory: where the two latest checkpoints are kept; with None, none are.
      checkpoint_every: steps between checkpoints. There is always one at the end.
      resume: whether to continue the run in `directory`. If that was stopped before its
        first checkpoint, it starts at the beginning, and says so.
      progress: whether to report on standard error: a bar in a terminal, elsewhere a
        line per epoch.

    Returns:
      `(variables, history)`: `{'params', 'batch_stats', ...}`, as the module has them,
      and for each epoch a dictionary of plain numbers: `epoch` and `step`, finished so
      far; `loss` and `accuracy`, means over the epoch's (augmented) batches while the
      weights changed; `learning_rate` of its last step, unless an `optimiser` is given;
      `images_per_second`; and `validation_accuracy` where there is a `validation`.

    Raises:
      FloatingPointError: the loss or the weights are no longer finite. The checkpoints
        written before stay as they are.
      OSError: nothing can be written to `directory`, or another process does.
      Stopped: by Ctrl-C or SIGTERM, with a checkpoint of the last step where there is a
        `directory`; a program ends with the exit code 130 or 143. It is a
        KeyboardInterrupt, too.
      TypeError: the module is not one of Flax Linen, or the inputs are not in memory.
      ValueError: split, network, variables and recipe do not fit together; the module
        cannot be told whether it trains; or `directory` holds a run already, that of
        something else, or a damaged checkpoint.

    Example:
      >>> import flax.linen as nn
      >>> rng = np.random.default_rng(0)
      >>> x = rng.normal(size=(512, 2)).astype(np.float32)
      >>> labels = (x[:, 0] > 0).astype(int)
      >>> recipe = Recipe(epochs=3, batch_size=64, augment="none")
      >>> variables, history = fit(nn.Dense(2), (x, labels), recipe, progress=False)
      >>> accuracy(nn.Dense(2), variables, (x, labels)) > 0.95
      True
    """
    data = read("split", split)
    check(module, "split", data)
    if variables is not None:
        require_own(module, variables, example_of(data))
    if validation is not None:
        check(module, "validation", read("validation", validation))
    if data.mean is None and (recipe.augment != "none" or recipe.cutout):
        raise ValueError(
            "Recipe.augment: expected 'none', and no cutout, for inputs that are not "
            f"the uint8 images of a Split, found {recipe.augment!r} and "
            f"{recipe.cutout!r}"
        )
    if recipe.batch_size > len(data.labels):
        raise ValueError(
            f"Recipe.batch_size: expected at most {len(data.labels)}, the images in "
            f"split, found {recipe.batch_size}"
        )
    if jax.process_count() > 1 and recipe.batch_size % jax.device_count():
        raise ValueError(
            f"Recipe.batch_size: expected a multiple of {jax.device_count()}, the "
            f"devices of all processes, found {recipe.batch_size}"
        )
    if resume and directory is None:
        raise ValueError("resume: expected the directory of the run, found None")
    console = console_of(progress and jax.process_index() == 0)
    start = functools.partial(
        initial,
        variables,
        module=Static(module),
        recipe=recipe,
        optimiser=optimiser,
        example=example_of(data),
        size=len(data.labels),
    )
    opened = contextlib.nullcontext()
    if directory is not None:
        opened = checkpoints.opened(directory, resume)
    with opened as store, _signals(store) as signalled:
        what = module, recipe, variables, optimiser, data
        run = {} if store is None else describe(*what)
        if store is not None and checkpoints.any_in(store):
            record, arrays = checkpoints.latest(store)
            require_same(store, record, run)
            like = stored(jax.eval_shape(start))
            state = State(**checkpoints.load(arrays, like))
        else:
            state, record = start(), {"history": [], "losses": [], "hits": []}
            if resume:
                console.print(f"{directory}: no checkpoint, starting at the beginning")
        loop = Loop(module, data, recipe, optimiser, state)
        validated = None
        if validation is not None:
            validated = functools.partial(accuracy, module, split=validation)
        history = run_to_end(
            loop, record, validated, console, checkpoint_every, store, run, signalled
        )
        return trained(loop.state), history


def _signals(store):
    """Signals wait for a checkpoint where there are checkpoints."""
    return contextlib.nullcontext(lambda: 0) if store is None else noticed()


@door
def restore(module: nn.Module, directory: str | Path) -> dict:
    """Reads the trained network of a run back, from its latest checkpoint.

    Args:
      module: the network.
      directory: as given to `fit`.

    Returns:
      `{'params', 'batch_stats', ...}`.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: the run is that of another module, or its checkpoint is damaged.

    Example:
      >>> restore(jb.zoo.vgg9(10), "runs/cifar10/vgg9/training")  # doctest: +SKIP
    """
    there, arrays = checkpoints.latest(directory)
    shape, dtype = there["example"]
    example = Example(tuple(shape), dtype)
    require_same(Path(directory), there, describe_module(module, example))
    init = functools.partial(Static(module).init, jax.random.key(0), example.zeros())
    like = dict(jax.eval_shape(init))
    tree = {"average": like}
    if not there["recipe"]["ema"]:
        tree = {"params": like.pop("params", {}), "others": like}
    found = checkpoints.load(arrays, tree)
    last = found.get("average") or {"params": found["params"], **found["others"]}
    return jax.tree.map(jnp.asarray, last)


@door
def record(directory: str | Path) -> dict:
    """What a run wrote down: its `recipe`, `split`, `parameters` and `history`.

    Args:
      directory: as given to `fit`.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: its checkpoint is damaged.

    Example:
      >>> record("runs/cifar10/vgg9/training")["history"][-1]  # doctest: +SKIP
    """
    return checkpoints.latest(directory)[0]


@door
def accuracy(
    module: nn.Module,
    variables: dict,
    split: Split | tuple[Any, Any],
    batch_size: int = 250,
) -> float:
    """Share of the labels of `split` that the trained network gives the most to.

    All local devices share every batch.

    Example:
      >>> import flax.linen as nn
      >>> x = np.eye(2, dtype=np.float32)
      >>> variables = {"params": {"kernel": x, "bias": np.zeros(2)}}
      >>> accuracy(nn.Dense(2), variables, (x, np.array([0, 0])))
      0.5
    """
    data = read("split", split)
    check(module, "split", data)
    require_own(module, variables, example_of(data))
    correct, size = 0, len(data.labels)
    batch_size = evenly(min(batch_size, size))
    shard, replicate = share(batch_size)
    variables = replicate(variables)
    for start in range(0, size, batch_size):
        # The last batch begins again from the front, so that one compilation serves.
        rows = np.arange(start, start + batch_size)
        inputs = shard(data.inputs[rows % size])
        guesses = _guess(
            variables, inputs, module=Static(module), mean=data.mean, std=data.std
        )
        hits = np.asarray(guesses) == data.labels[rows % size]
        correct += int(hits[rows < size].sum())
    return correct / data.labels.size


@functools.partial(jax.jit, static_argnames=("module", "mean", "std"))
def _guess(variables, inputs, *, module, mean, std):
    """The most likely class, wherever there are logits."""
    x = inputs if mean is None else normalise(inputs, mean, std)
    platform = jax.local_devices()[0].platform
    return accelerate(module.infer, platform)(variables, x).argmax(-1)
