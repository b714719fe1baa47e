"""What goes wrong in a state repo, one function a mishap: it changes the tree and says what it did.

A mishap that finds nothing to work on returns "". Everything hangs on the `Random` it is given.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from random import Random

from tests.fakes.state_source import Entry
from tests.faults import repo

Tree = dict[str, Entry]
Fault = Callable[[Tree, Random], str]

_ENDINGS = (
    ".yml", ".YAML", ".Yaml", ".yaml.bak", ".yaml~", ".yaml.orig", ".yml.disabled", ".yaml.txt",
    ".yam", ".yaml.swp", "",
)  # fmt: skip
_CONFLICT = b"<<<<<<< HEAD\n  note: ours\n=======\n  note: theirs\n>>>>>>> branch\n"


def _paths(tree: Tree, part: str = "") -> list[str]:
    """Files with content, most of them where instances stand."""
    return [p for p in sorted(tree) if part in p and isinstance(tree[p], bytes) and "/" in p]


def pick(tree: Tree, rng: Random) -> str:
    """Some file, every other time one of an instance."""
    found = _paths(tree, "/instances/" if rng.random() < 0.5 else "")
    return rng.choice(found) if found else ""


def _content(tree: Tree, path: str) -> bytes:
    found = tree.get(path, b"")
    return found if isinstance(found, bytes) else b""


def _folders(tree: Tree) -> list[str]:
    found = {"/".join(p.split("/")[:depth]) for p in tree for depth in range(1, p.count("/") + 1)}
    return sorted(found)


def _move(tree: Tree, path: str, to: str) -> str:
    if not path or to in tree or path == to:
        return ""
    tree[to] = tree.pop(path)
    return f"git mv {path} {to}"


def _move_folder(tree: Tree, folder: str, to: str) -> str:
    for path in [p for p in tree if p.startswith(folder + "/")]:
        tree[to + path.removeprefix(folder)] = tree.pop(path)
    return f"git mv {folder} {to}"


def _typo(word: str, rng: Random) -> str:
    """One letter dropped, doubled, swapped or in the wrong case."""
    if len(word) < 2:
        return word + word
    at = rng.randrange(len(word) - 1)
    return rng.choice(
        (
            word[:at] + word[at + 1 :],
            word[: at + 1] + word[at:],
            word[:at] + word[at + 1] + word[at] + word[at + 2 :],
            word[:at] + word[at].swapcase() + word[at + 1 :],
        )
    )


def delete_file(tree: Tree, rng: Random) -> str:
    path = pick(tree, rng)
    if path:
        del tree[path]
    return path and f"git rm {path}"


def delete_several(tree: Tree, rng: Random) -> str:
    """More than any budget allows, now and then."""
    found = _paths(tree, "/instances/")
    gone = rng.sample(found, min(len(found), rng.randrange(2, 20)))
    for path in gone:
        del tree[path]
    return f"git rm {' '.join(gone)}" if gone else ""


def delete_folder(tree: Tree, rng: Random) -> str:
    """A project's, a tenant's, the nodes', or `instances/` as a sparse clone would leave it."""
    folders = _folders(tree)
    if not folders:
        return ""
    folder = rng.choice(folders)
    for path in [p for p in tree if p.startswith(folder + "/")]:
        del tree[path]
    return f"git rm -r {folder}"


def delete_document(tree: Tree, rng: Random) -> str:
    """One document of a file that holds several."""
    path = _shared(tree, rng)
    documents = _content(tree, path).split(b"---\n")
    if len(documents) < 2:
        return ""
    number = rng.randrange(len(documents))
    del documents[number]
    tree[path] = b"---\n".join(documents)
    return f"document {number} cut out of {path}"


def _shared(tree: Tree, rng: Random) -> str:
    found = [p for p in _paths(tree, "/instances/") if b"---\n" in _content(tree, p)]
    return rng.choice(found) if found else ""


