"""How many CPU cores may this process use?"""

from __future__ import annotations

import joblib

__all__ = ["usable_cores"]


def usable_cores() -> int:
    """Count the cores of this machine that are this process's to use.

    Returns:
        1 or more: no more than its affinity and the CPU quota of its container allow. A core that
        runs two threads at once counts as two.
    """
    return max(1, int(joblib.cpu_count()))
