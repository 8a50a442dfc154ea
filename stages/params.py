"""python stages/params.py

Reads params.yaml as a whole; writes data/params_checked.txt, whose content never changes, so that an edit of
params.yaml is checked at once and reruns nothing by itself.
"""

from knee_siglip.core.paths import PARAMS_CHECKED
from knee_siglip.core.running import run_stage
from knee_siglip.params.checks import check_inputs
from knee_siglip.params.files import check_stated, load_params


def main() -> None:
    """Check, then write the constant file."""
    params = load_params()
    check_stated()
    check_inputs(params)
    PARAMS_CHECKED.parent.mkdir(parents=True, exist_ok=True)
    PARAMS_CHECKED.write_text("params.yaml was checked\n")


if __name__ == "__main__":
    run_stage(main)
