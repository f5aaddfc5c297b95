"""dataset.lanes=auto: the number of batch slots that the memory of this machine has room for."""

import math

import torch

from dp.compiled import KEEPS
from dp.defense.memory import bytes_per_call
from dp.diffusion.checkpointing import ActivationCheckpointing
from dp.evaluation.dry import dry_nfe
from dp.rng import Streams
from dp.runs.build import build
from dp.runs.compose import Setup
from dp.runs.early import check_early
from dp.runs.machine import sharing, stays_here, total_bytes
from dp.runs.pipeline import fetch_missing
from dp.runs.skeleton import without_files
from dp.runs.validate import check_setup
from dp.weights.needed import missing

AUTO = "auto"
MOST = 32  # as for CIFAR-10; more slots make fewer units, which fewer GPUs can share
ROOM = 0.5  # the share of the memory that activations may take, as in `dp.runs.build.set_memory`


def with_lanes(setup: Setup) -> Setup:
    """The setup with a number in the place of dataset.lanes=auto, as if the command had it; any other as it is.

    The number depends on the kind of machine alone, not on what else it does, so that the same command goes on.
    Raises ValueError where other machines share the run, because they may have another number.
    """
    config, dataset = setup.config, setup.config["dataset"]
    if dataset.get("lanes") != AUTO:
        return setup
    probe = {**config, "dataset": {**dataset, "lanes": 1}}
    check_setup(setup._replace(config=probe))
    check_early(probe)
    if str(config["shard"]) != "1/1" or not stays_here(config):
        raise ValueError("need dataset.lanes as a number where several machines may share a run, got auto: choose one")
    if isinstance(config["cost"], str):
        raise ValueError(f"need dataset.lanes as a number for cost={config['cost']}, got auto, which measures here")
    if config["cost"] is True and missing(probe):  # then nothing is fetched
        probe = without_files(probe)
    fetch_missing(probe)
    lanes = fitting(probe)
    line = f"dataset.lanes={lanes}: the batch slots that the memory has room for; the number is part of the key"
    return setup._replace(config={**config, "dataset": {**dataset, "lanes": lanes}}, notes=(*setup.notes, line))


def fitting(config: dict) -> int:
    """The largest power of two, up to `MOST`, of batch slots whose activations take half of the memory at most: those
    of the classifier, and of all calls of a purification with memory=store, else of its newest ones. It is no larger
    than the images need. `config`: with one slot.
    """
    evaluation = build({**config, "memory": "store", "compile": False})
    attacked, first = evaluation.arms["defended"].attacked, evaluation.first
    room = ROOM * total_bytes(evaluation.device) / sharing(config)
    each, nfe = bytes_per_call(attacked, first.x, Streams(first.ids, 0, "probe"), room), dry_nfe(attacked, first)
    calls = nfe if config["memory"] == "store" else min(nfe, ActivationCheckpointing().keep)
    kept = calls * each.call * (KEEPS if config["compile"] else 1) + each.classifier
    fit = max(1.0, room / max(1.0, attacked.draws_per_call * kept))
    if evaluation.device != "cpu":
        torch.cuda.empty_cache()  # the run's processes measure what is free
    images = 2 ** math.ceil(math.log2(len(evaluation.subset.ids)))
    return min(MOST, images, 2 ** int(math.log2(fit)))
