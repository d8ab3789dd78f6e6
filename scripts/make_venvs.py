"""Make an environment for each family of rules, for clusters without conda.

    python scripts/make_venvs.py /shared/talker

It makes venvs from envs/*.yaml, modulefiles for Environment Modules or Lmod, and a `talker` that
picks the venv by its stage. Then use either of

    snakemake --config venvs=/shared/talker
    module use /shared/talker/modulefiles
    snakemake --sdm env-modules --configfile /shared/talker/modules.yaml
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent


def stages_of(family: str) -> list[str]:
    """Return the stages that the rules with this family's environment run."""
    stages: set[str] = set()
    for file in (ROOT / "rules").glob("*.smk"):
        for rule in re.split(r"^rule ", file.read_text(), flags=re.MULTILINE):
            if f"envs/{family}.yaml" in rule:
                stages.update(re.findall(r'"talker (\w+) ', rule))
    return sorted(stages)


def packages_of(family: str) -> list[str]:
    """Return the pinned packages of a family."""
    *_, pip = yaml.safe_load((ROOT / "envs" / f"{family}.yaml").read_text())["dependencies"]
    return pip["pip"]


def launcher(stages: dict[str, list[str]]) -> str:
    """Return a shell script that runs the `talker` of a stage's environment."""
    cases = "".join(f"    {' | '.join(names)}) family={f} ;;\n" for f, names in stages.items())
    return (
        "#!/bin/sh\n"
        'case "$1" in\n'
        f"{cases}"
        '    *) echo "no environment for talker $1" >&2; exit 2 ;;\n'
        "esac\n"
        'exec "${0%/bin/talker}/$family/bin/talker" "$@"\n'
    )


def install(venv: Path, family: str) -> None:
    """Make the venv of a family, with a link to this package: the rules hash its present code."""
    pip = [venv / "bin" / "python", "-m", "pip", "install", "--quiet"]
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    subprocess.run([*pip, "-c", ROOT / "constraints.txt", *packages_of(family)], check=True)
    subprocess.run([*pip, "--no-deps", "--editable", ROOT], check=True)


def main(folder: Path) -> None:
    stages = {path.stem: stages_of(path.stem) for path in sorted((ROOT / "envs").glob("*.yaml"))}
    modules = folder / "modulefiles" / "talker"
    modules.mkdir(parents=True, exist_ok=True)
    for family in stages:
        install(folder / family, family)
        (modules / family).write_text(f"#%Module1.0\nprepend-path PATH {folder}/{family}/bin\n")
    names = {"modules": {family: [f"talker/{family}"] for family in stages}}
    (folder / "modules.yaml").write_text(yaml.safe_dump(names))
    script = folder / "bin" / "talker"
    script.parent.mkdir(exist_ok=True)
    script.write_text(launcher(stages))
    script.chmod(0o755)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    main(parser.parse_args().folder.resolve())
