"""A folder of DICOMs as a PACS exports it, with reports; nothing that tells who a patient is may be copied."""

import hashlib
import json
import stat
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest

from importing_layouts import noise, save_dicom, write_text
from knee_siglip.core.errors import UserError
from knee_siglip.importing.dicoms import KEY_FILE, pseudonym_key

Run = Callable[..., tuple[int, str, str]]
Import = Callable[..., pd.DataFrame]

NAMES = ("Doe", "Jane", "MRN", "1.2.840", "severe pain")


@pytest.fixture
def pacs(tmp_path: Path) -> Path:
    """Six studies of two images; a second frame, a report object and a text file among them."""
    for number in range(6):
        for image, (view, side) in enumerate((("AP", "L"), ("LL", "R"))):
            save_dicom(
                tmp_path / f"pacs/ST{number}/SE0/IM{image}",
                10 * number + image,
                PatientID=f"MRN{number // 2}",
                StudyInstanceUID=f"1.2.840.1.{number}",
                AccessionNumber=f"ACC{number}",
                ViewPosition=view,
                ImageLaterality=side,
                BodyPartExamined="KNEE",
                StudyDescription="severe pain",
            )
    save_dicom(tmp_path / "pacs/ST0/SE1/IM9", 99, PatientID="MRN0", NumberOfFrames="7")
    write_text(tmp_path / "pacs/ST0/SE1/IM8", "no image at all")
    return tmp_path / "pacs"


@pytest.fixture
def reports(tmp_path: Path) -> Path:
    lines = ["accession,patient,text", *(f"ACC{n},MRN{n // 2},Mild OA of both knees in study {n}." for n in range(6))]
    write_text(tmp_path / "reports.csv", "\n".join(lines))
    return tmp_path / "reports.csv"


def test_headers_give_patients_studies_views_and_sides(
    pacs: Path, reports: Path, run_import: Import, tmp_path: Path
) -> None:
    table = run_import(pacs, "--reports", reports)
    assert len(table) == 12
    first = table.iloc[1]
    assert first[["impression", "side", "view", "body_part"]].tolist() == [
        "Mild OA of both knees in study 0.",
        "right",
        "lateral",
        "knee",
    ]
    assert table["patient_id"].nunique() == 3
    assert table["study_id"].nunique() == 6
    stored = noise("dicom 1").astype("uint16") * 16
    assert first["pixels_sha256"] == hashlib.sha256(stored.tobytes()).hexdigest()
    dropped = json.loads((tmp_path / "rows.import.json").read_text())["dropped"]
    assert dropped == {"is no DICOM": 1, "DICOM of several frames": 1}


def test_nothing_that_names_a_patient_leaves_the_headers(
    pacs: Path, reports: Path, run_import: Import, tmp_path: Path
) -> None:
    run_import(pacs, "--reports", reports)
    for file in tmp_path.glob("rows.*"):
        text = file.read_text().replace(str(pacs), "")
        assert not [name for name in NAMES if name in text], file


def test_pseudonyms_are_equal_in_one_folder_and_differ_in_another(
    pacs: Path, reports: Path, run_import: Import, tmp_path: Path, knee_siglip: Run
) -> None:
    first = run_import(pacs, "--reports", reports)["patient_id"]
    assert first.tolist() == run_import(pacs, "--reports", reports)["patient_id"].tolist()
    assert stat.S_IMODE((tmp_path / ".knee-siglip-import.key").stat().st_mode) == 0o600
    (tmp_path / "other").mkdir()
    knee_siglip("import", pacs, tmp_path / "other/rows.csv", "--reports", reports)
    assert first[2] not in (tmp_path / "other/rows.csv").read_text()


def test_ids_are_kept_on_demand(pacs: Path, reports: Path, run_import: Import, tmp_path: Path) -> None:
    table = run_import(pacs, "--reports", reports, "--keep_ids")
    assert table.iloc[0][["patient_id", "study_id"]].tolist() == ["MRN0", "1.2.840.1.0"]
    assert not (tmp_path / ".knee-siglip-import.key").exists()


def test_reports_in_files_named_by_the_accession(pacs: Path, run_import: Import, tmp_path: Path) -> None:
    for number in range(6):
        write_text(tmp_path / f"texts/ACC{number}.txt", f"Befund: Osteophyten.\nBeurteilung: Gonarthrose {number}.")
    table = run_import(pacs, "--reports", tmp_path / "texts")
    assert table["impression"].tolist() == [f"Gonarthrose {number}." for number in range(6) for _ in range(2)]
    assert "report_file" not in table  # its name is the accession number


def test_reports_beside_the_dicoms_are_found_unasked(pacs: Path, run_import: Import, tmp_path: Path) -> None:
    for number in range(6):
        write_text(tmp_path / f"pacs/reports/ACC{number}.txt", f"IMPRESSION: Mild OA, study {number}.")
    table = run_import(pacs)
    assert table["impression"].tolist() == [f"Mild OA, study {number}." for number in range(6) for _ in range(2)]
    assert "report_file" not in table


def test_dicoms_without_reports_are_told(pacs: Path, tmp_path: Path, knee_siglip: Run) -> None:
    code, _, error = knee_siglip("import", pacs, tmp_path / "rows.csv")
    assert (code, "name a table or folder of reports with --reports" in error) == (1, True)


def test_a_damaged_key_is_told_before_it_makes_two_patients_of_one(tmp_path: Path) -> None:
    path, key = tmp_path / KEY_FILE, pseudonym_key(tmp_path)
    written = path.read_text()
    assert pseudonym_key(tmp_path) == key
    path.write_text(written.split()[0])  # as earlier versions wrote it
    assert pseudonym_key(tmp_path) == key
    for damaged in (written.replace(written[0], "0" if written[0] != "0" else "1", 1), written[:10], "", "no key"):
        path.write_text(damaged)
        with pytest.raises(UserError, match="the key of earlier pseudonyms, "):
            pseudonym_key(tmp_path)


def test_two_imports_at_once_draw_one_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = iter(bytes([number]) * 32 for number in range(9))

    def draw(_: int) -> bytes:
        time.sleep(0.05)  # the other one looks for the file meanwhile
        return next(drawn)

    monkeypatch.setattr("secrets.token_bytes", draw)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(pseudonym_key, [tmp_path] * 2)
    assert first == second == pseudonym_key(tmp_path)
