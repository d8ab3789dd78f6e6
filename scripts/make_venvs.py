"""Create an environment for each group of rules, for clusters without conda.

    make envs ENVS=/shared/talker

It creates venvs from envs/*.yaml, modulefiles for Environment Modules or Lmod, and a script
`talker` that runs each stage in its venv. Then use either of

    snakemake --config venvs=/shared/talker
    module use /shared/talker/modulefiles
    snakemake --sdm env-modules --configfile /shared/talker/modules.yaml
"""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent


def stages_of(group: str) -> list[str]:
    """Return the stages whose rules use the environment of a group."""
    stages: set[str] = set()
    for file in (ROOT / "rules").glob("*.smk"):
        for rule in re.split(r"^ *rule ", file.read_text(encoding="utf-8"), flags=re.MULTILINE):
            if f"envs/{group}.yaml" in rule:
                stages.update(re.findall(r'"talker (\w+) ', rule))
    return sorted(stages)


def requirements_of(group: str) -> str:
    """Return what pip installs into the environment of a group, as the text of a file for pip."""
    *_, pip = yaml.safe_load((ROOT / "envs" / f"{group}.yaml").read_text(encoding="utf-8"))[
        "dependencies"
    ]
    return "\n".join(pip["pip"])


def launcher(stages: dict[str, list[str]]) -> str:
    """Return a shell script that runs a stage with the `talker` of its environment."""
    cases = "".join(f"    {' | '.join(names)}) group={f} ;;\n" for f, names in stages.items())
    return (
        "#!/bin/sh\n"
        'case "$1" in\n'
        f"{cases}"
        '    *) echo "talker: no environment has the stage $1" >&2; exit 2 ;;\n'
        "esac\n"
        'exec "${0%/bin/talker}/$group/bin/talker" "$@"\n'
    )


def install(venv: Path, group: str) -> None:
    """Create the venv of a group, with an editable install, because the rules hash its code."""
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    requirements = venv / "requirements.txt"
    requirements.write_text(requirements_of(group), encoding="utf-8")
    path = os.pathsep.join([str(venv / "bin"), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "TALKER_SOURCE": str(ROOT)}
    pip = [venv / "bin" / "python", "-m", "pip", "install", "--quiet", "-r", requirements]
    subprocess.run(pip, env=environment, check=True)
    subprocess.run(["bash", ROOT / "envs" / f"{group}.post-deploy.sh"], env=environment, check=True)


def main(folder: Path) -> None:
    groups = sorted(path.stem for path in (ROOT / "envs").glob("*.yaml"))
    stages = {group: names for group in groups if (names := stages_of(group))}
    modules = folder / "modulefiles" / "talker"
    modules.mkdir(parents=True, exist_ok=True)
    for group in stages:
        install(folder / group, group)
        (modules / group).write_text(
            f"#%Module1.0\nprepend-path PATH {folder}/{group}/bin\n", encoding="utf-8"
        )
    names = {"modules": {group: [f"talker/{group}"] for group in stages}}
    (folder / "modules.yaml").write_text(yaml.safe_dump(names), encoding="utf-8")
    script = folder / "bin" / "talker"
    script.parent.mkdir(exist_ok=True)
    script.write_text(launcher(stages), encoding="utf-8")
    script.chmod(0o755)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    main(parser.parse_args().folder.resolve())
