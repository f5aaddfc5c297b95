"""dp certify from its command to its files."""

import functools
import json
import sys
from dataclasses import replace

import pytest
import torch

from dp.certification import rows
from dp.certification.published import published_lines
from dp.commands import certify
from dp.datasets import fixed_ids
from dp.rng import Streams
from dp.runs import certified
from dp.runs.by_dataset import CONF
from dp.runs.certified import build, configured

TINY = ("certificate.images=5", "certificate.n0=10", "certificate.n=40", "certificate.batch=10", "device=cpu")


def test_the_papers_budgets():
    found = {}
    for dataset in ("cifar10", "imagenet"):
        for name in ("one_shot", "densepure", "none"):
            job = configured([f"dataset={dataset}", f"certificate={name}"])
            one, loader = job.smoothing, job.config["dataset"]["loader"]
            assert (one.n0, one.alpha, loader["every"], loader["images"]) == (100, 0.001, one.every, one.images)
            found[dataset] = (one.n, one.every, one.images)
    assert found == {"cifar10": (100_000, 20, 500), "imagenet": (10_000, 500, 100)}


@pytest.mark.parametrize("dataset", ["digits", "svhn", "imagenette", "celebahq"])
@pytest.mark.parametrize("name", ["one_shot", "densepure", "none"])
def test_every_certificate_fits_every_dataset(dataset, name):
    job = configured([f"dataset={dataset}", f"certificate={name}"])
    assert job.smoothing.bare == (name == "none") == ("denoiser" not in job.config)
    certified.check_early(job)


def test_every_20th_image():
    ids = fixed_ids(10_000, 500, every=20)
    assert (len(ids), ids[:3].tolist(), ids[-1]) == (500, [0, 20, 40], 9980)
    assert fixed_ids(50_000, 100, every=500)[-1] == 49_500
    assert fixed_ids(10_000, 3, every=20).tolist() == [0, 20, 40]
    with pytest.raises(ValueError, match=r"need 1 <= images <= 500 \(every 20th of 10000\), got images=501"):
        fixed_ids(10_000, 501, every=20)


