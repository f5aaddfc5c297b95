"""Equal budgets: the iterations of an attack are set so that its counted work fits a number of network evaluations."""

from collections.abc import Callable
from dataclasses import replace

from dp.attacks.base import Attack
from dp.evaluation.caveats import Spent
from dp.evaluation.evaluate import Arm, Evaluation, null_control
from dp.evaluation.remembered import remembered
from dp.evaluation.work import BACKWARD, Prices, Pricing, Rates, priced


def check_budget(budget: object) -> None:
    """Raises ValueError unless a budget is null or a whole number >= 1."""
    if budget is not None and (not isinstance(budget, int) or isinstance(budget, bool) or budget < 1):
        raise ValueError(f"need budget as network evaluations of an image, a whole number >= 1, or null, got {budget}")


def spent_of(evaluation: Evaluation, budget: int) -> Spent:
    """What the attack of an evaluation `within` a budget spends."""
    attack = evaluation.arms["defended"].attack
    return Spent(budget, round(_work(evaluation, attack, _prices(evaluation)), 1), attack.budget()["iterations"])


def within(evaluation: Evaluation, budget: int) -> Evaluation:
    """The evaluation whose attack has the most iterations with which its work on the defense is at most `budget`.

    The parts of an attack keep the ratio of their iterations, rounded down, at least 1. Samples and restarts stay. The
    undefended classifier is attacked with as many iterations, and the null control has as many candidates. In-loop
    evaluations are not the attack's work. A backward pass counts as 1.1 evaluations; a call that is computed again to
    save memory counts once, and the classifier counts nothing beside a denoiser, so that no machine changes the result.
    Raises ValueError for an attack without iterations, for one whose work is known as a bound alone (`batch_bound`) or
    does not grow with its iterations, and if one iteration costs more.
    """
    attack = evaluation.arms["defended"].attack
    configured = attack.budget().get("iterations")
    if configured is None:
        raise ValueError("need an attack with iterations for a budget, got one without: set budget=null")
    if attack.batch_bound:
        found = "got one whose work for an image depends on the others in its batch"
        raise ValueError(f"need an attack whose work can be counted for a budget, {found}: set budget=null")
    pricing = _prices(evaluation)

    def spent(iterations: int) -> float:
        return _work(evaluation, _scaled(attack, iterations, configured), pricing)

    least = spent(1)
    if not least:
        raise ValueError("need an attack that asks the denoiser for a budget, got one that does not: set budget=null")
    if least > budget:
        raise ValueError(f"need budget >= {least:.0f}, the work of one iteration of this attack, got budget={budget}")
    fits = _doubled(spent, budget, configured)
    most = 2 * fits
    while most - fits > 1:
        middle = (fits + most) // 2
        fits, most = (middle, most) if spent(middle) <= budget else (fits, middle)
    found = _scaled(attack, fits, configured)
    arms = {name: arm._replace(attack=found) for name, arm in evaluation.arms.items()}
    arms["null"] = arms["null"]._replace(attack=null_control(found, evaluation.judge))
    return replace(evaluation, arms=arms)


def _doubled(spent: Callable[[int], float], budget: int, configured: int) -> int:
    """The largest power of 2 whose iterations fit the budget.

    Each part of an attack has at least its own iterations from `configured` on, and twice as many at each doubling. So
    if the work has not grown then, it never will.
    """
    fits, before = 1, spent(1)
    while (work := spent(2 * fits)) <= budget:
        if fits >= configured and work <= before:
            raise ValueError(
                "need an attack whose work grows with its iterations for a budget, got one whose does not: "
                "set budget=null"
            )
        fits, before = 2 * fits, work
    return fits


def _scaled(attack: Attack, iterations: int, configured: int) -> Attack:
    """The attack with so many iterations in its longest part, which had `configured`."""
    return attack.with_budget(iterations=lambda n: max(1, n * iterations // configured))


def _prices(evaluation: Evaluation) -> Prices:
    """Prices that are the same on every machine: calls of the denoiser, or of the classifier where no other counts."""
    defended, one = evaluation.arms["defended"].attacked, evaluation.first
    calls = remembered(Pricing(one, Rates(1.0, 0.0, BACKWARD, 0.0, 0.0)))
    if calls(defended).forward:
        return calls
    return remembered(Pricing(one, Rates(1.0, 1.0, BACKWARD, BACKWARD, 0.0)))


def _work(evaluation: Evaluation, attack: Attack, pricing: Prices) -> float:
    attacked, scored, _ = evaluation.arms["defended"]
    alone = replace(evaluation, arms={"defended": Arm(attacked, scored, attack)}, judge=None)
    return priced(alone, pricing)["defended"].attack(attack.steps)
