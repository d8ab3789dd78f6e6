"""Profiles, environments, the report, and the workflow as a module of another one."""

import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import make_venvs
import pytest
import yaml
from fake_workflow import ROOT, Workflow

CLOUD = os.environ.get("TALKER_CLOUD_PLUGINS")
"""Folder with the cloud executors, which would slow down every start of Snakemake."""

MODULES = Path("/usr/share/modules/init/bash")


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Workflow:
    """A workflow in which nothing has run yet."""
    return Workflow(tmp_path_factory.mktemp("fresh"))


def test_lint_finds_nothing(fresh: Workflow) -> None:
    assert "in a good condition" in fresh.run("--lint")


@pytest.mark.parametrize("profile", ["default", "batch", "slurm", "cluster-generic"])
def test_a_profile_plans_everything(fresh: Workflow, profile: str) -> None:
    plugin = f"snakemake_executor_plugin_{profile.replace('-', '_')}"
    if profile in ("slurm", "cluster-generic") and not find_spec(plugin):
        pytest.skip(f"no {plugin} (pip install '.[cluster]')")
    output = fresh.run("-n", "-p", "--workflow-profile", f"profiles/{profile}")
    assert "talker report" in output
    if profile in ("slurm", "cluster-generic"):
        assert "--image-size" not in output, "a cluster trains the full size"


@pytest.mark.parametrize("profile", ["default", "batch"])
def test_on_a_single_machine_only_trainings_wait_for_a_gpu(profile: str) -> None:
    rules = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "rules").glob("*.smk"))
    on_gpus = {rule.partition(":")[0] for rule in rules.split("\nrule ")[1:] if "gpu=GPU" in rule}
    settings = yaml.safe_load((ROOT / f"profiles/{profile}/config.yaml").read_text("utf-8"))
    assert set(settings["set-resources"]) == {f"{rule}:gpu=0" for rule in on_gpus - {"train"}}


@pytest.mark.parametrize("profile", ["slurm", "cluster-generic"])
def test_rules_that_prepare_a_subject_on_a_cluster_use_at_most_two_cores(profile: str) -> None:
    """On a single machine, some use more."""
    rules = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "rules").glob("*.smk"))
    threads = {
        rule.partition(":")[0]: int(found[1])
        for rule in rules.split("\nrule ")[1:]
        if (found := re.search(r"threads: (\d+)", rule))
    }
    settings = yaml.safe_load((ROOT / f"profiles/{profile}/config.yaml").read_text("utf-8"))
    groups = dict(entry.split("=") for entry in settings["groups"])
    limits = dict(entry.split("=") for entry in settings["set-threads"])
    prepare = {rule for rule, group in groups.items() if group == "prepare"}
    assert {rule for rule in prepare if threads[rule] > 1} == set(limits)
    assert max(map(int, limits.values())) == 2


class Bucket(BaseHTTPRequestHandler):
    """A bucket that contains only the speech of the demo."""

    def do_HEAD(self) -> None:
        there = self.path.endswith(("demo/speech.wav", "demo/timings.json", "my-bucket"))
        self.send_response(200 if there else 404)
        if there:
            self.send_header("Last-Modified", "Sun, 01 Nov 2026 10:00:00 GMT")
            self.send_header("ETag", '"0"')
        self.send_header("Content-Length", "10" if there else "0")
        self.end_headers()

    def do_GET(self) -> None:
        listing = b"<ListBucketResult><KeyCount>0</KeyCount></ListBucketResult>"
        self.send_response(200)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(listing)))
        self.end_headers()
        self.wfile.write(listing)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def bucket() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Bucket) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("profile", ["kubernetes", "aws-batch"])