def test_what_changes_rows_changes_the_key_and_nothing_else_does():
    def key(*words):
        return configured([*TINY, *words]).folder.name

    same = [key(), key("certificate=one_shot"), key("shard=2/2"), key("overwrite=true"), key("device=auto")]
    assert len({*same}) == 1
    changes = ["sigma=0.3", "n=50", "n0=11", "alpha=0.01", "images=4", "batch=20", "seed=1"]
    others = [key(f"certificate.{change}") for change in changes]
    others += [key("certificate=none"), key("certificate=densepure"), key("dtype=bfloat16")]
    others += [key("certificate=densepure", "certificate.base.steps=3")]
    assert len({same[0], *others}) == len(others) + 1
    assert key("certificate=none", "denoiser=edm_cifar10") == key("certificate=none")  # it uses no denoiser


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["certificate=one_shto"], "unknown option certificate=one_shto (did you mean one_shot"),
        (["purifier=hetero"], "got purifier=hetero: a certification has no purifier and no attack"),
        (["attack.steps=3"], "got attack.steps=3: a certification has"),
        (["certificate.sgima=1"], "unknown key certificate.sgima"),
        (["+certificate.sgima=1"], "unknown key certificate.sgima"),
        (["certificate.sigma=-1"], "need sigma > 0"),
        (["certificate.sigma=big"], "need certificate.sigma as a number"),
        (["certificate.n=0.5"], "need certificate.n as a whole number"),
        (["certificate.every=20"], "unknown key certificate.every: dp.datasets.digits does not take it"),
        (["certificate=densepure", "certificate.base.steps=0"], "need steps >= 1 and chains >= 1"),
        (["certificate=densepure", "certificate.base.steps=100000"], "need steps x chains <= 10000, got steps=100000"),
        (["certificate.sigma=1e9"], "need a noise level above 0 and at most 157"),
        (["certificate=densepure", "certificate.sigma=1e9"], "need a noise level above 0 and at most 157"),
        (["classifier=rdc"], "need a classifier without noise for a certificate, got classifier=rdc"),
        (["classifier=rdc", "certificate=none"], "need a classifier without noise for a certificate"),
        (["classifier=rdc_cifar10", "dataset=cifar10"], "need a classifier without noise for a certificate"),
        (["denoiser=none"], "need a denoiser for certificate=one_shot, got none"),
        (["certificate.images=513"], "512"),
        (["shard=3/2"], "need shard k/n"),
    ],
)
def test_mistakes_are_one_line_and_code_2(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert certify.main([*words, "device=cpu"]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not list(tmp_path.rglob("rows-*"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a finished certification."""
    root = tmp_path_factory.mktemp("whole")
    assert certify.main([*TINY, f"results={root}"]) == 0
    (folder,) = root.iterdir()
    return folder


def test_files_of_a_finished_certification(whole):
    found = rows.read(whole / rows.ALL)
    assert [row.id for row in found] == sorted(fixed_ids(1797, 5).tolist())
    assert {row.evaluations for row in found} == {50}
    assert all(row.count >= 35 and row.correct for row in found)  # measured: one-shot at .25 is right on digits
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["certified"][0]["right"] == 5
    assert summary["certified"][4]["right"] == 0  # the cap is below 1
    assert (summary["images"], summary["evaluations"]) == (5, 250)
    assert summary["seconds"] > 0
    assert (whole / certify.PICTURE).read_bytes().startswith(b"\x89PNG")


def test_shards_and_an_interruption_give_the_bytes_of_the_whole(whole, tmp_path, monkeypatch, capsys):
    """The first shard is killed while it writes, and its last line is torn."""
    given = [*TINY, f"results={tmp_path}"]
    assert certify.main([*given, "shard=1/2"]) == 0
    assert "shard 1/2 is done; 2 of 5 images are left to the others" in capsys.readouterr().out
    (folder,) = tmp_path.iterdir()
    torn = folder / "rows-1of2.tsv"
    torn.write_bytes(torn.read_bytes()[:-9])
    timing = folder / "timing-1of2.jsonl"
    timing.write_bytes(timing.read_bytes()[:-4])
    assert certify.main([*given, "shard=2/2"]) == 0
    assert not (folder / rows.ALL).exists()
    assert certify.main([*given, "shard=1/2"]) == 0
    out = capsys.readouterr().out
    assert "1 image left, 50 network evaluations" in out
    assert (folder / rows.ALL).read_bytes() == (whole / rows.ALL).read_bytes()
    assert certify.main(given) == 0
    assert "already finished, nothing to do" in capsys.readouterr().out


def test_tf32_is_that_of_the_rows_too(tmp_path, monkeypatch):
    """Every image is certified with the products that the key names."""
    job = configured([*TINY, "dtype=tf32", f"results={tmp_path}"])
    networks, seen = build(job), []

    def certify_one(*given):
        seen.append(torch.backends.cuda.matmul.allow_tf32)
        raise KeyboardInterrupt

    monkeypatch.setattr(type(job.smoothing), "certify", certify_one)
    job.folder.mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt):
        certified.certify(job, networks)
    assert seen == [True]


def test_an_interrupt_keeps_the_rows(whole, tmp_path, monkeypatch, capsys):
    given, write = [*TINY, f"results={tmp_path}"], rows.Writer.write

    def stop(self, row):
        write(self, row)
        if len(rows.read(self.path)) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(rows.Writer, "write", stop)
        assert certify.main(given) == 130
    assert "interrupted: 2 rows are saved in" in capsys.readouterr().out
    assert certify.main(given) == 0
    (folder,) = tmp_path.iterdir()
    assert (folder / rows.ALL).read_bytes() == (whole / rows.ALL).read_bytes()


def test_rows_are_those_of_the_networks_asked_one_by_one(whole):
    """The estimate of an image, from the definition: its denoised noisy copies, classified."""
    job = configured(TINY)
    networks = build(job)
    x, image = networks.subset.x[2:3], int(networks.subset.ids[2])
    streams, count = Streams([image], 2024, "certify-estimate"), 0
    label = int(networks.subset.y[2])
    assert networks.denoiser is not None
    with torch.no_grad():
        for k in range(40):
            z = 2 * x - 1 + 2 * 0.25 * streams.draw(k).randn_like(x)
            x_hat = ((networks.denoiser(z, 0.5) + 1) / 2).clamp(0, 1)
            count += int(networks.classifier(x_hat).argmax()) == label
    (row,) = (row for row in rows.read(whole / rows.ALL) if row.id == image)
    assert (row.label, row.count) == (label, count)


def test_the_bare_classifier_stands_beside_it(whole, capsys):
    bare = [*TINY, f"results={whole.parent}", "certificate=none"]
    assert certify.main(bare) == 0
    assert certify.main([*TINY, f"results={whole.parent}"]) == 0
    out = capsys.readouterr().out
    assert "bare classifier: certified accuracy" in out
    other_sigma = ["certificate.sigma=0.3", "certificate.images=2", f"results={whole.parent}"]
    assert certify.main([*TINY, *other_sigma]) == 0
    assert "bare classifier: certified accuracy" not in capsys.readouterr().out


def test_a_neighbor_that_cannot_be_read_is_left_out(whole, tmp_path):
    """A broken summary, one of another kind, and a directory in the place of one."""
    for name, text in (("a", "{"), ("b", '{"format": 99}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text(text)
    (tmp_path / "c" / "summary.json").mkdir(parents=True)
    summary = certified.read_summary(whole)
    assert summary
    assert certify.bares_of(summary, tmp_path) == certify.bares_of(summary, tmp_path / "none")


def test_curves_with_other_samples_say_so(whole, tmp_path, capsys):
    bare = [*TINY[:2], "certificate.n=50", *TINY[3:], "certificate=none", f"results={tmp_path}"]
    assert certify.main(bare) == 0
    (folder,) = tmp_path.iterdir()
    summary, other = certified.read_summary(whole), certified.read_summary(folder)
    assert summary
    assert other
    assert certify.names_of([summary, other]) == ["one_shot, N = 40", "bare classifier, N = 50"]
    assert certify.names_of([summary, summary]) == ["one_shot", "one_shot"]
    name = certify.names_of([summary, other])[1]
    assert certify.curve_of(name, other, folder).name == "bare classifier, N = 50, sigma 0.25"
    assert certify.main([*TINY, f"results={tmp_path}"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "N = 50" in out


def test_curves_of_images_of_other_sizes_are_not_put_together(tmp_path, monkeypatch, capsys):
    """Digits are 16x16; with a denoiser of 32x32 they are resized, and the bare classifier's are not."""
    given, drawn = [*TINY, "certificate.images=2", f"results={tmp_path}"], []
    assert certify.main([*given, "certificate=none"]) == 0
    (folder,) = tmp_path.iterdir()
    other = certified.read_summary(folder)
    assert other
    assert other["shape"] == [1, 16, 16]
    capsys.readouterr()
    summary = other | {"certificate": "one_shot", "shape": [1, 32, 32]}
    monkeypatch.setattr(certified, "judged", lambda job: summary)
    monkeypatch.setattr(certify, "curve_of", lambda name, *_: name)
    monkeypatch.setattr(certify, "draw", lambda path, curves, title: drawn.extend(curves))
    assert certify.main(given) == 0
    out = capsys.readouterr().out
    assert drawn == ["one_shot"]
    assert "certified at 1x16x16, this one at 1x32x32" in " ".join(out.split())
    assert "bare classifier: certified accuracy" not in out


def test_published_rows_stand_below_the_table(whole, monkeypatch, capsys):
    given = [*TINY, f"results={whole.parent}"]
    assert certify.main(given) == 0
    assert "published (" not in capsys.readouterr().out  # nothing is published for digits
    lines = functools.partial(published_lines, "cifar10")
    monkeypatch.setattr(certify, "published_lines", lambda dataset, sigma: lines(sigma) if dataset == "digits" else [])
    assert certify.main(given) == 0
    assert "sigma 0.25" in " ".join(capsys.readouterr().out.partition("published (Cohen et al. 2019")[2].split())


def test_archive_copies_rows_and_summary(whole, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert certify.main([*TINY, f"results={whole.parent}", "--archive"]) == 0
    copy = tmp_path / "results" / "measured" / "certified" / whole.name
    assert sorted(path.name for path in copy.iterdir()) == ["certified.tsv", "summary.json"]
    assert (copy / rows.ALL).read_bytes() == (whole / rows.ALL).read_bytes()
    with pytest.raises(ValueError, match="need a finished certification"):
        certified.archive(tmp_path)


def test_other_code_does_not_go_on(whole, tmp_path, monkeypatch, capsys):
    given = [*TINY, f"results={tmp_path}", "shard=1/2"]
    assert certify.main(given) == 0
    monkeypatch.setattr(certified, "sources_hash", lambda config: "another")
    assert certify.main([*TINY, f"results={tmp_path}"]) == 2
    assert "need one code, plug-ins and weights for all rows" in capsys.readouterr().err


def test_rows_of_unknown_code_do_not_count(tmp_path, capsys):
    """start.json says what code made the rows; without it nothing goes on, and overwrite=true moves them aside."""
    given = [*TINY, "certificate.images=2", f"results={tmp_path}"]
    assert certify.main(given) == 0
    (folder,) = tmp_path.iterdir()
    (folder / "start.json").unlink()
    (folder / "summary.json").unlink()
    assert certify.main(given) == 2
    assert "start.json, which says what code made the rows, got none" in capsys.readouterr().err
    assert certify.main([*given, "overwrite=true"]) == 0
    assert (folder / "old-0" / "rows-1of1.tsv").read_bytes() == (folder / "rows-1of1.tsv").read_bytes()


def test_a_row_that_contradicts_itself_is_computed_again(tmp_path):
    given = [*TINY, "certificate.images=2", f"results={tmp_path}", "shard=1/2"]
    assert certify.main(given) == 0
    (path,) = tmp_path.glob("*/rows-1of2.tsv")
    before = path.read_text()
    (row,) = rows.read(path)
    path.write_text(before.replace(row.line, replace(row, predicted=(row.predicted + 1) % 10).line))
    assert certify.main(given) == 0
    assert path.read_text() == before


def test_a_finished_certification_of_other_code_says_so(whole, monkeypatch, capsys):
    given, note = [*TINY, f"results={whole.parent}"], "note: the code has changed since"
    assert certify.main(given) == 0
    assert note not in capsys.readouterr().out
    monkeypatch.setattr(certified, "sources_hash", lambda config: "another")
    assert certify.main(given) == 0
    assert note in capsys.readouterr().out


def test_a_base_classifier_outside_the_tree(tmp_path, monkeypatch, capsys):
    """It names the class by the mean of the noisy image, and needs neither denoiser nor dp's classifier."""
    (tmp_path / "bright_for_test.py").write_text(
        "def classes(x, sigma, denoiser, classifier, rng):\n    return (x.mean(dim=(1, 2, 3)) > 0).long()\n"
    )
    yaml = (CONF / "certificate" / "one_shot.yaml").read_text()
    (tmp_path / "mine" / "certificate").mkdir(parents=True)
    own = yaml.replace("dp.certification.one_shot.classes", "bright_for_test.classes")
    (tmp_path / "mine" / "certificate" / "bright.yaml").write_text(own)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert certify.main([*TINY, "certificate=bright", "--config-dir", "mine"]) == 0
    (folder,) = (tmp_path / "results" / "certified").iterdir()
    assert {(row.predicted, row.count) for row in rows.read(folder / rows.ALL)} == {(1, 40)}


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "certificate").glob("*.yaml")))
def test_every_value_of_a_table_is_used(name):
    for dataset in ("digits", "cifar10", "imagenet"):
        node = certified.composed([f"dataset={dataset}", f"certificate={name}"], ())[0]["certificate"]
        for each in (node, node["base"]):
            table = each.get("per_dataset", {})
            for key, value in {**table.get("default", {}), **table.get(dataset, {})}.items():
                assert each[key] == value


def test_help(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dp certify"])
    with pytest.raises(SystemExit):
        certify.main(["--help"])
    assert "certificate=densepure" in capsys.readouterr().out
