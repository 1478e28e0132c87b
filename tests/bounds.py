"""How long tests wait at most."""

HANG_BOUND_S = 60
"""Far more than anything here takes: a test that waits this long has found a hang."""
