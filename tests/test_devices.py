"""Several devices and processes train, convert and simulate as one device does."""

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
from networks import random_variables

import jaxburst
from jaxburst.data import Split
from jaxburst.layers import Conv, Dense, Flatten, MaxPool, Relu, Residual
from jaxburst.training import Recipe, fit, restore

LAYERS = (Conv(4, norm=True), Relu(), MaxPool(2), Flatten(), Dense(3))
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
    variables, history = fit(LAYERS, split_by_brightness(), recipe, **options)
    rows = [[row["loss"], row["accuracy"]] for row in history]
    return {"history": rows} | as_lists(variables)


def as_lists(variables):
    arrays = flatten_dict(variables, sep="/").items()
    return {name: np.asarray(array).tolist() for name, array in arrays}


def convert_and_evaluate() -> dict:
    """Thresholds, corrections and curves of two networks of bursts, one refining."""
    layers = (
        *(Conv(4, norm=True), Relu(), MaxPool(3, 2, 1)),
        *(Residual((Conv(4, norm=True),)), Relu(), Flatten(), Dense(3)),
    )
    split = split_by_brightness()
    rng = np.random.default_rng(1)
    variables = random_variables(layers, split.images.shape[1:], rng)
    variables = jax.tree.map(np.float32, variables)
    images, neuron = split.inputs, jaxburst.Burst(3)
    thresholds = jaxburst.calibrate(layers, variables, images, neuron, batch_size=7)
    burst = jaxburst.Model(layers, neuron)
    spiking = jaxburst.convert(layers, variables, thresholds)
    spiking = jaxburst.correct(burst, spiking, images[:12], 4)
    refining = jaxburst.presets.refining(layers, variables, images, batch_size=10)
    found = {"ann": jaxburst.accuracy(layers, variables, split, batch_size=5)}
    for name, pair in {"burst": (burst, spiking), "refining": refining}.items():
        # 23 images, 7 at a time: some are padding, some devices get nothing else.
        curves = jaxburst.evaluate(*pair, split[:23], 4, batch_size=7)
        assert curves.images == 23 and sum(map(sum, curves.events.values())) > 0
        found[name] = curves.accuracy.tolist()
        found[f"{name} logits"] = infer_divided(*pair, images[:12]).tolist()
        found |= {f"{name} {path}": list(n) for path, n in curves.events.items()}
        found |= {
            f"{name} {path} {part}": np.asarray(value).tolist()
            for path, layer in pair[1].items()
            for part, value in layer._asdict().items()
        }
    return found


def infer_divided(model, spiking, images):
    """Logits of five steps, of which a layer takes several before the next layer."""

    def infer(spiking, images):
        return jaxburst.infer(model, spiking, images, 5, schedule="layer")

    cut, copy = jaxburst.devices.share(len(images))
    run = jax.jit(jaxburst.devices.divided(infer, len(images)))
    logits = run(copy(spiking), cut(images))
    assert len(logits.sharding.device_set) == jax.local_device_count()
    return logits


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


@pytest.mark.parametrize("devices", [3, 4])
def test_several_devices_convert_and_evaluate_as_one(devices):
    process = start(devices, evaluate=True)
    expected = convert_and_evaluate()
    found, _ = finish(process)
    assert found.pop("devices") == devices
    assert_same(found, expected)


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
    assert trained.items() >= as_lists(restore(LAYERS, tmp_path)).items()
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
        Path(directory, "6", "sha256.json").unlink()
    return trained, refused, train(**options, resume=True)


if __name__ == "__main__":
    task = json.loads(sys.argv[1])
    if "evaluate" in task:
        found = convert_and_evaluate() | {"devices": jax.local_device_count()}
    else:
        found = in_processes(**task) if task else [train()]
    print(json.dumps(found))