def decommission(tree: Tree, rng: Random) -> str:
    found = _paths(tree, "/instances/")
    path = rng.choice(found) if found else ""
    if b"desired: running" not in _content(tree, path):
        return ""
    tree[path] = _content(tree, path).replace(b"desired: running", b"desired: decommissioned", 1)
    return f"decommissioned in {path}"


def empty_repo(tree: Tree, rng: Random) -> str:
    kept = {} if rng.random() < 0.5 else {"README.md": tree.get("README.md", b"")}
    tree.clear()
    tree.update(kept)
    return "git rm -r ."


def rename_file(tree: Tree, rng: Random) -> str:
    """The file's name only; what it says of itself stays."""
    path = pick(tree, rng)
    folder, _, file = path.rpartition("/")
    stem, _, ending = file.rpartition(".")
    return _move(tree, path, f"{folder}/{_typo(stem, rng)}.{ending}")


def rename_instance(tree: Tree, rng: Random) -> str:
    """The file's name and what it says of itself."""
    found = _paths(tree, "/instances/")
    path = rng.choice(found) if found else ""
    folder, _, file = path.rpartition("/")
    stem = file.rpartition(".")[0]
    new = f"{stem}-new"
    done = _move(tree, path, f"{folder}/{new}.yaml")
    if done:
        text = _content(tree, f"{folder}/{new}.yaml")
        tree[f"{folder}/{new}.yaml"] = text.replace(
            f"name: {stem}\n".encode(), f"name: {new}\n".encode()
        )
    return done and f"{done} and its name"


def rename_as_moved(tree: Tree, rng: Random) -> str:
    """The way it should be done."""
    before = set(tree)
    done = rename_instance(tree, rng)
    for path in set(tree) - before:
        old = path.rpartition("/")[2].removesuffix("-new.yaml")
        tree[path] = _content(tree, path) + f"  moved_from: {old}\n".encode()
    return done and f"{done}, with moved_from"


def rename_in_place(tree: Tree, rng: Random) -> str:
    """What it says of itself, not the file; in a file of several nothing else would show it."""
    path = _shared(tree, rng) if rng.random() < 0.5 else pick(tree, rng)
    names = re.findall(rb"name: ([-a-z0-9]+)\n", _content(tree, path))
    if not names:
        return ""
    name = rng.choice(names)
    other = _typo(name.decode(), rng).encode()
    tree[path] = _content(tree, path).replace(b"name: " + name + b"\n", b"name: " + other + b"\n")
    return f"{name.decode()} called {other.decode()} in {path}"


def wrong_ending(tree: Tree, rng: Random) -> str:
    path = pick(tree, rng)
    return _move(tree, path, re.sub(r"\.ya?ml$", "", path) + rng.choice(_ENDINGS))


def typo_in_path(tree: Tree, rng: Random) -> str:
    """A file lands in a folder whose name is misspelt."""
    path = pick(tree, rng)
    parts = path.split("/")
    at = rng.randrange(len(parts))
    parts[at] = _typo(parts[at], rng)
    return _move(tree, path, "/".join(parts))


def typo_in_folder(tree: Tree, rng: Random) -> str:
    """The same for a whole folder and all that is in it."""
    folders = _folders(tree)
    if not folders:
        return ""
    folder = rng.choice(folders)
    above, _, name = folder.rpartition("/")
    to = f"{above}/{_typo(name, rng)}".lstrip("/")
    return "" if to in folders or to in tree else _move_folder(tree, folder, to)


def out_of_place(tree: Tree, rng: Random) -> str:
    """A file or folder dragged to where nothing is read, or one level up or down."""
    if rng.random() < 0.5:
        path = pick(tree, rng)
        folder, _, file = path.rpartition("/")
        up = folder.rpartition("/")[0]
        to = (file, f"old/{path}", f"{folder}/old/{file}", f"{up}/{file}".lstrip("/"))
        return _move(tree, path, rng.choice(to))
    folders = [f for f in _folders(tree) if "/" in f]
    if not folders:
        return ""
    folder = rng.choice(folders)
    above, _, name = folder.rpartition("/")
    to_folder = rng.choice((name, f"attic/{folder}", f"{above}/attic/{name}"))
    return "" if to_folder in _folders(tree) else _move_folder(tree, folder, to_folder)


