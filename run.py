"""Compose a configuration, attack and judge its defence, and print the table row: python run.py [group=option] [key=value] ..."""

import difflib
import functools
import hashlib
import inspect
import json
import os
import signal
import sys
import time
from pathlib import Path

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from hydra.utils import get_method, instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from dp import metrics, record, report
from dp.datasets import Subset
from dp.defense import Defended, activation_bytes
from dp.denoisers import Gaussian
from dp.evaluate import Arm, Evaluation, Unit, null_control
from dp.purifiers import diffpure, none
from dp.rng import Streams
from dp.workers import Event, run_units

ROOT = Path(__file__).parent
GROUPS = ("dataset", "classifier", "denoiser", "purifier", "attack", "threat_model", "protocol", "tracking")
console = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 120)


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


def run_key(config: dict) -> str:
    """Same configuration, same key: readable names and a hash of all that can change a row."""
    kept = {k: v for k, v in config.items() if k not in config["key_ignores"]}
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:10]
    c = config["choices"]
    return f"{c['dataset']}-{c['purifier']}-{c['attack']}-{c['threat_model']}-{digest}".replace("/", "_")


def check_call(node, where: str = "") -> None:
    """Every `_target_` below node accepts just the keys it is given, with the types its signature names: known before anything runs."""
    if not isinstance(node, dict):
        return
    for key, value in node.items():
        check_call(value, f"{where}.{key}".lstrip("."))
    if "_target_" not in node:
        return
    given = {k: v for k, v in node.items() if not k.startswith("_") and k not in ("surrogate", "published", "name")}
    parameters = inspect.signature(get_method(node["_target_"]) if "." in node["_target_"] else node["_target_"]).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    unknown = [k for k in given if k not in parameters]
    if unknown:
        raise ValueError(f"unknown key {where}.{unknown[0]}{_near(unknown[0], parameters)}: {node['_target_']} does not take it")
    missing = [
        k
        for k, p in parameters.items()
        if p.default is p.empty and k not in given and k not in ("self", "dtype") and (p.kind is p.KEYWORD_ONLY or "_partial_" not in node)
    ]
    if missing:
        raise ValueError(f"missing key {where}.{missing[0]}: {node['_target_']} needs it")
    for key, value in given.items():
        want = parameters[key].annotation
        exact = {int: (int,), float: (int, float), str: (str,), bool: (bool,)}.get(want)
        if exact and key != "eps" and (not isinstance(value, exact) or (isinstance(value, bool) and want is not bool)):
            raise ValueError(f"need {where}.{key} of type {want.__name__}, got {value!r}")


def _near(word: str, known) -> str:
    close = difflib.get_close_matches(word, list(known), n=3, cutoff=0.5)
    return f" (did you mean {' or '.join(close)}?)" if close else ""


def build(config: dict) -> Evaluation:
    """All objects, each once, from plain configuration; called in every worker process."""
    check_call({group: config[group] for group in GROUPS})
    device = ("cuda" if torch.cuda.is_available() else "cpu") if config["device"] == "auto" else config["device"]
    if config["dtype"] not in ("float32", "bfloat16") or config["memory"] not in ("auto", "store", "recompute"):
        raise ValueError(f"need dtype float32 or bfloat16 and memory auto, store or recompute, got {config['dtype']}, {config['memory']}")
    dtype = getattr(torch, config["dtype"])
    data, protocol = config["dataset"], config["protocol"]
    named = {k: v for k, v in config["classifier"].items() if k != "name"}
    classifier = instantiate(named, dtype=dtype, _convert_="all").to(device, memory_format=torch.channels_last)
    denoiser = instantiate(config["denoiser"], dtype=dtype, _convert_="all").to(device, memory_format=torch.channels_last)
    subset: Subset = instantiate(data["loader"], _convert_="all")
    threat, attack = instantiate(config["threat_model"], _convert_="all"), instantiate(config["attack"], _convert_="all")
    node = {k: v for k, v in config["purifier"].items() if k not in ("surrogate", "published")}
    purify = instantiate(node, _convert_="all")
    scored = Defended(purify, denoiser, classifier, data["draws_per_call"])
    attacked = scored
    if threat.grad == "surrogate" and config["choices"]["purifier"] != "none":
        cheaper = config["purifier"].get("surrogate")
        if not cheaper:
            raise ValueError(f"need a surrogate mapping in purifier {config['choices']['purifier']} for grad=surrogate, got none: use full")
        attacked = Defended(functools.partial(purify, **cheaper), denoiser, classifier, data["draws_per_call"])
    undefended = Defended(none.purify, None, classifier)
    arms = {
        "defended": Arm(attacked, scored, attack),
        "undefended": Arm(undefended, undefended, attack),
        "null": Arm(attacked, scored, null_control(attack)),
    }
    first = subset.select(slice(0, 1))
    nfe = dry_nfe(attacked, first)  # also finds bad hyperparameters before any work
    dry_nfe(scored, first)
    one_step = functools.partial(diffpure.purify, t=0.1, steps=1, eta=0.0)
    if config["memory"] == "auto":
        x = first.x.to(device, memory_format=torch.channels_last)
        per_call = activation_bytes(Defended(one_step, denoiser, classifier), x, Streams(first.ids, 0, "probe"))
        need = per_call * max(1, nfe) * data["lanes"] * data["draws_per_call"]
        denoiser.memory = "store" if need < 0.5 * free_bytes(device) / workers_of(config) else "recompute"
    else:
        denoiser.memory = config["memory"]
    return Evaluation(
        subset, arms, threat, protocol["seeds"], protocol["votes"], data["lanes"], protocol["ties"], device
    )


