"""A run from its configuration to its summary: resume, prepare, execute, summarize."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console

from dp.audit import battery
from dp.audit.check import Finding, Subject
from dp.evaluation.evaluate import Evaluation
from dp.files.cache import cache_folder
from dp.output import record, report
from dp.output.console import console
from dp.output.progress import Bar, Display, Downloads
from dp.output.tracking import Tracker
from dp.runs.build import build
from dp.runs.caveats import Caveats, caveats_of
from dp.runs.compose import Setup, make
from dp.runs.machine import shard_of, workers_of
from dp.runs.validate import check_kinds, check_run
from dp.runs.workers import run_units
from dp.statistics import metrics
from dp.subset import Subset


@dataclass
class Job:
    """A run that is ready to be done: its objects, and the facts about it."""

    setup: Setup
    folder: Path
    code: str
    evaluation: Evaluation
    caveats: Caveats
    tracker: Tracker | None = None

    @property
    def config(self) -> dict:
        return self.setup.config

    @property
    def rows(self) -> set[tuple[str, int, int]]:
        """(arm, seed, id) of every row that the finished run has."""
        return {(u.arm, u.seed, i) for u in self.evaluation.plan() for i in u.ids}


def judged(setup: Setup, folder: Path) -> dict | None:
    """Do what is missing of a run; its summary, or None while other shards are still to come."""
    check_run(setup.config)
    summary = resume(setup, folder)
    if summary is not None:
        return summary
    job = prepare(setup, folder)
    execute(job)
    return summarize(job)


def resume(setup: Setup, folder: Path) -> dict | None:
    """The summary of a run that is finished already, with the audit that it is asked for; else None."""
    config, code = setup.config, record.code_hash()
    summary = None if config["overwrite"] else record.read_summary(folder)
    if summary is None:
        return None
    console.print(f"already finished, nothing to do ({folder})")
    if summary["code"] != code:
        console.print("note: the code has changed since; overwrite=true runs it again")
    elif config["audit"] is True and not summary["audited"]:
        audit_first(built(setup, folder, code))
        summary = battery.attach(folder, battery.read(folder / battery.FILE, code))
    return summary


def prepare(setup: Setup, folder: Path) -> Job:
    """Check the configuration, fetch its files, build its objects, and say what will be done."""
    check_kinds(setup.config, setup.defaults)
    fetch_missing(setup.config)
    job = built(setup, folder, record.code_hash())
    record.begin(folder, job.config, job.code, job.config["overwrite"])
    facts = job.caveats.as_data()
    for line in report.announcement(folder.name, setup, job.evaluation, facts, workers_of(job.config)):
        console.print(line)
    return job


def built(setup: Setup, folder: Path, code: str) -> Job:
    """The objects of a run and its caveats."""
    evaluation = build(setup.config)
    return Job(setup, folder, code, evaluation, caveats_of(setup, evaluation))


def execute(job: Job) -> None:
    """Attack and score what is left of this process's shard; every finished unit is saved at once."""
    (part, parts), workers, evaluation = shard_of(job.config), workers_of(job.config), job.evaluation
    rows = record.read_rows(job.folder)
    subset = evaluation.subset.select(slice(part - 1, None, parts))
    window = max(1, min(evaluation.window, len(subset.ids) // (evaluation.lanes * workers)))  # work for every worker
    own = replace(evaluation, subset=subset, window=window)
    units = own.plan(rows)
    if not units:
        return
    if rows:
        console.print(f"going on: {len(rows)} of {len(job.rows)} rows are there")
    tracker: Tracker = make(job.config["tracking"])(job.folder.name, job.folder, job.config)
    job.tracker = tracker
    try:
        audit_first(job)
        with Display(console, own, units, rows.values(), tracker) as display:
            label = f"{part}of{parts}"
            run_units(build, job.config, units, job.folder, label, min(workers, len(units)), display)
    except KeyboardInterrupt:
        saved = f"{len(record.read_rows(job.folder))} of {len(job.rows)} rows are saved in {job.folder}"
        raise KeyboardInterrupt(f"interrupted: {saved}; the same command goes on") from None


def summarize(job: Job) -> dict | None:
    """Merge the rows, write the summary and hand it on; None while rows of other shards are missing."""
    config, evaluation, missing = job.config, job.evaluation, len(job.rows - set(record.read_rows(job.folder)))
    if missing:
        console.print(f"shard {config['shard']} is done; {missing} of {len(job.rows)} rows are left to the others")
        return None
    rows, judge = record.merge(job.folder), evaluation.judge
    rule, samples, screen = (judge.rule, judge.draws, judge.screen) if judge else (None, 0, 0)
    summary = {
        "format": record.FORMAT,
        **metrics.summarize(rows, evaluation.votes, rule, samples, screen, evaluation.ties),
        "seconds": record.seconds(job.folder),
        "workers": workers_of(config),
        "device": torch.cuda.get_device_name() if evaluation.device.startswith("cuda") else "cpu",
        "config": config,
        **record.provenance(),
        "code": job.code,
        "caveats": job.caveats.as_data(),
        "audited": battery.read(job.folder / battery.FILE, job.code),
    }
    record.write_summary(job.folder, summary)
    if job.tracker is not None:
        job.tracker.finish(summary)
    return summary


def audit_first(job: Job) -> None:
    """The quick audit before a long job or of a finished one, unless it is there; what it finds stops nothing."""
    path = job.folder / battery.FILE
    if not battery.due(job.config["audit"], job.evaluation, job.caveats.nfe) or battery.read(path, job.code):
        return
    console.print("a quick audit (audit=false: none, auto: before long jobs)")
    findings = audited(subject_of(job, battery.QUICK_IMAGES, quick=True), console)
    battery.write(path, job.code, findings, quick=True)
    for line in report.audit_lines(battery.entry(findings, quick=True)):
        console.print(line)


def subject_of(job: Job, images: int, quick: bool) -> Subject:
    """The first images of a run, and what the run says of itself, for the audit."""
    few, device = job.evaluation.subset.select(slice(0, images)), job.evaluation.device
    return Subject(job.evaluation, Subset(few.ids, few.x.to(device), few.y.to(device)), job.caveats, quick)


def audited(subject: Subject, to: Console) -> list[Finding]:
    """What the audit finds, with its progress on a console."""
    with Bar(to, 1.0) as bar:
        return list(battery.audit(subject, lambda done, of, name: bar(done / of, f"audit {done + 1}/{of}: {name}")))


def fetch_missing(config: dict) -> None:
    """Fetch what the configuration names and the cache lacks, sizes first. Raises FileNotFoundError, in one line that
    names every file that could not be had, its size, its address and the folder.
    """
    from dp.files.fetch import fetch  # here: an HTTP library is only needed where something is missing
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
                failed.append(str(error).rpartition(": ")[0])  # without its advice
    if failed:
        advice = "connect and run this again, or put them there by hand (DP_CACHE names another folder)"
        raise FileNotFoundError(f"missing {len(failed)} of {len(absent)} files: {'; '.join(failed)}: {advice}")
