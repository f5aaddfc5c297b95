"""Compose a configuration, attack and judge its defence, and print the table row: python run.py [group=option]
[key=value] ...
"""

import functools
import hashlib
import json
import os
import re
import signal
import sys
from pathlib import Path

import hydra
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from dp.attacks.base import check_norm
from dp.audit import battery as audit
from dp.audit.check import Finding, Subject
from dp.defense.defended import Defended
from dp.defense.memory import activation_bytes
from dp.diffusion.denoisers import Gaussian
from dp.evaluation.differences import (
    changes,
    criteria,
    differences,
    gradients,
    hyperparameters,
    mode_name,
    short_steps,
    through,
)
from dp.evaluation.evaluate import Arm, Evaluation, null_control
from dp.files.cache import cache_folder
from dp.output import record, report
from dp.output.progress import Bar, Display, Downloads
from dp.output.tracking import Tracker
from dp.purifiers import diffpure, none
from dp.rng import Streams
from dp.runs.machine import device_of, free_bytes, shard_of, workers_of
from dp.runs.validate import NOT_PASSED, OTHERS, check_call, check_kinds, check_protocol
from dp.runs.workers import run_units
from dp.spelling import near_matches
from dp.statistics import metrics
from dp.subset import Subset

ROOT = Path(__file__).parent
GROUPS = ("dataset", "classifier", "denoiser", "purifier", "attack", "threat_model", "protocol", "tracking")
USER_ERRORS = (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError, OSError)
failures: list[str] = []  # of this process's runs
console = Console(soft_wrap=True, markup=False, highlight=False, width=None if sys.stdout.isatty() else 120)


def by_dataset(values, *, _root_):
    """${by_dataset:{digits: 1, default: 2}}: the value for the chosen dataset."""
    name = _root_.dataset.name
    if name not in values and "default" not in values:
        raise ValueError(f"no value for dataset {name} among {', '.join(values)}: set the key on the command line")
    return values[name] if name in values else values["default"]


OmegaConf.register_new_resolver("by_dataset", by_dataset, replace=True)


