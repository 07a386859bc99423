"""Gradient descent on any Flax Linen module.

A run is a pure function of `(module, split, recipe)`: the same bits come out whether or
not it was interrupted, and wherever it was. `N` counts the inputs of the split, `B`
those of a batch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import inspect
import itertools
import math
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.errors import InvalidRngError
from flax.traverse_util import flatten_dict
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxburst.checks import door, finite, is_numeric, refuse
from jaxburst.data import OnDisk, Split, batch_indices, normalise
from jaxburst.devices import evenly, share
from jaxburst.kernels.training import accelerate
from jaxburst.training import checkpoints
from jaxburst.training.augmentation import alternating_flips, augment
from jaxburst.training.recipe import LI2022, Recipe, schedule
from jaxburst.training.stopping import noticed
from jaxburst.training.stopping import stop as stop_run

FLAGS = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
}
"""Arguments of `__call__` that tell a module whether it trains, and what says so."""


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
    data = _read("split", split)
    _check(module, "split", data)
    if validation is not None:
        _check(module, "validation", _read("validation", validation))
    if data.mean is None and (recipe.augment != "none" or recipe.cutout):
        raise ValueError(
            "Recipe.augment: expected 'none', and no cutout, for inputs that are not "
            f"the uint8 images of a Split, found {recipe.augment!r} and "
            f"{recipe.cutout!r}"
        )
    if variables is not None:
        _require_own(module, variables, _example(data))
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
    console = _console(progress and jax.process_index() == 0)
    start = functools.partial(
        _initial,
        variables,
        module=_Static(module),
        recipe=recipe,
        optimiser=optimiser,
        example=_example(data),
        size=len(data.labels),
    )
    opened = contextlib.nullcontext()
    if directory is not None:
        opened = checkpoints.opened(directory, resume)
    with opened as store, _signals(store) as signalled:
        what = module, recipe, variables, optimiser, data
        run = {} if store is None else _describe(*what)
        if store is not None and checkpoints.any_in(store):
            record, arrays = checkpoints.latest(store)
            _require_same(store, record, run)
            like = _tree(jax.eval_shape(start))
            state = _State(**checkpoints.load(arrays, like))
        else:
            state, record = start(), {"history": [], "losses": [], "hits": []}
            if resume:
                console.print(f"{directory}: no checkpoint, starting at the beginning")
        loop = _Loop(module, data, recipe, optimiser, state)
        history = _train(
            loop, record, validation, console, checkpoint_every, store, run, signalled
        )
        return _variables(loop.state), history


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
    example = _Example(tuple(shape), dtype)
    _require_same(Path(directory), there, _describe_module(module, example))
    init = functools.partial(_Static(module).init, jax.random.key(0), example.zeros())
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
    data = _read("split", split)
    _check(module, "split", data)
    _require_own(module, variables, _example(data))
    correct, size = 0, len(data.labels)
    batch_size = evenly(min(batch_size, size))
    shard, replicate = share(batch_size)
    variables = replicate(variables)
    for start in range(0, size, batch_size):
        # The last batch begins again from the front, so that one compilation serves.
        rows = np.arange(start, start + batch_size)
        inputs = shard(data.inputs[rows % size])
        guesses = _guess(
            variables, inputs, module=_Static(module), mean=data.mean, std=data.std
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


# The module, and how it is called.


class _Static:
    """A module that `jit` can compile for, even if lists are among its attributes."""

    def __init__(self, module: nn.Module):
        self.module = module
        known = inspect.signature(type(module).__call__).parameters
        flags = {name: says for name, says in FLAGS.items() if name in known}
        self.training: dict[str, Any] = flags

    def __hash__(self) -> int:
        return hash(type(self.module))

    def __eq__(self, other) -> bool:
        mine, theirs = self.module, other.module
        return mine is theirs or type(mine) is type(theirs) and mine == theirs

    @property
    def _inference(self) -> dict[str, Any]:
        return {name: not value for name, value in self.training.items()}

    def init(self, key, x) -> Any:
        return self.module.init(key, x, **self._inference)

    def infer(self, variables, x):
        return self.module.apply(variables, x, **self._inference)

    def train(self, variables, x, key):
        """Logits, and the variables that are not parameters, after this batch."""
        others = [name for name in variables if name != "params"]
        # What is drawn under another name than 'params' takes that one's, too.
        logits, updated = self.module.apply(
            variables, x, **self.training, rngs={"params": key}, mutable=others
        )
        return logits, {name: updated[name] for name in others}


class _Example(NamedTuple):
    """What one input looks like to the module."""

    shape: tuple[int, ...]  # [1, ...]
    dtype: str

    def zeros(self) -> jax.Array:
        return jnp.zeros(self.shape, self.dtype)


class _Data(NamedTuple):
    """Inputs and labels in memory; `mean` and `std` where they are pixels."""

    inputs: np.ndarray
    labels: np.ndarray
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None


def _read(name: str, split: Split | tuple[Any, Any]) -> _Data:
    mean = std = None
    if isinstance(split, tuple):
        inputs, labels = split
    else:
        inputs, labels = split.images, split.labels
        if inputs.dtype == np.uint8:
            mean, std = tuple(split.mean), tuple(split.std)
    if isinstance(inputs, OnDisk):
        raise TypeError(
            f"{name}: expected images in memory, found them on disk; read some of them "
            "with np.asarray, images and labels, into another Split"
        )
    for what, array in (("inputs", inputs), ("labels", labels)):
        if isinstance(array, np.ma.MaskedArray):
            refuse(f"{name}: {what}", "numbers, nothing masked", array)
    inputs, labels = np.asarray(inputs), np.asarray(labels)
    if inputs.ndim == 0 or labels.ndim == 0 or not 0 < len(labels) == len(inputs):
        counts = [len(array) if array.ndim else "no" for array in (inputs, labels)]
        raise ValueError(
            f"{name}: expected as many images as labels, and at least one, found "
            f"{counts[0]} images and {counts[1]} labels"
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"{name}: expected labels that are whole numbers, found {labels.dtype}"
        )
    if not is_numeric(inputs, "biuf"):
        refuse(f"{name}: inputs", "numbers", str(inputs.dtype))
    finite(name, inputs, "normalise the data again")
    if (labels != labels.astype(np.int32)).any():
        raise ValueError(f"{name}: expected labels of 0 .. C - 1, found {labels.max()}")
    return _Data(inputs, labels.astype(np.int32), mean, std)


def _example(data: _Data) -> _Example:
    pixels = data.mean is not None
    dtype = np.float32 if pixels else data.inputs.dtype
    dtype = jax.dtypes.canonicalize_dtype(dtype)
    return _Example((1, *data.inputs.shape[1:]), str(dtype))


def _require_own(module: nn.Module, variables: dict, example: _Example) -> None:
    """Refuses variables that are not those of the module."""
    init = functools.partial(_Static(module).init, jax.random.key(0), example.zeros())
    own, found = (
        {name: np.shape(leaf) for name, leaf in _flat(tree).items()}
        for tree in (jax.eval_shape(init), variables)
    )
    for name in sorted(own.keys() | found.keys()):
        if own.get(name) != found.get(name):
            raise ValueError(
                f"variables: {name}: expected {own.get(name, 'nothing')}, found "
                f"{found.get(name, 'nothing')}; these are not those of the module"
            )


def _flat(tree: Any) -> dict[str, Any]:
    return dict(flatten_dict(tree, sep="/"))


def _check(module: nn.Module, name: str, data: _Data) -> None:
    """Refuses what cannot be trained, before anything is compiled."""
    static, kind = _Static(module), type(module).__name__
    key, x = jax.random.key(0), _example(data).zeros()
    one_of = f"one of the arguments {', '.join(FLAGS)}"
    try:
        variables = jax.eval_shape(static.init, key, x)
        empty = any(0 in leaf.shape for leaf in jax.tree.leaves(variables))
    except ZeroDivisionError:  # that of an initialiser, for a kernel without inputs
        empty = True
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name}: {kind} takes no inputs of {x.dtype} {list(x.shape)} ({error})"
        ) from error
    if empty:
        raise ValueError(
            f"{name}: expected inputs that {kind} leaves something of, found "
            f"{list(data.inputs.shape[1:])}, too small for this network"
        )
    kept = sorted(variables.keys() - {"params"})
    if kept and not static.training:
        raise ValueError(
            f"module: expected {kind}.__call__ to take {one_of}, since it keeps "
            f"{', '.join(kept)}, which change in training only; found none of them"
        )
    try:
        two = jax.ShapeDtypeStruct((2, *x.shape[1:]), x.dtype)
        logits = jax.eval_shape(static.infer, variables, two)
    except InvalidRngError as error:
        raise ValueError(
            f"module: {kind} draws random numbers when it does not train, too "
            f"({error}); let {kind}.__call__ take {one_of}, and draw by that"
        ) from error
    expected = data.labels.shape[1:]
    shape = getattr(logits, "shape", None)
    if shape is None or len(shape) < 2 or shape[:-1] != (2, *expected):
        places = "".join(f"{side}, " for side in (len(data.labels), *expected))
        first = "N" if shape and shape[0] == 2 else 1
        found = shape and f"[{', '.join(map(str, (first, *shape[1:])))}]"
        raise ValueError(
            f"{name}: expected {kind} to return logits for every label, [{places}"
            f"classes], found {found or jax.tree.structure(logits)}; train a module "
            "that returns nothing else"
        )
    lowest, highest = int(data.labels.min()), int(data.labels.max())
    if lowest < 0 or highest >= shape[-1]:
        raise ValueError(
            f"{name}: expected labels in 0 .. {shape[-1] - 1}, since the network ends "
            f"in {shape[-1]} classes, found {lowest} .. {highest}"
        )


# The loop.


class _State(NamedTuple):
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


def _keys(recipe: Recipe) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Keys for the initial weights, for augmentation, and for what the module draws."""
    initial, augmentation = jax.random.split(jax.random.key(recipe.seed))
    # Streams of their own: those of the steps are folded in from 0 on.
    return initial, augmentation, jax.random.fold_in(augmentation, np.uint32(2**32 - 2))


