"""Every experiment runs on tiny settings and writes what it promises."""

import dataclasses
import importlib.util
import inspect
import json
import re
import runpy
import signal
import sys
from pathlib import Path

import jax
import nets
import numpy as np
import pytest
from safetensors.numpy import save_file

import jaxburst as jb

ROOT = Path(__file__).parent.parent
EXPERIMENTS = ROOT / "experiments"


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs an experiment as from the command line, in an empty folder."""

    def call(name, *arguments):
        path = "benchmarks" if name == "throughput" else "experiments"
        monkeypatch.setattr(sys, "argv", [f"{path}/{name}.py", *arguments])
        runpy.run_path(str(ROOT / path / f"{name}.py"), run_name="__main__")

    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.syspath_prepend(EXPERIMENTS)
    monkeypatch.chdir(tmp_path)
    return call


@pytest.fixture
def run_in_two(run, monkeypatch):
    """Runs an experiment that is stopped in the middle, and goes on."""

    def call(name, *arguments, after=2):
        import common

        whole, counts = common.Kept.__call__, []

        def limited(self, key, *task, **keywords):
            counts[-1] += key not in self.found
            if len(counts) == 1 and counts[0] > after:
                raise KeyboardInterrupt
            return whole(self, key, *task, **keywords)

        monkeypatch.setattr(common.Kept, "__call__", limited)
        counts.append(0)
        with pytest.raises(SystemExit, match="130"):
            run(name, *arguments)
        assert (Path(arguments[-1]) / "unfinished.jsonl").exists()
        assert not list(Path(arguments[-1]).glob("*.png"))
        counts.append(0)
        run(name, *arguments)
        assert not (Path(arguments[-1]) / "unfinished.jsonl").exists()
        assert counts[1] > 0

    return call


@pytest.fixture
def tiny_cifar(monkeypatch):
    """32x32 images of two kinds instead of CIFAR."""

    def load(name, data_dir, *, validation=None):
        rng = np.random.default_rng(0)
        labels = np.arange(300, dtype=np.int32) % 2
        images = rng.integers(0, 100, (300, 32, 32, 3)).astype(np.uint8)
        images[labels == 1] += 120
        split = jb.data.Split(images, labels, (0.5,) * 3, (0.25,) * 3)
        return jb.data.Dataset(name, split[:200], split[200:220], split[220:], 10)

    monkeypatch.setattr(jb.data, "load", load)


def _results(folder, name):
    assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert not list(folder.glob(".*"))
    return json.loads((folder / f"{name}.json").read_text())


@pytest.mark.slow
def test_digits(run, tmp_path, capsys):
    run("digits", "--epochs", "1", "--limit", "30", "--steps", "6", "--out", "here")
    record = _results(tmp_path / "here", "digits")
    assert set(record["results"]) == {"vgg_tiny", "resnet_tiny"}
    assert record["config"]["seed"] == 0
    assert {"jax", "jaxburst"} <= set(record["provenance"]["versions"])
    for result in record["results"].values():
        for spikes in result["runs"].values():
            assert len(spikes["accuracy"]) == len(spikes["energy_over_ann"]) == 6
            assert np.all(np.diff(spikes["joules"]) > 0)
        assert list(result["runs"]) == ["refining", "burst", "IF"]
    printed = capsys.readouterr().out
    assert "wrote here/digits.json" in printed
    assert "wrote here/digits.png" in printed
    inputs, module = jb.data.digits().test[:2].inputs, jb.zoo.vgg_tiny(10)
    network = jb.trace(module.apply, module.init(jax.random.key(0), inputs), inputs)
    model, spiking = jb.load(tmp_path / "here/vgg_tiny/spiking.safetensors", network)
    assert np.isfinite(jb.infer(model, spiking, inputs, 2)).all()


@pytest.mark.slow
def test_cifar_trains_then_loads_then_converts_foreign_weights(
    run, tiny_cifar, tmp_path
):
    small = ("--arch", "vgg_tiny", "--limit", "40", "--steps", "5")
    run("cifar100", *small, "--epochs", "1", "--out", "trained")
    trained = _results(tmp_path / "trained", "cifar100")["results"]["vgg_tiny"]
    with pytest.raises(SystemExit, match="holds a run already.*--resume"):
        run("cifar100", "--epochs", "1", "--out", "trained", "--data-dir", "nowhere")

    run("cifar100", *small, "--checkpoint", "trained/training", "--out", "loaded")
    loaded = _results(tmp_path / "loaded", "cifar100")["results"]["vgg_tiny"]
    assert loaded["runs"]["burst"]["accuracy"] == trained["runs"]["burst"]["accuracy"]

    release = ("--dataset", "cifar100", "--arch", "vgg_tiny", "--out", "released")
    release += ("--checkpoint", "trained/training")
    run("release", *release)
    notes = jb.released.load(tmp_path / "released/vgg_tiny-cifar100.safetensors")[2]
    assert notes["test_accuracy"] == trained["ann_accuracy"]
    assert notes["recipe"]["epochs"] == len(notes["history"]) == 1
    with pytest.raises(SystemExit, match="without --mean and --std"):
        run("release", *release, "--mean", *["0"] * 3, "--std", *["1"] * 3)

    variables = jb.training.restore(jb.zoo.vgg_tiny(10), tmp_path / "trained/training")
    save_file(_as_pytorch(variables), tmp_path / "foreign.safetensors")
    weights = ("--torch-weights", "foreign.safetensors")
    constants = ("--mean", *["0.5"] * 3, "--std", *["0.25"] * 3)
    run("cifar10", *small, *weights, *constants, "--out", "foreign")
    foreign = _results(tmp_path / "foreign", "cifar10")["results"]["vgg_tiny"]
    assert foreign["runs"]["IF"]["joules"] == trained["runs"]["IF"]["joules"]


@pytest.fixture
def untrained(tmp_path):
    """Arguments for `vgg_tiny` with the weights it begins with."""
    images = np.zeros((1, 32, 32, 3), np.float32)
    variables = jb.zoo.vgg_tiny(10).init(jax.random.key(0), images)
    save_file(_as_pytorch(variables), tmp_path / "foreign.safetensors")
    return "--arch", "vgg_tiny", "--torch-weights", "foreign.safetensors"


@pytest.mark.slow
def test_codes(run, tiny_cifar, untrained, tmp_path, capsys):
    (tmp_path / "foreign.safetensors").rename(tmp_path / "vgg_tiny_cifar10.safetensors")
    few = ("--limit", "20", "--draws", "2", "--calibration", "20", "--choice", "20")
    where = ("--network", "vgg_tiny-cifar10", "--weights", ".", "--out", "here")
    for code in (("once, two",), ("once, two", "sigma-delta, one")):
        run("codes", *where, *few, "--code", *code)
    assert "continuing with 6 results" in capsys.readouterr().out
    record = json.loads((tmp_path / "here/codes.json").read_text())
    found = record["networks"]["vgg_tiny-cifar10"]
    names = ["once, two digits", "sigma-delta, one digit a step"]
    assert list(found["rows"]) == names
    for row in found["rows"].values():
        course = row["settings"][row["main"]["setting"]]
        assert len(course["draws"]) == 2 and course["joules"]["lemaire"] > 0
        quanta, events, digits = course["operations"][0]
        assert 0 < events <= digits <= quanta
    assert course["times"] == [1, 2, 3, 4]
    assert [len(each) for each in (*course["draws"], course["deviation"])] == [4, 4, 4]
    assert 1 <= course["anytime"]["steps"] <= 4
    assert "| once, two digits | 1 |" in (tmp_path / "here/codes.md").read_text()
    for row in found["streams"]:
        assert row["agreement"] > 0.9
        assert row["changes"][1] < row["whole"][1] or row["share"] > 0.2
    for figure in ("codes", "methods"):
        data = (tmp_path / f"here/{figure}.png").read_bytes()
        assert data.startswith(b"\x89PNG")


def test_windows_pay_for_their_slots(monkeypatch):
    """What is simulated in one step is priced as neurons that wait for all slots."""
    monkeypatch.syspath_prepend(EXPERIMENTS)
    waited = runpy.run_path(str(EXPERIMENTS / "codes.py"))["waited"]
    network = nets.case("vgg").network
    sent = {name: np.full(1, 7.0) for name in network.senders}
    for name, joules in waited(network).items():
        cost = jb.energy.PRESETS[name]
        once, window = (
            jb.energy.joules(jb.Model(network, neuron), sent, cost=cost, unit="events")
            for neuron in (jb.neurons.SigmaDelta(20), jb.neurons.FirstSpike(20))
        )
        assert joules > 0 or name == "horowitz_fp32"
        np.testing.assert_allclose(once + 19 * joules, window, rtol=1e-12)


def test_tables_of_codes_say_what_was_measured(monkeypatch):
    """Those of the record are made from it, and that of the docs is one of them."""
    monkeypatch.syspath_prepend(EXPERIMENTS)
    text = runpy.run_path(str(EXPERIMENTS / "codes.py"))["text"]
    folder = EXPERIMENTS.parent / "results/codes"
    tables = (folder / "codes.md").read_text()
    assert text(json.loads((folder / "codes.json").read_text())) == tables.rstrip()
    page = (EXPERIMENTS.parent / "docs/codes.md").read_text()
    measured = [t for t in re.findall(r"(?:^\|.*\n)+", page, re.M) if "±" in t]
    assert len(measured) == 1 and measured[0] in tables


def test_codes_are_all_described():
    """Every kind of neuron is in the table of the documentation."""
    table = (EXPERIMENTS.parent / "docs/codes.md").read_text()
    for name, kind in vars(jb.neurons).items():
        if isinstance(kind, type) and issubclass(kind, jb.neurons.Neuron):
            assert kind is jb.neurons.Neuron or f"`{name}" in table


@pytest.mark.slow
def test_tune(run_in_two, tiny_cifar, untrained, tmp_path):
    few = ("--limit", "10", "--calibration", "20", "--steps", "2", "--trials", "1")
    run_in_two("tune", *untrained, *few, "--budgets", "0.9", "--out", "here")
    record = _results(tmp_path / "here", "tune")
    (row,) = record["rows"]
    assert row["tuned"]["energy_over_ann"] > 0
    assert row["best"]["accuracy"] >= row["default"]["accuracy"]
    assert 1 <= record["anytime"]["steps"] <= 2
    assert record["anytime"]["seconds_of_all_steps"] > 0
    assert "| 0.9 |" in (tmp_path / "here/tune.md").read_text()


def test_presets_are_compared_within_the_energy_of_the_tuned(monkeypatch):
    monkeypatch.syspath_prepend(EXPERIMENTS)
    tune = runpy.run_path(str(EXPERIMENTS / "tune.py"))
    presets = {
        tune["DEFAULT"]: {"accuracy": [0.7, 0.9], "energy_over_ann": [0.1, 0.31]},
        "preset, 2 levels": {"accuracy": [0.6, 0.8], "energy_over_ann": [0.05, 0.2]},
    }
    tuned = {"accuracy": [0.5, 0.85], "energy_over_ann": [0.1, 0.21]}
    rows = tune["compare"]([{"budget": 0.2} | tuned, {"budget": 0.4} | tuned], presets)
    assert [row["tuned"]["accuracy"] for row in rows] == [0.85, 0.85]
    assert [row["default"]["accuracy"] for row in rows] == [0.7, 0.9]
    assert [row["best"]["accuracy"] for row in rows] == [0.8, 0.9]
    (row,) = tune["compare"]([{"budget": 0.04} | tuned], {})
    assert row["best"] is row["default"] is None


@pytest.mark.slow
def test_errors(run_in_two, tiny_cifar, untrained, tmp_path, capsys):
    few = ("--limit", "3", "--calibration", "10", "--steps", "6")
    run_in_two("errors", *untrained, *few, "--out", "here")
    record = _results(tmp_path / "here", "errors")
    assert (tmp_path / "here/limit.png").read_bytes().startswith(b"\x89PNG")
    assert record["times"] == [1, 2, 4, 6]
    methods = record["methods"].values()
    assert len(methods) == 6
    pooling = [one["mean_over_layers_percent"]["pooling"][-1] for one in methods]
    assert min(pooling[:2]) > 0.1 > 1e-3 > max(pooling[2:])  # + lateral pooling
    for one in methods:
        layers = one["last_percent"].values()
        assert len(layers) == 4 and min(layers) > 0
        assert one["mean_over_layers_percent"]["total"][-1] > 0
    found = record["limit"]
    lateral, gated = (dict(zip(found["times"], found[of], strict=True))
                      for of in ("lateral", "gated"))  # fmt: skip
    assert lateral[256] < 2 * lateral[32] and gated[256] > 3 * gated[16]
    assert (np.diff([gated[t] for t in (16, 32, 64, 128, 256)]) > 0).all()
    assert "+ signed spikes" in capsys.readouterr().out


@pytest.mark.slow
def test_energy(run, tiny_cifar, untrained, tmp_path, capsys):
    few = ("--limit", "20", "--calibration", "20", "--selection", "10")
    short = ("--steps", "3", "--longest", "6", "--percentiles", "99.9")
    run("energy", *untrained, *few, *short, "--out", "here")
    record = _results(tmp_path / "here", "energy")
    assert set(record["runs"]) == {"burst", "IF"}
    for spikes in record["runs"].values():
        assert len(spikes["trials"]) == 2
        assert min(spikes["energy_over_ann"]["once"]) > 0
    assert [row["goal"] for row in record["rows"]] == [0.01, 0.01, 0.005, 0.005]
    printed = capsys.readouterr().out
    assert "| 0.5 points | every step |" in printed
    assert all(line in printed for line in record["verdicts"])


@pytest.mark.slow
def test_memory(run_in_two, tiny_cifar, untrained, tmp_path, capsys):
    few = ("--limit", "20", "--calibration", "20", "--bits", "3", "--steps", "2")
    run_in_two("memory", *untrained, *few, "--out", "here")
    record = _results(tmp_path / "here", "memory")
    codes = record["codes"]
    sent = {
        "refining": {"quanta", "events", "digits"},
        "balanced for events": {"quanta", "events"},
        "bursts": {"quanta"},
    }
    assert list(codes) == list(sent)
    for name, found in codes.items():
        units = sent[name]
        for cost, spent in found["joules"].items():
            assert set(spent) == units, cost
            assert all(0 < one[0] < one[1] for one in spent.values())
        quanta, events = found["operations_per_mac"].values()
        assert np.all(np.array(quanta) >= events) and min(events) > 0
    for cost, found in record["conventional"].items():
        full, no = found["full_reuse"], found["no_reuse"]
        assert all(full[name] <= no[name] for name in no), cost
    assert set(record["break_even"]) == set(jb.energy.PRESETS)
    assert len(record["verdicts"]) in (1, len(jb.energy.PRESETS))
    assert "| refining | 2 |" in capsys.readouterr().out


@pytest.mark.slow
def test_an_energy_run_in_parts_is_that_in_one(
    run, run_in_two, tiny_cifar, untrained, tmp_path
):
    few = ("--limit", "10", "--calibration", "20", "--selection", "10")
    few += ("--steps", "2", "--longest", "4", "--percentiles", "99.9")
    run("energy", *untrained, *few, "--out", "whole")
    run_in_two("energy", *untrained, *few, "--out", "parts", after=4)
    records = [_results(tmp_path / name, "energy") for name in ("whole", "parts")]
    for record in records:
        del record["provenance"]
    assert records[0] == records[1]
    (Path("parts") / "energy.png").unlink()
    run("energy", "--out", "parts", "--redraw")
    assert _results(tmp_path / "parts", "energy")["rows"] == records[0]["rows"]
    with pytest.raises(SystemExit, match="no record to draw"):
        run("energy", "--out", "elsewhere", "--redraw")


def test_kept_results_are_of_the_same_settings(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(EXPERIMENTS)
    from common import Kept

    kept = Kept(tmp_path, "a")
    assert kept.within("here")("it", lambda: {"found": np.float32(0.5)}) == {
        "found": 0.5
    }
    with (tmp_path / "unfinished.jsonl").open("a") as file:
        file.write('\n["cut o')
    assert Kept(tmp_path, "a")("next", lambda x: {"found": x}, 2) == {"found": 2}
    kept = Kept(tmp_path, "a")
    assert kept("here: it", dict) == {"found": 0.5} and kept("next", dict)["found"] == 2
    other = Kept(tmp_path, "b")
    assert other("here: it", dict) == {}
    Kept(tmp_path, "a").done()
    assert "keeps what other commands" in capsys.readouterr().out
    assert Kept(tmp_path, "b").found == {"here: it": {}}
    Kept(tmp_path, "b").done()
    assert not list(tmp_path.iterdir())
    kept = Kept(tmp_path, "a")
    kept.same({"w": np.ones(3)})
    with pytest.raises(ValueError, match="of other weights"):
        Kept(tmp_path, "a").same({"w": np.zeros(3)})


def test_records_are_short_and_whole(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(EXPERIMENTS)
    import common

    for steps in (1, 2, 6, 64, 320):
        times = common.sampled(steps)
        powers = {2**k for k in range(steps.bit_length())}
        assert powers <= set(times.tolist()) and times[0] == 1 and times[-1] == steps
        assert (np.diff(times) > 0).all() and len(times) <= 4 * np.log2(steps) + 2
    record = {
        "a": np.float32(1 / 3),
        "b": [1, {"c": [0.1, np.nan]}],
        "d": Path("x [y]"),
    }
    text = common._json(record)
    expected = {"a": 0.33333, "b": [1, {"c": [0.1, None]}], "d": "x [y]"}
    assert json.loads(text) == expected and "[0.1, null]" in text


def test_pitches_are_heard_where_they_are(monkeypatch):
    monkeypatch.syspath_prepend(EXPERIMENTS)
    import tasks

    frames, cents = tasks.tones(50, 10.0, [0])
    np.testing.assert_allclose(frames.mean(1), 0, atol=1e-5)
    np.testing.assert_allclose(frames.std(1), 1, rtol=1e-4)
    place = (cents - tasks.LOWEST) / 20
    logits = 9 - np.square(np.arange(tasks.BINS) - place[:, None]).clip(max=99)
    assert np.abs(tasks.heard(logits) - cents).max() < 2
    assert tasks.in_tune(logits, cents + 45).all()
    assert not tasks.in_tune(logits, cents + 55).any()


def test_two_at_once_are_told_who_holds_the_folder(run, tmp_path):
    with jb.io.files.locked(jb.io.files.folder("here")):
        with pytest.raises(SystemExit, match="here: process [0-9]+ on .* writes to it"):
            run("energy", "--data-dir", "nowhere", "--out", "here")
    assert not list(Path("here").iterdir())


def test_ratios_are_taken_at_equal_accuracy(monkeypatch):
    """By hand: bursts within 0.5 points after 2 steps and 3 units, IF after 4 and 2."""
    monkeypatch.syspath_prepend(EXPERIMENTS)
    energy = runpy.run_path(str(EXPERIMENTS / "energy.py"))

    def measured(accuracy, spent):
        times = np.arange(1, len(spent) + 1)
        energies = {"once": spent, "every step": list(spent + times)}
        return {"accuracy": accuracy, "energy_over_ann": energies}

    runs = {
        "burst": measured([0.5, 0.896, 0.9], np.array([1.0, 3, 9])),
        "IF": measured([0.1, 0.2, 0.891, 0.895], np.array([0.5, 1, 1.5, 2])),
    }
    rows = energy["compare"](runs, 0.9)
    assert [row["time_ratio"] for row in rows] == [2 / 3, 2 / 3, 0.5, 0.5]
    assert [row["energy_ratio"] for row in rows] == [3 / 1.5, 5 / 4.5, 3 / 2, 5 / 6]
    said = energy["verdicts"](rows)
    assert len(said) == 4 and all("OTHERWISE" in line for line in said)
    runs["IF"] = measured([0.1, 0.891], np.array([0.5, 9]))
    said = energy["verdicts"](energy["compare"](runs, 0.9))
    assert "energy of bursts over IF 0.333, claimed 0.693: as claimed" in said[0]
    assert said[-1] == "within 0.5 points: no ratio, not reached by IF"


@pytest.mark.slow
def test_ablation(run_in_two, tiny_cifar, untrained, tmp_path):
    few = ("--limit", "10", "--calibration", "20", "--steps", "3", "--gamma", "2")
    grids = ("--gammas", "2", "3", "--percentiles", "1", "99.9")
    run_in_two("ablation", *untrained, *few, *grids, "--out", "here")
    record = _results(tmp_path / "here", "ablation")
    factors = {row["factor"] for row in record["rows"]}
    assert {"bursts", "max pooling", "percentile", "reset", "SpiCalib"} <= factors
    paper, *others = record["rows"]
    lengths = {row["times"][-1] for row in others if "accuracy" in row}
    assert lengths == {3, 6}, "integrate-and-fire gets gamma times as many steps"
    assert paper["energy_over_ann"][-1] > paper["energy_over_ann"][0] > 0
    text = (tmp_path / "here/ablation.md").read_text()
    assert "a threshold would be 0" in text and "99.9, without labels" in text


@pytest.mark.slow
def test_parts(run_in_two, tiny_cifar, untrained, tmp_path):
    """Coarser thresholds cost less and are farther off; errors fall with time."""
    few = ("--limit", "10", "--calibration", "20", "--steps", "3")
    run_in_two("parts", *untrained, *few, "--out", "here")
    rows = _results(tmp_path / "here", "parts")["rows"]
    levels = [row for row in rows if row["factor"] == "levels of the first step"]
    preset, coarse, *_, finest = levels
    assert coarse["value"] == "2" and finest["value"] == "16"
    for row in rows:
        assert row["error"][-1] < row["error"][0], row
    for finer, coarser in ((preset, coarse), (finest, preset)):
        assert finer["error"][0] < coarser["error"][0]
        assert finer["energy_over_ann"][0] > coarser["energy_over_ann"][0] > 0
    text = (tmp_path / "here/parts.md").read_text()
    assert "ratio" in text and "balanced" in text


@pytest.mark.slow
def test_beyond(run, run_in_two, tiny_cifar, tmp_path, capsys):
    """The released transformer, stopped after its weights were named, and gone on."""
    few = ("--network", "vit", "--inputs", "20", "--calibration", "20", "--steps", "3")
    run_in_two("beyond", *few, "--at-once", "20", "--out", "here", after=1)
    record = _results(tmp_path / "here", "beyond")
    part = record["parts"]["vit"]
    for kind, steps in (("network", 1), ("rounded", 1), ("refining", 3)):
        assert len(part[kind]["mean"]) == steps
    assert part["refining"]["energy_over_ann"][0] > 0 < part["products"]
    assert "| rounded once to 5 bits | 1 |" in (tmp_path / "here/beyond.md").read_text()
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run("beyond", "--network", "crepe")
    assert "give the weights of crepe" in capsys.readouterr().err


@pytest.mark.slow
def test_streams(run, tiny_cifar, untrained, tmp_path):
    """A still scene sends nothing after its first frame, and costs less."""
    few = ("--limit", "4", "--at-once", "3", "--calibration", "10", "--frames", "3")
    run("streams", *untrained, *few, "--speeds", "0", "2", "--out", "here")
    still, moved = _results(tmp_path / "here", "streams")["images"]["rows"]
    assert still["changed_inputs"] == still["events"] == 0
    assert 0 < moved["changed_inputs"] < 1 and moved["events"] > 0
    assert still["events_rounded"] > 0
    for price, joules in moved["joules"].items():
        assert still["joules"][price]["stream"] < min(joules.values())
    assert (tmp_path / "here/streams.md").read_text().count("| images |") == 2


@pytest.fixture
def without_peers(monkeypatch):
    """As on a machine without PyTorch, whether it is there or not."""
    find = importlib.util.find_spec

    def find_spec(name, *rest):
        return None if name in ("torch", "spikingjelly") else find(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)


@pytest.mark.slow
def test_throughput_without_peers(run, without_peers, tmp_path, capsys):
    few = ("--batch-sizes", "2", "--steps", "3", "--rounds", "2", "--pool", "average")
    run("throughput", "--arch", "vgg_tiny", *few, "--out", "here")
    record = json.loads((tmp_path / "here/throughput.json").read_text())
    (result,) = record["results"]["vgg_tiny"]
    names = {f"jaxburst {name}" for name in ("step", "layer", "auto", "ANN")}
    assert set(result["programs"]) == names
    assert result["direct_over_ann"] > 0
    _check_rates("vgg_tiny", result, ann="jaxburst ANN")
    printed = capsys.readouterr().out
    for name in ("PyTorch", "SpikingJelly"):
        assert f"without {name}: torch" in printed
    assert "extra `oracles`" in printed


@pytest.mark.slow
@pytest.mark.parametrize("arch, gamma", [("vgg_tiny", "1"), ("resnet_tiny", "3")])
def test_throughput_races_the_same_network(run, tmp_path, arch, gamma):
    for name in ("torch", "spikingjelly"):
        pytest.importorskip(name, reason=f"{name} comes with jaxburst[oracles]")
    few = ("--batch-sizes", "16", "--steps", "5", "--rounds", "1", "--gamma", gamma)
    run("throughput", "--arch", arch, *few, "--out", "here")
    record = json.loads((tmp_path / "here/throughput.json").read_text())
    assert {"torch", "spikingjelly"} <= set(record["provenance"]["versions"])
    (result,) = record["results"][arch]
    assert len(result["programs"]) == 9
    for program in result["programs"].values():
        assert program["difference_of_logits"] < 1e-4
        assert program["same_predictions"] >= 0.9
    _check_rates(arch, result, ann="PyTorch ANN")


def test_throughput_refuses_another_network(monkeypatch):
    monkeypatch.syspath_prepend(EXPERIMENTS)
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    throughput = runpy.run_path(str(ROOT / "benchmarks/throughput.py"))
    logits = np.random.default_rng(0).normal(size=(8, 10))
    moved = logits + np.where(np.arange(8) == 0, 1, 1e-6).reshape(-1, 1)
    programs = {
        name: throughput["Program"](lambda found=found: found, "SNN", 0.0, None)
        for name, found in (("one", logits), ("two", moved), ("three", -logits))
    }
    with pytest.raises(ArithmeticError, match="three: .* not the same network"):
        throughput["compared"](programs)
    del programs["three"]
    assert throughput["compared"](programs)["two"]["same_predictions"] == 1


def _check_rates(arch, result, ann):
    """The numbers of one batch size, computed again from the times."""
    module, images = jb.zoo.NETWORKS[arch](10), np.zeros((1, 32, 32, 3), np.float32)
    variables = module.init(jax.random.key(0), images)
    macs = jb.energy.macs(jb.trace(module.apply, variables, images))
    once, every = macs["conv0"], sum(macs.values()) - macs["conv0"]
    peak = max(result["peak_operations_per_second"].values())
    assert min(result["spikes_per_neuron_and_step"]) > 0.01
    assert result["programs"][ann]["over_t_times_ann"] == 1
    for program in result["programs"].values():
        steps = result["steps"] if program["kind"] == "SNN" else 1
        least, typical, most = program["image_steps_per_second"]
        assert 0 < least <= typical <= most
        share = 2 * typical / steps * (once + steps * every) / peak
        assert np.isclose(program["fraction_of_peak"], share, rtol=3e-4)  # five digits
        assert program["compile_seconds"] >= 0 and program["bytes"] >= 0


def _as_pytorch(variables):
    """The state dict that PyTorch would write for `vgg_tiny` on 32x32 images."""
    state = {}
    for i in range(4):
        conv, norm = (variables["params"][f"{kind}{i}"] for kind in ("conv", "norm"))
        stats = variables["batch_stats"][f"norm{i}"]
        state[f"features.{3 * i}.weight"] = conv["kernel"].transpose(3, 2, 0, 1)
        state[f"features.{3 * i}.bias"] = conv["bias"]
        for name, value in (
            ("weight", norm["scale"]),
            ("bias", norm["bias"]),
            ("running_mean", stats["mean"]),
            ("running_var", stats["var"]),
        ):
            state[f"features.{3 * i + 1}.{name}"] = value
    dense = variables["params"]["dense0"]
    maps = np.asarray(dense["kernel"]).reshape(8, 8, 32, 10)
    state["classifier.weight"] = maps.transpose(3, 2, 0, 1).reshape(10, -1)
    state["classifier.bias"] = dense["bias"]
    return {name: np.ascontiguousarray(value) for name, value in state.items()}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--gamma", "0"], "gamma"),
        (["--percentile", "101"], "--percentile: expected a number"),
        (["--steps", "0"], "--steps: expected a whole number of at least 1"),
        (["--limit", "0"], "--limit: expected a whole number of at least 1"),
        (["--train-limit", "0"], "--train-limit: expected a whole number of at"),
        (["--arch", "alexnet"], "invalid choice"),
        (["--mean", "0.5", "0.5", "0.5"], "--mean and --std go together"),
        (["--checkpoint", "a", "--torch-weights", "b"], "not both"),
        (["--out", "/dev/null/results"], "cannot be written"),
        (["--checkpoint", "nothing/there"], "nothing/there"),
        (["--torch-weights", "nothing.safetensors"], "no such file of weights"),
        (["--initial", "nan"], "--initial: expected a number between 0 and 1"),
        (["--learning-rate", "-1", "--epochs", "1"], "learning_rate"),
        (
            ["--arch", "resnet20", "--torch-weights", "broken"],
            "expected a safetensors file",
        ),
    ],
)
def test_bad_input_ends_in_one_clear_line(
    run, tiny_cifar, tmp_path, capsys, arguments, says
):
    (tmp_path / "broken").write_bytes(b"\x10" * 40)
    with pytest.raises(SystemExit) as stop:
        run("cifar10", *arguments)
    message = " ".join(f"{stop.value.code} {capsys.readouterr()}".split())
    assert stop.value.code not in (0, None)
    assert says in message.replace("│ ", "").replace("\\n", "")
    assert "Traceback" not in message
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize(
    "experiment, option, value",
    [
        *(("tune", "--trials", "0"), ("tune", "--agreement", "2")),
        *(("tune", "--budgets", "0"), ("codes", "--draws", "-1")),
        *(("ablation", "--percentiles", "101"), ("errors", "--limit", "-9990")),
    ],
)
def test_settings_are_refused_before_anything_is_read(
    run, capsys, experiment, option, value
):
    with pytest.raises(SystemExit) as stop:
        run(experiment, option, value, "--data-dir", "nowhere")
    said = f"{stop.value.code} {capsys.readouterr().err}"
    assert f"{option}: expected" in said and "nowhere" not in said


@pytest.mark.parametrize("name", [path.stem for path in EXPERIMENTS.glob("*.py")])
def test_every_whole_number_among_the_settings_is_checked(name, monkeypatch):
    monkeypatch.syspath_prepend(EXPERIMENTS)
    common = importlib.import_module("common")
    try:
        found = vars(importlib.import_module(name)).values()
    except ImportError as error:
        pytest.skip(str(error))
    for settings in found:
        if inspect.isclass(settings) and issubclass(settings, common.Experiment):
            fields = dataclasses.fields(settings)
            given = {f.name: Path() for f in fields if f.default is f.default_factory}
            for field in fields:
                if re.search(r"\bint\b", field.type):
                    bad = (-1,) if field.type.startswith("tuple") else -1
                    option = f"--{field.name.replace('_', '-')}: expected"
                    with pytest.raises(ValueError, match=option):
                        settings(**given | {field.name: bad})


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_an_experiment_in_one_line(capsys, number, code):
    import common

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stop:
        common.run(lambda: signal.raise_signal(number))
    signal.signal(signal.SIGTERM, before)
    said = capsys.readouterr().err.splitlines()
    assert stop.value.code == code and len(said) == 1 and "--resume" in said[0]
