"""The loop over steps: history, checkpoints, reports, and when to stop."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxburst.data import batch_indices
from jaxburst.training import checkpoints, descent
from jaxburst.training.descent import State, stored, trained
from jaxburst.training.recipe import Recipe, schedule
from jaxburst.training.stopping import stop as stop_run
from jaxburst.training.task import Data, Static


class Loop:
    """The state on the device, and all that a step needs to move it on."""

    def __init__(self, module, data: Data, recipe: Recipe, optimiser, state: State):
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
            descent.step,
            inputs=inputs,
            labels=labels,
            module=Static(module),
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


def run_to_end(
    loop, record, validated, console, checkpoint_every, store, run, signalled
) -> list:
    """Runs the loop to its end, and returns the history.

    The record has the `history`, and the `losses` and `hits` of the epoch under way.
    `validated` gives the accuracy of variables, or is None.
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
                if validated is not None:
                    row["validation_accuracy"] = validated(trained(loop.state))
                history, losses, hits = [*history, row], [], []
            if stop == epoch_end or first == begin:
                timed, seconds = 0, 0.0  # the first call had to compile
            show(row, epoch_over=stop == epoch_end)
            if keep and store is not None:
                record = {"history": history, "losses": losses, "hits": hits}
                state = jax.device_get(loop.state)
                checkpoints.save(store, stop, stored(state), run | record)
            if signal:
                stop_run(
                    signal,
                    f"{store}: stopped after step {stop} of {loop.total}; the same "
                    "call with resume=True (--resume) goes on",
                )
    return history


def _next_multiple(step: int, of: int) -> int:
    return step - step % of + of


def _finite(state: State) -> bool:
    return all(
        np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(state))
    )


def _give_up(what: str, step: int, loop: Loop, store) -> NoReturn:
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


def console_of(progress: bool):
    from rich.console import Console

    return Console(
        stderr=True, quiet=not progress, markup=False, highlight=False, soft_wrap=True
    )


@contextlib.contextmanager
def _bar(console, loop: Loop) -> Iterator[Callable]:
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
