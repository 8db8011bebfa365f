"""Checks that deploy/packages.txt is well formed and the only place that names packages.

Usage: check_packages.py ROOT
"""

import os
import re
import sys

LIST = "deploy/packages.txt"
INSTALLER = "deploy/install_packages.sh"
GROUPS = ["[accuracy]", "[arm64]", "[bench]", "[build]", "[tests]"]
INSTALL = re.compile(r"\b(?:apt|apt-get|aptitude)(?:\s+-\S+(?:\s+\S+=\S+)?)*\s+install\b")
NAME = re.compile(r"[a-z0-9][a-z0-9+.-]+(:arm64)?")
SKIP = re.compile(r"build.*|\.git|\.cache|__pycache__")
TEXT = re.compile(r".*(\.(txt|sh|md|py|cmake|ya?ml|json|cc|h|proto|toml|in)|/run|/[A-Z][A-Za-z]+)")


def read_list(path):
    """Returns what is wrong with the list."""
    groups, wrong, group = {}, [], None
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            words = line.split("#")[0].split()
            if not words:
                continue
            if words[0].startswith("["):
                group = words[0]
                groups[group] = []
            elif group is None or len(words) != 1 or not NAME.fullmatch(words[0]):
                wrong.append(f"{LIST}:{number}: want one package name below a [group]: {line!r}")
            else:
                groups[group].append(words[0])
    names = [name for group in groups.values() for name in group]
    wrong += [f"{LIST}: {name} stands there twice" for name in names if names.count(name) > 1]
    if sorted(groups) != GROUPS or not all(groups.values()):
        wrong.append(f"{LIST}: want the groups {GROUPS}, filled, found {sorted(groups)}")
    return wrong


def other_lists(root):
    """Yields what installs packages by name outside the installer."""
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not SKIP.fullmatch(name)]
        for name in names:
            path = os.path.relpath(os.path.join(folder, name), root)
            if path == INSTALLER or not TEXT.fullmatch("/" + path):
                continue
            with open(os.path.join(root, path), encoding="utf-8", errors="replace") as file:
                for number, line in enumerate(file, 1):
                    if INSTALL.search(line):
                        yield f"{path}:{number}: installs packages itself: {line.strip()}"


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    root = sys.argv[1]
    planted = "RUN apt-get -y inst" + "all --no-install-recommends cmake"
    wrong = [] if INSTALL.search(planted) else ["the pattern misses what it is for"]
    wrong += read_list(os.path.join(root, LIST)) + list(other_lists(root))
    print("\n".join(wrong) or "one list, well formed")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
