"""The script for a machine with a GPU, without one: the whole path with small networks, and its failures."""

import json

import gpu
import pytest
from rich.console import Console

from dp import compiled
from dp.rng import Streams
from dp.runs.gpus import GPUS


@pytest.fixture(autouse=True)
def silent(monkeypatch):
    monkeypatch.setattr(gpu, "console", Console(quiet=True))
    monkeypatch.setattr(compiled, "BACKEND", compiled.BACKEND)  # the script changes it


def lines_of(folder):
    return {line["line"]: line for line in map(json.loads, (folder / "gpu.jsonl").read_text().splitlines())}


def test_the_whole_path_on_small_networks(tmp_path):
    code = gpu.main(["--quick", "--out", str(tmp_path)])
    found = lines_of(tmp_path)
    assert [*found] == [*gpu.lines()]
    assert (code, [name for name, line in found.items() if "error" in line]) == (0, [])
    for name in ("float32", "tf32", "bfloat16", "the same, exact gradient"):
        width = 2  # images, one sample of each
        assert found[name]["samples_per_second"] == pytest.approx(width / found[name]["seconds"])
        assert found[name]["share"] is None
    assert found["the same, exact gradient"]["nfe"] > found["float32"]["nfe"]
    agreed = found[gpu.AGREEMENT]
    assert agreed["twice_equal"] is True
    assert agreed["estimate_over_truth"] == pytest.approx(agreed["estimated_seconds"] / agreed["seconds"])
    noise = found[gpu.NOISE]
    assert (noise["numbers"], noise["other"]) == (2 * 12 * 2 * 3 * 32 * 32, 0)
    page = (tmp_path / "gpu.md").read_text()
    assert page.count("\n| ") == 1 + len(gpu.lines()) - 2  # the head, and a row for each speed
    assert "FAILED" not in page
    assert "these figures mean nothing" in page


def test_a_line_that_fails_costs_no_other_and_all_are_written_at_once(tmp_path, monkeypatch):
    written = []

    def measured(line, quick):
        written.append(len(lines_of(tmp_path)) if (tmp_path / "gpu.jsonl").exists() else 0)
        if line == "tf32":
            raise RuntimeError("out of\nmemory")
        return {"overrides": []}

    monkeypatch.setattr(gpu, "measured", measured)
    assert gpu.main(["--quick", "--out", str(tmp_path)]) == 1
    found = lines_of(tmp_path)
    assert found["tf32"]["error"] == "RuntimeError: out of memory"
    assert "error" not in found["bfloat16"]
    assert written == [*range(len(gpu.lines()))]
    assert "not measured: tf32 (RuntimeError: out of memory)" in (tmp_path / "gpu.md").read_text()


def test_what_no_time_is_left_for_says_so(monkeypatch):
    monkeypatch.setattr(gpu, "measured", lambda line, quick: {})
    assert all("no time left" in line["error"] for line in gpu.study(True, 1.0))
    assert gpu.BUDGET < 8 * 60


@pytest.mark.parametrize(
    ("line", "found", "said"),
    [
        (gpu.NOISE, {"numbers": 24, "other": 3}, ["3 of 24 numbers have other bits"]),
        (gpu.AGREEMENT, {"twice_equal": False}, ["a unit made twice has other bytes"]),
        (gpu.AGREEMENT, {"estimate_over_truth": 1.2}, ["the estimate was 1.20 of the truth, over 15 % off"]),
        (gpu.AGREEMENT, {"estimate_over_truth": 0.8}, ["the estimate was 0.80 of the truth, over 15 % off"]),
        (gpu.AGREEMENT, {"estimate_over_truth": 1.14}, []),
    ],
)
def test_what_is_not_as_it_should_be_is_said_and_is_code_1(line, found, said, tmp_path, monkeypatch):
    """On a GPU that is a claim; the figures are made up."""
    sound = {"estimated_seconds": 1.0, "seconds": 1.0, "estimate_over_truth": 1.0, "twice_equal": True}
    made = {gpu.NOISE: {"numbers": 24, "other": 0}, gpu.AGREEMENT: {**sound, "unrepeatable": []}}
    made[line] = made[line] | found
    monkeypatch.setattr(gpu, "gpus", lambda: ["cuda:0"])
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "NVIDIA Another")
    monkeypatch.setattr(gpu, "in_its_process", lambda name, left: made.get(name, {}))
    assert gpu.main(["--out", str(tmp_path)]) == int(bool(said))
    page = (tmp_path / "gpu.md").read_text()
    assert [text for text in page.splitlines() if text.startswith("FAILED")] == [f"FAILED: {line}: {s}" for s in said]


def test_noise_of_other_bits_is_counted(monkeypatch):
    """The second of two devices draws by the other generator: other Gaussian numbers, the same uniform ones."""
    versions = iter([2, 1])
    monkeypatch.setattr(gpu, "Streams", lambda *given, version: Streams(*given, version=next(versions)))
    found = gpu.noise(gpu.NOISE, True)
    assert 0.99 * found["numbers"] / 2 < found["other"] <= found["numbers"] / 2


def test_a_process_that_fails_tells_its_last_line(monkeypatch):
    with pytest.raises(ValueError, match="invalid choice: 'float31'"):
        gpu.in_its_process("float31", 60.0)
    with pytest.raises(ValueError, match="took more than the 0 s that were left"):
        gpu.in_its_process("float32", 0.01)


def test_the_peak_is_that_of_the_gpus_data_sheet(monkeypatch):
    monkeypatch.setattr(gpu, "gpus", lambda: ["cuda:0"])
    for name, key in (
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
    ):
        monkeypatch.setattr("torch.cuda.get_device_name", lambda name=name: name)
        assert gpu.peak_of("tf32") == GPUS[key].peak["tf32"]
        assert gpu.peak_of("bfloat16 rng=2 compile=true") == GPUS[key].peak["bfloat16"]
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "NVIDIA Another")
    assert gpu.peak_of("float32") is None


def test_without_a_gpu_it_says_what_to_do():
    with pytest.raises(ValueError, match=r"^need a GPU, got none: --quick"):
        gpu.main([])
