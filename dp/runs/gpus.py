"""GPUs that a cost can be estimated for: what their data sheets promise, and the share of it that is assumed."""

from typing import NamedTuple


class Gpu(NamedTuple):
    """`memory`: bytes. `peak`: FLOP/s by the precision of the networks, without sparsity. `source`: who says so."""

    memory: float
    peak: dict[str, float]
    source: str


GPUS = {
    "h200": Gpu(
        141e9,
        {"float32": 67e12, "tf32": 494.5e12, "bfloat16": 989.5e12},
        "NVIDIA H200 data sheet, SXM; half of what it says with sparsity",
    ),
    "a100": Gpu(
        80e9,
        {"float32": 19.5e12, "tf32": 156e12, "bfloat16": 312e12},
        "NVIDIA A100 data sheet, 80 GB SXM",
    ),
    "rtx4090": Gpu(
        24e9,
        {"float32": 82.6e12, "tf32": 82.6e12, "bfloat16": 165.2e12},
        "NVIDIA Ada architecture white paper, appendix A; bfloat16 with float32 sums",
    ),
}
# The share of the peak that a run is assumed to reach. Ours: no GPU was measured. What is no convolution and no matrix
# product (norms, noise, launches) counts no FLOPs and takes time, more of it beside faster products.
SHARE = {"float32": 0.7, "tf32": 0.4, "bfloat16": 0.4}
BYTES = {"float32": 4, "tf32": 4, "bfloat16": 2}  # of one number that is kept for the backward pass
ROOM = 0.5  # the share of the memory that activations may take, as in `dp.runs.build.set_memory`
COUNTS = (1, 8, 64, 512)  # of GPUs, for which the time is given


def check_cost(cost: object) -> None:
    """Raises ValueError unless the key `cost` is true, false or the name of a GPU."""
    if not isinstance(cost, bool) and cost not in GPUS:
        raise ValueError(f"need cost true, false, {' or '.join(GPUS)}, got cost={cost}")
