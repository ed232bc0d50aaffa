"""Set up and run, on a fresh machine with Python 3.11 or later and git. Standard library only.

python3 dev.py demo [options]     train vanilla and TGO on the data in the package, attack both, write a page
python3 dev.py test [options]     lint, types, layers, documents, tests (options go to pytest)
"""

import os
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.abspath(__file__))
VENV = os.path.join(ROOT, ".venv")
BIN = os.path.join(VENV, "Scripts" if os.name == "nt" else "bin")
CONSTRAINTS = os.path.join(ROOT, "constraints.txt")
PIP_INSTALL = ["-m", "pip", "--disable-pip-version-check", "install", "--quiet", "-c", CONSTRAINTS]

# Oracles of the tests, peers of the bench, and frameworks whose neurons adapters read. Their own dependencies
# would break the rest (a torchvision for CUDA, an old requests), so they come without.
PEERS = ["torchattacks==3.5.1", "spikingjelly==2.0.0", "snntorch==1.0.0", "norse==1.1.0", "sinabs==3.1.3"]
# Its neurons have no gradient in eval mode: a test shows that this does not fool the audit.
OLD_PEER = "spikingjelly==0.0.0.0.14"


def fail(message):
    sys.exit("dev.py: " + message)


def call(*command, **options):
    """Run a command; end with its exit code if it fails."""
    code = subprocess.call(command, cwd=options.get("cwd", ROOT), env=options.get("env"))
    if code:
        sys.exit(code)


def tool(name):
    return os.path.join(BIN, name)


def installed_from(extra):
    """Everything that decides what has to be installed, as one text."""
    parts = [extra]
    for name in ("constraints.txt", "pyproject.toml"):
        with open(os.path.join(ROOT, name)) as file:
            parts.append(file.read())
    return "\n".join(parts)


def set_up(extra):
    """Make a virtual environment with the package and, for ``[dev]``, its development tools.

    It is made again only after a change of pyproject.toml or constraints.txt.
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
            if file.read() == installed_from(extra):
                return
    if not os.path.exists(tool("python")):
        print("dev.py: making .venv", flush=True)
        call(sys.executable, "-m", "venv", VENV)
    print("dev.py: installing spikeguard%s (torch is a few hundred MB the first time)" % extra, flush=True)
    call(tool("python"), *PIP_INSTALL, "torch", "numpy")
    call(tool("python"), *PIP_INSTALL, "-e", "." + extra)
    if extra:
        beside = os.path.join(VENV, OLD_PEER.replace("==", "-"))
        call(tool("python"), *PIP_INSTALL, "--no-deps", *PEERS)
        call(tool("python"), *PIP_INSTALL, "--no-deps", "--upgrade", "--target", beside, OLD_PEER)
    with open(mark, "w") as file:
        file.write(installed_from(extra))


def build_site():
    """Build the documentation into a temporary folder; a broken link or reference ends the test."""
    quiet = dict(os.environ, NO_MKDOCS_2_WARNING="1")
    with tempfile.TemporaryDirectory() as folder:
        call(tool("mkdocs"), "build", "--quiet", "--strict", "--site-dir", folder, env=quiet)


def test(options):
    call(tool("ruff"), "check", ".")
    call(tool("ruff"), "format", "--check", ".")
    with subprocess.Popen([tool("mypy")], cwd=ROOT) as types:  # on one core, while the other does the rest
        call(tool("lint-imports"))
        build_site()
    if types.returncode:
        sys.exit(types.returncode)
    # threads that spin while they wait would take the cores from the other test processes
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    parallel = ["-n", "auto", "--maxprocesses", "8", "--dist", "worksteal"]
    call(tool("python"), "-m", "pytest", *parallel, *options)


def main():
    if len(sys.argv) < 2 or sys.argv[1] not in ("demo", "test"):
        print(__doc__.strip())
        sys.exit(0 if len(sys.argv) > 1 and sys.argv[1] in ("-h", "--help") else 2)
    verb, options = sys.argv[1], sys.argv[2:]
    set_up("[dev]" if verb == "test" else "")
    if verb == "demo":
        call(tool("spikeguard"), "demo", *options, cwd=os.getcwd())
    else:
        test(options)


if __name__ == "__main__":
    main()
