"""`make sign` and `make verify`, by two accounts that can both write to the image."""

import shutil
import subprocess
from collections.abc import Callable

import pytest

from tests.cluster.conftest import HERE, Cluster

Run = Callable[..., subprocess.CompletedProcess[str]]
VERIFY = "containers/sign.sh verify"
SIGN = "make --no-print-directory sign"


@pytest.fixture
def run(cluster: Cluster, work: str, small_image: str) -> Run:
    """Runs a Bash script as an account with its own keyring, in a directory with tune.sif."""
    project = cluster.shared / work.removeprefix("/work/")
    root = HERE.parent.parent
    shutil.copy(root / "Makefile", project)
    (project / "containers").mkdir()
    shutil.copy(root / "containers" / "sign.sh", project / "containers")

    def run(text: str, account: str = "hpc1") -> subprocess.CompletedProcess[str]:
        home = f'HOME="{work}/{account}" APPTAINER_KEYSDIR="{work}/{account}/keys"'
        set_up = f"cd {work} && mkdir -p -m 700 {account} && export {home} && {text}"
        return cluster.run(account, "bash", "-c", set_up)

    made = run(f"cp {small_image} tune.sif && chmod 666 tune.sif")
    assert made.returncode == 0, made.stderr
    return run


def signed(run: Run, account: str = "hpc1") -> None:
    done = run(SIGN, account)
    assert done.returncode == 0, done.stderr
    again = run(VERIFY, account)
    assert (again.returncode, again.stderr) == (0, "tune.sif is signed and unchanged\n")


def refused(run: Run, *words: str) -> None:
    done = run(VERIFY)
    assert done.returncode == 1, done.stderr
    advice = "do not run it: delete it and run make image, or make sign if you changed it yourself"
    assert [word for word in (*words, advice) if word not in done.stderr] == [], done.stderr


def test_an_unsigned_image_is_told_from_a_wrong_one(run: Run) -> None:
    done = run(VERIFY)
    assert (done.returncode, done.stderr) == (3, "tune.sif is not signed: make sign\n")


def test_a_changed_byte_is_refused(run: Run) -> None:
    signed(run)
    flip = "printf X | dd of=tune.sif bs=1 seek=1000000 conv=notrunc status=none"
    assert run(flip, "hpc2").returncode == 0
    refused(run, "data object integrity compromised")
    signed(run)


def test_something_added_is_refused(run: Run) -> None:
    signed(run)
    add = "echo overlay > x && apptainer sif add tune.sif x --datatype 4 --parttype 4 --partfs 2 "
    add += "--partarch 2"
    assert run(add, "hpc2").returncode == 0
    refused(run, "not associated with object group")


def test_what_another_account_signed_is_refused_until_its_key_is_imported(run: Run) -> None:
    signed(run)
    signed(run, "hpc2")
    refused(run, "signature made by unknown entity", "apptainer key import FILE")
    assert run("echo 0 | apptainer key export --armor public.asc", "hpc2").returncode == 0
    assert run("apptainer key import public.asc").returncode == 0
    assert run(VERIFY).returncode == 0


@pytest.mark.parametrize("call", ["", "ln -s tune.sif link.sif; IMAGE=link.sif "])
def test_a_signature_cannot_just_be_taken_away(run: Run, call: str) -> None:
    signed(run)
    # An unsigned image in its place has the same effect.
    removed = run("apptainer sif del 4 tune.sif && apptainer sif list tune.sif", "hpc2")
    assert "Signature" not in removed.stdout
    done = run(call + VERIFY)
    assert done.returncode == 1
    assert "was signed, but its signature is missing" in done.stderr


def test_a_link_to_an_unsigned_image_is_refused(run: Run) -> None:
    signed(run)
    assert run("cp tune.sif other.sif; apptainer sif del 4 other.sif").returncode == 0
    assert run("mv tune.sif signed.sif && ln -s other.sif tune.sif").returncode == 0
    refused(run, "was signed, but its signature is missing")


def test_each_name_that_an_image_was_signed_by_is_remembered(run: Run) -> None:
    signed(run)
    assert run("ln -s tune.sif link.sif && IMAGE=link.sif containers/sign.sh sign").returncode == 0
    assert run("cp tune.sif other.sif; apptainer sif del 4 other.sif").returncode == 0
    assert run("ln -sf other.sif link.sif").returncode == 0
    assert run(f"IMAGE=link.sif {VERIFY}").returncode == 1
    assert run(f"IMAGE=other.sif {VERIFY}").returncode == 3
    assert run("sort $HOME/.config/siftune/signed | uniq -d").stdout == ""


def test_signing_again_leaves_one_signature_and_one_key(run: Run) -> None:
    signed(run)
    signed(run)
    assert run("apptainer sif list tune.sif").stdout.count("Signature") == 1
    assert run("apptainer key list --secret").stdout.count("Fingerprint") == 1
    keys = run("stat -c %a $HOME/keys $HOME/keys/pgp-secret").stdout
    assert keys.split() == ["700", "600"]
    started = run("apptainer exec tune.sif cat /built")
    assert started.stdout == "built\n"


def test_a_pem_key_instead_of_the_keyring(run: Run) -> None:
    make = "openssl ecparam -name prime256v1 -genkey -noout -out private.pem"
    make += " && openssl ec -in private.pem -pubout -out public.pem"
    assert run(make).returncode == 0
    assert run(f"{SIGN} KEY=private.pem").returncode == 0
    assert run(f"KEY=public.pem {VERIFY}").returncode == 0
    refused(run, "with a PEM file: KEY=FILE")
    assert "Fingerprint" not in run("apptainer key list --secret").stdout
