"""A sanitizing from its objects to its summary: poison, trainings, the five steps, and the figures."""

import json
from dataclasses import dataclass, field
from functools import cached_property

import torch
from safetensors.torch import save
from torch import Tensor

from dp.classifiers import Classifier
from dp.datasets import fixed_ids
from dp.diffusion.denoisers import Denoiser
from dp.output import record
from dp.output.console import console
from dp.output.locks import take_lock
from dp.output.report import clock
from dp.output.row_table import count_of
from dp.output.strips import Strip, draw
from dp.repeatable import set_repeatable
from dp.runs.build import network
from dp.runs.machine import device_of
from dp.runs.pipeline import fetch_missing
from dp.runs.sanitize_networks import Cost, Workshop, cost_of, labels_of, seconds_of
from dp.runs.sanitize_passes import Passes
from dp.runs.sanitized import CHANGES, FORMAT, LABELS, PICTURE, REPORT, STATES, Job, make, read_summary
from dp.sanitizing import report
from dp.sanitizing.chain import to_bytes, to_floats
from dp.sanitizing.elixir import DataElixir, States, put
from dp.sanitizing.transitions import Found
from dp.subset import Subset


@dataclass
class Sets:
    """The images of a sanitizing. `true`: before the poison; `data`: as given; `poisoned`: (N,) bool; `test`: clean;
    `attacked`: test images with the trigger.
    """

    true: Subset
    data: Subset
    poisoned: Tensor
    test: Subset
    attacked: Subset


@dataclass
class Run:
    """A sanitizing under way."""

    job: Job
    sets: Sets
    workshop: Workshop
    models: dict[str, Classifier] = field(default_factory=dict)
    agreed: int = 0

    @property
    def sanitizer(self) -> DataElixir:
        """Its settings."""
        return self.job.sanitizer

    @cached_property
    def denoiser(self) -> Denoiser:
        """The denoiser: as configured, or trained on the set as given."""
        if self.job.trains_denoiser:
            return self.workshop.trained("denoiser", "denoiser", self.sets.data, "denoiser")
        return network(self.job.config, "denoiser", self.workshop.device)

    def labels_of(self, classifier: Classifier, x: Tensor) -> Tensor:
        """The classifier's labels (N,) of images x (N,C,H,W) in [0,1]."""
        return labels_of(classifier, x, self.sanitizer.batch, self.workshop.device)


def judged(job: Job) -> dict:
    """Do what is missing of a sanitizing. Returns its summary."""
    summary = None if job.config["overwrite"] else read_summary(job.folder)
    if summary is not None:
        console.print(f"already finished, nothing to do ({job.folder})")
        if summary["code"] != job.code:
            console.print("note: the code has changed since; overwrite=true runs it again")
        return summary
    files = {"dataset": job.config["dataset"], "training": job.recipes}
    fetch_missing(files if job.trains_denoiser else {**files, "denoiser": job.config["denoiser"]})
    device = device_of(job.config)
    torch.set_num_threads(1)  # the last bits of a sum depend on it
    set_repeatable(device)
    run = Run(job, sets_of(job), Workshop(job, device))
    cost = cost_of(run.workshop, run.sets.data)
    record.begin(job.folder, job.config, job.code, job.config["overwrite"], LABELS)
    with (job.folder / ".lock").open("w") as lock:
        take_lock(lock, str(job.folder), 10.0)
        for line in announcement(run, cost):
            console.print(line)
        try:
            return sanitized(run)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"interrupted: {job.folder} has what is done; the same command goes on") from None


def sets_of(job: Job) -> Sets:
    """The images, poisoned if the job says so. Raises ValueError for a target that is no label of the set, and for one
    that all test images have.
    """
    recipe = job.recipes["classifier"]
    true: Subset = make(job.config, recipe["data"])
    if job.sanitizer.images is not None:
        true = true.select(torch.from_numpy(fixed_ids(len(true.x), job.sanitizer.images)))
    test: Subset = make(job.config, {**job.config["dataset"]["loader"], "images": recipe["test_images"]})
    if job.poison.known and job.poison.target > int(true.y.max()):
        raise ValueError(f"need poison.target <= {int(true.y.max())}, the last label, got {job.poison.target}")
    data, poisoned = job.poison.applied(true)
    attacked = job.poison.attacked(test)
    if job.poison.known and not len(attacked.x):
        raise ValueError(f"need test images outside class {job.poison.target}, got none: set poison.target")
    return Sets(true, data, poisoned, test, attacked)


def repeated(train: Tensor, test: Tensor) -> int:
    """How many of the test images (T,C,H,W) are among the training images (N,C,H,W), pixel by pixel."""
    seen = {image.numpy().tobytes() for image in train}
    return sum(image.numpy().tobytes() in seen for image in test)


