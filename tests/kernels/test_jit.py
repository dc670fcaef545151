"""How kernels are compiled, cached and called: rows N1 to N5 and N7 of the pitfalls."""

import ast
import os
import shutil
import sys
from pathlib import Path

import pytest
from fresh import DROP_CAPABILITIES, ROOT, SOURCES, run_python

KERNELS = ROOT / "kernels" / "fastac_kernels"
FILES = sorted(
    path
    for path in KERNELS.glob("*.py")
    if path.name not in ("__init__.py", "_jit.py", "memory.py", "objects.py", "pointers.py")
)

# One call of each estimator against the references; prints what the caller appends.
CHECK = f"""
import sys
sys.path.insert(0, {str(ROOT / "tests")!r})
import numpy as np
import fastac, naive
rng = np.random.default_rng(0)
r, v, q = rng.normal(size=(3, 37, 19)).astype(np.float32)
end = rng.random((37, 19)) < 0.1
def check():
    for i, out in [(0, fastac.gae(r, v, q[-1], end, gamma=0.9, gae_lambda=0.8))]:
        wanted = naive.gae(r[:, 3], v[:, 3], q[-1, 3], end[:, 3], gamma=0.9, gae_lambda=0.8)
        assert np.allclose(out.advantages[:, 3], wanted[0], atol=1e-5), "gae"
    got = fastac.n_step_returns(r, v, q, end, end[::-1], n=3, gamma=0.9)[:, 3]
    assert np.allclose(got, naive.n_step_returns(r[:, 3], v[:, 3], q[:, 3], end[:, 3], end[::-1, 3], n=3, gamma=0.9),
                       atol=1e-5), "n_step_returns"
    got = fastac.lambda_returns(r, None, q, end, gamma=0.9, td_lambda=0.8)[:, 3]
    assert np.allclose(got, naive.lambda_returns(r[:, 3], None, q[:, 3], end[:, 3], gamma=0.9, td_lambda=0.8),
                       atol=1e-5), "lambda_returns"
    got = fastac.discounted_returns(r, 1.0, end, gamma=0.9)[:, 3]
    assert np.allclose(got, naive.discounted_returns(r[:, 3], 1.0, end[:, 3], gamma=0.9), atol=1e-5), "discounted"
"""
# Every compiled function of the kernels package.
DISPATCHERS = """
import importlib, pkgutil
import fastac_kernels
from numba.core.dispatcher import Dispatcher
dispatchers = {}
for info in pkgutil.iter_modules(fastac_kernels.__path__):
    if info.ispkg:
        continue
    module = importlib.import_module("fastac_kernels." + info.name)
    for name, thing in vars(module).items():
        if isinstance(thing, Dispatcher):
            dispatchers[thing.py_func.__module__ + "." + name] = thing
assert dispatchers
"""


def no_cache(**more: str | None) -> dict[str, str | None]:
    """An environment in which only the folders named in `more` are known."""
    return {"NUMBA_CACHE_DIR": None, "FASTAC_CACHE_DIR": None, "FASTAC_CACHE": None, "XDG_CACHE_HOME": None, **more}


