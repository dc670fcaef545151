"""Jobs here are Python processes without torch: what is tested is who is started, stopped and waited for."""

import io
import os
import signal
import sys
import threading
import time

import pytest
from rich.console import Console

from fastac.processes import Job, Picture, last_progress, log_of, run_jobs

WAITS = """
import pathlib, signal, sys, time
signal.signal(signal.SIGINT, lambda *_: (pathlib.Path(sys.argv[1] + ".saved").touch(), sys.exit(130)))
pathlib.Path(sys.argv[1] + ".started").touch()
time.sleep(60)
"""


def make(tmp_path, name, script, *arguments):
    return Job(name, [sys.executable, "-S", "-c", script, *arguments], tmp_path / name, 100)


def test_all_run_and_the_failed_are_named_with_their_last_words(tmp_path, capsys):
    jobs = [make(tmp_path, str(i), "print('fine')") for i in range(3)]
    jobs.append(make(tmp_path, "bad", "print('first'); raise SystemExit('no such thing')"))
    failed, interrupted = run_jobs(jobs, 2, already=1)
    assert not interrupted
    assert failed == [("bad", f"no such thing (exit code 1; {log_of(jobs[-1])})")]
    assert log_of(jobs[0]).read_text() == "fine\n"
    errors = capsys.readouterr().err
    assert errors.startswith("1 of 5 runs are finished already\n")
    assert "4 of 5: " in errors
    assert "bad failed after 0 steps" in errors


def test_so_many_run_at_a_time_each_on_one_thread(tmp_path):
    script = (
        "import os, pathlib, sys, time; here = pathlib.Path(sys.argv[1]); assert os.environ['OMP_NUM_THREADS'] == '1'\n"
        "mine = here / f'{os.getpid()}.now'; mine.touch(); time.sleep(0.3)\n"
        "print(len(list(here.glob('*.now')))); mine.unlink()"
    )
    jobs = [make(tmp_path, str(i), script, str(tmp_path)) for i in range(4)]
    assert run_jobs(jobs, 2) == ([], False)
    assert max(int(log_of(job).read_text()) for job in jobs) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_reaches_every_process_and_all_are_waited_for(number, tmp_path, capsys):
    jobs = [make(tmp_path, str(i), WAITS, str(tmp_path / str(i))) for i in range(3)]

    def interrupt():
        until = time.monotonic() + 20
        while len(list(tmp_path.glob("*.started"))) < 2 and time.monotonic() < until:
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    # Under nohup a hangup is ignored, here too.
    inherited = signal.signal(number, signal.default_int_handler)
    try:
        thread = threading.Thread(target=interrupt)
        thread.start()
        failed, interrupted = run_jobs(jobs, 2)
        thread.join()
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, inherited)
    assert interrupted
    assert failed == []
    assert sorted(path.name for path in tmp_path.glob("*.saved")) == ["0.saved", "1.saved"]
    assert not (tmp_path / "2.started").exists(), "nothing is started any more"
    assert "1 stopped after" in capsys.readouterr().err


def test_a_line_a_minute_where_there_is_no_terminal(tmp_path, monkeypatch):
    now = 0.0
    monkeypatch.setattr("fastac.processes.time.monotonic", lambda: now)
    job = make(tmp_path, "ppo seed 0", "")
    job.run_dir.mkdir()
    log = job.run_dir / "progress.csv"
    file = io.StringIO()
    with Picture(3, 1, Console(file=file, width=200)) as picture:
        picture.started(job)
        for second in range(0, 200, 5):
            now = float(second)
            log.write_text(f"iteration,global_step,charts/episodic_return\n1,{second},2.5\n")
            picture.moved(job)
    assert file.getvalue().splitlines() == [
        "1 of 3 runs are finished already",
        *(f"1 of 3: ppo seed 0 at step {step} of 100, return 2.5" for step in (60, 120, 180)),
    ]


def test_progress_is_the_last_whole_row(tmp_path):
    assert last_progress(tmp_path)[0] == 0
    path = tmp_path / "progress.csv"
    path.write_text("iteration,global_step,charts/episodic_return\n")
    assert last_progress(tmp_path)[0] == 0
    path.write_text("iteration,global_step,charts/episodic_return\n" + "".join(f"{i},{i}00,2.5\n" for i in range(9999)))
    with path.open("a") as file:
        file.write("10000,1")
    assert last_progress(tmp_path) == (999800, 2.5)


def test_a_terminal_sees_a_bar_for_each(tmp_path):
    console = Console(force_terminal=True, width=120, file=(tmp_path / "screen").open("w"))
    job = make(tmp_path, "ppo seed 3", "")
    job.run_dir.mkdir()
    (job.run_dir / "progress.csv").write_text("iteration,global_step,charts/episodic_return\n1,60,2.5\n")
    with Picture(2, 0, console) as picture:
        picture.started(job)
        picture.moved(job)
        picture._live.refresh()
        picture.ended(job, "finished")
    console.file.close()
    screen = (tmp_path / "screen").read_text()
    assert "60/100" in screen
    assert "return 2.5" in screen
    assert "1 of 2: ppo seed 3 finished after 60 steps" in screen
