"""The whole audit: it runs all checks, makes the entry of a summary, and decides when a job is audited first."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from dp.audit import (
    batch,
    budgets,
    compression,
    convergence,
    dead_pixels,
    gradients,
    memory,
    outputs,
    precision,
    radius,
    randomness,
    returned_images,
    rival_attacks,
    rival_gradients,
    same_defense,
)
from dp.audit.check import VERDICTS, Check, Finding, Subject
from dp.compiled import plain_calls
from dp.evaluation.evaluate import Evaluation
from dp.output.record import read_summary, write_atomic, write_summary
from dp.output.run_files import AuditFile
from dp.output.shapes import read_json

MODULES = (
    gradients,
    precision,
    dead_pixels,
    budgets,
    radius,
    rival_gradients,
    rival_attacks,
    returned_images,
    convergence,
    outputs,
    randomness,
    batch,
    memory,
    same_defense,
    compression,
)
# Network evaluations of the attack in a long job. The quick budget on digits has 69 thousand. The full budget has 1.1
# million, about seven minutes on two cores.
LONG = 500_000
QUICK_IMAGES = 8  # images of the quick audit
FILE = "audit.json"


def checks(quick: bool) -> tuple[Check, ...]:
    """All checks, or those of the quick audit."""
    return tuple(check for module in MODULES for check in (module.QUICK if quick else module.CHECKS))


def audit(subject: Subject, on_check: Callable[[int, int, str], None] = lambda k, n, name: None) -> Iterator[Finding]:
    """The findings of all checks, one after another. They look into the networks, so that nothing is compiled.

    `on_check(done, all, name)` is called before each. A check that stops with a ValueError, such as for a gradient with
    NaN, has failed. One that does not fit into memory has seen nothing, and the others go on.
    """
    selected = checks(subject.quick)
    for k, check in enumerate(selected):
        start_time = time.perf_counter()
        on_check(k, len(selected), check.name)
        try:
            with plain_calls():
                finding = check(subject)
        except ValueError as error:
            seconds = time.perf_counter() - start_time
            finding = Finding(check.name, f"stopped: {error}", "no error", "FAIL", "-", seconds)
        except torch.OutOfMemoryError:
            seconds = time.perf_counter() - start_time
            finding = Finding(check.name, "not looked at: needs more memory", "-", "WARN", "-", seconds)
        yield finding


def entry(findings: Sequence[Finding], quick: bool) -> dict:
    """The summary's entry of an audit: how many checks had which status, and the findings that are not PASS."""
    counts = {status: sum(f.verdict == status for f in findings) for status in VERDICTS}
    listed = [{k: v for k, v in vars(f).items() if k != "curve"} for f in findings if f.verdict != "PASS"]
    seconds = round(sum(f.seconds for f in findings), 1)
    return {"quick": quick, "checks": len(findings), **counts, "seconds": seconds, "findings": listed}


def network_evaluations(evaluation: Evaluation, nfe: int) -> int:
    """The forward passes of networks in the attack on all images under all seeds.

    At every point the attack takes its samples, each with `nfe` evaluations of the denoiser and one of the classifier.
    Backward passes and selection samples are not counted.
    """
    attack = evaluation.arms["defended"].attack
    points = attack.candidates if attack.steps else 0
    return len(evaluation.subset.ids) * len(evaluation.seeds) * points * attack.samples * (nfe + 1)


def due(wanted: bool | str, evaluation: Evaluation, nfe: int) -> bool:
    """True if the job is audited before it starts. `wanted`: true, false, or `auto` for jobs over `LONG`.

    `nfe`: network evaluations of one scored sample. Raises ValueError for another value of `wanted`.
    """
    if wanted not in ("auto", True, False):
        raise ValueError(f"need audit auto, true or false, got audit={wanted}")
    return network_evaluations(evaluation, nfe) > LONG if wanted == "auto" else bool(wanted)


def write(path: Path, code: str, findings: Sequence[Finding], quick: bool, **more: object) -> None:
    """Write the findings of an audit as JSON, the whole file or nothing.

    `code`: the hash of the code that made them; `more`: further keys of the file.
    """
    content = {"code": code, **more, "entry": entry(findings, quick), "findings": [vars(f) for f in findings]}
    write_atomic(path, (json.dumps(content, indent=1) + "\n").encode())


def read(path: Path, code: str) -> dict | None:
    """The summary's entry in the file of an audit, or None if there is no file or other code wrote it."""
    if not path.exists():
        return None
    content = read_json(path, AuditFile, "delete it and start the run again with audit=true")
    return content["entry"] if content["code"] == code else None


def attach(folder: Path, found: dict | None) -> dict | None:
    """Write the entry of an audit into the summary of the run in `folder`.

    Returns the summary, or None if the run is not finished.
    """
    summary = read_summary(folder)
    if summary is not None:
        summary["audited"] = found
        write_summary(folder, summary)
    return summary
