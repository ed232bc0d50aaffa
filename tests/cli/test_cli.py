"""The command line as a user meets it: exit codes, one-line errors, what is written, and the demo."""

import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from conftest import little_recipe
from narrow import present

from spikeguard.attacks import ATTACKS
from spikeguard.auditing.flags import KINDS
from spikeguard.cli import common
from spikeguard.cli.main import VERBS, main
from spikeguard.cli.progress import progress
from spikeguard.kernels import cpp_build
from spikeguard.records.files import read_json
from spikeguard.training.loop import train
from spikeguard.training.settings import describe

NONE_OF = (
    "import sys; sys.argv = {argv!r}\nfrom spikeguard.cli.main import main\nmain()\nprint([m for m in "
    "('torch', 'numpy') if m in sys.modules])"
)


@pytest.mark.parametrize("argv", [["spikeguard", "--help"], ["spikeguard", "--version"]])
def test_help_and_version_import_neither_torch_nor_numpy(argv: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", NONE_OF.format(argv=argv)], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_importing_spikeguard_does_not_import_torch() -> None:
    code = (
        "import sys, spikeguard as sg; assert 'torch' not in sys.modules; assert 'pgd' in dir(sg); "
        "sg.Linf; print('torch' in sys.modules)"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "True"
    )


@pytest.mark.slow
def test_help_takes_less_than_three_tenths_of_a_second() -> None:
    command, times = [sys.executable, "-m", "spikeguard", "--help"], []
    for _ in range(7):
        begun = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True)
        times.append(time.perf_counter() - begun)
    assert sorted(times)[3] < 0.3


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    train(little_recipe(train_images=500, epochs=1), folder)
    return folder


@pytest.fixture
def run_folder(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(trained, tmp_path_factory.mktemp("copy") / "tiny"))