def other_owner(tree: Tree, rng: Random) -> str:
    """A file lands in another project, or a project in another tenant."""
    path = pick(tree, rng)
    tenant, project, _ = rng.choice(repo.PROJECTS)
    if not path.startswith("tenants/") or "/projects/" not in path:
        return ""
    rest = path.split("/")[4:]
    return _move(tree, path, "/".join(["tenants", tenant, "projects", project, *rest]))


def truncate(tree: Tree, rng: Random) -> str:
    path = pick(tree, rng)
    content = _content(tree, path)
    at = rng.randrange(len(content) + 1) if content else 0
    tree[path or "README.md"] = content[:at]
    return f"{path} cut off after {at} bytes"


def flip_bytes(tree: Tree, rng: Random) -> str:
    path = pick(tree, rng)
    content = bytearray(_content(tree, path))
    for _ in range(rng.choice((1, 1, 1, 5)) if content else 0):
        at = rng.randrange(len(content))
        content[at] = (
            rng.randrange(256) if rng.random() < 0.3 else content[at] ^ 1 << rng.randrange(7)
        )
    if path:
        tree[path] = bytes(content)
    return path and f"bytes flipped in {path}"


def insert_junk(tree: Tree, rng: Random) -> str:
    """Tabs, conflict markers, halves of other lines, an anchor, a second document that is none."""
    path = pick(tree, rng)
    lines = _content(tree, path).splitlines(keepends=True)
    at = rng.randrange(len(lines) + 1)
    junk = rng.choice(
        (b"\tname: x\n", _CONFLICT, b"  spec: &a {}\n", b"---\n- no\n", b"---\n", b"}\n")
    )
    if path:
        tree[path] = b"".join([*lines[:at], junk, *lines[at:]])
    return path and f"{junk!r} at line {at + 1} of {path}"


def empty_file(tree: Tree, rng: Random) -> str:
    path = pick(tree, rng)
    if path:
        tree[path] = rng.choice((b"", b"\n", b"# moved\n", b"---\n"))
    return path and f"{path} emptied"


def not_a_file(tree: Tree, rng: Random) -> str:
    """A link, a submodule, or far too much of it."""
    path = pick(tree, rng)
    instead: Entry = rng.choice((("symlink", "../x"), ("submodule", "1" * 40), b"#" * (1 << 20)))
    if path and instead == b"#" * (1 << 20):
        instead = _content(tree, path) + b"#" * (1 << 20)
    if path:
        tree[path] = instead
    return path and f"{path} is a {instead[0] if isinstance(instead, tuple) else 'huge file'}"


def not_a_folder(tree: Tree, rng: Random) -> str:
    folders = _folders(tree)
    if not folders:
        return ""
    folder = rng.choice(folders)
    for path in [p for p in tree if p.startswith(folder + "/")]:
        del tree[path]
    tree[folder] = rng.choice((("symlink", "../x"), ("submodule", "1" * 40)))
    return f"{folder} is a {tree[folder][0]}"


def duplicate(tree: Tree, rng: Random) -> str:
    """A document copied into a second file."""
    path = pick(tree, rng)
    folder, _, file = path.rpartition("/")
    to = f"{folder}/copy-{file}"
    if path and to not in tree:
        tree[to] = tree[path]
    return path and f"cp {path} {to}"


