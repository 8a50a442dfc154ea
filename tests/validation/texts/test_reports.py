"""Whole reports are replaced by their impression before anything is checked or counted."""

REPORT = "FINAL REPORT\nINDICATION: Pain.\nFINDINGS: Spurs at film {}.\nIMPRESSION: Mild OA, film {}."


def of_reports(project):
    for row in range(2, 8):
        project.set(row, "impression", REPORT.format(row, row))
    return project


def test_the_impression_is_taken_and_counted(project):
    outcome = of_reports(project).run()
    (issue,) = outcome.of("whole_report")
    assert outcome.manifest["impression"].tolist()[:2] == ["Mild OA, film 2.", "Mild OA, film 3."]
    assert outcome.manifest["text"][2] == "mild oa film 2"
    assert outcome.manifest["impression"][8] == "Small joint effusion, film number 6."
    assert issue["message"].startswith("6 of 7 impressions are whole reports; of 6 the impression was taken")
    assert issue["message"].endswith("rows 2, 3, 4, 5, 6, 7")


def test_reports_are_kept_whole_on_demand(project):
    outcome = of_reports(project).run(sections="keep")
    assert outcome.manifest["impression"][2] == REPORT.format(2, 2)
    assert "validate.sections: keep" in outcome.of("whole_report")[0]["message"]


def test_a_report_without_an_impression_stays(project):
    text = "INDICATION: Pain.\nFINDINGS: No fracture."
    project.set(4, "impression", text)
    outcome = project.run()
    assert outcome.manifest["impression"][4] == text
    assert outcome.of("whole_report") == []
    assert outcome.of("report_without_impression")[0]["message"].endswith("stay as they are: row 4")
