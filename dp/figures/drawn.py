"""The figures by name, and how one is drawn from its npz."""

import importlib
from pathlib import Path

from dp.figures import stored, style

FIGURES = {
    "fig1_pictures": "Figures 1 and 5: image, attention map, mask, noised and purified; clean and attacked",
    "fig3_resampling": "Figure 3: the seam of an inpainting over U, single- and multi-step",
    "fig4_paths": "Figure 4: t-SNE of the paths of purification",
    "fig6_joint": "Figure 6: features of original and purified images",
    "fig7_sweeps": "Figure 7: hetero over tau, and over t_l and t_s",
    "fig8_cost": "Figure 8: time and peak memory over U",
    "fig9_distances": "Figure 9: distance from the original image in feature space",
    "convergence": "accuracy over the budget that the attack spent",
    "eps": "accuracy over the attacker's budget",
    "samples": "worst of m samples, and vote of k samples",
    "standard_robust": "standard against robust accuracy of all archived defenses",
}
PICTURES = Path("results/figures")


def draw(name: str, data: Path = stored.FOLDER, pictures: Path = PICTURES) -> list[Path]:
    """Draw a figure from its npz in `data` and return its files in `pictures`. Raises ValueError without the npz."""
    arrays = stored.read(name, data)
    with style.looks():
        return style.save(importlib.import_module(f"dp.figures.{name}").draw(arrays), pictures / name)
