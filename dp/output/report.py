"""The text about a run: the announcement, the table row and its caveats. Only it and `declarations` make sentences.

Functions take the plain data of `Caveats.as_data`, which a summary holds too, and return text and tables.
"""

import math
import shlex
from typing import Any

from rich.console import Console

from dp.attacks.base import FULL, VALUES, Attack
from dp.attacks.through import mode_words
from dp.evaluation.caveats import mode_name
from dp.evaluation.evaluate import Evaluation
from dp.evaluation.judge import Judge
from dp.output.beside import beside_published, honest_line
from dp.output.declarations import declared_lines, network_lines, region_lines
from dp.output.published import published_lines, published_rows
from dp.output.row_table import count_of, row_tables, rule_name, threat_words

BROKEN = {
    "any": "any is wrong",
    "all": "all are wrong",
    "vote": "their vote is wrong",
    "mean_logits": "their mean is wrong",
}
NOT_BALLS = {  # a note for rows under threat models that are no l_p balls
    "flow": "pixels move, by halves of the image's side; no l_p ball, not for an l_p column",
    "perceptual": "the classifier's own features with equal weights, not VGG16-LPIPS: the bound is on another scale "
    "than published ones, the figure not comparable; no l_p ball, not for an l_p column",
}
SIZES = ((1e12, " trillion"), (1e9, " billion"), (1e6, " million"), (1e3, " thousand"))
GLOSSARY = "docs/concepts.md#glossary"
AUDIT = {"FAIL": "AUDIT FAILED, do not trust this row", "WARN": "audit warns"}


def announcement(
    key: str, setup: Any, evaluation: Evaluation, caveats: dict, workers: int, own: int | None = None
) -> list[str]:
    """The lines that a run prints before it starts: what is attacked and scored, the amount of work, every caveat.

    `setup`: the command's `compose.Setup`; `caveats`: `Caveats.as_data()`; `own`: the images of this shard, if not all.
    """
    config, choices = setup.config, setup.config["choices"]
    attack, judge = evaluation.arms["defended"].attack, evaluation.judge
    samples = "samples with noise that the attacker knows" if evaluation.known_draws else "samples with fresh noise"
    images, grad = len(evaluation.subset.ids), config["threat_model"]["grad"]
    lines = [
        key,
        f"attacked: {threat_words(config)}, {attack.says(through(grad, caveats))}; "
        f"{caveats['attack_nfe']} NFE per sample; gradient: {gradient_words(caveats, config.get('dtype', 'float32'))}",
        f"scored: {choices['purifier']} ({caveats['nfe']} NFE), {evaluation.votes} {samples} per image; "
        f"{count_of(images, 'image')} x {count_of(len(evaluation.seeds), 'seed')} on {evaluation.device}, "
        f"{count_of(workers, 'worker')}",
        *padding_lines(own or images, evaluation.lanes),
        *([judge_line(judge, attack)] if judge is not None else []),
        *criteria_lines(config, caveats, evaluation.votes, judge, attack),
        *fact_lines(config, caveats),
        *caveat_lines(config, caveats),
    ]
    return lines + quick_budget_line(setup, images) + honest_line(config)


def padding_lines(images: int, lanes: int) -> list[str]:
    """A line if the last batch of `lanes` slots is not full; it is padded, and takes as long as a full one."""
    last = images % lanes
    if not last:
        return []
    few = count_of(last, "image")
    whole = f"the last of {images // lanes + 1} batches has {few}" if images > lanes else few
    return [f"padded: {whole} in {lanes} batch slots, which take as long as {lanes} images (dataset.lanes)"]


def work_line(evaluations: float) -> str:
    """The work of a run in words. `evaluations`: of the denoiser, or of the classifier where there is none."""
    counted = words_of_count(evaluations)
    return f"work: about {counted} network evaluations of one image; a backward pass counts as about one"


def words_of_count(count: float) -> str:
    """A large count with two digits, such as `6.1 million`."""
    size, word = next((pair for pair in SIZES if count >= pair[0]), (1, ""))
    return f"{float(f'{count / size:.2g}'):g}{word}"


def through(grad: str, caveats: dict) -> str:
    """The function that the attack differentiates, in words. `grad`: the threat model's gradient mode."""
    if grad == FULL:
        return "the scored defense itself"
    changed = ", ".join(difference_words(**d) for d in caveats["differences"])
    return f"the scored defense by {mode_words(grad)}" + (f" ({changed})" if changed else "")


def difference_words(key: str, attacked: Any, scored: Any) -> str:
    """A difference between the attacked and the scored purifier in words: the fields of `caveats.Difference`."""
    return f"{key}={attacked}" + ("" if scored is None else f" instead of {scored}")


def budget_line(budget: int, spent: float, iterations: int) -> str:
    """What an attack spends of its budget: the fields of `caveats.Spent`."""
    spends = f"{count_of(iterations, 'iteration')} spend {spent:g} of {budget} network evaluations of an image"
    return f"budget: {spends}, the most that fit"