def dry_nfe(model: Defended, one: Subset) -> int:
    """NFE of one purification, by running it around an exact Gaussian denoiser."""
    classifier = model.classifier
    dry = Defended(model.purifier, Gaussian().to(next(classifier.parameters()).device), classifier)
    with torch.no_grad():
        dry(one.x.to(next(classifier.parameters()).device), Streams(one.ids, 0, "dry"))
    return dry.nfe


def free_bytes(device: str) -> float:
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def workers_of(config: dict) -> int:
    """Worker processes: as told, or one per core on a CPU and one on a GPU."""
    if config["workers"] != "auto":
        if not isinstance(config["workers"], int) or config["workers"] < 1:
            raise ValueError(f"need workers auto or >= 1, got workers={config['workers']}")
        return config["workers"]
    on_gpu = config["device"].startswith("cuda") or (config["device"] == "auto" and torch.cuda.is_available())
    return 1 if on_gpu else len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def shard_of(config: dict) -> tuple[int, int]:
    """k/n -> (k, n)."""
    part, _, parts = str(config["shard"]).partition("/")
    if not (part.isdigit() and parts.isdigit() and 1 <= int(part) <= int(parts)):
        raise ValueError(f"need shard k/n with 1 <= k <= n, got shard={config['shard']}")
    return int(part), int(parts)


class Display:
    """Progress of all workers: a bar on a terminal, plain lines elsewhere; estimates come from a cost per unit in network evaluations."""

    def __init__(self, evaluation: Evaluation, units: list[Unit], rows: list, tracker, every: float = 10.0):
        self.evaluation, self.tracker, self.every = evaluation, tracker, every
        self.total = sum(sum(self.cost(u)) for u in units)
        self.done, self.part = 0.0, {}
        self.verdicts = {"adv": [], "adv_vote": []}
        for row in rows:
            self.count(row)
        self.began = self.said = time.monotonic()
        self.announced = False
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn(compact=True))
        self.bar = Progress(*columns, console=console, transient=True) if console.is_terminal else None
        self.task = self.bar.add_task("starting", total=self.total) if self.bar else None

    def __enter__(self):
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *_):
        if self.bar:
            self.bar.stop()

    def cost(self, unit: Unit) -> tuple[float, float]:
        """Estimated work of attacking and of scoring a unit; a gradient counts as three evaluations."""
        arm = self.evaluation.arms[unit.arm]
        net = 0.3 if unit.arm == "undefended" else 1.0
        look = 1 if unit.arm != "null" else 1 / 3 if arm.attack.select == "best" else 0.01
        attack = 3 * arm.attack.steps * arm.attack.eot * look * (0.1 if unit.arm == "undefended" else 1.0)
        return net * attack + 1e-6, net * self.evaluation.votes * (1 if unit.arm == "null" else 2)

    def count(self, row) -> None:
        if row["arm"] == "defended":
            self.verdicts["adv"].append(row["adv"][0] == row["label"])
            self.verdicts["adv_vote"].append(row["adv_vote"] == row["label"])

    def __call__(self, event: Event) -> None:
        attack, score = self.cost(event.unit)
        if event.rows is None:
            self.part[event.unit] = attack * event.step / max(1, event.steps)
        else:
            self.part.pop(event.unit, None)
            self.done += attack + score
            for row in event.rows:
                self.count(row)
            if self.verdicts["adv"]:
                images = len(self.verdicts["adv"])
                figures = {"robust so far": self.running("adv"), "robust so far, vote": self.running("adv_vote"), "images": images}
                self.tracker.log(figures)
        self.show(event)

    def running(self, field: str) -> float:
        return 100 * sum(self.verdicts[field]) / len(self.verdicts[field])

    def show(self, event: Event) -> None:
        worked = self.done + sum(self.part.values())
        elapsed = time.monotonic() - self.began
        left = elapsed * (self.total - worked) / max(worked, 1e-9)
        if not self.announced and elapsed > 20:
            self.announced = True
            if left > 3600:
                console.print(f"estimate: {report.clock(left)} to go")
        seeds = list(self.evaluation.seeds)
        so_far = f", robust so far {self.running('adv'):.1f} % of {len(self.verdicts['adv'])}" if self.verdicts["adv"] else ""
        line = (
            f"seed {event.unit.seed} ({seeds.index(event.unit.seed) + 1}/{len(seeds)}) {event.unit.arm}, "
            f"batch of {len(event.unit.ids)} from id {event.unit.ids[0]}, iteration {event.step}/{event.steps}{so_far}"
        )
        if self.bar and self.task is not None:
            self.bar.update(self.task, completed=worked, description=line)
        elif time.monotonic() - self.said > self.every:
            self.said = time.monotonic()
            console.print(f"{100 * worked / self.total:3.0f} %, {report.clock(left)} to go: {line}", highlight=False)


