"""`python -m convert SOURCE --name NAME --images DIR`; signals are caught before the libraries are loaded."""

import os
import sys
import warnings

from convert.endings import INTERRUPTED, catch, fail

if __name__ == "__main__":
    catch()
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # deprecations inside TensorFlow and Keras are not for the user
    try:
        from convert.command import main
    except KeyboardInterrupt:
        os._exit(fail(INTERRUPTED))  # sys.exit would end as if killed, had the signal come within an exec()
    sys.exit(main())
