"""The lab on virtual machines, as far as it can be told without one: the Vagrantfile, what is pinned, the runner."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from k8snet.findings.catalogue import FINDINGS
from k8snet.lab.cluster import INVENTORY

ROOT = Path(__file__).parents[2]
VAGRANT = ROOT / "vagrant"
SCENARIOS = sorted((VAGRANT / "scenarios").glob("*.sh"))
needs_vagrant = pytest.mark.skipif(shutil.which("vagrant") is None, reason="vagrant is not installed: make setup-tests")


def vagrant(directory: Path, *command: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run vagrant on a copy of the Vagrantfile, with settings as a user gives them, and none from before."""
    (directory / "vagrant").mkdir(exist_ok=True)
    shutil.copy(VAGRANT / "Vagrantfile", directory / "vagrant")
    environment = {"PATH": os.environ["PATH"], "HOME": str(directory), "VAGRANT_CHECKPOINT_DISABLE": "1", **settings}
    return subprocess.run(
        ["vagrant", *command], cwd=directory / "vagrant", env=environment, capture_output=True, text=True, check=False
    )


@needs_vagrant
@pytest.mark.parametrize(
    ("settings", "machines"),
    [
        pytest.param({}, 1, id="default"),
        pytest.param({"LAB": "netns", "BOX": "bento/ubuntu-24.04", "KERNEL": "backports"}, 1, id="netns-other-kernel"),
        pytest.param({"LAB": "k3s", "WORKERS": "3"}, 4, id="k3s-three-workers"),
        pytest.param({"LAB": "k3s", "PROXY": "nftables"}, 2, id="k3s-nftables"),
        pytest.param({"LAB": "kubeadm", "CNI": "calico", "PROXY": "ipvs"}, 2, id="kubeadm-calico-ipvs"),
    ],
)
def test_the_vagrantfile_is_valid(tmp_path: Path, settings: dict[str, str], machines: int) -> None:
    done = vagrant(tmp_path, "validate", "--ignore-provider", **settings)
    assert done.returncode == 0, done.stderr
    assert "validated successfully" in done.stdout
    assert len(re.findall("^==> (?:control|worker-.): ", done.stdout, re.MULTILINE)) == machines


@needs_vagrant
@pytest.mark.parametrize(
    ("settings", "told"),
    [
        pytest.param(
            {"LAB": "minikube"}, "LAB=minikube: there is no such choice\n  one of: netns k3s kubeadm", id="lab"
        ),
        pytest.param({"LAB": "k3s", "WORKERS": "many"}, "WORKERS=many is not a number", id="number"),
        pytest.param({"LAB": "k3s", "WORKERS": "0"}, "WORKERS=0: a cluster of this lab has 1 to 200", id="no-worker"),
        pytest.param({"LAB": "k3s", "CNI": "calico"}, "LAB=kubeadm CNI=calico", id="k3s-calico"),
    ],
)
def test_what_cannot_be_built_is_refused_with_what_can(tmp_path: Path, settings: dict[str, str], told: str) -> None:
    done = vagrant(tmp_path, "validate", "--ignore-provider", **settings)
    assert done.returncode != 0
    assert told in done.stderr


def test_everything_that_is_downloaded_is_pinned_and_verified() -> None:
    pins = dict(re.findall(r"^([A-Z0-9_]+)=(\S+)", (VAGRANT / "versions.env").read_text(), re.MULTILINE))
    hashes = {name: value for name, value in pins.items() if name.endswith("_SHA256")}
    assert hashes
    assert all(re.fullmatch("[0-9a-f]{64}", value) for value in hashes.values())
    scripts = "".join(path.read_text() for path in (VAGRANT / "provision").glob("*.sh"))
    assert all(f'"${name}"' in scripts for name in hashes)
    # curl stands in `download`, which compares the hash, and where apt's key is fetched, which is compared as well.
    assert scripts.count("curl -") == 2
    images = [
        container["image"]
        for manifest in yaml.safe_load_all((VAGRANT / "shop.yaml").read_text())
        if manifest["kind"] == "Pod"
        for container in manifest["spec"]["containers"]
    ]
    assert images
    assert all(re.search("@sha256:[0-9a-f]{64}$", image) for image in images)


def test_the_sample_pods_have_the_names_of_the_namespace_lab() -> None:
    manifests = list(yaml.safe_load_all((VAGRANT / "shop.yaml").read_text()))
    for kind, known in (("Pod", INVENTORY.pods), ("Service", INVENTORY.services)):
        names = {f"{m['metadata']['namespace']}/{m['metadata']['name']}" for m in manifests if m["kind"] == kind}
        assert names <= {item.key for item in known}


