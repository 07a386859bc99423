"""The C program of a network fires the spikes of the integer simulator, every one.

Each program is compiled with all warnings as errors, and run under the sanitizers of
addresses and of undefined behaviour.
"""

import os
import subprocess

import jax
import jax.numpy as jnp
import nets
import numpy as np
import pytest
from nets import case

from jaxburst.convert import convert
from jaxburst.energy import reach
from jaxburst.io import c
from jaxburst.io.integers import _Run, to_integers
from jaxburst.methods.corrections import correct
from jaxburst.neurons import Burst, Refining, SigmaDelta
from jaxburst.run import Model
from jaxburst.tracing import trace

REFINING, SIGNED = Refining(15, 2, 0.6), Burst(5, signed=True)
FLAGS = "-std=c11 -O2 -Wall -Wextra -Werror -fsanitize=address,undefined"
FLAGS += " -fno-sanitize-recover=all"

# Reads images, writes spikes and outputs after every step, and the counters.
MAIN = r"""
#include <stdio.h>
#include <stdlib.h>
#include "net.h"

static void show(void) {
  for (int i = 0; i < net_POPULATIONS; i++) {
    const net_population *p = &net_populations[i];
    for (uint32_t k = 0; k < p->size; k++) {
      int32_t n = p->bytes == 1   ? ((const int8_t *)p->spikes)[k]
                  : p->bytes == 2 ? ((const int16_t *)p->spikes)[k]
                                  : ((const int32_t *)p->spikes)[k];
      fwrite(&n, 4, 1, stdout);
    }
  }
  OUTPUTS
}

int main(int argc, char **argv) {
  (void)argc;
  DECLARE
  const int steps = atoi(argv[1]);
  if (net_infer(ARGUMENTS, 0) != -1) return 1;
  while (READ) {
    if (!steps) {
      if (net_step(ARGUMENTS)) return 2;
      show();
    }
    for (int t = 1; t <= steps; t++) {
      if (net_infer(ARGUMENTS, t)) return 3;
      show();
    }
  }
  fwrite(net_counted, sizeof net_counted, 1, stdout);
  return 0;
}
"""


def build(integers, folder, flags: str):
    c.to_c(integers, folder / "net.c")
    inputs = range(len(integers.of("input")))
    outputs = range(len(integers.of("output")))
    text = MAIN.replace(
        "OUTPUTS",
        "".join(f"fwrite(net_output{k}, 4, net_OUTPUT{k}, stdout);" for k in outputs),
    )
    text = text.replace(
        "DECLARE", "".join(f"static int16_t i{k}[net_INPUT{k}];" for k in inputs)
    )
    text = text.replace(
        "READ", " && ".join(f"fread(i{k}, sizeof i{k}, 1, stdin)" for k in inputs)
    )
    text = text.replace("ARGUMENTS", ", ".join(f"i{k}" for k in inputs))
    (folder / "main.c").write_text(text)
    command = ["cc", *flags.split(), "net.c", "main.c", "-o", "net"]
    subprocess.run(command, cwd=folder, check=True)