def short_steps_line(attack: str, reach: float, needed: float) -> str:
    """A line about an attack whose steps may be too short: the fields of `caveats.ShortSteps`."""
    lengths = f"cover {reach:.3g} together and may need {needed:.3g}"
    return f"the steps of {attack} {lengths}: raise its step_size, or set it to null"


def stronger_line(protocol: str, experiment: str, least: float, most: float) -> str:
    """A line about a budget that is known not to be converged: the fields of `caveats.Stronger`."""
    takes = f"takes {least:.1f} to {most:.1f} points more from the defenses in results/tables/convergence.md"
    larger = f"the converged budget, +experiment={experiment}, {takes}"
    return f"protocol {protocol} has a quick budget on this dataset; {larger}"


def gradient_words(caveats: dict, dtype: str = "float32") -> str:
    """The kind of gradient that the attack takes: exact, approximate, none, or the names of the gradient modes.

    `dtype`: of the attacked networks; a narrower one than float32 is named.
    """
    exact = "exact" if dtype == "float32" else f"exact up to the rounding of {dtype}"
    exact = "approximate (straight-through clamp)" if caveats["straight_through"] else exact
    words = {(): exact, (VALUES,): "none"}
    return ", ".join(words.get(tuple(modes), mode_name(modes)) for modes in caveats["gradients"])


def broken_when(judge: Judge) -> str:
    """The rule by which the in-loop evaluation calls an image broken, in words."""
    first_stage = f"{judge.screen}, then " if judge.screen else ""
    return f"{first_stage}{judge.draws} samples: broken if {BROKEN[judge.rule]}"


def judge_line(judge: Judge, attack: Attack) -> str:
    """The in-loop evaluation during an attack, in words."""
    after = "stops" if judge.retire else "goes on"
    own = judge.yields_to(attack.selection_samples)
    point = "the attack's selection samples choose a point" if own else "the worst point counts"
    what = "this evaluation is the decision" if judge.in_loop else f"otherwise {point}; fresh samples score"
    every = "every iteration" if judge.every == 1 else f"every {judge.every} iterations"
    return f"in-loop evaluation {every}, {broken_when(judge)}; then its attack {after}; {what}"


def criteria_lines(config: dict, caveats: dict, votes: int, judge: Judge | None, attack: Attack) -> list[str]:
    """A line if the attack and the decision use different criteria; no line for single samples."""
    decides, samples = rule_name(config["protocol"]["report"][0], votes), votes
    if judge is not None and judge.in_loop:
        decides, samples = f"in-loop evaluation ({broken_when(judge)})", judge.draws
    known, attack_samples = config["protocol"]["known_draws"], caveats["attack_samples"]
    if not attack.steps or attack_samples == samples == 1:
        return []
    whose = "the samples that score" if known else f"{attack_samples} samples of its own"
    return [f"the attack uses {caveats['criterion']} {whose}; the decision is by the {decides}"]


def caveat_lines(config: dict, caveats: dict) -> list[str]:
    """A line for each caveat, but for the values that are scaled to the dataset."""
    protocol, lines = config["choices"]["protocol"], []
    modes = [mode_name(m) for m in caveats["gradients"] if tuple(m) not in ((), (VALUES,))]
    if modes:
        who = "the gradient is" if len(modes) == len(caveats["gradients"]) else "some attacks' gradients are"
        lines.append(f"attacked differs from scored: {who} not the scored defense's: {', '.join(modes)}")
    lines += [f"attacked differs from scored: {difference_words(**fields)}" for fields in caveats["differences"]]
    if caveats["straight_through"]:
        clamp = "the gradient ignores the last clamp (clamp=straight_through)"
        lines.append(f"attacked differs from scored: {clamp}")
    lines += [*network_lines(config), *declared_lines(config, caveats), *region_lines(config)]
    if caveats["no_surrogate"]:
        lines.append("the purifier has no surrogate: the attack takes its exact gradient")
    for c in caveats.get("departures", ()):
        lines.append(f"departs from protocol {protocol}: {c['key']} {c['value']} instead of {c['reference']}")
    lines += [budget_line(**fields) for fields in caveats.get("budget", [])]
    lines += [stronger_line(protocol, **fields) for fields in caveats.get("stronger", [])]
    lines += [short_steps_line(**fields) for fields in caveats.get("short_steps", ())]
    lines += [f"the purifier's mask is not attacked: add attack={attack}" for attack in caveats["masks_spared"]]
    if caveats["batch_bound"]:
        lines.append("rows depend on the other images in a batch: order, shards and batch slots may change them")
    return lines


def quick_budget_line(setup: Any, images: int) -> list[str]:
    """The command of the full budget, if this run has the quick budget of the embedded benchmark; else no line.

    A preset has a budget of its own.
    """
    config, choices = setup.config, setup.config["choices"]
    quick = images < config["dataset"].get("full_size", 0) and config["dataset"].get("scaled_from") is not None
    quick = quick and "experiment" not in setup.words
    if not (quick and choices["attack"] in ("pgd_eot", "pgd_eot_official") and choices["protocol"] == "default"):
        return []
    idle = (
        "slurm",
        "protocol.images",
        "protocol.votes",
        "attack.iterations",
        "attack.eot",
        *config["key_ignores"],
    )
    given = [word for key, word in setup.words.items() if key not in idle]
    folders = [f"--config-dir={folder}" for folder in config["plugins"]["folders"]]
    command = shlex.join(["dp", "run", *folders, "+experiment=digits/full", *given])
    return [f"this is the quick budget; for the full one: {command}"]


