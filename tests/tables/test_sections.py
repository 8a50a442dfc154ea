"""The impression of a whole report, whatever language its headings are in and whether its lines survived."""

import pytest

from knee_siglip.tables.sections import impression_of, is_report

MIMIC = """                                 FINAL REPORT
 EXAMINATION:  KNEE (AP, LAT AND OBLIQUE) LEFT

 INDICATION:  History: ___M with pain  // fracture?

 TECHNIQUE:  Three views of the left knee

 COMPARISON:  None.

 FINDINGS:

 No fracture. Mild narrowing of the medial compartment.

 IMPRESSION:

 1.  No acute fracture.
 2.  Mild osteoarthritis: medial compartment.
"""

REPORTS = {
    "mimic": (MIMIC, "1. No acute fracture. 2. Mild osteoarthritis: medial compartment."),
    "one line": (" ".join(MIMIC.split()), "1. No acute fracture. 2. Mild osteoarthritis: medial compartment."),
    "headings on lines of their own": (
        "HISTORY\nPain.\nFINDINGS\nOsteophytes.\nIMPRESSION\nModerate OA.\nRECOMMENDATION\nMRI.",
        "Moderate OA.",
    ),
    "markdown": ("**Findings:** Effusion.\n**Impression:** Joint effusion.", "Joint effusion."),
    "conclusion, where nothing is called impression": ("Findings: Effusion. Conclusion: Severe OA.", "Severe OA."),
    "impression, though a summary stands behind": (
        "IMPRESSION: Severe OA.\nSUMMARY: 4-POSSIBLE SIGNIFICANT FINDINGS, MAY NEED ACTION",
        "Severe OA.",
    ),
    "findings and impression in one": ("INDICATION: Pain. FINDINGS/IMPRESSION: Normal knee.", "Normal knee."),
    "two knees": (
        "RIGHT KNEE FINDINGS: Spurs. IMPRESSION: Mild OA. LEFT KNEE FINDINGS: None. IMPRESSION: Normal.",
        "Mild OA. LEFT KNEE Normal.",
    ),
    "signed": ("FINDINGS: None.\nIMPRESSION: Normal knee.\nElectronically signed by X", "Normal knee."),
    "Spanish": (
        "MOTIVO DE CONSULTA: Dolor.\nHALLAZGOS: Osteofitos.\nIMPRESIÓN DIAGNÓSTICA: Gonartrosis leve.",
        "Gonartrosis leve.",
    ),
    "Spanish, lower case": ("Hallazgos: pinzamiento. Conclusión: gonartrosis moderada.", "gonartrosis moderada."),
    "Portuguese": ("INDICAÇÃO: Dor. ACHADOS: Osteófitos. IMPRESSÃO: Artrose leve.", "Artrose leve."),
    "German": (
        "Fragestellung: Arthrose?\nBefund: Gelenkspaltverschmälerung.\nBeurteilung: Mediale Gonarthrose.",
        "Mediale Gonarthrose.",
    ),
    "French": (
        "INDICATION : douleurs\nRÉSULTATS : pincement.\nCONCLUSION : gonarthrose modérée.",
        "gonarthrose modérée.",
    ),
    "decomposed accents": ("HALLAZGOS: nada. IMPRESIO\u0301N: Rodilla normal.", "Rodilla normal."),
}


@pytest.mark.parametrize("name", REPORTS)
def test_the_impression_is_taken(name: str) -> None:
    report, impression = REPORTS[name]
    assert impression_of(report) == impression
    assert is_report(report)


@pytest.mark.parametrize(
    "text",
    [
        "Severe OA of left knee joint.",
        "Mild OA; history of trauma, comparison with the right knee: unchanged.",
        "Findings suggest mild OA",
        "Impressive osteophytes: severe OA.",
        "Left knee: doubtful joint space narrowing",
        "Severe OA. Examination: limited.",
        "NORMAL KNEE",
        "",
    ],
)
def test_an_impression_alone_is_no_report(text: str) -> None:
    assert impression_of(text) is None
    assert not is_report(text)


def test_a_report_without_an_impression_has_none() -> None:
    assert impression_of("INDICATION: Pain.\nFINDINGS: No fracture.") is None
    assert impression_of("FINDINGS: No fracture.\nIMPRESSION:\n") is None
    assert is_report("INDICATION: Pain.\nFINDINGS: No fracture.")


def test_a_heading_before_an_impression_is_removed() -> None:
    assert impression_of("Impression: Mild OA.") == "Mild OA."
    assert not is_report("Impression: Mild OA.")
