"""What users install is what was tried, to the byte."""

import re

from tests.runs import ROOT

FILES = ("requirements.txt", "requirements-image.txt", "requirements-demo.txt")


def pins(name: str) -> set[str]:
    found = re.findall(r"^([\w.-]+)==(\S+)", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)
    return {f"{re.sub(r'[-_.]+', '-', package).lower()}=={version}" for package, version in found}


def test_the_lock_holds_what_the_requirements_name():
    missing = set().union(*map(pins, FILES)) - pins("requirements.lock")
    assert not missing, f"{missing}: run the command at the top of requirements.lock again"


def test_every_package_of_the_lock_has_its_digest():
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    packages = re.split(r"^(?=[\w.-]+==)", text, flags=re.MULTILINE)[1:]
    assert len(packages) > 50 and all("--hash=sha256:" in package for package in packages)