def run(integers, folder, images, steps: int):
    """`({part: [rows, places]}, counters [synapses, 4])`."""
    rows = np.concatenate(images, 1).astype(np.int16)
    # Memory that leaks is not of the program, which has none but its own.
    found = subprocess.run(
        [str(folder / "net"), str(steps)], input=rows.tobytes(), capture_output=True,
        env=os.environ | {"ASAN_OPTIONS": "detect_leaks=0"},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr.decode()
    synapses = len(integers.of("synapse"))
    content, counters = found.stdout[: -32 * synapses], found.stdout[-32 * synapses :]
    parts = [p for p in integers.of("neuron", "pool") if p.dynamic]
    parts += integers.of("output")
    sizes = np.cumsum([part.size for part in parts])
    values = np.frombuffer(content, np.int32).reshape(-1, sizes[-1])
    split = np.split(values, sizes[:-1], 1)
    counters = np.frombuffer(counters, np.uint64).reshape(synapses, 4)
    return {p.name: v for p, v in zip(parts, split, strict=True)}, counters


def states(run_, steps, frames=None):
    """What the integer simulator's parts send, `{part: [steps, B, places]}`."""
    found = [run_.step(frame) for frame in frames or [None] * steps]
    return {name: np.stack([step[name] for step in found]) for name in found[0]}


WIDE = FLAGS + " -march=native"
"""Sums by vectors, if the processor has some."""

NETS = {
    "vgg": (REFINING, FLAGS), "windows": (SIGNED, FLAGS), "resnet": (REFINING, FLAGS),
    "inception": (Burst(5), WIDE), "three dimensions": (SIGNED, WIDE),
    "averages": (REFINING, FLAGS), "maxima": (REFINING, FLAGS),
    "capped": (REFINING, WIDE), "spellings": (REFINING, FLAGS),
    "preactivation": (REFINING, FLAGS), "shared": (SigmaDelta(), FLAGS),
    "several": (Burst(1), FLAGS), "channels first": (Burst(2, reset="zero"), FLAGS),
}  # fmt: skip


CORRECTED = "vgg", "shared"


@pytest.fixture
def wide(monkeypatch):
    """Channels of small networks come in fours: vectors of so many, too."""
    monkeypatch.setattr(c, "FEWEST", 2)


@pytest.mark.parametrize("name", NETS)
def test_fires_the_same_spikes(name, tmp_path, wide):
    (neuron, flags), own = NETS[name], case(name)
    steps = {REFINING: 4, SigmaDelta(): 1}.get(neuron, 6)
    model, spiking = own.model(neuron), own.spiking(neuron, "channel")
    if name in CORRECTED:
        spiking = correct(model, spiking, own.inputs, steps)
    integers = to_integers(model, spiking, own.inputs, steps)
    if name in CORRECTED:
        rows = [part.arrays["rows"] for part in integers.of("neuron")]
        assert all(row.any() and len(row) == steps for row in rows)
    images = integers.quantised(own.inputs)
    build(integers, tmp_path, flags)

    expected = states(_Run(integers, images, stream=False), steps)
    found, counters = run(integers, tmp_path, images, steps)
    assert any(np.abs(expected[n]).sum() for n in model.network.neurons)
    for part, values in expected.items():
        got = found[part].reshape(nets.IMAGES, steps, -1).swapaxes(0, 1)
        np.testing.assert_array_equal(got, values, err_msg=part)
    merged = ("Conv_2",) if name == "averages" else ()
    check_counters(integers, model.network, expected, images, counters, steps, merged)

    # The images again, as the frames of a stream, the last one twice.
    frames = [[leaf[i : i + 1] for leaf in images] for i in (0, 1, 2, 2)]
    rest = _Run(integers, frames[0], stream=True)
    first = rest.step()
    expected = states(rest, 3, frames[1:])
    rows = [leaf[[0, 1, 2, 2]] for leaf in images]
    found, _ = run(integers, tmp_path, rows, 0)
    for part, values in expected.items():
        np.testing.assert_array_equal(found[part][0], first[part][0], err_msg=part)
        np.testing.assert_array_equal(found[part][1:], values[:, 0], err_msg=part)


def test_vectors_add_as_single_numbers_do(tmp_path):
    """Rows of kernels as wide as those of processors' registers, and wider."""
    rng = np.random.default_rng(0)
    shapes = (6, 32), (32, 128), (128, 160), (160, 3)
    weights = [rng.normal(size=s).astype(np.float32) / s[0] ** 0.5 for s in shapes]

    def function(weights, x):
        for w in weights[:-1]:
            x = jax.nn.relu(x @ w)
        return x @ weights[-1]

    x = rng.normal(size=(nets.IMAGES, 6)).astype(np.float32)
    check_refining(function, weights, x, tmp_path, WIDE)


def test_rounded_sums_are_rounded_again_where_nothing_arrives(tmp_path):
    """Inputs and spikes that meet in one product are rounded, finer at every step."""
    rng = np.random.default_rng(0)
    shapes = (3, 4), (7, 4), (11, 4), (4, 3)
    weights = [rng.normal(size=s).astype(np.float32) for s in shapes]

    def function(weights, x):
        for w in weights[:2]:
            x = jnp.concatenate([x, jax.nn.relu(x @ w)], -1)
        return jax.nn.relu(x @ weights[2]).mean(1) @ weights[3]

    x = rng.normal(size=(20, 64, 3)).astype(np.float32)
    integers = check_refining(function, weights, x, tmp_path, FLAGS)
    assert integers.of("charge")


def check_refining(function, weights, x, folder, flags: str):
    """The integer simulator's spikes, for three steps; every part sends some."""
    network = trace(function, weights, x[:1])
    spiking = convert(network, weights, dict.fromkeys(network.neurons, 0.4))
    integers = to_integers(Model(network, REFINING), spiking, x, 3)
    images = integers.quantised(x)
    expected = states(_Run(integers, images, stream=False), 3)
    build(integers, folder, flags)
    found, _ = run(integers, folder, images, 3)
    for part, values in expected.items():
        assert values.any()
        got = found[part].reshape(len(x), 3, -1).swapaxes(0, 1)
        np.testing.assert_array_equal(got, values, err_msg=part)
    return integers


def check_counters(integers, network, sent, images, counters, steps, merged):
    """Operations are those of `energy`, place by place, of every run from 1 step on."""
    met = reach(network)
    own = {part.name: part for part in integers.parts}
    # `infer(t)` was called for every t: step k was done in steps - k + 1 of them.
    times = np.arange(steps, 0, -1)
    nothing = any((leaf == 0).any() for leaf in images)
    for i, synapse in enumerate(network.synapses):
        operations, macs, *_ = counters[i].astype(float)
        expected = 0.0
        for (sender, target), places in met.events.items():
            if target == synapse:
                events = own[sender].shown(np.abs(sent[sender]))
                flat = events.reshape(steps, len(images[0]), -1).sum(1)
                axis = network.graph[sender].batch_axis
                places = np.moveaxis(places, axis, 0).reshape(-1)
                expected += (times * (flat * places).sum(1)).sum()
        if synapse in merged:  # several ways to one place
            assert 0 < operations < expected, synapse
        else:
            assert operations == expected, synapse
        constant = np.sum(met.once.get(synapse, 0))
        if constant and synapse not in met.charges and not nothing:
            if not expected:  # what is constant alone
                assert macs == constant * steps * len(images[0]), synapse
