"""From the activations of a trained network to the thresholds of a spiking one."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpy as np

from jaxburst.ann import apply_in_batches
from jaxburst.layers import Layers, validate
from jaxburst.neuron import Burst

Thresholds = dict[str, jax.Array]


def calibrate(
    layers: Layers,
    variables: dict,
    images: np.ndarray,
    neuron: Burst,
    *,
    percentile: float = 99.9,
    per: str = "layer",
    batch_size: int = 100,
) -> Thresholds:
    r"""Chooses the threshold of every Relu from the activations it was seen to reach.

    .. math:: \theta = P / \gamma

    where `P` is the percentile of all outputs of the Relu, zeros included. A neuron
    then covers `[0, P]` with `γ` spikes per step, and an integrate-and-fire neuron,
    `γ = 1`, has the threshold `P`. The percentile is exact and does not depend on how
    the images are cut into batches.

    Args:
      layers: the network.
      variables: its trained `{'params', 'batch_stats'}`.
      images: calibration images `[N, H, W, C]`, normalised as for training.
      neuron: the neuron to calibrate for; only `gamma` is read.
      percentile: between 0 and 100; 100 is the maximum.
      per: one threshold per `'layer'` or per `'channel'`.
      batch_size: number of images at a time.

    Returns:
      `{path: θ}` for every Relu; θ is a scalar, or `[C]` per channel. A channel that
      stays silent takes the largest threshold of its layer, with a warning.

    Raises:
      ValueError: for an unusable argument, activations that are not finite, and a
        Relu whose threshold would be 0; the message names the layer.

    References:
      Percentile: Rueckauer et al., 2017. Division by γ: the normalisation of Li and
      Zeng, IJCAI 2022, in activation units.
    """
    check_percentile(percentile)
    if per not in ("layer", "channel"):
        raise ValueError(f"calibrate: per must be 'layer' or 'channel', found {per!r}")
    if neuron.gamma is None:
        raise ValueError(
            "calibrate: a neuron without limit has no range to divide by gamma; "
            "calibrate for the gamma whose resolution it should have"
        )
    if len(images) == 0:
        raise ValueError("calibrate: the calibration set is empty; pass some images")
    validate(layers, images.shape[1:])
    peaks: dict[str, _Peak] = {}
    for _, record in apply_in_batches(layers, variables, images, batch_size):
        for path, activations in record.items():
            if not np.isfinite(activations).all():
                raise ValueError(
                    f"{path}: an activation is not finite; check the weights and the "
                    "normalisation of the images"
                )
            columns = activations.shape[-1] if per == "channel" else 1
            values = activations.reshape(-1, columns).T
            if path not in peaks:
                total = values.shape[1] // len(activations) * len(images)
                peaks[path] = _Peak(percentile / 100 * (total - 1), total)
            peaks[path].add(values)
    return {
        path: _threshold(path, peak.value(), percentile, neuron.gamma, per)
        for path, peak in peaks.items()
    }


def check_percentile(percentile: float) -> None:
    """Refuses what is not between 0 and 100.

    Raises:
      ValueError: saying what was found.
    """
    if not 0 <= percentile <= 100:
        raise ValueError(
            f"percentile must lie between 0 and 100, found {percentile}; "
            "99.9 leaves out the largest thousandth of the activations"
        )


class _Peak:
    """The exact percentile of a stream: keeps no more than the values above it."""

    def __init__(self, position: float, total: int):
        """`position` counts, from 0, among the `total` values in rising order."""
        self.share = position % 1
        self.count = total - int(position)
        self.largest: np.ndarray | None = None

    def add(self, values: np.ndarray) -> None:
        """Takes in `[columns, n]` more values."""
        if self.largest is not None:
            values = np.concatenate([self.largest, values], axis=1)
        surplus = values.shape[1] - self.count
        if surplus > 0:
            values = np.partition(values, surplus, axis=1)[:, surplus:]
        self.largest = values

    def value(self) -> np.ndarray:
        """The percentile of each column, interpolated linearly, `[columns]`."""
        least = np.sort(self.largest, axis=1)[:, :2]
        return least[:, 0] + self.share * (least[:, -1] - least[:, 0])


def _threshold(
    path: str, peak: np.ndarray, percentile: float, gamma: int, per: str
) -> jax.Array:
    silent = peak <= 0
    if silent.all():
        raise ValueError(
            f"{path}: its threshold would be 0, since the {percentile:g}th percentile "
            "of its activations is 0; calibrate with a higher percentile or more "
            "images, or remove a Relu that never fires"
        )
    if silent.any():
        warnings.warn(
            f"{path}: {silent.sum()} of {silent.size} channels would have the "
            "threshold 0 because they did not fire; they take the largest of the layer",
            stacklevel=3,
        )
    theta = np.where(silent, peak.max(), peak) / gamma
    theta = theta.astype(peak.dtype)
    return jnp.asarray(theta if per == "channel" else theta[0])
