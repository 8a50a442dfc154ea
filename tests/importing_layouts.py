"""Miniatures of public data sets, laid out exactly as they are downloaded: names of files, folders and columns."""

import csv
import gzip
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

PATIENTS = 20
"""Enough for every split to have some."""

CHEXPERT = (
    *("No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema"),
    *("Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture"),
    "Support Devices",
)
VINDR = (
    *("Aortic enlargement", "Atelectasis", "Calcification", "Cardiomegaly", "Clavicle fracture", "Consolidation"),
    *("Edema", "Emphysema", "Enlarged PA", "ILD", "Infiltration", "Lung Opacity", "Lung cavity", "Lung cyst"),
    *("Mediastinal shift", "Nodule/Mass", "Pleural effusion", "Pleural thickening", "Pneumothorax"),
    *("Pulmonary fibrosis", "Rib fracture", "Other lesion", "COPD", "Lung tumor", "Pneumonia", "Tuberculosis"),
)
PADCHEST = (
    *("", "ImageID", "ImageDir", "StudyDate_DICOM", "StudyID", "PatientID", "PatientBirth", "PatientSex_DICOM"),
    *("ViewPosition_DICOM", "Projection", "MethodProjection", "Pediatric", "Modality_DICOM", "ReportID", "Report"),
    *("MethodLabel", "Labels", "Localizations", "LabelsLocalizationsBySentence", "labelCUIS", "LocalizationsCUIS"),
)
CHEXPERT_PLUS = (
    *("path_to_image", "path_to_dcm", "frontal_lateral", "ap_pa", "deid_patient_id", "patient_report_date_order"),
    *("report", "section_narrative", "section_clinical_history", "section_history", "section_comparison"),
    *("section_technique", "section_procedure_comments", "section_findings", "section_impression"),
    *("section_end_of_impression", "section_summary", "section_accession_number", "age", "sex", "race", "ethnicity"),
    *("interpreter_needed", "insurance_type", "recent_bmi", "deceased", "split"),
)
FINDINGS = ("Cardiomegaly", "Pleural Effusion", "Pneumonia", "Edema")


def nih(root: Path) -> None:
    """The header's brackets hold commas, and the rows of 2017 end with one."""
    header = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    lines = [header + "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"]
    lists: dict[str, list[str]] = {"train_val_list.txt": [], "test_list.txt": []}
    for number in range(PATIENTS):
        for visit in range(1 + number % 2):
            name = f"{number + 1:08d}_{visit:03d}.png"
            labels = (
                "No Finding"
                if number % 3 == 0
                else "Cardiomegaly|Effusion"
                if number % 3 == 1
                else "Pleural_Thickening"
            )
            lines.append(f"{name},{labels},{visit},{number + 1},58,M,{'PA' if visit else 'AP'},2682,2749,0.143,0.143,")
            lists["test_list.txt" if number % 5 == 4 else "train_val_list.txt"].append(name)
            picture(root / f"images_{1 + number % 12:03d}/images" / name)
    write_text(root / "Data_Entry_2017.csv", "\n".join(lines) + "\n")
    for file, names in lists.items():
        write_text(root / file, "\n".join(names) + "\n")


def mimic_cxr_jpg(root: Path) -> None:
    """Tables are gzipped; reports are text files beside the studies' folders, with FINAL REPORT and sections."""
    metadata, splits, labels = [], [], []
    for number in range(PATIENTS):
        subject, study = str(10000032 + number), str(50414267 + number)
        folder = root / f"files/p{subject[:2]}/p{subject}"
        finding = FINDINGS[number % 4].lower()
        report = (
            " "
            * 33
            + "FINAL REPORT\n EXAMINATION:  CHEST (PA AND LAT)\n \n INDICATION:  ___ year old woman with cough.\n"
            f" \n FINDINGS: \n \n The heart is seen. There is {finding} number {number}.\n \n IMPRESSION: \n \n"
            f" {finding.capitalize()} in study {number}, otherwise\n unchanged.\n"
        )
        write_text(folder / f"s{study}.txt", report)
        for view in ("PA", "LATERAL"):
            dicom = f"{number:08x}-{view.lower()[:1]}0de0afdd"
            picture(folder / f"s{study}" / f"{dicom}.jpg")
            metadata.append([dicom, subject, study, "CHEST (PA AND LAT)", view, "3056", "2544", "21800506"])
            splits.append([dicom, study, subject, ("train", "train", "train", "validate", "test")[number % 5]])
        labels.append([subject, study, *("1.0" if name == FINDINGS[number % 4] else "" for name in CHEXPERT)])
    header = "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate"
    write_gzip(root / "mimic-cxr-2.0.0-metadata.csv.gz", header.split(","), metadata)
    write_gzip(root / "mimic-cxr-2.0.0-split.csv.gz", ["dicom_id", "study_id", "subject_id", "split"], splits)
    write_gzip(root / "mimic-cxr-2.0.0-chexpert.csv.gz", ["subject_id", "study_id", *CHEXPERT], labels)


