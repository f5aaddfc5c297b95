"""From plain configuration to objects. Every process that works on a run builds each object once."""

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dp.attacks.base import VALUES, Attack, check_members, check_norm
from dp.classifiers import Classifier
from dp.compiled import KEEPS, Compiled, check_compiler
from dp.defense.defended import Defended, brief, unbound
from dp.defense.memory import bytes_per_call
from dp.diffusion.denoisers import Denoiser
from dp.evaluation.budget import within
from dp.evaluation.caveats import gradients
from dp.evaluation.dry import check_purifier, check_variance, dry_nfe
from dp.evaluation.evaluate import Arm, Evaluation, null_control
from dp.evaluation.judge import Judge
from dp.precision import DTYPES, cast
from dp.purifiers import none
from dp.purifiers.module import PurifierModule
from dp.repeatable import set_repeatable
from dp.rng import Streams
from dp.runs.compose import make, nodes
from dp.runs.keys import OLDER
from dp.runs.machine import device_of, free_bytes, sharing
from dp.runs.validate import check_config
from dp.subset import Subset, in_own_types
from dp.threat_models.ball import ThreatModel


def build(config: dict) -> Evaluation:
    """All objects of a run, from plain configuration. Raises ValueError for settings that do not fit together."""
    check_config(config)
    device = device_of(config)
    set_repeatable(device)
    attacked, scored = defenses(config, device)
    evaluation = assembled(config, attacked, scored, device)
    first, differentiated = evaluation.subset.select(slice(0, 1)), evaluation.arms["defended"].attacked
    evaluation.arms["defended"].attack.check_classes(check_images(scored, evaluation.subset, device))
    nfe = dry_nfe(differentiated, first)  # this call also finds bad hyperparameters before any work
    dry_nfe(scored, first)
    check_purifier(scored, first)
    check_variance(scored, first)
    set_memory(config, attacked, scored, first, nfe, device)
    return evaluation


def assembled(config: dict, attacked: Defended, scored: Defended, device: str) -> Evaluation:
    """The objects of a run around its defenses, see `defenses`. Their denoiser is not called. Raises ValueError as
    `build`.
    """
    config = OLDER | config
    protocol = config["protocol"]
    subset = in_own_types(_make(config, config["dataset"]["loader"]))
    attack, threat, judge = attacker(config)
    check_lengths(config["attack"], threat, subset.x[:1])
    threat = threat.seen_by(scored.classifier)
    bare = Defended(none.purify, None, scored.classifier, tf32=scored.tf32)
    same = attacked is scored
    bare_attacked = bare if same else Defended(none.purify, None, attacked.classifier, tf32=attacked.tf32)
    for modes in gradients(attack, threat.grad):
        if modes != (VALUES,):
            attacked.gradient_modes(modes)  # raises ValueError for a mode that this purifier does not have
    differentiated = attacked.gradient_mode(threat.grad)
    evaluation = Evaluation(
        subset=subset,
        arms={
            "defended": Arm(differentiated, scored, attack),
            "undefended": Arm(bare_attacked, bare, attack),
            "null": Arm(differentiated, scored, null_control(attack, judge)),
        },
        threat=threat,
        seeds=protocol["seeds"],
        votes=protocol["votes"],
        lanes=config["dataset"]["lanes"],
        ties=protocol["ties"],
        device=device,
        judge=judge,
        known_draws=protocol["known_draws"],
        window=config["window"],
        rng=config["rng"],
    )
    budget = config["budget"]
    return evaluation if budget is None else within(evaluation, budget)


def attacker(config: dict) -> tuple[Attack, ThreatModel, Judge | None]:
    """The attack, the threat model and the in-loop evaluation of a run. They need no file.

    Raises ValueError for values that they do not take, and if they do not fit together.
    """
    attack, threat = _make(config, config["attack"]), _make(config, config["threat_model"])
    check_members(attack, config["choices"]["attack"])
    check_norm(attack, config["choices"]["attack"], threat.norm)
    if attack.batch_bound and (config["threat_model"].get("region") or type(threat) is not ThreatModel):
        raise ValueError(
            f"need threat_model=linf or l2 for a package's attack={config['choices']['attack']}, which knows no other, "
            f"got threat_model={config['choices']['threat_model']}: use attack=autoattack"
        )
    wanted = config["protocol"]["judge"]
    judge = _make(config, wanted) if wanted else None
    return attack, threat, judge if attack.steps else None


def check_lengths(node: dict, threat: ThreatModel, x: Tensor) -> None:
    """Raises ValueError for an eps or a step size that is larger than the distance of any two images.

    `node`: the attack's; `x`: an image (1,C,H,W).
    """
    largest = threat.largest(x)
    if threat.eps > largest:
        raise ValueError(
            f"need threat_model.eps <= {largest:g}, the largest distance of two images, got {threat.eps:g}"
        )
    for each in nodes(node):
        step = each.get("step_size")
        if isinstance(step, int | float) and step > largest:
            raise ValueError(
                f"need step_size <= {largest:g}, the largest distance of two images, got step_size={step:g}"
            )


def check_images(scored: Defended, subset: Subset, device: str) -> int:
    """The number of classes. Raises ValueError for a network that does not take the dataset's images, and for labels
    without a logit.
    """
    x, shape = subset.x[:1].to(device, memory_format=torch.channels_last), "x".join(map(str, subset.x.shape[1:]))
    network = "classifier"
    try:
        with torch.no_grad():
            logits = brief(scored)(x, Streams(subset.ids[:1], 0, "probe"))
            classes, network = logits.shape[1], "denoiser"
            if scored.denoiser is not None:
                scored.denoiser(x, 1.0)
    except RuntimeError as error:
        raise ValueError(f"need a {network} for images of {shape}, got one that says: {error}") from error
    if classes < 2:
        raise ValueError(f"need at least 2 logits, got {classes}: let the classifier return (0, z) for a sigmoid's z")
    if classes <= int(subset.y.max()):
        labels = f"the dataset's labels go up to {int(subset.y.max())}"
        raise ValueError(f"need a logit for every label, got {classes} logits, and {labels}")
    return classes


