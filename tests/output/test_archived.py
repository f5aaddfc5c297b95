"""An archived run holds every row."""

import pytest
import torch
from safetensors.torch import save_file

from dp.output.archived import arrays_of, read_rows, rows_of
from dp.output.run_files import VERDICTS
from tests.helpers.rows import whole_row


def test_the_rows_come_back_as_they_were(tmp_path):
    rows = [whole_row(arm, seed, i) for arm in ("defended", "null") for seed in (1, 7) for i in (3, 5)]
    judged = {"seen": [2, 1, 2], "looks": 4, "distance": 0.1234567890123456, "nfe": 176}
    rows += [whole_row("undefended", s, i, **judged, lost_at=None if i == 5 else s) for s in (1, 7) for i in (3, 5)]
    save_file(arrays_of(rows), tmp_path / VERDICTS)
    back = {(row["arm"], row["seed"], row["id"]): row for row in read_rows(tmp_path)}
    assert len(back) == len(rows) == 12
    assert [back[row["arm"], row["seed"], row["id"]] for row in rows] == rows


def test_of_an_older_archive_the_classes_come_back():
    arrays = {"ids": torch.tensor([3, 5]), "seeds": torch.tensor([1]), "labels": torch.tensor([0, 1])}
    arrays["defended.adv"] = torch.tensor([[[0, 1], [1, 1]]], dtype=torch.int16)
    first, second = rows_of(arrays)
    assert (first["id"], first["label"], first["adv"]) == (3, 0, [0, 1])
    assert (second["id"], second["label"], second["adv"]) == (5, 1, [1, 1])
    assert "iterations" not in first


def test_a_torn_file_is_named_in_one_line(tmp_path):
    (tmp_path / VERDICTS).write_bytes(b"\0" * 40)
    with pytest.raises(ValueError, match=r"^need the rows of an archived run in .*verdicts.safetensors") as error:
        read_rows(tmp_path)
    assert "\n" not in str(error.value)