def judge(config: dict, key: str, folder: Path) -> dict | None:
    """Do what is missing of a run; its summary, or None while other shards are still to come."""
    code, (part, parts), workers = record.code_hash(), shard_of(config), workers_of(config)
    summary = None if config["overwrite"] else record.read_summary(folder)
    if summary is not None:
        console.print(f"already finished, nothing to do ({folder})", highlight=False)
        if summary["code"] != code:
            console.print("note: the code has changed since; overwrite=true runs it again", highlight=False)
        return summary
    evaluation = build(config)
    record.begin(folder, config, code, config["overwrite"])
    describe(config, evaluation, key, workers)
    every = {(u.arm, u.seed, i) for u in evaluation.plan() for i in u.ids}
    rows = record.read_rows(folder)
    mine = Evaluation(**{**vars(evaluation), "subset": evaluation.subset.select(slice(part - 1, None, parts))})
    units = mine.plan(rows)
    if units:
        if rows:
            console.print(f"going on: {len(rows)} of {len(every)} rows are there", highlight=False)
        tracker = instantiate(config["tracking"], key, folder, config, _convert_="all")
        tracker = tracker() if callable(tracker) else tracker
        try:
            with Display(mine, units, list(rows.values()), tracker) as display:
                run_units(build, config, units, folder, f"{part}of{parts}", min(workers, len(units)), display)
        except KeyboardInterrupt:
            saved = len(record.read_rows(folder))
            raise KeyboardInterrupt(f"interrupted: {saved} of {len(every)} rows are saved in {folder}; the same command goes on") from None
    else:
        tracker = None
    rows = record.read_rows(folder)
    if not every <= set(rows):
        console.print(f"shard {config['shard']} is done; {len(every) - len(rows)} of {len(every)} rows are left to the others", highlight=False)
        return None
    ordered = record.merge(folder)
    figures = metrics.summarise(ordered, evaluation.votes)
    summary = {
        **figures,
        "nfe": next(row["nfe"] for row in ordered if row["arm"] == "defended"),
        "attack_nfe": dry_nfe(evaluation.arms["defended"].attacked, evaluation.subset.select(slice(0, 1))),
        "seconds": record.seconds(folder),
        "workers": workers,
        "device": torch.cuda.get_device_name() if evaluation.device.startswith("cuda") else "cpu",
        "config": config,
        **record.provenance(),
        "code": code,
        "audited": False,
    }
    record.write_summary(folder, summary)
    if tracker is not None:
        tracker.finish(summary)
    return summary


def describe(config: dict, evaluation: Evaluation, key: str, workers: int) -> None:
    """What is attacked, what is scored, how much of it."""
    first = evaluation.subset.select(slice(0, 1))
    defended, p, c = evaluation.arms["defended"], config["protocol"], config["choices"]
    exact = "the scored defence itself, exactly" if defended.attacked is defended.scored else "its surrogate"
    console.print(
        f"{key}\nattack: {c['attack']}, {config['threat_model']['norm']} {config['threat_model']['eps']}, {defended.attack.steps} steps of "
        f"{defended.attack.eot} draws, through {exact} ({dry_nfe(defended.attacked, first)} NFE)\n"
        f"scored: {c['purifier']} ({dry_nfe(defended.scored, first)} NFE), {p['votes']} fresh draws of each image; "
        f"{p['images']} images x {len(p['seeds'])} seeds on {evaluation.device}, {workers} workers",
        highlight=False,
    )
    if p["images"] < config["dataset"].get("full_size", 0):
        given = [o for o in HydraConfig.get().overrides.task if not o.startswith("+experiment")] if HydraConfig.initialized() else []
        command = " ".join(["python run.py +experiment=digits/full", *given])
        console.print(f"this is the quick budget; the full one: {command}", highlight=False)


