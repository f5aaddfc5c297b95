"""dp: diffusion-based adversarial purification, reproduced and judged."""
