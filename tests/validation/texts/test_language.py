import pandas as pd
import pytest

from knee_siglip.validation.texts.language import check_language, foreign_language, foreign_script


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Mäßige Gonarthrose rechts ohne Erguss", "German"),
        ("Gonarthrose du genou gauche sans épanchement", "French"),
        ("Gonartrosis leve de la rodilla derecha sin derrame", "Spanish"),
        ("Gonartrosi lieve del ginocchio destro senza versamento", "Italian"),
        ("Gonartrose moderada do joelho direito sem derrame", "Portuguese"),
        ("Matige gonartrose van de rechter knie zonder fractuur", "Dutch"),
        ("Severe OA of the left knee with genu varum.", None),
        ("De Quervain; Le Fort; Osgood-Schlatter; os fabella.", None),
        ("Mild OA", None),
        ("Lätt artros i höger knä utan utgjutning", "Swedish"),
        ("Umiarkowane zmiany zwyrodnieniowe stawu kolanowego prawego", "Polish"),
        ("Keine frische Fraktur", "German"),
        ("Patella alta, bipartite patella.", None),
        ("Genu valgum deformity", None),
        ("Ahlbäck grade II", None),
        ("KL 2", None),
        ("", None),
    ],
)
def test_language_of_a_text(text, language):
    assert foreign_language(text) == language


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("Остеоартроз коленного сустава", "CYRILLIC"),
        ("膝关节炎", "CJK"),
        ("תקין", "HEBREW"),
        ("ＫＬ grade ２ mäßig", None),
        ("α angle 55°, 3 µm", None),
        ("\U0001f9b5 Normal knee", None),
    ],
)
def test_script_of_the_letters(text, script):
    found = foreign_script(text)
    assert (found[0] if found else None) == script


def test_findings_name_language_and_script():
    texts = ["Normal knee.", "Mäßige Gonarthrose rechts ohne Erguss", "膝关节炎 KL"]
    table = pd.DataFrame({"img_path": list("abc"), "impression": texts}, index=[2, 3, 4])
    issues = {issue.row: (issue.check, issue.message) for issue in check_language(table)}
    assert issues[3][0] == "foreign_language"
    assert "German" in issues[3][1]
    assert issues[4][0] == "foreign_script"
    assert "67% of the letters are not Latin but Cjk" in issues[4][1]
    assert len(issues) == 2
