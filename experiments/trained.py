"""What training and conversion of the released networks came to: records, a table.

    python experiments/trained.py

Writes results/training/NAME.json for each released network: recipe, the history of all
epochs, seconds of training, accuracy, and where it was released. Prints the table of
every result that cifar10.py, cifar100.py and fashion_mnist.py left under results/:
accuracy of the ANN and of spikes, energy, time and hardware. Computes nothing anew.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import common
import tyro

import jaxburst as jb

TIMES = (1, 2, 4, 8, 16, 32, 64)


@dataclasses.dataclass(frozen=True)
class Config:
    """Writes down what is known of the released networks; prints the table of results.

    Attributes:
      results: folder of the experiments' results; records go to its folder `training`.
    """

    results: Path = Path("results")


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    folder = common.prepare_folder(config.results / "training")
    for name in jb.released.names():
        notes = jb.released.notes(name)
        seconds = training_seconds(notes["history"], notes["recipe"]["batch_size"])
        record = {"network": name, "training_seconds": seconds, **notes}
        common.write_json(folder / f"{name}.json", record)
    head = ["network", "data", "ANN", "spikes", *(f"T = {t}" for t in TIMES)]
    head += ["images", "seconds", "hardware"]
    rule = ["---", "---", "--:", "---"] + ["--:"] * (len(TIMES) + 2) + ["---"]
    names = ("cifar10", "cifar100", "fashion_mnist")
    paths = sorted(path for n in names for path in config.results.glob(f"*/{n}.json"))
    lines = [cells for path in paths for cells in rows(json.loads(path.read_text()))]
    print(common.markdown(head, lines, rule))


def training_seconds(history: list[dict], batch_size: int) -> float:
    """Time of all steps, without what compiling, evaluating and saving took."""
    steps = [0, *(row["step"] for row in history)]
    return sum(
        (after - before) * batch_size / row["images_per_second"]
        for before, after, row in zip(steps, steps[1:], history, strict=False)
    )


def rows(record: dict) -> Iterator[list[str]]:
    """Cells of the table: one line for each network and kind of spikes."""
    provenance = record["provenance"]
    hardware = ", ".join(sorted(set(provenance["devices"])))
    hardware = f"{len(provenance['devices'])} × {hardware}, {provenance['cpus']} cores"
    for network, result in record["results"].items():
        for name, spikes in result["runs"].items():
            yield [
                *(network, result["dataset"], f"{result['ann_accuracy']:.2%}", name),
                *(cell(spikes, t) for t in TIMES),
                *(f"{result['test_images']:,}", f"{spikes['seconds']:,.0f}", hardware),
            ]


def cell(spikes: dict, t: int) -> str:
    """Accuracy in % after `t` steps, and in brackets energy over the ANN's."""
    if t > len(spikes["accuracy"]):
        return ""
    accuracy, energy = spikes["accuracy"][t - 1], spikes["energy_over_ann"][t - 1]
    return f"{100 * accuracy:.2f} ({energy:.2f})"


if __name__ == "__main__":
    common.run(main)
