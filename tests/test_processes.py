"""Devices and processes give the thresholds, curves and events of one."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
COUNT = 37  # does not divide evenly, among processes or devices


class Counted:
    """An array that knows which of its rows were read."""

    def __init__(self, array):
        self.array, self.read = array, set()
        self.shape, self.dtype, self.ndim = array.shape, array.dtype, array.ndim

    def __len__(self):
        return len(self.array)

    def __getitem__(self, rows):
        self.read |= set(np.atleast_1d(np.arange(COUNT)[rows]).tolist())
        return self.array[rows]


def net(weights, x):
    for kernel in weights[:-1]:
        x = jax.nn.relu(x @ kernel)
    return x @ weights[-1]


def run() -> dict:
    import jaxburst as jb
    from jaxburst.batching import own_rows

    rng = np.random.default_rng(0)
    sizes = (6, 12, 9, 4)
    pairs = zip(sizes[:-1], sizes[1:], strict=True)
    weights = [rng.normal(size=pair).astype(np.float32) for pair in pairs]
    inputs = rng.normal(size=(COUNT, 6)).astype(np.float32)
    labels = np.asarray(net(weights, inputs)).argmax(-1)
    network = jb.trace(net, weights, inputs[:1])
    found = {}
    for name, calibrate in (("percentile", jb.calibrate), ("mse", jb.calibrate_mse)):
        thresholds = calibrate(network, weights, inputs, jb.Burst(3), batch_size=8)
        found[name] = {key: np.asarray(x).tolist() for key, x in thresholds.items()}
    spiking = jb.convert(network, weights, thresholds)
    counted = Counted(inputs)
    curves = jb.evaluate(
        jb.Model(network, jb.Burst(3)),
        spiking,
        (counted, labels),
        6,
        batch_size=8,
        progress=False,
    )
    found["accuracy"] = curves.accuracy.tolist()
    found["events"] = {key: x.tolist() for key, x in curves.events.items()}
    found["trained"] = jb.accuracy(network, weights, (inputs, labels), batch_size=8)
    refining = jb.presets.refining(network, weights, inputs, batch_size=10)
    logits = jb.compiled(*refining, steps=3)(inputs[:12])
    found["refining"] = np.asarray(logits).tolist()
    # The first row is looked at by every process for its shape.
    others = counted.read - set(own_rows(COUNT).tolist()) - {0}
    found["devices"] = jax.local_device_count()
    return found | {"others": sorted(others), "read": len(counted.read)}


def start(devices: int, *place) -> subprocess.Popen:
    flags = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, __file__, *map(str, place)],
        env=os.environ
        | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> dict:
    try:
        out, error = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 0, error
    return json.loads(out.splitlines()[-1])


def assert_same(found: dict, expected: dict) -> None:
    for part in expected:
        ours, theirs = (jax.tree.leaves(x[part]) for x in (expected, found))
        np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-5, err_msg=part)


@pytest.mark.parametrize("devices", [3, 4])
def test_several_devices_measure_as_one(devices):
    process = start(devices)
    expected = run()
    found = finish(process)
    assert found.pop("devices") == devices
    expected.pop("devices")
    assert_same(found, expected)


def test_two_processes_measure_as_one():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{server.getsockname()[1]}"
    processes = [start(2, address, i) for i in range(2)]
    alone = run()
    alone.pop("devices")
    assert sum(map(sum, alone["events"].values())) > 0, "spikes were fired"
    assert alone.pop("read") == COUNT and alone.pop("others") == []
    for process in processes:
        found = finish(process)
        assert found.pop("others") == []
        assert found.pop("read") < COUNT
        assert_same(found, alone)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
    print(json.dumps(run()))
