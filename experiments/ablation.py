"""What each part of the paper's conversion is worth: one factor at a time.

    python experiments/ablation.py --dataset cifar10 --arch resnet20 \\
        --torch-weights resnet20.safetensors --mean .485 .456 .406 --std .229 .224 .225

From the paper's setting (bursts of up to 5, lateral pooling, the 99.9th percentile
over 5 for each layer, reset by subtraction, v_0 = 0) every row changes one thing.
Bursts with a range divided by gamma are paced like integrate-and-fire with the whole
range, gamma times as many steps: that row is there, too. On 1,000 training images that
calibration does not see. The released vgg9 on CIFAR-10 takes half an hour of one CPU
core, a ResNet-20 as long, a ResNet-56 an hour and a half; `--limit` and `--steps`
shorten it, and the same command continues what was interrupted.
"""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import common
import factors

import jaxburst as jb


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(common.Study):
    """Changes one factor of the conversion at a time."""

    gamma: int = 5  # largest number of spikes per step in the paper's setting
    gammas: tuple[int, ...] = (1, 2, 3, 5, 10, 15)  # it is compared with
    # that 99.9 is compared with
    percentiles: tuple[float, ...] = (95, 97, 99, 99.5, 99.9, 99.99, 100)
    steps: int = 64  # integrate-and-fire takes gamma times as many
    limit: int = 1000  # training images to measure on


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting(common.Conversion):
    """A conversion, and for how long it is simulated."""

    steps: int
    initial: float = 0.0


def settings(config: Config, network, variables, images, run) -> dict:
    """`{factor: {value: setting}}`; a percentile is chosen without labels."""
    gamma, steps = config.gamma, config.steps
    chosen, _ = run(
        *("percentile", jb.calibration.choose_percentile),
        *(network, variables, images[:400], jb.Burst(gamma)),
        steps=steps,
        candidates=config.percentiles,
        initial=0.0,
    )
    paper = Setting(neuron=jb.Burst(gamma), levels=gamma, steps=steps)
    single = replace(paper, neuron=jb.Burst(1))
    found = {
        "bursts": {
            f"on, γ = {gamma}": paper,
            "off": single,
            "off, whole range": replace(single, levels=1, steps=gamma * steps),
        },
        "max pooling": {"lateral": paper, "gated": replace(paper, pool="gated")},
        "gamma": {f"{gamma}": paper}
        | {
            f"{most}": replace(paper, neuron=jb.Burst(most), levels=most)
            for most in config.gammas
        },
        "percentile": {"99.9": paper}
        | {f"{p:g}": replace(paper, percentile=p) for p in config.percentiles}
        | {f"{chosen:g}, without labels": replace(paper, percentile=chosen)},
        "range": {"divided by γ": paper, "whole": replace(paper, levels=1)},
        "threshold": {"per layer": paper, "per channel": replace(paper, per="channel")},
        "reset": {
            "by subtraction": paper,
            "to zero": replace(paper, neuron=jb.Burst(gamma, reset="zero")),
        },
        "v₀": {"0": paper, "θ / 2": replace(paper, initial=0.5)},
        "SpiCalib": {"off": paper}
        | {
            f"allowance {some}": replace(paper, neuron=jb.Burst(gamma, allowance=some))
            for some in (steps // 8, steps // 2)
        },
    }
    if not network.pools:
        del found["max pooling"]
    return found


if __name__ == "__main__":
    task = Config, settings, "accuracy", "the paper's"
    factors.answer("ablation", *task, __doc__)
