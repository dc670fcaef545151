"""Benchmarks against real peers and against the limit.

    pip install -e ".[bench]"                 peers included; a missing one is reported as missing
    python -m bench gae                       GAE: fastac, peers and the limit in turn -> results/gae.json
    python -m bench returns                   discounted, n-step and lambda returns   -> results/returns.json
    python -m bench ratio                     PPO's loss and gradient, against torch and JAX -> results/ratio.json
    python -m bench overhead                  one small call, import, first calls     -> results/overhead.json
    python -m bench training                  PPO steps per CPU-second against SB3    -> results/training.json
    python -m bench learning --library fastac --setting cleanrl --seeds 0-9           -> results/learning/
    python -m bench conformance               episode boundaries that peers get right  -> results/conformance.json
    python -m bench doors --cleanrl PATH      what each door changes in a training step -> results/doors.json
    python -m bench report                    README's tables and figure from the results; --check compares only
    pytest bench                              the same estimators under pytest-benchmark
    pytest bench --smallest                   every benchmark once, smallest size, no peers: what CI runs

`contenders.py` is the one place that defines who takes part and how each is called, `limits.py` what the limit is.
"""
