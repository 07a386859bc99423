"""Training: it learns, by the textbook, and an interruption leaves no trace."""

import dataclasses
import inspect
import itertools
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxburst import data, zoo
from jaxburst.data import Split, batch_indices
from jaxburst.training import (
    Recipe,
    accuracy,
    descent,
    fit,
    loop,
    restore,
    schedule,
    task,
    trainer,
)
from jaxburst.training.augmentation import augment

MODULE = zoo.VGG((4, "M"), 3, bias=False)
RECIPE = Recipe(  # 5 steps per epoch
    epochs=3, batch_size=16, warmup_epochs=0.5, augment="crop_flip", ema=0.8
)


def blobs(count: int = 90, seed: int = 0) -> Split:
    """8x8 images of three classes: a bright patch on the left, in the middle, right."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count).astype(np.int32)
    images = rng.integers(0, 120, (count, 8, 8, 1), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[2:6, 3 * label : 3 * label + 2] += 100
    return Split(images, labels, (0.3,), (0.2,))


SPLIT = blobs()


def train(directory=None, recipe=RECIPE, module=MODULE, split=SPLIT, **options):
    return fit(module, split, recipe, directory=directory, progress=False, **options)


def without_speed(history):
    return [
        {name: value for name, value in row.items() if name != "images_per_second"}
        for row in history
    ]


def assert_same_run(a, b):
    (variables_a, history_a), (variables_b, history_b) = a, b
    jax.tree.map(np.testing.assert_array_equal, variables_a, variables_b)
    assert without_speed(history_a) == without_speed(history_b)


@pytest.fixture(scope="module")
def uninterrupted():
    return train(validation=blobs(30, seed=1))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A directory with checkpoints at steps 12 and 15, the end."""
    directory = tmp_path_factory.mktemp("finished")
    train(directory, checkpoint_every=6)
    return directory


