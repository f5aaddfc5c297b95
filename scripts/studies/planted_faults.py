"""The audit held against planted faults and sound defenses: does it find each fault, and does it blame no one?

The study audits every fault and every sound defense of faults.py with the quick audit. Then it audits the faults, the
paper's and DiffPure's purifiers and sound parts of our own with the whole audit. It writes
results/tables/planted_faults.md. It goes on where it stopped: the findings of each audit are kept in
results/studies/planted_faults/. It takes about an hour on one idle core.
"""

import hashlib
import json
import sys
import time
from pathlib import Path

import faults
import outputs
import torch
from cells import markdown

from dp.audit import battery, rival_attacks
from dp.audit.check import Finding, Subject
from dp.output import record
from dp.output.console import console
from dp.runs import compose
from dp.runs.errors import command

TABLE = Path(__file__).parents[2] / "results" / "tables" / "planted_faults.md"
# With eps 64/255 the attack breaks most images, so that an attack that works differs from one that does not.
BUDGET = ("protocol.votes=5", "threat_model.eps=64/255")
FAULT_BUDGET = ("protocol.images=4", "attack.iterations=3", "attack.eot=2")
SOUND_BUDGET = ("protocol.images=8", "attack.iterations=10", "attack.eot=4")
MOMENTUM = "attack.momentum=0.75"
# Where the usual budget leaves a second warning, of the attack (that it is not the strongest) or of too few images.
STRONGER = {
    "hetero, strong noise outside (Eq. 8)": (MOMENTUM,),
    "a classifier with attention": ("attack=autoattack",),
    "a window as the threat model": (MOMENTUM, "protocol.images=16"),
}
SOUND_RIVALS, FAULT_RIVALS = (50, 5, 8), (10, 2, 2)  # queries of Square; steps and directions of SPSA
SOUND = (*faults.SOUND, *faults.PARTS, *faults.QUICK_ALONE)
WARNINGS = {  # what explains a warning of a sound defense
    "derivative": "the method declares that the attack's gradient is not the derivative: that of the identity, or of a "
    "smoothed sign (MimicDiffusion)",
    "flags": "the method takes gradients inside its forward pass, or the loss DLR is flat at an image or two of ME-Net",
    "other gradients": "another gradient of MimicDiffusion leaves less, but on 8 images the difference is not clear",
    "EOT": "gradients of 4 samples are noisy, as on the digits in general; 16 to 128 samples are needed",
}


def overrides(name: str) -> tuple[str, ...]:
    """The overrides of the run into which a fault is planted, or whose sound defense is audited."""
    if name in faults.FAULTS:
        return (*faults.SMALL, *BUDGET, *FAULT_BUDGET)
    words = {**faults.SOUND, **faults.QUICK_ALONE}.get(name, faults.SMALL)
    return (*words, *BUDGET, *SOUND_BUDGET, *STRONGER.get(name, ()))


def subject(name: str, quick: bool) -> Subject:
    """What is audited under this name."""
    sound = faults.composed_subject(compose.setup(*overrides(name)), quick)
    fault = faults.FAULTS.get(name)
    return fault.plant(sound) if fault else faults.PARTS.get(name, lambda same: same)(sound)


def code(name: str) -> str:
    """The hash of what the findings of an audit depend on."""
    parts = [record.code_hash(), Path(faults.__file__).read_text(), *overrides(name)]
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=8).hexdigest()


def shorten_rivals(queries: int, steps: int, directions: int) -> None:
    """Give the black-box attacks of the whole audit a smaller budget."""
    rival_attacks.QUERIES, rival_attacks.STEPS, rival_attacks.DIRECTIONS = queries, steps, directions


def place(folder: Path, name: str, quick: bool) -> Path:
    """The file of an audit."""
    return folder / f"{hashlib.blake2b(name.encode(), digest_size=6).hexdigest()}{'-quick' if quick else ''}.json"


def kept(path: Path) -> dict:
    """What is kept of an audit: its findings, and the code that made them; no findings if there is no such audit."""
    return json.loads(path.read_text()) if path.exists() else {"code": "", "findings": []}


def audited(path: Path, name: str, quick: bool) -> list[dict]:
    """The findings of the audit of one fault or of one sound defense."""
    before, now, start = kept(path), code(name), time.perf_counter()
    findings = before["findings"]
    if before["code"] != now:
        shorten_rivals(*(FAULT_RIVALS if name in faults.FAULTS else SOUND_RIVALS))
        findings = [entry(finding) for finding in battery.audit(subject(name, quick))]
        record.write_atomic(path, json.dumps({"name": name, "code": now, "findings": findings}).encode())
        console.print(f"{name}: {'quick' if quick else 'whole'} audit, {time.perf_counter() - start:.0f} s")
    return findings


def entry(finding: Finding) -> dict:
    """A finding without its curve and its time."""
    return {"check": finding.check, "status": finding.verdict, "value": finding.value}


