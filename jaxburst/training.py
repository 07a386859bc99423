"""Training: stochastic gradient descent, one jitted step, runs that can be resumed.

    recipe = Recipe(epochs=100, warmup_epochs=1)
    variables, history = fit(layers, dataset.train, recipe, directory="runs/vgg16")
    variables = restore(layers, "runs/vgg16")

A run is a pure function of `(layers, split, recipe)`: the same bits come out whether or
not it was interrupted, and wherever it was. `N` counts the images of the split, `B`
those of a batch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import math
import os
import pickle
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxburst.ann import Network, accuracy
from jaxburst.augmentation import alternating_flips, augment
from jaxburst.data import OnDisk, Split, batch_indices, normalise
from jaxburst.fitting.recipe import (  # noqa: F401
    AUTHORS,
    PRECISIONS,
    Recipe,
    is_whole,
    schedule,
)
from jaxburst.layers import Layers, Residual, validate, walk


def fit(
    layers: Layers,
    split: Split,
    recipe: Recipe = AUTHORS,
    *,
    validation: Split | None = None,
    directory: str | Path | None = None,
    checkpoint_every: int = 500,
    resume: bool = False,
    progress: bool = True,
) -> tuple[dict, list[dict]]:
    """Trains a network. An interrupted run continues as if it had never stopped.

    The bits are the same where the device computes the same bits twice: CPUs and TPUs
    do, GPUs with `XLA_FLAGS=--xla_gpu_deterministic_ops=true`. As many devices as
    divide the batch share it; batch normalisation sees the whole batch.

    Several processes (`jax.distributed.initialize`) train one network if each makes the
    same call, with the whole split and a `directory` that all can reach. All return the
    same network; the first alone reports.

    Args:
      layers: the network.
      split: images to train on.
      recipe: how to train.
      validation: images to report accuracy on after each epoch; nothing else is done
        with them.
      directory: where the two latest checkpoints are kept; with None, none are.
      checkpoint_every: steps between checkpoints. There is always one at the end.
      resume: whether to continue the run in `directory`. If that was stopped before its
        first checkpoint, it starts at the beginning, and says so.
      progress: whether to report on standard error: a bar in a terminal, elsewhere a
        line per epoch.

    Returns:
      `(variables, history)`: `{'params', 'batch_stats'}`, and for each epoch a
      dictionary of plain numbers: `epoch` and `step`, finished so far; `loss` and
      `accuracy`, means over the epoch's (augmented) batches while the weights changed;
      `learning_rate` of its last step; `images_per_second`; and `validation_accuracy`
      where there is a `validation`.

    Raises:
      FloatingPointError: the loss or the weights are no longer finite. The checkpoints
        written before stay as they are.
      OSError: nothing can be written to `directory`.
      TypeError: the images are not in memory.
      ValueError: split, network and recipe do not fit together; or `directory` holds
        a run already, that of something else, or a damaged checkpoint.
    """
    _check_split("split", split, layers)
    if validation is not None:
        _check_split("validation", validation, layers)
    if recipe.batch_size > len(split):
        raise ValueError(
            f"Recipe.batch_size: expected at most {len(split)}, the images in split, "
            f"found {recipe.batch_size}"
        )
    if jax.process_count() > 1 and recipe.batch_size % jax.device_count():
        raise ValueError(
            f"Recipe.batch_size: expected a multiple of {jax.device_count()}, the "
            f"devices of all processes, found {recipe.batch_size}"
        )
    if not is_whole(checkpoint_every, 1):
        raise ValueError(
            "checkpoint_every: expected a whole number of steps, at least 1, found "
            f"{checkpoint_every!r}"
        )
    if resume and directory is None:
        raise ValueError("resume: expected the directory of the run, found None")
    console = _console(progress and jax.process_index() == 0)
    opened = contextlib.nullcontext() if directory is None else _open(directory, resume)
    with opened as store:
        run = None if store is None else _describe(layers, recipe, split)
        if store is not None and store.latest is not None:
            state, record = _load(store, store.latest.step, layers, run)
        else:
            state = _initial(layers, recipe, split.images.shape)
            record = {"history": [], "losses": [], "hits": []}
            if resume:
                console.print(f"{directory}: no checkpoint, starting at the beginning")
        loop = _Loop(layers, split, recipe, state)
        history = _train(
            loop, record, validation, console, checkpoint_every, store, run
        )
        return _variables(loop.state), history


def restore(layers: Layers, directory: str | Path) -> dict:
    """Reads the trained network of a run back, from its latest checkpoint.

    Args:
      layers: the network.
      directory: as given to `fit`.

    Returns:
      `{'params', 'batch_stats'}`.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: the run is that of other layers, or its checkpoint is damaged.
    """
    directory, step = _latest(directory)
    with _checkpointer(directory) as store:
        here = {"layers": _describe_layers(layers)}
        state, _ = _load(store, step, layers, here)
    return _variables(state)


def record(directory: str | Path) -> dict:
    """What a run wrote down: its `recipe`, `split`, `layers` and `history`.

    Args:
      directory: as given to `fit`.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: its checkpoint is damaged.
    """
    directory, step = _latest(directory)
    with _checkpointer(directory) as store:
        return store.checkpointables_metadata(step).custom_metadata


def _latest(directory: str | Path) -> tuple[Path, int]:
    """The directory, and the step of its latest whole checkpoint, verified."""
    directory = Path(directory).expanduser().resolve()
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory}: expected a run, found no directory")
    # One without sums is being written, or was when the run was killed.
    whole = [folder for folder in _steps(directory) if (folder / _SUMS).exists()]
    if not whole:
        raise FileNotFoundError(f"{directory}: expected a run, found no checkpoint")
    _verify(whole[-1])
    return directory, int(whole[-1].name)


# The loop.


class _State(NamedTuple):
    """What one step hands to the next."""

    params: dict
    batch_stats: dict
    opt_state: Any
    step: jax.Array  # steps taken, int32 []
    average: dict = {}  # of `params` and `batch_stats`, by `Recipe.ema`


def _optimiser(recipe: Recipe, steps_per_epoch: int) -> optax.GradientTransformation:
    return optax.chain(
        optax.add_decayed_weights(recipe.weight_decay),
        optax.sgd(
            schedule(recipe, steps_per_epoch), recipe.momentum, nesterov=recipe.nesterov
        ),
    )


def _keys(recipe: Recipe) -> tuple[jax.Array, jax.Array]:
    """One key for the initial weights, one for the augmentation."""
    initial, augmentation = jax.random.split(jax.random.key(recipe.seed))
    return initial, augmentation


@functools.partial(jax.jit, static_argnames=("layers", "recipe", "shape"))
def _initial(layers: Layers, recipe: Recipe, shape: tuple[int, ...]) -> _State:
    """The state before the first step, for images of this shape, `[N, H, W, C]`."""
    key, _ = _keys(recipe)
    variables = Network(layers).init(key, jnp.zeros((1, *shape[1:])))
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    optimiser = _optimiser(recipe, shape[0] // recipe.batch_size)
    average = {"params": params, "batch_stats": batch_stats} if recipe.ema else {}
    return _State(params, batch_stats, optimiser.init(params), jnp.int32(0), average)


# One step per call: within a loop, XLA on CPU takes over twenty times as long for the
# gradient of a convolution's kernel.
@functools.partial(
    jax.jit,
    static_argnames=("layers", "recipe", "mean", "std", "mesh"),
    donate_argnames="state",
)
def _step(state, rows, images, labels, *, layers, recipe, mean, std, mesh):
    """Takes one step.

    Args:
      state: a `_State`; its buffers are reused.
      rows: the images of this batch. int32 `[B]`.
      images: those of the whole split. uint8 `[N, H, W, C]`.
      labels: int32 `[N]`.

    Returns:
      `(state, loss, hits)`: the loss before the step, and the number of images that
      were classified correctly.
    """
    batch = lax.with_sharding_constraint(
        (images[rows], labels[rows]), NamedSharding(mesh, PartitionSpec("data"))
    )
    pixels, targets = batch
    augmented = _augment(recipe, state.step, rows, pixels, len(images))
    inputs = normalise(augmented, mean, std)

    def objective(params):
        rounded, x = jax.tree.map(
            lambda array: array.astype(recipe.precision), (params, inputs)
        )
        (logits, _), updated = Network(layers).apply(
            {"params": rounded, "batch_stats": state.batch_stats},
            x,
            train=True,
            mutable=["batch_stats"],
        )
        logits = logits.astype(jnp.float32)
        goal = jax.nn.one_hot(targets, layers[-1].features)
        goal = optax.smooth_labels(goal, recipe.label_smoothing)
        loss = optax.softmax_cross_entropy(logits, goal).mean()
        hits = (logits.argmax(-1) == targets).sum()
        return loss, (updated.get("batch_stats", {}), hits)

    differentiate = jax.value_and_grad(objective, has_aux=True)
    (loss, (batch_stats, hits)), gradient = differentiate(state.params)
    optimiser = _optimiser(recipe, len(images) // recipe.batch_size)
    updates, opt_state = optimiser.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    average = _average(recipe, state, {"params": params, "batch_stats": batch_stats})
    state = _State(params, batch_stats, opt_state, state.step + 1, average)
    # Every device holds the whole state again, as before the step.
    state = lax.with_sharding_constraint(state, NamedSharding(mesh, PartitionSpec()))
    return state, loss, hits


def _augment(recipe: Recipe, step, rows, pixels, size: int):
    """The batch of a step, varied as the recipe says, of a split of so many images."""
    _, augmentation = _keys(recipe)
    steps_per_epoch = size // recipe.batch_size
    flips, side = None, recipe.cutout
    if recipe.alternate_flips:
        # Its own stream: those of the steps are folded in from 0 on.
        key = jax.random.fold_in(augmentation, np.uint32(2**32 - 1))
        flips = alternating_flips(key, rows, step // steps_per_epoch)
    if recipe.cutout_until < 1:
        if side is None:
            side = pixels.shape[1] // 2 if recipe.augment == "authors" else 0
        last = round(recipe.cutout_until * recipe.epochs * steps_per_epoch)
        side = jnp.where(step < last, side, 0)
    key = jax.random.fold_in(augmentation, step)
    return augment(recipe.augment, key, pixels, flips=flips, side=side)


def _average(recipe: Recipe, state: _State, variables: dict) -> dict:
    """The moving average, with the variables after step `t` in it.

    With the decay `d`, those after step `i` count in proportion to `d^(t - i)`, and the
    initial ones not at all (Kingma and Ba, ICLR 2015, section 3).
    """
    if not recipe.ema:
        return {}
    share = (1 - recipe.ema) / (1 - recipe.ema ** (state.step + 1))
    return jax.tree.map(lambda a, v: a + share * (v - a), state.average, variables)


class _Loop:
    """The state on the device, and all that `_step` needs to move it on."""

    def __init__(self, layers: Layers, split: Split, recipe: Recipe, state: _State):
        self.layers, self.recipe, self.size = layers, recipe, len(split)
        self.steps_per_epoch = self.size // recipe.batch_size
        self.step, self.total = int(state.step), recipe.epochs * self.steps_per_epoch
        devices = jax.devices()[: math.gcd(recipe.batch_size, jax.device_count())]
        mesh = Mesh(np.array(devices), ("data",))
        self.state, images, labels = jax.device_put(
            (jax.device_get(state), split.images, split.labels),
            NamedSharding(mesh, PartitionSpec()),
        )
        self._step = functools.partial(
            _step,
            images=images,
            labels=labels,
            layers=layers,
            recipe=recipe,
            mean=tuple(split.mean),
            std=tuple(split.std),
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


def _train(loop, record, validation, console, checkpoint_every, store, run) -> list:
    """Runs the loop to its end, and returns the history.

    The record has the `history`, and the `losses` and `hits` of the epoch under way.
    """
    history, losses, hits = record["history"], record["losses"], record["hits"]
    learning_rate = schedule(loop.recipe, loop.steps_per_epoch)
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
                    _give_up(f"the loss is {loss}", step, learning_rate, store)
            losses, hits = losses + new_losses, hits + new_hits
            timed, seconds = timed + len(new_losses), seconds + elapsed
            # About a second at a time keeps the bar moving; all processes agree on it.
            pace = _in_first(functools.partial(max, 1, round((stop - first) / elapsed)))
            row = {
                "epoch": epoch_end // loop.steps_per_epoch,
                "step": stop,
                "loss": float(np.mean(losses)),
                "accuracy": float(np.mean(hits)) / loop.recipe.batch_size,
                "learning_rate": float(learning_rate(stop - 1)),
                "images_per_second": timed * loop.recipe.batch_size / seconds,
            }
            if stop == checkpoint and not _finite(loop.state):
                _give_up("a weight is not finite", stop - 1, learning_rate, store)
            if stop == epoch_end:
                if validation is not None:
                    variables = _variables(loop.state)
                    row["validation_accuracy"] = accuracy(
                        loop.layers, variables, validation
                    )
                history, losses, hits = [*history, row], [], []
            if stop == epoch_end or first == begin:
                timed, seconds = 0, 0.0  # the first call had to compile
            show(row, epoch_over=stop == epoch_end)
            if stop == checkpoint and store is not None:
                record = {"history": history, "losses": losses, "hits": hits}
                _save(store, loop.state, run | record)
    return history


def _next_multiple(step: int, of: int) -> int:
    return step - step % of + of


def _finite(state: _State) -> bool:
    return all(
        np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(state))
    )


def _give_up(what: str, step: int, learning_rate: Callable, store) -> NoReturn:
    latest = None if store is None else store.latest
    kept = f"; the last good checkpoint is {latest.path}" if latest else ""
    raise FloatingPointError(
        f"step {step}, learning rate {float(learning_rate(step)):.3g}: {what}; start "
        "again, in another directory, with a lower Recipe.learning_rate or more "
        f"Recipe.warmup_epochs{kept}"
    )


def _variables(state: _State) -> dict:
    """The trained network, on the default device."""
    last = {"params": state.params, "batch_stats": state.batch_stats}
    variables = state.average or last
    return jax.tree.map(jnp.asarray, jax.device_get(variables))


# Several processes.


def _in_first(function: Callable):
    """Calls a function in process 0, and returns or raises in all what it does there.

    Among several processes, what is returned must be small, and can be pickled.
    """
    if jax.process_count() == 1:
        return function()
    from jax.experimental.multihost_utils import broadcast_one_to_all

    content = np.zeros(0, np.uint8)
    if jax.process_index() == 0:
        try:
            outcome = function(), None
        except Exception as error:
            outcome = None, error
        content = np.frombuffer(pickle.dumps(outcome), np.uint8)
    size = int(broadcast_one_to_all(np.int32(len(content))))
    content = broadcast_one_to_all(np.resize(content, size))
    result, error = pickle.loads(np.asarray(content).tobytes())
    if error is not None:
        raise error
    return result


# Checks.


def _check_split(name: str, split: Split, layers: Layers) -> None:
    if len(split) == 0 or len(split.images) != len(split.labels):
        raise ValueError(
            f"{name}: expected as many images as labels, and at least one, found "
            f"{len(split.images)} images and {len(split.labels)} labels"
        )
    if isinstance(split.images, OnDisk):
        raise TypeError(
            f"{name}: expected images in memory, found them on disk; read some of them "
            "with np.asarray, images and labels, into another Split"
        )
    validate(layers, split.images.shape[1:])
    classes = layers[-1].features
    lowest, highest = int(split.labels.min()), int(split.labels.max())
    if lowest < 0 or highest >= classes:
        raise ValueError(
            f"{name}: expected labels in 0 .. {classes - 1}, since the network ends in "
            f"{classes} classes, found {lowest} .. {highest}"
        )


def _describe_layers(layers: Layers) -> list[list[str]]:
    return [
        [path, repr(layer)]
        for path, layer in walk(layers)
        if not isinstance(layer, Residual)  # its parts say it all, under their paths
    ]


def _describe(layers: Layers, recipe: Recipe, split: Split) -> dict:
    """What a run is a function of, in JSON."""
    content = hashlib.sha256()
    for array in (split.images, split.labels, np.array([split.mean, split.std])):
        content.update(np.ascontiguousarray(array).data)
    return {
        "layers": _describe_layers(layers),
        "recipe": dataclasses.asdict(recipe),
        "split": {
            "shape": list(split.images.shape),
            "sha256": content.hexdigest(),
        },
    }


def _require_same(directory: Path, there: dict, here: dict) -> None:
    """Compares the parts of two runs that `here` names."""
    pairs = itertools.zip_longest(
        there["layers"], here["layers"], fillvalue=("the end", "no more layers")
    )
    different = [f"{a[0]} {a[1]}, not {b[0]} {b[1]}" for a, b in pairs if a != b][:1]
    for part, prefix in (("recipe", "Recipe."), ("split", "split.")):
        different += [
            f"{prefix}{name} {there[part].get(name)!r}, not {value!r}"
            for name, value in here.get(part, {}).items()
            if there[part].get(name) != value
        ]
    if different:
        raise ValueError(
            f"{directory}: holds another run, with {'; '.join(different)}; pass what "
            "it was started with, or choose another directory"
        )


# Checkpoints: a folder per step, which counts once it holds the sums of its files.

_SUMS = "sha256.json"


def _open(directory: str | Path, resume: bool):
    """The checkpoints in a directory that will be written to, the latest one intact."""
    directory = Path(directory).expanduser().resolve()
    _in_first(lambda: _inspect(directory, resume))
    return _checkpointer(directory, clean=True)


def _inspect(directory: Path, resume: bool) -> None:
    """Makes the directory, refuses what cannot be used, removes what is unfinished."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise OSError(
            f"{directory}: cannot be written to ({error.strerror}); choose another "
            "directory"
        ) from error
    if _steps(directory) and not resume:
        raise ValueError(
            f"{directory}: holds a run already; pass resume=True (--resume) to "
            "continue it, or choose another directory"
        )
    for checkpoint in _steps(directory):
        # Stopped between Orbax's last word and the checksums.
        if (checkpoint / "state").is_dir() and not (checkpoint / _SUMS).exists():
            shutil.rmtree(checkpoint)
    for latest in _steps(directory)[-1:]:
        _verify(latest)


