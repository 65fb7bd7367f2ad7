"""docs/report.png, the picture in the README: `python docs/make_pictures.py RUN`, of a run that has a report.

It is a screenshot of the run's report.html without most of its sections, and needs Chromium.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, MOST_HEIGHT = 1200, 2400  # pixels
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# What stays, large enough to be read at half the size, in two columns.
STYLE = """
<style>
html { zoom: 1.3; }
nav, footer, section > p, header > p.quiet, audio, #confusion .card,
section:not(#training, #confusion, #errors), #training figure:nth-of-type(n+3),
#errors .card:nth-of-type(n+3) { display: none; }
main { display: grid; grid-template-columns: 1fr 1fr; gap: 0 1.1rem; max-width: none; padding: 1.5rem; }
header, #errors { grid-column: 1 / -1; }
section { border: 0; margin-top: 1.4rem; padding: 0; }
#training .grid, #confusion .grid { grid-template-columns: 1fr; margin-top: .6rem; }
#errors .grid { margin-top: .6rem; }
#confusion { display: flex; flex-direction: column; }
#confusion .grid { flex: 1; }
#confusion figure { display: grid; align-items: center; }
.matrix > div { width: 100%; }
.lead { margin-bottom: 1.2rem; }
.facts small { display: none; }
.facts { grid-template-columns: repeat(7, auto); }
.facts > div { padding: .7rem .8rem; }
.facts dd { font-size: 1.25rem; }
</style>
"""


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("Give a run's folder: python docs/make_pictures.py RUN")
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        sys.exit(f"This needs Chromium: none of {', '.join(BROWSERS)} is installed.")
    report = Path(sys.argv[1], "report.html").read_text(encoding="utf-8")
    picture = Path(__file__).with_name("report.png")
    with tempfile.TemporaryDirectory() as folder:
        page, screenshot = Path(folder, "page.html"), Path(folder, "page.png")
        page.write_text(report.replace("</head>", f"{STYLE}</head>", 1), encoding="utf-8")
        command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--window-size={WIDTH},{MOST_HEIGHT}", f"--screenshot={screenshot}", page.as_uri()]
        subprocess.run(command, check=True, capture_output=True)
        with Image.open(screenshot) as image:
            pixels = np.asarray(image.convert("RGB"))
    drawn = np.flatnonzero((pixels != pixels[-1, 0]).any(axis=(1, 2)))
    cut = Image.fromarray(pixels[: drawn[-1] + 32])
    cut.quantize(96, dither=Image.Dither.NONE).save(picture, optimize=True)
    print(f"{picture}: {cut.width} x {cut.height} pixels, {picture.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
