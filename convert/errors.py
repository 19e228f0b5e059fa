"""What a user of `convert` can meet.

ConvertError            bad input or environment: one line with cause and remedy, exit status 2
└── GateRefusedError    the quantised model missed a limit: nothing is written, exit status 3
"""

import errno

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # what the system says of a disk without room


class ConvertError(Exception):
    """Cause and remedy in one line, fit to be shown to the user as it is."""

    exit_status = 2


class GateRefusedError(ConvertError):
    """The quantised model missed the accuracy or the agreement limit."""

    exit_status = 3