@pytest.mark.parametrize("script", SCENARIOS, ids=lambda path: path.stem)
def test_a_scenario_has_its_four_words_and_codes_of_the_catalogue(script: Path) -> None:
    text = script.read_text()
    assert os.access(script, os.X_OK)
    assert {"broken()", "traffic()", "expect()", "mend()"} <= set(re.findall(r"^\w+\(\)", text, re.MULTILINE))
    codes = set(re.findall(r"\b[A-Z]+(?:_[A-Z0-9]+)+\b", text)) - {"SC2016"}
    assert codes <= {entry.code for entry in FINDINGS}
    assert codes or script.stem.endswith("healthy")


def test_a_lab_that_does_not_exist_is_an_error() -> None:
    done = subprocess.run(
        ["bash", str(SCENARIOS[0]), "break"],
        env={"PATH": os.environ["PATH"], "K8SNET_LAB": "moon"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "there is no such lab" in done.stderr


class Scripts:
    """A copy of the runner with scenarios of this test's own, which need no lab: each word is written down."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "scenarios").mkdir()
        shutil.copy(VAGRANT / "run.py", directory)
        self.words = directory / "words"

    def add(self, name: str, **words: str) -> Path:
        """A scenario whose words do what is given, and nothing otherwise."""
        path = self.directory / "scenarios" / f"{name}.sh"
        cases = "\n".join(f"{word}) {does} ;;" for word, does in words.items())
        path.write_text(f'echo "{name} $1" >>{self.words}\ncase $1 in\n{cases}\nesac\n')
        return path

    def runner(self) -> str:
        """Python that plays all scenarios, in an environment that is this one's."""
        return "import os, run, sys; sys.exit(run.go_through(run.scenarios([]), dict(os.environ)))"


@pytest.fixture
def scripts(tmp_path: Path) -> Scripts:
    made = Scripts(tmp_path)
    made.add("00-healthy", expect="echo none", traffic=_report())
    return made


def _report(*codes: str) -> str:
    findings = [{"code": code, "title": f"about {code}"} for code in codes]
    return f"echo '{json.dumps({'findings': findings})}'"


def play(scripts: Scripts) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["python3", "-c", scripts.runner()], cwd=scripts.directory, capture_output=True, text=True, check=False
    )


def test_what_is_found_as_expected_is_ok_and_mended(scripts: Scripts) -> None:
    scripts.add("10-drop", expect="echo A_DROP", traffic=_report("A_DROP", "A_WARNING"))
    done = play(scripts)
    assert done.returncode == 0, done.stdout
    assert scripts.words.read_text().splitlines()[4:8] == [
        f"10-drop {w}" for w in ("expect", "break", "traffic", "mend")
    ]
    assert "3 played, 3 as expected, 0 not played" in done.stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        pytest.param({"expect": "echo A_DROP", "traffic": _report("ANOTHER")}, "DIFFERS", id="another-code"),
        pytest.param({"expect": "echo A_DROP", "traffic": _report()}, "DIFFERS", id="nothing-found"),
        pytest.param({"expect": "echo none", "traffic": _report("A_DROP")}, "DIFFERS", id="false-alarm"),
        pytest.param({"expect": "echo A_DROP", "traffic": "echo oops"}, "printed no report", id="no-report"),
        pytest.param({"expect": "echo A_DROP", "break": "echo broke it half >&2; exit 3"}, "broke it half", id="break"),
        pytest.param(
            {"expect": "echo A_DROP", "traffic": _report("A_DROP"), "mend": "exit 1"}, "still broken", id="mend"
        ),
    ],
)
def test_what_is_not_as_expected_fails_and_is_mended_all_the_same(
    scripts: Scripts, words: dict[str, str], told: str
) -> None:
    scripts.add("10-drop", **words)
    done = play(scripts)
    assert done.returncode == 1
    assert told in done.stdout
    assert "10-drop mend" in scripts.words.read_text()


def test_a_lab_that_is_not_healthy_after_all_was_mended_fails(scripts: Scripts) -> None:
    scripts.add("00-healthy", expect="echo none", traffic=f"[ -e broken ] && {_report('A_DROP')} || {_report()}")
    scripts.add("10-drop", expect="echo A_DROP", **{"break": "touch broken"}, traffic=_report("A_DROP"))
    done = play(scripts)
    assert done.returncode == 1
    assert re.search("^mended .* DIFFERS", done.stdout, re.MULTILINE)


def test_what_this_lab_cannot_play_is_said_and_counts_for_nothing(scripts: Scripts) -> None:
    scripts.add("10-race", expect="echo A_RACE", **{"break": "echo no races here >&2; exit 77"})
    scripts.add("20-chance", expect="echo maybe A_RACE", traffic=_report())
    done = play(scripts)
    assert done.returncode == 0
    assert "no races here" in done.stdout
    assert re.search("^20-chance .* by chance", done.stdout, re.MULTILINE)
    assert "1 not played" in done.stdout