@functools.partial(
    jax.jit, static_argnames=("module", "recipe", "optimiser", "example", "size")
)
def _initial(variables=None, *, module, recipe, optimiser, example, size) -> _State:
    """The state before the first step, for a split of so many such inputs."""
    others = dict(module.init(_keys(recipe)[0], example.zeros()))
    if variables is not None:
        others = jax.tree.map(lambda own, x: x.astype(own.dtype), others, variables)
    average = dict(others) if recipe.ema else {}
    params = others.pop("params", {})
    optimiser = _optimiser(recipe, optimiser, size // recipe.batch_size)
    return _State(params, optimiser.init(params), jnp.int32(0), others, average)


# One step per call: within a loop, XLA on CPU takes over twenty times as long for the
# gradient of a convolution's kernel.
@functools.partial(
    jax.jit,
    static_argnames=("module", "recipe", "optimiser", "mean", "std", "mesh"),
    donate_argnames="state",
)
def _step(state, rows, inputs, labels, *, module, recipe, optimiser, mean, std, mesh):
    """Takes one step.

    Args:
      state: a `_State`; its buffers are reused.
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
        x = normalise(_augment(recipe, state.step, rows, x, len(inputs)), mean, std)
    key = jax.random.fold_in(_keys(recipe)[2], state.step)
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
    state = _State(params, opt_state, state.step + 1, others, average)
    # Every device holds the whole state again, as before the step.
    state = lax.with_sharding_constraint(state, NamedSharding(mesh, PartitionSpec()))
    return state, loss, hits


def _rounded(array: jax.Array, precision: str) -> jax.Array:
    floating = jnp.issubdtype(array.dtype, jnp.floating)
    return array.astype(precision) if floating else array


def _augment(recipe: Recipe, step, rows, pixels, size: int):
    """The batch of a step, varied as the recipe says, of a split of so many images."""
    augmentation = _keys(recipe)[1]
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


def _average(recipe: Recipe, state: _State, variables: dict) -> dict:
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


class _Loop:
    """The state on the device, and all that `_step` needs to move it on."""

    def __init__(self, module, data: _Data, recipe: Recipe, optimiser, state: _State):
        self.module, self.recipe, self.size = module, recipe, len(data.labels)
        self.positions = data.labels[0].size
        self.steps_per_epoch = self.size // recipe.batch_size
        self.step, self.total = int(state.step), recipe.epochs * self.steps_per_epoch
        self.learning_rate = None
        if optimiser is None:
            self.learning_rate = schedule(recipe, self.steps_per_epoch)
        devices = jax.devices()[: math.gcd(recipe.batch_size, jax.device_count())]
        mesh = Mesh(np.array(devices), ("data",))
        self.state, inputs, labels = jax.device_put(
            (jax.device_get(state), data.inputs, data.labels),
            NamedSharding(mesh, PartitionSpec()),
        )
        self._step = functools.partial(
            _step,
            inputs=inputs,
            labels=labels,
            module=_Static(module),
            recipe=recipe,
            optimiser=optimiser,
            mean=data.mean,
            std=data.std,
            mesh=mesh,
        )

    def advance(self, count: int) -> tuple[list[float], list[int]]:
        """Takes `count` steps; returns the loss and the hits of each."""
        seed, batch_size = self.recipe.seed, self.recipe.batch_size
        measured = []
        for _ in range(count):
            rows = batch_indices(seed, self.step, batch_size, self.size)
            self.state, *numbers = self._step(self.state, rows)
            self.step += 1
            measured.append(numbers)
        # Asked for at the end only, so that the device need not wait for the host.
        losses, hits = zip(*jax.device_get(measured), strict=True)
        return [float(loss) for loss in losses], [int(hit) for hit in hits]


def _train(
    loop, record, validation, console, checkpoint_every, store, run, signalled
) -> list:
    """Runs the loop to its end, and returns the history.

    The record has the `history`, and the `losses` and `hits` of the epoch under way.
    """
    history, losses, hits = record["history"], record["losses"], record["hits"]
    begin, timed, seconds, pace = loop.step, 0, 0.0, 1
    with _bar(console, loop) as show:
        while loop.step < loop.total:
            first, start = loop.step, time.perf_counter()
            epoch_end = _next_multiple(first, loop.steps_per_epoch)
            checkpoint = min(_next_multiple(first, checkpoint_every), loop.total)
            stop = min(first + pace, epoch_end, checkpoint)
            new_losses, new_hits = loop.advance(stop - first)
            elapsed = time.perf_counter() - start
            for step, loss in enumerate(new_losses, first):
                if not math.isfinite(loss):
                    _give_up(f"the loss is {loss}", step, loop, store)
            losses, hits = losses + new_losses, hits + new_hits
            timed, seconds = timed + len(new_losses), seconds + elapsed
            # About a second at a time keeps the bar moving; all processes agree on it,
            # and on a signal.
            pace = max(1, round((stop - first) / elapsed))
            pace, signal = checkpoints.in_first(lambda p=pace: [p, signalled()])
            keep = stop == checkpoint or signal
            row = {
                "epoch": epoch_end // loop.steps_per_epoch,
                "step": stop,
                "loss": float(np.mean(losses)),
                "accuracy": float(np.mean(hits))
                / (loop.recipe.batch_size * loop.positions),
                "images_per_second": timed * loop.recipe.batch_size / seconds,
            }
            if loop.learning_rate is not None:
                row["learning_rate"] = float(loop.learning_rate(stop - 1))
            if keep and not _finite(loop.state):
                _give_up("a weight is not finite", stop - 1, loop, store)
            if stop == epoch_end:
                if validation is not None:
                    variables = _variables(loop.state)
                    row["validation_accuracy"] = accuracy(
                        loop.module, variables, validation
                    )
                history, losses, hits = [*history, row], [], []
            if stop == epoch_end or first == begin:
                timed, seconds = 0, 0.0  # the first call had to compile
            show(row, epoch_over=stop == epoch_end)
            if keep and store is not None:
                record = {"history": history, "losses": losses, "hits": hits}
                state = jax.device_get(loop.state)
                checkpoints.save(store, stop, _tree(state), run | record)
            if signal:
                stop_run(
                    signal,
                    f"{store}: stopped after step {stop} of {loop.total}; the same "
                    "call with resume=True (--resume) goes on",
                )
    return history


def _next_multiple(step: int, of: int) -> int:
    return step - step % of + of


def _finite(state: _State) -> bool:
    return all(
        np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(state))
    )


def _give_up(what: str, step: int, loop: _Loop, store) -> NoReturn:
    latest = None if store is None else checkpoints.newest(store)
    kept = f"; the last good checkpoint is {latest}" if latest else ""
    rate, less = "", "an optimiser that takes smaller steps"
    if loop.learning_rate is not None:
        rate = f", learning rate {float(loop.learning_rate(step)):.3g}"
        less = "a lower Recipe.learning_rate or more Recipe.warmup_epochs"
    raise FloatingPointError(
        f"step {step}{rate}: {what}; start again, in another directory, with {less}"
        f"{kept}"
    )


def _variables(state: _State) -> dict:
    """The trained network, on the default device."""
    last = {"params": state.params, **state.others}
    variables = state.average or last
    return jax.tree.map(jnp.asarray, jax.device_get(variables))


# What a run is a function of.


def _describe_module(module: nn.Module, example: _Example) -> dict:
    variables = jax.eval_shape(_Static(module).init, jax.random.key(0), example.zeros())
    flat = {
        name: leaf
        for collection in sorted(variables, key=lambda name: name != "params")
        for name, leaf in _flat(variables[collection]).items()
    }
    # Where functions lie in memory is another place every time.
    text = re.sub(r" at 0x[0-9a-f]+", "", repr(module))
    return {
        "parameters": [[name, _type(leaf)] for name, leaf in flat.items()],
        "module": [line.strip() for line in text.splitlines()],
    }


def _type(leaf) -> str:
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def _sha256(*arrays) -> str:
    content = hashlib.sha256()
    for array in arrays:
        content.update(np.ascontiguousarray(array).data)
    return content.hexdigest()


def _describe(module, recipe: Recipe, variables, optimiser, data: _Data) -> dict:
    """What a run is a function of, in JSON."""
    constants = np.array([data.mean or (), data.std or ()])
    started = None if variables is None else _sha256(*jax.tree.leaves(variables))
    return {
        **_describe_module(module, _example(data)),
        "example": _example(data),
        "recipe": dataclasses.asdict(recipe),
        "started": started,
        "optimiser": "the recipe's" if optimiser is None else "given to fit",
        "split": {
            "shape": list(data.inputs.shape),
            "dtype": str(data.inputs.dtype),
            "sha256": _sha256(data.inputs, data.labels, constants),
        },
    }


def _require_same(directory: Path, there: dict, here: dict) -> None:
    """Compares the parts of two runs that `here` names."""
    pairs = itertools.zip_longest(
        there["parameters"], here["parameters"], fillvalue=("nothing", "more")
    )
    different = [f"{a[0]} {a[1]}, not {b[0]} {b[1]}" for a, b in pairs if a != b][:1]
    if not different:
        lines = itertools.zip_longest(there["module"], here["module"], fillvalue="")
        different = [f"{a}, not {b}" for a, b in lines if a != b][:1]
    for part, prefix in (("recipe", "Recipe."), ("split", "split.")):
        different += [
            f"{prefix}{name} {there[part].get(name)!r}, not {value!r}"
            for name, value in here.get(part, {}).items()
            if there[part].get(name) != value
        ]
    if there["optimiser"] != here.get("optimiser", there["optimiser"]):
        different.append(f"the optimiser {there['optimiser']}, not {here['optimiser']}")
    if there.get("started") != here.get("started", there.get("started")):
        different.append("other variables at its start")
    if different:
        raise ValueError(
            f"{directory}: holds another run, with {'; '.join(different)}; pass what "
            "it was started with, or choose another directory"
        )


def _tree(state: _State) -> dict:
    """What of a state is stored: nothing where there is nothing."""
    return {
        name: part
        for name, part in state._asdict().items()
        if name not in ("others", "average") or part
    }


# Reports.


def _console(progress: bool):
    from rich.console import Console

    return Console(
        stderr=True, quiet=not progress, markup=False, highlight=False, soft_wrap=True
    )


@contextlib.contextmanager
def _bar(console, loop: _Loop) -> Iterator[Callable]:
    """Gives a function that shows a row of the history."""
    from rich.progress import BarColumn, Progress, TimeRemainingColumn

    columns = BarColumn(), TimeRemainingColumn(), "{task.description}"
    live = console.is_interactive and not console.quiet
    with Progress(*columns, console=console, disable=not live) as bar:
        task = bar.add_task("", completed=loop.step, total=loop.total)

        def show(row: dict, epoch_over: bool) -> None:
            text = (
                f"epoch {row['epoch']}/{loop.recipe.epochs}, loss {row['loss']:.4f}, "
                f"accuracy {row['accuracy']:.2%}, "
                f"{row['images_per_second']:,.0f} images/s"
            )
            if "validation_accuracy" in row:
                text += f", validation {row['validation_accuracy']:.2%}"
            bar.update(task, completed=loop.step, description=text)
            if epoch_over and not live:
                console.print(text)

        yield show
