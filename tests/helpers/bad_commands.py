"""Command lines with one mistake each, drawn by a seeded generator from the keys of composed configurations."""

import functools
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from dp.runs import compose
from tests.helpers.compose import TINY, composed, options

QUICK = [*TINY, "protocol.seeds=[5]", "workers=1", "audit=false"]
BASES = [  # the first runs here; of the others only what is found before a file is fetched
    [],
    ["purifier=diffpure", "attack=apgd_ce"],
    ["attack=union", "purifier.steps=3"],
    ["protocol=hill"],
    ["attack=square", "threat_model=l2", "purifier=none"],
    ["protocol=strict", "purifier=hetero_official", "purifier.n=20"],
    ["purifier=diffpure_sde", "attack=diffattack", "purifier.dt=0.1"],
    ["dataset=cifar10"],
    ["dataset=imagenet", "purifier=diffpure_ode", "attack=stadv", "threat_model=stadv"],
    ["dataset=svhn", "tracking=wandb", "purifier=hetero_random", "classifier=local"],
]
# Text that may be anything, tables of which a run uses one row, labels, and numbers of no consequence or of any value.
FREE = ("results", "name", "file", "url", "megabytes", "published", "project", "group", "full_size", "description")
FREE += (
    "per_dataset",
    "files",
    "scaled_from",
    "key_ignores",
    "choices",
    "plugins",
    "facts",
    "mask",
    "version",
    "model",
    "entry",
)
FREE += ("wrapper", "tracking", "gradients")


class Leaf(NamedTuple):
    """A key of a configuration with its value."""

    key: str
    value: Any


class Line(NamedTuple):
    """A command line: its words, and the kind of mistake that it has."""

    words: tuple[str, ...]
    kind: str


def leaves(node: Any, path: str = "") -> Iterator[Leaf]:
    """Every key below a node, mappings and lists too."""
    for key, value in node.items():
        where = f"{path}.{key}".lstrip(".")
        yield Leaf(where, value)
        if isinstance(value, dict):
            yield from leaves(value, where)


def is_free(key: str) -> bool:
    return any(part in FREE for part in key.split("."))


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def wrong_kind(rng: random.Random, keys: list[Leaf]) -> str:
    leaf = rng.choice([k for k in keys if k.value is not None and not k.key.endswith("_target_")])
    if is_number(leaf.value):
        values = ["text", "[1]", "{a: 1}", "true", "''", "1.5.2", "1e", "0x10"]
    elif isinstance(leaf.value, bool):
        values = ["text", "3", "[true]", "{a: 1}"]
    elif isinstance(leaf.value, list):
        values = ["5", "text", "true", "{a: 1}"]
    elif isinstance(leaf.value, dict):
        values = ["5", "text", "[1]", "true"]
    else:
        values = ["{a: 1}", "[1, 2]"]
    return f"{leaf.key}={rng.choice(values)}"


def wrong_word(rng: random.Random, keys: list[Leaf]) -> str:
    leaf = rng.choice([k for k in keys if isinstance(k.value, str)])
    return f"{leaf.key}={rng.choice(['nonsense', '5', 'true', 'None', '-', '/'])}"


def taken_out(rng: random.Random, keys: list[Leaf]) -> str:
    settings = [k.key for k in keys if "." not in k.key or k.key.startswith(("dataset.", "protocol."))]
    return f"~{rng.choice([key for key in settings if key.count('.') < 2 and not is_free(key)])}"


def wrong_value(rng: random.Random, keys: list[Leaf]) -> str:
    leaf = rng.choice([k for k in keys if is_number(k.value)])
    return f"{leaf.key}={rng.choice(['-1', 'nan', 'inf', '-inf', '-0.5', '-3', '-1e9'])}"


def wrong_order(rng: random.Random, keys: list[Leaf]) -> str:
    given = [
        "purifier.t_l=0.01", "purifier.t_s=1.5", "purifier.t=1.5", "purifier.t=0", "protocol.seeds=[]",
        "protocol.seeds=[5,5]", "protocol.seeds=[[5]]", "protocol.seeds=[true]", "protocol.report=[]",
        "protocol.report=[nothing]", "protocol.report=[[single]]", "protocol.images=600", "shard=2/1", "shard=0/1",
        "attack.step_size=5", "threat_model.eps=99", "threat_model.eps=8/0", "threat_model.eps=1/2/3",
        "threat_model.eps=-8/255", "threat_model.eps=[8,255]", "classifier.mean=[0.5]", "classifier.taps=[nothing]",
        "classifier.taps=[5]", "denoiser.sigma_data=0", "denoiser.sigma_data=-1", "dataset.lanes=0",
        "dataset.draws_per_call=0", "protocol.votes=0", "classifier.net.net.classes=3", "classifier.net.net.depth=9",
        "key_ignores=[]", "key_ignores=[[results]]", "save_every=0", "workers=0", "workers=-1", "window=0",
    ]  # fmt: skip
    there = {k.key for k in keys}
    return rng.choice([word for word in given if word.partition("=")[0] in there])


