"""The texts an image is compared with when its reader names none."""

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
"""In the manner of the impressions: normal, osteoarthritis by severity (Kellgren-Lawrence 1-4), single findings.

Short texts like those of training; a question, or "an X-ray image of ...", would be far from all of them.
"""
