"""For all tests: nothing closes what pytest captures with.

What reads TensorBoard's files logs with absl, whose handler closes the stream that it was made with when
MONAI sets the logging anew, unless that stream is `sys.stderr` just then. Within a test it is the capture of
all tests.
"""

from __future__ import annotations

import sys

from absl import logging

logging.get_absl_handler().python_handler.stream = sys.__stderr__