def mimic_cxr(root: Path) -> None:
    """DICOMs and the record list, with the split table of MIMIC-CXR-JPG."""
    records, splits = [], []
    for number in range(PATIENTS):
        subject, study, dicom = str(10000032 + number), str(50414267 + number), f"{number:08x}-a0de0afdd"
        folder = f"files/p{subject[:2]}/p{subject}"
        save_dicom(root / folder / f"s{study}" / f"{dicom}.dcm", number)
        write_text(root / folder / f"s{study}.txt", f"FINAL REPORT\n\n IMPRESSION:\n\n No pneumonia, {number}.\n")
        records.append([subject, study, dicom, f"{folder}/s{study}/{dicom}.dcm"])
        splits.append([dicom, study, subject, ("train", "train", "validate", "test")[number % 4]])
    write_gzip(root / "cxr-record-list.csv.gz", ["subject_id", "study_id", "dicom_id", "path"], records)
    write_gzip(root / "mimic-cxr-2.0.0-split.csv.gz", ["dicom_id", "study_id", "subject_id", "split"], splits)


def chexpert(root: Path) -> None:
    """`Path` starts with the archive's own folder; blank labels are not mentioned, -1 is uncertain."""
    for split, start in (("train", 0), ("valid", 64540)):
        rows = []
        for number in range(PATIENTS if split == "train" else PATIENTS // 3):
            for view in ("frontal", "lateral"):
                path = f"{split}/patient{start + number + 1:05d}/study1/view{1 + (view == 'lateral')}_{view}.jpg"
                picture(root / path)
                present = FINDINGS[number % 4]
                labels = ["1.0" if name == present else "-1.0" if name == "Atelectasis" else "" for name in CHEXPERT]
                side = "AP" if view == "frontal" else ""
                rows.append([f"CheXpert-v1.0-small/{path}", "Female", "68", view.capitalize(), side, *labels])
        write_csv(root / f"{split}.csv", ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CHEXPERT], rows)


def chexpert_plus(root: Path) -> None:
    """Paths end with .jpg, the files with .png."""
    rows = []
    for number in range(PATIENTS):
        split = "valid" if number % 5 == 4 else "train"
        patient, path = f"patient{number:05d}", f"{split}/patient{number:05d}/study1/view1_frontal"
        picture(root / "PNG" / f"{path}.png")
        cells = dict.fromkeys(CHEXPERT_PLUS, "")
        cells |= {"path_to_image": f"{path}.jpg", "path_to_dcm": f"{path}.dcm", "deid_patient_id": patient}
        cells |= {"frontal_lateral": "Frontal", "ap_pa": "AP", "split": split, "age": "61.0", "sex": "Male"}
        cells["section_impression"] = f"\n1. {FINDINGS[number % 4]} number {number}.\n2. STABLE LINES."
        cells["report"] = f"NARRATIVE:\nCHEST\nIMPRESSION:{cells['section_impression']}\nACCESSION NUMBER:\n{number}"
        rows.append(list(cells.values()))
    write_csv(root / "df_chexpert_plus_240401.csv", CHEXPERT_PLUS, rows)


