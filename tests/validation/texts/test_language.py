import re

import pandas as pd
import pytest

from knee_siglip.validation.texts.language import check_language, corpus_language, foreign_language, foreign_script


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


CORPORA = {
    "German": "Regelrechter Befund|Keine frische Fraktur|Gonarthrose links|Zustand nach TEP|Unauffällig|Kein Erguss",
    "Spanish": "Gonartrosis leve|Estudio normal|Derrame articular|Rodilla normal|Sin alteraciones|Artrosis moderada",
    "Portuguese": "Sem alterações|Artrose leve|Derrame articular|Joelho normal|Redução do espaço|Exame normal",
    "French": "Gonarthrose modérée|Pas de fracture|Radiographie normale|Genou normal|Épanchement articulaire|Normal",
    "Polish": "Bez zmian|Staw kolanowy prawidłowy|Bez cech złamania|Wysięk w stawie|Obraz prawidłowy|Osteofity brzeżne",
    "Turkish": "Normal diz grafisi|Kırık izlenmedi|Orta derecede gonartroz|Efüzyon yok|Eklem aralığı dar|Diz protezi",
    "Swedish": "Ingen fraktur|Normal undersökning|Måttlig artros medialt|Sänkt ledspringa|Normalt knä|Osteofyter",
    "Vietnamese": "Không thấy gãy xương|Khớp gối bình thường|Hẹp khe khớp|Gai xương|Tràn dịch khớp gối|Bình thường",
}
ENGLISH_RADIOLOGY = (
    "Genu varum. Chondrocalcinosis. Baker cyst.|Tricompartmental osteoarthritis.|Patella alta, bipartite patella.|"
    "Patella baja|Genu valgum deformity|Chondrocalcinosis|Pellegrini-Stieda lesion, Segond fracture.|"
    "Bilateral gonarthrosis|Osteopenia. Varus alignment. Effusion.|Os fabella|Ahlbäck grade II|NAD|Hemarthrosis|Normal|"
    "KL 2|Mild OA|Loose body|Sinding-Larsen-Johansson|Vastus medialis obliquus atrophy|Unremarkable|"
    "De Quervain; Le Fort; Osgood-Schlatter."
)
STEMMED = (
    "sin hallazg patolog signific|cardiomegali|aument densid|derram pleural bilateral|torax sin hallazg|sin fractur|"
    "gonartrosis lev rodill derech|pinz medial rodill izquierd|osteofit marginal|esclerosis subcondral|artrosis moder|"
    "cambi degener|protesis rodill|sin cambi respect estudi previ|engros pleural|atelectasi lamin bas|normal|"
    "silu cardiac normal|fractur mes tibial|derram articul"
)


@pytest.mark.parametrize("language", CORPORA)
def test_six_short_texts_together_are_in_their_language(language):
    assert corpus_language(CORPORA[language].split("|")) == language


def test_english_radiology_is_english_and_stemmed_spanish_is_not():
    assert corpus_language(ENGLISH_RADIOLOGY.split("|")) is None
    assert corpus_language(STEMMED.split("|")) is not None
    assert corpus_language(["Остеоартроз", "Норма", "Перелом", "Без патологии", "Normal"]) == "Cyrillic script"
    assert corpus_language(["Regelrechter Befund", "Kein Erguss"]) is None  # too few to judge together


def test_one_warning_tells_what_the_tokenizer_makes_of_a_foreign_corpus(project):
    texts = CORPORA["German"].split("|")
    for row, text in enumerate([*texts, "Altes Knie"], 2):
        project.set(row, "impression", text)
    outcome = project.run()
    (issue,) = outcome.of("foreign_corpus")
    assert outcome.of("foreign_language") == []
    assert re.search(
        r"in German; the text encoder knows English: its tokenizer cuts a word into [2-9]\.\d tokens "
        r"\(1\.\d in English\) and does not know \d+\.\d% of the words \(0\.0%\)",
        issue["message"],
    )
    assert "model.text: google/siglip-base-patch16-256-multilingual" in issue["message"]
    assert "no grade and no finding is asked for in German before its file says them so" in issue["message"]


def test_prompts_in_the_language_of_the_impressions_are_right():
    table = pd.DataFrame({"impression": CORPORA["German"].split("|")})
    (issue,) = check_language(table, prompts=CORPORA["German"].split("|"))
    assert "prompts are English" not in issue.message
