import pytest

from knee_siglip.core import expressions
from knee_siglip.core.errors import UserError
from knee_siglip.core.expressions import check_expression, find_matches


def test_matches_are_those_of_re_whatever_the_case():
    found = find_matches("key", r"effus\w+", "Effusion, no EFFUSIONS")
    assert [(match[0], match.start()) for match in found] == [("Effusion", 0), ("EFFUSIONS", 13)]


def test_a_pattern_that_never_ends_names_its_param(monkeypatch):
    monkeypatch.setattr(expressions, "SECONDS", 0.05)
    with pytest.raises(ValueError, match=r"findings\.x\.text = .* takes more than"):
        check_expression("findings.x.text", "(a|aa)+$")
    # one that the probes do not show
    check_expression("findings.x.text", "(k|kn?e?)+$")
    with pytest.raises(UserError, match=r"findings\.x\.text = .* for an impression of"):
        find_matches("findings.x.text", "(z|zz)+$", "z" * 80 + "!")