def resolved(cfg: DictConfig, choices: dict) -> dict:
    """The configuration as plain data, with the names of the chosen options under `choices`."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    return {**plain, "choices": {group: choices[group] for group in GROUPS if group != "tracking"}}  # pyright: ignore[reportReturnType]


def composed(*overrides: str) -> dict:
    """The plain configuration that `python run.py overrides...` would run."""
    running = GlobalHydra.instance().hydra  # in the middle of a run there is one
    GlobalHydra.instance().hydra = None
    try:
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            cfg = compose("config", overrides=list(overrides), return_hydra_config=True)
    finally:
        GlobalHydra.instance().hydra = running
    return resolved(OmegaConf.masked_copy(cfg, [str(k) for k in cfg if k != "hydra"]), cfg.hydra.runtime.choices)


def check_overrides(given: list[str]) -> None:
    """Raises ValueError for key={}, which Hydra merges into what is there: it changes nothing."""
    idle = [o for o in given if re.fullmatch(r"[^+~=]+=\s*\{\s*\}", o)]
    if idle:
        key = idle[0].partition("=")[0]
        raise ValueError(f"need something to set, got {idle[0]}, which changes nothing: ~{key}.NAME takes one out")


def run_key(config: dict) -> str:
    """Same configuration, same key: readable names and a hash of all that can change a row."""
    kept = {k: v for k, v in config.items() if k not in (*config["key_ignores"], "choices")}
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:10]
    c = config["choices"]
    return f"{c['dataset']}-{c['purifier']}-{c['attack']}-{c['threat_model']}-{digest}".replace("/", "_")


def build(config: dict) -> Evaluation:
    """All objects, each once, from plain configuration; called in every worker process."""
    check_call({group: config[group] for group in GROUPS})
    check_protocol(config["protocol"], config["window"])
    device = device_of(config)
    if config["dtype"] not in ("float32", "bfloat16") or config["memory"] not in ("auto", "store", "recompute"):
        found = f"{config['dtype']}, {config['memory']}"
        raise ValueError(f"need dtype float32 or bfloat16 and memory auto, store or recompute, got {found}")
    dtype = getattr(torch, config["dtype"])
    if device.startswith("cuda"):  # the same bytes again on the same kind of machine, and float32 that is float32
        torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = True, False
    data, protocol = config["dataset"], config["protocol"]
    named = {k: v for k, v in config["classifier"].items() if k not in NOT_PASSED}
    classifier = instantiate(named, dtype=dtype, _convert_="all").to(device, memory_format=torch.channels_last)
    denoiser = instantiate(config["denoiser"], dtype=dtype, _convert_="all").to(
        device, memory_format=torch.channels_last
    )
    subset: Subset = instantiate(data["loader"], _convert_="all")
    threat, attack = (
        instantiate(config["threat_model"], _convert_="all"),
        instantiate(config["attack"], _convert_="all"),
    )
    check_norm(attack, config["choices"]["attack"], threat.norm)
    threat = threat.seen_by(classifier)
    node = {k: v for k, v in config["purifier"].items() if k not in NOT_PASSED}
    purify = instantiate(node, _convert_="all")
    others = {grad: config["purifier"][grad] for grad in OTHERS if config["purifier"].get(grad)}
    scored = Defended(purify, denoiser, classifier, draws_per_call=data["draws_per_call"], variants=others)
    none_at_all = config["choices"]["purifier"] == "none"
    attacked = scored if threat.grad == "full" or none_at_all else scored.gradient_mode(threat.grad)
    undefended = Defended(none.purify, None, classifier)
    judge = instantiate(protocol["judge"], _convert_="all") if protocol["judge"] and attack.steps else None
    arms = {
        "defended": Arm(attacked, scored, attack),
        "undefended": Arm(undefended, undefended, attack),
        "null": Arm(attacked, scored, null_control(attack, judge)),
    }
    first = subset.select(slice(0, 1))
    for modes in gradients(attack, threat.grad) - {("values",)}:
        scored.gradient_modes(modes)  # raises for one that this purifier does not have
    nfe = dry_nfe(attacked, first)  # also finds bad hyperparameters before any work
    dry_nfe(scored, first)
    one_step = functools.partial(diffpure.purify, t=0.1, steps=1, eta=0.0)
    if config["memory"] == "auto":
        x = first.x.to(device, memory_format=torch.channels_last)
        per_call = activation_bytes(Defended(one_step, denoiser, classifier), x, Streams(first.ids, 0, "probe"))
        at_once = per_call * data["lanes"] * data["draws_per_call"]
        fit = int(0.5 * free_bytes(device) / workers_of(config) / at_once)
        denoiser.memory = "store" if nfe <= fit else "recompute"
        denoiser.recompute.keep = max(1, fit)
    else:
        denoiser.memory = config["memory"]
    return Evaluation(
        subset=subset,
        arms=arms,
        threat=threat,
        seeds=protocol["seeds"],
        votes=protocol["votes"],
        lanes=data["lanes"],
        ties=protocol["ties"],
        device=device,
        judge=judge,
        known_draws=protocol["known_draws"],
        window=config["window"],
    )


def dry_nfe(model: Defended, one: Subset) -> int:
    """NFE of one purification, by running it around an exact Gaussian denoiser."""
    classifier = model.classifier
    dry = Defended(model.purifier, Gaussian(), classifier)
    with torch.no_grad():
        dry(one.x.to(next(classifier.parameters()).device), Streams(one.ids, 0, "dry"))
    return dry.nfe


def attack_nfe(config: dict, evaluation: Evaluation) -> int:
    """NFE of one draw of what the attack differentiates or asks for values; the largest of several views."""
    attacked, scored, attack = evaluation.arms["defended"]
    every = gradients(attack, config["threat_model"]["grad"])
    seen = [attacked if modes == ("values",) else scored.gradient_modes(modes) for modes in every]
    return max(dry_nfe(model, evaluation.subset.select(slice(0, 1))) for model in seen)


def judge(config: dict, key: str, folder: Path) -> dict | None:
    """Do what is missing of a run; its summary, or None while other shards are still to come."""
    if not isinstance(config["overwrite"], bool):
        raise ValueError(f"need overwrite true or false, got overwrite={config['overwrite']}")
    code, (part, parts), workers = record.code_hash(), shard_of(config), workers_of(config)
    if config["overwrite"] and parts > 1:
        raise ValueError("need shard=1/1 with overwrite=true, or one shard moves the rows of the others aside")
    summary = None if config["overwrite"] else record.read_summary(folder)
    if summary is not None:
        console.print(f"already finished, nothing to do ({folder})")
        if summary["code"] != code:
            console.print("note: the code has changed since; overwrite=true runs it again")
        elif config["audit"] is True and not summary["audited"]:
            audit_first(config, build(config), folder / audit.FILE, code)
            summary = audit.attach(folder, audit.read(folder / audit.FILE, code))
        return summary
    check_kinds(config, composed(*(f"{g}={option}" for g, option in config["choices"].items())))
    check_call({group: config[group] for group in GROUPS})
    prepare(config)
    evaluation = build(config)
    weakened = departures(config)
    record.begin(folder, config, code, config["overwrite"])
    describe(config, evaluation, key, workers)
    every = {(u.arm, u.seed, i) for u in evaluation.plan() for i in u.ids}
    rows = record.read_rows(folder)
    here = evaluation.subset.select(slice(part - 1, None, parts))
    window = max(1, min(evaluation.window, len(here.ids) // (evaluation.lanes * workers)))  # work for every worker
    mine = Evaluation(**{**vars(evaluation), "subset": here, "window": window})
    units = mine.plan(rows)
    tracker: Tracker | None = None
    if units:
        if rows:
            console.print(f"going on: {len(rows)} of {len(every)} rows are there")
        tracker = instantiate(config["tracking"], _convert_="all")(key, folder, config)
        assert tracker is not None
        try:
            audit_first(config, evaluation, folder / audit.FILE, code)
            with Display(console, mine, units, rows.values(), tracker) as display:
                run_units(build, config, units, folder, f"{part}of{parts}", min(workers, len(units)), display)
        except KeyboardInterrupt:
            saved = f"{len(record.read_rows(folder))} of {len(every)} rows are saved in {folder}"
            raise KeyboardInterrupt(f"interrupted: {saved}; the same command goes on") from None
    rows = record.read_rows(folder)
    if not every <= set(rows):
        console.print(
            f"shard {config['shard']} is done; {len(every) - len(rows)} of {len(every)} rows are left to the others",
        )
        return None
    ordered = record.merge(folder)
    judged = evaluation.judge
    rule, draws, screen = (judged.rule, judged.draws, judged.screen) if judged else (None, 0, 0)
    figures = metrics.summarise(ordered, evaluation.votes, rule, draws, screen, evaluation.ties)
    summary = {
        **figures,
        "nfe": next(row["nfe"] for row in ordered if row["arm"] == "defended"),
        "attack_nfe": attack_nfe(config, evaluation),
        "seconds": record.seconds(folder),
        "workers": workers,
        "device": torch.cuda.get_device_name() if evaluation.device.startswith("cuda") else "cpu",
        "config": config,
        **record.provenance(),
        "code": code,
        "gradient": gradient_of(config, evaluation),
        "differences": differences_of(config, evaluation),
        "criteria": criteria_of(config, evaluation),
        "departures": weakened,
        "scaled": scaled(config),
        "weaknesses": weaknesses_of(config, evaluation),
        "batch_bound": evaluation.arms["defended"].attack.batch_bound,
        "audited": audit.read(folder / audit.FILE, code),
    }
    record.write_summary(folder, summary)
    if tracker is not None:
        tracker.finish(summary)
    return summary


def audit_first(config: dict, evaluation: Evaluation, path: Path, code: str) -> None:
    """The small audit before a long job or of a finished one, unless it is there; what it finds stops nothing."""
    nfe = dry_nfe(evaluation.arms["defended"].attacked, evaluation.subset.select(slice(0, 1)))
    if not audit.due(config["audit"], evaluation, nfe) or audit.read(path, code):
        return
    console.print("a small audit (audit=false: none, auto: before long jobs)")
    found = audited(subject_of(config, evaluation, audit.QUICK_IMAGES, quick=True), console)
    audit.write(path, code, found, quick=True)
    for line in report.audit_lines(audit.entry(found, quick=True)):
        console.print(line)


def subject_of(config: dict, evaluation: Evaluation, images: int, quick: bool) -> Subject:
    """The first images of a run, and what the run claims, for the audit."""
    few = evaluation.subset.select(slice(0, images))
    few = Subset(few.ids, few.x.to(evaluation.device), few.y.to(evaluation.device))
    attacked, scored, attack = evaluation.arms["defended"]
    return Subject(
        evaluation=evaluation,
        images=few,
        claims=tuple(sorted(gradients(attack, evaluation.threat.grad))),
        exact=config["purifier"].get("clamp") != "straight_through",
        declared=hyperparameters(attacked, scored),
        quick=quick,
    )


def audited(subject: Subject, to: Console) -> list[Finding]:
    """What the audit finds, with its progress on a console."""
    with Bar(to, 1.0) as bar:
        return list(audit.audit(subject, lambda done, of, name: bar(done / of, f"audit {done + 1}/{of}: {name}")))


def prepare(config: dict) -> None:
    """Fetch what the configuration names and the cache lacks, sizes first. Raises FileNotFoundError, in one line that
    names every file that could not be had, its size, its address and the folder.
    """
    from dp.files.fetch import fetch, missing  # here: an HTTP library is only needed where something is missing

    absent, failed = missing(config), []
    if not absent:
        return
    console.print(f"to fetch into {cache_folder()}: {', '.join(map(str, absent))}")
    with Downloads(console) as downloads:
        for asset in absent:
            try:
                fetch(asset, downloads.file(asset.file, asset.megabytes), tries=3)
            except (ValueError, OSError) as error:
                failed.append(str(error).rpartition(": ")[0])  # without its advice
    if failed:
        advice = "connect and run this again, or put them there by hand (DP_CACHE names another folder)"
        raise FileNotFoundError(f"missing {len(failed)} of {len(absent)} files: {'; '.join(failed)}: {advice}")


def gradient_of(config: dict, evaluation: Evaluation) -> str:
    """Whether the attack's gradient is the scored defence's: `exact`, `approximate` (straight-through clamp), or the
    views that it is taken of.
    """
    every = gradients(evaluation.arms["defended"].attack, config["threat_model"]["grad"])
    exact = "approximate" if config["purifier"].get("clamp") == "straight_through" else "exact"
    return ", ".join(sorted(mode_name(modes) if modes else exact for modes in every))


def differences_of(config: dict, evaluation: Evaluation) -> list[str]:
    """Every difference between what is attacked and what is scored."""
    return differences(*evaluation.arms["defended"], config["threat_model"]["grad"])


def criteria_of(config: dict, evaluation: Evaluation) -> str:
    """What the attack goes by and what decides, where they are not the same."""
    judge, rule, votes = evaluation.judge, config["protocol"]["report"][0], evaluation.votes
    verdict = report.rule_name(rule, votes)
    if judge is not None and judge.in_loop:
        verdict, votes = f"the judge: {report.lost_when(judge)}", judge.draws
    return criteria(evaluation.arms["defended"].attack, verdict, votes, evaluation.known_draws)


def weaknesses_of(config: dict, evaluation: Evaluation) -> list[str]:
    """What keeps the attack from being as strong as it could be."""
    _, scored, attack = evaluation.arms["defended"]
    lacks = config["choices"]["attack"] == "strict" and any(name.startswith("mask_") for name in scored.variants)
    masks = ["the union lacks the mask attacks: attack=strict_mask"] if lacks else []
    return short_steps(attack, evaluation.threat) + masks


def departures(config: dict) -> list[str]:
    """Where a named protocol is not run as it is defined: what differs from the same command with groups alone, but for
    what is scaled to digits anyway.
    """
    choices = config["choices"]
    if choices["protocol"] == "default":
        return []
    groups = ("dataset", "classifier", "denoiser", "purifier", "threat_model", "protocol")
    plain = composed(*(f"{g}={choices[g]}" for g in groups))
    if choices["attack"] != plain["choices"]["attack"]:
        own = choices["attack"] == "strict_mask" and plain["choices"]["attack"] == "strict"  # it adds to the union
        changed = [] if own else [f"attack {choices['attack']} instead of {plain['choices']['attack']}"]
    else:
        changed = changes(config["attack"], plain["attack"], "attack")
    mine, theirs = (node["threat_model"]["grad"] for node in (config, plain))
    changed += [f"threat_model.grad {mine} instead of {theirs}"] if mine != theirs else []
    changed += changes(config["protocol"], plain["protocol"], "protocol")
    small = {line.split()[0] for line in scaled(plain)}
    return [line for line in changed if line.split()[0] not in small]


def scaled(config: dict) -> list[str]:
    """What a named protocol has on digits in place of its own numbers: every value of the protocol, the attack and the
    purifier that is another on CIFAR-10.
    """
    choices = config["choices"]
    if choices["dataset"] != "digits" or choices["protocol"] == "default":
        return []
    groups = [f"{g}={choices[g]}" for g in ("purifier", "attack", "threat_model", "protocol")]
    try:
        own = composed("dataset=cifar10", *groups)
    except OmegaConfBaseException:  # a purifier of digits alone
        own = composed("dataset=cifar10", "purifier=none", *groups[1:])
    nodes = ("protocol", "attack", *(("purifier",) if own["choices"]["purifier"] == choices["purifier"] else ()))
    found = [line for node in nodes for line in changes(config[node], own[node], node)]
    return found + changes(config["threat_model"]["eps"], own["threat_model"]["eps"], "threat_model.eps")


def describe(config: dict, evaluation: Evaluation, key: str, workers: int) -> None:
    """What is attacked, what is scored, how much of it."""
    first, choices, threat = evaluation.subset.select(slice(0, 1)), config["choices"], evaluation.threat
    attacked, scored, attack = evaluation.arms["defended"]
    images, grad = len(evaluation.subset.ids), config["threat_model"]["grad"]
    lines = [
        key,
        f"attacked: {threat.norm} {config['threat_model']['eps']}, {attack.says(through(attacked, scored, grad))}; "
        f"{attack_nfe(config, evaluation)} NFE a draw; gradient: {gradient_of(config, evaluation)}",
        f"scored: {choices['purifier']} ({dry_nfe(scored, first)} NFE), {evaluation.votes} fresh draws per image; "
        f"{images} images x {len(evaluation.seeds)} seeds on {evaluation.device}, {workers} workers",
        *([criterion] if (criterion := criteria_of(config, evaluation)) else []),
        *(f"attacked is not what is scored: {difference}" for difference in differences_of(config, evaluation)),
        *(f"protocol {choices['protocol']} is not run as it is defined: {what}" for what in departures(config)),
        *weaknesses_of(config, evaluation),
    ]
    if evaluation.known_draws:
        lines[2] = lines[2].replace("fresh draws", "draws that the attacker knows")
    if evaluation.judge is not None:
        lines.insert(3, report.judge_line(evaluation.judge, evaluation.arms["defended"].attack))
    quick = images < config["dataset"].get("full_size", 0) and config["dataset"]["name"] == "digits"
    if quick and choices["attack"].startswith("pgd_eot") and choices["protocol"] == "default":
        given = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
        given = [o for o in given if not re.match(r"\+|protocol\.|attack\.(iterations|eot)=", o)]
        given = [o for o in given if re.split(r"[.=]", o)[0] not in config["key_ignores"]]
        full = " ".join(["python run.py +experiment=digits/full", *given])
        lines.append(f"this is the quick budget; the full one: {full}")
    for line in lines:
        console.print(line)


def show(summary: dict) -> None:
    """The table row, the published one, and what weakens it."""
    method = summary["config"]["purifier"].get("published")
    console.print(report.row_table(summary))
    for line in [*report.published_lines(report.published_rows(summary["config"], method)), *report.warnings(summary)]:
        console.print(line)
    took = f"{report.clock(summary['seconds'])} of worker time"
    console.print(
        f"NFE {summary['nfe']} scored, {summary['attack_nfe']} attacked; {took}; {summary['device']}", highlight=False
    )


def note_cell(folder: Path | None, summary: dict | None, error: str | None) -> None:
    """A line for the sweep's table, written from whatever process ran the cell."""
    overrides = " ".join(o for o in HydraConfig.get().overrides.task if not o.startswith("+experiment"))
    with Path(os.environ["DP_SWEEP"]).open("a") as file:
        file.write(
            json.dumps({"overrides": overrides, "folder": str(folder), "summary": summary, "error": error}) + "\n"
        )