def defenses(config: dict, device: str) -> tuple[Defended, Defended]:
    """The attacked defense, without a gradient mode, and the scored one. They are one object if their precision is one,
    and have the same networks if only one of them uses TF32.
    """
    scored = attacked = defense(config, device)
    names = config["dtype"], config["scored_dtype"]
    if names[0] != names[1]:
        attacked = copy.copy(scored) if DTYPES[names[0]] is DTYPES[names[1]] else copy.deepcopy(scored)
    in_precision(attacked, names[0])
    in_precision(scored, names[1])
    if config["compile"]:
        compile_networks(nn.ModuleList([attacked, scored]), config["dataset"], device)
    return attacked, scored


def compile_networks(models: nn.Module, dataset: dict, device: str) -> None:
    """Have the calls of the denoisers' and the classifiers' networks compiled, in the widths of a run on a dataset."""
    check_compiler(device)
    widths = [dataset["lanes"] * samples for samples in range(1, dataset["draws_per_call"] + 1)]
    for module in models.modules():
        if isinstance(module, Denoiser | Classifier):
            module.compiled = Compiled(module.net, widths)


def in_precision(model: Defended, name: str) -> Defended:
    """The defense, after its networks are cast to a precision of `DTYPES`."""
    for module in model.modules():
        if isinstance(module, Denoiser | Classifier):
            cast(module.net, DTYPES[name])
        elif isinstance(module, PurifierModule):
            cast(module, DTYPES[name])
    model.tf32 = name == "tf32"
    return model


def defense(config: dict, device: str) -> Defended:
    """The defense in float32. Its networks are on the device, in the memory format of the run."""
    classifier: Classifier = network(config, "classifier", device)
    denoiser: Denoiser | None = network(config, "denoiser", device) if "_target_" in config["denoiser"] else None
    return defense_around(classifier, denoiser, config, device)


def defense_around(classifier: Classifier, denoiser: Denoiser | None, config: dict, device: str) -> Defended:
    """The defense of these networks. Those of the purifier itself are as `defense` makes them."""
    purify, nodes = _make(config, config["purifier"]), config["purifier"].get("gradients") or {}
    variants = {name: _variant(config, node) for name, node in nodes.items() if node}
    size = config["dataset"]["draws_per_call"]
    for function in (purify, *(variant for variant in variants.values() if callable(variant))):
        check_networks(function)
    scored = Defended(purify, denoiser, classifier, draws_per_call=size, variants=variants)
    scored.networks.to(device).eval().requires_grad_(False)
    return scored


def network(config: dict, group: str, device: str) -> Any:
    """The classifier or the denoiser in float32, on the device, in the memory format of the run."""
    return _make(config, config[group]).to(device, memory_format=torch.channels_last)


def check_networks(purify: Callable) -> None:
    """Raise ValueError if a purifier has networks of its own that the run would not see."""
    bound = unbound(purify)
    hidden = isinstance(bound, nn.Module) and not isinstance(bound, PurifierModule)
    while isinstance(purify, functools.partial):
        hidden |= any(isinstance(value, nn.Module) for value in (*purify.args, *purify.keywords.values()))
        purify = purify.func
    if hidden:
        raise ValueError(
            "need a purifier with networks of its own to be a dp.purifiers.module.PurifierModule that holds them, "
            f"got {bound.__name__ if inspect.isfunction(bound) else type(bound).__name__}: see docs/extending.md"
        )


def _variant(config: dict, node: dict) -> dict | Callable:
    """A gradient variant: changed hyperparameters of the purifier, or another purifier in its place."""
    return _make(config, node) if "_target_" in node else {k: v for k, v in node.items() if k != "per_dataset"}


def _make(config: dict, node: Any, **more: Any) -> Any:
    return make(node, modules=config["plugins"]["modules"], **more)


def set_memory(config: dict, attacked: Defended, scored: Defended, one: Subset, nfe: int, device: str) -> None:
    """Set how the purification's networks keep activations for the backward pass, as the key `memory` says.

    `store` keeps all of them, and `recompute` keeps those of the newest calls only. `auto` measures the attacked
    purification without a gradient mode, and keeps the activations of as many calls as fit into half of the free memory
    with the classifier's.
    """
    models = nn.ModuleList([attacked, scored])
    networks = [m for m in models.modules() if isinstance(m, Denoiser | PurifierModule)]
    for network in networks:
        network.memory = "store" if config["memory"] == "auto" else config["memory"]
    if config["memory"] != "auto" or not networks:
        return
    x = one.x.to(device, memory_format=torch.channels_last)
    room = 0.5 * free_bytes(device) / sharing(config)
    each = bytes_per_call(attacked, x, Streams(one.ids, 0, "probe"), room)
    at_once = config["dataset"]["lanes"] * config["dataset"]["draws_per_call"]
    call = each.call * (KEEPS if config["compile"] else 1)  # the probe's calls are plain
    fit = int(max(0, room / at_once - each.classifier) / max(1, call))
    for network in networks:
        network.memory = "store" if nfe <= fit else "recompute"
        network.recompute.keep = max(1, fit)
