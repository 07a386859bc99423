"""Devices and processes give the thresholds, curves and events of one."""

import functools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest
from jax import lax

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
    """A convolution, a pool, a residual block and a product."""

    def conv(x, kernel):
        layout = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", None, None, layout)

    x = nn.max_pool(jax.nn.relu(conv(x, weights[0])), (2, 2), (2, 2))
    x = jax.nn.relu(x + conv(x, weights[1]))
    return x.reshape(x.shape[0], -1) @ weights[2]


def infer_divided(jb, model, spiking, inputs):
    """Outputs of five steps, of which a layer takes several before the next layer."""

    def infer(spiking, inputs):
        return jb.infer(model, spiking, inputs, 5, schedule="layer")

    shard, replicate = jb.devices.share(len(inputs))
    logits = jax.jit(jb.devices.data_parallel(infer, len(inputs)))(
        replicate(spiking), shard(inputs)
    )
    assert len(logits.sharding.device_set) == jax.local_device_count()
    return logits


@functools.cache
def run() -> dict:
    import jaxburst as jb
    from jaxburst.batching import own_rows

    rng = np.random.default_rng(0)
    shapes = (3, 3, 2, 4), (3, 3, 4, 4), (36, 4)
    weights = [rng.normal(0, 0.4, shape).astype(np.float32) for shape in shapes]
    inputs = rng.normal(size=(COUNT, 6, 6, 2)).astype(np.float32)
    labels = np.asarray(net(weights, inputs)).argmax(-1)
    network = jb.trace(net, weights, inputs[:1])
    found = {}
    mse = jb.methods.calibrate_mse
    for name, calibrate in (("percentile", jb.calibrate), ("mse", mse)):
        thresholds = calibrate(network, weights, inputs, jb.Burst(3), batch_size=8)
        found[name] = {key: np.asarray(x).tolist() for key, x in thresholds.items()}
    model = jb.Model(network, jb.Burst(3))
    spiking = jb.convert(network, weights, thresholds)
    spiking = jb.methods.correct(model, spiking, inputs[:12], 4)
    found["corrected"] = {
        name: np.asarray(spiking[name].bias).tolist() for name in network.neurons
    }
    counted = Counted(inputs)
    curves = jb.evaluate(
        model, spiking, (counted, labels), 6, batch_size=8, progress=False
    )
    found["accuracy"] = curves.accuracy.tolist()
    found["events"] = {key: x.tolist() for key, x in curves.events.items()}
    found["trained"] = jb.accuracy(network, weights, (inputs, labels), batch_size=8)
    found["layers"] = infer_divided(jb, model, spiking, inputs[:12]).tolist()
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


def test_several_devices_measure_as_one():
    process = start(3)
    expected = dict(run())
    found = finish(process)
    assert found.pop("devices") == 3
    expected.pop("devices")
    assert_same(found, expected)


@pytest.mark.slow
def test_two_processes_measure_as_one():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{server.getsockname()[1]}"
    processes = [start(2, address, i) for i in range(2)]
    alone = dict(run())
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