BAD = [
    (["fly"], "unknown verb 'fly' (known: demo, train, attack, audit, diagnose, verify, compare"),
    (["trian"], "unknown verb 'trian' (did you mean 'train'? known: demo"),
    (["train"], "name a recipe"),
    (["audit"], "name what to audit"),
    (["audit", "nowhere"], "no network 'nowhere'"),
    (["audit", "RUN", "--eps", "much"], "must be a number of at least 0"),
    (["audit", "RUN", "--eps", "8"], "'8' must lie in [0, 1], such as 8/255"),
    (["audit", "RUN", "--effort", "standart"], "did you mean 'standard'?"),
    (["audit", "RUN", "--efort", "quick"], "did you mean --effort?"),
    (["audit", "RUN", "other"], "one target at a time"),
    (["audit", "RUN", "--threads", "5000000"], "must be at most"),
    (
        ["audit", "nets:make"],
        "name its data with --data (embedded, fashion-mnist, cifar10, cifar100, a folder",
    ),
    (["audit", "os.path:joint", "--data", "embedded"], "no function 'joint'; did you mean 'join'?"),
    (["audit", "RUN", "--data", "cifar"], "unknown data set 'cifar' (did you mean 'cifar10'?"),
    (["verify"], "the following arguments are required: record"),
    (["verify", "nothing.json"], "cannot read nothing.json"),
    (["verify", "/dev/null"], "not a regular file"),
    (["compare", "one.json"], "the following arguments are required: second"),
    (["compare", "one.json", "two.json"], "cannot read one.json"),
    (["merge", "a.json", "b.json"], "merge writes a record: name the file with --out FILE.json"),
    (["merge", "a.json", "b.json", "--out", "m.json"], "cannot read a.json"),
    (["export"], "the following arguments are required: record"),
    (["export", "a.json", "--out", "table.doc"], "has no known suffix (.csv, .tex, .md, .txt)"),
    (["export", "a.json", "--out", "RUN"], "is a folder: name a file"),
    (["export", "a.json", "--format", "latx"], "did you mean 'latex'?"),
    (["explain", "maskin"], "unknown flag 'maskin' (did you mean 'masking'?"),
    (["completion", "fich"], "did you mean 'fish'?"),
    (["completion"], "the following arguments are required: shell"),
    (["sweep", "--jobs", "0"], "sweep: "),
    (["bench", "--rounds", "none"], "must be a whole number of at least 1"),
    (["doctor", "--fast"], "unrecognized arguments: --fast"),
    (["doctor", "a\0b"], "an argument holds the character NUL"),
    (["train", "nope"], "unknown recipe 'nope' (known: vanilla, tgo"),
    (["train", "vanila"], "did you mean 'vanilla'?"),
    (["train", "x[/y]"], "unknown recipe 'x[/y]'"),
    (["train", "tgo", "--epoch", "3"], "unknown field 'epoch' (did you mean 'epochs'?"),
    (["train", "tgo", "--epochs", "x"], "epochs = 'x' must be a whole number"),
    (["train", "tgo", "--timesteps", "0"], "timesteps = 0"),
    (["train", "tgo", "--epochs"], "--epochs needs a value"),
    (["train", "--epochs", "1", "nope"], "unknown recipe 'nope'"),
    (["train", "tgo", "--options.width", "abc"], "width = 'abc' must be whole numbers"),
    (["train", "tgo", "--options.width", "0"], "width = 0 must be whole numbers"),
    (["train", "tgo", "--loss", "mse"], "must be one of mean, per_step, tet"),
    (["train", "vanilla", "--out", "FILE"], "not a folder"),
    (["train", "tgo", "stray"], "unrecognized arguments: stray"),
    (["train", "missing.toml"], "cannot read missing.toml"),
    (["train", "cifar10-small", "--data-dir", "no-folder"], "data folder no-folder does not exist"),
    (["train", "--resume", "--out", "no-run"], "no file no-run"),
    (["attack", "no-net"], "no network 'no-net'"),
    (["attack", "RUN", "--eps", "8"], "'8' must lie in [0, 1], such as 8/255"),
    (["attack", "RUN", "--attack", "cw"], "cw works under --norm l2, not under linf"),
    (["attack", "RUN", "--attack", "apdg"], "unknown attack 'apdg' (did you mean 'apgd'?"),
    (["attack", "RUN", "--norm", "linv"], "did you mean 'linf'?"),
    (["attack", "RUN", "--attack", "fgsm", "--steps", "3"], "targeted, fab and cw, not for fgsm"),
    (["attack", "RUN", "--attack", "square", "--surrogate", "atan"], "--surrogate is for fgsm, rfgsm, bim"),
    (["attack", "RUN", "--surrogate", "atn"], "unknown surrogate 'atn' (did you mean 'atan'?"),
    (["attack", "RUN", "--surrogate", "straightthrough:x"], "straightthrough has no number"),
    (["attack", "RUN", "--surrogate", "atan:x"], "'x' must be a number"),
    (["attack", "RUN", "--images", "7"], "multiple of 10"),
    (["attack", "RUN", "--images", "0"], "must be a whole number of at least 1"),
    (["attack", "RUN", "--device", "abacus"], "device 'abacus' cannot be used here"),
    (["demo", "--images", "15"], "multiple of 10"),
    (["demo", "--out", "FILE"], "is not a folder"),
    (["demo", "--out", "RUN"], "not a demo"),
]


