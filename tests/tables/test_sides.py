import pytest

from knee_siglip.tables.sides import exchange_sides


@pytest.mark.parametrize(
    ("text", "mirrored"),
    [
        ("Mild OA of medial compartment of left knee joint.", "Mild OA of medial compartment of right knee joint."),
        ("RIGHT KNEE: normal. Left: effusion.", "LEFT KNEE: normal. Right: effusion."),
        ("Rt. knee, lt hip", "Lt. knee, rt hip"),
        ("Both knees normal.", "Both knees normal."),
        ("Joint effusion.", "Joint effusion."),
        ("", ""),
        ("Rodilla izquierda normal, derecho también.", "Rodilla derecha normal, izquierdo también."),
        ("Joelho direito sem alterações.", "Joelho esquerdo sem alterações."),
        ("Linkes Knie, rechts Erguss", "Rechtes Knie, links Erguss"),
        ("Upright view, leftover cement", "Upright view, leftover cement"),
    ],
)
def test_left_and_right_are_exchanged_and_nothing_else(text, mirrored):
    assert exchange_sides(text) == mirrored
    assert exchange_sides(mirrored) == text


@pytest.mark.parametrize(
    "text",
    [
        "L knee: effusion.",
        "Knee (R): normal",
        "Genou droit normal.",
        "Genou gauche normal, left",
        "The screw was left in place.",
        "Left knee flexed to a right angle.",
        "Right-handed patient, left knee normal.",
    ],
)
def test_a_side_in_other_words_or_in_another_sense_is_left_alone(text):
    assert exchange_sides(text) is None
