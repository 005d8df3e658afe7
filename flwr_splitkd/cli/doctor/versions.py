"""Python, the packages and their bounds, extras, and whether Flower is the SuperLink's.

Bounds are those of the installed package's metadata, which pip has them from too: nothing is repeated here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import Distribution

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from flwr_splitkd.cli.doctor.finding import Finding, ok, skipped, warning, wrong

__all__ = ["check_extras", "check_flower", "check_packages", "check_python", "installed_version"]

_PACKAGE = "flwr_splitkd"


def installed_version(name: str, path: Sequence[str]) -> str | None:
    """Version of an installed distribution, as its metadata have it; None if it is not there.

    Parameters
    ----------
    name
        As pip calls it.
    path
        Folders to look in, such as ``sys.path``; the first that has it counts.
    """
    found = _distribution(name, path)
    return None if found is None else found.version


def check_python(version: str, path: Sequence[str]) -> Finding:
    """Whether Python is new enough.

    Parameters
    ----------
    version
        Of Python.
    path
        As for `installed_version`.
    """
    package = _distribution(_PACKAGE, path)
    bound = package.metadata["Requires-Python"] if package else None
    if bound is None:
        return skipped("python", f"{version}; there are no metadata of {_PACKAGE} to compare it with")
    if SpecifierSet(bound).contains(version, prereleases=True):
        return ok("python", version, bound)
    return wrong(
        "python",
        version,
        expected=bound,
        remedy="Use a newer Python, in an environment of its own or a container. JetPack 6 has 3.10; JetPack 5 has 3.8, and "
        "needs a container.",
    )


def check_packages(path: Sequence[str]) -> Iterator[Finding]:
    """Whether each package that flwr_splitkd needs is there, and within its bounds.

    Parameters
    ----------
    path
        As for `installed_version`.
    """
    package = _distribution(_PACKAGE, path)
    if package is None:
        yield wrong(
            _PACKAGE,
            "no metadata in this Python's path",
            expected="an installed package",
            remedy="Install it with pip, in a clone of its repository: pip install .",
        )
        return
    for requirement in _requirements(package, extra=""):
        yield _check_requirement(requirement, path)


def check_extras(wanted: Mapping[str, str], asked: Iterable[str], path: Sequence[str]) -> Iterator[Finding]:
    """Whether what extras bring is there.

    Parameters
    ----------
    wanted
        What the role has of each extra; one that lacks is a warning.
    asked
        Those that must be there.
    path
        As for `installed_version`.
    """
    package = _distribution(_PACKAGE, path)
    known = (package.metadata.get_all("Provides-Extra") or []) if package else []
    asked = tuple(dict.fromkeys(asked))
    for extra in dict.fromkeys([*asked, *wanted]):
        name = f"extra [{extra}]"
        if package is None or extra not in known:
            if extra in asked:
                yield wrong(
                    name,
                    f"{_PACKAGE} {package.version if package else '(not installed)'} has no such extra",
                    expected=f"one of {', '.join(sorted(known)) or 'none'}",
                    remedy="Ask for another `--extra`, or install a version that has it.",
                )
            continue
        missing = [line for requirement in _requirements(package, extra) for line in _missing(requirement, path)]
        if not missing:
            yield ok(name, "installed", wanted.get(extra, "asked for"))
            continue
        verdict = wrong if extra in asked else warning
        yield verdict(
            name,
            f"missing: {', '.join(missing)}",
            expected=wanted.get(extra, "what was asked for"),
            remedy=f"pip install '{_PACKAGE}[{extra}]', in a clone of its repository pip install '.[{extra}]'",
        )


def check_flower(version: str | None, superlink: str | None, why: str = "") -> Finding:
    """Whether this machine's Flower and the SuperLink's are of one minor version.

    Parameters
    ----------
    version
        Of this machine; None if Flower is not installed.
    superlink
        The SuperLink's, at least ``X.Y``; None if it is not known.
    why
        It is not known.
    """
    name = "flwr and the SuperLink's"
    if superlink is None or version is None:
        return skipped(
            name,
            why or ("Flower is not installed here" if version is None else "the SuperLink's version is not known"),
            "Give `--superlink-version X.Y`: `flower-superlink --version` says it on the edge.",
        )
    if _minor(version) == _minor(superlink):
        return ok(name, f"{version} here, {superlink} there", "the same major and minor version")
    theirs = ".".join(map(str, _minor(superlink)))
    return wrong(
        name,
        f"{version} here, {superlink} there",
        expected="the same major and minor version",
        remedy=f"pip install 'flwr=={theirs}.*' here, or {version} on the edge. Python 3.10 has Flower up to 1.30.",
    )


def _minor(version: str) -> tuple[int, int]:
    found = Version(version)
    return found.major, found.minor


def _distribution(name: str, path: Sequence[str]) -> Distribution | None:
    return next(iter(Distribution.discover(name=name, path=list(path))), None)


def _requirements(package: Distribution, extra: str) -> Iterator[Requirement]:
    """Those that hold on this machine: of the extra alone, or without any."""
    for text in package.requires or ():
        requirement = Requirement(text)
        marker = requirement.marker
        always = marker is None or marker.evaluate({"extra": ""})
        if always if not extra else (not always and marker is not None and marker.evaluate({"extra": extra})):
            yield requirement


def _check_requirement(requirement: Requirement, path: Sequence[str]) -> Finding:
    name, bound = requirement.name, str(requirement.specifier) or "any version"
    version = installed_version(name, path)
    how = f"pip install '{name}{requirement.specifier}'"
    if name == "torch":
        how = "Install the build that fits this machine, before this package: https://pytorch.org/get-started; on a Jetson "
        how += "NVIDIA's."
    if version is None:
        return wrong(name, "not installed", expected=bound, remedy=how)
    if _fits(version, requirement.specifier):
        return ok(name, version, bound)
    if name == "torch" and _fits(_release(version), requirement.specifier):
        # As NVIDIA builds them for Jetsons: "2.6.0a0+ecf3bae40a.nv25.1" is 2.6 in fact.
        return warning(
            name,
            version,
            expected=bound,
            remedy=f"It was built on the way to {_release(version)}, and may lack what came last; for pip it is older, and "
            "deploy/install.sh refuses it. Better a newer image or wheel of NVIDIA's; else `pip install --no-deps`, and what else "
            "is needed by hand.",
        )
    return wrong(name, version, expected=bound, remedy=how)


def _missing(requirement: Requirement, path: Sequence[str]) -> Iterator[str]:
    """What a requirement lacks, that of its own extras included (``flwr[simulation]``)."""
    package = _distribution(requirement.name, path)
    if package is None:
        yield f"{requirement.name}{requirement.specifier}"
        return
    if not _fits(package.version, requirement.specifier):
        yield f"{requirement.name}{requirement.specifier} (there is {package.version})"
    for extra in sorted(requirement.extras):
        for inner in _requirements(package, extra):
            yield from _missing(inner, path)


def _fits(version: str, bound: SpecifierSet) -> bool:
    try:
        return bound.contains(Version(version), prereleases=True)
    except InvalidVersion:
        return False


def _release(version: str) -> str:
    """Without what makes it a pre-release."""
    found = re.match(r"\d+(\.\d+)*", version)
    return found[0] if found else version