@pytest.mark.parametrize(
    ("arguments", "message"), BAD, ids=lambda v: " ".join(v) if isinstance(v, list) else ""
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str],
    message: str,
    run_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_text("")
    before = sorted(p for p in run_folder.rglob("*"))
    assert main([str(run_folder) if a == "RUN" else a for a in arguments]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert message in told.err
    assert len(told.err.strip().splitlines()) == 1
    assert sorted(run_folder.rglob("*")) == before
    assert [p.name for p in tmp_path.iterdir() if p.name != "spikeguard-demo"] == ["FILE"]


def help_of(verb: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(verb, capsys)
    assert f"usage: spikeguard {verb}" in text
    assert "None" not in text
    assert "\u2026" not in text
    assert "0.0313" not in text
    assert "8/255" in text or verb not in ("attack", "audit", "train")
    assert "==SUPPRESS==" not in text


def test_the_help_of_train_explains_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of("train", capsys)
    for field in describe():
        flag = f"--{field.flag.replace('_', '-')} "
        assert flag in text, flag
        assert field.help, flag
        assert field.help.split(".")[0][:20] in " ".join(text.split()), field
    assert "(default: 8/255)" in " ".join(text.split())


def test_the_default_effort_is_that_of_python(capsys: pytest.CaptureFixture[str]) -> None:
    from spikeguard.auditing.audit import audit

    default = inspect.signature(audit).parameters["effort"].default
    assert f"(default: {default})" in " ".join(help_of("audit", capsys).split())


def test_the_flags_explain_themselves(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain"]) == 0
    listed = capsys.readouterr().out
    for name, kind in KINDS.items():
        assert f" {name} " in listed
        assert main(["explain", name]) == 0
        page = " ".join(capsys.readouterr().out.split())
        for part in (kind.level, kind.says, kind.why, kind.do):
            assert " ".join(part.replace("`", "").split()) in page
    assert main(["explain", "masking", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["masking"]["level"] == KINDS["masking"].level


def test_the_attacks_are_listed_with_their_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["attack", "--list"]) == 0
    listed = capsys.readouterr().out
    assert all(f" {name} " in listed for name in ATTACKS)
    assert "--queries" in listed


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_valid_script_that_knows_verbs_and_flags(
    shell: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in (*VERBS, "effort", "autoattack", "defenses.at.eps", "cifar100"):
        assert word in script, word
    (tmp_path / "script").write_text(script)
    if shutil.which(shell):
        check = subprocess.run([shell, "-n", tmp_path / "script"], capture_output=True, text=True)
        assert (check.returncode, check.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_a_verb_and_a_flag(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["completion", "bash"]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    for words, expected in (("spikeguard ver", "verify"), ("spikeguard audit --eff", "--effort")):
        line = (
            f"source {tmp_path / 'script'}; COMP_WORDS=({words}); COMP_CWORD={len(words.split()) - 1}; "
            "$(complete -p spikeguard | sed 's/.*-F \\([^ ]*\\).*/\\1/'); echo ${COMPREPLY[@]}"
        )
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
        assert expected in done.stdout.split(), done.stderr


def test_tables_never_cut_or_break_a_word() -> None:
    cells = [["attack", "family"], ["SA-PGD-40 ASSG atan", "adaptive sharpness gradient"], ["x", "y"]]
    for room in (10, 30, 45, 100):
        widths = common.column_widths(cells, room)
        assert all(
            w >= max(len(word) for row in cells for word in row[k].split()) for k, w in enumerate(widths)
        )
        assert sum(widths) + 3 * len(widths) + 1 <= room or room < 30
    assert common.column_widths(cells, 100) == [19, 27]


def test_what_a_user_names_is_printed_and_not_run(capsys: pytest.CaptureFixture[str]) -> None:
    common.table("a[/b] \x1b[31m", ["x[/y]"], [["[red]z"]])
    printed = capsys.readouterr().out
    assert "a[/b]" in printed
    assert "\\x1b[31m" in printed
    assert "[red]z" in printed
    assert "\x1b" not in printed


def test_train_writes_a_run_and_says_what_to_do_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text(
        "train_images = 300\nepochs = 1\ntimesteps = 2\noptions = {width = 3}\n[neuron]\ndecay = "
        "0.5\n[defenses.tgo]\ndelta = 0.4\n"
    )
    assert main(["train", "mine.toml", "--batch-size", "30", "--defenses.tgo.sigma", "0.05"]) == 0
    told = capsys.readouterr()
    assert "next: spikeguard audit runs/mine" in told.out
    recipe = read_json(tmp_path / "runs" / "mine" / "run.json")["recipe"]
    assert recipe["defenses"]["tgo"]["sigma"] == 0.05
    assert recipe["defenses"]["tgo"]["delta"] == 0.4
    rows = [
        json.loads(line) for line in (tmp_path / "runs" / "mine" / "metrics.jsonl").read_text().splitlines()
    ]
    assert rows[0]["measured"]["near_threshold"].keys() == {f"body.stages.{k}.fire" for k in range(3)}


@pytest.mark.parametrize("attack", ATTACKS)
def test_attack_writes_a_record_with_witnesses(
    attack: str, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, norm = tmp_path / "a.json", ATTACKS[attack].norms[-1]
    options = {"steps": "3", "restarts": "2", "surrogate": "atan:8", "queries": "20", "tries": "3"}
    parameters = {"surrogate": "gradient"}
    more = [
        text
        for name, value in options.items()
        if parameters.get(name, name) in ATTACKS[attack].parameters
        for text in (f"--{name}", value)
    ]
    budget = ["--norm", norm, "--eps", "16/255" if norm == "linf" else "3"]
    command = ["attack", str(run_folder), "--attack", attack, "--images", "20", "--out", str(out)]
    assert main([*command, *budget, *more]) == 0
    record = read_json(out)
    assert record["worst_case"]["value"] <= record["clean"]["value"]
    assert record["threat"] == {"norm": norm, "eps": 16 / 255 if norm == "linf" else 3.0}
    assert len(record["first_by"]) == len(record["index"]) == 20
    with np.load(tmp_path / record["witnesses"]["file"]) as held:
        assert len(held["rows"]) + len(held["exact_rows"]) == sum(f >= 0 for f in record["first_by"])
    printed = capsys.readouterr().out
    assert "at most this" in printed
    assert f"wrote {out}" in printed
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "a.witnesses.npz"]


def test_the_settings_of_an_attack_are_those_that_its_random_draws_depend_on(
    run_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "a.json"
    assert main(["attack", str(run_folder), "--images", "20", "--steps", "2", "--out", str(out)]) == 0
    settings = read_json(out)["settings"]
    assert list(settings) == ["loss", "surrogate", "eot", "steps", "step_size", "restarts", "start"]
    assert (settings["steps"], settings["restarts"], settings["start"]) == (2, 5, True)


def test_audit_writes_record_witnesses_and_page_and_anyone_can_verify(
    run_folder: Path, short_controls: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the whole suite: the fresh process knows no other."""
    out = tmp_path / "a"
    settings = ["--effort", "quick", "--images", "10", "--eps", "16/255"]
    assert main(["audit", str(run_folder), *settings, "--out", str(out)]) in (0, 1)
    told = capsys.readouterr().out
    record = read_json(out / "audit.json")
    witnesses = sum(f >= 0 for f in record["first_by"])
    assert record["fresh_process"] == {"held": True, "witnesses": witnesses}
    assert record["verdict"] in told
    assert "witnesses checked in a fresh process: they all hold" in told
    assert (out / "index.html").read_text().count("<svg") >= 4
    assert main(["verify", str(out), "--out", str(tmp_path / "v.json")]) == 0
    printed = capsys.readouterr().out
    assert "all hold" in printed
    assert f"wrote {tmp_path / 'v.json'}" in printed
    assert read_json(tmp_path / "v.json")["verified"][0]["ok"] is True
    (out / "audit.json").write_text(json.dumps({**record, "clean": {**record["clean"], "value": 0.99}}))
    assert main(["verify", str(out / "audit.json")]) == 1
    assert "the record says 99.00 %" in capsys.readouterr().out
    (out / "audit.json").write_text(json.dumps(record))
    assert main(["compare", str(out), str(out), "--out", str(tmp_path / "c.json")]) == 0
    assert "+0.0 points" in capsys.readouterr().out
    assert read_json(tmp_path / "c.json")["difference"] == 0.0
    header = (
        '"network","clean"'.replace('"', "") + ',"PGD-20, own gradient",worst case,95 % interval,reliable'
    )
    assert main(["export", str(out)]) == 0
    assert capsys.readouterr().out.splitlines()[0] == header
    for name, start in (("t.csv", header), ("t.tex", "\\begin{tabular}"), ("t.md", "| network |")):
        assert main(["export", str(out), "--out", str(tmp_path / name)]) == 0
        assert (tmp_path / name).read_text().startswith(start)
        assert f"wrote {tmp_path / name}" in capsys.readouterr().out
    assert main(["export", str(out), "--format", "methods"]) == 0
    assert "suite-v4" in capsys.readouterr().out
    assert main(["merge", str(out), str(out), "--out", str(tmp_path / "m.json")]) == 0
    assert read_json(tmp_path / "m.json")["worst_case"] == record["worst_case"]
    capsys.readouterr()
    for old, verb in (
        (["--verify", str(out)], "verify"),
        (["--compare", str(out), str(out)], "compare"),
        (["--table", "csv", str(out)], "export"),
        (["--table=latex", str(out)], "export"),
        (["--methods", str(out)], "export"),
        (["--merge", str(out), str(out), "--out", str(tmp_path / "n.json")], "merge"),
    ):
        assert main(["audit", *old]) == 0
        error = capsys.readouterr().err
        assert f"is now 'spikeguard {verb}'" in error


def test_a_model_of_ones_own_is_audited_and_a_fake_ends_with_exit_code_1(
    short_suite: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mynets.py").write_text(
        "import torch\n\n\ndef probable():\n    torch.manual_seed(0)\n    net = "
        "torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))\n"
        "    return lambda x: net(x).softmax(1)\n\n\ndef needs(width):\n    return width\n\n\ndef "
        "number():\n    return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    assert (
        main(
            [
                "audit",
                "mynets:probable",
                "--data",
                "embedded",
                "--effort",
                "quick",
                "--images",
                "20",
                "--out",
                "a",
            ]
        )
        == 1
    )
    told = capsys.readouterr().out
    assert "Not reliable (no-logits" in told
    assert "spikeguard explain no-logits" in told
    for target, message in (
        ("mynets:probable", "name its data with --data"),
        ("nonets:probable", "cannot import 'nonets'"),
        ("mynets:none", "has no function 'none'"),
        ("mynets:needs", "needs arguments"),
        ("mynets:number", "returned a int"),
    ):
        data = [] if "name its data" in message else ["--data", "embedded"]
        assert main(["audit", target, *data]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_leaves_an_audit_that_resume_finishes(
    run_folder: Path, short_controls: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, program = tmp_path / "a", [sys.executable, "-m", "spikeguard"]
    command = ["audit", str(run_folder), "--effort", "quick", "--images", "20", "--batch-size", "10"]
    command += ["--out", str(out), "--threads", "1"]
    with subprocess.Popen(
        [*program, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        for line in present(process.stderr):
            if "PGD-20" in line:
                process.send_signal(signal.SIGINT)
                break
        _, told = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "resume with --resume" in told
    assert not (out / "audit.json").exists()
    assert main(command) == 2
    assert "go on with --resume" in capsys.readouterr().err
    assert main([*command, "--resume"]) in (0, 1)
    assert (out / "audit.json").exists()


def test_other_settings_never_overwrite_a_record(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for steps in ("1", "2"):
        assert main(["attack", str(run_folder), "--attack", "bim", "--images", "20", "--steps", steps]) == 0
    assert len(list((run_folder / "attacks").glob("bim-*.json"))) == 2


def test_json_goes_to_stdout_alone(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(
            [
                "attack",
                str(run_folder),
                "--images",
                "20",
                "--attack",
                "fgsm",
                "--out",
                str(tmp_path / "a.json"),
                "--json",
            ]
        )
        == 0
    )
    assert json.loads(capsys.readouterr().out) == read_json(tmp_path / "a.json")


def test_doctor_says_which_path_is_used(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["neurons"]["found"].startswith(cpp_build.path())
    assert found["data embedded"]["found"] == "10000 + 2000 images"


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_leaves_a_run_that_resume_finishes(tmp_path: Path) -> None:
    command, out = [sys.executable, "-m", "spikeguard", "train", "vanilla"], tmp_path / "r"
    command += ["--train-images", "300", "--options.width", "3", "--timesteps", "2", "--batch-size", "50"]
    command += ["--epochs", "30", "--threads", "1", "--out", str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").read_text():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "go on with --resume" in told
    assert not (out / "run.json").exists()
    assert main(["train", "--resume", "--threads", "1", "--out", str(out)]) == 0
    assert len(read_json(out / "run.json")["epochs"]) == 30


@pytest.mark.slow
@pytest.mark.compiled
def test_a_small_demo_writes_page_records_and_witnesses_and_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], little_demo: None
) -> None:
    out = tmp_path / "d"
    assert main(["demo", "--out", str(out), "--images", "20", "--epochs", "1"]) == 0
    told = capsys.readouterr().out
    record = read_json(out / "demo.json")
    page = (out / "index.html").read_text()
    assert [n["role"] for n in record["networks"]] == ["vanilla", "control", "nlif", "tgo"]
    for n in record["networks"]:
        for a in n["attacks"].values():
            assert a["worst_case"]["value"] <= min(m["alone"]["value"] for m in a["members"] if "alone" in m)
            assert f"{100 * a['worst_case']['value']:.1f}" in page
            assert f"{100 * a['worst_case']['value']:.1f}" in told
            assert (out / "records" / a["witnesses"]["file"]).exists()
    assert page.count("<svg") == 4
    assert "<script" not in page
    assert 'src="http' not in page
    begun = time.perf_counter()
    assert main(["demo", "--out", str(out), "--images", "15"]) == 2
    assert main(["demo", "--out", str(out), "--images", "20", "--epochs", "1", "--resume"]) == 0
    assert time.perf_counter() - begun < 20, "a finished demo was done again"
    assert main(["demo", "--out", str(out), "--images", "30", "--epochs", "1", "--resume"]) == 2


def test_the_package_names_no_folder_outside_itself() -> None:
    root = Path(__file__).parents[2] / "src"
    assert not [p for p in root.rglob("*.py") if "../shared" in p.read_text()]


def test_a_bar_goes_on_over_stages_that_count_on_and_begins_anew_with_others() -> None:
    from types import SimpleNamespace

    from rich.progress import Progress as Bar

    from spikeguard.cli.progress import Progress

    told: list[str] = []

    def add_task(stage: str, total: int) -> int:
        told.append(stage)
        return len(told)

    bar = SimpleNamespace(
        console=SimpleNamespace(is_terminal=True),
        add_task=add_task,
        remove_task=lambda task: None,
        update=lambda task, completed, total, description: None,
    )
    shown = Progress(cast(Bar, bar))
    for stage, done, total in (
        ("1 of 2: FGSM", 0, 4),
        ("1 of 2: FGSM", 1, 4),
        ("2 of 2: PGD", 2, 4),
        ("control: nothing", 0, 5),
        ("again", 0, 5),
    ):
        shown.show(stage, done, total)
    assert told == ["1 of 2: FGSM", "control: nothing", "again"]


def test_a_log_gets_a_line_a_stage_and_later_ones_with_the_time_that_is_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(0, 1000, 10))
    with progress() as shown:
        now = [0.0]
        monkeypatch.setattr(time, "monotonic", lambda: now[0])
        shown.bar.get_time = lambda: now[0]
        for done in (0, 0, 1, 2, 3):
            now[0] = float(next(clock) + 100 * done)
            shown.show("ranking", done, 5)
        shown.show("scoring", 0, 2)
        shown.show("scoring", 1, 2)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "spikeguard: ranking",
        "spikeguard: ranking, 1 of 5",
        "spikeguard: ranking, 2 of 5, 0:05:30 left",
        "spikeguard: ranking, 3 of 5, 0:03:40 left",
        "spikeguard: scoring",
    ]
