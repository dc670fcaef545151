"""`pytest bench` (timed, with peers) and `pytest bench --smallest` (each once, smallest size, no peers: for CI)."""

from bench import one_core  # noqa: F401  (first: it sets thread counts that libraries read when imported)

# isort: split
import pytest

from bench import contenders


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--smallest", action="store_true", help="every benchmark once at its smallest size, no peers")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--smallest"):
        config.option.benchmark_disable = True


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.getoption("--smallest"):
        terminalreporter.write_line("smallest size, without peers: nothing was timed")
        return
    for name, reason in contenders.missing().items():
        terminalreporter.write_line(f"missing peer: {name} ({reason})", yellow=True)