class TestNoWritableFolder:
    """Row N1: import and call where nothing can be written."""

    def test_a_cache_folder_that_cannot_exist(self, tmp_path: Path) -> None:
        """A path below a regular file: not even root can make it."""
        blocker = tmp_path / "file"
        blocker.write_text("in the way")
        path = str(blocker / "cache")
        for variables in ({"NUMBA_CACHE_DIR": path}, {"FASTAC_CACHE_DIR": path}, {"HOME": path}):
            code = "import fastac\nfrom fastac_kernels import _jit\nassert _jit.CACHE_FOLDER is None\n"
            code += "assert _jit.kernel(lambda x: x + 1)(2) == 3\n"
            run_python(code, env=no_cache(**variables))

    @pytest.mark.skipif(sys.platform == "win32", reason="permission bits")
    def test_read_only_home_and_package(self, tmp_path: Path) -> None:
        """The permission bits an ordinary user meets; root gives up its capabilities first.

        tests/test_packaging.py calls an estimator so; here it is the import and a kernel of one line.
        """
        package, home = tmp_path / "site", tmp_path / "home"
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "fastac", package / "fastac", ignore=ignore)
        shutil.copytree(KERNELS, package / "fastac_kernels", ignore=ignore)
        home.mkdir()
        folders = [home, *(path for path in [package, *package.rglob("*")] if path.is_dir())]
        for folder in folders:
            folder.chmod(0o555)
        try:
            code = DROP_CAPABILITIES + "import fastac\nfrom fastac_kernels import _jit\n"
            code += f"assert _jit.__file__.startswith({str(package)!r}) and _jit.CACHE_FOLDER is None\n"
            run_python(
                code + "assert _jit.kernel(lambda x: x + 1)(2) == 3\n",
                path=str(package),
                cwd=home,
                env=no_cache(HOME=str(home), TMPDIR=str(home)),
            )
        finally:
            for folder in folders:
                folder.chmod(0o755)
        assert not list(home.iterdir())

    def test_caching_switched_off(self, tmp_path: Path) -> None:
        env = no_cache(FASTAC_CACHE="0", HOME=str(tmp_path), NUMBA_CACHE_DIR=str(tmp_path))
        run_python("from fastac_kernels import _jit; assert _jit.CACHE_FOLDER is None", env=env)
        assert not list(tmp_path.iterdir())

    def test_without_compilation(self) -> None:
        run_python(CHECK + "check()", env={"NUMBA_DISABLE_JIT": "1"})


class TestSources:
    """What a reader of the kernels' sources can rely on."""

    @pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
    def test_rows_are_copied_by_element_loops(self, path: Path) -> None:
        """Row N5: no copy by slice assignment; a third of an element loop's speed."""
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Assign) or isinstance(node.value, ast.Constant):
                continue
            for target in node.targets:
                slices = isinstance(target, ast.Subscript) and any(
                    isinstance(x, ast.Slice) for x in ast.walk(target.slice)
                )
                assert not slices, ast.unparse(node)

    @pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
    def test_no_global_random_state_and_no_parallel_loop(self, path: Path) -> None:
        """Rows N3 and B13."""
        text = path.read_text()
        assert "prange" not in text
        assert "parallel=True" not in text
        assert "np.random" not in text

    @pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
    def test_the_equation_is_in_the_docstring(self, path: Path) -> None:
        docstring = ast.get_docstring(ast.parse(path.read_text()))
        assert docstring
        assert "=" in docstring


def test_kernels_are_serial_release_the_lock_and_keep_nan() -> None:
    """Row N3, and select-never-multiply: fastmath without nnan and ninf."""
    code = DISPATCHERS + (
        "for name, d in dispatchers.items():\n"
        "    options = d.targetoptions\n"
        "    assert options.get('nogil') is True, name\n"
        "    assert not options.get('parallel'), name\n"
        "    fast = options.get('fastmath')\n"
        "    assert fast is not True and not {'fast', 'nnan', 'ninf', 'afn'} & set(fast or ()), (name, fast)\n"
    )
    run_python(code)


