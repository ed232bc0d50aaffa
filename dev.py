"""Set up and run, on a fresh machine with Python 3.11 or later and git. Standard library only.

python3 dev.py demo [options]     train vanilla and TGO on the data in the package, attack both, write a page
python3 dev.py test [options]     lint, types, layers, tests side by side (options go to pytest)
"""

import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.abspath(__file__))
VENV = os.path.join(ROOT, ".venv")
BIN = os.path.join(VENV, "Scripts" if os.name == "nt" else "bin")
CONSTRAINTS = os.path.join(ROOT, "constraints.txt")


def fail(message):
    sys.exit("dev.py: " + message)


def call(*command, **rest):
    code = subprocess.call(command, cwd=rest.get("cwd", ROOT))
    if code:
        sys.exit(code)


def python():
    return os.path.join(BIN, "python")


def wanted(what):
    parts = [what]
    for name in ("constraints.txt", "pyproject.toml"):
        with open(os.path.join(ROOT, name)) as file:
            parts.append(file.read())
    return "\n".join(parts)


def setup(extra):
    """A virtual environment with the package (and its development tools).

    Made once a change of pyproject or constraints.
    """
    if sys.version_info < (3, 11):
        fail("Python 3.11 or later is needed, this is %d.%d" % sys.version_info[:2])
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        fail("the venv module is missing; on Debian and Ubuntu: apt install python3-venv")
    mark = os.path.join(VENV, "ready" + extra.strip("[]"))
    if os.path.exists(mark):
        with open(mark) as file:
            if file.read() == wanted(extra):
                return
    if not os.path.exists(python()):
        print("dev.py: making .venv", flush=True)
        call(sys.executable, "-m", "venv", VENV)
    print("dev.py: installing spikeguard%s (torch is a few hundred MB the first time)" % extra, flush=True)
    quiet = ["-m", "pip", "--disable-pip-version-check", "install", "--quiet", "-c", CONSTRAINTS]
    call(python(), *quiet, "torch", "numpy")
    call(python(), *quiet, "-e", "." + extra)
    # test oracles and peers of the bench, whose own dependencies would break the rest (a CUDA torchvision, an
    # old requests)
    if extra:
        call(python(), *quiet, "--no-deps", "torchattacks==3.5.1", "spikingjelly==2.0.0", "snntorch==1.0.0")
        # whose neurons have no gradient in eval mode: a test shows that the audit is not fooled
        old = "spikingjelly==0.0.0.0.14"
        call(
            python(),
            *quiet,
            "--no-deps",
            "--upgrade",
            "--target",
            os.path.join(VENV, old.replace("==", "-")),
            old,
        )
    with open(mark, "w") as file:
        file.write(wanted(extra))


def test(options):
    tool = lambda name: os.path.join(BIN, name)  # noqa: E731
    call(tool("ruff"), "check", ".")
    call(tool("ruff"), "format", "--check", ".")
    call(tool("mypy"))
    call(tool("lint-imports"))
    beside = ["-n", "auto", "--maxprocesses", "8", "--dist", "worksteal"]
    os.environ.setdefault(
        "OMP_WAIT_POLICY", "passive"
    )  # threads that spin while they wait would take the cores from the tests beside
    call(python(), "-m", "pytest", *beside, *options)


def main():
    if len(sys.argv) < 2 or sys.argv[1] not in ("demo", "test"):
        print(__doc__.strip())
        sys.exit(0 if len(sys.argv) > 1 and sys.argv[1] in ("-h", "--help") else 2)
    verb, options = sys.argv[1], sys.argv[2:]
    setup("[dev]" if verb == "test" else "")
    if verb == "demo":
        call(os.path.join(BIN, "spikeguard"), "demo", *options, cwd=os.getcwd())
    else:
        test(options)


if __name__ == "__main__":
    main()