@pytest.fixture
def run(finished, tmp_path):
    """A copy of `finished`, to be damaged."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


# Learning.


def test_learns_a_separable_task():
    recipe = Recipe(epochs=8, batch_size=16, learning_rate=0.05, augment="none")
    variables, history = train(recipe=recipe)
    losses = [row["loss"] for row in history]
    assert losses[-1] < 0.6 * losses[0]
    assert history[-1]["accuracy"] > 0.95
    assert accuracy(MODULE, variables, blobs(100, seed=1)) > 0.9


def test_learns_digits_with_a_residual_network():
    digits = data.digits()
    recipe = Recipe(epochs=3, batch_size=64, augment="none")
    variables, history = train(
        recipe=recipe, module=zoo.resnet_tiny(10), split=digits.train
    )
    assert history[-1]["accuracy"] > 0.9
    assert accuracy(zoo.resnet_tiny(10), variables, digits.validation) > 0.9


def test_history_says_what_happened(uninterrupted):
    variables, history = uninterrupted
    assert json.loads(json.dumps(history)) == history
    assert [row["epoch"] for row in history] == [1, 2, 3]
    assert [row["step"] for row in history] == [5, 10, 15]
    final = accuracy(MODULE, variables, blobs(30, seed=1))
    assert history[-1]["validation_accuracy"] == final
    last = float(schedule(RECIPE, 5)(14))
    assert history[-1]["learning_rate"] == pytest.approx(last)


def test_validation_changes_nothing(uninterrupted):
    variables, _ = train()
    jax.tree.map(np.testing.assert_array_equal, variables, uninterrupted[0])


# By the textbook.


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize(
    ("nesterov", "kind", "ema"), [(False, "crop_flip", 0.0), (True, "none", 0.7)]
)
def test_equals_a_plain_loop(nesterov, kind, ema):
    recipe = Recipe(
        epochs=2,
        batch_size=16,
        weight_decay=0.01,
        warmup_epochs=0.6,
        nesterov=nesterov,
        augment=kind,
        ema=ema,
        seed=3,
    )
    variables, history = train(recipe=recipe)
    expected, losses = plain_loop(recipe, steps=10)
    assert history[0]["loss"] == pytest.approx(np.mean(losses[:5]), rel=1e-4)
    assert history[1]["loss"] == pytest.approx(np.mean(losses[5:]), rel=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        variables,
        expected,
    )


def plain_loop(recipe, steps):
    """PyTorch's SGD, written out: g += λp, v = μv + g, p -= η (g + μv or v)."""
    initial_key, augmentation_key = jax.random.split(jax.random.key(recipe.seed))
    network = MODULE
    variables = network.init(initial_key, jnp.zeros((1, 8, 8, 1)))
    params, statistics = variables["params"], variables["batch_stats"]
    velocity = jax.tree.map(jnp.zeros_like, params)
    losses, visited = [], []

    @jax.jit
    def loss_and_gradient(params, statistics, inputs, labels):
        def loss(params):
            logits, updated = network.apply(
                {"params": params, "batch_stats": statistics},
                inputs,
                train=True,
                mutable=["batch_stats"],
            )
            logs = logits - jax.nn.logsumexp(logits, axis=1, keepdims=True)
            right = logs[jnp.arange(len(labels)), labels]
            share = recipe.label_smoothing
            losses = -(1 - share) * right - share * logs.mean(1)
            return losses.mean(), updated["batch_stats"]

        return jax.value_and_grad(loss, has_aux=True)(params)

    for step in range(steps):
        rows = batch_indices(recipe.seed, step, recipe.batch_size, len(SPLIT))
        images = jnp.asarray(SPLIT.images[rows])
        key = jax.random.fold_in(augmentation_key, step)
        images = augment(recipe.augment, key, images)
        inputs = (images / 255 - SPLIT.mean[0]) / SPLIT.std[0]
        (loss, statistics), gradient = loss_and_gradient(
            params, statistics, inputs, SPLIT.labels[rows]
        )
        losses.append(float(loss))
        rate, momentum = by_hand(recipe, 5, step), recipe.momentum
        gradient = jax.tree.map(
            lambda g, p: g + recipe.weight_decay * p, gradient, params
        )
        velocity = jax.tree.map(lambda v, g, m=momentum: m * v + g, velocity, gradient)
        update = velocity
        if recipe.nesterov:
            update = jax.tree.map(
                lambda v, g, m=momentum: g + m * v, velocity, gradient
            )
        params = jax.tree.map(lambda p, u, r=rate: p - r * u, params, update)
        visited.append({"params": params, "batch_stats": statistics})
    weights = np.float64(recipe.ema) ** np.arange(steps)[::-1]  # 0^0 = 1: the last one
    weights /= weights.sum()
    return jax.tree.map(lambda *values: mean_of(weights, values), *visited), losses


def mean_of(weights, values):
    return sum(
        weight * np.asarray(v) for weight, v in zip(weights, values, strict=True)
    )


def by_hand(recipe, steps_per_epoch, step):
    total = recipe.epochs * steps_per_epoch
    warm = round(recipe.warmup_epochs * steps_per_epoch)
    if step < warm:
        return recipe.learning_rate * (step + 1) / warm
    angle = math.pi * (step - warm) / (total - warm)
    return recipe.learning_rate * (1 + math.cos(angle)) / 2


@pytest.mark.usefixtures("optimised")
def test_bfloat16_is_float32_coarsely():
    recipe = Recipe(epochs=4, batch_size=16, learning_rate=0.05, augment="none")
    exact, history = train(recipe=recipe)
    rough, rough_history = train(
        recipe=dataclasses.replace(recipe, precision="bfloat16")
    )
    assert {leaf.dtype.name for leaf in jax.tree.leaves(rough)} == {"float32"}
    distances = jax.tree.map(
        lambda a, b: np.abs(a - b).max() / np.abs(a).max(), exact, rough
    )
    assert 0 < max(jax.tree.leaves(distances)) < 0.1
    assert rough_history[0]["loss"] == pytest.approx(history[0]["loss"], rel=0.02)


