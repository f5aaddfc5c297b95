"""The whole audit: all checks one after another, what a summary keeps of them, and when a job is long enough to be
audited before it starts.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from dp.audit import budgets as controls
from dp.audit import convergence as trajectories
from dp.audit import gradients
from dp.audit import randomness as hygiene
from dp.audit import returned_images as results
from dp.audit import rival_attacks as comparisons
from dp.audit import same_defense as sameness
from dp.audit.check import VERDICTS, Check, Finding, Subject
from dp.evaluation.evaluate import Evaluation
from dp.output.record import read_summary, write_atomic, write_summary
from dp.output.run_files import AuditFile
from dp.output.shapes import read_json

MODULES = (gradients, controls, comparisons, results, trajectories, hygiene, sameness)
LONG = 500_000  # network evaluations of a job's attack: the quick budget on digits asks for 69 thousand, the full one,
# about seven minutes on two cores, for 1.1 million
QUICK_IMAGES = 8  # of the small audit before a long job
FILE = "audit.json"


def checks(quick: bool) -> tuple[Check, ...]:
    """All checks, or those of the small audit."""
    return tuple(check for module in MODULES for check in (module.QUICK if quick else module.CHECKS))


def audit(subject: Subject, on_check: Callable[[int, int, str], None] = lambda k, n, name: None) -> Iterator[Finding]:
    """What the checks find, one after another; `on_check(done, all, name)` before each. A check that stops with an
    error, such as a gradient that is NaN, has failed.
    """
    todo = checks(subject.quick)
    for k, check in enumerate(todo):
        began = time.perf_counter()
        on_check(k, len(todo), check.name)
        try:
            yield check(subject)
        except ValueError as error:
            yield Finding(check.name, f"stopped: {error}", "no error", "FAIL", "-", time.perf_counter() - began)


def entry(findings: Sequence[Finding], quick: bool) -> dict:
    """What a summary keeps: how many checks had which verdict, and those that did not pass."""
    counts = {verdict: sum(f.verdict == verdict for f in findings) for verdict in VERDICTS}
    told = [{k: v for k, v in vars(f).items() if k != "curve"} for f in findings if f.verdict != "PASS"]
    seconds = round(sum(f.seconds for f in findings), 1)
    return {"quick": quick, "checks": len(findings), **counts, "seconds": seconds, "findings": told}


def network_evaluations(evaluation: Evaluation, nfe: int) -> int:
    """Forward passes that the attack on all images under all seeds takes: at every point its samples, each with `nfe`
    evaluations of the denoiser and one of the classifier. Backward passes and what chooses the points are not counted.
    """
    attack = evaluation.arms["defended"].attack
    points = attack.candidates if attack.steps else 0
    return len(evaluation.subset.ids) * len(evaluation.seeds) * points * attack.samples * (nfe + 1)


def due(wanted: bool | str, evaluation: Evaluation, nfe: int) -> bool:
    """Whether the job is audited before it starts: as told, or `auto`: if it is `LONG`."""
    if wanted not in ("auto", True, False):
        raise ValueError(f"need audit auto, true or false, got audit={wanted}")
    return network_evaluations(evaluation, nfe) > LONG if wanted == "auto" else bool(wanted)


def write(path: Path, code: str, findings: Sequence[Finding], quick: bool, **more: object) -> None:
    """The whole file or nothing; `more`: other keys of it."""
    content = {"code": code, **more, "entry": entry(findings, quick), "findings": [vars(f) for f in findings]}
    write_atomic(path, (json.dumps(content, indent=1) + "\n").encode())


def read(path: Path, code: str) -> dict | None:
    """The summary's entry of an audit that this code has written there, or None."""
    if not path.exists():
        return None
    content = read_json(path, AuditFile, "delete it and start the run again with audit=true")
    return content["entry"] if content["code"] == code else None


def attach(folder: Path, found: dict | None) -> dict | None:
    """The summary of the run in a folder, if it is finished, with the entry of an audit that it now keeps."""
    summary = read_summary(folder)
    if summary is not None:
        summary["audited"] = found
        write_summary(folder, summary)
    return summary