def show(summary: dict, folder: Path) -> None:
    method = summary["config"]["purifier"].get("published")
    console.print(report.row_table(summary))
    for line in [*report.published_lines(report.published_rows(summary["config"], method)), *report.warnings(summary)]:
        console.print(line, highlight=False)
    took = f"{report.clock(summary['seconds'])} of worker time"
    console.print(f"NFE {summary['nfe']} scored, {summary['attack_nfe']} attacked; {took}; {summary['device']}", highlight=False)
    console.print(f"results: {folder}", highlight=False)


def note_cell(config: dict | None, folder: Path | None, summary: dict | None, error: str | None) -> None:
    """A line for the sweep's table, written from whatever process ran the cell."""
    overrides = " ".join(o for o in HydraConfig.get().overrides.task if not o.startswith("+experiment"))
    with Path(os.environ["DP_SWEEP"]).open("a") as file:
        file.write(json.dumps({"overrides": overrides, "folder": str(folder), "summary": summary, "error": error}) + "\n")


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
    """One run, or one cell of a sweep. Raises and never exits: an exit inside a cell would end the sweep."""
    multirun = HydraConfig.get().mode == RunMode.MULTIRUN and "DP_SWEEP" in os.environ
    config, folder = None, None
    try:
        config = resolved(cfg, HydraConfig.get().runtime.choices)
        key = run_key(config)
        folder = Path(config["results"]) / key
        summary = judge(config, key, folder)
        if summary is not None:
            show(summary, folder)
        else:
            console.print(f"results: {folder}", highlight=False)
        if multirun:
            note_cell(config, folder, summary, None if summary else "other shards are to come")
    except Exception as error:
        if multirun:
            console.print(f"this cell failed: {sentence(error)}", highlight=False, markup=False)
            note_cell(config, folder, None, sentence(error))
        raise


def finish_sweep(notes: Path) -> None:
    """The table of a sweep, printed and written to results/sweeps/."""
    if not notes.exists():
        return
    cells = [json.loads(line) for line in notes.read_text().splitlines()]
    notes.unlink()
    name = hashlib.sha256(json.dumps(sys.argv[1:]).encode()).hexdigest()[:10]
    folder = Path("results/sweeps")
    folder.mkdir(parents=True, exist_ok=True)
    table = report.sweep_table(cells, f"{len(cells)} cells, {sum(c['error'] is not None for c in cells)} failed")
    console.print(table)
    report.sweep_frame(cells).to_csv(folder / f"{name}.csv", index=False, float_format="%.2f")
    console.print(f"sweep: {folder / name}.csv", highlight=False)


def sentence(error: BaseException) -> str:
    """One line for a person out of any error that a user can cause."""
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        return sentence(error.__cause__)
    text = str(error)
    if "Could not find '" in text and "Available options in" in text:
        wanted = text.split("Could not find '")[1].split("'")[0]
        group, _, option = wanted.rpartition("/")
        options = [o.strip() for o in text.split("Available options in", 1)[1].split("\n")[1:] if o.strip()]
        return f"unknown option {group}={option}{_near(option, options)}; there are: {', '.join(options)}"
    if "Could not override '" in text:
        key = text.split("Could not override '")[1].split("'")[0]
        parent, _, leaf = key.rpartition(".")
        return f"unknown key {key}{_near(leaf, _keys_beside(parent))}; to add a new one write +{key}=..."
    return " ".join(text.split("full_key:")[0].split()) or type(error).__name__


def _keys_beside(parent: str) -> list[str]:
    """The keys of a node in the default configuration, for near matches."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    groups = [a for a in sys.argv[1:] if "=" in a and a.split("=")[0] in GROUPS and "," not in a]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("config", overrides=groups)
    node = OmegaConf.select(cfg, parent) if parent else cfg
    return [str(k) for k in node] if isinstance(node, DictConfig) else []


def cli() -> int:
    """0 done, 2 a user's error in one line, 130 interrupted."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that errors arrive here
    notes = ROOT / "results" / f".sweep-{os.getpid()}.jsonl"
    os.environ["DP_SWEEP"] = str(notes)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        main()
    except KeyboardInterrupt as stop:
        console.print(str(stop) or "interrupted before anything was judged; the same command starts again", highlight=False, markup=False)
        return 130
    except (HydraException, OmegaConfBaseException, ValueError, OSError) as error:
        print(f"error: {sentence(error)}", file=sys.stderr)
        return 2
    finally:
        finish_sweep(notes)
    return 0


if __name__ == "__main__":
    sys.exit(cli())
