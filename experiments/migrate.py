"""Brings what version 0.1 trained under the names of today.

    python experiments/migrate.py --network vgg16 --classes 100 \\
        --source runs/cifar100/vgg16/training --out vgg16-cifar100.safetensors

The source is the directory of a training run, of which the latest checkpoint is read,
or the folder of a released network. Needs nothing of the code that wrote it. Goes when
no checkpoint of version 0.1 is left.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import common
import jax
import numpy as np
import tyro
from flax.traverse_util import unflatten_dict
from safetensors.numpy import load_file

import jaxburst as jb


def run_of(directory: Path) -> tuple[dict, dict]:
    """The variables of a run's latest checkpoint, renamed, and what it wrote down."""
    from orbax.checkpoint import v1 as ocp

    steps = [int(path.parent.name) for path in directory.glob("*/sha256.json")]
    with ocp.training.Checkpointer(directory.resolve()) as store:
        record = store.checkpointables_metadata(max(steps)).custom_metadata
        state = store.load(max(steps))
    variables = state.get("average") or {
        name: state[name] for name in ("params", "batch_stats")
    }
    return jb.zoo.renamed(jax.tree.map(np.asarray, variables)), record


def release_of(folder: Path) -> tuple[dict, dict]:
    """The variables of a released network, renamed, and its notes."""
    arrays = load_file(folder / "weights.safetensors")
    notes = json.loads((folder / "network.json").read_text())["notes"]
    return jb.zoo.renamed(unflatten_dict(arrays, sep="/")), notes


def migrate(
    network: Literal[tuple(jb.zoo.NETWORKS)], classes: int, source: Path, out: Path
) -> None:
    """Writes the network as those that are released."""
    read = release_of if (source / "network.json").is_file() else run_of
    path = jb.released.save(out, network, classes, *read(source))
    print(f"wrote {path}, {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    common.run(lambda: tyro.cli(migrate, description=__doc__))
