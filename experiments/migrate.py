"""Brings what version 0.1 trained under the names of today.

    python experiments/migrate.py --network vgg16 --classes 100 \\
        --source runs/cifar100/vgg16/training --out vgg16-cifar100.safetensors

The source is the directory of a training run, of which the latest checkpoint is read,
or the folder of a released network. Needs nothing of the code that wrote it. Goes when
no checkpoint of version 0.1 is left.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import jax
import numpy as np
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--network", required=True, choices=jb.zoo.NETWORKS)
    parser.add_argument("--classes", required=True, type=int)
    parser.add_argument("--source", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args()
    released = (options.source / "network.json").is_file()
    variables, notes = (release_of if released else run_of)(options.source)
    path = jb.released.save(
        options.out, options.network, options.classes, variables, notes
    )
    print(f"wrote {path}, {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
