"""A command given on a machine that is not part of the cluster, its head being a folder of this one."""

from __future__ import annotations

import os
import pickle
import signal

import pytest

import slm_ray
from slm_ray.config.errors import UserError
from slm_ray.runtime import client, head_command, transfers
from slm_ray.runtime.client import client_address, connected
from slm_ray.runtime.head_command import HeadCommand
from slm_ray.runtime.luggage import Entry, pack
from slm_ray.runtime.outside import run_on
from slm_ray.runtime.progress import Console

CLUSTER = "10.0.0.1:6379"
ADDRESS = "ray://head:10001"
# A command that goes on where it was: it adds a line per call to a file of its run folder.
COMMAND = """
import pathlib, sys, time
words = sys.argv[1:]
out = pathlib.Path(words[words.index("--out" if "--out" in words else "--resume") + 1])
out.mkdir(parents=True, exist_ok=True)
with (out / "lines.txt").open("a") as file:
    file.write(" ".join(words) + "\\n")
print("run folder:", out)
print("at", words[words.index("--address") + 1], "of", pathlib.Path(words[-1]).read_text(), file=sys.stderr)
if "--wait" in words:
    try:
        print("waiting", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        (out / "interrupted").write_text("yes")
        sys.exit(130)
sys.exit(3 if "--fail" in words else 0)
"""


class Here:
    """The head, in this process; what is sent goes through pickle as Ray's would."""

    def __init__(self, folder="desk"):
        self.command, self.calls = HeadCommand(folder), []

    def call(self, method, *args):
        self.calls.append((method, *args))
        return pickle.loads(pickle.dumps(getattr(self.command, method)(*pickle.loads(pickle.dumps(args)))))


