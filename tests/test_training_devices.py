"""Several devices and processes train as one device does."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import jaxburst
from jaxburst import zoo
from jaxburst.data import Split
from jaxburst.training import Recipe, accuracy, fit, restore

OPTIMISED = True  # as the processes that these tests start

MODULE = zoo.VGG((4, "M"), 3, bias=False)
# A small learning rate, lest rounding errors grow.
RECIPE = Recipe(epochs=2, batch_size=8, learning_rate=0.01, ema=0.5)
PLAIN = dataclasses.replace(RECIPE, augment="crop_flip")


def split_by_brightness() -> Split:
    """Images that get brighter: each device would see other statistics of its own."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 40, (24, 8, 8, 1), dtype=np.uint8)
    images += 9 * np.arange(24, dtype=np.uint8)[:, None, None, None]
    return Split(images, np.arange(24, dtype=np.int32) % 3, (0.5,), (0.3,))


def train(recipe=RECIPE, **options):
    split = split_by_brightness()
    variables, history = fit(MODULE, split, recipe, **options)
    rows = [[row["loss"], row["accuracy"]] for row in history]
    share = accuracy(MODULE, variables, split[:23], batch_size=7)
    return {"history": rows, "share": share} | as_lists(variables)


def as_lists(variables):
    arrays = flatten_dict(variables, sep="/").items()
    return {name: np.asarray(array).tolist() for name, array in arrays}


def start(devices: int, **task) -> subprocess.Popen:
    """A process with so many simulated devices, that runs the end of this file."""
    environment = os.environ | {
        "PYTHONPATH": str(Path(jaxburst.__file__).parents[1]),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    return subprocess.Popen(
        [sys.executable, __file__, json.dumps(task)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> tuple[list, str]:
    """What it printed last, and its standard error."""
    try:
        out, error = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 0, error
    return json.loads(out.splitlines()[-1]), error


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(
            found[name], expected[name], rtol=1e-4, atol=1e-5, err_msg=name
        )


def test_four_devices_train_as_one():
    process = start(4)
    expected = train(progress=False)
    [found], _ = finish(process)
    assert_same(found, expected)


@pytest.mark.slow
def test_two_processes_train_as_one_and_resume(tmp_path):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{server.getsockname()[1]}"
    task = {"address": address, "directory": str(tmp_path)}
    processes = [start(2, process=i, **task) for i in range(2)]
    expected = train(PLAIN, progress=False)
    (first, messages), (second, silence) = map(finish, processes)
    assert first == second
    trained, refused, resumed = first
    assert_same(trained, expected)
    assert trained.items() >= as_lists(restore(MODULE, tmp_path)).items()
    assert "holds a run already; pass resume=True" in refused
    assert resumed == trained
    assert "epoch 2/2" in messages and "epoch" not in silence


def test_processes_must_divide_the_batch(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "device_count", lambda: 6)
    with pytest.raises(ValueError, match="Recipe.batch_size: expected a multiple of 6"):
        train()


def in_processes(address: str, process: int, directory: str):
    """Trains, tries to again, loses the last checkpoint, and trains that part again."""
    jax.distributed.initialize(address, 2, process)
    options = dict(recipe=PLAIN, directory=directory, checkpoint_every=4)
    trained = train(**options)
    try:
        refused = train(**options)
    except ValueError as error:
        refused = str(error)
    if process == 0:
        Path(directory, "6.safetensors").unlink()
    return trained, refused, train(**options, resume=True)


if __name__ == "__main__":
    task = json.loads(sys.argv[1])
    print(json.dumps(in_processes(**task) if task else [train()]))
