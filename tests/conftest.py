"""What every test shares: bounded threads, no display, and hypothesis profiles."""

import os

# Before torch or matplotlib is imported: two cores are shared by the suite and the subprocesses it starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

try:
    from hypothesis import HealthCheck, settings
except ImportError:  # tests on a CUDA device do without
    pass
else:
    SLOW_FIRST_CALL = [HealthCheck.too_slow, HealthCheck.data_too_large]  # a first call compiles its kernel

    settings.register_profile(
        "ci", max_examples=120, deadline=None, derandomize=True, suppress_health_check=SLOW_FIRST_CALL
    )
    settings.register_profile("deep", max_examples=3000, deadline=None, suppress_health_check=SLOW_FIRST_CALL)
    settings.register_profile("thorough", settings.get_profile("deep"), max_examples=5000)
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
