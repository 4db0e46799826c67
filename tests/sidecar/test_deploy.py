"""The files for deployment are well formed, and call the command with options that it has."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from stepwatch.cli.commands.watch import command

DEPLOY = Path(__file__).parents[2] / "deploy"
OPTIONS = {name for parameter in command.params for name in parameter.opts}


def containers(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    pod = manifest["spec"]["template"]["spec"]
    return [*pod.get("initContainers", []), *pod["containers"]]


@pytest.mark.parametrize("path", sorted(DEPLOY.glob("kubernetes/*.yaml")), ids=lambda path: path.stem)
def test_manifests(path: Path) -> None:
    manifest = yaml.safe_load(path.read_text())
    pod = manifest["spec"]["template"]["spec"]
    assert {"apiVersion", "kind", "metadata", "spec"} <= manifest.keys()
    assert pod["securityContext"]["runAsNonRoot"] is True
    volumes = {volume["name"] for volume in pod["volumes"]}
    for container in containers(manifest):
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
    (ours,) = [container for container in containers(manifest) if container["name"] == "stepwatch"]
    assert {argument for argument in ours["args"] if argument.startswith("--")} <= OPTIONS
    assert ours["livenessProbe"]["httpGet"]["port"] == ours["ports"][0]["name"]
    if manifest["kind"] == "DaemonSet":
        labels = manifest["spec"]["template"]["metadata"]["labels"]
        assert manifest["spec"]["selector"]["matchLabels"].items() <= labels.items()


def test_the_container_file() -> None:
    text = (DEPLOY / "Containerfile").read_text()
    instructions = [line.split()[0] for line in text.splitlines() if re.match(r"[A-Z]+ ", line)]
    assert instructions[0] == "FROM" and "USER" in instructions and instructions[-2:] == ["ENTRYPOINT", "CMD"]
    arguments = yaml.safe_load(text.rsplit("CMD ", 1)[1])  # the exec form is JSON
    assert {argument for argument in arguments if argument.startswith("--")} <= OPTIONS
    extras = set(re.search(r"/src\[([\w,]+)\]", text)[1].split(","))  # type: ignore[index]
    assert all(re.search(rf"^{extra} = ", (DEPLOY.parent / "pyproject.toml").read_text(), re.M) for extra in extras)


def test_the_systemd_unit(tmp_path: Path) -> None:
    text = (DEPLOY / "stepwatch-watch.service").read_text()
    (line,) = re.findall(r"^ExecStart=(.*)$", text, re.M)
    assert {argument for argument in shlex.split(line) if argument.startswith("--")} <= OPTIONS
    assert re.search(r"^User=(?!root)", text, re.M)
    if shutil.which("systemd-analyze"):
        unit = tmp_path / "stepwatch-watch.service"
        unit.write_text(text.replace("/opt/stepwatch/bin/stepwatch", "/bin/true"))
        done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60)
        assert "stepwatch-watch" not in done.stderr, done.stderr


@pytest.mark.parametrize("name", ["prolog.sh", "epilog.sh"])
@pytest.mark.parametrize("working", [True, False])
def test_the_slurm_scripts(tmp_path: Path, name: str, working: bool) -> None:
    """Run with a stand-in for systemd; a job is never kept from starting or ending."""
    (tmp_path / "job" / "runs").mkdir(parents=True)
    for tool in ("systemd-run", "systemctl"):
        (tmp_path / tool).write_text(f'#!/bin/sh\necho {tool} "$@" >> {tmp_path}/called\nexit {0 if working else 1}\n')
        (tmp_path / tool).chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "17", "SLURM_JOB_USER": "alice"}
    env["SLURM_JOB_WORK_DIR"] = str(tmp_path / "job")
    done = subprocess.run(
        ["sh", "-eu", str(DEPLOY / "slurm" / name)], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and done.stderr == ""
    called = (tmp_path / "called").read_text().split()
    if name == "prolog.sh":
        assert called[:5] == ["systemd-run", "--quiet", "--collect", "--unit=stepwatch-17", "--uid=alice"]
        assert called[6:8] == ["watch", str(tmp_path / "job" / "runs")] and set(called[8:]) <= OPTIONS
    else:
        assert called == ["systemctl", "stop", "stepwatch-17.service"]


@pytest.mark.parametrize("working", [True, False])
def test_the_lifecycle_script_of_sagemaker(tmp_path: Path, working: bool) -> None:
    """Run with a stand-in for sudo and for the command; the instance is never kept from starting."""
    (tmp_path / ".stepwatch" / "bin").mkdir(parents=True)
    called, ours, sudo = tmp_path / "called", tmp_path / ".stepwatch" / "bin" / "stepwatch", tmp_path / "sudo"
    ours.write_text(f'#!/bin/sh\necho "$@" > {called}.tmp && mv {called}.tmp {called}\n')
    sudo.write_text('#!/bin/sh\nshift 2\nexec "$@"\n' if working else "#!/bin/sh\nexit 1\n")
    for script in (ours, sudo):
        script.chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "STEPWATCH_RUNS": "s3://bucket/runs", "NOTEBOOK_HOME": str(tmp_path)}
    script = DEPLOY / "sagemaker" / "on-start.sh"
    done = subprocess.run(["sh", "-eu", str(script)], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == ""
    deadline = time.monotonic() + 60
    while working and not called.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    if working:
        arguments = called.read_text().split()
        assert arguments[:2] == ["watch", "s3://bucket/runs"]
        assert {each for each in arguments if each.startswith("--")} <= OPTIONS
