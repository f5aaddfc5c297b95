"""A table as text: Markdown for GitHub, and LaTeX with booktabs."""

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd


def markdown(frame: pd.DataFrame) -> str:
    """A GitHub table. Numbers have one decimal; what is not a number is an empty cell."""
    text = frame.map(_cell)
    lines = ["| " + " | ".join(cells) + " |" for cells in [list(frame.columns), *text.to_numpy().tolist()]]
    lines.insert(1, "|" + "---|" * len(frame.columns))
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.1f}"
    return str(value).replace("|", "\\|")


def latex(frame: pd.DataFrame, caption: str, label: str, notes: Sequence[str]) -> str:
    """A LaTeX table with booktabs rules, and its notes below it. It needs the packages booktabs and graphicx."""
    body = frame.to_latex(index=False, escape=True, column_format="l" * len(frame.columns))
    tail = [f"{k}. {escaped(note)}" for k, note in enumerate(notes, 1)]
    parts = [
        "% needs \\usepackage{booktabs,graphicx}",
        "\\begin{table*}",
        f"\\caption{{{escaped(caption)}}}",
        f"\\label{{{label}}}",
        "\\resizebox{\\textwidth}{!}{%",
        _signs(body).rstrip() + "}",
        "",
        "\\footnotesize",
        *(line + "\\\\" for line in tail),
        "\\end{table*}",
    ]
    return "\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """Plain text for LaTeX."""
    special = {c: f"\\{c}" for c in "&%$#_{}"}
    return _signs(text.translate(str.maketrans(special | {"~": r"\textasciitilde{}", "\\": r"\textbackslash{}"})))


def _signs(text: str) -> str:
    return text.replace("±", "$\\pm$").replace("†", "$\\dagger$")
