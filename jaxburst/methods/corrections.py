"""Corrections: drives shifted so that mean rates match mean activations."""

from __future__ import annotations

from functools import lru_cache

import jax
import jax.numpy as jnp

from jaxburst.batching import at_once, first, length
from jaxburst.checks import corrected_for, door
from jaxburst.circuit import prepare
from jaxburst.convert import Spiking
from jaxburst.devices import mean_over, share
from jaxburst.methods.channels import channel_mean, shape_of
from jaxburst.model import Model
from jaxburst.network import forward
from jaxburst.run import unroll


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
    `each_step`, where the spikes of every single step shall match. What a run does
    beyond these steps is the neuron's own, see `Neuron.correction`.

    Args:
      model, spiking: what is run, and its converted weights.
      inputs: calibration inputs, one batch `[B, ...]`, normalised; no labels.
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
    if each_step or not model.neuron.repeats:
        found = at_once(_each_step(model, steps, batch), spiking, inputs)
        biases = {name: rows[0] for name, rows in found.items()}
        return corrected_for(model.neuron, _with_biases(spiking, biases))
    targets = at_once(_means(model, batch), spiking, inputs)
    rates = _rates(model, steps, batch)
    # Of one shape from the beginning, so that one compilation serves all populations.
    biases = {
        name: jnp.zeros((steps, *mean.shape[1:]), mean.dtype)
        for name, mean in targets.items()
    }
    shard, replicate = share(batch)
    there, images = replicate(spiking), shard(first(inputs, batch))  # once for them all
    for name, target in targets.items():
        rate = at_once(rates, _with_biases(there, biases), images)[name]
        biases[name] = biases[name] + (target - rate)[:1]  # all devices agree
    return corrected_for(model.neuron, _with_biases(spiking, biases))


def _with_biases(spiking: Spiking, biases: dict) -> Spiking:
    return spiking | {
        name: spiking[name]._replace(bias=jnp.asarray(bias))
        for name, bias in biases.items()
    }


def _targets(model: Model, spiking: Spiking, inputs, batch: int) -> dict:
    """Mean activation of each channel, over all devices."""
    _, record = forward(model.network, spiking, inputs)
    return {
        name: mean_over(channel_mean(model.network, name, x), batch)
        for name, x in record.items()
    }


@lru_cache(maxsize=8)
def _means(model: Model, batch: int):
    """Mean activations, one row on each device."""

    def function(spiking, inputs):
        found = _targets(model, spiking, inputs, batch)
        return {name: found[name][None] for name in model.network.neurons}

    return function


@lru_cache(maxsize=8)
def _rates(model: Model, steps: int, batch: int):
    """What all spikes say each channel's mean activation is, one row on each device."""
    network = model.network

    def function(spiking, inputs):
        circuit = prepare(model, spiking)

        def observe(state, info):
            return {
                name: channel_mean(network, name, spikes[0])[None]
                for name, spikes in info.spikes.items()
                if name in network.neurons
            }

        _, seen = unroll(model, circuit, network.leaves(inputs), steps, observe)
        return {
            name: mean_over(spiking[name].theta * mean.mean(0), batch)[None]
            for name, mean in seen.items()
        }

    return function


@lru_cache(maxsize=8)
def _each_step(model: Model, steps: int, batch: int):
    """All corrections in one simulation: populations and steps come in order."""
    network = model.network

    def function(spiking, inputs):
        targets, found = _targets(model, spiking, inputs, batch), {}

        def respond(node, threshold, state, current, t, f):
            own, name = model.neuron.at(node.name), node.name

            def better(_, bias):
                row = threshold._replace(bias=bias)
                after, spikes = own.step(row, state, current, t, f)
                heard = own.heard(row, after, spikes, t)
                mean = mean_over(channel_mean(network, name, heard), batch)
                return bias + targets[name] - mean

            # A shift moves the active neurons only: repeat.
            none = jnp.zeros(shape_of(network, name), current.dtype)
            found[name] = bias = jax.lax.fori_loop(0, 3, better, none)
            row = threshold._replace(bias=bias)
            return own.step(row, state, current, t, f)

        def observe(state, info):  # what `respond` has just found
            return {name: found[name][None] for name in network.neurons}

        circuit, leaves = prepare(model, spiking), network.leaves(inputs)
        _, rows = unroll(model, circuit, leaves, steps, observe, respond=respond)
        return {name: row[None] for name, row in rows.items()}

    return function
