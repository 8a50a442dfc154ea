"""What each check looks for and what to do about it, in the words of a reader who did not write the checks."""

from typing import NamedTuple

from knee_siglip.report.html.numbers import readable


class Entry(NamedTuple):
    """pictured: the offending images are worth a look."""

    title: str
    meaning: str
    advice: str
    pictured: bool = False


NEEDS_TOKENIZER = frozenset({"truncated_text", "unknown_token", "changed_by_tokenizer"})
"""Checks that do not run where `tokens_not_checked` says so."""

SPLIT_ANEW = "Move all of them to one split, or draw the splits anew with knee-siglip split."

GLOSSARY = {
    "unreadable_csv": Entry(
        "The file cannot be read", "The CSV is no table that can be understood.", "Mend the line that is named."
    ),
    "missing_column": Entry(
        "Missing column", "img_path, impression and split are needed.", "Add the column, or rename yours."
    ),
    "reserved_column": Entry(
        "Column name taken", "Validation makes a column of this name itself.", "Rename the column of the CSV."
    ),
    "unknown_split": Entry(
        "Unknown split", "Every row belongs to train, val or test.", "Write one of the three into the column split."
    ),
    "missing_split": Entry(
        "Empty split",
        "Training needs rows in train and val, evaluation needs some in test.",
        "Give the split rows, or draw the splits anew with knee-siglip split.",
    ),
    "bad_label": Entry(
        "Not a grade", "A grade is one of the task's labels (params.yaml: task.labels) or empty.", "Correct the cell."
    ),
    "duplicate_row": Entry(
        "Repeated row", "The row repeats an earlier one in every cell, and weighs twice.", "Take one of them out."
    ),
    "missing_image": Entry("Missing image", "There is no file of this name.", "Correct img_path, or take the row out."),
    "unreadable_image": Entry(
        "Unreadable image",
        "The file is damaged, or of a kind that cannot be read.",
        "Export it anew, or take the row out.",
    ),
    "outside_images": Entry(
        "Images outside the watched folder", "Changes of these images go unnoticed.", "Set data.images to their folder."
    ),
    "unknown_patient": Entry(
        "Unknown patient",
        "Without patients nobody can tell whether one is in two splits.",
        "Add a column patient_id, or set data.patient_id_pattern.",
    ),
    "patient_leak": Entry(
        "Patient in two splits",
        "The model would be tested on people that it has learnt from: its figures would be too good.",
        SPLIT_ANEW,
        True,
    ),
    "image_leak": Entry(
        "Same file in two splits", "The model would be tested on images that it has learnt.", SPLIT_ANEW, True
    ),
    "pixel_leak": Entry(
        "Same pixels in two splits",
        "Different files, the same image: it would be learnt and tested on.",
        SPLIT_ANEW,
        True,
    ),
    "near_duplicate_leak": Entry(
        "Nearly the same image in two splits",
        "Resized, recompressed, cropped, mirrored or otherwise windowed, but of the same exposure, as it seems.",
        f"Look at each pair. {SPLIT_ANEW}",
        True,
    ),
    "study_leak": Entry(
        "Study in two splits", "Images of one examination show the same patient on the same day.", SPLIT_ANEW, True
    ),
    "repeated_image": Entry(
        "Same image under several names",
        "Within a split the image weighs more than others; with different texts it contradicts itself.",
        "Keep one of the rows where that is not meant.",
        True,
    ),
    "repeated_pixels": Entry(
        "Same pixels in several files",
        "Within a split the image weighs more than others; with different texts it contradicts itself.",
        "Keep one of the rows where that is not meant.",
        True,
    ),
    "constant_image": Entry(
        "One grey only", "Every pixel is the same: nothing can be seen.", "Take the row out.", True
    ),
    "flat_image": Entry(
        "Nearly flat image",
        "Next to no contrast; legitimate in washed-out films, else a failed export.",
        "Look at the images, and export them anew where detail is lost.",
        True,
    ),
    "inverted_image": Entry(
        "Inverted image",
        "Bone seems dark and the background bright.",
        "Look at the images; preprocess.inversion: correct turns such images round.",
        True,
    ),
    "empty_text": Entry(
        "Empty impression", "There are no words to learn from.", "Write the impression, or take the row out."
    ),
    "missing_text": Entry(
        "Stand-in for an impression",
        "The cell holds what a program writes where there is no text.",
        "Write the impression, or take the row out.",
    ),
    "boilerplate_text": Entry(
        "Nothing but boilerplate",
        "The text says nothing about the image.",
        "Write the impression, or take the row out.",
    ),
    "referral_text": Entry(
        "Text that refers elsewhere", "What it refers to is not there.", "Write the impression, or take the row out."
    ),
    "repeated_text": Entry(
        "One text for most rows",
        "Whoever always gives this answer is right as often.",
        "Read figures with that in mind.",
    ),
    "templated_texts": Entry(
        "Texts known from training",
        "Most texts of val and test also stand in train, as with templates: no leak, but retrieval then tells known "
        "sentences apart.",
        "Judge the model by grades as well.",
    ),
    "mojibake": Entry(
        "Wrong encoding", "Letters with accents came out as two others.", "Save the CSV as UTF-8 from its source."
    ),
    "replacement_character": Entry(
        "Lost characters",
        "A program has put a question mark in a diamond for what it could not read.",
        "Export anew as UTF-8.",
    ),
    "control_character": Entry("Control characters", "Invisible signs for machines.", "Remove them."),
    "invisible_character": Entry("Invisible characters", "Zero-width signs or marks of direction.", "Remove them."),
    "html_entity": Entry("HTML entities", "Such as &amp; for an ampersand.", "Unescape them."),
    "markup": Entry("Markup", "Tags of HTML or RTF would be read as words.", "Export the texts as plain text."),
    "escape_sequence": Entry("Escape sequences", "Such as a written-out \\n.", "Replace them by what they stand for."),
    "foreign_script": Entry(
        "Another script", "The text encoders read English.", "Translate the texts, or take the rows out."
    ),
    "foreign_language": Entry(
        "Another language", "The text encoders read English.", "Translate the texts, or take the rows out."
    ),
    "personal_data": Entry(
        "Personal data in the text",
        "What looks like a name, a date, a number or an address; by pattern, so not everything is found.",
        "Take it out of the impressions.",
    ),
    "side_contradiction": Entry(
        "Text speaks of the other side", "The impression and the column side disagree.", "Look which is right.", True
    ),
    "unknown_side": Entry("Unknown side", "Other words than left and right.", "Write left, right or nothing."),
    "grade_contradiction": Entry(
        "Text speaks of another grade",
        "The impression and the column of grades disagree.",
        "Look which is right.",
        True,
    ),
    "truncated_text": Entry(
        "Texts are cut",
        "What stands behind model.max_text_length tokens is never read.",
        "Raise it, or shorten the texts.",
    ),
    "unknown_token": Entry(
        "Unknown words", "The tokenizer takes all unknown words for one.", "Spell them out in common words."
    ),
    "changed_by_tokenizer": Entry(
        "Changed words", "The tokenizer drops characters.", "Spell them out in plain letters."
    ),
    "tokens_not_checked": Entry(
        "Tokens not checked", "The text encoder's tokenizer was not there.", "Run the backbones stage first."
    ),
    "distribution_shift": Entry(
        "Splits differ",
        "Val or test are drawn from other images or patients than train; their figures then measure this as well.",
        "Say so where it is meant, else draw the splits anew.",
    ),
    "grade_shortcut": Entry(
        "Grade can be told from the file",
        "How the files were made gives the grade away: a model can score well without looking at the image.",
        "Bring all files to one format and source.",
    ),
    "split_shortcut": Entry(
        "Split can be told from the file",
        "The splits come from different sources, or were stored in different ways.",
        "Bring all files to one format, or draw the splits anew.",
    ),
}


def explain(check: str) -> Entry:
    """Of a check that is not in the glossary only its name is known."""
    return GLOSSARY.get(check, Entry(readable(check).capitalize(), "", ""))