def announcement(run: Run, cost: Cost) -> list[str]:
    """The lines that a sanitizing prints before it starts: what it does, and what it costs."""
    job, rounds, count = run.job, run.sanitizer.rounds, len(run.sets.data.x)
    of = f"{int(run.sets.poisoned.sum())} of " if job.poison.known else ""
    how = f"poison {job.config['choices']['poison']}, target {job.poison.target}: " if job.poison.known else ""
    steps = {name: recipe["steps"] for name, recipe in job.recipes.items()}
    extra = f", {steps['denoiser']} of the denoiser" if job.trains_denoiser else ""
    same = repeated(run.sets.true.x, run.sets.test.x)
    tests = count_of(len(run.sets.test.x), "test image")
    return [
        job.folder.name,
        f"{how}{of}{count_of(count, 'image')}; denoiser trained on: {run.sanitizer.denoiser_trained_on}",
        f"{rounds.count} rounds to t {rounds.t:g}: {cost.nfe} network evaluations an image, {cost.nfe * count:,} for "
        f"all, about {clock(cost.rounds)}; images with a transition in a flagged class are passed twice",
        f"trainings: 3 x {steps['classifier']} steps, {steps['finetuning']} of fine-tuning{extra}, about "
        f"{clock(cost.trainings)}",
        *([f"{same} of {tests} are training images, too: accuracy on them says little"] if same else []),
    ]


def sanitized(run: Run) -> dict:
    """Do what is missing, in order, and write all files. Returns the summary."""
    data, folder = run.sets.data, run.job.folder
    first = run.workshop.trained("poisoned", "classifier", data)
    passes = Passes(run.sanitizer, data, run.denoiser, first, folder, run.workshop.device)
    labels = passes.labels()
    found = run.sanitizer.find(labels, data.y)
    # Differs: no further training if nothing is changed (deviation 164: what is reported, and when it is trained).
    run.models = {name: first for name in report.MODELS}
    result = data
    if (found.sure | found.suspicious).any():
        result = cleaned(run, passes, found)
        run.models["sanitized"] = run.workshop.trained("sanitized", "classifier", result)
    write_changes(run, found, result)
    draw_rounds(run, passes, found, result)
    summary = summary_of(run, passes, found, result)
    record.write_atomic(folder / REPORT, report.markdown(summary).encode())
    record.write_atomic(folder / record.SUMMARY, (json.dumps(summary, indent=1) + "\n").encode())
    for path in folder.glob(STATES):  # by far the largest files
        path.unlink()
    return summary


def cleaned(run: Run, passes: Passes, found: Found) -> Subset:
    """Steps 4 and 5: the sanitized set. The benign model is trained on the way.

    Sure images get their majority label at once. The benign model is trained on all but the suspicious ones, then
    fine-tuned with those suspicious images on which it agrees with the majority, and labels the suspicious ones.
    """
    data, allowed, majority = run.sets.data, found.candidates.states, found.candidates.majority
    index, quantile = (found.sure | found.suspicious).nonzero().flatten(), run.sanitizer.quantile
    result = Subset(data.ids, data.x.clone(), data.y.clone())
    for part in passes.kept(index):
        put(result, part, found.sure[part.places], allowed[part.places], majority[part.places], quantile)
    sure = result.select(~found.suspicious)
    benign = run.workshop.trained("benign", "classifier", sure)
    if found.suspicious.any():
        more, agrees = Subset(data.ids, data.x.clone(), data.y.clone()), torch.zeros(len(data.x), dtype=torch.bool)
        for part in passes.kept(index):
            seen, wanted = labels_of_states(run, benign, part), majority[part.places]
            agrees[part.places] = found.suspicious[part.places] & (seen[:, 0] == wanted)
            alike = allowed[part.places] & (seen == wanted[:, None])
            put(more, part, agrees[part.places], alike, wanted, quantile)
        run.agreed = int(agrees.sum())
        if run.agreed:
            tuned = Subset(*(torch.cat(both) for both in zip(sure, more.select(agrees), strict=True)))
            benign = run.workshop.trained("finetuned", "finetuning", tuned, start=benign)
        for part in passes.kept(index):
            seen = labels_of_states(run, benign, part)
            alike = allowed[part.places] & (seen == seen[:, :1])
            put(result, part, found.suspicious[part.places], alike, seen[:, 0], quantile)
    run.models["benign"] = benign
    return result


def labels_of_states(run: Run, classifier: Classifier, part: States) -> Tensor:
    """The classifier's labels (n,1+S) of images and their states."""
    return torch.stack([run.labels_of(classifier, to_floats(x)) for x in part.states.unbind(1)], 1)