def test_scalars_have_the_arrays_dtype() -> None:
    """Row N4: a float64 scalar would turn a float32 kernel's arithmetic into float64."""
    calls = """
import torch
args = (r, v, q)
for kind in (lambda a: a, torch.from_numpy):
    for batch_first in (False, True):
        for width in (1, 5, 19):
            x = [kind(np.ascontiguousarray(a[:, :width])) for a in args]
            e = kind(np.ascontiguousarray(end[:, :width]))
            for flags in ((), (e,), (e, e), (e, e, e)):
                fastac.gae(*x, *flags, gamma=0.9, gae_lambda=np.float64(0.8), batch_first=batch_first)
                fastac.n_step_returns(*x, *flags, n=3, gamma=0.9, batch_first=batch_first)
                fastac.lambda_returns(*x, *flags, gamma=0.9, td_lambda=0.5, batch_first=batch_first)
                fastac.discounted_returns(x[0], x[2], *flags, gamma=0.9, batch_first=batch_first)
                fastac.vtrace(x[0], *x, *flags, gamma=0.9, batch_first=batch_first)
                fastac.retrace(x[0], *x, *flags, gamma=0.9, trace_lambda=0.5, batch_first=batch_first)
            fastac.gae(x[0], x[1], 0.5, gamma=0.9, gae_lambda=0.8)
seen = 0
for name, d in dispatchers.items():
    for signature in d.signatures:
        text = " ".join(str(t) for t in signature)
        if "float32" in text:
            seen += 1
            # scalars arrive as Python floats and are rounded once; nothing float32 is ever widened
            functions = d.inspect_llvm(signature).split("\\ndefine ")
            # (a scalar result handed to Python becomes a Python float: that is the wrapper's business)
            inner = [f for f in functions if "cpython" not in f.splitlines()[0]]
            assert inner and not any("fpext" in f for f in inner), (name, text)
assert seen
"""
    run_python(CHECK + DISPATCHERS + calls)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork")
def test_fork_after_a_call() -> None:
    """Row N3: the child of a process that ran kernels runs them too."""
    code = """
import os
check()
child = os.fork()
if child == 0:
    check()
    os._exit(7)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 7, status
check()
"""
    run_python("import warnings; warnings.simplefilter('ignore', DeprecationWarning)\n" + CHECK + code)


@pytest.mark.parametrize("first_call", [True, False])
def test_two_threads_at_once(first_call: bool) -> None:
    """Row N3: the same kernels in several threads, compiled or not."""
    code = "" if first_call else "check()\n"
    code += """
import threading
failures = []
barrier = threading.Barrier(4)
def work():
    try:
        barrier.wait()
        for _ in range(50):
            check()
    except BaseException as error:
        failures.append(error)
threads = [threading.Thread(target=work) for _ in range(4)]
[t.start() for t in threads]
[t.join() for t in threads]
assert not failures, failures
"""
    run_python(CHECK + code)


