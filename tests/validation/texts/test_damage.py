import pandas as pd
import pytest

from knee_siglip.validation.texts.damage import check_damage


def check(*texts: str):
    paths = [f"{n}.png" for n in range(len(texts))]
    return check_damage(pd.DataFrame({"img_path": paths, "impression": texts}, index=range(2, len(texts) + 2)))


@pytest.mark.parametrize(
    ("text", "name", "words"),
    [
        ("Ménisque".encode().decode("latin-1"), "mojibake", "'Ã©' at character 2"),
        ("Baker’s cyst".encode().decode("cp1252"), "mojibake", "'â€™' at character 6"),
        ("5° and 10°".encode().decode("latin-1"), "mojibake", "and 1 more"),
        ("\ufeffNormal".encode().decode("cp1252"), "mojibake", "at character 1"),
        ("колено".encode().decode("latin-1"), "mojibake", "read in another encoding"),
        ("m\ufffdßig", "replacement_character", "at character 2"),
        ("Normal\x00 knee", "control_character", r"'\x00' at character 7"),
        ("Normal\x1b[31m knee", "control_character", r"'\x1b'"),
        ("Normal\x85 knee", "control_character", r"'\x85'"),
        ("Mild\u200bOA", "invisible_character", r"'\u200b' at character 5"),
        ("Mild \ufeffOA", "invisible_character", r"'\ufeff'"),
        ("Mild \u202eOA", "invisible_character", r"'\u202e'"),
        ("OA &amp; effusion &lt; 3", "html_entity", "'&amp;' at character 4 and 1 more"),
        ("OA&nbsp;mild", "html_entity", "'&nbsp;'"),
        ("OA&#176;", "html_entity", "'&#176;'"),
        (r"{\rtf1 Normal", "markup", "at character 1"),
        ("<b class='x'>Normal", "markup", "at character 1"),
        (r"Normal.\nMild", "escape_sequence", "at character 8"),
        (r"Normal \xe9", "escape_sequence", "at character 8"),
    ],
)
def test_damage_is_told_by_kind_and_place(text, name, words):
    (issue,) = check("Normal.", text)
    assert (issue.severity, issue.check, issue.row) == ("warning", name, 3)
    assert words in issue.message


@pytest.mark.parametrize(
    "text",
    [
        "Ménisque à gauche, Ärztlich, größer, ÃO, «MARCHÉ»",
        "Line one\r\nline two\ttabbed\u00a0here, soft\u00adhyphen",
        "OA & effusion; <3 mm, 2 < x > 1, R>L, a\\b",
        "Baker’s cyst – 5° ± 2 µm, 1½",
    ],
)
def test_rightly_written_text_is_none(text):
    assert check(text) == []


def test_markup_is_not_quoted():
    (issue,) = check("<Doe Jane> normal")
    assert "Doe" not in issue.message


def test_thousands_of_rows_are_told_once_and_twenty_listed():
    issues = check(*[f"OA &amp; {number}" for number in range(1000)])
    assert len(issues) == 21
    assert issues[0].row is None
    assert issues[0].message.startswith("1,000 rows (100.0%) hold characters that are HTML entities")
    assert [issue.row for issue in issues[1:]] == list(range(2, 22))


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Остеоартроз коленного сустава", "cp1251"),
        ("Норма", "koi8-r"),
        ("膝关节退行性变", "gbk"),
        ("変形性膝関節症", "shift_jis"),
        ("골절 없음", "euc-kr"),
        ("Staw kolanowy prawidłowy", "cp1250"),
        ("Příčina nejasná", "cp1250"),
        ("Οστεοαρθρίτιδα", "cp1253"),
    ],
)
def test_other_code_pages_read_as_latin_1(text, encoding):
    table = pd.DataFrame({"img_path": ["a.png"], "impression": [text.encode(encoding).decode("latin-1")]}, index=[2])
    assert "other_code_page" in {issue.check for issue in check_damage(table)}


def test_accents_and_symbols_are_no_damage():
    texts = ["Œdème, créée, façade", "22½°, 5±3 mm, 10 cm³, 3 µm", "¿Fractura?", "«Pincement»", "• OA", "Ahlbäck"]
    table = pd.DataFrame({"img_path": ["a.png"] * len(texts), "impression": texts}, index=range(2, len(texts) + 2))
    assert check_damage(table) == []