def merge_files(tree: Tree, rng: Random) -> str:
    """One file's documents appended to another in the same folder, which is then deleted."""
    path = pick(tree, rng)
    folder = path.rpartition("/")[0]
    others = [p for p in _paths(tree, folder + "/") if p != path and p.rpartition("/")[0] == folder]
    if not others:
        return ""
    to = rng.choice(others)
    glue = b"---\n" if rng.random() < 0.8 else b""
    tree[to] = _content(tree, to) + glue + _content(tree, path)
    del tree[path]
    return f"cat {path} >> {to}; git rm {path}{'' if glue else ' (no ---)'}"


def swap_contents(tree: Tree, rng: Random) -> str:
    one, two = pick(tree, rng), pick(tree, rng)
    if not one or one == two:
        return ""
    tree[one], tree[two] = tree[two], tree[one]
    return f"{one} and {two} swapped"


def overwrite(tree: Tree, rng: Random) -> str:
    """One file saved over another."""
    one, two = pick(tree, rng), pick(tree, rng)
    if not one or one == two:
        return ""
    tree[two] = tree[one]
    return f"cp {one} {two}"


def change_kind(tree: Tree, rng: Random) -> str:
    path = pick(tree, rng)
    kind = rng.choice((b"Appinstance", b"Allocation", b"ConfigMap", b"", b"[AppInstance]"))
    if path:
        tree[path] = re.sub(rb"kind: [A-Z]\w+", b"kind: " + kind, _content(tree, path), count=1)
    return path and f"kind {kind.decode()} in {path}"


def change_field(tree: Tree, rng: Random) -> str:
    """A line gone, or a value of another type."""
    path = pick(tree, rng)
    lines = _content(tree, path).splitlines(keepends=True)
    if not lines:
        return ""
    at = rng.randrange(len(lines))
    said = lines.pop(at)
    if rng.random() < 0.5:
        lines.insert(at, said.partition(b":")[0] + rng.choice((b": [1]\n", b": nothing\n", b":\n")))
    tree[path] = b"".join(lines)
    return f"line {at + 1} of {path} changed"


def older_file(tree: Tree, rng: Random) -> str:
    path = pick(tree, rng)
    older = repo.older_files()
    if path in older:
        tree[path] = older[path]
    return path if path in older else ""


def older_repo(tree: Tree, rng: Random) -> str:
    tree.clear()
    tree.update(repo.older_files())
    return "the whole repo is some commits old"


def other_line_ends(tree: Tree, rng: Random) -> str:
    """What an editor on another system does; it means nothing."""
    for path in _paths(tree):
        if rng.random() < 0.5:
            tree[path] = _content(tree, path).replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    return "CRLF here and there"


def byte_order_mark(tree: Tree, rng: Random) -> str:
    for path in _paths(tree):
        if rng.random() < 0.2 and not _content(tree, path).startswith(b"\xef\xbb\xbf"):
            tree[path] = b"\xef\xbb\xbf" + _content(tree, path)
    return "BOM here and there"


HARMLESS: tuple[Fault, ...] = (other_line_ends, byte_order_mark)
"""These change nothing but bytes."""

FAULTS: tuple[Fault, ...] = (
    delete_file, delete_several, delete_folder, delete_document, decommission, empty_repo,
    rename_file, rename_instance, rename_as_moved, rename_in_place, wrong_ending, typo_in_path,
    typo_in_folder, out_of_place, other_owner, truncate, flip_bytes, insert_junk, empty_file,
    not_a_file, not_a_folder, duplicate, merge_files, swap_contents, overwrite, change_kind,
    change_field, older_file, older_repo, *HARMLESS,
)  # fmt: skip
_RARE: dict[Fault, float] = {empty_repo: 0.2, older_repo: 0.3, not_a_folder: 0.5}


def damage(tree: Tree, rng: Random) -> list[str]:
    """One to five mishaps at once; what they were."""
    weights = [_RARE.get(fault, 1.0) for fault in FAULTS]
    done: list[str] = []
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4, 5))):
        fault = rng.choices(FAULTS, weights)[0]
        what = fault(tree, rng)
        if what:
            done.append(f"{fault.__name__}: {what}")
    return done