def headline(summary: dict) -> tuple[str, str, str]:
    """The protocol's first decision rule, and the summary keys of its robust and null figures.

    The keys are those of the in-loop figures if the protocol decides in-loop.
    """
    protocol = summary["config"]["protocol"]
    in_loop = bool(protocol["judge"]) and protocol["judge"]["in_loop"] and "seen" in summary
    return protocol["report"][0], "seen" if in_loop else "robust", "null_seen" if in_loop else "null"


def average(summary: dict) -> float:
    """The mean of the standard and the robust accuracy in percent, by the protocol's first decision rule; the paper
    prints it in Table 7.
    """
    rule, robust, _ = headline(summary)
    return (summary["standard"][rule]["value"] + summary[robust][rule]["value"]) / 2


def warnings(summary: dict) -> list[str]:
    """The lines below a row: findings of the audit, caveats, scaled values, ties, and whether the run was audited."""
    config, choices, caveats = summary["config"], summary["config"]["choices"], summary["caveats"]
    rule, robust, null = headline(summary)
    lines = [*audit_lines(summary["audited"]), *caveat_lines(config, caveats)]
    if config["dataset"].get("tuning"):
        lines.append("images to choose values by: the networks were trained on them, and no row of a table has them")
    if caveats["scaled"]:
        origin = config["dataset"].get("scaled_from")
        source = f"the values for {origin['dataset']}" if origin else "the full budget"
        values = "; ".join(f"{c['key']} {c['value']} for {c['reference']}" for c in caveats["scaled"])
        lines.append(f"scaled to {config['dataset']['name']} from {source}: {values}")
    norm = config["threat_model"]["norm"]
    if norm in NOT_BALLS:
        lines.append(f"{norm}: {NOT_BALLS[norm]}")
    attacked = choices["attack"] != "none" and null in summary
    if attacked and summary[robust][rule]["value"] >= summary[null][rule]["value"]:
        lines.append(f"the attack does not beat random noise of the same size ({rule})")
    if names := summary.get("unrepeatable"):
        lines.append(
            f"the last bits may be others when this row is computed again: torch cannot repeat {', '.join(names)}"
        )
    ties = f"vote ties: {summary['ties']}, broken by {config['protocol']['ties']}"
    return [*lines, f"{ties}; {audit_word(summary['audited'])}"]


def audit_word(audited: dict | None) -> str:
    """How a run was audited, in a few words. `audited`: that entry of its summary."""
    if not audited:
        return "unaudited"
    return f"audited: {audited['checks']} checks, {audited['FAIL']} FAIL, {audited['WARN']} WARN"


def audit_lines(audited: dict | None) -> list[str]:
    """A line for each finding of an audit that failed or warned, failures first."""
    findings = (audited or {}).get("findings", [])
    ordered = [f for status in AUDIT for f in findings if f["verdict"] == status]
    return [f"{AUDIT[f['verdict']]}: {f['check']}: {f['value']} (need {f['threshold']})" for f in ordered]


def show(summary: dict, console: Console) -> None:
    """Print the table of a run, the run beside its published rows, the lines of `warnings`, and its cost."""
    beside, honest = beside_published(summary)
    for table in [*row_tables(summary, console), *beside]:
        console.print(table)
    for line in [*published_lines(published_rows(summary["config"])), *honest, *warnings(summary)]:
        console.print(line)
    for line in fact_lines(summary["config"], summary["caveats"]):
        console.print(line)
    caveats, time_taken = summary["caveats"], f"{clock(summary['seconds'])} of worker time"
    console.print(f"NFE {caveats['nfe']} scored, {caveats['attack_nfe']} attacked; {time_taken}; {summary['device']}")
    console.print(f"every term: {GLOSSARY}")


def fact_lines(config: dict, caveats: dict) -> list[str]:
    """One line of what the purifier tells of itself, or none."""
    facts = ", ".join(fact_words(**fact) for fact in caveats["facts"])
    return [f"{config['choices']['purifier']}: {facts}"] if facts else []


def fact_words(name: str, value: float) -> str:
    """A fact in words. The sign % in a name is the place of its value, which is in percent."""
    return name.replace("%", f"{value:.4g} %") if "%" in name else f"{name} {value:.4g}"


def clock(seconds: float) -> str:
    """Seconds as text: `7 s`, `3 min 20 s`, `2 h 05 min`."""
    if not math.isfinite(seconds):
        return "an unknown time"
    s = round(seconds)
    if s < 60:
        return f"{s} s"
    return f"{s // 60} min {s % 60:02d} s" if s < 3600 else f"{s // 3600} h {s % 3600 // 60:02d} min"
