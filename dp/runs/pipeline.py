"""A run from its configuration to its summary: resume, prepare, execute, summarize."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from rich.console import Console

from dp.audit import battery
from dp.audit.check import Finding, Subject
from dp.evaluation.evaluate import Evaluation
from dp.evaluation.work import Costs, costs, total
from dp.files.cache import cache_folder
from dp.output import record, report
from dp.output.console import console
from dp.output.iterations import write_iterations
from dp.output.progress import Bar, Display, Downloads
from dp.output.snapshots import Snapshots
from dp.output.starts import note_start
from dp.output.tracking import NoTracking, Tracker
from dp.runs.build import build
from dp.runs.by_dataset import is_quick
from dp.runs.cards import write_card
from dp.runs.caveats import Caveats, caveats_of
from dp.runs.compose import Setup, make
from dp.runs.early import check_denoiser, check_early
from dp.runs.engines.interface import Engine, Work
from dp.runs.errors import USER_ERRORS, sentence
from dp.runs.faster import faster_lines
from dp.runs.keys import run_key
from dp.runs.machine import shard_of
from dp.runs.mirrored import content
from dp.runs.sources import sources_hash
from dp.runs.timing import long_line
from dp.runs.validate import check_setup
from dp.statistics import metrics
from dp.subset import Subset


@dataclass
class Job:
    """A run that is ready to start: its objects and its caveats."""

    setup: Setup
    folder: Path
    code: str
    evaluation: Evaluation
    caveats: Caveats
    engine: Engine
    tracker: Tracker | None = None

    @cached_property
    def work(self) -> dict[str, Costs]:
        """What an image costs under each condition."""
        return costs(self.evaluation)

    @cached_property
    def workers(self) -> int:
        """How many units are under way at once."""
        return self.engine.workers(self.config)

    @property
    def config(self) -> dict:
        """The composed configuration."""
        return self.setup.config

    @property
    def preset(self) -> str | None:
        """The name of the preset, `+experiment=NAME`, if the command has one."""
        word = self.setup.words.get("experiment")
        return None if word is None else word.partition("=")[2]

    @property
    def rows(self) -> set[tuple[str, int, int]]:
        """The (arm, seed, id) of every row that the run has when it is finished."""
        return {(u.arm, u.seed, i) for u in self.evaluation.plan() for i in u.ids}

    @property
    def snapshots(self) -> Snapshots:
        """The saved states of attacks that are under way."""
        return Snapshots(self.folder, run_key(self.config), self.code)

    @property
    def shard(self) -> Evaluation:
        """The evaluation of this process's share of the images."""
        return self.evaluation.of_shard(*shard_of(self.config), self.workers)


def folder_of(setup: Setup) -> Path:
    """The folder of a run. Raises ValueError for a configuration that cannot be run."""
    check_setup(setup)
    return Path(setup.config["results"]) / run_key(setup.config)


def judged(setup: Setup, folder: Path) -> dict | None:
    """Do what is missing of a run. Returns its summary, or None while other shards are not finished."""
    summary = resume(setup, folder)
    if summary is not None:
        return summary
    job = prepare(setup, folder)
    try:
        execute(job)
        return summarize(job)
    finally:
        if job.tracker is not None:
            job.tracker.close()


def resume(setup: Setup, folder: Path) -> dict | None:
    """The summary of a run that is finished already, or None. If the command asks for an audit, it is added."""
    config, code = setup.config, sources_hash(setup.config)
    summary = None if config["overwrite"] else record.read_summary(folder)
    if summary is None:
        return None
    console.print(f"already finished, nothing to do ({folder})")
    if summary["code"] != code:
        console.print("note: the code has changed since; overwrite=true runs it again")
    elif config["audit"] is True and not summary["audited"]:
        audit_first(built(setup, folder, code))
        summary = battery.attach(folder, battery.read(folder / battery.FILE, code))
        write_card(folder)
    return summary


def prepare(setup: Setup, folder: Path) -> Job:
    """Check the configuration, fetch its files, build its objects, and print the announcement."""
    for line in setup.notes:
        console.print(line)
    if is_quick(setup.config["dataset"]):
        name = setup.config["dataset"]["name"]
        console.print(f"dataset {name} has the quick budget: +dataset.budget=full takes the full one")
    check_denoiser(setup)
    check_early(setup.config)
    fetch_missing(setup.config)
    job = built(setup, folder, sources_hash(setup.config))
    record.begin(folder, job.config, job.code, job.config["overwrite"])
    facts = job.caveats.as_data()
    own = len(job.shard.subset.ids)
    for line in report.announcement(folder.name, setup, job.evaluation, facts, job.workers, own):
        console.print(line)
    evaluations = total(job.shard.plan(), job.work, job.evaluation.lanes)
    console.print(report.work_line(evaluations))
    for line in long_line(job.config, job.evaluation, evaluations, job.workers):
        console.print(line)
    for line in faster_lines(job.evaluation, job.config):
        console.print(line)
    return job


def built(setup: Setup, folder: Path, code: str) -> Job:
    """The objects of a run, and its caveats."""
    evaluation = build(setup.config)
    engine: Engine = make(setup.config["engine"], modules=setup.config["plugins"]["modules"])
    return Job(setup, folder, code, evaluation, caveats_of(setup, evaluation), engine)


