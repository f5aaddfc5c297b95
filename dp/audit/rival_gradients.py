"""A check that the run's attack takes the best gradient of the defense: the same attack through the other ones."""

from dp.attacks.base import FULL
from dp.attacks.pgd_eot import PGD
from dp.audit.check import Finding, Subject, audited, not_applicable
from dp.audit.probes import gradient_probes
from dp.audit.reruns import above, other, own, percent, right, small, worst
from dp.audit.rival_attacks import budget_of


@audited("other gradients", "the same attack through other gradients of the defense")
def other_gradients(subject: Subject) -> Finding:
    """Run PGD through other gradients of the scored defense, with the budget of the run's attack.

    None of them should leave less than the run's attack. The quick audit tries the scored defense's own gradient alone,
    and only if the run's attack does not take it. If the yaml declares that the defense has none, both audits try the
    gradients that its yaml names, and the identity. If the attack does not take the defense's own gradient, the check
    also warns of a difference that may be chance.
    """
    name, scored, probes = "other gradients", subject.arm.scored, gradient_probes(subject)
    names = _rivals(subject)
    if scored.undefended or not probes or not names:
        alone = "the attack takes the defense's own gradient" if () in subject.claims else "the defense has no other"
        package = "a package takes its gradients in its own way"
        return not_applicable(name, "nothing is purified" if scored.undefended else alone if probes else package)
    baselines = [probe.attack for probe in probes if probe.attack.is_baseline]
    attack = small(subject, baselines[0] if baselines else PGD(*budget_of(subject.arm.attack), select="last"))
    if subject.evaluation.threat.norm not in attack.norms:
        return not_applicable(name, f"there is no PGD under the threat model {subject.evaluation.threat.norm}")
    run = own(subject)[0]
    groups = {mode: other(subject, f"through {mode}", attack, scored.gradient_mode(mode)) for mode in names}
    tests = {mode: above(group, run, len(groups)) for mode, group in groups.items()}
    cells, statuses = [], []
    for mode, (status, more, p) in tests.items():
        points = f"{round(100 * abs(more))} points {'less' if more > 0 else 'more'}" if more else "the same"
        label = subject.called(()) if mode == FULL else mode
        cells.append(f"{label} {percent(right(groups[mode]).mean())} ({points}, p {p:.2g})")
        statuses.append("WARN" if status == "PASS" and more > 0 and () not in subject.claims else status)
    left = f"the run's attack ({subject.claimed_names}) leaves {percent(right(run).mean())}"
    value = f"{left}, PGD through {', through '.join(cells)}"
    count = f"{len(run.rows)} images, {subject.evaluation.votes} samples, {attack.steps} steps of {attack.samples}"
    return Finding(name, value, "the run's attack leaves no more than each", worst(statuses), count, 0.0)


def _rivals(subject: Subject) -> list[str]:
    """The gradient modes to try: those that the run's attack does not take."""
    has_own, taken = "gradient" not in subject.caveats.exceptions, subject.claims
    if has_own and subject.quick:
        return [FULL] if () not in taken else []
    named = [mode for mode in (*subject.arm.scored.variants, "bpda") if (mode,) not in taken]
    return [FULL, *named] if has_own and () not in taken else named


CHECKS = (other_gradients,)
QUICK = CHECKS