def status(findings: list[dict], check: str) -> str:
    """The status of one check, `-` if the audit has no such check or was not made."""
    return next((f["status"] for f in findings if f["check"] == check), "-")


def fault_line(name: str, quick: list[dict], whole: list[dict]) -> list[str]:
    """The cells of one fault."""
    check = faults.FAULTS[name].check
    said = next((f["value"] for f in [*whole, *quick] if f["check"] == check), "-")
    others = [f["check"] for f in whole or quick if f["status"] == "FAIL" and f["check"] != check]
    return [name, check, status(quick, check), status(whole, check), said.split("; ")[0], ", ".join(others) or "-"]


def sound_line(name: str, quick: list[dict], whole: list[dict]) -> list[str]:
    """The cells of one sound defense."""
    cells = []
    for findings in (quick, whole):
        failed = f"{sum(f['status'] == 'FAIL' for f in findings)} FAIL" if findings else "-"
        warned = [f["check"] for f in findings if f["status"] == "WARN"]
        cells += [failed, ", ".join(warned) or "-"]
    rate = next((f["value"] for f in [*whole, *quick] if f["check"] == "compression"), "-")
    return [name, *cells, rate]


def found(name: str, findings: list[dict]) -> bool:
    """True if the check that is named for a fault finds it."""
    fault = faults.FAULTS[name]
    return any(
        f["check"] == fault.check and f["status"] == fault.status and fault.words in f["value"] for f in findings
    )


def report(results: dict[str, tuple[list[dict], list[dict]]], older: int = 0) -> str:
    """The text of the table, from the findings of the quick and of the whole audit by name.

    `older`: how many of these audits were made by older code.
    """
    planted = {name: pair for name, pair in results.items() if name in faults.FAULTS}
    sound = {name: pair for name, pair in results.items() if name in SOUND}
    counts = [sum(found(name, pair[k]) for name, pair in planted.items()) for k in (0, 1)]
    made = [sum(bool(pair[k]) for pair in planted.values()) for k in (0, 1)]
    failed = sum(f["status"] == "FAIL" for pair in sound.values() for findings in pair for f in findings)
    warned = {f["check"] for pair in sound.values() for findings in pair for f in findings if f["status"] == "WARN"}
    columns = ["fault", "check", "quick audit", "whole audit", "what the check says", "other checks that fail"]
    tables = [
        markdown("Planted faults", columns, [fault_line(name, *pair) for name, pair in planted.items()]),
        markdown(
            "Sound defenses",
            ["defense", "quick audit", "warnings", "whole audit", "warnings", "compression (INFO)"],
            [sound_line(name, *pair) for name, pair in sound.items()],
        ),
    ]
    lines = [
        "# Planted faults and sound defenses",
        "",
        f"`python scripts/studies/planted_faults.py`: digits, {' '.join(BUDGET)}. A fault is audited with "
        f"{' '.join(FAULT_BUDGET)}, a sound defense with {' '.join(SOUND_BUDGET)}. Where that leaves a second warning, "
        "of a weak attack or of few images, the budget is a stronger one: "
        + "; ".join(f"{name} with {' '.join(words)}" for name, words in STRONGER.items())
        + ". The black-box attacks of the whole audit have a small budget. A `-` in place of the whole audit: it was "
        "not made, only the quick one.",
        "",
        f"The check that is named for each fault finds {counts[0]} of {made[0]} faults in the quick audit and "
        f"{counts[1]} of {made[1]} in the whole audit. Of the checks of {len(sound)} sound defenses {failed} fail.",
        *([f"An older state of the code made {older} of these audits."] if older else []),
        "",
        *tables,
        "## Warnings of sound defenses",
        "",
        *(f"- {check}: {WARNINGS.get(check, 'not explained')}." for check in sorted(warned)),
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    """The command. Returns 0 when the table is written."""
    parser = outputs.parser(__doc__)
    parser.add_argument("--only", choices=("sound", "faults"), help="audit these alone, and write no table")
    parser.add_argument("--kept", action="store_true", help="make no audit: write what is kept, also of older code")
    args = parser.parse_args()
    torch.set_num_threads(1)  # as in an audit
    folder = outputs.NEW / "planted_faults"
    folder.mkdir(parents=True, exist_ok=True)
    groups = {"sound": SOUND, "faults": faults.FAULTS}
    names = [name for group, members in groups.items() if args.only in (None, group) for name in members]
    older, found = 0, {True: dict[str, list[dict]](), False: dict[str, list[dict]]()}
    for quick, findings in found.items():
        for name in names:
            path = place(folder, name, quick)
            if not args.kept and (quick or name not in faults.QUICK_ALONE):
                audited(path, name, quick)
            older += bool(kept(path)["findings"]) and kept(path)["code"] != code(name)
            findings[name] = kept(path)["findings"]
    if args.only:
        return 0
    path = outputs.target(TABLE, args.write)
    path.write_text(report({name: (found[True][name], found[False][name]) for name in names}, older))
    console.print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(command(main, "interrupted; the audits that are done are kept"))
