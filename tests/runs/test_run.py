"""The command: rows, errors, sweeps, interrupts, resumption, in-process where it can be."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from dp.commands.run import main
from dp.output import record
from tests.helpers.compose import TINY
from tests.helpers.processes import ended, forked, wait

ROOT = Path(__file__).parents[2]


def cli(monkeypatch, capsys, *overrides: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `python run.py overrides...`, in this process."""
    monkeypatch.setattr(sys, "argv", ["run.py", *overrides])
    code = main()
    return code, *capsys.readouterr()


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return [*TINY, "workers=1"]


def command(*overrides: str) -> list[str]:
    return [sys.executable, str(ROOT / "run.py"), *overrides]


def folder_of(out: str) -> Path:
    last = out.strip().splitlines()[-1]
    assert last.startswith("results: ")
    return Path(last.removeprefix("results: "))


def test_row_summary_and_second_start(tiny, monkeypatch, capsys):
    code, out, _ = cli(monkeypatch, capsys, *tiny)
    assert code == 0
    folder = folder_of(out)
    assert folder.parent == Path("results/runs")
    summary = json.loads((folder / "summary.json").read_text())
    rows = [json.loads(line) for line in (folder / "images.jsonl").read_text().splitlines()]
    for name, arm, field in (
        ("standard", "defended", "clean"),
        ("robust", "defended", "adv"),
        ("undefended", "undefended", "adv"),
        ("null", "null", "adv"),
    ):
        single = [r[field][0] == r["label"] for r in rows if r["arm"] == arm]
        assert len(single) == 4 * 2
        assert summary[name]["single"]["value"] == pytest.approx(100 * sum(single) / 8)
        assert summary[name]["single"]["n"] == 4
        assert (summary[name]["single"]["draws"], summary[name]["vote"]["draws"]) == (1, 3)
        assert set(summary[name]["vote"]) == {"value", "seed_std", "wilson95", "n", "draws"}
    assert summary["audited"] is None
    assert summary["caveats"]["nfe"] == summary["caveats"]["attack_nfe"] == 7
    assert set(summary) >= {"format", "per_seed", "seconds", "config", "versions", "commit", "caveats", "code"}
    assert summary["config"]["attack"]["iterations"] == 2
    before = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    code, out, _ = cli(monkeypatch, capsys, *tiny)
    assert code == 0
    assert "already finished, nothing to do" in out
    assert folder_of(out) == folder
    assert {p: p.stat().st_mtime_ns for p in folder.iterdir()} == before


