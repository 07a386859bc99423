"""Corrections: drives shifted so that mean rates match mean activations."""

from __future__ import annotations

from functools import lru_cache

import jax
import jax.numpy as jnp

from jaxburst.batching import at_once, length
from jaxburst.checks import corrected_for, door
from jaxburst.circuit import answer, over_steps, prepare
from jaxburst.convert import Spiking
from jaxburst.devices import mean_over
from jaxburst.methods.channels import channel_mean
from jaxburst.model import Model
from jaxburst.network import forward
from jaxburst.run import Plan, unroll


@door(inputs="calibration")
def correct(
    model: Model,
    spiking: Spiking,
    inputs,
    steps: int,
    *,
    each_step: bool = False,
) -> Spiking:
    r"""Shifts the drive of each channel so that mean rates match mean activations.

    .. math:: b \leftarrow b + \mathrm{mean}(a) - \mathrm{mean}(\hat a)

    where `a` is the activation and :math:`\hat a` what the spikes say it is, population
    by population, each with those below already corrected. Neurons that repeat get one
    correction, right after `steps` steps, and a part of their current at each of them.
    Others get one for each of the first `steps` steps; and so do those that repeat with
    `each_step`, where the spikes of every single step shall match. Since a shift moves
    active neurons only, that of a step is made three times, each from the one before.
    What a run does beyond these steps is the neuron's own, see `Neuron.correction`.

    Args:
      model, spiking: what is run, and its converted weights.
      inputs: calibration inputs, one batch `[B, ...]`, normalised; no labels. Where a
        mean over steps is corrected, a layer holds all of them at once.
      steps: number of time steps to correct for.
      each_step: whether neurons that repeat get a correction for each step.

    Returns:
      `spiking` with a correction in every `Threshold.bias`: `[steps, C]`, or `[steps,
      C, 1, 1]` where channels come first.

    Example:
      >>> better = correct(model, spiking, inputs, steps=4)
      >>> better["relu0"].bias.shape
      (4, 2)

    References:
      Li et al., "A Free Lunch From ANN", ICML 2021 (light calibration); for each step,
      Wu et al., "FTBC: Forward Temporal Bias Correction", ECCV 2024.
    """
    batch = length(inputs)
    each_step = each_step or not model.neuron.repeats
    found = at_once(_found(model, steps, batch, each_step), spiking, inputs)
    better = {
        name: spiking[name]._replace(bias=jnp.asarray(rows[0]))  # all devices agree
        for name, rows in found.items()
    }
    return corrected_for(model.neuron, spiking | better)


@lru_cache(maxsize=8)
def _found(model: Model, steps: int, batch: int, each_step: bool):
    """All corrections in one simulation, `[steps, C]`, one row of them on each device;
    where they are those of a mean, a population takes all steps before the next."""
    network = model.network

    def function(spiking, inputs):
        _, record = forward(network, spiking, inputs)
        found = {}

        def mean(name, x):
            """Of each channel, over all devices."""
            return mean_over(channel_mean(network, name, x), batch)

        def respond(name, neuron, threshold, state, arriving, f):
            target = mean(name, record[name])

            def at(bias, before, now):
                row = threshold._replace(bias=bias)
                after, spikes = neuron.step(row, before, *now, f)
                return after, spikes, neuron.heard(row, after, spikes, now[1])

            def corrected(before, now):
                def better(_, bias):
                    *_, heard = at(bias, before, now)
                    return bias + target - mean(name, heard)

                # A shift moves the active neurons only: repeat.
                bias = jax.lax.fori_loop(0, 3, better, jnp.zeros_like(target))
                after, spikes, _ = at(bias, before, now)
                return after, (spikes, bias)

            if each_step:
                after, (spikes, rows) = over_steps(corrected, state, arriving)
            else:
                plain = threshold._replace(bias=jnp.zeros_like(target))
                _, spikes, _ = answer(neuron, plain, state, arriving, f)
                short = target - threshold.theta * mean(name, spikes.mean(0))
                rows = jnp.stack([short] * steps)
                better = threshold._replace(bias=rows)
                after, spikes, _ = answer(neuron, better, state, arriving, f)
            found[name] = rows
            return after, spikes, None

        circuit, leaves = prepare(model, spiking), network.leaves(inputs)
        order = Plan(1 if each_step else steps, len(leaves[0]))
        how = {"order": order, "respond": respond}
        _, rows = unroll(model, circuit, leaves, steps, lambda *_: dict(found), **how)
        return {name: row[None] for name, row in rows.items()}

    return function
