"""For mkdocs alone: the pictures of results/figures/, which lie outside docs/, are taken into the site."""

from pathlib import Path

from mkdocs.structure.files import File

FIGURES = Path(__file__).parents[1] / "results" / "figures"


def on_files(files, config):
    for path in sorted(FIGURES.glob("*.png")):
        files.append(File.generated(config, f"figures/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    return markdown.replace("](../results/figures/", "](figures/")