@pytest.fixture
def desk(tmp_path, monkeypatch):
    monkeypatch.setenv("SLM_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(head_command, "_PORTION_BYTES", 1000)
    desk = tmp_path / "desk"
    desk.mkdir()
    (desk / "texts").mkdir()
    (desk / "texts" / "a.txt").write_text("alpha")
    (tmp_path / "far.txt").write_text("far away " * 500)
    return desk


def run(desk, *words, module="told", head=None):
    (desk / "told.py").write_text(COMMAND)
    head = head or Here()
    head.command.root.mkdir(parents=True, exist_ok=True)
    (head.command.root / "told.py").write_text(COMMAND)
    return run_on(head, CLUSTER, f"{module}", ["--address", ADDRESS, *words], desk), head


class TestLuggage:
    def test_what_words_name_goes_along_and_has_a_place_there(self, desk, tmp_path):
        words = ["--data", "texts", f"--teacher={tmp_path}/far.txt", "--space", "fine", "--out", "runs/new"]
        found = pack(words, desk)
        there = f"outside{tmp_path}/far.txt"
        assert found.words == ["--data", "texts", f"--teacher={there}", "--space", "fine", "--out", "runs/new"]
        assert found.places == {"texts": desk / "texts", there: tmp_path / "far.txt", "runs/new": desk / "runs/new"}
        assert found.runs == {"runs/new"}
        assert found.back(f"teacher {there}") == f"teacher {tmp_path}/far.txt"
        assert pack([], desk).back(f"a run says '{there}', or outside/inside") == (
            f"a run says '{tmp_path}/far.txt', or outside/inside"
        )

    def test_parts_of_a_word_and_wild_cards(self, desk, tmp_path):
        found = pack(["--student", f"texts/a.txt,first=../far.txt,{tmp_path}/f*.txt", "--other", "texts/*.txt"], desk)
        there = f"outside{tmp_path}/far.txt"
        assert found.words[1] == f"texts/a.txt,first={there},outside{tmp_path}/f*.txt"
        assert set(found.places) == {"texts/a.txt", there}

    def test_files_that_a_file_of_options_names_go_along(self, desk):
        (desk / "options.yaml").write_text("data: texts\nset: [{teacher: missing}, 3]\n")
        assert set(pack(["--config", "options.yaml"], desk).places) == {"options.yaml", "texts"}

    def test_the_options_of_a_run_are_looked_into(self, desk, tmp_path):
        (desk / "run").mkdir()
        (desk / "run" / "config.json").write_text(f'{{"data": "texts", "teacher": "outside{tmp_path}/far.txt"}}')
        found = pack(["--resume", "run"], desk)
        assert set(found.places) == {"run", "texts", f"outside{tmp_path}/far.txt"}
        assert found.places[f"outside{tmp_path}/far.txt"] == tmp_path / "far.txt"

    def test_a_file_of_options_with_a_place_elsewhere_is_refused(self, desk, tmp_path):
        (desk / "options.yaml").write_text(f"data: {tmp_path}/far.txt\n")
        with pytest.raises(UserError, match=r"options\.yaml names .*far\.txt, which is not below"):
            pack(["--config", "options.yaml"], desk)

    def test_a_storage_is_the_same_place_for_both(self, desk, tmp_path):
        words = ["--storage", str(tmp_path), f"--storage={tmp_path}", "--note", "x" * 5000, "--model", "~nobody-here/x"]
        found = pack(words, desk)
        assert found.words == words and not found.places

    def test_the_whole_folder_is_not_sent(self, desk):
        with pytest.raises(UserError, match="would be sent whole"):
            pack(["--data", "."], desk)

    def test_the_address_of_rays_client(self):
        assert client_address(["--address", ADDRESS]) == client_address([f"--address={ADDRESS}"]) == ADDRESS
        assert client_address(["--address", "auto"]) is client_address(["--address"]) is client_address([]) is None


class TestCommand:
    def test_it_runs_there_and_its_files_come_back(self, desk, tmp_path, capfd):
        status, head = run(desk, "--out", "runs/x", "--data", f"{tmp_path}/far.txt")
        assert status == 0
        lines = (desk / "runs/x/lines.txt").read_text()
        assert lines == f"--address {CLUSTER} --out runs/x --data outside{tmp_path}/far.txt\n"
        shown = capfd.readouterr()
        assert shown.out == "run folder: runs/x\n"
        assert f"at {ADDRESS} of far away" in shown.err, "the cluster's own address is nothing to a reader here"
        sent = b"".join(args[3] for args in head.calls if args[0] == "write")
        assert sent == (b"far away " * 500)
        assert not list(head.command.root.glob(".*")), "what was printed is not kept"

    def test_what_is_there_is_not_sent_again_and_a_run_goes_on(self, desk):
        run(desk, "--out", "runs/x", "--data", "texts/a.txt")
        (desk / "runs/x/lines.txt").unlink()
        status, head = run(desk, "--resume", "runs/x", "--data", "texts/a.txt", head=Here())
        assert status == 0 and not [args for args in head.calls if args[0] == "write"]
        assert len((desk / "runs/x/lines.txt").read_text().splitlines()) == 2

    def test_a_run_of_this_machine_is_sent_where_the_head_has_none(self, desk):
        (desk / "runs/x").mkdir(parents=True)
        (desk / "runs/x/lines.txt").write_text("begun here\n")
        run(desk, "--resume", "runs/x", "--data", "texts/a.txt")
        assert (desk / "runs/x/lines.txt").read_text().startswith("begun here\n--address")

    def test_a_large_file_goes_in_portions_and_comes_back_whole(self, desk, monkeypatch):
        monkeypatch.setattr(transfers, "_PORTION_BYTES", 1000)
        (desk / "large.bin").write_bytes(os.urandom(3500) + b"\n")
        (desk / "empty").write_bytes(b"")
        head = Here()
        luggage = pack(["--data", "large.bin,empty"], desk)
        assert set(transfers.send(head, luggage, Console())) == {"large.bin", "empty"}
        assert [args[2] for args in head.calls if args[0] == "write"] == [0, 1000, 2000, 3000, 0]
        before = (desk / "large.bin").read_bytes()
        (desk / "large.bin").unlink()
        transfers.fetch(head, luggage, {}, Console())
        assert (desk / "large.bin").read_bytes() == before == (head.command.root / "large.bin").read_bytes()

    def test_what_was_changed_here_meanwhile_is_not_overwritten(self, desk, monkeypatch):
        """And a file that the command changed beside its run comes back."""
        head = Here()
        call = head.call

        def edited(method, *args):
            if method == "start":
                (desk / "texts" / "a.txt").write_text("edited while it ran")
                (head.command.root / "texts" / "README.md").write_text("a card")
            return call(method, *args)

        monkeypatch.setattr(head, "call", edited)
        assert run(desk, "--data", "texts", "--out", "runs/x", "--model", "texts/a.txt", head=head)[0] == 0
        assert (desk / "texts" / "a.txt").read_text() == "edited while it ran"
        assert (desk / "texts" / "README.md").read_text() == "a card"

    def test_a_file_that_grows_while_it_is_fetched_is_not_taken(self, desk, monkeypatch):
        head = Here()
        monkeypatch.setattr(head.command, "files", lambda places: {"texts/new.txt": Entry(3, 1)})
        monkeypatch.setattr(head.command, "read", lambda name, start: b"four" if not start else b"")
        with pytest.raises(UserError, match=r"new\.txt changed on the head while it was fetched"):
            transfers.fetch(head, pack(["--data", "texts"], desk), {}, Console())
        assert [path.name for path in (desk / "texts").iterdir()] == ["a.txt"]

    def test_without_a_run_folder_it_is_given_one(self, desk):
        (desk / "stage").mkdir()
        (desk / "stage" / "told.py").write_text(COMMAND)
        head = Here()
        (head.command.root / "stage").mkdir(parents=True)
        (head.command.root / "stage" / "told.py").write_text(COMMAND.replace("words[-1]", "words[-3]"))
        assert run_on(head, CLUSTER, "stage.told", ["--address", ADDRESS, "--data", "texts/a.txt"], desk) == 0
        (made,) = (desk / "runs").iterdir()
        assert made.name.startswith("told-") and (made / "lines.txt").is_file()

    def test_its_status_is_the_commands(self, desk):
        assert run(desk, "--fail", "--out", "runs/x", "--data", "texts/a.txt")[0] == 3

    def test_ctrl_c_interrupts_it_there_and_its_files_come_back(self, desk, monkeypatch):
        head = Here()
        call = head.call

        def interrupted(method, *args):
            answer = call(method, *args)
            if method == "said" and b"waiting" in answer[0] and ("interrupt",) not in head.calls:
                raise KeyboardInterrupt
            return answer

        monkeypatch.setattr(head, "call", interrupted)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # as in a process of Ray's
        try:
            status, _ = run(desk, "--wait", "--out", "runs/x", "--data", "texts/a.txt", head=head)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        assert status == 130 and (desk / "runs/x/interrupted").read_text() == "yes"

    def test_one_that_was_killed_there_says_so(self, desk, monkeypatch):
        head = Here()
        call = head.call

        def killed(method, *args):
            answer = call(method, *args)
            if method == "said" and b"waiting" in answer[0]:
                head.command._process.kill()
            return answer

        monkeypatch.setattr(head, "call", killed)
        with pytest.raises(UserError, match=r"ended on the head by signal 9: .* use --resume"):
            run(desk, "--wait", "--out", "runs/x", "--data", "texts/a.txt", head=head)
        assert (desk / "runs/x/lines.txt").is_file()

    def test_another_version_is_refused(self, desk, monkeypatch):
        head = Here()
        monkeypatch.setattr(head.command, "version", lambda: "0.0.1")
        with pytest.raises(UserError, match=rf"the head has slm_ray 0\.0\.1 and this machine {slm_ray.__version__}"):
            run(desk, "--out", "runs/x", head=head)


class TestSafety:
    def test_a_head_cannot_write_outside_of_the_commands_places(self, desk, monkeypatch):
        head = Here()
        monkeypatch.setattr(head.command, "files", lambda places: {"runs/x/../../../stolen": Entry(1, 1)})
        with pytest.raises(UserError, match=r"names a file outside of .* it is not fetched"):
            run(desk, "--out", "runs/x", "--data", "texts/a.txt", head=head)
        assert not (desk.parent / "stolen").exists()

    @pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "."])
    def test_the_head_serves_its_own_folder_only(self, desk, name):
        for method, args in (("read", (0,)), ("write", (0, b"", None))):
            with pytest.raises(UserError, match="is not a file of the command's folder"):
                getattr(HeadCommand("desk"), method)(name, *args)

    def test_a_file_that_changed_on_its_way_is_not_taken(self, desk):
        head = HeadCommand("desk")
        with pytest.raises(UserError, match="changed while it was sent"):
            head.write("a.txt", 0, b"abc", Entry(4, 0))
        assert list(head.root.iterdir()) == []

    def test_a_full_disk_there_is_one_sentence(self, desk, monkeypatch):
        monkeypatch.setattr(
            os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device"))
        )
        with pytest.raises(UserError, match=r"on the head"):
            HeadCommand("desk").write("a.txt", 0, b"abc", Entry(3, 0))

    def test_nobody_at_the_address(self):
        with (
            pytest.raises(UserError, match=r"--address ray://127\.0\.0\.1:9 could not be joined"),
            connected("ray://127.0.0.1:9"),
        ):
            pass

    @pytest.mark.parametrize("address", ["ray://head", "ray://:10001", "ray://head:port"])
    def test_an_address_without_a_port(self, address):
        with pytest.raises(UserError, match=r"has no port: give it as ray://HEAD:10001"), connected(address):
            pass


