"""The impression's grammar: labels -> the exact distribution of texts, of which one is drawn.

"Severe OA of medial compartment of right knee joint with varus angulation and joint effusion."
Nearly deterministic, so that a perfect reader of the picture can find the very text; a little synonymy remains.
"""

import numpy as np

from knee_siglip.sample.findings import Labels

GRADE_WORDS = {1: "Doubtful", 2: "Mild", 3: "Moderate", 4: "Severe"}
SPELLED_OUT_RATE = 0.05
"""How often the reader writes "osteoarthritis" in full."""

OTHER_NORMAL_RATE = 0.2


def text_alternatives(labels: Labels) -> dict[str, float]:
    """Every text that may describe `labels`, with its probability; they sum to 1."""
    text = _impression(labels)
    if text.startswith("Normal"):
        return {text: 1 - OTHER_NORMAL_RATE, f"No abnormality of {labels.side} knee joint.": OTHER_NORMAL_RATE}
    if " OA " in text or " OA." in text:
        return {text: 1 - SPELLED_OUT_RATE, text.replace(" OA", " osteoarthritis"): SPELLED_OUT_RATE}
    return {text: 1.0}


def draw_text(rng: np.random.Generator, alternatives: dict[str, float]) -> str:
    """Draw one text; takes exactly one random value."""
    edges = np.cumsum(list(alternatives.values()))
    number = int(np.searchsorted(edges, rng.random(), side="right"))
    return list(alternatives)[min(number, len(edges) - 1)]  # rounding may leave the last edge below 1


def _impression(labels: Labels) -> str:
    knee = f"{labels.side} knee joint"
    if labels.special == "arthroplasty":
        return f"Total knee arthroplasty of {knee}{_with(_companions(labels))}."
    if labels.special == "fracture":
        also = [_osteoarthritis(labels, "").strip().lower().replace("oa", "OA")] if labels.kl_grade else []
        return f"Fracture of {labels.fracture_side} tibial plateau of {knee}{_with([*also, 'joint effusion'])}."
    companions = _companions(labels)
    if labels.kl_grade:
        return f"{_osteoarthritis(labels, f' of {knee}')}{_with(companions)}."
    if not companions:
        return f"Normal {knee}."
    first, *rest = companions
    return f"{first.capitalize()} of {knee}{_with(rest)} without OA."


def _osteoarthritis(labels: Labels, where: str) -> str:
    """Grade 1 names no compartment: the narrowing is not there yet."""
    grade = labels.kl_grade or 0
    of = f" of {labels.compartment} compartment" if grade >= 2 else ""
    return f"{GRADE_WORDS[grade]} OA{of}{where}"


def _companions(labels: Labels) -> list[str]:
    """What is reported beside the osteoarthritis, in reading order."""
    companions = []
    if labels.alignment != "normal":
        companions.append(f"{labels.alignment} angulation")
    if labels.special == "chondrocalcinosis":
        companions.append("chondrocalcinosis")
    if labels.special == "loose_body":
        companions.append("loose body")
    if labels.effusion:
        companions.append("joint effusion")
    return companions


def _with(items: list[str]) -> str:
    return f" with {' and '.join(items)}" if items else ""