def padchest(root: Path) -> None:
    """A nameless first column, images in numbered folders, stemmed Spanish."""
    rows = []
    for number in range(PATIENTS):
        name = f"{216840111366964012686393442012009222091640 + number}_00-026-{number:03d}.png"
        picture(root / str(number % 3) / name)
        cells = dict.fromkeys(PADCHEST, "")
        cells |= {
            "": str(number),
            "ImageID": name,
            "ImageDir": str(number % 3),
            "StudyID": f"2168401113669640{number:02d}",
        }
        cells |= {"PatientID": f"839860{number:05d}", "Projection": "PA", "ReportID": f"{4991845 + number}"}
        cells |= {"Report": f"sin hallazg patolog num {number} .", "Labels": "['normal']"}
        rows.append(list(cells.values()))
    write_csv(root / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv", PADCHEST, rows)


def vindr_cxr(root: Path) -> None:
    """Three readers for each training image, one consensus for each test image; DICOMs; no patients."""
    rows: dict[str, list[list[str]]] = {"train": [], "test": []}
    for number in range(PATIENTS):
        split = "test" if number % 4 == 3 else "train"
        image = f"{number:032x}"
        save_dicom(root / split / f"{image}.dicom", number)
        for reader in range(3 if split == "train" else 1):
            seen = VINDR[number % 5] if reader < 2 else ""
            labels = [str(int(name == seen)) for name in VINDR]
            normal = str(int(not seen))
            rows[split].append([image, *([f"R{reader}"] if split == "train" else []), *labels, "0", normal])
    train, test = (["image_id", *reader, *VINDR, other, "No finding"] for reader, other in HEADERS_VINDR)
    write_csv(root / "annotations/image_labels_train.csv", train, rows["train"])
    write_csv(root / "annotations/image_labels_test.csv", test, rows["test"])


HEADERS_VINDR = ((["rad_id"], "Other diseases"), ([], "Other disease"))


def mura(root: Path) -> None:
    """Tables without headers; the study's folder says whether it is abnormal."""
    for split, count in (("train", PATIENTS), ("valid", PATIENTS // 3)):
        paths, studies = [], []
        for number in range(count):
            part, finding = ("SHOULDER", "WRIST")[number % 2], ("negative", "positive")[number // 2 % 2]
            study = f"MURA-v1.1/{split}/XR_{part}/patient{number + 20000 * (split == 'valid'):05d}/study1_{finding}/"
            studies.append([study, str(int(finding == "positive"))])
            for image in (1, 2):
                picture(root / f"{study}image{image}.png")
                paths.append([f"{study}image{image}.png"])
        write_csv(root / f"MURA-v1.1/{split}_image_paths.csv", [], paths)
        write_csv(root / f"MURA-v1.1/{split}_labeled_studies.csv", [], studies)


def iu_xray(root: Path) -> None:
    """As on Kaggle: reports and projections; some reports have findings only."""
    reports, projections = [], []
    for number in range(1, PATIENTS + 1):
        impression = f"No acute disease, number {number}." if number % 5 else ""
        reports.append([str(number), "normal", "normal", "Xray Chest PA and Lateral", "Positive TB test", "None."])
        reports[-1] += [f"The lungs are clear, number {number}.", impression]
        for view, projection in ((1001, "Frontal"), (2001, "Lateral")):
            name = f"{number}_IM-0001-{view}.dcm.png"
            picture(root / "images/images_normalized" / name)
            projections.append([str(number), name, projection])
    header = ["uid", "MeSH", "Problems", "image", "indication", "comparison", "findings", "impression"]
    write_csv(root / "indiana_reports.csv", header, reports)
    write_csv(root / "indiana_projections.csv", ["uid", "filename", "projection"], projections)


def iu_xray_xml(root: Path) -> None:
    """As from Open-i: an XML for each report, which names its images."""
    for number in range(1, PATIENTS + 1):
        names = [f"CXR{number}_IM-0001-{view}" for view in (3001, 4001)]
        images = "".join(
            f'<parentImage id="{name}"><caption>Xray Chest PA and Lateral</caption></parentImage>' for name in names
        )
        texts = f'<AbstractText Label="FINDINGS">Clear.</AbstractText><AbstractText Label="IMPRESSION">Normal {number}.'
        write_text(
            root / f"ecgen-radiology/{number}.xml",
            f'<eCitation><uId id="CXR{number}"/><MedlineCitation><Article><Abstract>{texts}</AbstractText></Abstract>'
            f"</Article></MedlineCitation><MeSH><major>normal</major></MeSH>{images}</eCitation>",
        )
        for name in names:
            picture(root / "NLMCXR_png" / f"{name}.png")


def oai(root: Path) -> None:
    """Films of both knees as DICOMs without suffix, in folders of visit, patient, date and series; coded readings."""
    rows = []
    for number in range(PATIENTS):
        patient, barcode = str(9000099 + number), f"0166{158703 + number:08d}"
        save_dicom(root / f"00m/0.C.2/{patient}/20050922/{barcode[-8:]}/001", number)
        for side in ("1: Right", "2: Left"):
            grade = (number + (side[0] == "2")) % 5
            for project in ["15", "37"] if number == 0 else ["15"]:
                grade_read = str(grade) if project == "15" else "4"
                rows.append([patient, side, project, "0.9", grade_read, "0: 0", barcode])
    lines = ["ID|SIDE|READPRJ|VERSION|V00XRKL|V00XRJSM|V00BARCDBU", *("|".join(row) for row in rows)]
    write_text(root / "X-Ray Image Assessments_ASCII/kxr_sq_bu00.txt", "\r\n".join(lines) + "\r\n")


def most(root: Path) -> None:
    """One wide row a patient, knees cropped by side; a grade of 8 is a knee replacement."""
    lines = ["MOSTID\tV0XRKL\tV0XLKL\tV1XRKL\tV1XLKL"]
    for number in range(PATIENTS):
        patient = f"MB{number:05d}"
        left = "8" if number == 3 else str((number + 1) % 5)
        lines.append(f"{patient}\t{number % 5}\t{left}\t{(number + 2) % 5}\t{(number + 3) % 5}")
        for visit, side in ((0, "R"), (0, "L"), (1, "R")):
            picture(root / f"imgs/{patient}_{visit}_{side}.png")
    write_text(root / "MOSTV01235XRAY.txt", "\n".join(lines) + "\n")


def chen_kl(root: Path) -> None:
    """Splits, folders of grades, and the same knees in another size and cropped by a detector."""
    base = root / "KneeXrayData/ClsKLData"
    for number in range(PATIENTS):
        split = ("train", "train", "train", "val", "test")[number % 5]
        for side in "LR":
            name = f"{number // 5 % 5}/{9003175 + number}{side}.png"
            picture(base / f"kneeKL224/{split}/{name}")
            picture(base / f"kneeKL299/{split}/{name}")
    picture(base / "kneeKL224/auto_test/0/9003175L.png")


def gornale_kl(root: Path) -> None:
    """The same images twice, graded by two readers, one of whom differs on the first."""
    folders = ("0Normal", "1Doubtful", "2Mild", "3Moderate", "4Severe")
    for number in range(PATIENTS):
        grade = number % 5
        first = root / f"MedicalExpert-I/{folders[grade]}/{folders[grade][1:]}G{grade} ({number + 1}).png"
        picture(first)
        other = 1 if number == 0 else grade
        second = root / f"MedicalExpert-II/{folders[other]}/{folders[other][1:]}G{other} ({number + 1}).png"
        second.parent.mkdir(parents=True, exist_ok=True)
        second.write_bytes(first.read_bytes())


MINIATURES: dict[str, Callable[[Path], None]] = {
    "nih": nih,
    "mimic-cxr-jpg": mimic_cxr_jpg,
    "mimic-cxr": mimic_cxr,
    "chexpert": chexpert,
    "chexpert-plus": chexpert_plus,
    "padchest": padchest,
    "vindr-cxr": vindr_cxr,
    "mura": mura,
    "iu-xray": iu_xray,
    "iu-xray-xml": iu_xray_xml,
    "oai": oai,
    "most": most,
    "chen-kl": chen_kl,
    "gornale-kl": gornale_kl,
}
"""Name of the layout to what writes its miniature below a folder."""


def noise(seed: str) -> np.ndarray:
    """(48, 40) greys that no other seed has."""
    rng = np.random.default_rng(list(seed.encode()))
    return np.kron(rng.integers(20, 235, (12, 10)), np.ones((4, 4), np.int64)).astype(np.uint8)


def picture(path: Path) -> None:
    """A PNG or JPEG of noise, of its own for each name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(path.name + path.parent.name + path.parent.parent.name)).save(path)


def save_dicom(path: Path, number: int, **elements: str) -> None:
    """A DICOM of noise, with a patient's name that nobody may copy."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    stored = noise(f"dicom {number}").astype(np.uint16) * 16
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = f"1.2.3.{number}"
    dataset.Rows, dataset.Columns = stored.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.PatientName = "Doe^Jane"
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    dataset.PixelData = stored.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([*([header] if header else []), *rows])


def write_gzip(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])