def _steps(directory: Path) -> list[Path]:
    folders = [path for path in directory.iterdir() if path.name.isdigit()]
    return sorted(folders, key=lambda path: int(path.name))


def _checkpointer(directory: Path, clean: bool = False):
    from orbax.checkpoint import v1 as ocp  # slow to import

    return ocp.training.Checkpointer(
        directory,
        preservation_policy=ocp.training.preservation_policies.LatestN(2),
        cleanup_tmp_directories=clean,  # what was being written when a run was killed
    )


def _save(store, state: _State, record: dict) -> None:
    state = jax.device_get(state)
    store.save(int(state.step), _tree(state), custom_metadata=record, force=True)
    _in_first(lambda: _seal(Path(store.latest.path)))


def _seal(folder: Path) -> None:
    """Makes a written checkpoint count."""
    sums = folder / f"{_SUMS}.part"
    sums.write_text(json.dumps(_sums(folder), indent=1))
    os.replace(sums, folder / _SUMS)


def _load(store, step: int, layers: Layers, run: dict) -> tuple[_State, dict]:
    """Reads a checkpoint, if it is one of `run`."""
    record = store.checkpointables_metadata(step).custom_metadata
    _require_same(Path(store.directory), record, run)
    # Of the recipe, the tree depends on this alone.
    recipe = Recipe(batch_size=1, ema=record["recipe"].get("ema", 0.0))
    shape = tuple(record["split"]["shape"])
    abstract = jax.eval_shape(lambda: _initial(layers, recipe, shape))
    # As NumPy arrays, which belong to no device.
    target = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), abstract)
    return _State(**store.load(step, _tree(target))), record


def _tree(state: _State) -> dict:
    """What of a state is stored: without an average, none."""
    return {
        name: part
        for name, part in state._asdict().items()
        if name != "average" or part
    }


def _sums(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of a checkpoint."""
    sums = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith(_SUMS):
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            sums[path.relative_to(folder).as_posix()] = digest
    return sums


def _verify(folder: Path) -> None:
    # Orbax itself notices few flipped bits, and is verbose about the rest.
    try:
        expected, found = json.loads((folder / _SUMS).read_bytes()), _sums(folder)
        wrong = [name for name in expected if found.get(name) != expected[name]]
    except (OSError, ValueError):
        wrong = [_SUMS]
    if wrong:
        raise ValueError(
            f"{folder}: this checkpoint is damaged ({wrong[0]} is not as it was "
            "written); delete this folder to go on from the checkpoint before it"
        )


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