@hydra.main(version_base="1.3", config_path=str(ROOT / "conf"), config_name="config")
def main(cfg: DictConfig) -> None:
    """Hydra's entry; a launcher may pickle it, so it holds nothing."""
    one(cfg)


def one(cfg: DictConfig) -> None:
    """One run, or one cell of a sweep. A user's error is noted, not raised, so that the other cells go on."""
    folder, summary, error = None, None, None
    try:
        check_overrides(HydraConfig.get().overrides.task)
        config = resolved(cfg, HydraConfig.get().runtime.choices)
        key = run_key(config)
        folder = Path(config["results"]) / key
        summary = judge(config, key, folder)
        if summary is not None:
            show(summary)
        error = None if summary else "waits for the other shards"
        console.print(f"results: {folder}")
    except USER_ERRORS as caught:
        error = sentence(caught)
        print(f"error: {error}", file=sys.stderr)
        failures.append(error)
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        note_cell(folder, summary, error)


def finish_sweep(notes: Path) -> int:
    """The table of a sweep, printed and written to results/sweeps/; how many cells failed."""
    if not notes.exists():
        return 0
    runs = [json.loads(line) for line in notes.read_text().splitlines()]
    notes.unlink()
    failed = sum(run["summary"] is None for run in runs)
    path = Path("results/sweeps") / f"{hashlib.sha256(json.dumps(sys.argv[1:]).encode()).hexdigest()[:10]}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    report.sweep_frame(runs).to_csv(path, index=False, float_format="%.2f")
    console.print(report.sweep_table(runs, f"{len(runs)} cells, {failed} failed"))
    console.print(f"sweep: {path}")
    return failed


