"""What every storage promises, asked of all of them: memory, a folder, and S3 by two servers."""

from __future__ import annotations

import os
import pickle
import secrets
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Barrier, Event

import pytest
from examples import examples
from fault_proxy import FaultProxy
from hypothesis import given
from hypothesis import strategies as st
from narrowing import present
from s3_servers import BUCKET, client
from waiting import PATIENCE_S

from mtl_cloud.errors import AlreadyExistsError, NotFoundError, StorageError
from mtl_cloud.storage import Entry, FolderStorage, MemoryStorage, Storage, open_storage, remote

# --- whole objects ---


def test_what_was_written_is_read_back_and_replaced_whole(storage: Storage) -> None:
    storage.write("a/b.json", b"first, and longer")
    storage.write("a/b.json", b"second")
    assert storage.read("a/b.json") == b"second"


def test_every_byte_and_no_byte_survive(storage: Storage) -> None:
    every = bytes(range(256)) * 5000
    storage.write("every", every)
    storage.create("none", b"")
    assert (storage.read("every"), storage.read("none")) == (every, b"")


def test_an_absent_object_is_not_found_and_nothing_else_is(storage: Storage) -> None:
    storage.write("a/b", b"1")
    for key in ("b", "a", "a/b/c", "a/bb"):
        with pytest.raises(NotFoundError, match=f"{key}: no such object"):
            storage.read(key)


def test_a_range_is_those_bytes_as_far_as_the_object_goes(storage: Storage) -> None:
    data = bytes(range(256)) * 40
    storage.write("a/b", data)
    for offset, size in [(0, 1), (0, len(data)), (1000, 77), (len(data) - 5, 5), (len(data) - 5, 50), (len(data), 9)]:
        assert storage.read_range("a/b", offset, size) == data[offset : offset + size]
    with pytest.raises(NotFoundError, match="a/c: no such object"):
        storage.read_range("a/c", 0, 1)


def test_create_takes_a_free_key_once(storage: Storage) -> None:
    storage.create("claim", b"mine")
    with pytest.raises(AlreadyExistsError, match="claim: exists already"):
        storage.create("claim", b"theirs")
    assert storage.read("claim") == b"mine"


def test_a_deleted_key_is_free_again_and_deleting_twice_is_silent(storage: Storage) -> None:
    storage.create("a/b/c", b"1")
    storage.delete("a/b/c")
    storage.delete("a/b/c")
    storage.delete("never/was")
    assert storage.list("") == []
    storage.create("a/b/c", b"2")
    assert storage.read("a/b/c") == b"2"


# --- listings ---


def test_list_is_recursive_sorted_by_key_and_takes_any_string_prefix(storage: Storage) -> None:
    for key in ("runs/b/2", "runs/a/deep/er/1", "runs/a-1/x", "runs/a/0", "other"):
        storage.write(key, key.encode())
    assert [key for key, _ in storage.list("runs/a")] == ["runs/a-1/x", "runs/a/0", "runs/a/deep/er/1"]
    assert storage.list("runs/b/") == [Entry("runs/b/2", 8)]
    assert len(storage.list("")) == 5
    assert storage.list("none/") == storage.list("runs/a/0/") == storage.list("runs/c") == []


def test_children_are_the_next_names_once_each(storage: Storage) -> None:
    for key in ("runs/b/2", "runs/b/3", "runs/a/deep/er/1", "runs/a-1", "other"):
        storage.write(key, b"1")
    assert storage.children("runs/") == ("a", "a-1", "b")
    assert storage.children("") == ("other", "runs")
    assert storage.children("none/") == ()


@pytest.mark.parametrize(
    "storage", ["memory", "folder", pytest.param("seaweedfs", marks=pytest.mark.slow)], indirect=True
)
def test_a_listing_of_more_than_a_page_is_whole(storage: Storage) -> None:
    keys = [f"log/{number:06d}.txt" for number in range(1100)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: storage.create(key, b"x"), keys))
    assert [key for key, _ in storage.list("log/")] == keys
    assert len(storage.children("log/")) == len(keys)


def test_a_listing_shows_what_another_client_has_just_written(storage: Storage) -> None:
    other = open_storage(storage.url)
    for number in range(3):
        other.write(f"a/{number}", b"")
        assert len(storage.list("a/")) == len(storage.children("a/")) == number + 1


# --- keys ---


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "../a", "a/../b", "a/.hidden", ".", "a\\b", "a b", "a\n", "é"])
def test_a_key_that_is_not_portable_is_refused(key: str) -> None:
    for use in (MemoryStorage().read, lambda key: MemoryStorage().write(key, b""), MemoryStorage().delete):
        with pytest.raises(StorageError, match="invalid key"):
            use(key)