def write_changes(run: Run, found: Found, result: Subset) -> None:
    """Write what is changed in the set: a csv file for people, and the new labels and images as tensors."""
    sets, index = run.sets, (found.sure | found.suspicious).nonzero().flatten()
    head = "id,given,new,kind,new_image" + (",poisoned,true" if run.job.poison.known else "")
    lines = [head]
    for i in index.tolist():
        moved = not torch.equal(result.x[i], sets.data.x[i])
        cells = [int(sets.data.ids[i]), int(sets.data.y[i]), int(result.y[i])]
        cells += ["sure" if found.sure[i] else "suspicious", int(moved)]
        cells += [int(sets.poisoned[i]), int(sets.true.y[i])] if run.job.poison.known else []
        lines.append(",".join(map(str, cells)))
    record.write_atomic(run.job.folder / f"{CHANGES}.csv", ("\n".join(lines) + "\n").encode())
    tensors = {"ids": sets.data.ids[index], "y": result.y[index], "x": to_bytes(result.x[index])}
    data = save({key: value.contiguous() for key, value in tensors.items()})
    record.write_atomic(run.job.folder / f"{CHANGES}.safetensors", data)


def draw_rounds(run: Run, passes: Passes, found: Found, result: Subset) -> None:
    """Draw what the rounds make of a poisoned image and of another one; without a poison, of a changed image."""
    changed, known = found.sure | found.suspicious, run.job.poison.known
    first = run.sets.poisoned if known else changed
    wanted = {"poisoned" if known else "changed": first & changed if (first & changed).any() else first}
    wanted["not poisoned" if known else "not changed"] = ~first & ~changed
    places = {name: int(mask.nonzero()[0]) for name, mask in wanted.items() if mask.any()}
    padded = torch.tensor([*places.values()])[torch.arange(run.sanitizer.batch) % len(places)]
    last = run.sanitizer.rounds.last
    ends = torch.stack([to_floats(state.cpu()) for state in passes.states(padded)[last - 1 :: last]], 1)
    strips = [strip(run, name, place, ends[k], result) for k, (name, place) in enumerate(places.items())]
    draw(run.job.folder / PICTURE, strips, run.job.folder.name)


def strip(run: Run, name: str, place: int, ends: Tensor, result: Subset) -> Strip:
    """A row of the picture: the image at `place`, and what each round leaves of it (`ends`, (R,C,H,W)), with the labels
    of the poisoned classifier.
    """
    data, true = run.sets.data, run.sets.true
    seen = run.labels_of(run.models["poisoned"], torch.cat([data.x[place][None], ends])).tolist()
    images, words = (
        [data.x[place][None], ends, result.x[place][None]],
        [f"given as {int(data.y[place])}, seen as {seen[0]}"],
    )
    words += [f"round {k + 1}: seen as {label}" for k, label in enumerate(seen[1:])]
    words.append(f"result: {int(result.y[place])}")
    if run.sets.poisoned[place]:
        images, words = [true.x[place][None], *images], [f"before: {int(true.y[place])}", *words]
    return Strip(name, torch.cat(images), words)


def summary_of(run: Run, passes: Passes, found: Found, result: Subset) -> dict:
    """The summary of a finished sanitizing."""
    job, sets, known = run.job, run.sets, run.job.poison.known
    summary = {"format": FORMAT, "key": job.folder.name, "poison": job.config["choices"]["poison"]}
    summary |= {"rate": job.poison.rate if known else None, "target": job.poison.target if known else None}
    summary |= {"denoiser_trained_on": run.sanitizer.denoiser_trained_on, "seed": run.sanitizer.seed}
    summary |= {"images": len(sets.data.x), "poisoned": int(sets.poisoned.sum()) if known else None}
    by_class = {"classes": found.classes, "divergence": found.divergence, "score": found.score}
    summary |= {key: value.tolist() for key, value in {**by_class, "flagged": found.flagged}.items()}
    summary |= {"sure": int(found.sure.sum()), "suspicious": int(found.suspicious.sum()), "agreed": run.agreed}
    summary["transitions"] = report.transitions(found.candidates.transition, sets.poisoned)
    summary["labels"] = report.of_labels(sets.data.y, result.y, sets.true.y, sets.poisoned, known)
    summary["models"] = {name: figures_of(run, run.models[name]) for name in report.MODELS}
    summary["evaluations"] = passes.evaluations(int((found.sure | found.suspicious).sum()))
    device = torch.cuda.get_device_name() if run.workshop.device.startswith("cuda") else "cpu"
    summary |= {"seconds": seconds_of(job.folder), "device": device}
    return summary | {"config": job.config, **record.provenance(), "code": job.code}


def figures_of(run: Run, classifier: Classifier) -> dict:
    """The figures of a classifier on the test images. See `report.of_model`."""
    sets = run.sets
    clean, triggered = (run.labels_of(classifier, subset.x) for subset in (sets.test, sets.attacked))
    return report.of_model(clean, sets.test.y, triggered, sets.attacked.y, run.job.poison.target)