def test_bfloat16_is_what_a_step_computes_in():
    recipe = dataclasses.replace(RECIPE, precision="bfloat16")
    state = descent.initial(
        module=task.Static(MODULE),
        recipe=recipe,
        optimiser=None,
        example=task.example_of(task.read("split", SPLIT)),
        size=90,
    )
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    lowered = descent.step.lower(
        state,
        np.arange(16, dtype=np.int32),
        SPLIT.images,
        SPLIT.labels,
        module=task.Static(MODULE),
        recipe=recipe,
        optimiser=None,
        mean=SPLIT.mean,
        std=SPLIT.std,
        mesh=mesh,
    )
    products = [
        line
        for line in lowered.as_text().splitlines()
        if "stablehlo.convolution" in line or "stablehlo.dot_general" in line
    ]
    assert len(products) >= 4
    assert all("xf32>" not in line for line in products)


@pytest.mark.parametrize("warmup_epochs", [0, 0.25, 1, 4.9])
def test_learning_rate_warms_up_then_follows_a_cosine(warmup_epochs):
    recipe = Recipe(epochs=5, warmup_epochs=warmup_epochs)
    rates = [float(schedule(recipe, 8)(step)) for step in range(40)]
    expected = [by_hand(recipe, 8, step) for step in range(40)]
    np.testing.assert_allclose(rates, expected, rtol=1e-5, atol=1e-8)
    assert max(rates) == pytest.approx(0.1)


def test_learning_rate_ends_at_zero():
    assert float(schedule(Recipe(epochs=5), 8)(40)) == 0


# What a step trains on.


augmented = jax.jit(descent.varied, static_argnums=(0, 4))


def seen(recipe, step, pixels):
    """The batch of a step, `[16, 8, 8, 1]`, and which images it is made of."""
    rows = batch_indices(recipe.seed, step, recipe.batch_size, len(pixels))
    batch = augmented(recipe, step, rows, jnp.asarray(pixels[rows]), 90)
    return np.asarray(batch), rows


def test_each_image_is_seen_from_both_sides_in_two_epochs():
    recipe = dataclasses.replace(RECIPE, epochs=4, alternate_flips=True)
    pixels = np.zeros((90, 8, 8, 1), np.uint8)
    pixels[:, :, :4] = 200  # bright on the left; shifts are by one
    flipped = {epoch: {} for epoch in range(4)}
    for step in range(20):
        batch, rows = seen(recipe, step, pixels)
        right = batch[:, :, 4:].sum((1, 2, 3)) > batch[:, :, :4].sum((1, 2, 3))
        flipped[step // 5] |= dict(zip(rows.tolist(), right.tolist(), strict=True))
    for before, after in itertools.pairwise(flipped.values()):
        both = before.keys() & after.keys()
        assert len(both) > 60
        assert all(before[row] != after[row] for row in both)
    assert 20 < sum(flipped[0].values()) < 60


def test_cutout_has_the_side_of_the_recipe():
    recipe = dataclasses.replace(RECIPE, augment="none", cutout=4)
    batch, _ = seen(recipe, 0, np.full((90, 8, 8, 1), 200, np.uint8))
    assert (batch == 0).sum((1, 2, 3)).max() == 16
    policy = dataclasses.replace(RECIPE, augment="li2022")
    without, never = (
        seen(dataclasses.replace(policy, **options), 0, SPLIT.images)[0]
        for options in ({"cutout": 0}, {"cutout_until": 0})
    )
    np.testing.assert_array_equal(without, never)


@pytest.mark.parametrize(("kind", "side"), [("none", 4), ("li2022", None)])
def test_the_last_steps_are_without_cutout(kind, side):
    def recipe(until):
        return dataclasses.replace(
            RECIPE, augment=kind, cutout=side, cutout_until=until
        )

    def equal(step, one, other):
        a, b = (seen(recipe(until), step, SPLIT.images)[0] for until in (one, other))
        return (a == b).all()

    # 9 of 15 steps.
    assert [equal(step, 0.6, 1) for step in range(15)] == [True] * 9 + [False] * 6
    assert [equal(step, 0.6, 0) for step in range(15)] == [False] * 9 + [True] * 6


def test_no_option_leaves_the_batches_as_they_were():
    key = jax.random.split(jax.random.key(RECIPE.seed))[1]
    batch, rows = seen(RECIPE, 7, SPLIT.images)
    expected = augment("crop_flip", jax.random.fold_in(key, 7), SPLIT.images[rows])
    np.testing.assert_array_equal(batch, expected)


# Interruptions.


@pytest.mark.parametrize("stopped_at", [2, 7, 14])
def test_resumes_bit_for_bit(tmp_path, monkeypatch, uninterrupted, stopped_at):
    def indices(seed, step, batch_size, size):
        if step == stopped_at:
            raise KeyboardInterrupt
        return batch_indices(seed, step, batch_size, size)

    validation = blobs(30, seed=1)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "batch_indices", indices)
        train(tmp_path, checkpoint_every=3, validation=validation)
    again = train(tmp_path, checkpoint_every=4, validation=validation, resume=True)
    assert_same_run(again, uninterrupted)


