"""A registry's files: the same in a folder, in memory and in an S3-compatible store.

That store is a SeaweedFS of the tests' own. With OVERSPILL_TEST_S3 (`s3://bucket/prefix`,
and the AWS_… variables) it is any other.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from obstore.store import MemoryStore

from bundle.folder_tree import FolderTree
from bundle.object_tree import ObjectTree, open_bucket
from bundle.open_tree import open_tree
from bundle.source import NotThere, SourceUnavailable
from bundle.tree import BadPlace, Leaf, Tree, TreeUnavailable, check_path
from bundle.tree_source import TreeSource
from tests.seaweed import FLEET, WORKER, Key, PrivateSeaweed

REAL = os.environ.get("OVERSPILL_TEST_S3")
WORDS = [
    "targets/fashion/ab.2.0.4.json",
    "targets/digits/cd.1.2.json",
    "blobs/" + "0" * 64,
    "metadata/1.root.json",
    "desired/agent-1",
]


SignIn = Callable[[Key], None]


@pytest.fixture
def sign_in(monkeypatch: pytest.MonkeyPatch, seaweed: PrivateSeaweed) -> SignIn:
    """Whose key whoever opens a bucket from now on uses."""

    def use(key: Key) -> None:
        for name, value in seaweed.environment(key).items():
            monkeypatch.setenv(name, value)

    return use


@pytest.fixture
def place(seaweed: PrivateSeaweed, sign_in: SignIn) -> str:
    """A place of its own in the private store, to which the fleet may write."""
    sign_in(FLEET)
    return seaweed.fresh()


@pytest.fixture(params=["folder", "memory", "s3"])
def tree(request: pytest.FixtureRequest, tmp_path: Path) -> Tree:
    if request.param == "folder":
        return open_tree(tmp_path / "registry")
    if request.param == "memory":
        return ObjectTree(MemoryStore(), "memory")
    if REAL is not None:
        return open_tree(f"{REAL}/{os.urandom(6).hex()}")
    return open_tree(request.getfixturevalue("place"))


def test_what_was_written_is_read_whole_and_by_range(tree: Tree) -> None:
    tree.write("blobs/a", b"0123456789")
    assert tree.read("blobs/a", max_bytes=10) == b"0123456789"
    pieces = [tree.piece("blobs/a", *span) for span in [(0, 4), (4, 4), (8, 4)]]
    assert b"".join(each.data for each in pieces) == b"0123456789"
    assert {each.total_bytes for each in pieces} == {10}
    assert tree.piece("blobs/a", 10, 5).data == b""
    assert tree.piece("blobs/a", 99, 5).total_bytes == 10
    assert tree.piece("blobs/a", 3, 0).data == b""
    assert tree.size("blobs/a") == 10


def test_an_empty_file_is_a_file(tree: Tree) -> None:
    tree.write("desired/a", b"")
    assert tree.read("desired/a", max_bytes=1) == b""
    assert tree.piece("desired/a", 0, 5).total_bytes == 0
    assert tree.size("desired/a") == 0


def test_a_file_is_replaced_whole(tree: Tree) -> None:
    tree.write("metadata/timestamp.json", b"long" * 1000)
    tree.write("metadata/timestamp.json", b"short")
    assert tree.read("metadata/timestamp.json", max_bytes=9) == b"short"


def test_a_file_that_is_too_long_is_not_read(tree: Tree) -> None:
    tree.write("desired/a", b"x" * 100)
    with pytest.raises(OSError, match="has 100 bytes, over 99"):
        tree.read("desired/a", max_bytes=99)


def test_what_is_not_there_is_said(tree: Tree) -> None:
    tree.write("blobs/a", b"x")
    for path in ("blobs/b", "blobs", "nothing/at/all", "blobs/a/b"):
        with pytest.raises(NotThere):
            tree.piece(path, 0, 1)
    assert tree.size("blobs/b") is None
    assert tree.names("nothing") == []
    assert list(tree.list("nothing")) == []


@pytest.mark.parametrize(
    "path",
    ["", "/etc/passwd", "a//b", "../a", "a/../b", "a/.b", "a/b/", "a\0b", "é", "a b",
     "a" * 301, "a/b/c/d/e/f/g"],
)  # fmt: skip
def test_what_is_no_path_of_a_registry_leads_nowhere(path: str, tree: Tree) -> None:
    with pytest.raises(NotThere):
        tree.piece(path, 0, 1)
    with pytest.raises(ValueError, match="path of a registry"):
        tree.write(path, b"x")
    with pytest.raises(ValueError, match="path of a registry"):
        check_path(path)


def test_everything_is_listed_once_with_its_size(tree: Tree) -> None:
    files = {path: path.encode() for path in WORDS}
    tree.write_all(files)
    assert {each.path: each.size_bytes for each in tree.list()} == {
        path: len(path) for path in WORDS
    }
    (found,) = tree.list("targets/fashion")
    assert isinstance(found, Leaf)
    assert found.path == WORDS[0]
    assert found.changed_ms > 1_600_000_000_000
    assert list(tree.list("target")) == []


def test_names_are_those_of_one_folder_only(tree: Tree) -> None:
    tree.write_all({f"blobs/{n}": b"" for n in "54321"} | {"blobs/deep/x": b""})
    assert tree.names("blobs") == ["1", "2", "3", "4", "5"]


def test_many_files_are_written_at_once(tree: Tree) -> None:
    files = {f"desired/agent-{number}": str(number).encode() for number in range(100)}
    tree.write_all(files, durable=False)
    assert len(tree.names("desired")) == 100
    assert tree.read("desired/agent-77", max_bytes=9) == b"77"
    tree.write_all({}, durable=False)


def test_a_local_file_is_copied_whole(tree: Tree, tmp_path: Path) -> None:
    source = tmp_path / "packed"
    source.write_bytes(os.urandom(12 * 1024 * 1024 + 7))
    tree.write_copy("blobs/big", source)
    assert tree.size("blobs/big") == 12 * 1024 * 1024 + 7
    digest = hashlib.sha256()
    offset = 0
    while data := tree.piece("blobs/big", offset, 1024 * 1024).data:
        digest.update(data)
        offset += len(data)
    assert digest.hexdigest() == hashlib.sha256(source.read_bytes()).hexdigest()


def test_a_file_is_removed_and_removing_it_again_is_nothing(tree: Tree) -> None:
    tree.write("desired/a", b"x")
    tree.delete("desired/a")
    tree.delete("desired/a")
    tree.delete("nowhere/a")
    assert tree.size("desired/a") is None


def test_readers_see_the_old_bytes_or_the_new_and_nothing_else(tree: Tree) -> None:
    tree.write("metadata/timestamp.json", b"0" * 50_000)
    done = threading.Event()

    def write() -> None:
        for number in range(20):
            data = str(number % 10).encode() * 50_000
            tree.write("metadata/timestamp.json", data, durable=False)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        seen = tree.read("metadata/timestamp.json", max_bytes=50_000)
        assert len(seen) == 50_000
        assert len(set(seen)) == 1
    writer.join()


async def test_a_tree_is_a_source(tree: Tree) -> None:
    tree.write("blobs/a", b"0123456789")
    source = TreeSource(tree)
    assert (await source.read("blobs/a", 2, 3)).data == b"234"
    with pytest.raises(NotThere):
        await source.read("blobs/b", 0, 1)


def test_a_folder_keeps_unfinished_and_foreign_files_out_of_sight(
    tmp_path: Path,
) -> None:
    tree = FolderTree(tmp_path)
    tree.write("blobs/a", b"x")
    (tmp_path / "blobs" / ".b.1234.part").write_bytes(b"half")
    (tmp_path / "blobs" / "link").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "blobs" / "pipe")  # Nobody writes: whoever waits, hangs.
    assert [each.path for each in tree.list() if "." in each.path] == []
    with pytest.raises(OSError, match="symbolic link"):
        tree.piece("blobs/link", 0, 10)
    with pytest.raises(OSError, match="seek"):
        tree.piece("blobs/pipe", 0, 10)


def test_a_listing_of_several_pages_is_whole(place: str) -> None:
    tree = open_tree(place)
    files = {f"desired/agent-{number:04}": b"" for number in range(1_050)}
    tree.write_all(files)
    assert sorted(files) == [f"desired/{name}" for name in tree.names("desired")]
    assert {each.path for each in tree.list("desired")} == set(files)


@pytest.mark.parametrize(
    "key", [Key("somebody", FLEET.secret), Key(FLEET.access, "guessed")]
)
async def test_a_store_that_refuses_says_which_and_what_to_check(
    key: Key, place: str, sign_in: SignIn
) -> None:
    sign_in(key)
    tree = open_tree(place)
    with pytest.raises(TreeUnavailable, match="check AWS_ACCESS_KEY_ID"):
        tree.write("blobs/a", b"x")
    with pytest.raises(TreeUnavailable, match=f"{place}: blobs/a: "):
        tree.piece("blobs/a", 0, 1)
    with pytest.raises(SourceUnavailable, match="cannot read blobs/a"):
        await TreeSource(tree).read("blobs/a", 0, 1)


def test_a_worker_whose_key_only_reads_serves_and_cannot_write(
    place: str, sign_in: SignIn
) -> None:
    open_tree(place).write("blobs/a", b"0123")
    sign_in(WORKER)
    tree = open_tree(place)
    assert tree.piece("blobs/a", 1, 2).data == b"12"
    assert tree.size("blobs/a") == 4
    assert tree.names("blobs") == ["a"]
    with pytest.raises(TreeUnavailable, match="and what they may do"):
        tree.write("blobs/a", b"x")
    with pytest.raises(TreeUnavailable, match="and what they may do"):
        tree.delete("blobs/a")
    assert tree.read("blobs/a", max_bytes=4) == b"0123"


def test_a_store_that_is_down_ends_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, free_port: int
) -> None:
    for name, value in {
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port}",
    }.items():
        monkeypatch.setenv(name, value)
    tree = open_bucket("s3://bucket/fleet", retries=0)
    with pytest.raises(TreeUnavailable, match="check the network"):
        tree.read("blobs/a", max_bytes=9)
    with pytest.raises(TreeUnavailable, match="check the network"):
        list(tree.list("blobs"))
    with pytest.raises(TreeUnavailable, match="check the network"):
        tree.delete("blobs/a")


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("gs://bucket/x", "gs:// is not known"),
        ("s3://", "a bucket is s3://bucket/prefix"),
        ("s3://key:secret@bucket/x", "come from the environment"),
        ("s3://bucket/x?region=eu", "come from the environment"),
    ],
)
def test_a_place_that_is_none_is_refused(place: str, said: str) -> None:
    with pytest.raises(BadPlace, match=said) as caught:
        open_tree(place)
    assert "secret" not in str(caught.value)


def test_a_setting_that_cannot_be_read_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "perhaps")
    with pytest.raises(BadPlace, match="s3://bucket/x"):
        open_tree("s3://bucket/x")
