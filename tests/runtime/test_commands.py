"""Commands: flags, --help and mistakes, which do not wait for torch; how a command begins and ends."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import message

from checkpoints.evaluation_options import eval_parser
from runtime import start
from systems.options import check_options, completed, defaults, train_options

ROOT = Path(__file__).parents[2]
COMMANDS = [*ROOT.glob("t*.py"), ROOT / "vocab.py", *ROOT.glob("tools/[!_]*.py")]


def without_torch(script, *flags):
    """Run a script where importing torch fails: (exit code, stdout, stderr)."""
    code = f"""if True:
        import runpy, sys
        sys.modules["torch"] = None
        sys.path.insert(0, {str(ROOT)!r})
        sys.argv = [{script!r}, *{flags!r}]
        runpy.run_path({str(ROOT / script)!r}, run_name="__main__")"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    "command, said",
    [
        ("train.py --data_pat x --devise cpu", "--devise cpu; did you mean --device?"),
        ("test_stack.py --data_pat x --devise cpu", "--devise cpu; did you mean --device?"),
        ("test.py --model_path nowhere.pth.tar", "nowhere.pth.tar: no such checkpoint"),
        ("test_stack.py --model_path nowhere.pth.tar", "nowhere.pth.tar: no such checkpoint"),
        ("tools/search.py --query a --model_path nowhere.pth.tar", "nowhere.pth.tar: no such checkpoint"),
    ],
)
def test_mistakes_need_no_torch(command, said):
    code, _, err = without_torch(*command.split())
    assert code == 2 and said in err and err.count("\n") == 1


@pytest.mark.parametrize("script", sorted(path.relative_to(ROOT) for path in COMMANDS))
def test_the_help_of_every_command_needs_no_torch(script):
    code, out, err = without_torch(str(script), "--help")
    assert code == 0 and "--help" in out, err


def test_a_flag_of_the_other_model_is_named():
    assert "--max_len is a flag of --model vsrn" in message(train_options, ["--max_len", "9"])
    assert "--is_sparse is a flag of --model gsmn" in message(train_options, ["--model", "vsrn", "--is_sparse"])


def test_a_folder_that_is_named_with_a_slash_or_not_at_all():
    assert train_options(["--data_name", "x_precomp/"])[0].data_name == "x_precomp"
    for flags in (["--data_name", ""], ["--data_name", ".."], ["--resume", ""]):
        assert flags[0] in message(train_options, flags)


def test_a_switch_turns_on_and_off():
    def flags(*given, **how):
        return eval_parser("", **how).parse_args(["--model_path", ".", *given])

    assert flags("--no_fold5", fold5=True).fold5 is False and flags("--fold5").fold5 is True
    assert [flags(*given).tf32 for given in ([], ["--tf32"], ["--no_tf32"])] == [None, True, False]


def test_an_old_opt_is_completed():
    old = argparse.Namespace(data_name="f30k_precomp", embed_size=8)
    assert completed(old).propagation == "self" and completed(old).embed_size == 8
    assert vars(old) == {"data_name": "f30k_precomp", "embed_size": 8}
    assert set(vars(completed(old, model="vsrn"))) == set(defaults("vsrn"))
    with pytest.raises(TypeError):
        defaults("gsmn")["embed_size"] = 1


@pytest.mark.parametrize(
    "model, flag, value",
    [("gsmn", "model", None), ("gsmn", "model", "clip"), ("vsrn", "max_len", 10**9), ("vsrn", "num_layers", True)],
)
def test_what_no_run_could_have_said(model, flag, value):
    said = message(check_options, argparse.Namespace(**{"model": model, flag: value}), "x.pth.tar")
    assert said.startswith("x.pth.tar: ") and repr(value) in said and f"--{flag}" in said


def test_a_flag_with_a_largest_value():
    assert "--max_len: 10001" in message(train_options, ["--model", "vsrn", "--max_len", "10001"])
    assert train_options(["--model", "vsrn", "--max_len", "10000"])[0].max_len == 10000


# ---- beginning and end: OpenMP's threads are set before torch is loaded, a Ctrl-C or a missing torch is one line

SCRIPTS = [*ROOT.glob("t*.py"), *ROOT.glob("tools/[a-z]*.py")]

# each script in a process of its own, in which Ctrl-C is pressed where torch is first imported
LOAD = """if True:
    import os, runpy, signal, sys
    import numpy
    class Finder:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name == "torch":
                print(os.path.basename(script), os.environ.get("GOMP_SPINCOUNT"), flush=True)
                signal.raise_signal(signal.SIGINT)
    sys.meta_path.insert(0, Finder)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    for script in sys.argv[1:]:
        if not os.fork():
            runpy.run_path(script, run_name="loaded")
            print(os.path.basename(script), "no torch", flush=True)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.wait()[1])
        print(os.path.basename(script), code, flush=True)
"""


@pytest.mark.parametrize(
    "chosen, spins, scripts", [({}, start.SPINS, SCRIPTS), ({"OMP_WAIT_POLICY": "ACTIVE"}, None, [ROOT / "train.py"])]
)
def test_commands_begin_before_torch(chosen, spins, scripts):
    clean = {name: value for name, value in os.environ.items() if name not in start.CHOICES}
    command = [sys.executable, "-c", LOAD, *map(str, scripts)]
    done = subprocess.run(command, cwd=ROOT, env={**clean, **chosen}, capture_output=True, text=True, check=True)
    said = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
    loading = {script for script, what in said if what == str(spins)}
    some = {"train.py", "search.py"}
    assert some & {script.name for script in scripts} <= loading
    for script, what in said:
        assert what in ([str(spins), "130"] if script in loading else ["no torch", "0"]), (script, what)
    assert len(done.stderr.splitlines()) == len(loading), done.stderr


def test_a_python_without_torch_is_named():
    code, _, err = without_torch("train.py")
    assert (
        code == 2
        and err.count("\n") == 1
        and all(word in err for word in ("torch", sys.executable, "requirements.txt"))
    )


def test_a_reader_that_has_gone_and_a_full_disk_under_the_output():
    """`| head` and `> FILE`: one line of error."""
    script = [sys.executable, "-c", "from runtime.start import run\nrun(lambda: print(1))"]
    read, gone = os.pipe()
    os.close(read)
    for output in (gone, os.open("/dev/full", os.O_WRONLY)):
        done = subprocess.run(script, cwd=ROOT, stdout=output, stderr=subprocess.PIPE, text=True)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "output" in done.stderr, done


@pytest.mark.parametrize("name", ["EPIPE", "ENOSPC"])
def test_a_broken_pipe_and_a_full_disk_elsewhere(name):
    """Of a worker or another file: the traceback stays, and what is printed is read."""
    code = (
        "import errno\nfrom runtime.start import run\ndef main():\n    raise OSError(errno.{}, 'elsewhere')\nrun(main)"
    )
    done = subprocess.run([sys.executable, "-c", code.format(name)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" in done.stderr and "output" not in done.stderr