class TestCache:
    """Row N7: what is not in Numba's cache key is in the folder's name."""

    KEY = "from fastac_kernels import _jit; print(_jit.options_key(), _jit.CACHE_FOLDER)"

    def test_the_folder_is_named_by_the_options(self, tmp_path: Path) -> None:
        env = no_cache(FASTAC_CACHE_DIR=str(tmp_path))
        key, folder = run_python(self.KEY, env=env).split()
        assert Path(folder).parent == tmp_path
        assert Path(folder).name.endswith(key)
        plain_key, plain_folder = run_python(self.KEY, env={**env, "FASTAC_NOALIAS": "0"}).split()
        assert plain_key != key
        assert plain_folder != folder

    def test_the_folder_is_named_by_the_sources(self, tmp_path: Path) -> None:
        copy = tmp_path / "kernels" / "fastac_kernels"
        shutil.copytree(KERNELS, copy, ignore=shutil.ignore_patterns("__pycache__"))
        env = no_cache(FASTAC_CACHE_DIR=str(tmp_path))
        keys = [run_python(self.KEY, path=str(copy.parent), env=env).split()[0]]
        for path in sorted(copy.glob("*.py")):
            path.write_text(path.read_text() + "\n# edited\n")
            keys.append(run_python(self.KEY, path=str(copy.parent), env=env).split()[0])
        assert len(set(keys)) == len(keys)

    def test_numba_cache_dir_is_honoured(self, tmp_path: Path) -> None:
        folder = run_python(self.KEY, env=no_cache(NUMBA_CACHE_DIR=str(tmp_path))).split()[1]
        assert Path(folder).parent == tmp_path

    def test_a_caller_never_keeps_an_old_helper_of_another_file(self, tmp_path: Path) -> None:
        """Row N2: Numba watches the caller's file alone, the folder's name all of them."""
        package = tmp_path / "kernels" / "fastac_kernels"
        package.mkdir(parents=True)
        shutil.copy(KERNELS / "_jit.py", package)
        (package / "__init__.py").touch()
        head = "from fastac_kernels._jit import kernel\n"
        (package / "caller.py").write_text(
            f"{head}from fastac_kernels.helper import helper\n@kernel\ndef caller(x):\n    return helper(x)\n"
        )
        said = []
        for summand in (1, 1, 2):
            (package / "helper.py").write_text(f"{head}@kernel\ndef helper(x):\n    return x + {summand}\n")
            code = "from fastac_kernels.caller import caller as c; print(c(0), sum(c.stats.cache_hits.values()))"
            env = no_cache(FASTAC_CACHE_DIR=str(tmp_path / "cache"))
            said.append(run_python(code, path=str(package.parent), env=env).split())
        assert said == [["1", "0"], ["1", "1"], ["2", "0"]]

    def test_the_fallback_without_noalias_in_a_cache_of_its_own(self, tmp_path: Path) -> None:
        """Everything compiled anew without the flag, and right."""
        report = DISPATCHERS + (
            "from fastac_kernels import _jit\n"
            "assert not _jit.NOALIAS\n"
            "compiled = [d for d in dispatchers.values() if d.signatures]\n"
            "assert compiled and not any(sum(d.stats.cache_hits.values()) for d in compiled)\n"
        )
        run_python(CHECK + "check()\n" + report, env=no_cache(FASTAC_CACHE_DIR=str(tmp_path), FASTAC_NOALIAS="0"))

    @pytest.mark.parametrize("wanted", ["0", "1"])
    def test_the_flag_reaches_the_machine_code(self, tmp_path: Path, wanted: str) -> None:
        """`noalias` on the arguments of our kernels, and of nobody else's in the process."""
        code = (
            "import numba, numpy as np\n"
            "from fastac_kernels import _jit\n"
            "def copy(a, b):\n"
            "    for i in range(a.size): b[i] = a[i]\n"
            "ours = _jit.kernel(copy)\n"
            "copied = numba.njit(copy)\n"
            "a, b = np.ones(3), np.zeros(3)\n"
            "ours(a, b), copied(a, b)\n"
            "def flagged(d):\n"
            "    (ir,) = d.inspect_llvm().values()\n"
            "    return max(line.count('noalias') for line in ir.splitlines() if line.startswith('define')) > 3\n"
            "assert (b == 1).all()\n"
            "print(_jit.NOALIAS, flagged(ours), flagged(copied))\n"
        )
        said = run_python(code, env=no_cache(FASTAC_CACHE="0", FASTAC_NOALIAS=wanted)).split()
        assert said in (["False", "False", "False"], ["True", "True", "False"])
        assert wanted == "1" or said[0] == "False"

    def test_a_numba_without_the_flag(self, tmp_path: Path) -> None:
        """The day the internal flag disappears, the kernels still compile, without it."""
        code = (
            "import numba.core.compiler as c\n"
            "class Without(c.Flags):\n"
            "    def __getattribute__(self, name):\n"
            "        if name == 'noalias': raise AttributeError(name)\n"
            "        return super().__getattribute__(name)\n"
            "c.Flags, saved = Without, c.Flags\n"
            "from fastac_kernels import _jit\n"
            "assert not _jit.NOALIAS\n"
            "c.Flags = saved\n"
        )
        code += "assert _jit.kernel(lambda x: x + 1)(2) == 3\n"
        run_python(code, path=SOURCES, env=no_cache(FASTAC_CACHE_DIR=str(tmp_path)))
