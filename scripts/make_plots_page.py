"""Make .dvc/plots.html, the page that `dvc plots` fills, which needs no network.

    python scripts/make_plots_page.py

DVC's own page loads Vega from a CDN and stays blank offline. This one holds the same versions of Vega, Vega-Lite and
Vega-Embed (BSD-3-Clause, licences included), from the npm registry, checked against its sha512. Run it again when a new
DVC names other versions; tests/pipeline/test_plots.py notices.
"""

import base64
import hashlib
import io
import json
import re
import tarfile
import urllib.request
from pathlib import Path

from dvc_render.vega import VegaRenderer

PAGE = Path(__file__).parents[1] / ".dvc/plots.html"
REGISTRY = "https://registry.npmjs.org"

TEMPLATE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
{{refresh_tag}}
<title>knee-siglip: plots</title>
<style>
body {{ font-family: sans-serif; margin: 1.5em; }}
table {{ border-spacing: 15px; }}
</style>
{libraries}
</head>
<body>
{{plot_divs}}
</body>
</html>
"""


def main() -> None:
    """Write the page."""
    libraries = [library(name, version) for name, version in versions()]
    PAGE.write_text(TEMPLATE.format(libraries="\n".join(libraries)), encoding="utf-8")
    print(f"{PAGE}: {PAGE.stat().st_size:,} bytes")


def versions() -> list[tuple[str, str]]:
    """Package and version of every script that DVC's own page loads."""
    return re.findall(r"/npm/([\w-]+)@([\d.]+)", VegaRenderer.SCRIPTS)


def library(name: str, version: str) -> str:
    """A package's code in a script element, below its licence."""
    with urllib.request.urlopen(f"{REGISTRY}/{name}/{version}") as answer:  # noqa: S310  # npm's own address
        distribution = json.load(answer)["dist"]
    with urllib.request.urlopen(distribution["tarball"]) as answer:  # noqa: S310  # its checksum is tested
        content = answer.read()
    checksum = "sha512-" + base64.b64encode(hashlib.sha512(content).digest()).decode()
    if checksum != distribution["integrity"]:
        raise SystemExit(f"{distribution['tarball']} has another checksum than the registry says")
    with tarfile.open(fileobj=io.BytesIO(content)) as package:
        licence, code = [
            package.extractfile(f"package/{file}").read().decode()  # type: ignore[union-attr]
            for file in ("LICENSE", f"build/{name}.min.js")
        ]
    code = re.sub(r"//# sourceMappingURL=\S+\s*$", "", code)  # or the browser's tools look for the map
    return f"<!-- {name}@{version}\n{licence.strip()}\n-->\n<script>{code}</script>"


if __name__ == "__main__":
    main()
