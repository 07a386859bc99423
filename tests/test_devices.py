"""Several devices and several processes train the network that one device trains."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxburst import training
from jaxburst.data import Split
from jaxburst.layers import Conv, Dense, Flatten, MaxPool, Relu
from jaxburst.training import Recipe, fit, restore

LAYERS = (Conv(4, norm=True), Relu(), MaxPool(2), Flatten(), Dense(3))
# Little depends on a rounding error: a small rate, and one that is soon over.
RECIPE = Recipe(epochs=2, batch_size=8, learning_rate=0.01, ema=0.5)


def split_by_brightness() -> Split:
    """Images that get brighter: each device would see other statistics of its own."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 40, (24, 8, 8, 1), dtype=np.uint8)
    images += 9 * np.arange(24, dtype=np.uint8)[:, None, None, None]
    return Split(images, np.arange(24, dtype=np.int32) % 3, (0.5,), (0.3,))


def train(**options):
    return fit(LAYERS, split_by_brightness(), RECIPE, **options)


def report(variables, history):
    rows = [[row["loss"], row["accuracy"]] for row in history]
    arrays = flatten_dict(variables, sep="/").items()
    return {"history": rows} | {name: np.asarray(a).tolist() for name, a in arrays}


def start(devices: int, argument: str) -> subprocess.Popen:
    """A Python process with so many simulated devices, that runs this file."""
    paths = [str(Path(training.__file__).parents[1])]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    return subprocess.Popen(
        [sys.executable, __file__, argument],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen, code: int = 0) -> tuple[dict | None, str]:
    """What it printed last, and its standard error."""
    try:
        out, error = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == code, error
    return json.loads(out.splitlines()[-1]) if code == 0 else None, error


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def two_processes(devices: int = 2, **options) -> list[subprocess.Popen]:
    port = free_port()
    return [
        start(devices, json.dumps({"port": port, "process": i, **options}))
        for i in range(2)
    ]


@pytest.fixture(scope="module")
def expected():
    return report(*train(progress=False))


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(
            found[name], expected[name], rtol=1e-4, atol=1e-5, err_msg=name
        )


def test_four_devices_train_as_one(expected):
    found, _ = finish(start(4, "{}"))
    assert_same(found, expected)


def test_two_processes_train_as_one(expected, tmp_path):
    processes = two_processes(directory=str(tmp_path))
    (first, messages), (second, silence) = map(finish, processes)
    assert first == second
    assert_same(first, expected)
    assert "epoch 2/2" in messages and "epoch" not in silence
    restored = restore(LAYERS, tmp_path)
    assert report(restored, [])["params/dense0/kernel"] == first["params/dense0/kernel"]
    # What one process is refused, all are; and then they go on where they stopped.
    for _, error in (finish(p, 1) for p in two_processes(directory=str(tmp_path))):
        assert "holds a run already; pass resume=True" in error
    (tmp_path / "6" / "sha256.json").unlink()
    processes = two_processes(directory=str(tmp_path), resume=True)
    (again, _), _ = map(finish, processes)
    assert again == first


def test_processes_must_divide_the_batch():
    for _, error in (finish(p, 1) for p in two_processes(devices=3)):
        assert "Recipe.batch_size: expected a multiple of 6" in error


if __name__ == "__main__":
    import jax

    arguments = json.loads(sys.argv[1])
    if "port" in arguments:
        address = f"127.0.0.1:{arguments.pop('port')}"
        jax.distributed.initialize(address, 2, arguments.pop("process"))
    print(json.dumps(report(*train(checkpoint_every=4, **arguments))))
