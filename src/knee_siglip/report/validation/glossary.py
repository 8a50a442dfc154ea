"""What each check on the validation page looks for, and what to do about it."""

from typing import NamedTuple

from knee_siglip.report.html.numbers import readable


class Entry(NamedTuple):
    """pictured: the page shows the images concerned."""

    title: str
    meaning: str
    advice: str
    pictured: bool = False


NEEDS_TOKENIZER = frozenset({"truncated_text", "unknown_token", "changed_by_tokenizer"})
"""Checks that did not run if there is a `tokens_not_checked`."""

SPLIT_AGAIN = "Move all of them to one split, or split again with knee-siglip split."

GLOSSARY = {
    "unreadable_csv": Entry("Unreadable CSV", "The file is not a valid CSV table.", "Fix the line named below."),
    "missing_column": Entry(
        "Missing column", "img_path, impression and split are required.", "Add the column, or rename yours."
    ),
    "reserved_column": Entry(
        "Reserved column name", "Validation adds a column of this name itself.", "Rename the column in the CSV."
    ),
    "unknown_split": Entry(
        "Unknown split", "Every row must belong to train, val or test.", "Write one of the three in the column split."
    ),
    "missing_split": Entry(
        "Empty split",
        "Training needs rows in train and val, evaluation needs rows in test.",
        "Add rows to the split, or split again with knee-siglip split.",
    ),
    "bad_label": Entry(
        "Invalid grade", "A grade is one of the task's labels (params.yaml: task.labels) or empty.", "Correct the cell."
    ),
    "foreign_corpus": Entry(
        "Impressions in another language",
        "Judged together, the impressions are not English, which the text encoder was trained on.",
        "Translate them, or take a multilingual text encoder.",
    ),
    "other_code_page": Entry(
        "Text of another code page",
        "The text was written in one encoding and read in another, so its letters are others.",
        "Export it again, as UTF-8.",
    ),
    "whole_report": Entry(
        "Whole reports",
        "The column of impressions holds reports with sections, of which the impression is the one to train on.",
        "Look at a few of the texts. validate.sections: impression takes that section, keep reads everything.",
    ),
    "report_without_impression": Entry(
        "Reports without an impression",
        "These reports have sections, but none that is called impression, conclusion or summary.",
        "Leave the rows out, or write their impression in the column.",
    ),
    "duplicate_row": Entry(
        "Duplicate row", "The row equals an earlier one in every cell, so it counts twice.", "Remove one of them."
    ),
    "missing_image": Entry("Missing image", "There is no file of this name.", "Correct img_path, or remove the row."),
    "unreadable_image": Entry(
        "Unreadable image",
        "The file is damaged, or its format is not supported.",
        "Export it again, or remove the row.",
    ),
    "outside_images": Entry(
        "Images outside the watched folder",
        "DVC does not notice changes to these images.",
        "Set data.images to their folder.",
    ),
    "unknown_patient": Entry(
        "Unknown patient",
        "Without patient IDs, patient leakage between splits cannot be checked.",
        "Add a column patient_id, or set data.patient_id_pattern.",
    ),
    "placeholder_id": Entry(
        "Placeholder instead of an ID",
        "Such rows count as rows of unknown patients or studies, not as one.",
        "Correct the cells, or leave them empty.",
    ),
    "rounded_id": Entry(
        "Rounded ID",
        "A spreadsheet wrote the ID in scientific notation and dropped digits, so it may be any of many.",
        "Export the column again, as text.",
    ),
    "patient_leak": Entry(
        "Patient in two splits",
        "The model would be tested on patients it was trained on, and its scores would be too good.",
        SPLIT_AGAIN,
        True,
    ),
    "image_leak": Entry(
        "Same file in two splits", "The model would be tested on images it was trained on.", SPLIT_AGAIN, True
    ),
    "pixel_leak": Entry(
        "Same pixels in two splits",
        "Different files with the same image: the model would be tested on images it was trained on.",
        SPLIT_AGAIN,
        True,
    ),
    "near_duplicate_leak": Entry(
        "Near-duplicate images in two splits",
        "Probably the same exposure: resized, recompressed, cropped, mirrored or windowed differently.",
        f"Look at each pair. {SPLIT_AGAIN}",
        True,
    ),
    "study_leak": Entry(
        "Study in two splits", "Images of one examination show the same patient on the same day.", SPLIT_AGAIN, True
    ),
    "study_of_several_patients": Entry(
        "Study of several patients",
        "Images of one study are trained as right for each other's texts: here they would be other people's.",
        "Write study ids that are unique over all patients, such as patient and study together.",
        True,
    ),
    "study_texts": Entry(
        "Study with several texts",
        "Each of the texts is taken as right for all images of the study; contradictory ones teach a contradiction.",
        "Give all images of a study one impression, unless each text is about the whole study.",
        True,
    ),
    "repeated_image": Entry(
        "Same image under several names",
        "Within one split the image counts more than others; with different texts it contradicts itself.",
        "Unless this is intended, keep one of the rows.",
        True,
    ),
    "repeated_pixels": Entry(
        "Same pixels in several files",
        "Within one split the image counts more than others; with different texts it contradicts itself.",
        "Unless this is intended, keep one of the rows.",
        True,
    ),
    "constant_image": Entry(
        "Constant image", "Every pixel has the same grey: there is nothing to see.", "Remove the row.", True
    ),
    "flat_image": Entry(
        "Nearly flat image",
        "Almost no contrast: a washed-out film, or a failed export.",
        "Look at the images, and export them again if detail was lost.",
        True,
    ),
    "inverted_image": Entry(
        "Inverted image",
        "Bone appears dark and the background bright.",
        "Look at the images. preprocess.inversion: correct inverts them back.",
        True,
    ),
    "doubtful_elements": Entry(
        "Doubtful DICOM header",
        "Elements are missing, or hold no number, or fit nothing. The pixels were shown without them.",
        "Look at the images: greys may differ from what a viewer shows. Export them again if they do.",
        True,
    ),
    "empty_text": Entry(
        "Empty impression", "There is no text to learn from.", "Write the impression, or remove the row."
    ),
    "missing_text": Entry(
        "Placeholder instead of an impression",
        "The cell holds what programs write for a missing value.",
        "Write the impression, or remove the row.",
    ),
    "boilerplate_text": Entry(
        "Boilerplate only", "The text says nothing about the image.", "Write the impression, or remove the row."
    ),
    "referral_text": Entry(
        "Text refers elsewhere", "What it refers to is not in the CSV.", "Write the impression, or remove the row."
    ),
    "repeated_text": Entry(
        "One text in most rows",
        "Always giving this answer would be right just as often.",
        "Keep this in mind when you read the metrics.",
    ),
    "templated_texts": Entry(
        "Texts known from training",
        "Most texts of val and test also occur in train, as with templates. This is no leak, but retrieval "
        "then only tells known sentences apart.",
        "Judge the model by its grades as well.",
    ),
    "mojibake": Entry(
        "Wrong encoding (mojibake)",
        "Accented letters turned into other characters.",
        "Save the CSV as UTF-8 from its source.",
    ),
    "replacement_character": Entry(
        "Lost characters",
        "A program wrote a replacement character (a question mark in a diamond) for what it could not read.",
        "Export the texts again as UTF-8.",
    ),
    "control_character": Entry("Control characters", "Invisible characters meant for devices.", "Remove them."),
    "invisible_character": Entry("Invisible characters", "Zero-width characters or direction marks.", "Remove them."),
    "html_entity": Entry("HTML entities", "Such as &amp; for an ampersand.", "Unescape them."),
    "markup": Entry("Markup", "HTML or RTF tags would be read as words.", "Export the texts as plain text."),
    "escape_sequence": Entry(
        "Escape sequences", "Such as a written-out \\n.", "Replace them by the characters they stand for."
    ),
    "foreign_script": Entry(
        "Foreign script", "The text encoders read English.", "Translate the texts, or remove the rows."
    ),
    "foreign_language": Entry(
        "Foreign language", "The text encoders read English.", "Translate the texts, or remove the rows."
    ),
    "personal_data": Entry(
        "Personal data in the text",
        "Looks like a name, a date, a number or an address. Found by pattern, so some may be missed.",
        "Remove it from the impressions.",
    ),
    "side_contradiction": Entry(
        "Text contradicts the side", "The impression and the column side disagree.", "Check which one is right.", True
    ),
    "unknown_side": Entry("Unknown side", "Something other than left or right.", "Write left, right or nothing."),
    "grade_contradiction": Entry(
        "Text contradicts the grade", "The impression and the grade column disagree.", "Check which one is right.", True
    ),
    "truncated_text": Entry(
        "Truncated texts",
        "Text beyond model.max_text_length tokens is never read.",
        "Raise model.max_text_length, or shorten the texts.",
    ),
    "unknown_token": Entry("Unknown words", "The tokenizer maps all unknown words to one token.", "Use common words."),
    "changed_by_tokenizer": Entry("Changed words", "The tokenizer drops characters.", "Use plain letters."),
    "tokens_not_checked": Entry(
        "Tokens not checked", "The text encoder's tokenizer was not available.", "Run the backbones stage first."
    ),
    "distribution_shift": Entry(
        "Distribution shift",
        "Val or test differ from train in images or patients, so their metrics measure this difference as well.",
        "Report it if it is intended; otherwise split again.",
    ),
    "grade_shortcut": Entry(
        "Grade shortcut",
        "File properties predict the grade: a model can score well without looking at the image.",
        "Convert all files to one format, from one source.",
    ),
    "split_shortcut": Entry(
        "Split shortcut",
        "File properties predict the split: the splits come from different sources, or were stored differently.",
        "Convert all files to one format, or split again.",
    ),
}


def explain(check: str) -> Entry:
    """Return the check's entry; a check that is not in the glossary has only its name."""
    return GLOSSARY.get(check, Entry(readable(check).capitalize(), "", ""))
