"""What a person looks at during and after a run."""

import logging

# On a machine's first run it says that it makes a font cache, among the errors.
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
