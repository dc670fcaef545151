"""What only n-step returns, V-trace or Retrace can get wrong."""

from fastac.conformance.scenario import Scenario

STEPS = (
    Scenario(
        name="n beyond the window",
        sentence="The window is shorter than n: the sum stops at its end and bootstraps there, once, "
        "discounted by the steps taken.",
        rewards="1 2 3",
        values="2 4 8",
        next_values="6",
        n=10,
        expected={
            "n_step_returns": "7/2 5 6",
        },
    ),
    Scenario(
        name="n = 1",
        sentence="One reward, then the value: the one-step target.",
        rewards="1 2 3 4",
        values="2 4 8 4",
        next_values="6",
        n=1,
        expected={
            "n_step_returns": "3 6 5 7",
        },
    ),
    Scenario(
        name="an end within n steps",
        pitfalls="B4",
        sentence="A time limit after k < n steps: the bootstrap is discounted by gamma^k, not by gamma^n.",
        rewards="0 0 0 0 0 0",
        values="0 0 0 0 0 0",
        next_values="0 0 64 0 0 64",
        truncated="..x...",
        n=4,
        expected={
            "n_step_returns": "8 16 32 8 16 32",
        },
    ),
    Scenario(
        name="n steps do not cross an end",
        pitfalls="B3",
        sentence="n steps end where the episode does: rewards of the next episode do not count.",
        rewards="1 0 0 32 32 32",
        values="0 0 0 0 0 0",
        next_values="0",
        terminated="..x...",
        n=4,
        expected={
            "n_step_returns": "1 0 0 56 48 32",
        },
    ),
    Scenario(
        name="the advantage at a time limit",
        pitfalls="R5",
        sentence="V-trace's advantage at a truncated row uses its own next value; the next row's target is the "
        "next episode's.",
        rewards="1 1 32 32",
        values="0 0 0 0",
        next_values="0 4 0 0",
        truncated=".x..",
        ratios="1 1 1 1",
        expected={
            "vtrace": ("5/2 3 48 32", "5/2 3 48 32"),
        },
    ),
    Scenario(
        name="the advantage inside an episode",
        sentence="V-trace's advantage uses the next row's target, not its value.",
        rewards="1 1 32",
        values="2 4 8",
        next_values="6",
        ratios="1 1 1",
        expected={
            "vtrace": ("41/4 37/2 35", "33/4 29/2 27"),
        },
    ),
    Scenario(
        name="ratios above the thresholds",
        sentence="Ratios are cut at their thresholds, and only there: large ones do not raise the targets.",
        rewards="1 2 3 4",
        values="2 4 8 4",
        next_values="6",
        ratios="4 8 2 4",
        expected={
            "vtrace": ("29/8 21/4 13/2 7", "13/8 5/4 -3/2 3"),
            "retrace": "29/8 21/4 13/2 7",
        },
    ),
    Scenario(
        name="ratios below the thresholds",
        sentence="Ratios below 1 shrink the correction and cut the trace: left out, the targets are on-policy ones.",
        rewards="1 2 3 4",
        values="2 4 8 4",
        next_values="6",
        ratios="1/2 1/4 1/2 1/8",
        expected={
            "vtrace": ("2643/1024 1107/256 211/32 35/8", "595/1024 83/256 -45/32 3/8"),
            "retrace": "1619/512 339/64 83/16 7",
        },
    ),
    Scenario(
        name="a threshold for rho",
        sentence="rho_clip bounds the correction's ratio alone: used for the trace, it lengthens the trace.",
        rewards="1 2 3 4",
        values="2 4 8 4",
        next_values="6",
        ratios="4 8 2 4",
        rho_clip=2,
        pg_rho_clip=2,
        expected={
            "vtrace": ("21/4 13/2 5 10", "9/2 1 0 6"),
        },
    ),
    Scenario(
        name="a threshold for the trace",
        sentence="c_clip bounds the trace's ratio alone: taken from rho_clip, it has no effect.",
        rewards="1 2 3 4",
        values="2 4 8 4",
        next_values="6",
        ratios="4 8 2 4",
        c_clip=2,
        expected={
            "vtrace": ("5 6 8 7", "2 2 -3/2 3"),
        },
    ),
    Scenario(
        name="a threshold for the policy gradient",
        sentence="pg_rho_clip bounds the advantage's ratio alone: taken from rho_clip, it has no effect.",
        rewards="1 2 3 4",
        values="2 4 8 4",
        next_values="6",
        ratios="4 8 2 4",
        pg_rho_clip=4,
        expected={
            "vtrace": ("29/8 21/4 13/2 7", "13/2 5 -3 12"),
        },
    ),
    Scenario(
        name="a trace that decays",
        sentence="trace_lambda between 0 and 1 weighs the trace and the advantage's bootstrap: left out of "
        "one, they disagree.",
        rewards="1 2 3 4",
        values="2 4 8 4",
        next_values="6",
        trace_lambda="1/2",
        expected={
            "vtrace": ("407/128 151/32 23/4 7", "151/128 23/32 -9/4 3"),
            "retrace": "407/128 87/16 23/4 7",
        },
    ),
    Scenario(
        name="the ratio of the step that follows",
        sentence="Retrace weighs what row t + 1 adds by row t + 1's own ratio: by row t's, the first action of every "
        "target is weighed as if it had been a choice.",
        rewards="1 2 3 4",
        values="2 4 8 4",
        next_values="4 8 4 6",
        ratios="1/4 1 1/2 1",
        expected={
            "retrace": "61/16 45/8 13/2 7",
        },
    ),
    Scenario(
        name="the expectation of the next value",
        sentence="Retrace bootstraps from the expectation of Q over the policy's actions, and takes away Q of the "
        "action that was taken: one for both cancels them.",
        rewards="1 2 3 4",
        values="2 4 8 4",
        next_values="16 2 12 6",
        ratios="1 1/2 1 1/4",
        expected={
            "retrace": "571/64 59/16 75/8 7",
        },
    ),
    Scenario(
        name="the trace at an end",
        pitfalls="R2",
        sentence="Retrace's trace stops where the episode does: nothing of the next episode's first row, nor its "
        "ratio, reaches the row before it.",
        rewards="1 2 32 4",
        values="2 4 8 4",
        next_values="4 16 4 6",
        truncated=".x..",
        ratios="1 1 1 1",
        expected={
            "retrace": "6 10 71/2 7",
        },
    ),
)