KEYS = st.lists(st.sampled_from(["a", "b", "0001.json", "a-b", "Z_=+@,9"]), min_size=1, max_size=3).map("/".join)
ACTIONS = st.lists(st.tuples(st.sampled_from(["write", "create", "delete"]), KEYS, st.binary(max_size=64)), max_size=12)


@examples(15, reuse_fixtures=True)
@given(actions=ACTIONS)
def test_any_sequence_of_actions_leaves_what_it_leaves_in_a_dict(
    storage: Storage, actions: list[tuple[str, str, bytes]]
) -> None:
    top, model, used = secrets.token_hex(8), dict[str, bytes](), set[str]()
    for action, key, data in ((action, f"{top}/{key}", data) for action, key, data in actions):
        if any(key.startswith(f"{other}/") or other.startswith(f"{key}/") for other in used):
            continue  # an object's key is never the folder of another's, deleted ones included
        used.add(key)
        if action == "delete":
            storage.delete(key)
            model.pop(key, None)
        elif action == "create" and key in model:
            with pytest.raises(AlreadyExistsError):
                storage.create(key, data)
        else:
            getattr(storage, action)(key, data)
            model[key] = data
    assert storage.list(f"{top}/") == [Entry(key, len(data)) for key, data in sorted(model.items())]
    assert {key: storage.read(key) for key in model} == model


# --- concurrency ---


def test_a_reader_sees_the_old_object_or_the_new_never_a_mixture(storage: Storage) -> None:
    versions = [bytes([number]) * 200_000 for number in range(20)]
    storage.write("a/b", versions[0])
    done = Event()

    def read_on() -> Counter[int]:
        seen: Counter[int] = Counter()
        while not done.is_set():
            data = storage.read("a/b")
            assert data in versions
            assert storage.list("a/") == [Entry("a/b", 200_000)]
            seen[data[0]] += 1
        return seen

    with ThreadPoolExecutor(3) as pool:
        readers = [pool.submit(read_on) for _ in range(3)]
        for data in versions:
            storage.write("a/b", data)
        done.set()
    assert sum((reader.result() for reader in readers), Counter()).total() > 0


def test_one_of_many_threads_creates_a_key(storage: Storage) -> None:
    barrier = Barrier(8)

    def create(number: int) -> list[int]:
        barrier.wait()
        return [key for key in range(10) if _creates(storage, f"claims/{key}", f"{number}")]

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(create, range(8)))
    winners = {key: number for number, keys in enumerate(won) for key in keys}
    assert sorted(key for keys in won for key in keys) == list(range(10))
    assert all(storage.read(f"claims/{key}") == f"{number}".encode() for key, number in winners.items())


def _creates(storage: Storage, key: str, data: str) -> bool:
    try:
        storage.create(key, data.encode())
    except AlreadyExistsError:
        return False
    return True


CLAIMANT = """
import sys
from mtl_cloud.errors import AlreadyExistsError
from mtl_cloud.storage import open_storage

url, name = sys.argv[1:]
storage = open_storage(url)
storage.list("")
print("ready", flush=True)
sys.stdin.readline()
for number in range(20):
    try:
        storage.create(f"claims/{number}", name.encode())
        print(number)
    except AlreadyExistsError:
        pass
"""