def execute(job: Job) -> None:
    """Attack and score what is left of this process's shard. Every unit is saved when it is finished."""
    (part, parts), shard = shard_of(job.config), job.shard
    rows = record.read_rows(job.folder)
    begun, unused = job.snapshots.begun(rows)
    units = shard.plan(rows, begun)
    for line in unused:
        console.print(line)
    if not units:
        return
    going_on = len(set(units) & set(begun))
    if rows or going_on:
        states = f", and the attacks of {going_on} units go on from their saved state" if going_on else ""
        console.print(f"going on: {len(rows)} of {len(job.rows)} rows are done{states}")
    for line in record.damaged_rows(job.folder):
        console.print(line)
    job.tracker = tracker = tracker_of(job)
    each = {arm: found.total for arm, found in job.work.items()}
    note_start(job.folder, str(job.config["shard"]), job.workers, len(job.rows), each)
    try:
        audit_first(job)
        with Display(console, shard, units, rows.values(), tracker, job.work, begun, job.workers) as display:
            work = Work(build, job.config, units, job.folder, f"{part}of{parts}")
            job.engine.run(work, job.evaluation, display)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted: {saved(job)}; the same command goes on") from None


def saved(job: Job) -> str:
    """What a stopped run has saved, in words."""
    rows = record.read_rows(job.folder)
    begun, _ = job.snapshots.begun(rows)
    states = f", and the state of the attack on {sum(len(unit.ids) for unit in begun)} more" if begun else ""
    return f"{len(rows)} of {len(job.rows)} rows are saved in {job.folder}{states}"


def summarize(job: Job) -> dict | None:
    """Merge the rows, write the summary and return it. Returns None while rows of other shards are missing."""
    config, evaluation, missing = job.config, job.evaluation, len(job.rows - set(record.read_rows(job.folder)))
    if missing:
        console.print(f"shard {config['shard']} is done; {missing} of {len(job.rows)} rows are left to the others")
        return None
    for line in record.damaged_times(job.folder):
        console.print(line)
    rows, judge = record.merge(job.folder), evaluation.judge
    rule, samples, screen = (judge.rule, judge.draws, judge.screen) if judge else (None, 0, 0)
    summary = {
        "format": record.FORMAT,
        **metrics.summarize(rows, evaluation.votes, rule, samples, screen, evaluation.ties),
        "seconds": record.seconds(job.folder),
        "workers": job.workers,
        "device": torch.cuda.get_device_name() if evaluation.device.startswith("cuda") else "cpu",
        "config": config,
        **record.provenance(),
        "code": job.code,
        "caveats": job.caveats.as_data(),
        "audited": battery.read(job.folder / battery.FILE, job.code),
    }
    if names := record.unrepeatable(job.folder):
        summary["unrepeatable"] = names
    write_iterations(job.folder, rows)
    record.write_summary(job.folder, summary)
    job.snapshots.clear()
    write_card(job.folder)
    mirror(job, summary)
    return summary


def tracker_of(job: Job) -> Tracker:
    """What the run reports to."""
    made = make(job.config["tracking"], modules=job.config["plugins"]["modules"])
    return made(job.folder.name, job.folder, job.config, job.preset)


def mirror(job: Job, summary: dict) -> None:
    """Tell the tracker of the finished run. The run is whole without it, so trouble with its pictures is only said."""
    tracker = job.tracker or tracker_of(job)  # a run that was stopped after its last row has none yet
    if isinstance(tracker, NoTracking):
        return
    try:
        told = content(job.folder, summary, job.preset, tracker.images)
    except (*USER_ERRORS, RuntimeError) as error:  # such as a GPU without room for the networks once more
        console.print(f"note: the tracker gets no pictures: {sentence(error)}")
        told = content(job.folder, summary, job.preset, 0)
    tracker.finish(told)


def audit_first(job: Job) -> None:
    """Run the quick audit, if it is due and not done already. Its findings are printed and never stop the run."""
    path = job.folder / battery.FILE
    if not battery.due(job.config["audit"], job.evaluation, job.caveats.nfe) or battery.read(path, job.code):
        return
    console.print("quick audit (audit=false: none; audit=auto: only before long jobs)")
    findings = audited(subject_of(job, battery.QUICK_IMAGES, quick=True), console)
    battery.write(path, job.code, findings, quick=True)
    for line in report.audit_lines(battery.entry(findings, quick=True)):
        console.print(line)


def subject_of(job: Job, images: int, quick: bool) -> Subject:
    """The first images of a run, with its evaluation and caveats, for the audit."""
    few, device = job.evaluation.subset.select(slice(0, images)), job.evaluation.device
    return Subject(job.evaluation, Subset(few.ids, few.x.to(device), few.y.to(device)), job.caveats, quick)


def audited(subject: Subject, to: Console) -> list[Finding]:
    """The findings of the audit. Its progress is printed to a console."""
    with Bar(to, 1.0) as bar:
        return list(battery.audit(subject, lambda done, of, name: bar(done / of, f"audit {done + 1}/{of}: {name}")))


def fetch_missing(config: dict) -> None:
    """Fetch the files of a configuration that the cache does not have. Their sizes are printed first.

    Raises FileNotFoundError if a file cannot be fetched. The message is one line with the name, size and address of
    every such file, and the folder.
    """
    from dp.files.fetch import fetch  # imported here: most runs need no HTTP library
    from dp.weights.needed import missing

    absent, failed = missing(config), []
    if not absent:
        return
    console.print(f"to fetch into {cache_folder()}: {', '.join(map(str, absent))}")
    with Downloads(console) as downloads:
        for asset in absent:
            try:
                fetch(asset, downloads.file(asset.file, asset.megabytes), tries=3)
            except (ValueError, OSError) as error:
                failed.append(str(error))
    if failed:
        raise FileNotFoundError(f"missing {len(failed)} of {len(absent)} files: {'; '.join(failed)}")
