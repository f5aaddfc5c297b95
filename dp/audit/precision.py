"""A check of the attacked defense's precision: do narrower networks lead the attack in the same direction?"""

from dp.audit.check import Finding, Subject, audited, not_applicable, plural, some, streams
from dp.audit.gradients import likeness
from dp.audit.stages import Stage
from dp.objectives import margin

SAME = 0.9  # above this cosine the gradients count as one direction; the bound is ours


@audited("precision", "the gradient in the attacked defense's precision against that in the scored one's")
def precision(subject: Subject) -> Finding:
    """Compare the attacked defense's gradients with those of the scored one in the same gradient mode, with the same
    noise: the mean cosine over images, and the share of pixels with the same sign.
    """
    attacked, scored = subject.arm.attacked, subject.arm.scored
    if attacked.precision == scored.precision:
        return not_applicable("precision", "attacked and scored networks have one precision")
    images = some(subject.images, 8)
    rng, samples = streams(subject, images, Stage.PRECISION), 1 if subject.quick else 4
    models = scored.gradient_mode(subject.evaluation.threat.grad), attacked
    wide, narrow = (model.loss_gradient(images.x, images.y, rng, samples, margin)[1] for model in models)
    along, signs, _ = likeness(wide, narrow)
    value = f"cosine {along:.3f}, the same sign at {100 * signs:.0f} % of the pixels"
    count = f"{len(images.ids)} images, {plural(samples, 'sample')}"
    return Finding("precision", value, f"cosine > {SAME:g}", "PASS" if along > SAME else "WARN", count, 0.0)


CHECKS = (precision,)
QUICK = CHECKS