@pytest.mark.parametrize("shared_storage", ["folder", "seaweedfs"], indirect=True)
def test_one_of_many_processes_creates_a_key(shared_storage: Storage) -> None:
    claimants = [
        subprocess.Popen(
            [sys.executable, "-c", CLAIMANT, shared_storage.url, f"{number}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    for claimant in claimants:
        assert present(claimant.stdout).readline() == "ready\n"
    for claimant in claimants:
        present(claimant.stdin).write("go\n")
        present(claimant.stdin).flush()
    won = [claimant.communicate(timeout=PATIENCE_S)[0].split() for claimant in claimants]
    assert sorted(int(number) for numbers in won for number in numbers) == list(range(20))
    for name, numbers in enumerate(won):
        assert all(shared_storage.read(f"claims/{number}") == f"{name}".encode() for number in numbers)


# --- opening ---


def test_a_storage_is_reopened_by_its_url(storage: Storage) -> None:
    storage.write("a", b"1")
    reopened = open_storage(storage.url)
    assert (reopened.url, reopened.read("a")) == (storage.url, b"1")


def test_a_shared_storage_can_be_pickled_for_worker_processes(shared_storage: Storage) -> None:
    shared_storage.write("a", b"1")
    assert pickle.loads(pickle.dumps(shared_storage)).read("a") == b"1"


def test_a_folder_is_named_by_path_by_url_and_from_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    FolderStorage(tmp_path / "runs").write("a", b"1")
    for name in ("runs", "./runs/", "~/runs", f"file://{tmp_path}/runs", tmp_path / "runs"):
        storage = open_storage(name)
        assert (storage.url, storage.read("a")) == (str(tmp_path / "runs"), b"1")


def test_opening_makes_no_folder(tmp_path: Path) -> None:
    storage = open_storage(tmp_path / "later")
    assert storage.list("") == []
    assert not (tmp_path / "later").exists()


@pytest.mark.parametrize("url", ["", "nonsense://bucket"])
def test_a_url_that_nothing_can_open_is_refused(url: str) -> None:
    with pytest.raises(StorageError, match=r"URL|nonsense"):
        open_storage(url)


def test_credentials_never_show_in_the_url() -> None:
    storage = open_storage("http://someone:hunter2@127.0.0.1/runs")
    assert storage.url == "http://127.0.0.1/runs"
    assert "hunter2" not in repr(storage)


def test_s3_without_s3fs_names_the_extra() -> None:
    program = "import sys; sys.modules['s3fs'] = None; import mtl_cloud.storage as s; s.open_storage('s3://bucket')"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "MissingExtraError: the storage s3://bucket needs the extra 'aws'" in ended.stderr


# --- what only a folder can get wrong ---


def test_unfinished_and_foreign_hidden_files_of_a_folder_are_not_listed(tmp_path: Path) -> None:
    storage = FolderStorage(tmp_path)
    storage.write("a/b", b"1")
    (tmp_path / "a" / ".b.swp").write_bytes(b"")
    (tmp_path / ".partial" / "left-by-a-kill").write_bytes(b"half")
    assert (storage.list(""), storage.children("")) == ([Entry("a/b", 1)], ("a",))


def test_a_folder_keeps_no_empty_folders(tmp_path: Path) -> None:
    storage = FolderStorage(tmp_path)
    storage.write("a/b/c", b"1")
    storage.write("a/d", b"1")
    storage.delete("a/b/c")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".partial", "a"]
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["d"]
    (tmp_path / "e" / "f").mkdir(parents=True)
    assert storage.children("") == ("a",)


def test_a_folder_that_is_pruned_while_it_is_written_to_loses_nothing(tmp_path: Path) -> None:
    storage = FolderStorage(tmp_path)

    def churn(name: int) -> None:
        for _ in range(100):
            storage.write(f"a/b/{name}", b"1")
            storage.delete(f"a/b/{name}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(churn, range(4)))
    assert storage.list("") == []


def test_a_folder_that_cannot_be_written_is_named_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match=r"file/a: .*(directory|exists)"):
        FolderStorage(tmp_path / "file").write("a", b"1")


# --- what only S3 can get wrong ---


def test_a_missing_bucket_is_not_a_missing_object(s3_storage: Storage) -> None:
    elsewhere = open_storage("s3://no-such-bucket-of-ours/prefix")
    uses: list[Callable[[], object]] = [lambda: elsewhere.read("a"), lambda: elsewhere.list("")]
    for use in uses:
        with pytest.raises(StorageError, match=r"no-such-bucket-of-ours.*bucket does not exist") as caught:
            use()
        assert not isinstance(caught.value, NotFoundError)
        assert caught.value.__cause__ is not None
        assert "bucket" in present(caught.value.hint)


@pytest.mark.parametrize("s3_storage", ["seaweedfs"], indirect=True)
def test_a_refusal_is_not_a_missing_object(s3_storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    stranger = open_storage(s3_storage.url)
    with pytest.raises(StorageError, match="cannot read") as caught:
        stranger.read("a")
    assert not isinstance(caught.value, NotFoundError)
    assert "credentials" in present(caught.value.hint)
    assert "wrong" not in str(caught.value)


def test_missing_credentials_are_named(s3_storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StorageError, match="credentials") as caught:
        open_storage(s3_storage.url).read("a")
    assert "aws configure" in present(caught.value.hint)


@pytest.mark.parametrize("s3_storage", ["moto"], indirect=True)
def test_an_endpoint_that_does_not_answer_is_named(s3_storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match=r"127\.0\.0\.1:9") as caught:
        open_storage(s3_storage.url).read("a")
    assert "AWS_ENDPOINT_URL" in present(caught.value.hint)


@pytest.mark.parametrize("s3_storage", ["seaweedfs"], indirect=True)
def test_a_part_of_a_checkpoint_is_one_put(s3_storage: Storage) -> None:
    s3_storage.write("part", bytes(70_000_000))
    key = f"{s3_storage.url}/part".removeprefix(f"s3://{BUCKET}/")
    head = client(os.environ["AWS_ENDPOINT_URL"]).head_object(Bucket=BUCKET, Key=key)
    assert head["ContentLength"] == 70_000_000
    assert "-" not in head["ETag"]  # of a multipart upload it would hold the number of parts
    assert s3_storage.read("part") == bytes(70_000_000)


@pytest.mark.parametrize("s3_storage", ["seaweedfs"], indirect=True)
def test_a_large_object_that_is_damaged_on_its_way_is_refused(
    s3_storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_PATIENCE_S", 0.0)
    assert s3_storage.list("") == []  # connected now, past the proxy
    faults = FaultProxy(os.environ["AWS_ENDPOINT_URL"], rate=1.0, stall_s=0, kinds=("flip in PUT",))
    with faults.serving() as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        spoilt = open_storage(s3_storage.url)
        with pytest.raises(StorageError, match="BadDigest"):
            spoilt.write("part", memoryview(bytes(2_000_000)))
        assert faults.injected == {"flip in PUT": 1}
        assert s3_storage.list("part") == []
        faults.rate = 0.0
        spoilt.write("part", memoryview(bytes(2_000_000)))
    assert s3_storage.read("part") == bytes(2_000_000)


@pytest.mark.parametrize("threads", [1, 4])
def test_large_objects_come_from_any_memory_and_any_thread(s3_storage: Storage, threads: int) -> None:
    images = [bytes([n]) * 3_000_000 for n in range(8)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda n: s3_storage.write(f"{n}", memoryview(bytearray(images[n]))), range(8)))
    assert [s3_storage.read(f"{n}") for n in range(8)] == images


# --- what unfinished writes leave ---


def test_a_sweep_of_a_folder_takes_old_unfinished_files_and_nothing_else(tmp_path: Path) -> None:
    storage = FolderStorage(tmp_path)
    storage.write("runs/a/part", b"1")
    for name, age_s in (("old", 7200), ("young", 60)):
        (tmp_path / ".partial" / name).write_bytes(b"half")
        os.utime(tmp_path / ".partial" / name, (time.time() - age_s,) * 2)
    assert storage.sweep("runs/a/", datetime.now(UTC) - timedelta(hours=1)) == 1
    assert [path.name for path in (tmp_path / ".partial").iterdir()] == ["young"]
    assert storage.list("") == [Entry("runs/a/part", 1)]


@pytest.mark.parametrize("s3_storage", ["seaweedfs"], indirect=True)
def test_a_sweep_of_a_bucket_aborts_old_uploads_below_the_prefix_and_no_others(s3_storage: Storage) -> None:
    root = s3_storage.url.removeprefix(f"s3://{BUCKET}/")
    s3 = client(os.environ["AWS_ENDPOINT_URL"])
    for key in ("runs/a/part", "runs/ab/part"):
        s3.create_multipart_upload(Bucket=BUCKET, Key=f"{root}/{key}")
    assert s3_storage.sweep("runs/a/", datetime.now(UTC) - timedelta(hours=1)) == 0
    assert s3_storage.sweep("runs/a/", datetime.now(UTC) + timedelta(hours=1)) == 1
    left = s3.list_multipart_uploads(Bucket=BUCKET, Prefix=f"{root}/")["Uploads"]
    assert [upload["Key"] for upload in left] == [f"{root}/runs/ab/part"]


def test_a_sweep_finds_nothing_where_all_is_finished(storage: Storage) -> None:
    storage.write("runs/a/part", b"1")
    assert storage.sweep("runs/a/", datetime.now(UTC) + timedelta(hours=1)) == 0
    assert storage.read("runs/a/part") == b"1"


# --- a full disk ---

FILL = """
import sys
from mtl_cloud.errors import StorageError
from mtl_cloud.storage import FolderStorage
storage = FolderStorage(sys.argv[1])
storage.write("runs/a/kept", b"k" * 100_000)
for act in (storage.write, storage.create):
    try:
        act("runs/a/part", bytes(3_000_000))
    except StorageError as error:
        print(error)
print([entry.key for entry in storage.list("")], storage.read("runs/a/kept") == b"k" * 100_000)
storage.write("runs/a/part", bytes(1_500_000))
"""


def _on_a_small_disk(folder: Path, code: str) -> list[str]:
    """Lines that the program prints, whose folder is a disk of 2 MB."""
    mount = f'mount -t tmpfs -o size=2m tmpfs "{folder}" && exec "$@"'
    unshare = ["unshare", "--mount", "--map-root-user"]
    if not shutil.which("unshare") or subprocess.run([*unshare, "true"], check=False, capture_output=True).returncode:
        pytest.skip("needs leave to make a mount namespace")
    program = [sys.executable, "-c", code, str(folder)]
    answer = subprocess.run([*unshare, "sh", "-c", mount, "sh", *program], check=True, capture_output=True, text=True)
    return answer.stdout.splitlines()


def test_a_full_disk_commits_nothing_half_and_keeps_no_room(tmp_path: Path) -> None:
    *errors, last = _on_a_small_disk(tmp_path, FILL)
    assert errors == [f"{tmp_path}/runs/a/part: No space left on device"] * 2
    assert last == "['runs/a/kept'] True"
