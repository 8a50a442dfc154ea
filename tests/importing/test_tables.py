"""A table as a hospital exports it: other names, separators and encodings, joined tables, reports, mistakes."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from importing_layouts import picture, write_text

Run = Callable[..., tuple[int, str, str]]
Import = Callable[..., pd.DataFrame]

HEADER = "Bilddatei;Patientennummer;Seite;Befund;KL-Grad;Gerät"
GERMAN = [
    f"C:\\Export\\{patient}_{side}.png;{patient};{word};Mäßige Gonarthrose {patient}{side}.;{patient % 5};Röntgen A"
    for patient in range(100, 106)
    for side, word in (("L", "links"), ("R", "rechts"))
]


def told(tmp_path: Path) -> dict:
    return json.loads((tmp_path / "rows.import.json").read_text(encoding="utf-8"))


def write(path: Path, lines: list[str], encoding: str = "utf-8") -> Path:
    path.write_bytes("\r\n".join([*lines, ""]).encode(encoding))
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16"])
def test_columns_are_found_by_names_and_contents(
    images: Path, tmp_path: Path, run_import: Import, encoding: str
) -> None:
    source = write(images / "export.csv", [HEADER, *GERMAN], encoding)
    row = run_import(source).iloc[1]
    assert row.to_dict() == {
        "img_path": "data/scans/100_R.png",
        "impression": "Mäßige Gonarthrose 100R.",
        "patient_id": "100",
        "side": "right",
        "kl_grade": "0",
        "Bilddatei": "C:\\Export\\100_R.png",
        "Gerät": "Röntgen A",
    }
    assert ("read as cp1252" in " ".join(told(tmp_path)["notes"])) == (encoding == "cp1252")
    assert told(tmp_path)["values"]["side"] == {"links -> left": 6, "rechts -> right": 6}


SPANISH = "Nº historia;Lateralidad;Proyección;Fichero;Conclusión"


@pytest.mark.parametrize(("side", "view"), [("izda.", "A.P."), ("I", "anteroposterior")])
def test_accents_and_abbreviations_are_read(images: Path, run_import: Import, side: str, view: str) -> None:
    lines = [f"{patient};{side};{view};{patient}_L.png;Gonartrosis leve {patient}." for patient in range(100, 106)]
    row = run_import(write(images / "informes.csv", [SPANISH, *lines], "cp1252")).iloc[0]
    assert row[["patient_id", "side", "view", "impression"]].tolist() == ["100", "left", "ap", "Gonartrosis leve 100."]


def test_a_column_with_a_known_name_and_other_values_is_told(images: Path, tmp_path: Path, run_import: Import) -> None:
    lines = [f"{patient}_L.png,{patient % 3},No fracture of {patient}." for patient in range(100, 106)]
    table = run_import(write(images / "a.csv", ["file,split,text", *lines]))
    assert table["source_split"].tolist() == ["1", "2", "0", "1", "2", "0"]
    assert "column 'split' is named like split and holds other values, '1', '2', '0'" in told(tmp_path)["notes"][0]


def test_an_id_that_several_images_have_is_a_patient(images: Path, run_import: Import) -> None:
    names = [f"{patient}_{side}.png" for patient in range(100, 106) for side in "LR"]
    lines = [f"{name},{name[:3]}.0,No fracture {name}." for name in names]
    table = run_import(write(images / "a.csv", ["file,id,text", *lines]))
    assert table["patient_id"].tolist() == [f"{name[:3]}.0" for name in names]
    lines = [f"{name},{number},No fracture {name}." for number, name in enumerate(names)]
    assert run_import(write(images / "a.csv", ["file,id,text", *lines]))["id"][2] == "0"


def test_splits_patients_and_sides_are_read_from_paths_where_no_column_tells_them(
    tmp_path: Path, run_import: Import
) -> None:
    for number in range(4):
        for side in "LR":
            picture(tmp_path / f"data/{('train', 'val', 'test', 'train')[number]}/P{number}{side}.png")
    lines = [f"P{number}{side}.png,Text {number}{side}." for number in range(4) for side in "LR"]
    table = run_import(write(tmp_path / "data/a.csv", ["file,text", *lines]))
    told_by_paths = table[["patient_id", "side", "split"]].values.tolist()
    assert told_by_paths[:3] == [["p0", "left", "train"], ["p0", "right", "train"], ["p1", "left", "val"]]
    table = run_import(write(tmp_path / "data/a.csv", ["file,text,split", *(f"{line},test" for line in lines)]))
    assert set(table["split"]) == {"test"}


def test_reports_named_like_the_images_folders_are_found_unasked(
    tmp_path: Path, run_import: Import, knee_siglip: Run
) -> None:
    for number in range(12):
        folder = tmp_path / f"set/files/p{number // 6}/p{number // 2:04d}"
        for image in "ab":
            picture(folder / f"s{number:04d}/{number}{image}.png")
    code, _, error = knee_siglip("import", tmp_path / "set", tmp_path / "rows.csv")
    assert (code, "12 folders such as s0000, and no table or text files that name them" in error) == (1, True)
    for number in range(12):
        folder = tmp_path / f"set/files/p{number // 6}/p{number // 2:04d}"
        (folder / f"s{number:04d}.txt").write_text(f"FINDINGS: Seen.\n\nIMPRESSION: Mild OA, number {number}.")
    row = run_import(tmp_path / "set").iloc[-1]
    assert row[["impression", "study_id", "patient_id"]].tolist() == ["Mild OA, number 11.", "s0011", "p0005"]
    lines = [f"s{number:04d},M{number // 2},Severe OA {number}." for number in range(12)]
    write(tmp_path / "reports.csv", ["study,mrn,conclusion", *lines])
    row = run_import(tmp_path / "set/files", "--reports", tmp_path / "reports.csv").iloc[-1]
    assert row[["impression", "study_id", "patient_id"]].tolist() == ["Severe OA 11.", "s0011", "M5"]


def test_titles_above_a_sheets_header_and_separators_behind_a_row_are_no_cells(
    images: Path, tmp_path: Path, run_import: Import
) -> None:
    rows = [
        [name, name[:3], f"No fracture {name}."] for name in sorted(path.name for path in (images / "scans").iterdir())
    ]
    sheet = [["Export of 2021", "", ""], ["", "", ""], ["file", "patient", "conclusion"], *rows]
    pd.DataFrame(sheet).to_excel(images / "a.xlsx", header=False, index=False)
    first = run_import(images)
    assert first[["patient_id", "impression"]].iloc[0].tolist() == ["100", "No fracture 100_L.png."]
    (images / "a.xlsx").unlink()
    write(images / "a.csv", ["file;patient;conclusion", *(";".join([*row, "", ""]) for row in rows)])
    assert run_import(images)["impression"].tolist() == first["impression"].tolist()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"Export;;\nfile;patient;conclusion\na;b;c\n", "remove the rows above the column names"),
        (b"file,patient,conclusion\na,b,c,d\n", "a text with commas needs quotes"),
        (b"file,conclusion\nx/1.png,Normal.\n", "no column of a.csv names images below"),
        (b"\xd0\xcf\x11\xe0", "old Excel workbook"),
    ],
)
def test_why_a_folders_only_table_cannot_be_read_is_told(
    images: Path, tmp_path: Path, knee_siglip: Run, content: bytes, reason: str
) -> None:
    (images / "a.csv").write_bytes(content)
    code, _, error = knee_siglip("import", images, tmp_path / "rows.csv")
    assert (code, reason in error) == (1, True), error


def test_rows_without_a_split_get_that_of_their_patient(
    images: Path, tmp_path: Path, run_import: Import, knee_siglip: Run
) -> None:
    splits = dict(zip(range(100, 106), ("train", "val", "test", "", "train", "test"), strict=True))
    cells = {
        f"{patient}_{side}.png": split if side == "L" else "" for patient, split in splits.items() for side in "LR"
    }
    lines = [f"{name},{name[:3]},{split},No fracture {name}." for name, split in cells.items()]
    source = write(images / "a.csv", ["file,patient,split,text", *lines])
    assert "Next: 7 rows have no split" in knee_siglip("import", source, tmp_path / "rows.csv")[1]
    table = run_import(source, "--split")
    assert table["split"].tolist() == [split or "train" for split in splits.values() for _ in "LR"]


def test_a_text_beside_the_table_that_is_no_table_does_no_harm(images: Path, run_import: Import) -> None:
    write(images / "README.txt", ["Knees, left and right.", "Please cite: Doe, Jane, and others.", "Thanks."])
    write(images / "a.csv", ["file,text", "100_L.png,No fracture.", "100_R.png,Mild OA."])
    assert run_import(images)["impression"].tolist() == ["No fracture.", "Mild OA."]


def test_columns_that_may_tell_who_a_person_is_are_named(images: Path, tmp_path: Path, run_import: Import) -> None:
    lines = [f"100_{side}.png,Doe,1950-01-01,No fracture {side}.,x,y" for side in "LR"]
    run_import(write(images / "a.csv", ["file,Patient name,Birth date,text,filename2,Prenatal", *lines]))
    assert any(note.startswith("Patient name, Birth date: by their names") for note in told(tmp_path)["notes"])


def test_map_names_what_is_not_found(images: Path, run_import: Import) -> None:
    source = write(images / "export.csv", [HEADER.replace("KL-Grad", "Stufe"), *GERMAN])
    assert "kl_grade" not in run_import(source)
    table = run_import(source, "--map", "kl_grade=Stufe", "--map", "study_id={Patientennummer}/{Seite}")
    assert (table["kl_grade"][2], table["study_id"][2]) == ("0", "100/links")


def test_a_wrong_map_names_the_nearest_column(images: Path, tmp_path: Path, knee_siglip: Run) -> None:
    source = write(images / "export.csv", [HEADER, *GERMAN])
    code, _, error = knee_siglip("import", source, tmp_path / "rows.csv", "--map", "kl_grade=KL Grad")
    assert (code, "--map kl_grade=KL Grad: there is no column 'KL Grad'" in error) == (1, True)
    assert "did you mean 'KL-Grad'?" in error
    code, _, error = knee_siglip("import", source, tmp_path / "rows.csv", "--map", "grade=KL-Grad")
    assert (code, "the columns that can be mapped are img_path, impression" in error) == (2, True)
    assert not (tmp_path / "rows.csv").exists()


@pytest.mark.parametrize("suffix", [".csv.gz", ".parquet", ".xlsx"])
def test_other_formats_read_alike(images: Path, run_import: Import, suffix: str) -> None:
    cells = [line.split(";") for line in GERMAN]
    table = pd.DataFrame(cells, columns=HEADER.split(";")).astype({"Patientennummer": int})
    source = images / f"export{suffix}"
    if suffix == ".parquet":
        table.to_parquet(source)
    elif suffix == ".csv.gz":
        table.to_csv(source, index=False)
    else:
        pytest.importorskip("openpyxl")
        table.to_excel(source, index=False)
    assert run_import(source)["patient_id"].tolist() == [str(number) for number in range(100, 106) for _ in "LR"]


def test_a_workbook_of_two_sheets_needs_a_name(
    images: Path, tmp_path: Path, run_import: Import, knee_siglip: Run
) -> None:
    pytest.importorskip("openpyxl")
    table = pd.DataFrame([line.split(";") for line in GERMAN], columns=HEADER.split(";"))
    with pd.ExcelWriter(images / "export.xlsx") as book:
        table.to_excel(book, sheet_name="Knie", index=False)
        table.head(1).to_excel(book, sheet_name="Hüfte", index=False)
    code, _, error = knee_siglip("import", images / "export.xlsx", tmp_path / "rows.csv")
    assert (code, "name one with --sheet: Knie, Hüfte" in error) == (1, True), error
    assert len(run_import(images / "export.xlsx", "--sheet", "Knie")) == 12


def test_sheets_of_a_workbook_are_joined_where_one_names_the_images(images: Path, run_import: Import) -> None:
    with pd.ExcelWriter(images / "export.xlsx") as book:
        scans = [[f"{patient}_{side}.png", patient] for patient in range(100, 106) for side in "LR"]
        pd.DataFrame(scans, columns=["file", "mrn"]).to_excel(book, sheet_name="Scans", index=False)
        reports = [[patient, f"Mild OA of {patient}."] for patient in range(100, 106)]
        pd.DataFrame(reports, columns=["mrn", "report"]).to_excel(book, sheet_name="Reports", index=False)
    row = run_import(images / "export.xlsx").iloc[-1]
    assert row[["patient_id", "impression"]].tolist() == ["105", "Mild OA of 105."]


def test_tables_of_a_folder_are_joined_by_their_ids(images: Path, tmp_path: Path, run_import: Import) -> None:
    write(
        images / "images.csv",
        ["file,exam", *(f"scans/{p}_{s}.png,{p - 99:03d}" for p in range(100, 106) for s in "LR")],
    )
    write(
        images / "exams.csv",
        ["exam_no,person,report", *(f"{p - 99},P{p},Effusion in knee {p}." for p in range(100, 105))],
    )
    table = run_import(images)
    assert table.iloc[0][["impression", "patient_id"]].tolist() == ["Effusion in knee 100.", "P100"]
    join = told(tmp_path)["joins"][0]
    assert (join["keys"], join["matched"], join["unmatched"], join["unused"]) == ("exam = exam_no", 10, 2, 0)
    assert told(tmp_path)["dropped"] == {"no impression: the source has no text or label for it": 2}
    assert (tmp_path / "rows.dropped.csv").read_text().count("images.csv,12,data") == 0


def test_a_join_by_named_columns(images: Path, run_import: Import, knee_siglip: Run, tmp_path: Path) -> None:
    write(images / "images.csv", ["file,exam", *(f"scans/{p}_{s}.png,{p}.0" for p in range(100, 106) for s in "LR")])
    other = write(tmp_path / "texts.csv", ["id,text", *(f"{p},Normal knee {p}." for p in range(100, 106))])
    table = run_import(images / "images.csv", "--join", f"{other}:exam=id")
    assert table["impression"].tolist() == [f"Normal knee {p}." for p in range(100, 106) for _ in "LR"]
    code, _, error = knee_siglip("import", images / "images.csv", tmp_path / "no.csv", "--join", f"{other}:exam=ids")
    assert (code, "texts.csv: there is no column 'ids'" in error, "did you mean 'id'?" in error) == (1, True, True)


@pytest.mark.parametrize(
    ("header", "told_by_columns"),
    [
        ("img_path_ap,img_path_lateral,report", [["ap", ""], ["lateral", ""]]),
        ("FrontalFile,LatFile,report", [["frontal", ""], ["lateral", ""]]),
        ("left knee,right knee,report", [["", "left"], ["", "right"]]),
        ("left_ap,right_ap,report", [["ap", "left"], ["ap", "right"]]),
    ],
)
def test_columns_of_images_become_a_row_each_and_one_study(
    images: Path, tmp_path: Path, run_import: Import, header: str, told_by_columns: list[list[str]]
) -> None:
    rows = [f"{p}_L.png,scans/{p}_R.png,Effusion {p}." for p in range(100, 104)]
    write(images / "t.csv", [header, *rows, "104_L.png,,Normal.", ",,Lost."])
    table = run_import(images / "t.csv")
    table = table.reindex(columns=["img_path", "study_id", "view", "side", "impression"], fill_value="")
    assert table["img_path"].str[-9:].tolist() == [f"{p}_{s}.png" for p in range(100, 104) for s in "LR"] + [
        "104_L.png"
    ]
    assert table[["view", "side"]].values.tolist()[:2] == told_by_columns
    assert table["study_id"].tolist() == [f"row {2 + row}" for row in (0, 0, 1, 1, 2, 2, 3, 3, 4)]
    assert told(tmp_path)["dropped"] == {"it names no image": 1}
    assert "unrolled" in " ".join(told(tmp_path)["notes"])


def test_columns_of_images_keep_the_tables_own_studies_and_two_versions_of_an_image_are_not_unrolled(
    images: Path, run_import: Import
) -> None:
    rows = [f"A{p},{p}_L.png,{p}_R.png,Effusion {p}.,frontal" for p in range(100, 104)]
    table = run_import(write(images / "t.csv", ["accession,AP,LAT,report,view", *rows]))
    assert table["study_id"].tolist() == [f"A{p}" for p in range(100, 104) for _ in "LR"]
    assert table[["view", "source_view"]].values.tolist()[:2] == [["ap", "frontal"], ["lateral", "frontal"]]
    table = run_import(write(images / "t.csv", ["accession,original,windowed,report,view", *rows]))
    assert (len(table), "study_id" in table) == (4, True)


def test_whole_reports_give_their_impression_or_findings(images: Path, tmp_path: Path, run_import: Import) -> None:
    texts = {
        100: "FINAL REPORT\nINDICATION: pain\nFINDINGS: Osteophytes.\nIMPRESSION: Mild OA, {}.",
        101: "HALLAZGOS: Osteofitos.\nIMPRESIÓN: Artrosis leve, {}.",
        102: "Achados: Osteófitos.\nIMPRESSÃO: Artrose leve, {}.",
        103: "Befund: Osteophyten.\nBeurteilung: Leichte Gonarthrose, {}.",
        104: "RÉSULTATS : Ostéophytes.\nCONCLUSION : Gonarthrose débutante, {}.",
        105: "INDICATION: pain\nFINDINGS: Normal joint, {}.",
    }
    rows = [{"image": f"{p}_{s}.png", "report": texts[p].format(s)} for p in texts for s in "LR"]
    pd.DataFrame(rows).to_csv(images / "reports.csv", index=False)
    table = run_import(images / "reports.csv")
    expected = [
        "Mild OA",
        "Artrosis leve",
        "Artrose leve",
        "Leichte Gonarthrose",
        "Gonarthrose débutante",
        "Normal joint",
    ]
    assert table["impression"].tolist() == [f"{text}, {side}." for text in expected for side in "LR"]
    assert told(tmp_path)["impressions"] == {"report: impression": 10, "report: findings": 2}


def test_reports_in_text_files_are_found_by_a_column(images: Path, tmp_path: Path, run_import: Import) -> None:
    write(images / "images.csv", ["file,accession", *(f"{p}_L.png,A{p}" for p in range(100, 106))])
    for patient in range(100, 106):
        write_text(tmp_path / f"texts/a{patient}.txt", f"FINDINGS: x\n\nIMPRESSION:\nOA of knee {patient}.\n")
    table = run_import(images / "images.csv", "--reports", tmp_path / "texts")
    assert table["impression"].tolist() == [f"OA of knee {patient}." for patient in range(100, 106)]
    assert table["report_file"].tolist()[0] == "a100.txt"


def test_labels_alone_are_composed_by_a_template_that_the_report_tells(
    images: Path, tmp_path: Path, run_import: Import
) -> None:
    write(images / "grades.csv", ["file,KL,lado", *(f"{p}_L.png,{p - 100}.0,izquierda" for p in range(100, 105))])
    table = run_import(images / "grades.csv")
    assert table["impression"][4] == "Mild osteoarthritis of the left knee, KL grade 2."
    assert "composed from kl_grade" in " ".join(told(tmp_path)["notes"])
    table = run_import(images / "grades.csv", "--template", "Grade {KL} of the {lado} knee.")
    assert table["impression"][4] == "Grade 2.0 of the izquierda knee."


def test_a_missing_image_is_listed_with_its_row(images: Path, tmp_path: Path, run_import: Import) -> None:
    write(images / "t.csv", ["file,text", "100_L.png,Normal left knee.", "gone.png,Normal right knee.", "100_R.png,"])
    assert len(run_import(images / "t.csv")) == 1
    dropped = pd.read_csv(tmp_path / "rows.dropped.csv")
    assert dropped[["table", "row"]].values.tolist() == [["t.csv", 3], ["t.csv", 4]]
    assert dropped["reason"].str[:12].tolist() == ["its image is", "no impressio"]


def test_a_missing_folder_never_gives_another_patients_image(tmp_path: Path, run_import: Import) -> None:
    """All studies name their images alike: only the whole path tells whose it is."""
    for patient in (1, 3):
        picture(tmp_path / f"data/p{patient}/s1/ap.png")
    rows = [f"old/p{patient}/s1/ap.png,Normal knee {patient}." for patient in (1, 2, 3)]
    table = run_import(write(tmp_path / "data/t.csv", ["path,impression", *rows]))
    assert table["impression"].tolist() == ["Normal knee 1.", "Normal knee 3."]
    assert [path.split("/")[1] for path in table["img_path"]] == ["p1", "p3"]


def test_columns_with_names_of_the_manifest_are_renamed(images: Path, run_import: Import) -> None:
    write(images / "t.csv", ["file,impression,image_id,width", "100_L.png,Normal left knee.,17,40"])
    assert run_import(images / "t.csv").columns.tolist()[2:] == ["file", "source_image_id", "source_width"]


def test_a_pattern_over_paths_gives_columns(images: Path, run_import: Import) -> None:
    write(
        images / "t.csv", ["file,impression", *(f"{p}_{s}.png,Normal knee {p}{s}." for p in (100, 101) for s in "LR")]
    )
    table = run_import(images / "t.csv", "--pattern", r"(?P<patient_id>\d+)_(?P<side>[LR])")
    assert table[["patient_id", "side"]].values.tolist()[1:3] == [["100", "right"], ["101", "left"]]


def test_nothing_is_overwritten_and_the_source_stays(images: Path, tmp_path: Path, knee_siglip: Run) -> None:
    source = write(images / "t.csv", ["file,impression", "100_L.png,Normal left knee."])
    knee_siglip("import", source, tmp_path / "rows.csv")
    before = (tmp_path / "rows.csv").read_bytes()
    code, _, error = knee_siglip("import", source, tmp_path / "rows.csv", "--map", "side=file")
    assert (code, "replace it with --overwrite" in error) == (2, True)
    assert (tmp_path / "rows.csv").read_bytes() == before
    code, _, error = knee_siglip("import", source, source, "--overwrite")
    assert (code, "is the source itself" in error) == (2, True)


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (["a,b", "x,y"], "no column of t.csv names images below"),
        (["file,impression", "gone.png,x"], "'file' has cells such as 'gone.png'"),
        (["file,impression"], "has a header and no rows"),
        (["file,impression", "100_L.png,a,b"], "row 2 has 3"),
    ],
)
def test_bad_tables_are_one_sentence(
    images: Path, tmp_path: Path, knee_siglip: Run, lines: list[str], sentence: str
) -> None:
    code, _, error = knee_siglip("import", write(images / "t.csv", lines), tmp_path / "rows.csv")
    assert (code, sentence in error, error.count("\n")) == (1, True, 1), error


def test_an_unknown_layout_names_the_nearest(images: Path, tmp_path: Path, knee_siglip: Run) -> None:
    code, _, error = knee_siglip("import", images, tmp_path / "rows.csv", "--layout", "mimic-cxr-jgp")
    assert (code, "did you mean mimic-cxr-jpg?" in error) == (2, True)


def test_an_own_layout_is_a_file(images: Path, tmp_path: Path, run_import: Import, knee_siglip: Run) -> None:
    write(images / "readings.txt", ["id|V0KL|V1KL", *(f"{p}|{p - 100}|4" for p in range(100, 105))])
    own = write_layout = tmp_path / "own.yaml"
    write_layout.write_text(
        "title: ours\npaths: ['(?P<id>\\d+)_(?P<side>L).png']\n"
        "joins: [{files: [readings.txt], melt: 'V(?P<exam>0)(?P<name>KL)', on: {id: id}}]\n"
        "columns: {patient_id: id, side: side, kl_grade: KL}\n"
        "texts: {column: kl_grade, texts: {'0': 'Normal {side} knee.', '1': 'Doubtful OA of the {side} knee.'}}\n"
    )
    table = run_import(images, "--layout", own)
    assert table["impression"].tolist() == ["Normal left knee.", "Doubtful OA of the left knee."]
    own.write_text("title: ours\ncolums: {}\n")
    code, _, error = knee_siglip("import", images, tmp_path / "no.csv", "--layout", own)
    assert (code, "colums: Extra inputs" in error) == (2, True)