def test_workers_and_shards_give_the_same_bytes(tiny, monkeypatch, capsys):
    found = {}
    _, out, _ = cli(monkeypatch, capsys, *tiny, "results=one")
    found["one worker"] = (folder_of(out) / "images.jsonl").read_bytes()
    _, out, _ = cli(monkeypatch, capsys, *tiny, "results=two", "workers=2")
    found["two workers"] = (folder_of(out) / "images.jsonl").read_bytes()
    code, out, _ = cli(monkeypatch, capsys, *tiny, "results=shards", "shard=2/2")
    assert code == 0
    assert "12 of 24 rows are left" in out
    assert not (folder_of(out) / "summary.json").exists()
    _, out, _ = cli(monkeypatch, capsys, *tiny, "results=shards", "shard=1/2")
    found["two shards"] = (folder_of(out) / "images.jsonl").read_bytes()
    assert (folder_of(out) / "summary.json").exists()
    assert len(set(found.values())) == 1


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["purifier=heterro"], "unknown option purifier=heterro (did you mean hetero"),
        (["purifier.tua=0.3"], "unknown key purifier.tua (did you mean tau or taps?)"),
        (["nonsense=3"], "unknown key nonsense"),
        (["purifier.t_s=0.3"], "need 0 < t_s <= t_l <= 1, got t_s=0.3, t_l=0.2"),
        (["threat_model.eps=-1"], "need eps > 0, got eps=-1"),
        (["threat_model.eps=much"], "need eps as a number or a fraction such as 8/255, got eps='much'"),
        (["threat_model.norm=l7"], "need norm linf or l2, got norm='l7'"),
        (["protocol.votes=0"], "need votes >= 1"),
        (["protocol.images=513"], "got images=513"),
        (["protocol.ties=coin"], "need ties softmax or lowest"),
        (["attack.iterations=ten"], "need attack.iterations as a number, such as 10, got 'ten'"),
        (["attack.iterations=2.5"], "need attack.iterations as a whole number, got 2.5"),
        (["classifier.net.file=gone.safetensors"], "missing 1 of 1 files: need gone.safetensors in "),
        (["denoiser.net.sha256=abc"], "with SHA-256 abc..., got"),
        (["overwrite=no"], "need overwrite true or false, got overwrite=no"),
        (["dtype=float8"], "need dtype one of float32, tf32, bfloat16, got dtype=float8"),
        (["shard=3/2"], "need shard k/n with 1 <= k <= n, got shard=3/2"),
        (["workers=0"], "need workers auto or >= 1"),
        (["save_every=0"], "need save_every > 0, in seconds, got save_every=0"),
        (["save_every=often"], "need save_every > 0, in seconds, got save_every=often"),
        (["save_every=null"], "need save_every > 0, in seconds, got save_every=None"),
        (["results=blocked"], "need to make the folder blocked/digits-hetero"),
        (["device=tpu"], "need device auto, cpu or, if there is one, cuda, got device=tpu"),
        (["protocol.seeds=5"], "need protocol.seeds as a list, such as [2024"),
        (["protocol.seeds=[a]"], "a list of seeds"),
        (["protocol.votes=many"], "need protocol.votes as a number"),
        (["protocol.votes=2.5"], "need whole votes"),
        (["protocol.images=many"], "need dataset.loader.images as a number"),
        (["dataset.lanes=wide"], "need dataset.lanes as a number"),
        (["dataset.draws_per_call=[4]"], "need dataset.draws_per_call as a number"),
        (["classifier.net=5"], "need classifier.net as a mapping"),
        (["dataset.loader=here"], "need dataset.loader as a mapping"),
        (["purifier.gradients.surrogate=3"], "need purifier.gradients.surrogate as a mapping"),
        (["protocol.images=2.5"], "dataset.loader.images as a whole number, got 2.5"),
        (["shard=1/2", "overwrite=true"], "need shard=1/1 with overwrite=true"),
        (
            ["threat_model.grad=surrogate", "~purifier.gradients.surrogate"],
            "need a gradient variant surrogate of the purifier",
        ),
        (["threat_model.grad=adjoint"], "need a gradient variant adjoint of the purifier for grad=adjoint"),
        (["+experiment=digits/nothing"], "digits/nothing"),
        (["attack=[1]"], "need the name of an option for attack, such as attack=NAME, got attack=[1]"),
        (["attack={a: 1}"], "need the name of an option for attack"),
        (["denoiser=none"], "need a denoiser for this purifier, got none"),
        (["denoiser=none", "purifier=diffpure", "purifier.steps=2"], "need a denoiser for this purifier, got none"),
        (["key_ignores=5"], "need key_ignores as a list of keys"),
        (["dataset.lanes=null"], "need dataset.lanes as a whole number >= 1"),
        (["dataset.lanes=0"], "need dataset.lanes as a whole number >= 1"),
        (["results=null"], "need results as a folder"),
        (["results="], "need results as a folder, such as results/runs, got results="),
        (["~results"], "need results as a folder"),
        (["+note=3"], "unknown key note"),
        (["+protocol.image=3"], "unknown key protocol.image (did you mean images"),
        (["++purifier.version=3"], "need purifier.version=2, the version of the code"),
        (["purifier=../purifier/hetero"], "need the name of an option for purifier"),
        (["purifier=hetero.yaml"], "need the name of an option for purifier"),
        (["attack.step_size=inf"], "need attack.step_size as a finite number"),
        (["attack.step_size=1.5"], "need step_size <= 1, the largest distance of two images, got step_size=1.5"),
        (["threat_model.eps=inf"], "need threat_model.eps as a finite number"),
        (["threat_model.eps=1.01"], "need threat_model.eps <= 1, the largest distance of two images, got 1.01"),
        (["denoiser.sigma_data=0"], "need sigma_data > 0, got sigma_data=0"),
        (["audit=maybe"], "need audit auto, true or false, got audit=maybe"),
        (["audit=1"], "need audit auto, true or false, got audit=1"),
        (
            ["+experiment=digits/ful"],
            "did you mean digits/full or digits/tune or digits/table7?); there are: canvas/..., digits/..., fig7/...",
        ),
        (["purifier.steps=1000000"], "need 1 <= steps <= 100000, got steps="),
        (["purifier.steps=50000"], "need at most 10000 network evaluations in one purification"),
        (["classifier.net.net.classes=3"], "digits_classifier.safetensors"),
        (["--nonsense"], "need a flag as --hydra-help lists them"),
        (["purifier=none", "-m", "attack=none,noise"], "need flags such as -m before all key=value words"),
        (["results=5"], "need results as a folder"),
        (["+purifier.gradients.blind={steps: 2}"], "need another name for purifier.gradients.blind"),
        (
            ["threat_model.eps={_target_: torch.load, f: a.pt, weights_only: false}"],
            "need threat_model.eps._target_ below dp",
        ),
    ],
)
def test_a_users_error_is_one_line_and_code_2(overrides, said, tiny, monkeypatch, capsys):
    Path("blocked").write_text("a file stands in the folder's place")
    code, _, err = cli(monkeypatch, capsys, *tiny, *overrides)
    assert code == 2
    assert err.startswith("error: ")
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["attack=union", "attack.attacks={}"], "need something to set, got attack.attacks={}, which changes nothing"),
        (["attack=union", "attack.attacks.transfer=null"], "as an attack, got attack.attacks.transfer=None"),
        (["attack=bpda_eot", "attack.attack=null"], "need attack.attack as an attack, got None"),
    ],
)
def test_an_attack_without_its_parts_is_one_line(overrides, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, _, err = cli(monkeypatch, capsys, *overrides)
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("error: ")
    assert said in err


@pytest.mark.parametrize("overrides", [["purifier=hetro"], ["purifier.t_s=0.3"]])
def test_errors_as_a_user_sees_them(overrides, tmp_path):
    done = subprocess.run(command(*overrides), capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stdout + done.stderr


def test_nan_in_an_image_ends_the_run(tiny, monkeypatch, capsys):
    from dp import datasets

    digits = datasets._digits

    def spoiled():
        data = digits()
        x = data.x.clone()
        x[int(data.ids[1081]), 0, 0, 0] = float("nan")
        return data._replace(x=x)

    monkeypatch.setattr(datasets, "_digits", spoiled)
    code, _, err = cli(monkeypatch, capsys, *tiny)
    assert code == 2
    assert "NaN" in err
    assert "1081" in err


def test_nan_in_the_logits_ends_the_run_also_in_a_worker(tiny, monkeypatch, capsys, tmp_path):
    """A classifier file with one NaN, put where it is found by its own name."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(ROOT / "dp" / "assets" / "digits_classifier.safetensors")
    tensors["fc.bias"][2] = float("nan")
    save_file(tensors, tmp_path / "spoiled.safetensors")
    monkeypatch.setenv("DP_CACHE", str(tmp_path))
    bad = ["classifier.net.file=spoiled.safetensors", "classifier.net.sha256=null"]
    for workers in (1, 2):
        code, _, err = cli(monkeypatch, capsys, *tiny, *bad, f"workers={workers}")
        assert code == 2
        assert "NaN" in err
        assert err.count("\n") == 1


def test_sweep_keeps_good_cells_and_a_rerun_does_what_is_missing(tiny, monkeypatch, capsys):
    """t_s = .3 fails at t_l = .2 and works at .3."""
    sweep = ["-m", "purifier.t_l=0.2,0.3", "purifier.t_s=0.1,0.3", "protocol.seeds=[5]", "attack=none"]
    given = [o for o in tiny if not o.startswith(("attack", "protocol.seeds"))]
    code, out, err = cli(monkeypatch, capsys, *sweep, *given)
    assert code == 2
    assert "4 runs, 1 failed" in out
    assert err.count("error: ") == 1
    assert "need 0 < t_s <= t_l" in err
    assert len(list(Path("results/runs").glob("*/summary.json"))) == 3
    (table,) = Path("results/sweeps").glob("*.csv")
    frame = pd.read_csv(table)
    assert frame["error"].notna().sum() == 1
    assert frame["standard_single"].notna().sum() == 3
    assert "purifier.t_s=0.3 failed: need 0 < t_s <= t_l" in " ".join(out.split())  # below the table
    for kind in ("svg", "png"):
        assert table.with_suffix(f".{kind}").stat().st_size > 5_000
    victim = next(Path("results/runs").glob("*/summary.json")).parent
    for path in victim.iterdir():
        path.unlink()
    code, out, _ = cli(monkeypatch, capsys, *sweep, *given)
    assert code == 2
    assert out.count("already finished, nothing to do") == 2
    assert (victim / "summary.json").exists()


@pytest.mark.parametrize("launcher", [[], ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]])
def test_a_sweep_with_its_results_elsewhere(launcher, tmp_path):
    """The working folder has no folder `results`. The third of three cells is bad, and fails alone."""
    work, elsewhere = tmp_path / "work", tmp_path / "elsewhere"
    work.mkdir()
    tinier = ["attack=none", "purifier=none", "protocol.images=2", "protocol.votes=1", "audit=false", "workers=1"]
    words = command("-m", f"results={elsewhere}", "protocol.seeds=[1],[2],[2,2]", *tinier, *launcher)
    done = subprocess.run(words, capture_output=True, text=True, cwd=work)
    assert done.returncode == 2, done.stderr
    assert done.stderr == "error: need seeds that differ, got [2, 2]\n"
    assert len(list(elsewhere.glob("*/summary.json"))) == 2
    table, *figure = sorted((work / "results" / "sweeps").iterdir())  # and no notes
    assert [path.suffix for path in (table, *figure)] == [".csv", ".png", ".svg"]
    assert pd.read_csv(table)["error"].notna().sum() == 1


def test_eight_cells_make_eight_folders(tiny, monkeypatch, capsys):
    given = [o for o in tiny if not o.startswith(("attack", "protocol"))]
    tinier = ["attack=none", "protocol.images=2", "protocol.seeds=[1]", "protocol.votes=1"]
    sweep = ["-m", "purifier.t_l=.2,.3", "purifier.t_s=.05,.1", "purifier.tau=.5,.8"]
    code, out, _ = cli(monkeypatch, capsys, *sweep, *given, *tinier)
    assert code == 0
    assert "8 runs, 0 failed" in out
    assert len(list(Path("results/runs").glob("*/summary.json"))) == 8


def images_of(folder: Path) -> bytes:
    return next(folder.glob("*/images.jsonl")).read_bytes()


LONGER = [*TINY, "protocol.images=16", "attack.iterations=6"]


def started(folder: Path, *overrides: str, interrupts=None) -> int:
    """A process that does what `python run.py overrides...` would in this folder; it prints to the file `out`."""

    def run() -> int:
        sys.argv = ["run.py", *overrides]
        return main()

    return forked(run, folder / "out", folder, interrupts)


def test_killed_at_random_moments_ends_with_the_same_bytes(tmp_path):
    """SIGKILL of the parent alone, three times, at random moments after the first row; then to the end."""
    assert wait(started(tmp_path, *LONGER, "results=whole", "workers=1")) == 0
    moments = random.Random(0)
    killed = 0
    while killed < 3:
        workers = f"workers={1 + killed % 2}"
        known = sum(p.stat().st_size for p in tmp_path.glob("pieces/*/rows-*"))
        process = started(tmp_path, *LONGER, "results=pieces", workers)
        while not ended(process) and sum(p.stat().st_size for p in tmp_path.glob("pieces/*/rows-*")) <= known:
            time.sleep(0.02)
        time.sleep(moments.random() * 0.25)
        if ended(process):
            break  # it finished before it could be killed: the assertion below says so
        os.kill(process, signal.SIGKILL)
        wait(process)
        killed += 1
    assert wait(started(tmp_path, *LONGER, "results=pieces", "workers=1")) == 0, (tmp_path / "out").read_text()
    assert killed == 3
    assert images_of(tmp_path / "pieces") == images_of(tmp_path / "whole")


@pytest.mark.parametrize(
    ("sent", "interrupts"),  # a shell's background jobs ignore interrupts
    [
        (signal.SIGINT, signal.SIG_DFL),
        (signal.SIGTERM, signal.SIG_DFL),
        (signal.SIGTERM, signal.SIG_IGN),
        (signal.SIGUSR2, signal.SIG_DFL),
    ],
)
def test_interrupt_says_what_is_saved_and_ends_with_130(sent, interrupts, tmp_path):
    given = [*LONGER, "protocol.images=64", "results=r", "workers=2"]
    process = started(tmp_path, *given, interrupts=interrupts)
    while not ended(process) and not list(tmp_path.glob("r/*/rows-*")):
        time.sleep(0.05)
    time.sleep(0.3)
    os.kill(process, sent)
    until = time.monotonic() + 30
    while not ended(process) and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(process, signal.SIGKILL)
    assert wait(process) == 130
    out = (tmp_path / "out").read_text()
    assert "rows are saved in r/" in out
    assert "the same command goes on" in out
    rows = record.read_rows(next((tmp_path / "r").iterdir()))
    assert f"interrupted: {len(rows)} of 384 rows" in out


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "workers"), [(signal.SIGUSR2, 2), (signal.SIGTERM, 1)])
def test_a_run_that_was_told_to_stop_goes_on_with_its_attacks(sent, workers, tmp_path):
    """Sent to the whole process group, as a scheduler does: workers get it from there and then from the run, too."""
    given = [*TINY, "protocol.seeds=[5]", "attack.iterations=30", "protocol.images=8", "save_every=0.05"]
    given += [f"workers={workers}", "results=r"]
    process = subprocess.Popen(
        command(*given), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while process.poll() is None and not list(tmp_path.glob("r/*/state-*")):
        time.sleep(0.02)
    os.killpg(process.pid, sent)
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert err == ""
    told = " ".join(out.split())
    states = list(tmp_path.glob("r/*/state-*"))
    assert f"and the state of the attack on {4 * len(states)} more; the same command goes on" in told
    for results, kept in (("r", len(states)), ("whole", 0)):
        done = subprocess.run(command(*given, f"results={results}"), cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert (f"the attacks of {kept} units go on from their saved state" in " ".join(done.stdout.split())) == (
            kept > 0
        )
    assert images_of(tmp_path / "r") == images_of(tmp_path / "whole")
    assert not list(tmp_path.glob("*/*/*state-*"))


def test_a_padded_batch_is_said(tiny, monkeypatch, capsys):
    small = [o for o in tiny if not o.startswith("attack.")] + ["attack=none", "protocol.seeds=[5]"]
    for given, said in (
        (["protocol.images=2"], "padded: 2 images in 4 batch slots, which take as long as 4 images"),
        (["protocol.images=6"], "padded: the last of 2 batches has 2 images in 4 batch slots"),
        (["protocol.images=8"], None),
        (["protocol.images=8", "shard=1/4", "results=other"], "padded: 2 images in 4 batch slots"),
    ):
        _, out, _ = cli(monkeypatch, capsys, *small, *given)
        words = " ".join(out.split())
        assert "padded" not in words if said is None else said in words


def test_a_dataset_that_no_table_names_is_an_error(tiny, monkeypatch, capsys):
    code, _, err = cli(monkeypatch, capsys, *tiny, "dataset.name=mnist")
    assert code == 2
    assert "for dataset mnist" in err


@pytest.mark.parametrize("dies", [False, True])
def test_a_tracker_mirrors_the_row_and_costs_one_warning_at_most(tiny, dies, tmp_path, monkeypatch, capsys):
    """The process of W&B works, or dies at once."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))  # no account
    if dies:
        monkeypatch.setattr("dp.output.tracking.sys.executable", shutil.which("false"))
    code, out, _ = cli(monkeypatch, capsys, *tiny, "tracking=wandb")
    assert code == 0
    folder = folder_of(out)
    rows = [json.loads(line) for line in (folder / "images.jsonl").read_text().splitlines()]
    assert len(rows) == 3 * 2 * 4  # conditions, seeds, images
    assert out.count("warning: Weights & Biases") == int(dies)
    assert len(list(folder.glob("wandb/offline-run-*/*.wandb"))) == int(not dies)
    if not dies:
        table = json.loads(next(path for path in folder.glob("wandb/data/**/tmp*") if _is_table(path)).read_text())
        lines = [dict(zip(table["columns"], line, strict=True)) for line in table["data"]]
        own = [row for row in rows if row["arm"] == "defended" and row["seed"] == 5]
        assert [(line["id"], line["adv_vote"]) for line in lines] == [(row["id"], row["adv_vote"]) for row in own]
        assert all(line[name] for line in lines for name in ("original", "attacked", "mask", "purified"))


def _is_table(path: Path) -> bool:
    return path.is_file() and path.read_bytes().startswith(b'{"_type": "table"')