def misspelt(rng: random.Random, name: str) -> str:
    k = rng.randrange(len(name))
    return rng.choice([name[:k] + "q" + name[k:], name + "x", name[:k] + "zz" + name[k + 1 :], f"q{name}"])


def unknown_key(rng: random.Random, keys: list[Leaf]) -> str:
    leaf = rng.choice(keys)
    parent, dot, name = leaf.key.rpartition(".")
    key = parent + dot + misspelt(rng, name)
    return rng.choice([f"{key}=3", f"+{key}=3", f"++{key}=3", f"~{key}", f"+{key}={{a: 1}}", f"+{leaf.key}.more=3"])


def unknown_option(rng: random.Random, keys: list[Leaf]) -> str:
    group = rng.choice(compose.GROUPS)
    name = rng.choice(options(group))
    values = [misspelt(rng, name), f"../{group}/{name}", f"{name}.yaml", "", f"[{name}]", f"{{{name}: 1}}", "null", "5"]
    values += [f"./{name}", f"{name}/", "..", "/etc/passwd", f"{name},{name}", "true", f"{name} {name}"]
    presets = [misspelt(rng, "digits/full"), "../x", "digits", "", "[a]", "digits/full.yaml"]
    words = [f"{group}={rng.choice(values)}"] * 5 + [f"+experiment={rng.choice(presets)}"]
    words += [f"+{group}@attack.attacks.more={misspelt(rng, name)}", f"+{group}={name}", f"{group}@x={name}"]
    return rng.choice(words)


def bad_grammar(rng: random.Random, keys: list[Leaf]) -> str:
    key = rng.choice([k.key for k in keys if not is_free(k.key)])
    rests = ["", "=[1", "={a", "=a: b: c", "=${nothing}", "=${nothing:1}", "='a", "=1,2", ".0.1=3", "=range(1,3)"]
    rests += ["=choice(1,2)", ".=1", " = 1=1", "=${" + key + "}", "=${oc.env:NOT_SET}", "=!!python/object:os.system"]
    rests += ["=\t{", "=glob(*)", "={_target_: os.system}"]
    words = [key + rest for rest in rests]
    return rng.choice([*words, f"={key}", f"+{key}=1", f"..{key}=1", f"~{key}=nothing"])


def bad_flag(rng: random.Random, keys: list[Leaf]) -> str:
    return rng.choice(
        [
            "--nonsense", "--config-dir=nowhere", "-x", "--cfg=nothing", "--info=nothing", "--config-name=nothing",
            "--config-path=nowhere", "--config-name", "hydra/launcher=nothing", "hydra.run.dir=5", "+hydra.more=3",
            "--experimental-rerun=nowhere", "--resolve", "--package=nothing", "hydra.mode=NOTHING", "hydra/launcher=",
            "--cfg=job=", "-p",
        ]
    )  # fmt: skip


MISTAKES: list[Callable[[random.Random, list[Leaf]], str]] = [
    *(wrong_kind, wrong_kind, wrong_value, wrong_value, wrong_word, wrong_order, unknown_key, unknown_key),
    *(unknown_option, taken_out, bad_grammar, bad_flag),
]
RUNNABLE = 7  # the first so many bases need no file


def drawn(seed: int, count: int) -> list[Line]:
    """So many command lines, each with one mistake."""
    rng, lines = random.Random(seed), []
    while len(lines) < count:
        k = rng.randrange(len(BASES))
        mistake = rng.choice(MISTAKES)
        if k >= RUNNABLE and mistake in (wrong_value, wrong_order, wrong_word):
            continue
        words = [*QUICK, *BASES[k]] if k < RUNNABLE else [*BASES[k], "workers=1"]
        given = [word for word in words if word.partition("=")[0] in _settable(tuple(BASES[k]))]
        keys = list(_leaves(tuple(given)))
        if mistake in (wrong_kind, wrong_value, wrong_word):
            keys = [leaf for leaf in keys if not is_free(leaf.key)]
        lines.append(Line((*given, mistake(rng, keys)), mistake.__name__))
    return lines


@functools.cache
def _leaves(words: tuple[str, ...]) -> tuple[Leaf, ...]:
    return tuple(leaves(composed(*words)))


def _settable(base: tuple[str, ...]) -> set[str]:
    return {leaf.key for leaf in _leaves(base)} | set(compose.GROUPS)