def sentence(error: BaseException) -> str:
    """One line for a person out of any error that a user can cause."""
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        return sentence(error.__cause__)
    text = str(error)
    if "Could not find '" in text and "Available options in" in text:
        wanted = text.split("Could not find '")[1].split("'")[0]
        group, _, option = wanted.rpartition("/")
        options = [
            o.strip()
            for o in text.split("Available options in", 1)[1].split("Config search path")[0].split("\n")[1:]
            if o.strip()
        ]
        return f"unknown option {group}={option}{near_matches(option, options)}; there are: {', '.join(options)}"
    if "Could not override '" in text:
        key = text.split("Could not override '")[1].split("'")[0]
        parent, _, leaf = key.rpartition(".")
        return f"unknown key {key}{near_matches(leaf, _keys_beside(parent))}; to add a new one write +{key}=..."
    return " ".join(text.split("full_key:")[0].split()) or type(error).__name__


def _keys_beside(parent: str) -> list[str]:
    """The keys of a node in this command's configuration, for near matches."""
    node = composed(*[a for a in sys.argv[1:] if a.partition("=")[0] in GROUPS and "," not in a])
    for name in parent.split(".") if parent else ():
        node = node.get(name, {})
    return [str(key) for key in node] if isinstance(node, dict) else []


def cli() -> int:
    """0 done, 2 a user's error in one line, 130 interrupted."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that errors arrive here
    notes = Path(f"results/.sweep-{os.getpid()}.jsonl")
    os.environ["DP_SWEEP"] = str(notes)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # also where SIGINT is ignored
    try:
        main()
    except KeyboardInterrupt as stop:
        console.print(
            str(stop) or "interrupted before anything was judged; the same command starts again",
            markup=False,
        )
        return 130
    except USER_ERRORS as error:
        print(f"error: {sentence(error)}", file=sys.stderr)
        return 2
    finally:
        failed = finish_sweep(notes)
        signal.signal(signal.SIGTERM, before)
    return 2 if failures or failed else 0


if __name__ == "__main__":
    import run  # launchers and workers import what they are sent by this name

    sys.exit(run.cli())