def test_resumes_bit_for_bit_where_epochs_differ(tmp_path, monkeypatch):
    recipe = dataclasses.replace(
        RECIPE, alternate_flips=True, cutout=3, cutout_until=0.6
    )

    def indices(seed, step, batch_size, size):
        if step == 8:
            raise KeyboardInterrupt
        return batch_indices(seed, step, batch_size, size)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "batch_indices", indices)
        train(tmp_path, recipe, checkpoint_every=3)
    again = train(tmp_path, recipe, resume=True)
    assert_same_run(again, train(recipe=recipe))


def test_steps_per_call_leave_no_trace(monkeypatch, uninterrupted):
    clock = iter(range(10**6))
    # A second per call: one step at a time.
    monkeypatch.setattr(loop.time, "perf_counter", lambda: next(clock))
    assert_same_run(train(validation=blobs(30, seed=1)), uninterrupted)


def long_run(directory, resume=True):
    recipe = dataclasses.replace(RECIPE, epochs=60)
    return train(directory, recipe, checkpoint_every=1, resume=resume)


@pytest.mark.slow
def test_survives_kill_9(tmp_path, optimised):
    directory = tmp_path / "run"
    here = Path(__file__).parent
    code = "import sys, test_training; test_training.long_run(sys.argv[1])"
    paths = [str(here), str(Path(trainer.__file__).parents[2])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    delays = random.Random(0)
    reached = []
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(directory)], env=environment
        )
        before = latest(directory)
        while latest(directory) < before + 2 and process.poll() is None:
            time.sleep(0.005)
            if before:  # a reader beside the writer finds a whole version
                assert trainer.record(directory)["recipe"]["epochs"] == 60
        time.sleep(delays.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "finished before it was killed"
        reached.append(latest(directory))
    assert 0 < reached[0] < reached[1]
    again = long_run(directory)
    assert_same_run(again, long_run(None, resume=False))
    assert files_of(directory) == ["299.safetensors", "300.safetensors"]


def files_of(directory):
    return sorted(path.name for path in directory.iterdir())


def latest(directory):
    steps = [path.stem for path in directory.glob("*.safetensors")]
    return max((int(step) for step in steps if step.isdigit()), default=0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_a_run_with_a_checkpoint(
    tmp_path, monkeypatch, capsys, uninterrupted, number
):
    def indices(seed, step, batch_size, size):
        if step == 7:
            signal.raise_signal(number)
        return batch_indices(seed, step, batch_size, size)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as caught:
        patch.setattr(loop, "batch_indices", indices)
        train(tmp_path, checkpoint_every=100)
    assert isinstance(caught.value, KeyboardInterrupt)
    assert caught.value.code == 128 + number
    step = latest(tmp_path)
    line = f"{tmp_path}: stopped after step {step} of 15; the same call with resume="
    assert capsys.readouterr().err.startswith(line)
    assert files_of(tmp_path) == [f"{step}.safetensors"] and 8 <= step < 15
    validation = blobs(30, seed=1)
    variables, _ = train(tmp_path, validation=validation, resume=True)
    jax.tree.map(np.testing.assert_array_equal, variables, uninterrupted[0])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_second_of_two_runs_in_a_directory_is_told_who_has_it(
    tmp_path, monkeypatch
):
    def indices(seed, step, batch_size, size):
        with pytest.raises(BlockingIOError, match=f"{tmp_path}: process {os.getpid()}"):
            train(tmp_path, resume=True)
        return batch_indices(seed, step, batch_size, size)

    monkeypatch.setattr(loop, "batch_indices", indices)
    train(tmp_path, dataclasses.replace(RECIPE, epochs=1))
    assert files_of(tmp_path) == ["5.safetensors"]


def test_a_run_of_an_earlier_version_is_left_alone(tmp_path):
    (tmp_path / "500").mkdir()
    with pytest.raises(ValueError, match="holds a run of an earlier version"):
        train(tmp_path, resume=True)
    assert files_of(tmp_path) == ["500"]


def test_stopped_before_the_first_checkpoint(tmp_path, capsys, uninterrupted):
    variables, _ = fit(MODULE, SPLIT, RECIPE, directory=tmp_path, resume=True)
    assert "no checkpoint, starting at the beginning" in capsys.readouterr().err
    jax.tree.map(np.testing.assert_array_equal, variables, uninterrupted[0])


def test_a_finished_run_is_returned(run, uninterrupted, monkeypatch):
    monkeypatch.setattr(descent, "step", lambda *_, **__: pytest.fail("stepped"))
    variables, history = train(run, resume=True)
    jax.tree.map(np.testing.assert_array_equal, variables, uninterrupted[0])
    assert [row["step"] for row in history] == [5, 10, 15]


def test_trains_further_from_given_variables(tmp_path, uninterrupted):
    given = jax.tree.map(np.asarray, uninterrupted[0])
    still = dataclasses.replace(RECIPE, learning_rate=1e-30, seed=5)
    variables, history = train(tmp_path, still, variables=given)
    jax.tree.map(np.testing.assert_array_equal, variables["params"], given["params"])
    assert history[0]["loss"] == pytest.approx(uninterrupted[1][-1]["loss"], rel=0.3)
    half = jax.tree.map(np.float16, given)
    chex.assert_trees_all_equal_dtypes(train(recipe=still, variables=half)[0], given)
    with pytest.raises(ValueError, match="another run, with other variables at its st"):
        train(tmp_path, still, variables=half, resume=True)
    with pytest.raises(
        ValueError, match=r"variables: params/conv0/kernel: expected \("
    ):
        train(variables={"batch_stats": given["batch_stats"]})


def test_restore_reads_the_network_back(run, uninterrupted):
    # A newer checkpoint is still being written.
    (run / ".18.safetensors.elsewhere-1.0.part").write_bytes(b"half")
    variables = restore(MODULE, run)
    jax.tree.map(np.testing.assert_array_equal, variables, uninterrupted[0])


def test_compiles_once(tmp_path):
    recipe = dataclasses.replace(RECIPE, seed=11)
    before = descent.step._cache_size()
    train(tmp_path, recipe, checkpoint_every=4)
    (tmp_path / "15.safetensors").unlink()
    train(tmp_path, recipe, checkpoint_every=2, resume=True)
    assert descent.step._cache_size() == before + 1


# Numbers that are not.


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    recipe = dataclasses.replace(RECIPE, learning_rate=1e30, warmup_epochs=0)
    with pytest.raises(
        FloatingPointError, match="step 1, .* the loss is nan"
    ) as caught:
        train(tmp_path, recipe, checkpoint_every=1)
    assert "lower Recipe.learning_rate" in str(caught.value)
    kept = tmp_path / "1.safetensors"
    assert f"the last good checkpoint is {kept}" in str(caught.value)
    assert files_of(tmp_path) == ["1.safetensors"]


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    recipe = dataclasses.replace(RECIPE, learning_rate=1e30, weight_decay=1e10)
    with pytest.raises(FloatingPointError, match="step 0, .* a weight is not finite"):
        train(tmp_path, recipe, checkpoint_every=1)
    assert not list(tmp_path.iterdir())


# Messages.


def test_nothing_is_overwritten(run):
    with pytest.raises(ValueError, match="run: holds a run already; pass resume=True"):
        train(run)


def test_resuming_something_else(run):
    recipe = dataclasses.replace(RECIPE, learning_rate=0.2, nesterov=True)
    with pytest.raises(
        ValueError,
        match="run: holds another run, with Recipe.learning_rate 0.1, not 0.2; "
        "Recipe.nesterov False, not True; pass what it was started with",
    ):
        train(run, recipe, resume=True)
    with pytest.raises(ValueError, match="run: holds another run, with split.sha256"):
        train(run, split=blobs(seed=5), resume=True)
    wider = zoo.VGG((5, "M"), 3, bias=False)
    for attempt in (
        lambda: train(run, module=wider, resume=True),
        lambda: restore(wider, run),
    ):
        with pytest.raises(
            ValueError,
            match=r"kernel float32\[3,3,1,4\], not .*l float32\[3,3,1,5",
        ):
            attempt()
    deeper = zoo.VGG((4, "M"), 3, bias=False, hidden=(8,))
    with pytest.raises(ValueError, match=r"dense0/bias .*\[3\], not .*\[8\]"):
        restore(deeper, run)
    # The same parameters, but another function of them.
    with pytest.raises(ValueError, match=r"run, with plan = \(4, 'M'\), not plan"):
        restore(zoo.VGG(("M", 4), 3, bias=False), run)
    with pytest.raises(ValueError, match="optimiser the recipe's, not given to fit"):
        train(run, optimiser=optax.sgd(0.1), resume=True)


def truncate(content):
    return content[: len(content) // 2]


def flip_a_bit(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]


@pytest.mark.parametrize("damage", [truncate, flip_a_bit])
def test_a_damaged_checkpoint_is_refused(run, uninterrupted, damage):
    path = run / "15.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    for attempt in (lambda: train(run, resume=True), lambda: restore(MODULE, run)):
        with pytest.raises(ValueError, match="15.safetensors: damaged") as caught:
            attempt()
        assert "delete this file" in str(caught.value)
        assert "\n" not in str(caught.value)
    path.unlink()  # as told
    variables, _ = train(run, resume=True)
    jax.tree.map(np.testing.assert_array_equal, variables, uninterrupted[0])


def test_what_does_not_fit_is_refused_at_the_door(tmp_path):
    def split(**changes):
        return dataclasses.replace(SPLIT, **changes)

    cases = [
        (
            dict(split=SPLIT[:0]),
            "split: expected as many images as labels, and at leas",
        ),
        (dict(split=split(labels=SPLIT.labels + 1)), r"0 \.\. 2, .* found 1 \.\. 3"),
        (
            dict(validation=split(labels=SPLIT.labels - 1)),
            "validation: expected labels",
        ),
        (dict(split=SPLIT[:15]), "Recipe.batch_size: expected at most 15, .* found 16"),
        (
            dict(split=split(images=SPLIT.images[:, :1, :1])),
            "too small for this netw",
        ),
        (dict(checkpoint_every=0), "checkpoint_every: expected a whole number"),
        (dict(resume=True), "resume: expected the directory of the run, found None"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            train(**options)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file/run: cannot be written"):
        train(tmp_path / "file" / "run")
    for empty in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match="expected a run, found no"):
            restore(MODULE, empty)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("epochs", 1.5),
        ("epochs", True),
        ("epochs", 2**70),
        ("batch_size", 0),
        ("learning_rate", 0),
        ("learning_rate", math.nan),
        ("learning_rate", "0.1"),
        ("momentum", 1),
        ("nesterov", 1),
        ("weight_decay", -1e-4),
        ("weight_decay", math.inf),
        ("warmup_epochs", 300),
        ("label_smoothing", 1.0),
        ("augment", True),
        ("augment", "cutout"),
        ("cutout", -1),
        ("cutout", 8.0),
        ("cutout_until", 1.1),
        ("alternate_flips", 1),
        ("precision", "float16"),
        ("ema", 1),
        ("ema", True),
        ("seed", -1),
    ],
)
def test_recipe_names_what_it_refuses(field, value):
    with pytest.raises(
        (TypeError, ValueError), match=rf"Recipe\.{field}: expected .*, found"
    ):
        Recipe(**{field: value})


def test_nesterov_needs_momentum():
    with pytest.raises(ValueError, match="Recipe.nesterov: expected False without"):
        Recipe(nesterov=True, momentum=0)


def test_flips_alternate_where_there_are_any():
    with pytest.raises(ValueError, match="Recipe.alternate_flips: expected False with"):
        Recipe(augment="none", alternate_flips=True)


def test_reports_a_line_per_epoch_where_there_is_no_terminal(capsys):
    fit(MODULE, SPLIT, RECIPE)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == [f"epoch {i}/3" for i in (1, 2, 3)]
    assert all("images/s" in line for line in lines)
    train()
    assert capsys.readouterr() == ("", "")


# Any module, any inputs.


def vectors(count=64):
    """Points of two classes, apart along the diagonal."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, count)
    return rng.normal(size=(count, 5)) + 2 * labels[:, None], labels


class Everything(nn.Module):
    """A module with lists, functions, statistics, and numbers drawn in training."""

    features: Sequence[int] = dataclasses.field(default_factory=lambda: [8, 6])
    activation: Callable = nn.tanh

    @nn.compact
    def __call__(self, x, *, training: bool = False):
        for features in self.features:
            x = nn.Dense(features)(x)
            x = nn.BatchNorm(not training, momentum=0.8)(x)
            x = nn.Dropout(0.2, deterministic=not training)(self.activation(x))
        return nn.Dense(2)(x)


QUICK = Recipe(epochs=8, batch_size=16, learning_rate=0.05, augment="none", ema=0.5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_trains_any_module_on_arrays(dtype, tmp_path):
    inputs, labels = vectors()
    split = inputs.astype(dtype), labels
    options = dict(recipe=QUICK, module=Everything(), split=split)
    variables, history = train(
        tmp_path, validation=split, checkpoint_every=9, **options
    )
    assert history[-1]["validation_accuracy"] > 0.9
    assert accuracy(Everything(), variables, split) > 0.9
    assert {leaf.dtype.name for leaf in jax.tree.leaves(variables)} == {"float32"}
    restored = restore(Everything(), tmp_path)
    jax.tree.map(np.testing.assert_array_equal, restored, variables)
    # The last steps again: what was drawn in them is drawn again.
    (tmp_path / "32.safetensors").unlink()
    again = train(tmp_path, resume=True, validation=split, **options)
    assert_same_run(again, (variables, history))


class Plain(nn.Module):
    """Nothing that differs in training; logits for each place of a sequence."""

    @nn.compact
    def __call__(self, tokens):
        return nn.Dense(4)(jax.nn.relu(nn.Dense(16)(nn.Embed(9, 8)(tokens))))


def test_labels_of_every_place_and_an_optimiser_of_ones_own(tmp_path):
    tokens = np.random.default_rng(0).integers(0, 9, (64, 7))
    split = tokens, tokens % 4
    recipe = dataclasses.replace(QUICK, epochs=20, label_smoothing=0)
    options = dict(recipe=recipe, module=Plain(), split=split)
    options["optimiser"] = optax.adamw(0.03)
    variables, history = train(tmp_path, checkpoint_every=70, **options)
    assert history[-1]["accuracy"] == 1 == accuracy(Plain(), variables, split)
    assert "learning_rate" not in history[-1]
    (tmp_path / "80.safetensors").unlink()
    assert_same_run(train(tmp_path, resume=True, **options), (variables, history))
    options["optimiser"] = optax.sgd(1e30)
    with pytest.raises(FloatingPointError, match="step 1: .* with an optimiser that"):
        train(**options)


@pytest.mark.usefixtures("optimised")
def test_a_split_of_floats_is_taken_as_it_is():
    pixels = dataclasses.replace(RECIPE, augment="none")
    floats = dataclasses.replace(SPLIT, images=SPLIT.inputs, mean=(), std=())
    found, history = train(recipe=pixels, split=floats)
    arrays = SPLIT.inputs, SPLIT.labels
    assert_same_run((found, history), train(recipe=pixels, split=arrays))
    expected, _ = train(recipe=pixels)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        found,
        expected,
    )


@pytest.mark.parametrize("flag", task.FLAGS)
def test_a_module_is_told_whether_it_trains(flag):
    told = []

    def call(self, x, **flags):
        told.append(flags)
        return nn.Dense(2)(x)

    names = [("self", 1), ("x", 1), (flag, 3)]  # 3: by keyword only
    call.__signature__ = inspect.Signature(
        [inspect.Parameter(name, inspect._ParameterKind(kind)) for name, kind in names]
    )
    module = type("Told", (nn.Module,), {"__call__": nn.compact(call)})()
    train(module=module, split=vectors(), recipe=dataclasses.replace(QUICK, epochs=1))
    training = flag in ("train", "training", "is_training")
    assert told[0] == {flag: not training} and told[-1] == {flag: training}


class Untold(nn.Module):
    rate: float = 0.0
    norm: bool = False
    two: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.Dropout(self.rate, deterministic=not self.rate)(x)
        x = nn.BatchNorm(use_running_average=False)(x) if self.norm else x
        logits = nn.Dense(2)(x)
        return (logits, x) if self.two else logits


def test_modules_that_cannot_be_trained_are_refused():
    split = vectors()
    for module, message in (
        (Untold(norm=True), "Untold.__call__ to take one of .*keeps batch_stats"),
        (Untold(rate=0.5), "Untold draws random numbers when it does not train"),
        (Untold(two=True), r"logits for every label, \[64, classes\], found PyTreeDef"),
    ):
        with pytest.raises(ValueError, match=message):
            train(module=module, split=split, recipe=QUICK)
    cases = [
        ((split[0], split[1] + 0.5), "labels that are whole numbers, found float64"),
        ((split[0], split[1][:, None]), r"\[64, 1, classes\], found \[N, 2\]"),
        ((split[0], split[1][:-1]), "64 images and 63 labels"),
    ]
    for split_, message in cases:
        with pytest.raises(ValueError, match=message):
            train(module=Untold(), split=split_, recipe=QUICK)
    with pytest.raises(ValueError, match="Recipe.augment: expected 'none', "):
        train(module=Untold(), split=split, recipe=Recipe(epochs=1, batch_size=8))
    with pytest.raises(TypeError, match=r"expected a Split, or .*found \[1, 2, 3\]"):
        train(module=Untold(), split=[1, 2, 3], recipe=QUICK)
    with pytest.raises(TypeError, match="expected a Flax Linen module, found function"):
        fit(lambda x: x, split)


def test_convolutions_take_their_fast_forms():
    module = zoo.VGG((32, 32), 3)
    recipe = dataclasses.replace(RECIPE, epochs=1)
    data_ = task.read("split", SPLIT)
    static = dict(module=task.Static(module), recipe=recipe, optimiser=None)
    state = descent.initial(**static, example=task.example_of(data_), size=90)
    mesh = jax.sharding.Mesh(np.array(jax.devices("cpu")[:1]), ("data",))
    lowered = descent.step.lower(
        state,
        np.arange(16, dtype=np.int32),
        SPLIT.images,
        SPLIT.labels,
        mean=SPLIT.mean,
        std=SPLIT.std,
        mesh=mesh,
        **static,
    )
    # Those of the first alone: one forwards, one for the gradient of its kernel.
    assert lowered.as_text().count("stablehlo.convolution(") == 2