def test_a_cloud_profile_plans_everything(fresh: Workflow, bucket: str, profile: str) -> None:
    if not CLOUD:
        pytest.skip("TALKER_CLOUD_PLUGINS names no folder with the executors of clouds")
    done = subprocess.run(
        fresh.command(
            *("-n", "-p", "--workflow-profile", f"profiles/{profile}"),
            *("--storage-s3-endpoint-url", bucket),
        ),
        cwd=fresh.folder,
        env=os.environ
        | fresh.environment
        | {
            "PYTHONPATH": os.pathsep.join([str(fresh.folder), CLOUD]),
            "SNAKEMAKE_STORAGE_S3_ACCESS_KEY": "a",
            "SNAKEMAKE_STORAGE_S3_SECRET_KEY": "b",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "talker report" in done.stdout + done.stderr


@pytest.mark.skipif(
    not find_spec("snakemake_executor_plugin_cluster_generic"), reason="pip install '.[cluster]'"
)
def test_this_machine_does_not_choose_the_preset_of_a_cluster(fresh: Workflow) -> None:
    profile = ("--workflow-profile", "profiles/cluster-generic")
    output = fresh.refuse(*profile, "--config", "encoder=mel")
    assert "config: preset: 'auto' selects the preset for this machine" in output
    assert "Submitted" not in output


@pytest.mark.parametrize(
    ("squeue", "sacct", "state"),
    [
        ("echo RUNNING", "", "running"),
        ("echo COMPLETED", "", "success"),
        ("echo OUT_OF_MEMORY", "", "failed"),
        ("echo 'Unable to contact slurm controller' >&2; exit 1", "exit 1", "running"),
        ("echo 'Invalid job id specified' >&2; exit 1", "exit 1", "failed"),
        ("echo 'Invalid job id specified' >&2; exit 1", "echo COMPLETED", "success"),
        ("", "echo 'CANCELLED by 0'", "failed"),
    ],
)
def test_the_state_of_a_job(tmp_path: Path, squeue: str, sacct: str, state: str) -> None:
    for name, text in (("squeue", squeue), ("sacct", sacct)):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        [ROOT / "profiles/cluster-generic/status.sh", "7"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.stdout == f"{state}\n"


STUDY = """
module talker:
    snakefile: "{snakefile}"
    config: config["talker"]
    pathvars:
        data="prepared",
        results="study/avatars",
        logs="study/logs",
        benchmarks="study/benchmarks",

use rule * from talker as talker_*

rule best:
    default_target: True
    input: "study/avatars/demo/report.html"
    output: "best.txt"
    shell: "cp {{input}} {{output}}"
"""


def test_another_workflow_takes_it_as_a_module(fresh: Workflow, tmp_path: Path) -> None:
    (tmp_path / "Snakefile").write_text(STUDY.format(snakefile=fresh.folder / "Snakefile"))
    table = tmp_path / "people.tsv"
    table.write_text("subject\tvideo\ndemo\tprepared/demo/demo.mp4\n")
    shutil.copytree(ROOT / "demo", tmp_path / "demo")
    config = {"talker": {"preset": "draft", "subjects": str(table)}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    done = fresh.snakemake("--configfile", "config.json", cwd=tmp_path)
    assert done.returncode == 0, done.output
    assert (tmp_path / "best.txt").read_text() == "report"
    assert (tmp_path / "prepared/demo/clip.json").exists()
    assert (tmp_path / "study/logs/demo/train.log").exists()
    assert (tmp_path / "study/benchmarks/demo/train.tsv").exists()
    assert not any((tmp_path / name).exists() for name in ("data", "results", "logs"))
    again = fresh.snakemake("--configfile", "config.json", cwd=tmp_path)
    assert "Nothing to be done" in again.output


def test_the_report_has_captions(tmp_path: Path) -> None:
    workflow = Workflow(tmp_path)
    workflow.run()
    workflow.run("--report", "report.html")
    page = (tmp_path / "report.html").read_text()
    for caption in ("The avatar of demo rendered with", "Report on demo: tracking"):
        assert caption in page


def fake_install(venv: Path, group: str, diary: Path) -> None:
    """Create an environment with the stand-in only, which records each stage that it runs."""
    (venv / "bin").mkdir(parents=True)
    script = venv / "bin" / "talker"
    script.write_text(f'#!/bin/sh\necho "$1 {group}" >> {diary}\nexec {venv.parent}/talker "$@"\n')
    script.chmod(0o755)


@pytest.mark.parametrize("way", ["venvs", "modules"])
def test_every_group_of_rules_has_its_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    if way == "modules" and not shutil.which(
        "modulecmd", path="/usr/lib/x86_64-linux-gnu:/usr/bin"
    ):
        pytest.skip("no environment modules (apt-get install environment-modules)")
    folder, diary = tmp_path / "envs", tmp_path / "diary"
    (tmp_path / "workflow").mkdir()
    workflow = Workflow(tmp_path / "workflow")
    monkeypatch.setattr(make_venvs, "install", partial(fake_install, diary=diary))
    make_venvs.main(folder)
    (workflow.folder / "bin/talker").rename(folder / "talker")
    if way == "venvs":
        workflow.run("--config", f"venvs={folder}")
    else:
        monkeypatch.setenv("MODULEPATH", str(folder / "modulefiles"))
        monkeypatch.setenv("BASH_ENV", str(MODULES))
        done = subprocess.run(
            workflow.command("--sdm", "env-modules", "--configfile", str(folder / "modules.yaml")),
            cwd=workflow.folder,
            env=os.environ | workflow.environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    calls = {tuple(line.split()) for line in diary.read_text().splitlines()}
    assert {group for _, group in calls} == {"prepare", "avatar"}
    assert {("frames", "prepare"), ("track", "prepare"), ("report", "avatar")} <= calls
    assert len(calls) == len({stage for stage, _ in calls})


CONDA = """#!/bin/sh
case "$1 $2" in
    "info --json") echo '{{"conda_prefix": "{folder}", "platform": "linux-64"}}' ;;
    "--version ") echo conda 24.9.0 ;;
    "config --get") echo '{{"get": {{"channel_priority": "strict"}}}}' ;;
    "env create")
        while [ "$1" != --file ]; do shift; done
        mkdir -p "$4/bin" "$4/conda-meta"
        sed -n 's/^ *- \\(-[ce] .*\\)/echo "\\1"/p' "$2" | sh >> {folder}/requirements
        printf '#!/bin/sh\\necho "$@" >> {folder}/pip\\n' > "$4/bin/python"
        cat > "$4/bin/talker" <<'END'
#!/bin/sh
echo "$1 $CONDA_PREFIX" >> {folder}/diary
exec {folder}/talker "$@"
END
        chmod +x "$4/bin/python" "$4/bin/talker" ;;
esac
"""
"""A stand-in for conda, whose environments contain a stand-in for pip, which records its arguments,
and a stand-in for talker."""


def test_conda_environments_install_the_project(tmp_path: Path) -> None:
    (tmp_path / "workflow").mkdir()
    workflow = Workflow(tmp_path / "workflow")
    folder = tmp_path / "conda"
    (folder / "bin").mkdir(parents=True)
    conda = workflow.folder / "bin" / "conda"
    conda.write_text(CONDA.format(folder=folder))
    conda.chmod(0o755)
    (folder / "bin" / "activate").write_text('export CONDA_PREFIX="$1" PATH="$1/bin:$PATH"\n')
    (workflow.folder / "bin" / "talker").rename(folder / "talker")
    arguments = ("data/demo/landmarks.npz", "results/demo/avatar", "--sdm", "conda")
    assert "require a clone" in workflow.refuse(*arguments)  # as from a wheel
    for file in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / file, workflow.folder)
    workflow.run(*arguments)
    source = workflow.folder
    requirements = set((folder / "requirements").read_text().splitlines())
    assert requirements == {
        f"-c {source}/constraints.txt",
        f"-e {source}[ffmpeg,prepare-without-jax]",
        f"-e {source}[cuda,ffmpeg,prepare-without-jax]",
    }
    pip = f"-m pip install --quiet --no-deps -c {source}/constraints.txt mediapipe"
    assert (folder / "pip").read_text().splitlines() == [pip] * 2
    environments = dict(line.split() for line in (folder / "diary").read_text().splitlines())
    assert environments["frames"] == environments["track"] != environments["train"]
