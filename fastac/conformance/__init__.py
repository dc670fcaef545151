"""Every boundary of an episode as data, and a check of anyone's estimator against it.

    fastac conformance my_package.advantages:gae --convention cleanrl

says which boundaries a function gets right, which wrong, and which its convention cannot express. From Python:

>>> import fastac
>>> from fastac.conformance import check
>>> report = check(fastac.n_step_returns, estimator="n_step_returns")
>>> report.ok, len(report.wrong)
(True, 0)

The expected numbers are exact: small fractions, worked out from the definitions and never with the library's kernels.
"""

from fastac.conformance.report import SCENARIOS, CallError, Report, Result, check
from fastac.conformance.scenario import ESTIMATORS, Scenario

__all__ = ["ESTIMATORS", "SCENARIOS", "CallError", "Report", "Result", "Scenario", "check"]
