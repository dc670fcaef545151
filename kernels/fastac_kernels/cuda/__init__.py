"""The kernels for CUDA, by numba-cuda: the CPU's names and arguments, and then what a launch needs besides.

Estimators take what the CPU's kernel of that name takes (see `fastac_kernels.gae.gae_at`), with addresses of device
memory, `terminated` 0 where nothing is, and then

    carries: Address of `carries_size(...)` elements to work in, 0 where that is 0.
    stream:  CUDA stream, as an integer; torch's is `torch.cuda.current_stream().cuda_stream`.
    device:  Its device's index.

Nothing is checked, nothing allocated, and nothing waits: calls can be captured in a CUDA graph once they have run once.
Importing this needs Numba with its CUDA target; `unavailable` says what is missing before anything is launched.
"""

from fastac_kernels.cuda import gae, n_step, retrace, returns, vtrace
from fastac_kernels.cuda.gae import gae_at
from fastac_kernels.cuda.launch import recorded, unavailable
from fastac_kernels.cuda.n_step import n_step_returns_at
from fastac_kernels.cuda.ratio import partials_size, ppo_clip_loss_at
from fastac_kernels.cuda.ratio import plan as ppo_clip_loss_plan
from fastac_kernels.cuda.retrace import retrace_at
from fastac_kernels.cuda.returns import lambda_returns_at
from fastac_kernels.cuda.ring import gather_transitions_at
from fastac_kernels.cuda.scan import carries_size
from fastac_kernels.cuda.vtrace import vtrace_at

ESTIMATORS = {
    "gae": gae_at,
    "discounted_returns": lambda_returns_at,
    "lambda_returns": lambda_returns_at,
    "n_step_returns": n_step_returns_at,
    "vtrace": vtrace_at,
    "retrace": retrace_at,
}

# How each is launched, for who has checked and counted already: see `fastac_kernels.cuda.scan.Plan`.
PLANS = {
    "gae": gae.plan,
    "discounted_returns": returns.plan,
    "lambda_returns": returns.plan,
    "n_step_returns": n_step.plan,
    "vtrace": vtrace.plan,
    "retrace": retrace.plan,
}

__all__ = [
    "ESTIMATORS",
    "PLANS",
    "carries_size",
    "gae_at",
    "gather_transitions_at",
    "lambda_returns_at",
    "n_step_returns_at",
    "partials_size",
    "ppo_clip_loss_at",
    "ppo_clip_loss_plan",
    "recorded",
    "retrace_at",
    "unavailable",
    "vtrace_at",
]
