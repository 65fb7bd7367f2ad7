"""What a person looks at after a run: made from the run folder alone."""

import logging

# On a machine's first run it says that it makes a font cache, among the errors.
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