class Aborting:
    """Ray's ``init``, on a head whose first processes for us end with some answer."""

    def __init__(self, answer, times):
        self.answer, self.left, self.calls = answer, times, 0

    def __call__(self, *args, **options):
        self.calls += 1
        self.left -= 1
        if self.left >= 0:
            raise ConnectionAbortedError(
                f"Initialization failure from server:\nTraceback (most recent call last):\n{self.answer}\n"
            )


class TestAHeadWhoseProcessesDie:
    DIED = "RuntimeError: Starting Ray client server failed. See ray_client_server_23000.err for detailed logs."

    def join(self, monkeypatch, answer, times):
        import ray

        init = Aborting(answer, times)
        monkeypatch.setattr(ray, "init", init)
        monkeypatch.setattr(client, "_BETWEEN_SECONDS", 0)
        return init, lambda: client._join(ray, ADDRESS)

    def test_the_next_one_is_tried(self, monkeypatch):
        init, join = self.join(monkeypatch, self.DIED, 2)
        join()
        assert init.calls == 3

    def test_not_for_ever(self, monkeypatch):
        init, join = self.join(monkeypatch, self.DIED, 100)
        with pytest.raises(ConnectionAbortedError) as caught:
            join()
        assert init.calls == 5 and client._reason(caught.value) == self.DIED

    def test_another_answer_stands(self, monkeypatch):
        init, join = self.join(monkeypatch, "RuntimeError: Version mismatch", 1)
        with pytest.raises(ConnectionAbortedError) as caught:
            join()
        assert init.calls == 1 and client._reason(caught.value) == "RuntimeError: Version mismatch"


def test_what_was_printed_and_never_read_is_removed(desk):
    head = HeadCommand("desk")
    head.root.mkdir(parents=True)
    gone = head.root / ".output-999999999"
    mine = head.root / f".errors-{os.getpid()}"
    gone.write_text("old")
    mine.write_text("")
    head._forget_others()
    assert not gone.exists() and mine.exists()
