"""The task of params.yaml's defaults: osteoarthritis of the knee, graded by Kellgren and Lawrence, and findings."""

from typing import Any

SUBJECT, NORMAL = "knee", "Normal knee joint."

GRADE_WORDS = {"0": "none", "1": "doubtful", "2": "mild", "3": "moderate", "4": "severe"}
"""Of osteoarthritis by Kellgren and Lawrence 1957, Ann Rheum Dis 16:494."""

OSTEOARTHRITIS = {"name": "oa", "title": "osteoarthritis", "lowest": "2"}
"""Grade 2 is the lowest with definite osteoarthritis: Kellgren & Lawrence 1957, doi:10.1136/ard.16.4.494."""

SIDE_WORDS = (
    "knee|joint|genu|tibia|tibial|femur|femoral|fibula|fibular|patella|patellar|patellofemoral|tibiofemoral|"
    "femorotibial|meniscus|compartment|leg|limb|lower extremity|tka|tkr|gonarthrosis"
)

KL_WORDINGS: dict[str, tuple[str, ...]] = {
    "0": (
        "Normal {side} knee joint.",
        "No significant bony abnormality of the {side} knee.",
        "{Side} knee: no radiographic features of osteoarthritis.",
    ),
    "1": (
        "Doubtful OA of {side} knee joint.",
        "{Side} knee: doubtful joint space narrowing, possible osteophytic lipping.",
    ),
    "2": (
        "Mild OA of medial compartment of {side} knee joint.",
        "Mild OA of lateral compartment of {side} knee joint.",
        "{Side} knee: definite osteophytes, KL grade 2.",
    ),
    "3": (
        "Moderate OA of medial compartment of {side} knee joint.",
        "Moderate OA of lateral compartment of {side} knee joint.",
        "{Side} knee: moderate OA, multiple osteophytes and some sclerosis.",
    ),
    "4": (
        "Severe OA of medial compartment of {side} knee joint.",
        "Severe OA of lateral compartment of {side} knee joint.",
        "{Side} knee: severe OA, large osteophytes, severe sclerosis and bone end deformity.",
    ),
}
"""Written like impressions, in the words of Kellgren and Lawrence 1957 (Ann Rheum Dis 16:494)."""


def both_sides(*texts: str) -> list[str]:
    """Every text for the left and for the right knee."""
    return [text.format(side=side, Side=side.capitalize()) for side in ("left", "right") for text in texts]


KL_PROMPTS = {grade: both_sides(*wordings) for grade, wordings in KL_WORDINGS.items()}

WITHOUT = both_sides("Normal {side} knee joint.", "Mild OA of medial compartment of {side} knee joint.")
"""Negative prompts of every finding: knees that have none of them, with and without osteoarthritis."""

FINDING_WORDINGS: dict[str, tuple[str, ...]] = {
    "effusion": (
        "Joint effusion of {side} knee joint without OA.",
        "Mild OA of medial compartment of {side} knee joint with joint effusion.",
    ),
    "arthroplasty": ("Total knee arthroplasty of {side} knee joint.",),
    "fracture": (
        "Fracture of medial tibial plateau of {side} knee joint with joint effusion.",
        "Fracture of lateral tibial plateau of {side} knee joint with joint effusion.",
    ),
    "chondrocalcinosis": (
        "Chondrocalcinosis of {side} knee joint without OA.",
        "Mild OA of medial compartment of {side} knee joint with chondrocalcinosis.",
    ),
    "varus": (
        "Varus angulation of {side} knee joint without OA.",
        "Mild OA of medial compartment of {side} knee joint with varus angulation.",
    ),
    "valgus": (
        "Valgus angulation of {side} knee joint without OA.",
        "Mild OA of lateral compartment of {side} knee joint with valgus angulation.",
    ),
}
NAMED_BY = {"arthroplasty": "arthroplasty|prosthes[ie]s|implant"}
"""Regular expression by which an impression names a finding, if that is not the finding's own name."""

FINDINGS: dict[str, dict[str, Any]] = {
    name: {"positive": both_sides(*wordings), "negative": WITHOUT, "text": NAMED_BY.get(name, name)}
    for name, wordings in FINDING_WORDINGS.items()
}

USUAL_QUERIES: tuple[str, ...] = (
    "Normal knee",
    "Doubtful osteoarthritis of the knee",
    "Mild osteoarthritis of the knee",
    "Moderate osteoarthritis of the knee",
    "Severe osteoarthritis of the knee",
    "Joint space narrowing",
    "Osteophytes",
    "Joint effusion",
    "Tibial plateau fracture",
    "Patellofemoral arthritis",
)
"""Short texts like those of training: a question, or "an X-ray image of ...", would be far from all of them."""
